# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""The scan's two passes on a GPU under other settings of the backend, in bfloat16, both directions; to choose them by.

Times are those of the device: launches are queued before the first kernel starts.

Usage:
    python benchmarks/gpu_tune.py --out benchmarks/results/gpu_tune.json --deadline 80
    python benchmarks/gpu_tune.py FORWARD_ROWS=4 BACKWARD_ROWS=4,BLOCK_D=16     # these two beside what is set
"""

from __future__ import annotations

import argparse
import sys
import time
from datetime import datetime, timezone
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from benchmarks.environment import environment  # noqa: E402
from benchmarks.gpu import ORDERS, Clock, inputs  # noqa: E402
from benchmarks.result import save  # noqa: E402
from ultralytics.nn.Addmodules.selective_scan import Scan, registry  # noqa: E402
from ultralytics.nn.Addmodules.selective_scan.backends.gpu import scan as settings  # noqa: E402

SHAPES = [(1, 64, 25600), (16, 64, 25600), (16, 256, 1600), (70, 64, 25600), (70, 128, 6400), (70, 512, 400)]
# What cost time on an H100 is not tried again: 4 and 8 tokens at a time forward, 1 and 4 backward, fewer programs, one
# wave, blocks of 16 channels (benchmarks/results/gpu_tune.json).
VARIANTS = ["FORWARD_PROGRAMS=20", "BACKWARD_PROGRAMS=10", "WAVES=6", "SHORT=512", "SHORT=6400", "CARRY_ROWS=16"]


def main() -> int:
    """Time every variant and print a row of each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("variants", nargs="*", default=VARIANTS, help="NAME=NUMBER[,NAME=NUMBER...] of gpu/scan.py")
    parser.add_argument("--deadline", type=float, default=80, help="seconds after which no further variant begins")
    parser.add_argument("--out", type=Path, help="where the figures go")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("no CUDA or ROCm device")
    device, begin, rows = torch.device("cuda"), time.monotonic(), []
    gpu = registry.get("gpu")
    heading = {"benchmark": "gpu_tune", "date": datetime.now(timezone.utc).date().isoformat()}
    heading |= {"environment": environment(1)}
    clock = Clock(device, 0.05, queue=4_000_000)  # longer than a slow host takes for all launches of a pass
    data = {}
    for shape in SHAPES:
        u, delta, A, B, C, D, bias = inputs(*shape, torch.bfloat16, device, 0)
        data[shape] = Scan(u, delta, A, B, C, D, None, bias, True, ORDERS)
    for variant in ("", *args.variants):
        if time.monotonic() - begin > args.deadline:
            break
        new = {k: int(v) for k, v in (part.split("=") for part in variant.split(",") if part)}
        old = {name: getattr(settings, name) for name in new}
        row = {"variant": new, "ms": {}}
        try:
            for name, value in new.items():
                setattr(settings, name, value)
            settings.divide.cache_clear()
            for shape, scan in data.items():
                out, states = gpu.scan(scan)
                passes = (
                    lambda scan=scan: gpu.scan(scan),
                    lambda scan=scan, out=out, states=states: gpu.scan_backward(out, scan, states),
                )
                times = [clock([run])["median_ms"] for run in passes]
                row["ms"][", ".join(map(str, shape))] = times
        finally:
            for name, value in old.items():
                setattr(settings, name, value)
            settings.divide.cache_clear()
        rows.append(row)
        if args.out:  # after each: one that fails, or a machine that is taken away, loses no other
            save({**heading, "rows": rows}, args.out)
        print(variant or "as it is", *(f"({k}): {f} + {b}" for k, (f, b) in row["ms"].items()), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
