# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Argument checks of the recipe's functions: each error names the tensor, what it got and what it expects."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

__all__ = ("check_inner_inputs", "check_scan_inputs")


def _shape(name: str, x: Tensor, expected: tuple[int, ...], grammar: str) -> None:
    """Raise ValueError unless x has exactly the expected shape."""
    if tuple(x.shape) != expected:
        raise ValueError(f"{name} must have shape {grammar} = {expected}, got {tuple(x.shape)}")


def _kinds(required: dict[str, Tensor], optional: dict[str, Tensor | None], may_be_complex: set[str]) -> None:
    """Raise TypeError or ValueError unless all are floating point tensors on the device of the first."""
    first, reference = next(iter(required.items()))
    for name, x in {**required, **optional}.items():
        if x is None and name in optional:
            continue
        if not isinstance(x, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(x).__name__}")
        if x.device != reference.device:
            raise ValueError(
                f"all tensors must be on one device: {first} is on {reference.device}, {name} on {x.device}"
            )
        if x.is_complex() and name not in may_be_complex:
            raise TypeError(f"{name} must be real, got {x.dtype}")
        if not (x.is_floating_point() or x.is_complex()):
            raise TypeError(f"{name} must be floating point, got {x.dtype}")


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
    optional = {"D": D, "z": z, "delta_bias": delta_bias}
    _kinds({"u": u, "delta": delta, "A": A, "B": B, "C": C}, optional, {"A", "B", "C"})
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


def check_inner_inputs(xz: Tensor, w: NamedTuple, As: tuple[Tensor, ...], given: NamedTuple) -> None:
    """Check that the arguments of an inner function fit together.

    Args:
        xz (Tensor): (B, 2D, L).
        w (Weights): The layers of the block; x_proj has R + N rows for each of B and C that is not given, twice the N
            for a complex A.
        As (tuple[Tensor, ...]): One or two (D, N).
        given (Given): What a call gives beside them; the scan checks the forms of B and C.

    Raises:
        TypeError: If something is no floating point tensor, or complex where it must be real.
        ValueError: If a shape or a device does not fit, or there are no tokens.
    """
    conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight, out_proj_weight, out_proj_bias = w
    B, C, D, delta_bias, B_proj_bias, C_proj_bias, _ = given
    required = {"xz": xz, "conv1d_weight": conv1d_weight, "x_proj_weight": x_proj_weight}
    required |= {"delta_proj_weight": delta_proj_weight, **dict(zip(("A", "A_b"), As))}
    optional = {"conv1d_bias": conv1d_bias, "out_proj_weight": out_proj_weight, "out_proj_bias": out_proj_bias}
    optional |= given._asdict()
    del optional["delta_softplus"]
    _kinds(required, optional, {"A", "A_b", "B", "C"})
    if xz.dim() != 3 or xz.shape[1] % 2 or xz.shape[2] == 0:
        raise ValueError(f"xz must have shape (B, 2D, L) with L >= 1, got {tuple(xz.shape)}")
    dim = xz.shape[1] // 2
    w = conv1d_weight
    if w.dim() != 3 or tuple(w.shape[:2]) != (dim, 1) or w.shape[2] < 1:
        raise ValueError(f"conv1d_weight must have shape (D, 1, W) with D = {dim} and W >= 1, got {tuple(w.shape)}")
    w = delta_proj_weight
    if w.dim() != 2 or w.shape[0] != dim or w.shape[1] < 1:
        raise ValueError(f"delta_proj_weight must have shape (D, R) with D = {dim}, R >= 1, got {tuple(w.shape)}")
    A, rank = As[0], w.shape[1]
    if A.dim() != 2 or A.shape[0] != dim or A.shape[1] < 1:
        raise ValueError(f"A must have shape (D, N) with D = {dim} and N >= 1, got {tuple(A.shape)}")
    for other in As[1:]:
        if other.shape != A.shape or other.dtype != A.dtype:
            raise ValueError(f"A_b must match A: {tuple(A.shape)} {A.dtype}, got {tuple(other.shape)} {other.dtype}")
    state = A.shape[1] * (2 if A.is_complex() else 1)
    rows = rank + state * ((B is None) + (C is None))
    _shape("x_proj_weight", x_proj_weight, (rows, dim), f"(R + N for each projected B and C, D), R = {rank}:")
    vectors = [("conv1d_bias", conv1d_bias, dim, "(D)"), ("D", D, dim, "(D)"), ("delta_bias", delta_bias, dim, "(D)")]
    vectors += [("B_proj_bias", B_proj_bias, state, "(N)"), ("C_proj_bias", C_proj_bias, state, "(N)")]
    if out_proj_weight is not None:
        if out_proj_weight.dim() != 2 or out_proj_weight.shape[1] != dim:
            raise ValueError(
                f"out_proj_weight must have shape (M, D) with D = {dim}, got {tuple(out_proj_weight.shape)}"
            )
        vectors.append(("out_proj_bias", out_proj_bias, out_proj_weight.shape[0], "(M)"))
    for name, x, size, grammar in vectors:
        if x is not None:
            _shape(name, x, (size,), grammar)
