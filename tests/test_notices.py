# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""What gives a machine less than it could have: one line in the log of training, validation and prediction."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from tests.data import make_data
from ultralytics import YOLO
from ultralytics.nn.Addmodules import SS2D, MambaLayer
from ultralytics.nn.Addmodules.hooks import notices, threads
from ultralytics.nn.Addmodules.selective_scan import registry
from ultralytics.nn.Addmodules.tools import machine

CPU = registry.get("cpu")
IMAGE = np.full((64, 64, 3), 114, np.uint8)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_data(tmp_path_factory.mktemp("data"), "detect", 4, 2))


@pytest.fixture
def log(log: list[str], monkeypatch: pytest.MonkeyPatch, threads_put_back: None) -> list[str]:
    """Return what is logged in a process that has said nothing yet."""
    for module, name in ((notices, "_said"), (threads, "_said"), (registry, "_logged")):
        monkeypatch.setattr(module, name, set())
    return log


def train(model: YOLO, data: str, folder: Path) -> None:
    settings = {"epochs": 1, "imgsz": 64, "batch": 2, "plots": False, "device": "cpu"}
    model.train(data=data, project=str(folder), **settings)


def validate(model: YOLO, data: str, folder: Path) -> None:
    for _ in range(2):
        model.val(data=data, imgsz=64, batch=2, plots=False, device="cpu", project=str(folder), verbose=False)


def predict(model: YOLO, data: str, folder: Path) -> None:
    for _ in range(2):
        model.predict(IMAGE, imgsz=64, device="cpu", verbose=False)


class Larger(nn.Linear):
    """A linear layer of somebody's own."""


def no_library(patch: pytest.MonkeyPatch, model: YOLO) -> None:
    patch.setattr(CPU, "works", False)
    patch.setattr(CPU, "about", "no compiled library")


def old_library(patch: pytest.MonkeyPatch, model: YOLO) -> None:
    patch.setattr(CPU, "works", False)
    patch.setattr(CPU, "about", "the library is of an older version")


def forced(patch: pytest.MonkeyPatch, model: YOLO) -> None:
    patch.setattr(registry, "_forced", "chunked")


def one_core(patch: pytest.MonkeyPatch, model: YOLO) -> None:
    patch.setattr(threads, "chosen_threads", lambda: 1)


def hook(patch: pytest.MonkeyPatch, model: YOLO) -> None:
    next(m for m in model.model.modules() if isinstance(m, SS2D)).in_proj.register_forward_hook(lambda *x: None)


def replaced(patch: pytest.MonkeyPatch, model: YOLO) -> None:
    block = next(m for m in model.model.modules() if isinstance(m, SS2D))
    own = Larger(block.in_proj.in_features, block.in_proj.out_features, bias=False)
    own.requires_grad_(block.in_proj.weight.requires_grad)
    block.in_proj = own


CALLED = (
    "1 block with scans run operation by operation, slower and with more memory, because of hooks or replaced layers"
)
MODES = {
    no_library: "plain PyTorch on cpu, many times slower than compiled kernels (cpu: no compiled library)",
    old_library: "plain PyTorch on cpu, many times slower than compiled kernels (cpu: the library is of an older",
    forced: "forces the backend 'chunked' for every scan; without that each scan takes the fastest",
    one_core: f"with 1 of {threads.cores_here()} CPU cores",
    hook: CALLED,
    replaced: CALLED,
}


@pytest.mark.parametrize("door", [train, validate, predict], ids=lambda f: f.__name__)
@pytest.mark.parametrize(("mode", "text"), MODES.items(), ids=lambda x: getattr(x, "__name__", ""))
def test_one_line_in_the_log(
    mode: Callable,
    text: str,
    door: Callable,
    data: str,
    tmp_path: Path,
    log: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if mode in (hook, replaced) and door is train:
        pytest.skip("a training builds its model anew; hooks come by callbacks, as in the next test")
    model = YOLO("VMamba-yolon.yaml")
    mode(monkeypatch, model)
    door(model, data, tmp_path)
    said = [line for line in log if text in line]
    assert len(said) == 1, log


def test_hooks_that_a_callback_puts_on_a_training(data: str, tmp_path: Path, log: list[str]) -> None:
    model = YOLO("VMamba-yolon.yaml")
    events = model.callbacks["on_pretrain_routine_end"]
    events.append(lambda trainer: hook(None, trainer))
    train(model, data, tmp_path)
    assert len([line for line in log if MODES[hook] in line]) == 1


def test_nothing_is_said_where_nothing_is_less(data: str, tmp_path: Path, log: list[str]) -> None:
    predict(YOLO("VMamba-yolon.yaml"), data, tmp_path)
    assert not [line for line in log if "slower" in line or "backend" in line]


def test_stock_models_say_nothing_and_keep_their_threads(data: str, log: list[str], tmp_path: Path) -> None:
    predict(YOLO("VMamba-yolon.yaml"), data, tmp_path)
    log.clear()
    notices._said.clear()
    threads._said.clear()
    with registry.use_backend("chunked"):
        predict(YOLO("yolov8n.yaml"), data, tmp_path)
        validate(YOLO("yolov8n.yaml"), data, tmp_path)
    assert not [line for line in log if "VMamba" in line]
    from ultralytics.utils import NUM_THREADS

    assert torch.get_num_threads() == NUM_THREADS


def test_threads_that_a_program_chose_after_the_first_picture_are_kept(
    data: str, log: list[str], tmp_path: Path
) -> None:
    ours, stock = YOLO("VMamba-yolon.yaml"), YOLO("yolov8n.yaml")
    for model in (ours, stock):
        predict(model, data, tmp_path)
    for model in (ours, stock, ours):
        torch.set_num_threads(3)
        predict(model, data, tmp_path)
        assert torch.get_num_threads() == 3
    from ultralytics.utils import NUM_THREADS

    torch.set_num_threads(NUM_THREADS)  # as another stock model does
    predict(ours, data, tmp_path)
    assert torch.get_num_threads() == (threads.chosen_threads() or threads.cores_here())


@pytest.mark.skipif(not CPU.works, reason="without the compiled library nothing falls back from it")
def test_float64_says_that_it_is_slower(log: list[str]) -> None:
    layer = MambaLayer(8).double()
    for _ in range(2):
        layer(torch.zeros(1, 8, 4, 4, dtype=torch.float64))
    assert len([line for line in log if "plain PyTorch on cpu" in line and "float64" in line]) == 1


@pytest.mark.parametrize(
    ("device", "reasons", "text"),
    [("cuda", {"gpu": "triton cannot be imported"}, "(gpu: triton cannot"), ("mps", {}, "no kernels for mps")],
)
def test_other_devices(device: str, reasons: dict, text: str, log: list[str]) -> None:
    for _ in range(2):
        registry._warn_once(device, reasons)
    assert len(log) == 1
    assert f"plain PyTorch on {device}" in log[0]
    assert text in log[0]


def test_threads_that_a_user_chose(monkeypatch: pytest.MonkeyPatch) -> None:
    started: dict[str, str] = {}
    monkeypatch.setattr(threads.psutil, "Process", lambda: SimpleNamespace(environ=lambda: started))
    monkeypatch.setattr(threads.os, "environ", {})
    assert threads.chosen_threads() is None
    threads.os.environ["OMP_NUM_THREADS"] = "1"  # of Ultralytics
    assert threads.chosen_threads() is None
    threads.os.environ["OMP_NUM_THREADS"] = "3"  # of a program, at its top
    assert threads.chosen_threads() == 3
    threads.os.environ["OMP_NUM_THREADS"] = "1"
    started["OMP_NUM_THREADS"] = "4,2"
    assert threads.chosen_threads() == 4


@pytest.mark.parametrize(("quota", "cores"), [("max 100000", 8), ("150000 100000", 2), ("5 100000", 1), ("", 8)])
def test_cores_of_a_container(quota: str, cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "QUOTA", tmp_path / "cpu.max")
    (tmp_path / "cpu.max").write_text(f"{quota}\n", encoding="utf-8")
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda _: range(8), raising=False)
    assert threads.cores_here() == cores


# Rows of `vmamba checks` ----------------------------------------------------------------------------------------------


def row(name: str) -> machine.Row:
    return next(r for r in machine.environment() if r.item == name)


def test_rows_of_checks(monkeypatch: pytest.MonkeyPatch, threads_put_back: None) -> None:
    monkeypatch.setattr(threads, "chosen_threads", lambda: 1)
    monkeypatch.setattr(machine, "cores_here", lambda: 4)
    found = row("threads")
    assert found.detail == "1 of 4 cores, as OMP_NUM_THREADS says"
    monkeypatch.setattr(threads, "chosen_threads", lambda: None)
    assert row("threads").detail == "4 of 4 cores for models of this fork"
    assert row("float64 on cpu").detail.startswith("chunked: ")
    with registry.use_backend("chunked"):
        assert row("scan on cpu").detail == "chunked, forced by VMAMBA_BACKEND"
    monkeypatch.setattr(CPU, "works", False)
    monkeypatch.setattr(CPU, "about", "no compiled library")
    assert row("backend cpu").detail == "no compiled library"
    assert "To compile it" in row("backend cpu").advice
    assert row("backend gpu").state == ("ok" if torch.cuda.is_available() else "absent")


# Embeddings -----------------------------------------------------------------------------------------------------------


def test_an_embedding_of_another_level_is_said(log: list[str]) -> None:
    for _ in range(2):
        (vector,) = YOLO("VMamba-yolon.yaml").embed(IMAGE, imgsz=64, device="cpu", verbose=False)
        assert vector.shape == (64,)
    (line,) = [line for line in log if "embedding" in line]
    assert "row 16" in line
    assert "embed=[10]" in line
    (deep,) = YOLO("VMamba-yolon.yaml").predict(IMAGE, embed=[10], imgsz=64, device="cpu", verbose=False)
    assert deep.shape == (256,)
    log.clear()
    notices._said.clear()
    YOLO("VMamba-yolov8n.yaml").embed(IMAGE, imgsz=64, device="cpu", verbose=False)
    YOLO("VMamba-yolon.yaml").predict(IMAGE, embed=[10], imgsz=64, device="cpu", verbose=False)
    assert not [line for line in log if "embedding" in line]
