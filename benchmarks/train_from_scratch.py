# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Train models from scratch on one data set with equal settings; keep every epoch's figures in results/study.csv.

A run that is in the file is not repeated, so an interrupted study goes on where it stopped. A run cut short leaves
nothing there. Several processes may share a study: each takes the runs that nobody is at. Give each its own copy of
the data, because Ultralytics rewrites the label caches in it.

Usage:
    python benchmarks/train_from_scratch.py --data path/to/data.yaml --name bccd --models yolov8n.yaml --seeds 0 1 2
    python benchmarks/train_from_scratch.py --data path/to/data.yaml --name bccd --models no-scans    # of variants.py
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from contextlib import ExitStack
from datetime import datetime, timezone
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import variants  # noqa: E402
from benchmarks.environment import environment, uncommitted  # noqa: E402
from benchmarks.rendering import table  # noqa: E402
from benchmarks.study import FILE, Run, by_model, read, write  # noqa: E402
from patches import PatchesError, tree  # noqa: E402

MODELS = ["yolov8n.yaml", "VMamba-yolov8n.yaml"]
SETTINGS = ("epochs", "imgsz", "batch", "nbs", "optimizer", "device")


def train(model_name: str, args: argparse.Namespace, seed: int) -> tuple[dict, list[dict]]:
    """Train one model and return its figures, and those of every epoch."""
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
                "mAP50": round(float(trainer.metrics["metrics/mAP50(B)"]), 5),
                "mAP50-95": round(float(trainer.metrics["metrics/mAP50-95(B)"]), 5),
                "val_loss": round(float(sum(v for k, v in trainer.metrics.items() if k.startswith("val/"))), 5),
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
    found = {
        "parameters": info[1],
        "gflops": round(info[3], 3),
        "seconds": round(time.perf_counter() - begin, 1),
        "best_mAP50": round(float(results.box.map50), 6),
        "best_mAP50-95": round(float(results.box.map), 6),
    }
    return found, epochs


def about(args: argparse.Namespace, model: str, seed: int) -> dict:
    """Return the columns that are known before a training."""
    e = environment(args.threads)
    scan, why = next(iter(e.pop("scan_backends").items()))  # the first of those that run here is taken
    settings = {key: getattr(args, key) for key in SETTINGS}
    own = {"data": args.name, "model": model, "seed": seed, "scan": f"{scan}: {why}"}
    return own | settings | {**e, "gpu": e["gpu"] or "", "uncommitted": int(e["uncommitted"]), "date": today()}


def today() -> str:
    """Return the date."""
    return datetime.now(timezone.utc).date().isoformat()


def run_once(args: argparse.Namespace, model: str, seed: int) -> None:
    """Train one model unless its run is in the file or another process is at it."""
    name = Path(model).stem
    key = (args.name, name, args.imgsz, seed)  # as study.KEY
    with ExitStack() as held:
        try:  # the system frees it when a process dies
            held.enter_context(tree.lock(0, "-".join(["study", *map(str, key)]) + ".lock"))
        except PatchesError:
            print(f"left to another process: {name}, seed {seed}", flush=True)
            return
        if any(old.key == key for old in read(args.csv)):
            print(f"already there: {name}, seed {seed}", flush=True)
            return
        known = about(args, name, seed)
        file = variants.write(name, args.runs / "variants") if name in variants.VARIANTS else model
        found, history = train(str(file), args, seed)
        with tree.lock(name="study.lock"):
            write(args.csv, [*read(args.csv), Run(known | found, history)])
        print(f"written to {args.csv.name}: {name}, seed {seed}", flush=True)


# Tables


def mean(values: list[float]) -> float:
    """Return the mean."""
    return sum(values) / len(values)


def row(model: str, runs: list[Run]) -> list:
    """Return a model's row, with mAP50-95 as a number in the place of its text."""
    if any(run.about[key] != runs[0].about[key] for run in runs for key in SETTINGS):
        raise SystemExit(f"study.csv: runs of {model} with different settings cannot share the row of a table")
    best = [run.about["best_mAP50-95"] for run in runs]
    return [
        model,
        f"{runs[0].about['parameters'] / 1e6:.2f} M",
        f"{runs[0].about['gflops']:.2f}",
        ", ".join(str(run.about["seed"]) for run in runs),
        f"{mean([run.about['best_mAP50'] for run in runs]):.3f}",
        mean(best),
        " / ".join(f"{x:.3f}" for x in best),
        f"{mean([run.history[-1]['val_loss'] for run in runs]):.2f}",
    ]


def data_set(name: str, models: dict[str, list[Run]]) -> str:
    """Return the tables of a data set: its models, the best first, and the variants."""
    first = next(iter(models.values()))[0].about
    head = ["model", "parameters", f"GFLOPs at {first['imgsz']}", "seeds", "mAP50", "mAP50-95", "by seed"]
    parts = [
        f"{name}, {first['epochs']} epochs at {first['imgsz']} px, batch {first['batch']}, "
        f"an optimizer step every {first['nbs']} images:"
    ]
    for title, chosen in (("", False), ("Variants:", True)):
        rows = [row(model, runs) for model, runs in models.items() if (model in variants.VARIANTS) == chosen]
        rows = [[*r[:5], f"**{r[5]:.3f}**", *r[6:]] for r in sorted(rows, key=lambda r: -r[5])]
        parts += [*[title] * bool(title), table([*head, "validation loss"], rows)] if rows else []
    parts.append(f"{first['cpu']}, torch {first['torch']}; date, commit and every epoch in study.csv.")
    return "\n\n".join(parts)


def choices(found: dict[str, dict[str, list[Run]]]) -> str:
    """Return the variants, each beside the same seeds of the model that it varies."""
    sets = {name: models for name, models in found.items() if any(v in models for v in variants.VARIANTS)}
    rows = []
    for name, variant in variants.VARIANTS.items():
        cells, size = [], None
        for models in sets.values():
            base = {run.about["seed"]: run.about["best_mAP50-95"] for run in models.get(variant.base, [])}
            mine = {run.about["seed"]: run.about for run in models.get(name, []) if run.about["seed"] in base}
            if not mine:
                cells.append("not run")
                continue
            size = next(iter(mine.values()))
            scores = [run["best_mAP50-95"] for run in mine.values()]
            gain = 100 * mean([run["best_mAP50-95"] - base[seed] for seed, run in mine.items()])
            cells.append(f"{mean(scores):.3f}, {gain:+.1f} points (seeds {', '.join(map(str, mine))})")
        if size:
            sizes = f"{size['parameters'] / 1e6:.2f} M", f"{size['gflops']:.2f}"
            rows.append([f"`{name}`", variant.what, f"`{variant.base}`", *sizes, *cells])
    return table(["variant", "what is different", "from", "parameters", "GFLOPs at 320", *sets], rows)


def render(runs: list[Run]) -> dict[str, str]:
    """Return the tables of the study."""
    found = by_model(runs)
    study = "\n\n".join(data_set(name, models) for name, models in found.items())
    return {"study": study, "choices": choices(found)}


def main() -> None:
    """Run every model with every seed that is not in the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="data set YAML")
    parser.add_argument("--name", required=True, help="name of the data set in the result")
    parser.add_argument("--models", nargs="+", default=MODELS, help="model YAMLs, or names of variants.py")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--imgsz", type=int, default=320)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--nbs", type=int, default=8, help="images an optimizer step, gathered over batches")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--optimizer", default="auto")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--runs", type=Path, default=ROOT / "runs/benchmarks")
    parser.add_argument("--csv", type=Path, default=FILE, help="another file than the study's, for a try")
    args = parser.parse_args()
    if args.csv == FILE and uncommitted():
        raise SystemExit("The study takes runs of committed code alone: commit first, or give --csv for a try.")
    os.environ["OMP_NUM_THREADS"] = str(args.threads)

    import torch

    torch.set_num_threads(args.threads)
    for seed in args.seeds:
        for model in args.models:
            run_once(args, model, seed)


if __name__ == "__main__":
    main()
