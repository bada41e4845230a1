# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Pictures of a data set side by side, with the boxes of their labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from .draw import DPI, STYLE, letters, show

__all__ = ("Labelled", "plot_contact_sheet")

SIDE = 2.4  # inches of a picture
NAMED = 12  # objects: where a picture has more, names would hide them
LEGEND = 20  # classes, at most
LONGEST = 30  # characters of a title


@dataclass(frozen=True)
class Labelled:
    """A picture of a data set.

    Attributes:
        title (str): Its name.
        pixels (np.ndarray): RGB, uint8 (H, W, 3).
        labels (np.ndarray): Class and box, centre and size as parts of the sides, float (N, 5).
    """

    title: str
    pixels: np.ndarray
    labels: np.ndarray


@matplotlib.rc_context(STYLE)
def plot_contact_sheet(pictures: Sequence[Labelled], names: dict[int, str]) -> Figure:
    """Draw pictures with their boxes, and a legend of the classes that they show.

    Args:
        pictures (Sequence[Labelled]): What to draw.
        names (dict[int, str]): Classes.
    """
    shown = sorted({int(cls) for picture in pictures for cls in picture.labels[:, 0]})
    show([*(names[i] for i in shown), *(picture.title for picture in pictures)])
    aspect = max(p.pixels.shape[0] / p.pixels.shape[1] for p in pictures)
    columns = min(len(pictures), max(1, round(math.sqrt(1.6 * len(pictures) * min(aspect, 2)))))
    rows = math.ceil(len(pictures) / columns)
    fig = Figure((SIDE * columns, (SIDE * aspect + 0.2) * rows + 0.4), DPI, layout="compressed")
    axes = fig.subplots(rows, columns, squeeze=False)
    colours = matplotlib.colormaps["tab10"]
    for ax in axes.flat:
        ax.set_axis_off()
    for ax, picture in zip(axes.flat, pictures):
        ax.imshow(picture.pixels)
        title = picture.title if len(picture.title) <= LONGEST else f"...{picture.title[3 - LONGEST :]}"
        ax.set_title(letters(title))
        height, width = picture.pixels.shape[:2]
        for cls, x, y, w, h in picture.labels:
            colour = colours(int(cls) % colours.N)
            left, top = (x - w / 2) * width - 0.5, (y - h / 2) * height - 0.5
            ax.add_patch(Rectangle((left, top), w * width, h * height, fill=False, edgecolor=colour, linewidth=1.2))
            if len(picture.labels) <= NAMED:
                style = {"boxstyle": "square,pad=0.1", "facecolor": colour, "edgecolor": "none"}
                shade = "black" if np.dot(colour[:3], (0.299, 0.587, 0.114)) > 0.5 else "white"
                name = letters(names[int(cls)])
                inside = "top" if top < 0.08 * height else "bottom"  # no room above the box
                ax.text(max(left, 0), max(top, 0), name, size=6, color=shade, va=inside, bbox=style, clip_on=True)
    handles = [Rectangle((0, 0), 1, 1, color=colours(i % colours.N)) for i in shown]
    if len(shown) <= LEGEND:
        fig.legend(
            handles, [letters(names[i]) for i in shown], loc="outside upper center", ncols=min(len(shown), 2 * columns)
        )
    return fig
