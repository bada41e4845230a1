# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Draw results/study.csv: mAP50-95 and validation loss by epoch, mean over seeds, with their range.

Usage:
    python -m benchmarks.study.figure    # writes docs/images/study.png
"""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib.figure import Figure

from benchmarks.study.runs import FILE, checked, read
from benchmarks.study.tables import of
from ultralytics.nn.Addmodules.tools.compare.figures import spread, titled

ROOT = Path(__file__).resolve().parents[2]
SHOWN = ("yolov8n", "yolo11n", "VMamba-yolov8n", "VMamba-yolon")
SETS = ("bccd", "cards")


def main() -> None:
    """Draw two panels for each data set."""
    runs = checked(read(FILE))
    figure = Figure(figsize=(5.2 * len(SETS), 6.8), layout="constrained", dpi=150)
    for row, key in zip(figure.subplots(2, len(SETS), squeeze=False), ("mAP50-95", "val_loss")):
        for axes, data in zip(row, SETS):
            found, ends = of(runs, "scratch", data), []
            for model in SHOWN:
                lines = [[epoch[key] for epoch in run.history] for run in found[model]]
                spread(axes, range(1, len(lines[0]) + 1), lines, titled(model, lines))
                ends += [line[-1] for line in lines]
            axes.set(xlim=(1, len(lines[0])), xlabel="epoch")
            axes.grid(alpha=0.3)
            if key == "mAP50-95":
                axes.set(title=data, ylabel="mAP50-95", ylim=(0, None))
                axes.legend(loc="upper left", fontsize=8)
            else:  # the first epochs fall from above 10
                axes.set(ylabel="validation loss", ylim=(0.9 * min(ends), 1.6 * max(ends)))
    out = ROOT / "docs/images/study.png"
    figure.savefig(out)
    print(f"written: {out.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
