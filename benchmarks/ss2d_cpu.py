# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Time the VSS block on a CPU: ours, the same with four copies of the map around our scan, and the VMamba repository's.

The peer is its folder `classification/models`, given with --peer. It has no CPU path of its own: it enters a CUDA
context on any tensor, which is taken out here, and its scan is then its own loop over tokens. All three have the same
weights, through the peer's own state dict, and a subject that differs from ours gets no number.

Usage:
    python benchmarks/ss2d_cpu.py --peer path/to/VMamba/classification/models
    python benchmarks/ss2d_cpu.py --base main    # the block of another commit beside this tree's
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.base import compare  # noqa: E402
from benchmarks.rendering import ms, source, table, times  # noqa: E402
from benchmarks.timing import Absent, Timed, both_ways, distance, heading, in_process, interleave, parse, write  # noqa: E402
from ultralytics.nn.Addmodules.VMamba import VSSBlock, selective_scan_fn  # noqa: E402

QUICK_SHAPES = ((1, 8, 6, 5),)
SHAPES = ((1, 64, 80, 80), (1, 128, 40, 40), (1, 256, 20, 20))  # n's C2f inputs at P3, P4, P5 of a 640 px image
# VMamba's two released forms: by our arguments and by the peer's.
FORMS = {
    "first release, 16 states": (
        {"d_state": 16, "expand": 2},
        {"ssm_d_state": 16, "ssm_ratio": 2.0, "mlp_ratio": 0.0, "forward_type": "v01"},
    ),
    "later release, 1 state": (
        {"d_state": 1, "expand": 1, "gate": False, "mlp_ratio": 4, "conv_bias": False},
        {"ssm_d_state": 1, "ssm_ratio": 1.0, "ssm_conv_bias": False, "mlp_ratio": 4.0, "forward_type": "v01_noz"},
    ),
}
PEER_TOKENS = 300  # beyond it the peer's loop is not differentiated: each step's index makes backward quadratic in L
LIMIT = 1e-4  # largest difference from ours, in units of the largest value: float32 in another order of additions


def inner() -> tuple[ModuleType, Callable]:
    """Return the module that calls `cross_scan`, and `token_order`; here alone, because --base runs on older trees."""
    from ultralytics.nn.Addmodules.layers import ss2d
    from ultralytics.nn.Addmodules.layers.cross_scan import token_order

    return ss2d, token_order


def four_copies(x: Tensor, height: int, width: int, x_proj, dt_proj, A, D, dt_bias) -> Tensor:
    """Do what `cross_scan` does as peers do: four gathered copies, one scan over them, four scattered outputs added."""
    _, token_order = inner()
    u, rank, state = F.silu(x), dt_proj.shape[2], A.shape[2]
    orders = torch.stack([token_order(k, height, width) for k in range(4)])
    back = orders.argsort(1)
    xs = u[:, orders].transpose(2, 3)  # (B, 4, D, L)
    dts, B, C = torch.einsum("bkdl,kcd->bkcl", xs, x_proj).split([rank, state, state], 2)
    dts = torch.einsum("bkrl,kdr->bkdl", dts, dt_proj)
    y = selective_scan_fn(
        xs.flatten(1, 2), dts.flatten(1, 2), A.flatten(0, 1), B, C, D.flatten(), None, dt_bias.flatten(), True
    ).unflatten(1, (4, -1))
    return sum(y[:, k][..., back[k]] for k in range(4)).transpose(1, 2)


def peer_block(folder: str | None, dim: int, arguments: dict) -> nn.Module:
    """Return the peer's block."""
    if folder is None:
        raise Absent("no --peer given")
    if not (Path(folder) / "vmamba.py").is_file():
        raise Absent(f"no vmamba.py in {Path(folder).name}")
    sys.path.insert(0, folder)
    torch.cuda.device = lambda device: nullcontext()  # entered on any tensor; a CPU has none
    try:
        import vmamba
    except ImportError as e:
        raise Absent(f"its imports fail: {e}") from e
    return vmamba.VSSBlock(hidden_dim=dim, **arguments)


def measure(shape: list[int], form: str, threads: int, seconds: float, peer: str | None) -> list[dict]:
    """Return a row for each subject, forward and forward + backward."""
    torch.manual_seed(0)
    own, theirs = FORMS[form]
    dim, ours = shape[1], VSSBlock(shape[1], **own)
    x = torch.randn(shape).contiguous(memory_format=torch.channels_last)
    owner, _ = inner()
    fused, weight = owner.cross_scan, torch.randn(shape)

    @contextmanager
    def swapped() -> Iterator[None]:
        """Give ours another core while it is entered."""
        owner.cross_scan = four_copies
        try:
            yield
        finally:
            owner.cross_scan = fused

    subjects = {"ours": (ours, nullcontext, lambda t: t), "four copies": (ours, swapped, lambda t: t)}
    absent = {}
    try:
        block = peer_block(peer, dim, theirs)
        ours.load_state_dict(block.state_dict())
        subjects["VMamba repository"] = (block, nullcontext, lambda t: t.permute(0, 2, 3, 1))
    except Absent as e:
        absent["VMamba repository"] = str(e)

    rows, want = [], None
    for kind in ("forward", "forward_backward"):
        calls, checks = {}, {}
        for name, (module, around, layout) in subjects.items():
            if module is not ours and kind == "forward_backward" and shape[2] * shape[3] > PEER_TOKENS:
                absent[name] = f"backward of its loop takes minutes beyond {PEER_TOKENS} tokens"
                continue

            def run(module=module, layout=layout, kind=kind) -> list[Tensor]:
                if kind == "forward":
                    with torch.no_grad():
                        return [module(layout(x))]
                inputs = [layout(x).detach().requires_grad_(), *module.parameters()]
                return list(torch.autograd.grad((module(inputs[0]) * layout(weight)).sum(), inputs))

            with around():
                got = run()[0]
            got = got if module is ours else got.permute(0, 3, 1, 2)
            want = got if name == "ours" else want
            checks[name] = distance([got.detach()], [want.detach()])
            if checks[name] < LIMIT:
                calls[name] = Timed(run, around)
        timed = interleave(calls, seconds)
        for name in dict.fromkeys((*subjects, *absent)):
            row = {"subject": name, "kind": kind, "form": form, "shape": shape, "threads": threads}
            row |= {"error": checks.get(name), "time": timed.get(name), "absent": absent.get(name)}
            rows.append(row)
    return rows


def render(r: dict) -> dict[str, str]:
    """Return the table of a result."""
    rows: dict[tuple, dict] = {}
    for row in r["rows"]:
        key = row["form"], " x ".join(map(str, row["shape"])), row["kind"].replace("_", " + "), row["threads"]
        rows.setdefault(key, {})[row["subject"]] = row
    subjects = ["ours", "four copies", "VMamba repository"]

    def cell(row: dict) -> str:
        if row["time"] is None:
            return "not run" if row["absent"] else "red"
        return ms(row["time"])

    def ratio(of: dict) -> str:
        return times(of["four copies"]["time"]["median_ms"] / of["ours"]["time"]["median_ms"])

    body = [[*key, *(cell(of[name]) for name in subjects), ratio(of)] for key, of in rows.items()]
    head = ["VSS block", "map (B, C, H, W)", "", "threads", "ours, ms", "four copies, ms", "VMamba repository, ms"]
    why = "; ".join(sorted({row["absent"] for row in r["rows"] if row["absent"]}))
    note = (
        "Four copies: our scan in the form that peers use. VMamba repository: its own module with our weights; it has "
        f"no CPU path, so its scan is a loop over tokens.{f' Not run: {why}.' if why else ''}"
    )
    command = "python benchmarks/ss2d_cpu.py --peer <VMamba>/classification/models"
    return {"ss2d_cpu": f"{note}\n\n{table([*head, 'four copies / ours'], body)}\n\n{source(r, command)}"}


def jobs(args: argparse.Namespace) -> list[dict]:
    """Return what --base compares: both forms at every size."""
    shapes = QUICK_SHAPES if args.quick else SHAPES
    return [{"form": f, "shape": shape, "threads": t} for f in FORMS for shape in shapes for t in args.threads]


def public(job: dict) -> dict[str, Timed]:
    """Return the block, forward and both ways, warmed up."""
    torch.manual_seed(0)
    block = VSSBlock(job["shape"][1], **FORMS[job["form"]][0])
    x = torch.randn(job["shape"]).contiguous(memory_format=torch.channels_last)
    return both_ways(f"{job['form']}, {tuple(job['shape'])}", block, x)


def main() -> None:
    """Measure, each thread count in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", help="folder classification/models of the VMamba repository")
    args = parse(parser, seconds=2.0)
    if args.job:
        job = json.loads(args.job)
        torch.set_num_threads(job["threads"])
        rows = [
            row
            for form in FORMS
            for shape in job["shapes"]
            for row in measure(shape, form, job["threads"], job["seconds"], job["peer"])
        ]
        print(json.dumps({"rows": rows}))
        return
    if args.base:
        compare(__file__, jobs(args), args.base, args.seconds)
        return
    result = heading("ss2d_cpu", args)
    result["settings"]["limit"], result["rows"] = LIMIT, []
    shapes = QUICK_SHAPES if args.quick else SHAPES
    for threads in args.threads:
        job = {"shapes": shapes, "threads": threads, "seconds": args.seconds, "peer": args.peer}
        for row in in_process(__file__, job)["rows"]:
            result["rows"].append(row)
            took = row["absent"] or (f"{row['time']['median_ms']:.2f} ms" if row["time"] else f"red: {row['error']}")
            print(f"{row['subject']:18} {row['form']:26} {row['shape']} {row['kind']:17} {threads} threads  {took}")
    write(result, args.out)


if __name__ == "__main__":
    main()
