# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""The block around the scan: depthwise conv, SiLU, B, C and delta projections, scan, gate, output projection.

One differentiable call for any number of directions. What is kept for backward, per token and inner channel: the input
projection x and z (2), the ungated output summed over directions (1), and per direction (R + 2N) / D of projected
values and N / T of scan states; conv output, delta, B, C views and the gated output are recomputed. See
docs/design/selective-scan.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import op
from .op import REVERSED

__all__ = ("causal_conv", "mamba_inner")


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
    w = (weight.flip(1) if order == REVERSED else weight)[:, None, None]  # (D, 1, 1, W)
    y = F.conv2d(_as_map(x), w, bias, padding=(0, width - 1), groups=x.shape[2]).squeeze(2).transpose(1, 2)
    return y[:, width - 1 :] if order == REVERSED else y[:, :length]


def _causal_conv_backward(
    dy: Tensor, x: Tensor, weight: Tensor, order: int, has_bias: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the gradients of `causal_conv` by x (B, L, D), weight (D, W) and bias (D)."""
    width = weight.shape[1]
    w = (weight.flip(1) if order == REVERSED else weight)[:, None, None]
    dy = F.pad(dy, (0, 0, width - 1, 0) if order == REVERSED else (0, 0, 0, width - 1))
    dx, dw, db = torch.ops.aten.convolution_backward(
        _as_map(dy),
        _as_map(x),
        w,
        [weight.shape[0]] if has_bias else None,
        [1, 1],
        [0, width - 1],
        [1, 1],
        False,
        [0, 0],
        weight.shape[0],
        [True, True, has_bias],
    )
    dw = dw[:, 0, 0]
    return dx.squeeze(2).transpose(1, 2), dw.flip(1) if order == REVERSED else dw, db if has_bias else None


def _conv_all(x: Tensor, weight: Tensor, bias: Tensor | None, orders: Sequence[int]) -> Tensor:
    """Convolve x (B, L, D) once per row of weight (Kc, D, W): (B, Kc, L, D)."""
    ys = [causal_conv(x, weight[k], None if bias is None else bias[k], orders[k]) for k in range(weight.shape[0])]
    return ys[0].unsqueeze(1) if len(ys) == 1 else torch.stack(ys, 1)


def _project(u: Tensor, x_proj: Tensor, dt_proj: Tensor) -> tuple[Tensor, Tensor]:
    """Project conv outputs (B, Kc, L, D) to (B, Kc, L, R + 2N), and their first R to delta (B, Kc, L, D)."""
    x_dbl = torch.matmul(u, x_proj.transpose(1, 2))
    return x_dbl, torch.matmul(x_dbl[..., : dt_proj.shape[2]], dt_proj.transpose(1, 2))


def _scan_inputs(u: Tensor, delta: Tensor, x_dbl: Tensor, rank: int, groups: int) -> tuple[Tensor, ...]:
    """Bring u, delta (B, Kc, L, D) and B, C inside x_dbl to the canonical form with K groups, without copies."""
    state = (x_dbl.shape[-1] - rank) // 2
    u, delta, B, C = (
        t.transpose(2, 3) for t in (u, delta, x_dbl[..., rank : rank + state], x_dbl[..., rank + state :])
    )
    return tuple(t.expand(-1, groups, -1, -1) for t in (u, delta, B, C))  # shared projections: one, seen K times


def _forward(
    xz: Tensor,
    conv_w: Tensor,
    conv_b: Tensor | None,
    x_proj: Tensor,
    dt_proj: Tensor,
    A: Tensor,
    D: Tensor | None,
    dt_bias: Tensor | None,
    delta_softplus: bool,
    orders: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor, str | None]:
    """Return the ungated sum over directions (B, L, D), the projections, the kept states and the backend that ran."""
    u = F.silu(_conv_all(xz.chunk(2, dim=-1)[0], conv_w, conv_b, orders))
    x_dbl, delta = _project(u, x_proj, dt_proj)
    u, delta, B, C = _scan_inputs(u, delta, x_dbl, dt_proj.shape[2], len(orders))
    backend = op.choose(u, delta, A, B, C, D, None, dt_bias)
    y, states = op.scan(u, delta, A, B, C, D, None, dt_bias, delta_softplus, orders, backend)
    y = reduce(torch.add, y.unbind(1)).transpose(1, 2)  # sum(1) is several times slower on a CPU
    return y, x_dbl, states, backend


def _gate_and_project(y: Tensor, xz: Tensor, out_w: Tensor | None, out_b: Tensor | None) -> Tensor:
    """Gate y (B, L, D) by SiLU(z), and project it to (B, L, M) if there is a projection."""
    out = y * F.silu(xz.chunk(2, dim=-1)[1])
    return out if out_w is None else F.linear(out, out_w, out_b)


class _MambaInner(torch.autograd.Function):
    """The recomputing form of `mamba_inner`."""

    @staticmethod
    def forward(ctx, xz, conv_w, conv_b, x_proj, dt_proj, out_w, out_b, A, D, dt_bias, delta_softplus, orders):
        y, x_dbl, states, backend = _forward(xz, conv_w, conv_b, x_proj, dt_proj, A, D, dt_bias, delta_softplus, orders)
        ctx.save_for_backward(xz, conv_w, conv_b, x_proj, dt_proj, out_w, A, D, dt_bias, x_dbl, states, y)
        ctx.delta_softplus, ctx.orders, ctx.backend, ctx.has_out_b = delta_softplus, orders, backend, out_b is not None
        return _gate_and_project(y, xz, out_w, out_b)

    @staticmethod
    @once_differentiable
    def backward(ctx, dout):
        with op.no_autocast(dout.device.type):  # it may run inside an autocast block, where forward's casts are no use
            return _MambaInner._backward(ctx, dout)

    @staticmethod
    def _backward(ctx, dout):
        xz, conv_w, conv_b, x_proj, dt_proj, out_w, A, D, dt_bias, x_dbl, states, y = ctx.saved_tensors
        orders, groups, rank = ctx.orders, len(ctx.orders), dt_proj.shape[2]
        x, z = xz.chunk(2, dim=-1)
        gate = torch.sigmoid(z)
        silu_z = z * gate
        dout_w = dout_b = None
        if out_w is not None:
            flat = dout.flatten(0, 1)
            dout_w = flat.t() @ (y * silu_z).flatten(0, 1)
            dout_b = flat.sum(0) if ctx.has_out_b else None
            dout = dout @ out_w
        dy = dout * silu_z
        dz = dout * y * (gate + silu_z * (1 - gate))

        v = _conv_all(x, conv_w, conv_b, orders)
        gate = torch.sigmoid(v)
        u = v * gate
        delta = torch.matmul(x_dbl[..., :rank], dt_proj.transpose(1, 2))
        scan_in = _scan_inputs(u, delta, x_dbl, rank, groups)
        du, ddelta, dA, dB, dC, dD, _, ddt_bias = torch.ops.vmamba.selective_scan_backward(
            dy.transpose(1, 2).unsqueeze(1).expand(-1, groups, -1, -1),
            *scan_in[:2],
            A,
            *scan_in[2:],
            D,
            None,
            dt_bias,
            states,
            ctx.delta_softplus,
            orders,
            ctx.backend,
        )
        du, ddelta, dB, dC = (t.transpose(2, 3) for t in (du, ddelta, dB, dC))  # (B, K, L, D) and (B, K, L, N)
        if conv_w.shape[0] == 1 and groups > 1:  # shared conv and projections: their directions add up
            du, ddelta, dB, dC = (t.sum(1, keepdim=True) for t in (du, ddelta, dB, dC))
        ddt_proj = torch.einsum("bkld,bklr->kdr", ddelta, x_dbl[..., :rank])
        dx_dbl = torch.cat([torch.matmul(ddelta, dt_proj), dB, dC], -1)
        dx_proj = torch.einsum("bklr,bkld->krd", dx_dbl, u)
        dv = (du + torch.matmul(dx_dbl, x_proj)) * (gate + u * (1 - gate))
        grads = [
            _causal_conv_backward(dv[:, k], x, conv_w[k], orders[k], conv_b is not None) for k in range(conv_w.shape[0])
        ]
        dx = reduce(torch.add, (g[0] for g in grads))
        dconv_w = torch.stack([g[1] for g in grads])
        dconv_b = torch.stack([g[2] for g in grads]) if conv_b is not None else None
        return (
            torch.cat([dx, dz], -1),
            dconv_w,
            dconv_b,
            dx_proj,
            ddt_proj,
            dout_w,
            dout_b,
            dA,
            dD if D is not None else None,
            ddt_bias if dt_bias is not None else None,
            None,
            None,
        )


def mamba_inner(
    xz: Tensor,
    conv_w: Tensor,
    conv_b: Tensor | None,
    x_proj: Tensor,
    dt_proj: Tensor,
    A: Tensor,
    D: Tensor | None = None,
    dt_bias: Tensor | None = None,
    out_w: Tensor | None = None,
    out_b: Tensor | None = None,
    delta_softplus: bool = True,
    orders: Sequence[int] = (0,),
    recompute: bool = True,
) -> Tensor:
    """Run conv, SiLU, projections, scan, gate and output projection for K directions, their outputs added.

    The parameters of conv and projections have Kc rows: K, one for each direction, or 1, shared by all. Parameters are
    cast to the dtype of xz, but for A, D and dt_bias, which stay float32 (float64 for float64).

    Args:
        xz (Tensor): Input projection, x beside z (B, L, 2D).
        conv_w (Tensor): (Kc, D, W).
        conv_b (Tensor, optional): (Kc, D).
        x_proj (Tensor): (Kc, R + 2N, D).
        dt_proj (Tensor): (Kc, D, R).
        A (Tensor): (K, D, N).
        D (Tensor, optional): (K, D).
        dt_bias (Tensor, optional): (K, D).
        out_w (Tensor, optional): Output projection (M, D); without it the gated (B, L, D) is returned.
        out_b (Tensor, optional): (M).
        delta_softplus (bool): Apply softplus to delta after the bias.
        orders (Sequence[int]): FORWARD or REVERSED for each of the K directions.
        recompute (bool): Keep little and recompute in backward; otherwise autograd keeps every intermediate.

    Returns:
        (Tensor): (B, L, M), or (B, L, D) without out_w.

    Source:
        Gu and Dao, "Mamba", 2023, figure 3; Zhu et al., "Vision Mamba", 2024, algorithm 1 for two directions.
    """
    orders = list(orders)
    state_dtype = torch.float64 if xz.dtype == torch.float64 else torch.float32
    conv_w, conv_b, x_proj, dt_proj, out_w, out_b = (
        None if p is None else p.to(xz.dtype) for p in (conv_w, conv_b, x_proj, dt_proj, out_w, out_b)
    )
    A, D, dt_bias = (None if p is None else p.to(state_dtype) for p in (A, D, dt_bias))
    with op.no_autocast(xz.device.type):  # the casts above are the only ones
        if recompute and torch.is_grad_enabled() and not op.composed():
            return _MambaInner.apply(
                xz, conv_w, conv_b, x_proj, dt_proj, out_w, out_b, A, D, dt_bias, delta_softplus, orders
            )
        y, *_ = _forward(xz, conv_w, conv_b, x_proj, dt_proj, A, D, dt_bias, delta_softplus, orders)
        return _gate_and_project(y, xz, out_w, out_b)
