# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Mean, spread and paired differences over seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

__all__ = ("Difference", "deviation", "mean", "paired", "student")


class Difference(NamedTuple):
    """Mean of paired differences and the ends of its 95 % interval, which are None for a single pair."""

    mean: float
    low: float | None
    high: float | None
    pairs: int

    @property
    def shown(self) -> bool:
        """Return whether the interval leaves out zero."""
        return self.low is not None and (self.low > 0 or self.high < 0)


def mean(values: Sequence[float]) -> float:
    """Return the arithmetic mean."""
    return math.fsum(values) / len(values)


def deviation(values: Sequence[float]) -> float | None:
    """Return the standard deviation of a sample, divisor n - 1; None for a single value."""
    if len(values) < 2:
        return None
    middle = mean(values)
    return math.sqrt(math.fsum((v - middle) ** 2 for v in values) / (len(values) - 1))


def paired(ours: dict[int, float], theirs: dict[int, float]) -> Difference | None:
    """Return ours minus theirs over the seeds that both have, with Student's interval; None without such a seed.

    Examples:
        >>> paired({0: 3.0, 1: 5.0}, {0: 1.0, 1: 2.0, 2: 9.0}).mean
        2.5
    """
    differences = [ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())]
    if not differences:
        return None
    middle, n = mean(differences), len(differences)
    if n < 2:
        return Difference(middle, None, None, n)
    half = student(n - 1) * deviation(differences) / math.sqrt(n)
    return Difference(middle, middle - half, middle + half, n)


def student(freedom: int, level: float = 0.95) -> float:
    """Return t such that a Student variable lies within -t and t with probability `level`.

    Examples:
        >>> round(student(2), 3)
        4.303
    """
    low, high = 0.0, 1.0
    while _within(high, freedom) < level:
        low, high = high, 2 * high
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, freedom) < level else (low, middle)
    return (low + high) / 2


def _within(t: float, freedom: int) -> float:
    """Return the probability that a Student variable lies within -t and t.

    Source:
        Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.3 and 26.7.4, exact for whole degrees.
    """
    angle = math.atan(t / math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    term, total = 1.0, 0.0
    for k in range(freedom % 2 + 2, freedom + 1, 2):  # 1 + cos^2 / 2 + ... for even, 1 + 2 cos^2 / 3 + ... for odd
        total += term
        term *= cosine**2 * (k - 1) / k
    return sine * total if freedom % 2 == 0 else 2 / math.pi * (angle + sine * cosine * total)
