# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Error of every scan backend against float64, beside that of plain PyTorch in the same dtype.

The inputs are rounded to the dtype first, so that what is measured is the scan and not the rounding of its inputs.
Plain PyTorch is the sequential definition run on those inputs. The largest ratio of the two that the tests allow is 2.

Usage:
    python benchmarks/accuracy.py
    python benchmarks/accuracy.py --quick      # one short scan; prints, writes nothing
"""

from __future__ import annotations

import argparse
import json
import sys
from datetime import datetime, timezone
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from benchmarks.environment import environment  # noqa: E402
from benchmarks.scan_cpu import Case, tensors  # noqa: E402
from ultralytics.nn.Addmodules.selective_scan import (  # noqa: E402
    registry,
    selective_scan_fn,
    selective_scan_ref,
    use_backend,
)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
CASES, QUICK = [Case(1, 64, 400), Case(1, 16, 6400)], [Case(1, 4, 20)]
RESULTS = ("out", "du", "ddelta", "dA", "dB", "dC", "dD", "dz", "dbias")
WIDE = (2, 5, 7)  # A, D and the bias stay float32


def evaluate(fn, x: list[Tensor], dout: Tensor) -> list[Tensor]:
    """Return output and gradients in float64, whatever they were computed in."""
    leaves = [t.detach().requires_grad_() for t in x]
    out = fn(*leaves, delta_softplus=True)
    return [t.detach().double() for t in (out, *torch.autograd.grad(out, leaves, dout.to(out.dtype)))]


def errors(got: list[Tensor], exact: list[Tensor]) -> dict[str, float]:
    """Return the root mean square of each result's error over that of the exact result."""
    return {name: ((g - e).norm() / e.norm()).item() for name, g, e in zip(RESULTS, got, exact, strict=True)}


def measure(case: Case, dtype: torch.dtype, seeds: int) -> dict[str, dict[str, float]]:
    """Return mean errors of plain PyTorch and of every backend that takes the call, by name."""
    found: dict[str, list[dict[str, float]]] = {}
    for seed in range(seeds):
        x = tensors(case, seed=seed)
        x = [t if i in WIDE else t.to(dtype) for i, t in enumerate(x)]
        dout = torch.randn(x[0].shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
        exact = evaluate(selective_scan_ref, [t.double() for t in x], dout)
        found.setdefault("plain", []).append(errors(evaluate(selective_scan_ref, x, dout), exact))
        for backend in registry.BACKENDS:
            if backend.available()[0]:
                try:
                    with use_backend(backend.name):
                        got = evaluate(selective_scan_fn, x, dout)
                except RuntimeError:  # it does not take CPU tensors, and said so
                    continue
                found.setdefault(backend.name, []).append(errors(got, exact))
    return {name: {r: sum(e[r] for e in runs) / len(runs) for r in RESULTS} for name, runs in found.items()}


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one short scan, to see that it works")
    parser.add_argument("--out", type=Path, help="result file; by default in benchmarks/results, none with --quick")
    args = parser.parse_args()
    rows = []
    for case in QUICK if args.quick else CASES:
        for name, dtype in DTYPES.items():
            shape = [case.batch, case.channels, case.length]
            rows.append({"shape": shape, "dtype": name, "errors": measure(case, dtype, 1 if args.quick else 4)})
            worst = {
                b: max(e[r] / rows[-1]["errors"]["plain"][r] for r in RESULTS) for b, e in rows[-1]["errors"].items()
            }
            print(shape, name, {b: round(w, 2) for b, w in worst.items()}, flush=True)
    result = {
        "benchmark": "accuracy",
        "quick": args.quick,
        "date": datetime.now(timezone.utc).date().isoformat(),
        "environment": environment(torch.get_num_threads()),
        "rows": rows,
    }
    out = args.out or (None if args.quick else ROOT / "benchmarks/results/accuracy.json")
    if out is not None:
        out.write_text(json.dumps(result, indent=1) + "\n")
        print(f"written: {out.name}")


if __name__ == "__main__":
    main()
