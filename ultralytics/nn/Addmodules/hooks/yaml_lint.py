# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Warnings about rows of a model YAML that build, train, and are hardly what was meant.

The commonest edit is a row put in without moving the numbers after it: the model trains without a word, and a row feeds
nothing, or the head reads a Concat.
"""

from __future__ import annotations

from math import prod

__all__ = ("lint", "refuse_strides", "warn")

HEADS = {"Classify", "RTDETRDecoder", "SemanticSegment", "Depth"}  # and what ends in one of these:
HEAD_ENDINGS = ("Detect", "Segment", "Segment26", "Pose", "Pose26", "OBB", "OBB26")
SIDE_OUTPUTS = {"ImagePoolingAttn"}  # its output is no map and goes to the model's text features, not to a row
STRIDE_AT = {"Conv": 2, "DWConv": 2, "GhostConv": 2, "SCDown": 2, "Conv2": 2, "RepConv": 2, "Focus": 2}
HALVING = {"ADown", "AConv"}
# Blocks that keep the height of their map
KNOWN = set(
    "AIFI A2C2f Bottleneck BottleneckCSP C1 C2 C2f C2fAttn C2fCIB C2fPSA C2fSS2D C2fVSS C2PSA C3 C3Ghost C3k2 C3TR C3x "
    "CBAM ELAN1 Graft HGBlock ImagePoolingAttn MambaLayer PSA RepC3 RepNCSPELAN4 SPP SPPELAN SPPF SS2D VSSBlock "
    "nn.ZeroPad2d nn.Identity".split()
)
_said: set[str] = set()


def warn(d: dict, file: str) -> None:
    """Log each warning about a model YAML once per process.

    Args:
        d (dict): Its contents, whose rows have been checked.
        file (str): Its name.
    """
    from ultralytics.utils import LOGGER

    for text in lint(d):
        if (said := f"{file}: {text}") not in _said:
            _said.add(said)
            LOGGER.warning(said)


def refuse_strides(d: dict, file: str) -> None:
    """Raise ValueError for declared strides that are not those of the rows which the head reads, as far as is known."""
    declared, rows = d.get("strides"), _rows(d)
    if not isinstance(declared, (list, tuple)) or not rows:
        return  # what is no list is refused where the strides are taken
    names, sources = _names(rows), _sources(rows)
    for i, levels in _levels(rows, names, sources):
        if len(declared) == len(levels) and list(declared) != levels:
            raise ValueError(
                f"{file}: strides: {list(declared)} are declared, but the head, layer {i} ({names[i]}), reads "
                f"{levels}; leave the line out to have them measured"
            )


def lint(d: dict) -> list[str]:
    """Return what looks wrong in the rows of a model YAML, one sentence each.

    Examples:
        >>> rows = [[-1, 1, "Conv", [16, 3, 2]], [-1, 1, "Conv", [16, 3, 1]], [0, 1, "Conv", [16, 3, 1]]]
        >>> lint({"backbone": rows, "head": [[[2], 1, "Detect", ["nc"]]]})
        ['nobody reads layer 1 (Conv): was a row put in without moving the numbers after it?']
    """
    rows, found = _rows(d), []
    names, sources = _names(rows), _sources(rows)
    read = {j for of in sources for j in of}
    for i, name in enumerate(names[:-1]):
        if i not in read and not _is_head(name) and name not in SIDE_OUTPUTS:
            found.append(f"nobody reads layer {i} ({name}): was a row put in without moving the numbers after it?")
    for i, (name, row) in enumerate(zip(names, rows)):
        args = row[3]
        if name == "MambaLayer" and len(args) == 3 and args[1] in (1, 3, 5, 7) and args[2] in (1, 2):
            found.append(
                f"layer {i} (MambaLayer) has {args}, which looks like a Conv's channels, kernel and stride; "
                f"here it means d_state={args[1]} and d_conv={args[2]}"
            )
        if not _is_head(name) or name in ("Classify", "SemanticSegment", "Depth"):
            continue
        for j in sources[i]:
            if 0 <= j < i and names[j] == "Concat":
                found.append(f"the head, layer {i} ({name}), reads layer {j}, a Concat: is the block after it meant?")
    for i, levels in _levels(rows, names, sources):
        if sorted(levels) != levels:
            found.append(f"the head, layer {i} ({names[i]}), reads strides {levels}: it expects the finest first")
    return found


def _rows(d: dict) -> list:
    """Return the rows of a model YAML; none where one is not of a row's form, which is the parser's to refuse."""
    rows = [*(d.get("backbone") or ()), *(d.get("head") or ())]
    right = all(isinstance(row, (list, tuple)) and len(row) == 4 and isinstance(row[3], (list, tuple)) for row in rows)
    return rows if right else []


def _names(rows: list) -> list[str]:
    """Return the module of each row."""
    return [str(row[2]) for row in rows]


def _sources(rows: list) -> list[list[int]]:
    """Return the rows that each row reads."""
    return [[j if j >= 0 else i + j for j in _list(row[0])] for i, row in enumerate(rows)]


def _levels(rows: list, names: list[str], sources: list[list[int]]) -> list[tuple[int, list[float]]]:
    """Return the strides that each detection head reads, where all are known, with the head's row."""
    found, strides = [], None
    for i, name in enumerate(names):
        if _is_head(name) and name not in ("Classify", "SemanticSegment", "Depth"):
            strides = strides or _strides(rows, names, sources)
            levels = [strides[j] if 0 <= j < i else None for j in sources[i]]
            if None not in levels:
                found.append((i, [int(s) if s == int(s) else s for s in levels]))
    return found


def _list(source: object) -> list[int]:
    """Return a row's `from` as a list of integers; what is none is the parser's to refuse."""
    return [j for j in (source if isinstance(source, (list, tuple)) else [source]) if isinstance(j, int)]


def _is_head(name: str) -> bool:
    """Return whether a module is a head, whose output leaves the model."""
    return name in HEADS or name.endswith(HEAD_ENDINGS)


def _strides(rows: list, names: list[str], sources: list[list[int]]) -> list[float | None]:
    """Return the stride of each row's output, or None where the row's class is not known to this table."""
    strides: list[float | None] = []
    for i, (row, name) in enumerate(zip(rows, names)):
        args, before = row[3], [1.0 if j < 0 else strides[j] for j in sources[i] if j < i]
        factor: float | None = 1.0
        if name in STRIDE_AT:
            place = STRIDE_AT[name]
            factor = args[place] if len(args) > place else 1
            if name == "Focus" and isinstance(factor, (int, float)):
                factor *= 2  # four pixels become channels first
        elif name in HALVING:
            factor = 2
        elif name == "nn.MaxPool2d":  # its stride is its kernel where none is given
            factor = next((n for n in (*args[1:2], *args[:1]) if n is not None), None)
        elif name == "nn.Upsample":
            factor = _inverse(args[1]) if len(args) > 1 else None
        elif name == "HGStem":
            factor = 4
        elif name in ("nn.ConvTranspose2d", "ConvTranspose"):
            factor = _inverse(args[2]) if len(args) > 2 else None
        elif name not in KNOWN and name != "Concat":
            factor = None
        right = isinstance(factor, (int, float)) and 0 < factor < float("inf")  # what is not is the row's own trouble
        known = bool(before) and None not in before and len({*before}) == 1 and right
        strides.append(prod((before[0], factor)) if known else None)
    return strides


def _inverse(factor: object) -> float | None:
    """Return what a map that grows by a factor does to the stride; None where the factor is no positive number."""
    return 1 / factor if isinstance(factor, (int, float)) and factor > 0 else None
