# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""What every backend is given, with a name and a shape for each part, and what it has to give: its base class.

Letters of the shapes: B pictures, K directions (the recipe's groups), D channels, L tokens, N states, R rank of the
step sizes, W taps of the convolution, M outputs, and Q rows of weights: K, or 1 that all directions share.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from . import compose

__all__ = ("FORWARD", "REVERSED", "Backend", "Block", "Linear", "Norm", "Problem", "Scan")

FORWARD, REVERSED = 0, 1  # token orders
SCAN_SHAPES = (
    *("(B, K, D, L)", "(B, K, D, L)", "(K, D, N)", "(B, K, N, L)", "(B, K, N, L)", "(K, D)", "(B, K, D, L)", "(K, D)"),
)
BLOCK_SHAPES = (
    *("(B, L, 2D or D)", "(Q, D, W)", "(Q, D)", "(Q, R + 2N, D)", "(Q, D, R)", "(K, D, N)", "(K, D)", "(K, D)"),
    *("(M, D)", "(M)", "", "", "(2D or D, C)", "(2D or D)", "(C)", "(C)"),
)
OPTIONAL = frozenset("conv_w conv_b D z delta_bias dt_bias out_w out_b in_w in_b norm_w norm_b".split())
NEEDS = (  # parts of a block that mean nothing without another
    *(("conv_b", "conv_w"), ("out_b", "out_w"), ("in_b", "in_w")),
    *(("norm_w", "in_w"), ("norm_w", "norm_b"), ("norm_b", "norm_w")),
)


class Scan(NamedTuple):
    """K groups of channels to scan at once, each in its own token order. Nothing is flipped, nothing is broadcast.

    Any strides are right. Tokens with the channel innermost, stride 1 over D, are the fastest.
    """

    u: Tensor  # (B, K, D, L)
    delta: Tensor  # (B, K, D, L), step sizes before bias and softplus
    A: Tensor  # (K, D, N)
    B: Tensor  # (B, K, N, L)
    C: Tensor  # (B, K, N, L)
    D: Tensor | None = None  # (K, D), skip weights
    z: Tensor | None = None  # (B, K, D, L), gate
    delta_bias: Tensor | None = None  # (K, D)
    delta_softplus: bool = False  # softplus of delta after the bias
    orders: Sequence[int] | None = None  # FORWARD or REVERSED for each group; all FORWARD by default

    def check(self) -> None:
        """Raise TypeError or ValueError unless the parts fit together."""
        if self.u.dim() != 4:
            raise ValueError(f"u must have shape (B, K, D, L), got {tuple(self.u.shape)}")
        if self.A.dim() != 3 or self.A.shape[2] < 1:
            raise ValueError(f"A must have shape (K, D, N) with N >= 1, got {tuple(self.A.shape)}")
        tokens = batch, groups, dim, length = self.u.shape
        state = self.A.shape[2]
        weights, channels = (batch, groups, state, length), (groups, dim)
        shapes = tokens, tokens, (groups, dim, state), weights, weights, channels, tokens, channels
        _require(self, SCAN_SHAPES, shapes)
        _require_orders(self.orders, groups)


class Block(NamedTuple):
    """A Mamba block of K directions: norm, in_proj, convolution, SiLU, projections, scans, their sum, gate, out_proj.

    Without conv_w the scans take SiLU of their input. Without a gate there is no out_proj. Without in_w there is no
    norm. A backend gets norm and in_proj only if its `whole` says that it takes them.
    """

    xz: Tensor  # (B, L, 2D), input of the scans beside the gate, or (B, L, D) and no gate; tokens (B, L, C) with in_w
    conv_w: Tensor | None  # (Q, D, W), the last tap on the token itself
    conv_b: Tensor | None  # (Q, D)
    x_proj: Tensor  # (Q, R + 2N, D)
    dt_proj: Tensor  # (Q, D, R)
    A: Tensor  # (K, D, N)
    D: Tensor | None = None  # (K, D), skip weights
    dt_bias: Tensor | None = None  # (K, D)
    out_w: Tensor | None = None  # (M, D); without it the gated (B, L, D) is returned
    out_b: Tensor | None = None  # (M)
    delta_softplus: bool = True  # softplus of the step sizes after the bias
    orders: Sequence[int] | None = None  # FORWARD or REVERSED for each direction; all FORWARD by default
    in_w: Tensor | None = None  # (2D, C) or (D, C): xz is what this makes of the tokens
    in_b: Tensor | None = None  # (2D) or (D)
    norm_w: Tensor | None = None  # (C): tokens go through LayerNorm first
    norm_b: Tensor | None = None  # (C)
    norm_eps: float = 1e-5  # added to the variance

    def halves(self) -> tuple[Tensor, Tensor | None]:
        """Return the input of the scans (B, L, D) and the gate, if there is one."""
        dim = self.A.shape[1]
        return (self.xz, None) if self.xz.shape[-1] == dim else self.xz.split(dim, dim=-1)

    def scan(self, u: Tensor, delta: Tensor, B: Tensor, C: Tensor) -> Scan:
        """Return the scan inside; the gate is not in it but applied once, to the sum of the directions."""
        return Scan(u, delta, self.A, B, C, self.D, None, self.dt_bias, self.delta_softplus, self.orders)

    def check(self) -> None:
        """Raise TypeError or ValueError unless the parts fit together."""
        for i in (0, 1, 3, 4, 5):
            if self[i] is not None and self[i].dim() != 3:
                raise ValueError(f"{self._fields[i]} must have shape {BLOCK_SHAPES[i]}, got {tuple(self[i].shape)}")
        (batch, length, width), (groups, dim, state) = self.xz.shape, self.A.shape
        rows, rank = self.x_proj.shape[0], self.dt_proj.shape[2]
        if rows not in (1, groups):
            raise ValueError(f"x_proj has {rows} rows for {groups} directions, expected as many, or 1 for all")
        inside = width if self.in_w is None else self.in_w.shape[0]  # channels of what in_proj gives
        inside = dim if inside == dim else 2 * dim
        for name, other in NEEDS:
            if getattr(self, name) is not None and getattr(self, other) is None:
                raise ValueError(f"{name} is given without {other}: give both, or none")
        if self.out_w is not None and inside == dim:
            raise ValueError(f"out_w needs a gate: xz must be (B, L, {2 * dim}), got {tuple(self.xz.shape)}")
        taps = None if self.conv_w is None else self.conv_w.shape[2]
        outputs = None if self.out_w is None else self.out_w.shape[0]
        shapes = (
            *((batch, length, inside if self.in_w is None else width), (rows, dim, taps), (rows, dim)),
            *((rows, rank + 2 * state, dim), (rows, dim, rank), (groups, dim, state), (groups, dim), (groups, dim)),
            *((outputs, dim), (outputs,), None, None, (inside, width), (inside,), (width,), (width,)),
        )
        _require(self, BLOCK_SHAPES, shapes)
        _require_orders(self.orders, groups)


class Norm(NamedTuple):
    """LayerNorm over the channels of a map's tokens, (B, C, L) -> (B, L, C)."""

    x: Tensor  # (B, C, L), channels_last or not
    weight: Tensor  # (C)
    bias: Tensor  # (C)
    eps: float = 1e-5  # added to the variance

    def check(self) -> None:
        """Raise TypeError or ValueError unless the parts fit together."""
        if self.x.dim() != 3:
            raise ValueError(f"x must have shape (B, C, L), got {tuple(self.x.shape)}")
        channels = self.x.shape[1:2]
        _require(self, ("(B, C, L)", "(C)", "(C)"), (self.x.shape, channels, channels))


class Linear(NamedTuple):
    """A product with a bias: (M, K) times (K, N)."""

    a: Tensor  # (M, K)
    b: Tensor  # (K, N)
    bias: Tensor | None = None  # (N)


Problem = Scan | Block | Norm | Linear


def _require(problem: Problem, grammar: Sequence[str], shapes: Sequence[tuple[int | None, ...] | None]) -> None:
    """Raise unless the tensors of a problem are real, on the device of the first, and of these shapes, so written."""
    device = problem[0].device
    for i, (t, shape) in enumerate(zip(problem, shapes)):
        if t is None:
            if problem._fields[i] not in OPTIONAL:
                raise TypeError(f"{problem._fields[i]} must be a tensor {grammar[i]}, got None")
            continue
        if shape is None:
            continue
        if t.device != device:
            first = problem._fields[0]
            raise ValueError(
                f"all tensors must be on one device: {first} is on {device}, {problem._fields[i]} on {t.device}"
            )
        if t.shape != shape:
            raise ValueError(
                f"{problem._fields[i]} must have shape {grammar[i]} = {tuple(shape)}, got {tuple(t.shape)}"
            )
        if not t.is_floating_point():
            kind = "real" if t.is_complex() else "floating point"
            raise TypeError(f"{problem._fields[i]} must be {kind}, got {t.dtype}")


def _require_orders(orders: Sequence[int] | None, directions: int) -> None:
    """Raise ValueError unless there is a known token order for each direction."""
    if orders is None:
        return
    if len(orders) != directions or any(o not in (FORWARD, REVERSED) for o in orders):
        raise ValueError(f"orders must hold {FORWARD} or {REVERSED} for each of {directions} groups, got {orders}")


class Backend:
    """One way to compute. The rest is composed of PyTorch.

    `scan`, `scan_backward` and `num_checkpoints` are needed; `scan` alone where `operator` is False.

    What a backend takes is declared in the attributes. Its methods get problems that were checked and that it takes.

    Attributes:
        name (str): Its file's name, and what users write in VMAMBA_BACKEND.
        device (str, optional): Type of the device that tensors must be on; None for any.
        dtypes (tuple[torch.dtype, ...], optional): Of tokens and weights, None for any; A, D and biases are float32.
        max_states (int, optional): Most states N; None for any.
        max_directions (int, optional): Most directions K; None for any.
        kinds (frozenset[str]): What it takes: "scan", "block", and "norm" if it has a kernel for it.
        columns (int): `linear` is faster than PyTorch for float32 and multiples of so many outputs; 0: it never is.
        operator (bool): It has its own backward, and runs inside an operator. Otherwise autograd differentiates it.
        automatic (bool): It may be chosen without being asked for by name.
        works (bool): Whether it can run here.
        about (str): Its version, or the reason why it cannot.
    """

    name = ""
    device: str | None = None
    dtypes: tuple[torch.dtype, ...] | None = None
    max_states: int | None = None
    max_directions: int | None = None
    kinds = frozenset({"scan", "block"})
    columns = 0
    operator = automatic = works = True
    about = ""

    def refuses(self, problem: Problem) -> str:
        """Return why it does not take a problem, beyond what its attributes say; "" if it does."""
        return ""

    def num_checkpoints(self, length: int) -> int:
        """Return how many states `scan` keeps for backward, several of a long scan; the last is the final state."""
        raise NotImplementedError

    def scan(self, s: Scan, keep: bool = True) -> tuple[Tensor, Tensor]:
        """Scan all groups of a batch.

        Args:
            s (Scan): The scan.
            keep (bool): Keep the states that backward needs; otherwise only the last one.

        Returns:
            out (Tensor): (B, K, D, L) in the dtype of u, and in its layout if it is dense.
            states (Tensor): (B, K, num_checkpoints(L) or 1, D, N) in scan order; float32, float64 for float64. In
                memory channels are innermost.
        """
        raise NotImplementedError

    def scan_backward(self, dout: Tensor, s: Scan, states: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients by the eight tensors of a scan, in their dtypes and layouts; None for absent ones.

        Args:
            dout (Tensor): Gradient of the output (B, K, D, L).
            s (Scan): The scan.
            states (Tensor): What `scan` kept (B, K, n, D, N).
        """
        raise NotImplementedError

    def whole(self, b: Block) -> bool:
        """Return whether `block` takes a block with in_w, and does all around it as well, where nothing is kept."""
        return False

    def block(self, b: Block, keep: bool = True) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
        """Compute a block without in_proj and out_proj; with in_w it is whole, nothing is kept, and out is (B, L, M).

        Args:
            b (Block): The block.
            keep (bool): Return what backward needs; the last three are None otherwise.

        Returns:
            out (Tensor): (B, L, D), gated if there is a gate.
            y (Tensor, optional): The same before the gate; None where there is none.
            projected (Tensor, optional): What delta, B and C are made of (B, Q, L, R + 2N).
            states (Tensor, optional): Kept states (B, K, num_checkpoints(L), D, N).
        """
        out, *kept = compose.block(b, lambda s: self.scan(s, keep))
        return out, *(kept if keep else (None, None, None))

    def block_backward(
        self, dout: Tensor, b: Block, kept: tuple[Tensor | None, Tensor, Tensor], again: bool
    ) -> tuple[Tensor | None, ...]:
        """Return the gradients of `block` by its first eight tensors in their dtypes, None for absent ones, and `out`.

        Args:
            dout (Tensor): Gradient of the output (B, L, D).
            b (Block): The block.
            kept (tuple): y, projected and states of `block`.
            again (bool): Compute `out` again, for the gradient of out_proj; otherwise it may be None.
        """
        return compose.block_backward(dout, b, kept, self.scan_backward)

    def norm(self, n: Norm) -> tuple[Tensor, Tensor, Tensor]:
        """Return the tokens (B, L, C), and their means and reciprocal standard deviations (B, L) in float32."""
        raise NotImplementedError

    def norm_backward(self, dout: Tensor, n: Norm, mean: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients of `norm` by x, weight and bias."""
        raise NotImplementedError

    def linear(self, p: Linear) -> Tensor:
        """Return the product (M, N)."""
        return p.a @ p.b if p.bias is None else torch.addmm(p.bias, p.a, p.b)
