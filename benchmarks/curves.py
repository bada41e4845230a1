# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Draw the curves of benchmarks/results/study: mAP50-95 by epoch, mean over seeds, with the range of the seeds.

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

from benchmarks.tables import study_runs  # noqa: E402

SHOWN = ("yolov8n", "yolo11n", "VMamba-yolov8n", "VMamba-yolon")


def main() -> None:
    """Draw one panel for each data set."""
    sets = {
        name: {m: runs for m, runs in models.items() if m in SHOWN}
        for name, models in study_runs().items()
        if any(m in SHOWN for m in models)
    }
    figure = Figure(figsize=(5.2 * len(sets), 3.8), layout="constrained", dpi=150)
    for axes, (name, models) in zip(figure.subplots(1, len(sets), squeeze=False)[0], sets.items()):
        for model in sorted(models, key=SHOWN.index):
            curves = [[e["mAP50-95"] for e in run["epochs"]] for run in models[model]]
            epochs = range(1, len(curves[0]) + 1)
            points = list(zip(*curves))
            color = f"C{SHOWN.index(model)}"
            label = f"{model} ({len(curves)} seed{'s' if len(curves) > 1 else ''})"
            axes.plot(epochs, [sum(p) / len(p) for p in points], color=color, label=label)
            axes.fill_between(epochs, list(map(min, points)), list(map(max, points)), color=color, alpha=0.15, lw=0)
        axes.set(title=name, xlabel="epoch", ylabel="mAP50-95", xlim=(1, len(curves[0])), ylim=(0, None))
        axes.grid(alpha=0.3)
        axes.legend(loc="upper left", fontsize=8)
    out = ROOT / "docs/images/study.png"
    figure.savefig(out)
    print(f"written: {out.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
