# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""A kernel that does nothing but exponentials, to measure the rate that bounds a scan; imported where triton is."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

__all__ = ("WIDTH", "launch")

WIDTH, WARPS = 1024, 4  # eight independent chains a thread


@triton.jit
def _exps(x, ROUNDS: tl.constexpr, WIDTH: tl.constexpr):
    at = tl.program_id(0) * WIDTH + tl.arange(0, WIDTH)
    value = tl.load(x + at)
    for _ in range(ROUNDS):
        value = tl.exp2(-value)  # settles at 0.64
    tl.store(x + at, value)


def launch(x: torch.Tensor, rounds: int) -> int:
    """Apply 2^-x to every element of x, `rounds` times, in place; return how many exponentials that is."""
    _exps[(x.numel() // WIDTH,)](x, ROUNDS=rounds, WIDTH=WIDTH, num_warps=WARPS)
    return x.numel() * rounds
