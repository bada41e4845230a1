# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Which backends there are, which of them computes a call and why the others do not, and how one is forced.

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

import torch

from .backends.chunked import Chunked
from .backends.cpu import Cpu
from .backends.gpu import Gpu
from .backends.mamba_ssm import MambaSsm
from .backends.reference import Reference
from .contract import Backend, Problem

__all__ = (
    "AUTO",
    "REFERENCE",
    "choose",
    "composed",
    "exporting",
    "forced",
    "get",
    "names",
    "report",
    "use_backend",
    "why_not",
)

AUTO = "auto"
# By priority: the first that takes a call computes it. They are made now, because while torch.compile traces a first
# call, libraries cannot be loaded.
BACKENDS: dict[str, Backend] = {b.name: b for b in (Gpu(), Cpu(), Chunked(), MambaSsm(), Reference())}
REFERENCE = Reference.name
FASTEST = {"cuda": "gpu", "cpu": "cpu"}  # by device: where another one is chosen, people are told
WIDE = frozenset({"A", "D", "delta_bias"})  # float32 whatever the tokens are
DECIDING = {  # parts whose device and dtype decide; those of a block were cast to that of these two
    "scan": ("u", "delta", "A", "B", "C", "D", "z", "delta_bias"),
    "block": ("xz", "A"),
    "norm": ("x", "weight", "bias"),
}
LOGGER = logging.getLogger("ultralytics")  # the library's own logger, by name: this package never imports ultralytics

# Before PyTorch 2.7 the only word for an export that does not trace; it takes as long as all other questions together
_is_exporting = getattr(torch.compiler, "is_exporting", torch.onnx.is_in_onnx_export)
_logged: set[str] = set()


def names() -> list[str]:
    """Return the valid backend names, fastest first."""
    return [*BACKENDS]


def _check(name: str, source: str) -> str:
    """Return name if it is valid, else raise ValueError listing the valid ones."""
    if name not in (AUTO, *names()):
        raise ValueError(f"{source} is '{name}', which is no scan backend; choose one of {[AUTO, *names()]}")
    return name


# Checked where it is used, so that a wrong name is an error of the command and not of an import
_forced = os.environ.get("VMAMBA_BACKEND") or AUTO


def forced() -> str:
    """Return the name of the forced backend, or 'auto'.

    Raises:
        ValueError: If the environment names none that there is.
    """
    return _check(_forced, "environment variable VMAMBA_BACKEND")


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


def get(name: str) -> Backend:
    """Return the backend of that name.

    Raises:
        ValueError: If there is none.
    """
    if name not in BACKENDS:
        raise ValueError(f"backend '{name}' is no scan backend; choose one of {names()}")
    return BACKENDS[name]


def candidates() -> list[Backend]:
    """Return the backends that may be chosen now: the forced one, or those of the automatic choice."""
    name = forced()
    return [b for b in BACKENDS.values() if b.automatic] if name == AUTO else [BACKENDS[name]]


def exporting() -> bool:
    """Return whether a graph is being recorded for export, where custom operators cannot go."""
    return torch.jit.is_tracing() or _is_exporting()


def composed() -> bool:
    """Return whether everything is composed of plain PyTorch operators now.

    That is during export; where the reference is forced; under the transforms of torch.func (vmap, grad, jvp, ...),
    which custom operators have no rules for; and under forward-mode differentiation, which takes the derivative of a
    custom operator for zero without a word.
    """
    forward_mode = getattr(torch.autograd.forward_ad, "_current_level", -1) >= 0
    # torch.compile cannot trace the question for transforms
    transformed = not torch.compiler.is_compiling() and torch._C._functorch.peek_interpreter_stack() is not None
    return forward_mode or transformed or _forced == REFERENCE or exporting()


def why_not(backend: Backend, kind: str, problem: Problem) -> str:
    """Return why a backend does not take a problem; "" if it does."""
    if not backend.works:
        return backend.about
    if kind not in backend.kinds:
        return f"it has no kernel for {kind}"
    device, dtypes = backend.device, backend.dtypes
    for name in DECIDING[kind]:
        t = getattr(problem, name)
        if t is None:
            continue
        if device is not None and (t.device.type != device or t.layout != torch.strided):
            return f"{name} is {t.layout} on {t.device}: only dense tensors on {device}"
        if dtypes is not None and t.dtype not in (dtypes[:1] if name in WIDE else dtypes):
            allowed = [str(d).removeprefix("torch.") for d in (dtypes[:1] if name in WIDE else dtypes)]
            return f"{name} is {t.dtype}: only {', '.join(allowed)}"
    if kind in ("scan", "block"):
        directions, states = problem.A.shape[0], problem.A.shape[-1]
        if backend.max_states is not None and states > backend.max_states:
            return f"{states} states: only 1 to {backend.max_states}"
        if backend.max_directions is not None and directions > backend.max_directions:
            return f"{directions} groups: only 1 to {backend.max_directions}"
    return backend.refuses(problem) if type(backend).refuses is not Backend.refuses else ""


def choose(kind: str, problem: Problem) -> Backend | None:
    """Return the backend that computes a problem: the forced one, or the first that takes it. Asked once a call.

    Args:
        kind (str): "scan", "block" or "norm".
        problem (Problem): Its tensors; of theirs, dtypes, devices and sizes count.

    Returns:
        (Backend | None): The backend. Of a norm None where PyTorch's own serves.

    Raises:
        RuntimeError: If a forced backend cannot take a scan or a block; the message says why.
    """
    may = kind == "norm"  # PyTorch has one, too
    if composed():
        return None if may else get(REFERENCE)
    reasons: dict[str, str] = {}
    for backend in candidates():
        reason = why_not(backend, kind, problem)
        if not reason:
            if not may:
                _tell(backend, problem[0].device.type, reasons)
            return backend
        reasons[backend.name] = reason
    if may:
        return None
    why = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
    raise RuntimeError(
        f"scan backend '{_forced}' was forced but cannot take this call ({why}). "
        f"Unset VMAMBA_BACKEND or use_backend(), or choose one of {names()}"
    )


def _tell(backend: Backend, device: str, reasons: dict[str, str]) -> None:
    """Say once a process which backend runs, and whether that is many times slower than it could be."""
    if torch.compiler.is_compiling():
        return
    if backend.name not in _logged:
        _logged.add(backend.name)
        LOGGER.debug(f"selective scan: backend '{backend.name}' ({backend.about})")
    if backend.device is None and _forced == AUTO and device != "meta":
        _warn_once(device, reasons)


def _warn_once(device: str, reasons: dict[str, str]) -> None:
    """Say once a process that scans run in plain PyTorch, many times slower than they could, and why."""
    if f"slow {device}" not in _logged:
        _logged.add(f"slow {device}")
        name = FASTEST.get(device)
        why = f"{name}: {reasons.get(name, 'left out')}" if name else f"there are no kernels for {device}"
        LOGGER.warning(
            f"selective scan: plain PyTorch on {device}, many times slower than compiled kernels ({why}). "
            f"`vmamba checks` tells what to do."
        )


def report() -> list[tuple[str, bool, str]]:
    """Return (name, works here, version or reason) for every backend."""
    return [(b.name, b.works, b.about) for b in BACKENDS.values()]
