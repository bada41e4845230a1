# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Pictures of a data set side by side, with boxes, or with the colours of their masks or depth maps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ..draw import DPI, STYLE, letters, show
from ..maps import IGNORED

__all__ = ("Described", "plot_contact_sheet")

SIDE = 2.4  # inches of a picture
NAMED = 12  # objects: where a picture has more, names would hide them
LEGEND = 20  # classes, at most
LONGEST = 30  # characters of a title
COLOURED = 0.5  # how much of a pixel is the colour of its class


@dataclass(frozen=True)
class Described:
    """A picture of a data set, and one description of it.

    Attributes:
        title (str): Its name.
        pixels (np.ndarray): RGB, uint8 (H, W, 3).
        boxes (np.ndarray | None): Class and box, centre and size as parts of the sides, float (N, 5).
        classes (np.ndarray | None): Class of each pixel, uint8; IGNORED for none.
        metres (np.ndarray | None): Distance of each pixel, 0 where there is none.
    """

    title: str
    pixels: np.ndarray
    boxes: np.ndarray | None = None
    classes: np.ndarray | None = None
    metres: np.ndarray | None = None

    def shown(self) -> set[int]:
        """Return the classes that the picture shows."""
        found = {int(cls) for cls in self.boxes[:, 0]} if self.boxes is not None else set()
        return found if self.classes is None else {int(cls) for cls in np.unique(self.classes)} - {IGNORED}


@matplotlib.rc_context(STYLE)
def plot_contact_sheet(pictures: Sequence[Described], names: dict[int, str]) -> Figure:
    """Draw pictures with their descriptions, and a legend of the classes that they show.

    Args:
        pictures (Sequence[Described]): What to draw.
        names (dict[int, str]): Classes.
    """
    shown = sorted(set().union(*(picture.shown() for picture in pictures)))
    show([*(names[i] for i in shown), *(picture.title for picture in pictures)])
    wide = 1 + (pictures[0].metres is not None)  # a depth map stands beside its picture
    aspect = max(p.pixels.shape[0] / p.pixels.shape[1] for p in pictures) / wide
    columns = min(len(pictures), max(1, round(math.sqrt(1.6 * len(pictures) * min(aspect, 2)))))
    rows = math.ceil(len(pictures) / columns)
    side = SIDE * math.sqrt(wide)
    fig = Figure((side * columns, (side * aspect + 0.2) * rows + 0.4), DPI, layout="compressed")
    axes = fig.subplots(rows, columns, squeeze=False)
    for ax in axes.flat:
        ax.set_axis_off()
    for ax, picture in zip(axes.flat, pictures):
        title = picture.title if len(picture.title) <= LONGEST else f"...{picture.title[3 - LONGEST :]}"
        pixels = picture.pixels
        if picture.classes is not None:
            pixels = _in_colours(pixels, picture.classes)
        if picture.metres is not None:
            pixels, title = _beside_distances(pixels, picture.metres), f"{title}, {_range(picture.metres)}"
        ax.imshow(pixels)
        ax.set_title(letters(title))
        if picture.boxes is not None:
            _draw_boxes(ax, picture, names)
    handles = [Rectangle((0, 0), 1, 1, color=_colour(i)) for i in shown]
    if 0 < len(shown) <= LEGEND:
        fig.legend(
            handles, [letters(names[i]) for i in shown], loc="outside upper center", ncols=min(len(shown), 2 * columns)
        )
    return fig


def _colour(cls: int) -> tuple[float, float, float, float]:
    """Return the colour of a class, RGBA from 0 to 1."""
    colours = matplotlib.colormaps["tab10"]
    return colours(cls % colours.N)


def _draw_boxes(ax: Axes, picture: Described, names: dict[int, str]) -> None:
    """Draw the boxes of a picture, with names if there is room."""
    height, width = picture.pixels.shape[:2]
    for cls, x, y, w, h in picture.boxes:
        colour = _colour(int(cls))
        left, top = (x - w / 2) * width - 0.5, (y - h / 2) * height - 0.5
        ax.add_patch(Rectangle((left, top), w * width, h * height, fill=False, edgecolor=colour, linewidth=1.2))
        if len(picture.boxes) <= NAMED:
            style = {"boxstyle": "square,pad=0.1", "facecolor": colour, "edgecolor": "none"}
            shade = "black" if np.dot(colour[:3], (0.299, 0.587, 0.114)) > 0.5 else "white"
            name = letters(names[int(cls)])
            inside = "top" if top < 0.08 * height else "bottom"  # no room above the box
            ax.text(max(left, 0), max(top, 0), name, size=6, color=shade, va=inside, bbox=style, clip_on=True)


def _fitted(values: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """Return a map at the size of its picture, of values that are in it."""
    height, width = pixels.shape[:2]
    return cv2.resize(values, (width, height), interpolation=cv2.INTER_NEAREST)


def _in_colours(pixels: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Return a picture in the colours of its pixels' classes; pixels of no class are dark."""
    colours = np.array([_colour(i)[:3] for i in range(IGNORED)] + [(0, 0, 0)])
    return ((1 - COLOURED) * pixels + COLOURED * 255 * colours[_fitted(classes, pixels)]).astype(np.uint8)


def _beside_distances(pixels: np.ndarray, metres: np.ndarray) -> np.ndarray:
    """Return a picture with its distances at its right: near is bright, and pixels without a distance are black."""
    metres = _fitted(metres, pixels)
    valid = metres > 0
    near, far = metres[valid].min(), metres[valid].max()
    colours = matplotlib.colormaps["viridis_r"]((metres - near) / max(far - near, np.finfo(np.float32).tiny))[..., :3]
    return np.concatenate([pixels, (255 * colours * valid[..., None]).astype(np.uint8)], axis=1)


def _range(metres: np.ndarray) -> str:
    """Return the smallest and the largest distance of a map."""
    valid = metres[metres > 0]
    return f"{valid.min():.3g} to {valid.max():.3g} m"
