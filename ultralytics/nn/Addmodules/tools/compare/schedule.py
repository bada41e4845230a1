# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Runs as processes, some side by side: progress over all, and an end that loses at most an epoch."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .results import LOG, RESULT, Comparison, Run, write_json

__all__ = ("duration", "locked", "run_all", "start_process")

PACKAGE = __package__
ROOT = Path(__file__).resolve().parents[5]  # where `ultralytics` lies
POLL = 0.3  # seconds


def start_process(module: str, argument: Path, log: Path, threads: int | None) -> subprocess.Popen:
    """Start a module of this package in a process that Ctrl-C in the terminal does not reach.

    Args:
        module (str): Its name.
        argument (Path): What it works on.
        log (Path): File that takes what it prints, after what is there.
        threads (int | None): Of the CPU; None leaves them to PyTorch.
    """
    environment = {**os.environ, "YOLO_OFFLINE": "True", "PYTHONUTF8": "1", "PYTHONUNBUFFERED": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    if threads:
        environment["OMP_NUM_THREADS"] = str(threads)
    apart = {"start_new_session": True} if os.name == "posix" else {"creationflags": 0x200}  # NEW_PROCESS_GROUP
    with log.open("ab") as out:
        command = [sys.executable, "-m", f"{PACKAGE}.{module}", str(argument)]
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=out, stderr=subprocess.STDOUT, env=environment, **apart
        )


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a results folder for this process; the system frees it when the process dies.

    Raises:
        ValueError: If another process holds it.
    """
    with (folder / ".lock").open("a+b") as file:
        try:
            if os.name == "nt":
                import msvcrt

                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
            else:
                import fcntl

                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            from ultralytics.utils import LOGGER

            if e.errno in (errno.EACCES, errno.EAGAIN, errno.EDEADLK):
                raise ValueError(f"another `vmamba compare` is at work in '{folder}'") from None
            LOGGER.warning(f"vmamba compare: '{folder}' cannot be locked ({e.strerror}): start no other command there")
        yield


def duration(seconds: float) -> str:
    """Return a time as a person would say it.

    Examples:
        >>> duration(40), duration(400), duration(8000), duration(200000)
        ('40 s', '7 min', '2 h 13 min', '2 d 7 h')
    """
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def ended(code: int) -> str:
    """Return why a process ended that wrote no result."""
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        memory = " (the system does so when memory runs out)" if name == "SIGKILL" else ""
        return f"its process was ended by {name}{memory}"
    return f"its process ended with status {code}"


class Progress:
    """What to say of runs, and how long the rest will take."""

    def __init__(self, comparison: Comparison, jobs: int, say: Callable[[str], None]) -> None:
        """Count what is there."""
        self.runs, self.jobs, self.say = comparison.runs, jobs, say
        self.total = comparison.settings["train"]["epochs"]
        self.seen = {run.folder: len(run.epochs) for run in self.runs}
        self.since: dict[Path, float] = {}
        self.times: dict[str, list[float]] = {}
        self.over = {run.folder for run in self.runs if run.over}

    def began(self, run: Run) -> None:
        """Start the clock of a run."""
        self.since[run.folder] = time.perf_counter()

    def look(self, run: Run) -> None:
        """Say how far a run is, if it is farther than before."""
        epochs, now = run.epochs, time.perf_counter()
        new = len(epochs) - self.seen[run.folder]
        if new <= 0:
            return
        self.seen[run.folder] = len(epochs)
        self.times.setdefault(run.model, []).extend([(now - self.since[run.folder]) / new] * new)
        self.since[run.folder] = now
        figure = next((f", {key} {epochs[-1][key]:.3f}" for key in FIRST if key in epochs[-1]), "")
        self.say(f"{self.title(run)}: epoch {len(epochs)} of {self.total}{figure}{self.left()}")

    def title(self, run: Run) -> str:
        """Return which run is meant."""
        return f"run {self.runs.index(run) + 1} of {len(self.runs)}, {run.model}, seed {run.seed}"

    def left(self) -> str:
        """Return the time that is left, if it can be told."""
        known = [t for times in self.times.values() for t in times]
        seconds, count = 0.0, 0
        for run in self.runs:
            if run.folder not in self.over and (epochs := self.total - self.seen[run.folder]):
                times = self.times.get(run.model, known)
                seconds, count = seconds + epochs * sum(times) / len(times), count + 1
        return f"; about {duration(seconds / min(self.jobs, count))} left" if count else ""


# What a run is known by: the first that there is
FIRST = ("mask mAP50-95", "pose mAP50-95", "mAP50-95", "top-1", "mIoU", "delta1")


def run_all(
    comparison: Comparison, jobs: int, prepare: Callable[[Run], int | None], say: Callable[[str], None]
) -> None:
    """Run what is not over, as many at once as there are jobs; a run that fails does not stop the rest.

    Args:
        comparison (Comparison): Its folder.
        jobs (int): Runs side by side.
        prepare (Callable[[Run], int | None]): Writes what a run needs and returns its threads.
        say (Callable[[str], None]): Takes lines for the user.

    Raises:
        KeyboardInterrupt: If the user stopped it; all processes have ended then.
    """
    waiting = [run for run in comparison.runs if not run.over]
    progress, active = Progress(comparison, jobs, say), {}
    try:
        while waiting or active:
            while waiting and len(active) < jobs:
                run = waiting.pop(0)
                threads = prepare(run)
                (run.folder / RESULT).unlink(missing_ok=True)
                progress.began(run)
                active[run] = start_process("train", run.folder, run.folder / LOG, threads)
            time.sleep(POLL)
            for run, process in list(active.items()):
                code = process.poll()
                progress.look(run)
                if code is not None:
                    del active[run]
                    finish(run, code, progress)
    finally:
        stop(list(active.values()))


def finish(run: Run, code: int, progress: Progress) -> None:
    """Note how a run ended."""
    if not run.result:
        write_json(run.folder / RESULT, {"status": "failed", "reason": ended(code), "final": False})
    progress.over.add(run.folder)
    result = run.result
    if result["status"] == "failed":
        progress.say(f"{progress.title(run)}: FAILED after {len(run.epochs)} epochs: {result['reason']}")


def stop(processes: list[subprocess.Popen]) -> None:
    """End processes, gently first."""
    for process in processes:
        process.terminate()
    for process in processes:
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
