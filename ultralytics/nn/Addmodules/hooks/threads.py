# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""A model of ours uses all cores of a CPU, whatever door it comes through."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path

import psutil
import torch

from ..layers.state_space import StateSpace

__all__ = ("chosen_threads", "cores_here", "train_with_all_cores", "use_all_cores")

QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of a container, as `docker run --cpus=2` sets it
_said: set[int] = set()


def train_with_all_cores(trainer) -> None:
    """Let PyTorch use every core for a model with our layers; a callback for the start of training.

    Args:
        trainer (BaseTrainer): Upstream's, its device selected and its model built.
    """
    if trainer.device.type == "cpu" and any(isinstance(m, StateSpace) for m in trainer.model.modules()):
        use_all_cores("training")


def use_all_cores(doing: str) -> None:
    """Let PyTorch use every core, or as many as the user has said, and log how many, once a process.

    When it selects the CPU, Ultralytics leaves one core out and takes eight at most: of two cores, one.

    Args:
        doing (str): What they are used for.
    """
    cores = cores_here()
    threads = chosen_threads() or cores
    torch.set_num_threads(threads)
    if threads not in _said:
        _said.add(threads)
        from ultralytics.utils import LOGGER

        LOGGER.info(f"VMamba: {doing} with {threads} of {cores} CPU cores; OMP_NUM_THREADS=N takes N")


def cores_here() -> int:
    """Return the number of cores that this process may use, by its affinity and by the quota of its container."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = QUOTA.read_text(encoding="utf-8").split()
        return max(1, min(cores, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):  # another system, or no quota: "max"
        return cores


def chosen_threads() -> int | None:
    """Return the OMP_NUM_THREADS that a user chose, or None where there is none.

    Ultralytics sets the variable to 1 where it is missing. So a 1 of now does not tell, but the environment with which
    the process was started does. Windows keeps only the present one: there 1 counts as Ultralytics' own.
    """
    now = threads_in(os.environ)
    if now > 1:  # also set by a program before it imports this
        return now
    try:
        started = threads_in(psutil.Process().environ())
    except (psutil.Error, OSError, NotImplementedError):  # a system that does not show it
        return None
    return None if started < 1 or (started == 1 and os.name == "nt") else started


def threads_in(environment: Mapping[str, str]) -> int:
    """Return the OMP_NUM_THREADS of an environment, of a list for nested loops the first; 0 for none."""
    text = environment.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(text) if text.isdecimal() else 0
