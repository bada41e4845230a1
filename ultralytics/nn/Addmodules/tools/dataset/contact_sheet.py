# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Pictures of a data set side by side, with boxes, or with the colours of their masks or depth maps."""

from __future__ import annotations

import colorsys
import math
from collections import Counter
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
from .wording import digits

__all__ = ("Described", "plot_contact_sheet")

SIDE = 2.4  # inches of a picture
NAMED = 12  # objects: where a picture has more, names would hide them
LEGEND = 20  # classes, at most
LONGEST = 30  # characters of a title
TALLEST = 2  # height over width that a picture is given; a taller one is drawn smaller
REGION = 0.01  # of a picture: a class with less is not named in it
MIDDLE = 2, 98  # percentiles of distances between which the colours lie
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
    aspect = min(max(p.pixels.shape[0] / p.pixels.shape[1] for p in pictures) / wide, TALLEST)
    columns = min(len(pictures), max(1, round(math.sqrt(1.6 * len(pictures) * aspect))))
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
        if picture.classes is not None:
            _name_regions(ax, picture, names)
    handles = [Rectangle((0, 0), 1, 1, color=_colour(i)) for i in shown]
    if 0 < len(shown) <= LEGEND:
        fig.legend(
            handles, [letters(names[i]) for i in shown], loc="outside upper center", ncols=min(len(shown), 2 * columns)
        )
    return fig


def _colour(cls: int) -> tuple[float, ...]:
    """Return the colour of a class, RGBA from 0 to 1: ten well apart, then others."""
    colours = matplotlib.colormaps["tab10"]
    if cls < colours.N:
        return colours(cls)
    hue = cls * (math.sqrt(5) - 1) / 2 % 1  # by the golden section, so that neighbours differ
    return (*colorsys.hsv_to_rgb(hue, *((0.5, 0.95), (0.95, 0.6), (0.9, 0.95))[cls % 3]), 1.0)


def _draw_boxes(ax: Axes, picture: Described, names: dict[int, str]) -> None:
    """Draw the boxes of a picture, with names if there is room."""
    height, width = picture.pixels.shape[:2]
    for cls, x, y, w, h in picture.boxes:
        colour = _colour(int(cls))
        left, top = (x - w / 2) * width - 0.5, (y - h / 2) * height - 0.5
        ax.add_patch(Rectangle((left, top), w * width, h * height, fill=False, edgecolor=colour, linewidth=1.2))
        if len(picture.boxes) <= NAMED:
            inside = "top" if top < 0.08 * height else "bottom"  # no room above the box
            _write(ax, max(left, 0), max(top, 0), names, int(cls), va=inside)


def _name_regions(ax: Axes, picture: Described, names: dict[int, str]) -> None:
    """Write the names of the largest classes of a mask, each where it is widest."""
    classes = _fitted(picture.classes, picture.pixels)
    shown = Counter({cls: int((classes == cls).sum()) for cls in picture.shown()})
    for cls, pixels in shown.most_common(NAMED):
        if pixels >= REGION * classes.size:
            inside = cv2.distanceTransform(np.pad((classes == cls).astype(np.uint8), 1), cv2.DIST_L2, 3)[1:-1, 1:-1]
            y, x = np.unravel_index(inside.argmax(), inside.shape)
            _write(ax, x, y, names, cls, ha="center", va="center")


def _write(ax: Axes, x: float, y: float, names: dict[int, str], cls: int, **where: str) -> None:
    """Write the name of a class on its colour."""
    colour = _colour(cls)
    style = {"boxstyle": "square,pad=0.1", "facecolor": colour, "edgecolor": "none"}
    shade = "black" if np.dot(colour[:3], (0.299, 0.587, 0.114)) > 0.5 else "white"
    ax.text(x, y, letters(names[cls]), size=6, color=shade, bbox=style, clip_on=True, **where)


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
    known = metres[metres > 0]
    near, far = np.percentile(known, MIDDLE)  # one wrong pixel would take all contrast
    metres = _shrunk(metres, pixels)
    light = ((metres - near) / max(far - near, np.finfo(np.float32).tiny)).clip(0, 1)
    colours = matplotlib.colormaps["viridis_r"](light)[..., :3] * (metres > 0)[..., None]
    return np.concatenate([pixels, (255 * colours).astype(np.uint8)], axis=1)


def _shrunk(metres: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """Return distances at the size of a picture: the mean of those that fall on one pixel, if there are some."""
    height, width = pixels.shape[:2]
    if height >= metres.shape[0] or width >= metres.shape[1]:
        return _fitted(metres, pixels)
    known = (metres > 0).astype(np.float32)
    total, weight = (cv2.resize(x, (width, height), interpolation=cv2.INTER_AREA) for x in (metres * known, known))
    return np.divide(total, weight, out=np.zeros_like(total), where=weight > 0)


def _range(metres: np.ndarray) -> str:
    """Return the smallest and the largest distance of a map."""
    known = metres[metres > 0]
    return f"{digits(known.min())} to {digits(known.max())} m"
