# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Timing of several subjects side by side, so that whatever disturbs the machine disturbs all of them alike."""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path

from benchmarks.environment import environment, refuse_stale_library
from benchmarks.result import RESULTS, save

__all__ = (
    "LIMIT",
    "Absent",
    "Timed",
    "both_ways",
    "distance",
    "heading",
    "in_process",
    "interleave",
    "isolated",
    "parse",
    "summary",
    "take",
    "write",
)

ROUNDS, FEWEST = 6, 3
LIMIT = 1e-5  # largest difference from what is right, in units of the largest right value; above it no number


class Absent(Exception):
    """A subject that cannot run here; the message is the reason that the result records."""


@dataclass
class Timed:
    """A call to time.

    Args:
        run (Callable[[], object]): What is timed.
        around (Callable[[], AbstractContextManager]): Entered before the clock starts: settings of the subject.
    """

    run: Callable[[], object]
    around: Callable[[], AbstractContextManager] = field(default=nullcontext)


def take(call: Timed, seconds: float) -> list[float]:
    """Run a call for some time, at least once, and return the seconds of each run.

    Where there are many runs the first is not counted: caches and allocator are as another subject left them.
    """
    taken: list[float] = []
    with call.around():
        gc.collect()
        gc.disable()
        try:
            while not taken or sum(taken) < seconds:
                begin = time.perf_counter()
                call.run()
                taken.append(time.perf_counter() - begin)
        finally:
            gc.enable()
    return taken[1:] if len(taken) > 3 else taken


def summary(taken: list[float]) -> dict:
    """Return median_ms, min_ms and runs of seconds that were taken."""
    return {
        "median_ms": round(statistics.median(taken) * 1e3, 4),
        "min_ms": round(min(taken) * 1e3, 4),
        "runs": len(taken),
    }


def interleave(calls: dict[str, Timed], seconds: float) -> dict[str, dict]:
    """Time calls round-robin.

    Each of the rounds gives every call a slice of its time, at least one run. A call that has used up its time runs in
    the first three rounds only.

    Args:
        calls (dict[str, Timed]): Calls by name, each warmed up already.
        seconds (float): Time for each call.

    Returns:
        (dict[str, dict]): median_ms, min_ms and runs for each name.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    gc.collect()
    gc.freeze()  # what torch's import leaves need not be walked again before every slice
    for turn in range(ROUNDS):
        for name, call in calls.items():
            if turn < FEWEST or sum(times[name]) < seconds:
                times[name] += take(call, seconds / ROUNDS)
    gc.unfreeze()
    return {name: summary(taken) for name, taken in times.items()}


def both_ways(name: str, layer, x) -> dict[str, Timed]:
    """Return a layer's forward pass, and forward and backward, warmed up.

    Args:
        name (str): Of the layer, for the results.
        layer (nn.Module): The layer.
        x (Tensor): Its input.
    """
    import torch  # not at the top: the process is prepared for it first

    leaves = [x.clone().requires_grad_(), *layer.parameters()]

    def forward() -> None:
        with torch.no_grad():
            layer(x)

    def both() -> None:
        torch.autograd.grad(layer(leaves[0]).sum(), leaves)

    forward(), both()
    return {f"{name}, forward": Timed(forward), f"{name}, forward + backward": Timed(both)}


def distance(got: list, want: list) -> float:
    """Return the largest of the `max_error` of several tensors; infinity if one has another shape or a NaN."""
    from benchmarks.proofs import max_error  # imports torch and ultralytics, for which the process is prepared first

    return max(max_error(g, w) for g, w in zip(got, want, strict=True))


def isolated(threads: int) -> dict[str, str]:
    """Return the environment of a timing process.

    A passive wait policy is left out: it makes torch's threads sleep between operators, which doubles the time of a
    model. So is a forced scan backend: a subject forces its own.
    """
    env = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "KMP_BLOCKTIME", "VMAMBA_BACKEND")}
    return {**env, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}


def in_process(script: str | Path, job: dict) -> dict:
    """Run a benchmark's job in a process of its own, whose thread count is fixed before torch starts.

    Args:
        script (str | Path): The benchmark, which takes `--job JSON` and prints its result as the last line.
        job (dict): The job; `threads` is one of its keys.

    Returns:
        (dict): What the process printed.
    """
    command = [sys.executable, str(script), "--job", json.dumps(job)]
    run = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=isolated(job["threads"]))
    if run.returncode:
        raise SystemExit(f"{Path(script).name}: a job failed with exit code {run.returncode}: {job}")
    return json.loads(run.stdout.splitlines()[-1])


def above_zero(kind: type) -> Callable[[str], float]:
    """Return what reads a number above zero from a command line."""

    def read(text: str) -> float:
        try:
            number = kind(text)
        except ValueError:
            number = 0
        if not number > 0:
            raise argparse.ArgumentTypeError(f"'{text}' is no {'whole ' * (kind is int)}number above 0")
        return number

    return read


def model_file(text: str) -> str:
    """Return a name of a model on a command line if there is a file of it; `graft:` may stand before it."""
    from ultralytics.nn.tasks import yaml_model_load

    try:
        yaml_model_load(text.removeprefix("graft:"))
    except (AssertionError, OSError, ValueError) as e:
        raise argparse.ArgumentTypeError(f"'{text}' is no model: {' '.join(str(e).split())}") from None
    return text


def parse(parser: argparse.ArgumentParser, seconds: float, threads: tuple[int, ...] = (1, 2)) -> argparse.Namespace:
    """Add the options of every timing benchmark and return the command line.

    Args:
        parser (argparse.ArgumentParser): The benchmark's own options.
        seconds (float): Time for each call by default.
        threads (tuple[int, ...]): Thread counts by default, one after the other.
    """
    parser.add_argument("--threads", type=above_zero(int), nargs="+", default=list(threads))
    parser.add_argument("--seconds", type=above_zero(float), default=seconds, help="time for each call that is timed")
    parser.add_argument("--quick", action="store_true", help="tiny sizes and times, to see that it works")
    parser.add_argument("--out", type=Path, help="result file; by default in benchmarks/results, none with --quick")
    parser.add_argument("--base", metavar="REF", help="time another commit beside this tree; prints, writes nothing")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.quick:
        args.seconds = 0.02
    return args


def heading(name: str, args: argparse.Namespace) -> dict:
    """Return what every result begins with; a full run needs a library that is of its sources."""
    if not args.quick:
        refuse_stale_library()
    return {
        "benchmark": name,
        "quick": args.quick,
        "date": datetime.now(timezone.utc).date().isoformat(),
        "environment": environment(max(args.threads)),
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "settings": {"threads": args.threads, "seconds": args.seconds, "dtype": "float32", "limit": LIMIT},
    }


def write(result: dict, out: Path | None) -> None:
    """Write a result; one of a quick run only where it was told to, since its figures mean nothing."""
    if out is None and not result["quick"]:
        out = RESULTS / f"{result['benchmark']}.json"
    if out is not None:
        save(result, out)
        print(f"written: {out.name}")
