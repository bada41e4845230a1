# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""The tables of a comparison, as Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from typing import NamedTuple

from ..files import in_one_step
from .remarks import primary
from .results import Comparison
from .statistics import Difference, deviation, mean, paired

__all__ = ("Table", "latex", "markdown", "quantities", "write_tables")

PLUS, DASH = "±", "-"
LESS = "abs-rel"  # the one figure that is an error
SPECIAL = {
    **{c: f"\\{c}" for c in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{PLUS: r"$\pm$", "<": r"$<$", ">": r"$>$", "|": r"$|$"},
}


class Table(NamedTuple):
    """Rows of text under a heading; the first column holds names."""

    title: str
    head: list[str]
    rows: list[list[str]]


def quantities(comparison: Comparison) -> list[str]:
    """Return the figures that runs report, in their order."""
    return list(dict.fromkeys(key for run in comparison.runs for key in run.result.get("report", {})))


# Cells ----------------------------------------------------------------------------------------------------------------


def percent(values: Sequence[float]) -> str:
    """Return mean and standard deviation in percent.

    Examples:
        >>> percent([0.5, 0.52]), percent([0.5]), percent([])
        ('51.0 ± 1.4', '50.0', '-')
    """
    if not values:
        return DASH
    spread = deviation(values)
    return f"{100 * mean(values):.1f}" + (f" {PLUS} {100 * spread:.1f}" if spread is not None else "")


def points(difference: Difference | None) -> str:
    """Return a difference and its interval in points of percent.

    Examples:
        >>> points(Difference(0.02, -0.01, 0.05, 3))
        '+2.0 [-1.0, +5.0]'
        >>> points(Difference(-0.0001, None, None, 1))
        '0.0'
    """
    if difference is None:
        return DASH
    ends = "" if difference.low is None else f" [{_signed(difference.low)}, {_signed(difference.high)}]"
    return _signed(difference.mean) + ends


def _signed(value: float) -> str:
    """Return a value in percent with its sign, which zero does not have."""
    text = f"{100 * value:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text


def seeds(comparison: Comparison, name: str) -> str:
    """Return how many runs of a model are done, of how many."""
    runs = [run for run in comparison.runs if run.model == name]
    done = sum(run.done for run in runs)
    return str(done) if done == len(runs) else f"{done} of {len(runs)}"


# Tables ---------------------------------------------------------------------------------------------------------------


def tables(comparison: Comparison) -> list[Table]:
    """Return the tables: figures, differences to the first model, classes, and what models cost."""
    keys, names = quantities(comparison), comparison.names
    values = {key: comparison.reported(key) for key in keys}
    first, *others = names
    found = []
    for what, group in grouped(keys).items():
        rows = [[n, *(percent([*values[k][n].values()]) for k in group), seeds(comparison, n)] for n in names]
        head = ["model", *(k.removeprefix(f"{what} ") for k in group), "seeds"]
        found.append(
            Table(f"Figures{f' of {what}' * bool(what)} in %, mean and standard deviation over seeds", head, rows)
        )
    if others and keys:
        rows = [[k, *(points(paired(values[k][n], values[k][first])) for n in others)] for k in keys]
        less = f" ({LESS}: less is better)" if LESS in keys else ""
        title = f"Difference to {first} in points, paired by seed, with its 95 % interval{less}"
        found.append(Table(title, ["", *others], rows))
    classes = [name for name in comparison.settings["classes"] if any(comparison.reported(f"class:{name}").values())]
    if classes:
        by_class = {name: comparison.reported(f"class:{name}") for name in classes}
        rows = [[c, *(percent([*by_class[c][n].values()]) for n in names)] for c in classes]
        found.append(Table(f"{primary(comparison).replace('mIoU', 'IoU')} by class in %", ["class", *names], rows))
    return [*found, costs(comparison)]


def grouped(keys: list[str]) -> dict[str, list[str]]:
    """Return figures by what they are of: masks, boxes, or nothing in particular.

    Examples:
        >>> grouped(["mask P", "mask R", "box P"])
        {'mask': ['mask P', 'mask R'], 'box': ['box P']}
    """
    found: dict[str, list[str]] = {}
    for key in keys:
        found.setdefault(key.rpartition(" ")[0], []).append(key)
    return found


def costs(comparison: Comparison) -> Table:
    """Return the table of what models cost."""
    imgsz, speed = comparison.settings["train"]["imgsz"], comparison.speed.get("models", {})
    rows = []
    for name in comparison.names:
        size, time = comparison.models.get(name, {}), speed.get(name)
        memory = [r.result["memory_mb"] for r in comparison.runs if r.model == name and r.result.get("memory_mb")]
        rows.append(
            [
                name,
                f"{size['parameters'] / 1e6:.2f} M" if size else DASH,
                f"{size['gflops']:.1f}" if size and size["gflops"] else DASH,
                f"{time['ms']:.1f}" if time else DASH,
                f"{time['fps']:.1f}" if time else DASH,
                f"{max(memory):,.0f} MB" if memory else DASH,
            ]
        )
    head = ["model", "parameters", f"GFLOPs at {imgsz}", "ms", "FPS", "peak memory"]
    return Table("What the models cost: time of a picture, peak memory in training", head, rows)


def markdown(table: Table) -> str:
    """Return a table as Markdown."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    rule = "|---|" + "---:|" * (len(table.head) - 1)
    return "\n".join([line(table.head), rule, *map(line, table.rows)])


def escaped(text: str) -> str:
    r"""Return text as LaTeX would print it.

    Examples:
        >>> print(escaped("yolo_n: 50 %"))
        yolo\_n: 50 \%
    """
    return "".join(SPECIAL.get(c, c) for c in text)


def latex(table: Table) -> str:
    """Return a table as LaTeX, which needs the package booktabs."""

    def line(cells: Sequence[str]) -> str:
        return "    " + " & ".join(map(number, cells)) + r" \\"

    def number(cell: str) -> str:
        signed = re.fullmatch(r"[+-]\d+\.\d( \[[^]]*\])?", cell)  # not all that begins with a sign: names may, too
        return "$" + cell.replace(" [", r"\ [") + "$" if signed else escaped(cell)

    columns = "l" + "r" * (len(table.head) - 1)
    body = [line(row) for row in table.rows]
    return "\n".join(
        [
            r"\begin{table}",
            r"  \centering\small\setlength{\tabcolsep}{4pt}",
            f"  \\caption{{{escaped(table.title)}.}}",
            f"  \\begin{{tabular}}{{{columns}}}",
            r"    \toprule",
            line(table.head),
            r"    \midrule",
            *body,
            r"    \bottomrule",
            r"  \end{tabular}",
            r"\end{table}",
        ]
    )


def tidy(comparison: Comparison) -> str:
    """Return every figure as CSV: a line a model and quantity, in full precision."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["model", "quantity", "runs", "mean", "sd", "difference", "low", "high"])
    first = comparison.names[0]
    classes = [f"class:{name}" for name in comparison.settings["classes"]]
    for name in comparison.names:
        for key in [*quantities(comparison), *classes]:
            values = comparison.reported(key)
            if own := [*values[name].values()]:
                d = paired(values[name], values[first]) if name != first else None
                writer.writerow(
                    [name, key, len(own), mean(own), blank(deviation(own)), *map(blank, d[:3] if d else [None] * 3)]
                )
        size, time = comparison.models.get(name, {}), comparison.speed.get("models", {}).get(name, {})
        for key, value in {k: size.get(k) for k in ("parameters", "gflops")}.items() | time.items():
            writer.writerow([name, key, 1, blank(value), "", "", "", ""])
    return out.getvalue()


def blank(value: float | None) -> float | str:
    """Return a value, or nothing for none."""
    return "" if value is None else value


# Pages ----------------------------------------------------------------------------------------------------------------


def setting_lines(comparison: Comparison) -> list[str]:
    """Return what was compared and how, a line each."""
    s = comparison.settings
    asked = ", ".join(f"{key}={value}" for key, value in s["train"].items())
    weights = {"last": "last epoch", "best": "best epoch by val"}[s["checkpoint"]]
    about = next((run.job["about"] for run in comparison.runs if run.job), {})
    scan = next((run.result["scan"] for run in comparison.runs if run.result.get("scan")), "unknown")
    machine = about.get("gpu") or f"{about.get('cpu', '')}, threads of a run: {about.get('threads', '')}"
    pictures = ", ".join(f"{n} {split}" for split, n in s["images"].items())
    lines = [
        f"Data: {s['data']} ({pictures} pictures), {len(s['classes'])} classes",
        f"Training: {asked}; seeds {', '.join(map(str, s['seeds']))}; "
        f"the rest as Ultralytics {about.get('ultralytics', '')} has it",
        f"Figures: on {s['report_on']}, weights of the {weights}",
        f"Machine: {machine}; torch {about.get('torch', '')}; scan: {scan}; commit {about.get('commit') or 'unknown'}",
    ]
    if speed := comparison.speed.get("about"):
        where = f"the CPU (threads: {speed['threads']})" if speed["device"] == "cpu" else f"device {speed['device']}"
        lines.append(
            f"Times: forward pass of one picture at {speed['imgsz']} px in float32, convolutions fused, on {where}, "
            f"median of {speed['rounds']} turns; without reading the picture and without NMS"
        )
    kind = "of tensors on the GPU" if s["device"].isdecimal() else "of the whole process, pictures and PyTorch included"
    return [*lines, f"Peak memory: {kind}"]


def common_lines(comparison: Comparison) -> list[str]:
    """Return what models have in common at the start, a line each."""
    first = comparison.names[0]
    others = {name: m for name, m in comparison.models.items() if "common" in m and name != first}
    return [
        f"{name} and {first} have {m['common']} tensors of the same row, name and shape: {m['equal']} start with the "
        "same numbers" + (", the rest as the model's own file or layers have it" if m["equal"] < m["common"] else "")
        for name, m in others.items()
    ]


def write_tables(comparison: Comparison, remarks: list[str]) -> str:
    """Write table.md, table.csv and table.tex, and return what of it a user should see at once."""
    found = tables(comparison)
    said = [f"WARNING: {remark}" for remark in remarks]
    parts = [f"{t.title}:\n\n{markdown(t)}" for t in found]
    page = [
        f"# {' against '.join(comparison.names)}",
        *parts,
        *(["\n".join(f"- {line}" for line in said)] if said else []),
        "\n".join(f"- {line}" for line in [*setting_lines(comparison), *common_lines(comparison)]),
        "Every run and epoch: runs.csv. Figures: curves, pr and bars as .png and .pdf.",
    ]
    write(comparison, "table.md", "\n\n".join(page) + "\n")
    notes = [f"% {line}" for line in [*said, *setting_lines(comparison)]]
    write(
        comparison,
        "table.tex",
        "\n\n".join(["\n".join([r"% \usepackage{booktabs}", *notes]), *map(latex, found)]) + "\n",
    )
    write(comparison, "table.csv", tidy(comparison))
    return "\n\n".join([*parts, *said])


def write(comparison: Comparison, name: str, text: str) -> None:
    """Write a file of the folder in one step."""
    with in_one_step(comparison.folder / name) as part:
        part.write_text(text, encoding="utf-8")
