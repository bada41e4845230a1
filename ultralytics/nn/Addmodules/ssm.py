# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""What every module with a selective scan shares: checks, initial step sizes, parameters that stay float32, norm."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .selective_scan import token_norm
from .selective_scan.op import composed

__all__ = ("StateSpace", "inverse_softplus_steps", "norm_tokens", "positive_int", "positive_number")


def positive_int(owner: str, **values: object) -> None:
    """Raise unless every value is an integer of at least 1."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{owner}: {name} must be an integer, got {value!r} ({type(value).__name__})")
        if value < 1:
            raise ValueError(f"{owner}: {name} must be at least 1, got {value}")


def positive_number(owner: str, **values: object) -> None:
    """Raise unless every value is a finite number above 0."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(f"{owner}: {name} must be a number, got {value!r} ({type(value).__name__})")
        if not 0 < value < math.inf:
            raise ValueError(f"{owner}: {name} must be positive, got {value}")


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


def norm_tokens(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    """Normalise a map (B, C, L) to tokens (B, L, C), in one pass if the norm is a plain one without hooks."""
    plain = type(norm) is nn.LayerNorm and norm.elementwise_affine and norm.bias is not None
    if plain and not norm._forward_hooks and not composed():  # a graph needs the width as the norm's number
        return token_norm(x, norm.weight, norm.bias, norm.eps)
    return norm(x.transpose(1, 2))


class StateSpace(nn.Module):
    """Base of modules that hold A, D and step sizes of a scan, which stay float32 and without weight decay.

    Attributes:
        state_names (frozenset[str]): Names of those parameters.
    """

    state_names: frozenset[str] = frozenset()

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
