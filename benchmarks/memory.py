# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""What training keeps: floats that autograd holds for a Mamba block, and peak memory of a training step.

Usage:
    python benchmarks/memory.py
    python benchmarks/memory.py --base main    # another commit beside this tree; prints, writes nothing
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import threading
import time
from datetime import datetime, timezone
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.base import compare  # noqa: E402
from benchmarks.environment import environment, refuse_stale_library  # noqa: E402
from benchmarks.rendering import Goal, quotient, source, table  # noqa: E402
from benchmarks.timing import write  # noqa: E402

QUICK = [(32, 100)]
BLOCKS = [(32, 25600), (64, 6400), (128, 1600), (256, 400)]  # d_model and tokens of VMamba-yolov8n at 640
STEPS = [("yolov8n.yaml", True), ("VMamba-yolov8n.yaml", True), ("VMamba-yolov8n.yaml", False)]
IMGSZ, BATCH, THREADS = 320, 4, 2
EXACT = {"MALLOC_MMAP_THRESHOLD_": "65536"}  # for processes of a step: glibc gives freed tensors back at once


def kept(d_model: int, length: int, fast: bool) -> float:
    """Return the floats kept for the backward pass of one block, per token and inner channel."""
    import torch

    from ultralytics.nn.Addmodules.VMamba import Mamba

    block, x, storages = Mamba(d_model, use_fast_path=fast, bimamba_type="v2"), torch.randn(1, length, d_model), {}
    own = {p.untyped_storage().data_ptr() for p in block.parameters()} | {x.untyped_storage().data_ptr()}

    def pack(t: torch.Tensor) -> torch.Tensor:
        storages[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        out = block(x)
    kept = sum(n for p, n in storages.items() if p not in own)
    del out
    return kept / 4 / (length * block.d_inner)


def step(model_name: str, fast: bool, imgsz: int) -> dict:
    """Run one training step in this process and return its peak memory above the built model."""
    import torch

    from ultralytics import YOLO
    from ultralytics.nn.Addmodules.VMamba import Mamba
    from ultralytics.utils import DEFAULT_CFG

    model = YOLO(model_name, verbose=False).model.train()
    for m in model.modules():
        if isinstance(m, Mamba):
            m.use_fast_path = fast
    model.args = DEFAULT_CFG
    batch = {
        "img": torch.rand(BATCH, 3, imgsz, imgsz),
        "batch_idx": torch.arange(BATCH).repeat_interleave(5).float(),
        "cls": torch.zeros(5 * BATCH, 1),
        "bboxes": torch.rand(5 * BATCH, 4) * 0.5 + 0.1,
    }
    process, seen, done = psutil.Process(), [], threading.Event()

    def watch() -> None:
        """Note the memory of this process until told to stop."""
        while not done.is_set():
            seen.append(process.memory_info().rss)
            time.sleep(0.001)

    model(batch)[0].sum().backward()  # libraries allocate their own on first use
    model.zero_grad()
    gc.collect()
    before = process.memory_info().rss
    watcher = threading.Thread(target=watch)
    watcher.start()
    model(batch)[0].sum().backward()
    done.set()
    watcher.join()
    return {"model": model_name, "fast_path": fast, "peak_mib": round((max(seen) - before) / 2**20, 1)}


def render(r: dict) -> dict[str, str]:
    """Return the tables of a result."""
    s = r["settings"]
    blocks = table(
        ["d_model", "tokens", "kept with recomputation", "kept without"],
        [[b["d_model"], b["tokens"], b["recompute"], b["keep"]] for b in r["blocks"]],
    )
    base = r["steps"][0]["peak_mib"]
    steps = table(
        [f"training step, {s['imgsz']} px, batch {s['batch']}", "peak MiB", "times yolov8n"],
        [
            [
                Path(m["model"]).stem + ("" if m["fast_path"] else ", `use_fast_path=False`"),
                m["peak_mib"],
                f"{m['peak_mib'] / base:.2f}",
            ]
            for m in r["steps"]
        ],
    )
    note = "Floats kept for one two-direction block, in units of B L D:"
    return {"memory": f"{note}\n\n{blocks}\n\n{steps}\n\n{source(r, 'python benchmarks/memory.py')}"}


def goals(r: dict | None) -> list[Goal]:
    """Return the target of peak memory beside a result."""
    peaks = {(s["model"], s["fast_path"]): s["peak_mib"] for s in r["steps"]} if r else {}
    ratio = quotient(*(peaks.get((model, True)) for model in ("VMamba-yolov8n.yaml", "yolov8n.yaml")))
    return [Goal("model training step: times stock's peak memory", 1.5, False, ratio)]


def jobs(quick: bool) -> list[dict]:
    """Return what --base compares: what every block keeps, and a training step of every model."""
    models, size = dict.fromkeys(name for name, _ in STEPS), 64 if quick else IMGSZ
    found = [{"block": block} for block in (QUICK if quick else BLOCKS)]
    found += [{"model": name, "imgsz": size} for name in models]
    return [{"threads": THREADS, **job} for job in found]


def public(job: dict) -> dict[str, float]:
    """Return the floats that a block keeps, or the peak of a training step."""
    if "block" in job:
        d, n = job["block"]
        return {f"d_model {d}, {n} tokens, floats kept by B L D": round(kept(d, n, True), 2)}
    return {f"{Path(job['model']).stem}, training step, peak MiB": step(job["model"], True, job["imgsz"])["peak_mib"]}


def main() -> None:
    """Measure all and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small block and tiny pictures; prints, writes nothing")
    parser.add_argument("--out", type=Path, help="result file; by default in benchmarks/results, none with --quick")
    parser.add_argument("--base", metavar="REF", help="measure another commit beside this tree; prints, writes nothing")
    parser.add_argument("--step", nargs=2, help=argparse.SUPPRESS)  # one step, in a process of its own
    args = parser.parse_args()
    imgsz = 64 if args.quick else IMGSZ
    if args.step:
        print(json.dumps(step(args.step[0], args.step[1] == "True", imgsz)))
        return
    os.environ |= EXACT
    if args.base:
        compare(__file__, jobs(args.quick), args.base, 0)
        return
    if not args.quick:
        refuse_stale_library()
    result = {
        "benchmark": "memory",
        "quick": args.quick,
        "date": datetime.now(timezone.utc).date().isoformat(),
        "environment": environment(THREADS),
        "settings": {"imgsz": imgsz, "batch": BATCH},
        "blocks": [
            {"d_model": d, "tokens": n, "recompute": round(kept(d, n, True), 2), "keep": round(kept(d, n, False), 2)}
            for d, n in (QUICK if args.quick else BLOCKS)
        ],
        "steps": [],
    }
    for name, fast in STEPS:
        run = [sys.executable, __file__, "--step", name, str(fast), *["--quick"] * args.quick]
        out = subprocess.run(run, stdout=subprocess.PIPE, text=True, check=True).stdout
        result["steps"].append(json.loads(out.splitlines()[-1]))
        print(result["steps"][-1], flush=True)
    write(result, args.out)


if __name__ == "__main__":
    main()
