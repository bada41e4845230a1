# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""The runs of the study, in `results/study.csv`: a line for each epoch of each run.

The columns of a run are the same on all its lines:

    data                    name of the data set; runs with other settings have another, such as bccd-long
    model                   model YAML without its ending, or a name of variants.py
    seed                    of the training
    epochs imgsz batch      settings of the training, as Ultralytics names them
    nbs optimizer device
    parameters gflops       of the model with this data's classes, GFLOPs at imgsz
    commit uncommitted      of the repository, and 1 if its code had changes that no commit has, else 0
    date                    day on which the run began, in UTC
    python torch            versions
    ultralytics
    cpu cores threads       processor, its cores, threads of the training
    gpu system scan         GPU if there was one, system, scan backend that ran and what it says of itself
    seconds                 of the whole run, with every validation
    best_mAP50              of the best checkpoint, validated again after the training: near the best epoch's,
    best_mAP50-95           not always the same

The columns of an epoch:

    epoch                   counted from 1
    train_seconds           its training without validation, by the clock and in processor time
    train_cpu_seconds
    mAP50 mAP50-95          on the validation pictures
    val_loss                sum of the box, class and distribution losses on them

A run is written when it is over, all lines at once. A reader never sees half of one.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import NamedTuple

__all__ = ("EPOCH", "FILE", "KEY", "RUN", "Run", "by_model", "read", "write")

FILE = Path(__file__).resolve().parent / "results/study.csv"
KEY = ("data", "model", "imgsz", "seed")  # no two runs of the file have the same
RUN = {
    "data": str,
    "model": str,
    "seed": int,
    "epochs": int,
    "imgsz": int,
    "batch": int,
    "nbs": int,
    "optimizer": str,
    "device": str,
    "parameters": int,
    "gflops": float,
    "commit": str,
    "uncommitted": int,
    "date": str,
    "python": str,
    "torch": str,
    "ultralytics": str,
    "cpu": str,
    "cores": int,
    "threads": int,
    "gpu": str,
    "system": str,
    "scan": str,
    "seconds": float,
    "best_mAP50": float,
    "best_mAP50-95": float,
}
EPOCH = {
    "epoch": int,
    "train_seconds": float,
    "train_cpu_seconds": float,
    "mAP50": float,
    "mAP50-95": float,
    "val_loss": float,
}


class Run(NamedTuple):
    """A training.

    Args:
        about (dict): The columns of a run.
        history (list[dict]): The columns of its epochs, in their order.
    """

    about: dict
    history: list[dict]

    @property
    def key(self) -> tuple:
        """Return what tells it from every other run."""
        return tuple(self.about[column] for column in KEY)


def read(file: Path) -> list[Run]:
    """Return the runs of a file; none if there is no file."""
    if not file.exists():
        return []
    runs: dict[tuple, Run] = {}
    with file.open(newline="", encoding="utf-8") as lines:
        reader = csv.DictReader(lines)
        if reader.fieldnames != [*RUN, *EPOCH]:
            raise SystemExit(f"{file.name}: its first line must be {','.join([*RUN, *EPOCH])}")
        for line in reader:
            run = Run({column: kind(line[column]) for column, kind in RUN.items()}, [])
            epoch = {column: kind(line[column]) for column, kind in EPOCH.items()}
            runs.setdefault(run.key, run).history.append(epoch)
    return list(runs.values())


def write(file: Path, runs: list[Run]) -> None:
    """Write a file anew, sorted, in one step: whoever is cut short leaves the old one."""
    part = file.with_suffix(".part")
    with part.open("w", newline="", encoding="utf-8") as out:
        writer = csv.DictWriter(out, [*RUN, *EPOCH], lineterminator="\n")
        writer.writeheader()
        for run in sorted(runs, key=lambda run: run.key):
            writer.writerows(run.about | epoch for epoch in run.history)
    part.replace(file)


def by_model(runs: list[Run]) -> dict[str, dict[str, list[Run]]]:
    """Return runs by data set and model, in the order of their seeds.

    Raises:
        SystemExit: If one is of code that no commit has: its figures may not be quoted.
    """
    found: dict[str, dict[str, list[Run]]] = {}
    for run in sorted(runs, key=lambda run: run.key):
        data, model, _, seed = run.key
        if run.about["uncommitted"]:
            raise SystemExit(
                f"study.csv: {model}, seed {seed}, {data} is of uncommitted code, so no commit has what it trained: "
                "delete its lines, commit, and run it again with benchmarks/train_from_scratch.py."
            )
        found.setdefault(data, {}).setdefault(model, []).append(run)
    return found
