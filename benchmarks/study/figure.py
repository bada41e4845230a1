# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Draw results/study.csv: mAP50-95 and validation loss by epoch, and accuracy beside time on a CPU.

Usage:
    python -m benchmarks.study.figure    # writes docs/images/study.png and overview.png
"""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib.figure import Figure

from benchmarks.model_cpu import inference
from benchmarks.result import load
from benchmarks.study.runs import FILE, Run, checked, read
from benchmarks.study.tables import of
from ultralytics.nn.Addmodules.tools.compare.figures import spread, titled
from ultralytics.nn.Addmodules.tools.compare.statistics import deviation, mean

ROOT = Path(__file__).resolve().parents[2]
SHOWN = ("yolov8n", "yolo11n", "VMamba-yolov8n", "VMamba-yolon")
SETS = ("bccd", "cards")
PRETRAINED = (  # in the study, in the legend, for model_cpu.py
    ("stock", "yolov5n from COCO weights", "yolov5n.yaml"),
    ("graft", "a graft of it", "graft:yolov5n.yaml"),
)


def main() -> None:
    """Write both pictures."""
    runs = checked(read(FILE))
    for name, figure in (("study", by_epoch(runs)), ("overview", beside_time(runs, load("model_cpu")))):
        out = ROOT / f"docs/images/{name}.png"
        figure.savefig(out)
        print(f"written: {out.relative_to(ROOT)}")


def by_epoch(runs: list[Run]) -> Figure:
    """Draw mAP50-95 and validation loss of the trainings from scratch: mean over seeds, with their range."""
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
    return figure


def beside_time(runs: list[Run], models_cpu: dict) -> Figure:
    """Draw mAP50-95 of the last epoch on the validation pictures beside time on a CPU, from scratch and from COCO.

    Args:
        runs (list[Run]): All of study.csv.
        models_cpu (dict): The result of model_cpu.py.
    """
    figure, legend = Figure(figsize=(4.6 * len(SETS), 4.2), layout="constrained", dpi=150), {}
    seeds: dict[str, list[int]] = {}
    for axes, (data, title) in zip(figure.subplots(1, len(SETS)), (("bccd", "blood cells"), ("cards", "cards"))):
        found = of(runs, "scratch", data)
        shown = [(f"{model} from scratch", f"{model}.yaml", found[model], "o") for model in SHOWN]
        pretrained = of(runs, "report", data) or of(runs, "screening", data)
        for model, label, yaml in PRETRAINED:
            if model in pretrained:
                shown.append((label, yaml, pretrained[model], "*"))
        for i, (label, yaml, same, marker) in enumerate(shown):
            time, scores = inference(models_cpu, yaml), [100 * run.history[-1]["mAP50-95"] for run in same]
            if time is not None:
                style = {"fmt": marker, "markersize": 13 if marker == "*" else 7, "capsize": 3, "color": f"C{i}"}
                points = axes.errorbar(time, mean(scores), deviation(scores), **style)
                legend.setdefault(label, points)
                seeds.setdefault(label, []).append(len(same))
        axes.set(title=title, xlabel="forward on one CPU thread at 640 px, ms", ylabel="mAP50-95, %")
        axes.grid(alpha=0.3)
    labels = [f"{label} ({' and '.join(map(str, dict.fromkeys(seeds[label])))} seeds)" for label in legend]
    figure.legend(legend.values(), labels, fontsize=8, loc="outside lower center", ncols=3)
    return figure


if __name__ == "__main__":
    main()
