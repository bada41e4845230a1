# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Error of every scan backend against float64, beside that of plain PyTorch in the same dtype.

The inputs are rounded to the dtype first, so that what is measured is the scan and not the rounding of its inputs.
Plain PyTorch is the sequential definition run on those inputs. The largest ratio of the two that the tests allow is 2.

Usage:
    python benchmarks/accuracy.py
    python benchmarks/accuracy.py --quick      # one short scan; prints, writes nothing
    python benchmarks/accuracy.py --base main  # the largest ratios of another commit beside this tree's
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import asdict
from datetime import datetime, timezone
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from benchmarks.base import compare  # noqa: E402
from benchmarks.environment import environment, refuse_stale_library  # noqa: E402
from benchmarks.proofs import RESULTS, oracle, rms_error, run_with_gradients  # noqa: E402
from benchmarks.rendering import Goal, source, table, times  # noqa: E402
from benchmarks.scan_cpu import NAMES, Case, tensors  # noqa: E402
from benchmarks.timing import write  # noqa: E402
from ultralytics.nn.Addmodules.selective_scan import selective_scan_fn, selective_scan_ref, use_backend  # noqa: E402

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
CASES, QUICK = [Case(1, 64, 400), Case(1, 16, 6400)], [Case(1, 4, 20)]
NAMED = {name: name.replace("delta_bias", "bias") for name in RESULTS}  # in the table
LABELS = {"cpu": "cpp", "gpu": "triton"}  # of backends in results
SEEDS = 4
WIDE = (2, 5, 7)  # A, D and the bias stay float32


def backends() -> dict[str, Callable]:
    """Return the scan of every backend by name; imported here alone, because --base runs this file on older trees."""
    from ultralytics.nn.Addmodules.selective_scan import registry

    def held(name: str) -> Callable:
        def scan(*x: Tensor, **settings) -> Tensor:
            with use_backend(name):
                return selective_scan_fn(*x, **settings)

        return scan

    backends = registry.BACKENDS.values()
    return {LABELS.get(b.name, b.name): held(b.name) for b in backends if b.works and b.operator}


def measure(case: Case, dtype: torch.dtype, seeds: int, scans: dict[str, Callable]) -> dict[str, dict[str, float]]:
    """Return mean errors of plain PyTorch and of every scan that takes the call, by name."""
    found: dict[str, list[dict[str, float]]] = {}
    left_out: set[str] = set()
    for seed in range(seeds):
        x = tensors(case, seed=seed)
        x = [t if i in WIDE else t.to(dtype) for i, t in enumerate(x)]
        dout = torch.randn(x[0].shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
        exact = oracle(x, dout)
        for name, scan in {"plain": selective_scan_ref, **scans}.items():
            try:
                got = run_with_gradients(partial(scan, delta_softplus=True), x, dout)
            except RuntimeError as e:  # most of all: it does not take CPU tensors
                if name not in left_out:
                    print(f"{name} is left out: {e}", file=sys.stderr, flush=True)
                left_out.add(name)
                continue
            found.setdefault(name, []).append({NAMED[r]: rms_error(got[r], exact[r]) for r in RESULTS})
    return {name: {r: sum(e[r] for e in runs) / len(runs) for r in NAMED.values()} for name, runs in found.items()}


def ratios(found: dict[str, dict[str, float]]) -> dict[str, float]:
    """Return the largest ratio of each scan's errors to those of plain PyTorch."""
    return {name: max(e[r] / found["plain"][r] for r in NAMED.values()) for name, e in found.items() if name != "plain"}


def render(r: dict) -> dict[str, str]:
    """Return the table of a result: the errors of ours, those of plain PyTorch in brackets."""
    names = list(r["rows"][0]["errors"]["plain"])
    scans = list(dict.fromkeys(name for row in r["rows"] for name in row["errors"] if name != "plain"))
    rows = []
    for row in r["rows"]:
        plain = row["errors"]["plain"]
        for b in (b for b in scans if b in row["errors"]):
            ours = row["errors"][b]
            cells = [f"{ours[n]:.1e} ({plain[n]:.1e})".replace("e-0", "e-") for n in names]
            worst = max(ours[n] / plain[n] for n in names)
            rows.append([", ".join(map(str, row["shape"])), row["dtype"], NAMES.get(b, b), *cells, times(worst)])
    head = ["B, D, L", "dtype", "scan", *names, "largest ratio"]
    note = "RMS error against float64 over the exact result's, that of plain PyTorch in the same dtype in brackets:"
    return {"accuracy": f"{note}\n\n{table(head, rows)}\n\n{source(r, 'python benchmarks/accuracy.py')}"}


def goals(r: dict | None) -> list[Goal]:
    """Return the target of all errors beside a result."""
    found = {}
    for row in r["rows"] if r else []:
        plain = row["errors"]["plain"]
        for b, ours in row["errors"].items():
            if b != "plain":
                found |= {f"{n} of {b}, {row['dtype']}": ours[n] / plain[n] for n in plain}
    where = max(found, key=found.get, default=None)
    what = "error against float64: times plain PyTorch's in the same dtype"
    return [Goal(what, 2, False, found.get(where), "" if where is None else f"most, {where}")]


def jobs(quick: bool) -> list[dict]:
    """Return what --base compares: every case in every dtype."""
    common = {"seeds": 1 if quick else SEEDS, "threads": 1}
    return [{"case": asdict(case), "dtype": d, **common} for case in (QUICK if quick else CASES) for d in DTYPES]


def public(job: dict) -> dict[str, float]:
    """Return the largest ratio of the scan as users call it."""
    case = Case(**job["case"])
    found = measure(case, DTYPES[job["dtype"]], job["seeds"], {"default": selective_scan_fn})
    name = f"({case.batch}, {case.channels}, {case.length}) {job['dtype']}, largest ratio"
    return {name: round(ratios(found)["default"], 4)}


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one short scan, to see that it works")
    parser.add_argument("--out", type=Path, help="result file; by default in benchmarks/results, none with --quick")
    parser.add_argument("--base", metavar="REF", help="measure another commit beside this tree; prints, writes nothing")
    args = parser.parse_args()
    if args.base:
        compare(__file__, jobs(args.quick), args.base, 0)
        return
    if not args.quick:
        refuse_stale_library()
    rows, scans, seeds = [], backends(), 1 if args.quick else SEEDS
    for case in QUICK if args.quick else CASES:
        for name, dtype in DTYPES.items():
            shape = [case.batch, case.channels, case.length]
            rows.append({"shape": shape, "dtype": name, "errors": measure(case, dtype, seeds, scans)})
            print(shape, name, {b: round(w, 2) for b, w in ratios(rows[-1]["errors"]).items()}, flush=True)
    result = {
        "benchmark": "accuracy",
        "quick": args.quick,
        "date": datetime.now(timezone.utc).date().isoformat(),
        "environment": environment(torch.get_num_threads()),
        "rows": rows,
    }
    write(result, args.out)


if __name__ == "__main__":
    main()
