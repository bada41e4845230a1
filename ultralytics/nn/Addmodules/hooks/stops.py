# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Which checkpoint goes on with the training of this process, if somebody stops it."""

from __future__ import annotations

from pathlib import Path

__all__ = ("checkpoint_to_resume", "remember_training")

_training: list[tuple[Path, int | None]] = []  # last.pt, and the time of one that an earlier training left there


def remember_training(trainer) -> None:
    """Keep where a training writes its last.pt; a callback for its start."""
    file = Path(trainer.last)
    earlier = file.is_file() and not getattr(trainer, "resume", False)
    _training[:] = [(file, file.stat().st_mtime_ns if earlier else None)]


def checkpoint_to_resume() -> Path | None:
    """Return the last.pt of the training, or None before the end of its first epoch."""
    for file, earlier in _training:
        if file.is_file() and file.stat().st_mtime_ns != earlier:
            return file
    return None
