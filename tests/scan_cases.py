# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Arguments of a scan, its sequential loop and the bounds on a backend's errors: what the tests of backends share."""

from __future__ import annotations

import torch

from ultralytics.nn.Addmodules.selective_scan.contract import Backend, Scan
from ultralytics.nn.Addmodules.selective_scan.proof import RESULTS, oracle, rms_error, run_with_gradients, scan_inputs

NAMES = (RESULTS[0], "last", *RESULTS[1:])  # what a backend returns, in its order

# RMS error against float64 over that of a plain float32 loop whose results are rounded to the dtype; never loosened.
TOLERANCE = {torch.float32: 2.0, torch.bfloat16: 1.1, torch.float16: 1.1}
FLOOR = torch.finfo(torch.float32).eps  # below it the loop's own error is luck


def loop(u, delta, A, B, C, D, z, bias, softplus, orders, exp=torch.exp):
    """Scan one token after another in the dtype of the arguments; return the output and the last state."""
    dt = delta if bias is None else delta + bias[:, :, None]
    if softplus:
        dt = dt.clamp(min=0) + torch.log1p(exp(-dt.abs()))
    outs, states = [], []
    for k, order in enumerate(orders):
        decay, drive = dt[:, k, :, None] * A[k, :, :, None], (dt * u)[:, k, :, None] * B[:, k, None]  # (B, D, N, L)
        decay, drive, read = exp(decay).unbind(-1), drive.unbind(-1), C[:, k, None].unbind(-1)
        h, y = torch.zeros_like(drive[0]), [None] * len(read)
        for t in reversed(range(len(read))) if order else range(len(read)):
            h = decay[t] * h + drive[t]
            y[t] = (h * read[t]).sum(-1)
        outs.append(torch.stack(y, -1))
        states.append(h)
    y = torch.stack(outs, 1)
    if D is not None:
        y = y + D[:, :, None] * u
    if z is not None:
        y = y * (z * torch.sigmoid(z))
    return y, torch.stack(states, 1)


def make(*sizes, bc=None, last=True, **options) -> list[torch.Tensor | None]:
    """Return the tensor arguments as a list, for B, K, D, L and N; `last` puts channels last in memory."""
    return list(scan_inputs(*sizes, bc_dtype=bc, layout="channel-last" if last else "tokens-last", **options))


def forward(backend: Backend, args, softplus, orders, keep: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    """Check a scan, as operators do, and run a backend's forward pass."""
    s = Scan(*args, softplus, orders)
    s.check()
    return backend.scan(s, keep)


def backward(backend: Backend, dout, args, states, softplus, orders) -> tuple[torch.Tensor | None, ...]:
    """Run a backend's backward pass."""
    return backend.scan_backward(dout, Scan(*args, softplus, orders), states)


def run(backend: Backend, args, dout, softplus, orders) -> list[torch.Tensor | None]:
    """Return output, last state and gradients of a backend, in the order of NAMES."""
    out, states = forward(backend, args, softplus, orders)
    return [out, states[:, :, -1], *backward(backend, dout, args, states, softplus, orders)]


def layouts(x: torch.Tensor):
    """Yield x in other memory layouts."""
    b, k, c, length = x.shape
    yield x.contiguous()
    yield x.permute(3, 0, 2, 1).contiguous().permute(1, 3, 2, 0)
    yield torch.cat([x, x], 2).transpose(-1, -2).contiguous().transpose(-1, -2)[:, :, :c]
    yield x.new_zeros(b, k, length, 2 * c + 1).transpose(-1, -2)[:, :, 1::2].copy_(x)
    yield x.new_zeros(b, k, c, 2 * length).flip(0)[..., ::2].copy_(x)


def looped(args, dout, softplus, orders, dtype, exp=torch.exp) -> dict[str, torch.Tensor]:
    """Return output, last state and gradients of the loop, run in `dtype` with that exponential."""
    last = []

    def scan(*x):
        out, states = loop(*x, softplus, orders, exp)
        last.append(states.detach())
        return out

    found = run_with_gradients(scan, [None if x is None else x.to(dtype) for x in args], dout)
    return {**found, "last": last[0]}


def errors(args, dout, softplus, orders, ours, exp=None) -> dict[str, tuple[torch.dtype, float, float]]:
    """Return for every result its dtype, its RMS error against the oracle and that of the float32 loop.

    Where hardware has an exponential of its own, `exp` is one with its error, and what that adds counts for the loop.
    """
    exact = oracle(args, dout, softplus, orders)
    plain = looped(args, dout, softplus, orders, torch.float32)
    other = exact if exp is None else looped(args, dout, softplus, orders, torch.float64, exp)
    assert {name for name, x in zip(NAMES, ours, strict=True) if x is not None} == exact.keys()
    found = {}
    for name, x in zip(NAMES, ours):
        if x is not None:
            e = exact[name]
            error = rms_error(x, e)
            assert error < float("inf"), f"{name} has another shape, {tuple(x.shape)}, or is not finite"
            found[name] = x.dtype, error, rms_error(plain[name].to(x.dtype), e) + rms_error(other[name], e)
    return found


def hold(*runs: dict[str, tuple[torch.dtype, float, float]]) -> tuple[float, str, float]:
    """Hold the mean error of several runs to TOLERANCE: one run's sums of few, cancelling terms are luck.

    Returns:
        (tuple[float, str, float]): The result that came nearest to its bound: error over bound, its name, its error.
    """
    found = []
    for name, (dtype, _, _) in runs[0].items():
        error, allowed = (sum(r[name][i] for r in runs) / len(runs) for i in (1, 2))
        bound = TOLERANCE[dtype] * max(allowed, FLOOR)
        assert error <= bound, f"{name}: {error:.2e}, plain loop {allowed:.2e}"
        found.append((error / bound, name, error))
    return max(found)


# For a library of another system (batch, K, D, L, N, orders): enough channels and draws that the mean error says
# something. With 8 channels and two draws, ddelta_bias had 32 values in all, and this system's own library was at 1.11
# of the bound, too; over 16 draws it is at 0.75.
ELSEWHERE = [(2, 2, 49, 67, 16, [0, 1]), (2, 1, 35, 33, 5, [1]), (1, 2, 40, 19, 256, [0, 1])]


def hold_elsewhere(backend: Backend, dtype: torch.dtype, draws: int = 4) -> str:
    """Hold a backend whose library is of another system, or runs there, with the oracle and bounds of all others.

    Returns:
        (str): How near the errors came to their bounds, in a few words.
    """
    found = []
    for *shape, orders in ELSEWHERE:
        runs = []
        for seed in range(draws):
            args = make(*shape, dtype=dtype, seed=seed)
            dout = torch.randn(args[0].shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
            runs.append(errors(args, dout, True, orders, run(backend, args, dout, True, orders)))
        found.append(hold(*runs))
    share, name, error = max(found)
    return f"errors up to {share:.2f} of the bound ({name}, {error:.1e})"


def close(args, dout, softplus, orders, ours) -> None:
    """Hold one run against the float64 loop with a fixed bound."""
    for name, (dtype, error, _) in errors(args, dout, softplus, orders, ours).items():
        assert error <= 10 * torch.finfo(dtype).eps, f"{name}: {error:.2e}"
