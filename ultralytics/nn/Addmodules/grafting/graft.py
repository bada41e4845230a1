# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""`graft`: any Ultralytics model with blocks added that change nothing until they are trained."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from ..layers.graft import Graft, find_block, is_graft
from .levels import levels, map_strides
from .model_file import read_model
from .splice import own_scale, splice

if TYPE_CHECKING:
    from ultralytics.engine.model import Model

__all__ = ("SUFFIX", "graft", "grafted", "read")

SUFFIX = "-vmamba"  # what a graft's files have behind the name of their source
PROBE = 256  # side of the empty image that tells the rows' strides


def graft(
    source: str | Path | Model,
    after: Sequence[str | int] = ("P4", "P5"),
    block: str = "SS2D",
    options: dict[str, object] | None = None,
    lr_factor: float = 1.0,
    again: bool = False,
) -> Model:
    """Return a model that computes exactly what the source computes, with blocks that it can learn to use.

    Args:
        source (str | Path | Model): A .pt or .yaml file, a name that Ultralytics downloads, or a YOLO, RTDETR ...
        after (Sequence[str | int]): Where the blocks go. "P4" is the last row of the backbone at stride 2^4, "N4" the
            row that the head reads at that stride, 6 row 6.
        block (str): SS2D, MambaLayer or VSSBlock, or a class by dotted path that keeps its map's shape.
        options (dict[str, object], optional): More arguments for the block's constructor, by name.
        lr_factor (float): Learning rate of the grafts over that of the rest of the model.
        again (bool): Graft a graft.

    Returns:
        (Model): A model of the source's class; the source stays as it is.

    Raises:
        FileNotFoundError: If there is no such file.
        TypeError: If the source is no PyTorch model, or block or options are of the wrong type.
        ValueError: If the source cannot be grafted, or there is no such place, block or option.

    Examples:
        >>> model = graft("yolo11n.yaml")
        >>> [i for i, row in enumerate(model.model.model) if isinstance(row, Graft)]
        [7, 12]
    """
    find_block(block)  # before a file is read
    row = [block, options, lr_factor]
    if isinstance(source, (str, Path)):
        return grafted(read(source)[0], str(source), after, row, again)
    return grafted(source, "the model", after, row, again)


def grafted(model: Model, title: str, after: Sequence[str | int], row: list, again: bool) -> Model:
    """Return what `graft` does for a model that has been read.

    Args:
        model (Model): The source.
        title (str): Stands for it in messages.
        after (Sequence[str | int]): Where the grafts go.
        row (list): Arguments of each graft after its channels: block, options, lr_factor.
        again (bool): Graft a graft.
    """
    module = model.model
    if not isinstance(module, nn.Module):
        raise TypeError(f"'{title}' is no PyTorch model, so it cannot be grafted: give a .pt or .yaml file")
    refuse(module, title, again)
    module = copy.deepcopy(module)
    weight, training = next(module.parameters()), module.training
    channels = find_places(module.eval(), after, title)
    grafts = {i: Graft(c, *row).to(weight.device, weight.dtype) for i, c in channels.items()}
    block, options, lr_factor = row
    rest = [options or {}, lr_factor] if lr_factor != 1 else [options] if options else []
    splice(module, grafts, ["Graft", ["None", block, *rest]])
    own_scale(module.yaml)
    name = named(module.yaml.get("yaml_file") or "model.yaml")
    module.yaml["yaml_file"] = str(name)  # trainers that build from this file must not find the source's
    file = getattr(module, "pt_path", None)
    if file:
        module.pt_path = str(Path(file).with_name(f"{Path(file).stem}{SUFFIX}.pt"))
    return wrapped(model, module.train(training), name)


def named(file: str) -> Path:
    """Return the name of a graft's YAML file, without a folder."""
    return Path(f"{Path(file).stem}{SUFFIX}.yaml")


def wrapped(source: Model, module: nn.Module, name: Path) -> Model:
    """Return a Model like another, around another module."""
    new = object.__new__(type(source))
    new.__dict__ = {**source.__dict__}
    new._modules = {**source._modules, "model": module}
    new.callbacks = defaultdict(list, {event: list(calls) for event, calls in source.callbacks.items()})
    new.overrides = {**source.overrides, "model": str(name)}
    new.predictor = new.trainer = new.metrics = new.ckpt_path = None
    # `train` builds anew from the file unless there is a checkpoint; then it takes the module's own YAML and weights
    new.ckpt = {"epoch": -1, "model": module, "train_args": (source.ckpt or {}).get("train_args", {})}
    return new


# What can be grafted --------------------------------------------------------------------------------------------------


def read(source: str | Path) -> tuple[Model, torch.dtype]:
    """Return the model of a file, and the dtype in which the file holds it: upstream's loader makes all float32.

    Raises:
        FileNotFoundError: If there is no such file, and none of that name can be downloaded.
        ValueError: If the file is no model.
    """
    from ultralytics.utils.checks import check_model_file_from_stem

    model, checkpoint = read_model(check_model_file_from_stem(str(source)))
    weights = checkpoint.get("ema") or checkpoint.get("model") or model.model
    return model, next(weights.parameters()).dtype


def refuse(module: nn.Module, title: str, again: bool) -> None:
    """Raise ValueError for a model whose rows are not those that its YAML describes, and for a graft."""
    from ultralytics.utils import torch_utils

    if type(module).__name__ == "DistillationModel":
        raise ValueError(
            f"'{title}' is a student whose distillation has not ended: graft the best.pt that it ends with"
        )
    if not isinstance(getattr(module, "model", None), nn.Sequential) or not isinstance(
        getattr(module, "yaml", None), dict
    ):
        raise ValueError(f"'{title}' has no rows from a model YAML, so there is no place for a graft")
    if getattr(torch_utils, "is_qat", lambda m: False)(module):
        raise ValueError(f"'{title}' was trained with quantisation: graft the model that it was made from")
    if module.is_fused():
        raise ValueError(f"'{title}' is fused for inference, its BatchNorms are gone: graft the unfused checkpoint")
    if not again and any(map(is_graft, module.model)):
        raise ValueError(f"'{title}' is a graft already; again=True adds to it")
    different = differences(module)
    if different:
        raise ValueError(
            f"'{title}' is not what its YAML builds ({different[0]}{' ...' * (len(different) > 1)}), as after "
            f"pruning or a change by hand: graft the model that it was made from"
        )


def differences(module: nn.Module) -> list[str]:
    """Return what a model's tensors have that those of its YAML have not.

    The class branch of a head may be as wide as in the model from which it was trained: upstream takes it over.
    """
    from ultralytics.nn.tasks import parse_model

    d = copy.deepcopy(module.yaml)
    for row in [*d["backbone"], *d["head"]]:
        if row[2] == "TorchVision":
            row[3][2:3] = [None]  # no weights: upstream would download them
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        built, _ = parse_model(d, ch=d.get("channels", 3), verbose=False)
    wanted = {k: tuple(v.shape) for k, v in built.state_dict().items()}
    found = {k: tuple(v.shape) for k, v in module.model.state_dict().items()}
    head = tuple(f"{len(module.model) - 1}.{branch}." for branch in ("cv3", "one2one_cv3"))
    return [
        f"model.{k}: {found.get(k, 'missing')} and not {wanted.get(k, 'there')}"
        for k in {**wanted, **found}
        if found.get(k) != wanted.get(k) and not (k.startswith(head) and k in found and k in wanted)
    ]


# Where ----------------------------------------------------------------------------------------------------------------


def find_places(module: nn.Module, after: Sequence[str | int], title: str) -> dict[int, int]:
    """Return the channels of the rows that are meant, by index.

    Args:
        module (nn.Module): Ultralytics model in eval mode.
        after (Sequence[str | int]): Levels and indices of rows.
        title (str): Name of the model for messages.

    Raises:
        ValueError: If nothing is meant, or there is no such place.
    """
    maps = map_strides(module, PROBE)
    known, head, found = levels(module, maps), len(module.model) - 1, {}
    for place in [after] if isinstance(after, (str, int)) else after:
        name = str(place).upper()
        i = known.get(name, int(name) if name.isdecimal() else -1)
        if i in maps:
            found[i] = maps[i][1]
            continue
        if 0 <= i < len(module.model):
            kind = type(module.model[i]).__name__
            why = "is the head" if i == head else "gives no map of features"
            raise ValueError(f"'{title}': row {i} ({kind}) {why}; levels are {', '.join(known)}")
        raise ValueError(
            f"'{title}' has no place '{place}': its levels are {', '.join(known)}, its rows 0 to {head - 1}"
        )
    if not found:
        raise ValueError(f"'{title}': no place is given; its levels are {', '.join(known)}")
    return dict(sorted(found.items()))
