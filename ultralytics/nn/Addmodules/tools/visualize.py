# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""`vmamba visualize erf|activations|orders`: pictures of what models see.

Effective receptive fields and activation maps of any model files side by side, and the scan orders over an image.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from ..grafting.model_file import read_model
from .activations import activation
from .draw import plot_activations, plot_orders, plot_receptive_fields
from .models_and_images import calibrate, capture, find_layers, load, read_pictures
from .receptive_fields import SHARES, Field, receptive_fields
from .report_rows import columns
from .scan_orders import ORDERS

__all__ = ("draw_activations", "draw_erf", "draw_orders")

# Token orders by type of layer, the first `directions` of them. VSSBlock holds an SS2D, C2fSS2D a ConvSS2D.
SCANS = {"MambaLayer": [*ORDERS][:2], "SS2D": [*ORDERS], "ConvSS2D": [*ORDERS]}


def _label(file: str) -> str:
    """Return a model's name in a picture: its run's folder for best.pt and last.pt, and a note if it is untrained.

    Examples:
        >>> _label("runs/detect/mine/weights/best.pt"), _label("yolov8n.yaml")
        ('mine', 'yolov8n (untrained)')
    """
    path = Path(file).absolute()
    if path.parent.name == "weights" and path.stem in {"best", "last"}:
        return path.parents[1].name
    return path.stem if path.suffix == ".pt" else f"{path.stem} (untrained)"


@dataclass(frozen=True)
class Subject:
    """A model to be drawn: its name, itself, its layers by title, and whether it has never been trained."""

    name: str
    model: nn.Module
    layers: dict[str, nn.Module]
    untrained: bool

    def inputs(self, images: Sequence[Tensor]) -> list[Tensor]:
        """Return images on the model's device, and if it is untrained calibrate it on them."""
        images = [x.to(next(self.model.parameters()).device) for x in images]
        if self.untrained:
            calibrate(self.model, images)
        return images


def _subjects(args: SimpleNamespace) -> tuple[list[Subject], int]:
    """Return the models that a command line names, and the image size that fits the strides of all."""
    from ultralytics.utils.checks import check_imgsz

    names = args.names or [_label(file) for file in args.models]
    if len(names) != len(args.models) or len(set(names)) != len(names):
        raise ValueError(f"{len(args.models)} models need as many different names=, got: {', '.join(names)}")
    device = f"cuda:{args.device}" if args.device.isdecimal() else args.device
    try:
        torch.zeros(1, device=device).cpu()  # 'meta' computes nothing
    except (RuntimeError, AssertionError) as e:
        raise ValueError(f"device '{args.device}' cannot be used, device=cpu can: {str(e).splitlines()[0]}") from e
    models = [load(file).to(device) for file in args.models]
    imgsz = check_imgsz(args.imgsz, max(32, *(int(max(m.stride)) for m in models)), max_dim=1)
    layers = [find_layers(m, args.layers, imgsz, file) for m, file in zip(models, args.models)]
    untrained = [Path(file).suffix != ".pt" for file in args.models]
    return [Subject(*parts) for parts in zip(names, models, layers, untrained)], imgsz


def saving(draw: Callable[[SimpleNamespace], Figure]) -> Callable[[SimpleNamespace], int]:
    """Decorate a function that draws: it saves its figure where `out` says and returns an exit status."""

    @wraps(draw)
    def run(args: SimpleNamespace) -> int:
        out = _target(args, draw.__name__)  # before the work, which may be long
        figure = draw(args)
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(out, bbox_inches="tight", pad_inches=0.05)
        except OSError as e:
            raise OSError(f"cannot write '{out}': {e.strerror or e}") from e
        print(f"Saved: {out}")
        return 0

    return run


def _target(args: SimpleNamespace, name: str) -> Path:
    """Return where to save; a picture that exists is replaced only on request."""
    from ultralytics.utils import RUNS_DIR
    from ultralytics.utils.files import increment_path

    default = f"{name.removeprefix('draw_')}.png"
    out = Path(args.out) if args.out else increment_path(RUNS_DIR / "visualize" / default, args.exist_ok)
    formats = sorted(Figure().canvas.get_supported_filetypes())
    if out.suffix[1:].lower() not in formats:
        raise ValueError(f"cannot save as '{out.name}': its name must end with .{', .'.join(formats)}")
    if out.exists() and not (args.exist_ok and out.is_file()):
        raise FileExistsError(f"'{out}' exists: choose another out=, or replace a picture with exist_ok=True")
    there = next(folder for folder in out.absolute().parents if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise OSError(f"cannot write '{out}': '{there}' is no folder that can be written to")
    return out


@saving
def draw_erf(args: SimpleNamespace) -> Figure:
    """Measure and draw effective receptive fields."""
    subjects, imgsz = _subjects(args)
    if args.images:
        images = [p.tensor() for p in read_pictures(args.images, args.count, imgsz)]
    else:
        seeded = torch.Generator().manual_seed(0)
        images = [torch.rand(1, 3, imgsz, imgsz, generator=seeded) for _ in range(args.count)]
    width = max(columns(s.name) for s in subjects) + 2
    shares = "".join(f"{100 * s:>6g} %" for s in SHARES)
    print(f"Mean of {len(images)} images{'' if args.images else ' of noise'}, {imgsz} x {imgsz} pixels")
    print(f"{'gradient':<{width + 24}}{'square, px':>24}{'part of image, %':>26}{'reached':>10}")
    print(f"{'':<{width + 24}}{shares}  {shares}{'%':>10}")
    fields: dict[str, dict[str, Field]] = {}
    for s in subjects:
        found = receptive_fields(s.model, list(s.layers.values()), s.inputs(images))
        fields[s.name] = dict(zip(s.layers, found))
        for title, field in fields[s.name].items():
            sides, parts = zip(*field.spread())
            figures = "".join(f"{n:>8}" for n in sides) + "  " + "".join(f"{100 * p:>8.1f}" for p in parts)
            reached = 100 * float((field.values > 0).double().mean())
            print(f"{s.name}{' ' * (width - columns(s.name))}{title:<24}{figures}{reached:>10.1f}", flush=True)
    return plot_receptive_fields(fields)


@saving
def draw_activations(args: SimpleNamespace) -> Figure:
    """Run models and draw their maps."""
    subjects, imgsz = _subjects(args)
    pictures = read_pictures(args.images or _samples(), args.count, imgsz)
    heats: list[dict[str, dict[str, np.ndarray]]] = [{} for _ in pictures]
    for s in subjects:
        for picture, heat, x in zip(pictures, heats, s.inputs([p.tensor() for p in pictures])):
            with torch.no_grad():
                outputs = capture(s.model, list(s.layers.values()), x)
            heat[s.name] = {title: activation(out, picture, args.reduce) for title, out in zip(s.layers, outputs)}
    return plot_activations(pictures, heats)


@saving
def draw_orders(args: SimpleNamespace) -> Figure:
    """Draw the orders that are named, or those of the models' layers, or all."""
    used = {(kind, order) for kind, orders in SCANS.items() for order in orders}
    if args.models:
        layers = [m for file in args.models for m in read_model(file)[0].model.modules() if type(m).__name__ in SCANS]
        kinds = [(type(m).__name__, getattr(m, "directions", None)) for m in layers]
        used = {(kind, order) for kind, directions in kinds for order in SCANS[kind][:directions]}
        if not used:
            raise ValueError(f"no {' or '.join(SCANS)} in {', '.join(args.models)}: name orders with orders= instead")
    users = {order: ", ".join(kind for kind in SCANS if (kind, order) in used) for order in ORDERS}
    wanted = args.orders or [order for order in ORDERS if users[order]]
    for order in wanted:
        if order not in ORDERS:
            raise ValueError(f"unknown order '{order}': choose from {', '.join(ORDERS)}")
    titles = {order: "\n".join(filter(None, (order.replace("-", ", "), users[order]))) for order in wanted}
    return plot_orders(read_pictures(args.images or _samples(), 1, args.imgsz)[0], titles, args.grid)


def _samples() -> list[str]:
    """Return the folder of the pictures that come with Ultralytics."""
    from ultralytics.utils import ASSETS

    return [str(ASSETS)]
