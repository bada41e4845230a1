# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""What a training can be resumed from. Ultralytics answers a finished run by a training on a data set of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

__all__ = ("refuse_finished", "resumable")


def resumable(file: str) -> str:
    """Return a checkpoint's name if its run was stopped in its middle.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If its run is finished, or it is of none.
    """
    if not Path(file).is_file():
        raise FileNotFoundError(f"'resume={file}': there is no such file; name the last.pt of the run to go on with")
    from ultralytics.nn.tasks import torch_safe_load

    ckpt = torch_safe_load(file)[0]
    if ckpt.get("epoch", -1) == -1:
        data = (ckpt.get("train_args") or {}).get("data") or "their.yaml"
        raise ValueError(
            f"'resume={file}' is no run in its middle: it is finished, or was none; to train on from its weights: "
            f"model={file} data={data}"
        )
    return file


def refuse_finished(args: Sequence[str]) -> None:
    """Raise for a command line of `yolo` that resumes a file which is there and cannot be resumed.

    Args:
        args (Sequence[str]): What follows `yolo`.

    Raises:
        ValueError: If the run is finished, or the file is of none.
    """
    settings = dict(arg.lstrip("-").partition("=")[::2] for arg in args)
    resume = settings.get("resume", "False")
    file = settings.get("model", "") if resume in ("", "True", "true", "1") else resume
    if file.endswith(".pt") and Path(file).is_file():
        resumable(file)
