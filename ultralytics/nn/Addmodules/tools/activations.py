# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Activation maps: the strength of a layer's output over the picture that it came from."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from torch import Tensor

from .models_and_images import Picture

__all__ = ("REDUCE", "activation")

REDUCE: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda x: x.abs().mean(0),
    "norm": lambda x: x.norm(dim=0),
    "max": lambda x: x.abs().amax(0),
}


def activation(output: Tensor, picture: Picture, reduce: str = "mean") -> np.ndarray:
    """Return the strength of a map over a picture's content, 0 to 1 from its 1st to its 99th percentile.

    Args:
        output (Tensor): Output of a layer (1, C, h, w).
        picture (Picture): The letterboxed image that it came from.
        reduce (str): Over the channels: "mean" or "max" of absolute values, or Euclidean "norm".

    Raises:
        ValueError: If the output is not finite.
    """
    strength = REDUCE[reduce](output[0].detach().float()).cpu().numpy()
    if not np.isfinite(strength).all():
        raise ValueError("the map of a layer is not finite: are the model's weights sound?")
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
