# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Linear layers of the block: a product of float32 tokens and weights where a backend has a faster one than PyTorch."""

from __future__ import annotations

from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from . import op, registry

__all__ = ("product", "token_linear")


def _backend(a: Tensor, b: Tensor, bias: Tensor | None) -> ModuleType | None:
    """Return the first backend that works here, is not forced out and has a product that takes these tensors."""
    if op.composed():
        return None
    for backend in registry.candidates():
        if hasattr(backend, "matmul_accepts") and backend.available()[0] and backend.matmul_accepts(a, b, bias)[0]:
            return backend
    return None


def product(a: Tensor, b: Tensor, bias: Tensor | None, backend: str) -> Tensor:
    """Multiply a (M, K) by b (K, N) and add bias (N), with the backend's product if it takes them. No gradients."""
    module = registry.get(backend)
    if hasattr(module, "matmul_accepts") and module.matmul_accepts(a, b, bias)[0]:
        return module.matmul(a, b, bias)
    return a @ b if bias is None else torch.addmm(bias, a, b)


@torch.library.custom_op(
    "vmamba::matmul", mutates_args=(), schema="(Tensor a, Tensor b, Tensor? bias, str backend) -> Tensor"
)
def _matmul(a: Tensor, b: Tensor, bias: Tensor | None, backend: str) -> Tensor:
    with op.no_autocast(a.device.type):
        return product(a, b, bias, backend)


@_matmul.register_fake
def _(a, b, bias, backend) -> Tensor:
    return a.new_empty(a.shape[0], b.shape[1])


def _setup_context(ctx, inputs, output) -> None:
    a, b, bias, ctx.backend = inputs
    ctx.has_bias = bias is not None
    ctx.save_for_backward(a, b)


def _backward(ctx, dout):
    a, b = ctx.saved_tensors
    need = ctx.needs_input_grad
    da = _matmul(dout, b.t(), None, ctx.backend) if need[0] else None
    db = _matmul(dout.t(), a, None, ctx.backend).t() if need[1] else None  # b is a transposed weight: laid out as it is
    return da, db, dout.sum(0) if ctx.has_bias and need[2] else None, None


_matmul.register_autograd(_backward, setup_context=_setup_context)


@register_flop_formula(torch.ops.vmamba.matmul)
def _flops(a_shape, b_shape, *args, out_shape=None, **kwargs) -> int:
    """Return 2 for each multiply-add, as PyTorch counts its own product."""
    return 2 * a_shape[0] * a_shape[1] * b_shape[1]


def token_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Do what `F.linear` does, with a backend's product if one takes the tensors.

    Args:
        x (Tensor): (..., K).
        weight (Tensor): (N, K).
        bias (Tensor, optional): (N).

    Returns:
        (Tensor): (..., N).
    """
    autocast = torch.amp.is_autocast_available(x.device.type) and torch.is_autocast_enabled(x.device.type)
    backend = None
    if not autocast and x.dim() > 1 and x.shape[-1] == weight.shape[-1]:
        backend = _backend(a := x.flatten(0, -2), b := weight.t(), bias)
    if backend is None:
        return F.linear(x, weight, bias)
    return _matmul(a, b, bias, backend.name).unflatten(0, x.shape[:-1])
