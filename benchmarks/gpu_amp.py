# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Mixed precision on real pictures: one short training in float32, fp16 and bf16, and validation in half precision.

Each training is a process of its own. Recorded are the losses' finiteness, mAP50-95 of the best epoch as training saw
it, of the final validation, and of the saved weights validated in float32 and in half precision.

Usage:
    python benchmarks/gpu_amp.py DATA.yaml --out benchmarks/results/gpu_amp.json --deadline 200
    python benchmarks/gpu_amp.py DATA.yaml --dry-run      # one epoch of 64 px on a CPU, float32 alone; writes nothing
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.environment import environment  # noqa: E402
from benchmarks.rendering import source, table  # noqa: E402
from benchmarks.result import save  # noqa: E402

COMMAND = "benchmarks/gpu.sh MAMBA_SSM CAUSAL_CONV1D DATA.yaml"
MODEL = "VMamba-yolov8n.yaml"
PRECISIONS = {"float32": False, "fp16": True, "bf16": "bf16"}  # the `amp` setting
MAP = "metrics/mAP50-95(B)"


def train(data: str, precision: str, epochs: int, imgsz: int, batch: int, device: str, folder: str) -> dict:
    """Train, validate the best weights in float32 and half precision, and return what is recorded."""
    from ultralytics import YOLO

    model = YOLO(MODEL)
    begin = time.monotonic()
    model.train(
        data=data, epochs=epochs, imgsz=imgsz, batch=batch, device=device, amp=PRECISIONS[precision], seed=0,
        project=folder, name=precision, exist_ok=True, plots=False, pretrained=False, verbose=False, workers=8,
    )  # fmt: skip
    seconds = time.monotonic() - begin
    run = Path(model.trainer.save_dir)
    with open(run / "results.csv", newline="", encoding="utf-8") as f:
        epochs_seen = [{k.strip(): float(v) for k, v in row.items()} for row in csv.DictReader(f)]
    losses = [v for row in epochs_seen for k, v in row.items() if k.endswith("_loss")]
    found = {
        "precision": precision,
        "seconds": round(seconds, 1),
        "epochs": len(epochs_seen),
        "finite": all(map(math.isfinite, losses)),
        "in_training": max(row[MAP] for row in epochs_seen),
        "final": float(model.trainer.metrics[MAP]),
    }
    weights = run / "weights/best.pt"
    for key, half in (("float32_validation", False), ("half_validation", True)):
        if half and device == "cpu":
            continue
        settings = {"quantize": 16} if half else {}
        result = YOLO(weights).val(data=data, imgsz=imgsz, batch=batch, device=device, plots=False, **settings)
        found[key] = float(result.results_dict[MAP])
    return {k: round(v, 5) if isinstance(v, float) else v for k, v in found.items()}


def render(r: dict) -> dict[str, str]:
    """Return the table of a result."""
    keys = ("epochs", "finite", "in_training", "final", "float32_validation", "half_validation", "seconds")
    rows = [[x["precision"], *(x.get(k, x.get("left_out", "")) for k in keys)] for x in r["rows"]]
    s = r["settings"]
    title = f"{s['data']}, {s['epochs']} epochs at {s['imgsz']} px, batch {s['batch']}, mAP50-95:"
    body = table(["training", *(k.replace("_", " ") for k in keys)], rows)
    return {"gpu_amp": f"{title}\n\n{body}\n\n{source(r, COMMAND)}"}


def main() -> int:
    """Run what the command line asks for; 1 if a training ended without finite losses."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", help="a data set's YAML")
    parser.add_argument("--only", choices=PRECISIONS, help="train in this process, and print the result")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--imgsz", type=int, default=320)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--device", default="0")
    parser.add_argument("--deadline", type=float, default=200, help="seconds for all of it")
    parser.add_argument("--dry-run", action="store_true", help="one epoch on a CPU; prints, writes nothing")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/gpu_amp.json")
    args = parser.parse_args()
    if args.dry_run:
        args.epochs, args.imgsz, args.device, args.batch = 1, 64, "cpu", 16
    settings = {k: getattr(args, k) for k in ("epochs", "imgsz", "batch", "device")}
    if args.only:
        with tempfile.TemporaryDirectory() as folder:
            print("RESULT " + json.dumps(train(args.data, args.only, folder=folder, **settings)))
        return 0
    begin, rows = time.monotonic(), []
    result = {
        "benchmark": "gpu_amp",
        "date": datetime.now(timezone.utc).date().isoformat(),
        "environment": environment(os.cpu_count()),
        "settings": {"data": Path(args.data).resolve().parent.name, "model": MODEL, **settings},
        "rows": rows,
    }
    for precision in ("float32",) if args.dry_run else PRECISIONS:
        command = [sys.executable, __file__, args.data, "--only", precision]
        command += [x for k, v in settings.items() for x in (f"--{k}", str(v))]
        left = args.deadline - (time.monotonic() - begin)
        try:
            env = {**os.environ, "YOLO_OFFLINE": "true"}
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, env=env, timeout=max(1, left), cwd=ROOT
            )
            line = next((x for x in done.stdout.splitlines() if x.startswith("RESULT ")), None)
        except subprocess.TimeoutExpired:
            rows.append({"precision": precision, "left_out": "out of time"})
        else:
            if line is None:
                print(done.stdout[-2000:] + done.stderr[-4000:])
            rows.append(json.loads(line[7:]) if line else {"precision": precision, "left_out": "failed"})
        if not args.dry_run:  # after each: whoever runs this may have less time than it takes
            save(result, args.out)
    print(render(result)["gpu_amp"])
    return int(any(r.get("left_out") == "failed" or not r.get("finite", True) for r in rows))


if __name__ == "__main__":
    sys.exit(main())
