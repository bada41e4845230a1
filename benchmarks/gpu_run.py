# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Fifteen minutes on a GPU: parts in order of worth, each with a deadline, going on where the last call stopped.

Every part is a process of its own with a log of its own. What became of it is written to gpu_run.json when it ends, and
the parts write their figures as they go, so that a machine that is taken away loses no more than a row. Called again,
this begins with the parts that have not been begun; then come those that were cut short, which keep what they have.

Usage:
    python benchmarks/gpu_run.py --list                      # the parts, and what became of them
    python benchmarks/gpu_run.py --data DATA.yaml --peers MAMBA_SSM CAUSAL_CONV1D --limit 870
    python benchmarks/gpu_run.py --only profile blocks       # these alone, even if they are done
    python benchmarks/gpu_run.py --dry-run                   # tiny, on a CPU: to see that nothing is mistyped
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime, timezone
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple, TextIO

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.environment import git  # noqa: E402

__all__ = ("PARTS", "Part", "Runner", "chosen")

GRACE = 15  # seconds that a part has to end by itself once its time is over
RESERVE = 5  # seconds kept back for writing what became of the last part
PEERS = ROOT / "build/peer"  # kept between calls: what is built there is not built again
TAIL = 12  # lines of a log that are shown
BENCHMARK = "benchmarks/gpu.py --only {} --out {{out}}/gpu.json --deadline {{seconds}}"
DRY_BENCHMARK = "benchmarks/gpu.py --dry-run --only {}"
TESTS = "-m pytest -q -p no:cacheprovider {{workers}} -m gpu tests/test_gpu_backend.py -k '{}'"
TRAINING = (
    "benchmarks/gpu_amp.py {{data}} --out {{out}}/gpu_amp.json --imgsz 640 --minutes {} --model {} --precisions {} "
    "--deadline {{seconds}}"
)


class Part(NamedTuple):
    """One thing to find out.

    Args:
        name (str): Its name.
        seconds (float): Seconds it may take.
        arguments (str): Arguments of python; {out}, {data} and {seconds} are put in.
        what (str): What it tells.
        dry (str): The same for --dry-run; empty: it cannot run without a GPU.
        data (bool): It trains, and is left out where there is no data set.
        peers (bool): It waits until the peers are built, as far as they are to be.
        least (float): It is not begun with fewer seconds left.
    """

    name: str
    seconds: float
    arguments: str
    what: str
    dry: str = ""
    data: bool = False
    peers: bool = False
    least: float = 20


PARTS = [
    Part(
        "checks", 75, TESTS.format("block_and_every_gradient or division_does or graph_replays"),
        "the block and its scan on this device, held to float64",
        "-m pytest -q -p no:cacheprovider tests/test_gpu_backend.py -k division",
    ),
    Part(
        "profile", 130, "benchmarks/gpu_profile.py --out {out}/gpu_profile.json --deadline {seconds}",
        "a Mamba block and a VSS block by kernel, and suspects done in other ways",
        "benchmarks/gpu_profile.py --dry-run --out {out}/gpu_profile.json",
    ),
    Part(
        "blocks", 90, BENCHMARK.format("blocks"), "forward and backward of whole blocks beside the recipe's",
        DRY_BENCHMARK.format("blocks"), peers=True,
    ),
    Part(
        "recipe", 45, "benchmarks/gpu_profile.py --recipe --out {out}/gpu_profile_recipe.json --deadline {seconds}",
        "the recipe's block by kernel, now that its kernels are built", peers=True,
    ),
    Part(
        "train-yolon", 240, TRAINING.format(2.5, "VMamba-yolon.yaml", "fp16"),
        "VMamba-yolon trained with AMP to its end: no NaN, final validation equal to the best in training",
        "benchmarks/gpu_amp.py {data} --dry-run --model VMamba-yolon.yaml", data=True, least=120,
    ),
    Part(
        "models", 150, BENCHMARK.format("models"),
        "training steps beside stock and the recipe's model, inference, 320 to 1280 px, batch 1 with CUDA graphs",
        DRY_BENCHMARK.format("models"), peers=True,
    ),
    Part(
        "scans", 110, BENCHMARK.format("scans"), "scans beside mamba-ssm's and the bound",
        DRY_BENCHMARK.format("scans"), peers=True,
    ),
    Part(
        "train-yolov8n", 240, TRAINING.format(0.9, "VMamba-yolov8n.yaml", "fp16 bf16"),
        "VMamba-yolov8n trained in fp16 and in bf16", data=True, least=120,
    ),
    Part(
        "train-graft", 150, TRAINING.format(1, "VMamba-yolov8n-graft.yaml", "fp16"),
        "a graft trained with AMP", data=True, least=100,
    ),
    Part(
        "grid", 120, TESTS.format("(forward_and_gradients or chosen or same_bits or other_device) and not mamba_ssm"),
        "scans of odd sizes and layouts; the same bits every time",
    ),
    Part(
        "lengths", 150, TESTS.format("lengths or composition or compiled"),
        "the slow checks: the model's own lengths, whole blocks, torch.compile",
    ),
    Part(
        "adapter", 60, TESTS.format("mamba_ssm and not lengths"), "the adapter to mamba-ssm's kernels", peers=True,
    ),
    Part("memcheck", 110, "benchmarks/gpu.py --one-case --sanitize memcheck", "accesses outside of memory", least=60),
    Part("racecheck", 110, "benchmarks/gpu.py --one-case --sanitize racecheck", "races in shared memory", least=60),
    Part(
        "tune", 90, "benchmarks/gpu_tune.py --out {out}/gpu_tune.json --deadline {seconds}",
        "the scan under other settings",
    ),
]  # fmt: skip


def chosen(parts: list[Part], known: dict[str, dict], commit: str, only: list[str] | None) -> list[Part]:
    """Return the parts to run, in order: what was not begun or was interrupted, then what ran out of time.

    Args:
        parts (list[Part]): All parts, by worth.
        known (dict[str, dict]): What became of them before, by name; of another commit it does not count.
        commit (str): The commit that is measured.
        only (list[str], optional): Names of parts to run whatever became of them.
    """
    if only:
        return [p for p in parts if p.name in only]
    state = {p.name: known[p.name]["state"] for p in parts if known.get(p.name, {}).get("commit") == commit}
    fresh = [p for p in parts if state.get(p.name) in (None, "running", "interrupted", "no time", "left out")]
    return fresh + [p for p in parts if state.get(p.name) == "overran"]


class Runner:
    """Runs parts and writes down what became of them.

    Args:
        out (Path): Folder for logs and results.
        limit (float): Seconds for all of it.
        commit (str): The commit that is measured.
        say (Callable[[str], None]): Takes lines for the reader.
    """

    def __init__(self, out: Path, limit: float, commit: str, say: Callable[[str], None] = print):
        self.out, self.commit, self.say = out, commit, say
        self.begin, self.end = time.monotonic(), time.monotonic() + limit
        self.file = out / "gpu_run.json"
        out.mkdir(parents=True, exist_ok=True)
        self.known = self.read()

    def read(self) -> dict[str, dict]:
        """Return what became of parts before, by name.

        Raises:
            SystemExit: If the file cannot be read; it is left as it is.
        """
        if not self.file.exists():
            return {}
        try:
            return json.loads(self.file.read_text(encoding="utf-8"))
        except ValueError as e:
            raise SystemExit(f"{self.file} is no JSON ({e}): move it away to begin from the first part") from None

    def note(self, name: str, state: str, **more: object) -> None:
        """Write down what became of a part; a reader never sees half a file."""
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        self.known[name] = {"state": state, "commit": self.commit, "date": now, **more}
        new = self.file.with_suffix(".new")
        new.write_text(json.dumps(self.known, indent=1) + "\n", encoding="utf-8")
        new.replace(self.file)

    def left(self) -> float:
        """Return the seconds that are left."""
        return self.end - time.monotonic() - RESERVE

    def run(self, part: Part, command: list[str], seconds: float, env: dict[str, str]) -> str:
        """Run a part to its end or its deadline and return what became of it: done, failed or overran.

        Args:
            part (Part): The part.
            command (list[str]): What to start.
            seconds (float): Seconds it may take.
            env (dict[str, str]): Its environment.
        """
        begin, log = time.monotonic(), self.out / f"{part.name}.log"
        self.say(f"\n== {part.name}: {part.what} ({begin - self.begin:.0f} s, has {seconds:.0f})")
        self.note(part.name, "running")
        with open(log, "a", encoding="utf-8") as file:
            start = file.tell()
            child = begun(command, file, env)
            state = "interrupted"
            try:
                state = "failed" if child.wait(timeout=seconds) else "done"
            except subprocess.TimeoutExpired:
                state = "overran"
            finally:  # also where this process is asked to stop
                stop(child)
                taken = round(time.monotonic() - begin, 1)
                self.note(part.name, state, seconds=taken, code=child.returncode)
        with open(log, encoding="utf-8", errors="replace") as file:
            file.seek(start)
            for line in file.read().splitlines()[-TAIL:]:
                self.say(f"   {line}")
        self.say(f"-- {part.name}: {state} after {taken:.0f} s; all of it in {log.name}")
        return state


def begun(command: list[str], log: TextIO, env: dict[str, str]) -> subprocess.Popen:
    """Start a process in a group of its own, so that what it starts can be ended with it."""
    return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT, env=env, start_new_session=True)


def stop(child: subprocess.Popen) -> None:
    """End a process and what it started: with an interrupt, and by force after some seconds."""
    if child.poll() is None:
        with contextlib.suppress(subprocess.TimeoutExpired, ProcessLookupError):
            os.killpg(child.pid, signal.SIGINT)  # its own group: it was started with one
            child.wait(timeout=GRACE)
    with contextlib.suppress(ProcessLookupError):  # nothing is left of it
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def start_builds(sources: list[Path], out: Path, env: dict[str, str]) -> list[tuple[str, subprocess.Popen]]:
    """Start building the peers beside the first parts; what is built already stays."""
    builds = []
    for source in sources:
        into = PEERS / source.name
        if any(into.glob("*.so")):
            continue
        command = [sys.executable, "benchmarks/gpu.py", "--build-peer", str(source), "--into", str(into)]
        with open(out / f"build-{source.name}.log", "w", encoding="utf-8") as log:
            child = begun(command, log, env)
        builds.append((source.name, child))
    return builds


def wait_for(runner: Runner, builds: list[tuple[str, subprocess.Popen]], until: float) -> None:
    """Wait for the peers as long as that is worth it, and say which are not there."""
    for name, child in builds:
        try:
            code = child.wait(timeout=max(0.1, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            stop(child)
            code = None
        if code != 0:
            why = "took too long" if code is None else f"ended with {code}"
            runner.say(f"the build of {name} {why}; its figures are left out, see build-{name}.log")
    builds.clear()


def arguments(text: str, **values: object) -> list[str]:
    """Return the words of a command; quotes keep spaces together, and so do values."""
    return [word.format(**values) for word in shlex.split(text) if word != "{workers}" or values["workers"]]


def main() -> int:
    """Run what the command line asks for; 1 if a part failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = [p.name for p in PARTS]
    parser.add_argument("--out", type=Path, help="folder for logs and results; by default $OUT or build/gpu")
    parser.add_argument("--data", type=Path, help="YAML of a data set to train on; without it nothing is trained")
    parser.add_argument("--peers", type=Path, nargs="*", default=[], help="source folders of mamba-ssm, causal-conv1d")
    parser.add_argument("--limit", type=float, default=870, help="seconds for all of it")
    parser.add_argument("--patience", type=float, default=220, help="seconds from the beginning for the peers' builds")
    parser.add_argument("--only", nargs="+", choices=names, metavar="PART", help=f"of {', '.join(names)}")
    parser.add_argument("--list", action="store_true", help="say what there is and what became of it, and stop")
    parser.add_argument("--dry-run", action="store_true", help="tiny, on a CPU; figures mean nothing")
    args = parser.parse_args()
    if args.data and not args.data.is_file():
        parser.error(f"--data {args.data} is no file: give the YAML of a data set")
    for source in args.peers:
        if not source.is_dir():
            parser.error(f"--peers {source} is no folder: give the folder that holds csrc")
    commit = git("rev-parse", "HEAD")
    out = (args.out or Path(os.environ.get("OUT", ROOT / "build/gpu"))).resolve()
    if args.dry_run:  # apart: a part that was tried on a CPU is not done
        out /= "dry"
    runner = Runner(out, args.limit, commit)
    if args.list:
        for part in PARTS:
            known = runner.known.get(part.name, {})
            state = known.get("state", "not begun")
            state += "" if known.get("commit", commit) == commit else f" at commit {known['commit'][:10]}"
            print(f"{part.name:14} {part.seconds:4.0f} s  {state}: {part.what}")
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as an interrupt: what runs is stopped and written down
    env = {**os.environ, "PYTHONUNBUFFERED": "1", "YOLO_OFFLINE": "true"}
    built = [str(PEERS / source.name) for source in args.peers]
    env["PYTHONPATH"] = os.pathsep.join([str(ROOT), *built, *filter(None, [env.get("PYTHONPATH")])])
    if args.dry_run:
        env |= {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    workers = "-n6" if find_spec("xdist") else ""
    builds = [] if args.dry_run else start_builds(args.peers, runner.out, env)
    states = []
    try:
        for part in chosen(PARTS, runner.known, commit, args.only):
            text = part.dry if args.dry_run else part.arguments
            if not text or (part.data and args.data is None):
                runner.note(part.name, "left out", why="it needs a GPU" if not text else "no --data was given")
                continue
            if part.peers and builds:
                wait_for(runner, builds, runner.begin + args.patience)
            seconds = min(part.seconds, runner.left() - GRACE)
            if seconds < min(part.least, part.seconds):
                runner.note(part.name, "no time")
                continue
            values = {"out": runner.out, "data": args.data and args.data.resolve(), "workers": workers}
            words = arguments(text, seconds=f"{seconds - 10:.0f}", **values)
            states.append(runner.run(part, [sys.executable, *words], seconds, env))
    finally:
        for _, child in builds:
            stop(child)
    late = [name for name, x in runner.known.items() if x["state"] in ("no time", "overran")]
    if late:
        print(f"\nNot at their end: {', '.join(late)}. The same command goes on with them.")
    return int("failed" in states)


if __name__ == "__main__":
    sys.exit(main())
