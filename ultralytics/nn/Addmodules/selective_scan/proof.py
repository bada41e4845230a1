# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""What a scan is held to: seeded inputs, the float64 oracle, the measures of error, and a clock. Stated here once.

Tests, `vmamba checks` and the benchmarks take these from here, so that an error means the same in all of them. The
oracle is the definition, `selective_scan_ref`, and never goes through the choice of a backend.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from . import selective_scan_ref  # a name that users import: benchmarks run this file beside older packages, too

__all__ = (
    "RESULTS",
    "ScanInputs",
    "max_error",
    "median_ms",
    "oracle",
    "rms_error",
    "run_with_gradients",
    "scan_inputs",
    "worst",
)

RESULTS = ("out", "du", "ddelta", "dA", "dB", "dC", "dD", "dz", "ddelta_bias")  # what a call and its backward give
NOTHING = 1e-30  # a truth below it counts as this: what underflows in float32 has few digits, or none
WIDE = ("A", "D", "delta_bias")  # float32 at the least, whatever the dtype of the tokens


class ScanInputs(NamedTuple):
    """The tensors of a canonical scan of K groups, in the order in which every scan here takes them."""

    u: Tensor  # (B, K, D, L)
    delta: Tensor  # (B, K, D, L)
    A: Tensor  # (K, D, N)
    B: Tensor  # (B, K, N, L)
    C: Tensor  # (B, K, N, L)
    D: Tensor | None  # (K, D)
    z: Tensor | None  # (B, K, D, L)
    delta_bias: Tensor | None  # (K, D)

    def map(self, fn: Callable[[Tensor], Tensor]) -> ScanInputs:
        """Return the inputs with a function applied to each that is there."""
        return ScanInputs(*(None if x is None else fn(x) for x in self))

    def to(self, *args, **kwargs) -> ScanInputs:
        """Return the inputs on another device or in another dtype, which A, D and delta_bias get, too."""
        return self.map(lambda x: x.to(*args, **kwargs))

    def recipe(self) -> ScanInputs:
        """Return the same scan as `selective_scan_fn` takes it: channels of all groups in one axis, all forward.

        u, delta and z are (B, K D, L), A (K D, N), D and delta_bias (K D); B and C are (B, N, L) for one group.
        """
        one = len(self.A) == 1

        def narrow(x: Tensor) -> Tensor:
            return (x[:, 0] if one else x.flatten(1, 2)) if x.dim() == 4 else (x[0] if one else x.flatten(0, 1))

        flat = self.map(narrow)
        return flat if one else flat._replace(B=self.B, C=self.C)


def scan_inputs(
    batch: int,
    groups: int,
    dim: int,
    length: int,
    state: int,
    *,
    values: str = "any",
    dtype: torch.dtype = torch.float32,
    bc_dtype: torch.dtype | None = None,
    skip: bool = True,
    gate: bool = True,
    bias: bool = True,
    layout: str = "channel-last",
    seed: int = 0,
) -> ScanInputs:
    """Return seeded inputs, drawn in float32 on the CPU: the same numbers in every dtype and layout, rounded.

    Args:
        batch (int): Batch size B.
        groups (int): Groups K.
        dim (int): Channels D of a group.
        length (int): Tokens L.
        state (int): States N of a channel.
        values (str): "any", with memories from a token to hundreds of them, or "model", as the layers start: S4D-real
            states and step sizes of 0.001 to 0.1.
        dtype (torch.dtype): Dtype of u, delta, z, B and C.
        bc_dtype (torch.dtype, optional): Another one for B and C.
        skip (bool): Whether there is D.
        gate (bool): Whether there is z.
        bias (bool): Whether there is delta_bias.
        layout (str): "channel-last", (B, K, L, D) in memory as the layers have it, or "tokens-last", (B, K, D, L).
        seed (int): Seed of the values.

    Returns:
        (ScanInputs): The tensors; A, D and delta_bias are float32, or float64 where `dtype` is.

    Examples:
        >>> x = scan_inputs(1, 2, 3, 5, 4, dtype=torch.bfloat16, gate=False)
        >>> tuple(x.u.shape), x.A.dtype, x.z
        ((1, 2, 3, 5), torch.float32, None)
    """
    if values not in ("any", "model"):
        raise ValueError(f"values must be 'any' or 'model', got {values!r}")
    if layout not in ("channel-last", "tokens-last"):
        raise ValueError(f"layout must be 'channel-last' or 'tokens-last', got {layout!r}")
    g = torch.Generator().manual_seed(seed)
    wide = torch.float64 if dtype == torch.float64 else torch.float32

    def tokens(channels: int, dtype: torch.dtype = dtype) -> Tensor:
        x = torch.randn(batch, groups, length, channels, generator=g).to(dtype).transpose(2, 3)
        return x.contiguous() if layout == "tokens-last" else x

    def channels(*more: int) -> Tensor:
        return torch.randn(groups, dim, *more, generator=g)

    bc = bc_dtype or dtype
    if values == "any":
        u, delta, A = tokens(dim), tokens(dim), -channels(state).exp()
        B, C = tokens(state, bc), tokens(state, bc)
        D, z, b = channels() if skip else None, tokens(dim) if gate else None, channels() if bias else None
    else:
        u, delta, z = tokens(dim), tokens(dim) * 0.5, tokens(dim)
        B, C = tokens(state, bc), tokens(state, bc)
        A = -torch.arange(1.0, state + 1).repeat(groups, dim, 1)
        dt = torch.exp(torch.empty(groups, dim).uniform_(-6.9, -2.3, generator=g))
        b, D = dt + torch.log(-torch.expm1(-dt)), channels()  # softplus takes b to dt
        D, z, b = D if skip else None, z if gate else None, b if bias else None
    A, D, b = (None if x is None else x.to(wide) for x in (A, D, b))
    return ScanInputs(u, delta, A, B, C, D, z, b)


def run_with_gradients(scan: Callable[..., Tensor], inputs: Sequence[Tensor | None], dout: Tensor) -> dict[str, Tensor]:
    """Return the output of a scan and the gradient of its product with `dout` by every input, by names of `RESULTS`.

    Args:
        scan (Callable[..., Tensor]): Takes the eight tensors in order, and returns the output.
        inputs (Sequence[Tensor | None]): The tensors.
        dout (Tensor): Gradient of the output; it is cast to the output's dtype and device.
    """
    leaves = [None if x is None else x.detach().requires_grad_() for x in inputs]
    out = scan(*leaves)
    grads = torch.autograd.grad(out, [x for x in leaves if x is not None], dout.to(out.device, out.dtype))
    names = (name for name, x in zip(RESULTS[1:], leaves, strict=True) if x is not None)
    return {"out": out.detach(), **dict(zip(names, grads, strict=True))}


def oracle(
    inputs: Sequence[Tensor | None],
    dout: Tensor,
    softplus: bool = True,
    orders: Sequence[int] | None = None,
    dtype: torch.dtype = torch.float64,
) -> dict[str, Tensor]:
    """Return output, last state and all gradients of a canonical scan by its definition, where `dout` is.

    Args:
        inputs (Sequence[Tensor | None]): The tensors of `ScanInputs`, or those of a recipe's scan if `orders` is None.
        dout (Tensor): Gradient of the output; where it is, is computed, but on the CPU in place of MPS.
        softplus (bool): Whether softplus is applied to delta.
        orders (Sequence[int], optional): 0 for a group that runs forward, 1 for one that runs from the last token.
        dtype (torch.dtype): Dtype to compute in: float64 is the truth, another one what plain PyTorch gives.

    Returns:
        (dict[str, Tensor]): Tensors by the names of `RESULTS`, and "last": (B, K, D, N).
    """
    last: list[Tensor] = []

    def one(*x: Tensor | None) -> Tensor:
        out, state = selective_scan_ref(*x, softplus, True)
        last.append(state)
        return out

    def all_groups(u, delta, A, B, C, D, z, bias) -> Tensor:
        outs = []
        for k, order in enumerate(orders):
            turned = [None if x is None else x[:, k].flip(-1) if order else x[:, k] for x in (u, delta, B, C, z)]
            own = [None if x is None else x[k] for x in (A, D, bias)]
            out = one(*turned[:2], own[0], *turned[2:4], own[1], turned[4], own[2])
            outs.append(out.flip(-1) if order else out)
        return torch.stack(outs, 1)

    device = "cpu" if dout.device.type == "mps" else dout.device  # MPS has no float64
    exact = [None if x is None else x.detach().to(device, dtype) for x in inputs]
    found = run_with_gradients(one if orders is None else all_groups, exact, dout)
    return {**found, "last": last[0] if orders is None else torch.stack(last, 1)}


def _difference(got: Tensor, want: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return error and truth in float64, or None where no error can be said: another shape, or not all finite."""
    got, want = got.detach().to(want.device).double(), want.detach().double()
    if got.shape != want.shape or not got.isfinite().all() or not want.isfinite().all():
        return None
    return got - want, want


def max_error(got: Tensor, want: Tensor) -> float:
    """Return the largest error in units of the largest wanted value; infinity for another shape, NaN or infinities.

    For a yes or no: one wrong element shows.
    """
    pair = _difference(got, want)
    if pair is None:
        return float("inf")
    off, want = (float(x.abs().max()) if x.numel() else 0.0 for x in pair)
    return off / max(want, NOTHING)


def rms_error(got: Tensor, want: Tensor) -> float:
    """Return the root mean square of the error over that of the wanted; infinity for another shape, NaN or infinities.

    For comparing two implementations: the largest error of a few elements is a matter of luck.
    """
    pair = _difference(got, want)
    if pair is None:
        return float("inf")
    off, want = (float(x.square().mean().sqrt()) if x.numel() else 0.0 for x in pair)
    return off / max(want, NOTHING)


def worst(
    got: Mapping[str, Tensor], want: Mapping[str, Tensor], measure: Callable[[Tensor, Tensor], float] = max_error
) -> tuple[str, float]:
    """Return the name of the worst of several results and its error; a missing one is an error of the caller."""
    errors = {name: measure(got[name], x) for name, x in want.items()}
    name = max(errors, key=errors.__getitem__)
    return name, errors[name]


def median_ms(run: Callable[[], object], device: str | torch.device = "cpu", seconds: float = 1.0) -> float:
    """Return the median time of a call in milliseconds, after one call to warm up.

    Args:
        run (Callable[[], object]): The call.
        device (str | torch.device): Where it computes: a GPU is waited for.
        seconds (float): Time to spend, roughly, warm-up included; the call is timed once at the least.
    """
    kind = torch.device(device).type
    wait = {"cuda": torch.cuda.synchronize, "mps": torch.mps.synchronize}.get(kind, lambda: None)
    end = time.perf_counter() + seconds
    run()
    wait()
    times: list[float] = []
    while not times or time.perf_counter() < end:
        start = time.perf_counter()
        run()
        wait()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)
