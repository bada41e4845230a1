# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""What every module with a selective scan shares: parameters that stay float32, and initial step sizes."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

__all__ = ("StateSpace", "inverse_softplus_steps")


def inverse_softplus_steps(
    shape: tuple[int, ...], dt_min: float, dt_max: float, dt_init_floor: float, device: torch.device | str | None = None
) -> Tensor:
    """Return a step size bias whose softplus is log-uniform in [dt_min, dt_max] and not below dt_init_floor.

    Source:
        Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", 2023, section 3.6.
    """
    span = math.log(dt_max) - math.log(dt_min)
    dt = torch.exp(torch.rand(shape, device=device) * span + math.log(dt_min)).clamp(min=dt_init_floor)
    return dt + torch.log(-torch.expm1(-dt))


class StateSpace(nn.Module):
    """Base of modules that hold A, D and step sizes of a scan, which stay float32 and without weight decay.

    Attributes:
        state_names (frozenset[str]): Names of those parameters; a class of this base must say them.
    """

    state_names: frozenset[str] = frozenset()

    def __init_subclass__(cls, **kwargs) -> None:
        """Refuse a class that names no such parameter: they would be cast and decayed without a word."""
        super().__init_subclass__(**kwargs)
        if not cls.state_names:
            raise TypeError(f"{cls.__name__}: put the names of its A, D and step sizes into state_names")

    def state_parameters(self) -> dict[str, nn.Parameter]:
        """Return A, D and dt bias of every direction: kept float32, never decayed, never orthogonalised."""
        return {n: p for n, p in self.named_parameters() if n in self.state_names}

    def _apply(self, fn, recurse: bool = True):
        """Move and cast as any module, but leave the state parameters at float32 or above.

        Ultralytics saves checkpoints and may validate with `model.half()`: A_log rounded to 11 bits would make the
        metrics of a reloaded checkpoint differ from those of the training that wrote it.
        """
        before = {n: p.data for n, p in self.state_parameters().items()}
        super()._apply(fn, recurse)
        for name, p in self.state_parameters().items():
            if p.dtype in (torch.float16, torch.bfloat16) and before[name].dtype not in (torch.float16, torch.bfloat16):
                p.data = before[name].to(p.device)
        return self
