# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Selective scan in plain PyTorch, fast on any device: sequential inside a chunk, all chunks at once, then the carry.

The decay of a whole chunk is exp(A * sum of its steps), so the states at the chunk borders follow from a short
sequential carry, and a second pass inside the chunks starts from the right states. The backward pass runs the adjoint
recurrence the same way and recomputes the states inside a chunk from the borders kept by the forward pass. See
docs/design/selective-scan.md.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..contract import Backend, Scan

__all__ = ("Chunked", "chunk_length")

# Elements of one (tokens, N, D) block of states that backward holds at a time: 2**24 float32 are 64 MiB.
BLOCK_ELEMENTS = 1 << 24
SUM_LENGTH = 32  # states that are added up in one go


def chunk_length(length: int) -> int:
    """Return the chunk length that balances steps inside a chunk and steps of the carry: about sqrt(L)."""
    return max(1, math.isqrt(length - 1) + 1)


def _compute_dtype(u: Tensor) -> torch.dtype:
    """Return the dtype of the state: float64 for float64 input, float32 for everything else."""
    return torch.float64 if u.dtype == torch.float64 else torch.float32


def _to_scan_order(x: Tensor, orders: list[int]) -> Tensor:
    """Put the tokens (B, K, L, C) of every reversed group into scan order; its own inverse."""
    if not any(orders):
        return x
    if all(orders):
        return x.flip(2)
    return torch.stack([x[:, k].flip(1) if o else x[:, k] for k, o in enumerate(orders)], 1)


def _chunks(x: Tensor, orders: list[int], chunk: int, dtype: torch.dtype) -> Tensor:
    """Turn (B, K, C, L) tokens into contiguous, zero-padded (T, B, K, n, C) steps in scan order.

    The step comes first so that step t of every chunk is one contiguous block: views taken at B = 1 from the other
    order cost six times as much. Zero padding is an identity step, since delta is 0 there.
    """
    x = _to_scan_order(x.transpose(2, 3).to(dtype), orders)
    batch, groups, length, channels = x.shape
    n = -(-length // chunk)
    if n * chunk != length:
        x = torch.nn.functional.pad(x, (0, 0, 0, n * chunk - length))
    return x.reshape(batch, groups, n, chunk, channels).permute(3, 0, 1, 2, 4).contiguous()


def _tokens(x: Tensor, orders: list[int], length: int) -> Tensor:
    """Turn (T, B, K, n, C) steps back into (B, K, L, C) tokens in their own places."""
    x = x.permute(1, 2, 3, 0, 4).flatten(2, 3)[:, :, :length]
    return _to_scan_order(x, orders)


def _step_sizes(delta: Tensor, delta_bias: Tensor | None, delta_softplus: bool, dtype: torch.dtype) -> Tensor:
    """Return delta after bias and softplus, (B, K, D, L) in the compute dtype."""
    dt = delta.to(dtype)
    if delta_bias is not None:
        dt = dt + delta_bias.to(dtype)[:, :, None]
    if delta_softplus:
        dt = dt.clamp(min=0) + torch.log1p(torch.exp(-dt.abs()))
    return dt


def _contract(weights: Tensor, h: Tensor) -> Tensor:
    """Multiply (..., 1, N) by (..., N, D): in pieces, since one running sum of 256 products doubles the error."""
    if h.shape[-2] <= SUM_LENGTH:
        return torch.matmul(weights, h)
    return sum(torch.matmul(w, x) for w, x in zip(weights.split(SUM_LENGTH, -1), h.split(SUM_LENGTH, -2)))


def _carry(decay: Tensor, local: Tensor) -> Tensor:
    """Return the states at the start of every chunk from the chunks' decays and local end states, (B, K, n, N, D)."""
    start = torch.empty_like(local)
    h = torch.zeros_like(local[:, :, 0])
    for c in range(local.shape[2]):
        start[:, :, c] = h
        # A state of zero stays zero, also where the decay of a whole chunk is above all numbers
        h = torch.addcmul(local[:, :, c], decay[:, :, c], h) if c else local[:, :, 0]
    return start


class Chunked(Backend):
    """Plain PyTorch on any device and for any dtype."""

    name = "chunked"
    about = "plain PyTorch, any device"

    def num_checkpoints(self, length: int) -> int:
        """Return how many states are kept: one at the end of each chunk."""
        return -(-length // chunk_length(length))

    def scan(self, s: Scan, keep: bool = True) -> tuple[Tensor, Tensor]:
        """Scan all groups; states are those at the ends of chunks."""
        u, delta, A, B, C, D, z, delta_bias, delta_softplus, orders = s
        dtype, length = _compute_dtype(u), u.shape[-1]
        chunk = chunk_length(length)
        dt = _step_sizes(delta, delta_bias, delta_softplus, dtype)
        x = _chunks(dt * u.to(dtype), orders, chunk, dtype).unsqueeze(-2)  # (T, B, K, n, 1, D)
        dt = _chunks(dt, orders, chunk, dtype).unsqueeze(-2)
        Bs = _chunks(B, orders, chunk, dtype).unsqueeze(-1)  # (T, B, K, n, N, 1)
        Cs = _chunks(C, orders, chunk, dtype).unsqueeze(-2)  # (T, B, K, n, 1, N)
        At = A.to(dtype).transpose(1, 2).unsqueeze(1).contiguous()  # (K, 1, N, D)

        h = x[0] * Bs[0]
        decay = torch.empty_like(h)
        for t in range(1, chunk):
            torch.mul(dt[t], At, out=decay)
            h.mul_(decay.exp_()).addcmul_(x[t], Bs[t])
        torch.mul(dt.sum(0), At, out=decay)
        h = _carry(decay.exp_(), h)
        y = torch.empty_like(x)
        for t in range(chunk):
            torch.mul(dt[t], At, out=decay)
            h.mul_(decay.exp_()).addcmul_(x[t], Bs[t])
            y[t] = _contract(Cs[t], h)

        y = _tokens(y.squeeze(-2), orders, length).transpose(2, 3)  # (B, K, D, L)
        if D is not None:
            y = y + u.to(dtype) * D.to(dtype)[:, :, None]
        if z is not None:
            y = y * torch.nn.functional.silu(z.to(dtype))
        out = torch.empty_like(u)
        out.copy_(y)
        h = h if keep else h[:, :, -1:].clone()  # a view would hold all of them
        return out, h.transpose(-1, -2)

    def scan_backward(self, dout: Tensor, s: Scan, states: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of `scan`."""
        u, delta, A, B, C, D, z, delta_bias, delta_softplus, orders = s
        dtype, length = _compute_dtype(u), u.shape[-1]
        chunk = chunk_length(length)
        u32, dy = u.to(dtype), dout.to(dtype)
        dt = _step_sizes(delta, delta_bias, delta_softplus, dtype)
        if z is not None:
            z32 = z.to(dtype)
            gate = torch.sigmoid(z32)
            dz = dy * (gate + z32 * gate * (1 - gate))  # to be multiplied by y, which is recomputed below
            dy = dy * (z32 * gate)
        us, dys, dts = (_chunks(v, orders, chunk, dtype).unsqueeze(-2) for v in (u32, dy, dt))  # (T, B, K, n, 1, D)
        xs = us * dts
        Bn, Cn = (_chunks(v, orders, chunk, dtype) for v in (B, C))  # (T, B, K, n, N)
        Bs, Cs = Bn.unsqueeze(-1), Cn.unsqueeze(-1)
        At = A.to(dtype).transpose(1, 2).unsqueeze(1).contiguous()  # (K, 1, N, D)
        start = states.to(dtype).transpose(-1, -2).roll(1, 2).contiguous()  # (B, K, n, N, D)
        start[:, :, 0] = 0

        # Adjoint g_t = dL/dh_t = C_t dy_t + a_(t+1) g_(t+1): what enters each chunk from the later ones.
        g = torch.zeros_like(start)
        decay = torch.empty_like(start)
        for t in reversed(range(chunk)):
            g.addcmul_(Cs[t], dys[t])
            torch.mul(dts[t], At, out=decay)
            g.mul_(decay.exp_())
        torch.mul(dts.sum(0), At, out=decay)
        incoming = _carry(decay.exp_().flip(2), g.flip(2)).flip(2)

        # Then chunk by chunk group: the states again, from the borders, and the gradients against scan order.
        dus, ddts, y = torch.empty_like(xs), torch.empty_like(xs), torch.empty_like(xs) if z is not None else None
        dBs, dCs = torch.empty_like(Bs), torch.empty_like(Cs)
        dA = torch.zeros_like(At.squeeze(1))  # (K, N, D)
        n = start.shape[2]
        per_group = max(1, BLOCK_ELEMENTS // max(1, chunk * start[:, :, 0].numel()))
        for c in range(0, n, per_group):
            part = slice(c, min(c + per_group, n))
            h = start[:, :, part].contiguous()
            hs = h.new_empty(chunk, *h.shape)  # state before each step
            decays = torch.empty_like(hs)
            for t in range(chunk):
                hs[t] = h
                torch.mul(dts[t][:, :, part], At, out=decays[t])
                h.mul_(decays[t].exp_()).addcmul_(xs[t][:, :, part], Bs[t][:, :, part])
            g = incoming[:, :, part].contiguous()
            dA_block = torch.zeros_like(g)
            for t in reversed(range(chunk)):
                dy_t, dt_t, u_t, x_t = (v[t][:, :, part] for v in (dys, dts, us, xs))  # (B, K, n, 1, D)
                dCs[t][:, :, part] = h @ dy_t.transpose(-1, -2)  # h is the state after step t
                if y is not None:
                    y[t][:, :, part] = _contract(Cs[t][:, :, part].transpose(-1, -2), h)
                g.addcmul_(Cs[t][:, :, part], dy_t)
                dBs[t][:, :, part] = g @ x_t.transpose(-1, -2)
                dx = _contract(Bs[t][:, :, part].transpose(-1, -2), g)
                h = hs[t]
                g.mul_(decays[t])  # now the adjoint of the state before step t
                q = g * h  # gradient of delta_t A
                ddts[t][:, :, part] = (q * At).sum(-2, keepdim=True) + dx * u_t
                dus[t][:, :, part] = dx * dt_t
                dA_block.addcmul_(q, dt_t)
            dA += dA_block.sum((0, 2))

        du, ddt = (_tokens(v.squeeze(-2), orders, length).transpose(2, 3) for v in (dus, ddts))
        dB, dC = (_tokens(v.squeeze(-1), orders, length).transpose(2, 3) for v in (dBs, dCs))
        dD = None
        if D is not None:
            dD = (dy * u32).sum((0, 3)).to(D.dtype)
            du = du + dy * D.to(dtype)[:, :, None]
        if z is not None:
            y = _tokens(y.squeeze(-2), orders, length).transpose(2, 3)
            dz = dz * (y if D is None else y + u32 * D.to(dtype)[:, :, None])
        if delta_softplus:
            ddt = ddt * -torch.expm1(-dt)  # the derivative of softplus, sigmoid(x), is 1 - exp(-softplus(x))
        return (
            torch.empty_like(u).copy_(du),
            torch.empty_like(delta).copy_(ddt),
            dA.transpose(1, 2).contiguous().to(A.dtype),
            torch.empty_like(B).copy_(dB),
            torch.empty_like(C).copy_(dC),
            dD,
            torch.empty_like(z).copy_(dz) if z is not None else None,
            ddt.sum((0, 3)).to(delta_bias.dtype) if delta_bias is not None else None,
        )
