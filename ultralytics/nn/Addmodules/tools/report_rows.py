# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Rows of a report, and how they are printed."""

from __future__ import annotations

import re
import sys
import textwrap
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field

__all__ = ("ABSENT", "OK", "PROBLEM", "Row", "columns", "emit", "render")

OK, ABSENT, PROBLEM = "ok", "absent", "problem"
WIDTH = 100


@dataclass(frozen=True)
class Row:
    """One line of the report.

    Attributes:
        item (str): What was looked at.
        state (str): 'ok', 'absent' (not there, and not needed) or 'problem'.
        detail (str): What was found.
        advice (str): What to do; empty where there is nothing to do.
        data (dict): Figures behind the detail, for JSON.
    """

    item: str
    state: str
    detail: str
    advice: str = ""
    data: dict = field(default_factory=dict)


def render(rows: Sequence[Row]) -> str:
    """Return rows as text of at most `WIDTH` columns, where no word is longer; advice stands below its row.

    Examples:
        >>> print(render([Row("nvcc", "absent", "not found", "Nothing to do")]))
        absent   nvcc                not found
                                     -> Nothing to do
    """
    lines = []
    for row in rows:
        state = row.state.upper() if row.state == PROBLEM else row.state
        lines += _wrap(row.detail, f"{state:<9}{row.item:<20}")
        lines += _wrap(row.advice, f"{'':<29}-> ") if row.advice else []
    return "\n".join(lines)


def _wrap(text: str, head: str) -> list[str]:
    """Break text into lines that stand to the right of a heading; commands in backticks stay whole, to be copied."""
    whole = re.sub(r"`[^`]*`", lambda m: m[0].replace(" ", "\0"), text)
    indent = " " * len(head)
    options = {"break_long_words": False, "break_on_hyphens": False}
    lines = textwrap.wrap(whole, WIDTH, initial_indent=head, subsequent_indent=indent, **options)
    return [line.replace("\0", " ") for line in lines] or [head.rstrip()]


def emit(text: str) -> None:
    """Print, whatever the console can show: a Windows console may know few characters beyond ASCII."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)


def columns(text: str) -> int:
    """Return how many columns of a terminal a text takes: a Chinese character takes two."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)
