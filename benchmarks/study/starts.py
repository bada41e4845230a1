# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""The files that trainings of a study start from."""

from __future__ import annotations

from pathlib import Path

import torch
import yaml
from torch import nn

from benchmarks.study import variants
from benchmarks.study.parts import COCO, SCRATCH, Model
from ultralytics import YOLO
from ultralytics.nn.Addmodules import graft
from ultralytics.nn.Addmodules.layers.graft import ZeroProjection

__all__ = ("write",)

YAML = "yolov5n.yaml"
TRAINED = 342  # tensors of the rows before the head, which are the same in YOLOv5's own release


def write(models: dict[str, Model], data: Path, weights: Path, seed: int, folder: Path) -> dict[str, str]:
    """Write what models start from and return the file of each; a model YAML is its own.

    Models of one seed have everything in common but their grafts: a graft is made of what stock starts as.

    Args:
        models (dict[str, Model]): What to start, by name.
        data (Path): YAML of the data set; heads get its classes.
        weights (Path): State dict of YOLOv5n, trained on COCO.
        seed (int): Of what no file gives: heads and grafts.
        folder (Path): Where files go.

    Raises:
        ValueError: If the weights are not those of YOLOv5n.
    """
    names, found = yaml.safe_load(data.read_text(encoding="utf-8"))["names"], {}
    folder.mkdir(parents=True, exist_ok=True)
    for name, model in models.items():
        if model.start in variants.VARIANTS:
            found[name] = str(variants.write(model.start, folder))
        elif model.start not in (COCO, SCRATCH):
            found[name] = model.start
        else:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                module = start(model, names, weights)
            file = folder / f"{name}-seed{seed}.pt"
            torch.save({"epoch": -1, "model": module, "train_args": {"task": "detect"}}, file)
            found[name] = str(file)
    return found


def start(model: Model, names: dict[int, str], weights: Path) -> nn.Module:
    """Return YOLOv5n with a new head, and its grafts if it has some; the rest is drawn, or taken from the weights."""
    made = YOLO(YAML)
    made.model = type(made.model)({**made.model.yaml, "nc": len(names)}, nc=len(names), verbose=False)
    made.model.names = dict(names)
    if model.start == COCO:
        load(made.model, weights)
    if model.graft is not None:
        made = graft(made, **model.graft)
    if not model.zero:
        for m in made.model.modules():
            if isinstance(m, ZeroProjection):
                nn.Conv2d.reset_parameters(m)
    return made.model.float()


def load(module: nn.Module, weights: Path) -> None:
    """Give a YOLOv5n the weights of all rows before its head."""
    state = torch.load(weights, weights_only=True)
    kept = {k: v for k, v in state.items() if not k.startswith("model.24.")}
    own = module.state_dict()
    if len(kept) != TRAINED or any(k not in own or own[k].shape != v.shape for k, v in kept.items()):
        raise ValueError(f"'{weights}' does not hold the {TRAINED} tensors of YOLOv5n before its head")
    module.load_state_dict(kept, strict=False)
