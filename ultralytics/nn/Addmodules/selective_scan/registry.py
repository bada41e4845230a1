# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Backends of the selective scan: which exist, which accept a call and why not, and how one is forced.

| environment variable | meaning | values |
|---|---|---|
| `VMAMBA_BACKEND` | force a backend; a call it cannot take is an error | `auto` (default), or a name of `names()` |

This module is the only one that reads the environment.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from types import ModuleType

import torch
from torch import Tensor

from . import gpu
from .backends import chunked, cpu, mamba_ssm

__all__ = ("AUTO", "REFERENCE", "candidates", "forced", "get", "names", "report", "select", "use_backend")

AUTO, REFERENCE = "auto", "reference"
BACKENDS: tuple[ModuleType, ...] = (gpu, cpu, chunked)  # by priority: the first that accepts a call takes it
BY_NAME: tuple[ModuleType, ...] = (mamba_ssm,)  # never chosen, only forced
LOGGER = logging.getLogger("ultralytics")  # the library's own logger, by name: this package never imports ultralytics

_by_name = {b.name: b for b in (*BACKENDS, *BY_NAME)}
for _backend in _by_name.values():
    _backend.available()  # libraries are loaded now: while torch.compile traces a first call is too late
_logged: set[str] = set()


def names() -> list[str]:
    """Return the valid backend names, fastest first; the sequential reference comes last and is never chosen alone."""
    return [*_by_name, REFERENCE]


def _check(name: str, source: str) -> str:
    """Return name if it is valid, else raise ValueError listing the valid ones."""
    if name not in (AUTO, *names()):
        raise ValueError(f"{source} is '{name}', which is no scan backend; choose one of {[AUTO, *names()]}")
    return name


_forced = _check(os.environ.get("VMAMBA_BACKEND", AUTO) or AUTO, "environment variable VMAMBA_BACKEND")


def forced() -> str:
    """Return the name of the forced backend, or 'auto'."""
    return _forced


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Force a backend inside a with block, for the whole process.

    Args:
        name (str): A name of `names()`, or 'auto'.

    Raises:
        ValueError: If the name is unknown.

    Examples:
        >>> with use_backend("chunked"):
        ...     forced()
        'chunked'
    """
    global _forced
    before, _forced = _forced, _check(name, "use_backend()")
    try:
        yield
    finally:
        _forced = before


def get(name: str) -> ModuleType:
    """Return the backend module of that name.

    Raises:
        ValueError: If there is none.
    """
    if name not in _by_name:
        raise ValueError(f"backend '{name}' is no scan backend; choose one of {[*_by_name]}")
    return _by_name[name]


def candidates() -> list[ModuleType]:
    """Return the backends that may be chosen now: the forced one, or those of the automatic choice."""
    if _forced == AUTO:
        return [b for b in BACKENDS if b is not gpu or not gpu.forced_only()]
    return [_by_name[_forced]] if _forced in _by_name else []


def _log_once(name: str, detail: str) -> None:
    """Say once per process which backend runs."""
    if name not in _logged and not torch.compiler.is_compiling():
        _logged.add(name)
        LOGGER.debug(f"selective scan: backend '{name}' ({detail})")


def _warn_once(device: str, reasons: dict[str, str]) -> None:
    """Say once per process that scans run in plain PyTorch, many times slower than they could, and why."""
    if f"slow {device}" not in _logged and not torch.compiler.is_compiling():
        _logged.add(f"slow {device}")
        name = {"cpu": cpu.name, "cuda": gpu.name}.get(device)
        why = f"{name}: {reasons.get(name, 'left out')}" if name else f"there are no kernels for {device}"
        LOGGER.warning(
            f"selective scan: plain PyTorch on {device}, many times slower than compiled kernels ({why}). "
            f"`vmamba checks` tells what to do."
        )


def select(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
) -> str:
    """Return the name of the backend that takes this call: the forced one, or the first that accepts it.

    Args:
        u (Tensor): (B, K, D, L), and the other canonical arguments of `op.scan`.
        delta (Tensor): (B, K, D, L).
        A (Tensor): (K, D, N).
        B (Tensor): (B, K, N, L).
        C (Tensor): (B, K, N, L).
        D (Tensor, optional): (K, D).
        z (Tensor, optional): (B, K, D, L).
        delta_bias (Tensor, optional): (K, D).

    Returns:
        (str): A key of `get`.

    Raises:
        RuntimeError: If a forced backend cannot take the call; the message says why.
    """
    reasons: dict[str, str] = {}
    for backend in candidates():
        ok, reason = backend.available()
        if ok:
            ok, why = backend.accepts(u, delta, A, B, C, D, z, delta_bias)
            if ok:
                _log_once(backend.name, reason)
                if backend is chunked and _forced == AUTO and u.device.type != "meta":
                    _warn_once(u.device.type, reasons)
                return backend.name
            reason = why
        reasons[backend.name] = reason
    why = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
    raise RuntimeError(
        f"scan backend '{_forced}' was forced but cannot take this call ({why}). "
        f"Unset VMAMBA_BACKEND or use_backend(), or choose one of {names()}"
    )


def report() -> list[tuple[str, bool, str]]:
    """Return (name, works here, reason) for every backend."""
    found = [(b.name, *b.available()) for b in _by_name.values()]
    return [*found, (REFERENCE, True, "sequential definition, for tests")]
