# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""The expected distances of a detection head in an exported graph."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from ultralytics.nn.modules.block import DFL

__all__ = ("without_softmax",)

RUNTIMES = {"onnx", "mnn"}  # OpenVINO and ncnn are as fast with a Softmax


def without_softmax(model: nn.Module, form: str) -> None:
    """Let a model that is about to be exported compute its distances with elementwise operators and sums.

    Upstream takes a softmax over an axis that is not the last one. ONNX Runtime moves that axis to the end and back, on
    one thread (docs/design/export.md).

    Args:
        model (nn.Module): The exporter's copy of a model.
        form (str): Ultralytics' name of the format.
    """
    if form not in RUNTIMES:
        return
    for m in model.modules():
        if type(m) is DFL:
            m.forward = partial(expected, m)


def expected(m: DFL, x: torch.Tensor) -> torch.Tensor:
    """Return the expected distances (B, 4, anchors) of the logits (B, 4 * bins, anchors) of their bins."""
    b, _, anchors = x.shape
    x = x.view(b, 4, m.c1, anchors)
    weights = (x - x.amax(2, keepdim=True)).exp()
    return (weights * m.conv.weight.view(1, 1, m.c1, 1)).sum(2) / weights.sum(2)
