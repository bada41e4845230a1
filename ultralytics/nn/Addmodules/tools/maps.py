# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Maps of a data set, which some tasks read instead of label files: a class or a distance for each pixel."""

from __future__ import annotations

from pathlib import Path

import numpy as np

__all__ = ("DEPTH", "IGNORED", "MASKS", "Maps", "count_maps", "maps_of")

MASKS, DEPTH = "masks", "depth maps"
IGNORED = 255  # the number of a mask's pixels that count for no class


class Maps:
    """Where the maps of a data set are, and what their numbers mean.

    Args:
        file (str): The data YAML, for messages.
        kind (str): MASKS or DEPTH.
        data (dict): What upstream reads of the YAML.

    Attributes:
        kind (str): As given.
        folder (str): Of the maps; it stands for the last `images` in the path of a picture.
        endings (tuple[str, ...]): Of their names, the usual one first.
        named (bool): Whether a training reads them: for masks the YAML must name the folder.
        table (np.ndarray): For each number in a mask its class, uint8 (256,).
        scale (float): A distance in a PNG file, in metres, is its number divided by this.
        farthest (float): Distances from here on are left out of a validation.

    Raises:
        ValueError: If the YAML describes them wrongly.
    """

    def __init__(self, file: str, kind: str, data: dict) -> None:
        """Read and check what the YAML says of them."""
        from ultralytics.data.utils import IMG_FORMATS

        self.kind, self.table, self.scale = kind, np.arange(256, dtype=np.uint8), data.get("depth_scale", 1000)
        self.farthest = data.get("max_depth") or 100.0
        if kind == DEPTH:
            self.folder, self.endings, self.named = "depth", (".png", ".npy"), True
            for key, value in (("depth_scale", self.scale), ("max_depth", self.farthest)):
                if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < np.inf:
                    raise ValueError(f"data={file}: {key}={value!r} must be a number above zero, as 1000")
            return
        self.folder, self.named = data.get("masks_dir") or "masks", bool(data.get("masks_dir"))
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

    def places(self, image: str) -> list[Path]:
        """Return where the map of a picture may be, the usual place first; never the picture itself."""
        from ultralytics.data.utils import img2label_paths

        if self.kind == MASKS:
            found = [Path(img2label_paths([image], self.folder, ending)[0]) for ending in self.endings]
        else:
            *before, name = Path(image).parts
            if "images" in before:  # the last one, as in upstream's DepthDataset
                before[len(before) - 1 - before[::-1].index("images")] = self.folder
            found = [Path(*before, name).with_suffix(ending) for ending in self.endings]
        return [path for path in found if path != Path(image)]

    def of(self, image: str) -> Path | None:
        """Return the map of a picture, if there is one."""
        return next((path for path in self.places(image) if path.is_file()), None)

    def any(self, images: list[str]) -> bool:
        """Return whether one of some pictures has a map; one among the pictures counts if the YAML names masks."""
        own = self.kind == MASKS and self.named
        usual = ((image, self.places(image)[0].parent) for image in images)
        folders = {image: place for image, place in usual if own or place != Path(image).parent}
        there = {place for place in {*folders.values()} if place.is_dir()}
        return any(place in there and self.of(image) is not None for image, place in folders.items())


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
        raise FileNotFoundError(f"{none}, expected for example '{maps.places(images[0])[0]}'")
    return found
