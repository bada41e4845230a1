# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Upstream's code as commands of ours call it: without its lines, without the network, its errors as one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ("offline", "one_line", "quiet")


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Ultralytics' own lines off the screen."""
    from ultralytics.utils import LOGGER

    level = LOGGER.level
    LOGGER.setLevel("ERROR")
    try:
        yield
    finally:
        LOGGER.setLevel(level)


@contextmanager
def offline() -> Iterator[None]:
    """Keep Ultralytics from looking for fonts and updates, and from reporting to any service, while a block runs."""
    from ultralytics.data import utils as data_utils
    from ultralytics.utils import callbacks, checks

    places = (
        (data_utils, "check_font", lambda font="": None),
        (callbacks, "add_integration_callbacks", lambda instance: None),
        (checks, "check_pip_update_available", lambda: False),
    )
    before = [getattr(module, name) for module, name, _ in places]
    for module, name, nothing in places:
        setattr(module, name, nothing)
    try:
        yield
    finally:
        for (module, name, _), old in zip(places, before):
            setattr(module, name, old)


def one_line(e: BaseException) -> str:
    """Return what an exception says, as one line."""
    return " ".join(str(e).split()) or type(e).__name__
