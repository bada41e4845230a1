# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Start files: for each seed, what models have in common starts with the same numbers."""

from __future__ import annotations

import math
from copy import deepcopy
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ...grafting.model_file import located
from ...hooks.initial_weights import START, declared_boxes, declared_weights
from ...hooks.transfer import common_names
from ..data import Data
from ..files import in_one_step
from ..upstream import one_line, quiet
from .checks import Subject, digest

__all__ = ("Start", "build", "check_weights", "equalize", "save")


class Start(NamedTuple):
    """A model at the start of its training.

    Attributes:
        model (nn.Module): For the classes of the data.
        fresh (set[str]): Tensors that no file gave: these may be made equal to other models'.
        declared (dict): Starts that the model's YAML declares, not yet applied.
    """

    model: nn.Module
    fresh: set[str]
    declared: dict


def check_weights(settings: dict, key: str = "pretrained") -> str:
    """Return a digest of the weights that a setting names for all models; empty if it names none.

    Args:
        settings (dict): Of Ultralytics.
        key (str): `pretrained`, or `distill_model` for those of a teacher.

    Raises:
        FileNotFoundError: If there is no such file, and Ultralytics has none of that name to download.
        ValueError: If it cannot be read.
    """
    from ultralytics.nn.tasks import torch_safe_load

    file = settings.get(key)
    if not isinstance(file, (str, Path)):
        return ""
    if (place := located(Path(file))) is None:
        raise FileNotFoundError(f"{key}={file}: there is no such file")
    try:
        with quiet():
            _, found = torch_safe_load(str(place))
    except Exception as e:  # whatever an unpickler raises on a foreign file is the file's fault
        raise ValueError(f"{key}={file} cannot be read as weights: {type(e).__name__}: {one_line(e)}") from e
    return digest(None, Path(found))


def build(subject: Subject, data: Data, settings: dict, seed: int) -> Start:
    """Return a model for the classes of a data set, its new tensors drawn from a seed, with the weights of its file.

    Args:
        subject (Subject): The model; itself left alone.
        data (Data): Its classes and keypoints count.
        settings (dict): `pretrained`, a weights file for all models or False for none, and `single_cls` are heeded.
        seed (int): Of the draw.
    """
    from ultralytics.nn.tasks import load_checkpoint

    names = {0: "item"} if settings.get("single_cls") else data.names
    pretrained = settings.get("pretrained", True)
    cfg, declared = deepcopy(subject.model.yaml), {}
    with quiet(), torch.random.fork_rng(devices=[]):
        weights = subject.model if subject.trained and pretrained is not False else None
        if isinstance(pretrained, (str, Path)):
            weights = load_checkpoint(pretrained)[0]
        if weights is None:  # else they would be applied to weights of the file
            declared = {key: cfg.pop(key) for key in START if key in cfg}
        extra = {"data_kpt_shape": tuple(data.keypoints)} if subject.model.task == "pose" else {}
        torch.manual_seed(seed)
        model = type(subject.model)(cfg, nc=len(names), ch=data.channels, verbose=False, **extra)
        fresh = {name for name, t in model.state_dict().items() if t.is_floating_point()}
        before = {name: t.clone() for name, t in model.state_dict().items()}
        if weights is not None:
            if settings.get("cls_remap", True):
                model.names = names  # rows of a head are taken over by the names of their classes
            given = {name: t.clone() for name, t in named(weights.float()).items()}
            model.load(weights, verbose=False)
            fresh &= untouched(before, model, given)
    model.names, model.nc, model.task = names, len(names), subject.model.task
    return Start(model.float(), fresh, declared)


def untouched(before: dict[str, Tensor], model: nn.Module, given: dict[str, Tensor]) -> set[str]:
    """Return the tensors of a model that weights did not reach.

    Args:
        before (dict[str, Tensor]): Its tensors before the weights were loaded.
        model (nn.Module): It, after that. Upstream may have built the class branch of its head anew.
        given (dict[str, Tensor]): The weights, by the names of `named`.
    """
    names, found = common_names(model), set()
    for name, tensor in model.state_dict().items():
        old, new = before[name], given.get(names[name])
        if new is not None and new.shape == tensor.shape and torch.equal(new, tensor):
            continue
        if torch.equal(old, tensor) if old.shape == tensor.shape else new is None or not share_rows(tensor, new):
            found.add(name)
    return found


def share_rows(a: Tensor, b: Tensor) -> bool:
    """Return whether some row of a is one of b: upstream takes over the rows of classes of the same name."""
    return a.shape[1:] == b.shape[1:] and any(bool((b == row).reshape(len(b), -1).all(1).any()) for row in a)


def equalize(starts: list[Start]) -> list[tuple[int, int]]:
    """Give fresh tensors of later models the numbers of the first model that has the like; apply declared starts.

    Tensors are alike if name, shape and the class of their module are the same, and both are drawn from about the same
    range: a projection that starts at zero in one model alone is what that model is about, and stays. Names have the
    numbers of rows without grafts, which are the same in a graft and its stock model.

    Returns:
        (list[tuple[int, int]]): For each model, how many tensors it has in common with the first by name and shape, and
            how many of those start with the very same numbers.
    """
    pool: dict[tuple, Tensor] = {}
    with torch.no_grad():
        for model, fresh, _ in starts:
            owners = {name: type(module).__name__ for name, module in model.named_modules()}
            names = common_names(model)
            for name, tensor in model.state_dict().items():
                key = names[name], tuple(tensor.shape), owners[name.rpartition(".")[0]]
                if name in fresh and key in pool and alike(tensor, pool[key]):
                    tensor.copy_(pool[key])
                elif name in fresh:
                    pool.setdefault(key, tensor.clone())
        for start in starts:
            apply_declared(start)
    states = [named(s.model) for s in starts]
    first = {n: t for n, t in states[0].items() if t.is_floating_point()}
    common = [[n for n, t in first.items() if n in state and state[n].shape == t.shape] for state in states]
    return [(len(names), sum(torch.equal(state[n], first[n]) for n in names)) for names, state in zip(common, states)]


def named(model: nn.Module) -> dict[str, Tensor]:
    """Return a model's tensors by the names that models with and without grafts have in common."""
    names = common_names(model)
    return {names[name]: tensor for name, tensor in model.state_dict().items()}


def alike(a: Tensor, b: Tensor) -> bool:
    """Return whether two tensors of one shape may be two draws of the same: both constant and equal, or of one size."""
    x, y = a.float(), b.float()
    if bool((x == x.flatten()[0]).all()) or bool((y == y.flatten()[0]).all()):
        return torch.equal(x, y)
    ratio = (x.square().mean() / y.square().mean()).sqrt().item()
    return abs(math.log(ratio)) < math.log(1.25) + 2 / math.sqrt(x.numel())


def apply_declared(start: Start) -> None:
    """Apply the start that a model's YAML declares, which upstream would have applied in building it."""
    if start.declared:
        start.model.yaml.update(start.declared)
        declared_weights(start.model)
        declared_boxes(start.model)
        if start.declared.get("init_dfl") is not None:
            start.model.model[-1].bias_init()


def save(model: nn.Module, file: Path) -> None:
    """Write a start file in float32, which Ultralytics trains from."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with in_one_step(file) as part:
        torch.save({"epoch": -1, "model": model, "train_args": {"task": model.task}}, part)
