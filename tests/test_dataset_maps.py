# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""`vmamba dataset` for masks and depth maps: what a training reads of them, faults that are put in, and pictures."""

from __future__ import annotations

import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from tests.data import SIDE, make_data
from ultralytics.data.dataset import DepthDataset, SemanticDataset
from ultralytics.data.utils import check_det_dataset
from ultralytics.nn.Addmodules.tools.data import check_labels
from ultralytics.nn.Addmodules.tools.dataset.contact_sheet import Described, plot_contact_sheet
from ultralytics.nn.Addmodules.tools.dataset.read import read_data
from ultralytics.nn.Addmodules.tools.dataset.report import problems, tables
from ultralytics.nn.Addmodules.tools.dataset.verb import choose
from ultralytics.nn.Addmodules.tools.maps import beside
from ultralytics.nn.Addmodules.tools.report_rows import PROBLEM
from ultralytics.nn.Addmodules.tools.verbs import main as vmamba
from ultralytics.utils import YAML


@pytest.fixture
def masks(tmp_path: Path) -> Path:
    """Return the YAML of a set of masks: squares, bars, ground, and a line at the top that counts for no class."""
    data = make_data(tmp_path / "我的 数据", "semantic")
    for file in sorted((data.parent / "labels").rglob("*.txt")):
        mask = Image.new("L", (SIDE, SIDE), 2)
        for row in file.read_text(encoding="utf-8").splitlines():
            cls, *numbers = map(float, row.split())
            ImageDraw.Draw(mask).polygon([SIDE * n for n in numbers], fill=int(cls))
        ImageDraw.Draw(mask).line([0, 0, SIDE, 0], fill=255)
        out = data.parent / "masks" / file.parent.name / f"{file.stem}.png"
        out.parent.mkdir(parents=True, exist_ok=True)
        mask.save(out)
    shutil.rmtree(data.parent / "labels")
    change(data, names={0: "square", 1: "bar", 2: "ground"})
    return data


@pytest.fixture
def depth(tmp_path: Path) -> Path:
    """Return the YAML of a set of depth maps, in which a training finds nothing wrong."""
    return make_data(tmp_path / "我的 数据", "depth")


def change(data: Path, **values) -> None:
    """Change entries of a data YAML."""
    YAML.save(data, {**YAML.load(data), **values})


def details(data: Path, read: str | None = None) -> list[str]:
    """Return what is said to be wrong with a set."""
    return [f"{row.item}: {row.detail}" for row in problems(read_data(str(data), read)) if row.state == PROBLEM]


def rows_of(data: Path) -> dict[str, list[str]]:
    """Return the lines of the tables by their first words."""
    lines = tables(read_data(str(data))).splitlines()[2:]
    return {line[:31].strip() if line.startswith("median") else line.split("  ")[0]: line.split() for line in lines}


def test_masks_are_counted_as_a_training_reads_them(masks: Path) -> None:
    found = read_data(str(masks))
    facts = check_det_dataset(str(masks))
    upstream = SemanticDataset(img_path=facts["train"], data=facts, augment=False)
    assert upstream.mask_files == [found.splits["train"].places[image] for image in upstream.im_files]
    whole = np.bincount(np.concatenate([upstream.load_mask(i).ravel() for i in range(len(upstream))]))
    assert dict(found.splits["train"].counts()) == {int(i): int(n) for i, n in enumerate(whole) if n}
    rows = rows_of(masks)
    assert rows["split"] == ["split", *"pictures with a mask no mask left out".split()]
    assert rows["train"] == ["train", "12", "12", "0", "0"]
    assert rows["pixels, %"] == ["pixels,", "%", "train", "val"]
    assert rows["0 square"][2] == f"{100 * whole[0] / whole.sum():.1f}"
    assert rows["255 (counts for no class)"][-2] == f"{100 * whole[255] / whole.sum():.1f}"
    assert details(masks) == []


def test_depth_maps_are_counted_as_a_training_reads_them(depth: Path) -> None:
    found = read_data(str(depth))
    facts = check_det_dataset(str(depth))
    upstream = DepthDataset(img_path=facts["train"], data=facts, augment=False)
    assert {*found.splits["train"].metres} == {*upstream.im_files}
    for i, image in enumerate(upstream.im_files):
        assert np.array_equal(upstream._load_depth(i), found.splits["train"].map(image))
    rows = rows_of(depth)
    assert rows["split"][1:] == "pictures with a depth map no depth map left out".split()
    assert rows["smallest"] == ["smallest", "1", "1"]
    assert rows["median of the pictures' medians"][-2:] == ["4", "4"]
    assert rows["largest"] == ["largest", "4", "4"]
    change(depth, depth_scale=500)
    assert rows_of(depth)["largest"] == ["largest", "8", "8"]
    assert details(depth) == []


def test_part_of_the_pixels_without_a_distance(depth: Path) -> None:
    for file in (depth.parent / "depth/train").glob("*.png"):
        there = np.asarray(Image.open(file)).copy()
        there[: SIDE // 4] = 0
        Image.fromarray(there).save(file)
    lines = tables(read_data(str(depth))).splitlines()
    assert next(line for line in lines if line.startswith("pixels without")).split()[-2:] == ["25.0", "0.0"]


def mask(data: Path, file: str, values: np.ndarray) -> None:
    """Write a mask."""
    Image.fromarray(values).save(data.parent / "masks" / file)


WRONG_MASKS = {
    "missing": (
        lambda data: (data.parent / "masks/train/3.png").unlink(),
        "train: pictures without a mask: 1 (3.png)",
    ),
    "another size": (
        lambda data: mask(data, "train/2.png", np.zeros((9, 9), np.uint8)),
        "train: pictures that a training leaves out: 1 (2.png: mask size (9, 9) does not match image size (64, 64))",
    ),
    "no such class": (
        lambda data: mask(data, "val/1.png", np.full((SIDE, SIDE), 7, np.uint8)),
        "val: pictures that a training leaves out: 1 (1.png: mask ids [7] are not dataset class ids or 255 ignore)",
    ),
    "beyond a byte": (
        lambda data: mask(data, "val/1.png", np.full((SIDE, SIDE), 700, np.uint16)),
        "val: pictures that a training leaves out: 1 (1.png: its mask has numbers above 255)",
    ),
    "no picture": (
        lambda data: (data.parent / "masks/train/4.png").write_bytes(b"no picture"),
        "train: pictures that a training leaves out: 1 (4.png: no picture of a format that can be read here",
    ),
    "alone": (
        lambda data: mask(data, "train/gone.png", np.zeros((SIDE, SIDE), np.uint8)),
        "names: masks without a picture: 1 (gone.png)",
    ),
    "one mask for two": (
        lambda data: Image.new("RGB", (SIDE, SIDE)).save(data.parent / "images/train/7.jpg"),
        "names: pictures that share a mask: 2 (7.jpg; 7.png)",
    ),
    "other endings": (
        lambda data: (data.parent / "masks/val/0.gif").write_bytes(b"GIF"),
        "names: files that are not read because of their ending: 1 (0.gif)",
    ),
    "class without pixels": (
        lambda data: change(data, names={0: "square", 1: "bar", 2: "ground", 3: "细胞"}),
        "class: no pixel of class 3 (细胞) in any split",
    ),
    "in two splits": (
        lambda data: shutil.copy(data.parent / "images/train/8.png", data.parent / "images/val/1.png"),
        "splits: pictures in two splits: 1 (train/8.png = val/1.png)",
    ),
}


@pytest.mark.parametrize("fault", WRONG_MASKS)
def test_a_fault_of_masks_is_named_and_nothing_else(fault: str, masks: Path) -> None:
    put_in, said = WRONG_MASKS[fault]
    put_in(masks)
    (found,) = details(masks)
    assert found.startswith(said)


WRONG_DEPTH = {
    "missing": (
        lambda data: (data.parent / "depth/train/3.png").unlink(),
        "train: pictures without a depth map: 1 (3.png)",
    ),
    "eight bits": (
        lambda data: Image.new("L", (SIDE, SIDE), 9).save(data.parent / "depth/train/2.png"),
        "train: pictures that a training leaves out: 1 (2.png: depth map ",
    ),
    "another shape": (
        lambda data: (
            np.save(data.parent / "depth/val/1.npy", np.ones((9, 30), np.float32))
            or (data.parent / "depth/val/1.png").unlink()
        ),
        "val: pictures that a training leaves out: 1 (1.png: depth map shape (9, 30) does not match image shape",
    ),
    "no distance": (
        lambda data: Image.fromarray(np.zeros((SIDE, SIDE), np.uint16)).save(data.parent / "depth/val/2.png"),
        "val: depth maps without a distance: 1 (2.png)",
    ),
    "an array of numbers that a training cannot read": (
        lambda data: (
            np.save(data.parent / "depth/val/2.npy", np.ones((SIDE, SIDE), np.int32))
            or (data.parent / "depth/val/2.png").unlink()
        ),
        "val: pictures that a training leaves out: 1 (2.png: depth NPY must be 2D and floating-point)",
    ),
}


@pytest.mark.parametrize("fault", WRONG_DEPTH)
def test_a_fault_of_depth_maps_is_named_and_nothing_else(fault: str, depth: Path) -> None:
    put_in, said = WRONG_DEPTH[fault]
    put_in(depth)
    (found,) = details(depth)
    assert found.startswith(said)


def test_a_map_at_which_a_training_would_stop(depth: Path) -> None:
    """Upstream looks at the checksums of a PNG file alone, and reads the pixels in the middle of an epoch."""
    file = depth.parent / "depth/val/2.png"
    whole = file.read_bytes()
    start = whole.index(b"IDAT")
    (length,) = struct.unpack(">I", whole[start - 4 : start])
    half = whole[start : start + 4 + length // 2]
    cut = struct.pack(">I", length // 2) + half + struct.pack(">I", zlib.crc32(half))
    file.write_bytes(whole[: start - 4] + cut + whole[start + 8 + length :])
    (said,) = details(depth)
    assert said.startswith("val: depth maps that cannot be read: 1 (2.png: image file is truncated")
    facts = check_det_dataset(str(depth))
    upstream = DepthDataset(img_path=facts["val"], data=facts, augment=False)
    with pytest.raises(OSError, match="truncated"):
        [upstream[i] for i in range(len(upstream))]


def test_masks_with_a_mapping_and_of_one_class(masks: Path) -> None:
    change(masks, names={0: "shape"}, label_mapping={0: 1, 1: 1, 2: 0})
    found = read_data(str(masks))
    assert found.names == {0: "background", 1: "shape"}
    assert {*found.splits["train"].counts()} == {0, 1, 255}
    assert details(masks) == []
    change(masks, names={0: "square", 1: "bar"}, label_mapping={2: "ignore_label", -1: None, 700: 3})
    assert {*read_data(str(masks)).splits["train"].counts()} == {0, 1, 255}
    assert details(masks) == []


@pytest.mark.parametrize("mapping", [{7: 300}, {7: "car"}, {"car": 7}, [7], 7, {7: -1}])
@pytest.mark.parametrize("read", [read_data, lambda file: check_labels(file, "semantic")])
def test_a_wrong_mapping_is_one_sentence(read, mapping: object, masks: Path) -> None:
    change(masks, label_mapping=mapping)
    with pytest.raises(ValueError, match="label_mapping=.* must give a class or ignore_label for numbers in the masks"):
        read(str(masks))


@pytest.mark.parametrize("scale", [0, -1, "mm", True, float("inf")])
@pytest.mark.parametrize("read", [read_data, lambda file: check_labels(file, "depth")])
def test_a_wrong_scale_is_one_sentence(read, scale: object, depth: Path) -> None:
    change(depth, depth_scale=scale)
    with pytest.raises(ValueError, match="depth_scale=.* must be a number above zero, as 1000"):
        read(str(depth))


@pytest.mark.parametrize("folder", ["/there", "5", "[masks]"])
def test_a_folder_of_masks_is_a_name(folder: str, masks: Path) -> None:
    masks.write_text(f"{masks.read_text(encoding='utf-8')}masks_dir: {folder}\n", encoding="utf-8")
    for read in (read_data, lambda file: check_labels(file, "semantic")):
        with pytest.raises(ValueError, match="masks_dir=.* must be the name of a folder beside images"):
            read(str(masks))


def test_maps_lie_beside_pictures() -> None:
    assert beside("images/train/0.png", "depth", ".png", ".npy") == [
        Path("depth/train/0.png"),
        Path("depth/train/0.npy"),
    ]
    assert beside("a/images/b/images/0.jpg", "masks", ".png") == [Path("a/images/b/masks/0.png")]
    assert beside("pictures/0.jpg", "masks", ".png") == []


def test_what_is_read_of_a_set_with_labels_and_masks(masks: Path, tmp_path: Path, capsys) -> None:
    labels = make_data(tmp_path / "other", "detect").parent / "labels"
    shutil.copytree(labels, masks.parent / "labels")
    rows = problems(read_data(str(masks)))
    assert ("label files were read; there are masks, too", "read=masks looks at these") in [
        (row.detail, row.advice) for row in rows
    ]
    assert read_data(str(masks)).splits["train"].NOUN == "label file"
    assert read_data(str(masks), "masks").splits["train"].NOUN == "mask"
    assert vmamba(["dataset", f"data={masks}", "read=depth", f"out={tmp_path / 'x.png'}"]) == 1
    assert "no depth maps for the train split, expected for example " in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["masks", "depth"])
def test_the_command(kind: str, tmp_path: Path, request: pytest.FixtureRequest, capsys) -> None:
    data: Path = request.getfixturevalue(kind)
    change(data, test="images/none")
    before = {str(p): (p.read_bytes(), p.stat().st_mtime_ns) for p in data.parent.rglob("*") if p.is_file()}
    assert vmamba(["dataset", f"data={data}", f"out={tmp_path / 'sheet.png'}", "count=4"]) == 0
    said = capsys.readouterr().out
    assert "PROBLEM  test" in said
    assert np.asarray(Image.open(tmp_path / "sheet.png").convert("L")).std() > 10
    assert {str(p): (p.read_bytes(), p.stat().st_mtime_ns) for p in data.parent.rglob("*") if p.is_file()} == before


def test_pictures_to_look_at(masks: Path) -> None:
    for i in range(12):
        mask(masks, f"train/{i}.png", np.full((SIDE, SIDE), 255 if i == 3 else int(i == 7), np.uint8))
    splits = read_data(str(masks)).splits
    chosen = [(split, Path(file).name) for split, file in choose(splits, 4)]
    assert len(chosen) == 4
    assert {split for split, _ in chosen} == {"train", "val"}
    assert ("train", "3.png") not in [(split, Path(file).name) for split, file in choose(splits, 99)]


def test_classes_are_coloured_where_they_are() -> None:
    classes = np.array([[0, 1], [1, 255]], np.uint8).repeat(20, 0).repeat(20, 1)
    white = np.full((40, 40, 3), 255, np.uint8)
    figure = plot_contact_sheet([Described("a", white, classes=classes)], {0: "x", 1: "y"})
    shown = figure.axes[0].images[0].get_array()
    square, right, below, ignored = shown[5, 5], shown[5, 35], shown[35, 5], shown[35, 35]
    assert square[2] > square[0]  # the first colour is blue, the second orange
    assert right[0] > right[2]
    assert np.array_equal(right, below)
    assert np.array_equal(ignored, [127] * 3)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["x", "y"]


def test_distances_stand_beside_their_picture() -> None:
    metres = np.array([[1, 4], [0, 2]], np.float32).repeat(20, 0).repeat(20, 1)
    grey = np.full((40, 40, 3), 90, np.uint8)
    figure = plot_contact_sheet([Described("a", grey, metres=metres)], {})
    shown = figure.axes[0].images[0].get_array()
    assert shown.shape == (40, 80, 3)
    assert (shown[:, :40] == 90).all()
    near, far, none = (int(shown[y, x].sum()) for y, x in ((5, 45), (5, 75), (35, 45)))
    assert near > far > none == 0
    assert figure.axes[0].get_title() == "a, 1 to 4 m"
    assert not figure.legends
