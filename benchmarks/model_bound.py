# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""How far the recipe's model is from the least time that its arithmetic allows on a CPU, stage by stage.

The least time is that of the model without its Mamba layers, their products at the fastest rate that any product of
theirs reaches here, by this library or by PyTorch, and their scans at the bound of scan_cpu.py. Norm, convolution,
gate and memory count for nothing, so no program gets there. What a stage takes in the model is the model's time less
that of the model without the layers of this stage.

Usage:
    python benchmarks/model_bound.py            # VMamba-yolov8n at 640 pixels, 1 and 2 threads
    python benchmarks/model_bound.py --quick    # a tiny picture, to see that it works; prints, writes nothing
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from functools import partial
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch import nn  # noqa: E402

from benchmarks.model_cpu import FORWARD, OURS, STOCK, forward_call, fused  # noqa: E402
from benchmarks.rendering import ms, source, table, times  # noqa: E402
from benchmarks.scan_cpu import Bound, build_bounds  # noqa: E402
from benchmarks.timing import Timed, heading, in_process, interleave, parse, write  # noqa: E402
from ultralytics.nn.Addmodules.selective_scan import registry  # noqa: E402
from ultralytics.nn.Addmodules.selective_scan.contract import Linear  # noqa: E402
from ultralytics.nn.Addmodules.VMamba import MambaLayer  # noqa: E402

DIRECTIONS = 2


class Stage(NamedTuple):
    """The Mamba layers of one size.

    Args:
        tokens (int): Tokens of a picture.
        channels (int): Channels of the map.
        inner (int): Channels of a scan.
        states (int): States of a channel.
        rank (int): Rank of the step sizes.
    """

    tokens: int
    channels: int
    inner: int
    states: int
    rank: int

    @property
    def products(self) -> tuple[tuple[int, int, int], ...]:
        """Return (M, K, N) of in_proj, out_proj, and of x_proj and dt_proj in both directions."""
        rows, inner, wide = self.tokens, self.inner, self.rank + 2 * self.states
        outer = (rows, self.channels, 2 * inner), (rows, inner, self.channels)
        return *outer, *((rows, inner, wide), (rows, self.rank, inner)) * DIRECTIONS

    @property
    def gflops(self) -> float:
        """Return 1e-9 operations of the products, 2 for a multiply-add."""
        return sum(2e-9 * m * k * n for m, k, n in self.products)

    @property
    def elements(self) -> int:
        """Return how many (direction, token, channel, state) there are."""
        return DIRECTIONS * self.tokens * self.inner * self.states


def stages(model: nn.Module, imgsz: int) -> Counter[Stage]:
    """Return how many layers a model has of each size."""
    found: Counter[Stage] = Counter()

    def note(layer: MambaLayer, inputs: tuple[torch.Tensor, ...]) -> None:
        x, m = inputs[0], layer.mamba
        found[Stage(x.shape[2:].numel(), layer.dim, m.d_inner, m.d_state, m.dt_rank)] += 1

    hooks = [m.register_forward_pre_hook(note) for m in model.modules() if isinstance(m, MambaLayer)]
    forward_call(model, imgsz)()
    for hook in hooks:
        hook.remove()
    return found


def without(channels: set[int]) -> nn.Module:
    """Return the model whose Mamba layers of these channels hand their input on."""
    model = fused(OURS)
    for module in model.modules():
        if isinstance(module, MambaLayer) and module.dim in channels:
            module.forward = lambda x: x
    return model


def products(stage: Stage) -> dict[str, Timed]:
    """Return the calls of the two large products of a stage, by this library and by PyTorch."""
    cpu, calls = registry.get("cpu"), {}
    for m, k, n in stage.products[:2]:
        a, b = torch.randn(m, k), torch.randn(n, k).t()
        calls[f"{m} {k} {n} library"] = Timed(partial(cpu.linear, Linear(a, b)))
        calls[f"{m} {k} {n} torch"] = Timed(partial(torch.mm, a, b))
    return calls


def measure(imgsz: int, threads: int, seconds: float, library: str) -> dict:
    """Return the rows of one number of threads: the models, the stages and what the bound is made of."""
    whole = fused(OURS)
    found = stages(whole, imgsz)
    models = {"stock": fused(STOCK), "model": whole, "none": without({s.channels for s in found})}
    models |= {f"without {s.channels}": without({s.channels}) for s in found}
    bound, calls = Bound(library, threads), {}
    for name, model in models.items():
        call = forward_call(model, imgsz)
        call()
        calls[name] = Timed(call)
    with torch.inference_mode():
        multiplies = {name: call for stage in found for name, call in products(stage).items()}
        timed = interleave({**calls, **multiplies, "bound": Timed(bound.run)}, seconds)
    shapes = {name: [int(n) for n in name.split()[:3]] for name in multiplies}
    rate = max(2e-6 * m * k * n / timed[name]["median_ms"] for name, (m, k, n) in shapes.items())  # GFLOP/s
    ns = timed["bound"]["median_ms"] * 1e6 / bound.elements
    return {
        "threads": threads,
        "imgsz": imgsz,
        "gflops_per_second": round(rate, 1),
        "bound_ns": float(f"{ns:.4g}"),
        "models": {name: timed[name] for name in models},
        "stages": [
            s._asdict()
            | {"layers": n, "products_ms": round(n * s.gflops / rate * 1e3, 3)}
            | {"scans_ms": round(n * s.elements * ns * 1e-6, 3)}
            for s, n in found.items()
        ],
    }


def least(run: dict) -> float:
    """Return the least time of the model, ms."""
    return run["models"]["none"]["median_ms"] + sum(s["products_ms"] + s["scans_ms"] for s in run["stages"])


def render(r: dict) -> dict[str, str]:
    """Return the table of a result."""
    rows = []
    for run in r["rows"]:
        time = {name: t["median_ms"] for name, t in run["models"].items()}
        for s in run["stages"]:
            own = time["model"] - time[f"without {s['channels']}"]
            floor = s["products_ms"] + s["scans_ms"]
            what = f"{s['layers']} layer{'s' * (s['layers'] > 1)}, {s['channels']} channels, {s['tokens']} tokens"
            parts = [f"{s['products_ms']:.2f}", f"{s['scans_ms']:.2f}"]
            rows.append([run["threads"], what, f"{own:.2f}", *parts, times(own / floor), "", ""])
        none, floor = run["models"]["none"], least(run)
        rows.append([run["threads"], "all but Mamba layers", ms(none), "", "", "", "", ""])
        ratios = time["model"] / floor, time["model"] / time["stock"], floor / time["stock"]
        rows.append([run["threads"], "the model", ms(run["models"]["model"]), "", "", *map(times, ratios)])
    head = ["threads", "part", "in the model, ms", "its products at least", "its scans at least", "time / least"]
    head += ["time / yolov8n's", "least / yolov8n's"]
    rates = "; ".join(
        f"{run['threads']} thread{'s' * (run['threads'] > 1)}: {run['gflops_per_second']:.0f} GFLOP/s, "
        f"{run['bound_ns']:.3f} ns an element of a scan"
        for run in r["rows"]
    )
    body = f"{table(head, rows)}\n\nRates of the least time: {rates}." if rows else r["absent"]
    return {"model_bound": f"{body}\n\n{source(r, 'python benchmarks/model_bound.py')}"}


def main() -> None:
    """Measure, each thread count in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args = parse(parser, seconds=2.0)
    if args.job:
        job = json.loads(args.job)
        torch.set_num_threads(job["threads"])
        print(json.dumps(measure(job["imgsz"], job["threads"], job["seconds"], job["library"])))
        return
    if args.base:
        raise SystemExit(
            "model_bound.py compares a model with its arithmetic; for another commit use model_cpu.py --base."
        )
    result = heading("model_bound", args)
    result["rows"], result["absent"] = [], None
    with tempfile.TemporaryDirectory() as folder:
        libraries, how = build_bounds(Path(folder))
        result["settings"]["bound"] = how
        for threads in args.threads if libraries else ():
            imgsz = 64 if args.quick else FORWARD
            job = {"imgsz": imgsz, "threads": threads, "seconds": args.seconds, "library": libraries["native"]}
            run = in_process(__file__, job)
            result["rows"].append(run)
            took, floor = run["models"]["model"]["median_ms"], least(run)
            print(f"{threads} threads  {took:.1f} ms, at least {floor:.1f} ms, {run['gflops_per_second']} GFLOP/s")
    if not libraries:
        result["absent"] = how
        print(f"absent: {how}")
    write(result, args.out)


if __name__ == "__main__":
    main()
