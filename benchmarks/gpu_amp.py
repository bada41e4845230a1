# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Mixed precision on real pictures: short trainings to their end, and validation in half precision.

Each training is a process of its own. Recorded are the losses' finiteness, mAP50-95 of the best epoch as training saw
it, of the final validation, and of the saved weights validated in float32 and in half precision. Rows are written as
they come; what the file has from an earlier call at this commit is not trained again.

Usage:
    python benchmarks/gpu_amp.py DATA.yaml --out benchmarks/results/gpu_amp.json --deadline 200
    python benchmarks/gpu_amp.py DATA.yaml --model VMamba-yolon.yaml --precisions fp16 --imgsz 640 --minutes 3
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

COMMAND = "benchmarks/gpu.sh --data DATA.yaml"
MODEL = "VMamba-yolov8n.yaml"
PRECISIONS = {"float32": False, "fp16": True, "bf16": "bf16"}  # the `amp` setting
MAP = "metrics/mAP50-95(B)"
NEAR = 0.01  # most that the final validation may differ: it fuses layers, the one in training does not


def train(data: str, model: str, precision: str, folder: str, minutes: float | None, **settings) -> None:
    """Train, validate the best weights in float32 and half precision, and tell what is recorded.

    Args:
        data (str): A data set's YAML.
        model (str): A model's YAML.
        precision (str): A key of PRECISIONS.
        folder (str): Where the training writes.
        minutes (float, optional): How long it trains; the last epoch and the final validation come all the same.
        **settings (object): Epochs, imgsz, batch and device.
    """
    from ultralytics import YOLO

    imgsz, batch, device = (settings[k] for k in ("imgsz", "batch", "device"))
    trained = YOLO(model)
    begin = time.monotonic()
    trained.train(
        data=data, **settings, time=minutes and minutes / 60, amp=PRECISIONS[precision], seed=0, cache=True,
        project=folder, name=precision, exist_ok=True, plots=False, pretrained=False, verbose=False, workers=8,
    )  # fmt: skip
    seconds = time.monotonic() - begin
    run = Path(trained.trainer.save_dir)
    with open(run / "results.csv", newline="", encoding="utf-8") as f:
        epochs_seen = [{k.strip(): float(v) for k, v in row.items()} for row in csv.DictReader(f)]
    losses = [v for row in epochs_seen for k, v in row.items() if k.endswith("_loss")]
    found = {
        "model": model,
        "precision": precision,
        "imgsz": imgsz,
        "seconds": round(seconds, 1),
        "epochs": len(epochs_seen),
        "finite": all(map(math.isfinite, losses)),
        "in_training": max(row[MAP] for row in epochs_seen),
        "final": float(trained.trainer.metrics[MAP]),
    }
    weights = run / "weights/best.pt"
    tell(found)  # what follows may be cut short
    for key, half in (("float32_validation", False), ("half_validation", True)):
        if half and device == "cpu":
            continue
        settings = {"quantize": 16} if half else {}
        result = YOLO(weights).val(data=data, imgsz=imgsz, batch=batch, device=device, plots=False, **settings)
        found[key] = float(result.results_dict[MAP])
        tell(found)


def tell(found: dict) -> None:
    """Print what is known of a training, for the process that started this one."""
    row = {k: round(v, 5) if isinstance(v, float) else v for k, v in found.items()}
    print("RESULT " + json.dumps(row), flush=True)


def told(printed: str | bytes | None) -> dict | None:
    """Return the last that a training told of itself, or None if it did not come to its end."""
    text = printed.decode(errors="replace") if isinstance(printed, bytes) else printed or ""
    lines = [x for x in text.splitlines() if x.startswith("RESULT ")]
    return json.loads(lines[-1][7:]) if lines else None


def wrong(row: dict) -> str:
    """Return what is wrong with a training; "" if it came to a good end."""
    if "left_out" in row:
        return row["left_out"]
    if not row["finite"]:
        return "a loss is not finite"
    if abs(row["final"] - row["in_training"]) > NEAR:
        return f"the final validation gives {row['final']}, the one in training gave {row['in_training']}"
    return ""


def render(r: dict) -> dict[str, str]:
    """Return the table of a result."""
    keys = ("epochs", "finite", "in_training", "final", "float32_validation", "half_validation", "seconds")
    rows = [
        [x["model"], x["imgsz"], x["precision"], *(x.get(k, x.get("left_out", "")) for k in keys)] for x in r["rows"]
    ]
    title = f"{r['settings']['data']}, batch {r['settings']['batch']}, mAP50-95:"
    body = table(["model", "px", "training", *(k.replace("_", " ") for k in keys)], rows)
    return {"gpu_amp": f"{title}\n\n{body}\n\n{source(r, COMMAND)}"}


def started(file: Path | None, settings: dict) -> dict:
    """Return the result of an earlier call with these settings at this commit, or an empty one."""
    about = environment(os.cpu_count())
    if file is not None and file.exists():
        before = json.loads(file.read_text(encoding="utf-8"))
        same = all(before["environment"][k] == about[k] for k in ("commit", "gpu", "torch"))
        if same and not about["uncommitted"] and before["settings"] == settings:
            return before
    today = datetime.now(timezone.utc).date().isoformat()
    return {"benchmark": "gpu_amp", "date": today, "environment": about, "settings": settings, "rows": []}


def main() -> int:
    """Run what the command line asks for; 1 if a training failed, or did not end as it should."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", help="a data set's YAML")
    parser.add_argument("--model", default=MODEL, help="a model's YAML")
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--only", choices=PRECISIONS, help="train in this process, and print the result")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--minutes", type=float, help="train for so long, whatever the epochs")
    parser.add_argument("--imgsz", type=int, default=320)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--device", default="0")
    parser.add_argument("--deadline", type=float, default=200, help="seconds for all of it")
    parser.add_argument("--dry-run", action="store_true", help="one epoch on a CPU; prints, writes nothing")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/gpu_amp.json")
    args = parser.parse_args()
    if args.dry_run:
        args.epochs, args.imgsz, args.device, args.batch, args.minutes = 1, 64, "cpu", 16, None
    given = {k: getattr(args, k) for k in ("model", "epochs", "imgsz", "batch", "device", "minutes")}
    if args.only:
        with tempfile.TemporaryDirectory() as folder:
            train(args.data, precision=args.only, folder=folder, **given)
        return 0
    begin = time.monotonic()
    settings = {"data": Path(args.data).resolve().parent.name, "batch": args.batch}
    result = started(None if args.dry_run else args.out, settings)
    made = []
    for precision in ("float32",) if args.dry_run else args.precisions:
        named = {"model": args.model, "imgsz": args.imgsz, "precision": precision}
        known = next((x for x in result["rows"] if named.items() <= x.items()), None)
        if known is not None:
            if "final" in known:
                made.append(known)
                continue
            result["rows"].remove(known)
        command = [sys.executable, __file__, args.data, "--only", precision]
        command += [x for k, v in given.items() if v is not None for x in (f"--{k}", str(v))]
        left = args.deadline - (time.monotonic() - begin)
        try:
            env = {**os.environ, "YOLO_OFFLINE": "true"}
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, env=env, timeout=max(1, left), cwd=ROOT
            )
        except subprocess.TimeoutExpired as e:
            row = told(e.stdout) or {**named, "left_out": "out of time"}
        else:
            row = told(done.stdout)
            if row is None or done.returncode:
                print(done.stdout[-2000:] + done.stderr[-4000:])
            row = row or {**named, "left_out": "failed"}
        made.append(row)
        result["rows"].append(row)
        if not args.dry_run:  # after each: whoever runs this may have less time than it takes
            save(result, args.out)
    print(render(result)["gpu_amp"])
    faults = [f"{x['model']} in {x['precision']}: {wrong(x)}" for x in made if wrong(x)]
    if not args.dry_run:  # whose epoch may find nothing
        faults += [f"{x['model']} in {x['precision']}: it learned nothing, mAP 0" for x in made if x.get("final") == 0]
    print("\n".join(faults) or "Every training came to its end, and the final validation is the one in training.")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
