# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""The platforms that the C++ library is built for, by the names that zig, wheels and the system's loader use."""

from __future__ import annotations

import platform
import sys
import sysconfig
from typing import NamedTuple

__all__ = ("TARGETS", "Target", "here", "library_name")


class Target(NamedTuple):
    """One platform.

    Attributes:
        name (str): What commands here and the documentation call it.
        triple (str): What zig compiles for, with the oldest system that the library must run on. Without a triple zig
            compiles for the processor at hand, and the library stops on an older one.
        tag (str): Platform tag of its wheel; it says the same oldest system.
        suffix (str): Of the library.
    """

    name: str
    triple: str
    tag: str
    suffix: str

    @property
    def library(self) -> str:
        """File name of the library."""
        return f"_cpu{self.suffix}"


_ALL = (
    Target("linux-x86_64", "x86_64-linux-gnu.2.17", "manylinux_2_17_x86_64.manylinux2014_x86_64", ".so"),
    Target("linux-arm64", "aarch64-linux-gnu.2.17", "manylinux_2_17_aarch64.manylinux2014_aarch64", ".so"),
    Target("windows-x86_64", "x86_64-windows-gnu", "win_amd64", ".dll"),
    Target("windows-arm64", "aarch64-windows-gnu", "win_arm64", ".dll"),
    Target("macos-arm64", "aarch64-macos.11.0", "macosx_11_0_arm64", ".dylib"),
    Target("macos-x86_64", "x86_64-macos.10.15", "macosx_10_15_x86_64", ".dylib"),
)
TARGETS = {target.name: target for target in _ALL}


def library_name() -> str:
    """Return the file name of the library on this system. One serves every Python: it needs no Python.h."""
    return "_cpu" + {"win32": ".dll", "darwin": ".dylib"}.get(sys.platform, ".so")


def here() -> Target | None:
    """Return the platform that this Python runs on, or None if it is none of ours."""
    system = {"win32": "windows", "darwin": "macos"}.get(sys.platform, sys.platform)
    # A Python for x86-64 also runs on Windows for arm64, and the library has to fit the Python.
    machine = sysconfig.get_platform().rpartition("-")[2] if system == "windows" else platform.machine()
    machine = {"amd64": "x86_64", "aarch64": "arm64"}.get(machine.lower(), machine.lower())
    return TARGETS.get(f"{system}-{machine}")
