# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""What every benchmark result records: hardware, versions and the commit it was measured at."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def cpu_name() -> str:
    """Return the processor's model name where the system tells it, with the numbers that tell generations apart."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return platform.processor() or platform.machine()
    lines = (line.partition(":") for line in cpuinfo.read_text(encoding="utf-8").splitlines())
    found = {key.strip(): value.strip() for key, _, value in lines}
    numbers = ", ".join(f"{key.removeprefix('cpu ')} {found[key]}" for key in ("cpu family", "model") if key in found)
    return f"{found.get('model name', platform.machine())}{f' ({numbers})' if numbers else ''}"


def git(*args: str) -> str:
    """Return what git prints in this repository, or nothing where there is no git."""
    try:
        return subprocess.run(["git", *args], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def uncommitted() -> bool:
    """Return whether the tree differs from the commit; results do not count, or one run would spoil the next.

    New files count where they would be built or run.
    """
    from ultralytics.nn.Addmodules.tools.compare import results

    new = "ls-files", "--others", "--exclude-standard", "--", "ultralytics", "benchmarks"
    return results.uncommitted(ROOT) or bool(git(*new, *(f":!{path}" for path in results.NO_CODE)))


def refuse_stale_library() -> None:
    """Stop where the compiled library is older than its sources: the commit has not what would be measured.

    Raises:
        SystemExit: If it is.
    """
    from ultralytics.nn.Addmodules.building.compilers import CSRC
    from ultralytics.nn.Addmodules.building.library import up_to_date
    from ultralytics.nn.Addmodules.building.targets import here, library_name

    if here() and (CSRC.parent / library_name()).is_file() and not up_to_date():
        raise SystemExit("The C++ library is older than its sources: `pip install -e .` first.")


def environment(threads: int) -> dict:
    """Return hardware, versions, commit and whether the tree had uncommitted changes.

    Args:
        threads (int): Threads that the measurement used.
    """
    import torch

    import ultralytics
    from ultralytics.nn.Addmodules.selective_scan import report

    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": threads,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "ultralytics": ultralytics.__version__,
        "scan_backends": {name: reason for name, ok, reason in report() if ok},
        "commit": git("rev-parse", "HEAD"),
        "uncommitted": uncommitted(),
    }
