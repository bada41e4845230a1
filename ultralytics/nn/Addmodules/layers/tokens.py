# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Maps (B, C, H, W) and their tokens (B, L, C): what every layer does at its door."""

from __future__ import annotations

from torch import Tensor, nn

from ..selective_scan import token_norm
from .plain import plain_norm

__all__ = ("check_map", "flatten_pointwise", "norm_tokens", "to_map", "to_tokens")


def check_map(name: str, x: Tensor, dim: int) -> None:
    """Raise ValueError unless x is a map (B, C, H, W) of dim channels with pixels."""
    if x.dim() != 4 or x.shape[1] != dim or 0 in x.shape[2:]:
        raise ValueError(f"{name} expects (B, {dim}, H, W) with pixels, got {tuple(x.shape)}")


def to_tokens(x: Tensor) -> Tensor:
    """View a map (B, C, H, W) as tokens in row order (B, H*W, C); a channels_last map without a copy."""
    return x.flatten(2).transpose(1, 2)


def to_map(tokens: Tensor, height: int, width: int) -> Tensor:
    """View tokens (B, H*W, C) as a channels_last map (B, C, H, W)."""
    return tokens.transpose(1, 2).reshape(tokens.shape[0], tokens.shape[2], height, width)


def flatten_pointwise(state_dict: dict, prefix: str, names: tuple[str, ...]) -> None:
    """Turn weights (N, K, 1, 1) of pointwise convolutions, as VMamba's channel-first models keep them, into (N, K)."""
    for key in (f"{prefix}{name}.weight" for name in names):
        if key in state_dict and state_dict[key].shape[2:] == (1, 1):
            state_dict[key] = state_dict[key].flatten(1)


def norm_tokens(norm: nn.Module, x: Tensor) -> Tensor:
    """Normalise a map (B, C, L) to tokens (B, L, C), in one pass if the norm is a plain one."""
    if plain_norm(norm):
        return token_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
    return norm(x.transpose(1, 2))
