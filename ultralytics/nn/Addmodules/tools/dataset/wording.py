# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""How counts and lists are written."""

from __future__ import annotations

from collections.abc import Sequence

from ..report_rows import columns

__all__ = ("aligned", "some")

SHOWN = 3  # files named for one problem


def some(items: Sequence[str]) -> str:
    """Return the first of some texts, and how many more there are."""
    more = f" and {len(items) - SHOWN} more" if len(items) > SHOWN else ""
    return "; ".join(items[:SHOWN]) + more


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows with their columns aligned, the first to the left."""
    widths = [max(map(columns, column)) for column in zip(*rows)]
    lines = []
    for first, *rest in rows:
        cells = [first + " " * (widths[0] - columns(first))]
        cells += [cell.rjust(w) for w, cell in zip(widths[1:], rest)]
        lines.append("  ".join(cells).rstrip())
    return lines
