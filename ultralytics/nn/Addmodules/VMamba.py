# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Vision Mamba for YOLO: the recipe's two layers, and every name that the recipe has in this file.

The recipe's functions are in recipe.py, the four-direction layers in layers/.
"""

from __future__ import annotations

import math
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers.check_arguments import arguments, flag, positive_int, positive_number
from .layers.csp import C2fSS2D, C2fVSS
from .layers.plain import bare, call, plain, plain_norm, stacked, usual
from .layers.ss2d import SS2D
from .layers.state_space import StateSpace, StepProjection, s4d_real
from .layers.tokens import norm_tokens
from .layers.vss import VSSBlock
from .recipe import (
    BiMambaInnerFn,
    MambaInnerFn,
    MambaInnerFnNoOutProj,
    SelectiveScanFn,
    bimamba_inner_fn,
    bimamba_inner_ref,
    mamba_inner_fn,
    mamba_inner_fn_no_out_proj,
    mamba_inner_ref,
    selective_scan_fn,
    selective_scan_ref,
)
from .selective_scan import FORWARD, REVERSED, Block, Scan, mamba_inner, scan, scan_flops

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


class Mamba(StateSpace):
    """Mamba block with one or two scan directions, (B, L, d_model) -> (B, L, d_model).

    State dicts move to and from `mamba_ssm.Mamba` (bimamba_type "none") and Vim ("v1", "v2"): names and shapes agree.
    Vim's models with "div2" in their names halve the sum of both directions (`if_divide_out`), and this block does not:
    halve `out_proj.weight` of their state dicts.

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
            use_fast_path (bool): Compute the block in one call that keeps little and recomputes in backward. Without it
                every child is called by itself; the results are the same.
            layer_idx (int, optional): Index of the block in its model; stored only.
            device (torch.device | str, optional): Device of the parameters.
            dtype (torch.dtype, optional): Dtype of the parameters, but for A_log and D, which are float32.
            bimamba_type (str): "none", one direction; "v1", a second A scans the reversed sequence; "v2", two
                directions with parameters of their own, outputs added.

        Raises:
            TypeError: If a size is no integer.
            ValueError: If a size is below 1, or an option is unknown.
        """
        self.check(SimpleNamespace(**locals()))
        super().__init__()
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
            steps = (dt_min, dt_max, dt_init_floor)
            dt_proj = StepProjection(self.dt_rank, self.d_inner, steps, dt_init, dt_scale, **factory)
            self.add_module(f"conv1d{s}", conv)
            self.add_module(f"x_proj{s}", x_proj)
            self.add_module(f"dt_proj{s}", dt_proj)
            self.register_parameter(f"D{s}", nn.Parameter(torch.empty(self.d_inner, device=device)))
        for name in ("A_log",) if bimamba_type == "none" else ("A_log", "A_b_log"):
            A_log = torch.empty(self.d_inner, d_state, dtype=torch.float32, device=device)
            self.register_parameter(name, nn.Parameter(A_log))
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=bias, **factory)
        for name in ("A_log", "A_b_log", "D", "D_b"):
            if hasattr(self, name):
                getattr(self, name)._no_weight_decay = True  # for other trainers; ours asks `state_parameters`
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set A and D of every direction to their start; the layers around them reset themselves."""
        for name, p in self.named_parameters(recurse=False):
            if name.startswith("A_"):
                s4d_real(p)
            else:
                nn.init.ones_(p)

    @classmethod
    def check(cls, a: SimpleNamespace) -> None:
        """Raise unless these constructor arguments are right."""
        positive_int("Mamba", d_model=a.d_model, d_state=a.d_state, d_conv=a.d_conv)
        positive_number("Mamba", expand=a.expand)
        flag("Mamba", conv_bias=a.conv_bias, bias=a.bias)
        if int(a.expand * a.d_model) < 1:
            raise ValueError(f"Mamba: expand * d_model must be at least 1, got expand={a.expand}, d_model={a.d_model}")
        if a.dt_rank != "auto":
            positive_int("Mamba", dt_rank=a.dt_rank)
        if a.dt_init not in ("random", "constant"):
            raise ValueError(f"Mamba: dt_init must be 'random' or 'constant', got {a.dt_init!r}")
        positive_number("Mamba", dt_min=a.dt_min, dt_max=a.dt_max, dt_init_floor=a.dt_init_floor or 1)  # 0 is none
        if not 0 < a.dt_min <= a.dt_max:
            raise ValueError(f"Mamba: 0 < dt_min <= dt_max is required, got dt_min={a.dt_min}, dt_max={a.dt_max}")
        if a.bimamba_type not in cls.bimamba_types:
            raise ValueError(f"Mamba: bimamba_type must be one of {cls.bimamba_types}, got {a.bimamba_type!r}")

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
        block = self.fused(hidden_states)
        return self._called(hidden_states) if block is None else mamba_inner(block)

    def _states(self) -> tuple[Tensor, Tensor]:
        """Return A (K, d_inner, d_state) and the skip weights (K, d_inner) of all directions."""
        A_log = torch.stack([self.A_log] if self.bimamba_type == "none" else [self.A_log, self.A_b_log])
        A = -torch.exp(A_log if A_log.dtype == torch.float64 else A_log.float())
        D = torch.stack([self.D, self.D_b] if self.bimamba_type == "v2" else [self.D])
        return A, D.expand(2, -1) if self.bimamba_type == "v1" else D  # in "v1" directions share all but A

    def fused(self, tokens: Tensor, norm: nn.LayerNorm | None = None) -> Block | None:
        """Return the block as one problem for `mamba_inner`, or None if its children have to be called.

        Args:
            tokens (Tensor): (B, L, d_model).
            norm (nn.LayerNorm, optional): A plain norm that the tokens go through first.
        """
        modules = self._modules  # a child is found in no time there, and as an attribute in a microsecond
        ends = ("", "_b") if self.bimamba_type == "v2" else ("",)
        convs, x_projs, dt_projs = ([modules[n + e] for e in ends] for n in ("conv1d", "x_proj", "dt_proj"))
        into, out = modules["in_proj"], modules["out_proj"]
        fast = self.use_fast_path and plain(into, out, *convs, *x_projs, *dt_projs)
        if not fast or not usual(convs, x_projs, dt_projs):
            return None
        (A, D), dt_bias = self._states(), stacked(dt_projs, "bias")
        return Block(
            xz=tokens,
            conv_w=stacked(convs).squeeze(2),
            conv_b=stacked(convs, "bias"),
            x_proj=stacked(x_projs),
            dt_proj=stacked(dt_projs),
            A=A,
            D=D,
            dt_bias=dt_bias.expand(2, -1) if self.bimamba_type == "v1" else dt_bias,
            out_w=out.weight,
            out_b=out.bias,
            orders=(FORWARD, REVERSED)[: A.shape[0]],
            in_w=into.weight,
            in_b=into.bias,
            norm_w=None if norm is None else norm.weight,
            norm_b=None if norm is None else norm.bias,
            norm_eps=0.0 if norm is None else norm.eps,
        )

    def _called(self, hidden_states: Tensor) -> Tensor:
        """Compute the block of tokens (B, L, d_model) by calling its children one by one, whatever they are."""
        ends = ("", "_b") if self.bimamba_type == "v2" else ("",)
        A, D = self._states()
        (batch, length, _), (directions, inner, state) = hidden_states.shape, A.shape
        sizes = (self.dt_rank, state, state)
        x, z = call(self, "in_proj", hidden_states, (batch, length, 2 * inner)).chunk(2, -1)
        x = x.transpose(1, 2)
        dt_projs = [getattr(self, f"dt_proj{end}") for end in ends]
        own_bias = plain(*dt_projs) and all(p.bias is not None for p in dt_projs)  # added in float32, inside the scan
        parts = []
        for end in ends:  # the second direction reads the tokens from the end; its results go back to their places
            u = call(self, f"conv1d{end}", x.flip(-1) if end else x, (batch, inner, None))[..., :length]
            u = F.silu(u.flip(-1) if end else u)
            r, B, C = call(self, f"x_proj{end}", u.transpose(1, 2), (batch, length, sum(sizes))).split(sizes, -1)
            if own_bias:
                delta = F.linear(r, getattr(self, f"dt_proj{end}").weight)
            else:
                delta = call(self, f"dt_proj{end}", r, (batch, length, inner))
            parts.append((u, *(t.transpose(1, 2) for t in (delta, B, C))))
        u, delta, B, C = (torch.stack(p, 1).expand(-1, directions, -1, -1) for p in zip(*parts))
        bias = None
        if own_bias:
            bias = stacked(dt_projs, "bias").expand(directions, -1).to(A.dtype)
        orders = (FORWARD, REVERSED)[:directions]
        y, _ = scan(Scan(u, delta, A, B, C, D.to(A.dtype), None, bias, True, orders))
        y = y.sum(1).transpose(1, 2) * F.silu(z)
        return call(self, "out_proj", y.to(z.dtype), (batch, length, self.d_model))

    def flops(self, batch: int, length: int) -> int:
        """Return the floating point operations of one forward pass over (batch, length) tokens.

        Counted: projections and convolutions at 2 per multiply-add, the scans at 9 B L D N.
        """
        tokens, inner, convs = batch * length, self.d_inner, 2 if self.bimamba_type == "v2" else 1
        linear = 3 * self.d_model * inner  # in_proj and out_proj
        per_conv = inner * (self.d_conv + self.dt_rank + 2 * self.d_state) + self.dt_rank * inner
        return 2 * tokens * (linear + convs * per_conv) + self.own_flops(batch, length)

    def own_flops(self, batch: int, length: int) -> int:
        """Return the operations of the scans: what no child computes."""
        scans = 1 if self.bimamba_type == "none" else 2
        return scans * scan_flops(batch, self.d_inner, length, self.d_state)


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
        self.check(SimpleNamespace(**locals()))
        super().__init__()
        self.dim = dim
        self.norm = nn.LayerNorm(dim)
        self.mamba = Mamba(d_model=dim, d_state=d_state, d_conv=d_conv, expand=expand, bimamba_type="v2")

    @classmethod
    def check(cls, a: SimpleNamespace) -> None:
        """Raise unless these constructor arguments are right."""
        positive_int("MambaLayer", dim=a.dim)
        Mamba.check(arguments(Mamba, a.dim, a.d_state, a.d_conv, a.expand, bimamba_type="v2"))

    def forward(self, x: Tensor) -> Tensor:
        """Mix the tokens of a map (B, C, *spatial).

        Raises:
            ValueError: If x has another channel count, no spatial axis, or no tokens.
        """
        if x.dim() < 3 or x.shape[1] != self.dim or 0 in x.shape[2:]:
            raise ValueError(f"MambaLayer expects (B, {self.dim}, *spatial) with tokens, got {tuple(x.shape)}")
        flat, norm, mamba = x.flatten(2), self._modules["norm"], self._modules["mamba"]
        block = None
        fits = type(mamba) is Mamba and bare(mamba) and mamba.d_model == self.dim  # if not, the call says what is wrong
        if fits and plain_norm(norm) and not torch.jit.is_tracing():  # a trace has its children by name
            block = mamba.fused(flat.transpose(1, 2), norm)
        y = mamba(norm_tokens(norm, flat)) if block is None else mamba_inner(block)
        return y.transpose(1, 2).reshape(x.shape)
