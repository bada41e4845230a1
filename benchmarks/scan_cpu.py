# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""One selective scan on a CPU: the C++ kernel beside plain PyTorch, mambapy, a loop and what the arithmetic allows.

Every subject gets the same tensors. It is compared with the float64 definition on a small case, and on the case itself,
where that would take too long, with our plain PyTorch backend: output and all gradients. A subject whose check is red
gets no number. What is absent here (a compiler, mambapy, an instruction set) is recorded with its reason.

Usage:
    pip install -e ".[bench]"
    python benchmarks/scan_cpu.py                        # all cases, 1 and 2 threads
    python benchmarks/scan_cpu.py --quick                # tiny shapes, to see that it works; prints, writes nothing
    python benchmarks/scan_cpu.py --base main            # the scan of another commit beside this tree's
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch import Tensor  # noqa: E402

from benchmarks.base import compare  # noqa: E402
from benchmarks.proofs import RESULTS, oracle, run_with_gradients, scan_inputs  # noqa: E402
from benchmarks.rendering import Goal, median_of, ms, quotient, source, table, times  # noqa: E402
from benchmarks.timing import LIMIT, Absent, Timed, distance, heading, in_process, interleave, parse, write  # noqa: E402
from ultralytics.nn.Addmodules.selective_scan import selective_scan_fn, use_backend  # noqa: E402


@dataclass(frozen=True)
class Case:
    """One scan: softplus, skip, gate and bias, float32.

    Args:
        batch (int): Batch size.
        channels (int): Channels.
        length (int): Tokens.
        layout (str): "channel-last", (B, L, D) in memory as the block has it, or "tokens-last", (B, D, L).
        peers (bool): Also time the subjects that take seconds.
        states (int): States a channel.
    """

    batch: int
    channels: int
    length: int
    layout: str = "channel-last"
    peers: bool = True
    states: int = 16

    @property
    def elements(self) -> int:
        """Return how many (token, channel, state) there are."""
        return self.batch * self.channels * self.length * self.states


# The scans of VMamba-yolov8n at 640 px, from P2 to P5, and one batch
CASES = [
    Case(1, 64, 25600),
    Case(1, 128, 6400),
    Case(1, 256, 1600),
    Case(1, 512, 400),
    Case(8, 256, 1600),
    Case(1, 64, 25600, "tokens-last", peers=False),
    Case(1, 128, 6400, "tokens-last", peers=False),
]
QUICK_CASES = [Case(1, 32, 100)]
SMALL = Case(2, 24, 37)  # checked against float64: batch, channel tail and length not divisible by a tile


def tensors(case: Case, dtype: torch.dtype = torch.float32, grad: bool = False, seed: int = 0) -> list[Tensor]:
    """Return u, delta, A, B, C, D, z and delta_bias as `selective_scan_fn` takes them, with values as in a model."""
    sizes = case.batch, 1, case.channels, case.length, case.states
    x = scan_inputs(*sizes, values="model", dtype=dtype, layout=case.layout, seed=seed)
    return [t.requires_grad_(grad) for t in x.recipe()]


# Subjects


@dataclass
class Subject:
    """Something that computes a selective scan.

    Args:
        run (Callable[..., Tensor]): Takes the eight tensors.
        about (str): What it is, for the result.
        around (Callable[[], AbstractContextManager]): Settings it runs under.
        slow (bool): It takes seconds: left out where a case says so.
        level (str): The instruction set whose bound it is held against.
    """

    run: Callable[..., Tensor]
    about: str
    around: Callable[[], AbstractContextManager] = field(default=nullcontext)
    slow: bool = False
    level: str = "native"


def ours(*x: Tensor) -> Tensor:
    """Run the public call."""
    return selective_scan_fn(*x, delta_softplus=True)


def loop(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, delta_bias: Tensor) -> Tensor:
    """Run algorithm 2 of the Mamba paper as it is mostly written: decays and inputs at once, then token by token.

    Tokens are unbound, not indexed, because the backward of L indexings is quadratic in L: the loop at its best.
    """
    dt = F.softplus(delta + delta_bias[:, None])
    decays = torch.exp(torch.einsum("bdl,dn->bdln", dt, A)).unbind(2)
    inputs = torch.einsum("bdl,bnl,bdl->bdln", dt, B, u).unbind(2)
    h, ys = u.new_zeros(u.shape[0], u.shape[1], A.shape[1]), []  # (B, D, N)
    for decay, x, c in zip(decays, inputs, C.unbind(2)):
        h = decay * h + x
        ys.append(torch.einsum("bdn,bn->bd", h, c))
    return (torch.stack(ys, 2) + D[:, None] * u) * F.silu(z)


def library() -> tuple:
    """Return the C++ backend and its name; imported here alone, because --base runs this file on older trees.

    Raises:
        Absent: If it cannot run here.
    """
    from ultralytics.nn.Addmodules.selective_scan import registry

    try:
        cpu = registry.get("cpu")
        ok, reason = cpu.works, cpu.about
    except ValueError:  # until November 2026 backends were modules, and this one was called cpp
        cpu = registry.get("cpp")
        ok, reason = cpu.available()
    if not ok:
        raise Absent(reason)
    return cpu, reason


def cpp_subject() -> Subject:
    """Return the C++ backend as it runs by default."""
    cpu, reason = library()
    return Subject(ours, reason, lambda: use_backend(cpu.name))


def held_to(level: str) -> Callable[[], Subject]:
    """Return a maker of the C++ backend held to an instruction set below this CPU's best."""

    def make() -> Subject:
        cpu, _ = library()

        @contextmanager
        def around():
            with use_backend(cpu.name):
                cpu.set_isa(level)
                try:
                    yield
                finally:
                    cpu.set_isa("auto")

        usual = cpu.set_isa("auto")
        try:
            forced = cpu.set_isa(level)
        except ValueError as e:
            raise Absent(str(e)) from None
        finally:
            cpu.set_isa("auto")
        if forced == usual:
            raise Absent(f"{usual} is what this CPU runs by default")
        return Subject(ours, f"the C++ kernel held to {forced}", around, level=level)

    return make


def chunked_subject() -> Subject:
    """Return the plain PyTorch backend."""
    return Subject(ours, "plain PyTorch, chunks of tokens", lambda: use_backend("chunked"))


def mambapy_subject() -> Subject:
    """Return mambapy's parallel scan, called with the steps that its Mamba block makes, plus the gate."""
    try:
        from importlib.metadata import version

        from mambapy.pscan import pscan
    except ImportError as e:
        raise Absent(f'{e}; pip install -e ".[bench]" brings it') from None

    def run(
        u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, delta_bias: Tensor
    ) -> Tensor:
        u, delta, B, C, z = (x.transpose(1, 2) for x in (u, delta, B, C, z))  # tokens before channels
        delta = F.softplus(delta + delta_bias)
        decays = torch.exp(delta.unsqueeze(-1) * A)  # (B, L, D, N)
        inputs = delta.unsqueeze(-1) * B.unsqueeze(2) * u.unsqueeze(-1)
        y = (pscan(decays, inputs) @ C.unsqueeze(-1)).squeeze(3)
        return ((y + D * u) * F.silu(z)).transpose(1, 2)

    return Subject(run, f"mambapy {version('mambapy')}, pscan", slow=True)


def loop_subject() -> Subject:
    """Return the naive loop."""
    return Subject(loop, "plain PyTorch, token by token, tokens unbound", slow=True)


JUDGE = "chunked"  # plain PyTorch that shares nothing with the kernel
SUBJECTS: dict[str, Callable[[], Subject]] = {
    "cpp": cpp_subject,
    "cpp avx2": held_to("avx2"),
    "cpp plain": held_to("plain"),
    "chunked": chunked_subject,
    "mambapy": mambapy_subject,
    "loop": loop_subject,
}


def evaluate(subject: Subject, x: list[Tensor], dout: Tensor) -> list[Tensor]:
    """Return output and gradients."""
    with subject.around():
        return list(run_with_gradients(subject.run, x, dout).values())


# The bound


class Bound:
    """The compiled loop of bound.cpp."""

    TOKENS, STATES, PASSES = 64, 16, 2000

    def __init__(self, library: str, threads: int):
        """Load the library, check what it computes and choose the fastest unrolling."""
        self.library, self.pool = ctypes.CDLL(library), ThreadPoolExecutor(threads)
        self.threads, self.lanes = threads, self.library.bound_lanes()
        make = torch.Generator().manual_seed(0)
        dt = torch.empty(self.TOKENS, self.lanes).uniform_(0.001, 0.5, generator=make)
        A = -torch.arange(1.0, self.STATES + 1)[:, None].expand(-1, self.lanes) * 1.4426950408889634
        u = torch.randn(dt.shape, generator=make)
        B, C = (torch.randn(self.TOKENS, self.STATES, generator=make) for _ in range(2))
        self.data = [[self.aligned(t) for t in (A, dt, dt * u, B, C, torch.zeros_like(dt))] for _ in range(threads)]
        self.check(*(t.double() for t in self.data[0][:5]))
        self.group = min((4, 8, 16), key=self.trial)

    @staticmethod
    def aligned(t: Tensor) -> Tensor:
        """Copy to an address that a vector can be loaded from."""
        raw = torch.zeros(t.numel() + 16)
        skip = (-raw.data_ptr() // 4) % 16
        return raw[skip : skip + t.numel()].view(t.shape).copy_(t)

    def call(self, group: int, worker: int, passes: int) -> None:
        """Run the loop in this thread."""
        addresses = (ctypes.c_void_p(t.data_ptr()) for t in self.data[worker])
        self.library.bound_run(group, *addresses, ctypes.c_int64(passes))

    def check(self, A: Tensor, dt: Tensor, dtu: Tensor, B: Tensor, C: Tensor) -> None:
        """Raise Absent unless the loop computes the recurrence."""
        h, want = torch.zeros_like(A), torch.zeros_like(dt)
        for t in range(self.TOKENS):
            h = torch.exp2(dt[t] * A) * h + dtu[t] * B[t][:, None]
            want[t] = (C[t][:, None] * h).sum(0)
        for group in (4, 8, 16):
            self.call(group, 0, 1)
            if not (error := distance([self.data[0][5]], [want])) <= LIMIT:
                raise Absent(f"its check is red: {error:.1e} from the recurrence")

    def trial(self, group: int) -> float:
        """Return the time of a short run."""
        timed = interleave({"bound": Timed(lambda: self.call(group, 0, 200))}, 0.2)
        return timed["bound"]["min_ms"]

    def run(self) -> None:
        """Run the loop in every thread at once."""
        list(self.pool.map(lambda w: self.call(self.group, w, self.PASSES), range(self.threads)))

    @property
    def elements(self) -> int:
        """Return the (token, channel, state) of one run."""
        return self.threads * self.PASSES * self.TOKENS * self.STATES * self.lanes


# Compilers' names for what the kernel calls native, AVX2 and plain; on other processors there is one level.
LEVELS = {"native": "-march=native", "avx2": "-march=x86-64-v3", "plain": "-march=x86-64"}
if platform.machine().lower() not in ("x86_64", "amd64"):
    LEVELS = {"native": "-march=native"}


def build_bounds(folder: Path) -> tuple[dict[str, str], str]:
    """Compile bound.cpp for every instruction set.

    Returns:
        libraries (dict[str, str]): Their paths, by level; none if there is no compiler that works.
        how (str): The compiler and its flags, or why there is no library.
    """
    names = [os.environ.get("CXX", ""), "g++", "c++", "clang++"]
    compiler = next((found for name in names if name and (found := shutil.which(name))), None)
    if compiler is None:
        return {}, "no C++ compiler found"
    libraries = {level: str(folder / f"bound_{level}.so") for level in LEVELS}
    for level, library in libraries.items():
        command = [
            compiler,
            "-O3",
            LEVELS[level],
            "-shared",
            "-fPIC",
            "-o",
            library,
            str(ROOT / "benchmarks/bound.cpp"),
        ]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError) as e:
            return {}, f"{Path(compiler).name} failed: {getattr(e, 'stderr', e)}".strip()[:300]
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True).stdout.splitlines()
    return libraries, f"{version[0] if version else Path(compiler).name}, -O3 and {', '.join(LEVELS.values())}"


def resolve(makers: dict[str, Callable[[], Subject]]) -> tuple[dict[str, Subject], dict[str, str]]:
    """Return the subjects that run here and the reasons of those that do not."""
    present, absent = {}, {}
    for name, make in makers.items():
        try:
            present[name] = make()
        except Absent as e:
            absent[name] = str(e)
    return present, absent


def checked(subjects: dict[str, Subject], case: Case, truth: list[Tensor] | None) -> dict[str, dict]:
    """Compare every subject with the truth, or with the judge among them where the truth would take too long.

    Args:
        subjects (dict[str, Subject]): Subjects by name.
        case (Case): The case.
        truth (list[Tensor], optional): Output and gradients of the definition in float64.

    Returns:
        (dict[str, dict]): ok, error, and what it was compared with, for each name.
    """
    x, dout = tensors(case, grad=True), tensors(case)[6].flip(1)
    result, against = {}, "float64 definition"
    for name in sorted(subjects, key=lambda name: name != JUDGE):  # the judge first
        got = evaluate(subjects[name], x, dout)
        if truth is None:
            truth, against = got, name
        error = distance(got, truth)
        result[name] = {"ok": error <= LIMIT, "error": float(f"{error:.2g}"), "against": against}
    return result


def definition(case: Case) -> list[Tensor]:
    """Return output and gradients of the definition in float64."""
    x = tensors(case, torch.float64)
    found = oracle(x, x[6].flip(1))
    return [found[name] for name in RESULTS]


def measure(
    case: Case,
    threads: int,
    seconds: float,
    libraries: dict[str, str] | None = None,
    makers: dict[str, Callable[[], Subject]] | None = None,
) -> dict:
    """Check and time all subjects on one case, in this process.

    Args:
        case (Case): The case.
        threads (int): Threads.
        seconds (float): Time for each subject and direction.
        libraries (dict[str, str], optional): The compiled bounds, by level.
        makers (dict[str, Callable], optional): Subjects; all by default.

    Returns:
        (dict): rows, one a subject; bounds, one a level; absent subjects with their reasons.
    """
    torch.set_num_threads(threads)
    present, absent = resolve(SUBJECTS if makers is None else makers)
    small = checked(present, SMALL, definition(SMALL))
    if not case.peers:
        present = {name: s for name, s in present.items() if not s.slow}
    large = checked({name: s for name, s in present.items() if small[name]["ok"]}, case, None)  # this also warms up
    checks = {name: {"ok": False, "small": small[name], "large": large.get(name)} for name in present}
    for name, check in large.items():
        checks[name]["ok"] = check["ok"]
    green = {name: s for name, s in present.items() if checks[name]["ok"]}
    plain, x, dout = tensors(case), tensors(case, grad=True), tensors(case)[6].flip(1)

    def forward(subject: Subject) -> None:
        with torch.inference_mode():
            subject.run(*plain)

    def both(subject: Subject) -> None:
        torch.autograd.grad(subject.run(*x), x, dout)

    bounds: dict[str, Bound] = {}
    for level, path in (libraries or {}).items():
        try:
            bounds[level] = Bound(path, threads)
        except (Absent, OSError) as e:
            absent["bound" if level == "native" else f"bound {level}"] = str(e)
    for subject in green.values():
        with subject.around():
            forward(subject)
    calls = {n: Timed(lambda s=s: forward(s), s.around) for n, s in green.items()}
    timed = interleave(calls | {f"bound {level}": Timed(b.run) for level, b in bounds.items()}, seconds)
    timed_both = interleave({n: Timed(lambda s=s: both(s), s.around) for n, s in green.items()}, seconds)

    least = [
        {
            "level": level,
            "threads": threads,
            **{k: getattr(case, k) for k in ("channels", "length", "layout", "batch")},
            **{
                f"{k}_ns": float(f"{timed[f'bound {level}'][f'{k}_ms'] * 1e6 / b.elements:.4g}")
                for k in ("median", "min")
            },
            "lanes": b.lanes,
            "states_in_registers": b.group,
        }
        for level, b in bounds.items()
    ]
    rows = []
    for name, subject in present.items():
        row = {"subject": name, "threads": threads, **asdict(case), "about": subject.about, "check": checks[name]}
        row |= {"forward": timed.get(name), "forward_backward": timed_both.get(name)}
        if name in timed:
            ns = timed[name]["median_ms"] * 1e6 / case.elements
            own = next((x["median_ns"] for x in least if x["level"] == subject.level), None)
            row["ns_per_element"] = float(f"{ns:.4g}")
            row["times_bound"] = own and round(ns / own, 3)
        rows.append(row)
    return {"rows": rows, "bounds": least, "absent": absent}


# Tables

COMMAND = "python benchmarks/scan_cpu.py"
NAMES = {
    "cpp": "C++",
    "cpp avx2": "C++, held to AVX2",
    "cpp plain": "C++, held to SSE2",
    "chunked": "plain PyTorch, `chunked`",
    "mambapy": "mambapy, `pscan`",
    "loop": "token by token",
}
BOTH = ("forward", "forward_backward")
LARGEST = {"batch": 1, "channels": 64, "length": 25600, "layout": "channel-last"}


def shape(r: dict) -> dict:
    """Return the keys that tell cases apart."""
    return {k: r[k] for k in ("batch", "channels", "length", "layout")}


def by_threads(r: dict) -> str:
    """Return a table for each number of threads."""
    parts = []
    for threads in r["settings"]["threads"]:
        rows = []
        for row in (x for x in r["rows"] if x["threads"] == threads):
            loop = {k: median_of(r["rows"], k, subject="loop", threads=threads, **shape(row)) for k in BOTH}
            mine = {k: row[k] and row[k]["median_ms"] for k in BOTH}
            rows.append(
                [
                    f"{row['batch']}, {row['channels']}, {row['length']}",
                    row["layout"],
                    NAMES[row["subject"]],
                    ms(row["forward"]),
                    ms(row["forward_backward"]),
                    *(times(quotient(loop[k], mine[k])) for k in BOTH),
                    row.get("ns_per_element", ""),
                    times(row.get("times_bound")),
                ]
            )
        head = ["B, D, L", "memory", "scan", "forward, ms", "forward + backward, ms"]
        head += ["x loop", "x loop, both", "forward, ns an element", "x bound"]
        bounds = [
            b["median_ns"] for b in r["bounds"] if b["threads"] == threads and b.get("level", "native") == "native"
        ]
        title = f"{threads} thread{'s' if threads > 1 else ''}"
        if bounds:
            low, high = min(bounds), max(bounds)
            title += f", bound {low:.3f}" + (f" to {high:.3f}" if low < high else "") + " ns an element"
        parts.append(f"{title}:\n\n{table(head, rows)}")
    parts += [f"Absent: {NAMES.get(name, name)} ({why})." for name, why in r["absent"].items()]
    return "\n\n".join([*parts, source(r, COMMAND)])


def by_isa(r: dict) -> str:
    """Return the kernel's own part: instruction sets and threads side by side."""
    subjects = [s for s in ("cpp", "cpp avx2", "cpp plain") if any(x["subject"] == s for x in r["rows"])]
    columns = [(s, t) for s in subjects for t in r["settings"]["threads"]]
    cases = {tuple(shape(x).items()): shape(x) for x in r["rows"]}.values()
    rows = []
    for case in cases:
        cells = []
        for s, t in columns:
            found = [x for x in r["rows"] if x["subject"] == s and x["threads"] == t and shape(x) == case]
            bound = f", {times(found[0]['times_bound'])}" if found and found[0].get("times_bound") else ""
            cells.append(" / ".join(ms(found[0][k]) for k in BOTH) + bound if found else "")
        rows.append([f"{case['batch']}, {case['channels']}, {case['length']}", case["layout"], *cells])
    head = [f"{NAMES[s]}, {t} thread{'s' if t > 1 else ''}" for s, t in columns]
    about = next((x["about"] for x in r["rows"] if x["subject"] == "cpp"), "")
    note = f"Milliseconds, forward / forward + backward, and forward over its instruction set's bound; C++ is {about}:"
    note = note if about else "Absent here."
    return f"{note}\n\n{table(['B, D, L', 'memory', *head], rows)}\n\n{source(r, COMMAND)}"


def render(r: dict) -> dict[str, str]:
    """Return the tables of a result."""
    return {"scan_cpu": by_threads(r), "scan_isa": by_isa(r)}


def goals(r: dict | None) -> list[Goal]:
    """Return the targets of a scan beside a result."""
    rows = r["rows"] if r else []

    def ratio(subject: str, key: str) -> float | None:
        mine, other = (median_of(rows, key, subject=s, threads=1, **LARGEST) for s in ("cpp", subject))
        return quotient(other, mine)

    def largest(x: dict) -> bool:
        return x["subject"] == "cpp" and x["threads"] == 1 and LARGEST.items() <= x.items()

    where = f"at {tuple(LARGEST.values())[:3]}, 1 thread: times"
    bound = next((x.get("times_bound") for x in rows if largest(x)), None)
    found = [
        Goal(f"scan forward {where} the loop's speed", 150, True, ratio("loop", "forward")),
        Goal(f"scan forward {where} mambapy's speed", 15, True, ratio("mambapy", "forward")),
        Goal(f"scan forward {where} the bound", 1.5, False, bound),
        Goal(f"scan forward + backward {where} the loop's speed", 200, True, ratio("loop", "forward_backward")),
    ]
    for key in BOTH:
        gains = {}
        for x in rows:
            if x["subject"] == "cpp" and x["batch"] == 1 and x["layout"] == "channel-last" and x["threads"] == 1:
                two = median_of(rows, key, subject="cpp", threads=2, **shape(x))
                if (gain := quotient(x[key] and x[key]["median_ms"], two)) is not None:
                    gains[f"{x['batch']}, {x['channels']}, {x['length']}"] = gain
        least = min(gains, key=gains.get, default=None)
        remark = "" if least is None else f"least, at ({least}); most {max(gains.values()):.2f}"
        what = f"scan {key.replace('_', ' + ')}, batch 1: speed of 2 threads over 1"
        found.append(Goal(what, 1.8, True, gains.get(least), remark))
    return found


# Another commit beside this tree


def jobs(args: argparse.Namespace) -> list[dict]:
    """Return what --base compares: every case."""
    cases = QUICK_CASES if args.quick else CASES
    return [{"case": asdict(case), "threads": threads} for case in cases for threads in args.threads]


def public(job: dict) -> dict[str, Timed]:
    """Return the public call, forward and both ways, warmed up."""
    case = Case(**job["case"])
    plain, x, dout = tensors(case), tensors(case, grad=True), tensors(case)[6].flip(1)

    def forward() -> None:
        with torch.inference_mode():
            ours(*plain)

    def both() -> None:
        torch.autograd.grad(ours(*x), x, dout)

    forward(), both()
    name = f"({case.batch}, {case.channels}, {case.length}) {case.layout}"
    return {f"{name}, forward": Timed(forward), f"{name}, forward + backward": Timed(both)}


def arguments() -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    return parse(parser, seconds=2.0)


def main() -> None:
    """Measure all cases, each thread count of a case in a process of its own, one after the other."""
    args = arguments()
    if args.job:
        job = json.loads(args.job)
        print(json.dumps(measure(Case(**job["case"]), job["threads"], job["seconds"], job["libraries"])))
        return
    if args.base:
        compare(__file__, jobs(args), args.base, args.seconds)
        return
    result = {
        **heading("scan_cpu", args),
        "absent": {},
        "rows": [],
        "bounds": [],
    }
    with tempfile.TemporaryDirectory() as folder:
        compiled, how = build_bounds(Path(folder))
        result["settings" if compiled else "absent"]["bound"] = how
        for case in QUICK_CASES if args.quick else CASES:
            for threads in args.threads:
                job = {"case": asdict(case), "threads": threads, "seconds": args.seconds, "libraries": compiled}
                part = in_process(__file__, job)
                result["rows"] += part["rows"]
                result["bounds"] += part["bounds"]
                result["absent"] |= part["absent"]
                for row in part["rows"]:
                    both = (row["forward"], row["forward_backward"])
                    took = [f"{t['median_ms']:.2f} ms" if t else "red" for t in both]
                    name = f"({case.batch}, {case.channels}, {case.length}) {case.layout}"
                    print(f"{name:32} {threads} threads  {row['subject']:9} {' / '.join(took)}", flush=True)
    for name, reason in result["absent"].items():
        print(f"absent: {name}: {reason}")
    write(result, args.out)


if __name__ == "__main__":
    main()
