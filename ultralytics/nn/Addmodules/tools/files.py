# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Files that are whole or not there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ("in_one_step",)


@contextmanager
def in_one_step(file: Path) -> Iterator[Path]:
    """Give a place to write to, `FILE.part`; at the end what lies there becomes the file.

    Whoever is cut short, by a loss of power too, leaves the old file or none, and may leave the .part.
    """
    part = file.with_name(f"{file.name}.part")
    part.unlink(missing_ok=True)  # of one who was cut short
    try:
        yield part
        with part.open("rb+") as written:
            os.fsync(written.fileno())
        part.replace(file)
    except BaseException:  # Ctrl-C, too
        part.unlink(missing_ok=True)
        raise
