# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""How counts and lists are written."""

from __future__ import annotations

from collections.abc import Sequence

from ..report_rows import columns

__all__ = ("aligned", "digits", "part", "some")

SHOWN = 3  # files named for one problem
SMALL = 0.05  # percent: less would be written as 0.0


def some(items: Sequence[str], between: str = "; ") -> str:
    """Return the first of some texts, and how many more there are."""
    more = f" and {len(items) - SHOWN} more" if len(items) > SHOWN else ""
    return between.join(items[:SHOWN]) + more


def part(n: float, of: float) -> str:
    """Return a part in percent, such that only none is 0 and only all is 100."""
    percent = 100 * n / of if of else 0.0
    if n and percent < SMALL:
        return "< 0.1"
    return "> 99.9" if n < of and percent > 100 - SMALL else f"{percent:.1f}" if n else "0"


def digits(metres: float) -> str:
    """Return a distance with three digits, and never with an exponent that hides its size."""
    return f"{metres:.3g}" if 0.001 <= metres < 1000 else f"{metres:.0f}" if metres >= 1000 else f"{metres:.6f}"


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows with their columns aligned, the first to the left."""
    widths = [max(map(columns, column)) for column in zip(*rows)]
    lines = []
    for first, *rest in rows:
        cells = [first + " " * (widths[0] - columns(first))]
        cells += [cell.rjust(w) for w, cell in zip(widths[1:], rest)]
        lines.append("  ".join(cells).rstrip())
    return lines
