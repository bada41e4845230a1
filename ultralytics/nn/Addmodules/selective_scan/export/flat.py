# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""The scan of a fixed number of tokens without a loop, in two levels.

Tokens are cut into chunks of T. All chunks walk their T tokens at once from a zero state; that gives the state that
each chunk adds. A chunk's decay is exp(A sum dt), so nothing is divided. The states that chunks begin with are a scan
over chunks, in two levels again where there are many. From these the chunks walk their tokens once more.

A reversed direction walks backwards over the same pieces: nothing is flipped. Directions of one order are the leading
axis of every tensor, or stand apart where a runtime has few axes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from .softplus import softplus
from .table import Row
from .target import sizes

if TYPE_CHECKING:  # contract.py imports what imports this
    from ..contract import Block, Scan

__all__ = ("flat_block", "flat_scans")

TOKENS = 16  # of a chunk; 20 in short sequences
CHUNKS = 10  # of chunks that are many
FEW = 26  # chunks whose states are walked one after the other


def _walk(decays: Sequence[Tensor | None], news: Sequence[Tensor], h: Tensor | None, back: bool) -> list[Tensor]:
    """Return h = decay * h + new after each token, in the order of the tokens; h starts at zero if there is none."""
    turn = slice(None, None, -1 if back else 1)
    hs = []
    for decay, new in zip(decays[turn], news[turn]):
        h = new if h is None else decay * h + new
        hs.append(h)
    return hs[turn]


def _walk_all(decays: Tensor, news: Tensor, back: bool) -> Tensor:
    """Return the states (G, L, D) after each of a few tokens, from zero."""
    length = sizes(news)[1]
    if length == 1:
        return news
    # The first decay meets no state. It is cut off, because ncnn takes whatever nobody reads for an output.
    used = (decays[:, :-1] if back else decays[:, 1:]).split(1, 1)
    return torch.cat(_walk([*used, None] if back else [None, *used], news.split(1, 1), None, back), 1)


def _pad(x: Tensor, count: int, back: bool) -> Tensor:
    """Append zeros (G, count, D) behind the last token in scan order."""
    return F.pad(x, (0, 0, count, 0) if back else (0, 0, 0, count)) if count else x


def _cut(x: Tensor, count: int, back: bool) -> Tensor:
    """Remove what `_pad` appended."""
    if count == 0:
        return x
    return x[:, count:] if back else x[:, :-count]


def _two_level(decays: Tensor, news: Tensor, last: Tensor | None, tokens: int, back: bool) -> Tensor:
    """Return the states (G, L, D) of h = decay * h + new.

    Args:
        decays (Tensor): (G, L, D), L a multiple of tokens.
        news (Tensor): (G, L, D).
        last (Tensor, optional): Product of the decays of each chunk (G, L / tokens, D), if it is known.
        tokens (int): Tokens of a chunk.
        back (bool): From the last token to the first.
    """
    groups, length, dim = sizes(decays)
    chunks = length // tokens
    if chunks == 1:
        return _walk_all(decays, news, back)
    a, b = (x.reshape(groups, chunks, tokens, dim).split(1, 2) for x in (decays, news))
    end = _walk(a, b, None, back)[0 if back else -1].squeeze(2)
    if last is None:
        last = a[0]
        for more in a[1:]:
            last = last * more
        last = last.squeeze(2)
    ends, lasts = (x[:, 1:] if back else x[:, :-1] for x in (end, last))
    count = chunks - 1
    if count <= FEW:
        starts = _walk_all(lasts, ends, back)
    else:
        missing = -count % CHUNKS
        starts = _two_level(_pad(lasts, missing, back), _pad(ends, missing, back), None, CHUNKS, back)
        starts = _cut(starts, missing, back)
    starts = _pad(starts, 1, not back).unsqueeze(2)  # the first chunk begins with zero
    return torch.cat(_walk(a, b, starts, back), 2).reshape(groups, length, dim)


def _scan(
    u: Tensor,
    delta: Tensor,
    B: Tensor,
    C: Tensor,
    A: Tensor,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    back: bool,
    own_softplus: bool,
) -> Tensor:
    """Scan G sequences in one order, without the skip.

    Args:
        u (Tensor): (G, L, D) in the dtype of the state.
        delta (Tensor): (G, L, D) before bias and softplus.
        B (Tensor): (G, L, N).
        C (Tensor): (G, L, N).
        A (Tensor): (G, D, N).
        delta_bias (Tensor, optional): (G, D).
        delta_softplus (bool): Apply softplus to delta after the bias.
        back (bool): From the last token to the first.
        own_softplus (bool): Write softplus in elementary operators.

    Returns:
        (Tensor): (G, L, D).
    """
    (groups, length, dim), state = sizes(u), sizes(A)[2]
    tokens = min(length, TOKENS if length > 400 else 20)
    missing = -length % tokens
    u, delta, B, C = (_pad(x, missing, back) for x in (u, delta, B, C))
    length += missing
    dt = delta if delta_bias is None else delta + delta_bias.unsqueeze(1)
    if delta_softplus:
        dt = softplus(dt, own_softplus)
    total = dt.reshape(groups, length // tokens, tokens, dim).sum(2)
    A = A.transpose(1, 2)  # (G, N, D)
    y = None
    for n in range(state):  # one state after the other: few axes, and no copies
        one, b, c = (A, B, C) if state == 1 else (A[:, n : n + 1], B[:, :, n : n + 1], C[:, :, n : n + 1])
        states = _two_level(torch.exp(dt * one), dt * (u * b), torch.exp(total * one), tokens, back)
        y = states * c if y is None else y + states * c
    return _cut(y, missing, back)


def _join(us: Sequence[Tensor], seen: dict[tuple[int, ...], Tensor]) -> Tensor:
    """Return sequences (B, L, D) as one tensor (K B, L, D); the same ones only once."""
    key = tuple(map(id, us))
    if key not in seen:
        seen[key] = us[0] if len(us) == 1 else torch.cat(list(us))
    return seen[key]


def _of_each(p: Tensor | None, ks: Sequence[int], batch: int) -> Tensor | None:
    """Return the parameters (len(ks) B, ...) of some directions, those of each repeated for every picture."""
    if p is None:
        return None
    first, last = ks[0], ks[-1] + 1
    p = p[first:last] if list(ks) == list(range(first, last)) else torch.stack([p[k] for k in ks])
    return p if batch == 1 else p.unsqueeze(1).expand(-1, batch, -1, *(-1,) * (p.dim() - 2)).flatten(0, 1)


def flat_block(us: Sequence[Tensor], b: Block, row: Row) -> list[Tensor]:
    """Do what `traced_block` does with the same arguments, as a runtime of this row of the table likes it."""
    (batch, length, dim), (rows, _, _), rank = sizes(us[0]), sizes(b.x_proj), sizes(b.dt_proj)[2]
    state, dtype = sizes(b.A)[2], b.A.dtype  # A has the dtype of the state
    ys: list[Tensor | None] = [None] * len(b.orders)
    seen: dict[tuple[int, ...], Tensor] = {}
    if row.together:
        parts = [[k for k, o in enumerate(b.orders) if o == order] for order in sorted(set(b.orders))]
    else:
        parts = [[k] for k in range(len(b.orders))]
    for ks in parts:
        u = _join([us[k] for k in ks], seen)
        weights, ranks = (_of_each(p, [k % rows for k in ks], 1) for p in (b.x_proj, b.dt_proj))
        if len(ks) == 1:
            x = F.linear(u, weights[0])
        else:
            x = torch.matmul(u.reshape(len(ks), batch * length, dim), weights.transpose(1, 2))
        r, B, C = x.split((rank, state, state), 2)
        delta = F.linear(r, ranks[0]) if len(ks) == 1 else torch.matmul(r, ranks.transpose(1, 2))
        inputs = [t if t.dtype == dtype else t.to(dtype) for t in (u, delta, B, C)]
        if len(ks) > 1 and batch > 1:
            inputs[1:] = [t.reshape(len(ks) * batch, length, sizes(t)[2]) for t in inputs[1:]]
        back = bool(b.orders[ks[0]])
        if row.together:
            own = (_of_each(p, ks, batch) for p in (b.A, b.dt_bias))
            y = _scan(*inputs, *own, b.delta_softplus, back, row.own_softplus)
        else:
            own = [_of_each(p, ks, 1) for p in (b.A, b.dt_bias)]
            pictures = [inputs] if batch == 1 else zip(*(t.split(1) for t in inputs))
            each = [_scan(*of, *own, b.delta_softplus, back, row.own_softplus) for of in pictures]
            y = each[0] if batch == 1 else torch.cat(each)
        for k, one in zip(ks, y.split(batch) if len(ks) > 1 else [y]):
            ys[k] = one if b.D is None else one + us[k].to(dtype) * b.D[k]
    return ys


def flat_scans(s: Scan, row: Row) -> list[Tensor]:
    """Scan the K groups of a scan and return K outputs (B, D, L) in the dtype of the state."""
    batch, ys = sizes(s.u)[0], []
    for k, order in enumerate(s.orders):
        tokens = [x[:, k].transpose(1, 2).to(s.A.dtype) for x in (s.u, s.delta, s.B, s.C)]
        own = (_of_each(p, [k], batch) for p in (s.A, s.delta_bias))
        y = _scan(*tokens, *own, s.delta_softplus, bool(order), row.own_softplus)
        ys.append((y if s.D is None else y + tokens[0] * s.D[k]).transpose(1, 2))
    return ys
