# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""What a training would read of one split, whatever describes its pictures: label files, masks or depth maps."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import ClassVar

from .wording import some

__all__ = ("Split", "read_only", "reason")

OF_ARRAYS = "memory-map", "mmap"  # in messages on .npy files that are no arrays of numbers, or end early


@dataclass
class Split(ABC):
    """A split.

    Attributes:
        images (list[str]): Picture files.
        without (str): Why there are none: only a test split may have none, which a training does not read.
        places (dict[str, str]): Where the description of each picture is looked for: a label file, mask or depth map.
        sizes (dict[str, tuple[int, int]]): Height and width of each picture that a training would take.
        missing (list[str]): Pictures without a description.
        ignored (dict[str, str]): Why it would leave out a picture, by its file.
        remarks (dict[str, str]): What it would mend, by file.
    """

    NOUN: ClassVar[str]  # what describes a picture
    PART: ClassVar[str]  # what is counted by class
    HEAD: ClassVar[tuple[str, ...]]  # titles of its numbers in the table

    images: list[str]
    without: str = ""
    places: dict[str, str] = field(default_factory=dict)
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    ignored: dict[str, str] = field(default_factory=dict)
    remarks: dict[str, str] = field(default_factory=dict)

    def place(self, image: str) -> str:
        """Return where the description of a picture is looked for first."""
        return self.places[image]

    def endings(self) -> tuple[str, ...]:
        """Return how names of descriptions end."""
        return (".txt",)

    @abstractmethod
    def numbers(self) -> list[int]:
        """Return the numbers below HEAD."""

    @abstractmethod
    def counts(self) -> Counter:
        """Return how many objects, or pixels, each class has."""

    @abstractmethod
    def shown(self) -> dict[str, Counter]:
        """Return the pictures that are worth a look, and how much of each class they show."""


def reason(said: str, noun: str, place: str, image: str) -> str:
    """Return why a picture would be left out.

    Args:
        said (str): Upstream's message, or that of an exception.
        noun (str): What describes the picture.
        place (str): File of the description.
        image (str): The picture.
    """
    why = " ".join(re.split(r"ignoring corrupt image/\w+: ", said)[-1].split())
    if why.startswith("[Errno 2]"):
        return "there is no such file"
    if any(sign in why for sign in OF_ARRAYS):
        return f"its {noun} is damaged"
    if "pi_heif" in why or "cannot identify" in why:
        if not place.endswith(".txt") and opens(image):
            return f"its {noun} is damaged"
        return "no picture of a format that can be read here (HEIC needs `pip install pi-heif`)"
    if ids := re.match(r"mask ids \[(.*)\] are not", why):
        return f"its mask has the numbers {some(ids[1].split(', '), between=', ')}, which are no classes"
    if "out of bounds for axis" in why:
        return "its mask has numbers above 255"
    if "arrays used as indices" in why:
        return "its mask has numbers that are not whole"
    if why == "division by zero":
        return f"its {noun} is empty"
    return why.replace(f" {place}", "") or "it cannot be read"


def opens(image: str) -> bool:
    """Return whether a file is a picture."""
    from PIL import Image

    try:
        with Image.open(image):
            return True
    except Exception:  # of many kinds: upstream tries to read HEIC, too
        return False


@contextmanager
def read_only() -> Iterator[None]:
    """Keep upstream's check of pictures from repairing JPEG files in place, and from installing readers of formats."""
    from ultralytics.data import utils
    from ultralytics.utils import checks

    places = ((utils, "_replace_image", lambda file, write: None), (checks, "check_requirements", lambda *a, **k: True))
    before = {(module, name): getattr(module, name) for module, name, _ in places if hasattr(module, name)}
    for module, name, nothing in places:
        if (module, name) in before:  # older releases lack the first
            setattr(module, name, nothing)
    try:
        yield
    finally:
        for (module, name), old in before.items():
            setattr(module, name, old)
