# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Train models from scratch on one data set with equal settings; keep every epoch's figures.

Usage:
    python benchmarks/train_from_scratch.py --data path/to/data.yaml --name bccd --epochs 20 --imgsz 320 --batch 4
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
    """Run every model with every seed, writing after each, so that an interrupted run keeps what it has."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="data set YAML")
    parser.add_argument("--name", required=True, help="name of the data set in the result")
    parser.add_argument("--models", nargs="+", default=["yolov8n.yaml", "VMamba-yolov8n.yaml"])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--imgsz", type=int, default=320)
    parser.add_argument("--batch", type=int, default=4)
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

    out = ROOT / f"benchmarks/results/train-{args.name}-{args.imgsz}.json"
    settings = {k: getattr(args, k) for k in ("epochs", "imgsz", "batch", "optimizer", "device")}
    result = {
        "benchmark": "train_from_scratch",
        "data": args.name,
        "date": datetime.now(timezone.utc).date().isoformat(),
        "environment": environment(args.threads),
        "settings": settings,
        "runs": [],
    }
    for seed in args.seeds:
        for model in args.models:
            result["runs"].append(train(model, args, seed))
            part = out.with_suffix(".part")
            part.write_text(json.dumps(result, indent=1) + "\n")
            part.replace(out)
    print(f"written: {out.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
