# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""docs/data.md: its scripts turn VOC, COCO and labelme into sets that train; what it says of convert_coco is so."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from tests.data import ROOT
from ultralytics.data.converter import convert_coco
from ultralytics.nn.Addmodules.tools.dataset.read import read_data
from ultralytics.nn.Addmodules.tools.dataset.report import problems
from ultralytics.nn.Addmodules.tools.report_rows import PROBLEM

PAGE = (ROOT / "docs/data.md").read_text(encoding="utf-8")
SCRIPT, VOC_LISTS, COCO_FILES = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
CLASSES = ["细胞", "white cell", "platelet"]
WIDTH, HEIGHT, COUNT = 160, 120, 10
needs_supervision = pytest.mark.skipif(
    importlib.util.find_spec("supervision") is None, reason="`pip install supervision`, as the page says"
)


def objects(i: int) -> list[tuple[int, tuple[int, int, int, int]]]:
    """Return class and corners of the objects in a picture; one picture has none."""
    g = np.random.default_rng(i)
    corners = [g.integers(5, (110, 80)).tolist() for _ in range(0 if i == 3 else 1 + i % 3)]
    return [((i + k) % 3, (x, y, x + 40, y + 30)) for k, (x, y) in enumerate(corners)]


def picture(i: int) -> Image.Image:
    """Return a picture that no other is equal to."""
    image = Image.fromarray(np.random.default_rng(i).integers(90, 160, (HEIGHT, WIDTH, 3)).astype(np.uint8))
    for cls, corners in objects(i):
        ImageDraw.Draw(image).rectangle(corners, fill=(240, 60 * cls, 20))
    return image


def write(file: Path, text: str) -> None:
    """Write a text file, with its folder."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")


def save(file: Path, i: int) -> None:
    """Write a picture, with its folder."""
    file.parent.mkdir(parents=True, exist_ok=True)
    picture(i).save(file)


def make_voc(folder: Path) -> None:
    for i in range(COUNT):
        save(folder / f"VOC/JPEGImages/图片 {i}.jpg", i)
        found = "".join(
            f"<object><name>{CLASSES[cls]}</name><bndbox><xmin>{x + 1}</xmin><ymin>{y + 1}</ymin><xmax>{right}</xmax>"
            f"<ymax>{bottom}</ymax></bndbox></object>"  # VOC counts pixels from 1, the last included
            for cls, (x, y, right, bottom) in objects(i)
        )
        size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>"
        text = f"<annotation><filename>图片 {i}.jpg</filename>{size}{found}</annotation>"
        write(folder / f"VOC/Annotations/图片 {i}.xml", text)
    for split, part in (("train", range(7)), ("val", range(7, COUNT))):
        write(folder / f"VOC/ImageSets/Main/{split}.txt", "".join(f"图片 {i}\n" for i in part))


def coco(part: range, ids: list[int]) -> str:
    """Return a COCO file of some pictures, with these numbers of the categories."""
    boxes = [(i, ids[cls], corners) for i in part for cls, corners in objects(i)]
    images = [{"id": i, "file_name": f"图片 {i}.jpg", "width": WIDTH, "height": HEIGHT} for i in part]
    found = [
        {"id": n, "image_id": i, "category_id": c, "bbox": [x, y, 40, 30], "area": 1200, "iscrowd": 0}
        for n, (i, c, (x, y, _, _)) in enumerate(boxes, 1)
    ]
    categories = [{"id": i, "name": name} for i, name in zip(ids, CLASSES)]
    return json.dumps({"images": images, "annotations": found, "categories": categories}, ensure_ascii=False)


def make_coco(folder: Path) -> None:
    for split, part in (("train", range(7)), ("val", range(7, COUNT))):
        for i in part:
            save(folder / f"COCO/images/图片 {i}.jpg", i)
            save(folder / f"COCO/images/{split}/图片 {i}.jpg", i)
        write(folder / f"COCO/annotations/instances_{split}.json", coco(part, [0, 4, 9]))  # from 0, with gaps
    write(folder / "COCO/annotations/instances_all.json", coco(range(COUNT), [0, 4, 9]))


def make_labelme(folder: Path) -> None:
    for i in range(COUNT):
        save(folder / f"labelme/图片 {i}.jpg", i)
        shapes = [
            {"label": CLASSES[cls], "points": [[x, y], [right, bottom]], "shape_type": "rectangle", "group_id": None}
            for cls, (x, y, right, bottom) in objects(i)
        ]
        size = {"imageHeight": HEIGHT, "imageWidth": WIDTH}
        d = {"version": "5.5.0", "flags": {}, "shapes": shapes, "imagePath": f"图片 {i}.jpg", "imageData": None, **size}
        write(folder / f"labelme/图片 {i}.json", json.dumps(d, ensure_ascii=False))


def keep(kind: str) -> str:
    """Return the page's script with the line of one format kept, as a reader does."""
    lines = [line for line in SCRIPT.splitlines() if "data = sv." not in line or f".from_{kind}(" in line]
    return "\n".join(line.removeprefix("# ") if line.startswith("# data") else line for line in lines)


def splits_of(script: str, lines: str) -> str:
    """Return the script with other lines where `parts` is."""
    head, _, rest = script.partition("train, val = ")
    return head + lines + rest.partition('"val": val}\n')[2]


def convert(folder: Path, script: str) -> subprocess.CompletedProcess:
    write(folder / "convert.py", script)
    return subprocess.run(
        [sys.executable, "-X", "utf8", "convert.py"], cwd=folder, capture_output=True, encoding="utf-8", check=False
    )


def check(folder: Path, trained: set[int] | None = None) -> None:
    """Assert that a converted set has every picture and object once, at its place, and trains."""
    found = read_data(str(folder / "mydata/data.yaml"))
    names, splits = found.names, found.splits
    assert sorted(names.values()) == sorted(CLASSES)
    wrong = [row.detail for row in problems(found) if row.state == PROBLEM and row.item != "class"]
    assert wrong == []
    assert sum(len(split.images) for split in splits.values()) == COUNT
    for name, split in splits.items():
        for file, rows in split.labels.items():
            i = int(Path(file).stem.split()[1])
            assert trained is None or (i in trained) == (name == "train")
            corners = {(names[int(c)], *np.round([x - w / 2, y - h / 2, w, h], 2)) for c, x, y, w, h in rows.tolist()}
            expected = {
                (CLASSES[c], *np.round([x / WIDTH, y / HEIGHT, 0.25, 0.25], 2)) for c, (x, y, _, _) in objects(i)
            }
            difference = [abs(a - b) for p, q in zip(sorted(corners), sorted(expected)) for a, b in zip(p[1:], q[1:])]
            assert len(corners) == len(expected)
            assert [p[0] for p in sorted(corners)] == [q[0] for q in sorted(expected)]
            assert max(difference, default=0) < 0.02  # a pixel or so


@needs_supervision
@pytest.mark.parametrize(
    ("kind", "make"), [("pascal_voc", make_voc), ("coco", make_coco), ("labelme", make_labelme)], ids=str
)
def test_each_format_becomes_a_set(kind: str, make, tmp_path: Path) -> None:
    folder = tmp_path / "我的 数据"
    make(folder)
    done = convert(folder, keep(kind))
    assert done.returncode == 0, done.stderr
    check(folder)
    if kind == "labelme":
        again = convert(folder, keep(kind))  # stops at the folder that exists
        assert again.returncode != 0
        assert "FileExistsError" in again.stderr


@needs_supervision
@pytest.mark.parametrize(
    ("kind", "make", "lines"), [("pascal_voc", make_voc, VOC_LISTS), ("coco", make_coco, COCO_FILES)], ids=str
)
def test_own_splits_are_kept(kind: str, make, lines: str, tmp_path: Path) -> None:
    folder = tmp_path / "我的 数据"
    make(folder)
    done = convert(folder, splits_of(keep(kind), lines))
    assert done.returncode == 0, done.stderr
    check(folder, set(range(7)))


def classes_from(folder: Path, number: int, **settings: bool) -> set[str]:
    """Return the classes that convert_coco writes for a category of some number."""
    write(folder / "annotations/instances_x.json", coco(range(1, 2), [number] * 3))
    convert_coco(str(folder / "annotations"), save_dir=str(folder / "out"), **settings)
    [file] = (folder / "out").rglob("*.txt")
    return {line.split()[0] for line in file.read_text(encoding="utf-8").splitlines()}


@pytest.mark.parametrize("row", re.findall(r"^\| (\d+) \| (.+) \| (.+) \|$", PAGE, re.MULTILINE), ids=lambda r: r[0])
def test_what_is_said_of_convert_coco(row: tuple[str, str, str], tmp_path: Path) -> None:
    number, mapped, plain = row
    if mapped == "an error":
        with pytest.raises(TypeError):
            classes_from(tmp_path / "a", int(number))
    else:
        assert classes_from(tmp_path / "a", int(number)) == {re.match(r"class (-?\d+)", mapped)[1]}
    assert classes_from(tmp_path / "b", int(number), cls91to80=False) == {re.match(r"class (-?\d+)", plain)[1]}
    assert not (tmp_path / "a/out/images").exists() or not [*(tmp_path / "a/out/images").iterdir()]


def test_the_first_numbers_of_convert_coco_agree(tmp_path: Path) -> None:
    for number in (1, 11):
        assert classes_from(tmp_path / str(number), number) == {str(number - 1)}
