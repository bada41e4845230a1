# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""How a row of a model YAML becomes one of our layers: its width, its repeats, and errors for wrong rows."""

from __future__ import annotations

import difflib
import inspect

from torch import nn

from ..layers.check_arguments import arguments
from ..layers.csp import C2fSS2D, C2fVSS
from ..layers.graft import BLOCKS, Graft
from ..layers.ss2d import SS2D
from ..layers.vss import VSSBlock
from ..VMamba import MambaLayer

__all__ = ("LAYERS", "check_rows", "parse_layer")

# The layers that a row may name. The first argument of each is its width: of input and output, or of the output alone.
SAME_WIDTH: tuple[type[nn.Module], ...] = (MambaLayer, SS2D, VSSBlock, Graft)
NEW_WIDTH: tuple[type[nn.Module], ...] = (C2fVSS, C2fSS2D)
LAYERS = SAME_WIDTH + NEW_WIDTH
OLD = ("Silence",)  # names of layers that upstream replaces before it builds a model


def parse_layer(
    layer: type[nn.Module],
    index: int,
    channels: int,
    args: list,
    width: float,
    max_channels: float,
    repeats: int,
) -> tuple[int, list, int]:
    """Turn the YAML arguments of a Vision Mamba layer into constructor arguments; leave every other layer alone.

    The first YAML argument is the layer's width before scaling, as in Ultralytics' own rows; without it, or with None,
    the width is that of the input. A layer of SAME_WIDTH keeps the channels of its input, so a width that is written
    must agree with them. One of NEW_WIDTH has a width of its own and takes the repeats as the number of inner blocks.
    The arguments after the width are the constructor's, by position.

    Args:
        layer (type[nn.Module]): Class that the YAML names.
        index (int): Index of the row, for messages.
        channels (int): Channels of the layer's input.
        args (list): Arguments in the YAML.
        width (float): Width multiple of the scale.
        max_channels (float): Channel limit of the scale.
        repeats (int): How many times the row is to be repeated, after scaling.

    Returns:
        channels (int): Channels of the layer's output.
        args (list): Arguments for the constructor.
        repeats (int): How many layers upstream should build one after the other.

    Raises:
        TypeError: If the arguments are of the wrong number or type.
        ValueError: If a value is out of range, or the width is not that of the input.
    """
    if layer not in LAYERS:
        return channels, args, repeats
    where = f"model YAML layer {index} ({layer.__name__})"
    hidden = ("c1", "n") if layer in NEW_WIDTH else ()  # what the row tells by its place
    names = [name for name in inspect.signature(layer).parameters if name not in hidden]
    if len(args) > len(names):
        raise TypeError(f"{where} takes at most {len(names)} arguments, {names}, got {len(args)}: {args}")
    written, rest = (args[0] if args else None), args[1:]
    scaled = channels
    if written is not None:
        if isinstance(written, bool) or not isinstance(written, int) or written < 1:
            raise TypeError(
                f"{where}: the first argument must be its channel count, a positive integer, or None for that of its "
                f"input, got {written!r}"
            )
        scaled = _scaled(written, width, max_channels)
    if layer in NEW_WIDTH:
        own, count = [channels, scaled, repeats, *rest], 1
    elif scaled == channels:
        own, count = [channels, *rest], repeats
    else:
        raise ValueError(
            f"{where}: {written} channels are {scaled} at this scale (width {width}, max {max_channels}), but its "
            f"input has {channels}; {_advice(channels, rest, width, max_channels)}"
        )
    try:
        checked = arguments(layer, *own)
        if layer is Graft:
            refuse_restricted(checked.block)
        layer.check(checked)
    except (TypeError, ValueError) as e:
        raise type(e)(f"{where}: {e}; its arguments are {names}, got {args}") from None
    return scaled, own, count


def refuse_restricted(block: object) -> None:
    """Raise TypeError for a graft's block that restricted loading must not import: any class that is not ours."""
    from ultralytics.nn import tasks  # here, because it imports this module

    restricted = getattr(getattr(tasks, "_SafeLoad", None), "restricted", lambda: False)  # older releases lack it
    if block not in BLOCKS and restricted():
        raise TypeError(
            f"the block '{block}' is a class of yours, which restricted loading does not import; "
            f"unset ULTRALYTICS_SAFE_LOAD if you trust the file"
        )


def _scaled(channels: int, width: float, max_channels: float) -> int:
    """Return a row's channels at a scale, as upstream's parser computes them."""
    from ultralytics.utils.ops import make_divisible  # here, because upstream's utils import this package's callers

    return make_divisible(min(channels, max_channels) * width, 8)


def _advice(channels: int, rest: list, width: float, max_channels: float) -> str:
    """Return what to write instead of a width that is not the input's; a number only if it gives the input's width."""
    advice = f"write {[None, *rest] if rest else []} to take the width of its input"
    number = int(channels / width)
    if _scaled(number, width, max_channels) == channels:
        advice += f", or {[number, *rest]}"
    return f"{advice}; for another width put a 1x1 Conv before it, or use C2fSS2D"


def check_rows(d: dict, file: str) -> None:
    """Raise for rows of our layers that upstream's parser would answer with an index or key error of its own.

    Args:
        d (dict): Contents of a model YAML.
        file (str): Its name, for messages.

    Raises:
        TypeError: If a row has not four entries, or `from` or `repeats` is no integer.
        ValueError: If `from` names no earlier layer, `repeats` is below 1, or a layer's name is misspelt.
    """
    from ultralytics.nn import tasks  # here, because it imports this module

    for part in ("backbone", "head"):
        if not isinstance(d.get(part), (list, tuple)):
            raise ValueError(f"{file} is no model YAML: it has no list of rows called '{part}'")
    ours = {layer.__name__ for layer in LAYERS}
    folded = {name.casefold(): name for name in ours}
    folded["convss2d"] = "C2fSS2D"  # what the rows' block is made of
    for index, row in enumerate([*(d.get("backbone") or ()), *(d.get("head") or ())]):
        if isinstance(row, dict):
            raise TypeError(f"{file}: layer {index}: a row is [from, repeats, module, [arguments]], got {row}")
        module = row[2] if isinstance(row, (list, tuple)) and len(row) > 2 else None
        if not isinstance(module, str):
            continue
        where = f"{file}: layer {index} ({module})"
        if module not in ours:
            bare = module.removeprefix("nn.")
            if bare in ours:
                raise ValueError(f"{where}: there is no such layer in torch.nn; write {bare}")
            known = module.startswith(("nn.", "torchvision.ops.")) or hasattr(tasks, module) or module in OLD
            if not known:  # upstream's parser would give a bare KeyError
                close = difflib.get_close_matches(module.casefold(), folded)
                hint = f"; did you mean {folded[close[0]]}?" if close else " in Ultralytics or in this fork"
                raise ValueError(f"{where}: there is no such layer{hint}")
            continue
        if len(row) != 4 or not isinstance(row[3], (list, tuple)):
            raise TypeError(f"{where}: a row is [from, repeats, module, [arguments]], got {row}")
        source, repeats = row[:2]
        if isinstance(source, bool) or not isinstance(source, int):
            one = isinstance(source, (list, tuple)) and len(source) == 1
            advice = f"write {source[0]}" if one else "put a Concat before it"
            raise TypeError(f"{where}: `from` must be the index of one layer, got {source!r}; {advice}")
        if not (source == -1 or -index <= source < index):
            raise ValueError(
                f"{where}: `from` is {source}, but the layers before it are 0 to {index - 1}, or -1 to {-max(index, 1)}"
            )
        if isinstance(repeats, bool) or not isinstance(repeats, int) or repeats < 1:
            raise ValueError(f"{where}: repeats must be an integer of at least 1, got {repeats!r}")
