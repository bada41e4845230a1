# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Checks of constructor arguments, shared by layers and by the parser of model YAMLs.

Each layer class has a class method `check` beside its constructor. It takes the arguments by name and raises
where one is wrong. The constructor calls it first. The parser calls it for a row, so that a row is checked without
building the layer.
"""

from __future__ import annotations

import inspect
import math
from types import SimpleNamespace

__all__ = ("arguments", "flag", "odd", "positive_int", "positive_number")


def arguments(layer: type, *args: object, **kwargs: object) -> SimpleNamespace:
    """Return what a constructor would get from these arguments, by name, with its defaults.

    Raises:
        TypeError: If the constructor takes other arguments.
    """
    bound = inspect.signature(layer).bind(*args, **kwargs)
    bound.apply_defaults()
    return SimpleNamespace(**bound.arguments)


def positive_int(owner: str, **values: object) -> None:
    """Raise unless every value is an integer of at least 1."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{owner}: {name} must be an integer, got {value!r} ({type(value).__name__})")
        if value < 1:
            raise ValueError(f"{owner}: {name} must be at least 1, got {value}")


def positive_number(owner: str, **values: object) -> None:
    """Raise unless every value is a finite number above 0."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(f"{owner}: {name} must be a number, got {value!r} ({type(value).__name__})")
        if not 0 < value < math.inf:
            raise ValueError(f"{owner}: {name} must be positive, got {value}")


def odd(owner: str, **values: object) -> None:
    """Raise unless every value is an odd integer of at least 1."""
    positive_int(owner, **values)
    for name, value in values.items():
        if value % 2 == 0:
            raise ValueError(f"{owner}: {name} must be odd, got {value}")


def flag(owner: str, **values: object) -> None:
    """Raise unless every value is True or False."""
    for name, value in values.items():
        if not isinstance(value, bool):
            raise TypeError(f"{owner}: {name} must be True or False, got {value!r}")
