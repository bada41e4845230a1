# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Machines that PyTorch has left behind: told before pip looks for a version of PyTorch that does not exist."""

from __future__ import annotations

import importlib.metadata
import platform
import struct
import sys

__all__ = ("problem",)


def problem() -> str:
    """Return one sentence if this fork cannot be installed on this machine, with what to do; else an empty text.

    A PyTorch that is there already is taken as the proof that there is one. Builds in isolation do not see it.
    """
    if struct.calcsize("P") != 8:
        return f"{sys.executable} is a 32-bit Python, for which there is no PyTorch: install a 64-bit one."
    if sys.platform != "darwin" or platform.machine() != "x86_64" or _has_torch():
        return ""
    if "ARM64" in platform.version():  # as the kernel says, whatever the Python was built for
        return (
            "This Mac has Apple silicon and this Python is one for Intel Macs, for which PyTorch has no version 2.4 or "
            "newer: install a Python for arm64."
        )
    return (
        "PyTorch ended its packages for Intel Macs with 2.2, and this fork needs 2.4: with conda run "
        "`conda install -c conda-forge 'pytorch>=2.4' torchvision setuptools` and then "
        "`pip install --no-build-isolation -e .`"
    )


def _has_torch() -> bool:
    try:
        return tuple(map(int, importlib.metadata.version("torch").split(".")[:2])) >= (2, 4)
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return False
