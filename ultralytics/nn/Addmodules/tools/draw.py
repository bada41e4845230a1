# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Figures of receptive fields, activation maps and scan orders; drawn without pyplot, so no setting of it changes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import matplotlib
import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ..hooks.fonts import font_families
from .models_and_images import Picture
from .receptive_fields import SHARES, Field
from .scan_orders import token_path

__all__ = ("STYLE", "letters", "plot_activations", "plot_orders", "plot_receptive_fields", "show")

FLOOR = 1e-4  # of the largest gradient: black, and all below it
PANEL, DPI = 2.2, 150  # inches, pixels an inch
STYLE = {
    "font.family": ["DejaVu Sans"],
    "font.size": 7,
    "axes.titlesize": 8,
    "axes.titlepad": 4,
}


def _panels(rows: int, columns: int, aspect: float = 1.0) -> tuple[Figure, np.ndarray]:
    """Return a figure and its (rows, columns) axes without ticks; aspect is height by width of a panel."""
    fig = Figure((PANEL * columns + 0.5, (PANEL * aspect + 0.3) * rows + 0.2), DPI, layout="compressed")
    axes = fig.subplots(rows, columns, squeeze=False)
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
    return fig, axes


def show(names: Iterable[str]) -> None:
    """Take a font with the characters of names, until the style is put back."""
    matplotlib.rcParams["font.family"] = font_families(names, STYLE["font.family"])


def letters(name: str) -> str:
    r"""Return a name as a text that matplotlib shows to the letter: it reads `$x$` as a formula, and hides `_x`.

    Examples:
        >>> print(letters("a$b$"), letters("_x"))
        a\$b\$  _x
    """
    return " " * str(name).startswith("_") + str(name).replace("$", r"\$")


@matplotlib.rc_context(STYLE)
def plot_receptive_fields(fields: dict[str, dict[str, Field]]) -> Figure:
    """Draw fields by model and layer, one row a model, on one log scale, with the squares that hold `SHARES`."""
    show(fields)
    fig, axes = _panels(len(fields), max(map(len, fields.values())))
    for row, (model, layers) in zip(axes, fields.items()):
        row[0].set_ylabel(letters(model))
        for ax, (title, field) in zip(row, layers.items()):
            drawn = ax.imshow(
                field.values.clamp(min=FLOOR).numpy(), "inferno", LogNorm(FLOOR, 1), interpolation="nearest"
            )
            y, x = field.unit
            sides = [side for side, _ in field.spread()]
            for side, style in zip(sides, ("-", "--", ":")):
                corner = x - side / 2, y - side / 2
                ax.add_patch(
                    Rectangle(corner, side, side, fill=False, edgecolor="white", linewidth=0.8, linestyle=style)
                )
            ax.set_title(letters(title))
            ax.set_xlabel(f"{' / '.join(f'{100 * s:g}' for s in SHARES)} %: {' / '.join(map(str, sides))} px")
    bar = fig.colorbar(drawn, ax=axes, pad=0.02, aspect=20 * len(fields), shrink=0.9)
    bar.set_label("gradient, largest = 1")
    return fig


@matplotlib.rc_context(STYLE)
def plot_activations(pictures: Sequence[Picture], heats: Sequence[dict[str, dict[str, np.ndarray]]]) -> Figure:
    """Draw each picture and, at its right, its heat maps by model and layer over a grey copy; one row a model."""
    show([*(picture.name for picture in pictures), *(name for by_model in heats for name in by_model)])
    contents = [p.pixels[p.content] for p in pictures]
    columns = 1 + max(len(layers) for by_model in heats for layers in by_model.values())
    fig, axes = _panels(sum(map(len, heats)), columns, max(x.shape[0] / x.shape[1] for x in contents))
    rows = iter(axes)
    for picture, pixels, by_model in zip(pictures, contents, heats):
        grey = pixels.mean(2, keepdims=True) / 255
        for (model, layers), row in zip(by_model.items(), rows):
            row[0].imshow(pixels)
            row[0].set(title=letters(picture.name), ylabel=letters(model))
            for ax, (title, heat) in zip(row[1:], layers.items()):
                ax.imshow(0.45 * grey + 0.55 * matplotlib.colormaps["turbo"](heat)[..., :3])
                ax.set_title(letters(title))
    return fig


@matplotlib.rc_context(STYLE)
def plot_orders(picture: Picture, orders: dict[str, str], grid: int = 6) -> Figure:
    """Draw token orders over a picture, from disc to square, dark to bright.

    Args:
        picture (Picture): Image.
        orders (dict[str, str]): Titles by name of the order, one panel each.
        grid (int): Cells along the longer side.
    """
    show(orders.values())
    pixels = picture.pixels[picture.content]
    height, width = pixels.shape[:2]
    rows, columns = (max(1, round(grid * n / max(height, width))) for n in (height, width))
    fig, axes = _panels(1, len(orders), height / width)
    for ax, (order, title) in zip(axes[0], orders.items()):
        ax.imshow(0.45 + 0.55 * pixels.mean(2) / 255, "gray", vmin=0, vmax=1)  # pale, so that the arrows stand out
        ax.set_title(letters(title))
        for lines, cells, size in ((ax.axhline, rows, height), (ax.axvline, columns, width)):
            for i in range(1, cells):
                lines(i * size / cells - 0.5, color="white", linewidth=0.8)
        path = token_path(order, rows, columns)
        y, x = (path.T + 0.5) * [[height / rows], [width / columns]] - 0.5
        for i in range(len(path) - 1):
            jump = abs(path[i + 1] - path[i]).sum() > 1  # from the end of a line to the start of the next
            colour = matplotlib.colormaps["plasma"](0.9 * i / len(path))
            style = {"linewidth": 0.8, "linestyle": ":"} if jump else {"linewidth": 1.6, "linestyle": "-"}
            arrow = {"arrowstyle": "-|>", "color": colour, "shrinkA": 1, "shrinkB": 1, "mutation_scale": 8, **style}
            ax.annotate("", (x[i + 1], y[i + 1]), (x[i], y[i]), arrowprops=arrow)
        ax.plot(x[0], y[0], "o", x[-1], y[-1], "s", color="white", markeredgecolor="black", markersize=5)
    return fig
