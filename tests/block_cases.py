# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Arguments of a block, its output with every gradient, and the bounds on their errors: what several tests share."""

from __future__ import annotations

import torch

from ultralytics.nn.Addmodules.selective_scan import Block, mamba_inner, use_backend

NAMES = ("xz", "conv_w", "conv_b", "x_proj", "dt_proj", "A", "D", "dt_bias", "out_w", "out_b")
# Error against float64 relative to its norm: float32 absolutely, low precision as a multiple of that of PyTorch's own
# composition under autograd, which the recomputing composition follows in another order of roundings; never loosened.
FLOAT32, LOW = 4e-6, {"cpu": 1.1, "chunked": 1.5}

# B, L, D, N, R, W, rows of conv and projections, orders; odd sizes, one token, shared projections, several directions.
CASES = [
    (1, 1, 1, 1, 1, 1, 1, [0]),
    (2, 37, 24, 5, 2, 4, 2, [0, 1]),
    (1, 131, 48, 16, 3, 4, 2, [0, 1]),
    (3, 70, 40, 16, 7, 3, 1, [0, 1]),
    (2, 66, 33, 8, 4, 5, 1, [1, 0, 1]),
    (1, 300, 70, 17, 9, 2, 3, [1, 1, 0]),
    (1, 515, 16, 16, 1, 16, 2, [1, 0]),
    (1, 2, 130, 33, 17, 4, 2, [0, 1]),
]

# B, L, C, D, M, then N, R, W, rows and orders as in CASES: one token, odd lengths, several pictures, more tokens than a
# task of 256, products of more than one panel of 256.
WHOLE = [
    (1, 1, 5, 16, 16, 1, 1, 1, 1, [0]),
    (2, 37, 24, 48, 32, 5, 2, 4, 2, [0, 1]),
    (3, 70, 40, 32, 48, 16, 7, 3, 1, [0, 1]),
    (1, 611, 16, 32, 16, 16, 1, 4, 2, [1, 0]),
    (2, 45, 300, 272, 64, 9, 17, 4, 3, [1, 1, 0]),
]


def make(batch, length, dim, state, rank, taps, rows, orders, seed=0, optional=True) -> dict[str, torch.Tensor | None]:
    """Return a block's arguments in float64."""
    g = torch.Generator().manual_seed(seed)
    rand = lambda *s: torch.randn(*s, generator=g, dtype=torch.float64)  # noqa: E731
    k = len(orders)
    args = {
        "xz": rand(batch, length, 2 * dim),
        "conv_w": rand(rows, dim, taps) / taps**0.5,
        "conv_b": rand(rows, dim),
        "x_proj": rand(rows, rank + 2 * state, dim) / dim**0.5,
        "dt_proj": rand(rows, dim, rank) / rank**0.5,
        "A": -torch.exp(rand(k, dim, state) / 2),
        "D": rand(k, dim),
        "dt_bias": rand(k, dim) - 1,
        "out_w": rand(dim + 3, dim) / dim**0.5,
        "out_b": rand(dim + 3),
    }
    return (
        args
        if optional
        else {n: None if n in {"conv_b", "D", "dt_bias", "out_w", "out_b"} else t for n, t in args.items()}
    )


def cast(args: dict, dtype: torch.dtype) -> dict:
    """Return the arguments as the block gets them in that dtype: A, D and dt_bias are float32 at least."""
    state = torch.float64 if dtype == torch.float64 else torch.float32
    return {n: None if t is None else t.to(state if n in {"A", "D", "dt_bias"} else dtype) for n, t in args.items()}


def run(args: dict, orders: list[int], backend: str, softplus: bool = True, dout: torch.Tensor | None = None) -> dict:
    """Return the output and every gradient."""
    leaves = {n: None if t is None else t.detach().requires_grad_() for n, t in args.items()}
    with use_backend(backend):
        out = mamba_inner(Block(**leaves, delta_softplus=softplus, orders=orders))
        if dout is None:
            dout = torch.randn(out.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
        out.backward(dout.to(out.dtype))
    return {"out": out.detach()} | {f"d{n}": t.grad for n, t in leaves.items() if t is not None}


def whole(batch, length, tokens, dim, outputs, *rest, biases: bool = True, norm: bool = False) -> Block:
    """Return a block with in_proj and out_proj in float64, and a norm in front of it if asked for."""
    *sizes, orders = rest
    args, g = make(batch, length, dim, *sizes, orders), torch.Generator().manual_seed(1)
    rand = lambda *s: torch.randn(*s, generator=g, dtype=torch.float64)  # noqa: E731
    args["xz"] = rand(batch, length, tokens)
    args["out_w"], args["out_b"] = rand(outputs, dim) / dim**0.5, rand(outputs) if biases else None
    into = {"in_w": rand(2 * dim, tokens) / tokens**0.5, "in_b": rand(2 * dim) if biases else None}
    first = {"norm_w": rand(tokens), "norm_b": rand(tokens), "norm_eps": 1e-3} if norm else {}
    return Block(**args, orders=orders, **into, **first)


def whole_in_float32(b: Block) -> Block:
    """Return the block with every tensor in float32."""
    return Block(*(t.float() if isinstance(t, torch.Tensor) else t for t in b))
