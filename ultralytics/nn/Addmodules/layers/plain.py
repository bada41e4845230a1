# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Whether a child layer is just its parameters, which a kernel may read, or has to be called."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules import module as registries
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from .state_space import StepProjection

__all__ = ("bare", "call", "plain", "plain_norm", "stacked", "usual")

KINDS = frozenset({nn.Linear, nn.Conv1d, nn.LayerNorm, StepProjection})
GLOBAL_HOOKS = tuple(
    getattr(registries, f"_global_{name}")
    for name in ("forward_hooks", "forward_pre_hooks", "backward_hooks", "backward_pre_hooks")
)


def bare(module: nn.Module) -> bool:
    """Return whether calling a module runs its class's `forward` and nothing else: no hook, no compiled copy of it."""
    return not any(GLOBAL_HOOKS) and _as_its_class(module)


def _as_its_class(module: nn.Module) -> bool:
    """Return whether nothing of its own changes what calling a module does."""
    state = module.__dict__
    return not (
        "forward" in state
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
    if any(GLOBAL_HOOKS):
        return False
    for child in children:
        if type(child) not in KINDS or not _as_its_class(child):
            return False
        weight = child._parameters.get("weight")
        if type(weight) is not nn.Parameter and (weight is None or is_traceable_wrapper_subclass(weight)):
            return False
    return True


def plain_norm(norm: nn.Module) -> bool:
    """Return whether a norm is just LayerNorm over channels, with its weight and bias."""
    return plain(norm) and norm.elementwise_affine and norm.bias is not None and len(norm.normalized_shape) == 1


def usual(convs: Sequence[nn.Conv1d], x_projs: Sequence[nn.Linear], dt_projs: Sequence[nn.Linear]) -> bool:
    """Return whether plain children of a Mamba block are of the form that it makes: a user may have put in others.

    That is a depthwise causal convolution, which its weight describes, x_proj without a bias and dt_proj with one. In
    two directions both convolutions have a bias, or none has.
    """
    first = convs[0]._parameters["bias"] is None
    for c in convs:
        width = c.kernel_size[0]
        if c.padding != (width - 1,) or c.padding_mode != "zeros" or not c.stride == c.dilation == (1,):
            return False
        if not c.groups == c.in_channels == c.out_channels or (c._parameters["bias"] is None) != first:
            return False
    if any(p._parameters["bias"] is not None for p in x_projs):
        return False
    return all(p._parameters["bias"] is not None for p in dt_projs)


def stacked(children: Sequence[nn.Module], attribute: str = "weight") -> Tensor | None:
    """Return a parameter of one child or several, whose rows are the children; all of them have it, or none."""
    # Of plain children: `getattr` takes eight times as long
    values = [child._parameters[attribute] for child in children]
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
