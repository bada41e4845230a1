# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Inputs, oracle and error measures of the scan: `selective_scan/proof.py` of this tree, whatever tree is measured.

With --base, benchmarks run on the `ultralytics` of another commit, which may have no such file, or another one. Both
trees are to get the same tensors, so the file beside this one is loaded; the definition in it is the other tree's.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import ultralytics.nn.Addmodules.selective_scan as engine

FILE = Path(__file__).resolve().parents[1] / "ultralytics/nn/Addmodules/selective_scan/proof.py"
_spec = importlib.util.spec_from_file_location(f"{engine.__name__}.proof", FILE)  # in that package, for its imports
_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)

RESULTS, scan_inputs = _module.RESULTS, _module.scan_inputs
oracle, run_with_gradients = _module.oracle, _module.run_with_gradients
max_error, rms_error, worst = _module.max_error, _module.rms_error, _module.worst

__all__ = ("RESULTS", "max_error", "oracle", "rms_error", "run_with_gradients", "scan_inputs", "worst")
