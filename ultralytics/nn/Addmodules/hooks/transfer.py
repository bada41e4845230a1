# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Weights of one model loaded into another, where one of them is ours: rows that grafts moved, and a log that says all.

Upstream matches tensors by name, and a name holds the number of its row. A graft moves the rows after it, so a row of
one model is matched with the same row of the other: the first that is no graft with the first that is none, and so on.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from functools import wraps
from itertools import groupby
from pathlib import Path

from torch import Tensor, nn

from ..layers.graft import Graft, is_graft
from ..layers.state_space import StateSpace

__all__ = ("common_names", "matched_rows", "places", "with_matched_rows")

CHANNELS = "another number of image channels: upstream fills it from these filters"


def with_matched_rows(base: type) -> type:
    """Decorate upstream's BaseModel: `load` finds rows that grafts moved, and says for our models what came of it.

    Args:
        base (type): Class with a method `load(self, weights, verbose=True)`.

    Returns:
        (type): The same class.
    """
    upstream = base.load

    @wraps(upstream)
    def load(self, weights: dict | nn.Module, verbose: bool = True) -> None:
        source = (weights.get("ema") or weights["model"]) if isinstance(weights, dict) else weights
        if not (has_rows(source) and has_rows(self) and any(map(is_ours, (self, source)))):
            upstream(self, weights, verbose)
            if verbose and has_rows(self) and is_ours(self):
                from ultralytics.utils import LOGGER

                LOGGER.warning("VMamba: the weights are not of a model with rows; the line above says what arrived")
            return
        names = matched_rows(source, self)
        # Upstream reads all that it needs from a model: the same layers under the numbers that they have here
        upstream(self, renumbered(source, names) if names else weights, verbose)
        adopt_names(self, source, names)
        if verbose:
            from ultralytics.utils import LOGGER

            for line in report(self, source, names):
                LOGGER.info(f"VMamba: {line}")

    base.load = load
    return base


def has_rows(model: object) -> bool:
    """Return whether this is an Ultralytics model, with a list of rows."""
    return isinstance(model, nn.Module) and isinstance(getattr(model, "model", None), nn.Sequential)


def is_ours(model: nn.Module) -> bool:
    """Return whether a model has layers of this fork."""
    return any(isinstance(m, (StateSpace, Graft)) for m in model.modules())


def places(model: nn.Module) -> list[tuple[int, int]]:
    """Return for each row how many rows without grafts come up to it, and which graft after that one it is; 0 for none.

    Rows of two models that mean the same have the same entry.
    """
    found: list[tuple[int, int]] = []
    for row in model.model:
        stock, graft = found[-1] if found else (0, 0)
        found.append((stock, graft + 1) if is_graft(row) else (stock + 1, 0))
    return found


def common_names(model: nn.Module) -> dict[str, str]:
    """Return the name of each tensor under which a model without these grafts, or with others, has the like.

    Examples:
        The third row of a model whose second is a graft: `model.2.conv.weight` is `model.1.conv.weight`.
    """
    at = places(model) if has_rows(model) else ()
    rows = [f"{stock - 1}-graft{graft}" if graft else str(stock - 1) for stock, graft in at]
    found = {}
    for name in model.state_dict():
        first, _, rest = name.partition(".")
        row, dot, inner = rest.partition(".")
        known = first == "model" and row.isdecimal() and int(row) < len(rows)
        found[name] = f"model.{rows[int(row)]}{dot}{inner}" if known else name
    return found


def matched_rows(source: nn.Module, target: nn.Module) -> list[str]:
    """Return the number in the target of each row of the source; nothing where all numbers are the same.

    A row that the target lacks gets a word instead, which no tensor of the target has in its name.
    """
    there, here = places(source), places(target)
    if not any(graft for _, graft in (*there, *here)):
        return []
    index = {place: str(i) for i, place in enumerate(here)}
    names = [index.get(place, f"none{i}") for i, place in enumerate(there)]
    return [] if names == [str(i) for i in range(len(there))] else names


def renumbered(model: nn.Module, names: list[str]) -> nn.Module:
    """Return a model of the same layers, its rows under other names."""
    view, rows = copy.copy(model), copy.copy(model.model)
    rows._modules = dict(zip(names, model.model))
    view._modules = {**model._modules, "model": rows}
    return view


def adopt_names(target: nn.Module, source: nn.Module, names: list[str]) -> None:
    """Give a model built from YAML the class names of weights of which every tensor arrived, as upstream does.

    Upstream asks that the target has no more tensors than arrived; a graft's own are new.
    """
    if not names or hasattr(target, "set_classes"):  # World and YOLOE know their classes by text
        return
    theirs, mine = shapes(renumbered(source, names)), shapes(target)
    own = {k for k in mine if not is_graft(target.model[row_of(k)])}
    classes = getattr(source, "names", {})
    if own == theirs.keys() & own and all(theirs[k] == mine[k] for k in own):
        if getattr(target, "names", None) == {i: str(i) for i in range(len(classes))}:
            target.names = dict(classes)


# The report -----------------------------------------------------------------------------------------------------------


def report(target: nn.Module, source: nn.Module, names: list[str]) -> Iterator[str]:
    """Yield what arrived, what did not and why, and what is new; the target has been loaded."""
    theirs, mine = shapes(renumbered(source, names) if names else source), shapes(target)
    arrived = [k for k, shape in theirs.items() if mine.get(k) == shape]
    file = Path(str(getattr(source, "pt_path", None) or "the weights")).name
    yield f"{len(arrived)} of {len(theirs)} tensors of {file} arrived"
    back = {name: i for i, name in enumerate(names)} if names else {str(i): i for i in range(len(source.model))}
    missed: dict[str, list[int]] = {}
    came = set(arrived)
    for key in theirs.keys() - came:
        row = back.get(key.split(".")[1])
        reason = _reason(source, target, row, key)
        missed.setdefault(reason, []).append(row)
        if reason == CHANNELS:  # not new
            came.add(key)
    for reason, rows in sorted(missed.items()):
        yield f"  left out: {_count(rows)} of its {_rows(rows)} ({reason})"
    fresh, silent = [k for k in mine if k not in came], [k for k in mine if is_silent(target.model[row_of(k)])]
    for word, keys in (("", came.intersection(silent)), ("new, ", set(silent) - came)):
        if keys:
            yield f"  {word}without effect at the start: {_count([*keys])} of {_rows(map(row_of, keys))} (Graft)"
    kinds: dict[str, list[int]] = {}
    for key in fresh:
        if key not in silent:
            kinds.setdefault(_kind(target.model[row_of(key)]), []).append(row_of(key))
    for kind, rows in kinds.items():
        yield f"  new, untrained: {_count(rows)} of {_rows(rows)} ({kind})"


def _reason(source: nn.Module, target: nn.Module, row: int | None, key: str) -> str:
    """Return why a tensor of the source did not arrive."""
    place = key.split(".")[1]
    if row is None or not place.isdecimal() or int(place) >= len(target.model):
        return "there is no such row here"
    there, here = _kind(source.model[row]), _kind(target.model[int(place)])
    if there != here:
        return f"{there} there, {here} here"
    classes = [len(getattr(m, "names", ())) for m in (source, target)]
    if key == "model.0.conv.weight" and len({shapes(m).get(key, ())[:1] for m in (source, target)}) == 1:
        return CHANNELS
    if row == len(source.model) - 1 and classes[0] != classes[1]:
        return f"{classes[0]} classes there, {classes[1]} here"
    return f"{there} of another size"


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the tensors of a model's rows by name."""
    return {k: tuple(v.shape) for k, v in model.state_dict().items() if isinstance(v, Tensor) and k[:6] == "model."}


def row_of(key: str) -> int:
    """Return the row that a tensor's name tells."""
    return int(key.split(".")[1])


def is_silent(row: nn.Module) -> bool:
    """Return whether a row is a graft that computes nothing yet."""
    return is_graft(row) and not any(m.proj.weight.any() for m in row.modules() if isinstance(m, Graft))


def _kind(row: nn.Module) -> str:
    """Return the class of a row, or of what it repeats."""
    return type(row[0] if type(row) is nn.Sequential and len(row) else row).__name__


def _count(tensors: list) -> str:
    """Return a number of tensors."""
    return f"{len(tensors)} tensor{'s' * (len(tensors) > 1)}"


def _rows(numbers: Iterable[int]) -> str:
    """Return numbers of rows, with runs of three and more drawn together.

    Examples:
        >>> _rows([8, 2, 3, 4, 8])
        'rows 2 to 4, 8'
    """
    ordered = sorted(set(numbers))
    parts = []
    for _, run in groupby(enumerate(ordered), lambda pair: pair[1] - pair[0]):
        run = [n for _, n in run]
        parts += [f"{run[0]} to {run[-1]}"] if len(run) > 2 else map(str, run)
    return f"row{'s' * (len(ordered) > 1)} {', '.join(parts)}"
