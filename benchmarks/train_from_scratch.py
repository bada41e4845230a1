# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Train models from scratch on one data set with equal settings; keep every epoch's figures, one file a run.

A run whose file exists is not repeated, so an interrupted study goes on where it stopped, and several processes may
share one: each takes the runs that nobody has begun. Give each its own copy of the data, because Ultralytics rewrites
the label caches in it.

Usage:
    python benchmarks/train_from_scratch.py --data path/to/data.yaml --name bccd --models yolov8n.yaml --seeds 0 1 2
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from datetime import datetime, timezone
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))


def train(model_name: str, args: argparse.Namespace, seed: int) -> dict:
    """Train one model and return its figures, epoch by epoch."""
    from ultralytics import YOLO

    model, epochs = YOLO(model_name), []
    clock: dict[str, float] = {}

    def start(trainer) -> None:
        clock["wall"], clock["cpu"] = time.perf_counter(), time.process_time()

    def trained(trainer) -> None:
        clock["train_wall"], clock["train_cpu"] = (
            time.perf_counter() - clock["wall"],
            time.process_time() - clock["cpu"],
        )

    def validated(trainer) -> None:
        if len(epochs) == trainer.epochs:
            return  # the validation of the best checkpoint after training
        epochs.append(
            {
                "epoch": trainer.epoch + 1,
                "train_seconds": round(clock["train_wall"], 2),
                "train_cpu_seconds": round(clock["train_cpu"], 2),
                "mAP50": trainer.metrics["metrics/mAP50(B)"],
                "mAP50-95": trainer.metrics["metrics/mAP50-95(B)"],
                "val_loss": float(sum(v for k, v in trainer.metrics.items() if k.startswith("val/"))),
            }
        )
        print(model_name, epochs[-1], flush=True)

    model.add_callback("on_train_epoch_start", start)
    model.add_callback("on_train_epoch_end", trained)
    model.add_callback("on_fit_epoch_end", validated)
    begin = time.perf_counter()
    results = model.train(
        data=args.data,
        epochs=args.epochs,
        imgsz=args.imgsz,
        batch=args.batch,
        nbs=args.nbs,
        seed=seed,
        device=args.device,
        optimizer=args.optimizer,
        pretrained=False,
        plots=False,
        workers=0 if args.device == "cpu" else 8,
        project=str(args.runs),
        name=f"{args.name}-{Path(model_name).stem}-{seed}",
        exist_ok=True,
        verbose=False,
    )
    info = model.model.info(verbose=True, imgsz=args.imgsz)
    return {
        "model": model_name,
        "seed": seed,
        "parameters": info[1],
        "gflops": round(info[3], 3),
        "seconds": round(time.perf_counter() - begin, 1),
        "best": {"mAP50": results.box.map50, "mAP50-95": results.box.map},
        "epochs": epochs,
    }


def main() -> None:
    """Run every model with every seed that has no file yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="data set YAML")
    parser.add_argument("--name", required=True, help="name of the data set in the result")
    parser.add_argument("--models", nargs="+", default=["yolov8n.yaml", "VMamba-yolov8n.yaml"])
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--imgsz", type=int, default=320)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--nbs", type=int, default=8, help="images an optimizer step, gathered over batches")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--optimizer", default="auto")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--runs", type=Path, default=ROOT / "runs/benchmarks")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(args.threads)

    import torch

    torch.set_num_threads(args.threads)
    from benchmarks.environment import environment

    folder = ROOT / "benchmarks/results/study"
    folder.mkdir(parents=True, exist_ok=True)
    settings = {k: getattr(args, k) for k in ("epochs", "imgsz", "batch", "nbs", "optimizer", "device")}
    for seed in args.seeds:
        for model in args.models:
            out = folder / f"{args.name}-{args.imgsz}-{Path(model).stem}-{seed}.json"
            begun = out.with_suffix(".begun")
            try:
                begun.touch(exist_ok=out.exists())
            except FileExistsError:
                print(f"left to another process, or delete {begun.name}: {model}, seed {seed}")
                continue
            if not out.exists():
                result = {
                    "benchmark": "train_from_scratch",
                    "data": args.name,
                    "date": datetime.now(timezone.utc).date().isoformat(),
                    "environment": environment(args.threads),
                    "settings": settings,
                    **train(model, args, seed),
                }
                part = out.with_suffix(".part")
                part.write_text(json.dumps(result, indent=1) + "\n")
                part.replace(out)
                print(f"written: {out.relative_to(ROOT)}")
            begun.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
