# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""The recipe's functions under the recipe's names. The layers do not call them; they are here for code that does.

All of them compute one Mamba block: convolution, SiLU, projection to delta, B and C, gated scan. Arguments:
    xz                  input projection (B, 2D, L): x above the gate z
    conv1d_weight       (D, 1, W); conv1d_bias (D) or None
    x_proj_weight       (R + 2N, D); without the rows of a B or C that is given
    delta_proj_weight   (D, R)
    out_proj_weight     (M, D); out_proj_bias (M) or None
    A                   (D, N), real or complex; A_b is that of the scan of the reversed sequence
    B, C                used instead of the projected ones, in any form that `selective_scan_fn` takes
    D, delta_bias       (D)
    B_proj_bias         added to the projected B (N); C_proj_bias likewise
    delta_softplus      apply softplus to delta after the bias
They return (B, L, M), `..._no_out_proj` (B, D, L), and raise ValueError where shapes do not fit together.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from .selective_scan import FORWARD, REVERSED, Block, mamba_inner, selective_scan_fn, selective_scan_ref
from .selective_scan.checks import check_inner_inputs
from .selective_scan.op import no_autocast

__all__ = (
    "BiMambaInnerFn",
    "MambaInnerFn",
    "MambaInnerFnNoOutProj",
    "SelectiveScanFn",
    "bimamba_inner_fn",
    "bimamba_inner_ref",
    "mamba_inner_fn",
    "mamba_inner_fn_no_out_proj",
    "mamba_inner_ref",
    "selective_scan_fn",
    "selective_scan_ref",
)


class Weights(NamedTuple):
    """The layers of a block, as the module's docstring lists them."""

    conv: Tensor
    conv_bias: Tensor | None
    x_proj: Tensor
    delta_proj: Tensor
    out_proj: Tensor | None = None
    out_proj_bias: Tensor | None = None


class Given(NamedTuple):
    """What a call may give beside the layers, as the module's docstring lists it."""

    B: Tensor | None
    C: Tensor | None
    D: Tensor | None
    delta_bias: Tensor | None
    B_proj_bias: Tensor | None
    C_proj_bias: Tensor | None
    delta_softplus: bool


def _parts(a: Mapping[str, Any]) -> tuple[Tensor, Weights, tuple[Tensor, ...], Given]:
    """Sort the arguments of a function of the recipe, by their names."""
    w = Weights(
        a["conv1d_weight"], a["conv1d_bias"], a["x_proj_weight"], a["delta_proj_weight"],
        a.get("out_proj_weight"), a.get("out_proj_bias"),
    )  # fmt: skip
    return a["xz"], w, tuple(a[name] for name in ("A", "A_b") if name in a), Given(*(a[n] for n in Given._fields))


def _composed(xz: Tensor, w: Weights, As: tuple[Tensor, ...], given: Given, scan: Callable) -> Tensor:
    """Compute a block step by step, for every form of A, B and C. A second A scans the reversed sequence."""
    length, rank, state = xz.shape[-1], w.delta_proj.shape[1], As[0].shape[-1]
    parts = 2 if As[0].is_complex() else 1
    x, z = xz.chunk(2, dim=1)
    width = w.conv.shape[-1]
    x = F.silu(F.conv1d(x, w.conv, w.conv_bias, padding=width - 1, groups=x.shape[1])[..., :length])
    x_dbl = torch.einsum("bdl,rd->brl", x, w.x_proj)
    delta = torch.einsum("brl,dr->bdl", x_dbl[:, :rank], w.delta_proj)
    BC, start = [], rank
    for t, bias in ((given.B, given.B_proj_bias), (given.C, given.C_proj_bias)):
        if t is None:  # variable: the next N (complex: 2N, real and imaginary parts interleaved) projections
            t = x_dbl[:, start : start + state * parts]
            start += state * parts
            if bias is not None:
                t = t + bias.to(t.dtype)[:, None]
            t = rearrange(t, "b (n two) l -> b n (l two)", two=parts).contiguous()
        BC.append(t)
    rest = given.delta_bias, given.delta_softplus
    y = scan(x, delta, As[0], *BC, given.D, z, *rest)
    if len(As) == 2:
        x, delta, z = (t.flip(-1) for t in (x, delta, z))
        BC = [t if t.dim() == 2 else t.unflatten(-1, (-1, parts)).flip(-2).flatten(-2) for t in BC]
        y = y + scan(x, delta, As[1], *BC, given.D, z, *rest).flip(-1)
    y = y.transpose(1, 2)
    return y if w.out_proj is None else F.linear(y, w.out_proj, w.out_proj_bias)


def _block(xz: Tensor, w: Weights, As: tuple[Tensor, ...], given: Given) -> Tensor:
    """Compute a block by the recomputing operator where it applies (real A, projected B and C), else step by step."""
    check_inner_inputs(xz, w, As, given)
    if As[0].is_complex() or any(t is not None for t in (given.B, given.C, given.B_proj_bias, given.C_proj_bias)):
        with no_autocast(xz.device.type):  # as in the operator: else some parts of one scan would be cast, others not
            w = Weights(*(None if p is None else p.to(xz.dtype) for p in w))
            return _composed(xz, w, As, given, selective_scan_fn)
    D, delta_bias = (None if t is None else t.expand(len(As), -1) for t in (given.D, given.delta_bias))
    return mamba_inner(
        Block(
            xz=xz.transpose(1, 2),
            conv_w=w.conv.transpose(0, 1),
            conv_b=None if w.conv_bias is None else w.conv_bias[None],
            x_proj=w.x_proj[None],
            dt_proj=w.delta_proj[None],
            A=torch.stack(As),
            D=D,
            dt_bias=delta_bias,
            out_w=w.out_proj,
            out_b=w.out_proj_bias,
            delta_softplus=given.delta_softplus,
            orders=(FORWARD, REVERSED)[: len(As)],
        )
    )


def mamba_inner_fn_no_out_proj(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    A: Tensor,
    B: Tensor | None = None,
    C: Tensor | None = None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    B_proj_bias: Tensor | None = None,
    C_proj_bias: Tensor | None = None,
    delta_softplus: bool = True,
) -> Tensor:
    """Compute a block of one direction in one differentiable call that recomputes in backward: (B, D, L)."""
    return _block(*_parts(locals())).transpose(1, 2)


def mamba_inner_fn(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    A: Tensor,
    B: Tensor | None = None,
    C: Tensor | None = None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    B_proj_bias: Tensor | None = None,
    C_proj_bias: Tensor | None = None,
    delta_softplus: bool = True,
) -> Tensor:
    """Do what `mamba_inner_fn_no_out_proj` does, and the output projection: (B, L, M)."""
    return _block(*_parts(locals()))


def bimamba_inner_fn(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    A: Tensor,
    A_b: Tensor,
    B: Tensor | None = None,
    C: Tensor | None = None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    B_proj_bias: Tensor | None = None,
    C_proj_bias: Tensor | None = None,
    delta_softplus: bool = True,
) -> Tensor:
    """Do what `mamba_inner_fn` does, with a second scan, of the reversed sequence, added before the projection.

    Convolution and projections are computed once, in sequence order, and shared by both scans.

    Source:
        Zhu et al., "Vision Mamba: Efficient Visual Representation Learning with Bidirectional State Space Model", 2024.
    """
    return _block(*_parts(locals()))


def _definition_of(fn: Callable, name: str) -> Callable[..., Tensor]:
    """Return what a function computes, step by step, with `selective_scan_ref`; it takes the same arguments."""
    signature = inspect.signature(fn)

    def definition(*args, **kwargs) -> Tensor:
        given = signature.bind(*args, **kwargs)
        given.apply_defaults()
        return _composed(*_parts(given.arguments), selective_scan_ref)

    definition.__name__ = definition.__qualname__ = name
    definition.__doc__ = f"Define `{fn.__name__}`, with the same arguments, step by step, with `selective_scan_ref`."
    definition.__signature__ = signature
    return definition


mamba_inner_ref = _definition_of(mamba_inner_fn, "mamba_inner_ref")
bimamba_inner_ref = _definition_of(bimamba_inner_fn, "bimamba_inner_ref")


class SelectiveScanFn:
    """The recipe's name for `selective_scan_fn`, called with `apply`; autograd lives in the operator."""

    apply = staticmethod(selective_scan_fn)


class MambaInnerFnNoOutProj:
    """The recipe's name for `mamba_inner_fn_no_out_proj`, called with `apply`."""

    apply = staticmethod(mamba_inner_fn_no_out_proj)


class MambaInnerFn:
    """The recipe's name for `mamba_inner_fn`, called with `apply`."""

    apply = staticmethod(mamba_inner_fn)


class BiMambaInnerFn:
    """The recipe's name for `bimamba_inner_fn`, called with `apply`."""

    apply = staticmethod(bimamba_inner_fn)
