# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""What every module with a selective scan shares: parameters that stay float32, and initial step sizes.

A start that a constructor sets from outside is lost when a program calls `reset_parameters` on every module. Each
module here therefore resets what it owns to its own start.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..selective_scan.registry import forced

__all__ = ("StateSpace", "StepProjection", "inverse_softplus_steps", "s4d_real")


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


def s4d_real(A_log: Tensor) -> None:
    """Fill log(-A) (..., N) with the S4D-real start: A = -1, -2 ... -N in every channel.

    Source:
        Gu et al., "On the Parameterization and Initialization of Diagonal State Space Models", 2022.
    """
    with torch.no_grad():
        A_log.copy_(torch.arange(1, A_log.shape[-1] + 1, dtype=torch.float32, device=A_log.device).log())


class StepProjection(nn.Linear):
    """Linear layer from dt_rank to d_inner channels whose bias makes the initial step sizes log-uniform.

    A class of its own, so that `reset_parameters` gives this start again and not that of any linear layer.

    Attributes:
        steps (tuple[float, float, float]): Smallest and largest initial step size, and their lower bound.
        dt_init (str): Initial weights, "random" or "constant".
        dt_scale (float): Scale of the initial weights.
    """

    def __init__(
        self,
        dt_rank: int,
        d_inner: int,
        steps: tuple[float, float, float],
        dt_init: str,
        dt_scale: float,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Build the layer; the arguments are those of `Mamba`."""
        self.steps, self.dt_init, self.dt_scale = steps, dt_init, dt_scale  # the base class resets while it builds
        super().__init__(dt_rank, d_inner, bias=True, device=device, dtype=dtype)
        self.bias._no_reinit = True

    def reset_parameters(self) -> None:
        """Set weights and step sizes to their start."""
        super().reset_parameters()
        std = self.dt_scale * self.in_features**-0.5
        if self.dt_init == "constant":
            nn.init.constant_(self.weight, std)
        else:
            nn.init.uniform_(self.weight, -std, std)
        with torch.no_grad():
            self.bias.copy_(inverse_softplus_steps((self.out_features,), *self.steps, self.bias.device))


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

    def __init__(self) -> None:
        """Begin a layer.

        Raises:
            ValueError: If a backend is forced that there is not, which would else be found in the first scan.
        """
        super().__init__()
        forced()

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
        half = torch.float16, torch.bfloat16
        for name, p in self.state_parameters().items():
            if p.dtype in half and before[name].dtype not in half:
                grad, p.grad = p.grad, None
                p.data = before[name].to(p.device)
                p.grad = None if grad is None else grad.to(p.dtype)
        return self
