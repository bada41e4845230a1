# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Result files: written with one row a line, and read back only where their figures may be quoted."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.environment import git

__all__ = ("RESULTS", "compact", "load", "refusal", "save")

RESULTS = Path(__file__).resolve().parent / "results"


def compact(result: dict) -> str:
    """Return a result as JSON with one key a line, and one row a line where a key holds rows."""
    lines = []
    for key, value in result.items():
        text = json.dumps(value)
        if isinstance(value, list) and value and all(isinstance(row, dict) for row in value):
            text = "[\n  " + ",\n  ".join(map(json.dumps, value)) + "\n ]"
        lines.append(f" {json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def save(result: dict, file: Path) -> None:
    """Write a result."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(compact(result), encoding="utf-8")


def holds(commit: str) -> bool:
    """Return whether the repository has a commit, or cannot tell: no git, or a clone of the last commits alone."""
    if git("rev-parse", "--is-shallow-repository") != "false":
        return True
    return bool(git("rev-parse", "--verify", "--quiet", f"{commit}^{{commit}}"))


def refusal(result: dict, name: str) -> str:
    """Return why the figures of a result may not be quoted and what to do; an empty string if they may.

    Args:
        result (dict): The result. Its `committed_as` names the commit that holds what was measured, where a tree was
            measured first and committed then.
        name (str): Name of the benchmark.
    """
    again = f"run `python benchmarks/{result.get('benchmark', name)}.py` again"
    if result.get("quick"):
        return f"{name}.json is of a --quick run, whose figures mean nothing: {again} without --quick."
    e, later = result["environment"], result.get("committed_as")
    if later and not holds(later):
        return f"{name}.json says that its code was committed as {later}, which this repository does not have: {again}."
    if e["uncommitted"] and not later:
        return (
            f"{name}.json was measured with uncommitted changes, so no commit has the code of its figures: "
            f"commit, then {again}."
        )
    return "" if e["commit"] else f"{name}.json names no commit: {again} in a git checkout."


def load(name: str) -> dict | None:
    """Return a result that may be quoted, or None if it has not been measured.

    Raises:
        SystemExit: If there is a result whose figures may not be quoted.
    """
    file = RESULTS / f"{name}.json"
    if not file.exists():
        return None
    result = json.loads(file.read_text(encoding="utf-8"))
    if why := refusal(result, name):
        raise SystemExit(why)
    return result
