# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""The registered operator behind every selective scan: schema, fake, backward, autograd, FLOPs, and its callers.

Canonical form: K groups of D channels are scanned at once, each in its own token order; u, delta, z are (B, K, D, L),
A is (K, D, N), B and C are (B, K, N, L), D and delta_bias are (K, D), with any strides. The recipe's G groups are K,
and the directions of a bidirectional block are K too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from . import export, registry
from .backends.reference import selective_scan_ref
from .checks import check_canonical, check_scan_inputs

__all__ = ("FORWARD", "REVERSED", "choose", "composed", "scan", "scan_flops", "selective_scan_fn")

FORWARD, REVERSED = 0, 1  # token orders


def no_autocast(device_type: str) -> AbstractContextManager:
    """Return a context without autocast, also for devices that have none (meta, and MPS before PyTorch 2.5)."""
    on = torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)
    return torch.autocast(device_type, enabled=False) if on else nullcontext()


def differentiable_once(backward: torch.library.CustomOpDef, name: str) -> None:
    """Answer whoever differentiates a backward pass in one sentence: its kernels have no derivative of their own.

    Args:
        backward (CustomOpDef): The operator of the backward pass.
        name (str): What it belongs to, in a user's words.
    """

    def refuse(ctx, *grads):
        raise NotImplementedError(
            f"{name} has no second derivative in its kernels; put `with use_backend('reference'):` around the whole "
            f"computation, or set VMAMBA_BACKEND=reference: plain PyTorch has every derivative, and is slower"
        )

    backward.register_autograd(refuse)


_INPUTS = "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? delta_bias"
_SETTINGS = "bool delta_softplus, int[] orders, str backend"  # schemas in full: PyTorch 2.4 infers fewer annotations


@torch.library.custom_op(
    "vmamba::selective_scan", mutates_args=(), schema=f"({_INPUTS}, {_SETTINGS}, bool keep=True) -> (Tensor, Tensor)"
)
def _scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    orders: Sequence[int],
    backend: str,
    keep: bool = True,
) -> tuple[Tensor, Tensor]:
    run = registry.get(backend).forward
    with no_autocast(u.device.type):
        return run(u, delta, A, B, C, D, z, delta_bias, delta_softplus, list(orders), keep)


@_scan.register_fake
def _(u, delta, A, B, C, D, z, delta_bias, delta_softplus, orders, backend, keep=True):
    batch, groups, dim, length = u.shape
    dtype = torch.float64 if u.dtype == torch.float64 else torch.float32
    count = registry.get(backend).num_checkpoints(length) if keep else 1
    states = u.new_empty(batch, groups, count, A.shape[-1], dim, dtype=dtype)
    return torch.empty_like(u), states.transpose(-1, -2)  # channels innermost, as the backends work


@torch.library.custom_op(
    "vmamba::selective_scan_backward",
    mutates_args=(),
    schema=f"(Tensor dout, {_INPUTS}, Tensor states, {_SETTINGS}) -> ({', '.join(['Tensor'] * 8)})",
)
def _scan_backward(
    dout: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    states: Tensor,
    delta_softplus: bool,
    orders: Sequence[int],
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    run = registry.get(backend).backward
    with no_autocast(u.device.type):
        grads = run(dout, u, delta, A, B, C, D, z, delta_bias, states, delta_softplus, list(orders))
    return tuple(u.new_empty(0) if g is None else g for g in grads)


@_scan_backward.register_fake
def _(dout, u, delta, A, B, C, D, z, delta_bias, states, delta_softplus, orders, backend):
    inputs = (u, delta, A, B, C, D, z, delta_bias)
    return tuple(u.new_empty(0) if x is None else torch.empty_like(x) for x in inputs)


def _setup_context(ctx, inputs, output) -> None:
    *tensors, ctx.delta_softplus, ctx.orders, ctx.backend, _ = inputs
    ctx.set_materialize_grads(False)  # nobody differentiates the states: no zeros in their place
    ctx.save_for_backward(*tensors, output[1])


def _backward(ctx, dout, dstates):
    *tensors, states = ctx.saved_tensors
    if dout is None:
        return (None,) * 12
    grads = _scan_backward(dout, *tensors, states, ctx.delta_softplus, ctx.orders, ctx.backend)
    return *(None if x is None else g for x, g in zip(tensors, grads)), None, None, None, None


_scan.register_autograd(_backward, setup_context=_setup_context)
differentiable_once(_scan_backward, "the selective scan")


def scan_flops(batch: int, dim: int, length: int, state: int) -> int:
    """Return the floating point operations of one forward scan over all its channels.

    Source:
        Liu et al., "VMamba: Visual State Space Model", 2024, and its FLOP counter: 9 B L D N.
    """
    return 9 * batch * length * dim * state


@register_flop_formula(torch.ops.vmamba.selective_scan)
def _flops(u_shape, delta_shape, A_shape, *args, out_shape=None, **kwargs) -> int:
    """Return the FLOPs of the operator from the shapes of its arguments."""
    batch, groups, dim, length = u_shape
    return scan_flops(batch, groups * dim, length, A_shape[-1])


@register_flop_formula(torch.ops.vmamba.selective_scan_backward)
def _flops_backward(dout_shape, u_shape, delta_shape, A_shape, *args, out_shape=None, **kwargs) -> int:
    """Return 3 times the forward FLOPs: one recomputation, and twice the forward as for a matmul's backward."""
    return 3 * _flops(u_shape, delta_shape, A_shape)


def exporting() -> bool:
    """Return whether a graph is being recorded for export, where custom operators cannot go."""
    exporting = getattr(torch.compiler, "is_exporting", bool)  # since PyTorch 2.7
    return torch.jit.is_tracing() or torch.onnx.is_in_onnx_export() or exporting()


def composed() -> bool:
    """Return whether a scan is composed of plain PyTorch operators now.

    That is during export; where the reference is forced; under the transforms of torch.func (vmap, grad, jvp, ...),
    which custom operators have no rules for; and under forward-mode differentiation, which takes the derivative of a
    custom operator for zero without a word.
    """
    forward_mode = getattr(torch.autograd.forward_ad, "_current_level", -1) >= 0
    return exporting() or forward_mode or _transformed() or registry.forced() == registry.REFERENCE


def _transformed() -> bool:
    """Return whether a transform of torch.func is at work; torch.compile cannot trace the question."""
    return not torch.compiler.is_compiling() and torch._C._functorch.peek_interpreter_stack() is not None


def choose(*inputs: Tensor | None) -> str | None:
    """Return the backend that takes these canonical inputs, or None where the scan is composed of plain operators."""
    return None if composed() else registry.select(*inputs)


def _scan_reference(u, delta, A, B, C, D, z, delta_bias, delta_softplus, orders):
    """Run `selective_scan_ref` on each group, reversed tokens flipped there and back."""
    outs, states = [], []
    for k, order in enumerate(orders):
        u_k, delta_k, B_k, C_k, z_k = (
            None if x is None else x[:, k].flip(-1) if order == REVERSED else x[:, k] for x in (u, delta, B, C, z)
        )
        D_k, bias_k = (None if x is None else x[k] for x in (D, delta_bias))
        out, state = selective_scan_ref(u_k, delta_k, A[k], B_k, C_k, D_k, z_k, bias_k, delta_softplus, True)
        outs.append(out.flip(-1) if order == REVERSED else out)
        states.append(state)
    return torch.stack(outs, 1), torch.stack(states, 1).unsqueeze(2)


def scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    orders: Sequence[int] | None = None,
    backend: str | None = None,
    keep: bool | None = None,
) -> tuple[Tensor, Tensor]:
    """Scan K groups of channels in one call, each in its own token order, with nothing flipped.

    State, decay and softplus are float32 for any input dtype (float64 for float64), so AMP needs no special case.

    Args:
        u (Tensor): (B, K, D, L), any strides; channel-last tokens (stride 1 along D) are the fastest.
        delta (Tensor): (B, K, D, L).
        A (Tensor): (K, D, N).
        B (Tensor): (B, K, N, L).
        C (Tensor): (B, K, N, L).
        D (Tensor, optional): (K, D).
        z (Tensor, optional): (B, K, D, L).
        delta_bias (Tensor, optional): (K, D).
        delta_softplus (bool): Apply softplus to delta after the bias.
        orders (Sequence[int], optional): FORWARD or REVERSED for each group; all FORWARD by default.
        backend (str, optional): A backend name; by default the registry chooses.
        keep (bool, optional): Keep the states that backward needs; by default where a gradient is recorded.

    Returns:
        out (Tensor): (B, K, D, L) in the dtype of u, each token in its own place.
        states (Tensor): Kept states in scan order, (B, K, n, D, N), the last of which is the final state, and the only
            one if none are kept. No gradient.

    Raises:
        TypeError: If something is no real floating point tensor.
        ValueError: If a shape, a device, an order or the backend's name does not fit.
    """
    check_canonical(u, delta, A, B, C, D, z, delta_bias)
    return _scan_checked(u, delta, A, B, C, D, z, delta_bias, delta_softplus, orders, backend, keep)


def _scan_checked(u, delta, A, B, C, D, z, delta_bias, delta_softplus, orders=None, backend=None, keep=None):
    """Do what `scan` does with tensors whose shapes have been checked."""
    orders = [FORWARD] * u.shape[1] if orders is None else list(orders)
    if len(orders) != u.shape[1] or any(o not in (FORWARD, REVERSED) for o in orders):
        raise ValueError(f"orders must hold {FORWARD} or {REVERSED} for each of {u.shape[1]} groups, got {orders}")
    backend = backend or choose(u, delta, A, B, C, D, z, delta_bias)
    if backend is None:
        if exporting():
            return export.scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus, orders), u.new_empty(0)
        return _scan_reference(u, delta, A, B, C, D, z, delta_bias, delta_softplus, orders)
    if keep is None:
        given = u, delta, A, B, C, D, z, delta_bias
        keep = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in given)
    out, states = _scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus, orders, backend, keep)
    return out, states.detach()


def selective_scan_fn(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Run the S6 selective scan with the fastest backend that takes the inputs.

    Complex A and constant B or C are served by the sequential reference.

    Args:
        u (Tensor): Input (B, D, L).
        delta (Tensor): Step sizes before bias and softplus (B, D, L).
        A (Tensor): State matrix diagonal, real or complex (D, N).
        B (Tensor): Input matrix: (D, N), (B, N, L), (B, G, N, L), or with 2L for interleaved complex values.
        C (Tensor): Output matrix, in any form of B.
        D (Tensor, optional): Skip weights (D).
        z (Tensor, optional): Gate (B, D, L).
        delta_bias (Tensor, optional): Bias of delta (D).
        delta_softplus (bool): Apply softplus to delta after the bias.
        return_last_state (bool): Also return the state after the last token; no gradient flows through it.

    Returns:
        (Tensor | tuple[Tensor, Tensor]): (B, D, L) in the dtype of u, and the last state (B, D, N) if asked for.

    Raises:
        TypeError: If a dtype does not fit.
        ValueError: If shapes or devices do not fit together.

    Source:
        Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", 2023, algorithm 2.

    Examples:
        >>> y = selective_scan_fn(torch.ones(1, 2, 5), torch.ones(1, 2, 5), -torch.ones(2, 3), *torch.ones(2, 1, 3, 5))
        >>> tuple(y.shape)
        (1, 2, 5)
    """
    check_scan_inputs(u, delta, A, B, C, D, z, delta_bias)
    if return_last_state and exporting():
        raise ValueError("return_last_state=True cannot be exported: graphs hold the outputs of a scan only")
    if registry.forced() == registry.REFERENCE or A.is_complex() or B.dim() == 2 or C.dim() == 2:
        return selective_scan_ref(u, delta, A, B, C, D, z, delta_bias, delta_softplus, return_last_state)
    B, C = (x if x.dim() == 4 else x.unsqueeze(1) for x in (B, C))
    groups = math.lcm(B.shape[1], C.shape[1])
    B, C = (x if x.shape[1] == groups else x.repeat_interleave(groups // x.shape[1], 1) for x in (B, C))

    def by_group(x: Tensor | None, dim: int) -> Tensor | None:
        """Split the channel axis into (K, D)."""
        if x is None or groups == 1:
            return None if x is None else x.unsqueeze(dim)
        return x.reshape(*x.shape[:dim], groups, x.shape[dim] // groups, *x.shape[dim + 1 :])

    out, states = _scan_checked(
        by_group(u, 1),
        by_group(delta, 1),
        by_group(A, 0),
        B,
        C,
        by_group(D, 0),
        by_group(z, 1),
        by_group(delta_bias, 0),
        delta_softplus,
    )
    out = out.flatten(1, 2)
    return (out, states[:, :, -1].flatten(1, 2).detach()) if return_last_state else out
