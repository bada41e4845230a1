# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""The scan of any number of tokens: a loop over runs of tokens.

The state (B, K, N, D) of all K directions goes through the loop, whose body takes a run: one token after the other, or
in two levels (see flat.py), several chunks at once. This file has the loops of TorchScript, of what converts that, and
of torch.export; onnx_scan.py has that of ONNX.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .onnx_scan import OnnxScan
from .softplus import softplus
from .table import LEVELS, LOOP
from .target import sizes, traced_for_onnx

__all__ = ("RUNS", "Run", "Weights", "in_order", "loop_scan")


class Run(NamedTuple):
    """How many tokens the body of a loop takes.

    Attributes:
        tokens (int): Tokens of a chunk, walked one after the other.
        chunks (int): Chunks of a run, walked at once.
    """

    tokens: int
    chunks: int = 1

    @property
    def length(self) -> int:
        """Return the tokens of a run."""
        return self.tokens * self.chunks

    def fill(self, groups: Sequence[Tensor]) -> list[Tensor]:
        """Append zeros to the tokens (L, B, C) of each group until they make whole runs.

        They come after every token in scan order, so whatever they turn into changes no output. All groups get the same
        zeros: how many there are takes ten operators in a graph of any size.
        """
        length, batch, channels = groups[0].shape
        missing = 2 * self.length - length % self.length  # torch.export gives no graph for every size if this may be 0
        if torch.jit.is_tracing():
            missing = missing % self.length
        zeros = groups[0].new_zeros(missing, batch, channels)
        return [torch.cat([x, zeros]) for x in groups]


# Fewer tokens take more operator calls, more leave the cache
RUNS = {LOOP: Run(16), LEVELS: Run(8, 10)}


class Weights(NamedTuple):
    """What does not depend on the tokens; exporters store it as it is.

    Attributes:
        A (Tensor): (K, N, D), in the dtype of the state.
        D (Tensor, optional): (K, 1, D).
        delta_bias (Tensor, optional): (K, 1, D).
        delta_softplus (bool): Whether delta goes through softplus after the bias.
    """

    A: Tensor
    D: Tensor | None
    delta_bias: Tensor | None
    delta_softplus: bool


def in_order(x: Tensor, order: int) -> Tensor:
    """Turn tokens (L, B, C) from sequence order to scan order or back."""
    return x.flip(0) if order else x


def loop_scan(
    run: Run,
    u: Sequence[Tensor],
    delta: Sequence[Tensor],
    B: Sequence[Tensor],
    C: Sequence[Tensor],
    A: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> list[Tensor]:
    """Scan the tokens of K groups, each of which is in scan order already and filled by `Run.fill`.

    Args:
        run (Run): Tokens that the loop takes at once.
        u (Sequence[Tensor]): K inputs (L, B, D).
        delta (Sequence[Tensor]): K step sizes (L, B, D) before bias and softplus.
        B (Sequence[Tensor]): K input matrices (L, B, N).
        C (Sequence[Tensor]): K output matrices (L, B, N).
        A (Tensor): (K, D, N).
        D (Tensor, optional): (K, D).
        delta_bias (Tensor, optional): (K, D).
        delta_softplus (bool): Apply softplus to delta after the bias.

    Returns:
        (list[Tensor]): K outputs (L, B, D) in the dtype of the state.
    """
    dtype = torch.float64 if u[0].dtype == torch.float64 else torch.float32
    (length, batch, dim), groups, state = u[0].shape, A.shape[0], A.shape[2]
    D, delta_bias = (None if p is None else p.detach().to(dtype).unsqueeze(1) for p in (D, delta_bias))
    weights = Weights(A.detach().to(dtype).transpose(1, 2).contiguous(), D, delta_bias, delta_softplus)
    forms = (1, dim), (1, dim), (state, 1), (1, state)
    runs = [
        [x.to(dtype).reshape(-1, run.length, batch, 1, *form) for x in of] for of, form in zip((u, delta, B, C), forms)
    ]
    h = runs[0][0].new_zeros(1, batch, *weights.A.shape)
    if traced_for_onnx():
        ys = OnnxScan.apply(run, weights, h, *(x for of in runs for x in of))
    else:
        u, dt, B, C = (of[0] if groups == 1 else torch.cat(of, 3) for of in runs)
        dt = dt if delta_bias is None else dt + delta_bias
        dt = softplus(dt, False) if delta_softplus else dt
        single = sizes(A)[2] == 1
        if torch.jit.is_tracing():
            walk = _scripted(run, single)
        else:
            walk = functools.partial(_higher_order, functools.partial(_body, run, single))
        y = walk(h, dt * u, dt, B, C, weights.A)
        ys = (y if D is None else y + u * D).unbind(3)
    return [y.reshape(length, batch, dim) for y in ys]


# TorchScript, what converts it, and torch.export ---------------------------------------------------------------------


def _body(
    run: Run, single: bool, h: Tensor, x: Tensor, dt: Tensor, B: Tensor, C: Tensor, A: Tensor
) -> tuple[Tensor, Tensor]:
    """Take the state through a run of tokens.

    Args:
        run (Run): Their number.
        single (bool): N = 1.
        h (Tensor): State (1, B, K, N, D).
        x (Tensor): Step size times input (run.length, B, K, 1, D).
        dt (Tensor): Step size (run.length, B, K, 1, D).
        B (Tensor): (run.length, B, K, N, 1).
        C (Tensor): (run.length, B, K, 1, N).
        A (Tensor): (K, N, D).

    Returns:
        h (Tensor): State after the run.
        y (Tensor): (run.length, B, K, 1, D).
    """
    (tokens, chunks), (_, batch, groups, _, dim), state = run, dt.shape, A.shape[1]
    decays, news = torch.exp(dt * A), B * x
    if chunks == 1:
        hs = []
        for decay, new in zip(decays.split(1), news.split(1)):
            h = new + decay * h
            hs.append(h)
        states = torch.cat(hs)
    else:
        parts = [t.reshape(chunks, tokens, batch, groups, state, dim).split(1, 1) for t in (decays, news)]
        lasts = torch.exp(dt.reshape(chunks, tokens, batch, groups, 1, dim).sum(1, keepdim=True) * A)
        end = parts[1][0]
        for decay, new in zip(parts[0][1:], parts[1][1:]):
            end = new + decay * end
        h, starts = h.unsqueeze(1), []
        for last, new in zip(lasts.split(1), end.split(1)):
            starts.append(h)
            h = new + last * h
        at, hs = torch.cat(starts), []
        for decay, new in zip(*parts):
            at = new + decay * at
            hs.append(at)
        h, states = h.squeeze(1), torch.cat(hs, 1).reshape(run.length, batch, groups, state, dim)
    return h, C * states if single else torch.matmul(C, states)


def _higher_order(body: Callable, h: Tensor, x: Tensor, dt: Tensor, B: Tensor, C: Tensor, A: Tensor) -> Tensor:
    """Walk over the runs with the scan of torch.export."""
    from torch._higher_order_ops.scan import scan as higher_order_scan  # here, because PyTorch 2.4 has none

    return higher_order_scan(lambda h, now: body(h, *now, A), h, (x, dt, B, C))[1]


@functools.cache
def _scripted(run: Run, single: bool) -> Callable[..., Tensor]:
    """Return a TorchScript function that walks over the runs: the loop stays one in a trace of what calls it."""
    one = torch.zeros(1, 1, 1, 1, 1)
    many = one.expand(run.length, -1, -1, -1, -1)
    outer = torch._C._get_tracing_state()
    torch._C._set_tracing_state(None)  # the run has a trace of its own, so that its tokens are not a loop
    try:
        body = torch.jit.trace(
            lambda *x: _body(run, single, *x), (one, many, many, many, many, one[0, 0]), check_trace=False
        )

        def walk(h, x, dt, B, C, A):
            ys: list[torch.Tensor] = []
            for i in range(x.shape[0]):
                h, y = body(h, x[i], dt[i], B[i], C[i], A)
                ys.append(y)
            return torch.stack(ys)

        return torch.jit.script(walk)
    finally:
        torch._C._set_tracing_state(outer)
