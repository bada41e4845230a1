# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""A data set, read with the code that reads it for a training."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..data import SPLITS, about_data, list_images
from ..maps import DEPTH, MASKS, Maps, count_maps
from ..upstream import offline, quiet
from .labels import Labels, read_labels
from .maps import Depths, Masks, read_maps
from .split import Split

__all__ = ("KINDS", "DataSet", "read_data")

KINDS = {"masks": MASKS, "depth": DEPTH}  # what `read=` calls them


@dataclass(frozen=True)
class DataSet:
    """A data set.

    Attributes:
        file (str): Its YAML, as it was given.
        names (dict[int, str]): Classes, by the number that they have in labels or masks; distances have none.
        splits (dict[str, Split]): Train, val, and test if the YAML names one, all of one kind.
        unread (tuple[str, ...]): What else describes pictures of the set: values of `read`.
    """

    file: str
    names: dict[int, str]
    splits: dict[str, Split]
    unread: tuple[str, ...] = ()


def read_data(file: str, read: str | None = None) -> DataSet:
    """Return what a training would read of a data set.

    Args:
        file (str): Its YAML.
        read (str, optional): labels, masks or depth; without it labels, if they have objects, else what is there.

    Raises:
        FileNotFoundError: If a split that a training reads has no pictures, or no picture has what `read` names.
        ValueError: If the YAML cannot be used.
    """
    found, pictures = _pictures(file)
    images = [image for split in pictures.values() for image in split.images]
    if read in KINDS:
        maps = Maps(file, KINDS[read], found)
        count_maps(f"data={file}: no {maps.kind} for any picture", images, maps)
        return _with_maps(file, found, pictures, maps)
    splits = {name: read_labels(split.images, found) if split.images else split for name, split in pictures.items()}
    objects = any(split.counts() for split in splits.values())
    folder = found.get("masks_dir")
    known = {"masks_dir": folder if isinstance(folder, str) else None} if objects else found
    kinds = {name: Maps(file, kind, known) for name, kind in KINDS.items()} if read is None else {}
    there = [name for name, maps in kinds.items() if maps.any(images)]
    meant = [name for name, key in (("masks", "masks_dir"), ("depth", "depth_scale")) if found.get(key) and kinds]
    if objects or not (there or meant):
        return DataSet(file, dict(found["names"]), splits, tuple(there))
    first = (there or meant)[0]
    return _with_maps(file, found, pictures, kinds[first], tuple(there[1:]))


def _with_maps(
    file: str, found: dict, pictures: dict[str, Labels], maps: Maps, unread: tuple[str, ...] = ()
) -> DataSet:
    """Return a data set whose pictures have maps."""
    names = dict(found["names"])
    if maps.kind == DEPTH:
        names = {}
    elif len(names) == 1:
        names = {0: f"not {names[0]}", 1: names[0]}  # as upstream reads masks of a single class
    kind = Depths if maps.kind == DEPTH else Masks
    splits = {
        name: read_maps(split.images, found, maps) if split.images else kind([], split.without)
        for name, split in pictures.items()
    }
    return DataSet(file, names, splits, unread)


def _pictures(file: str) -> tuple[dict, dict[str, Labels]]:
    """Return what upstream reads of a YAML, and splits of which nothing but the pictures is known."""
    from ultralytics.data.utils import check_det_dataset

    folder = Path(file)
    if folder.is_dir() and not any(next(folder.rglob(ending), None) for ending in ("*.yaml", "*.yml")):
        raise ValueError(
            f"data={file} is a folder without a YAML: give the YAML of a set for detection; a set for classification "
            "has no label files to look at"
        )
    try:
        with quiet(), offline():
            found = check_det_dataset(file, autodownload=False)
    except Exception as e:  # of many kinds: a path, YAML or a wrong value
        raise ValueError(about_data(file, e)) from e
    splits = {}
    for name in SPLITS:
        if name == "test" and not found.get(name):
            continue
        try:
            splits[name] = Labels(list_images(found.get(name), f"no pictures in the {name} split"))
        except FileNotFoundError as e:
            if name != "test":
                raise FileNotFoundError(f"data={file}: {e}") from e
            splits[name] = Labels([], str(e))
    return found, splits
