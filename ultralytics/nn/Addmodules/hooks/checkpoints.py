# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""What a checkpoint holds of this fork: the classes below, by the paths at which they lie now, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps

import torch
from torch import nn

from ..layers.graft import ZeroProjection
from ..layers.ss2d import ConvSS2D
from ..layers.state_space import StepProjection
from ..layers.vss import DropPath, Mlp
from ..VMamba import Mamba
from .yaml_rows import LAYERS

__all__ = ("STORED", "admit", "checkpoints_only")


# Moving or renaming one of these makes checkpoints unreadable; tests/test_checkpoints.py holds them where they are.
STORED: tuple[type[nn.Module], ...] = (ConvSS2D, DropPath, Mamba, Mlp, StepProjection, ZeroProjection, *LAYERS)


def checkpoints_only(load: Callable[..., object]) -> Callable[..., object]:
    """Decorate upstream's reader of .pt files: what is no checkpoint is named, where upstream asks it for its model.

    Args:
        load (Callable): Upstream's `torch_load(file, ...)`.
    """

    @wraps(load)
    def torch_load(file: object, *args, **kwargs) -> object:
        found = load(file, *args, **kwargs)
        if not isinstance(found, (dict, torch.jit.ScriptModule)) and not hasattr(found, "model"):
            raise TypeError(
                f"'{file}' is no checkpoint of Ultralytics but a {type(found).__name__}; give a best.pt of a training"
            )
        return found

    return torch_load


def admit() -> None:
    """Make restricted loading (`ULTRALYTICS_SAFE_LOAD`, `torch.load(weights_only=True)`) accept our classes."""
    if hasattr(torch.serialization, "add_safe_globals"):
        torch.serialization.add_safe_globals(list(STORED))
