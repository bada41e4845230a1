# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Every scan backend that works here, held to the float64 reference, then timed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..selective_scan import registry
from ..selective_scan.op import FORWARD, REVERSED, scan
from ..selective_scan.reference import selective_scan_ref
from ..VMamba import MambaLayer
from .machine import devices
from .report_rows import OK, PROBLEM, Row

__all__ = ("self_test", "speed")

BOUND = 1e-5  # float32 rounding gives about 1e-6 at the self-test's size; a wrong term, or TF32, gives 1e-3 and more
SPEED_SHAPE = (1, 128, 6400, 16)  # B, D, L, N: the 80 x 80 map of a 640-pixel image in VMamba-yolov8n
SPEED_SECONDS = 5.0


def _inputs(
    batch: int, groups: int, dim: int, length: int, state: int, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """Return seeded canonical arguments of a scan, with tokens as the layers lay them: the channel innermost."""
    g = torch.Generator().manual_seed(0)

    def tokens(channels: int) -> Tensor:
        return torch.randn(batch, groups, length, channels, generator=g, dtype=dtype).transpose(2, 3)

    return {
        "u": tokens(dim),
        "delta": tokens(dim) - 1,
        "A": -torch.arange(1, state + 1, dtype=dtype).expand(groups, dim, state).contiguous(),
        "B": tokens(state),
        "C": tokens(state),
        "D": torch.randn(groups, dim, generator=g, dtype=dtype),
        "z": tokens(dim),
        "delta_bias": torch.randn(groups, dim, generator=g, dtype=dtype) - 1,
    }


def _results(run: Callable[..., Tensor], inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the output of a scan and the gradient of a fixed projection of it by every input."""
    leaves = {k: v.detach().requires_grad_() for k, v in inputs.items()}
    out = run(**leaves)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.device, out.dtype)
    grads = torch.autograd.grad((out * weight).sum(), list(leaves.values()))
    return {"out": out.detach(), **{f"d{k}": g for k, g in zip(leaves, grads)}}


def _reference(u, delta, A, B, C, D, z, delta_bias) -> Tensor:
    """Scan two groups, forward and reversed, by the definition."""
    outs = []
    for k, order in enumerate((FORWARD, REVERSED)):
        u_k, delta_k, B_k, C_k, z_k = (
            x[:, k].flip(-1) if order == REVERSED else x[:, k] for x in (u, delta, B, C, z)
        )  # (B, D, L)
        out = selective_scan_ref(u_k, delta_k, A[k], B_k, C_k, D[k], z_k, delta_bias[k], delta_softplus=True)
        outs.append(out.flip(-1) if order == REVERSED else out)
    return torch.stack(outs, 1)


def _by_backend(**inputs: Tensor) -> Tensor:
    """Scan two groups, forward and reversed, by the backend in use."""
    return scan(**inputs, delta_softplus=True, orders=[FORWARD, REVERSED])[0]


def _layer_results(device: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the output of a seeded layer and its gradients by the map and by every parameter."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer, x = MambaLayer(6, d_state=5), torch.randn(2, 6, 5, 13)  # odd sizes, more tokens than two tiles
    layer, x = layer.to(device, dtype), x.to(device, dtype).requires_grad_()
    out = layer(x)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.device, out.dtype)
    names, leaves = zip(("map", x), *layer.named_parameters())
    grads = torch.autograd.grad((out * weight).sum(), leaves)
    return {"layer": out.detach(), **{f"layer, d{n}": g for n, g in zip(names, grads)}}


def worst_error(results: dict[str, Tensor], truth: dict[str, Tensor]) -> tuple[str, float]:
    """Return the name of the worst result and its largest error, relative to the largest element of the truth.

    A result that is not finite or has another shape is infinitely wrong.
    """
    worst, largest = "out", 0.0
    for name, want in truth.items():
        got = results[name].detach().cpu().double()
        off = float((got - want).abs().max() / want.abs().max()) if got.shape == want.shape else float("inf")
        off = off if off == off else float("inf")  # a comparison with NaN would let it pass
        if off > largest:
            worst, largest = name, off
    return worst, largest


def self_test() -> list[Row]:
    """Hold every backend that works here, on every device, to the float64 reference.

    Compared are a scan's output and its eight gradients, and a whole layer's, with the kernels around the scan.
    """
    shape = (2, 2, 5, 67, 3)  # B, K, D, L, N: odd sizes, more tokens than two tiles or chunks
    inputs = _inputs(*shape)
    truth = _results(_reference, {k: v.double() for k, v in inputs.items()})
    with registry.use_backend(registry.REFERENCE):
        layer_truth = _layer_results("cpu", torch.float64)
    rows = []
    for device in devices():
        for name, ok, _ in registry.report():
            if not ok:
                continue
            try:
                x = {k: v.to(device) for k, v in inputs.items()}
                with registry.use_backend(name):
                    if name != registry.REFERENCE and not _accepted(name, x):
                        continue
                    worst, off = worst_error(_results(_by_backend, x), truth)
                    if off <= BOUND:  # a wrong scan makes the layer wrong, and is what to name
                        layer = worst_error(_layer_results(device, torch.float32), layer_truth)
                        worst, off = max((worst, off), layer, key=lambda found: found[1])
                what = f"largest error {off:.1e} ({worst}), bound {BOUND:g}"
            except Exception as e:  # whatever a backend raises on a plain call is its failure, and is to be reported
                worst, off, what = "", float("inf"), f"{type(e).__name__}: {' '.join(str(e).split())[:200]}"
            passed = off <= BOUND
            data = {"backend": name, "device": device, "passed": passed, "worst": worst, "bound": BOUND}
            data["error"] = off if off < float("inf") else None  # JSON has no infinity
            state, detail = (OK, what) if passed else (PROBLEM, f"FAILED: {what}")
            rows.append(Row(f"test {name} {device}", state, detail, "", data))
    good = {r.data["backend"] for r in rows if r.state == OK} - {r.data["backend"] for r in rows if r.state != OK}
    instead = next((name for name in registry.names() if name in good), None)
    how = "Results of this backend are wrong here. Please open an issue with the output of `vmamba checks json`"
    how += f"; until then set the environment variable VMAMBA_BACKEND={instead}" if instead else ""
    return [r if r.state == OK else Row(r.item, r.state, r.detail, how, r.data) for r in rows]


def _accepted(name: str, x: dict[str, Tensor]) -> bool:
    """Return whether a backend takes these tensors: the C++ one, for example, takes none on a GPU."""
    return registry.get(name).accepts(**x)[0]


def speed(tested: Sequence[Row], seconds: float = SPEED_SECONDS) -> list[Row]:
    """Time every backend that passed its test; the sequential reference is left out, as no layer ever gets it alone.

    Args:
        tested (Sequence[Row]): Result of `self_test`.
        seconds (float): Time to spend in all, roughly: each backend runs once at the least.
    """
    cases = [r.data for r in tested if r.state == OK and r.data["backend"] != registry.REFERENCE]
    batch, dim, length, state = SPEED_SHAPE
    inputs = _inputs(batch, 1, dim, length, state)
    rows, fastest = [], {}
    for case in cases:
        name, device = case["backend"], case["device"]
        x = {k: v.to(device) for k, v in inputs.items()}
        leaves = {k: v.detach().requires_grad_() for k, v in x.items()}

        def forward(x=x) -> Tensor:
            with torch.no_grad():
                return scan(**x, delta_softplus=True)[0]

        def both(leaves=leaves) -> None:
            torch.autograd.grad(scan(**leaves, delta_softplus=True)[0].sum(), list(leaves.values()))

        share = seconds / len(cases) / 2
        try:
            with registry.use_backend(name):
                times = [_median_ms(run, device, share) for run in (forward, both)]
        except RuntimeError as e:  # out of memory
            rows.append(Row(f"speed {name} {device}", PROBLEM, " ".join(str(e).split())[:200]))
            continue
        detail = f"forward {times[0]:.3g} ms, forward + backward {times[1]:.3g} ms"
        best, by = fastest.setdefault(device, (times[1], name))
        if by != name:
            detail += f": {times[1] / best:.3g} times {by}"
        data = {"backend": name, "device": device, "forward_ms": times[0], "forward_backward_ms": times[1]}
        rows.append(Row(f"speed {name} {device}", OK, detail, "", {**data, "shape_BDLN": list(SPEED_SHAPE)}))
    return rows


def _median_ms(run: Callable[[], object], device: str, seconds: float) -> float:
    """Return the median time of a call in milliseconds, after one call to warm up."""
    wait = {"cuda": torch.cuda.synchronize, "mps": torch.mps.synchronize}.get(device, lambda: None)
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
