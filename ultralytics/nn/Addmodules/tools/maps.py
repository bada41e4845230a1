# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Maps of a data set, which some tasks read instead of label files: a class or a distance for each pixel."""

from __future__ import annotations

from pathlib import Path

import numpy as np

__all__ = ("DEPTH", "IGNORED", "MASKS", "Maps", "beside", "count_maps", "maps_of")

MASKS, DEPTH = "masks", "depth maps"
IGNORED = 255  # the number of a mask's pixels that count for no class


class Maps:
    """Where the maps of a data set are.

    Args:
        file (str): The data YAML, for messages.
        kind (str): MASKS or DEPTH.
        data (dict): What upstream reads of the YAML.

    Attributes:
        kind (str): As given.
        folder (str): Of the maps; it stands for the last `images` in the path of a picture.
        endings (tuple[str, ...]): Of their names, the usual one first.
        table (np.ndarray): For each number in a mask its class, uint8 (256,).
        scale (float): A distance in a PNG file, in metres, is its number divided by this.

    Raises:
        ValueError: If the YAML describes them wrongly.
    """

    def __init__(self, file: str, kind: str, data: dict) -> None:
        """Read and check what the YAML says of them."""
        from ultralytics.data.utils import IMG_FORMATS

        self.kind, self.table, self.scale = kind, np.arange(256, dtype=np.uint8), 1000.0
        if kind == DEPTH:
            self.folder, self.endings = "depth", (".png", ".npy")
            self.scale = data.get("depth_scale", self.scale)
            if isinstance(self.scale, bool) or not isinstance(self.scale, (int, float)) or not 0 < self.scale < np.inf:
                raise ValueError(f"data={file}: depth_scale={self.scale!r} must be a number above zero, as 1000")
            return
        self.folder = data.get("masks_dir") or "masks"
        self.endings = ".png", *(f".{end}" for end in sorted(IMG_FORMATS) if end != "png")
        if not isinstance(self.folder, str) or Path(self.folder).is_absolute():
            raise ValueError(
                f"data={file}: masks_dir={self.folder!r} must be the name of a folder beside images, as masks"
            )
        self._map_numbers(file, data.get("label_mapping"))

    def _map_numbers(self, file: str, mapping: object) -> None:
        """Enter `label_mapping` of the YAML: the class of each number, or ignore_label."""
        if mapping is None:
            return
        try:
            for number, to in mapping.items():
                to = IGNORED if to is None or str(to).strip() == "ignore_label" else int(to)
                if 0 <= int(number) <= IGNORED:  # upstream allows others, which no pixel has
                    self.table[int(number)] = range(IGNORED + 1).index(to)
        except (AttributeError, TypeError, ValueError) as e:
            raise ValueError(
                f"data={file}: label_mapping={mapping!r} must give a class or ignore_label for numbers in the masks, "
                "as {7: 0, 8: 1, 9: ignore_label}"
            ) from e

    def any(self, images: list[str]) -> bool:
        """Return whether one of some pictures has a map."""
        folders = {path.parent for image in images for path in beside(image, self.folder, self.endings[0])}
        return any(folder.is_dir() for folder in folders) and any(self.of(image) is not None for image in images)

    def of(self, image: str) -> Path | None:
        """Return the map of a picture, if there is one."""
        return next((path for path in beside(image, self.folder, *self.endings) if path.is_file()), None)


def maps_of(file: str, task: str, data: dict) -> Maps | None:
    """Return the maps that a task reads instead of label files, if it reads some.

    Args:
        file (str): The data YAML, for messages.
        task (str): Of the models.
        data (dict): What upstream reads of the YAML.

    Raises:
        ValueError: If the YAML describes them wrongly.
    """
    if task == "depth":
        return Maps(file, DEPTH, data)
    return Maps(file, MASKS, data) if task == "semantic" and data.get("masks_dir") else None


def beside(image: str, folder: str, *endings: str) -> list[Path]:
    """Return where the map of a picture may lie: in `folder`, which stands for the last `images` of its path.

    Args:
        image (str): The picture.
        folder (str): Of the maps.
        endings (str): Of their names.
    """
    parts = Path(image).parts
    if "images" not in parts:
        return []
    place = len(parts) - 1 - parts[::-1].index("images")
    return [Path(*parts[:place], folder, *parts[place + 1 :]).with_suffix(ending) for ending in endings]


def count_maps(none: str, images: list[str], maps: Maps) -> int:
    """Return how many pictures have a map.

    Args:
        none (str): What to say if none has one; where the first one is looked for follows.
        images (list[str]): Pictures.
        maps (Maps): Where they are.

    Raises:
        FileNotFoundError: If none has one.
    """
    found = sum(maps.of(image) is not None for image in images)
    if not found:
        first = next(iter(beside(images[0], maps.folder, *maps.endings)), None)
        where = f"expected for example '{first}'" if first else f"and '{images[0]}' is in no folder called images"
        raise FileNotFoundError(f"{none}, {where}")
    return found
