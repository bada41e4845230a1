# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Effective receptive fields: which pixels move a unit of a layer, and how far they spread."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .models_and_images import capture

__all__ = ("SHARES", "Field", "receptive_fields")

SHARES = 0.5, 0.9, 0.99  # of the gradient


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
