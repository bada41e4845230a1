# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""A data set, read by the code that reads it for a training: its facts, its pictures and its labels."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

from .key_value import quoted
from .maps import count_maps, maps_of
from .upstream import offline, one_line, quiet

__all__ = (
    "RELATIVE",
    "SPLITS",
    "Data",
    "about_data",
    "check_classes",
    "check_labels",
    "list_images",
    "read_once",
    "same_names",
)

SPLITS = ("train", "val", "test")
LOOKED_AT = 2000  # label files of a split whose contents are read
TEST = "; put its pictures there, take test out, or give report_on=val"
RELATIVE = "a path in a list counts from the current folder, unless it begins with ./"


@dataclass(frozen=True)
class Data:
    """A data set.

    Attributes:
        file (str): Absolute path of the YAML, or of the folder for classification.
        names (dict[int, str]): Classes.
        channels (int): Of its pictures.
        images (dict[str, int]): Number of pictures by split: train, val, and test if there is one.
        keypoints (list[int] | None): `kpt_shape` of a set for poses.
        without (dict[str, int]): How many pictures of a split have no mask or depth map, so that a training leaves them
            out; they are not in `images`.
    """

    file: str
    names: dict[int, str]
    channels: int
    images: dict[str, int]
    keypoints: list[int] | None = None
    without: dict[str, int] = field(default_factory=dict)


def about_data(file: str, e: Exception) -> str:
    """Return what an exception says of a data YAML; where a training would fetch the pictures, that too."""
    from ultralytics.utils import YAML
    from ultralytics.utils.checks import check_yaml

    why = one_line(e)
    if why.startswith("invalid literal for int()"):
        why = f"names: numbers classes from 0, as 0: car, but a number is {why.rpartition(': ')[2]}"
    text = f"data={file}: {why}"
    try:
        fetched = isinstance(e, FileNotFoundError) and YAML.load(check_yaml(file)).get("download")
    except Exception:  # of many kinds; the file's trouble is said already
        return text
    return (
        f"{text}. The first training with this file gets the pictures: yolo train data={quoted(file)}"
        if fetched
        else text
    )


def check_classes(folder: str, tested: bool = True) -> Data:
    """Return the facts of a folder for classification.

    Args:
        folder (str): It.
        tested (bool): Whether a test split that is there must have pictures.
    """
    from ultralytics.data.utils import check_cls_dataset
    from ultralytics.utils import DATASETS_DIR

    root = next((p for p in (Path(folder), DATASETS_DIR / folder) if p.is_dir()), None)
    if root is None:
        raise FileNotFoundError(f"no such folder: '{folder}' (models for classification take a folder of pictures)")
    images = {"train": count_pictures(root / "train")}
    found: dict = {}
    if images["train"]:  # else upstream would divide all pictures that it finds anew
        try:
            with quiet(), offline():
                found = check_cls_dataset(root)
        except Exception as e:  # of many kinds, as in check_labels
            raise ValueError(f"data={folder}: {one_line(e)}") from e
    for split in SPLITS:
        place = found.get(split) or root / split  # upstream takes validation/ and valid/, too
        images[split] = count_pictures(place)
        if not images[split] and (split != "test" or (tested and place.is_dir())):
            raise FileNotFoundError(
                f"no images in '{place}': a set for classification has {split}/CLASS/PICTURE{TEST * (split == 'test')}"
            )
    return Data(str(root.resolve()), dict(found["names"]), 3, {split: n for split, n in images.items() if n})


def count_pictures(folder: Path) -> int:
    """Return how many pictures the folders of classes hold, those that are links included."""
    from ultralytics.data.utils import IMG_FORMATS

    classes = [p for p in folder.iterdir() if p.is_dir()] if folder.is_dir() else []
    files = (name for c in classes for _, _, names in os.walk(c, followlinks=True) for name in names)
    return sum(name.rpartition(".")[2].lower() in IMG_FORMATS for name in files)


def check_labels(file: str, task: str, tested: bool = True) -> Data:
    """Return the facts of a data YAML.

    Args:
        file (str): It.
        task (str): Of the models.
        tested (bool): Whether a test split that it names must have pictures.
    """
    from ultralytics.data.utils import check_det_dataset, img2label_paths

    try:
        with quiet(), offline():
            found = check_det_dataset(file, autodownload=False)
    except Exception as e:  # of many kinds: a path, YAML or a wrong value
        raise ValueError(about_data(file, e)) from e
    names = dict(found["names"])
    if twice := same_names(names):
        raise ValueError(f"data={file}: {twice}; give each a name of its own, because tables and weights go by it")
    keypoints = found.get("kpt_shape")
    if task == "pose" and not keypoints:
        raise ValueError(f"data={file} has no kpt_shape:, which models for poses need")
    maps, without = maps_of(file, task, found), {}
    counts: dict[str, int] = {}
    for split in SPLITS:
        if split == "test" and not found.get(split):
            continue
        try:
            images = list_images(found.get(split), f"data={file}: no images in the {split} split")
        except FileNotFoundError as e:
            if split != "test":
                raise
            if tested:
                raise FileNotFoundError(f"{e}{TEST}") from e
            continue
        if not any(Path(p).is_file() for p in images):
            why = "" if Path(images[0]).is_absolute() else f"; {RELATIVE}"
            raise FileNotFoundError(f"data={file}: no image of the {split} split is there, as '{images[0]}'{why}")
        counts[split] = len(images)
        if maps:
            counts[split] = count_maps(f"data={file}: no {maps.kind} for the {split} split", images, maps)
            without[split] = len(images) - counts[split]
            continue
        labels = [Path(p) for p in img2label_paths(images)]
        rows = [(p, row) for p in islice((p for p in labels if p.is_file()), LOOKED_AT) for row in read_label(p)]
        if not rows:
            raise FileNotFoundError(f"data={file}: no labels for the {split} split, expected for example '{labels[0]}'")
        check_rows(rows, task, names, keypoints)
    if task == "semantic" and not maps:
        from ultralytics.data.utils import add_polygon_background

        names = dict(add_polygon_background(found)["names"])
        if same_names(names):
            raise ValueError(
                f"data={file}: a class is called background, as the one that Ultralytics adds for what no polygon "
                "covers; give it another name"
            )
    return Data(str(Path(found["yaml_file"]).resolve()), names, found["channels"], counts, keypoints, without)


def read_once(data: Data, task: str, train: dict) -> None:
    """Have Ultralytics read all pictures and labels, so that its label caches are there before runs share them.

    Args:
        data (Data): The data set; Ultralytics keeps its caches beside the labels.
        task (str): Of the models.
        train (dict): Settings of the trainings.

    Raises:
        ValueError: If Ultralytics finds nothing that can be used.
    """
    from ultralytics.cfg import get_cfg
    from ultralytics.data.build import build_yolo_dataset
    from ultralytics.data.dataset import ClassificationDataset
    from ultralytics.data.utils import check_cls_dataset, check_det_dataset

    cfg = get_cfg(overrides={**train, "task": task, "cache": False})
    try:
        with quiet(), offline():
            classes = task == "classify"
            found = check_cls_dataset(data.file) if classes else check_det_dataset(data.file, autodownload=False)
            for split in data.images:
                if classes:
                    ClassificationDataset(str(found[split]), args=cfg)
                else:
                    build_yolo_dataset(cfg, found[split], cfg.batch, found, mode="train" if split == "train" else "val")
    except Exception as e:  # of many kinds: broken pictures, labels that do not fit the task
        raise ValueError(f"data={data.file}: {one_line(e)}") from e


def same_names(names: dict[int, str]) -> str:
    """Return which classes have one name, or nothing where all have their own.

    Examples:
        >>> same_names({0: "car", 1: "bus", 2: "car"})
        "classes 0 and 2 are called 'car'"
    """
    by_name: dict[str, list[str]] = {}
    for i, name in names.items():
        by_name.setdefault(name, []).append(str(i))
    name, numbers = max(by_name.items(), key=lambda item: len(item[1]), default=("", []))
    return f"classes {', '.join(numbers[:-1])} and {numbers[-1]} are called '{name}'" if len(numbers) > 1 else ""


def list_images(where: str | list[str] | None, without: str) -> list[str]:
    """Return the pictures of folders, and of text files that list them, with the code that lists them for a training.

    Args:
        where (str | list[str] | None): Folders and text files.
        without (str): What to say where there are none; the reason follows.

    Raises:
        FileNotFoundError: If there are no pictures, or a folder or text file cannot be read.
    """
    from ultralytics.data.base import BaseDataset
    from ultralytics.data.utils import IMG_FORMATS

    if not where:
        raise FileNotFoundError(f"{without}: no folder is named")
    try:
        with quiet():
            return BaseDataset.get_img_files(SimpleNamespace(prefix="", fraction=1.0), where)
    except FileNotFoundError as e:
        why = one_line(e.__cause__ or e)
        if isinstance(e.__cause__, UnicodeDecodeError):
            why = f"{where} is neither a folder nor a text file that lists pictures"
        elif isinstance(e.__cause__, AssertionError):
            why = f"{where} has none, their names would end in {', '.join(sorted(IMG_FORMATS))}"
        raise FileNotFoundError(f"{without}: {why}") from e


def read_label(file: Path) -> list[list[str]]:
    """Return the objects of a label file, as their numbers."""
    return [row.split() for row in file.read_text(encoding="utf-8-sig", errors="replace").splitlines() if row.strip()]


def check_rows(rows: list[tuple[Path, list[str]]], task: str, names: dict, keypoints: list[int] | None) -> None:
    """Raise where labels name classes that the data lack, or are for another task."""
    for file, row in rows:
        try:
            cls = int(float(row[0]))
        except ValueError:
            raise ValueError(f"'{file}' is no label file: '{row[0]}' is no class number") from None
        if not 0 <= cls < len(names):
            have = f"{len(names)} classes, 0 to {len(names) - 1}" if len(names) > 1 else "one class, 0"
            raise ValueError(f"'{file}' names class {cls}, but the data name {have}")
    lengths = {len(row) for _, row in rows}
    wanted = {
        "segment": ("polygons", any(n > 5 for n in lengths)),
        "semantic": ("polygons", any(n > 5 for n in lengths)),
        "obb": ("four corners", any(n >= 9 for n in lengths)),
        "pose": ("keypoints", keypoints is not None and lengths == {5 + keypoints[0] * keypoints[1]}),
    }
    what, fits = wanted.get(task, ("boxes", True))
    if not fits:
        raise ValueError(
            f"the models are for {task}, but '{rows[0][0]}' has no {what} ({len(rows[0][1])} numbers a line)"
        )
