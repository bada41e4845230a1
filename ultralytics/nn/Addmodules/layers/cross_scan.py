# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Token orders of a two-dimensional map: its expansion into directions, their scans, and the merge by adding."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..selective_scan import FORWARD, REVERSED, Block, mamba_inner
from ..selective_scan.export import map_scans, traced_block, wants_maps
from ..selective_scan.onnx_operator import ALONG_COLUMNS, recorded, recording
from ..selective_scan.op import no_autocast
from ..selective_scan.registry import exporting

__all__ = ("COLUMNS", "COLUMNS_REVERSED", "ROWS", "ROWS_REVERSED", "cross_scan", "token_order", "transpose_tokens")

# Directions of SS2D by their index in the parameters, as in the VMamba repository.
ROWS, COLUMNS, ROWS_REVERSED, COLUMNS_REVERSED = range(4)


def transpose_tokens(x: Tensor, height: int, width: int) -> Tensor:
    """Turn tokens (B, H*W, D) of a map in row order into those of the transposed map, which is column order."""
    return x.reshape(x.shape[0], height, width, x.shape[2]).transpose(1, 2).flatten(1, 2)


def token_order(direction: int, height: int, width: int) -> Tensor:
    """Return the tokens (H*W) of a map, numbered in row order, as a direction visits them.

    Raises:
        ValueError: If the direction is unknown.

    Examples:
        >>> token_order(COLUMNS_REVERSED, 2, 3).tolist()
        [5, 2, 4, 1, 3, 0]
    """
    if direction not in (ROWS, COLUMNS, ROWS_REVERSED, COLUMNS_REVERSED):
        raise ValueError(f"direction must be 0 to 3 (rows, columns, rows reversed, columns reversed), got {direction}")
    order = torch.arange(height * width)
    if direction in (COLUMNS, COLUMNS_REVERSED):
        order = order.view(height, width).t().flatten()
    return order.flip(0) if direction in (ROWS_REVERSED, COLUMNS_REVERSED) else order


def cross_scan(
    x: Tensor,
    height: int,
    width: int,
    x_proj: Tensor,
    dt_proj: Tensor,
    A: Tensor,
    D: Tensor,
    dt_bias: Tensor,
) -> Tensor:
    """Scan SiLU(x) along rows, columns and both reversed, each with its own parameters, and add the results.

    Parameters of two directions instead of four scan rows and rows reversed.

    Reversed directions are an order inside the scan and share their input with the forward ones. Columns are rows of
    the transposed map, so the expansion is one transposed copy, not four, and the merge adds two maps, not four.

    Args:
        x (Tensor): Tokens of a map in row order (B, H*W, D), before the activation.
        height (int): H.
        width (int): W.
        x_proj (Tensor): (K, R + 2N, D), K = 4 or 2.
        dt_proj (Tensor): (K, D, R).
        A (Tensor): (K, D, N).
        D (Tensor): (K, D).
        dt_bias (Tensor): (K, D).

    Returns:
        (Tensor): (B, H*W, D).

    Source:
        Liu et al., "VMamba: Visual State Space Model", 2024, section 4.2 (SS2D: cross-scan, S6, cross-merge).
    """

    def both_ways(tokens: Tensor, forward: int, reversed: int) -> Tensor:
        own = (p[forward : reversed + 1 : reversed - forward] for p in (x_proj, dt_proj, A, D, dt_bias))
        return mamba_inner(Block(tokens, None, None, *own, orders=(FORWARD, REVERSED)))

    if exporting() and wants_maps(A.shape[2]):
        return _maps(x, height, width, x_proj, dt_proj, A, D, dt_bias)
    if x_proj.shape[0] == 2:
        return both_ways(x, 0, 1)
    if exporting():
        return _operator(x, height, width, x_proj, dt_proj, A, D, dt_bias)
    rows = both_ways(x, ROWS, ROWS_REVERSED)
    columns = both_ways(transpose_tokens(x, height, width), COLUMNS, COLUMNS_REVERSED)
    return rows + transpose_tokens(columns, width, height)


def _operator(
    x: Tensor, height: int, width: int, x_proj: Tensor, dt_proj: Tensor, A: Tensor, D: Tensor, dt_bias: Tensor
) -> Tensor:
    """Return what `cross_scan` does, for an exporter: as one operator, where the file has operators of ours."""
    if not recording():
        return _graph(x, height, width, x_proj, dt_proj, A, D, dt_bias)
    orders = FORWARD, FORWARD | ALONG_COLUMNS, REVERSED, REVERSED | ALONG_COLUMNS
    image, *weights = x.reshape(x.shape[0], height, width, x.shape[2]), x_proj.to(x.dtype), dt_proj.to(x.dtype)

    def composed(b: Block) -> Tensor:
        own = b.x_proj, b.dt_proj, b.A, b.D, b.dt_bias
        return _graph(b.xz.flatten(1, 2), *b.xz.shape[1:3], *own).reshape(b.xz.shape)

    return recorded(composed, Block(image, None, None, *weights, A, D, dt_bias, orders=orders)).flatten(1, 2)


def _graph(
    x: Tensor, height: int, width: int, x_proj: Tensor, dt_proj: Tensor, A: Tensor, D: Tensor, dt_bias: Tensor
) -> Tensor:
    """Return what `cross_scan` does, for an exporter: four directions in one loop."""
    u = F.silu(x)
    orders = FORWARD, FORWARD, REVERSED, REVERSED
    with no_autocast(x.device.type):
        weights = (p.to(x.dtype) for p in (x_proj, dt_proj))
        us = u, transpose_tokens(u, height, width)
        ys = traced_block(us * 2, Block(x, None, None, *weights, A, None, dt_bias, orders=orders))
    rows, columns = ys[ROWS] + ys[ROWS_REVERSED], ys[COLUMNS] + ys[COLUMNS_REVERSED]
    y = rows + transpose_tokens(columns, width, height)
    # The skips of all directions at once. Not an addition: ONNX Runtime would join that with the norm that follows,
    # into an operator that is slower than both.
    return (y - u.to(y.dtype) * -D.sum(0)).to(x.dtype)


def _maps(
    x: Tensor, height: int, width: int, x_proj: Tensor, dt_proj: Tensor, A: Tensor, D: Tensor, dt_bias: Tensor
) -> Tensor:
    """Return what `cross_scan` does, for a runtime that is faster with maps than with tokens."""
    u = F.silu(x.transpose(1, 2).reshape(x.shape[0], x.shape[2], height, width))
    weights = (p.to(A.dtype) for p in (u, x_proj, dt_proj))
    return map_scans(*weights, A, D.to(A.dtype), dt_bias.to(A.dtype)).flatten(2).transpose(1, 2).to(x.dtype)
