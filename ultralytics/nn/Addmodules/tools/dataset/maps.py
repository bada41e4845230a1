# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Splits whose pictures have maps: masks of classes, or distances."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..maps import DEPTH, IGNORED, Maps
from ..report_rows import PROBLEM, Row
from .split import Split, read_only, reason
from .wording import some

__all__ = ("Depths", "Masks", "Metres", "depth_problems", "read_maps")


@dataclass
class Masks(Split):
    """A split with masks.

    Attributes:
        pixels (dict[str, Counter]): Pixels of each class, by picture that a training would take; those of IGNORED count
            for no class.
        maps (Maps): Where they are, and what their numbers mean.
    """

    NOUN, PART, HEAD = "mask", "pixel", ("pictures", "with a mask", "no mask", "left out")

    pixels: dict[str, Counter] = field(default_factory=dict)
    maps: Maps | None = None

    def numbers(self) -> list[int]:
        """Return the numbers below HEAD."""
        return [len(part) for part in (self.images, self.pixels, self.missing, self.ignored)]

    def counts(self) -> Counter:
        """Return how many pixels each class has."""
        return sum(self.pixels.values(), Counter())

    def shown(self) -> dict[str, set[int]]:
        """Return the pictures with a class, and the classes of each."""
        found = {file: {*pixels} - {IGNORED} for file, pixels in self.pixels.items()}
        return {file: classes for file, classes in found.items() if classes}

    def map(self, image: str) -> np.ndarray:
        """Return the classes of a picture's pixels, uint8 (H, W)."""
        from PIL import Image

        from ultralytics.data.utils import read_mask

        file = str(self.maps.of(image))
        with Image.open(file) as opened:
            mode = opened.mode
        return self.maps.table[read_mask(file, mode)]

    def measure(self, image: str) -> Counter:
        """Return the pixels of each class in a picture's mask."""
        counts = np.bincount(self.map(image).ravel(), minlength=IGNORED + 1)
        return Counter({int(i): int(counts[i]) for i in np.flatnonzero(counts)})

    def add(self, image: str, found: Counter) -> None:
        """Enter what `measure` found."""
        self.pixels[image] = found


class Metres(NamedTuple):
    """Distances of one map: the smallest, the middle and the largest, and the part of the pixels without one."""

    smallest: float
    middle: float
    largest: float
    without: float


@dataclass
class Depths(Split):
    """A split with depth maps.

    Attributes:
        metres (dict[str, Metres]): By picture that a training would take and whose map has distances.
        blank (list[str]): Pictures whose maps have no distance.
        broken (dict[str, str]): Why a map cannot be read that a training would try to read.
        maps (Maps): Where they are, and what their numbers mean.
    """

    NOUN, PART, HEAD = "depth map", "distance", ("pictures", "with a depth map", "no depth map", "left out")

    metres: dict[str, Metres] = field(default_factory=dict)
    blank: list[str] = field(default_factory=list)
    broken: dict[str, str] = field(default_factory=dict)
    maps: Maps | None = None

    def numbers(self) -> list[int]:
        """Return the numbers below HEAD."""
        return [len(part) for part in (self.images, self.sizes, self.missing, self.ignored)]

    def counts(self) -> Counter:
        """Return nothing: distances have no classes."""
        return Counter()

    def shown(self) -> dict[str, set[int]]:
        """Return the pictures with distances."""
        return {file: set() for file in self.metres}

    def map(self, image: str) -> np.ndarray:
        """Return the distances of a picture's pixels in metres, float32 (H, W), 0 where there is none."""
        from ultralytics.data.utils import load_depth

        return load_depth(str(self.maps.of(image)), self.maps.scale)

    def measure(self, image: str) -> Metres | str | None:
        """Return the distances in a picture's depth map, why it cannot be read, or None if it has no distance."""
        try:
            metres = self.map(image)
        except Exception as e:  # of many kinds: a file that ends too early
            return reason(str(e))
        valid = metres[metres > 0]
        if not valid.size:
            return None
        return Metres(float(valid.min()), float(np.median(valid)), float(valid.max()), 1 - valid.size / metres.size)

    def add(self, image: str, found: Metres | str | None) -> None:
        """Enter what `measure` found."""
        if isinstance(found, Metres):
            self.metres[image] = found
        elif found is None:
            self.blank.append(image)
        else:
            self.broken[image] = found


def read_maps(images: list[str], data: dict, maps: Maps) -> Masks | Depths:
    """Return what a training would read of some pictures.

    Args:
        images (list[str]): Their files.
        data (dict): What upstream reads of the YAML.
        maps (Maps): Where their maps are.
    """
    from ultralytics.utils import NUM_THREADS

    split = Depths(images, maps=maps) if maps.kind == DEPTH else Masks(images, maps=maps)
    reader = _reader(images, data, maps)
    split.places = dict(zip(images, reader.get_label_files()))
    verify, work = reader.verify_args()
    with read_only(), ThreadPool(NUM_THREADS) as pool:
        for image, result in zip(images, pool.imap(verify, work)):
            label, missing, _, _, _, message = reader.result_to_label(result)
            if missing:
                split.missing.append(image)
            elif label is None:
                split.ignored[image] = reason(message)
            else:
                split.sizes[image] = label["shape"]
                if message:
                    split.remarks[image] = message.removeprefix(f"{image}: ")
        for image, found in zip(split.sizes, pool.imap(split.measure, split.sizes)):
            split.add(image, found)
    return split


def _reader(images: list[str], data: dict, maps: Maps) -> object:
    """Return upstream's data set, without the scan of all files and the cache that its constructor writes."""
    from ultralytics.data.dataset import DepthDataset, SemanticDataset

    reader = object.__new__(DepthDataset if maps.kind == DEPTH else SemanticDataset)
    reader.data, reader.im_files, reader.prefix = {**data, "masks_dir": maps.folder}, images, ""
    reader.label_lut = maps.table
    return reader


def depth_problems(name: str, split: Depths) -> Iterator[Row]:
    """Yield rows on maps that cannot be read, or teach nothing."""
    if split.broken:
        reasons = [f"{Path(file).name}: {why}" for file, why in split.broken.items()]
        detail = f"depth maps that cannot be read: {len(reasons)} ({some(reasons)})"
        yield Row(name, PROBLEM, detail, "A training ends with an error when it reads one. Write them anew")
    if split.blank:
        detail = f"depth maps without a distance: {len(split.blank)} ({some([Path(f).name for f in split.blank])})"
        yield Row(name, PROBLEM, detail, "0 means that the distance is not known")
