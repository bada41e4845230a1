# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""The GPU engine beside mamba-ssm's kernels and its bound, and whole models beside stock YOLOv8n; run by gpu_run.py.

A subject whose check is red gets no number. The peer runs as the recipe runs it: one scan for each direction, tokens
flipped there and back. The bound of a scan is the larger of its bytes over the measured bandwidth and its exponentials
over the measured exp rate; backward reads what it needs, writes the gradients, and computes every exponential again.
Rows are written as they come; called again at the same commit, it measures what is missing.

Usage:
    python benchmarks/gpu.py --dry-run                          # tiny, on a CPU: to see that it runs; writes nothing
    python benchmarks/gpu.py --build-peer FOLDER --into BUILD   # compile mamba-ssm's or causal-conv1d's kernels
    python benchmarks/gpu.py --one-case --sanitize memcheck     # one small scan and block, in compute-sanitizer
    python benchmarks/gpu.py --only blocks --deadline 80        # of scans, blocks and models these alone
    python benchmarks/gpu.py --out benchmarks/results/gpu.json --deadline 300
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime, timezone
from pathlib import Path
from unittest.mock import patch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from benchmarks import gpu_peer  # noqa: E402
from benchmarks.environment import environment, git  # noqa: E402
from benchmarks.proofs import oracle, rms_error, run_with_gradients, worst  # noqa: E402
from benchmarks.rendering import Goal, ms, quotient, source, table, times, verdicts  # noqa: E402
from benchmarks.result import save  # noqa: E402
from ultralytics.nn.Addmodules import selective_scan as engine  # noqa: E402
from ultralytics.nn.Addmodules.selective_scan import registry, use_backend  # noqa: E402

COMMAND = "benchmarks/gpu.sh --data DATA.yaml --peers MAMBA_SSM CAUSAL_CONV1D"
KINDS = ("scans", "blocks", "models")
LATE = "out of time"
SHAPES = [(64, 25600), (128, 6400), (256, 1600), (512, 400)]  # inner channels and tokens of VMamba-yolov8n at 640
BATCHES, STATES, ORDERS, BLOCK_BATCH = (1, 16, 70), 16, [0, 1], 16
STOCK, OURS, RECIPE = "yolov8n", "VMamba-yolov8n", "VMamba-yolov8n on mamba-ssm"
BLOCKS = ("triton", "scan in triton", "mamba_ssm")  # whole block in our kernels, its scan alone, the recipe's
TRAIN_BATCHES, INFER_BATCHES, IMGSZ, GROWTH = (16, 70), (1, 32), 640, (320, 640, 1280)
LIMITS = {torch.float32: 1e-4, torch.bfloat16: 3e-2}  # largest RMS error, relative; above it no number
QUEUE = 30_000_000  # clocks, 17 ms: longer than a host takes for the launches of a block
CACHE = 192 << 20  # bytes that the rotated inputs of a case exceed, so that no cache holds them
Scan = Callable[..., Tensor]


class Clock:
    """Times calls with the device's events, or a host clock where there is no device.

    Args:
        device (torch.device): Where the calls run.
        seconds (float): Time for each call; 0 for one run that means nothing.
        queue (int): Clocks of the device for which a call's launches are queued before its first kernel starts.
    """

    def __init__(self, device: torch.device, seconds: float, queue: int = 20_000):
        self.cuda, self.seconds, self.queue = device.type == "cuda", seconds, queue

    def __call__(self, runs: list[Callable[[], object]]) -> dict:
        """Return the median and the least milliseconds of calls that take turns."""
        for run in runs * 2 if self.seconds else ():
            run()
        times, spent = [], 0.0
        while spent < self.seconds * 1e3 or len(times) < (5 if self.seconds else 1):
            batch = [self._once(run) for run in runs]
            times += batch
            spent += sum(batch)
        return {
            "median_ms": round(statistics.median(times), 4),
            "min_ms": round(min(times), 4),
            "runs": len(times),
        }

    def _once(self, run: Callable[[], object]) -> float:
        """Return the milliseconds of one call."""
        if not self.cuda:
            begin = time.perf_counter()
            run()
            return (time.perf_counter() - begin) * 1e3
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(self.queue)
        begin.record()
        run()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end)


class Rows(list):
    """Rows of a result, which is written as they come; what an earlier call measured is taken from there.

    Args:
        before (list[dict]): Rows of an earlier call at the same commit.
        write (Callable[[list[dict]], None]): Takes all rows there are.
    """

    def __init__(self, before: list[dict], write: Callable[[list[dict]], None]):
        super().__init__()
        self.before, self.write = [x for x in before if x.get("left_out") != LATE], write

    def begin(self, row: dict) -> bool:
        """Append a row that says what is to be measured; True if its figures are there already."""
        self.write([*self, *self.before])  # all of these are complete
        self.append(row)
        for i, x in enumerate(self.before):
            if all(x.get(k) == v for k, v in row.items()):
                row |= self.before.pop(i)
                return True
        return False


# What the device can do


def ceilings(device: torch.device) -> dict:
    """Return measured bytes and exponentials a second; on a CPU, numbers that mean nothing."""
    clock, gpu = Clock(device, 0.2), device.type == "cuda"
    size = 1 << 30 if gpu else 1 << 16
    source, target = (torch.empty(size, dtype=torch.uint8, device=device) for _ in range(2))
    copy = clock([lambda: target.copy_(source)])["median_ms"]
    found = {"bytes_per_second": 2 * size / copy * 1e3, "exps_per_second": 1e9}
    if not registry.get("gpu").works:
        return found
    from benchmarks import gpu_exp

    programs, rounds = (132 * 32, 512) if gpu else (1, 2)
    x = torch.rand(programs * gpu_exp.WIDTH, device=device)
    exps = gpu_exp.launch(x, rounds)
    return found | {"exps_per_second": exps / clock([lambda: gpu_exp.launch(x, rounds)])["median_ms"] * 1e3}


def bound(ceiling: dict, batch: int, dim: int, length: int, dtype: torch.dtype, backward: bool) -> dict:
    """Return the milliseconds below which no version of the scan gets, and which term says so.

    Args:
        ceiling (dict): Of `ceilings`.
        batch (int): Batch.
        dim (int): Channels of a direction.
        length (int): Tokens.
        dtype (torch.dtype): Of the tokens.
        backward (bool): Forward and backward.
    """
    size, k = torch.finfo(dtype).bits // 8, len(ORDERS)
    tokens, weights = batch * k * dim * length * size, batch * k * STATES * length * size
    # Forward reads u, delta, B, C and writes y; backward reads these four and dy, and writes their gradients.
    moved = 3 * tokens + 2 * weights + (5 * tokens + 4 * weights if backward else 0)
    exps = batch * k * dim * length * STATES * (2 if backward else 1)
    by = {"bytes": moved / ceiling["bytes_per_second"] * 1e3, "exps": exps / ceiling["exps_per_second"] * 1e3}
    term = max(by, key=by.get)
    return {"ms": round(by[term], 4), "by": term, "mib": round(moved / 2**20, 1), "gexps": round(exps / 1e9, 3)}


# Scans


def inputs(batch: int, dim: int, length: int, dtype: torch.dtype, device: torch.device, seed: int) -> list[Tensor]:
    """Return u, delta, A, B, C, D and bias of a two-direction block as it starts, channels last in memory."""
    make = torch.Generator(device).manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=make, device=device)

    k = len(ORDERS)
    u, delta = (normal(batch, k, length, dim).to(dtype).transpose(2, 3) for _ in range(2))
    B, C = (normal(batch, k, length, STATES).to(dtype).transpose(2, 3) for _ in range(2))
    A = -torch.arange(1.0, STATES + 1, device=device).repeat(k, dim, 1)
    dt = torch.exp(torch.empty(k, dim, device=device).uniform_(-6.9, -2.3, generator=make))
    return [u, 0.5 * delta, A, B, C, normal(k, dim), dt + torch.log(-torch.expm1(-dt))]


def ours(u, delta, A, B, C, D, bias) -> Tensor:
    """Scan both directions in one call of the operator."""
    return engine.scan(engine.Scan(u, delta, A, B, C, D, None, bias, True, ORDERS))[0]


def peer(*args: Tensor) -> Tensor:
    """Scan both directions the recipe's way."""
    return gpu_peer.scan(*args, ORDERS)


def subjects() -> dict[str, Scan | str]:
    """Return what is timed by name, or why it is not."""
    return {"triton": ours, "mamba_ssm": gpu_peer.absent("selective_scan_cuda") or peer}


def with_gradients(scan: Scan, args: list[Tensor], dout: Tensor) -> list[Tensor]:
    """Return output and gradients: what is timed."""
    leaves = [a.detach().requires_grad_() for a in args]
    out = scan(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, dout)]


def check(scan: Scan, dtype: torch.dtype, device: torch.device, dim: int, length: int) -> dict:
    """Compare output and gradients with the float64 oracle; ok, and the largest relative RMS error."""
    *args, bias = inputs(2, dim, length, dtype, device, 1)
    dout = torch.randn(args[0].shape, device=device).to(dtype)
    args = [*args, None, bias]  # no gate
    got = run_with_gradients(lambda *x: scan(*x[:6], x[7]), args, dout)
    want = oracle(args, dout, orders=ORDERS)
    del want["last"]
    _, error = worst(got, want, rms_error)
    return {"ok": error <= LIMITS[dtype], "error": float(f"{error:.2g}")}


def scan_rows(
    args: argparse.Namespace, device: torch.device, ceiling: dict, late: Callable[[], bool], rows: Rows
) -> None:
    """Add a row for every shape, batch, dtype and subject."""
    shapes, batches = ([(5, 6)], (1,)) if args.dry_run else (SHAPES, BATCHES)
    clock = Clock(device, args.seconds)
    for dtype in LIMITS:
        checks = {}
        for name, scan in subjects().items():
            if callable(scan):
                checks[name] = check(scan, dtype, device, *((5, 6) if args.dry_run else (40, 300)))
        for (dim, length), batch in ((s, b) for b in batches for s in shapes):
            for name, scan in subjects().items():
                row = {"batch": batch, "dim": dim, "length": length, "dtype": str(dtype)[6:], "subject": name}
                if rows.begin(row):
                    continue
                if not callable(scan) or late():
                    row["left_out"] = scan if isinstance(scan, str) else LATE
                    continue
                row["check"] = checks[name]
                if not checks[name]["ok"]:
                    continue
                time_scan(row, scan, clock, device, dtype)
            for backward in (False, True):
                key = "forward_backward" if backward else "forward"
                rows[-1][f"bound_{key}"] = bound(ceiling, batch, dim, length, dtype, backward)


def time_scan(row: dict, scan: Scan, clock: Clock, device: torch.device, dtype: torch.dtype) -> None:
    """Put the times of one scan into its row, over enough sets of inputs that no cache holds them."""
    batch, dim, length = row["batch"], row["dim"], row["length"]
    one = 3 * batch * len(ORDERS) * dim * length * torch.finfo(dtype).bits // 8
    sets = []
    for seed in range(1 if device.type != "cuda" else max(1, min(8, CACHE // one))):
        args = inputs(batch, dim, length, dtype, device, seed)
        if scan is peer:  # its own layout, tokens innermost; the copy is not counted
            args = [a.contiguous() for a in args]
        sets.append((args, torch.randn(args[0].shape, device=device).to(dtype)))

    def forward(args: list[Tensor]) -> None:
        with torch.no_grad():
            scan(*args)

    try:
        row["forward"] = clock([lambda a=a: forward(a) for a, _ in sets])
        row["forward_backward"] = clock([lambda a=a, g=g: with_gradients(scan, a, g) for a, g in sets])
    except torch.OutOfMemoryError:
        row["left_out"] = "out of memory"


# Blocks


def composed() -> AbstractContextManager:
    """Let blocks run as PyTorch operators around our scan, as they do where the block's kernels refuse."""
    return patch.object(registry.get("gpu"), "fuses", lambda b: False)


def relative(x: Tensor, truth: Tensor) -> float:
    """Return the RMS error relative to the truth's RMS, of two digits."""
    return float(f"{rms_error(x, truth):.2g}")


def a_block(kind: str, inner: int, length: int, batch: int, device: torch.device) -> tuple[torch.nn.Module, Tensor]:
    """Return a Mamba block of two directions or a VSS block, and its input.

    Args:
        kind (str): "Mamba" or "VSSBlock".
        inner (int): Channels of its scans.
        length (int): Tokens.
        batch (int): Pictures.
        device (torch.device): Where it is to be.
    """
    from ultralytics.nn.Addmodules import Mamba, VSSBlock

    torch.manual_seed(0)
    dim, side = inner // 2, round(length**0.5)
    if kind == "Mamba":
        return Mamba(dim, bimamba_type="v2").to(device), torch.randn(batch, length, dim, device=device).requires_grad_()
    x = torch.randn(batch, dim, side, side, device=device).to(memory_format=torch.channels_last)
    return VSSBlock(dim).to(device), x.requires_grad_()


def halves(block: torch.nn.Module, x: Tensor, amp: bool) -> tuple[Callable[[], Tensor], Callable[[Tensor], Tensor]]:
    """Return a block's forward pass, which gives its loss, and its backward pass, which gives the input's gradient."""

    def forward() -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=amp):
            y = block(x)
        return y.float().square().sum()

    def backward(loss: Tensor) -> Tensor:
        block.zero_grad()
        x.grad = None
        loss.backward()
        return x.grad

    return forward, backward


def block_rows(args: argparse.Namespace, device: torch.device, late: Callable[[], bool], rows: Rows) -> None:
    """Add forward + backward and peak memory of the recipe's block and of a VSS block at the model's stages."""
    shapes, batch = ([(4, 9)], 1) if args.dry_run else (SHAPES, BLOCK_BATCH)
    clock = Clock(device, args.seconds)
    lacking = gpu_peer.absent(*gpu_peer.MODULES)
    kinds = [(a, k) for a in ((False,) if args.dry_run else (False, True)) for k in ("Mamba", "VSSBlock")]
    for (inner, length), (amp, kind) in ((s, k) for s in shapes for k in kinds):
        block = None
        for name in BLOCKS if kind == "Mamba" else BLOCKS[:2]:
            row = {"block": kind, "batch": batch, "dim": inner, "length": length, "amp": amp, "subject": name}
            if rows.begin(row):
                continue
            if late() or (name == "mamba_ssm" and lacking):
                row["left_out"] = LATE if late() else lacking
                continue
            if block is None:
                block, x = a_block(kind, inner, length, batch, device)
                forward, backward = halves(block, x, amp)
                with composed():  # PyTorch's operators around the scan, which `check` holds to float64
                    truth = backward(forward()).clone()

            def step(forward=forward, backward=backward) -> Tensor:
                return backward(forward())

            if name == "mamba_ssm":
                gpu_peer.as_recipe(block)
            with composed() if name == BLOCKS[1] else nullcontext():
                error = relative(step(), truth)
                row["check"] = {"ok": error <= (5e-2 if amp else 1e-3), "error": error}
                if row["check"]["ok"]:
                    measured(row, step, clock)
                    if clock.cuda and "time" in row:
                        row["queued"] = Clock(device, args.seconds, QUEUE)([step])


# Whole models


def build(name: str, device: torch.device) -> torch.nn.Module:
    """Return a detection model with two classes and fixed weights."""
    from ultralytics.cfg import get_cfg
    from ultralytics.nn.tasks import DetectionModel

    torch.manual_seed(0)
    model = DetectionModel(f"{name.split()[0]}.yaml", nc=2, verbose=False)
    model.args = get_cfg()
    return (gpu_peer.as_recipe(model) if name == RECIPE else model).to(device)


def recipe_absent(device: torch.device) -> str | None:
    """Return why the recipe's model gets no figures: it cannot run, or does not compute what ours does."""
    if why := gpu_peer.absent(*gpu_peer.MODULES):
        return why
    x = pictures(2, 320, device)["img"]
    with torch.inference_mode():
        ours, theirs = (build(name, device).eval()(x)[0] for name in (OURS, RECIPE))
    error = relative(theirs, ours)
    return None if error <= 1e-3 else f"red: differs from ours by {error}"


def pictures(batch: int, size: int, device: torch.device) -> dict:
    """Return a training batch with two boxes a picture."""
    make = torch.Generator().manual_seed(0)
    labels = 2 * batch
    data = {
        "img": torch.rand(batch, 3, size, size, generator=make),
        "cls": torch.randint(0, 2, (labels, 1), generator=make).float(),
        "bboxes": torch.rand(labels, 4, generator=make) * 0.3 + 0.3,
        "batch_idx": torch.arange(labels) // 2,
    }
    return {k: v.to(device) for k, v in data.items()}


def measured(row: dict, run: Callable[[], object], clock: Clock) -> None:
    """Put time, images a second and peak memory of a call into its row."""
    try:
        run()
        gc.collect()
        if clock.cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        row["time"] = clock([run])
    except torch.OutOfMemoryError:
        row["left_out"] = "out of memory"
        return
    row["images_per_second"] = round(row["batch"] / row["time"]["median_ms"] * 1e3, 1)
    if clock.cuda:
        row["peak_mib"] = round(torch.cuda.max_memory_allocated() / 2**20, 1)


def captured(run: Callable[[], object]) -> Callable[[], object]:
    """Return what replays the launches of a call from a CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run(), run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def model_rows(args: argparse.Namespace, device: torch.device, late: Callable[[], bool], rows: Rows) -> None:
    """Add training steps, inference, also from a CUDA graph, and the growth with the picture, models taking turns."""
    small = args.dry_run
    train = [(1, False)] if small else [(b, amp) for b in TRAIN_BATCHES for amp in (False, True)]
    infer = [(1, 64)] if small else [(b, IMGSZ) for b in INFER_BATCHES] + [(1, s) for s in GROWTH if s != IMGSZ]
    clock, lacking = Clock(device, args.seconds), recipe_absent(device)

    def begun(kind: str, name: str, batch: int, size: int, **settings) -> dict | None:
        """Append a row; None if it is to be left out, or is there already."""
        if rows.begin({"kind": kind, "model": name, "batch": batch, "imgsz": size, **settings}):
            return None
        why = LATE if late() else lacking if name == RECIPE else None
        if why:
            rows[-1]["left_out"] = why
        return None if why else rows[-1]

    for (batch, amp), name in ((t, n) for t in train for n in (STOCK, OURS, RECIPE)):
        row = begun("train", name, batch, 64 if small else IMGSZ, amp=amp)
        if row is None:
            continue
        model, data = build(name, device).train(), pictures(batch, row["imgsz"], device)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-5, momentum=0.9)

        def step(model=model, data=data, optimizer=optimizer, amp=amp) -> None:
            optimizer.zero_grad()
            with torch.autocast(device.type, torch.float16) if amp else nullcontext():
                loss = model(data)[0].sum()
            (loss * (1024 if amp else 1)).backward()  # a fixed scale: GradScaler would skip steps at first
            optimizer.step()

        measured(row, step, clock)
        del model, optimizer, step  # their memory is not the next model's
    graphs = () if small else ((False, True), (True, True))  # in float32 and in half precision
    ways = [(False, False)] if small else [(False, False), (True, False)]
    runs = [(*i, *w) for i in infer for w in (*ways, *(graphs if i == (1, IMGSZ) else ()))]
    for (batch, size, half, graph), name in ((r, n) for r in runs for n in (STOCK, OURS, RECIPE)):
        row = begun("infer", name, batch, size, half=half, graph=graph)
        if row is None:
            continue
        model = build(name, device).eval().fuse(verbose=False)
        x = pictures(batch, size, device)["img"]
        model, x = (model.half(), x.half()) if half else (model, x)

        def predict(model=model, x=x) -> None:
            with torch.inference_mode():
                model(x)

        try:
            measured(row, captured(predict) if graph else predict, clock)
        except RuntimeError as e:  # a call that cannot be captured
            row["left_out"] = f"failed: {' '.join(str(e).split())[:200]}"
        del model, predict


# Report


def one_case(device: torch.device) -> int:
    """Run our scan and our block once, forward and backward, with several segments and blocks; 1 if one is wrong."""
    from ultralytics.nn.Addmodules import Mamba

    found = check(ours, torch.float32, device, 40, 300)
    torch.manual_seed(0)
    block, x = Mamba(20, bimamba_type="v2").to(device), torch.randn(2, 300, 20, device=device, requires_grad=True)
    grads = []
    for way in (nullcontext, composed):
        with way():
            grads.append(torch.autograd.grad(block(x).square().sum(), [x, *block.parameters()]))
    found["block"] = max(relative(a, b) for a, b in zip(*grads))
    print(json.dumps(found))
    return int(not (found["ok"] and found["block"] <= 1e-3))


def goals(r: dict | None) -> list[Goal]:
    """Return the GPU targets beside a result."""
    scans, blocks, models = (r[kind] for kind in KINDS) if r else ([], [], [])

    def of(rows: list[dict], *keys: str, **which) -> float | None:
        """Return the number under a chain of keys of the one row that has these values."""
        found = [x for x in rows if all(x.get(k) == v for k, v in which.items())]
        for key in keys:
            found = [x[key] for x in found if x.get(key) is not None]
        return found[0] if found else None

    # Scans of several pictures from 1,600 tokens on, of several with fewer, and of one picture.
    labels = {"L >= 1600, batches": 2, "L = 400, batches": 1, "batch 1": 1}
    gains: dict[str, dict[str, float]] = {label: {} for label in labels}
    for x in scans:
        case = {k: x[k] for k in ("batch", "dim", "length", "dtype")}
        both = (of(scans, "forward_backward", "median_ms", subject=s, **case) for s in ("mamba_ssm", "triton"))
        if x["subject"] == "triton" and (gain := quotient(*both)) is not None:
            label = (
                "batch 1" if x["batch"] == 1 else "L >= 1600, batches" if x["length"] >= 1600 else "L = 400, batches"
            )
            gains[label][", ".join(map(str, case.values()))] = gain
    found = []
    for label, target in labels.items():
        least = min(gains[label], key=gains[label].get, default=None)
        what = f"scan forward + backward, {label}: times the speed of mamba-ssm's kernel"
        remark = "" if least is None else f"least, at ({least})"
        found.append(Goal(what, target, True, gains[label].get(least), remark))
    for dtype in ("float32", "bfloat16"):
        which = {"batch": 16, "dim": 64, "length": 25600, "dtype": dtype}
        limit = of(scans, "bound_forward", "ms", **which)
        ratio = quotient(of(scans, "forward", "median_ms", subject="triton", **which), limit)
        found.append(Goal(f"scan forward at (16, 64, 25600), {dtype}: times the bound", 1.6, False, ratio))
    for (dim, length), amp in ((s, a) for s in SHAPES[:3] for a in (False, True)):
        which = {"block": "Mamba", "batch": BLOCK_BATCH, "dim": dim, "length": length, "amp": amp}
        both = (of(blocks, "time", "median_ms", subject=s, **which) for s in ("triton", "mamba_ssm"))
        what = f"Mamba block forward + backward at ({BLOCK_BATCH}, {dim}, {length}){', AMP' if amp else ''}"
        found.append(Goal(f"{what}: times the recipe's time", 0.8, False, quotient(*both)))
    for batch, amp in ((b, a) for b in (16, 70) for a in (False, True)):
        label = f"training step, 640 px, batch {batch}{', AMP' if amp else ''}"

        def ratio(of_model: str, *keys: str, batch: int = batch, amp: bool = amp) -> float | None:
            mine, other = (of(models, *keys, kind="train", model=m, batch=batch, amp=amp) for m in (OURS, of_model))
            return quotient(mine, other)

        found += [
            Goal(f"{label}: times the recipe's images a second", 1.5, True, ratio(RECIPE, "images_per_second")),
            Goal(f"{label}: times the recipe's peak memory", 0.7, False, ratio(RECIPE, "peak_mib")),
            Goal(f"{label}: times stock yolov8n's time", 1.3, False, ratio(STOCK, "time", "median_ms")),
        ]
    return found


def render(r: dict) -> dict[str, str]:
    """Return targets and tables of a result; cases that no time was left for are counted, not listed."""
    parts = [verdicts(goals(r))]
    shown = {key: [x for x in r[key] if x.get("left_out") != LATE] for key in ("scans", "blocks", "models")}
    late = [
        f"{len(r[key]) - len(rows)} of {len(r[key])} {key}" for key, rows in shown.items() if len(r[key]) > len(rows)
    ]

    def cell(row: dict, key: str) -> str:
        return ms(row[key]) if key in row else row.get("left_out", "red")

    bounds = {tuple(x[k] for k in ("batch", "dim", "length", "dtype")): x for x in r["scans"] if "bound_forward" in x}
    rows = []
    for x in shown["scans"]:
        limit = bounds[tuple(x[k] for k in ("batch", "dim", "length", "dtype"))]
        row = [f"{x['batch']}, {x['dim']}, {x['length']}", x["dtype"], x["subject"]]
        for key in ("forward", "forward_backward"):
            row += [cell(x, key), times(x[key]["median_ms"] / limit[f"bound_{key}"]["ms"]) if key in x else ""]
        rows.append(row)
    head = ["B, D, L", "dtype", "subject", "forward, ms", "x bound", "forward + backward, ms", "x bound"]
    parts.append(table(head, rows))
    rows = [
        [
            x["block"],
            f"{x['batch']}, {x['dim']}, {x['length']}",
            "yes" if x["amp"] else "no",
            x["subject"],
            cell(x, "time"),
            ms(x["queued"]) if "queued" in x else "",
            x.get("peak_mib", ""),
        ]
        for x in shown["blocks"]
    ]
    parts.append(
        table(["block", "B, D, L", "AMP", "subject", "forward + backward, ms", "launches queued, ms", "peak MiB"], rows)
    )
    rows = []
    for x in shown["models"]:
        what = [x["kind"], f"{x['imgsz']} px", f"batch {x['batch']}", *["AMP"] * bool(x.get("amp"))]
        what += ["half"] * bool(x.get("half")) + ["CUDA graph"] * bool(x.get("graph"))
        rows.append([x["model"], ", ".join(what), cell(x, "time"), x.get("images_per_second", "")])
        rows[-1].append(x.get("peak_mib", ""))
    parts.append(table(["model", "what", "ms", "images/s", "peak MiB"], rows))
    if late:
        parts.append(f"No time was left for {' and '.join(late)}.")
    c = r["ceilings"]
    rate = f"{c['bytes_per_second'] / 1e12:.2f} TB/s copied, {c['exps_per_second'] / 1e12:.2f} T exp/s measured"
    parts.append(f"{r['environment']['gpu']}, {rate}; {source(r, COMMAND)}")
    return {"gpu": "\n\n".join(parts)}


def main() -> int:
    """Run what the command line asks for; 1 if a check was red."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes, on the CPU; prints, writes nothing")
    parser.add_argument("--build-peer", type=Path, metavar="FOLDER", help="compile a peer's kernels from its source")
    parser.add_argument("--into", type=Path, default=ROOT / "build/peer", help="where --build-peer builds")
    parser.add_argument("--one-case", action="store_true", help="run one small case forward and backward, and stop")
    parser.add_argument("--sanitize", metavar="TOOL", help="run it in compute-sanitizer, with this tool")
    parser.add_argument("--only", nargs="+", choices=KINDS, default=KINDS, help="these rows alone")
    parser.add_argument("--seconds", type=float, default=0.15, help="time for each call that is timed")
    parser.add_argument("--deadline", type=float, default=300, help="seconds after which no further row begins")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/gpu.json")
    args = parser.parse_args()
    if args.build_peer:
        gpu_peer.build(args.build_peer.resolve(), args.into.resolve())
        return 0
    if not (args.dry_run or torch.cuda.is_available()):
        parser.error("no CUDA or ROCm device; --dry-run shows on a CPU that everything runs")
    if args.dry_run:
        args.seconds = 0.0
    if args.sanitize:
        return sanitized(args.sanitize)
    device, begin = torch.device("cpu" if args.dry_run else "cuda"), time.monotonic()
    torch.backends.cudnn.benchmark = True
    if args.one_case:
        return one_case(device)
    share = dict(zip(args.only, (0.35, 0.6, 1.0))) if args.only == KINDS else dict.fromkeys(args.only, 1.0)

    def late(kind: str) -> Callable[[], bool]:
        """Return what tells that the time of a kind is over: none uses up that of the next."""
        return lambda: not args.dry_run and time.monotonic() - begin > args.deadline * share[kind]

    result = started(None if args.dry_run else args.out)

    def rows(kind: str) -> Rows:
        """Return the rows of a kind, which write the result as they come."""

        def write(found: list[dict]) -> None:
            result[kind] = found
            if not args.dry_run:
                save(result, args.out)

        return Rows(result[kind], write)

    result["ceilings"] = result["ceilings"] or ceilings(device)
    scan_with = "gpu" if not args.dry_run or registry.get("gpu").works else "chunked"
    for kind in args.only:
        made = rows(kind)
        if kind == "models":
            model_rows(args, device, late(kind), made)
        else:
            with use_backend(scan_with):
                if kind == "scans":
                    scan_rows(args, device, result["ceilings"], late(kind), made)
                else:
                    block_rows(args, device, late(kind), made)
        made.write([*made, *made.before])
    result["seconds"] = round(result["seconds"] + time.monotonic() - begin)
    print(json.dumps(result["ceilings"]))
    print(render(result)["gpu"])
    if not args.dry_run:
        save(result, args.out)
        print(f"written: {args.out}")
    return int(any(not r["check"]["ok"] for r in result["scans"] + result["blocks"] if "check" in r))


def started(file: Path | None) -> dict:
    """Return a result to be filled: that of an earlier call at this commit, or an empty one.

    A result of another commit is not lost: it is moved aside, unless git has it.

    Args:
        file (Path, optional): Where results are; None: there is none before.
    """
    about = environment(torch.get_num_threads())
    if file is not None and file.exists():
        before = json.loads(file.read_text(encoding="utf-8"))
        if before["environment"] == about and not about["uncommitted"]:
            return before
        if git("status", "--porcelain", "--ignored", "--", str(file)) or not git("ls-files", "--", str(file)):
            file.replace(file.with_name(f"{file.stem}-{before['environment']['commit'][:10]}{file.suffix}"))
    return {
        "benchmark": "gpu",
        "date": datetime.now(timezone.utc).date().isoformat(),
        "environment": about,
        "ceilings": None,
        **{kind: [] for kind in KINDS},
        "seconds": 0,
    }


def sanitized(tool: str) -> int:
    """Run one case in compute-sanitizer, every allocation its own, so that none hides an access beyond it."""
    program = shutil.which("compute-sanitizer")
    if program is None:
        print("compute-sanitizer is not here: it comes with the CUDA toolkit")
        return 1
    command = [program, "--tool", tool, "--error-exitcode", "9", sys.executable, __file__, "--one-case"]
    return subprocess.run(command, env={**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}).returncode


if __name__ == "__main__":
    sys.exit(main())
