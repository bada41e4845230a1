# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""What is looked at before any training starts, and before anything is written."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from ...grafting.model_file import read_model
from ...hooks.transfer import places
from ..data import Data, check_classes, check_labels
from ..upstream import offline, one_line, quiet
from .plan import Plan

__all__ = (
    *("Subject", "check_data", "check_disk", "check_freeze", "check_models", "check_training", "device_of", "digest"),
    "frozen",
)

TASKS = ("detect", "segment", "semantic", "depth", "pose", "obb", "classify")


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


def device_of(plan: Plan) -> str:
    """Return the device of all trainings.

    Raises:
        ValueError: If it cannot be used, is more than one, or several jobs would share a GPU.
    """
    device = str(plan.device or ("0" if torch.cuda.is_available() else "cpu")).lower().removeprefix("cuda:")
    device = "0" if device == "cuda" else device
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

    name = str(settings.get("optimizer", "auto"))
    if name.lower() != "auto":
        try:
            with quiet():
                BaseTrainer.build_optimizer(None, subject.model, name=name, lr=0.01, momentum=0.9, decay=0.0)
        except NotImplementedError as e:
            raise ValueError(f"optimizer={name}: {one_line(e).split('. Request')[0]}") from e
    if settings.get("workers", 0) < 0:
        raise ValueError(f"workers={settings['workers']} must be 0 or more")
    classes, task = settings.get("classes"), subject.model.task
    if classes is not None and task == "depth":
        raise ValueError(f"classes={classes} is not for depth, which has no classes; leave it out")
    if settings.get("single_cls") and task in ("semantic", "depth"):
        raise ValueError(f"single_cls={settings['single_cls']} is not for {task}; leave it out")
    if classes is not None and not (isinstance(classes, list) and classes and set(classes) <= set(data.names)):
        raise ValueError(f"classes={classes} must be a list of classes that the data have: {sorted(data.names)}")


def check_freeze(freeze: int | list[int] | None, subjects: list[Subject]) -> None:
    """Raise where a setting to freeze rows would not mean the same rows in all models.

    Args:
        freeze (int | list[int], optional): How many rows from the first on, or which.
        subjects (list[Subject]): The models.

    Raises:
        ValueError: If it is neither, a model has no such rows, or some models have grafts between them.
    """
    listed = freeze if isinstance(freeze, list) else [] if freeze is None else [freeze]
    first = places(subjects[0].model)
    for subject in sorted(subjects, key=lambda s: len(s.model.model)):
        at = places(subject.model)
        rows = len(at) if isinstance(freeze, list) else at[-1][0]
        most = rows - isinstance(freeze, list)  # a number is a count, a list has numbers of rows
        if any(isinstance(n, bool) or not isinstance(n, int) or not 0 <= n <= most for n in listed):
            raise ValueError(
                f"freeze={freeze} must be a number of rows, or a list of rows; {subject.name} has {rows}, "
                f"0 to {rows - 1}"
            )
        if isinstance(freeze, list) and any(graft for _, graft in (*at, *first)) and at != first:
            raise ValueError(
                f"freeze={freeze} means other layers in {subject.name} than in {subjects[0].name}, because grafts move "
                "rows; give a count, as in freeze=10, which does not count grafts"
            )


def frozen(freeze: int | list[int] | None, model: nn.Module) -> int | list[int] | None:
    """Return a setting to freeze rows as Ultralytics takes it for a model; a count does not count grafts.

    Args:
        freeze (int | list[int], optional): As `check_freeze` takes it.
        model (nn.Module): The model.
    """
    at = places(model)
    if not isinstance(freeze, int) or not any(graft for _, graft in at):
        return freeze
    return [row for row, (stock, graft) in enumerate(at) if not graft and stock <= freeze]


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
