# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Scans of a map in several directions: SS2D of the VMamba paper, and a convolutional bottleneck around the scans."""

from __future__ import annotations

import math
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..selective_scan import scan_flops
from .check_arguments import flag, odd, positive_int, positive_number
from .cross_scan import cross_scan
from .plain import call, plain
from .state_space import StateSpace, inverse_softplus_steps, s4d_real
from .tokens import check_map, flatten_pointwise, to_map, to_tokens

__all__ = ("SS2D", "ConvSS2D", "CrossScan")


class CrossScan(StateSpace):
    """Base of modules that scan a map in several directions, with the parameters of the scans.

    A module adds what stands before the scans, `out_norm` and `out_proj`, in the order of its data.

    Attributes:
        x_proj_weight (nn.Parameter): (K, dt_rank + 2 d_state, d_inner), the source of delta, B and C in K directions.
        dt_projs_weight (nn.Parameter): (K, d_inner, dt_rank).
        dt_projs_bias (nn.Parameter): (K, d_inner), the inverse softplus of the initial step sizes.
        A_logs (nn.Parameter): log(-A), (K d_inner, d_state), S4D-real at the start.
        Ds (nn.Parameter): Skip weights (K d_inner), one at the start.
        out_norm (nn.LayerNorm): Over d_inner.

    Source:
        Liu et al., "VMamba: Visual State Space Model", 2024, section 4.2.
    """

    state_names = frozenset({"A_logs", "Ds", "dt_projs_bias"})
    directions = 4  # of modules in checkpoints from before it was a setting
    steps = (0.001, 0.1, 1e-4)  # smallest and largest initial step size, and their lower bound

    def __init__(
        self,
        dim: int,
        d_state: int,
        expand: int | float,
        directions: int = 4,
        dt_rank: int | str = "auto",
    ) -> None:
        """Keep the sizes; arguments are those of `SS2D`, and directions 4, or 2 for rows and rows reversed."""
        super().__init__()
        self.dim, self.d_state, self.directions = dim, d_state, directions
        self.d_inner = int(expand * dim)
        self.dt_rank = math.ceil(dim / 16) if dt_rank == "auto" else dt_rank

    @classmethod
    def check_scans(
        cls, dim: int, d_state: int, expand: int | float, directions: int = 4, dt_rank: int | str = "auto"
    ) -> None:
        """Raise unless these sizes of the scans are right."""
        owner = cls.__name__
        positive_int(owner, dim=dim, d_state=d_state, directions=directions)
        positive_number(owner, expand=expand)
        if int(expand * dim) < 1:
            raise ValueError(f"{owner}: expand * dim must be at least 1, got expand={expand}, dim={dim}")
        if dt_rank != "auto":
            positive_int(owner, dt_rank=dt_rank)
        if directions not in (2, 4):
            raise ValueError(
                f"{owner}: directions must be 2 (rows, and reversed) or 4 (columns, too), got {directions}"
            )

    def _add_scans(self, steps: tuple[float, float, float] = steps) -> None:
        """Add the parameters of the scans; called in its turn, so that a seed gives every parameter its own numbers."""
        k, inner, d_state = self.directions, self.d_inner, self.d_state
        self.steps = steps
        self.x_proj_weight = nn.Parameter(torch.empty(k, self.dt_rank + 2 * d_state, inner))
        self.dt_projs_weight = nn.Parameter(torch.empty(k, inner, self.dt_rank))
        self.dt_projs_bias = nn.Parameter(torch.empty(k, inner))
        self.A_logs = nn.Parameter(torch.empty(k * inner, d_state))
        self.Ds = nn.Parameter(torch.empty(k * inner))
        self.A_logs._no_weight_decay = self.Ds._no_weight_decay = True  # for other trainers; ours asks the base class
        CrossScan.reset_parameters(self)

    def reset_parameters(self) -> None:
        """Set the parameters of the scans to their start."""
        with torch.no_grad():
            for weight in (self.x_proj_weight, self.dt_projs_weight):  # as an nn.Linear starts
                weight.uniform_(-(weight.shape[-1] ** -0.5), weight.shape[-1] ** -0.5)
            bias = self.dt_projs_bias
            bias.copy_(inverse_softplus_steps(tuple(bias.shape), *self.steps, bias.device))
            s4d_real(self.A_logs)
            self.Ds.fill_(1)

    def scan(self, tokens: Tensor, height: int, width: int) -> Tensor:
        """Return the normalised sum of the scans of SiLU(tokens), (B, H*W, d_inner) -> same shape."""
        k, inner = self.directions, self.d_inner
        A_logs = self.A_logs if self.A_logs.dtype == torch.float64 else self.A_logs.float()
        A, D = -torch.exp(A_logs).view(k, inner, -1), self.Ds.view(k, inner)
        y = cross_scan(tokens, height, width, self.x_proj_weight, self.dt_projs_weight, A, D, self.dt_projs_bias)
        return self.out_norm(y)

    def own_flops(self, batch: int, length: int) -> int:
        """Return the FLOPs of a forward pass over (batch, length) pixels that no child module counts itself.

        Counted: the projections to delta, B and C at 2 per multiply-add, the scans at 9 B L D N.
        """
        k, inner = self.directions, self.d_inner
        linear = k * inner * (2 * self.dt_rank + 2 * self.d_state)
        return 2 * batch * length * linear + scan_flops(batch, k * inner, length, self.d_state)


class SS2D(CrossScan):
    """Selective scan of a map along rows, columns and both reversed: (B, C, H, W) -> same shape, no residual.

    Linear, depthwise convolution, SiLU, four scans added, LayerNorm, gate, linear. The state dicts of the VMamba
    repository load: its first release has the gate, its later ones (`_noz`) do not.

    Attributes:
        in_proj (nn.Linear): dim -> 2 d_inner, x beside the gate z, or dim -> d_inner without a gate.
        conv2d (nn.Conv2d): Depthwise, d_conv x d_conv; absent for d_conv = 1.
        x_proj_weight, dt_projs_weight, dt_projs_bias, A_logs, Ds: Of four scans, as in `CrossScan`.
        out_norm (nn.LayerNorm): Over d_inner.
        out_proj (nn.Linear): d_inner -> dim.

    Source:
        Liu et al., "VMamba: Visual State Space Model", 2024, section 4.2 and figure 3.

    Examples:
        >>> tuple(SS2D(16)(torch.zeros(2, 16, 5, 7)).shape)
        (2, 16, 5, 7)
    """

    def __init__(
        self,
        dim: int,
        d_state: int = 16,
        d_conv: int = 3,
        expand: int | float = 2,
        gate: bool = True,
        dt_rank: int | str = "auto",
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_init_floor: float = 1e-4,
        conv_bias: bool = True,
        bias: bool = False,
    ) -> None:
        """Build the module.

        Args:
            dim (int): Channels C of the map.
            d_state (int): State size N of each inner channel.
            d_conv (int): Side of the depthwise convolution, odd; 1 for none.
            expand (int | float): d_inner = expand * dim.
            gate (bool): Multiply by SiLU of a second half of in_proj.
            dt_rank (int | str): Rank R of the step size projection; "auto" is ceil(dim / 16).
            dt_min (float): Smallest initial step size.
            dt_max (float): Largest initial step size.
            dt_init_floor (float): Lower bound of the initial step size.
            conv_bias (bool): Bias in the convolution.
            bias (bool): Bias in in_proj and out_proj.

        Raises:
            TypeError: If a size is no integer, or the gate no bool.
            ValueError: If a size is below 1, or d_conv is even.
        """
        self.check(SimpleNamespace(**locals()))
        super().__init__(dim, d_state, expand, dt_rank=dt_rank)
        self.gate, inner = gate, self.d_inner
        self.in_proj = nn.Linear(dim, (1 + gate) * inner, bias=bias)
        if d_conv > 1:
            self.conv2d = nn.Conv2d(inner, inner, d_conv, padding=d_conv // 2, groups=inner, bias=conv_bias)
        else:
            self.conv2d = nn.Identity()
        self._add_scans((dt_min, dt_max, dt_init_floor))
        self.out_norm = nn.LayerNorm(inner)
        self.out_proj = nn.Linear(inner, dim, bias=bias)

    @classmethod
    def check(cls, a: SimpleNamespace) -> None:
        """Raise unless these constructor arguments are right."""
        cls.check_scans(a.dim, a.d_state, a.expand, dt_rank=a.dt_rank)
        odd("SS2D", d_conv=a.d_conv)
        flag("SS2D", gate=a.gate, conv_bias=a.conv_bias, bias=a.bias)
        positive_number("SS2D", dt_min=a.dt_min, dt_max=a.dt_max, dt_init_floor=a.dt_init_floor or 1)  # 0 is none
        if not 0 < a.dt_min <= a.dt_max:
            raise ValueError(f"SS2D: 0 < dt_min <= dt_max is required, got dt_min={a.dt_min}, dt_max={a.dt_max}")

    def forward(self, x: Tensor) -> Tensor:
        """Mix the pixels of a map (B, C, H, W).

        Raises:
            ValueError: If x has another channel count, is no map, or has no pixels.
        """
        check_map("SS2D", x, self.dim)
        (batch, _, height, width), inner = x.shape, self.d_inner
        tokens, both = to_tokens(x), None
        if self.gate and plain(self.in_proj):
            u = self._half(tokens, 0)  # two products, because halves of one would not be dense maps for the convolution
        else:
            both = call(self, "in_proj", tokens, (batch, height * width, (1 + self.gate) * inner))
            u = both[..., :inner].contiguous()
        y = self.scan(to_tokens(self.conv2d(to_map(u, height, width))), height, width)
        if self.gate:
            y = y * F.silu(self._half(tokens, 1) if both is None else both[..., inner:])
        return to_map(self.out_proj(y.to(tokens.dtype)), height, width)

    def _half(self, tokens: Tensor, index: int) -> Tensor:
        """Return the input of the scans (index 0) or the gate (1), one half of in_proj's output."""
        weight, bias = self.in_proj.weight, self.in_proj.bias
        part = slice(index * self.d_inner, (index + 1) * self.d_inner)
        return F.linear(tokens, weight[part], None if bias is None else bias[part])

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args) -> None:
        """Load, with projections in either of the two forms in which VMamba saves them."""
        flatten_pointwise(state_dict, prefix, ("in_proj", "out_proj"))
        super()._load_from_state_dict(state_dict, prefix, *args)


class ConvSS2D(CrossScan):
    """Bottleneck whose second convolution is a scan in four directions: (B, C, H, W) -> same shape.

    A dense convolution with BatchNorm gives what SS2D takes from a linear layer and a depthwise convolution; then SiLU,
    scans added, LayerNorm, linear and, with a shortcut, the residual. docs/study.md has what that changes.

    Attributes:
        conv (Conv): k x k, dim -> d_inner, no activation: the scan begins with it.
        x_proj_weight, dt_projs_weight, dt_projs_bias, A_logs, Ds: Of the scans, as in `CrossScan`.
        out_norm (nn.LayerNorm): Over d_inner.
        out_proj (nn.Linear): d_inner -> dim.

    Source:
        The bottleneck of Ultralytics YOLOv8 with the scan of Liu et al., "VMamba: Visual State Space Model", 2024.

    Examples:
        >>> tuple(ConvSS2D(16)(torch.zeros(2, 16, 5, 7)).shape)
        (2, 16, 5, 7)
    """

    def __init__(
        self,
        dim: int,
        d_state: int = 1,
        expand: int | float = 1,
        k: int = 3,
        directions: int = 4,
        shortcut: bool = True,
    ) -> None:
        """Build the module.

        Args:
            dim (int): Channels C of the map.
            d_state (int): State size N of each inner channel.
            expand (int | float): d_inner = expand * dim.
            k (int): Side of the convolution, odd.
            directions (int): 4, or 2 for rows and rows reversed.
            shortcut (bool): Add the input.

        Raises:
            TypeError: If a size is no integer, or shortcut no bool.
            ValueError: If a value is out of range.
        """
        self.check(SimpleNamespace(**locals()))
        super().__init__(dim, d_state, expand, directions)
        from ultralytics.nn.modules.conv import Conv  # here, because it takes upstream's tree, which tests do without

        self.shortcut = shortcut
        self._add_scans()
        self.conv = Conv(dim, self.d_inner, k, act=False)
        self.out_norm = nn.LayerNorm(self.d_inner)
        self.out_proj = nn.Linear(self.d_inner, dim, bias=False)

    @classmethod
    def check(cls, a: SimpleNamespace) -> None:
        """Raise unless these constructor arguments are right."""
        cls.check_scans(a.dim, a.d_state, a.expand, a.directions)
        odd("ConvSS2D", k=a.k)
        flag("ConvSS2D", shortcut=a.shortcut)

    def forward(self, x: Tensor) -> Tensor:
        """Mix the pixels of a map (B, C, H, W).

        Raises:
            ValueError: If x has another channel count, is no map, or has no pixels.
        """
        check_map("ConvSS2D", x, self.dim)
        height, width = x.shape[2:]
        y = self.scan(to_tokens(self.conv(x)), height, width)
        y = to_map(self.out_proj(y.to(x.dtype)), height, width)
        return x + y if self.shortcut else y
