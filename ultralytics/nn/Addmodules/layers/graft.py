# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""A block that is added to a trained model without changing what the model computes, until it has learned something."""

from __future__ import annotations

import difflib
import importlib
import inspect
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from ..selective_scan.export import target
from ..selective_scan.registry import exporting
from ..VMamba import MambaLayer
from .check_arguments import arguments, positive_int, positive_number
from .ss2d import SS2D
from .vss import VSSBlock

__all__ = ("BLOCKS", "Graft", "ZeroProjection", "find_block", "is_graft")

# The blocks with a name of their own, and their arguments: small ones, since a graft adds to a whole model.
BLOCKS: dict[str, tuple[type[nn.Module], dict[str, object]]] = {
    "SS2D": (SS2D, {"d_state": 1, "expand": 0.5, "gate": False}),
    "MambaLayer": (MambaLayer, {"d_state": 1, "expand": 0.5}),
    "VSSBlock": (VSSBlock, {"d_state": 1, "expand": 0.5, "gate": False}),
}


class ZeroProjection(nn.Conv2d):
    """Pointwise convolution without bias that starts at zero, after `reset_parameters`, too."""

    def __init__(self, dim: int) -> None:
        """Build the layer for maps of dim channels."""
        super().__init__(dim, dim, 1, bias=False)

    def reset_parameters(self) -> None:
        """Set the weight to zero."""
        nn.init.zeros_(self.weight)


class Graft(nn.Module):
    """Residual block that starts as the identity, bit by bit: (B, C, H, W) -> same shape, x + proj(block(norm(x))).

    Attributes:
        norm (nn.GroupNorm): One group, so that the block gets maps of one size whatever the model gives.
        block (nn.Module): A block that keeps its map's shape.
        proj (ZeroProjection): Starts at zero. The first training step moves it alone, the second the whole graft.
        lr_factor (float): Its learning rate over that of the rest of the model.

    Source:
        Residual branches that start at zero: Zhang et al., "Fixup Initialization", 2019; Zhang et al., "Adding
        Conditional Control to Text-to-Image Diffusion Models", 2023, which call the last layer a zero convolution.

    Examples:
        >>> x = torch.randn(2, 16, 5, 7)
        >>> torch.equal(Graft(16)(x), x)
        True
    """

    lr_factor = 1.0  # of a checkpoint that was written before there was one

    def __init__(
        self, dim: int, block: str = "SS2D", options: dict[str, object] | None = None, lr_factor: float = 1.0
    ) -> None:
        """Build the layer.

        Args:
            dim (int): Channels C of the map.
            block (str): A name of `BLOCKS`, or a class by dotted path, whose constructor is called with dim.
            options (dict[str, object], optional): More arguments for the block's constructor, by name.
            lr_factor (float): Learning rate of the graft over that of the rest of the model.

        Raises:
            TypeError: If dim is no integer, or the block no layer or of other arguments.
            ValueError: If dim is below 1, the factor is not above 0, there is no such block, or the block does not keep
                its map's shape.
        """
        self.check(SimpleNamespace(**locals()))
        super().__init__()
        kind, defaults = find_block(block)
        self.norm = nn.GroupNorm(1, dim)
        try:
            self.block = kind(dim, **{**defaults, **(options or {})})
        except Exception as e:  # whatever a foreign block raises, and PyTorch where there is no memory for one of ours
            why = str(e).partition("\n")[0].partition(" Exception raised from")[0]
            raise ValueError(
                f"Graft: {block} cannot be built for {dim} channels with {options or {}}: {type(e).__name__}: {why}"
            ) from e
        self.proj = ZeroProjection(dim)
        if lr_factor != 1:
            self.lr_factor = float(lr_factor)
        if block not in BLOCKS:
            keeps_shape(block, self.block, dim)

    @classmethod
    def check(cls, a: SimpleNamespace) -> None:
        """Raise unless these constructor arguments are right."""
        positive_int("Graft", dim=a.dim)
        positive_number("Graft", lr_factor=a.lr_factor)
        if a.options is not None and not (isinstance(a.options, dict) and all(isinstance(k, str) for k in a.options)):
            raise TypeError(f"Graft: options must be arguments of the block by name, got {a.options!r}")
        kind, defaults = find_block(a.block)
        options = a.options or {}
        try:
            known = inspect.signature(kind).parameters
            bound = arguments(kind, a.dim, **{**defaults, **options})
        except (TypeError, ValueError, OverflowError) as e:  # a class without a signature, or of other arguments
            wrong = [name for name in options if a.block in BLOCKS and name not in known]
            if wrong:
                names = ", ".join([*known][1:])
                raise ValueError(f"Graft: {a.block} has no option '{wrong[0]}'; it has {names}") from None
            raise TypeError(f"Graft: {a.block} cannot be called with {a.dim} channels and {options}: {e}") from None
        if a.block in BLOCKS:
            try:
                kind.check(bound)
            except OverflowError as e:  # int(inf)
                raise ValueError(f"Graft: {a.block} cannot be built with {options}: {e}") from None

    def forward(self, x: Tensor) -> Tensor:
        """Transform a map (B, C, H, W).

        The input comes first in the sum because the result takes its memory layout from there. In the other order it is
        channels_last, and the convolutions after it round differently.
        """
        # A graph of torch.export may be on its way to ONNX, and does not tell
        onnx = exporting() and target().runtime in ("onnx", "torch.export")
        means = onnx and type(self.norm) is nn.GroupNorm
        return x + self.proj(self.block(norm_by_means(self.norm, x) if means else self.norm(x)))


def norm_by_means(norm: nn.GroupNorm, x: Tensor) -> Tensor:
    """Do what a GroupNorm of one group does to a map (B, C, H, W), in operators that ONNX Runtime computes exactly.

    The standard graph is InstanceNormalization of one row of C H W values. ONNX Runtime adds them up in float32 one
    after another: the error is up to 300 times PyTorch's own, and in a browser 4,000 times. A mean of the channels'
    means has PyTorch's error.
    """

    def mean(t: Tensor) -> Tensor:
        return t.mean((2, 3), keepdim=True).mean(1, keepdim=True)

    centred = x.float() - mean(x.float())
    weight, bias = (p.float()[:, None, None] for p in (norm.weight, norm.bias))
    return (centred * (weight / torch.sqrt(mean(centred * centred) + norm.eps)) + bias).to(x.dtype)


def is_graft(row: nn.Module) -> bool:
    """Return whether a row of a model is a graft, or several that the row repeats."""
    return isinstance(row, Graft) or (
        isinstance(row, nn.Sequential) and len(row) > 0 and all(isinstance(m, Graft) for m in row)
    )


def find_block(name: object) -> tuple[type[nn.Module], dict[str, object]]:
    """Return the class of a block, and the arguments that its name stands for.

    Raises:
        TypeError: If the name is no text, or that of something else than a layer.
        ValueError: If there is no such block.
    """
    if not isinstance(name, str):
        raise TypeError(f"Graft: block must be a name, got {name!r}")
    if name in BLOCKS:
        return BLOCKS[name]
    module, _, attribute = name.rpartition(".")
    if not (module and attribute):
        close = difflib.get_close_matches(name.lower(), {known.lower(): known for known in BLOCKS}, n=1)
        hint = next((f"; did you mean {known}?" for known in BLOCKS if close and known.lower() == close[0]), "")
        raise ValueError(
            f"Graft: there is no block '{name}'{hint or f'; there are {list(BLOCKS)}, and classes as module.Class'}"
        )
    if not all(part.isidentifier() for part in name.split(".")):
        raise ValueError(f"Graft: block '{name}' is no name of a class: write module.Class")
    try:
        kind = getattr(importlib.import_module(module), attribute)
    except ImportError as e:
        raise ValueError(
            f"Graft: cannot import '{module}' for the block '{name}' ({e}); start Python where that module can be "
            f"found, for example with PYTHONPATH=. for a file in this folder"
        ) from None
    except AttributeError:
        raise ValueError(f"Graft: '{module}' has no class '{attribute}'") from None
    except Exception as e:  # whatever stands in a file of the user
        raise ValueError(f"Graft: '{module}' cannot be imported for the block '{name}': {type(e).__name__}: {e}") from e
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise TypeError(f"Graft: the block '{name}' is no torch.nn.Module class, got {kind!r}")
    return kind, {}


def keeps_shape(name: str, block: nn.Module, dim: int) -> None:
    """Raise ValueError unless a block gives a map of the shape that it gets."""
    weight = next(block.parameters(), torch.empty(0))
    x = torch.zeros(1, dim, 8, 12, device=weight.device, dtype=weight.dtype)
    training = block.training
    try:
        with torch.no_grad():
            y = block.eval()(x)  # as in training, batch norms would take the zeros into their statistics
    except Exception as e:  # whatever a foreign block raises
        raise ValueError(
            f"Graft: the block '{name}' cannot be run on a map {tuple(x.shape)}: {type(e).__name__}: {e}"
        ) from e
    block.train(training)
    if not isinstance(y, Tensor) or y.shape != x.shape:
        got = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
        raise ValueError(f"Graft: the block '{name}' must keep its map's shape, {tuple(x.shape)}, but it gives {got}")
