# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""The embedded digits set: same everywhere, exact boxes, no leak into validation, safe to interrupt."""

import hashlib
import importlib.util
import itertools
import re
import runpy
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
DATASETS = ROOT / "datasets"
LABELS_HASH = "c2c2fbbeefa71514f4e1f7dbcb9c6a48bd2959783f2eb083842121e60e7df26b"  # of the first 40 images of each split


@pytest.fixture
def digits():
    """Return the module fresh from its file, so that a test may change its settings."""
    spec = importlib.util.spec_from_file_location("digits", DATASETS / "digits.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def scenes():
    """Return the first 40 scenes of each split."""
    module = runpy.run_path(str(DATASETS / "digits.py"))
    sources = module["load_sources"]()
    return {split: list(itertools.islice(module["draw_split"](split, sources), 40)) for split in module["SPLITS"]}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Return the whole set, built through the YAML's hook from a foreign current directory."""
    from ultralytics.data import utils

    folder = tmp_path_factory.mktemp("datasets_dir")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(utils, "DATASETS_DIR", folder)
        patch.chdir(tmp_path_factory.mktemp("elsewhere"))
        return utils.check_det_dataset(str(DATASETS / "digits.yaml"))


def folder_hash(root: Path) -> str:
    """Hash the names, label bytes and decoded pixels; PNG bytes may differ between zlib versions."""
    total = hashlib.sha256()
    for path in sorted(p for p in root.rglob("*") if p.suffix in {".png", ".txt"}):
        total.update(path.relative_to(root).as_posix().encode())
        if path.suffix == ".png":
            with Image.open(path) as image:
                total.update(np.asarray(image).tobytes())
        else:
            total.update(path.read_bytes())
    return total.hexdigest()


def small(digits):
    """Make the set small enough to build often."""
    digits.SPLITS = {"train": 6, "val": 3}
    return digits


def test_two_builds_are_equal(digits, tmp_path):
    a, b = (small(digits).build(tmp_path / name) for name in "ab")
    assert folder_hash(a) == folder_hash(b)


def test_labels_are_those_of_every_machine(digits, scenes):
    """Another NumPy, Python or platform must not draw another set under the same name."""
    labels = "".join(digits.label_lines(scene.boxes) for split in scenes for scene in scenes[split])
    assert hashlib.sha256(labels.encode()).hexdigest() == LABELS_HASH, (
        "digits.py draws other boxes than before. If that is meant, raise the number in 'path:' of digits.yaml and "
        "put the new hash here."
    )


@pytest.mark.parametrize("split", ["train", "val"])
def test_boxes_are_tight_around_the_ink(digits, scenes, split):
    for scene in scenes[split]:
        inside = np.zeros(scene.ink.shape, dtype=bool)
        for _, left, top, right, bottom in scene.boxes:
            ink = scene.ink[top:bottom, left:right]
            assert all(edge.any() for edge in (ink[0], ink[-1], ink[:, 0], ink[:, -1]))
            inside[top:bottom, left:right] = True
        assert not scene.ink[~inside].any()
        assert scene.ink[scene.ink > 0].min() >= digits.MIN_INK
        untouched = scene.ink == 0
        assert (scene.image[untouched] == scene.background[untouched]).all()


@pytest.mark.parametrize("split", ["train", "val"])
def test_digits_can_be_seen(digits, scenes, split):
    for scene in scenes[split]:
        for _, left, top, right, bottom in scene.boxes:
            solid = scene.ink[top:bottom, left:right] > 0.95
            colour = scene.image[top:bottom, left:right][solid].mean()
            around = scene.background[top:bottom, left:right].mean()
            assert abs(colour - around) > digits.MIN_CONTRAST * 0.8  # ink of 0.95 lets 5% of the background through


@pytest.mark.parametrize("split", ["train", "val"])
def test_digits_lie_apart_at_several_sizes(digits, scenes, split):
    heights = []
    for scene in scenes[split]:
        assert len(scene.boxes) >= digits.DIGITS_PER_IMAGE[0] // 2
        cover = np.zeros(scene.ink.shape, dtype=int)
        for _, left, top, right, bottom in scene.boxes:
            cover[top:bottom, left:right] += 1
            heights.append(bottom - top)
        assert cover.max() == 1
    assert min(heights) < 24
    assert max(heights) > 50


def test_validation_digits_are_not_in_training(digits, scenes):
    train, val = ({i for scene in scenes[split] for i in scene.samples} for split in ("train", "val"))
    assert max(train) < digits.FIRST_VAL_DIGIT <= min(val)


def test_split_falls_between_two_forms(digits):
    """Every form starts with the ten digits in order, twice."""
    classes = digits.load_sources().classes
    start = digits.FIRST_VAL_DIGIT
    assert classes[start : start + 20].tolist() == [*range(10), *range(10)]
    assert 0.15 < 1 - start / len(classes) < 0.25


def test_hook_builds_the_whole_set(digits, built):
    root = Path(built["path"])
    assert root.name == "vmamba-digits-1"
    assert built["nc"] == 10
    for split, count in digits.SPLITS.items():
        images, labels = root / "images" / split, root / "labels" / split
        assert Path(built[split]) == images.resolve()
        names = [f"{i:04d}" for i in range(count)]
        assert sorted(p.name for p in images.iterdir()) == [f"{n}.png" for n in names]
        assert sorted(p.name for p in labels.iterdir()) == [f"{n}.txt" for n in names]
    assert sorted(p.name for p in root.parent.iterdir()) == [root.name]  # nothing left from drawing
    comments = (DATASETS / "digits.yaml").read_text(encoding="utf-8")
    assert [int(n) for n in re.findall(r"(\d+) images$", comments, re.M)] == list(digits.SPLITS.values())


def test_written_labels_are_the_drawn_boxes(digits, scenes, built):
    for split in digits.SPLITS:
        for i, scene in enumerate(scenes[split]):
            rows = np.loadtxt(Path(built["path"]) / "labels" / split / f"{i:04d}.txt", ndmin=2)
            size = digits.IMAGE_SIZE
            left_top, sizes = (rows[:, 1:3] - rows[:, 3:] / 2) * size, rows[:, 3:] * size
            boxes = np.column_stack([rows[:, 0], left_top, left_top + sizes])
            np.testing.assert_allclose(boxes, scene.boxes, atol=1e-3)
            with Image.open(Path(built["path"]) / "images" / split / f"{i:04d}.png") as image:
                assert (np.asarray(image) == scene.image).all()


@pytest.mark.parametrize("split", ["train", "val"])
def test_classes_are_balanced(built, split):
    counts = Counter()
    for path in (Path(built["path"]) / "labels" / split).iterdir():
        counts.update(line.split()[0] for line in path.read_text(encoding="utf-8").splitlines())
    assert len(counts) == 10
    assert min(counts.values()) > 0.8 * max(counts.values())


def test_ultralytics_finds_no_fault(built):
    """Its own scan reads every image and label."""
    from ultralytics.data import YOLODataset

    for split in "train", "val":
        dataset = YOLODataset(img_path=built[split], data=built, augment=False)
        assert all(len(label["cls"]) for label in dataset.labels)


def test_second_use_builds_nothing(built, monkeypatch):
    from ultralytics.data import utils

    monkeypatch.setattr(utils, "DATASETS_DIR", Path(built["path"]).parent)
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(runpy, "run_path", lambda path: pytest.fail(f"{path} was run again"))
    assert utils.check_det_dataset("datasets/digits.yaml")["val"] == built["val"]


def test_interrupted_build_leaves_nothing(digits, tmp_path, monkeypatch):
    def draw_some(split, sources):
        yield from itertools.islice(original(split, sources), 2)
        raise KeyboardInterrupt

    original = digits.draw_split
    monkeypatch.setattr(digits, "draw_split", draw_some)
    with pytest.raises(KeyboardInterrupt):
        digits.build(tmp_path / "set")
    assert not list(tmp_path.iterdir())


def test_killed_build_leaves_no_set(digits, tmp_path):
    process = subprocess.Popen([sys.executable, str(DATASETS / "digits.py"), str(tmp_path / "set")])
    try:
        deadline = time.time() + 120
        while not list(tmp_path.rglob("*.png")):
            assert process.poll() is None
            assert time.time() < deadline
            time.sleep(0.05)
    finally:
        process.kill()
        process.wait()
    assert not (tmp_path / "set").exists()
    assert (small(digits).build(tmp_path / "set") / "images" / "val" / "0002.png").is_file()


def test_foreign_folder_is_left_alone(digits, tmp_path):
    precious = tmp_path / "set" / "precious.txt"
    precious.parent.mkdir()
    precious.write_text("mine", encoding="utf-8")
    with pytest.raises(FileExistsError, match="left as it is"):
        digits.build(tmp_path / "set")
    assert precious.read_text(encoding="utf-8") == "mine"


def test_empty_folder_is_taken(digits, tmp_path):
    (tmp_path / "set").mkdir()
    assert (small(digits).build(tmp_path / "set") / "images" / "train" / "0000.png").is_file()


def test_another_run_may_finish_first(digits, tmp_path, monkeypatch):
    def rename(draft, root):
        shutil.move(draft, root)  # by the other run
        raise FileExistsError(root)

    monkeypatch.setattr(digits, "os", SimpleNamespace(rename=rename))
    assert (small(digits).build(tmp_path / "set") / "images" / "val").is_dir()


def test_missing_package_is_named(digits, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.delitem(sys.modules, "sklearn.datasets", raising=False)
    with pytest.raises(ModuleNotFoundError, match="pip install scikit-learn"):
        digits.build(tmp_path / "set")
    assert not list(tmp_path.iterdir())


def test_script_without_folder_explains_itself():
    result = subprocess.run([sys.executable, str(DATASETS / "digits.py")], capture_output=True, text=True)
    assert result.returncode == 1
    assert "python datasets/digits.py path/to/new/folder" in result.stderr
