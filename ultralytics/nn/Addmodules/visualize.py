# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Pictures of what models see: `python -m ultralytics.nn.Addmodules.visualize erf|activations|orders`.

Effective receptive fields and activation maps of any model files side by side, and the scan orders over an image. The
functions serve Python too; figures are drawn without pyplot, so no backend or other setting of the caller changes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import matplotlib
import numpy as np
import torch
from matplotlib import font_manager
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor, nn

__all__ = ("Field", "Picture", "activation", "load", "main", "read_pictures", "receptive_fields", "token_path")

COMMAND = "python -m ultralytics.nn.Addmodules.visualize"
ORDERS = ("rows", "rows-reversed", "columns", "columns-reversed")
# Token orders by type of layer, the first `directions` of them. VSSBlock holds an SS2D, C2fSS2D a ConvSS2D.
SCANS = {"MambaLayer": ORDERS[:2], "SS2D": ORDERS, "ConvSS2D": ORDERS}
SHARES = 0.5, 0.9, 0.99  # of the gradient
FLOOR = 1e-4  # of the largest gradient: black, and all below it
PANEL, DPI = 2.2, 150  # inches, pixels an inch
CHINESE = {"Microsoft YaHei", "PingFang SC", "Noto Sans CJK SC", "WenQuanYi Zen Hei"}  # fonts for names, where there
STYLE = {
    "font.family": ["DejaVu Sans", *sorted(CHINESE & {f.name for f in font_manager.fontManager.ttflist})],
    "font.size": 7,
    "axes.titlesize": 8,
    "axes.titlepad": 4,
}
REDUCE: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda x: x.abs().mean(0),
    "norm": lambda x: x.norm(dim=0),
    "max": lambda x: x.abs().amax(0),
}


@dataclass(frozen=True)
class Picture:
    """A letterboxed image.

    Attributes:
        name (str): File name.
        pixels (np.ndarray): RGB, uint8 (S, S, 3).
        content (tuple[slice, slice]): Rows and columns without the padding.
    """

    name: str
    pixels: np.ndarray
    content: tuple[slice, slice]

    def tensor(self) -> Tensor:
        """Return what the model gets, float (1, 3, S, S) from 0 to 1."""
        return torch.from_numpy(self.pixels).permute(2, 0, 1)[None].float() / 255


# What is measured -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Field:
    """Effective receptive field of one unit.

    Attributes:
        values (Tensor): Gradient by pixel, largest 1, float64 (H, W).
        unit (tuple[int, int]): Row and column of the pixel that the unit sits on: its index times the stride, as the
            3 x 3 convolutions of stride 2 and padding 1 of YOLO have it.
    """

    values: Tensor
    unit: tuple[int, int]

    def spread(self, shares: Sequence[float] = SHARES) -> list[tuple[int, float]]:
        """Return how far it spreads, for each share of the gradient.

        Returns:
            (list[tuple[int, float]]): Side of the square around the unit that holds the share, at most the image's; and
                the fewest pixels that hold it, as a part of the image.

        Examples:
            >>> Field(torch.ones(5, 5), (2, 2)).spread([0.36])
            [(3, 0.36)]
        """
        rows, columns = (torch.arange(n) - at for n, at in zip(self.values.shape, self.unit))
        distance = torch.maximum(rows.abs()[:, None], columns.abs()[None])
        rings = torch.zeros(int(distance.max()) + 1, dtype=self.values.dtype)
        around = rings.index_add(0, distance.flatten(), self.values.flatten()).cumsum(0)
        best = self.values.flatten().sort(descending=True).values.cumsum(0)
        results = []
        for share in shares:
            wanted = share * float(best[-1]) * (1 - 1e-12)  # sums in different orders differ in their last digits
            side, pixels = 2 * int((around < wanted).sum()) + 1, int((best < wanted).sum()) + 1
            results.append((min(side, max(self.values.shape)), pixels / best.numel()))
        return results


class _Captured(Exception):
    """Ends a forward pass when the last output wanted is there."""


def capture(model: nn.Module, layers: Sequence[nn.Module], x: Tensor) -> list[Tensor]:
    """Return the outputs of layers, each called once by the model; what comes after the last of them does not run."""
    found: dict[nn.Module, Tensor] = {}

    def keep(layer: nn.Module, _, output: Tensor) -> None:
        found[layer] = output
        if len(found) == len(hooks):
            raise _Captured

    hooks = [layer.register_forward_hook(keep) for layer in set(layers)]
    try:
        model(x)
    except _Captured:
        pass
    finally:
        for hook in hooks:
            hook.remove()
    return [found[layer] for layer in layers]


def receptive_fields(model: nn.Module, layers: Sequence[nn.Module], images: Iterable[Tensor]) -> list[Field]:
    """Return the effective receptive field of the middle unit of each layer.

    It is the gradient of that unit, its channels added, by the pixels: absolute, summed over colours, mean of images.

    Args:
        model (nn.Module): Model in eval mode.
        layers (Sequence[nn.Module]): Modules whose outputs are maps (B, C, h, w).
        images (Iterable[Tensor]): Inputs (1, C, H, W), of one size.

    Raises:
        ValueError: If a layer has no finite gradient.

    Source:
        Luo et al., "Understanding the Effective Receptive Field in Deep Convolutional Neural Networks", 2016.

    Examples:
        >>> conv = torch.nn.Conv2d(3, 4, 3, padding=1)
        >>> field = receptive_fields(conv, [conv], [torch.rand(1, 3, 7, 7)])[0]
        >>> int((field.values > 0).sum()), field.unit
        (9, (3, 3))
    """
    sums, units = [torch.zeros(()) for _ in layers], {}
    for image in images:
        x = image.detach().clone().requires_grad_()
        with torch.enable_grad():
            outputs = capture(model, layers, x)
            middles = [[n // 2 for n in out.shape[2:]] for out in outputs]
            totals = [out[0, :, row, column].sum() for out, (row, column) in zip(outputs, middles)]
        for i, (out, middle, total) in enumerate(zip(outputs, middles, totals)):
            units[i] = tuple(at * (side // n) for at, side, n in zip(middle, x.shape[2:], out.shape[2:]))
            if total.requires_grad:
                (grad,) = torch.autograd.grad(total, x, retain_graph=i + 1 < len(layers), allow_unused=True)
                sums[i] = sums[i] + (0 if grad is None else grad.abs().sum((0, 1)).cpu().double())
    for layer, values in zip(layers, sums):
        if not 0 < values.sum() < float("inf"):
            raise ValueError(f"{type(layer).__name__} has no finite gradient by the pixels: are its weights sound?")
    return [Field(values / values.max(), units[i]) for i, values in enumerate(sums)]


def activation(output: Tensor, picture: Picture, reduce: str = "mean") -> np.ndarray:
    """Return the strength of a map over a picture's content, 0 to 1 from its 1st to its 99th percentile.

    Args:
        output (Tensor): Output of a layer (1, C, h, w).
        picture (Picture): The letterboxed image that it came from.
        reduce (str): Over the channels: "mean" or "max" of absolute values, or Euclidean "norm".
    """
    strength = REDUCE[reduce](output[0].detach().float()).cpu().numpy()
    at = []
    for part, size, n in zip(picture.content, picture.pixels.shape, strength.shape):
        # Between cell centres, but never beyond the last one on the content: the padding's cells are brighter or darker
        cells, inside = (np.arange(size) + 0.5) * n / size - 0.5, (np.arange(n) + 0.5) * size / n
        inside = np.flatnonzero((inside >= part.start) & (inside <= part.stop))
        at.append(cells[part].clip(*inside[[0, -1]]) if len(inside) else cells[part])
    y, x = np.meshgrid(*at, indexing="ij")
    heat = cv2.remap(strength, x.astype(np.float32), y.astype(np.float32), cv2.INTER_LINEAR, None, cv2.BORDER_REPLICATE)
    low, high = np.percentile(heat, (1, 99))
    return np.clip((heat - low) / (high - low), 0, 1) if high > low else np.zeros_like(heat)


def token_path(order: str, height: int, width: int) -> np.ndarray:
    """Return the cells of a map in the order in which they are scanned, (L, 2) rows and columns.

    Raises:
        ValueError: If the order is unknown.

    Examples:
        >>> token_path("columns", 2, 2).tolist()
        [[0, 0], [1, 0], [0, 1], [1, 1]]
    """
    if order not in ORDERS:
        raise ValueError(f"unknown order '{order}': choose from {', '.join(ORDERS)}")
    cells = np.stack(np.indices((height, width)), -1)  # (H, W, 2)
    path = (cells if order.startswith("rows") else cells.transpose(1, 0, 2)).reshape(-1, 2)
    return path[::-1] if order.endswith("reversed") else path


# Models, layers and images --------------------------------------------------------------------------------------------


def load(file: str) -> nn.Module:
    """Return the model of a .yaml (untrained, from a fixed seed) or .pt file, in float32 and eval mode.

    Raises:
        FileNotFoundError: If there is no such file, and Ultralytics has none of that name to download.
        ValueError: If the file cannot be read, or holds no model for RGB images.
    """
    from ultralytics import RTDETR, YOLO
    from ultralytics.utils.downloads import GITHUB_ASSETS_NAMES

    path = Path(file)
    if path.suffix not in {".yaml", ".yml", ".pt"}:
        raise ValueError(f"'{file}' is no model file: give a .yaml (untrained) or a .pt (trained)")
    if path.suffix == ".pt" and not path.is_file() and path.name not in GITHUB_ASSETS_NAMES:
        raise FileNotFoundError(f"no such model file: '{file}'")
    build = RTDETR if path.stem.startswith("rtdetr") else partial(YOLO, verbose=False)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)  # torch.manual_seed would touch the GPUs' generators as well
            model = build(file).model.float().eval().requires_grad_(False)
        channels, _ = model.yaml.get("channels", 3), model.yaml["backbone"]
    except Exception as e:  # whatever a parser or unpickler raises on a foreign file is the file's fault
        raise ValueError(f"cannot read the model '{file}': {type(e).__name__}: {e}") from e
    if channels != 3:
        raise ValueError(f"'{file}' takes images of {channels} channels: only models for RGB images can be drawn")
    return model


def calibrate(model: nn.Module, images: Iterable[Tensor]) -> None:
    """Give an untrained model the batch-norm statistics of images, as its first training step would use them.

    With the initial ones (mean 0, variance 1) signals fade by orders of magnitude from layer to layer.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.train().momentum = None  # the plain mean over images
    with torch.no_grad():
        for image in images:
            model(image)
    model.eval()


def find_layers(model: nn.Module, names: Sequence[str], imgsz: int, file: str = "the model") -> dict[str, nn.Module]:
    """Return layers of a model, by their titles in a picture.

    Args:
        model (nn.Module): Ultralytics model.
        names (Sequence[str]): "P3" is the last backbone layer at stride 2^3, "N3" the last of the neck, "4" layer 4.
        imgsz (int): Side of the images.
        file (str): Name of the model for messages.

    Raises:
        ValueError: If there is no such layer, or it gives no map.
    """
    rows, backbone = list(model.model)[:-1], len(model.yaml["backbone"])
    with torch.no_grad():
        outputs = capture(model, rows, torch.zeros(1, 3, imgsz, imgsz, device=next(model.parameters()).device))
    maps = [i for i, x in enumerate(outputs) if isinstance(x, Tensor) and x.dim() == 4]
    levels = {f"{'P' if i < backbone else 'N'}{np.log2(imgsz / outputs[i].shape[2]):g}": i for i in maps}
    titles = [f"layer {i}, {getattr(m, 'type', type(m).__name__).rsplit('.', 1)[-1]}" for i, m in enumerate(rows)]
    found = {}
    for name in map(str.upper, names):
        i = levels.get(name, int(name) if name.isdecimal() else -1)
        if i not in maps:
            listed = ", ".join(titles[j][6:].replace(",", "") for j in maps)
            raise ValueError(f"{file} has no layer '{name}'. Levels: {', '.join(levels)}. Layers: {listed}")
        found[f"{name}: {titles[i]}" if name in levels else titles[i]] = rows[i]
    return found


def read_pictures(sources: Sequence[str], count: int, imgsz: int) -> list[Picture]:
    """Return the first images of files and folders, letterboxed to a square.

    Raises:
        FileNotFoundError: If a path does not exist, or a folder holds no images.
        ValueError: If a file is no image.
    """
    from ultralytics.data.augment import LetterBox
    from ultralytics.data.utils import IMG_FORMATS
    from ultralytics.utils.patches import imread

    files: list[Path] = []
    for source in map(Path, sources):
        if not source.exists():
            raise FileNotFoundError(f"no such image or folder: '{source}'")
        inside = sorted(p for p in source.rglob("*") if p.suffix[1:].lower() in IMG_FORMATS) if source.is_dir() else []
        if source.is_dir() and not inside:
            raise FileNotFoundError(f"no images in the folder '{source}' (formats: {', '.join(sorted(IMG_FORMATS))})")
        files += inside or [source]
    pictures = []
    for file in files[:count]:
        image = imread(str(file))
        if image is None:
            raise ValueError(f"'{file}' cannot be read as an image")
        # A white image with black padding shows where the content is, however a release of Ultralytics rounds
        mask = LetterBox((imgsz, imgsz), padding_value=0)(image=np.full_like(image, 255)).any(2)
        content = tuple(
            slice(int(n[0]), int(n[-1]) + 1) for n in (np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0)))
        )
        pixels = np.ascontiguousarray(LetterBox((imgsz, imgsz))(image=image)[..., ::-1])
        pictures.append(Picture(file.name, pixels, content))
    return pictures


# Figures --------------------------------------------------------------------------------------------------------------


def _panels(rows: int, columns: int, aspect: float = 1.0) -> tuple[Figure, np.ndarray]:
    """Return a figure and its (rows, columns) axes without ticks; aspect is height by width of a panel."""
    fig = Figure((PANEL * columns + 0.5, (PANEL * aspect + 0.3) * rows + 0.2), DPI, layout="compressed")
    axes = fig.subplots(rows, columns, squeeze=False)
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
    return fig, axes


@matplotlib.rc_context(STYLE)
def plot_receptive_fields(fields: dict[str, dict[str, Field]]) -> Figure:
    """Draw fields by model and layer, one row a model, on one log scale, with the squares that hold `SHARES`."""
    fig, axes = _panels(len(fields), max(map(len, fields.values())))
    for row, (model, layers) in zip(axes, fields.items()):
        row[0].set_ylabel(model)
        for ax, (title, field) in zip(row, layers.items()):
            drawn = ax.imshow(
                field.values.clamp(min=FLOOR).numpy(), "inferno", LogNorm(FLOOR, 1), interpolation="nearest"
            )
            y, x = field.unit
            sides = [side for side, _ in field.spread()]
            for side, style in zip(sides, ("-", "--", ":")):
                corner = x - side / 2, y - side / 2
                ax.add_patch(
                    Rectangle(corner, side, side, fill=False, edgecolor="white", linewidth=0.8, linestyle=style)
                )
            ax.set_title(title)
            ax.set_xlabel(f"{' / '.join(f'{100 * s:g}' for s in SHARES)} %: {' / '.join(map(str, sides))} px")
    bar = fig.colorbar(drawn, ax=axes, pad=0.02, aspect=20 * len(fields), shrink=0.9)
    bar.set_label("gradient, largest = 1")
    return fig


@matplotlib.rc_context(STYLE)
def plot_activations(pictures: Sequence[Picture], heats: Sequence[dict[str, dict[str, np.ndarray]]]) -> Figure:
    """Draw each picture and, at its right, its heat maps by model and layer over a grey copy; one row a model."""
    contents = [p.pixels[p.content] for p in pictures]
    columns = 1 + max(len(layers) for by_model in heats for layers in by_model.values())
    fig, axes = _panels(sum(map(len, heats)), columns, max(x.shape[0] / x.shape[1] for x in contents))
    rows = iter(axes)
    for picture, pixels, by_model in zip(pictures, contents, heats):
        grey = pixels.mean(2, keepdims=True) / 255
        for (model, layers), row in zip(by_model.items(), rows):
            row[0].imshow(pixels)
            row[0].set(title=picture.name, ylabel=model)
            for ax, (title, heat) in zip(row[1:], layers.items()):
                ax.imshow(0.45 * grey + 0.55 * matplotlib.colormaps["turbo"](heat)[..., :3])
                ax.set_title(title)
    return fig


@matplotlib.rc_context(STYLE)
def plot_orders(picture: Picture, orders: dict[str, str], grid: int = 6) -> Figure:
    """Draw token orders over a picture, from disc to square, dark to bright.

    Args:
        picture (Picture): Image.
        orders (dict[str, str]): Titles by name of the order, one panel each.
        grid (int): Cells along the longer side.
    """
    pixels = picture.pixels[picture.content]
    height, width = pixels.shape[:2]
    rows, columns = (max(1, round(grid * n / max(height, width))) for n in (height, width))
    fig, axes = _panels(1, len(orders), height / width)
    for ax, (order, title) in zip(axes[0], orders.items()):
        ax.imshow(0.45 + 0.55 * pixels.mean(2) / 255, "gray", vmin=0, vmax=1)  # pale, so that the arrows stand out
        ax.set_title(title)
        for lines, cells, size in ((ax.axhline, rows, height), (ax.axvline, columns, width)):
            for i in range(1, cells):
                lines(i * size / cells - 0.5, color="white", linewidth=0.8)
        path = token_path(order, rows, columns)
        y, x = (path.T + 0.5) * [[height / rows], [width / columns]] - 0.5
        for i in range(len(path) - 1):
            jump = abs(path[i + 1] - path[i]).sum() > 1  # from the end of a line to the start of the next
            colour = matplotlib.colormaps["plasma"](0.9 * i / len(path))
            style = {"linewidth": 0.8, "linestyle": ":"} if jump else {"linewidth": 1.6, "linestyle": "-"}
            arrow = {"arrowstyle": "-|>", "color": colour, "shrinkA": 1, "shrinkB": 1, "mutation_scale": 8, **style}
            ax.annotate("", (x[i + 1], y[i + 1]), (x[i], y[i]), arrowprops=arrow)
        ax.plot(x[0], y[0], "o", x[-1], y[-1], "s", color="white", markeredgecolor="black", markersize=5)
    return fig


# The command ----------------------------------------------------------------------------------------------------------


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


def _subjects(args: argparse.Namespace) -> tuple[list[Subject], int]:
    """Return the models that a command line names, and the image size that fits the strides of all."""
    from ultralytics.utils.checks import check_imgsz

    names = args.names or [_label(file) for file in args.models]
    if len(names) != len(args.models) or len(set(names)) != len(names):
        raise ValueError(f"{len(args.models)} models need as many different --names, got: {', '.join(names)}")
    device = f"cuda:{args.device}" if args.device.isdecimal() else args.device
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as e:
        raise ValueError(f"device '{args.device}' cannot be used, --device cpu can: {str(e).splitlines()[0]}") from e
    models = [load(file).to(device) for file in args.models]
    imgsz = check_imgsz(args.imgsz, max(32, *(int(max(m.stride)) for m in models)), max_dim=1)
    layers = [find_layers(m, args.layers, imgsz, file) for m, file in zip(models, args.models)]
    untrained = [Path(file).suffix != ".pt" for file in args.models]
    return [Subject(*parts) for parts in zip(names, models, layers, untrained)], imgsz


def _erf(args: argparse.Namespace) -> Figure:
    """Measure and draw effective receptive fields."""
    subjects, imgsz = _subjects(args)
    if args.images:
        images = [p.tensor() for p in read_pictures(args.images, args.count, imgsz)]
    else:
        seeded = torch.Generator().manual_seed(0)
        images = [torch.rand(1, 3, imgsz, imgsz, generator=seeded) for _ in range(args.count)]
    width = max(len(s.name) for s in subjects) + 2
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
            print(f"{s.name:<{width}}{title:<24}{figures}{reached:>10.1f}", flush=True)
    return plot_receptive_fields(fields)


def _activations(args: argparse.Namespace) -> Figure:
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


def _orders(args: argparse.Namespace) -> Figure:
    """Draw the orders that are named, or those of the models' layers, or all."""
    used = {(kind, order) for kind, orders in SCANS.items() for order in orders}
    if args.models:
        layers = [m for file in args.models for m in load(file).modules() if type(m).__name__ in SCANS]
        kinds = [(type(m).__name__, getattr(m, "directions", None)) for m in layers]
        used = {(kind, order) for kind, directions in kinds for order in SCANS[kind][:directions]}
        if not used:
            raise ValueError(f"no {' or '.join(SCANS)} in {', '.join(args.models)}: name orders with --orders instead")
    users = {order: ", ".join(kind for kind in SCANS if (kind, order) in used) for order in ORDERS}
    wanted = args.orders or [order for order in ORDERS if users[order]]
    titles = {order: "\n".join(filter(None, (order.replace("-", ", "), users[order]))) for order in wanted}
    return plot_orders(read_pictures(args.images or _samples(), 1, args.imgsz)[0], titles, args.grid)


def _samples() -> list[str]:
    """Return the folder of the pictures that come with Ultralytics."""
    from ultralytics.utils import ASSETS

    return [str(ASSETS)]


def _target(args: argparse.Namespace) -> Path:
    """Return where to save, with its folder made; a picture that exists is replaced only on request."""
    from ultralytics.utils import RUNS_DIR
    from ultralytics.utils.files import increment_path

    out = args.out or increment_path(RUNS_DIR / "visualize" / f"{args.command}.png", args.exist_ok)
    formats = sorted(Figure().canvas.get_supported_filetypes())
    if out.suffix[1:].lower() not in formats:
        raise ValueError(f"cannot save as '{out.name}': its name must end with .{', .'.join(formats)}")
    if out.exists() and not (args.exist_ok and out.is_file()):
        raise FileExistsError(f"'{out}' exists: choose another --out, or replace a picture with --exist-ok")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise OSError(f"cannot make the folder '{out.parent}' for the picture: {e.strerror}") from e
    return out


def _count(text: str) -> int:
    """Return an integer of at least 1, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a positive integer, got '{text}'")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(COMMAND, description="Pictures of what models see.")
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, run: Callable, what: str, images: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=what, description=f"{what[0].upper()}{what[1:]}.")
        sub.set_defaults(run=run)
        sub.add_argument("--images", nargs="+", metavar="PATH", help=f"files and folders; default: {images}")
        sub.add_argument(
            "--imgsz", type=_count, default=320, help="side of the letterboxed images, default %(default)s"
        )
        sub.add_argument(
            "--out", type=Path, metavar="FILE", help="picture to write; default: a new one in runs/visualize"
        )
        sub.add_argument("--exist-ok", action="store_true", help="replace the picture if it exists")
        return sub

    erf = command("erf", _erf, "effective receptive fields of models side by side", "noise from a fixed seed")
    maps = command("activations", _activations, "activation maps of models side by side", "Ultralytics' samples")
    orders = command("orders", _orders, "the orders in which layers scan a map, over an image", "Ultralytics' samples")
    layers = "P3: last backbone layer at stride 8, N3: last neck layer at stride 8, 4: layer 4; default: P3 P4 P5"
    for sub, count in ((erf, 16), (maps, 1)):
        sub.add_argument("--models", nargs="+", required=True, metavar="MODEL", help=".yaml (untrained) or .pt files")
        sub.add_argument("--names", nargs="+", metavar="NAME", help="names of the models in the picture")
        sub.add_argument("--layers", nargs="+", default=["P3", "P4", "P5"], metavar="LAYER", help=layers)
        sub.add_argument("--count", type=_count, default=count, help="images at most, default %(default)s")
        sub.add_argument("--device", default="cpu", help="cpu, 0, cuda:1, mps ...; default %(default)s")
    reduce = "channels by mean or max of absolute values, or Euclidean norm; default %(default)s"
    maps.add_argument("--reduce", choices=list(REDUCE), default="mean", help=reduce)
    orders.add_argument("--models", nargs="+", metavar="MODEL", help="draw the orders of these models' layers")
    orders.add_argument("--orders", nargs="+", choices=ORDERS, metavar="ORDER", help=f"of {', '.join(ORDERS)}")
    orders.add_argument("--grid", type=_count, default=6, help="cells along the longer side, default %(default)s")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv (Sequence[str], optional): Command line; by default this process's.

    Returns:
        (int): Exit status: 0 if a picture was saved, 1 if not. A wrong command line exits with 2.
    """
    args = _parser().parse_args(argv)
    try:
        out = _target(args)  # before the work, which may be long
        figure = args.run(args)
        try:
            figure.savefig(out, bbox_inches="tight", pad_inches=0.05)
        except OSError as e:
            raise OSError(f"cannot write '{out}': {e.strerror or e}") from e
    except (ValueError, OSError) as e:
        print(f"visualize {args.command}: {e}", file=sys.stderr)
        return 1
    print(f"Saved: {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
