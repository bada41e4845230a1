# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Imports triton and the kernels where they can be used: they need it, and this package is imported everywhere."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from types import ModuleType

import torch

__all__ = ("block_kernels", "interpreted", "kernels", "load")

MIN_TRITON = (3, 3)  # tuples inside kernels

# Filled by load(), when the backend is made: torch.compile cannot trace an import.
kernels: ModuleType | None = None
block_kernels: ModuleType | None = None
interpreted = False


def load() -> tuple[bool, str]:
    """Import triton and the kernels if this process can run them, and say why not otherwise."""
    global kernels, block_kernels, interpreted
    # Not is_available(): it starts CUDA, and importing a package must not fix the visible devices or hinder a fork.
    gpu = torch.cuda.device_count() > 0  # also for ROCm
    if not gpu and "triton" not in sys.modules:  # importing it would cost every CPU user half a second
        return False, "no CUDA or ROCm device"
    if find_spec("triton") is None:
        hint = "triton-windows" if sys.platform == "win32" else "triton"
        return False, f"the package triton is not installed (pip install {hint})"
    try:
        import triton

        version = tuple(int("".join(filter(str.isdigit, part)) or 0) for part in triton.__version__.split(".")[:2])
        if version < MIN_TRITON:
            return False, f"triton {triton.__version__} is too old: need {'.'.join(map(str, MIN_TRITON))} (PyTorch 2.7)"
        from . import block_kernels as of_block
        from . import kernels as of_scan
    except (ImportError, OSError) as e:
        return False, f"triton cannot be imported: {e}"
    kernels, block_kernels = of_scan, of_block
    interpreted = type(of_scan.scan_forward).__name__ == "InterpretedFunction"
    if interpreted:
        return True, f"triton {triton.__version__}, interpreted on the CPU: for tests"
    return (True, f"triton {triton.__version__}") if gpu else (False, "no CUDA or ROCm device")
