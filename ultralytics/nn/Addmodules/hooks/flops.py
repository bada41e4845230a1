# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""What our modules compute, for the FLOP counter of Ultralytics (thop), which doubles multiply-adds."""

from __future__ import annotations

from torch import Tensor

from ..layers.ss2d import CrossScan
from ..VMamba import Mamba

__all__ = ("count_mamba", "count_ss2d")


def count_mamba(m: Mamba, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    """Add the scans of a Mamba block: under a counter's hooks its children are called, and count themselves."""
    m.total_ops += m.own_flops(*inputs[0].shape[:2]) / 2


def count_ss2d(m: CrossScan, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    """Add what an SS2D or ConvSS2D computes outside its children, which count themselves."""
    m.total_ops += m.own_flops(output.shape[0], output.shape[2] * output.shape[3]) / 2
