# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Four-direction scans of a map: SS2D and the VSS block of VMamba, and a CSP block of them that stands in for C2f."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .scan2d import cross_scan
from .selective_scan import scan_flops
from .ssm import StateSpace, inverse_softplus_steps, norm_tokens, positive_int, positive_number

__all__ = ("SS2D", "C2fSS2D", "CSP", "C2fVSS", "ConvSS2D", "CrossScan", "DropPath", "Mlp", "VSSBlock")


def _check_map(name: str, x: Tensor, dim: int) -> None:
    """Raise ValueError unless x is a map (B, C, H, W) of dim channels with pixels."""
    if x.dim() != 4 or x.shape[1] != dim or 0 in x.shape[2:]:
        raise ValueError(f"{name} expects (B, {dim}, H, W) with pixels, got {tuple(x.shape)}")


def _flatten_pointwise(state_dict: dict, prefix: str, names: tuple[str, ...]) -> None:
    """Turn weights (N, K, 1, 1) of pointwise convolutions, as VMamba's channel-first models keep them, into (N, K)."""
    for key in (f"{prefix}{name}.weight" for name in names):
        if key in state_dict and state_dict[key].shape[2:] == (1, 1):
            state_dict[key] = state_dict[key].flatten(1)


def _tokens(x: Tensor) -> Tensor:
    """View a map (B, C, H, W) as tokens in row order (B, H*W, C); a channels_last map without a copy."""
    return x.flatten(2).transpose(1, 2)


def _map(tokens: Tensor, height: int, width: int) -> Tensor:
    """View tokens (B, H*W, C) as a channels_last map (B, C, H, W)."""
    return tokens.transpose(1, 2).reshape(tokens.shape[0], tokens.shape[2], height, width)


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
        owner = type(self).__name__
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
        self.dim, self.d_state, self.directions = dim, d_state, directions
        self.d_inner = int(expand * dim)
        self.dt_rank = math.ceil(dim / 16) if dt_rank == "auto" else dt_rank

    def _add_scans(self, dt_min: float = 0.001, dt_max: float = 0.1, dt_init_floor: float = 1e-4) -> None:
        """Add the parameters of the scans; called in its turn, so that a seed gives every parameter its own numbers."""
        if not 0 < dt_min <= dt_max:
            raise ValueError(
                f"{type(self).__name__}: 0 < dt_min <= dt_max is required, got dt_min={dt_min}, dt_max={dt_max}"
            )
        k, inner, d_state = self.directions, self.d_inner, self.d_state

        def uniform(bound: float, *shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(shape).uniform_(-bound, bound))

        self.x_proj_weight = uniform(inner**-0.5, k, self.dt_rank + 2 * d_state, inner)  # as an nn.Linear starts
        self.dt_projs_weight = uniform(self.dt_rank**-0.5, k, inner, self.dt_rank)
        self.dt_projs_bias = nn.Parameter(inverse_softplus_steps((k, inner), dt_min, dt_max, dt_init_floor))
        self.A_logs = nn.Parameter(torch.arange(1, d_state + 1, dtype=torch.float32).repeat(k * inner, 1).log())
        self.Ds = nn.Parameter(torch.ones(k * inner))
        self.A_logs._no_weight_decay = self.Ds._no_weight_decay = True  # for other trainers; ours asks the base class

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
        super().__init__(dim, d_state, expand, dt_rank=dt_rank)
        positive_int("SS2D", d_conv=d_conv)
        if not isinstance(gate, bool):
            raise TypeError(f"SS2D: gate must be True or False, got {gate!r}")
        if d_conv % 2 == 0:
            raise ValueError(f"SS2D: d_conv must be odd, got {d_conv}")
        self.gate, inner = gate, self.d_inner
        self.in_proj = nn.Linear(dim, (1 + gate) * inner, bias=bias)
        if d_conv > 1:
            self.conv2d = nn.Conv2d(inner, inner, d_conv, padding=d_conv // 2, groups=inner, bias=conv_bias)
        else:
            self.conv2d = nn.Identity()
        self._add_scans(dt_min, dt_max, dt_init_floor)
        self.out_norm = nn.LayerNorm(inner)
        self.out_proj = nn.Linear(inner, dim, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Mix the pixels of a map (B, C, H, W).

        Raises:
            ValueError: If x has another channel count, is no map, or has no pixels.
        """
        _check_map("SS2D", x, self.dim)
        (height, width), inner = x.shape[2:], self.d_inner
        tokens, weight, bias = _tokens(x), self.in_proj.weight, self.in_proj.bias
        # Two products, because halves of one would not be dense maps for the convolution.
        u = F.linear(tokens, weight[:inner], None if bias is None else bias[:inner])
        u = _tokens(self.conv2d(_map(u, height, width)))
        y = self.scan(u, height, width)
        if self.gate:
            y = y * F.silu(F.linear(tokens, weight[inner:], None if bias is None else bias[inner:]))
        return _map(self.out_proj(y.to(tokens.dtype)), height, width)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args) -> None:
        """Load, with projections in either of the two forms in which VMamba saves them."""
        _flatten_pointwise(state_dict, prefix, ("in_proj", "out_proj"))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def own_flops(self, batch: int, length: int) -> int:
        """Return the FLOPs outside conv2d, out_norm and out_proj: those of the base class, and in_proj."""
        in_proj = 2 * batch * length * self.dim * (1 + self.gate) * self.d_inner
        return in_proj + super().own_flops(batch, length)


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
        super().__init__(dim, d_state, expand, directions)
        from ultralytics.nn.modules.conv import Conv  # here, because it takes upstream's tree, which tests do without

        positive_int("ConvSS2D", k=k)
        if k % 2 == 0:
            raise ValueError(f"ConvSS2D: k must be odd, got {k}")
        if not isinstance(shortcut, bool):
            raise TypeError(f"ConvSS2D: shortcut must be True or False, got {shortcut!r}")
        self.shortcut = shortcut
        self._add_scans()
        self.conv = Conv(dim, self.d_inner, k, act=False)
        self.out_norm = nn.LayerNorm(self.d_inner)
        self.out_proj = nn.Linear(self.d_inner, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Mix the pixels of a map (B, C, H, W).

        Raises:
            ValueError: If x has another channel count, is no map, or has no pixels.
        """
        _check_map("ConvSS2D", x, self.dim)
        height, width = x.shape[2:]
        y = self.scan(_tokens(self.conv(x)), height, width)
        y = _map(self.out_proj(y.to(x.dtype)), height, width)
        return x + y if self.shortcut else y


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
        _flatten_pointwise(state_dict, prefix, ("fc1", "fc2"))
        super()._load_from_state_dict(state_dict, prefix, *args)


class VSSBlock(nn.Module):
    """VSS block: LayerNorm, SS2D and residual, then optionally LayerNorm, MLP and residual; (B, C, H, W) -> same.

    State dicts of the VMamba repository load: blocks of its first release (`ln_1`, `self_attention`) with the defaults,
    those of its later ones (`norm`, `op`, `norm2`, `mlp`) with expand=1 or 2, d_state=1, gate=False and mlp_ratio=4.

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
        super().__init__()
        for name, value, end in (("mlp_ratio", mlp_ratio, math.inf), ("drop_path", drop_path, 1.0)):
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < end:
                raise ValueError(f"VSSBlock: {name} must be a number from 0 to below {end}, got {value!r}")
        if isinstance(layer_scale, bool) or not isinstance(layer_scale, (int, float)) or layer_scale < 0:
            raise ValueError(f"VSSBlock: layer_scale must be a number of at least 0, got {layer_scale!r}")
        positive_int("VSSBlock", dim=dim)
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

    def forward(self, x: Tensor) -> Tensor:
        """Mix the pixels of a map (B, C, H, W).

        Raises:
            ValueError: If x has another channel count, is no map, or has no pixels.
        """
        _check_map("VSSBlock", x, self.dim)
        x = x + self._branch(_map(norm_tokens(self.norm, x.flatten(2)), *x.shape[2:]), self.op, "gamma_1")
        if self.mlp is not None:
            tokens = self.mlp(norm_tokens(self.norm2, x.flatten(2)))
            x = x + self._branch(_map(tokens, *x.shape[2:]), None, "gamma_2")
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


class CSP(nn.Module):
    """Base of bottlenecks in the form of C2f; a module adds its n inner blocks of c channels as `m`.

    Attributes:
        c (int): Hidden channels.
        cv1 (Conv): c1 -> 2c, split into two halves.
        cv2 (Conv): (2 + n)c -> c2, over both halves and the output of every inner block.

    Source:
        C2f of Ultralytics YOLOv8.
    """

    def __init__(self, c1: int, c2: int, n: int, e: float) -> None:
        """Build the two convolutions; the arguments are those of `C2fVSS`."""
        super().__init__()
        from ultralytics.nn.modules.conv import Conv  # here, because it takes upstream's tree, which tests do without

        owner = type(self).__name__
        positive_int(owner, c1=c1, c2=c2, n=n)
        positive_number(owner, e=e)
        self.c = int(c2 * e)
        positive_int(owner, hidden_channels=self.c)
        self.cv1 = Conv(c1, 2 * self.c, 1)
        self.cv2 = Conv((2 + n) * self.c, c2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Transform a map (B, c1, H, W)."""
        y = list(self.cv1(x).chunk(2, 1))
        y.extend(m(y[-1]) for m in self.m)
        return self.cv2(torch.cat(y, 1))


class C2fVSS(CSP):
    """CSP bottleneck of VSS blocks in the form of C2f, which it replaces one for one: (B, c1, H, W) -> (B, c2, H, W).

    Attributes:
        cv1, cv2 (Conv): As in `CSP`.
        m (nn.ModuleList): n VSS blocks of c channels, one behind the other.

    Source:
        C2f of Ultralytics YOLOv8 with the VSS block of Liu et al., 2024 in the bottleneck's place, as Mamba-YOLO (Wang
        et al., 2024) places its own block.

    Examples:
        >>> tuple(C2fVSS(16, 32)(torch.zeros(2, 16, 5, 7)).shape)
        (2, 32, 5, 7)
    """

    def __init__(
        self,
        c1: int,
        c2: int,
        n: int = 1,
        d_state: int = 1,
        expand: int | float = 1,
        mlp_ratio: int | float = 2,
        d_conv: int = 3,
        gate: bool = False,
        e: float = 0.5,
        drop_path: float = 0.0,
    ) -> None:
        """Build the block.

        Args:
            c1 (int): Input channels.
            c2 (int): Output channels.
            n (int): Number of VSS blocks.
            d_state (int): State size N of each inner channel.
            expand (int | float): Inner channels of the scan per hidden channel.
            mlp_ratio (int | float): Hidden channels of the MLP per hidden channel; 0 for no MLP.
            d_conv (int): Side of the depthwise convolution, odd; 1 for none.
            gate (bool): Gate in the SS2D.
            e (float): Hidden channels c per output channel.
            drop_path (float): Probability that a sample skips a branch in training.

        Raises:
            TypeError: If an argument is of the wrong type.
            ValueError: If a value is out of range.
        """
        super().__init__(c1, c2, n, e)
        self.m = nn.ModuleList(
            VSSBlock(self.c, d_state, d_conv, expand, mlp_ratio, gate, drop_path, conv_bias=False) for _ in range(n)
        )


class C2fSS2D(CSP):
    """CSP bottleneck in the form of C2f, which it replaces one for one: (B, c1, H, W) -> (B, c2, H, W).

    Attributes:
        cv1, cv2 (Conv): As in `CSP`.
        m (nn.ModuleList): n bottlenecks `ConvSS2D` of c channels, one behind the other.

    Source:
        C2f of Ultralytics YOLOv8.

    Examples:
        >>> tuple(C2fSS2D(16, 32)(torch.zeros(2, 16, 5, 7)).shape)
        (2, 32, 5, 7)
    """

    def __init__(
        self,
        c1: int,
        c2: int,
        n: int = 1,
        d_state: int = 1,
        expand: int | float = 1,
        k: int = 3,
        directions: int = 4,
        shortcut: bool = True,
        e: float = 0.5,
    ) -> None:
        """Build the block.

        Args:
            c1 (int): Input channels.
            c2 (int): Output channels.
            n (int): Number of bottlenecks.
            d_state (int): State size N of each inner channel.
            expand (int | float): Inner channels of the scan per hidden channel.
            k (int): Side of the bottlenecks' convolution, odd.
            directions (int): 4, or 2 for rows and rows reversed.
            shortcut (bool): Residual around each bottleneck.
            e (float): Hidden channels c per output channel.

        Raises:
            TypeError: If an argument is of the wrong type.
            ValueError: If a value is out of range.
        """
        super().__init__(c1, c2, n, e)
        self.m = nn.ModuleList(ConvSS2D(self.c, d_state, expand, k, directions, shortcut) for _ in range(n))
