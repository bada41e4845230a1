# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Time one MambaLayer on a CPU beside the kernels inside it, called by hand: what the layer costs around them.

By hand means: the backend's norm and block on weights that are stacked already, without a module, an operator or a
check of shapes. Both give the same numbers, or there is none in the table.

Usage:
    python benchmarks/layer_cpu.py                # 1 and 2 threads
    python benchmarks/layer_cpu.py --quick        # a tiny map, to see that it works; prints, writes nothing
    python benchmarks/layer_cpu.py --base main    # the layer of another commit beside this tree's
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.base import compare  # noqa: E402
from benchmarks.rendering import ms, source, table, times  # noqa: E402
from benchmarks.timing import Absent, Timed, both_ways, distance, heading, in_process, interleave, parse, write  # noqa: E402
from ultralytics.nn.Addmodules.VMamba import MambaLayer  # noqa: E402

QUICK_SHAPES = ((1, 16, 4, 5),)
SHAPES = ((1, 64, 20, 20), (1, 64, 40, 40), (1, 128, 40, 40), (1, 256, 20, 20), (1, 32, 160, 160), (1, 32, 320, 320))
LIMIT = 1e-6  # largest difference, in units of the largest value: they are the same kernels


def prepared(shape: list[int]) -> tuple[MambaLayer, Tensor]:
    """Return a seeded layer and a map."""
    torch.manual_seed(0)
    return MambaLayer(shape[1]).eval(), torch.randn(shape).contiguous(memory_format=torch.channels_last)


def by_hand(layer: MambaLayer, x: Tensor) -> Callable[[], Tensor]:
    """Return a call of the layer's kernels; imports are here, because --base runs this file on older trees.

    Raises:
        Absent: If the compiled library is not here.
    """
    from ultralytics.nn.Addmodules.selective_scan import Block, registry
    from ultralytics.nn.Addmodules.selective_scan.contract import Linear, Norm

    cpu, norm, mamba = registry.get("cpu"), layer.norm, layer.mamba
    if not cpu.works:
        raise Absent(cpu.about)

    def both(name: str, attribute: str = "weight") -> Tensor:
        return torch.stack([getattr(getattr(mamba, name + end), attribute).detach() for end in ("", "_b")])

    A = -torch.exp(torch.stack([mamba.A_log, mamba.A_b_log])).detach()
    D, dt_bias = torch.stack([mamba.D, mamba.D_b]).detach(), both("dt_proj", "bias")
    weights = both("conv1d").squeeze(2), both("conv1d", "bias"), both("x_proj"), both("dt_proj"), A, D, dt_bias
    into, out = mamba.in_proj.weight.detach(), mamba.out_proj.weight.detach()

    def call() -> Tensor:
        flat = x.flatten(2)
        b = Block(flat.transpose(1, 2), *weights, out_w=out, orders=[0, 1], in_w=into)
        b = b._replace(norm_w=norm.weight, norm_b=norm.bias, norm_eps=norm.eps)
        if cpu.whole(b):
            y, *_ = cpu.block(b, keep=False)
        else:
            tokens, _, _ = cpu.norm(Norm(flat, norm.weight, norm.bias, norm.eps))
            xz = cpu.linear(Linear(tokens.flatten(0, 1), into.t())).unflatten(0, tokens.shape[:2])
            y, *_ = cpu.block(Block(xz, *weights, orders=[0, 1]), keep=False)
            y = cpu.linear(Linear(y.flatten(0, 1), out.t())).unflatten(0, tokens.shape[:2])
        return y.transpose(1, 2).reshape(x.shape)

    return call


def measure(shape: list[int], threads: int, seconds: float) -> dict:
    """Return the row of a shape."""
    layer, x = prepared(shape)
    row = {"shape": shape, "threads": threads, "absent": None, "error": None, "layer": None, "kernels": None}
    with torch.no_grad():
        try:
            kernels = by_hand(layer, x)
        except Absent as e:
            return row | {"absent": str(e)}
        row["error"] = distance([kernels()], [layer(x)])
        if row["error"] < LIMIT:
            row |= interleave({"layer": Timed(lambda: layer(x)), "kernels": Timed(kernels)}, seconds)
    return row


def render(r: dict) -> dict[str, str]:
    """Return the table of a result."""
    rows = []
    for row in r["rows"]:
        timed = row["layer"] is not None
        ratio = times(row["layer"]["median_ms"] / row["kernels"]["median_ms"]) if timed else row["absent"] or "red"
        cells = [ms(row[k]) if timed else "" for k in ("layer", "kernels")]
        rows.append([" x ".join(map(str, row["shape"])), row["threads"], *cells, ratio])
    head = ["map (B, C, H, W)", "threads", "MambaLayer, ms", "its kernels by hand, ms", "layer / kernels"]
    return {"layer_cpu": f"{table(head, rows)}\n\n{source(r, 'python benchmarks/layer_cpu.py')}"}


def jobs(args: argparse.Namespace) -> list[dict]:
    """Return what --base compares: the layer at every size."""
    shapes = QUICK_SHAPES if args.quick else SHAPES
    return [{"shape": shape, "threads": t} for shape in shapes for t in args.threads]


def public(job: dict) -> dict[str, Timed]:
    """Return the layer, forward and both ways, warmed up."""
    return both_ways(f"MambaLayer, {tuple(job['shape'])}", *prepared(job["shape"]))


def main() -> None:
    """Measure, each thread count in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args = parse(parser, seconds=2.0)
    if args.job:
        job = json.loads(args.job)
        torch.set_num_threads(job["threads"])
        rows = [measure(shape, job["threads"], job["seconds"]) for shape in job["shapes"]]
        print(json.dumps({"rows": rows}))
        return
    if args.base:
        compare(__file__, jobs(args), args.base, args.seconds)
        return
    result = heading("layer_cpu", args)
    result["settings"]["limit"], result["rows"] = LIMIT, []
    shapes = QUICK_SHAPES if args.quick else SHAPES
    for threads in args.threads:
        result["rows"] += in_process(__file__, {"shapes": shapes, "threads": threads, "seconds": args.seconds})["rows"]
    for row in result["rows"]:
        took = row["absent"] or f"red: {row['error']}"
        if row["layer"]:
            took = f"{row['layer']['median_ms']:.3f} ms, by hand {row['kernels']['median_ms']:.3f} ms"
        print(f"{row['shape']} {row['threads']} threads  {took}")
    write(result, args.out)


if __name__ == "__main__":
    main()
