# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Strides that a model YAML declares."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import nn

__all__ = ("declared_strides",)


class _Maps(list):
    """Fake model output for the stride probe. Releases index it differently; every index returns the same maps."""

    def __getitem__(self, part: str | int) -> _Maps:
        return self


def declared_strides(model: nn.Module, size: int) -> None:
    """Take the strides that a YAML declares, instead of the builder's stride probe.

    The builder runs the model on an empty image and divides its side by the height of each map. The hook stands before
    that, on lines as old as upstream itself, because the lines that run the probe change from release to release.

    Args:
        model (nn.Module): Model under construction, with its `yaml` and `model` set.
        size (int): Side of the image that the probe will see.

    Raises:
        ValueError: If the declared strides are not one number from 1 to size for each detection level.
    """
    strides = model.yaml.get("strides")
    if strides is None:
        return
    levels = model.model[-1].nl
    if (
        not isinstance(strides, (list, tuple))
        or len(strides) != levels
        or any(isinstance(s, bool) or not isinstance(s, (int, float)) or not 1 <= s <= size for s in strides)
    ):
        raise ValueError(
            f"model YAML: strides must be {levels} numbers from 1 to {size}, one for each input of the head, "
            f"got {strides!r}; correct it or leave it out to have strides measured"
        )
    maps = _Maps(SimpleNamespace(shape=(1, 1, size / s, size / s)) for s in strides)  # heights, without content

    def forward(x: torch.Tensor, *args, **kwargs):
        del model.forward  # the class's own from here on
        return maps if x.shape[-2:] == (size, size) else model.forward(x, *args, **kwargs)

    model.forward = forward
