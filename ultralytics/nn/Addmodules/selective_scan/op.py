# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""The registered operators (schema, fake, backward, FLOPs) and the functions that call them, each on a chosen backend.

Every operator takes the parts of its problem one by one, as schemas want them, and the backend's name: backward runs on
the backend that ran forward, and torch.compile sees a constant.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import flop_registry, register_flop_formula

from . import compose, export, onnx_operator
from .backends.reference import selective_scan_ref
from .checks import check_scan_inputs
from .contract import FORWARD, Backend, Block, Linear, Norm, Scan
from .registry import BACKENDS, REFERENCE, choose, exporting, forced, get, why_not

__all__ = ("mamba_inner", "no_autocast", "scan", "scan_flops", "selective_scan_fn", "token_norm")

_SCAN = (
    "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? delta_bias{}, "
    "bool delta_softplus, int[] orders, str backend"
)  # schemas in full: PyTorch 2.4 infers fewer annotations
_BLOCK = (
    "Tensor xz, Tensor? conv_w, Tensor? conv_b, Tensor x_proj, Tensor dt_proj, Tensor A, Tensor? D, Tensor? dt_bias, "
    "Tensor? out_w, Tensor? out_b{}, bool delta_softplus, int[] orders, str backend"
)


# Asked for once: torch.compile of PyTorch 2.4 stops at the question
_AUTOCAST = {name: torch.amp.is_autocast_available(name) for name in ("cpu", "cuda", "xpu", "mps", "meta")}


def no_autocast(device_type: str) -> AbstractContextManager:
    """Return a context without autocast, also for devices that have none (meta, and MPS before PyTorch 2.5)."""
    return torch.autocast(device_type, enabled=False) if autocasts(device_type) else nullcontext()


def autocasts(device_type: str) -> bool:
    """Return whether autocast is on for a device."""
    known = _AUTOCAST[device_type] if device_type in _AUTOCAST else torch.amp.is_autocast_available(device_type)
    return known and torch.is_autocast_enabled(device_type)


def _flops(op: torch._ops.OpOverloadPacket):
    """Register the FLOP formula of an operator. PyTorch 2.4 files it under the overload and looks for the packet."""

    def register(formula):
        register_flop_formula(op)(formula)
        for overload in op.overloads():
            if (found := flop_registry.get(getattr(op, overload))) is not None:
                flop_registry[op] = found
        return formula

    return register


def _running(name: str) -> Backend:
    """Return a backend by its name, or raise RuntimeError with the reason why it cannot run here."""
    backend = BACKENDS[name] if name in BACKENDS else get(name)
    if not backend.works:
        raise RuntimeError(f"scan backend '{name}' is not available: {backend.about}")
    return backend


def _asked_for(name: str, s: Scan) -> Backend:
    """Return the backend that a caller names for a scan, or raise RuntimeError with the reason why it does not do."""
    s.check()
    backend = _running(name)
    if reason := why_not(backend, "scan", s):
        raise RuntimeError(f"scan backend '{name}' cannot take this call: {reason}")
    return backend


def _recorded(*tensors: Tensor | None) -> bool:
    """Return whether autograd records what is made of these tensors."""
    if torch.is_grad_enabled():
        for t in tensors:
            if t is not None and t.requires_grad:
                return True
    return False


def _direct(*tensors: Tensor | None) -> bool:
    """Return whether a kernel may be called without its operator: nobody traces or counts, and memory holds the values.

    The dispatcher costs an operator 15 to 25 us, as long as a kernel takes for a small map. What it would do is not
    done: it resolves tensors that stand for others' negatives, or for zeros without memory.
    """
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack():
        return False
    for t in tensors:
        if t is not None and (type(t) not in (Tensor, torch.nn.Parameter) or t.is_neg() or t._is_zerotensor()):
            return False
    return True


def _operator(name: str, inputs: str, outputs: int, run: Callable) -> torch.library.CustomOpDef:
    """Register an operator of tensors."""
    returns = "Tensor" if outputs == 1 else f"({', '.join(['Tensor'] * outputs)})"
    return torch.library.custom_op(f"vmamba::{name}", run, mutates_args=(), schema=f"({inputs}) -> {returns}")


def _present(grads: Iterable[Tensor | None], like: Tensor) -> tuple[Tensor, ...]:
    """Return gradients with an empty tensor for each absent one: operators return tensors only."""
    return tuple(like.new_empty(0) if g is None else g for g in grads)


def _differentiable_once(backward: torch.library.CustomOpDef, name: str) -> None:
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


# The scan -------------------------------------------------------------------------------------------------------------


def _run_scan(*args) -> tuple[Tensor, Tensor]:
    s, backend, keep = Scan(*args[:10]), _running(args[10]), args[11] if len(args) > 11 else True
    with no_autocast(s.u.device.type):
        s.check()
        return backend.scan(s, keep)


def _run_scan_backward(dout: Tensor, *args) -> tuple[Tensor, ...]:
    s, states, backend = Scan(*args[:8], *args[9:11]), args[8], _running(args[11])
    with no_autocast(dout.device.type):
        s.check()
        return _present(backend.scan_backward(dout, s, states), dout)


_scan = _operator("selective_scan", f"{_SCAN.format('')}, bool keep=True", 2, _run_scan)
_scan_backward = _operator(
    "selective_scan_backward", f"Tensor dout, {_SCAN.format(', Tensor states')}", 8, _run_scan_backward
)


@_scan.register_fake
def _(*args):
    s, backend, keep = Scan(*args[:10]), args[10], args[11] if len(args) > 11 else True
    s.check()
    batch, groups, dim, length = s.u.shape
    dtype = torch.float64 if s.u.dtype == torch.float64 else torch.float32
    count = get(backend).num_checkpoints(length) if keep else 1
    states = s.u.new_empty(batch, groups, count, s.A.shape[-1], dim, dtype=dtype)
    return torch.empty_like(s.u), states.transpose(-1, -2)  # channels innermost, as the backends work


@_scan_backward.register_fake
def _(dout, *args):
    # Tokens in their layout, parameters as backends give them
    like = (x if x is None else torch.empty_like(x) if x.dim() == 4 else x.new_empty(x.shape) for x in args[:8])
    return _present(like, dout)


def _setup_scan(ctx, inputs, output) -> None:
    *tensors, ctx.softplus, ctx.orders, ctx.backend, _ = inputs
    ctx.set_materialize_grads(False)  # nobody differentiates the states: no zeros in their place
    ctx.save_for_backward(*tensors, output[1])


def _backward_scan(ctx, dout, dstates):
    if dout is None:
        return (None,) * 12
    tensors = ctx.saved_tensors
    grads = _scan_backward(dout, *tensors, ctx.softplus, ctx.orders, ctx.backend)
    return *(None if x is None else g for x, g in zip(tensors, grads)), None, None, None, None


_scan.register_autograd(_backward_scan, setup_context=_setup_scan)
_differentiable_once(_scan_backward, "the selective scan")


def scan_flops(batch: int, dim: int, length: int, state: int) -> int:
    """Return the floating point operations of one forward scan over all its channels.

    Source:
        Liu et al., "VMamba: Visual State Space Model", 2024, and its FLOP counter: 9 B L D N.
    """
    return 9 * batch * length * dim * state


@_flops(torch.ops.vmamba.selective_scan)
def _flops_scan(u_shape, delta_shape, A_shape, *args, **kwargs) -> int:
    """Return the FLOPs of the operator from the shapes of its arguments."""
    batch, groups, dim, length = u_shape
    return scan_flops(batch, groups * dim, length, A_shape[-1])


@_flops(torch.ops.vmamba.selective_scan_backward)
def _flops_scan_backward(dout_shape, *shapes, **kwargs) -> int:
    """Return 3 times the forward FLOPs: one recomputation, and twice the forward as for a matmul's backward."""
    return 3 * _flops_scan(*shapes)


def scan(s: Scan, backend: str | None = None, keep: bool | None = None) -> tuple[Tensor, Tensor]:
    """Scan K groups of channels in one call, each in its own token order, with nothing flipped.

    State, decay and softplus are float32 for any input dtype (float64 for float64), so AMP needs no special case.

    Args:
        s (Scan): The scan.
        backend (str, optional): A backend's name; by default it is chosen.
        keep (bool, optional): Keep the states that backward needs; by default where a gradient is recorded.

    Returns:
        out (Tensor): (B, K, D, L) in the dtype of u, each token in its own place.
        states (Tensor): Kept states in scan order, (B, K, n, D, N), the last of which is the final state, and the only
            one if none are kept. No gradient.

    Raises:
        TypeError: If something is no real floating point tensor.
        ValueError: If a shape, a device, an order or the backend's name does not fit, or there are no tokens.
    """
    s = Scan(*s[:9], [FORWARD] * len(s.A) if s.orders is None else list(s.orders))
    if s.u.dim() == 4 and s.u.shape[3] == 0:
        raise ValueError(f"u has no tokens (L = 0): shape (B, K, D, L) = {tuple(s.u.shape)}")
    if exporting() and backend is None:
        s.check()
        return export.traced_scan(s), s.u.new_empty(0)
    chosen = choose("scan", s) if backend is None else _asked_for(backend, s)
    recorded = _recorded(*s[:8])
    keep = recorded if keep is None else keep
    if not chosen.operator:
        s.check()
        return chosen.scan(s, keep)
    run = _run_scan if not recorded and _direct(*s[:8]) else _scan
    out, states = run(*s, chosen.name, keep)
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

    Complex A and constant B or C are served by the sequential reference, computed in float32 at the least.

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
    if forced() == REFERENCE:
        return selective_scan_ref(u, delta, A, B, C, D, z, delta_bias, delta_softplus, return_last_state)
    if A.is_complex() or B.dim() == 2 or C.dim() == 2:
        # The definition casts nothing up; a scan's state is float32 at the least
        given = (u, delta, A, B, C, D, z, delta_bias)
        wide = (x if x is None else x.to(torch.promote_types(x.dtype, torch.float32)) for x in given)
        found = selective_scan_ref(*wide, delta_softplus, return_last_state)
        return (found[0].to(u.dtype), found[1]) if return_last_state else found.to(u.dtype)
    B, C = (x if x.dim() == 4 else x.unsqueeze(1) for x in (B, C))
    groups = math.lcm(B.shape[1], C.shape[1])
    B, C = (x if x.shape[1] == groups else x.repeat_interleave(groups // x.shape[1], 1) for x in (B, C))

    def by_group(x: Tensor | None, dim: int) -> Tensor | None:
        """Split the channel axis into (K, D)."""
        if x is None or groups == 1:
            return None if x is None else x.unsqueeze(dim)
        return x.reshape(*x.shape[:dim], groups, x.shape[dim] // groups, *x.shape[dim + 1 :])

    u, delta, z = (by_group(x, 1) for x in (u, delta, z))
    A, D, delta_bias = (by_group(x, 0) for x in (A, D, delta_bias))
    out, states = scan(Scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus, [0] * groups))
    out = out.flatten(1, 2)
    return (out, states[:, :, -1].flatten(1, 2).detach()) if return_last_state else out


# The block ------------------------------------------------------------------------------------------------------------


def _compute_block(b: Block, backend: Backend, keep: bool) -> tuple[Tensor | None, ...]:
    b.check()
    out, *kept = backend.block(b, keep)
    if b.out_w is not None:
        out = backend.linear(Linear(out.flatten(0, 1), b.out_w.t(), b.out_b)).view(*out.shape[:2], len(b.out_w))
    return out, *kept


def _run_block(*args) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    b, backend, keep = Block(*args[:12]), _running(args[12]), args[13]
    with no_autocast(b.xz.device.type):
        out, *kept = _compute_block(b, backend, keep)
    return out, *_present(kept, out)


def _run_block_backward(dout: Tensor, *args) -> tuple[Tensor, ...]:
    b, kept, backend = Block(*args[:10], *args[13:15]), args[10:13], _running(args[15])
    with no_autocast(dout.device.type):  # it may run inside an autocast block, where forward's casts are no use
        b.check()
        flat, projects = dout.flatten(0, 1), b.out_w is not None
        if projects:
            dout = backend.linear(Linear(flat, b.out_w)).unflatten(0, dout.shape[:2])
        kept = (None if b.xz.shape[2] == b.A.shape[1] else kept[0], *kept[1:])
        *grads, out = backend.block_backward(dout, b, kept, projects)
        dout_w = backend.linear(Linear(flat.t(), out.flatten(0, 1))) if projects else None
        dout_b = flat.sum(0) if projects and b.out_b is not None else None
    grads = (None if g is None else g.contiguous() for g in (*grads, dout_w, dout_b))
    return _present(grads, dout)


_block = _operator("mamba_inner", f"{_BLOCK.format('')}, bool keep", 4, _run_block)
_block_backward = _operator(
    "mamba_inner_backward",
    f"Tensor dout, {_BLOCK.format(', Tensor y, Tensor projected, Tensor states')}",
    10,
    _run_block_backward,
)


@_block.register_fake
def _(*args) -> tuple[Tensor, ...]:
    b, backend, keep = Block(*args[:12]), args[12], args[13]
    b.check()
    (batch, length, width), (groups, dim, state), xz = b.xz.shape, b.A.shape, b.xz
    out = xz.new_empty(batch, length, dim if b.out_w is None else b.out_w.shape[0])
    if not keep:
        return out, *(xz.new_empty(0) for _ in range(3))
    y = xz.new_empty(0) if width == dim else xz.new_empty(batch, length, dim)
    projected = xz.new_empty(batch, b.x_proj.shape[0], length, b.x_proj.shape[1])
    count = get(backend).num_checkpoints(length)
    return out, y, projected, b.A.new_empty(batch, groups, count, state, dim).transpose(-1, -2)


@_block_backward.register_fake
def _(dout, *args) -> tuple[Tensor, ...]:
    return _present([None if t is None else t.new_empty(t.shape) for t in args[:10]], dout)


def _setup_block(ctx, inputs, output) -> None:
    *tensors, ctx.softplus, ctx.orders, ctx.backend, _ = inputs
    ctx.set_materialize_grads(False)  # nobody differentiates what is kept: no zeros in its place
    ctx.save_for_backward(*tensors, *output[1:])


def _backward_block(ctx, dout, *_):
    if dout is None:
        return (None,) * 14
    saved = ctx.saved_tensors
    grads = _block_backward(dout, *saved, ctx.softplus, ctx.orders, ctx.backend)
    return *(None if t is None else g for t, g in zip(saved, grads)), None, None, None, None


_block.register_autograd(_backward_block, setup_context=_setup_block)
_differentiable_once(_block_backward, "the Mamba block")


def _flops_of_parts(xz, conv_w, conv_b, x_proj, dt_proj, A, D, dt_bias, out_w) -> tuple[int, int, int, int, int]:
    """Return the FLOPs of the convolutions, x_proj, dt_proj, the scans and out_proj, from shapes, 2 a multiply-add."""
    (batch, length, _), (groups, dim, state), rows = xz, A, x_proj[0]
    tokens = 2 * batch * length * dim
    convolution = 0 if conv_w is None else tokens * rows * conv_w[2]
    scans = scan_flops(batch, groups * dim, length, state)
    return convolution, tokens * rows * x_proj[1], tokens * rows * dt_proj[2], scans, tokens * out_w[0] if out_w else 0


@_flops(torch.ops.vmamba.mamba_inner)
def _flops_block(*shapes, **kwargs) -> int:
    """Return the FLOPs of the operator from the shapes of its arguments."""
    return sum(_flops_of_parts(*shapes[:9]))


@_flops(torch.ops.vmamba.mamba_inner_backward)
def _flops_block_backward(dout_shape, *shapes, **kwargs) -> int:
    """Return twice the forward FLOPs, and once more what is recomputed: convolutions, dt_proj and scans."""
    convolution, project, rank, scans, out = _flops_of_parts(*shapes[:9])
    return 3 * (convolution + rank + scans) + 2 * (project + out)


def mamba_inner(b: Block) -> Tensor:
    """Compute a Mamba block of K directions in one differentiable call that keeps little and recomputes in backward.

    Parameters are cast to the dtype of the tokens, but for A, D and dt_bias, which stay float32 (float64 for float64).

    Args:
        b (Block): The block.

    Returns:
        (Tensor): (B, L, M), or (B, L, D) without out_w.

    Raises:
        TypeError: If something is no real floating point tensor.
        ValueError: If shapes, devices or the number of orders do not fit together.

    Source:
        Gu and Dao, "Mamba", 2023, figure 3; Zhu et al., "Vision Mamba", 2024, algorithm 1 for two directions.
    """
    if not autocasts(b.xz.device.type):
        return _mamba_inner(b)
    b = _normed(b)
    if b.in_w is not None:  # the only product that autocast decides about
        b = Block(F.linear(b.xz, b.in_w, b.in_b), *b[1:12])
    with torch.autocast(b.xz.device.type, enabled=False):
        return _mamba_inner(b)


def _mamba_inner(b: Block) -> Tensor:
    """Do what `mamba_inner` does, without autocast."""
    b = _cast(b)
    backend = choose("block", b)
    if not backend.operator:
        b.check()
        return _by_pytorch(_normed(b), _graph if exporting() else lambda x: backend.block(x)[0])
    tensors = *b[:10], *b[12:16]
    recorded = _recorded(*tensors)
    direct = not recorded and _direct(*tensors)
    if direct:
        b.check()
        if backend.whole(b):
            return backend.block(b, False)[0]
    if any(p is not None and p.device != b.xz.device for p in b[12:16]):  # PyTorch would compute nothing, on meta
        b.check()
    b = _normed(b)
    if b.in_w is not None:
        xz, weight, bias = b.xz, b.in_w, b.in_b
        if _multiplies(backend, xz, weight, bias):
            flat = xz.flatten(0, 1), weight.t(), bias
            y = backend.linear(Linear(*flat)) if direct else _linear(*flat, backend.name)
            xz = y.view(*xz.shape[:2], len(weight))
        else:
            xz = F.linear(xz, weight, bias)
        b = Block(xz, *b[1:12])
    return _compute_block(b, backend, False)[0] if direct else _block(*b[:12], backend.name, recorded)[0]


def _normed(b: Block) -> Block:
    """Return a block whose norm is done."""
    if b.norm_w is None and b.norm_b is None:
        return b
    if b.in_w is None or b.norm_w is None or b.norm_b is None:
        b.check()  # which says what is missing
    tokens = token_norm(b.xz.transpose(1, 2), b.norm_w.shape, b.norm_w, b.norm_b, b.norm_eps)
    return Block(tokens, *b[1:14])


def _graph(b: Block) -> Tensor:
    """Return what is between in_proj and out_proj for an exporter."""
    return onnx_operator.recorded(compose.graph, b)


def _cast(b: Block) -> Block:
    """Return the block with its parameters in the dtypes in which backends take them."""
    dtype = b.xz.dtype
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    cast = [
        p if not isinstance(p, Tensor) or p.dtype == want else p.to(want)
        for p, want in zip(b, (*(dtype,) * 5, *(wide,) * 3, *(dtype,) * 6))
    ]
    orders = [FORWARD] * len(b.A) if b.orders is None else list(b.orders)
    return Block(*cast[:11], orders, *cast[12:], *b[len(cast) :])


def _by_pytorch(b: Block, inside: Callable[[Block], Tensor]) -> Tensor:
    """Return a block around a function for what is between in_proj and out_proj, for autograd or an exporter."""
    if b.in_w is not None:
        b = Block(F.linear(b.xz, b.in_w, b.in_b), *b[1:12])
    out = inside(b).to(b.xz.dtype)
    return out if b.out_w is None else F.linear(out, b.out_w, b.out_b)


# Linear layers --------------------------------------------------------------------------------------------------------


def _run_linear(a: Tensor, b: Tensor, bias: Tensor | None, backend: str) -> Tensor:
    with no_autocast(a.device.type):
        return _running(backend).linear(Linear(a, b, bias))


_linear = _operator("matmul", "Tensor a, Tensor b, Tensor? bias, str backend", 1, _run_linear)


@_linear.register_fake
def _(a, b, bias, backend) -> Tensor:
    return a.new_empty(a.shape[0], b.shape[1])


def _setup_linear(ctx, inputs, output) -> None:
    a, b, bias, ctx.backend = inputs
    ctx.has_bias = bias is not None
    ctx.save_for_backward(a, b)


def _backward_linear(ctx, dout):
    a, b = ctx.saved_tensors
    need = ctx.needs_input_grad
    da = _linear(dout, b.t(), None, ctx.backend) if need[0] else None
    db = _linear(dout.t(), a, None, ctx.backend).t() if need[1] else None  # b is a transposed weight: laid out as it is
    return da, db, dout.sum(0) if ctx.has_bias and need[2] else None, None


_linear.register_autograd(_backward_linear, setup_context=_setup_linear)


@_flops(torch.ops.vmamba.matmul)
def _flops_linear(a_shape, b_shape, *args, **kwargs) -> int:
    """Return 2 for each multiply-add, as PyTorch counts its own product."""
    return 2 * a_shape[0] * a_shape[1] * b_shape[1]


def _multiplies(backend: Backend, x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Return whether a backend's product is faster than PyTorch's for a linear layer."""
    if not backend.columns or weight.shape[0] % backend.columns or not weight.shape[1]:
        return False
    return x.dtype == weight.dtype == torch.float32 and (bias is None or bias.dtype == torch.float32)


# The norm of a map's tokens -------------------------------------------------------------------------------------------


def _run_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float, backend: str) -> tuple[Tensor, Tensor, Tensor]:
    n, runs = Norm(x, weight, bias, eps), _running(backend)
    n.check()
    return runs.norm(n)


def _run_norm_backward(
    dout: Tensor, x: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    n, runs = Norm(x, weight, weight), _running(backend)
    n.check()
    return runs.norm_backward(dout, n, mean, rstd)


_norm = _operator("token_norm", "Tensor x, Tensor weight, Tensor bias, float eps, str backend", 3, _run_norm)
_norm_backward = _operator(
    "token_norm_backward",
    "Tensor dout, Tensor x, Tensor weight, Tensor mean, Tensor rstd, str backend",
    3,
    _run_norm_backward,
)


@_norm.register_fake
def _(x, weight, bias, eps, backend) -> tuple[Tensor, Tensor, Tensor]:
    batch, channels, length = x.shape
    mean, rstd = (x.new_empty((batch, length), dtype=torch.float32) for _ in range(2))
    return x.new_empty(batch, length, channels), mean, rstd


@_norm_backward.register_fake
def _(dout, x, weight, mean, rstd, backend) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(weight), torch.empty_like(weight)


def _setup_norm(ctx, inputs, output) -> None:
    x, weight, _, _, ctx.backend = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, weight, *output[1:])


def _backward_norm(ctx, dout, *_):
    if dout is None:
        return (None,) * 5
    return *_norm_backward(dout, *ctx.saved_tensors, ctx.backend), None, None


_norm.register_autograd(_backward_norm, setup_context=_setup_norm)
_differentiable_once(_norm_backward, "the norm of a map's tokens")


def token_norm(x: Tensor, shape: Sequence[int], weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    """Normalise the channels of each token of a map, with the turn from map to tokens in the same pass.

    Args:
        x (Tensor): Map (B, C, L); channels_last or not.
        shape (Sequence[int]): C alone, as a number: an exported graph needs it apart from the map.
        weight (Tensor): (C).
        bias (Tensor): (C).
        eps (float): Added to the variance.

    Returns:
        (Tensor): Tokens (B, L, C) in the dtype of x.

    Source:
        Ba et al., "Layer Normalization", 2016.
    """
    backend = choose("norm", Norm(x, weight, bias, eps))
    if backend is None:
        return F.layer_norm(x.transpose(1, 2), shape, weight, bias, eps)
    run = _run_norm if not _recorded(x, weight, bias) and _direct(x, weight, bias) else _norm
    if not autocasts(x.device.type):
        return run(x, weight, bias, eps, backend.name)[0]
    with torch.autocast(x.device.type, enabled=False):
        return run(x, weight, bias, eps, backend.name)[0]
