# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Whatever gives a model of ours less than this machine could: one line in the log, once a process.

A scan that falls to plain PyTorch says so itself (`selective_scan/registry.py`), through whatever door it is called.
"""

from __future__ import annotations

from functools import wraps

import torch
from torch import nn

from ..layers.plain import plain
from ..layers.state_space import StateSpace
from ..selective_scan import registry
from .threads import use_all_cores

__all__ = ("at_inference", "at_training", "with_notices")

READ = ("in_proj", "x_proj", "dt_proj", "conv1d", "out_proj")  # children whose parameters a kernel of a block reads
_said: set[str] = set()
_inference: list[bool] = [False]  # whether the model that was fused last, as every one is for inference, is of ours


def with_notices(base: type) -> type:
    """Decorate upstream's BaseModel: `fuse`, which every prediction and validation calls, says what is less.

    A validator's callbacks do not get its model.

    Args:
        base (type): Class with a method `fuse(self, ...)` that returns the model.

    Returns:
        (type): The same class.
    """
    upstream = base.fuse

    @wraps(upstream)
    def fuse(self, *args, **kwargs) -> nn.Module:
        _inference[0] = is_ours(self)
        if _inference[0]:
            tell(self)
        return upstream(self, *args, **kwargs)

    base.fuse = fuse
    return base


def at_training(trainer) -> None:
    """Say what is less for the model of a training; a callback for its start."""
    if is_ours(trainer.model):
        tell(trainer.model)


def at_inference(owner) -> None:
    """Let a prediction or a validation of a model of ours use every core; a callback for its start.

    Args:
        owner (BasePredictor | BaseValidator): Upstream's, its device selected and its model fused.
    """
    model = getattr(getattr(owner, "model", None), "model", None)  # of a predictor; a validator does not keep it
    known = isinstance(model, nn.Module)
    ours = is_ours(model) if known else _inference[0]
    if ours and owner.device is not None and owner.device.type == "cpu" and not getattr(owner, "training", 0):
        from ultralytics.utils import NUM_THREADS

        # Threads that a program chose after the first picture are left alone, those that a stock model chose are not
        if not known or owner.__dict__.get("has_all_cores") is not model or torch.get_num_threads() == NUM_THREADS:
            use_all_cores("inference")
            owner.has_all_cores = model
    _embedding(owner)


def is_ours(model: nn.Module) -> bool:
    """Return whether a model has scans of this fork."""
    return any(isinstance(m, StateSpace) for m in model.modules())


def tell(model: nn.Module) -> None:
    """Log what is less, each line once a process."""
    for line in lines(model):
        _once(line)


def lines(model: nn.Module) -> list[str]:
    """Return what gives a model less than this machine could."""
    found = []
    if registry.forced() != registry.AUTO:
        found.append(
            f"VMAMBA_BACKEND or use_backend() forces the backend '{registry.forced()}' for every scan; without that "
            f"each scan takes the fastest"
        )
    called: dict[str, list[str]] = {}
    for name, m in model.named_modules():
        if isinstance(m, StateSpace):
            for child, layer in m.named_children():
                if child.startswith(READ) and not plain(layer):
                    called.setdefault(name, []).append(child)
            if getattr(m, "use_fast_path", True) is False:
                called.setdefault(name, []).append("use_fast_path=False")
    if called:
        first, children = next(iter(called.items()))
        found.append(
            f"{len(called)} block{'s' * (len(called) > 1)} with scans run operation by operation, slower and with more "
            f"memory, because of hooks or replaced layers (the first: {first}: {', '.join(children)})"
        )
    return found


def _once(line: str) -> None:
    """Log a warning once a process."""
    if line not in _said:
        _said.add(line)
        from ultralytics.utils import LOGGER

        LOGGER.warning(f"VMamba: {line}")


def _embedding(predictor) -> None:
    """Say which level `embed()` gives where the row before the head is not the deepest one."""
    wanted = getattr(predictor.args, "embed", None)
    model = getattr(getattr(predictor, "model", None), "model", None)
    rows = getattr(model, "model", None)
    if not wanted or not isinstance(rows, nn.Sequential) or not is_ours(model) or [*wanted] != [len(rows) - 2]:
        return
    deepest = rows[-1].f[-1] if isinstance(rows[-1].f, list) and len(rows[-1].f) > 1 else wanted[0]
    deepest = deepest if deepest >= 0 else rows[-1].i + deepest
    if deepest != wanted[0]:
        _once(
            f"the embedding is that of row {wanted[0]}, the last before the head; in stock models that is the deepest "
            f"level, which embed=[{deepest}] gives here"
        )
