# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Triton kernels of the block around the scan: convolution with SiLU, and the sum over directions with the gate.

Tokens are (B, L, channels) with the channels last, directions come in front of them. A program has TOKENS tokens of one
picture and BLOCK_D channels. Arithmetic is float32 whatever comes in, and no rounding stands between convolution and
SiLU. Names of the arguments are those of kernels.py; the causal convolution of direction k is
v[t] = bias + sum_j w[j] x[t - sign (TAPS - 1 - j)], where sign is -1 if the direction runs against token order.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .kernels import _sigmoid

# Strides are specialised, unlike in the scan: here wide loads of neighbouring channels are what is wanted.
_RUNTIME = ["L", "blocks", "chunks", "orders", "rows"]


@triton.jit
def _place(blocks, chunks, TOKENS: tl.constexpr, BLOCK_D: tl.constexpr):
    """Return the picture, the tokens and the channels of this program."""
    pid = tl.program_id(0)
    d = (pid % blocks) * BLOCK_D + tl.arange(0, BLOCK_D)
    t = (pid // blocks) % chunks * TOKENS + tl.arange(0, TOKENS)
    return (pid // (blocks * chunks)).to(tl.int64), t, d


@triton.jit
def _convolve(x, x_l, x_d, w, w_j, w_d, bias, bias_d, t, d, ok_d, L, sign, TAPS: tl.constexpr):
    """Return the convolution (tokens, channels) of one direction; x itself where there are no weights."""
    v = tl.zeros([t.shape[0], d.shape[0]], tl.float32)
    if bias is not None:
        v += tl.load(bias + d * bias_d, ok_d, 0.0).to(tl.float32)[None, :]
    for j in tl.static_range(TAPS):
        at = t - sign * (TAPS - 1 - j)
        ok = ((at >= 0) & (at < L))[:, None] & ok_d[None, :]
        tap = tl.load(x + at.to(tl.int64)[:, None] * x_l + d[None, :] * x_d, ok, 0.0).to(tl.float32)
        if w is not None:
            tap *= tl.load(w + j * w_j + d * w_d, ok_d, 0.0).to(tl.float32)[None, :]
        v += tap
    return v


@triton.jit(do_not_specialize=_RUNTIME)
def conv_silu(
    x, w, bias, u, x_b, x_l, x_d, w_k, w_d, w_j, bias_k, bias_d, u_b, u_k, u_l,
    rows, channels, L, blocks, chunks, orders, TAPS: tl.constexpr, TOKENS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Write u = SiLU(conv(x)) of every direction. Programs: blocks x chunks of tokens x B."""
    b, t, d = _place(blocks, chunks, TOKENS, BLOCK_D)
    ok_d = d < channels
    ok = (t < L)[:, None] & ok_d[None, :]
    x += b * x_b
    u += b * u_b + t.to(tl.int64)[:, None] * u_l + d[None, :]
    for k in range(rows):
        sign = 1 - 2 * ((orders >> k) & 1)
        v = _convolve(x, x_l, x_d, w, w_j, w_d, bias, bias_d, t, d, ok_d, L, sign, TAPS)
        tl.store(u, (v * _sigmoid(v)).to(u.dtype.element_ty), ok)
        u += u_k
        if w is not None:
            w += w_k
        if bias is not None:
            bias += bias_k


@triton.jit(do_not_specialize=_RUNTIME)
def conv_silu_slope(
    x, w, bias, dv, parts, x_b, x_l, x_d, w_k, w_d, w_j, bias_k, bias_d, dv_b, dv_k, dv_l,
    rows, channels, L, blocks, chunks, orders,
    TAPS: tl.constexpr, STEPS: tl.constexpr, TOKENS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Turn the gradient of u into that of the convolution in place, with what weights and bias get of these tokens.

    A program takes one direction and STEPS times TOKENS tokens, and leaves a row of `parts` (programs of a block of
    channels and direction, TAPS + 1, channels), the bias last; rows are added up outside, in a fixed order. Programs:
    blocks x chunks x rows x B.
    """
    pid = tl.program_id(0)
    d = (pid % blocks) * BLOCK_D + tl.arange(0, BLOCK_D)
    chunk = (pid // blocks) % chunks
    k = (pid // (blocks * chunks)) % rows
    b = (pid // (blocks * chunks * rows)).to(tl.int64)
    sign = 1 - 2 * ((orders >> k) & 1)
    ok_d = d < channels
    x += b * x_b
    dv += b * dv_b + k.to(tl.int64) * dv_k + d[None, :]
    if w is not None:
        w += k * w_k
    if bias is not None:
        bias += k * bias_k
    sums = ()
    for _ in tl.static_range(TAPS + 1):
        sums = sums + (tl.zeros([TOKENS, BLOCK_D], tl.float32),)
    for i in range(STEPS):  # not unrolled: the unrolled loop loads ahead until no register is left
        t = (chunk * STEPS + i) * TOKENS + tl.arange(0, TOKENS)
        ok = (t < L)[:, None] & ok_d[None, :]
        v = _convolve(x, x_l, x_d, w, w_j, w_d, bias, bias_d, t, d, ok_d, L, sign, TAPS)
        sig = _sigmoid(v)
        place = dv + t.to(tl.int64)[:, None] * dv_l
        g = tl.load(place, ok, 0.0).to(tl.float32) * (sig + v * sig * (1.0 - sig))
        tl.store(place, g.to(dv.dtype.element_ty), ok)
        if w is not None:
            new = ()
            for j in tl.static_range(TAPS):
                at = t - sign * (TAPS - 1 - j)
                inside = ((at >= 0) & (at < L))[:, None] & ok_d[None, :]
                tap = tl.load(x + at.to(tl.int64)[:, None] * x_l + d[None, :] * x_d, inside, 0.0).to(tl.float32)
                new = new + (sums[j] + g * tap,)
            sums = new + (sums[TAPS] + g,)
    if w is not None:
        # (B, chunks) rows of (rows, TAPS + 1, channels)
        parts += ((b * chunks + chunk) * rows + k) * ((TAPS + 1) * channels) + d
        for j in tl.static_range(TAPS + 1):
            tl.store(parts + j * channels, tl.sum(sums[j], axis=0), ok_d)


@triton.jit(do_not_specialize=_RUNTIME)
def conv_input(
    dv, w, dx, dv_b, dv_k, dv_l, w_k, w_d, w_j, dx_b, dx_l,
    rows, channels, L, blocks, chunks, orders, TAPS: tl.constexpr, TOKENS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Write the gradient of x: every direction's transposed convolution, added up. Programs: blocks x chunks x B."""
    b, t, d = _place(blocks, chunks, TOKENS, BLOCK_D)
    ok_d = d < channels
    dv += b * dv_b
    total = tl.zeros([TOKENS, BLOCK_D], tl.float32)
    for k in range(rows):
        sign = 1 - 2 * ((orders >> k) & 1)
        total += _convolve(dv, dv_l, 1, w, w_j, w_d, None, 0, t, d, ok_d, L, -sign, TAPS)
        dv += dv_k
        if w is not None:
            w += w_k
    place = dx + b * dx_b + t.to(tl.int64)[:, None] * dx_l + d[None, :]
    tl.store(place, total.to(dx.dtype.element_ty), (t < L)[:, None] & ok_d[None, :])


@triton.jit(do_not_specialize=_RUNTIME)
def merge_gate(
    ys, z, y, out, ys_b, ys_k, ys_l, z_b, z_l, z_d, y_b, y_l, out_b, out_l,
    rows, channels, L, blocks, chunks, TOKENS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Write y, the sum over directions, if it is to be kept, and out = y SiLU(z). Programs: blocks x chunks x B."""
    b, t, d = _place(blocks, chunks, TOKENS, BLOCK_D)
    ok = (t < L)[:, None] & (d < channels)[None, :]
    t64 = t.to(tl.int64)[:, None]
    ys += b * ys_b + t64 * ys_l + d[None, :]
    total = tl.zeros([TOKENS, BLOCK_D], tl.float32)
    for _ in range(rows):
        total += tl.load(ys, ok, 0.0).to(tl.float32)
        ys += ys_k
    if y is not None:
        tl.store(y + b * y_b + t64 * y_l + d[None, :], total.to(y.dtype.element_ty), ok)
    if z is not None:
        gate = tl.load(z + b * z_b + t64 * z_l + d[None, :] * z_d, ok, 0.0).to(tl.float32)
        total *= gate * _sigmoid(gate)
    tl.store(out + b * out_b + t64 * out_l + d[None, :], total.to(out.dtype.element_ty), ok)


@triton.jit(do_not_specialize=_RUNTIME)
def gate_slope(
    dout, y, z, dy, dz, out, dout_b, dout_l, dout_d, y_b, y_l, z_b, z_l, z_d, dy_b, dy_l, dz_b, dz_l, out_b, out_l,
    channels, L, blocks, chunks, TOKENS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Write the gradients of out = y SiLU(z) by y and z, and out again if it is asked for. Programs as merge_gate."""
    b, t, d = _place(blocks, chunks, TOKENS, BLOCK_D)
    ok = (t < L)[:, None] & (d < channels)[None, :]
    t64 = t.to(tl.int64)[:, None]
    g = tl.load(dout + b * dout_b + t64 * dout_l + d[None, :] * dout_d, ok, 0.0).to(tl.float32)
    value = tl.load(y + b * y_b + t64 * y_l + d[None, :], ok, 0.0).to(tl.float32)
    gate = tl.load(z + b * z_b + t64 * z_l + d[None, :] * z_d, ok, 0.0).to(tl.float32)
    sig = _sigmoid(gate)
    tl.store(dy + b * dy_b + t64 * dy_l + d[None, :], (g * gate * sig).to(dy.dtype.element_ty), ok)
    slope = sig + gate * sig * (1.0 - sig)
    tl.store(dz + b * dz_b + t64 * dz_l + d[None, :], (g * value * slope).to(dz.dtype.element_ty), ok)
    if out is not None:
        tl.store(out + b * out_b + t64 * out_l + d[None, :], (value * gate * sig).to(out.dtype.element_ty), ok)
