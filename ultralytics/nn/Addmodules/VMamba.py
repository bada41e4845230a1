# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Vision Mamba for YOLO: the layers that a model YAML names, and the recipe's functions under the recipe's names."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .selective_scan import (
    FORWARD,
    REVERSED,
    mamba_inner,
    scan_flops,
    selective_scan_fn,
    selective_scan_ref,
    token_linear,
)
from .selective_scan.checks import check_inner_inputs
from .ssm import StateSpace, inverse_softplus_steps, norm_tokens, positive_int, positive_number
from .vss import SS2D, C2fSS2D, C2fVSS, CrossScan, VSSBlock

__all__ = (
    "SS2D",
    "BiMambaInnerFn",
    "C2fSS2D",
    "C2fVSS",
    "Mamba",
    "MambaInnerFn",
    "MambaInnerFnNoOutProj",
    "MambaLayer",
    "SelectiveScanFn",
    "VSSBlock",
    "bimamba_inner_fn",
    "bimamba_inner_ref",
    "mamba_inner_fn",
    "mamba_inner_fn_no_out_proj",
    "mamba_inner_ref",
    "selective_scan_fn",
    "selective_scan_ref",
)


# Functions ------------------------------------------------------------------------------------------------------------


def _compose_no_out_proj(
    scan,
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    As: tuple[Tensor, ...],
    B: Tensor | None,
    C: Tensor | None,
    D: Tensor | None,
    delta_bias: Tensor | None,
    B_proj_bias: Tensor | None,
    C_proj_bias: Tensor | None,
    delta_softplus: bool,
) -> Tensor:
    """Compose conv, projections and gated scans step by step, every form of A, B and C included: (B, D, L).

    The first A scans the sequence, a second one the reversed sequence; their outputs are added.
    """
    length, rank, state = xz.shape[-1], delta_proj_weight.shape[1], As[0].shape[-1]
    parts = 2 if As[0].is_complex() else 1
    x, z = xz.chunk(2, dim=1)
    width = conv1d_weight.shape[-1]
    x = F.silu(F.conv1d(x, conv1d_weight, conv1d_bias, padding=width - 1, groups=x.shape[1])[..., :length])
    x_dbl = torch.einsum("bdl,rd->brl", x, x_proj_weight)
    delta = torch.einsum("brl,dr->bdl", x_dbl[:, :rank], delta_proj_weight)
    rest, start = [], rank
    for given, bias in ((B, B_proj_bias), (C, C_proj_bias)):
        if given is None:  # variable: the next N (complex: 2N, real and imaginary parts interleaved) projections
            given = x_dbl[:, start : start + state * parts]
            start += state * parts
            if bias is not None:
                given = given + bias.to(given.dtype)[:, None]
            given = rearrange(given, "b (n two) l -> b n (l two)", two=parts).contiguous()
        rest.append(given)
    B, C = rest
    y = scan(x, delta, As[0], B, C, D, z, delta_bias, delta_softplus)
    if len(As) == 2:
        turn = [t.flip(-1) for t in (x, delta, z)]
        B, C = (t if t.dim() == 2 else t.unflatten(-1, (-1, parts)).flip(-2).flatten(-2) for t in (B, C))
        y = y + scan(turn[0], turn[1], As[1], B, C, D, turn[2], delta_bias, delta_softplus).flip(-1)
    return y


def _inner(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    out_proj_weight: Tensor | None,
    out_proj_bias: Tensor | None,
    As: tuple[Tensor, ...],
    B: Tensor | None,
    C: Tensor | None,
    D: Tensor | None,
    delta_bias: Tensor | None,
    B_proj_bias: Tensor | None,
    C_proj_bias: Tensor | None,
    delta_softplus: bool,
) -> Tensor:
    """Run the recomputing block where it applies (real A, projected B and C), the composition elsewhere."""
    weights = conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight, out_proj_weight, out_proj_bias
    check_inner_inputs(xz, *weights, As, B, C, D, delta_bias, B_proj_bias, C_proj_bias)
    if B is None and C is None and B_proj_bias is None and C_proj_bias is None and not As[0].is_complex():
        return mamba_inner(
            xz.transpose(1, 2),
            conv1d_weight.transpose(0, 1),
            None if conv1d_bias is None else conv1d_bias[None],
            x_proj_weight[None],
            delta_proj_weight[None],
            torch.stack(As),
            None if D is None else D.expand(len(As), -1),
            None if delta_bias is None else delta_bias.expand(len(As), -1),
            out_proj_weight,
            out_proj_bias,
            delta_softplus,
            (FORWARD, REVERSED)[: len(As)],
        )
    given = B, C, D, delta_bias, B_proj_bias, C_proj_bias, delta_softplus
    y = _compose_no_out_proj(selective_scan_fn, xz, *weights[:4], As, *given).transpose(1, 2)
    return y if out_proj_weight is None else F.linear(y, out_proj_weight, out_proj_bias)


def mamba_inner_fn_no_out_proj(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    A: Tensor,
    B: Tensor | None = None,
    C: Tensor | None = None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    B_proj_bias: Tensor | None = None,
    C_proj_bias: Tensor | None = None,
    delta_softplus: bool = True,
) -> Tensor:
    """Run conv, SiLU, x_proj, dt_proj, scan and gate in one differentiable call that recomputes in backward.

    Args:
        xz (Tensor): Input projection, x above z (B, 2D, L).
        conv1d_weight (Tensor): (D, 1, W).
        conv1d_bias (Tensor, optional): (D).
        x_proj_weight (Tensor): (R + 2N, D); without the rows of a B or C that is given.
        delta_proj_weight (Tensor): (D, R).
        A (Tensor): (D, N), real or complex.
        B (Tensor, optional): Used instead of the projected B, in any form of `selective_scan_fn`.
        C (Tensor, optional): As B.
        D (Tensor, optional): Skip weights (D).
        delta_bias (Tensor, optional): (D).
        B_proj_bias (Tensor, optional): Added to the projected B (N).
        C_proj_bias (Tensor, optional): Added to the projected C (N).
        delta_softplus (bool): Apply softplus to delta after the bias.

    Returns:
        (Tensor): (B, D, L).

    Raises:
        ValueError: If shapes do not fit together.
    """
    weights = conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight, None, None
    given = B, C, D, delta_bias, B_proj_bias, C_proj_bias, delta_softplus
    return _inner(xz, *weights, (A,), *given).transpose(1, 2)


def mamba_inner_fn(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    A: Tensor,
    B: Tensor | None = None,
    C: Tensor | None = None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    B_proj_bias: Tensor | None = None,
    C_proj_bias: Tensor | None = None,
    delta_softplus: bool = True,
) -> Tensor:
    """Do what `mamba_inner_fn_no_out_proj` does, and the output projection.

    Args:
        xz (Tensor): Input projection, x above z (B, 2D, L); the arguments not listed are those of
            `mamba_inner_fn_no_out_proj`.
        conv1d_weight (Tensor): (D, 1, W).
        conv1d_bias (Tensor, optional): (D).
        x_proj_weight (Tensor): (R + 2N, D).
        delta_proj_weight (Tensor): (D, R).
        out_proj_weight (Tensor): (M, D).
        out_proj_bias (Tensor, optional): (M).
        A (Tensor): (D, N), real or complex.
        B (Tensor, optional): Given B.
        C (Tensor, optional): Given C.
        D (Tensor, optional): (D).
        delta_bias (Tensor, optional): (D).
        B_proj_bias (Tensor, optional): (N).
        C_proj_bias (Tensor, optional): (N).
        delta_softplus (bool): Apply softplus to delta after the bias.

    Returns:
        (Tensor): (B, L, M).

    Raises:
        ValueError: If shapes do not fit together.
    """
    weights = conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight, out_proj_weight, out_proj_bias
    return _inner(xz, *weights, (A,), B, C, D, delta_bias, B_proj_bias, C_proj_bias, delta_softplus)


def bimamba_inner_fn(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    A: Tensor,
    A_b: Tensor,
    B: Tensor | None = None,
    C: Tensor | None = None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    B_proj_bias: Tensor | None = None,
    C_proj_bias: Tensor | None = None,
    delta_softplus: bool = True,
) -> Tensor:
    """Do what `mamba_inner_fn` does, with a second scan of the reversed sequence by A_b added before the projection.

    Conv and projections are computed once, in sequence order, and shared by both scans.

    Args:
        xz (Tensor): Input projection, x above z (B, 2D, L); the arguments not listed are those of `mamba_inner_fn`.
        conv1d_weight (Tensor): (D, 1, W).
        conv1d_bias (Tensor, optional): (D).
        x_proj_weight (Tensor): (R + 2N, D).
        delta_proj_weight (Tensor): (D, R).
        out_proj_weight (Tensor): (M, D).
        out_proj_bias (Tensor, optional): (M).
        A (Tensor): (D, N) of the forward scan.
        A_b (Tensor): (D, N) of the scan of the reversed sequence.
        B (Tensor, optional): Given B.
        C (Tensor, optional): Given C.
        D (Tensor, optional): (D).
        delta_bias (Tensor, optional): (D).
        B_proj_bias (Tensor, optional): (N).
        C_proj_bias (Tensor, optional): (N).
        delta_softplus (bool): Apply softplus to delta after the bias.

    Returns:
        (Tensor): (B, L, M).

    Raises:
        ValueError: If shapes do not fit together.

    Source:
        Zhu et al., "Vision Mamba: Efficient Visual Representation Learning with Bidirectional State Space Model", 2024.
    """
    weights = conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight, out_proj_weight, out_proj_bias
    return _inner(xz, *weights, (A, A_b), B, C, D, delta_bias, B_proj_bias, C_proj_bias, delta_softplus)


def mamba_inner_ref(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    A: Tensor,
    B: Tensor | None = None,
    C: Tensor | None = None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    B_proj_bias: Tensor | None = None,
    C_proj_bias: Tensor | None = None,
    delta_softplus: bool = True,
) -> Tensor:
    """Define `mamba_inner_fn` step by step, with `selective_scan_ref`; arguments and result as there."""
    weights = conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight
    given = B, C, D, delta_bias, B_proj_bias, C_proj_bias, delta_softplus
    y = _compose_no_out_proj(selective_scan_ref, xz, *weights, (A,), *given)
    return F.linear(y.transpose(1, 2), out_proj_weight, out_proj_bias)


def bimamba_inner_ref(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    A: Tensor,
    A_b: Tensor,
    B: Tensor | None = None,
    C: Tensor | None = None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    B_proj_bias: Tensor | None = None,
    C_proj_bias: Tensor | None = None,
    delta_softplus: bool = True,
) -> Tensor:
    """Define `bimamba_inner_fn` step by step, with `selective_scan_ref`; arguments and result as there."""
    weights = conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight
    given = B, C, D, delta_bias, B_proj_bias, C_proj_bias, delta_softplus
    y = _compose_no_out_proj(selective_scan_ref, xz, *weights, (A, A_b), *given)
    return F.linear(y.transpose(1, 2), out_proj_weight, out_proj_bias)


class SelectiveScanFn:
    """The recipe's name for `selective_scan_fn`, called with `apply`; autograd lives in the operator."""

    apply = staticmethod(selective_scan_fn)


class MambaInnerFnNoOutProj:
    """The recipe's name for `mamba_inner_fn_no_out_proj`, called with `apply`."""

    apply = staticmethod(mamba_inner_fn_no_out_proj)


class MambaInnerFn:
    """The recipe's name for `mamba_inner_fn`, called with `apply`."""

    apply = staticmethod(mamba_inner_fn)


class BiMambaInnerFn:
    """The recipe's name for `bimamba_inner_fn`, called with `apply`."""

    apply = staticmethod(bimamba_inner_fn)


# Modules --------------------------------------------------------------------------------------------------------------


class Mamba(StateSpace):
    """Mamba block with one or two scan directions, (B, L, d_model) -> (B, L, d_model).

    State dicts move to and from `mamba_ssm.Mamba` (bimamba_type "none") and Vim ("v1", "v2"): names and shapes agree.

    Attributes:
        in_proj (nn.Linear): d_model -> 2 d_inner, x beside the gate z.
        conv1d (nn.Conv1d): Depthwise causal convolution, d_conv taps.
        x_proj (nn.Linear): d_inner -> dt_rank + 2 d_state, the source of delta, B and C.
        dt_proj (nn.Linear): dt_rank -> d_inner; its bias is the inverse softplus of the initial step sizes.
        A_log (nn.Parameter): log(-A), (d_inner, d_state), S4D-real at the start.
        D (nn.Parameter): Skip weights (d_inner), one at the start.
        out_proj (nn.Linear): d_inner -> d_model.
        A_b_log (nn.Parameter): A of the reversed scan ("v1", "v2").
        conv1d_b, x_proj_b, dt_proj_b, D_b: The second direction's own ("v2").

    Source:
        Gu and Dao, "Mamba", 2023; Zhu et al., "Vision Mamba", 2024 for two directions; Gu et al., "On the
        Parameterization and Initialization of Diagonal State Space Models", 2022, for S4D-real.

    Examples:
        >>> block = Mamba(16, bimamba_type="v2")
        >>> tuple(block(torch.zeros(2, 10, 16)).shape)
        (2, 10, 16)
    """

    bimamba_types = ("none", "v1", "v2")
    state_names = frozenset({"A_log", "A_b_log", "D", "D_b", "dt_proj.bias", "dt_proj_b.bias"})

    def __init__(
        self,
        d_model: int,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int | float = 2,
        dt_rank: int | str = "auto",
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_init: str = "random",
        dt_scale: float = 1.0,
        dt_init_floor: float = 1e-4,
        conv_bias: bool = True,
        bias: bool = False,
        use_fast_path: bool = True,
        layer_idx: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        bimamba_type: str = "none",
    ) -> None:
        """Build the block.

        Args:
            d_model (int): Channels of a token.
            d_state (int): State size N of each inner channel.
            d_conv (int): Taps of the depthwise convolution.
            expand (int | float): d_inner = expand * d_model.
            dt_rank (int | str): Rank R of the step size projection; "auto" is ceil(d_model / 16).
            dt_min (float): Smallest initial step size.
            dt_max (float): Largest initial step size.
            dt_init (str): Initial dt_proj weights, "random" or "constant".
            dt_scale (float): Scale of the initial dt_proj weights.
            dt_init_floor (float): Lower bound of the initial step size.
            conv_bias (bool): Bias in the convolution.
            bias (bool): Bias in in_proj and out_proj.
            use_fast_path (bool): Keep little and recompute in backward; the results are the same without it.
            layer_idx (int, optional): Index of the block in its model; stored only.
            device (torch.device | str, optional): Device of the parameters.
            dtype (torch.dtype, optional): Dtype of the parameters, but for A_log and D, which are float32.
            bimamba_type (str): "none", one direction; "v1", a second A scans the reversed sequence; "v2", two
                directions with parameters of their own, outputs added.

        Raises:
            TypeError: If a size is no integer.
            ValueError: If a size is below 1, or an option is unknown.
        """
        super().__init__()
        positive_int("Mamba", d_model=d_model, d_state=d_state, d_conv=d_conv)
        positive_number("Mamba", expand=expand)
        if int(expand * d_model) < 1:
            raise ValueError(f"Mamba: expand * d_model must be at least 1, got expand={expand}, d_model={d_model}")
        if dt_rank != "auto":
            positive_int("Mamba", dt_rank=dt_rank)
        if dt_init not in ("random", "constant"):
            raise ValueError(f"Mamba: dt_init must be 'random' or 'constant', got {dt_init!r}")
        if not 0 < dt_min <= dt_max:
            raise ValueError(f"Mamba: 0 < dt_min <= dt_max is required, got dt_min={dt_min}, dt_max={dt_max}")
        if bimamba_type not in self.bimamba_types:
            raise ValueError(f"Mamba: bimamba_type must be one of {self.bimamba_types}, got {bimamba_type!r}")
        self.d_model, self.d_state, self.d_conv, self.expand = d_model, d_state, d_conv, expand
        self.d_inner = int(expand * d_model)
        self.dt_rank = math.ceil(d_model / 16) if dt_rank == "auto" else dt_rank
        self.use_fast_path, self.layer_idx, self.bimamba_type = use_fast_path, layer_idx, bimamba_type

        factory = {"device": device, "dtype": dtype}
        self.in_proj = nn.Linear(d_model, 2 * self.d_inner, bias=bias, **factory)
        for s in ("", "_b") if bimamba_type == "v2" else ("",):
            conv = nn.Conv1d(
                self.d_inner, self.d_inner, d_conv, groups=self.d_inner, padding=d_conv - 1, bias=conv_bias, **factory
            )
            x_proj = nn.Linear(self.d_inner, self.dt_rank + 2 * d_state, bias=False, **factory)
            dt_proj = self._dt_proj(dt_min, dt_max, dt_init, dt_scale, dt_init_floor, factory)
            self.add_module(f"conv1d{s}", conv)
            self.add_module(f"x_proj{s}", x_proj)
            self.add_module(f"dt_proj{s}", dt_proj)
            self.register_parameter(f"D{s}", nn.Parameter(torch.ones(self.d_inner, device=device)))
        for name in ("A_log",) if bimamba_type == "none" else ("A_log", "A_b_log"):
            A = torch.arange(1, d_state + 1, dtype=torch.float32, device=device).repeat(self.d_inner, 1)
            self.register_parameter(name, nn.Parameter(A.log()))
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=bias, **factory)
        for name in ("A_log", "A_b_log", "D", "D_b"):
            if hasattr(self, name):
                getattr(self, name)._no_weight_decay = True  # for other trainers; ours asks `state_parameters`

    def _dt_proj(
        self, dt_min: float, dt_max: float, dt_init: str, dt_scale: float, dt_init_floor: float, factory: dict
    ) -> nn.Linear:
        """Return a dt_proj whose bias makes the initial step sizes log-uniform in [dt_min, dt_max]."""
        proj = nn.Linear(self.dt_rank, self.d_inner, bias=True, **factory)
        std = dt_scale * self.dt_rank**-0.5
        if dt_init == "constant":
            nn.init.constant_(proj.weight, std)
        else:
            nn.init.uniform_(proj.weight, -std, std)
        with torch.no_grad():
            proj.bias.copy_(inverse_softplus_steps((self.d_inner,), dt_min, dt_max, dt_init_floor, factory["device"]))
        proj.bias._no_reinit = True
        return proj

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Mix tokens (B, L, d_model).

        Raises:
            ValueError: If the input is not (B, L, d_model) with L >= 1.
        """
        if hidden_states.dim() != 3 or hidden_states.shape[2] != self.d_model or hidden_states.shape[1] == 0:
            raise ValueError(
                f"Mamba expects (B, L, d_model) with d_model = {self.d_model} and L >= 1, "
                f"got {tuple(hidden_states.shape)}"
            )
        two = self.bimamba_type == "v2"
        xz = token_linear(hidden_states, self.in_proj.weight, self.in_proj.bias)

        def rows(name: str, attribute: str = "weight") -> Tensor | None:
            """Stack a parameter of one or two directions."""
            values = [getattr(getattr(self, f"{name}{s}"), attribute) for s in (("", "_b") if two else ("",))]
            return None if values[0] is None else torch.stack(values) if two else values[0].unsqueeze(0)

        A_log = torch.stack([getattr(self, n) for n in ("A_log", "A_b_log") if hasattr(self, n)])
        A = -torch.exp(A_log if A_log.dtype == torch.float64 else A_log.float())
        D = torch.stack((self.D, self.D_b)) if two else self.D.unsqueeze(0)
        directions = A.shape[0]
        return mamba_inner(
            xz,
            rows("conv1d").squeeze(2),
            rows("conv1d", "bias"),
            rows("x_proj"),
            rows("dt_proj"),
            A,
            D.expand(directions, -1),
            rows("dt_proj", "bias").expand(directions, -1),
            self.out_proj.weight,
            self.out_proj.bias,
            True,
            (FORWARD, REVERSED)[:directions],
            self.use_fast_path,
        )

    def flops(self, batch: int, length: int) -> int:
        """Return the floating point operations of one forward pass over (batch, length) tokens.

        Counted: projections and convolutions at 2 per multiply-add, the scans at 9 B L D N.
        """
        tokens, inner, convs = batch * length, self.d_inner, 2 if self.bimamba_type == "v2" else 1
        scans = 1 if self.bimamba_type == "none" else 2
        linear = 3 * self.d_model * inner  # in_proj and out_proj
        per_conv = inner * (self.d_conv + self.dt_rank + 2 * self.d_state) + self.dt_rank * inner
        return 2 * tokens * (linear + convs * per_conv) + scans * scan_flops(batch, inner, length, self.d_state)


class MambaLayer(nn.Module):
    """Bidirectional Mamba over the tokens of a feature map in row order: (B, C, *spatial) -> same shape, no residual.

    Attributes:
        norm (nn.LayerNorm): Over the channels of a token; its parameters are used in one pass with the turn to tokens.
        mamba (Mamba): Two directions, "v2".

    Source:
        The widely copied "Vision Mamba improves YOLOv8" recipe, with the Vim block of Zhu et al., 2024.

    Examples:
        >>> layer = MambaLayer(16)
        >>> tuple(layer(torch.zeros(2, 16, 5, 7)).shape)
        (2, 16, 5, 7)
    """

    def __init__(self, dim: int, d_state: int = 16, d_conv: int = 4, expand: int | float = 2) -> None:
        """Build the layer.

        Args:
            dim (int): Channels C of the map.
            d_state (int): State size N.
            d_conv (int): Taps of the depthwise convolution.
            expand (int | float): Inner channels per channel.

        Raises:
            TypeError: If a size is no integer.
            ValueError: If a size is below 1.
        """
        super().__init__()
        positive_int("MambaLayer", dim=dim)
        self.dim = dim
        self.norm = nn.LayerNorm(dim)
        self.mamba = Mamba(d_model=dim, d_state=d_state, d_conv=d_conv, expand=expand, bimamba_type="v2")

    def forward(self, x: Tensor) -> Tensor:
        """Mix the tokens of a map (B, C, *spatial).

        Raises:
            ValueError: If x has another channel count, no spatial axis, or no tokens.
        """
        if x.dim() < 3 or x.shape[1] != self.dim or 0 in x.shape[2:]:
            raise ValueError(f"MambaLayer expects (B, {self.dim}, *spatial) with tokens, got {tuple(x.shape)}")
        return self.mamba(norm_tokens(self.norm, x.flatten(2))).transpose(1, 2).reshape(x.shape)


def count_mamba(m: Mamba, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    """Add the multiply-adds of a Mamba block to thop's count, which doubles them into FLOPs."""
    m.total_ops += m.flops(inputs[0].shape[0], inputs[0].shape[1]) / 2


def count_ss2d(m: CrossScan, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    """Add what an SS2D or ConvSS2D computes outside its children, which count themselves, to thop's count."""
    m.total_ops += m.own_flops(output.shape[0], output.shape[2] * output.shape[3]) / 2
