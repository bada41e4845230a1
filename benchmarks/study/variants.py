# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""The variants of the study: each is a model at scale n with one thing changed, and is written as YAML when it is run.

Usage:
    python -m benchmarks.study.variants                     # list them
    python -m benchmarks.study.variants no-scans > my.yaml  # write one, to train or to look at
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import NamedTuple

import yaml

ROOT = Path(__file__).resolve().parents[2]
MODELS = ROOT / "ultralytics/cfg/models"
BASES = {"VMamba-yolon": MODELS / "vmamba/VMamba-yolo.yaml", "yolov8n": MODELS / "v8/yolov8.yaml"}


class Variant(NamedTuple):
    """One change of a model.

    Args:
        what (str): What is different, for the table.
        rows (dict[int, list]): Rows instead of those with these numbers, counted through backbone and head.
        keys (dict): Keys of the file; None leaves one out.
        behind (dict[int, list]): A row behind the one with this number; whoever read that one reads the new one.
        base (str): What is changed: a model of BASES or another variant.
    """

    what: str
    rows: dict[int, list] = {}
    keys: dict = {}
    behind: dict[int, list] = {}
    base: str = "VMamba-yolon"


def scans(name: str, *arguments) -> dict[int, list]:
    """Return rows 9 and 13, the two C2f with scans, as this module with these arguments after the channels."""
    return {9: [-1, 4, name, [1024, *arguments]], 13: [-1, 4, name, [512, *arguments]]}


def block(name: str, *arguments) -> dict[int, list]:
    """Return row 7, the VSS block, as this module with these arguments after the channels."""
    return {7: [-1, 1, name, [512, *arguments]]}


NO_SCANS = block("C2f", True) | scans("C2f", True)
VARIANTS = {
    "dense-default": Variant("dense convolutions begin with PyTorch's weights", keys={"init_dense": None}),
    "dense-default-equal-bins": Variant(
        "all bins of the distances equally likely at the start, as upstream has it",
        keys={"init_dfl": None},
        base="dense-default",
    ),
    "dense-default-no-scans": Variant(
        "C2f instead of C2fSS2D and, of one bottleneck, instead of the VSS block", NO_SCANS, base="dense-default"
    ),
    "expand-2": Variant(
        "two inner channels of the scans per channel instead of one",
        block("VSSBlock", 1, 3, 2, 0, False) | scans("C2fSS2D", 1, 2),
    ),
    "no-residual": Variant(
        "no residual around the scans in C2fSS2D, and SS2D instead of the VSS block, which has one",
        block("SS2D", 1, 3, 1, False) | scans("C2fSS2D", 1, 1, 3, 4, False),
    ),
    "no-scans": Variant("C2f instead of C2fSS2D and, of one bottleneck, instead of the VSS block", NO_SCANS),
    "patch-stem": Variant(
        "one convolution of patches of 4 x 4 pixels instead of two with stride 2",
        {0: [-1, 1, "nn.Identity", []], 1: [-1, 1, "Conv", [128, 4, 4, 0]]},
    ),
    "scans-at-p3": Variant("a VSS block after P3, too", behind={4: [-1, 1, "VSSBlock", [256, 1, 3, 1, 0, False]]}),
    "state-16": Variant(
        "16 states in every scan instead of 1", block("VSSBlock", 16, 3, 1, 0, False) | scans("C2fSS2D", 16)
    ),
    "state-8": Variant(
        "8 states in every scan instead of 1", block("VSSBlock", 8, 3, 1, 0, False) | scans("C2fSS2D", 8)
    ),
    "two-directions": Variant("only rows and rows reversed in C2fSS2D", scans("C2fSS2D", 1, 1, 3, 2)),
    "vss-blocks": Variant("C2fVSS, of linear and depthwise layers, instead of C2fSS2D", scans("C2fVSS")),
    "yolov8-dense-default": Variant(
        "YOLOv8 with the start of VMamba-yolo but for its dense convolutions, which begin with PyTorch's weights",
        keys={"init_dfl": 0.7, "init_std": 0.02},
        base="yolov8n",
    ),
    "yolov8-start": Variant(
        "YOLOv8 with the start of VMamba-yolo",
        keys={"init_dfl": 0.7, "init_std": 0.02, "init_dense": 0.25},
        base="yolov8n",
    ),
}


def build(name: str) -> dict:
    """Return the contents of a model YAML at scale n; the name is one of VARIANTS or BASES."""
    if name in BASES:
        model = yaml.safe_load(BASES[name].read_text(encoding="utf-8"))
        return model | {"scales": {"n": model["scales"]["n"]}}
    variant = VARIANTS[name]
    model = build(variant.base)
    for key, value in variant.keys.items():
        model[key] = value
        if value is None:
            del model[key]
    backbone = len(model["backbone"])
    rows = model["backbone"] + model["head"]
    for number, row in variant.rows.items():
        rows[number] = row
    for number, row in variant.behind.items():
        rows = [[shifted(source, number), *rest] for source, *rest in rows]
        rows.insert(number + 1, row)
        backbone += number < backbone
    return model | {"backbone": rows[:backbone], "head": rows[backbone:]}


def shifted(source: int | list[int], number: int) -> int | list[int]:
    """Return where a row reads from when a row comes in behind the one with this number."""
    if isinstance(source, list):
        return [shifted(one, number) for one in source]
    return source + 1 if source >= number else source


def write(name: str, folder: Path) -> Path:
    """Write the YAML of a variant into a folder and return its file."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.yaml"
    part = file.with_suffix(f".{os.getpid()}.part")  # several processes may write the same
    part.write_text(text(name), encoding="utf-8")
    part.replace(file)
    return file


def text(name: str) -> str:
    """Return the YAML of a variant."""
    variant = VARIANTS[name]
    return f"# {variant.base} with one change: {variant.what}\n" + yaml.safe_dump(build(name), sort_keys=False)


def main() -> None:
    """List the variants, or write those that are asked for."""
    for name in sys.argv[1:]:
        if name not in VARIANTS:
            raise SystemExit(f"no variant {name!r}; there are {', '.join(VARIANTS)}")
        print(text(name), end="")
    if not sys.argv[1:]:
        for name, variant in VARIANTS.items():
            print(f"{name:26} {variant.base}: {variant.what}")


if __name__ == "__main__":
    main()
