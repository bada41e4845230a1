# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""What a reviewer would ask of a comparison, one line each."""

from __future__ import annotations

from pathlib import Path

from .results import MACHINE, SETTINGS, Comparison, read_json
from .schedule import FIRST
from .statistics import paired

__all__ = ("primary", "remarks")

BUSY = 15  # percent of the CPU


def primary(comparison: Comparison) -> str:
    """Return the figure by which a task is known, as the runs have it."""
    keys = {key for run in comparison.runs for key in run.result.get("report", {})}
    return next((key for key in FIRST if key in keys), FIRST[2])


def remarks(comparison: Comparison) -> list[str]:
    """Return warnings, those about the design of the comparison first."""
    s = comparison.settings
    found = [*about_weights(comparison), *about_seeds(comparison), *about_settings(comparison)]
    if s["report_on"] == "val":
        if s["checkpoint"] == "best":
            found.append(
                "The figures are on the pictures that chose the checkpoint (best.pt by val): they are too high, most "
                "for models whose figures vary most between epochs. Report checkpoint=last, or on a test split."
            )
        else:
            found.append("There is no test split in use: the figures are those of the last epoch on val.")
    if (busy := comparison.speed.get("about", {}).get("busy", 0)) > BUSY:
        found.append(
            f"Do not quote the times: other programs took {busy:.0f} % of the CPU. Delete speed.json and give the "
            "same command again when the machine is idle."
        )
    return [*found, *about_runs(comparison), *about_differences(comparison)]


def about_weights(comparison: Comparison) -> list[str]:
    """Return what to say of the weights with which models start."""
    models, pretrained = comparison.settings["models"], comparison.settings["train"].get("pretrained", True)
    if pretrained is not True:
        return []
    with_weights = [name for name, m in models.items() if m["trained"]]
    without = [name for name in models if name not in with_weights]
    found = []
    if with_weights and without:
        found.append(
            f"{' and '.join(with_weights)} start from trained weights, {' and '.join(without)} from random ones: "
            "a difference may be that of the weights. Give all as .yaml, or all as .pt."
        )
    data = Path(comparison.settings["data"]).resolve()
    seen = [n for n, m in comparison.models.items() if m["trained_on"] and Path(m["trained_on"]).resolve() == data]
    if seen:
        found.append(f"Trained on these data before, as their files say: {', '.join(seen)}.")
    return found


def about_seeds(comparison: Comparison) -> list[str]:
    """Return what to say of the number of seeds, and of seeds that an earlier comparison has seen."""
    seeds, found = comparison.settings["seeds"], []
    if len(seeds) == 1:
        found.append("One seed: there is no spread and no interval, so no difference can be told from chance.")
    for folder in sorted(comparison.folder.parent.glob(f"*/{SETTINGS}")):
        other = read_json(folder, ours=False)  # a settings.json may be anybody's, such as an editor's
        ours = isinstance(other, dict) and {"data", "seeds", "models"} <= other.keys()
        if not ours or folder.parent == comparison.folder or other["data"] != comparison.settings["data"]:
            continue
        if shared := sorted(set(seeds) & set(other["seeds"])):
            which = f"Seed {shared[0]} is" if len(shared) == 1 else f"Seeds {listed(shared)} are"
            found.append(
                f"{which} also in {folder.parent.name}, on the same data: if you chose a model or setting by that one, "
                f"report other seeds, as in seeds={listed(range(max(seeds) + 1, max(seeds) + 1 + len(seeds)), ',')}."
            )
    return found


def listed(items, between: str = ", ") -> str:
    """Return numbers as text."""
    items = list(map(str, items))
    return f"[{items[0]}]" if between == "," and len(items) == 1 else between.join(items)


def about_settings(comparison: Comparison) -> list[str]:
    """Return what was not the same for all runs, in settings, hardware and versions."""
    found, runs = [], [r for r in comparison.runs if r.result]
    for what, keys, source in (
        ("Settings", ("imgsz", "batch", "nbs", "optimizer", "lr0", "amp"), lambda r: r.result.get("effective")),
        ("Machine or versions", MACHINE, lambda r: {**r.job.get("about", {}), "scan": r.result.get("scan")}),
    ):
        for key in keys:
            values: dict[str, list[str]] = {}
            for run in runs:
                # A run that failed in its first epoch does not know some of them
                if (given := source(run)) and given.get(key) is not None:
                    values.setdefault(str(given[key]), []).append(f"{run.model} seed {run.seed}")
            if len(values) > 1:
                some = "; ".join(f"{value} ({names[0]}{' ...' * (len(names) > 1)})" for value, names in values.items())
                found.append(f"{what} are unequal: {key} is {some}.")
    for run in runs:
        if mixed := run.job.get("mixed"):
            found.append(f"{run.model} seed {run.seed} went on after a change of {', '.join(mixed)}.")
    if any(r.job.get("about", {}).get("uncommitted") for r in runs):
        found.append("The code had uncommitted changes: nobody can repeat these runs from the commit alone.")
    return found


def about_runs(comparison: Comparison) -> list[str]:
    """Return what to say of runs that failed or ended early."""
    found, asked = [], comparison.settings["train"]["epochs"]
    for run in comparison.runs:
        result, epochs = run.result, run.epochs
        if result.get("status") == "failed":
            found.append(f"FAILED: {run.model}, seed {run.seed}, after {len(epochs)} epochs: {result['reason']}")
        elif run.done and len(epochs) < asked:
            found.append(
                f"{run.model}, seed {run.seed} ended after {len(epochs)} of {asked} epochs (patience=), by val."
            )
    return found


def about_differences(comparison: Comparison) -> list[str]:
    """Return the models whose difference to the first is not shown."""
    key = primary(comparison)
    values = comparison.reported(key)
    first, *others = comparison.names
    found = []
    for name in others:
        difference = paired(values[name], values[first])
        if difference and difference.low is not None and not difference.shown:
            found.append(f"{name}: no difference to {first} shown in {key}; the 95 % interval holds zero.")
    return found
