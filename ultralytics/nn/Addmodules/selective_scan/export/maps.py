# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Four scans of a map of a fixed size without a loop, in maps (B, D, H, W) all the way: the form for ncnn.

ncnn holds channels in packs of 16 and computes along the pixels. So the projections are pointwise convolutions, and
nothing becomes tokens. Each column of a map is walked at once with all others, in two levels as in `flat.py`: a column
is cut into chunks, and their states go from chunk to chunk and from column to column. Rows are the columns of the
transposed map.

A step size is -log(sigmoid(-x)), which is softplus(x) in fewer operators than elsewhere (`softplus.py`). The
convolution gives -x and the walk has negative steps, so the sign is in C. A step of 0.001 is right to four digits,
which suits a runtime that may compute in 16 bits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .softplus import softplus
from .target import sizes

__all__ = ("map_scans",)

TOKENS = 8  # of a chunk, about: a divisor of the map's side
LARGEST = 20  # chunk, unless the side has no smaller divisor
LINE = 12  # tokens that are walked one after the other, without chunks
LINEAR = (
    9.0  # softplus(x) is x above it, to five digits; sigmoid(-x) would soon be zero in 16 bits, and has no logarithm
)


def _chunk(length: int) -> int:
    """Return the divisor of a length that makes the cheapest chunks."""
    divisors = [d for d in range(2, LARGEST + 1) if length % d == 0]
    return min(divisors, key=lambda d: abs(math.log(d / TOKENS))) if divisors else length


def _turn(pieces: Sequence[Tensor | None], back: bool) -> list:
    """Return pieces in the order of the walk, or turn them back from it."""
    return list(pieces)[:: -1 if back else 1]


def _walk(decays: Sequence[Tensor | None], news: Sequence[Tensor], h: Tensor | None, back: bool) -> list[Tensor]:
    """Return h = decay * h + new after each piece, in the order of the pieces; h starts at zero if there is none."""
    hs = []
    for decay, new in zip(_turn(decays, back), _turn(news, back)):
        h = new if h is None else decay * h + new
        hs.append(h)
    return _turn(hs, back)


def _before(decays: Sequence[Tensor], news: Sequence[Tensor], h: Tensor, back: bool, axis: int) -> Tensor:
    """Return the states before each piece, joined along an axis, where h is before the first."""
    decays, news = _turn(decays, back)[:-1], _turn(news, back)[:-1]
    return torch.cat(_turn([h, *_walk(decays, news, h, False)], back), axis)


def _ends(decays: Sequence[Tensor], news: Sequence[Tensor], back: bool) -> tuple[Tensor, Tensor]:
    """Return what several pieces do to a state: the product of their decays, and the state after them from zero."""
    product = decays[0]
    for decay in decays[1:]:
        product = product * decay
    return product, _turn(_walk(decays, news, None, back), back)[-1]


def _starts(decays: Tensor, news: Tensor, back: bool) -> Tensor | None:
    """Return the states (B, D, 1, W) before each token of a line, from zero; None where there is but one token."""
    batch, dim, _, width = sizes(news)
    if width == 1:
        return None
    tokens = _chunk(width)
    if width <= LINE or tokens == width:  # The first decay meets no state, and what the last token does is not asked.
        news = news[..., 1:] if back else news[..., :-1]  # Cut off: ncnn takes what nobody reads for an output.
        hs = list(news.split(1, 3))
        if width > 2:
            used = decays[..., 1:-1].split(1, 3)
            hs = [torch.cat(_walk([*used, None] if back else [None, *used], hs, None, back), 3)]
        return F.pad(hs[0], (0, 1) if back else (1, 0))
    chunks = width // tokens
    a, b = (x.reshape(batch, dim, chunks, tokens).split(1, 3) for x in (decays, news))
    starts = _starts(*(x.reshape(batch, dim, 1, chunks) for x in _ends(a, b, back)), back)
    return _before(a, b, starts.reshape(batch, dim, chunks, 1), back, 3).reshape(batch, dim, 1, width)


def _columns(logs: Tensor, news: Tensor, back: bool) -> Tensor:
    """Return the states (B, D, H, W) of h = exp(log) * h + new, down every column and on to the next.

    Args:
        logs (Tensor): Logarithms of the decays (B, D, H, W), none above zero.
        news (Tensor): (B, D, H, W).
        back (bool): From the last token to the first.
    """
    batch, dim, height, width = sizes(news)
    tokens = _chunk(height)
    chunks = height // tokens
    a, b = (
        x.reshape(batch, dim, chunks, tokens * width).split(width, 3) for x in (torch.exp(logs), news)
    )  # (B, D, chunks, W) each
    h = None
    if chunks * width > 1:
        end = _turn(_walk(a, b, None, back), back)[-1]
        decay = torch.exp(F.avg_pool2d(logs, (tokens, 1)) * tokens)
        if chunks == 1:
            h = _starts(decay, end, back)
        else:
            decays, ends = decay.split(1, 2), end.split(1, 2)
            if width > 1:
                h = _starts(*_ends(decays, ends, back), back)
                h = _before(decays, ends, h, back, 2)
            else:  # one column
                h = _starts(*(x.reshape(batch, dim, 1, chunks) for x in (decay, end)), back)
                h = h.reshape(batch, dim, chunks, 1)
    return torch.cat(_walk(a, b, h, back), 3).reshape(batch, dim, height, width)


def _scans(u: Tensor, x_proj: Tensor, dt_proj: Tensor, A: Tensor, dt_bias: Tensor) -> Tensor:
    """Scan a map along its columns, forwards and back, and return the sum (B, D, H, W), without the skips.

    Args:
        u (Tensor): (B, D, H, W).
        x_proj (Tensor): (2, R + 2N, D).
        dt_proj (Tensor): (2, D, R).
        A (Tensor): (2, D, N).
        dt_bias (Tensor): (2, D).
    """
    (_, dim, rank), state = sizes(dt_proj), sizes(A)[2]
    B, C = x_proj[:, rank : rank + state], -x_proj[:, rank + state :]
    ranks = F.conv2d(u, x_proj[:, :rank].reshape(2 * rank, dim, 1, 1)).split(rank, 1)
    few = F.conv2d(u, torch.cat([B, C], 1).reshape(4 * state, dim, 1, 1)).split(1, 1)
    y = None
    for k in range(2):
        x, bias = ranks[k], None if dt_bias is None else -dt_bias[k]
        x = F.conv2d(x, -dt_proj[k].reshape(dim, rank, 1, 1), bias)
        if x.dtype == torch.float64:
            steps = -softplus(-x, False)
        else:
            steps = torch.minimum(torch.log(torch.sigmoid(x.clamp(min=-LINEAR))), x)
        for n in range(state):
            b, c = (few[(2 * k + i) * state + n] for i in range(2))
            h = _columns(steps * -A[k, :, n].reshape(1, dim, 1, 1), (u * b) * steps, bool(k))
            y = h * c if y is None else y + h * c
    return y


def map_scans(u: Tensor, x_proj: Tensor, dt_proj: Tensor, A: Tensor, D: Tensor, dt_bias: Tensor) -> Tensor:
    """Scan a map along its rows and columns, both ways, and return the sum.

    Args:
        u (Tensor): (B, D, H, W) after its activation, in the dtype of the state.
        x_proj (Tensor): (K, R + 2N, D), K = 4 in the order of `cross_scan`, or 2 for rows alone.
        dt_proj (Tensor): (K, D, R).
        A (Tensor): (K, D, N), negative.
        D (Tensor): (K, D).
        dt_bias (Tensor): (K, D).

    Returns:
        (Tensor): (B, D, H, W).
    """
    half = sizes(A)[0] // 2  # the reversed directions follow the forward ones
    rows, columns = ([p[i::half] for p in (x_proj, dt_proj, A, dt_bias)] for i in (0, half - 1))
    y = _scans(u.transpose(2, 3), *rows).transpose(2, 3)
    if half == 2:
        y = y + _scans(u, *columns)
    return y + u * D.sum(0).reshape(1, -1, 1, 1)
