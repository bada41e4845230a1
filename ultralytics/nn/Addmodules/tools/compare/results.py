# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""The folder of a comparison: its settings, a folder a run, and runs.csv.

settings.json        what was compared; a folder of other settings is never gone on with
models.json          sizes of the models, and what they have in common at the start
start/               a start file for each model and seed
runs/MODEL-seedN/    run.json (what to do), epochs.jsonl, result.json, log.txt, weights/
speed.json           times of a picture
runs.csv             a line a run and epoch
table.md .csv .tex   curves, pr, bars .png .pdf
"""

from __future__ import annotations

import csv
import json
import os
import platform
import subprocess
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ..files import in_one_step
from .plan import safe

__all__ = (
    *(
        "ABOUT",
        "MACHINE",
        "NO_CODE",
        "PROCEDURE",
        "Comparison",
        "Run",
        "environment",
        "read_json",
        "uncommitted",
        "write_json",
    ),
    "write_runs",
)

SETTINGS, MODELS, SPEED, RUNS = "settings.json", "models.json", "speed.json", "runs.csv"
RUN, EPOCHS, RESULT, LOG = "run.json", "epochs.jsonl", "result.json", "log.txt"
ABOUT = (  # columns of a run in runs.csv, before those of its epochs; the figures reported follow as report/...
    *("data", "model", "seed", "epochs", "imgsz", "batch", "nbs", "optimizer", "lr0", "device", "parameters", "gflops"),
    *("commit", "uncommitted", "date", "python", "torch", "ultralytics", "cpu", "cores", "threads", "gpu", "system"),
    *("scan", "seconds", "memory_mb", "status", "reason", "report_on", "checkpoint"),
)

NO_CODE = ("benchmarks/results", "docs")  # benchmarks and their tables write these; one run must not spoil the next

PROCEDURE = 2  # of the trainings: raised where runs of before and after it cannot be compared
MACHINE = ("commit", "uncommitted", "torch", "ultralytics", "cpu", "threads", "gpu", "scan")  # should be equal for all


_told: set[Path] = set()  # files that were cut short


def read_json(file: Path, ours: bool = True) -> Any:
    """Return what a JSON file holds; None if there is none, or a lost disk or power has left no JSON in it.

    Args:
        file (Path): The file.
        ours (bool): It is of a comparison, so that what is no JSON is told, once.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
    except ValueError:
        if ours and file not in _told:
            from ultralytics.utils import LOGGER

            _told.add(file)
            LOGGER.warning(f"vmamba compare: '{file}' was cut short, as by a loss of power; what it held is made again")
        return None


def write_json(file: Path, value: Any) -> None:
    """Write a JSON file in one step."""
    with in_one_step(file) as part:
        part.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class Run:
    """A training of one model with one seed."""

    folder: Path
    model: str
    seed: int

    @property
    def job(self) -> dict:
        """Return what it was told to do; empty before its first start."""
        return read_json(self.folder / RUN) or {}

    @property
    def epochs(self) -> list[dict]:
        """Return the figures of its epochs; an epoch that was trained again counts as it came out last."""
        file, found = self.folder / EPOCHS, {}
        for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else ():
            try:
                row = json.loads(line)
            except ValueError:  # the end of a line that was being written when its process died
                continue
            found[row["epoch"]] = row
        return [found[n] for n in sorted(found)]

    @property
    def result(self) -> dict:
        """Return what came out; empty while it is not over."""
        return read_json(self.folder / RESULT) or {}

    @property
    def done(self) -> bool:
        """Return whether it has been trained and evaluated."""
        return self.result.get("status") == "done"

    @property
    def over(self) -> bool:
        """Return whether another try would be of no use: it is done, or it failed in a way that will come again."""
        return self.done or bool(self.result.get("final"))


@dataclass(frozen=True)
class Comparison:
    """The folder of a comparison, as it lies on the disk."""

    folder: Path
    settings: dict = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> Comparison:
        """Return the comparison of a folder."""
        return cls(folder, read_json(folder / SETTINGS) or {})

    @property
    def models(self) -> dict[str, dict]:
        """Return parameters, GFLOPs and the like by model."""
        return read_json(self.folder / MODELS) or {}

    @property
    def names(self) -> list[str]:
        """Return the models in their order."""
        return list(self.settings["models"])

    @property
    def speed(self) -> dict:
        """Return times by model and how they were taken; empty while they have not been."""
        return read_json(self.folder / SPEED) or {}

    @property
    def runs(self) -> list[Run]:
        """Return all runs, seed by seed, so that the first models to be compared are ready early."""
        seeds, names = self.settings["seeds"], self.names
        return [Run(self.folder / "runs" / f"{safe(n)}-seed{s}", n, s) for s in seeds for n in names]

    def start_file(self, model: str, seed: int) -> Path:
        """Return the start file of a run."""
        return self.folder / "start" / f"{safe(model)}-seed{seed}.pt"

    def reported(self, quantity: str) -> dict[str, dict[int, float]]:
        """Return a figure of the finished runs, by model and seed; `class:NAME` is mAP50-95 of a class."""
        found: dict[str, dict[int, float]] = {name: {} for name in self.names}
        part, key = ("classes", quantity[6:]) if quantity.startswith("class:") else ("report", quantity)
        for run in self.runs:
            result = run.result
            if result.get("status") == "done" and key in result.get(part, {}):
                found[run.model][run.seed] = result[part][key]
        return found


def first_difference(old: dict, new: dict, where: str = "") -> str:
    """Return the first setting in which two differ, as text; empty if none does."""
    for key in [*old, *(k for k in new if k not in old)]:
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            if found := first_difference(a, b, f"{where}{key}: "):
                return found
            if key == "models" and list(a) != list(b):
                return f"models in the order {', '.join(a)}, not {', '.join(b)}"
        elif a != b:
            return f"{where}{key} is {a}, not {b}" if key in old else f"{where}{key} is not set, not {b}"
    return ""


# What ran -------------------------------------------------------------------------------------------------------------


def environment(device: str, threads: int) -> dict:
    """Return the columns of runs.csv about hardware, versions and commit.

    Args:
        device (str): As Ultralytics takes it.
        threads (int): Of a training.
    """
    import torch

    import ultralytics

    name = f"cuda:{device}" if device.isdecimal() else device
    root = Path(ultralytics.__file__).resolve().parents[1]
    ours = (root / "patches/series").exists()  # else the git above an installed package is somebody else's
    return {
        "commit": git(root, "rev-parse", "HEAD") if ours else "",
        "uncommitted": int(uncommitted(root)) if ours else "",
        "date": datetime.now(timezone.utc).date().isoformat(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "ultralytics": ultralytics.__version__,
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": threads,
        "gpu": torch.cuda.get_device_name(name) if name.startswith("cuda") else "",
        "system": platform.platform(),
    }


def uncommitted(root: Path) -> bool:
    """Return whether a checkout's code differs from its commit. Results and docs are no code."""
    no_code = [f":!{path}" for path in NO_CODE]
    return bool(git(root, "status", "--porcelain", "--untracked-files=no", "--", ".", *no_code))


def git(root: Path, *args: str) -> str:
    """Return what git prints in a repository, or nothing where there is no git."""
    try:
        done = subprocess.run(["git", *args], cwd=root, capture_output=True, encoding="utf-8", check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()


def cpu_name() -> str:
    """Return the processor's name where the system tells it."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines() if file.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


# runs.csv -------------------------------------------------------------------------------------------------------------


def rows(comparison: Comparison) -> list[dict]:
    """Return the lines of runs.csv: of each run that was begun its epochs, or one line if it has none."""
    settings, sizes = comparison.settings, comparison.models
    found = []
    for run in comparison.runs:
        job, result, epochs = run.job, run.result, run.epochs
        if not job:
            continue
        size = sizes.get(run.model, {})
        about = {
            "data": settings["data"],
            "model": run.model,
            "seed": run.seed,
            **{key: job["train"].get(key, "") for key in ("epochs", "imgsz", "batch", "device")},
            **{key: size.get(key, "") for key in ("parameters", "gflops")},
            **result.get("effective", {}),
            **job.get("about", {}),
            **{key: result.get(key, "") for key in ("scan", "seconds", "memory_mb", "reason")},
            "status": result.get("status", "unfinished"),
            "report_on": settings["report_on"],
            "checkpoint": settings["checkpoint"],
            **{f"report/{key}": value for key, value in result.get("report", {}).items()},
        }
        found += [about | epoch for epoch in epochs or [{}]]
    return found


def write_runs(comparison: Comparison) -> None:
    """Write runs.csv anew, in one step."""
    lines = rows(comparison)
    others = dict.fromkeys(key for line in lines for key in line if key not in ABOUT)
    columns = [*ABOUT, *sorted(others, key=lambda key: not key.startswith("report/"))]
    with in_one_step(comparison.folder / RUNS) as part, part.open("w", newline="", encoding="utf-8") as out:
        writer = csv.DictWriter(out, columns, restval="", extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
