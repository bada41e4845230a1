# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""The machine code of every Triton kernel for an H100, made without a GPU: registers, spills, shared memory, shuffles.

Each kernel is compiled as calls of the model's blocks compile it: tokens with channels last, 16 states, two directions,
in bfloat16 and in float32. Triton compiles, and the ptxas that comes with it counts.

Usage:
    python benchmarks/gpu_compile.py                                   # all, to benchmarks/results/gpu_compile.json
    python benchmarks/gpu_compile.py scan_local conv_silu_slope        # these, to see them
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from datetime import datetime, timezone
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.environment import environment  # noqa: E402
from benchmarks.rendering import source, table  # noqa: E402
from benchmarks.result import RESULTS, save  # noqa: E402
from ultralytics.nn.Addmodules.selective_scan.backends.gpu import block as block_settings  # noqa: E402
from ultralytics.nn.Addmodules.selective_scan.backends.gpu import launch  # noqa: E402
from ultralytics.nn.Addmodules.selective_scan.backends.gpu import scan as scan_settings  # noqa: E402

__all__ = ("BLOCK_KERNELS", "HOPPER", "KERNELS", "MI300", "Case", "compiled", "resources")

COMMAND = "python benchmarks/gpu_compile.py"
HOPPER, MI300 = ("cuda", 90, 32), ("hip", "gfx942", 64)
DTYPES = {"bfloat16": "*bf16", "float32": "*fp32"}
TOKENS = {
    *("u", "v", "delta", "B", "C", "low", "proj", "z", "dout", "out", "du", "ddelta", "dz"),
    *("x", "y", "ys", "dv", "dx", "dy"),
}
WIDE = {
    *("A", "D", "bias", "states", "enter", "scratch", "packed", "ends", "sums", "dA", "dB", "dC", "dD", "dbias"),
    *("parts", "part_dB", "part_dC"),
}


class Case(NamedTuple):
    """A kernel as some call compiles it.

    Args:
        kernel (str): Its name.
        constants (dict): Its constants; the others are those of the model's blocks. `absent` names tensors that a call
            leaves out.
        warps (int): Warps of a program.
    """

    kernel: str
    constants: dict
    warps: int = 1

    @property
    def label(self) -> str:
        """Return what a table calls it."""
        c, words = self.constants, [self.kernel]
        words += ["adjoint"] * bool(c.get("ADJOINT"))
        words += [f"rank {c['RANK']}"] if "RANK" in c else []
        words += ["undivided"] * ("enter" in c.get("absent", ()))
        return ", ".join(words)


def scans(rank: int) -> list[Case]:
    """Return the kernels of a scan whose delta is in memory (0), or formed inside from so many numbers a token."""
    ahead = back = scan_settings.FORWARD_ROWS
    if rank:
        ahead, back = scan_settings.LOW_RANK_ROWS, scan_settings.LOW_RANK_ADJOINT_ROWS
    inside = {"RANK": rank} if rank else {}
    return [
        Case("pack_weights", {"TOKENS": 64, **inside}, 4),
        Case("scan_local", {"ROWS": ahead, "ADJOINT": False, **inside}),
        Case("scan_local", {"ROWS": back, "ADJOINT": True, **inside}),
        Case("scan_forward", {"ROWS": ahead, "KEEP": True, **inside}),
        Case("scan_backward", {"ROWS": scan_settings.BACKWARD_ROWS, **inside}),
    ]


KERNELS = [
    *scans(0),
    Case("scan_forward", {"ROWS": scan_settings.FORWARD_ROWS, "KEEP": True, "absent": ("z", "enter")}),
    Case("scan_carry", {"ROWS": scan_settings.CARRY_ROWS, "ADJOINT": False}),
    *(case for rank in (2, 4, 8, 16) for case in scans(rank)),
    Case("add_parts", {"ROWS": scan_settings.PART_ROWS}),
    Case("add_weights", {"TOKENS": 64}, 4),
]
BLOCK_KERNELS = {  # and what may be absent
    "conv_silu": ("w", "bias"),
    "conv_silu_slope": ("w", "bias", "parts"),
    "conv_input": ("w",),
    "merge_gate": ("y", "z"),
    "gate_slope": ("out",),
}


def compiled(case: Case, target: tuple, folder: Path, dtype: str = "bfloat16"):
    """Compile a kernel for a target that need not be there, as a call with channel-last tokens would.

    Args:
        case (Case): The kernel.
        target (tuple): Backend, architecture and lanes of a warp.
        folder (Path): Where Triton keeps what it compiles.
        dtype (str): Of the tokens.

    Returns:
        (CompiledKernel): What Triton compiled; `asm` holds its code, `metadata` its shared memory.
    """
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    from ultralytics.nn.Addmodules.selective_scan.backends.gpu import block_kernels, kernels

    kernel, constants = case.kernel, dict(case.constants)
    absent = constants.pop("absent", ("z", "dz"))
    of_block = hasattr(block_kernels, kernel)
    function = getattr(block_kernels if of_block else kernels, kernel)
    tokens, wide = TOKENS, WIDE
    if of_block:
        tokens, wide = tokens | {"w", "bias"}, wide - {"bias"}
        sizes = {"TOKENS": block_settings.BLOCK_TOKENS, "STEPS": block_settings.SLOPE_STEPS}
        constants = {"TAPS": 4, **sizes, "BLOCK_D": block_settings.BLOCK_CHANNELS, **constants}
    else:
        constants = {"N": 16, "BLOCK_N": 16, "BLOCK_D": scan_settings.BLOCK_D, "RANK": 0, "TILE": 64, **constants}
        constants |= {"BLOCK_R": max(4, constants["RANK"]) if constants["RANK"] else 0, "SOFTPLUS": True}
        row = 2 * constants["BLOCK_N"] + constants["BLOCK_R"]
        sectors = launch.power_of_two(-(-constants.get("ROWS", 1) * row // 8))
        constants = {"SECTORS": sectors, **constants}
        absent = (*absent, "delta") if constants["RANK"] else (*absent, "low", "proj")
    apart = {"proj"} if of_block else {"proj", "bias"}  # whose channels no call promises to be neighbours
    constants |= dict.fromkeys(absent) | {f"{x}_d": 1 for x in tokens - apart}
    signature, values, hints = {}, {}, {}
    for i, name in enumerate(p.name for p in function.params):
        if name in constants:
            signature[name], values[(i,)] = "constexpr", constants[name]
        else:
            signature[name] = DTYPES[dtype] if name in tokens else "*fp32" if name in wide else "i32"
            specialised = bool(of_block and re.search("_[bklj]$", name))
            specialised |= name == "channels" and (of_block or kernel == "scan_backward")
            if name in tokens | wide or specialised:
                hints[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(function, signature, constexprs=values, attrs=hints)
    before = os.environ.get("TRITON_CACHE_DIR")
    os.environ["TRITON_CACHE_DIR"] = str(folder)
    try:
        return compile(source, target=GPUTarget(*target), options={"num_warps": case.warps, **launch.OPTIONS})
    finally:
        os.environ.pop("TRITON_CACHE_DIR")
        if before is not None:
            os.environ["TRITON_CACHE_DIR"] = before


def resources(kernel, folder: Path) -> dict[str, int] | None:
    """Return registers a thread, bytes spilled and of shared memory, and shuffles of a kernel for NVIDIA.

    None where triton comes without ptxas. It may come with two, `ptxas` and a newer `ptxas-blackwell`; the first that
    knows the version of the code counts.
    """
    import triton

    assemblers, ptx = (Path(triton.__file__).parent / "backends/nvidia/bin").glob("ptxas*"), kernel.asm["ptx"]
    (folder / "kernel.ptx").write_text(ptx, encoding="utf-8")
    target = re.search(r"\.target (\w+)", ptx)[1]
    options = ["-v", f"--gpu-name={target}", "-o", str(folder / "kernel.cubin")]
    done = None
    for ptxas in sorted(assemblers):
        done = subprocess.run([ptxas, *options, folder / "kernel.ptx"], capture_output=True, text=True, check=False)
        if not done.returncode:
            break
    if done is None:
        return None
    done.check_returncode()
    said = done.stderr
    return {
        "registers": int(re.search(r"Used (\d+) registers", said)[1]),
        "spilled": int(re.search(r"(\d+) bytes spill stores", said)[1]),
        "shared": int(kernel.metadata.shared),
        "shuffles": ptx.count("shfl.sync"),
    }


def cases() -> list[Case]:
    """Return every kernel in every form that the model's blocks call."""
    of_block = [Case(name, {"absent": ()}, block_settings.warps(name)) for name in BLOCK_KERNELS]
    return [*KERNELS, *of_block]


def render(r: dict) -> dict[str, str]:
    """Return the table of a result."""
    rows: dict[str, list] = {}
    for x in r["rows"]:
        row = rows.setdefault(x["kernel"], [x["kernel"], x["warps"]])
        row += [x[k] for k in ("registers", "spilled", "shared", "shuffles")]
    head = ["kernel", "warps"]
    for dtype in DTYPES:
        head += [f"{dtype}: registers", "spilled, bytes", "shared, bytes", "shuffles"]
    body = table(head, list(rows.values()))
    return {"gpu_compile": f"{body}\n\nTriton {r['triton']}, ptxas for {r['target']}; {source(r, COMMAND)}"}


def main() -> int:
    """Compile what the command line asks for and print the table; 1 if a kernel spills more than 16 bytes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kernels", nargs="*", help="names of kernels; all by default")
    parser.add_argument("--out", type=Path, help="where the figures go; with all kernels benchmarks/results")
    args = parser.parse_args()
    try:
        import triton
    except ImportError:
        parser.error("the package triton is not installed: pip install triton (no GPU is needed to compile)")
    known = {c.kernel for c in cases()}
    if unknown := [name for name in args.kernels if name not in known]:
        parser.error(f"no kernel is called {unknown[0]!r}; there are {', '.join(sorted(known))}")
    rows = []
    result = {
        "benchmark": "gpu_compile",
        "date": datetime.now(timezone.utc).date().isoformat(),
        "environment": environment(1),
        "triton": triton.__version__,
        "target": f"sm_{HOPPER[1]}",
        "rows": rows,
    }
    with tempfile.TemporaryDirectory() as folder:
        for case in cases():
            if args.kernels and case.kernel not in args.kernels:
                continue
            for dtype in DTYPES:
                found = resources(compiled(case, HOPPER, Path(folder), dtype), Path(folder))
                if found is None:
                    parser.error("no ptxas beside triton: this build of it cannot count registers")
                rows.append({"kernel": case.label, "warps": case.warps, "dtype": dtype, **found})
                print(case.label, dtype, found, flush=True)
    out = args.out or (None if args.kernels else RESULTS / "gpu_compile.json")
    if out is not None:
        save(result, out)
    print(render(result)["gpu_compile"])
    return int(any(x["spilled"] > 16 for x in rows))


if __name__ == "__main__":
    sys.exit(main())
