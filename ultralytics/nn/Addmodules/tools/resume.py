# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""What a training can be resumed from, and what to say after Ctrl-C.

Ultralytics answers a finished run by a training on a data set of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .key_value import quoted

__all__ = ("refuse_finished", "resumable", "stopped")


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
            f"'resume={file}' cannot be resumed: its training is finished, or the file is not of a training; to start "
            f"a new one from its weights: model={quoted(file)} data={quoted(data)}"
        )
    return file


def refuse_finished(args: Sequence[str]) -> None:
    """Raise for a command line of `yolo` that names no file to resume from, or one that cannot be resumed.

    Args:
        args (Sequence[str]): What follows `yolo`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the run is finished, the file is of none, or none is named: Ultralytics would then take weights
            and a data set of its own.
    """
    from ultralytics.cfg import MODES, merge_equals_args

    pairs = (arg.lstrip("-").removesuffix(",").partition("=") for arg in merge_equals_args(list(args)))
    settings = {key.strip(): value.strip() for key, _, value in pairs}
    mode = settings.get("mode") or next((mode for mode in MODES if mode in settings), "train")
    resume = settings.get("resume", "False")
    alone = resume.lower() in ("", "true", "1")
    file = settings.get("model", "") if alone else resume
    if file.endswith(".pt"):
        resumable(file)
    elif alone and not file and mode == "train" and "cfg" not in settings:
        raise ValueError(f"'resume' names no run; name its last.pt: yolo train resume model={_newest()}")


def stopped(command: str) -> str:
    """Return what to say after Ctrl-C.

    Args:
        command (str): What resumes a training, before the name of its checkpoint.
    """
    from ..hooks.stops import checkpoint_to_resume

    file = checkpoint_to_resume()
    return "stopped" if file is None else f"stopped; to go on after the last whole epoch: {command}{quoted(file)}"


def _newest() -> str:
    """Return the newest last.pt among the runs of this account, or a form to fill in."""
    from ultralytics.utils import RUNS_DIR
    from ultralytics.utils.files import get_latest_run

    return quoted(get_latest_run(str(RUNS_DIR)) or "path/to/weights/last.pt")
