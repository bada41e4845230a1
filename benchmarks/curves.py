# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Draw benchmarks/results/study.csv: mAP50-95 and validation loss by epoch, mean over seeds, with their range.

Usage:
    python benchmarks/curves.py    # writes docs/images/study.png
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.study import FILE, by_model, read  # noqa: E402

SHOWN = ("yolov8n", "yolo11n", "VMamba-yolov8n", "VMamba-yolon")


def main() -> None:
    """Draw one panel for each data set."""
    sets = {
        name: {m: runs for m, runs in models.items() if m in SHOWN}
        for name, models in by_model(read(FILE)).items()
        if all(m in models for m in SHOWN)
    }
    figure = Figure(figsize=(5.2 * len(sets), 6.8), layout="constrained", dpi=150)
    for row, key in zip(figure.subplots(2, len(sets), squeeze=False), ("mAP50-95", "val_loss")):
        for axes, (name, models) in zip(row, sets.items()):
            for model in sorted(models, key=SHOWN.index):
                curves = [[e[key] for e in run.history] for run in models[model]]
                epochs = range(1, len(curves[0]) + 1)
                points = list(zip(*curves))
                color = f"C{SHOWN.index(model)}"
                label = f"{model} ({len(curves)} seed{'s' if len(curves) > 1 else ''})"
                axes.plot(epochs, [sum(p) / len(p) for p in points], color=color, label=label)
                axes.fill_between(epochs, list(map(min, points)), list(map(max, points)), color=color, alpha=0.15, lw=0)
            axes.set(xlim=(1, len(curves[0])), xlabel="epoch")
            axes.grid(alpha=0.3)
            if key == "mAP50-95":
                axes.set(title=name, ylabel="mAP50-95", ylim=(0, None))
                axes.legend(loc="upper left", fontsize=8)
            else:  # the first epochs fall from above 10
                ends = [run.history[-1][key] for runs in models.values() for run in runs]
                axes.set(ylabel="validation loss", ylim=(0.9 * min(ends), 1.6 * max(ends)))
    out = ROOT / "docs/images/study.png"
    figure.savefig(out)
    print(f"written: {out.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
