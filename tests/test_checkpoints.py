# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Checkpoints are an interface: what one of ours holds, and that an old one is read and computes what it did."""

from __future__ import annotations

import copy
import pickletools
import zipfile
from pathlib import Path

import pytest
import torch

from ultralytics import YOLO
from ultralytics.nn.Addmodules.hooks.checkpoints import STORED
from ultralytics.nn.tasks import DetectionModel, torch_safe_load

# Checkpoints of earlier commits. None is ever made again: those of users are as old as they are. A new layer adds one.
FIXTURES = sorted((Path(__file__).parent / "fixtures").glob("*.pt"))
TINY = {
    "nc": 2,
    "reg_max": 4,
    "strides": [8],
    "init_dfl": 0.7,
    "backbone": [
        [-1, 1, "Conv", [8, 3, 2]],
        [-1, 1, "MambaLayer", [None, 4]],
        [-1, 1, "Conv", [8, 3, 2]],
        [-1, 1, "SS2D", []],
        [-1, 2, "VSSBlock", [8, 1, 3, 1, 2, False, 0.1, 0.1]],
        [-1, 1, "Conv", [16, 3, 2]],
        [-1, 1, "C2fVSS", [16]],
        [-1, 1, "C2fSS2D", [16]],
        [-1, 1, "Graft", []],
    ],
    "head": [[[-1], 1, "Detect", ["nc"]]],
}


def picture() -> torch.Tensor:
    """Return an input that is the same on every machine."""
    return torch.linspace(0, 1, 3 * 32 * 40).view(1, 3, 32, 40)


def tiny() -> DetectionModel:
    """Return a model with every layer that a row may name, and their options that add modules."""
    torch.manual_seed(0)
    model = DetectionModel(copy.deepcopy(TINY), verbose=False)
    with torch.no_grad():
        for p in model.parameters():  # away from starts that a loader could make up by itself
            p.add_(0.05 * torch.randn_like(p))
    return model.eval()


def write(name: str) -> None:
    """Write today's model as a new fixture: `cd tests && python -c "import test_checkpoints as t; t.write('mine')"`."""
    file, model = Path(__file__).parent / f"fixtures/{name}.pt", tiny()
    assert not file.exists(), f"{file} is never made again"
    with torch.no_grad():
        torch.save({"model": model, "expected": model(picture())[0], "train_args": {}}, file)


def classes(file: Path) -> set[str]:
    """Return the paths of the classes that a checkpoint names."""
    with zipfile.ZipFile(file) as archive:
        data = archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))
    found, texts = set(), []
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name == "GLOBAL":
            found.add(argument.replace(" ", "."))
        elif opcode.name == "STACK_GLOBAL":
            found.add(".".join(texts[-2:]))
        if isinstance(argument, str):
            texts.append(argument)
    return found


@pytest.mark.parametrize("file", FIXTURES, ids=lambda file: file.stem)
def test_an_old_checkpoint_is_read_and_computes_what_it_did(file: Path) -> None:
    ckpt, _ = torch_safe_load(file, safe_only=True)  # as `YOLO("best.pt")` does under restricted loading
    with torch.no_grad():
        out = ckpt["model"].float().eval()(picture())[0]
    assert (out - ckpt["expected"]).abs().max() <= 1e-5 * ckpt["expected"].abs().max()
    assert YOLO(file).model.names == {0: "0", 1: "1"}


def test_a_checkpoint_names_no_class_of_ours_but_layers(tmp_path: Path) -> None:
    """Every class of ours that a new checkpoint holds is declared in STORED, and some old one has it."""
    torch.save({"model": tiny()}, tmp_path / "new.pt")
    declared = {f"{c.__module__}.{c.__qualname__}" for c in STORED}
    old = set().union(*map(classes, FIXTURES))
    ours = [{c for c in found if "Addmodules" in c} for found in (old, classes(tmp_path / "new.pt"))]
    assert ours[0] == ours[1] == declared


def test_the_start_of_boxes_is_a_number_in_the_checkpoint() -> None:
    head = torch_safe_load(FIXTURES[0], safe_only=True)[0]["model"].model[-1]
    assert head.init_dfl == 0.7
    before = head.cv2[0][-1].bias.clone()
    head.bias_init()
    share = head.cv2[0][-1].bias.float().view(4, 4).softmax(1)
    weights = 0.7 ** torch.arange(4)
    torch.testing.assert_close(share, (weights / weights.sum()).expand(4, -1), atol=1e-3, rtol=0)
    assert not torch.equal(before, head.cv2[0][-1].bias)


@pytest.mark.parametrize("half", [False, True])
def test_a_checkpoint_of_today_comes_back_as_it_was(half: bool, tmp_path: Path) -> None:
    model = tiny()
    model = model.half() if half else model
    torch.save({"model": model}, tmp_path / "new.pt")
    loaded = torch_safe_load(tmp_path / "new.pt", safe_only=True)[0]["model"]
    for (name, a), b in zip(model.state_dict().items(), loaded.state_dict().values(), strict=True):
        assert a.dtype == b.dtype, name
        assert torch.equal(a, b), name
