# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""What the rows of a model give: their outputs, and the strides that these have."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ("capture", "levels", "map_strides")


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


def levels(model: nn.Module, maps: dict[int, tuple[float, int]]) -> dict[str, int]:
    """Return rows by level: "P4" is the last row of the backbone at stride 2^4, "N4" the row that the head reads there.

    Args:
        model (nn.Module): Ultralytics model.
        maps (dict[int, tuple[float, int]]): What `map_strides` gives.
    """
    backbone, head = len(model.yaml["backbone"]), model.model[-1]
    found = {f"P{np.log2(stride):g}": i for i, (stride, _) in maps.items() if i < backbone}
    read = [f % head.i for f in head.f] if isinstance(head.f, list) else []
    return found | {f"N{np.log2(maps[i][0]):g}": i for i in read if i in maps}
