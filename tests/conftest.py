# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Fixtures of several files. Nothing heavy is imported here: some tests must do without torch, or set it up first."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.register_assert_rewrite("tests.scan_cases", "tests.block_cases", "tests.data", "forks")

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill fresh memory with NaN, so that reading what was never written shows."""
    import torch

    for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
        make = getattr(owner, name)

        def poisoned(*args, _make=make, **kwargs):
            x = _make(*args, **kwargs)
            return x.fill_(float("nan")) if x.is_floating_point() and x.device.type != "meta" else x

        monkeypatch.setattr(owner, name, poisoned)


@pytest.fixture
def threads_put_back() -> Iterator[None]:
    """Let a test change the number of threads."""
    import torch

    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def one_thread(threads_put_back: None) -> None:
    """Compute on one thread: teams of threads wait for each other where other programs hold the cores."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture
def log() -> Iterator[list[str]]:
    """Return the lines that Ultralytics logs."""
    import logging

    from ultralytics.utils import LOGGER

    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    LOGGER.addHandler(handler)
    yield lines
    LOGGER.removeHandler(handler)


@pytest.fixture
def environment() -> dict[str, str]:
    """Return the environment of a process that imports this tree and asks nothing of the network."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "YOLO_OFFLINE": "true"}


@pytest.fixture
def fork(tmp_path: Path):
    """Return a fork with two patches on release 1.0 and a release 1.1 to go to; its path has a quote and a space."""
    from forks import movable_fork

    return movable_fork(tmp_path / "the reader's")


@pytest.fixture
def clone(tmp_path: Path):
    """Return a clone of upstream's repository."""
    from forks import clone_of_upstream

    return clone_of_upstream(tmp_path / "clone")
