# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""The tables of docs/study.md."""

from __future__ import annotations

from collections import Counter

from benchmarks.model_cpu import inference
from benchmarks.rendering import table
from benchmarks.study.parts import MARGIN, PARTS, Part
from benchmarks.study.runs import Run, checked, reported
from benchmarks.study.variants import VARIANTS
from ultralytics.nn.Addmodules.tools.compare.statistics import Difference, mean, paired
from ultralytics.nn.Addmodules.tools.compare.tables import percent, points

__all__ = ("render",)

SETTINGS = ("epochs", "imgsz", "batch", "nbs", "optimizer", "device", "report_on", "checkpoint")
BEFORE = ("scratch", "scratch-long")  # parts that are older than parts.py
STOCK = "yolov8n"  # what these are compared with
GRAFT, CONTROL = "graft", "control"  # in the parts of grafts
OVERVIEW = (
    *("from scratch", "parameters", "GFLOPs at 320", "CPU, ms at 640", "blood cells, mAP50-95", "cards, mAP50-95"),
)
OVERVIEW_ZH = ("从零训练", "参数量", "GFLOPs（320）", "CPU 毫秒（640）", "血细胞 mAP50-95", "扑克牌 mAP50-95")


def render(runs: list[Run], models_cpu: dict | None = None) -> dict[str, str]:
    """Return the tables of the study.

    Args:
        runs (list[Run]): All of study.csv.
        models_cpu (dict, optional): The result of model_cpu.py, for the times.
    """
    runs = checked(runs)
    scratch = [block for part in BEFORE for data in ("bccd", "cards") if (block := models(runs, part, data))]
    grafts = [block for name, part in PARTS.items() if (block := compared(runs, name, part))]
    return {
        "overview": overview(runs, models_cpu, OVERVIEW),
        "overview_zh": overview(runs, models_cpu, OVERVIEW_ZH),
        "study": "\n\n".join(scratch),
        "choices": choices(runs),
        "grafts": "\n\n".join(grafts) or "Not run yet: `python -m benchmarks.study`.",
    }


def of(runs: list[Run], part: str, data: str) -> dict[str, list[Run]]:
    """Return the runs of a part on a set by model, in the order of their seeds.

    Raises:
        SystemExit: If runs of one model have different settings, so that they cannot share a row.
    """
    found: dict[str, list[Run]] = {}
    for run in sorted(runs, key=lambda run: run.key):
        if (run.about["part"], run.about["data"]) == (part, data):
            found.setdefault(run.about["model"], []).append(run)
    for model, same in found.items():
        if any(run.about[key] != same[0].about[key] for run in same for key in SETTINGS):
            raise SystemExit(f"study.csv: runs of {model} with different settings cannot share the row of a table")
    return found


def heading(about: dict, data: str) -> str:
    """Return what was done, in a line."""
    split = {"val": "the validation pictures", "test": "the test pictures"}[about["report_on"]]
    rate = f", {about['optimizer']} with lr0={about['lr0']:g}" if about["lr0"] else ""  # older runs have none
    return (
        f"{data}, {about['epochs']} epochs at {about['imgsz']} px, batch {about['batch']}{rate}; figures of the "
        f"{about['checkpoint']} epoch on {split}:"
    )


def overview(runs: list[Run], models_cpu: dict | None, head: tuple[str, ...]) -> str:
    """Return the table of README, under a head in its language: models from scratch on both sets, the best first."""
    sets = ("bccd", "cards")
    found = {data: of(runs, "scratch", data) for data in sets}
    rows = []
    for model in sorted((m for m in found["bccd"] if m not in VARIANTS and m in found["cards"]), key=str.lower):
        scores = [[run.about["report/mAP50-95"] for run in found[data][model]] for data in sets]
        time = inference(models_cpu, f"{model}.yaml")
        cells = [*size(found["bccd"][model][0].about), "" if time is None else f"{time:.0f}", *map(percent, scores)]
        rows.append((sum(map(mean, scores)), [model, *cells]))
    return table(head, [row for _, row in sorted(rows, key=lambda r: -r[0])])


# From scratch ---------------------------------------------------------------------------------------------------------


def models(runs: list[Run], part: str, data: str) -> str:
    """Return the tables of a data set: its models, the best first, and the variants."""
    found = of(runs, part, data)
    if not found:
        return ""
    first = next(iter(found.values()))[0].about
    head = ["model", "parameters", f"GFLOPs at {first['imgsz']}", "seeds", "mAP50", "mAP50-95", "by seed", "val. loss"]
    scores = reported(runs, part, data)
    parts = [heading(first, data)]
    for title, chosen in (("", False), ("Variants:", True)):
        rows = [row(model, same) for model, same in found.items() if (model in VARIANTS) == chosen]
        rows = [line for _, line in sorted(rows, key=lambda r: -r[0])]
        if not chosen:  # variants have a table of their own, beside the model that they vary
            rows = [[*line, difference(scores, line[0])] for line in rows]
        heads = [*head] if chosen else [*head, f"minus {STOCK}, points"]
        parts += [*[title] * bool(title), table(heads, rows)] if rows else []
    parts.append(f"{first['cpu']}, torch {first['torch']}; date, commit and every epoch in study.csv.")
    return "\n\n".join(parts)


def difference(scores: dict[str, dict[int, float]], model: str) -> str:
    """Return a model's difference to stock over the seeds that both have, with its interval."""
    return "" if model == STOCK else points(paired(scores[model], scores.get(STOCK, {})))


def row(model: str, runs: list[Run]) -> tuple[float, list[str]]:
    """Return a model's mAP50-95, to sort by, and its row."""
    scores = [run.about["report/mAP50-95"] for run in runs]
    return mean(scores), [
        model,
        *size(runs[0].about),
        ", ".join(str(run.about["seed"]) for run in runs),
        percent([run.about["report/mAP50"] for run in runs]),
        f"**{percent(scores)}**",
        " / ".join(f"{100 * x:.1f}" for x in scores),
        f"{mean([run.history[-1]['val_loss'] for run in runs]):.2f}",
    ]


def size(about: dict) -> tuple[str, str]:
    """Return parameters and GFLOPs."""
    return f"{about['parameters'] / 1e6:.2f} M", f"{about['gflops']:.2f}"


def choices(runs: list[Run]) -> str:
    """Return the variants, each beside the same seeds of the model that it varies."""
    sets, rows = ("bccd", "cards"), []
    scores = {data: reported(runs, "scratch", data) for data in sets}
    sizes = {run.about["model"]: run.about for run in runs if run.about["part"] == "scratch"}
    for name, variant in VARIANTS.items():
        if name in sizes:
            cells = [points(paired(scores[d].get(name, {}), scores[d].get(variant.base, {}))) for d in sets]
            seeds = sorted({seed for d in sets for seed in scores[d].get(name, {})})
            row = [f"`{name}`", variant.what, f"`{variant.base}`", *size(sizes[name]), *cells]
            rows.append([*row, ", ".join(map(str, seeds))])
    return table(["variant", "what is different", "from", "parameters", "GFLOPs at 320", *sets, "seeds"], rows)


# Grafts ---------------------------------------------------------------------------------------------------------------


def compared(runs: list[Run], name: str, part: Part) -> str:
    """Return the tables of a part, one a data set; empty if nothing of it has been run."""
    models = part.models
    against, stock = next(iter(PARTS[part.beside or name].models.items()))
    blocks = []
    for data in part.sets:
        found, scores = of(runs, name, data), reported(runs, name, data)
        if not found:
            continue
        if part.beside:  # its first model, with the same seeds
            seeds = {run.about["seed"] for same in found.values() for run in same}
            models = {against: stock, **part.models}
            found[against] = [run for run in of(runs, part.beside, data).get(against, ()) if run.about["seed"] in seeds]
            scores[against] = {run.about["seed"]: run.about["report/mAP50-95"] for run in found[against]}
        first = next(iter(found.values()))[0].about
        head = ["model", "what it is", "parameters", f"GFLOPs at {first['imgsz']}", "seeds", "mAP50-95"]
        head += [f"minus {against}, points", "verdict", *["minus control, points"] * (CONTROL in found)]
        rows = []
        for model, about in models.items():
            if not found.get(model):
                continue
            difference = None if model == against else paired(scores[model], scores.get(against, {}))
            row = [f"`{model}`", about.what, *size(found[model][0].about), str(len(found[model]))]
            row += [percent([*scores[model].values()]), points(difference)]
            row.append(verdict(difference, None if about.graft is None else MARGIN[data]))
            if CONTROL in found:  # only a gain over it comes from the scan
                row.append(points(paired(scores[model], scores[CONTROL])) if model == GRAFT else "")
            rows.append(row)
        blocks += [heading(first, data), table(head, rows), processors(found)]
    return "\n\n".join([f"### {part.what}", *blocks]) if blocks else ""


def processors(found: dict[str, list[Run]]) -> str:
    """Return on which processors the runs of a table were made, for each how many if there are several."""
    counts = Counter(run.about["cpu"].replace("(R)", "") for same in found.values() for run in same)
    if len(counts) == 1:
        return f"All on {next(iter(counts))}."
    runs = f" of {counts.total()} runs on "
    return "; ".join(f"{count}{runs}{cpu}" for cpu, count in counts.most_common()) + "."


def verdict(difference: Difference | None, margin: float | None) -> str:
    """Return what an interval shows; nothing for a single seed.

    Args:
        difference (Difference | None): To the model that others are compared with; None for this model itself.
        margin (float | None): A graft does no harm if its interval lies above this; None for other models.
    """
    if difference is None or difference.low is None:
        return ""
    if difference.low > 0:
        return "better"
    if difference.high < 0:
        return "worse"
    return "no harm" if margin is not None and difference.low > margin else "no difference shown"
