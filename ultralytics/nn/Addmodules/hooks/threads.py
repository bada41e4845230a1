# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""A model of ours uses all cores of a CPU, whatever door it comes through."""

from __future__ import annotations

import os

import psutil
import torch

from ..layers.state_space import StateSpace

__all__ = ("chosen_threads", "cores_here", "train_with_all_cores", "use_all_cores")

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
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def chosen_threads() -> int | None:
    """Return the OMP_NUM_THREADS with which this process was started, or None where it had none.

    Ultralytics sets the variable to 1 where it is missing, so what it is now does not tell; the environment of the
    process's start does. Windows keeps only the present one: there 1 counts as Ultralytics' own.
    """
    try:
        text = psutil.Process().environ().get("OMP_NUM_THREADS", "")
    except (psutil.Error, OSError, NotImplementedError):  # a system that does not show it
        return None
    threads = int(text) if text.isdecimal() else 0
    return None if threads < 1 or (threads == 1 and os.name == "nt") else threads
