# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Argument checks of the selective scan: each error names the tensor, what it got and what it expects."""

from __future__ import annotations

from torch import Tensor

__all__ = ("check_scan_inputs",)


def _shape(name: str, x: Tensor, expected: tuple[int, ...], grammar: str) -> None:
    """Raise ValueError unless x has exactly the expected shape."""
    if tuple(x.shape) != expected:
        raise ValueError(f"{name} must have shape {grammar} = {expected}, got {tuple(x.shape)}")


def check_scan_inputs(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
) -> None:
    """Check that the arguments of a selective scan fit together.

    Args:
        u (Tensor): (B, D, L).
        delta (Tensor): (B, D, L).
        A (Tensor): (D, N), real or complex.
        B (Tensor): (D, N), (B, N, L), (B, G, N, L), or with 2L where A is complex.
        C (Tensor): As B.
        D (Tensor, optional): (D).
        z (Tensor, optional): (B, D, L).
        delta_bias (Tensor, optional): (D).

    Raises:
        TypeError: If something is no tensor, u is not floating point, or a real tensor is expected and a complex given.
        ValueError: If a shape or a device does not fit, or there are no tokens.
    """
    tensors = {"u": u, "delta": delta, "A": A, "B": B, "C": C, "D": D, "z": z, "delta_bias": delta_bias}
    for name, x in tensors.items():
        if x is None and name in {"D", "z", "delta_bias"}:
            continue
        if not isinstance(x, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(x).__name__}")
        if x.device != u.device:
            raise ValueError(f"all tensors must be on one device: u is on {u.device}, {name} on {x.device}")
        if x.is_complex() and name not in {"A", "B", "C"}:
            raise TypeError(f"{name} must be real, got {x.dtype}")
        if not (x.is_floating_point() or x.is_complex()):
            raise TypeError(f"{name} must be floating point, got {x.dtype}")
    if u.dim() != 3:
        raise ValueError(f"u must have shape (B, D, L), got {tuple(u.shape)}")
    batch, dim, length = u.shape
    if length == 0:
        raise ValueError(f"u has no tokens (L = 0): shape (B, D, L) = {tuple(u.shape)}")
    if delta.dtype != u.dtype:
        raise TypeError(f"delta must have the dtype of u, {u.dtype}, got {delta.dtype}; cast one of them")
    if z is not None and z.dtype != u.dtype:
        raise TypeError(f"z must have the dtype of u, {u.dtype}, got {z.dtype}; cast one of them")
    _shape("delta", delta, (batch, dim, length), "(B, D, L)")
    if A.dim() != 2 or A.shape[0] != dim or A.shape[1] < 1:
        raise ValueError(f"A must have shape (D, N) with D = {dim} and N >= 1, got {tuple(A.shape)}")
    state = A.shape[1]
    for name, x in (("B", B), ("C", C)):
        if x.dim() == 2:
            _shape(name, x, (dim, state), "(D, N)")
            if x.is_complex() and not A.is_complex():
                raise TypeError(f"{name} is complex, so A must be complex too, got {A.dtype}")
            continue
        if x.is_complex():
            raise TypeError(f"a variable {name} holds complex values as 2L interleaved reals, got {x.dtype}")
        tokens = length * (2 if A.is_complex() else 1)
        text = "2L" if A.is_complex() else "L"
        if x.dim() == 3:
            _shape(name, x, (batch, state, tokens), f"(B, N, {text})")
        elif x.dim() == 4:
            groups = x.shape[1]
            if groups < 1 or dim % groups:
                raise ValueError(f"{name} has G = {groups} groups, which does not divide D = {dim}")
            _shape(name, x, (batch, groups, state, tokens), f"(B, G, N, {text})")
        else:
            raise ValueError(f"{name} must be (D, N), (B, N, {text}) or (B, G, N, {text}), got {tuple(x.shape)}")
    for name, x in (("D", D), ("delta_bias", delta_bias)):
        if x is not None:
            _shape(name, x, (dim,), "(D)")
    if z is not None:
        _shape("z", z, (batch, dim, length), "(B, D, L)")
