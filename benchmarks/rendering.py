# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""What the benchmarks share when they write their results as Markdown: tables, figures, targets, the source line."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ("Goal", "median_of", "ms", "quotient", "source", "table", "times", "verdicts")


class Goal(NamedTuple):
    """A target beside what was measured.

    Args:
        what (str): What is measured.
        target (float): The target.
        more (bool): Whether more is better.
        measured (float, optional): The figure, or None where there is none.
        remark (str): What the last column says.
    """

    what: str
    target: float
    more: bool
    measured: float | None
    remark: str = ""


def table(head: list[str], rows: list[list]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(c) for c in line) + " |" for line in lines)


def ms(time: dict | None, key: str = "median_ms") -> str:
    """Return a time in three digits, or "red" where the check was red and there is no time."""
    return "red" if time is None else f"{time[key]:.3g}" if time[key] < 1000 else f"{time[key]:.0f}"


def times(ratio: float | None) -> str:
    """Return a ratio for a table."""
    return "" if ratio is None else f"{ratio:.2f}" if ratio < 10 else f"{ratio:.0f}"


def quotient(a: float | None, b: float | None) -> float | None:
    """Return a / b, or None where one is missing."""
    return None if a is None or b is None else a / b


def median_of(rows: list[dict], key: str, **which) -> float | None:
    """Return the median under `key` of the one row that has these values, or None where there is none or it is red."""
    found = [r[key]["median_ms"] for r in rows if r[key] and all(r[k] == v for k, v in which.items())]
    if len(found) > 1:
        raise SystemExit(f"{len(found)} rows of a result have {which}")
    return found[0] if found else None


def source(result: dict, command: str) -> str:
    """Return the line that says where figures come from."""
    e, later = result["environment"], result.get("committed_as")
    commit = f"{later}, measured before it was committed" if later else e["commit"][:10]
    load = result.get("load_average")
    busy = "" if load is None else f", load average {load:.1f} when it began"
    threads = result.get("settings", {}).get("threads", e["threads"])
    if isinstance(threads, list):
        threads = " and ".join(map(str, threads))
    return (
        f"{e['cpu']}, {threads} thread{'' if threads in (1, '1') else 's'}, torch {e['torch']}, {result['date']}, "
        f"commit {commit}{busy}; `{command}`."
    )


def earlier(result: dict, *names: str) -> str:
    """Return a line that names the rows of a result which an earlier run left, with their commits; "" if all are new.

    Args:
        result (dict): The result, whose rows have a "commit" each.
        *names (str): Keys by which rows are called: the first that a row has.
    """
    found: dict[str, list[str]] = {}
    for row in result["rows"]:
        commit = row.get("commit", "")[:10]
        what = next(row[name] for name in names if name in row)
        what = f"{what}, {row['threads']} threads" if row.get("threads", 1) > 1 else what
        if commit and not result["environment"]["commit"].startswith(commit) and what not in found.get(commit, []):
            found.setdefault(commit, []).append(what)
    return ". ".join(f"Measured at commit {commit}: {'; '.join(names)}" for commit, names in found.items())


def verdicts(goals: list[Goal]) -> str:
    """Return the table of targets."""
    rows = []
    for goal in goals:
        met = goal.measured is not None and (
            goal.measured >= goal.target if goal.more else goal.measured <= goal.target
        )
        verdict = "not measured" if goal.measured is None else "met" if met else "**missed**"
        target = f"{'at least' if goal.more else 'at most'} {goal.target}"
        rows.append([goal.what, target, times(goal.measured), verdict, goal.remark])
    return table(["what", "target", "measured", "", ""], rows)
