# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""The figures of a comparison: learning curves, precision by recall, and bars with their spread."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
from matplotlib.figure import Figure

from ..draw import STYLE, letters, show
from .remarks import primary
from .results import Comparison
from .statistics import deviation, mean
from .tables import quantities

__all__ = ("draw",)

DPI = 200
COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#000000",
)  # told apart by the colour-blind


def draw(comparison: Comparison) -> list[str]:
    """Write what figures can be drawn, each as PNG and PDF, and return their names."""
    made = {}
    with matplotlib.rc_context({**STYLE, "pdf.fonttype": 42, "axes.prop_cycle": matplotlib.cycler(color=COLOURS)}):
        show(comparison.names)
        if any(run.epochs for run in comparison.runs):
            made["curves"] = curves(comparison)
        if any(run.result.get("pr") for run in comparison.runs):
            made["pr"] = precision(comparison)
        if quantities(comparison):
            made["bars"] = bars(comparison)
        for name, figure in made.items():
            for ending in ("png", "pdf"):
                figure.savefig(comparison.folder / f"{name}.{ending}", dpi=DPI)
    return [f"{name}.{ending}" for name in made for ending in ("png", "pdf")]


def spread(ax, x: Sequence[float], lines: list[list[float]], label: str) -> None:
    """Draw the mean of lines and their range, as far as all of them go."""
    length = min(map(len, lines))
    points = list(zip(*(line[:length] for line in lines)))
    (drawn,) = ax.plot(x[:length], [mean(p) for p in points], label=label, linewidth=1.3, marker="o" * (length == 1))
    if len(lines) > 1:
        low, high = [min(p) for p in points], [max(p) for p in points]
        ax.fill_between(x[:length], low, high, color=drawn.get_color(), alpha=0.18, linewidth=0)


def titled(name: str, lines: Sequence) -> str:
    """Return a model's name in a legend."""
    return f"{letters(name)} ({len(lines)} seed{'s' * (len(lines) != 1)})"


def curves(comparison: Comparison) -> Figure:
    """Draw the figure of the task and the validation loss by epoch."""
    key = primary(comparison)
    figure = Figure((6.4, 2.6), layout="constrained")
    for ax, wanted, name in zip(figure.subplots(1, 2), (key, "val_loss"), (f"{key} on val", "loss on val")):
        ends: list[float] = []
        for model in comparison.names:
            epochs = [run.epochs for run in comparison.runs if run.model == model and run.epochs]
            lines = [[e[wanted] for e in rows if wanted in e] for rows in epochs]
            if lines := [line for line in lines if line]:
                spread(ax, range(1, max(map(len, lines)) + 1), lines, titled(model, lines))
                ends += [value for line in lines for value in line[len(line) // 4 :]]
        ax.set(xlabel="epoch", ylabel=name)
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.grid(alpha=0.3, linewidth=0.5)
        if wanted == "val_loss" and ends:  # the first epochs would hide all others
            room = 0.08 * (max(ends) - min(ends)) or 0.1
            ax.set_ylim(min(ends) - room, max(ends) + room)
        elif ends:
            ax.set_ylim(0, None)
            ax.legend(frameon=False)
    return figure


def precision(comparison: Comparison) -> Figure:
    """Draw precision by recall at IoU 0.5, mean over classes."""
    figure = Figure((3.3, 2.8), layout="constrained")
    ax = figure.subplots()
    for model in comparison.names:
        lines = [run.result["pr"] for run in comparison.runs if run.model == model and run.result.get("pr")]
        if lines:
            spread(ax, [n / 100 for n in range(101)], lines, titled(model, lines))
    ax.set(xlabel="recall", ylabel="precision at IoU 0.5", xlim=(0, 1), ylim=(0, 1.02))
    ax.grid(alpha=0.3, linewidth=0.5)
    ax.legend(frameon=False, loc="lower left")
    return figure


def bars(comparison: Comparison) -> Figure:
    """Draw the figures of all models side by side, with the standard deviation over seeds."""
    keys, names = quantities(comparison), comparison.names
    figure = Figure((max(3.3, 0.5 + 0.28 * len(keys) * (len(names) + 1)), 2.6), layout="constrained")
    ax, width = figure.subplots(), 0.8 / len(names)
    for i, name in enumerate(names):
        values = [[*comparison.reported(key)[name].values()] for key in keys]
        shown = [j for j, v in enumerate(values) if v]
        if not shown:
            continue
        places = [j + (i - (len(names) - 1) / 2) * width for j in shown]
        errors = [100 * (deviation(values[j]) or 0) for j in shown]
        style = {"elinewidth": 0.8, "capsize": 2 if any(errors) else 0}
        heights = [100 * mean(values[j]) for j in shown]
        ax.bar(places, heights, width * 0.92, yerr=errors, label=titled(name, values[shown[0]]), error_kw=style)
    ax.set_xticks(range(len(keys)), keys)
    ax.set(ylabel="%", ylim=(0, None))
    ax.grid(axis="y", alpha=0.3, linewidth=0.5)
    ax.set_axisbelow(True)
    figure.legend(*ax.get_legend_handles_labels(), frameon=False, loc="outside upper center", ncols=2)
    return figure
