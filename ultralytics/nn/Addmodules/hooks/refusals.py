# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""One sentence on the command line of `yolo` for what cannot be trained or exported; Python programs get the error."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path

from torch import nn

from .failures import on_purpose, one_line, origin
from .notices import is_ours

__all__ = ("refuse_training", "said_in_a_sentence", "say_what_is_wrong_with_data")


class said_in_a_sentence:
    """Inside, what is raised ends the command `yolo` with its text alone; a program of the user's gets all of it.

    Args:
        command (str): What the line begins with.
    """

    def __init__(self, command: str = "yolo"):
        """Set what the line begins with."""
        self.command = command

    def __enter__(self) -> None:
        """Do nothing."""

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        """Let the interpreter print one line for this error, if it ends the command."""
        if error is None or Path(sys.argv[0]).stem not in ("yolo", "ultralytics"):
            return
        before = sys.excepthook

        def hook(kind: type, uncaught: BaseException, trace: object) -> None:
            if uncaught is error:
                print(f"{self.command}: {one_line(error)}", file=sys.stderr)
            else:
                before(kind, uncaught, trace)

        sys.excepthook = hook


def say_what_is_wrong_with_data(trainer) -> None:
    """Let what Ultralytics says of a data set end `yolo train` in a line; a callback for the time before it is read.

    A set for another task than the model's is the commonest case. What is not raised on purpose keeps its traceback.
    """
    for name in ("get_dataset", "build_dataset"):
        setattr(trainer, name, _in_a_line(getattr(trainer, name)))


def _in_a_line(read: Callable) -> Callable:
    """Return a function that does the same, and whose refusals end `yolo` in a line."""

    @wraps(read)
    def reading(*args, **kwargs):
        try:
            return read(*args, **kwargs)
        except Exception as e:
            if not (on_purpose(e) and "ultralytics" in origin(e)[0]):
                raise
            with said_in_a_sentence():
                raise

    return reading


def refuse_training(trainer) -> None:
    """Refuse to train a model of ours on what it cannot learn from; a callback for the end of the preparation.

    Raises:
        ValueError: If the head is for another task, or no picture has an object of the classes that were chosen.
    """
    from ultralytics.nn.tasks import guess_model_task

    model = trainer.model
    while isinstance(inner := getattr(model, "module", getattr(model, "_orig_mod", None)), nn.Module):
        model = inner  # of several GPUs, or compiled
    if not is_ours(model):
        return
    task, of = trainer.args.task, guess_model_task(model)
    if of not in (None, task):  # RT-DETR's head tells no task
        raise ValueError(
            f"task={task} does not go with model={trainer.args.model}, whose head is for {of}: take "
            f"'yolo {of} train', or a model file for {task}"
        )
    chosen = getattr(trainer.args, "classes", None)
    data = getattr(trainer.train_loader, "dataset", None)
    labels = getattr(data, "labels", None)
    maps = getattr(data, "mask_files", None) or getattr(data, "depth_files", None)  # their labels name no classes
    if chosen is not None and labels and not maps and not any(len(label.get("cls", ())) for label in labels):
        names = ", ".join(f"{number} {name}" for number, name in dict(trainer.data["names"]).items())
        raise ValueError(f"classes={chosen}: no picture to train on has an object of these classes; there are {names}")
