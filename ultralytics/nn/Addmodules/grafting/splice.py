# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Rows put into a model that stands: what it holds stays as it is, and every number of a row is moved.

Building a model anew from its YAML and copying the tensors over would lose what is no tensor: the text features of a
World model, the state of a head, what a user has set.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from ..layers.graft import Graft

__all__ = ("Shift", "own_scale", "splice")


class Shift:
    """What the numbers of rows become when a row is put in after some of them.

    Attributes:
        after (tuple[int, ...]): Those rows, in ascending order.
    """

    def __init__(self, after: Sequence[int]) -> None:
        """Keep the rows."""
        self.after = tuple(sorted(after))

    def row(self, index: int) -> int:
        """Return the new number of a row."""
        return index + sum(place < index for place in self.after)

    def output(self, index: int) -> int:
        """Return the number of the row that now gives what a row gave: the new one after it, or itself."""
        return self.row(index) + (index in self.after)

    def source(self, source: int | list[int], index: int) -> int | list[int]:
        """Return the new `from` of a row; a number that counts back does so afterwards, too."""
        if isinstance(source, (list, tuple)):
            return [self.source(one, index) for one in source]
        return self.output(source) if source >= 0 else self.output(index + source) - self.row(index)


def splice(model: nn.Module, grafts: dict[int, Graft], row: list) -> None:
    """Put a graft after each of some rows, in the model and in its YAML.

    Args:
        model (nn.Module): Ultralytics model, changed in place.
        grafts (dict[int, Graft]): The grafts by the row that they follow.
        row (list): Their row of a model YAML.
    """
    shift, layers = Shift(list(grafts)), []
    for i, layer in enumerate(model.model):
        layer.i, layer.f = shift.row(i), shift.source(layer.f, i)
        layers.append(layer)
        if i in grafts:
            new = grafts[i]
            new.i, new.f, new.type = shift.output(i), -1, f"{Graft.__module__}.{Graft.__qualname__}"
            new.np = sum(p.numel() for p in new.parameters())
            layers.append(new)
    model.model._modules = {str(layer.i): layer for layer in layers}
    sources = [(layer.i, f) for layer in layers for f in (layer.f if isinstance(layer.f, list) else [layer.f])]
    model.save = sorted(f % i for i, f in sources if f != -1)  # as upstream's parser lists them
    splice_yaml(model.yaml, shift, row)


def splice_yaml(d: dict, shift: Shift, row: list) -> None:
    """Put a row into a model YAML after each of some rows."""
    index = 0
    for part in ("backbone", "head"):
        rows = []
        for source, *rest in d[part]:
            rows.append([shift.source(source, index), *rest])
            if index in shift.after:
                rows.append([-1, 1, *(list(value) if isinstance(value, list) else value for value in row)])
            index += 1
        d[part] = rows


def own_scale(d: dict) -> None:
    """Leave a model YAML one scale, its own: a file of another name would have upstream take another."""
    scales = d.get("scales")
    if scales:
        scale = d.get("scale") or next(iter(scales))
        d["scales"], d["scale"] = {scale: scales[scale]}, scale
