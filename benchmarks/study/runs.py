# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""The runs of the studies, in `results/study.csv`: a line for each epoch of each run.

The columns of a run are the same on all its lines. They are those of `runs.csv` of `vmamba compare`:

    part                    of the study: a name of parts.py, or scratch, scratch-long of before
    data model seed         name of the data set, of the model in its part, seed of the training
    epochs imgsz batch      settings of the training, as Ultralytics names them
    nbs optimizer lr0       those that it took where it was left to choose
    device
    parameters gflops       of the model with this data's classes, GFLOPs at imgsz
    commit uncommitted      of the repository, and 1 if its code had changes that no commit has, else 0
    date                    day on which the run began, in UTC
    python torch            versions
    ultralytics
    cpu cores threads       processor, its cores, threads of the training
    gpu system scan         GPU if there was one, system, scan backend that ran
    seconds memory_mb       of the whole run with every validation, and its peak memory
    report_on checkpoint    split and weights of the figures that are reported
    report/P report/R       these figures
    report/F1 report/mAP50
    report/mAP50-95

The columns of an epoch:

    epoch                   counted from 1
    train_seconds           its training without validation, by the clock and in processor time
    train_cpu_seconds
    mAP50 mAP50-95          on the validation pictures
    val_loss                sum of the box, class and distribution losses on them
    grad_norm               mean norm of the gradient over its steps, of all parameters and of grafts alone
    graft_grad_norm
    clipped                 share of its steps whose gradient was above the norm to which it is cut

A column is empty where a run has nothing to say. Runs of `scratch` and `scratch-long` are older than `vmamba compare`:
they report the last epoch.

A run is written when it is over, all lines at once. A reader never sees half of one.
"""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import NamedTuple

__all__ = ("EPOCH", "FILE", "KEY", "RUN", "Run", "checked", "of", "read", "reported", "write")

FILE = Path(__file__).resolve().parents[1] / "results/study.csv"
KEY = ("part", "data", "model", "seed")  # no two runs of the file have the same
RUN = {
    **{"part": str, "data": str, "model": str, "seed": int},
    **{"epochs": int, "imgsz": int, "batch": int, "nbs": int, "optimizer": str, "lr0": float, "device": str},
    **{"parameters": int, "gflops": float},
    **{"commit": str, "uncommitted": int, "date": str, "python": str, "torch": str, "ultralytics": str},
    **{"cpu": str, "cores": int, "threads": int, "gpu": str, "system": str, "scan": str},
    **{"seconds": float, "memory_mb": float, "report_on": str, "checkpoint": str},
    **{f"report/{name}": float for name in ("P", "R", "F1", "mAP50", "mAP50-95")},
}
EPOCH = {
    **{"epoch": int, "train_seconds": float, "train_cpu_seconds": float},
    **dict.fromkeys(("mAP50", "mAP50-95", "val_loss", "grad_norm", "graft_grad_norm", "clipped"), float),
}


class Run(NamedTuple):
    """A training.

    Args:
        about (dict): The columns of a run; None where there is nothing.
        history (list[dict]): The columns of its epochs, in their order.
    """

    about: dict
    history: list[dict]

    @property
    def key(self) -> tuple:
        """Return what tells it from every other run."""
        return tuple(self.about[column] for column in KEY)


def value(text: str, kind: type) -> object:
    """Return what a cell holds."""
    return kind(text) if text != "" or kind is str else None


def read(file: Path) -> list[Run]:
    """Return the runs of a file; none if there is no file."""
    if not file.exists():
        return []
    found: dict[tuple, Run] = {}
    with file.open(newline="", encoding="utf-8") as lines:
        reader = csv.DictReader(lines)
        if reader.fieldnames != [*RUN, *EPOCH]:
            raise SystemExit(f"{file.name}: its first line must be {','.join([*RUN, *EPOCH])}")
        for line in reader:
            run = Run({column: value(line[column], kind) for column, kind in RUN.items()}, [])
            epoch = {column: value(line[column], kind) for column, kind in EPOCH.items()}
            found.setdefault(run.key, run).history.append(epoch)
    return list(found.values())


def write(file: Path, runs: list[Run]) -> None:
    """Write a file anew, sorted, in one step: whoever is cut short leaves the old one."""
    part = file.with_suffix(f".{os.getpid()}.part")
    with part.open("w", newline="", encoding="utf-8") as out:
        writer = csv.DictWriter(out, [*RUN, *EPOCH], lineterminator="\n", restval="", extrasaction="ignore")
        writer.writeheader()
        for run in sorted(runs, key=lambda run: run.key):
            writer.writerows(run.about | epoch for epoch in run.history)
    part.replace(file)


def of(comparison, part: str, data: str) -> list[Run]:
    """Return the runs of a folder of `vmamba compare` that are done.

    Args:
        comparison (Comparison): The folder.
        part (str): Of the study.
        data (str): Name of the data set.
    """
    found = []
    for run in comparison.runs:
        result = run.result
        if not run.done:
            continue
        known = {
            **run.job["train"],
            **comparison.models[run.model],
            **result["effective"],
            **run.job["about"],
            **{key: result[key] for key in ("scan", "seconds", "memory_mb")},
            **{key: comparison.settings[key] for key in ("report_on", "checkpoint")},
            **{f"report/{key}": figure for key, figure in result["report"].items()},
            **{"part": part, "data": data, "model": run.model, "seed": run.seed},
        }
        found.append(Run({column: known[column] for column in RUN}, run.epochs))
    return found


def checked(runs: list[Run]) -> list[Run]:
    """Return runs whose figures may be quoted.

    Raises:
        SystemExit: If one is of code that no commit has.
    """
    for run in runs:
        about = run.about
        if about["uncommitted"]:
            raise SystemExit(
                f"study.csv: {about['model']}, seed {about['seed']}, {about['data']} is of uncommitted code, so no "
                f"commit has what it trained: delete its lines, commit, `python -m benchmarks.study {about['part']}`."
            )
    return runs


def reported(runs: list[Run], part: str, data: str) -> dict[str, dict[int, float]]:
    """Return mAP50-95 by model and seed."""
    found: dict[str, dict[int, float]] = {}
    for run in sorted(runs, key=lambda run: run.key):
        if (run.about["part"], run.about["data"]) == (part, data):
            found.setdefault(run.about["model"], {})[run.about["seed"]] = run.about["report/mAP50-95"]
    return found
