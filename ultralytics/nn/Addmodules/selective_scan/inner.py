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
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from . import export, op, registry
from .linear import product
from .op import REVERSED

__all__ = ("causal_conv", "mamba_inner")


def _split(xz: Tensor, dim: int) -> tuple[Tensor, Tensor | None]:
    """Return the input x (B, L, D) of a block and its gate z, if the input projection (B, L, 2D) has one."""
    return (xz, None) if xz.shape[-1] == dim else xz.split(dim, dim=-1)


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


def _conv_all(x: Tensor, weight: Tensor | None, bias: Tensor | None, orders: Sequence[int]) -> Tensor:
    """Convolve x (B, L, D) once per row of weight (Kc, D, W): (B, Kc, L, D), or x as (B, 1, L, D) without a weight."""
    if weight is None:
        return x.unsqueeze(1)
    ys = [causal_conv(x, weight[k], None if bias is None else bias[k], orders[k]) for k in range(weight.shape[0])]
    return ys[0].unsqueeze(1) if len(ys) == 1 else torch.stack(ys, 1)


def _project(u: Tensor, x_proj: Tensor, dt_proj: Tensor) -> tuple[Tensor, Tensor]:
    """Project conv outputs (B, Kc or 1, L, D) to (B, Kc, L, R + 2N), and their first R to delta (B, Kc, L, D)."""
    x_dbl = torch.matmul(u, x_proj.transpose(1, 2))
    return x_dbl, torch.matmul(x_dbl[..., : dt_proj.shape[2]], dt_proj.transpose(1, 2))


def _scan_inputs(u: Tensor, delta: Tensor, x_dbl: Tensor, rank: int, groups: int) -> tuple[Tensor, ...]:
    """Bring u, delta (B, Kc, L, D) and B, C inside x_dbl to the canonical form with K groups, without copies."""
    state = (x_dbl.shape[-1] - rank) // 2
    u, delta, B, C = (
        t.transpose(2, 3) for t in (u, delta, x_dbl[..., rank : rank + state], x_dbl[..., rank + state :])
    )
    return tuple(t.expand(-1, groups, -1, -1) for t in (u, delta, B, C))  # shared projections: one, seen K times


def _compose(
    xz: Tensor,
    conv_w: Tensor | None,
    conv_b: Tensor | None,
    x_proj: Tensor,
    dt_proj: Tensor,
    A: Tensor,
    D: Tensor | None,
    dt_bias: Tensor | None,
    delta_softplus: bool,
    orders: Sequence[int],
    backend: str | None,
    keep: bool | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the ungated sum over directions (B, L, D), the projections and the kept states, in PyTorch."""
    u = F.silu(_conv_all(_split(xz, A.shape[1])[0], conv_w, conv_b, orders))
    x_dbl, delta = _project(u, x_proj, dt_proj)
    u, delta, B, C = _scan_inputs(u, delta, x_dbl, dt_proj.shape[2], len(orders))
    y, states = op.scan(u, delta, A, B, C, D, None, dt_bias, delta_softplus, orders, backend, keep)
    y = reduce(torch.add, y.unbind(1)).transpose(1, 2)  # sum(1) is several times slower on a CPU
    return y, x_dbl, states


def _compose_graph(
    xz: Tensor,
    conv_w: Tensor | None,
    conv_b: Tensor | None,
    x_proj: Tensor,
    dt_proj: Tensor,
    A: Tensor,
    D: Tensor | None,
    dt_bias: Tensor | None,
    delta_softplus: bool,
    orders: Sequence[int],
) -> Tensor:
    """Return the ungated sum over directions (B, L, D) for an exporter."""
    x = _split(xz, A.shape[1])[0]
    us = [
        F.silu(x if conv_w is None else causal_conv(x, conv_w[k], None if conv_b is None else conv_b[k], orders[k]))
        for k in range(1 if conv_w is None else x_proj.shape[0])
    ]
    us = [us[min(k, len(us) - 1)] for k in range(len(orders))]
    return reduce(torch.add, graph_scans(us, x_proj, dt_proj, A, D, dt_bias, delta_softplus, orders))


def graph_scans(
    us: Sequence[Tensor],
    x_proj: Tensor,
    dt_proj: Tensor,
    A: Tensor,
    D: Tensor | None,
    dt_bias: Tensor | None,
    delta_softplus: bool,
    orders: Sequence[int],
) -> list[Tensor]:
    """Project and scan K inputs of one length for an exporter, in one loop: tokens first and few copies.

    Args:
        us (Sequence[Tensor]): K inputs (B, L, D) behind their activation, in sequence order.
        x_proj (Tensor): (K, R + 2N, D), or (1, R + 2N, D) for all.
        dt_proj (Tensor): (K, D, R), or (1, D, R) for all.
        A (Tensor): (K, D, N).
        D (Tensor, optional): (K, D).
        dt_bias (Tensor, optional): (K, D).
        delta_softplus (bool): Apply softplus to delta after the bias.
        orders (Sequence[int]): FORWARD or REVERSED for each of the K inputs.

    Returns:
        (list[Tensor]): K outputs (B, L, D) in the dtype of the state.
    """
    length, (rows, width, _), rank = us[0].shape[1], x_proj.shape, dt_proj.shape[2]
    state = (width - rank) // 2
    us = export.fill([export.in_order(u.transpose(0, 1), o) for u, o in zip(us, orders)])
    ranks, Bs, Cs = zip(*(F.linear(u, x_proj[k % rows]).split((rank, state, state), 2) for k, u in enumerate(us)))
    deltas = [F.linear(r, dt_proj[k % rows]) for k, r in enumerate(ranks)]
    ys = export.tokens_scan(us, deltas, Bs, Cs, A, D, dt_bias, delta_softplus)
    return [export.in_order(y[:length], o).transpose(0, 1) for y, o in zip(ys, orders)]


def _gate(y: Tensor, xz: Tensor) -> Tensor:
    """Gate y (B, L, D) by SiLU(z), if there is a z."""
    z = _split(xz, y.shape[-1])[1]
    return y if z is None else y * F.silu(z)


def _compose_backward(
    dout: Tensor,
    xz: Tensor,
    conv_w: Tensor | None,
    conv_b: Tensor | None,
    x_proj: Tensor,
    dt_proj: Tensor,
    A: Tensor,
    D: Tensor | None,
    dt_bias: Tensor | None,
    y: Tensor | None,
    x_dbl: Tensor,
    states: Tensor,
    delta_softplus: bool,
    orders: list[int],
    backend: str,
) -> tuple[Tensor | None, ...]:
    """Return the gradients by xz, conv_w, conv_b, x_proj, dt_proj, A, D and dt_bias, and the gated output, if gated."""
    groups, rank = len(orders), dt_proj.shape[2]
    x, z = _split(xz, A.shape[1])
    dy = dout
    if z is not None:
        gate = torch.sigmoid(z)
        silu_z = z * gate
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
        delta_softplus,
        orders,
        backend,
    )
    du, ddelta, dB, dC = (t.transpose(2, 3) for t in (du, ddelta, dB, dC))  # (B, K, L, D) and (B, K, L, N)
    if x_proj.shape[0] == 1 and groups > 1:  # shared conv and projections: their directions add up
        du, ddelta, dB, dC = (t.sum(1, keepdim=True) for t in (du, ddelta, dB, dC))
    ddt_proj = torch.einsum("bkld,bklr->kdr", ddelta, x_dbl[..., :rank])
    dx_dbl = torch.cat([torch.matmul(ddelta, dt_proj), dB, dC], -1)
    dx_proj = torch.einsum("bklr,bkld->krd", dx_dbl, u.expand(-1, dx_dbl.shape[1], -1, -1))
    dv = (du + torch.matmul(dx_dbl, x_proj)) * (gate + u * (1 - gate))
    dconv_w = dconv_b = None
    if conv_w is None:
        dx = reduce(torch.add, dv.unbind(1))
    else:
        grads = [_causal_conv_backward(dv[:, k], x, w, orders[k], conv_b is not None) for k, w in enumerate(conv_w)]
        dx = reduce(torch.add, (g[0] for g in grads))
        dconv_w = torch.stack([g[1] for g in grads])
        dconv_b = torch.stack([g[2] for g in grads]) if conv_b is not None else None
    dD, ddt_bias = dD if D is not None else None, ddt_bias if dt_bias is not None else None
    dxz, gated = (dx, None) if z is None else (torch.cat([dx, dz], -1), y * silu_z)
    return dxz, dconv_w, dconv_b, dx_proj, ddt_proj, dA, dD, ddt_bias, gated


# The operator ---------------------------------------------------------------------------------------------------------

_INPUTS = (
    "Tensor xz, Tensor? conv_w, Tensor? conv_b, Tensor x_proj, Tensor dt_proj, Tensor A, Tensor? D, Tensor? dt_bias, "
    "Tensor? out_w, Tensor? out_b"
)
_SETTINGS = "bool delta_softplus, int[] orders, str backend"


def _fused(backend: str, *block: Tensor | None) -> ModuleType | None:
    """Return the backend if it has kernels for the whole block that take these tensors."""
    module = registry.get(backend)
    return module if hasattr(module, "block_accepts") and module.block_accepts(*block)[0] else None


@torch.library.custom_op(
    "vmamba::mamba_inner",
    mutates_args=(),
    schema=f"({_INPUTS}, {_SETTINGS}, bool keep) -> (Tensor, Tensor, Tensor, Tensor)",
)
def _mamba_inner(
    xz: Tensor,
    conv_w: Tensor | None,
    conv_b: Tensor | None,
    x_proj: Tensor,
    dt_proj: Tensor,
    A: Tensor,
    D: Tensor | None,
    dt_bias: Tensor | None,
    out_w: Tensor | None,
    out_b: Tensor | None,
    delta_softplus: bool,
    orders: Sequence[int],
    backend: str,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    block = xz, conv_w, conv_b, x_proj, dt_proj, A, D, dt_bias
    with op.no_autocast(xz.device.type):
        if module := _fused(backend, *block):
            out, *kept = module.block_forward(*block, delta_softplus, list(orders), keep)
        else:
            y, *kept = _compose(*block, delta_softplus, list(orders), backend, keep)
            y = y.contiguous()
            out = _gate(y, xz)
            kept = [None if out is y else y, kept[0].contiguous(), kept[1]]
        if out_w is not None:
            out = product(out.flatten(0, 1), out_w.t(), out_b, backend).unflatten(0, out.shape[:2])
    return out, *(xz.new_empty(0) if t is None else t for t in (kept if keep else (None,) * 3))


@_mamba_inner.register_fake
def _(
    xz, conv_w, conv_b, x_proj, dt_proj, A, D, dt_bias, out_w, out_b, delta_softplus, orders, backend, keep
) -> tuple[Tensor, ...]:
    (batch, length, _), (groups, dim, state) = xz.shape, A.shape
    out = xz.new_empty(batch, length, dim if out_w is None else out_w.shape[0])
    if not keep:
        return out, *(xz.new_empty(0) for _ in range(3))
    y = xz.new_empty(0) if xz.shape[2] == dim else xz.new_empty(batch, length, dim)
    x_dbl = xz.new_empty(batch, x_proj.shape[0], length, x_proj.shape[1])
    count = registry.get(backend).num_checkpoints(length)
    return out, y, x_dbl, A.new_empty(batch, groups, count, state, dim).transpose(-1, -2)


@torch.library.custom_op(
    "vmamba::mamba_inner_backward",
    mutates_args=(),
    schema=(
        f"(Tensor dout, {_INPUTS}, Tensor y, Tensor projected, Tensor states, {_SETTINGS})"
        f" -> ({', '.join(['Tensor'] * 10)})"
    ),
)
def _mamba_inner_backward(
    dout: Tensor,
    xz: Tensor,
    conv_w: Tensor | None,
    conv_b: Tensor | None,
    x_proj: Tensor,
    dt_proj: Tensor,
    A: Tensor,
    D: Tensor | None,
    dt_bias: Tensor | None,
    out_w: Tensor | None,
    out_b: Tensor | None,
    y: Tensor,
    projected: Tensor,
    states: Tensor,
    delta_softplus: bool,
    orders: Sequence[int],
    backend: str,
) -> tuple[Tensor, ...]:
    block = xz, conv_w, conv_b, x_proj, dt_proj, A, D, dt_bias
    with op.no_autocast(dout.device.type):  # it may run inside an autocast block, where forward's casts are no use
        flat = dout.flatten(0, 1)
        dgated = dout if out_w is None else product(flat, out_w, None, backend).unflatten(0, dout.shape[:2])
        kept = None if xz.shape[2] == A.shape[1] else y, projected, states
        if module := _fused(backend, *block):
            *grads, gated = module.block_backward(
                dgated, *block, *kept, delta_softplus, list(orders), out_w is not None
            )
        else:
            *grads, gated = _compose_backward(dgated, *block, *kept, delta_softplus, list(orders), backend)
        if out_w is not None:
            grads += [product(flat.t(), gated.flatten(0, 1), None, backend), flat.sum(0) if out_b is not None else None]
        else:
            grads += [None, None]
    return tuple(xz.new_empty(0) if g is None else g.contiguous() for g in grads)


@_mamba_inner_backward.register_fake
def _(dout, *inputs) -> tuple[Tensor, ...]:
    tensors = inputs[:10]
    return tuple(dout.new_empty(0) if t is None else t.new_empty(t.shape) for t in tensors)


def _setup_context(ctx, inputs, output) -> None:
    *tensors, ctx.delta_softplus, ctx.orders, ctx.backend, _ = inputs
    ctx.set_materialize_grads(False)  # nobody differentiates what is kept: no zeros in its place
    ctx.save_for_backward(*tensors, *output[1:])


def _backward(ctx, dout, *_):
    saved = ctx.saved_tensors
    if dout is None:
        return (None,) * 14
    grads = _mamba_inner_backward(dout, *saved, ctx.delta_softplus, ctx.orders, ctx.backend)
    return *(None if t is None else g for t, g in zip(saved, grads)), None, None, None, None


_mamba_inner.register_autograd(_backward, setup_context=_setup_context)
op.differentiable_once(_mamba_inner_backward, "the Mamba block")


def _parts(xz_shape, conv_w_shape, x_proj_shape, dt_proj_shape, A_shape, out_w_shape) -> tuple[int, int, int, int, int]:
    """Return the FLOPs of the convolutions, x_proj, dt_proj, the scans and out_proj, 2 for a multiply-add."""
    (batch, length, _), (groups, dim, state), rows = xz_shape, A_shape, x_proj_shape[0]
    tokens = 2 * batch * length * dim
    scans = op.scan_flops(batch, groups * dim, length, state)
    out = 0 if out_w_shape is None else tokens * out_w_shape[0]
    return (
        0 if conv_w_shape is None else tokens * rows * conv_w_shape[2],
        tokens * rows * x_proj_shape[1],
        tokens * rows * dt_proj_shape[2],
        scans,
        out,
    )


@register_flop_formula(torch.ops.vmamba.mamba_inner)
def _flops(xz, conv_w, conv_b, x_proj, dt_proj, A, D, dt_bias, out_w, *args, out_shape=None, **kwargs) -> int:
    """Return the FLOPs of the operator from the shapes of its arguments."""
    return sum(_parts(xz, conv_w, x_proj, dt_proj, A, out_w))


@register_flop_formula(torch.ops.vmamba.mamba_inner_backward)
def _flops_backward(
    dout, xz, conv_w, conv_b, x_proj, dt_proj, A, D, dt_bias, out_w, *args, out_shape=None, **kw
) -> int:
    """Return twice the forward FLOPs, and once more what is recomputed: convolutions, dt_proj and scans."""
    conv, project, rank, scans, out = _parts(xz, conv_w, x_proj, dt_proj, A, out_w)
    return 3 * (conv + rank + scans) + 2 * (project + out)


def _like_scan(xz: Tensor, A: Tensor, D: Tensor | None, dt_bias: Tensor | None) -> tuple[Tensor | None, ...]:
    """Return tensors with the shapes, dtypes and device of the scan inside, for the choice of a backend."""
    u = _split(xz, A.shape[1])[0].transpose(1, 2).unsqueeze(1).expand(-1, A.shape[0], -1, -1)
    B = u[:, :, :1].expand(-1, -1, A.shape[2], -1)
    return u, u, A, B, B, D, None, dt_bias


def _check(
    xz: Tensor,
    conv_w: Tensor | None,
    x_proj: Tensor,
    dt_proj: Tensor,
    A: Tensor,
    out_w: Tensor | None,
    orders: list[int],
) -> None:
    """Raise ValueError unless the tensors that fix the sizes fit together."""
    named = {"xz": (xz, 3), "conv_w": (conv_w, 3), "x_proj": (x_proj, 3), "dt_proj": (dt_proj, 3), "A": (A, 3)}
    for name, (t, axes) in {**named, "out_w": (out_w, 2)}.items():
        if t is not None and t.dim() != axes:
            raise ValueError(f"{name} must have {axes} axes, got {tuple(t.shape)}; see mamba_inner")
    (groups, dim, state), rows, rank = A.shape, x_proj.shape[0], dt_proj.shape[2]
    if rows not in (1, groups) or len(orders) != groups:
        raise ValueError(
            f"A has {groups} directions, x_proj {rows} rows (1 or as many), and there are {len(orders)} orders"
        )
    want = {"x_proj": (x_proj, (rows, rank + 2 * state, dim)), "dt_proj": (dt_proj, (rows, dim, rank))}
    gated = xz.shape[2] != dim
    if out_w is not None and not gated:
        raise ValueError(f"out_w needs a gate: xz must be (B, L, {2 * dim}), got {tuple(xz.shape)}")
    want["xz"] = xz, (*xz.shape[:2], (1 + gated) * dim)
    if conv_w is not None:
        want["conv_w"] = conv_w, (rows, dim, conv_w.shape[2])
    if out_w is not None:
        want["out_w"] = out_w, (out_w.shape[0], dim)
    for name, (t, shape) in want.items():
        if t.shape != shape:
            raise ValueError(f"{name} has shape {tuple(t.shape)}, expected {shape} with A {tuple(A.shape)}")


def mamba_inner(
    xz: Tensor,
    conv_w: Tensor | None,
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
        xz (Tensor): Input projection, x beside z (B, L, 2D), or x alone (B, L, D): no gate, and no out_w.
        conv_w (Tensor, optional): (Kc, D, W); without it the scans take SiLU(x).
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

    Raises:
        ValueError: If shapes, devices or the number of orders do not fit together.

    Source:
        Gu and Dao, "Mamba", 2023, figure 3; Zhu et al., "Vision Mamba", 2024, algorithm 1 for two directions.
    """
    orders = list(orders)
    _check(xz, conv_w, x_proj, dt_proj, A, out_w, orders)
    for t in (conv_w, conv_b, x_proj, dt_proj, A, D, dt_bias, out_w, out_b):
        if t is not None and t.device != xz.device:  # kernels take addresses; and with one on meta none would run
            raise ValueError(f"all tensors must be on one device: xz is on {xz.device}, another on {t.device}")
    state_dtype = torch.float64 if xz.dtype == torch.float64 else torch.float32
    conv_w, conv_b, x_proj, dt_proj, out_w, out_b = (
        None if p is None else p.to(xz.dtype) for p in (conv_w, conv_b, x_proj, dt_proj, out_w, out_b)
    )
    A, D, dt_bias = (None if p is None else p.to(state_dtype) for p in (A, D, dt_bias))
    with op.no_autocast(xz.device.type):  # the casts above are the only ones
        block = xz, conv_w, conv_b, x_proj, dt_proj, A, D, dt_bias
        backend = op.choose(*_like_scan(xz, A, D, dt_bias))
        given = *block, out_w, out_b
        keep = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in given)
        if backend is not None and (recompute or not keep):
            return _mamba_inner(*given, delta_softplus, orders, backend, keep)[0]
        if op.exporting():
            y = _compose_graph(*block, delta_softplus, orders)
        else:
            y = _compose(*block, delta_softplus, orders, backend)[0]
        out = _gate(y.to(xz.dtype), xz)
        return out if out_w is None else F.linear(out, out_w, out_b)
