# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Where a block's time goes on a GPU: its kernels in order, forward and backward, beside the recipe's; and suspects.

Each row is a Mamba or a VSS block at a stage of the model, in float32 or under AMP: the time of a step as it is called,
and with its launches queued before the first kernel starts, which leaves out the host; then every kernel of forward and
of backward with the idle time before it. Ours is also measured with a suspect done in another way, see VARIANTS. Where
the recipe's kernels are not built its last time and date are quoted from benchmarks/results/gpu.json.

Usage:
    python benchmarks/gpu_profile.py --out build/gpu/gpu_profile.json --deadline 120
    python benchmarks/gpu_profile.py --recipe                        # the recipe's alone, once its kernels are built
    python benchmarks/gpu_profile.py --dry-run                       # tiny, on a CPU: PyTorch's operators for kernels
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from datetime import datetime, timezone
from pathlib import Path
from unittest.mock import patch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.profiler import ProfilerActivity, profile  # noqa: E402

from benchmarks import gpu_peer  # noqa: E402
from benchmarks.environment import environment  # noqa: E402
from benchmarks.gpu import BLOCK_BATCH, QUEUE, SHAPES, Clock, a_block, halves  # noqa: E402
from benchmarks.result import RESULTS, save  # noqa: E402
from ultralytics.nn.Addmodules.selective_scan import use_backend  # noqa: E402
from ultralytics.nn.Addmodules.selective_scan.backends.gpu import block as block_settings  # noqa: E402
from ultralytics.nn.Addmodules.selective_scan.backends.gpu import scan as scan_settings  # noqa: E402

SHOWN = 12  # kernels of a pass that are printed, by time


def one_product(dy: Tensor, x: Tensor) -> Tensor:
    """Return weight gradients as one product batched over directions, which cuBLAS is not known to divide."""
    return torch.bmm(dy.flatten(1, 2).transpose(1, 2), x.flatten(1, 2))


def by_parts(dy: Tensor, x: Tensor, parts: int = 128) -> Tensor:
    """Return weight gradients as a product for each of some parts of the tokens, added up in a fixed order."""
    tokens = dy.shape[1] * dy.shape[2]
    while tokens % parts:
        parts //= 2
    a, b = (t.flatten(1, 2).unflatten(1, (parts, -1)).flatten(0, 1) for t in (dy, x))
    wide = {"out_dtype": torch.float32} if a.is_cuda and a.dtype != torch.float32 else {}
    return torch.bmm(a.transpose(1, 2), b, **wide).unflatten(0, (-1, parts)).sum(1, dtype=torch.float32).to(dy.dtype)


VARIANTS = {  # name: module and what is put into it
    "weight gradients: one batched product": (block_settings, {"_weight_gradient": one_product}),
    "weight gradients: 128 parts": (block_settings, {"_weight_gradient": by_parts}),
    "adjoint: 4 tokens at a time": (scan_settings, {"LOW_RANK_ADJOINT_ROWS": 4}),
    "forward: 1 token at a time": (scan_settings, {"LOW_RANK_ROWS": 1, "LOW_RANK_PROGRAMS": 16}),
    "slope of the convolution: 4 warps": (block_settings, {"SLOPE_WARPS": 4}),
    "slope of the convolution: 256 tokens": (block_settings, {"SLOPE_STEPS": 16}),
    "delta in memory": (block_settings, {"MAX_RANK": 0}),
}


def kernels(run: Callable[[], object], device: torch.device) -> tuple[object, dict]:
    """Run a call under the profiler and return what it gives, and its kernels.

    Args:
        run (Callable[[], object]): The call.
        device (torch.device): Where it runs; on a CPU PyTorch's operators stand for kernels.

    Returns:
        (tuple[object, dict]): The kernels are (name, microseconds, idle microseconds before it), in order, with their
            sum and the time from the first to the end of the last.
    """
    gpu = device.type == "cuda"
    kind = ProfilerActivity.CUDA if gpu else ProfilerActivity.CPU
    with profile(activities=[ProfilerActivity.CPU, kind] if gpu else [kind]) as prof:
        given = run()
        if gpu:
            torch.cuda.synchronize()
    name = "CUDA" if gpu else "CPU"
    events = sorted((e for e in prof.events() if str(e.device_type).endswith(name)), key=lambda e: e.time_range.start)
    found, busy, end = [], 0.0, events[0].time_range.start if events else 0.0
    begin = end
    for e in events:
        taken = e.time_range.end - e.time_range.start
        found.append((e.name[:100], round(taken, 1), round(max(0.0, e.time_range.start - end), 1)))
        busy, end = busy + taken, max(end, e.time_range.end)
    return given, {"kernels": found, "busy_us": round(busy, 1), "span_us": round(end - begin, 1)}


def largest(found: dict) -> list[str]:
    """Return lines of the kernels of a pass that take longest, launches of one name together."""
    total: dict[str, list[float]] = defaultdict(list)
    for name, taken, _ in found["kernels"]:
        total[name].append(taken)
    names = sorted(total, key=lambda n: -sum(total[n]))[:SHOWN]
    head = f"  {len(found['kernels'])} launches, {found['busy_us']:.0f} us of kernels in {found['span_us']:.0f} us"
    return [head, *(f"  {sum(total[n]):9.1f} us  {len(total[n]):3} x {n}" for n in names)]


def quoted(case: dict) -> dict | None:
    """Return what the recipe's block took when it was last measured, with the date, or None."""
    file = RESULTS / "gpu.json"
    if not file.exists():
        return None
    last = json.loads(file.read_text(encoding="utf-8"))
    for x in last["blocks"]:
        if x["subject"] == "mamba_ssm" and "time" in x and all(x.get(k) == v for k, v in case.items()):
            return {"ms": x["time"]["median_ms"], "date": last["date"], "gpu": last["environment"]["gpu"]}
    return None


def main() -> int:
    """Profile what there is time for, by worth: the largest maps first; 1 if a row failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--deadline", type=float, default=120, help="seconds after which no further row begins")
    parser.add_argument("--recipe", action="store_true", help="the recipe's block alone")
    parser.add_argument("--dry-run", action="store_true", help="tiny, on a CPU")
    parser.add_argument("--out", type=Path, help="where the figures go")
    args = parser.parse_args()
    if not (args.dry_run or torch.cuda.is_available()):
        parser.error("no CUDA or ROCm device; --dry-run shows on a CPU that everything runs")
    device, begin, rows = torch.device("cpu" if args.dry_run else "cuda"), time.monotonic(), []
    shapes, batch, seconds = ([(4, 9)], 1, 0.0) if args.dry_run else (SHAPES[:3], BLOCK_BATCH, 0.1)
    as_called, queued = Clock(device, seconds), Clock(device, seconds, QUEUE)
    result = {"benchmark": "gpu_profile", "date": datetime.now(timezone.utc).date().isoformat()}
    result |= {"environment": environment(torch.get_num_threads()), "rows": rows}
    lacking = gpu_peer.absent(*gpu_peer.MODULES)
    plan = [(kind, shape, amp) for shape in shapes for amp in (False, True) for kind in ("Mamba", "VSSBlock")]
    for kind, (inner, length), amp in plan:
        case = {"block": kind, "batch": batch, "dim": inner, "length": length, "amp": amp}
        variants = [] if args.recipe else ["", *VARIANTS] if kind == "Mamba" else [""]
        if kind == "Mamba" and not lacking:
            variants.append("the recipe's")  # last: it changes the block
        block, x = a_block(kind, inner, length, batch, device)
        forward, backward = halves(block, x, amp)

        def step(forward=forward, backward=backward) -> Tensor:
            return backward(forward())

        for variant in variants:
            if time.monotonic() - begin > args.deadline:
                print("No time was left for the rest.")
                return int(any("failed" in x for x in rows))
            row = {**case, "variant": variant}
            rows.append(row)
            module, new = VARIANTS.get(variant, (None, {}))
            try:
                with ExitStack() as stack:
                    stack.enter_context(use_backend("chunked") if args.dry_run else nullcontext())
                    for name, value in new.items():
                        stack.enter_context(patch.object(module, name, value))
                    scan_settings.divide.cache_clear()
                    if variant == "the recipe's":
                        gpu_peer.as_recipe(block)
                    step()  # compiles
                    row["as_called"], row["queued"] = as_called([step]), queued([step])
                    if variant in ("", "the recipe's"):
                        loss, row["forward"] = kernels(forward, device)
                        _, row["backward"] = kernels(lambda backward=backward, loss=loss: backward(loss), device)
            except Exception as e:  # a row that fails is written down, and the others are measured
                row["failed"] = f"{type(e).__name__}: {' '.join(str(e).split())[:300]}"
            scan_settings.divide.cache_clear()
            if args.out is not None:
                save(result, args.out)
            title = f"{kind} ({batch}, {inner}, {length}){' AMP' if amp else ''}: {variant or 'ours'}"
            if "failed" in row:
                print(f"{title}: failed, {row['failed']}")
                continue
            times = f"{row['as_called']['median_ms']:.3f} ms as called, {row['queued']['median_ms']:.3f} ms queued"
            print(f"{title}: {times}", flush=True)
            for name in ("forward", "backward"):
                print(*([f" {name}:", *largest(row[name])] if name in row else []), sep="\n", end="\n" * (name in row))
        if kind == "Mamba" and lacking:
            last = quoted(case)
            row = {**case, "variant": "the recipe's", "left_out": lacking, "last": last}
            rows.append(row)
            print(
                f"  the recipe's: {lacking}" + (f"; {last['ms']} ms on {last['date']}, {last['gpu']}" if last else "")
            )
    if args.out is not None:
        save(result, args.out)
    return int(any("failed" in x for x in rows))


if __name__ == "__main__":
    sys.exit(main())
