# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Sequential selective scan in plain PyTorch: the definition that every backend is held to, and a backend by name."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor

from ..checks import check_scan_inputs
from ..contract import Backend, Scan

__all__ = ("Reference", "per_token", "selective_scan_ref")


def per_token(x: Tensor, dim: int, complex_: bool) -> list[Tensor]:
    """Split B or C of any accepted form into one (B | 1, D, N) tensor per token, or a single constant one.

    Args:
        x (Tensor): (D, N), (B, N, L), (B, G, N, L), or with 2L interleaved real and imaginary parts.
        dim (int): Number of channels D, a multiple of G.
        complex_ (bool): Whether A is complex, which makes the last axis of a variable B or C hold 2L reals.

    Returns:
        (list[Tensor]): One tensor for a constant x, otherwise L of them.
    """
    if x.dim() == 2:
        return [x.unsqueeze(0)]
    if x.dim() == 3:
        x = x.unsqueeze(1)
    if complex_:  # of A's precision: PyTorch hardly computes with complex numbers of two halves
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        x = torch.view_as_complex(rearrange(x, "b g n (l two) -> b g n l two", two=2).contiguous())
    x = repeat(x, "b g n l -> b (g h) n l", h=dim // x.shape[1])
    return list(x.unbind(-1))  # unbind, not indexing: the backward of L indexings is quadratic in L


def selective_scan_ref(
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
    """Run the S6 recurrence token by token, differentiable by autograd.

    h_l = exp(delta_l A) h_(l-1) + delta_l B_l u_l,  y_l = C_l h_l + D u_l,  out_l = y_l silu(z_l). A complex A stands
    for conjugate pairs, so y is twice the real part. Nothing is cast up: in float64 this is the truth for the tests.

    Args:
        u (Tensor): Input, real (B, D, L).
        delta (Tensor): Step sizes before bias and softplus, real (B, D, L).
        A (Tensor): State matrix diagonal, real or complex (D, N).
        B (Tensor): Input matrix: (D, N), (B, N, L), (B, G, N, L), or with 2L for interleaved complex values.
        C (Tensor): Output matrix, in any form of B.
        D (Tensor, optional): Skip weights (D).
        z (Tensor, optional): Gate (B, D, L).
        delta_bias (Tensor, optional): Bias of delta (D).
        delta_softplus (bool): Apply softplus to delta after the bias.
        return_last_state (bool): Also return the state after the last token, (B, D, N).

    Returns:
        (Tensor | tuple[Tensor, Tensor]): (B, D, L) in the dtype of u, and the last state if asked for.

    Raises:
        TypeError: If a dtype does not fit.
        ValueError: If shapes or devices do not fit together.

    Source:
        Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", 2023, algorithm 2.

    Examples:
        >>> y = selective_scan_ref(torch.ones(1, 2, 5), torch.ones(1, 2, 5), -torch.ones(2, 3), *torch.ones(2, 1, 3, 5))
        >>> tuple(y.shape)
        (1, 2, 5)
    """
    check_scan_inputs(u, delta, A, B, C, D, z, delta_bias)
    dim, length = u.shape[1], u.shape[2]
    dt = delta if delta_bias is None else delta + delta_bias[:, None]
    if delta_softplus:
        dt = torch.logaddexp(dt, dt.new_zeros(()))  # F.softplus is linear beyond 20, off by 2e-9 in float64
    h = torch.zeros(u.shape[0], dim, A.shape[1], dtype=torch.result_type(A, dt), device=u.device)
    Bs, Cs = (per_token(x, dim, A.is_complex()) for x in (B, C))
    ys = []
    for i, (dt_i, u_i) in enumerate(zip(dt.unbind(-1), u.unbind(-1))):
        dt_i = dt_i.unsqueeze(-1)  # (B, D, 1)
        B_i, C_i = (x[i if len(x) > 1 else 0] for x in (Bs, Cs))
        h = torch.exp(dt_i * A) * h + dt_i * u_i.unsqueeze(-1) * B_i  # (B, D, N)
        y = (h * C_i).sum(-1)
        ys.append(2 * y.real if y.is_complex() else y)
    out = torch.stack(ys, dim=-1) if length else u.new_zeros(u.shape)  # (B, D, L)
    if D is not None:
        out = out + u * D[:, None]
    if z is not None:
        out = out * F.silu(z)
    out = out.to(u.dtype)
    return (out, h.detach()) if return_last_state else out


class Reference(Backend):
    """The definition, differentiated by autograd as often as one likes."""

    name = "reference"
    operator = automatic = False
    about = "sequential definition, for tests"

    def scan(self, s: Scan, keep: bool = True) -> tuple[Tensor, Tensor]:
        """Run `selective_scan_ref` on each group, with reversed tokens flipped there and back; the last state alone."""
        outs, states = [], []
        for k, order in enumerate(s.orders):
            tokens = (None if x is None else x[:, k] for x in (s.u, s.delta, s.B, s.C, s.z))
            u, delta, B, C, z = (x.flip(-1) if order and x is not None else x for x in tokens)
            D, bias = (None if x is None else x[k] for x in (s.D, s.delta_bias))
            out, state = selective_scan_ref(u, delta, s.A[k], B, C, D, z, bias, s.delta_softplus, True)
            outs.append(out.flip(-1) if order else out)
            states.append(state)
        return torch.stack(outs, 1), torch.stack(states, 1).unsqueeze(2)
