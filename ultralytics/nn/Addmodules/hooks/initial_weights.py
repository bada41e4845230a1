# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""The start of a new model that its YAML declares: initial weights and boxes."""

from __future__ import annotations

import math
from functools import wraps

import torch
from torch import nn

from ..layers.check_arguments import positive_number

__all__ = ("check_start", "declared_boxes", "declared_start", "declared_weights", "with_declared_boxes")


START = ("init_std", "init_dense", "init_dfl")


def declared_start(model: nn.Module) -> None:
    """Give a new model the start that its YAML declares.

    Args:
        model (nn.Module): Model under construction, with its `yaml` and `model` set.

    Raises:
        TypeError: If a value is no number.
        ValueError: If a value is out of its range, or init_dfl is for a head without distributions.
    """
    declared_weights(model)
    declared_boxes(model)


def check_start(d: dict, file: str) -> None:
    """Raise where a model YAML declares a start that nothing would act on.

    Args:
        d (dict): Contents of a model YAML.
        file (str): Its name, for messages.

    Raises:
        ValueError: If the model's last row is no detection head.
    """
    from ultralytics.nn import tasks  # here, because it imports this module

    start = [key for key in START if d.get(key) is not None]
    if start and isinstance(d.get("head"), list) and d["head"]:
        last = d["head"][-1]
        head = getattr(tasks, str(last[2]), None) if isinstance(last, (list, tuple)) and len(last) > 2 else None
        if not (isinstance(head, type) and issubclass(head, tasks.Detect)):
            keys = " and ".join(start)
            raise ValueError(f"{file}: {keys}: for models whose last row is Detect or one of its kinds, got {last}")


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
        raise ValueError(f"model YAML: init_dfl needs a head with reg_max above 1, got reg_max={head.reg_max}")
    head.init_dfl = float(ratio)


def with_declared_boxes(head: type) -> type:
    """Decorate upstream's Detect and its kinds: `bias_init` of a head with an `init_dfl` ends with the start it means.

    Each bin of a distance is then `init_dfl` times as likely as the one before. It is a number on the head, and not a
    step of building, because upstream sets the biases anew when weights of another class count are loaded.

    Args:
        head (type): Class with a method `bias_init(self)`.

    Returns:
        (type): The same class.
    """
    for kind in head.__subclasses__():
        with_declared_boxes(kind)
    if "bias_init" not in vars(head):
        return head
    bias_init = head.bias_init

    @wraps(bias_init)
    def with_boxes(self) -> None:
        bias_init(self)
        ratio = getattr(self, "init_dfl", None)
        for branch in () if ratio is None else (self.cv2, getattr(self, "one2one_cv2", None) or ()):
            for level in branch:
                bins = torch.arange(self.reg_max, device=level[-1].bias.device)
                with torch.no_grad():
                    level[-1].bias.copy_(math.log(ratio) * bins.repeat(4))

    head.bias_init = with_boxes
    return head
