# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Parameter groups of our layers, under every optimizer.

A, D and step sizes of every scan: no weight decay, no orthogonalised updates. Grafts: a learning rate of their own.
"""

from __future__ import annotations

from functools import wraps

import torch
from torch import nn

from ..layers.graft import Graft
from ..layers.state_space import StateSpace

__all__ = ("exempt_ssm_parameters", "scale_learning_rates", "without_ssm_decay")


def without_ssm_decay(trainer: type) -> type:
    """Decorate upstream's trainer: its optimizers go through `exempt_ssm_parameters` and `scale_learning_rates`.

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
        scale_learning_rates(optimizer, model)
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


def scale_learning_rates(optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
    """Give the parameters of grafts with a learning rate factor groups of their own, after all others.

    The factor is in the model's YAML and its checkpoint, so a resumed training makes the same groups. This must run
    before an optimizer state is loaded and before a scheduler notes the learning rates.

    Args:
        optimizer (torch.optim.Optimizer): As upstream's trainer built it.
        model (nn.Module): Model whose parameters it holds, wrapped or not.
    """
    grafts = [m for m in model.modules() if isinstance(m, Graft) and m.lr_factor != 1]
    factors = {id(p): m.lr_factor for m in grafts for p in m.parameters()}
    found = []
    for group in list(optimizer.param_groups):
        for factor in sorted({factors[id(p)] for p in group["params"] if id(p) in factors}):
            moved = [p for p in group["params"] if factors.get(id(p)) == factor]
            group["params"] = [p for p in group["params"] if factors.get(id(p)) != factor]
            copied = {**group, "params": moved, "lr": group["lr"] * factor}
            if copied.get("param_group") == "bias":  # which upstream warms up from one rate, whatever a group's own is
                copied["param_group"] = "graft bias"
            optimizer.add_param_group(copied)
            found += [factor] * len(moved)
    if found:
        from ultralytics.utils import LOGGER

        rates = ", ".join(f"{factor:g}" for factor in sorted(set(found)))
        LOGGER.info(f"VMamba: {len(found)} parameters of grafts with {rates} times the learning rate of the others")
