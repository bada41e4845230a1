# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Comparisons on figures made by hand, and the command line of a tiny one, for the tests of `vmamba compare`."""

from __future__ import annotations

import json
from pathlib import Path

from ultralytics.nn.Addmodules.tools.compare.results import Comparison, write_json

TINY = {"epochs": "1", "seeds": "[0]", "imgsz": "64", "batch": "4", "device": "cpu", "optimizer": "AdamW"}
FIGURES = {"stock": [0.50, 0.52, 0.54], "graft_a": [0.52, 0.56, 0.57], "graft-b": [0.51, 0.51, 0.56]}


def made(folder: Path, figures: dict[str, list[float]] = FIGURES, **settings) -> Comparison:
    """Write the folder of a comparison that is over, with two epochs a run; mAP50-95 of the second is `figures`."""
    seeds = list(range(len(next(iter(figures.values())))))
    models = {name: {"file": f"{name}.yaml", "trained": False, "digest": name} for name in figures}
    known = {
        **{"data": "data.yaml", "task": "detect", "classes": ["a", "b"], "images": {"train": 9, "val": 4}},
        **{"models": models, "seeds": seeds, "device": "cpu", "report_on": "val", "checkpoint": "last"},
        "train": {"epochs": 2, "imgsz": 64, "batch": 4, "nbs": 64},
    }
    folder.mkdir(parents=True)
    write_json(folder / "settings.json", known | settings)
    sizes = {"parameters": 3_000_000, "gflops": 8.1, "trained_on": "", "common": 20, "equal": 18}
    write_json(folder / "models.json", dict.fromkeys(figures, sizes))
    times = {name: {"ms": 20.0 + i, "fps": 1000 / (20 + i)} for i, name in enumerate(figures)}
    about = {"device": "cpu", "threads": 2, "imgsz": 64, "rounds": 50}
    write_json(folder / "speed.json", {"models": times, "about": about})
    found = Comparison.read(folder)
    for run in found.runs:
        score = figures[run.model][run.seed]
        run.folder.mkdir(parents=True)
        machine = {"commit": "c0ffee", "uncommitted": 0, "torch": "2.9", "ultralytics": "8.4", "cpu": "a CPU"}
        job = {"train": {**found.settings["train"], "device": "cpu"}, "about": {**machine, "threads": 2}}
        write_json(run.folder / "run.json", {**job, "mixed": []})
        with (run.folder / "epochs.jsonl").open("w", encoding="utf-8") as out:
            for epoch, value in ((1, score / 2), (2, score)):
                row = {
                    "epoch": epoch,
                    "train_seconds": 1.5,
                    "mAP50-95": value,
                    "val_loss": 4 - epoch,
                    "last": epoch > 1,
                }
                out.write(json.dumps(row) + "\n")
        report = {"P": score, "R": score, "F1": score, "mAP50": score + 0.2, "mAP50-95": score}
        effective = {"imgsz": 64, "batch": 4, "nbs": 64, "optimizer": "AdamW", "lr0": 0.001, "epochs": 2, "amp": False}
        rest = {
            "classes": {"a": score, "b": score + 0.1},
            "pr": [1 - n / 100 for n in range(101)],
            "effective": effective,
        }
        done = {"status": "done", "reason": "", "report": report, "seconds": 3.0, "memory_mb": 900.0, "scan": "cpu"}
        write_json(run.folder / "result.json", {**done, **rest})
    return found


def fail(comparison: Comparison, model: str, seed: int, reason: str = "out of memory: of 8 GB") -> None:
    """Make a run of a comparison one that failed."""
    run = next(r for r in comparison.runs if (r.model, r.seed) == (model, seed))
    write_json(run.folder / "result.json", {"status": "failed", "reason": reason, "final": False, "seconds": 1.0})


def command(where: Path, project: Path, **changes: str) -> list[str]:
    """Return the arguments of a comparison on tiny data; a change of None leaves a setting out."""
    given = {"data": where, "models": "yolov8n.yaml,VMamba-yolon.yaml", **TINY, "project": project, **changes}
    return ["compare", *(f"{key}={value}" for key, value in given.items() if value is not None)]
