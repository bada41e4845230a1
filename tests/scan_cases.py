# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Arguments of a scan, its sequential loop and the bounds on a backend's errors: what the tests of backends share."""

from __future__ import annotations

import torch

NAMES = ("out", "last", "du", "ddelta", "dA", "dB", "dC", "dD", "dz", "dbias")

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


def make(batch, k, d, length, n, *, dtype=torch.float32, bc=None, skip=True, gate=True, bias=True, seed=0, last=True):
    """Return the tensor arguments; `last` puts channels last in memory."""
    g = torch.Generator().manual_seed(seed)

    def tokens(c, dtype):
        shape = (batch, k, length, c) if last else (batch, k, c, length)
        x = torch.randn(*shape, generator=g).to(dtype)
        return x.transpose(-1, -2) if last else x

    return [
        tokens(d, dtype),
        tokens(d, dtype),
        -torch.randn(k, d, n, generator=g).exp(),
        tokens(n, bc or dtype),
        tokens(n, bc or dtype),
        torch.randn(k, d, generator=g) if skip else None,
        tokens(d, dtype) if gate else None,
        torch.randn(k, d, generator=g) if bias else None,
    ]


def layouts(x: torch.Tensor):
    """Yield x in other memory layouts."""
    b, k, c, length = x.shape
    yield x.contiguous()
    yield x.permute(3, 0, 2, 1).contiguous().permute(1, 3, 2, 0)
    yield torch.cat([x, x], 2).transpose(-1, -2).contiguous().transpose(-1, -2)[:, :, :c]
    yield x.new_zeros(b, k, length, 2 * c + 1).transpose(-1, -2)[:, :, 1::2].copy_(x)
    yield x.new_zeros(b, k, c, 2 * length).flip(0)[..., ::2].copy_(x)


def truth(args, dout, softplus, orders, dtype, exp=torch.exp):
    """Return the same from the loop, run in `dtype` with that exponential."""
    wide = [None if x is None else x.to(dtype).detach().requires_grad_() for x in args]
    out, last = loop(*wide, softplus, orders, exp)
    grads = iter(torch.autograd.grad(out, [x for x in wide if x is not None], dout.to(dtype)))
    return [out.detach(), last.detach(), *(None if x is None else next(grads) for x in wide)]


def rms(x: torch.Tensor) -> float:
    return x.double().square().mean().sqrt().item()


def errors(args, dout, softplus, orders, ours, exp=None) -> dict[str, tuple[torch.dtype, float, float]]:
    """Return for every result its dtype, its RMS error against the float64 loop and that of the float32 loop.

    Where hardware has an exponential of its own, `exp` is one with its error, and what that adds counts for the loop.
    """
    exact, plain = (truth(args, dout, softplus, orders, dtype) for dtype in (torch.float64, torch.float32))
    other = exact if exp is None else truth(args, dout, softplus, orders, torch.float64, exp)
    found = {}
    for name, x, p, e, o in zip(NAMES, ours, plain, exact, other):
        assert (x is None) == (e is None), name
        if e is not None:
            assert x.shape == e.shape, name
            assert x.isfinite().all(), f"{name} is not finite"
            scale = max(rms(e), 1e-30)
            found[name] = x.dtype, rms(x - e) / scale, (rms(p.to(x.dtype) - e) + rms(o - e)) / scale
    return found


def hold(*runs: dict[str, tuple[torch.dtype, float, float]]) -> None:
    """Hold the mean error of several runs to TOLERANCE: one run's sums of few, cancelling terms are luck."""
    for name, (dtype, _, _) in runs[0].items():
        error, allowed = (sum(r[name][i] for r in runs) / len(runs) for i in (1, 2))
        assert error <= TOLERANCE[dtype] * max(allowed, FLOOR), f"{name}: {error:.2e}, plain loop {allowed:.2e}"


def close(args, dout, softplus, orders, ours) -> None:
    """Hold one run against the float64 loop with a fixed bound."""
    for name, (dtype, error, _) in errors(args, dout, softplus, orders, ours).items():
        assert error <= 10 * torch.finfo(dtype).eps, f"{name}: {error:.2e}"
