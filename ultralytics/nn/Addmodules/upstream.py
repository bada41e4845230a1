# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""What the patches call: rules for our layers and model files inside upstream's parser, builder and trainer.

The patches hold one-line hooks only, so that they survive upstream's changes; all logic is here.
"""

from __future__ import annotations

import difflib
import inspect
import math
import os
import re
import shutil
from collections.abc import Callable
from functools import cache, wraps
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import nn

from .selective_scan.export import OPSET
from .ssm import StateSpace, positive_number
from .VMamba import SS2D, C2fSS2D, C2fVSS, Mamba, MambaLayer, VSSBlock, count_mamba, count_ss2d
from .vss import ConvSS2D, DropPath, Mlp

__all__ = (
    "BoxStart",
    "check_export",
    "check_rows",
    "declared_boxes",
    "declared_strides",
    "declared_weights",
    "exempt_ssm_parameters",
    "own_scales",
    "parse_layer",
    "register",
    "without_ssm_decay",
)

# Layers of model YAMLs. The first argument of each is its width: of the input too, or of the output alone.
SAME_WIDTH: tuple[type[nn.Module], ...] = (MambaLayer, SS2D, VSSBlock)
NEW_WIDTH: tuple[type[nn.Module], ...] = (C2fVSS, C2fSS2D)
LAYERS = SAME_WIDTH + NEW_WIDTH


def register() -> None:
    """Make our modules known to restricted checkpoint loading, to the FLOP counter and to the exporter."""
    if hasattr(torch.serialization, "add_safe_globals"):
        torch.serialization.add_safe_globals([BoxStart, ConvSS2D, DropPath, Mamba, Mlp, *LAYERS])
    from ultralytics.utils.callbacks import default_callbacks

    default_callbacks["on_export_start"].append(check_export)
    try:
        from thop.profile import register_hooks
    except ImportError:  # upstream shows no GFLOPs at all then
        return
    register_hooks[Mamba] = count_mamba
    register_hooks[SS2D] = register_hooks[ConvSS2D] = count_ss2d


def parse_layer(
    layer: type[nn.Module],
    index: int,
    channels: int,
    args: list,
    width: float,
    max_channels: float,
    repeats: int,
) -> tuple[int, list, int]:
    """Turn the YAML arguments of a Vision Mamba layer into constructor arguments; leave every other layer alone.

    The first YAML argument is the layer's width before scaling, as in Ultralytics' own rows. A MambaLayer, SS2D or
    VSSBlock keeps the channels of its input, so after scaling both must agree; C2fVSS and C2fSS2D have their own width
    and take the repeats as the number of inner blocks. The arguments after it are the constructor's, by position.

    Args:
        layer (type[nn.Module]): Class that the YAML names.
        index (int): Index of the row, for messages.
        channels (int): Channels of the layer's input.
        args (list): Arguments in the YAML.
        width (float): Width multiple of the scale.
        max_channels (float): Channel limit of the scale.
        repeats (int): How many times the row is to be repeated, after scaling.

    Returns:
        channels (int): Channels of the layer's output.
        args (list): Arguments for the constructor.
        repeats (int): How many layers upstream should build one behind the other.

    Raises:
        TypeError: If the arguments are of the wrong number or type.
        ValueError: If a value is out of range, or the width is not that of the input.
    """
    if layer not in LAYERS:
        return channels, args, repeats
    where = f"model YAML layer {index} ({layer.__name__})"
    hidden = ("c1", "n") if layer in NEW_WIDTH else ()  # what the row tells by its place
    names = [name for name in inspect.signature(layer).parameters if name not in hidden]
    if not 1 <= len(args) <= len(names):
        raise TypeError(f"{where} takes 1 to {len(names)} arguments, {names}, got {len(args)}: {args}")
    dim = args[0]
    if isinstance(dim, bool) or not isinstance(dim, int) or dim < 1:
        raise TypeError(f"{where}: the first argument must be its channel count, a positive integer, got {dim!r}")
    from ultralytics.utils.ops import make_divisible  # here, because upstream's utils import this package's callers

    scaled = make_divisible(min(dim, max_channels) * width, 8)
    if layer in NEW_WIDTH:
        own, count = [channels, scaled, repeats, *args[1:]], 1
    elif scaled == channels:
        own, count = [channels, *args[1:]], repeats
    else:
        raise ValueError(
            f"{where}: {dim} channels are {scaled} at this scale (width {width}, max {max_channels}), but its input "
            f"has {channels}; write the channel count of the layer before it"
        )
    try:
        with torch.device("meta"):  # no memory and no random numbers: only the constructor's own checks
            layer(*own)
    except (TypeError, ValueError) as e:
        raise type(e)(f"{where}: {e}; its arguments are {names}, got {args}") from None
    return scaled, own, count


class _Maps(list):
    """Stands for what a model gives the stride probe: whichever part a release takes from that, it is the maps."""

    def __getitem__(self, part: str | int) -> _Maps:
        return self


def declared_strides(model: nn.Module, size: int) -> None:
    """Take what a YAML declares of the whole model: its start, and `strides:` in place of the builder's stride probe.

    The builder runs the model on an empty image and divides its side by the height of each map. The hook stands before
    that, on lines as old as upstream itself, because the lines that run the probe change from release to release.

    Args:
        model (nn.Module): Model under construction, with its `yaml` and `model` set.
        size (int): Side of the image that the probe will see.

    Raises:
        TypeError: If init_std, init_dense or init_dfl is no number.
        ValueError: If the declared strides are not one number from 1 to size for each detection level, init_std,
            init_dense or init_dfl is out of its range, or init_dfl is for a head without distributions.
    """
    declared_weights(model)
    declared_boxes(model)
    strides = model.yaml.get("strides")
    if strides is None:
        return
    levels = model.model[-1].nl
    if (
        not isinstance(strides, (list, tuple))
        or len(strides) != levels
        or any(isinstance(s, bool) or not isinstance(s, (int, float)) or not 1 <= s <= size for s in strides)
    ):
        raise ValueError(
            f"model YAML: strides must be {levels} numbers from 1 to {size}, one for each input of the head, "
            f"got {strides!r}; correct it or leave it out to have strides measured"
        )
    maps = _Maps(SimpleNamespace(shape=(1, 1, size / s, size / s)) for s in strides)  # heights, without content

    def forward(x: torch.Tensor, *args, **kwargs):
        del model.forward  # the class's own from here on
        return maps if x.shape[-2:] == (size, size) else model.forward(x, *args, **kwargs)

    model.forward = forward


def declared_weights(model: nn.Module) -> None:
    """Scale the initial weights of convolutions with BatchNorm down, as a YAML's `init_std:` and `init_dense:` say.

    AdamW moves every weight by about the learning rate, and PyTorch's initial deviation, 1 / sqrt(3 * inputs), is large
    beside that: most of a short training goes into turning the weights over. The BatchNorm behind them takes a factor
    out again, but for its epsilon, which damps layers whose output becomes as small as that until they have grown.
    Pointwise and depthwise convolutions, of few inputs, have the largest weights: those above a deviation of `init_std`
    come down to it. Dense k x k convolutions are multiplied by `init_dense`. The running variance would take a hundred
    steps to follow, so it gets the factor, too, squared.

    Args:
        model (nn.Module): Model under construction, with its `yaml` and `model` set.

    Raises:
        TypeError: If init_std or init_dense is no number.
        ValueError: If init_std is not from 0.005 to 1, or init_dense not from 0.05 to 1; below, epsilon would silence
            depthwise layers, or halve what dense ones give.

    Source:
        0.02 is the deviation that Liu et al., "A ConvNet for the 2020s", 2022, give convolutions, too.
    """
    from ultralytics.nn.modules.conv import Conv  # here, because it takes upstream's tree

    start = {key: model.yaml.get(key) for key in ("init_std", "init_dense")}
    for (key, value), least in zip(start.items(), (0.005, 0.05)):
        if value is not None:
            positive_number("model YAML", **{key: value})  # YAML reads 2e-2 as text
            if not least <= value <= 1:
                raise ValueError(f"model YAML: {key} must be from {least} to 1, got {value}")
    std, dense = start.values()
    for m in model.modules():
        if not isinstance(m, Conv):
            continue
        few = m.conv.kernel_size == (1, 1) or m.conv.groups == m.conv.in_channels > 1
        factor = dense
        if few:
            factor = std and min(1.0, std / m.conv.weight.detach().square().mean().sqrt().item())
        if factor is not None:
            with torch.no_grad():
                m.conv.weight.mul_(factor)
            m.bn.running_var.mul_(factor**2)


class BoxStart:
    """A head's `bias_init`, behind which each bin of a distance is `ratio` times as likely as the one before.

    It stays with the head, because upstream sets the biases anew when weights of another class count are loaded.

    Attributes:
        head (nn.Module): The head whose class's own `bias_init` it calls first.
        ratio (float): Likelihood of a bin over that of the one before.
    """

    def __init__(self, head: nn.Module, ratio: float) -> None:
        """Keep both."""
        self.head, self.ratio = head, ratio

    def __call__(self) -> None:
        """Set all biases."""
        type(self.head).bias_init(self.head)
        for branch in (self.head.cv2, getattr(self.head, "one2one_cv2", None) or ()):
            for level in branch:
                bins = torch.arange(self.head.reg_max, device=level[-1].bias.device)
                with torch.no_grad():
                    level[-1].bias.copy_(math.log(self.ratio) * bins.repeat(4))


def declared_boxes(model: nn.Module) -> None:
    """Start the head's distributions of box distances as a YAML's `init_dfl:` says.

    Upstream starts with all bins equally likely. The expected distance from an anchor to each side is then 7.5 strides
    for 16 bins, a box of 15: 120 pixels at stride 8. The assigner goes by overlap, so the finest level takes nearly
    every object of a short training, and small ones learn late. At 0.7, boxes start with a side of 4 to 5 strides.

    Args:
        model (nn.Module): Model under construction, with its `yaml` and `model` set; its biases are set later.

    Raises:
        TypeError: If init_dfl is no number.
        ValueError: If it is not from 0.5 to 1, or the head predicts distances without a distribution.
    """
    ratio = model.yaml.get("init_dfl")
    if ratio is None:
        return
    positive_number("model YAML", init_dfl=ratio)
    if not 0.5 <= ratio <= 1:
        raise ValueError(f"model YAML: init_dfl must be from 0.5 to 1, got {ratio}")
    head = model.model[-1]
    if head.reg_max < 2:
        raise ValueError(f"model YAML: init_dfl needs a head with distributions, got reg_max={head.reg_max}")
    head.bias_init = BoxStart(head, ratio)


def own_scales(load: Callable[[str | Path], dict]) -> Callable[[str | Path], dict]:
    """Decorate the model YAML loader: any one-letter scale of a `VMamba-*.yaml`, and errors for rows of our layers.

    Upstream knows the scales n, s, m, l, x behind a version number, and rewrites the whole path, folders included.
    Names that do not begin with `VMamba-` go to upstream's loader untouched.

    Args:
        load (Callable): Upstream's `yaml_model_load`.

    Returns:
        (Callable): A function of the same signature.
    """

    @wraps(load)
    def yaml_model_load(path: str | Path) -> dict:
        d = _load_scaled(Path(path)) or load(path)
        check_rows(d, Path(path).name)
        return d

    return yaml_model_load


def _load_scaled(path: Path) -> dict | None:
    """Return the model that a name like VMamba-yolov8d-seg.yaml means, or None where it has not that form."""
    name = re.fullmatch(r"(VMamba-yolo(?:v?\d+)?)([a-z])((?:[-_].+)?)", path.stem)
    if not name:
        return None
    import yaml

    from ultralytics.utils.checks import check_yaml

    family, scale, rest = name.groups()
    base = path.with_name(f"{family}{rest}{path.suffix}")
    file = check_yaml(str(path), hard=False) or check_yaml(str(base), hard=False)
    if not file:
        return None  # upstream's own error
    d = yaml.safe_load(Path(file).read_text(encoding="utf-8"))  # upstream's reader has had several names
    scales = d.get("scales") or {}
    if scales and scale not in scales:
        raise ValueError(f"{path.name}: {Path(file).name} has no scale '{scale}', only {sorted(scales)}")
    return {**d, "scale": scale, "yaml_file": str(path)}


def check_rows(d: dict, file: str) -> None:
    """Raise for rows of our layers that upstream's parser would answer with an index or key error of its own.

    Args:
        d (dict): Contents of a model YAML.
        file (str): Its name, for messages.

    Raises:
        TypeError: If a row has not four entries, or `from` or `repeats` is no integer.
        ValueError: If `from` names no earlier layer, `repeats` is below 1, a layer's name is misspelt, or there is an
            `init_std`, `init_dense` or `init_dfl` that nothing would act on.
    """
    from ultralytics.nn import tasks  # here, because it imports this module

    start = [key for key in ("init_std", "init_dense", "init_dfl") if d.get(key) is not None]
    if start and isinstance(d.get("head"), list) and d["head"]:
        last = d["head"][-1]
        head = getattr(tasks, str(last[2]), None) if isinstance(last, (list, tuple)) and len(last) > 2 else None
        if not (isinstance(head, type) and issubclass(head, tasks.Detect)):
            keys = " and ".join(start)
            raise ValueError(f"{file}: {keys}: for models whose last row is Detect or one of its kinds, got {last}")
    ours = {layer.__name__: layer for layer in LAYERS}
    folded = {name.casefold(): name for name in ours}
    folded["convss2d"] = "C2fSS2D"  # what the rows' block is made of
    for index, row in enumerate([*(d.get("backbone") or ()), *(d.get("head") or ())]):
        module = row[2] if isinstance(row, (list, tuple)) and len(row) > 2 else None
        if not isinstance(module, str):
            continue
        where = f"{file}: layer {index} ({module})"
        if module not in ours:
            if "." not in module and not hasattr(tasks, module):  # upstream's parser would give a bare KeyError
                close = difflib.get_close_matches(module.casefold(), folded)
                if close:
                    raise ValueError(f"{where}: there is no such layer; did you mean {folded[close[0]]}?")
            continue
        if len(row) != 4 or not isinstance(row[3], (list, tuple)):
            raise TypeError(f"{where}: a row is [from, repeats, module, [arguments]], got {row}")
        source, repeats = row[:2]
        if isinstance(source, bool) or not isinstance(source, int):
            raise TypeError(f"{where}: `from` must be the index of one layer, got {source!r}; put a Concat before it")
        if not (source == -1 or -index <= source < index):
            raise ValueError(
                f"{where}: `from` is {source}, but the layers before it are 0 to {index - 1}, or -1 to {-max(index, 1)}"
            )
        if isinstance(repeats, bool) or not isinstance(repeats, int) or repeats < 1:
            raise ValueError(f"{where}: repeats must be an integer of at least 1, got {repeats!r}")


def without_ssm_decay(trainer: type) -> type:
    """Decorate upstream's trainer: the optimizers that it builds go through `exempt_ssm_parameters`.

    Args:
        trainer (type): Class with a method `build_optimizer(self, model, ...)`.

    Returns:
        (type): The same class.
    """
    build = trainer.build_optimizer

    @wraps(build)
    def build_optimizer(self, model: nn.Module, *args, **kwargs) -> torch.optim.Optimizer:
        optimizer = build(self, model, *args, **kwargs)
        exempt_ssm_parameters(optimizer, model)
        return optimizer

    trainer.build_optimizer = build_optimizer
    return trainer


def exempt_ssm_parameters(optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
    """Move A, D and dt bias of every scan to the group without weight decay and orthogonalised updates.

    The number of groups stays as upstream made it, so optimizer states of checkpoints fit. Must run before an optimizer
    state is loaded.

    Args:
        optimizer (torch.optim.Optimizer): As upstream's trainer built it, with a `param_group` name in each group.
        model (nn.Module): Model whose parameters it holds, wrapped or not.

    Raises:
        ValueError: If no group is without weight decay.
    """
    exempt = {id(p): p for m in model.modules() if isinstance(m, StateSpace) for p in m.state_parameters().values()}
    if not exempt:
        return
    groups = optimizer.param_groups
    moved = [p for g in groups for p in g["params"] if id(p) in exempt]
    if not moved:
        return  # all frozen
    named = [g for g in groups if g.get("param_group") == "bn"]
    undecayed = named or [g for g in groups if not g.get("weight_decay") and not g.get("use_muon")]  # older releases
    if not undecayed:
        raise ValueError(
            f"none of the optimizer's {len(groups)} parameter groups is without weight decay: upstream's "
            f"build_optimizer has changed, and A_log, D and dt bias would be decayed"
        )
    target = min(reversed(undecayed), key=lambda g: g["lr"])  # not the boosted one; older releases put biases first
    for g in groups:
        g["params"] = [p for p in g["params"] if id(p) not in exempt]
    target["params"] = [*target["params"], *moved]
    from ultralytics.utils import LOGGER

    LOGGER.info(f"VMamba: {len(moved)} state-space parameters (A_log, D, dt bias) without decay or orthogonalisation")


# Formats whose converter was tried, and what it does with the loop over tokens.
NO_LOOP = {
    "ncnn": "pnnx writes no layer for its loop over tokens, and a network without an input",
    "mnn": "MNN's converter knows neither Scan nor another loop with a state",
}


def check_export(exporter) -> None:
    """Refuse what cannot be exported of a model with our layers before anything is written, and see to what may fail.

    Args:
        exporter (Exporter): Upstream's, about to export `exporter.model`.

    Raises:
        PermissionError: If the folder cannot be written to.
        ValueError: If the format or an argument does not go with a selective scan.
    """
    if not any(isinstance(m, StateSpace) for m in exporter.model.modules()):
        return
    args, folder = exporter.args, exporter.file.resolve().parent
    if args.format in NO_LOOP:
        raise ValueError(
            f"format='{args.format}' cannot hold a selective scan: {NO_LOOP[args.format]}. "
            f"Export with format=onnx, openvino or torchscript instead."
        )
    if args.opset and args.opset < OPSET:
        raise ValueError(f"opset={args.opset} is too old for a selective scan; leave it out, or give {OPSET} or later")
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"{folder} cannot be written to; the exported file would go beside the model")
    if export := getattr(exporter, f"export_{args.format}", None):
        setattr(exporter, f"export_{args.format}", leaving_nothing(export, folder, exporter.file.stem))
    if args.format == "openvino" and args.quantize == 8:
        quantize_clones()
    if args.format == "onnx" and args.quantize == 16:
        try:
            from onnxruntime.transformers import float16
        except ImportError:  # upstream says what is missing
            return
        if "Scan" not in float16.DEFAULT_OP_BLOCK_LIST:
            float16.DEFAULT_OP_BLOCK_LIST.append("Scan")  # the state stays float32, as it does in PyTorch


@cache
def quantize_clones() -> None:
    """Make NNCF quantize a clone of a model that it is given.

    OpenVINO's conversion of a loop leaves an output behind that the model no longer lists, and NNCF stops at it with
    "Could not find a node Result_..."; a clone holds what the model lists.
    """
    try:
        import nncf
    except ImportError:  # upstream says what is missing
        return
    quantize = nncf.quantize

    @wraps(quantize)
    def cloning(model, *args, **kwargs):
        return quantize(model.clone() if hasattr(model, "clone") else model, *args, **kwargs)

    nncf.quantize = cloning


def leaving_nothing(export: Callable[..., str], folder: Path, stem: str) -> Callable[..., str]:
    """Return an export that removes what it began to write before it failed.

    Args:
        export (Callable[..., str]): Upstream's, for one format.
        folder (Path): Where the model lies, and what is exported.
        stem (str): The name of the model's file without its ending.
    """
    from ultralytics.engine.exporter import export_formats

    begins, ends = (f"{stem}.", f"{stem}_"), tuple(export_formats()["Suffix"][1:])  # the first is the model's own

    def present() -> dict[Path, tuple[int, int]]:
        """Return the files and folders that an export may have written, and how to tell that it did."""
        found = {p: p.stat() for p in folder.iterdir() if p.name.startswith(begins) and p.name.endswith(ends)}
        return {p: (s.st_mtime_ns, s.st_size) for p, s in found.items()}

    @wraps(export)
    def cleaning(*args, **kwargs) -> str:
        before = present()
        try:
            return export(*args, **kwargs)
        except BaseException:  # Ctrl-C, too
            for path, of in present().items():
                if before.get(path) != of:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            raise

    return cleaning
