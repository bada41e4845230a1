# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Measure another commit beside this tree: `--base REF` of every CPU benchmark.

The commit is checked out into a temporary folder, set up and compiled there. A process of each tree prepares the same
calls, and they take turns: base, head, base, head. "Head" is this tree as it lies, uncommitted changes included. Both
processes run this tree's benchmark, which calls what both trees have: names that users import, models and exports. A
benchmark gives two functions for it:

    jobs(args) -> list[dict]                       what to compare; each has `threads`
    public(job) -> dict[str, Timed | float]        calls to time, warmed up, or figures, by name

Usage:
    python benchmarks/scan_cpu.py --base main
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.environment import git, refuse_stale_library  # noqa: E402
from benchmarks.timing import Timed, isolated, summary, take  # noqa: E402

ROUNDS = 8


def set_up(tree: Path) -> None:
    """Lay upstream's files in a checkout, from this tree's downloads where they serve, and compile the library."""
    if (ROOT / ".upstream/cache").is_dir():
        shutil.copytree(ROOT / ".upstream/cache", tree / ".upstream/cache")
    for command in (["-m", "patches", "setup"], ["setup.py", "--quiet", "build_ext", "--inplace"]):
        done = subprocess.run([sys.executable, *command], cwd=tree, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{done.stdout}{done.stderr}\n--base: `python {' '.join(command)}` failed in that commit.")
    if compiled(ROOT) and not compiled(tree):  # the extension is optional: the command above did not fail
        raise SystemExit(
            f"{done.stdout}{done.stderr}\n--base: the C++ library of that commit could not be compiled, and this "
            "tree has one, so they would not run the same. `pip install ziglang` brings a compiler."
        )


def compiled(tree: Path) -> bool:
    """Return whether a checkout has the C++ library."""
    endings = (".so", ".dll", ".dylib")
    return any(file.suffix in endings for file in (tree / "ultralytics/nn/Addmodules").rglob("_cpu.*"))


@contextmanager
def checkout(ref: str, prepare: Callable[[Path], None] = set_up) -> Iterator[Path]:
    """Hold a commit in a folder that is gone afterwards, whatever happens.

    Args:
        ref (str): The commit.
        prepare (Callable[[Path], None]): What is done in the folder first.

    Raises:
        SystemExit: If there is no such commit, or it cannot be set up.
    """
    commit = git("rev-parse", "--verify", "--quiet", f"{ref}^{{commit}}")
    if not commit:
        raise SystemExit(f"--base {ref}: this repository has no such commit; `git log --oneline` lists its commits.")
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder).resolve() / "base"
        try:
            subprocess.run(["git", "worktree", "add", "--quiet", "--detach", str(tree), commit], cwd=ROOT, check=True)
            print(f"base: {git('log', '-1', '--format=%h %s', commit)}; it is set up and compiled", flush=True)
            prepare(tree)
            yield tree
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(tree)], cwd=ROOT, capture_output=True)


class Worker:
    """A process that holds a job's calls in one tree and times a slice of one when it is asked to.

    Args:
        tree (Path): The tree whose `ultralytics` it imports.
        script (str): The benchmark's file, of this tree.
        job (dict): The job.
    """

    def __init__(self, tree: Path, script: str, job: dict):
        self.tree, self.folder = tree, tempfile.TemporaryDirectory()  # exports are written to where a process stands
        command = [sys.executable, __file__, str(tree), Path(script).stem, json.dumps(job)]
        self.noise = open(Path(self.folder.name) / "noise.txt", "w+", encoding="utf-8", errors="replace")
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.noise,
            text=True,
            cwd=self.folder.name,
            env=isolated(job["threads"]),
        )

    def __enter__(self) -> Worker:
        """Wait until the calls are ready; `figures` then has None for each that is to be timed."""
        self.figures: dict[str, float | None] = self.answer()
        return self

    def __exit__(self, *_) -> None:
        """End the process."""
        self.process.kill()
        self.process.communicate()
        self.noise.close()
        self.folder.cleanup()

    def answer(self):
        """Return what the process says."""
        line = self.process.stdout.readline()
        if not line:
            self.noise.seek(0)
            raise SystemExit(f"{self.noise.read()}\n--base: the process of {self.tree} failed, see above.")
        return json.loads(line)

    def time(self, name: str, seconds: float) -> list[float]:
        """Time a call for some time."""
        with suppress(BrokenPipeError):  # it died; what it said comes with the answer
            self.process.stdin.write(json.dumps([name, seconds]) + "\n")
            self.process.stdin.flush()
        return self.answer()


def versus(base: Worker, head: Worker, seconds: float) -> list[dict]:
    """Return a row for each case that both have: case, base, head, ratio and whether these are milliseconds."""
    rows, taken = [], {}
    for name, figure in head.figures.items():
        if name not in base.figures:
            print(f"{name}: the base has no such case")
        elif figure is None:
            taken[name] = [], []
        else:
            rows.append({"case": name, "base": base.figures[name], "head": figure, "timed": False})
    for _ in range(ROUNDS):
        for name, both in taken.items():
            for worker, times in zip((base, head), both):
                times += worker.time(name, seconds / ROUNDS)
    for name, both in taken.items():
        old, new = (summary(times)["median_ms"] for times in both)
        rows.append({"case": name, "base": old, "head": new, "timed": True})
    return [row | {"ratio": row["head"] / row["base"] if row["base"] else float("nan")} for row in rows]


def compare(script: str, jobs: list[dict], ref: str, seconds: float) -> list[dict]:
    """Compare a commit with this tree, print a line a case and return the rows.

    Args:
        script (str): The benchmark's file.
        jobs (list[dict]): Its jobs.
        ref (str): The commit.
        seconds (float): Time for each call in each tree.
    """
    rows = []
    if compiled(ROOT):
        refuse_stale_library()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))  # so that the checkout is removed then, too
    with checkout(ref) as tree:
        print(f"{'case':72} {'base':>12} {'head':>12} {'head / base':>12}", flush=True)
        for job in jobs:
            with Worker(tree, script, job) as base, Worker(ROOT, script, job) as head:
                for row in versus(base, head, seconds):
                    unit = " ms" if row["timed"] else ""
                    case = f"{row['case']}, {job['threads']} thread{'s' if job['threads'] > 1 else ''}"
                    figures = [f"{f'{row[k]:.4g}{unit}':>12}" for k in ("base", "head")]
                    print(f"{case:72} {' '.join(figures)} {row['ratio']:12.3f}", flush=True)
                    rows.append(row | {"threads": job["threads"]})
    return rows


def serve(tree: str, name: str, job: dict) -> None:
    """Hold calls of a benchmark on the `ultralytics` of a tree, and time what each line of standard input asks for."""
    say = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    import benchmarks

    benchmarks.__path__ = [str(ROOT / "benchmarks")]  # the base has modules of these names, too
    sys.path.insert(0, tree)
    import torch

    import ultralytics

    if not Path(ultralytics.__file__).resolve().is_relative_to(tree):
        raise SystemExit(f"{ultralytics.__file__} was imported, not the one in {tree}")
    torch.set_num_threads(job["threads"])
    calls = importlib.import_module(f"benchmarks.{name}").public(job)
    answer: object = {case: None if isinstance(call, Timed) else call for case, call in calls.items()}
    while True:
        print(json.dumps(answer), file=say, flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        case, seconds = json.loads(line)
        answer = take(calls[case], seconds)


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]))
