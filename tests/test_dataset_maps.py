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
from ultralytics.nn.Addmodules.tools.dataset.contact_sheet import Described, _colour, plot_contact_sheet
from ultralytics.nn.Addmodules.tools.dataset.read import read_data
from ultralytics.nn.Addmodules.tools.dataset.report import problems, tables
from ultralytics.nn.Addmodules.tools.dataset.verb import choose
from ultralytics.nn.Addmodules.tools.dataset.wording import digits, part
from ultralytics.nn.Addmodules.tools.maps import DEPTH, MASKS, Maps
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
    assert next(line for line in lines if line.startswith("pixels without")).split()[-2:] == ["25.0", "0"]
    for i in range(3):
        Image.fromarray(np.zeros((SIDE, SIDE), np.uint16)).save(depth.parent / f"depth/train/{i}.png")
    lines = tables(read_data(str(depth))).splitlines()
    assert next(line for line in lines if line.startswith("pixels without")).split()[-2:] == ["43.8", "0"]


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
        "val: pictures that a training leaves out: 1 (1.png: its mask has the numbers 7, which are no classes)",
    ),
    "beyond a byte": (
        lambda data: mask(data, "val/1.png", np.full((SIDE, SIDE), 700, np.uint16)),
        "val: pictures that a training leaves out: 1 (1.png: its mask has numbers above 255)",
    ),
    "no picture": (
        lambda data: (data.parent / "masks/train/4.png").write_bytes(b"no picture"),
        "train: pictures that a training leaves out: 1 (4.png: its mask is damaged)",
    ),
    "grey levels": (
        lambda data: mask(data, "val/1.png", np.arange(SIDE * SIDE, dtype=np.uint8).reshape(SIDE, SIDE)),
        "val: pictures that a training leaves out: 1 (1.png: its mask has the numbers 3, 4, 5 and 249 more, which are",
    ),
    "numbers that are not whole": (
        lambda data: (
            Image.fromarray(np.zeros((SIDE, SIDE), np.float32)).save(data.parent / "masks/val/1.tif")
            or (data.parent / "masks/val/1.png").unlink()
        ),
        "val: pictures that a training leaves out: 1 (1.png: its mask has numbers that are not whole)",
    ),
    "colours": (
        lambda data: mask(data, "val/1.png", np.zeros((SIDE, SIDE, 3), np.uint8)),
        "val: masks of colours: 1 (1.png)",
    ),
    "two for one picture": (
        lambda data: shutil.copy(data.parent / "masks/val/1.png", data.parent / "masks/val/1.bmp"),
        "val: pictures with several masks: 1 (1.png)",
    ),
    "an ending in capitals": (
        lambda data: (
            (data.parent / "masks/val/0.png").rename(data.parent / "masks/val/9.PNG")
            and mask(data, "val/0.png", np.zeros((SIDE, SIDE), np.uint8))
        ),
        "names: files that are not read because of their ending: 1 (9.PNG)",
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
    "alone, with another ending": (
        lambda data: mask(data, "train/gone.bmp", np.zeros((SIDE, SIDE), np.uint8)),
        "names: masks without a picture: 1 (gone.bmp)",
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


def depth_map(data: Path, file: str, first: int, others: int) -> None:
    """Write a depth map, all pixels but one of one number."""
    numbers = np.full((SIDE, SIDE), others, np.uint16)
    numbers[0, 0] = first
    Image.fromarray(numbers).save(data.parent / "depth" / file)


def cut_array(data: Path, stem: str) -> None:
    """Write an array that lacks its end in the place of a PNG file."""
    file = data.parent / f"depth/{stem}.npy"
    np.save(file, np.ones((SIDE, SIDE), np.float32))
    file.write_bytes(file.read_bytes()[:-5])
    file.with_suffix(".png").unlink()


WRONG_DEPTH = {
    "missing": (
        lambda data: (data.parent / "depth/train/3.png").unlink(),
        "train: pictures without a depth map: 1 (3.png)",
    ),
    "eight bits": (
        lambda data: Image.new("L", (SIDE, SIDE), 9).save(data.parent / "depth/train/2.png"),
        "train: pictures that a training leaves out: 1 (2.png: depth map must be an integer grayscale PNG)",
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
    "another ending": (
        lambda data: Image.fromarray(np.ones((SIDE, SIDE), np.uint16)).save(data.parent / "depth/val/2.tif"),
        "names: files that are not read because of their ending: 1 (2.tif)",
    ),
    "too far": (
        lambda data: (
            np.save(data.parent / "depth/val/2.npy", np.full((SIDE, SIDE), 100, np.float32))
            or (data.parent / "depth/val/2.png").unlink()
        ),
        "val: depth maps whose distances are mostly not used: 1 (2.png)",
    ),
    "a number for no distance": (
        lambda data: depth_map(data, "val/2.png", 65535, 4000),
        "val: depth maps with pixels of 65535: 1 (2.png)",
    ),
    "an array that ends early": (
        lambda data: cut_array(data, "val/2"),
        "val: pictures that a training leaves out: 1 (2.png: its depth map is damaged)",
    ),
    "an array of nothing": (
        lambda data: (
            np.save(data.parent / "depth/val/2.npy", np.zeros((0, 5), np.float32))
            or (data.parent / "depth/val/2.png").unlink()
        ),
        "val: pictures that a training leaves out: 1 (2.png: its depth map is empty)",
    ),
    "an array of numbers that a training cannot read": (
        lambda data: (
            np.save(data.parent / "depth/val/2.npy", np.ones((SIDE, SIDE), np.int32))
            or (data.parent / "depth/val/2.png").unlink()
        ),
        "val: pictures that a training leaves out: 1 (2.png: depth NPY must be 2D and floating-point)",
    ),
}


WRONG = {("masks", fault): how for fault, how in WRONG_MASKS.items()}
WRONG |= {("depth", fault): how for fault, how in WRONG_DEPTH.items()}


@pytest.mark.parametrize(("kind", "fault"), WRONG)
def test_a_fault_is_named_and_nothing_else(kind: str, fault: str, request: pytest.FixtureRequest) -> None:
    put_in, said = WRONG[kind, fault]
    data: Path = request.getfixturevalue(kind)
    put_in(data)
    (found,) = details(data)
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
    assert found.names == {0: "not shape", 1: "shape"}
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


def test_maps_lie_where_upstream_looks() -> None:
    depth, masks = Maps("a.yaml", DEPTH, {}), Maps("a.yaml", MASKS, {"masks_dir": "gt"})
    assert depth.places("images/train/0.jpg") == [Path("depth/train/0.png"), Path("depth/train/0.npy")]
    assert depth.places("a/images/b/images/0.jpg")[0] == Path("a/images/b/depth/0.png")
    assert depth.places("more/0.png") == [Path("more/0.npy")]  # no picture is its own map
    assert masks.places("a/images/b/images/0.jpg")[0] == Path("a/images/b/gt/0.png")
    assert Path("images/0.jpg") not in masks.places("images/0.jpg")


def test_what_is_read_of_a_set_with_labels_and_masks(masks: Path, tmp_path: Path, capsys) -> None:
    labels = make_data(tmp_path / "other", "detect").parent / "labels"
    shutil.copytree(labels, masks.parent / "labels")
    (masks.parent / "masks").rename(masks.parent / "gt")
    change(masks, masks_dir="gt", label_mapping="wrong")  # which a training of boxes does not look at
    rows = problems(read_data(str(masks)))
    assert ("label files were read; there are masks, too", "read=masks looks at these") in [
        (row.detail, row.advice) for row in rows
    ]
    change(masks, label_mapping=None)
    assert read_data(str(masks)).splits["train"].NOUN == "label file"
    assert read_data(str(masks), "masks").splits["train"].NOUN == "mask"
    assert vmamba(["dataset", f"data={masks}", "read=depth", f"out={tmp_path / 'x.png'}"]) == 1
    assert "no depth maps for any picture, expected for example " in capsys.readouterr().err


def test_masks_and_depth_maps_of_one_set(masks: Path, tmp_path: Path) -> None:
    shutil.copytree(make_data(tmp_path / "other", "depth").parent / "depth", masks.parent / "depth")
    assert read_data(str(masks)).unread == ("depth",)
    assert read_data(str(masks), "depth").splits["val"].NOUN == "depth map"


@pytest.mark.parametrize("kind", ["masks", "depth"])
def test_maps_for_one_split_alone(kind: str, request: pytest.FixtureRequest) -> None:
    data: Path = request.getfixturevalue(kind)
    shutil.rmtree(data.parent / kind / "train")
    noun = "mask" if kind == "masks" else "depth map"
    assert any(said.startswith(f"train: pictures without a {noun}: 12 (") for said in details(data))


def test_masks_that_a_training_does_not_read(masks: Path) -> None:
    """Upstream takes masks where the YAML names their folder, or where it is called masks and lies beside `path`."""
    for folder in ("images", "masks"):
        (masks.parent / "part").mkdir(exist_ok=True)
        (masks.parent / folder).rename(masks.parent / "part" / folder)
    change(masks, train="part/images/train", val="part/images/val")
    (said,) = details(masks)
    assert said == "masks: a training does not read these masks, because the YAML does not name their folder"
    facts = check_det_dataset(str(masks))
    assert not facts.get("masks_dir")
    change(masks, masks_dir="masks")
    assert details(masks) == []


def test_a_wrong_folder_of_masks_is_named(masks: Path) -> None:
    change(masks, masks_dir="msk")
    rows = [row for row in problems(read_data(str(masks))) if "without a mask: 12" in row.detail]
    assert len(rows) == 1
    assert str(Path("msk/train/0.png")) in rows[0].advice


def test_a_picture_that_is_taken_as_its_own_mask(masks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Upstream puts the folder of masks in the place of /images/, which a relative path need not have."""
    monkeypatch.chdir(masks.parent)
    for i in range(12):
        mask(masks, f"../images/train/{i}.png", np.zeros((SIDE, SIDE), np.uint8))
    Path("train.txt").write_text("\n".join(f"images/train/{i}.png" for i in range(12)), encoding="utf-8")
    change(masks, train="train.txt")
    assert any(said.startswith("train: pictures that are taken as their own mask: 12 (") for said in details(masks))


def test_which_maps_a_picture_outside_of_images_has(depth: Path) -> None:
    (depth.parent / "more").mkdir()
    Image.new("RGB", (SIDE, SIDE), (9, 90, 200)).save(depth.parent / "more/a.jpg")
    np.save(depth.parent / "more/a.npy", np.full((SIDE, SIDE), 7, np.float32))
    change(depth, train=["images/train", "more"])
    split = read_data(str(depth)).splits["train"]
    facts = check_det_dataset(str(depth))
    upstream = DepthDataset(img_path=facts["train"], data=facts, augment=False)
    assert {*upstream.im_files} == {*split.metres}
    assert split.metres[str(depth.parent / "more/a.jpg")].middle == 7
    assert details(depth) == []


def test_a_mask_of_0_and_255_for_one_class(masks: Path) -> None:
    change(masks, names={0: "shape"})
    for file in (masks.parent / "masks").rglob("*.png"):
        Image.fromarray(np.where(np.asarray(Image.open(file)) < 2, 255, 0).astype(np.uint8)).save(file)
    (row,) = [row for row in problems(read_data(str(masks))) if row.state == PROBLEM]
    assert row.detail == "no pixel of class 1 (shape) in any split"
    assert "label_mapping: {255: 1} makes it class 1" in row.advice
    change(masks, label_mapping={255: 1})
    assert details(masks) == []


def test_more_classes_than_a_mask_has_room_for(masks: Path) -> None:
    change(masks, names={0: "square", 1: "bar", 2: "ground", **{i: f"c{i}" for i in range(3, 256)}})
    assert "class: 256 classes, but a mask has room for 255: 0 to 254" in details(masks)
    assert "255 c255" not in tables(read_data(str(masks)))


def test_many_classes_that_lack_are_one_row(masks: Path) -> None:
    names = {0: "square", 1: "bar", 2: "ground", **{i: f"c{i}" for i in range(3, 40)}}
    change(masks, names=names)
    (said,) = details(masks)
    assert said == "class: no pixel of 37 classes: 3 (c3), 4 (c4), 5 (c5) and 34 more in any split"


def test_the_command_writes_nothing_into_the_set(masks: Path, capsys) -> None:
    (masks.parent / "masks/train/3.png").unlink()
    for place in ("masks/train/3.png", "images/train/new/x.png", "masks/train/new/x.png"):
        assert vmamba(["dataset", f"data={masks}", f"out={masks.parent / place}"]) == 1
        assert "lies among the files of the data set" in capsys.readouterr().err
        assert not (masks.parent / place).exists()
        assert (masks.parent / place).parent.exists() == ("new" not in place)


def test_parts_and_distances_in_words() -> None:
    assert [part(n, 1000) for n in (0, 0.1, 1, 250, 999.9, 1000)] == ["0", "< 0.1", "0.1", "25.0", "> 99.9", "100.0"]
    assert part(0, 0) == "0"
    assert [digits(x) for x in (0.0004, 0.25, 4, 4000, 12345.6)] == ["0.000400", "0.25", "4", "4000", "12346"]


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
        values = np.full((SIDE, SIDE), 255 if i == 3 else 2, np.uint8)
        values[: i * (i in (5, 7, 9)), 0] = 0  # squares in three pictures, most in the last
        mask(masks, f"train/{i}.png", values)
    for i in range(4):
        mask(masks, f"val/{i}.png", np.full((SIDE, SIDE), 1 if i == 2 else 2, np.uint8))
    splits = read_data(str(masks)).splits
    assert [(split, Path(file).name) for split, file in choose(splits, 2)] == [("train", "9.png"), ("val", "2.png")]
    every = [(split, Path(file).name) for split, file in choose(splits, 99)]
    assert len(every) == 15
    assert ("train", "3.png") not in every  # which shows no class


@pytest.mark.parametrize("size", [(20, 3000), (3000, 20)])
def test_a_narrow_picture_does_not_blow_up_the_sheet(size: tuple[int, int]) -> None:
    pictures = [Described("a", np.zeros((*size, 3), np.uint8), boxes=np.zeros((0, 5)))] * 3
    width, height = plot_contact_sheet(pictures, {}).get_size_inches()
    assert max(width, height) < 12


def test_twenty_colours_are_twenty() -> None:
    assert len({_colour(i) for i in range(100)}) == 100


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
    places = {text.get_text(): text.get_position() for text in figure.axes[0].texts}
    assert places.keys() == {"x", "y"}
    assert classes[int(places["x"][1]), int(places["x"][0])] == 0
    assert classes[int(places["y"][1]), int(places["y"][0])] == 1
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


def test_sparse_and_outlying_distances_are_seen() -> None:
    sparse = np.zeros((900, 700), np.float32)
    sparse[::300, ::300] = 5
    sparse[0, 0] = 2
    grey = np.full((320, 249, 3), 90, np.uint8)
    shown = plot_contact_sheet([Described("a", grey, metres=sparse)], {}).axes[0].images[0].get_array()[:, 249:]
    assert int((shown.sum(-1) > 0).sum()) >= 9
    outlier = np.tile(np.linspace(1, 3, 100, dtype=np.float32), (100, 1))
    outlier[50, 50] = 65.535
    grey = np.full((100, 100, 3), 90, np.uint8)
    figure = plot_contact_sheet([Described("a", grey, metres=outlier)], {})
    shown = figure.axes[0].images[0].get_array()[:, 100:]
    assert shown[0].astype(int).sum(-1).std() > 30
    assert figure.axes[0].get_title() == "a, 1 to 65.5 m"
