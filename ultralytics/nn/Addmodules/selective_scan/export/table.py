# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""The form of a scan that a runtime runs fastest, as `benchmarks/export_forms.py` measured it."""

from __future__ import annotations

from typing import NamedTuple

from .target import Target, target

__all__ = ("FLAT", "LEVELS", "LOOP", "MAX_STATE", "Row", "choose", "row", "wants_maps")

LOOP = "loop"  # over runs of 16 tokens, one token after the other
LEVELS = "levels"  # a loop over runs of 80 tokens, each in two levels
FLAT = "flat"  # no loop, two levels, one number of tokens


class Row(NamedTuple):
    """What a runtime is fast at, and what it cannot do.

    Attributes:
        flat (int): Largest state size N for which `FLAT` is fastest in files of a fixed size.
        levels (int): Largest state size N for which `LEVELS` beats `LOOP`.
        loops (bool): The runtime has loops with a state.
        together (bool): Directions share one tensor in `FLAT`; otherwise each stands apart, with fewer axes.
        own_softplus (bool): The runtime's Softplus is slower than one of elementary operators.
        maps (bool): Scans of a map stay maps in `FLAT` (maps.py).
    """

    flat: int
    levels: int
    loops: bool = True
    together: bool = True
    own_softplus: bool = True
    maps: bool = False


MAX_STATE = 4  # of runtimes without loops: a scan of N states takes N times the operators
NO_LOOP = Row(MAX_STATE, 0, loops=False, together=False)
TABLE = {
    "onnx": Row(4, 8),
    "openvino": Row(2, 0, own_softplus=False),
    "torchscript": Row(2, 8, own_softplus=False),
    "torch.export": Row(0, 0, own_softplus=False),  # not measured: AOTInductor compiles the loop
    "engine": Row(4, 8),  # not measured: as in ONNX Runtime
    "ncnn": NO_LOOP._replace(maps=True),
}


def row(runtime: str) -> Row:
    """Return the row of a runtime; formats without one are those of edge devices, whose converters have no loops."""
    return TABLE.get(runtime, NO_LOOP)


def choose(target: Target, state: int) -> str:
    """Return the form of a scan with N = state.

    Raises:
        ValueError: If the runtime has no loops, and the state is too large or the size not fixed.
    """
    if target.form:
        return target.form
    of = row(target.runtime)
    if target.fixed and state <= of.flat:
        return FLAT
    if not of.loops:
        raise ValueError(
            f"format='{target.runtime}' has no loop with a state: it takes scans of d_state {of.flat} or less and one "
            f"picture size; this scan has d_state {state}{'' if target.fixed else ' and sizes that are free'}"
        )
    return LEVELS if state <= of.levels else LOOP


def wants_maps(state: int) -> bool:
    """Return whether the graph that is being recorded takes scans of N = state as maps."""
    to = target()
    return row(to.runtime).maps and choose(to, state) == FLAT
