# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""`vmamba dataset`: it counts what a training reads, names each fault that is put into a set, and changes nothing."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data import make_data
from ultralytics.data.dataset import YOLODataset
from ultralytics.data.utils import check_det_dataset
from ultralytics.nn.Addmodules.tools.data import check_labels
from ultralytics.nn.Addmodules.tools.dataset import contact_sheet
from ultralytics.nn.Addmodules.tools.dataset.contact_sheet import Described, plot_contact_sheet
from ultralytics.nn.Addmodules.tools.dataset.read import read_data
from ultralytics.nn.Addmodules.tools.dataset.report import problems, tables
from ultralytics.nn.Addmodules.tools.dataset.verb import choose
from ultralytics.nn.Addmodules.tools.report_rows import PROBLEM
from ultralytics.nn.Addmodules.tools.verbs import main as vmamba
from ultralytics.utils import YAML


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Return the YAML of a set without a fault, in a folder with Chinese characters and a space."""
    return make_data(tmp_path / "我的 数据", "detect")


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Return the bytes and the time of change of every file."""
    return {str(p): (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.rglob("*") if p.is_file()}


def details(data: Path) -> list[str]:
    """Return what is said to be wrong with a set."""
    return [f"{row.item}: {row.detail}" for row in problems(read_data(str(data))) if row.state == PROBLEM]


def label(data: Path, file: str, *rows: str) -> None:
    """Write a label file."""
    (data.parent / "labels" / file).write_text("\n".join(rows), encoding="utf-8")


def test_a_set_without_a_fault(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    before = contents(data.parent)
    assert vmamba(["dataset", f"data={data}", f"out={tmp_path / 'sheet.png'}", "count=4"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"{data}, as a training reads it"
    assert [line.split() for line in said[3:5]] == [
        ["train", "12", "12", "0", "0", "0", "24"],
        ["val", "4", "4", "0", "0", "0", "8"],
    ]
    assert [line.split() for line in said[7:9]] == [["0", "square", "12", "4"], ["1", "bar", "12", "4"]]
    assert details(data) == []
    assert contents(data.parent) == before
    assert np.asarray(Image.open(tmp_path / "sheet.png").convert("L")).std() > 10
    # nothing is replaced, and nothing is put among the pictures
    assert vmamba(["dataset", f"data={data}", f"out={tmp_path / 'sheet.png'}"]) == 1
    assert "exists" in capsys.readouterr().err
    assert vmamba(["dataset", f"data={data}", f"out={data.parent / 'images/train/x.png'}"]) == 1
    assert "lies among the files of the data set" in capsys.readouterr().err
    assert contents(data.parent) == before


def test_counts_are_those_of_a_training(data: Path) -> None:
    label(data, "train/0.txt")  # empty
    label(data, "train/1.txt", "0 0.5 0.5 0.2 0.2", "0 0.5 0.5 0.2 0.2")  # twice
    label(data, "train/2.txt", "0 0.5 0.5 1.2 0.2")  # left out
    (data.parent / "labels/train/3.txt").unlink()
    found = read_data(str(data))
    splits = found.splits
    facts = check_det_dataset(str(data))
    upstream = YOLODataset(img_path=facts["train"], data=facts, augment=False)
    rows = np.concatenate([item["cls"] for item in upstream.labels])[:, 0]
    assert len(upstream.labels) == len(splits["train"].labels) == 11
    assert dict(splits["train"].counts()) == {c: int((rows == c).sum()) for c in (0, 1)}
    line = next(line for line in tables(found).splitlines() if line.startswith("train"))
    assert line.split() == ["train", "12", "9", "1", "1", "1", "17"]


FAULTS = {
    "out of range": (
        lambda data: label(data, "train/2.txt", "0 1.5 0.5 0.2 0.2"),
        "train: pictures that a training leaves out: 1 (2.png: non-normalized or out of bounds coordinates [",
    ),
    "no such class": (
        lambda data: label(data, "val/2.txt", "7 0.5 0.5 0.2 0.2"),
        "val: pictures that a training leaves out: 1 (2.png: Label class 7 exceeds dataset class count 2.",
    ),
    "no picture": (
        lambda data: (data.parent / "images/train/4.png").write_bytes(b"no picture"),
        "train: pictures that a training leaves out: 1 (4.png: no picture of a format that can be read here",
    ),
    "twice": (
        lambda data: label(data, "train/1.txt", "0 0.5 0.5 0.2 0.2", "0 0.5 0.5 0.2 0.2"),
        "train: pictures that a training mends: 1 (1.png: 1 of its boxes there twice)",
    ),
    "no label file": (
        lambda data: (data.parent / "labels/train/3.txt").unlink(),
        "train: pictures without a label file: 1 (3.png)",
    ),
    "beyond": (
        lambda data: label(data, "train/5.txt", "0 0.9 0.5 0.4 0.2"),
        "train: boxes that reach beyond their picture: 1, in 5.png",
    ),
    "thin": (
        lambda data: label(data, "train/6.txt", "0 0.5 0.5 0.02 0.2"),
        "train: boxes thinner than 2 pixels: 1, in 6.png",
    ),
    "one label for two": (
        lambda data: Image.new("RGB", (64, 64)).save(data.parent / "images/train/7.jpg"),
        "names: pictures that share a label file: 2 (7.jpg; 7.png)",
    ),
    "label alone": (
        lambda data: label(data, "train/gone.txt", "0 0.5 0.5 0.2 0.2"),
        "names: label files without a picture: 1 (gone.txt)",
    ),
    "other endings": (
        lambda data: [
            (data.parent / "images/train/photo.gif").write_bytes(b"GIF"),
            (data.parent / "images/val/Thumbs.db").write_bytes(b"of Windows"),
            (data.parent / "labels/val/0.TXT").write_text("0 0.5 0.5 0.2 0.2", encoding="utf-8"),
        ],
        "names: files that are not read because of their ending: 2 (0.TXT; photo.gif)",
    ),
    "in two splits": (
        lambda data: shutil.copy(data.parent / "images/train/8.png", data.parent / "images/val/1.png"),
        "splits: pictures in two splits: 1 (train/8.png = val/1.png)",
    ),
    "mixed": (
        lambda data: label(data, "train/9.txt", "0 0.1 0.1 0.5 0.1 0.5 0.5"),
        "kind: pictures with outlines: 1, with boxes: 15",
    ),
    "test without pictures": (
        lambda data: YAML.save(data, {**YAML.load(data), "test": "images/tset"}),
        "test: no pictures in the test split: ",
    ),
    "two classes of one name": (
        lambda data: YAML.save(data, {**YAML.load(data), "names": {0: "square", 1: "square"}}),
        "class: classes 0 and 1 are called 'square'",
    ),
    "class without objects": (
        lambda data: YAML.save(data, {**YAML.load(data), "names": {0: "square", 1: "bar", 2: "细胞"}}),
        "class: no object of class 2 (细胞) in any split",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_and_nothing_else(fault: str, data: Path) -> None:
    put, said = FAULTS[fault]
    put(data)
    before = contents(data.parent)
    [found] = details(data)
    assert found.startswith(said)
    assert contents(data.parent) == before


def test_a_broken_jpeg_is_named_and_not_repaired(data: Path) -> None:
    file = data.parent / "images/train/0.png"
    Image.open(file).save(file.with_suffix(".jpg"), quality=95)
    file.unlink()
    file = file.with_suffix(".jpg")
    file.write_bytes(file.read_bytes()[:-2])
    before = file.read_bytes()
    assert details(data) == [
        "train: pictures that a training mends: 1 (0.jpg: the end of the JPEG file is missing; it writes the file anew)"
    ]
    assert file.read_bytes() == before


def test_splits_that_are_lists_share_their_folders(data: Path) -> None:
    folder = data.parent
    for split, rest in (("train", range(8)), ("val", range(8, 11))):  # the last picture is in no list
        lines = "".join(f"./images/train/{i}.png\n" for i in rest)
        (folder / f"{split}.txt").write_text(lines, encoding="utf-8")
    YAML.save(data, {"path": str(folder), "train": "train.txt", "val": "val.txt", "names": {0: "square", 1: "bar"}})
    assert details(data) == []


def lists(data: Path, form: str) -> None:
    """Make the training split a list with a line of this form for each picture."""
    lines = (form.format(images=data.parent / "images/train", i=i) for i in range(12))
    (data.parent / "train.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    YAML.save(data, {**YAML.load(data), "train": "train.txt"})


def marked(data: Path) -> None:
    """Make the training split a list as the Windows editor saves it, with a byte-order mark."""
    lists(data, "./images/train/{i}.png")
    file = data.parent / "train.txt"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())


def hidden(data: Path) -> None:
    """Put files among the pictures that macOS and notebooks leave there."""
    folder = data.parent / "images/train"
    (folder / ".ipynb_checkpoints").mkdir()
    shutil.copy(folder / "0.png", folder / ".ipynb_checkpoints/0-checkpoint.png")
    (folder / "._1.png").write_bytes(b"of macOS")
    (data.parent / "labels/train/._2.txt").write_bytes(b"of macOS")


def linked(data: Path) -> None:
    """Move the pictures of a split, and leave a folder that is a link to them."""
    folder = data.parent / "images/train"
    folder.rename(data.parent / "elsewhere")
    folder.mkdir()
    (folder / "part").symlink_to(data.parent / "elsewhere", target_is_directory=True)
    labels = data.parent / "labels/train"
    (labels / "part").mkdir()
    for file in labels.glob("*.txt"):
        file.rename(labels / "part" / file.name)


@pytest.mark.parametrize(
    "lay",
    [
        lambda data: lists(data, "{images}/{i}.png"),
        lambda data: lists(data, "./images/train/{i}.png"),
        marked,
        hidden,
        pytest.param(linked, marks=pytest.mark.skipif(os.name == "nt", reason="links need a right on Windows")),
    ],
)
def test_pictures_are_those_of_a_training(lay, data: Path) -> None:
    lay(data)
    found = check_det_dataset(str(data))
    upstream = YOLODataset(img_path=found["train"], data=found, augment=False)
    splits = read_data(str(data)).splits
    assert splits["train"].images == upstream.im_files
    assert len(splits["train"].labels) == len(upstream.labels) == 12
    assert details(data) == []
    assert check_labels(str(data), "detect").images == {"train": 12, "val": 4}


def test_lines_of_a_list_count_from_the_current_folder_as_in_a_training(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    lists(data, "我的 数据/images/train/{i}.png")
    monkeypatch.chdir(tmp_path)
    assert details(data) == []
    assert check_labels(str(data), "detect").images == {"train": 12, "val": 4}
    monkeypatch.chdir(data.parent)
    (problem,) = [row for row in problems(read_data(str(data))) if "leaves out: 12 (" in row.detail]
    assert "0.png: there is no such file" in problem.detail
    assert problem.advice.endswith("a path in a list counts from the current folder, unless it begins with ./")
    with pytest.raises(FileNotFoundError, match="no image of the train split is there.*unless it begins with ./"):
        check_labels(str(data), "detect")
    assert vmamba(["dataset", f"data={data}", f"out={tmp_path / 'sheet.png'}"]) == 0  # val has pictures to draw
    assert "there is no such file" in capsys.readouterr().out


def test_pictures_that_are_gone_are_named_beside_all_other_problems(data: Path, capsys, tmp_path: Path) -> None:
    lists(data, "{images}/{i}.png")
    with (data.parent / "train.txt").open("a", encoding="utf-8") as file:
        file.write(f"{data.parent}/no/such/a.jpg\n")
    label(data, "train/2.txt", "0 1.5 0.5 0.2 0.2")
    assert vmamba(["dataset", f"data={data}", f"out={tmp_path / 'sheet.png'}"]) == 0
    said = capsys.readouterr().out
    assert "pictures that a training leaves out: 2" in said
    assert "a.jpg: there is no such file" in " ".join(said.split())


@pytest.mark.parametrize(
    ("train", "said"),
    [
        ("images/train/0.png", "0.png is neither a folder nor a text file that lists pictures"),
        ("images/trian", "trian does not exist"),
        (["images/train", "images/trian"], "trian does not exist"),
        ("labels/train", "labels/train has none, their names would end in avif, "),
        ("", "no folder is named"),
    ],
)
def test_a_split_without_pictures_is_one_sentence(
    train: str | list[str], said: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    YAML.save(data, {**YAML.load(data), "train": train})
    assert vmamba(["dataset", f"data={data}", f"out={tmp_path / 'x.png'}"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"data={data}: no pictures in the train split: " in line
    assert said in line
    with pytest.raises(FileNotFoundError, match="no images in the train split: .*" + said):
        check_labels(str(data), "detect")


def test_labels_with_a_byte_order_mark_are_read(data: Path) -> None:
    file = data.parent / "labels/train/0.txt"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert details(data) == []
    check_labels(str(data), "detect")


@pytest.mark.parametrize("task", ["segment", "pose", "obb", "semantic"])
def test_other_tasks(task: str, tmp_path: Path) -> None:
    data = make_data(tmp_path / "data", task)
    splits = read_data(str(data)).splits
    assert details(data) == []
    assert splits["train"].counts() == {0: 12, 1: 12}


def test_facts_of_sets_with_a_value_for_every_pixel(tmp_path: Path) -> None:
    """What `vmamba compare` knows of them: classes as the head will have them, and pictures."""
    polygons = check_labels(str(make_data(tmp_path / "polygons", "semantic")), "semantic")
    assert polygons.names == {0: "square", 1: "bar", 2: "background"}
    depth = make_data(tmp_path / "depth", "depth")
    assert check_labels(str(depth), "depth").images == {"train": 12, "val": 4}
    (depth.parent / "depth/train/3.png").unlink()
    found = check_labels(str(depth), "depth")
    assert (found.images, found.without) == ({"train": 11, "val": 4}, {"train": 1, "val": 0})
    shutil.rmtree(depth.parent / "depth/val")
    with pytest.raises(FileNotFoundError, match=r"no depth maps for the val split, expected .*depth/val/0\.png'"):
        check_labels(str(depth), "depth")
    masks = make_data(tmp_path / "masks", "semantic")
    for split in ("train", "val"):
        (masks.parent / "masks" / split).mkdir(parents=True)
        (masks.parent / f"masks/{split}/0.png").touch()
    assert check_labels(str(masks), "semantic").names == {0: "square", 1: "bar"}  # masks name every pixel themselves
    (masks.parent / "masks/train/0.png").rename(masks.parent / "masks/train/0.bmp")
    assert check_labels(str(masks), "semantic").images == {"train": 1, "val": 1}
    (masks.parent / "masks/train/0.bmp").unlink()
    with pytest.raises(FileNotFoundError, match=r"no masks for the train split, expected .*masks/train/0\.png'"):
        check_labels(str(masks), "semantic")
    boxes = make_data(tmp_path / "boxes", "detect")
    with pytest.raises(ValueError, match="the models are for semantic, but .* has no polygons"):
        check_labels(str(boxes), "semantic")
    (boxes.parent / "images").rename(boxes.parent / "pictures")
    boxes.write_text(boxes.read_text(encoding="utf-8").replace("images/", "pictures/"), encoding="utf-8")
    with pytest.raises(FileNotFoundError, match=r"no depth maps for the train split, expected .*/0\.npy'"):
        check_labels(str(boxes), "depth")


def test_a_class_called_background_is_not_added_twice(tmp_path: Path) -> None:
    data = make_data(tmp_path / "data", "semantic")
    data.write_text(data.read_text(encoding="utf-8").replace("square", "background"), encoding="utf-8")
    with pytest.raises(ValueError, match="a class is called background, as the one that Ultralytics adds"):
        check_labels(str(data), "semantic")
    assert check_labels(str(data), "segment").names[0] == "background"


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["data=none.yaml"], "vmamba dataset: data=none.yaml:"),
        (["data=pictures"], "vmamba dataset: data=pictures is a folder without a YAML"),
        (["data=names.yaml"], "data=names.yaml: names: numbers classes from 0, as 0: car, but a number is 'car'"),
    ],
)
def test_errors_are_one_sentence(args: list[str], said: str, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    (tmp_path / "names.yaml").write_text("train: pictures\nval: pictures\nnames: {car: 1}\n", encoding="utf-8")
    assert vmamba(["dataset", *args, "out=x.png"]) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert said in lines[0]
    assert not (tmp_path / "x.png").exists()


@pytest.mark.parametrize("read", [read_data, lambda file: check_labels(file, "detect")])
def test_pictures_that_a_training_would_fetch(read, tmp_path: Path) -> None:
    rows = f"path: {tmp_path.as_posix()}/gone\ntrain: images\nval: images\nnames: [a]\n"
    for name, more, said in (("own", "", False), ("theirs", "download: https://example.org/x.zip\n", True)):
        file = tmp_path / f"{name}.yaml"
        file.write_text(rows + more, encoding="utf-8")
        with pytest.raises(ValueError, match="images not found") as e:
            read(str(file))
        assert str(e.value).endswith(f"gets the pictures: yolo train data={file}") == said


def test_pictures_to_look_at_show_every_class_and_every_split(data: Path) -> None:
    label(data, "train/7.txt", "1 0.5 0.5 0.2 0.2")
    for i in (*range(7), *range(8, 12)):
        label(data, f"train/{i}.txt", "0 0.5 0.5 0.2 0.2")
    for i in range(4):
        label(data, f"val/{i}.txt", "0 0.5 0.5 0.2 0.2")
    splits = read_data(str(data)).splits
    chosen = [(split, Path(file).name) for split, file in choose(splits, 4)]
    assert len(chosen) == 4
    assert ("train", "7.png") in chosen  # the one picture of the rarer class
    assert {split for split, _ in chosen} == {"train", "val"}
    assert len(choose(splits, 99)) == 16


def test_names_take_a_font_that_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(contact_sheet, "show", asked.extend)
    plot_contact_sheet(
        [Described("图片.jpg", np.zeros((9, 9, 3), np.uint8), np.array([[0, 0.5, 0.5, 1, 1]]))], {0: "细胞"}
    )
    assert asked == ["细胞", "图片.jpg"]


def test_boxes_are_drawn_where_they_are() -> None:
    picture = np.zeros((100, 200, 3), np.uint8)
    figure = plot_contact_sheet([Described("a", picture, np.array([[1, 0.5, 0.25, 0.2, 0.1]]))], {0: "x", 1: "y"})
    [box] = figure.axes[0].patches
    assert np.allclose([*box.get_xy(), box.get_width(), box.get_height()], [79.5, 19.5, 40, 10])
    assert [text.get_text() for text in figure.axes[0].texts] == ["y"]
