# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Splits whose pictures have maps: masks of classes, or distances."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..maps import DEPTH, IGNORED, MASKS, Maps
from ..report_rows import PROBLEM, Row
from .split import Split, read_only, reason
from .wording import some

__all__ = ("Depths", "Masks", "Metres", "depth_problems", "map_problems", "read_maps")

NEAREST = 0.001  # metres: upstream's loss takes no distance up to here
COLOURS = "RGB", "RGBA", "CMYK"  # modes of pictures with a colour for each pixel
SATURATED = 65535  # the largest number of a PNG file, which cameras write where they know no distance


@dataclass
class WithMaps(Split):
    """A split with masks or depth maps.

    Attributes:
        files (dict[str, str]): The map of each picture that a training would take.
        maps (Maps): What their numbers mean.
    """

    files: dict[str, str] = field(default_factory=dict)
    maps: Maps | None = None

    def place(self, image: str) -> str:
        """Return where the map of a picture is looked for first."""
        return str(self.maps.places(image)[0])

    def endings(self) -> tuple[str, ...]:
        """Return how names of maps end."""
        return self.maps.endings if self.maps else ()

    def numbers(self) -> list[int]:
        """Return the numbers below HEAD."""
        return [len(part) for part in (self.images, self.files, self.missing, self.ignored)]


@dataclass
class Masks(WithMaps):
    """A split with masks.

    Attributes:
        pixels (dict[str, Counter]): Pixels of each class, by picture that a training would take; those of IGNORED count
            for no class.
        modes (dict[str, str]): Kind of each mask that can be opened, as PIL names it.
    """

    NOUN, PART, HEAD = "mask", "pixel", ("pictures", "with a mask", "no mask", "left out")

    pixels: dict[str, Counter] = field(default_factory=dict)
    modes: dict[str, str] = field(default_factory=dict)

    def counts(self) -> Counter:
        """Return how many pixels each class has."""
        return sum(self.pixels.values(), Counter())

    def shown(self) -> dict[str, Counter]:
        """Return the pictures with a class, and the pixels of each class."""
        found = {file: Counter({i: n for i, n in of.items() if i != IGNORED}) for file, of in self.pixels.items()}
        return {file: pixels for file, pixels in found.items() if pixels}

    def map(self, image: str) -> np.ndarray:
        """Return the classes of a picture's pixels, uint8 (H, W)."""
        from ultralytics.data.utils import read_mask

        return self.maps.table[read_mask(self.files[image], self.modes[image])]

    def measure(self, image: str) -> Counter:
        """Return the pixels of each class in a picture's mask."""
        counts = np.bincount(self.map(image).ravel(), minlength=IGNORED + 1)
        return Counter({int(i): int(counts[i]) for i in np.flatnonzero(counts)})

    def take(self, image: str, label: dict) -> None:
        """Enter a picture with upstream's facts of it."""
        self.files[image], self.modes[image] = label["mask_file"], label["mode"]

    def leave(self, image: str) -> None:
        """Enter what can be known of a picture that a training leaves out."""
        from PIL import Image

        try:
            with Image.open(self.maps.of(image)) as opened:
                self.modes[image] = opened.mode
        except Exception:  # of many kinds: upstream tries to read HEIC, too
            return

    def add(self, image: str, found: Counter) -> None:
        """Enter what `measure` found."""
        self.pixels[image] = found


class Metres(NamedTuple):
    """Distances of one map: the smallest, the middle and the largest, or NaN; what part of the pixels has which.

    Args:
        smallest (float): Distance.
        middle (float): Their median.
        largest (float): Distance.
        without (float): Part of the pixels without a distance.
        useless (float): Part of the distances that upstream's loss or its validation leaves out.
        saturated (bool): Whether there is a pixel of SATURATED in a PNG file.
    """

    smallest: float
    middle: float
    largest: float
    without: float
    useless: float
    saturated: bool


@dataclass
class Depths(WithMaps):
    """A split with depth maps.

    Attributes:
        metres (dict[str, Metres]): By picture whose map can be read.
        broken (dict[str, str]): Why a map cannot be read that a training would try to read.
    """

    NOUN, PART, HEAD = "depth map", "distance", ("pictures", "with a depth map", "no depth map", "left out")

    metres: dict[str, Metres] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)

    def counts(self) -> Counter:
        """Return nothing: distances have no classes."""
        return Counter()

    def shown(self) -> dict[str, Counter]:
        """Return the pictures with distances."""
        return {file: Counter() for file, metres in self.metres.items() if metres.without < 1}

    def map(self, image: str) -> np.ndarray:
        """Return the distances of a picture's pixels in metres, float32 (H, W), 0 where there is none."""
        from ultralytics.data.utils import load_depth

        with np.errstate(over="ignore"):  # float64 beyond float32 counts as no distance
            return load_depth(self.files[image], self.maps.scale)

    def measure(self, image: str) -> Metres | str:
        """Return the distances in a picture's depth map, or why it cannot be read."""
        try:
            metres = self.map(image)
        except Exception as e:  # of many kinds: a file that ends too early
            return reason(str(e), self.NOUN, self.files[image], image)
        known = metres[metres > 0]
        ends = (float(of(known)) if known.size else np.nan for of in (np.min, np.median, np.max))
        useless = (known <= NEAREST) | (known >= self.maps.farthest)
        saturated = self.files[image].endswith(".png") and bool((known * self.maps.scale > SATURATED - 0.5).any())
        return Metres(*ends, 1 - known.size / metres.size, float(useless.mean()) if known.size else 0.0, saturated)

    def take(self, image: str, label: dict) -> None:
        """Enter a picture with upstream's facts of it."""
        self.files[image] = self.places[image]

    def leave(self, image: str) -> None:
        """Do nothing: upstream's reason is enough."""

    def add(self, image: str, found: Metres | str) -> None:
        """Enter what `measure` found."""
        if isinstance(found, str):
            self.broken[image] = found
        else:
            self.metres[image] = found


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
    with read_only(), warnings.catch_warnings(), ThreadPool(NUM_THREADS) as pool:
        warnings.simplefilter("ignore", RuntimeWarning)  # NumPy's, on maps that are reported
        for image, result in zip(images, pool.imap(verify, work)):
            label, missing, _, _, _, message = reader.result_to_label(result)
            if missing:
                split.missing.append(image)
            elif label is None:
                split.ignored[image] = reason(message, split.NOUN, split.places[image], image)
                split.leave(image)
            else:
                split.sizes[image] = label["shape"]
                split.take(image, label)
                if message:
                    split.remarks[image] = message.removeprefix(f"{image}: ")
        for image, found in zip(split.files, pool.imap(split.measure, split.files)):
            split.add(image, found)
    return split


def _reader(images: list[str], data: dict, maps: Maps) -> object:
    """Return upstream's data set, without the scan of all files and the cache that its constructor writes."""
    from ultralytics.data.dataset import DepthDataset, SemanticDataset

    reader = object.__new__(DepthDataset if maps.kind == DEPTH else SemanticDataset)
    reader.data, reader.im_files, reader.prefix = {**data, "masks_dir": maps.folder}, images, ""
    reader.label_lut = maps.table
    return reader


def map_problems(splits: dict[str, Masks | Depths]) -> Iterator[Row]:
    """Yield rows on maps that a training does not read, or reads in place of others."""
    maps = next((split.maps for split in splits.values() if split.maps), None)
    if maps is not None and not maps.named:
        yield Row(
            "masks",
            PROBLEM,
            "a training does not read these masks, because the YAML does not name their folder",
            f"Add the line masks_dir: {maps.folder}. Without it a training takes label files",
        )
    for name, split in splits.items():
        own = [image for image, file in split.files.items() if Path(file) == Path(image)]
        if own:
            names = some([Path(image).name for image in own])
            yield Row(
                name,
                PROBLEM,
                f"pictures that are taken as their own {split.NOUN}: {len(own)} ({names})",
                "The path of a picture must contain /images/, as in mydata/images/train/a.jpg",
            )
        several = [image for image in split.files if sum(path.is_file() for path in split.maps.places(image)) > 1]
        if several:
            names = some([Path(image).name for image in several])
            last = "then .npy" if split.maps.kind == DEPTH else "and without it any other"
            yield Row(
                name,
                PROBLEM,
                f"pictures with several {split.NOUN}s: {len(several)} ({names})",
                f"A training reads the one that ends in .png, {last}. Remove those that are not meant",
            )
        if split.maps and split.maps.kind == MASKS:
            yield from _colours(name, split)


def _colours(name: str, split: Masks) -> Iterator[Row]:
    """Yield a row on masks that hold colours, of which upstream takes the brightness as the number of a class."""
    coloured = [Path(image).name for image, mode in split.modes.items() if mode in COLOURS]
    if coloured:
        detail = f"masks of colours: {len(coloured)} ({some(coloured)})"
        advice = (
            "Each pixel of a mask must hold the number of its class. Replace each colour by that number and save one "
            "channel; a plain conversion to grey gives wrong classes"
        )
        yield Row(name, PROBLEM, detail, advice)


def depth_problems(name: str, split: Depths) -> Iterator[Row]:
    """Yield rows on maps that cannot be read, or teach nothing."""
    if split.broken:
        reasons = [f"{Path(file).name}: {why}" for file, why in split.broken.items()]
        detail = f"depth maps that cannot be read: {len(reasons)} ({some(reasons)})"
        yield Row(name, PROBLEM, detail, "A training ends with an error when it reads one. Write them anew")
    blank = [Path(file).name for file, metres in split.metres.items() if metres.without == 1]
    if blank:
        detail = f"depth maps without a distance: {len(blank)} ({some(blank)})"
        yield Row(name, PROBLEM, detail, "0 means that the distance is not known")
    useless = [Path(file).name for file, metres in split.metres.items() if metres.useless > 0.5]
    if useless:
        yield Row(
            name,
            PROBLEM,
            f"depth maps whose distances are mostly not used: {len(useless)} ({some(useless)})",
            f"A training takes those above {NEAREST} m, a validation those below {split.maps.farthest:g} m. Is "
            f"depth_scale: {split.maps.scale:g} right? max_depth: in the YAML moves the upper end",
        )
    saturated = [Path(file).name for file, metres in split.metres.items() if metres.saturated]
    if saturated:
        yield Row(
            name,
            PROBLEM,
            f"depth maps with pixels of {SATURATED}: {len(saturated)} ({some(saturated)})",
            "That is taken as a distance. If it means that none is known, write 0",
        )
