# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""What a graph is made for: the runtime of the file, and whether its sizes are fixed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ("Target", "exporting_for", "sizes", "target", "traced_for_onnx")


class Target(NamedTuple):
    """What a graph is made for.

    Attributes:
        runtime (str): Ultralytics' name of the file format, or "torch.export".
        fixed (bool): The file takes pictures of one size and batch.
        form (str, optional): A form of the scan to take, whatever the table says.
    """

    runtime: str
    fixed: bool
    form: str | None = None


_told: ContextVar[Target | None] = ContextVar("target", default=None)


@contextmanager
def exporting_for(runtime: str, fixed: bool, form: str | None = None) -> Iterator[None]:
    """Make graphs for a runtime inside the `with` block; without it they suit any size."""
    token = _told.set(Target(runtime, fixed, form))
    try:
        yield
    finally:
        _told.reset(token)


def traced_for_onnx() -> bool:
    """Return whether ONNX's exporter that traces is at work; that of `dynamo=True` takes a graph of torch.export."""
    return torch.onnx.is_in_onnx_export() and torch.jit.is_tracing()


def target() -> Target:
    """Return what the graph that is being recorded is made for."""
    if told := _told.get():
        return told
    if traced_for_onnx():
        return Target("onnx", False)
    return Target("torchscript" if torch.jit.is_tracing() else "torch.export", False)


@contextmanager
def _untraced() -> Iterator[None]:
    """Record nothing in a trace inside the `with` block."""
    state = torch._C._get_tracing_state()
    torch._C._set_tracing_state(None)
    try:
        yield
    finally:
        torch._C._set_tracing_state(state)


def sizes(x: Tensor) -> tuple[int, ...]:
    """Return the shape of a tensor as plain numbers, which a trace takes for constants."""
    with _untraced():
        return tuple(int(n) for n in x.shape)
