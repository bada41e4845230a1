# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""LayerNorm over the channels of a map's tokens, with the turn from map to tokens in the same pass."""

from __future__ import annotations

from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

from . import op, registry

__all__ = ("token_norm",)


@torch.library.custom_op(
    "vmamba::token_norm",
    mutates_args=(),
    schema="(Tensor x, Tensor weight, Tensor bias, float eps, str backend) -> (Tensor, Tensor, Tensor)",
)
def _token_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float, backend: str) -> tuple[Tensor, Tensor, Tensor]:
    return registry.get(backend).norm_forward(x, weight, bias, eps)


@_token_norm.register_fake
def _(x, weight, bias, eps, backend) -> tuple[Tensor, Tensor, Tensor]:
    batch, channels, length = x.shape
    mean, rstd = (x.new_empty((batch, length), dtype=torch.float32) for _ in range(2))
    return x.new_empty(batch, length, channels), mean, rstd


@torch.library.custom_op(
    "vmamba::token_norm_backward",
    mutates_args=(),
    schema=(
        "(Tensor dout, Tensor x, Tensor weight, Tensor mean, Tensor rstd, str backend) -> (Tensor, Tensor, Tensor)"
    ),
)
def _token_norm_backward(
    dout: Tensor, x: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    return registry.get(backend).norm_backward(dout, x, weight, mean, rstd)


@_token_norm_backward.register_fake
def _(dout, x, weight, mean, rstd, backend) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(weight), torch.empty_like(weight)


def _setup_context(ctx, inputs, output) -> None:
    x, weight, _, _, ctx.backend = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, weight, *output[1:])


def _backward(ctx, dout, *_):
    if dout is None:
        return (None,) * 5
    return *_token_norm_backward(dout, *ctx.saved_tensors, ctx.backend), None, None


_token_norm.register_autograd(_backward, setup_context=_setup_context)
op.differentiable_once(_token_norm_backward, "the norm of a map's tokens")


def _backend(*tensors: Tensor) -> ModuleType | None:
    """Return the first backend that works here, is not forced out and has a norm that takes these tensors."""
    if op.composed():
        return None
    for backend in registry.candidates():
        if hasattr(backend, "norm_accepts") and backend.available()[0] and backend.norm_accepts(*tensors)[0]:
            return backend
    return None


def token_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    """Normalise the channels of each token of a map.

    Args:
        x (Tensor): Map (B, C, L); channels_last or not.
        weight (Tensor): (C).
        bias (Tensor): (C).
        eps (float): Added to the variance.

    Returns:
        (Tensor): Tokens (B, L, C) in the dtype of x.

    Source:
        Ba et al., "Layer Normalization", 2016.
    """
    backend = _backend(x, weight, bias)
    if backend is None:
        return F.layer_norm(x.transpose(1, 2), (x.shape[1],), weight, bias, eps)
    with op.no_autocast(x.device.type):
        return _token_norm(x, weight, bias, eps, backend.name)[0]
