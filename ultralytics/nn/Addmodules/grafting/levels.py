# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""What the rows of a model give: their outputs, and the strides that these have."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ("capture", "map_strides")


class _Captured(Exception):
    """Ends a forward pass when the last output wanted is there."""


def capture(model: nn.Module, layers: Sequence[nn.Module], x: Tensor) -> list[Tensor]:
    """Return the outputs of layers, each called once by the model; what comes after the last of them does not run."""
    found: dict[nn.Module, Tensor] = {}

    def keep(layer: nn.Module, _, output: Tensor) -> None:
        found[layer] = output
        if len(found) == len(hooks):
            raise _Captured

    hooks = [layer.register_forward_hook(keep) for layer in set(layers)]
    try:
        model(x)
    except _Captured:
        pass
    finally:
        for hook in hooks:
            hook.remove()
    return [found[layer] for layer in layers]


def map_strides(model: nn.Module, imgsz: int) -> dict[int, tuple[float, int]]:
    """Return stride and channels of every row that gives a map, by its index, in order; the last row is the head.

    Args:
        model (nn.Module): Ultralytics model in eval mode.
        imgsz (int): Side of the empty image that finds out.
    """
    weight = next(model.parameters())
    image = torch.zeros(1, model.yaml.get("channels", 3), imgsz, imgsz, device=weight.device, dtype=weight.dtype)
    with torch.no_grad():
        outputs = capture(model, list(model.model)[:-1], image)
    return {
        i: (imgsz / x.shape[2], x.shape[1]) for i, x in enumerate(outputs) if isinstance(x, Tensor) and x.dim() == 4
    }
