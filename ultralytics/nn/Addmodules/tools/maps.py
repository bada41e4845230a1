# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""What models see, measured: receptive fields and activation maps of layers, and the order of a scan's tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from ..layers.scan2d import COLUMNS, COLUMNS_REVERSED, ROWS, ROWS_REVERSED, token_order
from .subjects import Picture, capture

__all__ = ("ORDERS", "REDUCE", "SHARES", "Field", "activation", "receptive_fields", "token_path")

ORDERS = {"rows": ROWS, "rows-reversed": ROWS_REVERSED, "columns": COLUMNS, "columns-reversed": COLUMNS_REVERSED}

SHARES = 0.5, 0.9, 0.99  # of the gradient
REDUCE: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda x: x.abs().mean(0),
    "norm": lambda x: x.norm(dim=0),
    "max": lambda x: x.abs().amax(0),
}


@dataclass(frozen=True)
class Field:
    """Effective receptive field of one unit.

    Attributes:
        values (Tensor): Gradient by pixel, largest 1, float64 (H, W).
        unit (tuple[int, int]): Row and column of the pixel that the unit sits on: its index times the stride, as the
            3 x 3 convolutions of stride 2 and padding 1 of YOLO have it.
    """

    values: Tensor
    unit: tuple[int, int]

    def spread(self, shares: Sequence[float] = SHARES) -> list[tuple[int, float]]:
        """Return how far it spreads, for each share of the gradient.

        Returns:
            (list[tuple[int, float]]): Side of the square around the unit that holds the share, at most the image's; and
                the fewest pixels that hold it, as a part of the image.

        Examples:
            >>> Field(torch.ones(5, 5), (2, 2)).spread([0.36])
            [(3, 0.36)]
        """
        rows, columns = (torch.arange(n) - at for n, at in zip(self.values.shape, self.unit))
        distance = torch.maximum(rows.abs()[:, None], columns.abs()[None])
        rings = torch.zeros(int(distance.max()) + 1, dtype=self.values.dtype)
        around = rings.index_add(0, distance.flatten(), self.values.flatten()).cumsum(0)
        best = self.values.flatten().sort(descending=True).values.cumsum(0)
        results = []
        for share in shares:
            wanted = share * float(best[-1]) * (1 - 1e-12)  # sums in different orders differ in their last digits
            side, pixels = 2 * int((around < wanted).sum()) + 1, int((best < wanted).sum()) + 1
            results.append((min(side, max(self.values.shape)), pixels / best.numel()))
        return results


def receptive_fields(model: nn.Module, layers: Sequence[nn.Module], images: Iterable[Tensor]) -> list[Field]:
    """Return the effective receptive field of the middle unit of each layer.

    It is the gradient of that unit, its channels added, by the pixels: absolute, summed over colours, mean of images.

    Args:
        model (nn.Module): Model in eval mode.
        layers (Sequence[nn.Module]): Modules whose outputs are maps (B, C, h, w).
        images (Iterable[Tensor]): Inputs (1, C, H, W), of one size.

    Raises:
        ValueError: If a layer has no finite gradient.

    Source:
        Luo et al., "Understanding the Effective Receptive Field in Deep Convolutional Neural Networks", 2016.

    Examples:
        >>> conv = torch.nn.Conv2d(3, 4, 3, padding=1)
        >>> field = receptive_fields(conv, [conv], [torch.rand(1, 3, 7, 7)])[0]
        >>> int((field.values > 0).sum()), field.unit
        (9, (3, 3))
    """
    sums, units = [torch.zeros(()) for _ in layers], {}
    for image in images:
        x = image.detach().clone().requires_grad_()
        with torch.enable_grad():
            outputs = capture(model, layers, x)
            middles = [[n // 2 for n in out.shape[2:]] for out in outputs]
            totals = [out[0, :, row, column].sum() for out, (row, column) in zip(outputs, middles)]
        for i, (out, middle, total) in enumerate(zip(outputs, middles, totals)):
            units[i] = tuple(at * (side // n) for at, side, n in zip(middle, x.shape[2:], out.shape[2:]))
            if total.requires_grad:
                (grad,) = torch.autograd.grad(total, x, retain_graph=i + 1 < len(layers), allow_unused=True)
                sums[i] = sums[i] + (0 if grad is None else grad.abs().sum((0, 1)).cpu().double())
    for layer, values in zip(layers, sums):
        if not 0 < values.sum() < float("inf"):
            raise ValueError(f"{type(layer).__name__} has no finite gradient by the pixels: are its weights sound?")
    return [Field(values / values.max(), units[i]) for i, values in enumerate(sums)]


def activation(output: Tensor, picture: Picture, reduce: str = "mean") -> np.ndarray:
    """Return the strength of a map over a picture's content, 0 to 1 from its 1st to its 99th percentile.

    Args:
        output (Tensor): Output of a layer (1, C, h, w).
        picture (Picture): The letterboxed image that it came from.
        reduce (str): Over the channels: "mean" or "max" of absolute values, or Euclidean "norm".
    """
    strength = REDUCE[reduce](output[0].detach().float()).cpu().numpy()
    at = []
    for part, size, n in zip(picture.content, picture.pixels.shape, strength.shape):
        # Between cell centres, but never beyond the last one on the content: the padding's cells are brighter or darker
        cells, inside = (np.arange(size) + 0.5) * n / size - 0.5, (np.arange(n) + 0.5) * size / n
        inside = np.flatnonzero((inside >= part.start) & (inside <= part.stop))
        at.append(cells[part].clip(*inside[[0, -1]]) if len(inside) else cells[part])
    y, x = np.meshgrid(*at, indexing="ij")
    heat = cv2.remap(strength, x.astype(np.float32), y.astype(np.float32), cv2.INTER_LINEAR, None, cv2.BORDER_REPLICATE)
    low, high = np.percentile(heat, (1, 99))
    return np.clip((heat - low) / (high - low), 0, 1) if high > low else np.zeros_like(heat)


def token_path(order: str, height: int, width: int) -> np.ndarray:
    """Return the cells of a map in the order in which they are scanned, (L, 2) rows and columns.

    Raises:
        ValueError: If the order is unknown.

    Examples:
        >>> token_path("columns", 2, 2).tolist()
        [[0, 0], [1, 0], [0, 1], [1, 1]]
    """
    if order not in ORDERS:
        raise ValueError(f"unknown order '{order}': choose from {', '.join(ORDERS)}")
    tokens = token_order(ORDERS[order], height, width).numpy()
    return np.stack(np.divmod(tokens, width), 1)
