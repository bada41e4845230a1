# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Derivatives beyond the first, and the transforms of torch.func: they work, or say in one sentence what does."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from ultralytics.nn.Addmodules import SS2D, MambaLayer
from ultralytics.nn.Addmodules.selective_scan import selective_scan_fn, use_backend

LAYERS = {"MambaLayer": lambda: MambaLayer(4, d_state=2), "SS2D": lambda: SS2D(4, d_state=1)}


def penalty(layer: nn.Module, x: Tensor) -> Tensor:
    """Return the square of a layer's gradient, as a gradient penalty has it."""
    x = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    return grad.square().sum()


@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
def test_second_derivatives(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    layer, x = make().double(), torch.randn(1, 4, 2, 3, dtype=torch.float64)
    with pytest.raises(
        NotImplementedError, match=r"no second derivative in its kernels; put `with use_backend\('refer"
    ):
        penalty(layer, x).backward()
    with use_backend("reference"):
        value = penalty(layer, x)
        value.backward()
        for p in layer.parameters():  # against finite differences of the penalty
            step, direction = 1e-6, torch.randn_like(p)
            with torch.no_grad():
                p += step * direction
            ahead = penalty(layer, x)
            with torch.no_grad():
                p -= 2 * step * direction
            behind = penalty(layer, x)
            with torch.no_grad():
                p += step * direction
            slope = float((ahead - behind) / (2 * step))
            assert slope == pytest.approx(float((p.grad * direction).sum()), rel=1e-4, abs=1e-7)


def test_second_derivatives_of_a_scan() -> None:
    u, delta, B, C = (torch.randn(1, 2, 4, dtype=torch.float64, requires_grad=True) for _ in range(4))
    A = -torch.rand(2, 2, dtype=torch.float64)

    def run(*inputs: Tensor) -> Tensor:
        return selective_scan_fn(inputs[0], inputs[1], A, inputs[2], inputs[3], delta_softplus=True)

    with use_backend("reference"):
        assert torch.autograd.gradgradcheck(run, (u, delta, B, C))
    (grad,) = torch.autograd.grad(run(u, delta, B, C).sum(), u, create_graph=True)
    with pytest.raises(NotImplementedError, match="the selective scan has no second derivative in its kernels"):
        grad.sum().backward()


@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
def test_transforms_of_torch_func(make: Callable[[], nn.Module]) -> None:
    """Gradients of each picture by itself, at once, are those of one after the other."""
    torch.manual_seed(0)
    layer, xs = make().double(), torch.randn(3, 4, 2, 3, dtype=torch.float64)
    parameters = dict(layer.named_parameters())

    def loss(p: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(layer, p, (x[None],)).square().sum()

    found = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, xs)
    for i, x in enumerate(xs):
        grads = torch.autograd.grad(layer(x[None]).square().sum(), list(parameters.values()))
        for (name, each), want in zip(found.items(), grads, strict=True):
            torch.testing.assert_close(each[i], want, rtol=1e-8, atol=1e-10, msg=name)
