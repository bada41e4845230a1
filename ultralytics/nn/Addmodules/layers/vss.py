# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""The VSS block of the VMamba paper, and its parts."""

from __future__ import annotations

import math
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from .check_arguments import arguments, positive_int
from .ss2d import SS2D
from .tokens import check_map, flatten_pointwise, norm_tokens, to_map

__all__ = ("DropPath", "Mlp", "VSSBlock")


class DropPath(nn.Module):
    """Stochastic depth: each sample of a batch loses the branch with probability p in training, and the rest is scaled.

    As torchvision's `StochasticDepth` in mode "row"; `import ultralytics` must not load torchvision.

    Attributes:
        p (float): The probability.
    """

    def __init__(self, p: float) -> None:
        """Build the layer."""
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """Drop samples of x (B, ...)."""
        if not self.training:
            return x
        keep = 1.0 - self.p
        return x * x.new_empty((x.shape[0],) + (1,) * (x.dim() - 1)).bernoulli_(keep).div_(keep)


class Mlp(nn.Module):
    """Two linear layers with a GELU between, over the last axis: (..., C) -> (..., C).

    Source:
        The feed-forward branch of VMamba's blocks, whose names fc1 and fc2 it keeps.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        """Build the layers."""
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Transform tokens."""
        return self.fc2(self.act(self.fc1(x)))

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args) -> None:
        """Load, with weights in either of the two forms in which VMamba saves them."""
        flatten_pointwise(state_dict, prefix, ("fc1", "fc2"))
        super()._load_from_state_dict(state_dict, prefix, *args)


class VSSBlock(nn.Module):
    """VSS block: LayerNorm, SS2D and residual, then optionally LayerNorm, MLP and residual; (B, C, H, W) -> same.

    State dicts of the VMamba repository load: blocks of its first release (`ln_1`, `self_attention`) with the defaults,
    those of its later ones (`norm`, `op`, `norm2`, `mlp`) with expand=1 or 2, d_state=1, gate=False, mlp_ratio=4
    and conv_bias=False.

    Attributes:
        norm (nn.LayerNorm): In front of the scan.
        op (SS2D): The scan.
        norm2 (nn.LayerNorm): In front of the MLP, if there is one.
        mlp (Mlp): Feed-forward branch, if mlp_ratio > 0.
        gamma_1, gamma_2 (nn.Parameter): Layer scales of the two branches, if layer_scale > 0.

    Source:
        Liu et al., "VMamba: Visual State Space Model", 2024, figure 3; stochastic depth of Huang et al., 2016; layer
        scale of Touvron et al., "Going deeper with Image Transformers", 2021.

    Examples:
        >>> tuple(VSSBlock(16, mlp_ratio=2)(torch.zeros(2, 16, 5, 7)).shape)
        (2, 16, 5, 7)
    """

    def __init__(
        self,
        dim: int,
        d_state: int = 16,
        d_conv: int = 3,
        expand: int | float = 2,
        mlp_ratio: int | float = 0,
        gate: bool = True,
        drop_path: float = 0.0,
        layer_scale: float = 0.0,
        conv_bias: bool = True,
    ) -> None:
        """Build the block.

        Args:
            dim (int): Channels C of the map.
            d_state (int): State size N of each inner channel.
            d_conv (int): Side of the depthwise convolution, odd; 1 for none.
            expand (int | float): Inner channels of the scan per channel.
            mlp_ratio (int | float): Hidden channels of the MLP per channel; 0 for no MLP.
            gate (bool): Gate in the SS2D.
            drop_path (float): Probability that a sample skips a branch in training.
            layer_scale (float): Initial scale of each branch, by channel; 0 for none.
            conv_bias (bool): Bias in the depthwise convolution.

        Raises:
            TypeError: If an argument is of the wrong type.
            ValueError: If a value is out of range.
        """
        self.check(SimpleNamespace(**locals()))
        super().__init__()
        self.dim = dim
        self.norm = nn.LayerNorm(dim)
        self.op = SS2D(dim, d_state, d_conv, expand, gate, conv_bias=conv_bias)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        if mlp_ratio:
            self.norm2 = nn.LayerNorm(dim)
            self.mlp = Mlp(dim, max(1, int(mlp_ratio * dim)))
        else:
            self.mlp = None
        for name in ("gamma_1", "gamma_2")[: 1 + bool(mlp_ratio)] if layer_scale else ():
            self.register_parameter(name, nn.Parameter(torch.full((dim,), float(layer_scale))))
        self.layer_scale = float(layer_scale)

    @classmethod
    def check(cls, a: SimpleNamespace) -> None:
        """Raise unless these constructor arguments are right."""
        limits = (
            ("mlp_ratio", a.mlp_ratio, math.inf),
            ("drop_path", a.drop_path, 1.0),
            ("layer_scale", a.layer_scale, math.inf),
        )
        for name, value, end in limits:
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < end:
                raise ValueError(f"VSSBlock: {name} must be a number from 0 to below {end}, got {value!r}")
        positive_int("VSSBlock", dim=a.dim)
        SS2D.check(arguments(SS2D, a.dim, a.d_state, a.d_conv, a.expand, a.gate, conv_bias=a.conv_bias))

    def reset_parameters(self) -> None:
        """Set the layer scales to their start."""
        for name in ("gamma_1", "gamma_2"):
            if hasattr(self, name):
                nn.init.constant_(getattr(self, name), self.layer_scale)

    def forward(self, x: Tensor) -> Tensor:
        """Mix the pixels of a map (B, C, H, W).

        Raises:
            ValueError: If x has another channel count, is no map, or has no pixels.
        """
        check_map("VSSBlock", x, self.dim)
        x = x + self._branch(to_map(norm_tokens(self.norm, x.flatten(2)), *x.shape[2:]), self.op, "gamma_1")
        if self.mlp is not None:
            tokens = self.mlp(norm_tokens(self.norm2, x.flatten(2)))
            x = x + self._branch(to_map(tokens, *x.shape[2:]), None, "gamma_2")
        return x

    def _branch(self, x: Tensor, op: nn.Module | None, gamma: str) -> Tensor:
        """Apply what every branch ends with: its operator, its scale and stochastic depth."""
        x = x if op is None else op(x)
        scale = getattr(self, gamma, None)
        return self.drop_path(x if scale is None else x * scale[:, None, None])

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args) -> None:
        """Load, with the names that the first release of VMamba gave to norm and op."""
        for old, new in (("ln_1.", "norm."), ("self_attention.", "op.")):
            for key in [k for k in state_dict if k.startswith(prefix + old)]:
                state_dict[prefix + new + key[len(prefix + old) :]] = state_dict.pop(key)
        super()._load_from_state_dict(state_dict, prefix, *args)
