# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""How kernels are started: their arguments, and a shortcut past what Triton looks at before every launch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache

import torch
from torch import Tensor

__all__ = ("OPTIONS", "bits", "far_apart", "guard", "launch", "power_of_two", "strides")

MAX_LAUNCHES = 4096  # remembered
OPTIONS = {"enable_fp_fusion": True}  # of every compilation; Triton 3.10 would leave multiply and add apart
FAR_ROWS = 4  # tokens that an offset spans at the most

launches: dict[tuple, tuple[Callable[..., None], list[int]]] = {}  # what starts a kernel again


def power_of_two(n: int) -> int:
    """Return the smallest power of two that is at least n."""
    return 1 << (n - 1).bit_length()


def bits(orders: list[int]) -> int:
    """Return an integer whose bit k is set if group k runs against token order."""
    return sum(1 << k for k, order in enumerate(orders) if order)


def guard(device: torch.device) -> AbstractContextManager:
    """Make a device current: Triton launches there."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def far_apart(t: Tensor, channels: int, tokens: int) -> bool:
    """Return whether the kernels' 32-bit offsets, over channels and a few tokens, are too short for a tensor."""
    return t.shape[channels] * abs(t.stride(channels)) + FAR_ROWS * abs(t.stride(tokens)) >= 1 << 31


def strides(axes: str, **tensors: Tensor | None) -> dict[str, int]:
    """Return the strides of tensors under the kernels' names for them, 0 for an absent tensor."""
    strides: list[int] = []
    for t in tensors.values():
        strides += (0,) * len(axes) if t is None else t.stride()[: len(axes)]
    return dict(zip(_stride_names(axes, *tensors), strides))


@cache
def _stride_names(axes: str, *labels: str) -> list[str]:
    """Return the names of `strides`: the same ones for every call."""
    return [f"{label}_{axis}" for label in labels for axis in axes]


def launch(kernel, programs: int, tensors: Sequence[Tensor | None], given: dict[str, int], num_warps: int) -> None:
    """Start a kernel on the current device.

    Triton looks at every argument of a launch to find what it has compiled, longer than small maps take to scan. A
    launch with the numbers, dtypes and alignments of an earlier one is the same kernel. Hooks of launches are called
    for it, too; what Triton asks before it looks, `pre_run_hooks` and the knobs of debugging, only the first time.

    Args:
        kernel (JITFunction): The kernel.
        programs (int): Its programs.
        tensors (Sequence[Tensor | None]): Its tensors, which are its first arguments.
        given (dict[str, int]): All its other arguments, always in the same order.
        num_warps (int): Warps of a program.
    """
    like = [None if t is None else (t.dtype, t.data_ptr() % 16) for t in tensors]
    key = kernel.__name__, tensors[0].device, programs, num_warps, *like, *given.values()
    known = launches.get(key)
    if known is not None:
        start, rest = known
        start(*tensors, *rest)
        return
    compiled = kernel[(programs,)](*tensors, **given, num_warps=num_warps, **OPTIONS)
    if compiled is None or hasattr(compiled, "result"):  # the interpreter; compiled elsewhere, at some time
        return
    if len(launches) >= MAX_LAUNCHES:  # every size of picture adds some
        launches.clear()
    launches[key] = compiled[(programs, 1, 1)], [given[name] for name in kernel.arg_names[len(tensors) :]]
