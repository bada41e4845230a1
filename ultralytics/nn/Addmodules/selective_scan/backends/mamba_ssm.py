# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Adapter to `selective_scan_cuda`, the compiled kernels of the mamba-ssm package (the `cuda` extra).

Only used when asked for by name. The kernels know one token order and tokens innermost, so reversed groups are flipped
and channel-last tensors copied, there and back.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

import torch
from torch import Tensor

__all__ = ("accepts", "available", "backward", "forward", "name", "num_checkpoints")

name = "cuda"

CHUNK = 2048  # tokens per state that the kernels keep
MAX_STATES = 256
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

_module: ModuleType | None = None
_state: tuple[bool, str] | None = None


def available() -> tuple[bool, str]:
    """Return whether the kernels are installed and a device is there, or the reason why not."""
    global _module, _state
    if _state is None:
        if torch.cuda.device_count() == 0:  # not is_available(), which starts CUDA when the package is imported
            _state = False, "no CUDA device"
        else:
            try:
                _module = import_module("selective_scan_cuda")
                _state = True, "selective_scan_cuda of mamba-ssm"
            except (ImportError, OSError) as e:  # OSError: built for another PyTorch or CUDA
                _state = False, f"selective_scan_cuda cannot be imported (pip install 'ultralytics[cuda]'): {e}"
    return _state


def accepts(u, delta, A, B, C, D, z, delta_bias) -> tuple[bool, str]:
    """Return whether the kernels take these tensors, and if not the reason."""
    for label, t in zip(("u", "delta", "A", "B", "C", "D", "z", "delta_bias"), (u, delta, A, B, C, D, z, delta_bias)):
        if t is None:
            continue
        if t.device.type != "cuda" or t.layout != torch.strided:
            return False, f"{label} is not a dense CUDA tensor"
        if label in ("A", "D", "delta_bias"):
            if t.dtype != torch.float32:
                return False, f"{label} is {t.dtype}: only float32"
        elif t.dtype not in _DTYPES or t.dtype != u.dtype:
            return False, f"{label} is {t.dtype} and u {u.dtype}: only float32, bfloat16 and float16, all the same"
    if not 1 <= A.shape[-1] <= MAX_STATES:
        return False, f"{A.shape[-1]} states: only 1 to {MAX_STATES}"
    return True, ""


def num_checkpoints(length: int) -> int:
    """Return how many states forward keeps for backward; the last is the final state."""
    return max(1, -(-length // CHUNK))


def _flat(x: Tensor, orders: list[int]) -> Tensor:
    """Bring (B, K, C, L) to scan order, tokens innermost."""
    if any(orders):
        x = torch.stack([x[:, k].flip(-1) if o else x[:, k] for k, o in enumerate(orders)], 1)
    return x.contiguous()


def _inputs(u, delta, A, B, C, D, z, delta_bias, orders: list[int]) -> list[Tensor | None]:
    """Return the arguments in the kernels' form: K D channels in K groups."""
    u, delta, z = (None if t is None else _flat(t, orders).flatten(1, 2) for t in (u, delta, z))
    A, D, delta_bias = (None if t is None else t.flatten(0, 1).contiguous() for t in (A, D, delta_bias))
    return [u, delta, A, _flat(B, orders), _flat(C, orders), D, z, delta_bias]


def _back(x: Tensor, like: Tensor, orders: list[int]) -> Tensor:
    """Bring a result in scan order to the shape, layout and dtype of `like`."""
    x = x.reshape(like.shape)
    if any(orders):
        x = torch.stack([x[:, k].flip(-1) if o else x[:, k] for k, o in enumerate(orders)], 1)
    return torch.empty_like(like).copy_(x)


def forward(u, delta, A, B, C, D, z, delta_bias, delta_softplus: bool, orders: list[int], checkpoints: bool = True):
    """Scan all groups of a batch; arguments and returns are those of every backend, see `chunked.forward`."""
    if u.numel() == 0:
        states = u.new_zeros(*u.shape[:2], num_checkpoints(u.shape[-1]), A.shape[-1], u.shape[2], dtype=torch.float32)
        return torch.empty_like(u), states.transpose(-1, -2)
    inputs = _inputs(u, delta, A, B, C, D, z, delta_bias, orders)
    out, kept, *gated = _loaded().fwd(*inputs, delta_softplus)
    # kept holds (decay, state) pairs, (B, K D, n, 2 N); backward takes only the states back.
    states = kept[..., 1::2].unflatten(1, u.shape[1:3]).permute(0, 1, 3, 4, 2).contiguous()
    if not checkpoints:
        states = states[:, :, -1:].contiguous()
    return _back(gated[0] if gated else out, u, orders), states.transpose(-1, -2)


def backward(dout, u, delta, A, B, C, D, z, delta_bias, states, delta_softplus: bool, orders: list[int]):
    """Return the gradients (du, ddelta, dA, dB, dC, dD, dz, ddelta_bias), None for absent inputs.

    The kernels add dB, dC, dA, dD and ddelta_bias up atomically: their last bits differ from run to run. With a gate
    they need the ungated output, which is computed again here, since the operator keeps states only.
    """
    if u.numel() == 0:
        grads = [None if t is None else torch.zeros_like(t) for t in (u, delta, A, B, C, D, z, delta_bias)]
        return tuple(grads)
    module = _loaded()
    inputs = _inputs(u, delta, A, B, C, D, z, delta_bias, orders)
    ungated = None
    if z is None:
        # In place of the pairs' decays, which the backward kernel never reads: it starts each chunk from a state.
        kept = states.permute(0, 1, 3, 2, 4).flatten(1, 2)  # (B, K D, n, N)
        kept = torch.stack([torch.ones_like(kept), kept], -1).flatten(-2).contiguous()
    else:
        ungated, kept, _ = module.fwd(*inputs, delta_softplus)
    grads = module.bwd(*inputs, _flat(dout, orders).flatten(1, 2), kept, ungated, None, delta_softplus, False)
    du, ddelta, dA, dB, dC, dD, dbias, *dz = grads
    return (
        _back(du, u, orders),
        _back(ddelta, delta, orders),
        dA.reshape(A.shape),
        _back(dB, B, orders),
        _back(dC, C, orders),
        None if D is None else dD.reshape(D.shape),
        None if z is None else _back(dz[0], z, orders),
        None if delta_bias is None else dbias.reshape(delta_bias.shape),
    )


def _loaded() -> ModuleType:
    """Return the compiled module or raise RuntimeError with the reason why there is none."""
    ok, reason = available()
    if not ok or _module is None:
        raise RuntimeError(f"the CUDA selective scan is not available: {reason}")
    return _module
