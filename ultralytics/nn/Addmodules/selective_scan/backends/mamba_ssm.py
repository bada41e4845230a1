# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Adapter to `selective_scan_cuda`, the compiled kernels of the mamba-ssm package (the `cuda` extra).

Only used when asked for by name. The kernels know one token order and tokens innermost, so reversed groups are flipped
and channel-last tensors copied, there and back.
"""

from __future__ import annotations

from importlib import import_module

import torch
from torch import Tensor

from ..contract import Backend, Problem, Scan

__all__ = ("MambaSsm",)

CHUNK = 2048  # tokens per state that the kernels keep


def _flat(x: Tensor, orders: list[int]) -> Tensor:
    """Bring (B, K, C, L) to scan order, tokens innermost."""
    if any(orders):
        x = torch.stack([x[:, k].flip(-1) if o else x[:, k] for k, o in enumerate(orders)], 1)
    return x.contiguous()


def _inputs(s: Scan) -> list[Tensor | None]:
    """Return the tensors of a scan in the kernels' form: K D channels in K groups."""
    u, delta, z = (None if t is None else _flat(t, s.orders).flatten(1, 2) for t in (s.u, s.delta, s.z))
    A, D, delta_bias = (None if t is None else t.flatten(0, 1).contiguous() for t in (s.A, s.D, s.delta_bias))
    return [u, delta, A, _flat(s.B, s.orders), _flat(s.C, s.orders), D, z, delta_bias]


def _back(x: Tensor, like: Tensor, orders: list[int]) -> Tensor:
    """Bring a result in scan order to the shape, layout and dtype of `like`."""
    x = x.reshape(like.shape)
    if any(orders):
        x = torch.stack([x[:, k].flip(-1) if o else x[:, k] for k, o in enumerate(orders)], 1)
    return torch.empty_like(like).copy_(x)


class MambaSsm(Backend):
    """mamba-ssm's kernels for the scan."""

    name = "mamba_ssm"
    device = "cuda"
    dtypes = torch.float32, torch.bfloat16, torch.float16
    max_states = 256
    automatic = False

    def __init__(self) -> None:
        """Import the kernels where there is a device."""
        self.works, self.about, self.kernels = False, "no CUDA device", None
        if torch.cuda.device_count() == 0:  # not is_available(), which starts CUDA when the package is imported
            return
        try:
            self.kernels = import_module("selective_scan_cuda")
            self.works, self.about = True, "selective_scan_cuda of mamba-ssm"
        except (ImportError, OSError) as e:  # OSError: built for another PyTorch or CUDA
            self.about = f"selective_scan_cuda cannot be imported (pip install 'ultralytics[cuda]'): {e}"

    def refuses(self, problem: Problem) -> str:
        """Return "" if all tokens and weights have one dtype."""
        if isinstance(problem, Scan):  # the parts of a block have one dtype
            for name in ("delta", "B", "C", "z"):
                t = getattr(problem, name)
                if t is not None and t.dtype != problem.u.dtype:
                    return f"{name} is {t.dtype} and u {problem.u.dtype}: only all the same"
        return ""

    def num_checkpoints(self, length: int) -> int:
        """Return how many states are kept: one after every chunk of the kernels."""
        return max(1, -(-length // CHUNK))

    def scan(self, s: Scan, keep: bool = True) -> tuple[Tensor, Tensor]:
        """Scan all groups."""
        u, A = s.u, s.A
        if u.numel() == 0:
            count = self.num_checkpoints(u.shape[-1]) if keep else 1
            states = u.new_zeros(*u.shape[:2], count, A.shape[-1], u.shape[2], dtype=torch.float32)
            return torch.empty_like(u), states.transpose(-1, -2)
        out, kept, *gated = self.kernels.fwd(*_inputs(s), s.delta_softplus)
        # kept holds (decay, state) pairs, (B, K D, n, 2 N); backward takes only the states back.
        states = kept[..., 1::2].unflatten(1, u.shape[1:3]).permute(0, 1, 3, 4, 2).contiguous()
        if not keep:
            states = states[:, :, -1:].contiguous()
        return _back(gated[0] if gated else out, u, s.orders), states.transpose(-1, -2)

    def scan_backward(self, dout: Tensor, s: Scan, states: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of `scan`.

        The kernels add dB, dC, dA, dD and ddelta_bias up atomically: their last bits differ from run to run. With a
        gate they need the ungated output, which is computed again here, since the operator keeps states only.
        """
        if s.u.numel() == 0:
            return tuple(None if t is None else torch.zeros_like(t) for t in s[:8])
        inputs, ungated = _inputs(s), None
        if s.z is None:
            # In place of the pairs' decays, which the backward kernel never reads: it starts each chunk from a state.
            kept = states.permute(0, 1, 3, 2, 4).flatten(1, 2)  # (B, K D, n, N)
            kept = torch.stack([torch.ones_like(kept), kept], -1).flatten(-2).contiguous()
        else:
            ungated, kept, _ = self.kernels.fwd(*inputs, s.delta_softplus)
        dout = _flat(dout, s.orders).flatten(1, 2)
        grads = self.kernels.bwd(*inputs, dout, kept, ungated, None, s.delta_softplus, False)
        du, ddelta, dA, dB, dC, dD, dbias, *dz = grads
        return (
            _back(du, s.u, s.orders),
            _back(ddelta, s.delta, s.orders),
            dA.reshape(s.A.shape),
            _back(dB, s.B, s.orders),
            _back(dC, s.C, s.orders),
            None if s.D is None else dD.reshape(s.D.shape),
            None if s.z is None else _back(dz[0], s.z, s.orders),
            None if s.delta_bias is None else dbias.reshape(s.delta_bias.shape),
        )
