# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""The upkeep tool: brings the pinned upstream release, lays it around this fork's files and applies `patches/series`.

Standard library only, because setup.py runs it before anything is installed. Setting up needs no git; moving edits
between the tree and the series is done by git itself.
"""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / ".upstream"  # all state lives here: ignored by git; patches/README.md says what may be deleted
EXTRACT = "python -m patches extract NAME -m 'what it does' -m 'Why. Drop when ...'"  # as every message says it


class PatchesError(RuntimeError):
    """An expected failure: its text says what is wrong, with which value, and what to do next."""
