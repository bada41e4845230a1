# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Tries the series on many upstream releases: straight from the pin, and release by release from the oldest forward."""

from __future__ import annotations

import json
import os
import platform
import time
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed

from patches import ROOT, WORK, PatchesError, tree
from patches.rebase import prepare, result, smoke, unmerged
from patches.series import FOLDER, Patch, blob_id, load_series
from patches.upstream import (
    NUMBERED,
    Pin,
    by_number,
    fetch,
    load_pin,
    read_wheel,
    release,
    remove,
    replace,
    sha256,
    versions,
)

HOME = WORK / "matrix"
PASSED = HOME / "passed.json"  # smoke tests that passed, by what was tried: a run that was cut short goes on
RESULTS = ROOT / "benchmarks/results/upkeep-matrix.json"
PAGE = ROOT / "docs/upkeep/matrix.md"
NOR_PRISTINE = "cannot run here, pristine upstream neither: "


def sample(all_versions: list[str]) -> list[str]:
    """Choose the newest 20 releases, every fifth of the rest of that series, every tenth of the one before it."""
    series = list(dict.fromkeys(by_number(version)[:2] for version in all_versions))
    newest, before = ([v for v in all_versions[20:] if by_number(v)[:2] == s] for s in (*series, (), ())[:2])
    return all_versions[:20] + newest[4::5] + before[9::10]


def attempt(old: dict, patches: list[Patch], new: dict, labels: tuple[str, str]) -> tuple[str, list[Patch], dict]:
    """Rebase the series from one release to another.

    Args:
        old (dict[str, bytes]): Files of the release that the series is made for.
        patches (list[Patch]): The series.
        new (dict[str, bytes]): Files of the other release.
        labels (tuple[str, str]): Names of the two.

    Returns:
        (tuple): What stopped it, empty if nothing did; the rebased patches, and the patched files.
    """
    if labels[0] == labels[1]:
        labels = (f"{labels[0]}-old", labels[1])
    folder = HOME / "repository"
    remove(folder)
    repository = prepare(folder, old, patches, new, labels)
    try:
        repository.git("rebase", "--onto", labels[1], labels[0], "series")
    except PatchesError:
        name = repository.git("notes", "show", "REBASE_HEAD").splitlines()[0]
        return f"{name} conflicts in {', '.join(unmerged(repository))}", [], {}
    try:
        rebased, target = result(repository, labels[1], new)
    except PatchesError as e:
        return str(e), [], {}
    gone = [p.name for p in patches if p.name not in {r.name for r in rebased}]
    return f"{', '.join(gone)} became empty" if gone else "", rebased, target


def earlier() -> dict:
    """Return the smoke tests that earlier runs passed; none where that file is missing or damaged."""
    try:
        found = json.loads(PASSED.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def tried(target: dict[str, bytes]) -> str:
    """Return a hash of all that a smoke test's outcome rests on."""
    ours = {path: data for path, data in tree.own_files(compiled=False).items() if path.endswith((".py", ".yaml"))}
    ours["patches/smoke.py"] = (FOLDER / "smoke.py").read_bytes()
    parts = [f"{path} {blob_id(ours[path])}" for path in sorted(ours)]
    parts += [f"{path} {blob_id(target[path])}" for path in sorted(target)]
    return sha256(os.fsencode("\n".join([*parts, platform.python_version(), torch_version()])))


def torch_version() -> str:
    """Return the version of torch without importing it."""
    try:
        return installed("torch")
    except PackageNotFoundError:
        return "none"


def matrix(chosen: list[str], with_smoke: bool, write: bool) -> int:
    """Try releases, oldest first, and print a line for each.

    Args:
        chosen (list[str]): Versions; a sample of all of them if empty.
        with_smoke (bool): Run the smoke test too.
        write (bool): Write the results and the page.

    Returns:
        (int): 0 if every one went without a hand's help, else 1.
    """
    pin, patches = load_pin(), load_series()
    if wrong := [version for version in chosen if not NUMBERED.fullmatch(version)]:
        raise PatchesError(f"No releases: {', '.join(wrong)}. Give versions such as {pin.version}.")
    chosen = sorted(set(chosen or sample(versions())), key=by_number)
    with tree.lock(0, "matrix.lock"):
        return _matrix(pin, patches, chosen, with_smoke, write)


def _matrix(pin: Pin, patches: list[Patch], chosen: list[str], with_smoke: bool, write: bool) -> int:
    HOME.mkdir(exist_ok=True)
    passed = earlier()
    with tree.lock():
        base = read_wheel(fetch(pin))[0]
    last, rows = None, []
    for version in chosen:
        began = time.monotonic()
        row = {"version": version, "direct": "", "stepwise": None, "same": None, "smoke": "not run"}  # None: not tried
        try:
            with tree.lock():  # without it, others would sweep away what is being written
                files, requires = read_wheel(fetch(release(version)))
            tree.refuse_clash(version, files)
        except PatchesError as e:
            rows.append({**row, "direct": str(e)})
            print(line(rows[-1]), flush=True)
            continue
        row["direct"], direct, target = attempt(base, patches, files, (pin.version, version))
        stepped = direct, target
        if last:
            row["stepwise"], *stepped = attempt(last[1], last[2], files, (last[0], version))
            if target and stepped[1]:
                row["same"] = stepped[1] == target and [p.mail for p in stepped[0]] == [p.mail for p in direct]
        trees = {tried(t): t for t in (target, stepped[1]) if t}
        if not with_smoke and trees and trees.keys() <= passed.keys():
            row["smoke"] = "passed"  # in an earlier run, on the very same files
        elif with_smoke and trees:
            said = []
            for key, tree_ in trees.items():
                if key in passed:
                    continue
                if wrong := smoke(version, {**tree_, **tree.own_files()}, requires, HOME / "smoke"):
                    said.append(wrong)
                    continue
                passed[key] = version
                with tree.lock():
                    replace(PASSED, json.dumps(passed, indent=0).encode())
            row["smoke"] = "\n".join(said) or "passed"
            if said and last_line(smoke(version, files, requires, HOME / "smoke", "pristine")) == last_line(said[-1]):
                row["smoke"] = f"{NOR_PRISTINE}{last_line(said[-1])}"
        if stepped[1] or target:  # where a step stops, go on from what came straight from the pin
            last = (version, files, stepped[0]) if stepped[1] else (version, files, direct)
        rows.append(row)
        print(f"{line(row)}  ({time.monotonic() - began:.0f} s)", flush=True)
    print(count(rows))
    if write:
        done = {"pin": pin.version, "date": time.strftime("%Y-%m-%d"), "series": tree.fingerprint(pin, patches)}
        done |= {"python": platform.python_version(), "torch": torch_version(), "system": platform.system()}
        with tree.lock():
            replace(RESULTS, (json.dumps({**done, "rows": rows}, indent=2) + "\n").encode())
            replace(PAGE, render({**done, "rows": rows}).encode())
    return int(not all(map(fine, rows)))


def fine(row: dict) -> bool:
    """Tell whether a release went without a hand's help, as far as it was tried."""
    tested = row["smoke"] in ("passed", "not run") or row["smoke"].startswith(NOR_PRISTINE)
    return not row["direct"] and not row["stepwise"] and tested


def last_line(said: str) -> str:
    """Return what a smoke test said in the end, before the packages that are not installed."""
    return said.partition("\nNot installed here: ")[0].strip().rpartition("\n")[2]


def count(rows: list[dict]) -> str:
    """Say how many releases went well."""
    smokes = [row["smoke"] for row in rows if row["smoke"] != "not run"]
    neither = sum(said.startswith(NOR_PRISTINE) for said in smokes)
    return (
        f"{sum(map(fine, rows))} of {len(rows)} releases without a hand's help; smoke test run on {len(smokes)}, "
        f"passed on {smokes.count('passed')}"
        + f"; on {neither} pristine upstream cannot run here either"
        * bool(neither)
    )


def step(said: str | None) -> str:
    """Return in a line how a rebase went.

    Args:
        said (str | None): What stopped it; empty if nothing did, None if it was not tried.
    """
    return "not tried" if said is None else said.splitlines()[0] if said else "clean"


def line(row: dict) -> str:
    """Return a row for the screen."""
    same = {True: ", the same", False: ", another result", None: ""}[row["same"]]
    return (
        f"{row['version']:>10}  direct: {step(row['direct'])}; stepwise: {step(row['stepwise'])}{same}; "
        f"smoke test: {row['smoke'][-500:]}"
    )


def render(results: dict) -> str:
    """Return the page of the docs."""
    rows = results["rows"]
    text = f"""# The series on {len(rows)} upstream releases

Generated by `python -m patches matrix --write` from
[upkeep-matrix.json](../../benchmarks/results/upkeep-matrix.json), not to be edited. The series as pinned on
{results["pin"]} (hash of pin and patches {results["series"][:12]}), {results["date"]}, Python {results["python"]},
torch {results["torch"]}.

- *straight*: `git rebase` from the pin to the release, then hooks looked for in the syntax trees
- *stepwise*: the same from the next release below it that the series went onto, whose own series came that way; *same*
  if the patches are those of *straight* to the byte; *not tried* on the first
- *smoke test*: VMamba-yolov8n on the patched release: build, strides 8, 16, 32, forward pass, one training step; once
  where both ways give the same files. One that fails is tried with yolov8n on the pristine release

{count(rows)}.

| release | straight | stepwise | smoke test |
| --- | --- | --- | --- |
"""
    for row in reversed(rows):
        direct, stepwise = (step(row[key]).replace("|", "\\|") for key in ("direct", "stepwise"))
        stepwise += {True: ", same", False: ", another result", None: ""}[row["same"]]
        test = last_line(row["smoke"]).replace("|", "\\|")
        text += f"| {row['version']} | {direct} | {stepwise} | {test} |\n"
    return text
