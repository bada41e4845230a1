# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""What docs/deploy.md says of a whole model in TorchScript: the size of the export, or any size with `dynamic=True`."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from ultralytics import YOLO

pytestmark = pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.torch.jit:FutureWarning")


@pytest.fixture(scope="module")
def model() -> YOLO:
    torch.manual_seed(0)
    return YOLO("VMamba-yolon.yaml")


def exported(model: YOLO, folder: Path, dynamic: bool) -> torch.jit.ScriptModule:
    """Return the file of a copy, exported at 64 x 64, as a program without Ultralytics loads it."""
    model.save(folder / "m.pt")
    file = YOLO(folder / "m.pt").export(format="torchscript", imgsz=64, dynamic=dynamic, device="cpu")
    return torch.jit.load(file)


@torch.no_grad()
def test_a_dynamic_file_takes_every_size(model: YOLO, tmp_path: Path) -> None:
    file, own = exported(model, tmp_path, dynamic=True), copy.deepcopy(model.model).eval()
    for shape in ((1, 3, 64, 64), (2, 3, 96, 64), (1, 3, 128, 160)):
        x = torch.rand(shape, generator=torch.Generator().manual_seed(1))
        torch.testing.assert_close(file(x), own(x)[0], rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_a_file_of_one_size_takes_no_other(model: YOLO, tmp_path: Path) -> None:
    """A wrong result at another size would be worse than this error: the anchors are those of the export."""
    file = exported(model, tmp_path, dynamic=False)
    assert file(torch.zeros(1, 3, 64, 64)).shape == (1, 84, 84)
    with pytest.raises(RuntimeError):
        file(torch.zeros(1, 3, 96, 64))
    page = (Path(__file__).parents[1] / "docs/deploy.md").read_text(encoding="utf-8")
    (row,) = [line for line in page.splitlines() if line.startswith("| `torchscript` |")]
    assert "the size of the export; any size with `dynamic=True`" in row
