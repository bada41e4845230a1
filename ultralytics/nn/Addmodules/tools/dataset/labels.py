# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Splits whose pictures have label files: boxes, outlines, corners or keypoints of objects."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import repeat
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np

from ..report_rows import PROBLEM, Row
from .split import Split, read_only, reason
from .wording import some

__all__ = ("Labels", "box_problems", "outline_problems", "read_labels")

OVER = 0.01  # of a picture's side: by so much a box may reach beyond the picture, as upstream tolerates
THIN = 2  # pixels: boxes below are dropped by upstream's augmentation


@dataclass
class Labels(Split):
    """A split with label files.

    Attributes:
        labels (dict[str, np.ndarray]): Of each picture that a training would take: float (N, 5), class and box, centre
            and size as parts of the picture's sides.
        empty (list[str]): Pictures with an empty label file.
        polygons (int): Pictures whose objects have outlines.
    """

    NOUN, PART = "label file", "object"
    HEAD = "pictures", "with objects", "empty", "no label file", "left out", "objects"

    labels: dict[str, np.ndarray] = field(default_factory=dict)
    empty: list[str] = field(default_factory=list)
    polygons: int = 0

    def numbers(self) -> list[int]:
        """Return the numbers below HEAD."""
        parts = (self.images, self.shown(), self.empty, self.missing, self.ignored)
        return [*map(len, parts), self.counts().total()]

    def counts(self) -> Counter:
        """Return how many objects each class has."""
        return Counter(int(c) for rows in self.labels.values() for c in rows[:, 0])

    def shown(self) -> dict[str, Counter]:
        """Return the pictures with objects, and how many of each class they show."""
        return {file: Counter(map(int, rows[:, 0])) for file, rows in self.labels.items() if len(rows)}


def read_labels(images: list[str], data: dict) -> Labels:
    """Return what a training would read of some pictures.

    Args:
        images (list[str]): Their files.
        data (dict): What upstream reads of the YAML.
    """
    from ultralytics.data.utils import img2label_paths, verify_image_label
    from ultralytics.utils import NUM_THREADS

    points, numbers = data.get("kpt_shape") or (0, 0)
    settings = ("", bool(points), len(data["names"]), points, numbers, False)
    files = img2label_paths(images)
    work = zip(images, files, *map(repeat, settings))
    split = Labels(images, places=dict(zip(images, files)))
    with read_only(), ThreadPool(NUM_THREADS) as pool:
        for image, result in zip(images, pool.imap(verify_image_label, work)):
            file, rows, shape, segments, _, missing, _, empty, _, message = result
            if file is None:
                split.ignored[image] = reason(message, split.NOUN, split.places[image], image)
                continue
            split.labels[image], split.sizes[image] = rows, shape
            split.polygons += bool(segments)
            if missing:
                split.missing.append(image)
            if empty:
                split.empty.append(image)
            if message:
                split.remarks[image] = message.removeprefix(f"{image}: ")
    return split


def box_problems(name: str, split: Labels) -> Iterator[Row]:
    """Yield rows on boxes that reach beyond their picture, or are too thin to be learned."""
    over, thin = Counter(), Counter()
    for file, rows in split.labels.items():
        height, width = split.sizes[file]
        centre, size = rows[:, 1:3], rows[:, 3:5]
        beyond = (centre - size / 2 < -OVER) | (centre + size / 2 > 1 + OVER)
        over[Path(file).name] += int(beyond.any(1).sum())
        thin[Path(file).name] += int((size * [width, height] < THIN).any(1).sum())
    for found, what, advice in (
        (
            over,
            "that reach beyond their picture",
            "Are they corners, or of a picture of another size?",
        ),
        (thin, f"thinner than {THIN} pixels", "A training drops them, and those that are as thin at its imgsz"),
    ):
        if total := found.total():
            files = [file for file, n in found.items() if n]
            yield Row(name, PROBLEM, f"boxes {what}: {total}, in {some(files)}", advice)


def outline_problems(splits: list[Labels]) -> Iterator[Row]:
    """Yield a row if some pictures have outlines and others boxes."""
    outlined = sum(split.polygons for split in splits)
    filled = sum(len(split.shown()) for split in splits)
    if 0 < outlined < filled:
        detail = f"pictures with outlines: {outlined}, with boxes: {filled - outlined}"
        yield Row("kind", PROBLEM, detail, "Ultralytics drops all outlines of such a split")
