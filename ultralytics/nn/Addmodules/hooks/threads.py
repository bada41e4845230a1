# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Training on a CPU uses all of its cores, whatever door it comes through."""

from __future__ import annotations

import os

import psutil
import torch

from ..layers.state_space import StateSpace

__all__ = ("chosen_threads", "use_all_cores")


def use_all_cores(trainer) -> None:
    """Let PyTorch use every core for a model with our layers; a callback for the start of training.

    When it selects the CPU, Ultralytics leaves one core out and takes eight at most: of two cores, one.

    Args:
        trainer (BaseTrainer): Upstream's, its device selected and its model built.
    """
    if trainer.device.type != "cpu" or not any(isinstance(m, StateSpace) for m in trainer.model.modules()):
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = chosen_threads() or cores
    torch.set_num_threads(threads)
    from ultralytics.utils import LOGGER

    LOGGER.info(f"VMamba: training with {threads} of {cores} CPU cores; OMP_NUM_THREADS=N takes N")


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
