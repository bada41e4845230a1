# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""What is looked at before any training starts, and before anything is written."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import nn

from ...grafting.model_file import read_model
from ..key_value import quoted
from .plan import Plan

__all__ = (
    "Data",
    "Subject",
    "check_data",
    "check_disk",
    "check_models",
    "check_training",
    "device_of",
    "offline",
    "quiet",
    "read_once",
)

TASKS = ("detect", "segment", "pose", "obb", "classify")
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
    """

    file: str
    names: dict[int, str]
    channels: int
    images: dict[str, int]
    keypoints: list[int] | None = None


@dataclass
class Subject:
    """A model to be compared.

    Attributes:
        name (str): In tables.
        file (str): As given.
        model (nn.Module): As its file has it.
        trained (bool): Whether the file holds weights.
        digest (str): Of what the file holds.
        args (dict): Settings with which its weights were trained, if the file says.
    """

    name: str
    file: str
    model: nn.Module
    trained: bool
    digest: str
    args: dict = field(default_factory=dict)

    @property
    def place(self) -> str:
        """Return the file's path from everywhere, or the name by which Ultralytics finds it."""
        return str(Path(self.file).resolve()) if Path(self.file).exists() else self.file

    @property
    def stride(self) -> int:
        """Return the multiple to which image sizes are rounded in training."""
        return max(32, int(max(self.model.stride)))


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Ultralytics' own lines off the screen."""
    from ultralytics.utils import LOGGER

    level = LOGGER.level
    LOGGER.setLevel("ERROR")
    try:
        yield
    finally:
        LOGGER.setLevel(level)


@contextmanager
def offline() -> Iterator[None]:
    """Keep Ultralytics from looking for fonts and updates, and from reporting to any service, while a block runs."""
    from ultralytics.data import utils as data_utils
    from ultralytics.utils import callbacks, checks

    places = (
        (data_utils, "check_font", lambda font="": None),
        (callbacks, "add_integration_callbacks", lambda instance: None),
        (checks, "check_pip_update_available", lambda: False),
    )
    before = [getattr(module, name) for module, name, _ in places]
    for module, name, nothing in places:
        setattr(module, name, nothing)
    try:
        yield
    finally:
        for (module, name, _), old in zip(places, before):
            setattr(module, name, old)


def one_line(e: BaseException) -> str:
    """Return what an exception says, as one line."""
    return " ".join(str(e).split()) or type(e).__name__


def about_data(file: str, e: Exception) -> str:
    """Return what an exception says of a data YAML; where a training would fetch the pictures, that too."""
    from ultralytics.utils import YAML
    from ultralytics.utils.checks import check_yaml

    text = f"data={file}: {one_line(e)}"
    try:
        fetched = isinstance(e, FileNotFoundError) and YAML.load(check_yaml(file)).get("download")
    except Exception:  # of many kinds; the file's trouble is said already
        return text
    return (
        f"{text}. The first training with this file gets the pictures: yolo train data={quoted(file)}"
        if fetched
        else text
    )


def device_of(plan: Plan) -> str:
    """Return the device of all trainings.

    Raises:
        ValueError: If it cannot be used, is more than one, or several jobs would share a GPU.
    """
    device = str(plan.device or ("0" if torch.cuda.is_available() else "cpu")).lower().removeprefix("cuda:")
    if "," in device or device.startswith(("[", "-")):
        raise ValueError(f"device={plan.device}: a run takes one device, as in device=0")
    if device.isdecimal():  # counted, not used: this process would hold memory on it for as long as others train there
        if int(device) >= (found := torch.cuda.device_count()):
            raise ValueError(f"device={plan.device} cannot be used, device=cpu can: PyTorch finds {found} CUDA GPUs")
    else:
        try:
            torch.zeros(1, device=device)
        except (RuntimeError, AssertionError) as e:
            raise ValueError(f"device={plan.device} cannot be used, device=cpu can: {str(e).splitlines()[0]}") from e
    if plan.jobs > 1 and device != "cpu":
        raise ValueError(f"jobs={plan.jobs} is for device=cpu: runs that share a GPU would change each other's times")
    return device


# Models ---------------------------------------------------------------------------------------------------------------


def check_models(plan: Plan) -> list[Subject]:
    """Return the models of a plan.

    Raises:
        FileNotFoundError: If a file does not exist.
        ValueError: If one cannot be read, they have several tasks, or image sizes would be rounded differently.
    """
    if not plan.models:
        raise ValueError("no models are given")
    subjects = [read_subject(name, file) for name, file in plan.models.items()]
    tasks = {s.name: s.model.task for s in subjects}
    for name, task in tasks.items():
        if task != tasks[subjects[0].name]:
            raise ValueError(
                f"models of two tasks: {subjects[0].name} is for {tasks[subjects[0].name]}, {name} for {task}"
            )
        if task not in TASKS:
            raise ValueError(f"{name} is for {task}; only {', '.join(TASKS)} can be compared")
    imgsz = plan.settings.get("imgsz")
    sizes = {s.name: -(-imgsz // s.stride) * s.stride for s in subjects} if imgsz else {}
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise ValueError(f"imgsz={imgsz} would be rounded up by model ({listed}): give imgsz={max(sizes.values())}")
    return subjects


def read_subject(name: str, file: str) -> Subject:
    """Return a model that is to be compared.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file cannot be read or holds no model.
    """
    with quiet(), offline(), torch.random.fork_rng(devices=[]):
        model, checkpoint = read_model(file)
    trained, args = bool(checkpoint), checkpoint.get("train_args") or {}
    found = digest(model.model, Path(model.ckpt_path) if trained else None)
    return Subject(name, file, model.model, trained, found, dict(args))


def digest(model: nn.Module, file: Path | None) -> str:
    """Return a digest of a weights file, or of a model's rows."""
    if file is None:
        rows = {key: value for key, value in model.yaml.items() if key != "yaml_file"}
        return hashlib.sha256(repr(sorted(rows.items(), key=lambda item: item[0])).encode()).hexdigest()[:16]
    found = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            found.update(block)
    return found.hexdigest()[:16]


# Data -----------------------------------------------------------------------------------------------------------------


def check_data(plan: Plan, subject: Subject) -> Data:
    """Return the facts of a data set for the task of a model. Nothing is downloaded or written.

    Raises:
        FileNotFoundError: If it, its images or its labels are missing.
        ValueError: If it cannot be read, its labels are for another task or of classes that it does not name, or the
            model takes pictures of other channels.
    """
    task = subject.model.task
    tested = plan.report_on != "val"
    data = check_classes(plan.data, tested) if task == "classify" else check_labels(plan.data, task, tested)
    channels = subject.model.yaml.get("channels", 3)
    if channels != data.channels:
        raise ValueError(f"{subject.name} takes pictures of {channels} channels, {plan.data} has {data.channels}")
    if plan.report_on == "test" and "test" not in data.images:
        raise ValueError(f"report_on=test: {plan.data} has no test split; leave it out or give report_on=val")
    return data


def check_training(settings: dict, subject: Subject, data: Data) -> None:
    """Look at the settings that Ultralytics looks at only in the midst of a training, or not at all.

    Args:
        settings (dict): Of Ultralytics.
        subject (Subject): The model of the comparison with the fewest rows.
        data (Data): The data set.

    Raises:
        ValueError: If a value is wrong.
    """
    from ultralytics.engine.trainer import BaseTrainer

    name, rows = str(settings.get("optimizer", "auto")), len(subject.model.model)
    if name.lower() != "auto":
        try:
            with quiet():
                BaseTrainer.build_optimizer(None, subject.model, name=name, lr=0.01, momentum=0.9, decay=0.0)
        except NotImplementedError as e:
            raise ValueError(f"optimizer={name}: {one_line(e).split('. Request')[0]}") from e
    if settings.get("workers", 0) < 0:
        raise ValueError(f"workers={settings['workers']} must be 0 or more")
    freeze = settings.get("freeze")
    listed = freeze if isinstance(freeze, list) else [] if freeze is None else [freeze]
    most = rows - isinstance(freeze, list)  # a number is a count, a list has numbers of rows
    if any(isinstance(n, bool) or not isinstance(n, int) or not 0 <= n <= most for n in listed):
        raise ValueError(
            f"freeze={freeze} must be a number of rows, or a list of rows; {subject.name} has {rows}, 0 to {rows - 1}"
        )
    classes = settings.get("classes")
    if classes is not None and not (isinstance(classes, list) and classes and set(classes) <= set(data.names)):
        raise ValueError(f"classes={classes} must be a list of classes that the data have: {sorted(data.names)}")


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
        labels = [Path(p) for p in img2label_paths(images)]
        rows = [(p, row) for p in islice((p for p in labels if p.is_file()), LOOKED_AT) for row in read_label(p)]
        if not rows:
            raise FileNotFoundError(f"data={file}: no labels for the {split} split, expected for example '{labels[0]}'")
        check_rows(rows, task, names, keypoints)
    return Data(str(Path(found["yaml_file"]).resolve()), names, found["channels"], counts, keypoints)


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
            raise ValueError(
                f"'{file}' names class {cls}, but the data name {len(names)} classes, 0 to {len(names) - 1}"
            )
    lengths = {len(row) for _, row in rows}
    wanted = {
        "segment": ("polygons", any(n > 5 for n in lengths)),
        "obb": ("four corners", any(n >= 9 for n in lengths)),
        "pose": ("keypoints", keypoints is not None and lengths == {5 + keypoints[0] * keypoints[1]}),
    }
    what, fits = wanted.get(task, ("boxes", True))
    if not fits:
        raise ValueError(
            f"the models are for {task}, but '{rows[0][0]}' has no {what} ({len(rows[0][1])} numbers a line)"
        )


def check_disk(folder: Path, parameters: list[int], seeds: int) -> None:
    """Raise where the weights of all runs will not fit.

    Args:
        folder (Path): Where results will lie.
        parameters (list[int]): Of each model.
        seeds (int): How many runs each has.

    Raises:
        OSError: If the disk is too full, or the folder's parent cannot be written.
    """
    place = next(p for p in (folder, *folder.parents) if p.exists())
    # Start 4 bytes a parameter, best and last 2 each; while a run is on, four checkpoints with the optimizer's 4
    needed = 10_000_000 + sum(8 * n * seeds + 24 * n for n in parameters)
    free = shutil.disk_usage(place).free
    if free < needed:
        raise OSError(
            f"no disk space: about {needed / 1e6:,.0f} MB are needed in '{place}', {free / 1e6:,.0f} MB are free"
        )
