# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Whether a child layer is just its parameters, which a kernel may read, or has to be called."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules import module as registries
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from .state_space import StepProjection

__all__ = ("bare", "call", "plain", "plain_norm", "stacked")

KINDS = frozenset({nn.Linear, nn.Conv1d, nn.LayerNorm, StepProjection})
GLOBAL_HOOKS = tuple(
    getattr(registries, f"_global_{name}")
    for name in ("forward_hooks", "forward_pre_hooks", "backward_hooks", "backward_pre_hooks")
)


def bare(module: nn.Module) -> bool:
    """Return whether calling a module runs its class's `forward` and nothing else: no hook, no compiled copy of it."""
    state = module.__dict__
    return not (
        any(GLOBAL_HOOKS)
        or "forward" in state
        or "_compiled_call_impl" in state  # of `module.compile()`
        or state["_forward_hooks"]
        or state["_forward_pre_hooks"]
        or state["_backward_hooks"]
        or state["_backward_pre_hooks"]
    )


def plain(*children: nn.Module) -> bool:
    """Return whether nothing but their own parameters decides what these children compute.

    A kernel of a whole block reads the parameters of its children and calls none of them. That is right only for
    modules of exactly the expected type, without hooks of any sort, parametrizations, pruning, a `forward` of their own
    or weights of another library's type. What LoRA, quantisation, FLOP counters and CAM tools leave must be called.
    """
    for child in children:
        if type(child) not in KINDS or not bare(child):
            return False
        weight = child._parameters.get("weight")
        if type(weight) is not nn.Parameter and (weight is None or is_traceable_wrapper_subclass(weight)):
            return False
    return True


def plain_norm(norm: nn.Module) -> bool:
    """Return whether a norm is just LayerNorm with its weight and bias."""
    return plain(norm) and norm.elementwise_affine and norm.bias is not None


def stacked(children: Sequence[nn.Module], attribute: str = "weight") -> Tensor | None:
    """Return a parameter of one child or several, whose rows are the children."""
    values = [
        child._parameters[attribute] for child in children
    ]  # of plain children: `getattr` takes eight times as long
    return None if values[0] is None else torch.stack(values)


def call(owner: nn.Module, name: str, x: Tensor, shape: tuple[int | None, ...]) -> Tensor:
    """Call a child and hold its result to a shape, where None stands for any size.

    Raises:
        RuntimeError: If the child cannot take x; the message names it.
        ValueError: If its result has another shape.
    """
    child = getattr(owner, name)
    where = f"{type(owner).__name__}: its {name} ({type(child).__name__})"
    try:
        y = child(x)
    except RuntimeError as e:
        raise RuntimeError(f"{where} cannot take a tensor {tuple(x.shape)} of {x.dtype}: {e}") from e
    if y.dim() != len(shape) or any(want not in (None, got) for got, want in zip(y.shape, shape)):
        raise ValueError(f"{where} gave {tuple(y.shape)} for {tuple(x.shape)}, expected {shape}")
    return y
