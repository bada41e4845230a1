# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""One scan by the libraries of several compilers, in turn: python benchmarks/compilers.py LIBRARY LIBRARY ...

For each instruction set, a Markdown table of medians in ms, one thread, and ratios to the first library. In brackets
how much longer the median took than the fastest run: beyond a few percent other programs had the core, and no ratio
counts.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ultralytics.nn.Addmodules.selective_scan.backends.cpu import Cpu
from ultralytics.nn.Addmodules.selective_scan.contract import Scan
from ultralytics.nn.Addmodules.selective_scan.proof import scan_inputs

D, N = 64, 16  # channels and states, one direction
LENGTH = 25600  # the largest map of a model at 640 pixels; with 1600 all tensors stay in the processor's caches


def once(cpu: Cpu, scan: Scan, dout: torch.Tensor) -> tuple[float, float]:
    """Return the seconds of a forward and of a backward pass."""
    start = time.perf_counter()
    _, states = cpu.scan(scan)
    middle = time.perf_counter()
    cpu.scan_backward(dout, scan, states)
    return middle - start, time.perf_counter() - middle


def main() -> None:
    """Time the libraries and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("libraries", nargs="+", type=Path)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--length", type=int, default=LENGTH, help=f"tokens of the scan (default: {LENGTH})")
    options = parser.parse_args()
    torch.set_num_threads(1)
    inputs = scan_inputs(1, 1, D, options.length, N)
    cpu, scan = Cpu(), Scan(*inputs, True, [0])
    dout = torch.randn_like(scan.u)
    times: dict[tuple[str, Path], list[tuple[float, float]]] = {}
    said: dict[tuple[str, Path], str] = {}
    for run in range(options.runs + 1):
        for library in options.libraries:
            if not cpu.load(library):
                raise SystemExit(cpu.about)
            for level in ("plain", "avx2", "avx512"):
                try:
                    cpu.set_isa(level)
                except ValueError:
                    continue
                said[level, library] = cpu.about
                took = once(cpu, scan, dout)
                if run:  # the first warms up
                    times.setdefault((level, library), []).append(took)
    print("| library | forward ms | backward ms | forward | backward |\n|---|---|---|---|---|")
    for level in ("plain", "avx2", "avx512"):
        if any((level, library) not in times for library in options.libraries):  # this processor has none
            continue
        rows = [[statistics.median(t[i] for t in times[level, lib]) * 1e3 for i in (0, 1)] for lib in options.libraries]
        for library, row in zip(options.libraries, rows):
            best = [min(t[i] for t in times[level, library]) * 1e3 for i in (0, 1)]
            cells = [f"{median:.2f} (+{median / fastest - 1:.0%})" for median, fastest in zip(row, best)]
            cells += [f"{mine / first:.2f}x" for mine, first in zip(row, rows[0])]
            print(f"| {said[level, library]} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
