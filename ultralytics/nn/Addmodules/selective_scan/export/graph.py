# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""The one place where the graph of a scan is made: what a block or a call of the scan becomes in an exported file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from . import runs
from .flat import flat_block, flat_scans
from .table import FLAT, choose, row
from .target import sizes, target

if TYPE_CHECKING:  # contract.py imports what imports this
    from ..contract import Block, Scan

__all__ = ("traced_block", "traced_scan")


def traced_block(us: Sequence[Tensor], b: Block) -> list[Tensor]:
    """Project and scan K inputs of one length for an exporter.

    Args:
        us (Sequence[Tensor]): K inputs (B, L, D) after their activation, in sequence order.
        b (Block): The block, of which the projections, scans and orders are used.

    Returns:
        (list[Tensor]): K outputs (B, L, D) in the dtype of the state.
    """
    to = target()
    form = choose(to, sizes(b.A)[2])
    if form == FLAT:
        return flat_block(us, b, row(to.runtime))
    length, (rows, width, _), rank = us[0].shape[1], b.x_proj.shape, b.dt_proj.shape[2]
    state = (width - rank) // 2
    run = runs.RUNS[form]
    us = run.fill([runs.in_order(u.transpose(0, 1), o) for u, o in zip(us, b.orders)])
    ranks, Bs, Cs = zip(*(F.linear(u, b.x_proj[k % rows]).split((rank, state, state), 2) for k, u in enumerate(us)))
    deltas = [F.linear(r, b.dt_proj[k % rows]) for k, r in enumerate(ranks)]
    ys = runs.loop_scan(run, us, deltas, Bs, Cs, b.A, b.D, b.dt_bias, b.delta_softplus)
    return [runs.in_order(y[:length], o).transpose(0, 1) for y, o in zip(ys, b.orders)]


def traced_scan(s: Scan) -> Tensor:
    """Do what the scan operator does, and return (B, K, D, L) in the dtype of u."""
    to = target()
    form = choose(to, sizes(s.A)[2])
    if form == FLAT:
        ys = flat_scans(s, row(to.runtime))
    else:
        run, length = runs.RUNS[form], s.u.shape[3]
        groups = (
            run.fill([runs.in_order(x[:, k].permute(2, 0, 1), o) for k, o in enumerate(s.orders)])
            for x in (s.u, s.delta, s.B, s.C)
        )
        ys = runs.loop_scan(run, *groups, s.A, s.D, s.delta_bias, s.delta_softplus)
        ys = [runs.in_order(y[:length], o).permute(1, 2, 0) for y, o in zip(ys, s.orders)]
    y = torch.stack(ys, 1)
    return (y if s.z is None else y * F.silu(s.z.to(y.dtype))).to(s.u.dtype)
