# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""What training keeps: floats that autograd holds for a Mamba block, and peak memory of a training step.

Usage:
    python benchmarks/memory.py
"""

from __future__ import annotations

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

BLOCKS = [(32, 25600), (64, 6400), (128, 1600), (256, 400)]  # d_model and tokens of VMamba-yolov8n at 640
STEPS = [("yolov8n.yaml", True), ("VMamba-yolov8n.yaml", True), ("VMamba-yolov8n.yaml", False)]
IMGSZ, BATCH = 320, 4


def kept(d_model: int, length: int, fast: bool) -> float:
    """Return the floats kept for the backward pass of one block, per token and inner channel."""
    import torch

    from ultralytics.nn.Addmodules import Mamba

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


def step(model_name: str, fast: bool) -> dict:
    """Run one training step in this process and return its peak memory above the built model."""
    import torch

    from ultralytics import YOLO
    from ultralytics.nn.Addmodules import Mamba
    from ultralytics.utils import DEFAULT_CFG

    model = YOLO(model_name, verbose=False).model.train()
    for m in model.modules():
        if isinstance(m, Mamba):
            m.use_fast_path = fast
    model.args = DEFAULT_CFG
    batch = {
        "img": torch.rand(BATCH, 3, IMGSZ, IMGSZ),
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


def main() -> None:
    """Measure all and write the result."""
    if len(sys.argv) == 3:  # one step, in a process of its own
        print(json.dumps(step(sys.argv[1], sys.argv[2] == "True")))
        return
    from benchmarks.environment import environment

    result = {
        "benchmark": "memory",
        "date": datetime.now(timezone.utc).date().isoformat(),
        "environment": environment(2),
        "settings": {"imgsz": IMGSZ, "batch": BATCH},
        "blocks": [
            {"d_model": d, "tokens": n, "recompute": round(kept(d, n, True), 2), "keep": round(kept(d, n, False), 2)}
            for d, n in BLOCKS
        ],
        "steps": [],
    }
    exact = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}  # glibc gives freed tensors back at once
    for name, fast in STEPS:
        run = [sys.executable, __file__, name, str(fast)]
        out = subprocess.run(run, capture_output=True, text=True, check=True, env=exact).stdout
        result["steps"].append(json.loads(out.splitlines()[-1]))
    out = ROOT / "benchmarks/results/memory.json"
    out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"written: {out.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
