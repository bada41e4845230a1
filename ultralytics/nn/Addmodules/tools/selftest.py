# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Every scan backend that works here, held to the float64 reference, then timed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..selective_scan import FORWARD, REVERSED, Scan, registry, scan
from ..selective_scan.proof import median_ms, oracle, run_with_gradients, scan_inputs, worst
from ..VMamba import MambaLayer
from .machine import devices
from .report_rows import OK, PROBLEM, Row

__all__ = ("self_test", "speed")

BOUND = 1e-5  # float32 rounding gives about 1e-6 at the self-test's size; a wrong term, or TF32, gives 1e-3 and more
ORDERS = [FORWARD, REVERSED]
SPEED_SHAPE = (1, 128, 6400, 16)  # B, D, L, N: the 80 x 80 map of a 640-pixel image in VMamba-yolov8n
SPEED_SECONDS = 5.0


def _by_backend(*inputs: Tensor) -> Tensor:
    """Scan two groups, forward and reversed, by the backend in use."""
    return scan(Scan(*inputs, True, ORDERS))[0]


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


def self_test() -> list[Row]:
    """Hold every backend that works here, on every device, to the float64 reference.

    Compared are a scan's output and its eight gradients, and a whole layer's, with the kernels around the scan.
    """
    shape = (2, 2, 5, 67, 3)  # B, K, D, L, N: odd sizes, more tokens than two tiles or chunks
    inputs = scan_inputs(*shape)
    dout = torch.randn(inputs.u.shape, generator=torch.Generator().manual_seed(1))
    truth = oracle(inputs, dout, orders=ORDERS)
    del truth["last"]
    with registry.use_backend(registry.REFERENCE):
        layer_truth = _layer_results("cpu", torch.float64)
    rows = []
    for device in devices():
        for name, ok, _ in registry.report():
            if not ok:
                continue
            try:
                x = inputs.to(device)
                with registry.use_backend(name):
                    if registry.why_not(registry.get(name), "scan", Scan(*x, True, ORDERS)):
                        continue
                    where, off = worst(run_with_gradients(_by_backend, x, dout), truth)
                    if off <= BOUND:  # a wrong scan makes the layer wrong, and is what to name
                        layer = worst(_layer_results(device, torch.float32), layer_truth)
                        where, off = max((where, off), layer, key=lambda found: found[1])
                what = f"largest error {off:.1e} ({where}), bound {BOUND:g}"
            except Exception as e:  # whatever a backend raises on a plain call is its failure, and is to be reported
                where, off, what = "", float("inf"), f"{type(e).__name__}: {' '.join(str(e).split())[:200]}"
            passed = off <= BOUND
            data = {"backend": name, "device": device, "passed": passed, "worst": where, "bound": BOUND}
            data["error"] = off if off < float("inf") else None  # JSON has no infinity
            state, detail = (OK, what) if passed else (PROBLEM, f"FAILED: {what}")
            rows.append(Row(f"test {name} {device}", state, detail, "", data))
    good = {r.data["backend"] for r in rows if r.state == OK} - {r.data["backend"] for r in rows if r.state != OK}
    instead = next((name for name in registry.names() if name in good), None)
    how = "Results of this backend are wrong here. Please open an issue with the output of `vmamba checks json`"
    how += f"; until then set the environment variable VMAMBA_BACKEND={instead}" if instead else ""
    return [r if r.state == OK else Row(r.item, r.state, r.detail, how, r.data) for r in rows]


def speed(tested: Sequence[Row], seconds: float = SPEED_SECONDS) -> list[Row]:
    """Time every backend that passed its test; the sequential reference is left out, as no layer ever gets it alone.

    Args:
        tested (Sequence[Row]): Result of `self_test`.
        seconds (float): Time to spend in all, roughly: each backend runs once at the least.
    """
    cases = [r.data for r in tested if r.state == OK and r.data["backend"] != registry.REFERENCE]
    batch, dim, length, state = SPEED_SHAPE
    inputs = scan_inputs(batch, 1, dim, length, state, values="model")
    rows, fastest = [], {}
    for case in cases:
        name, device = case["backend"], case["device"]
        x = inputs.to(device)
        leaves = x.map(lambda t: t.detach().requires_grad_())

        def forward(x=x) -> Tensor:
            with torch.no_grad():
                return scan(Scan(*x, True))[0]

        def both(leaves=leaves) -> None:
            torch.autograd.grad(scan(Scan(*leaves, True))[0].sum(), leaves)

        share = seconds / len(cases) / 2
        try:
            with registry.use_backend(name):
                times = [median_ms(run, device, share) for run in (forward, both)]
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
