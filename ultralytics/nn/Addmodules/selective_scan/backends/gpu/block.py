# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""The block on a GPU: its own kernels around one scan of all directions, and matrix products."""

from __future__ import annotations

import torch
from torch import Tensor

from ...contract import Block, Scan
from . import load
from .launch import bits, far_apart, guard, launch, power_of_two, strides
from .scan import Call, num_checkpoints

__all__ = ("block", "block_backward")

MAX_RANK = 16  # of a delta formed inside the scan; for a larger one a matrix product pays, which keeps (B, K, L, D)
MAX_TAPS = 16  # of the convolution
BLOCK_TOKENS, BLOCK_CHANNELS, BLOCK_WARPS = 16, 64, 4  # of a program
SLOPE_WARPS = 8  # where weights get their gradients: each thread then holds half as many sums
SLOPE_STEPS = 4  # times as many tokens where weights get their gradients: fewer rows to add up


def warps(kernel: str) -> int:
    """Return the warps of a program of a kernel of block_kernels.py."""
    return SLOPE_WARPS if kernel == "conv_silu_slope" else BLOCK_WARPS


class _Call:
    """The block's sizes and kernels, the same for forward and backward.

    Tokens of all directions are (K, B, L, D) in memory: matrix products with each direction's weights are then one
    batched product over all pictures, and nothing is transposed between the stages.
    """

    def __init__(self, b: Block):
        self.b, (self.batch, self.length, _) = b, b.xz.shape
        self.groups, self.channels, self.state = b.A.shape
        self.rows, self.rank = b.x_proj.shape[0], b.dt_proj.shape[2]
        self.x, self.z = b.halves()
        # Taps outermost in memory: a thread's neighbouring channels are one load, not one each.
        self.conv_w = None if b.conv_w is None else b.conv_w.transpose(1, 2).contiguous().transpose(1, 2)
        self.conv_b = None if b.conv_w is None else b.conv_b
        self.taps = 1 if b.conv_w is None else b.conv_w.shape[2]
        self.block_d = min(BLOCK_CHANNELS, power_of_two(self.channels))
        self.blocks = -(-self.channels // self.block_d)

    def launch(self, kernel: str, tensors: list[Tensor | None], steps: int = 1, copies: int = 1, **given) -> None:
        """Start a kernel of block_kernels.py.

        Args:
            kernel (str): Its name.
            tensors (list[Tensor | None]): Its tensors, in order.
            steps (int): Times BLOCK_TOKENS tokens that a program takes.
            copies (int): Programs for the same tokens and channels.
            **given (int): Its arguments beyond tensors and the sizes that all of them take.
        """
        tokens = BLOCK_TOKENS * steps
        chunks = -(-self.length // tokens)
        programs = self.blocks * chunks * copies * self.batch
        given |= {"channels": self.channels, "L": self.length, "blocks": self.blocks, "chunks": chunks}
        given |= {"TOKENS": BLOCK_TOKENS, "BLOCK_D": self.block_d}
        with guard(self.x.device):
            launch(getattr(load.block_kernels, kernel), programs, tensors, given, warps(kernel))

    def tokens(self, groups: int) -> Tensor:
        """Return uninitialised tokens of a number of directions, (K, B, L, D)."""
        return self.x.new_empty(groups, self.batch, self.length, self.channels)

    def projections(self, groups: int) -> Tensor:
        """Return uninitialised projections of the tokens of a number of directions, (K, B, L, R + 2N).

        Rows begin at multiples of 16 bytes: 34 or 36 numbers of bfloat16 do not, and matrix products on tensor cores
        want it.
        """
        columns, multiple = self.b.x_proj.shape[1], 16 // self.x.element_size()
        return self.x.new_empty(groups, self.batch, self.length, -(-columns // multiple) * multiple)[..., :columns]

    def convolution(self) -> dict[str, int]:
        """Return the arguments that all convolution kernels take."""
        given = {**strides("kdj", w=self.conv_w), "rows": self.rows, "TAPS": self.taps}
        return given | {"orders": bits(self.b.orders)}

    def convolved(self) -> Tensor:
        """Return u = SiLU(conv(x)), (Q, B, L, D)."""
        u = self.tokens(self.rows)
        self.launch(
            "conv_silu", [self.x, self.conv_w, self.conv_b, u], **strides("bld", x=self.x), **self.convolution(),
            **strides("kd", bias=self.conv_b), **strides("kbl", u=u),
        )  # fmt: skip
        return u

    def convolution_gradients(self, dv: Tensor, dx: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Fill dx (B, L, D) and return the gradients of weights and bias; dv (Q, B, L, D), that of u, is used up."""
        chunks = -(-self.length // (BLOCK_TOKENS * SLOPE_STEPS))
        parts = None
        if self.conv_w is not None:
            parts = self.x.new_empty(
                (self.batch * chunks, self.rows, self.taps + 1, self.channels), dtype=torch.float32
            )
        self.launch(
            "conv_silu_slope", [self.x, self.conv_w, self.conv_b, dv, parts], SLOPE_STEPS, self.rows,
            **strides("bld", x=self.x), **self.convolution(), **strides("kd", bias=self.conv_b),
            **strides("kbl", dv=dv), STEPS=SLOPE_STEPS,
        )  # fmt: skip
        self.launch(
            "conv_input", [dv, self.conv_w, dx], **strides("kbl", dv=dv), **self.convolution(), **strides("bl", dx=dx)
        )
        if parts is None:
            return None, None
        total = parts.sum(0, dtype=torch.float64)
        dw = total[:, : self.taps].transpose(1, 2).to(dv.dtype).contiguous()
        return dw, None if self.conv_b is None else total[:, self.taps].to(dv.dtype)

    def scan(self, u: Tensor, projected: Tensor, backward: bool) -> tuple[Call, Scan, Tensor | None]:
        """Return the call of the scan, the scan, and the low ranks of its delta, if that is formed inside.

        Args:
            u (Tensor): (Q, B, L, D).
            projected (Tensor): (Q, B, L, R + 2N).
            backward (bool): For the backward pass.
        """

        def of_all(t: Tensor) -> Tensor:
            """View (Q, B, L, C) as (B, K, C, L): shared tokens are one, seen K times."""
            return t.permute(1, 0, 3, 2).expand(-1, self.groups, -1, -1)

        low, B, C = (of_all(t) for t in projected.split([self.rank, self.state, self.state], dim=-1))
        proj, delta = self.b.dt_proj.expand(self.groups, -1, -1), None
        if self.rank > MAX_RANK:
            weight = self.b.dt_proj.transpose(1, 2)
            delta = of_all(_matmul(projected[..., : self.rank], weight, self.tokens(self.rows)))
            proj = low = None
        scan = self.b.scan(of_all(u), delta, B, C)
        return Call(scan, backward, proj), scan, low


def _matmul(x: Tensor, weight: Tensor, out: Tensor) -> Tensor:
    """Fill out (K, B, L, M), which may be a part of wider rows, with tokens (K, B, L, C) times weights (K, C, M)."""
    torch.bmm(x.flatten(1, 2), weight, out=out.flatten(1, 2))
    return out


def _weight_gradient(dy: Tensor, x: Tensor) -> Tensor:
    """Return the sum over tokens of dy (K, B, L, M) times x (K, B, L, C), (K, M, C).

    A product for each direction: the result has one tile or few, and of a single product cuBLAS divides the sum, over
    up to millions of tokens, among multiprocessors.
    """
    total = dy.new_empty(len(dy), dy.shape[-1], x.shape[-1])
    for a, b, out in zip(dy.flatten(1, 2), x.flatten(1, 2), total):
        torch.mm(a.t(), b, out=out)
    return total


def block(b: Block, keep: bool) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Do what `Backend.block` does; delta is formed inside the scan."""
    call, xz = _Call(b), b.xz
    out = xz.new_empty(call.batch, call.length, call.channels)
    y = torch.empty_like(out) if keep and call.z is not None else None
    if xz.numel() == 0:
        projected = xz.new_empty(call.batch, call.rows, call.length, b.x_proj.shape[1])
        states = b.A.new_zeros(call.batch, call.groups, num_checkpoints(call.length), call.state, call.channels)
        return (out, y, projected, states.transpose(-1, -2)) if keep else (out, None, None, None)
    u = call.convolved()
    projected = _matmul(u, b.x_proj.transpose(1, 2), call.projections(call.rows))
    scan_call, scan, low = call.scan(u, projected, backward=False)
    ys = call.tokens(call.groups)
    states = scan_call.forward(ys.permute(1, 0, 3, 2), scan, low, keep)
    call.launch(
        "merge_gate", [ys, call.z, y, out], **strides("kbl", ys=ys), **strides("bld", z=call.z),
        **strides("bl", y=y, out=out), rows=call.groups,
    )  # fmt: skip
    if not keep:
        return out, None, None, None
    return out, y, projected.transpose(0, 1).contiguous(), states.transpose(-1, -2)


def block_backward(
    dout: Tensor, b: Block, kept: tuple[Tensor | None, Tensor, Tensor], again: bool
) -> tuple[Tensor | None, ...]:
    """Do what `Backend.block_backward` does: the same bits every time, as far as the matrix products are."""
    call, (y, projected, states) = _Call(b), kept
    shape = call.batch, call.length, call.channels
    want = {"dout": (dout, shape), "y": (y, shape)}
    want["projected"] = projected, (call.batch, call.rows, call.length, b.x_proj.shape[1])
    want["states"] = states, (call.batch, call.groups, num_checkpoints(call.length), call.channels, call.state)
    for name, (t, expected) in want.items():
        if t is not None and t.shape != expected:
            raise ValueError(f"{name} {tuple(t.shape)} does not belong to this block, expected {expected}")
    if b.xz.numel() == 0:
        return (*(None if t is None else torch.zeros_like(t) for t in b[:8]), torch.empty_like(y) if again else None)

    if far_apart(dout, 2, 1):
        dout = dout.contiguous()
    dxz = torch.empty_like(b.xz, memory_format=torch.contiguous_format)
    dx, dy, out = dxz[..., : call.channels], dout, None
    projected = call.projections(call.rows).copy_(projected.transpose(0, 1))
    du_all, ddelta_all = call.tokens(call.groups), call.tokens(call.groups)
    if call.z is not None:
        y = y.contiguous()
        dy, out, dz = torch.empty_like(y), torch.empty_like(y) if again else None, dxz[..., call.channels :]
        call.launch(
            "gate_slope", [dout, y, call.z, dy, dz, out], **strides("bld", dout=dout, z=call.z),
            **strides("bl", y=y, dy=dy, dz=dz, out=out),
        )  # fmt: skip
    u = call.convolved()
    scan_call, scan, low = call.scan(u, projected, backward=True)
    dprojected_all = call.projections(call.groups)
    _, dB, dC = dprojected_all.permute(1, 0, 3, 2).split([call.rank, call.state, call.state], dim=2)
    grads = du_all.permute(1, 0, 3, 2), ddelta_all.permute(1, 0, 3, 2), dB, dC, None
    along = dy.transpose(1, 2).unsqueeze(1).expand(-1, call.groups, -1, -1)
    states = states.transpose(-1, -2).contiguous()  # no copy of what forward returned
    dA, dD, ddt_bias = scan_call.backward(grads, along, scan, low, states)

    def shared(t: Tensor) -> Tensor:
        """Add up over the directions that share a row of weights."""
        return t.sum(0, keepdim=True) if call.rows < call.groups else t

    du, ddelta, dprojected = shared(du_all), shared(ddelta_all), shared(dprojected_all)
    _matmul(ddelta, b.dt_proj, dprojected[..., : call.rank])
    ddt_proj = _weight_gradient(ddelta, projected[..., : call.rank])
    dx_proj = _weight_gradient(dprojected, u)
    du.flatten(1, 2).baddbmm_(dprojected.flatten(1, 2), b.x_proj)
    dconv_w, dconv_b = call.convolution_gradients(du, dx)
    return dxz, dconv_w, dconv_b, dx_proj, ddt_proj, dA, dD, ddt_bias, out
