# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Proves that a patched release works: run by `rebase` and `matrix` in a process of its own, on that tree alone.

It uses what every release offers: YOLO by the name of a model file, a forward pass, and one step of upstream's trainer.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from pathlib import Path

import torch

# Trackers of trainings that releases of upstream call where they are installed: they start services, write files, or
# refuse an old release, and nothing of this fork is in them
TRACKERS = ("clearml", "comet_ml", "dvclive", "mlflow", "neptune", "ray", "tensorboard", "wandb")


class Stepped(BaseException):
    """Ends a training after its first step: what follows there, validation and checkpoints, is not tried here."""


def main(version: str, where: str, pristine: str = "") -> None:
    """Build the model, run it and train it for one step.

    Args:
        version (str): Upstream's version that must be running.
        where (str): Folder that `ultralytics` must come from.
        pristine (str): Not empty: the release has no patches, so try a model of upstream's own.
    """
    sys.modules.update(dict.fromkeys(TRACKERS))  # None: importing one fails, as if it were not installed
    import ultralytics
    from ultralytics import YOLO

    torch.set_num_threads(1)
    assert Path(ultralytics.__file__).resolve().parents[1] == Path(where).resolve(), ultralytics.__file__
    assert ultralytics.__version__ == version, f"ultralytics {ultralytics.__version__} runs, not {version}"

    torch.manual_seed(0)
    model = YOLO("yolov8n.yaml" if pristine else "VMamba-yolov8n.yaml", task="detect")
    if not pristine:
        from ultralytics.nn.Addmodules import Mamba, MambaLayer

        layers = [m for m in model.model.modules() if isinstance(m, MambaLayer)]
        assert len(layers) == 6, f"{len(layers)} MambaLayers, not 6"
    assert model.model.stride.tolist() == [8, 16, 32], model.model.stride
    with torch.no_grad():
        out = model.model.eval()(torch.rand(1, 3, 64, 64))
    out = out[0] if isinstance(out, (tuple, list)) else out
    assert out.shape == (1, 4 + model.model.yaml["nc"], 64 + 16 + 4), out.shape
    assert torch.isfinite(out).all(), "the forward pass gives values that are not finite"

    seen = {}

    def start(trainer) -> None:
        seen["before"] = [p.detach().clone() for p in trainer.model.parameters()]

    def step(trainer) -> None:
        seen["loss"], seen["decayed"] = float(trainer.loss), 0 if pristine else _decayed(trainer)
        seen["after"] = [p.detach().clone() for p in trainer.model.parameters()]
        raise Stepped

    def _decayed(trainer) -> int:
        """Count the state space parameters that are decayed."""
        own = {id(p) for m in trainer.model.modules() if isinstance(m, Mamba) for p in m.state_parameters().values()}
        return sum(id(p) in own for g in trainer.optimizer.param_groups if g["weight_decay"] for p in g["params"])

    model.add_callback("on_train_start", start)
    model.add_callback("on_train_batch_end", step)
    with tempfile.TemporaryDirectory(dir=".") as folder:
        settings = {"epochs": 1, "imgsz": 64, "batch": 4, "nbs": 4, "warmup_epochs": 0, "lr0": 0.01, "workers": 0}
        settings |= {"optimizer": "AdamW", "device": "cpu", "val": False, "plots": False, "verbose": False}
        with contextlib.suppress(Stepped):
            model.train(data=str(_data(Path(folder).resolve())), project=folder, name="run", **settings)
    assert "after" in seen, "no training step was made"
    assert torch.isfinite(torch.tensor(seen["loss"])), f"the loss is {seen['loss']}"
    assert seen["decayed"] == 0, f"{seen['decayed']} state space parameters are decayed"
    assert all(torch.isfinite(p).all() for p in seen["after"]), "the training step gives weights that are not finite"
    moved = sum(not torch.equal(a, b) for a, b in zip(seen["before"], seen["after"]))
    assert moved > 0.9 * len(seen["after"]), f"the training step moves {moved} of {len(seen['after'])} parameters"
    print(f"\nsmoke test passed: strides 8, 16, 32; loss {seen['loss']:.4f}; {moved} parameters moved")


def _data(folder: Path) -> Path:
    """Write four pictures with one box each and return their data set's YAML."""
    from PIL import Image

    (folder / "images").mkdir()
    (folder / "labels").mkdir()
    for i in range(4):
        pixels = torch.randint(0, 256, (64, 64, 3), dtype=torch.uint8)
        Image.frombytes("RGB", (64, 64), bytes(pixels.flatten().tolist())).save(folder / f"images/{i}.png")
        (folder / f"labels/{i}.txt").write_text(f"{i % 2} 0.5 0.5 0.{i + 4} 0.5\n", encoding="utf-8")
    path = folder / "data.yaml"
    path.write_text(f"path: {folder.as_posix()}\ntrain: images\nval: images\nnames: {{0: a, 1: b}}\n", encoding="utf-8")
    return path


if __name__ == "__main__":
    main(*sys.argv[1:])
