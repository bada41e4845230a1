# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""The block from its parts, in PyTorch around any scan: what backends without kernels for it do, and exporters.

Kept for backward, per token and inner channel: the input projection (2), the ungated output summed over directions
(1), and per direction (R + 2N) / D projected values and N / T states of the scan. Convolution, delta and the gated
output are computed again. See docs/design/selective-scan.md.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from . import export

if TYPE_CHECKING:  # contract.py imports this file
    from .contract import Block, Scan

__all__ = ("block", "block_backward", "causal_conv", "graph")


def _as_map(x: Tensor) -> Tensor:
    """View (B, L, D) tokens as a channels_last map (B, D, 1, L): depthwise conv2d takes it without a copy."""
    return x.transpose(1, 2).unsqueeze(2)


def causal_conv(x: Tensor, weight: Tensor, bias: Tensor | None, order: int) -> Tensor:
    """Convolve each channel over the tokens before it in scan order, itself included.

    A reversed direction is the mirrored filter padded on the other side: nothing is flipped.

    Args:
        x (Tensor): (B, L, D).
        weight (Tensor): (D, W), the last tap on the token itself.
        bias (Tensor, optional): (D).
        order (int): FORWARD or REVERSED.

    Returns:
        (Tensor): (B, L, D).
    """
    width, length = weight.shape[1], x.shape[1]
    w = (weight.flip(1) if order else weight)[:, None, None]  # (D, 1, 1, W)
    y = F.conv2d(_as_map(x), w, bias, padding=(0, width - 1), groups=x.shape[2]).squeeze(2).transpose(1, 2)
    return y[:, width - 1 :] if order else y[:, :length]


def _causal_conv_backward(
    dy: Tensor, x: Tensor, weight: Tensor, order: int, has_bias: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the gradients of `causal_conv` by x (B, L, D), weight (D, W) and bias (D)."""
    dim, width = weight.shape
    w = (weight.flip(1) if order else weight)[:, None, None]
    dy = F.pad(dy, (0, 0, width - 1, 0) if order else (0, 0, 0, width - 1))
    sizes = [dim] if has_bias else None, [1, 1], [0, width - 1], [1, 1], False, [0, 0], dim, [True, True, has_bias]
    dx, dw, db = torch.ops.aten.convolution_backward(_as_map(dy), _as_map(x), w, *sizes)
    dw = dw[:, 0, 0]
    return dx.squeeze(2).transpose(1, 2), dw.flip(1) if order else dw, db if has_bias else None


def _convolved(b: Block, x: Tensor) -> list[Tensor]:
    """Return x (B, L, D) convolved by each row of weights, or itself without a convolution."""
    if b.conv_w is None:
        return [x]
    biases = [None if b.conv_b is None else b.conv_b[k] for k in range(b.conv_w.shape[0])]
    return [causal_conv(x, b.conv_w[k], bias, b.orders[k]) for k, bias in enumerate(biases)]


def _stacked(rows: list[Tensor]) -> Tensor:
    """Return rows (B, L, D) as (B, Q, L, D)."""
    return rows[0].unsqueeze(1) if len(rows) == 1 else torch.stack(rows, 1)


def _scan_of(b: Block, u: Tensor, delta: Tensor, projected: Tensor) -> Scan:
    """Return the scan of u and delta (B, Q or 1, L, D) and of B and C inside the projections, without copies."""
    rank, state = b.dt_proj.shape[2], b.A.shape[2]
    _, B, C = projected.split([rank, state, state], -1)
    # Shared projections are one, seen K times
    return b.scan(*(t.transpose(2, 3).expand(-1, len(b.orders), -1, -1) for t in (u, delta, B, C)))


def block(b: Block, scan: Callable[[Scan], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """Compute a block around a scan; the returns are those of `Backend.block`."""
    x, z = b.halves()
    u = F.silu(_stacked(_convolved(b, x)))
    projected = torch.matmul(u, b.x_proj.transpose(1, 2))
    delta = torch.matmul(projected[..., : b.dt_proj.shape[2]], b.dt_proj.transpose(1, 2))
    y, states = scan(_scan_of(b, u, delta, projected))
    y = reduce(torch.add, y.unbind(1)).transpose(1, 2).contiguous()  # sum(1) is several times slower on a CPU
    return y if z is None else y * F.silu(z), None if z is None else y, projected.contiguous(), states


def block_backward(
    dout: Tensor,
    b: Block,
    kept: tuple[Tensor | None, Tensor, Tensor],
    scan_backward: Callable[[Tensor, Scan, Tensor], tuple[Tensor | None, ...]],
) -> tuple[Tensor | None, ...]:
    """Return the gradients of `block`, and its output; arguments and returns are those of `Backend.block_backward`."""
    (x, z), (y, projected, states), groups = b.halves(), kept, len(b.orders)
    dy = dout
    if z is not None:
        gate = torch.sigmoid(z)
        silu_z = z * gate
        dy = dout * silu_z
        dz = dout * y * (gate + silu_z * (1 - gate))

    v = _stacked(_convolved(b, x))
    gate = torch.sigmoid(v)
    u = v * gate
    ranks = projected[..., : b.dt_proj.shape[2]]
    scan = _scan_of(b, u, torch.matmul(ranks, b.dt_proj.transpose(1, 2)), projected)
    dy = dy.transpose(1, 2).unsqueeze(1).expand(-1, groups, -1, -1)
    du, ddelta, dA, dB, dC, dD, _, ddt_bias = scan_backward(dy, scan, states)
    du, ddelta, dB, dC = (t.transpose(2, 3) for t in (du, ddelta, dB, dC))  # (B, K, L, D) and (B, K, L, N)
    if b.x_proj.shape[0] == 1 and groups > 1:  # shared convolution and projections: their directions add up
        du, ddelta, dB, dC = (t.sum(1, keepdim=True) for t in (du, ddelta, dB, dC))
    ddt_proj = torch.einsum("bkld,bklr->kdr", ddelta, ranks)
    dprojected = torch.cat([torch.matmul(ddelta, b.dt_proj), dB, dC], -1)
    dx_proj = torch.einsum("bklr,bkld->krd", dprojected, u.expand(-1, dprojected.shape[1], -1, -1))
    dv = (du + torch.matmul(dprojected, b.x_proj)) * (gate + u * (1 - gate))
    dconv_w = dconv_b = None
    if b.conv_w is None:
        dx = reduce(torch.add, dv.unbind(1))
    else:
        rows = zip(dv.unbind(1), b.conv_w, b.orders)
        grads = [_causal_conv_backward(d, x, w, order, b.conv_b is not None) for d, w, order in rows]
        dx = reduce(torch.add, (g[0] for g in grads))
        dconv_w = torch.stack([g[1] for g in grads])
        dconv_b = torch.stack([g[2] for g in grads]) if b.conv_b is not None else None
    dxz, out = (dx, None) if z is None else (torch.cat([dx, dz], -1), y * silu_z)
    return dxz, dconv_w, dconv_b, dx_proj, ddt_proj, dA, dD, ddt_bias, out


def graph(b: Block) -> Tensor:
    """Return the output (B, L, D) of a block for an exporter, gated if there is a gate."""
    x, z = b.halves()
    us = [F.silu(v) for v in _convolved(b, x)]
    y = reduce(torch.add, export.traced_block([us[min(k, len(us) - 1)] for k in range(len(b.orders))], b)).to(x.dtype)
    return y if z is None else y * F.silu(z)
