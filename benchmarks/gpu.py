# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""The GPU engine beside mamba-ssm's kernel and its bound, and whole models beside stock YOLOv8n; run by gpu.sh.

A subject whose check is red gets no number. The peer runs as the recipe runs it: one scan for each direction, tokens
flipped there and back. The bound of a scan is the larger of its bytes over the measured bandwidth and its exponentials
over the measured exp rate; backward reads what it needs, writes the gradients, and computes every exponential again.

Usage:
    python benchmarks/gpu.py --dry-run                    # tiny, on a CPU: to see that it runs; writes nothing
    python benchmarks/gpu.py --build-peer FOLDER --into BUILD   # compile mamba-ssm's scan for sm_90 only
    python benchmarks/gpu.py --out benchmarks/results/gpu.json --deadline 300
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from datetime import datetime, timezone
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from benchmarks.environment import environment  # noqa: E402
from ultralytics.nn.Addmodules.selective_scan import op, registry, use_backend  # noqa: E402

SHAPES = [(64, 25600), (128, 6400), (256, 1600), (512, 400)]  # inner channels and tokens of VMamba-yolov8n at 640
BATCHES, STATES, ORDERS = (1, 16, 70), 16, [0, 1]
MODELS = ("yolov8n.yaml", "VMamba-yolov8n.yaml")  # the first is what the other is compared with
TRAIN_BATCHES, INFER_BATCHES, IMGSZ, GROWTH = (16, 70), (1, 32), 640, (320, 640, 1280)
LIMITS = {torch.float32: 1e-4, torch.bfloat16: 3e-2}  # largest RMS error, relative; above it no number
CACHE = 192 << 20  # bytes that the rotated inputs of a case exceed, so that no cache holds them
Scan = Callable[..., Tensor]


class Clock:
    """Times calls with the device's events, or a host clock where there is no device.

    Args:
        device (torch.device): Where the calls run.
        seconds (float): Time for each call.
    """

    def __init__(self, device: torch.device, seconds: float):
        self.cuda, self.seconds = device.type == "cuda", seconds

    def __call__(self, runs: list[Callable[[], object]]) -> dict:
        """Return the median and the least milliseconds of calls that take turns."""
        for run in runs * 2:
            run()
        times, spent = [], 0.0
        while spent < self.seconds * 1e3 or len(times) < 5:
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
        torch.cuda._sleep(20_000)  # the launches of a short call are queued before its first kernel starts
        begin.record()
        run()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end)


# What the device can do


def ceilings(device: torch.device) -> dict:
    """Return measured bytes and exponentials a second; on a CPU, numbers that mean nothing."""
    clock, gpu = Clock(device, 0.2), device.type == "cuda"
    size = 1 << 30 if gpu else 1 << 16
    source, target = (torch.empty(size, dtype=torch.uint8, device=device) for _ in range(2))
    copy = clock([lambda: target.copy_(source)])["median_ms"]
    found = {"bytes_per_second": 2 * size / copy * 1e3, "exps_per_second": 1e9}
    if not registry.get("triton").available()[0]:
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
    return op.scan(u, delta, A, B, C, D, None, bias, True, ORDERS)[0]


class _PeerScan(torch.autograd.Function):
    """One forward scan of `selective_scan_cuda`, as mamba-ssm's own interface calls it."""

    @staticmethod
    def forward(ctx, u, delta, A, B, C, D, bias):
        import selective_scan_cuda

        out, kept, *_ = selective_scan_cuda.fwd(u, delta, A, B, C, D, None, bias, True)
        ctx.save_for_backward(u, delta, A, B, C, D, bias, kept)
        return out

    @staticmethod
    def backward(ctx, dout):
        import selective_scan_cuda

        *saved, bias, kept = ctx.saved_tensors
        grads = selective_scan_cuda.bwd(*saved, None, bias, dout.contiguous(), kept, None, None, True, False)
        return (*grads[:7],)


def peer(u, delta, A, B, C, D, bias) -> Tensor:
    """Scan both directions the recipe's way: each alone, the second on flipped tokens, its output flipped back."""
    outs = []
    for k, order in enumerate(ORDERS):
        tokens = [x[:, k].flip(-1) if order else x[:, k] for x in (u, delta)]
        weights = [(x[:, k].flip(-1) if order else x[:, k]).unsqueeze(1) for x in (B, C)]
        out = _PeerScan.apply(*tokens, A[k], *weights, D[k], bias[k])
        outs.append(out.flip(-1) if order else out)
    return torch.stack(outs, 1)


def loop(u, delta, A, B, C, D, bias) -> Tensor:
    """Scan token by token, in float64: what the checks hold everything to."""
    from ultralytics.nn.Addmodules.selective_scan.op import _scan_reference

    return _scan_reference(u, delta, A, B, C, D, None, bias, True, ORDERS)[0]


def subjects(device: torch.device) -> dict[str, Scan | str]:
    """Return what is timed by name, or why it is not."""
    found: dict[str, Scan | str] = {"triton": ours}
    try:
        import selective_scan_cuda  # noqa: F401

        found["mamba_ssm"] = peer
    except (ImportError, OSError) as e:
        found["mamba_ssm"] = f"selective_scan_cuda cannot be imported: {e}"
    if device.type != "cuda":
        found["mamba_ssm"] = "no CUDA device"
    return found


def with_gradients(scan: Scan, args: list[Tensor], dout: Tensor) -> list[Tensor]:
    """Return output and gradients."""
    leaves = [a.detach().requires_grad_() for a in args]
    out = scan(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, dout)]


def check(scan: Scan, dtype: torch.dtype, device: torch.device, dim: int, length: int) -> dict:
    """Compare output and gradients with the float64 loop; ok, and the largest relative RMS error."""
    args = inputs(2, dim, length, dtype, device, 1)
    dout = torch.randn(args[0].shape, device=device).to(dtype)
    want = with_gradients(loop, [a.double() for a in args], dout.double())
    worst = 0.0
    for got, exact in zip(with_gradients(scan, args, dout), want):
        error = ((got.double() - exact).norm() / exact.norm()).item()
        worst = error if error != error or error > worst else worst
    return {"ok": worst <= LIMITS[dtype], "error": float(f"{worst:.2g}")}


def scan_rows(args: argparse.Namespace, device: torch.device, ceiling: dict, late: Callable[[], bool]) -> list[dict]:
    """Return a row for every shape, batch, dtype and subject."""
    shapes, batches = ([(5, 6)], (1,)) if args.dry_run else (SHAPES, BATCHES)
    clock, rows = Clock(device, args.seconds), []
    for dtype in LIMITS:
        checks = {}
        for name, scan in subjects(device).items():
            if callable(scan):
                checks[name] = check(scan, dtype, device, *((5, 6) if args.dry_run else (40, 300)))
        for (dim, length), batch in ((s, b) for b in batches for s in shapes):
            for name, scan in subjects(device).items():
                row = {"batch": batch, "dim": dim, "length": length, "dtype": str(dtype)[6:], "subject": name}
                rows.append(row)
                if not callable(scan) or late():
                    row["left_out"] = scan if isinstance(scan, str) else "out of time"
                    continue
                row["check"] = checks[name]
                if not checks[name]["ok"]:
                    continue
                time_scan(row, scan, clock, device, dtype)
            for backward in (False, True):
                key = "forward_backward" if backward else "forward"
                rows[-1][f"bound_{key}"] = bound(ceiling, batch, dim, length, dtype, backward)
    return rows


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


# Whole models


def build(name: str, device: torch.device) -> torch.nn.Module:
    """Return a detection model with two classes and fixed weights."""
    from ultralytics.cfg import get_cfg
    from ultralytics.nn.tasks import DetectionModel

    torch.manual_seed(0)
    model = DetectionModel(name, nc=2, verbose=False)
    model.args = get_cfg()
    return model.to(device)


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


def model_rows(args: argparse.Namespace, device: torch.device, late: Callable[[], bool]) -> list[dict]:
    """Return training steps, inference and the growth with the picture for both models, taking turns."""
    small = args.dry_run
    train = [(1, amp) for amp in (False,)] if small else [(b, amp) for b in TRAIN_BATCHES for amp in (False, True)]
    infer = [(1, 64)] if small else [(b, IMGSZ) for b in INFER_BATCHES] + [(1, s) for s in GROWTH if s != IMGSZ]
    clock, rows = Clock(device, args.seconds), []
    for batch, amp in train:
        for name in MODELS:
            row = {"kind": "train", "model": name, "batch": batch, "imgsz": 64 if small else IMGSZ, "amp": amp}
            rows.append(row)
            if late():
                row["left_out"] = "out of time"
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
    for batch, size in infer:
        for name, half in ((n, h) for n in MODELS for h in ((False,) if small else (False, True))):
            row = {"kind": "infer", "model": name, "batch": batch, "imgsz": size, "half": half}
            rows.append(row)
            if late():
                row["left_out"] = "out of time"
                continue
            model = build(name, device).eval().fuse(verbose=False)
            x = pictures(batch, size, device)["img"]
            model, x = (model.half(), x.half()) if half else (model, x)

            def predict(model=model, x=x) -> None:
                with torch.inference_mode():
                    model(x)

            measured(row, predict, clock)
    return rows


# The peer


PEER_FLAGS = [
    "-O3",
    "-std=c++17",
    *(f"-U__CUDA_NO_{t}_{w}__" for t in ("HALF", "BFLOAT16") for w in ("OPERATORS", "CONVERSIONS")),
    "-U__CUDA_NO_BFLOAT162_OPERATORS__",
    "-U__CUDA_NO_BFLOAT162_CONVERSIONS__",
    "--expt-relaxed-constexpr",
    "--expt-extended-lambda",
    "--use_fast_math",
    "--threads=2",
]


def peer_sources(folder: Path, into: Path) -> list[Path]:
    """Copy the peer's scan with everything complex left out, which is two thirds of its compile time.

    Args:
        folder (Path): mamba-ssm's source, or its csrc/selective_scan.
        into (Path): Where the copy goes.

    Returns:
        (list[Path]): What to compile.
    """
    found = [p for p in (folder / "csrc/selective_scan", folder) if (p / "selective_scan.cpp").is_file()]
    if not found:
        raise SystemExit(f"{folder} holds no csrc/selective_scan/selective_scan.cpp: give mamba-ssm's source folder")
    into.mkdir(parents=True, exist_ok=True)
    sources = []
    for file in sorted(found[0].iterdir()):
        if not file.is_file() or "_complex" in file.name:
            continue
        text = file.read_text(encoding="utf-8")
        if file.suffix == ".cu":
            text = "\n".join(x for x in text.splitlines() if not (x.startswith("template void") and "complex_t" in x))
        (into / file.name).write_text(text + "\n", encoding="utf-8")
        if file.suffix in (".cu", ".cpp"):
            sources.append(into / file.name)
    stubs = "\n".join(
        f"template <> void selective_scan_{way}_cuda<{t}, c10::complex<float>>({params}&, cudaStream_t) "
        f'{{ TORCH_CHECK(false, "built without complex numbers"); }}'
        for way, params in (("fwd", "SSMParamsBase"), ("bwd", "SSMParamsBwd"))
        for t in ("float", "at::Half", "at::BFloat16")
    )
    declared = "\n".join(
        f"template <typename i, typename w> void selective_scan_{way}_cuda({params}&, cudaStream_t);"
        for way, params in (("fwd", "SSMParamsBase"), ("bwd", "SSMParamsBwd"))
    )
    stub = into / "no_complex.cpp"
    head = "#include <ATen/ATen.h>\n#include <c10/cuda/CUDAStream.h>\n#include <c10/util/complex.h>\n"
    stub.write_text(f'{head}#include "selective_scan.h"\n{declared}\n{stubs}\n', encoding="utf-8")
    return [*sources, stub]


def build_peer(folder: Path, into: Path) -> None:
    """Compile `selective_scan_cuda` into a folder, for compute capability 9.0 only."""
    import os

    from torch.utils.cpp_extension import load

    os.environ["TORCH_CUDA_ARCH_LIST"] = "9.0"
    sources = peer_sources(folder, into / "src")
    begin = time.perf_counter()
    load(
        "selective_scan_cuda",
        [str(s) for s in sources],
        extra_cflags=["-O3", "-std=c++17"],
        extra_cuda_cflags=PEER_FLAGS,
        extra_include_paths=[str(into / "src")],
        build_directory=str(into),
        is_python_module=True,
        verbose=True,
    )
    print(f"mamba-ssm's scan was built in {time.perf_counter() - begin:.0f} s")


# Report


def summary(result: dict) -> str:
    """Return the results as short tables."""
    lines = ["| B, D, L | dtype | subject | forward ms | times bound | forward + backward ms | times bound |"]
    lines.append("|" + " --- |" * 7)
    bounds = {(r["batch"], r["dim"], r["length"], r["dtype"]): r for r in result["scans"] if "bound_forward" in r}
    for r in result["scans"]:
        key = r["batch"], r["dim"], r["length"], r["dtype"]
        cells = [", ".join(map(str, key[:3])), r["dtype"], r["subject"]]
        for way in ("forward", "forward_backward"):
            if way in r:
                ms = r[way]["median_ms"]
                cells += [f"{ms:.3f}", f"{ms / bounds[key][f'bound_{way}']['ms']:.2f}"]
            else:
                cells += ["red" if "left_out" not in r else r["left_out"][:24], ""]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "| model | what | ms | images/s | peak MiB |", "|" + " --- |" * 5]
    for r in result["models"]:
        what = [r["kind"], f"{r['imgsz']} px", f"batch {r['batch']}"]
        what += ["AMP"] * bool(r.get("amp")) + ["half"] * bool(r.get("half"))
        if "time" in r:
            cells = [f"{r['time']['median_ms']:.2f}", str(r["images_per_second"]), str(r.get("peak_mib", ""))]
        else:
            cells = [r["left_out"], "", ""]
        lines.append("| " + " | ".join([Path(r["model"]).stem, ", ".join(what), *cells]) + " |")
    return "\n".join(lines)


def main() -> int:
    """Run what the command line asks for; 1 if a check was red."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes, on the CPU; prints, writes nothing")
    parser.add_argument("--build-peer", type=Path, metavar="FOLDER", help="compile mamba-ssm's scan from its source")
    parser.add_argument("--into", type=Path, default=ROOT / "build/peer", help="where --build-peer builds")
    parser.add_argument("--seconds", type=float, default=0.15, help="time for each call that is timed")
    parser.add_argument("--deadline", type=float, default=300, help="seconds after which no further row begins")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/gpu.json")
    args = parser.parse_args()
    if args.build_peer:
        build_peer(args.build_peer.resolve(), args.into.resolve())
        return 0
    if not (args.dry_run or torch.cuda.is_available()):
        parser.error("no CUDA or ROCm device; --dry-run shows on a CPU that everything runs")
    if args.dry_run:
        args.seconds = 0.0
    device, begin = torch.device("cpu" if args.dry_run else "cuda"), time.monotonic()
    torch.backends.cudnn.benchmark = True

    def late() -> bool:
        return time.monotonic() - begin > args.deadline

    scan_with = "triton" if not args.dry_run or registry.get("triton").available()[0] else "chunked"
    result = {
        "benchmark": "gpu",
        "date": datetime.now(timezone.utc).date().isoformat(),
        "environment": environment(torch.get_num_threads()),
        "ceilings": ceilings(device),
    }
    with use_backend(scan_with):
        result["scans"] = scan_rows(args, device, result["ceilings"], late)
    result["models"] = model_rows(args, device, late)
    print(json.dumps(result["ceilings"]))
    print(summary(result))
    if not args.dry_run:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(result, indent=1) + "\n")
        print(f"written: {args.out}")
    return int(any(not r["check"]["ok"] for r in result["scans"] if "check" in r))


if __name__ == "__main__":
    sys.exit(main())
