# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Train what the studies compare; keep every epoch's figures in results/study.csv.

A comparison is one part of the study on one data set with one seed. It is skipped if all its runs are in the file. One
that was stopped goes on where it stopped. `vmamba compare` trains it, in runs/study.

Usage:
    python -m benchmarks.study                                              # what there is, and what is done
    python -m benchmarks.study report --data SETS --weights yolov5n-coco.pt # a part, on SETS/*/data.yaml
    python -m benchmarks.study long musgd --seeds 0 --data SETS --weights yolov5n-coco.pt
"""

from __future__ import annotations

import argparse
import sys
from itertools import product
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.environment import uncommitted  # noqa: E402
from benchmarks.study import runs  # noqa: E402
from benchmarks.study.parts import COCO, PARTS, SCRATCH, SETTINGS, Part  # noqa: E402


def main() -> None:
    """Run what is asked for and not there, or list what there is."""
    args = arguments()
    if not args.parts:
        listing(args.csv)
        return
    for name in args.parts:
        part = PARTS[name]
        for seed, data in product(args.seeds or part.seeds, part.sets):
            if args.csv == runs.FILE and uncommitted():
                raise SystemExit("The study takes runs of committed code alone: commit first, or give --csv for a try.")
            compare_once(args, name, data, seed)


def compare_once(args: argparse.Namespace, name: str, data: str, seed: int) -> None:
    """Run a comparison of one seed on one set, unless its runs are in the file; add those that are done."""
    from benchmarks.study.starts import write
    from ultralytics.nn.Addmodules.tools.compare import Plan, compare
    from ultralytics.nn.Addmodules.tools.compare.results import SETTINGS as PLANNED
    from ultralytics.nn.Addmodules.tools.compare.results import Comparison

    part, there = PARTS[name], {run.key for run in runs.read(args.csv)}
    models = {model: about for model, about in part.models.items() if (name, data, model, seed) not in there}
    if not models:
        print(f"already there: {name}, {data}, seed {seed}", flush=True)
        return
    file = (args.data / data / "data.yaml").resolve()
    folder = f"{name}-{data}-seed{seed}"
    begun = Comparison.read(args.runs / folder).settings
    if begun:  # to go on there
        if unknown := models.keys() - begun["models"].keys():
            raise SystemExit(f"{args.runs / folder} has no {', '.join(sorted(unknown))}: move it away, or delete it.")
        models = {model: part.models[model] for model in begun["models"]}
    elif not all(about.start in (COCO, SCRATCH) for about in models.values()):
        models = part.models  # what is common to models of several files is made alike at the start
    plan = Plan(
        models=write(models, file, args.weights, seed, args.runs / "starts" / folder),
        data=str(file),
        seeds=(seed,),
        device=args.device,
        jobs=args.jobs,
        speed=False,
        project=str(args.runs.resolve()),
        name=folder,
        settings={**SETTINGS, "epochs": part.epochs, "optimizer": part.optimizer},
    )
    try:
        compare(plan, lambda line: print(line, flush=True))
    finally:
        if (Path(plan.project) / folder / PLANNED).exists():  # else it was refused before it began
            done = runs.of(Comparison.read(Path(plan.project) / folder), name, data)
            new = [run for run in done if run.key not in {r.key for r in runs.read(args.csv)}]
            runs.write(args.csv, [*runs.read(args.csv), *new])
            print(f"{len(new)} runs added to {args.csv.name}: {name}, {data}, seed {seed}", flush=True)


def listing(file: Path) -> None:
    """Print the parts and how many of their runs are in the file."""
    found = runs.read(file)
    for name, part in PARTS.items():
        print(f"{name:16} {sum(run.about['part'] == name for run in found):3} of {count(part):3} runs. {part.what}")
    print("More in the file, which was trained before these:")
    for name in sorted({run.about["part"] for run in found} - PARTS.keys()):
        print(f"{name:16} {sum(run.about['part'] == name for run in found):3} runs")


def count(part: Part) -> int:
    """Return how many runs a part has."""
    return len(part.models) * len(part.seeds) * len(part.sets)


def arguments() -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], metavar="PART")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of the sets bccd and cards")
    parser.add_argument("--weights", type=Path, default=Path("yolov5n-coco.pt"), help="state dict of YOLOv5n")
    parser.add_argument("--seeds", type=int, nargs="+", help="these alone")
    parser.add_argument("--jobs", type=int, default=1, help="trainings side by side, one thread each")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs/study")
    parser.add_argument("--csv", type=Path, default=runs.FILE, help="another file than the study's, for a try")
    return parser.parse_args()


if __name__ == "__main__":
    main()
