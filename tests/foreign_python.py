# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""The C++ backend in a Python that has PyTorch and little else, such as one of Windows under wine, at every level.

Not a test, but a program: `wine python.exe tests/foreign_python.py LIBRARY` (docs/upkeep/release.md). Inputs, oracle
and bounds are those of the tests. Ultralytics and what it requires are not imported.
"""

from __future__ import annotations

import platform
import sys
import types
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
for name in ("ultralytics", "ultralytics.nn", "ultralytics.nn.Addmodules"):  # their folders, without their __init__
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [str(ROOT.joinpath(*name.split(".")))]

from tests.scan_cases import TOLERANCE, hold_elsewhere  # noqa: E402
from ultralytics.nn.Addmodules.selective_scan.backends.cpu import ISA_LEVELS, Cpu  # noqa: E402


def main() -> None:
    """Hold the scan and its gradients to the bounds in each dtype at each level; stop with the first that fails."""
    cpu = Cpu()
    if not cpu.load(Path(sys.argv[1]).resolve()):
        raise SystemExit(cpu.about)
    print(f"Python {platform.python_version()} on {sys.platform} {platform.machine()}, PyTorch {torch.__version__}")
    torch.set_num_threads(1)
    for level in [level for level in ISA_LEVELS if level != "auto"]:
        try:
            cpu.set_isa(level)
        except ValueError as e:
            print(f"{level}: not here, {e}")
            continue
        for dtype in TOLERANCE:
            print(f"{level} ({cpu.about}), {dtype}: {hold_elsewhere(cpu, dtype)}", flush=True)


if __name__ == "__main__":
    main()
