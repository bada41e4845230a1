# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Time the linear layers of a Mamba block on a CPU: this library's product, PyTorch's, and a pointwise convolution.

PyTorch's product is MKL's, and its convolution oneDNN's. MKL takes other kernels on Intel's processors than on others.
It asks one function of its own which it is on, so on x86-64 a second process, which answers for Intel, measures both
again: MKL's best kernels beside ours, on the processor at hand.

Usage:
    python benchmarks/linear_cpu.py
    python benchmarks/linear_cpu.py --quick    # small products, to see that it works; prints, writes nothing
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.rendering import source, table, times  # noqa: E402
from benchmarks.timing import LIMIT, Timed, distance, heading, in_process, interleave, parse, write  # noqa: E402
from ultralytics.nn.Addmodules.selective_scan import registry  # noqa: E402
from ultralytics.nn.Addmodules.selective_scan.contract import Linear  # noqa: E402

# Tokens and channels of VMamba-yolov8n's stages at 640 pixels: in_proj gives four times the channels, out_proj halves
STAGES = ((25600, 64), (6400, 128), (1600, 256), (400, 512))
QUICK_STAGES = ((40, 16),)
SUBJECTS = ("library", "mkl", "onednn")
OTHERS, INTEL = "other processors", "Intel's"  # MKL's kernels for
ANSWER = "int mkl_serv_intel_cpu_true(void) { return 1; }\n"


def measure(m: int, k: int, n: int, kernels: str, threads: int, seconds: float) -> dict:
    """Return the row of a product (M, K) times (K, N)."""
    cpu, g = registry.get("cpu"), torch.Generator().manual_seed(0)
    a, weight = torch.randn(m, k, generator=g), torch.randn(n, k, generator=g)
    tokens, pointwise = a.view(1, m, 1, k).permute(0, 3, 1, 2), weight[:, :, None, None]
    row = {"shape": [m, k, n], "threads": threads, "kernels": kernels, "absent": None, "error": None}
    if not cpu.works or not cpu.columns:
        return row | {"absent": cpu.about}
    calls = {
        "library": lambda: cpu.linear(Linear(a, weight.t())),
        "mkl": lambda: a @ weight.t(),
        "onednn": lambda: F.conv2d(tokens, pointwise),
    }
    with torch.inference_mode():
        row["error"] = distance([calls["library"]()], [calls["mkl"]()])
        calls["onednn"]()
        return row | interleave({name: Timed(call) for name, call in calls.items()}, seconds)


def answers_for_intel(folder: Path) -> str | None:
    """Compile what tells MKL that it is on a processor of Intel; None where it cannot be, or would change nothing."""
    compiler = shutil.which("cc")
    if platform.machine() not in ("x86_64", "AMD64") or sys.platform != "linux" or not compiler:
        return None
    code, library = folder / "intel.c", folder / "intel.so"
    code.write_text(ANSWER, encoding="utf-8")
    done = subprocess.run([compiler, "-shared", "-fPIC", "-o", library, code], capture_output=True)
    return None if done.returncode else str(library)


def render(r: dict) -> dict[str, str]:
    """Return the table of a result. On a processor of Intel, MKL takes its kernels for Intel's whatever it is told."""
    rows, intel = [], "Intel" in r["environment"]["cpu"]
    for row in r["rows"]:
        if intel and row["kernels"] == INTEL:
            continue
        m, k, n = row["shape"]
        head = [f"{m} x {k} x {n}", row["threads"], INTEL if intel else row["kernels"]]
        if row["absent"] or row["error"] > r["settings"]["limit"]:
            rows.append([*head, row["absent"] or "red", *[""] * 4])
            continue
        speed = [f"{2e-6 * m * k * n / row[name]['median_ms']:.0f}" for name in SUBJECTS]
        ratios = [times(row["library"]["median_ms"] / row[name]["median_ms"]) for name in SUBJECTS[1:]]
        rows.append([*head, *speed, *ratios])
    head = ["product, M x K x N", "threads", "MKL's kernels for", "ours, GFLOP/s", "MKL", "oneDNN"]
    body = table([*head, "our time / MKL's", "our time / oneDNN's"], rows)
    return {"linear_cpu": f"{body}\n\n{source(r, 'python benchmarks/linear_cpu.py')}"}


def main() -> None:
    """Measure, each thread count and each answer to MKL's question in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args = parse(parser, seconds=1.0)
    if args.job:
        job = json.loads(args.job)
        torch.set_num_threads(job["threads"])
        rows = [measure(*product, job["kernels"], job["threads"], job["seconds"]) for product in job["products"]]
        print(json.dumps({"rows": rows}))
        return
    if args.base:
        raise SystemExit("linear_cpu.py compares products with each other; for another commit use layer_cpu.py --base.")
    products = [p for m, c in (QUICK_STAGES if args.quick else STAGES) for p in ((m, c, 4 * c), (m, 2 * c, c))]
    result = heading("linear_cpu", args)
    result["settings"]["limit"], result["rows"] = LIMIT, []
    with tempfile.TemporaryDirectory() as folder:
        preloads = {OTHERS: None, INTEL: answers_for_intel(Path(folder))}
        for threads in args.threads:
            for kernels, library in preloads.items():
                if kernels == INTEL and library is None:
                    continue
                job = {"products": products, "kernels": kernels, "threads": threads, "seconds": args.seconds}
                before = os.environ.get("LD_PRELOAD", "")
                os.environ["LD_PRELOAD"] = f"{library}:{before}" if library else before
                result["rows"] += in_process(__file__, job)["rows"]
                os.environ["LD_PRELOAD"] = before
    for row in result["rows"]:
        took = row["absent"] or "  ".join(f"{name} {row[name]['median_ms']:.3f} ms" for name in SUBJECTS)
        print(f"{row['shape']} {row['threads']} threads, MKL's kernels for {row['kernels']}  {took}")
    write(result, args.out)


if __name__ == "__main__":
    main()
