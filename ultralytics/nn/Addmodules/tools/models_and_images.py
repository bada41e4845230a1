# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Models, layers and images that a command line names."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..grafting.levels import capture, levels, map_strides
from ..grafting.model_file import read_model
from .data import list_images

__all__ = ("Picture", "calibrate", "capture", "find_layers", "load", "read_pictures")


@dataclass(frozen=True)
class Picture:
    """A letterboxed image.

    Attributes:
        name (str): File name.
        pixels (np.ndarray): RGB, uint8 (S, S, 3).
        content (tuple[slice, slice]): Rows and columns without the padding.
    """

    name: str
    pixels: np.ndarray
    content: tuple[slice, slice]

    def tensor(self) -> Tensor:
        """Return what the model gets, float (1, 3, S, S) from 0 to 1."""
        return torch.from_numpy(self.pixels).permute(2, 0, 1)[None].float() / 255


def load(file: str) -> nn.Module:
    """Return the model of a .yaml (untrained, from a fixed seed) or .pt file, in float32 and eval mode.

    Raises:
        FileNotFoundError: If there is no such file, and Ultralytics has none of that name to download.
        ValueError: If the file cannot be read, or holds no model for RGB images.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)  # torch.manual_seed would touch the GPUs' generators as well
        model = read_model(file)[0].model.float().eval().requires_grad_(False)
    channels = model.yaml.get("channels", 3)
    if channels != 3:
        raise ValueError(f"'{file}' takes images of {channels} channels: only models for RGB images can be drawn")
    return model


def calibrate(model: nn.Module, images: Iterable[Tensor]) -> None:
    """Give an untrained model the batch-norm statistics of images, as its first training step would use them.

    With the initial ones (mean 0, variance 1) signals fade by orders of magnitude from layer to layer.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.train().momentum = None  # the plain mean over images
    with torch.no_grad():
        for image in images:
            try:
                model(image)
            except ValueError as e:
                if "more than 1 value per channel" not in str(e):
                    raise
                height, width = image.shape[2:]
                raise ValueError(
                    f"images of {width} x {height} pixels are too small for an untrained model: give a larger imgsz="
                ) from None
    model.eval()


def find_layers(model: nn.Module, names: Sequence[str], imgsz: int, file: str = "the model") -> dict[str, nn.Module]:
    """Return layers of a model, by their titles in a picture.

    Args:
        model (nn.Module): Ultralytics model.
        names (Sequence[str]): "P3" is the last backbone layer at stride 2^3, "N3" the layer that the head reads at that
            stride, "4" layer 4.
        imgsz (int): Side of the images.
        file (str): Name of the model for messages.

    Raises:
        ValueError: If there is no such layer, or it gives no map.
    """
    rows, maps = list(model.model)[:-1], map_strides(model, imgsz)
    named = levels(model, maps)
    titles = [f"layer {i}, {getattr(m, 'type', type(m).__name__).rsplit('.', 1)[-1]}" for i, m in enumerate(rows)]
    found = {}
    for name in map(str.upper, names):
        i = named.get(name, int(name) if name.isdecimal() else -1)
        if i not in maps:
            listed = ", ".join(titles[j][6:].replace(",", "") for j in maps)
            raise ValueError(f"{file} has no layer '{name}'. Levels: {', '.join(named)}. Layers: {listed}")
        found[f"{name}: {titles[i]}" if name in named else titles[i]] = rows[i]
    return found


def read_pictures(sources: Sequence[str], count: int, imgsz: int) -> list[Picture]:
    """Return the first images of files and folders, letterboxed to a square.

    Raises:
        FileNotFoundError: If a path does not exist, or a folder holds no images.
        ValueError: If a file is no image.
    """
    from ultralytics.data.augment import LetterBox
    from ultralytics.utils.patches import imread

    files: list[Path] = []
    for source in map(Path, sources):
        if not source.exists():
            raise FileNotFoundError(f"no such image or folder: '{source}'")
        inside = list_images(str(source), f"no images in the folder '{source}'") if source.is_dir() else [source]
        files += map(Path, inside)
    pictures = []
    for file in files[:count]:
        image = imread(str(file))
        if image is None:
            raise ValueError(f"'{file}' cannot be read as an image")
        # A white image with black padding shows where the content is, however a release of Ultralytics rounds
        mask = LetterBox((imgsz, imgsz), padding_value=0)(image=np.full_like(image, 255)).any(2)
        content = tuple(
            slice(int(n[0]), int(n[-1]) + 1) for n in (np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0)))
        )
        pixels = np.ascontiguousarray(LetterBox((imgsz, imgsz))(image=image)[..., ::-1])
        pictures.append(Picture(file.name, pixels, content))
    return pictures
