# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""What the studies compare."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ("COCO", "MARGIN", "PARTS", "SCRATCH", "Model", "Part")

SETTINGS = {"imgsz": 320, "batch": 8, "nbs": 8, "workers": 0}  # of all parts; nbs 8: an optimizer step every batch
SETS = ("bccd", "cards")
SCRATCH, COCO = "scratch", "coco"  # YOLOv5n's weights: drawn from the seed, or trained on COCO
# A graft does no harm if the 95 % interval of graft minus stock in mAP50-95 lies above this. It was fixed before the
# runs, from stock's own spread over seeds.
MARGIN = {"bccd": -0.01, "cards": -0.03}
CONTROL = "benchmarks.study.controls.Bottleneck"


class Model(NamedTuple):
    """A model of a part.

    Args:
        what (str): What it is, for the table.
        start (str): A model YAML, a name of variants.py, or SCRATCH or COCO for YOLOv5n.
        graft (dict | None): Arguments of `graft`, if it is one.
        zero (bool): Whether the last projection of its grafts starts at zero.
    """

    what: str
    start: str = COCO
    graft: dict | None = None
    zero: bool = True


class Part(NamedTuple):
    """A comparison.

    Args:
        what (str): What it is to show.
        models (dict[str, Model]): The others are compared with the first, or all with the first of another part.
        seeds (tuple[int, ...]): One training of each model a seed.
        sets (tuple[str, ...]): Data sets.
        epochs (int): Of each training.
        optimizer (str): As Ultralytics names it.
        beside (str): Another part of the same settings, with whose first model these are compared seed by seed.
    """

    what: str
    models: dict[str, Model]
    seeds: tuple[int, ...]
    sets: tuple[str, ...] = SETS
    epochs: int = 15
    optimizer: str = "auto"
    beside: str = ""


STOCK = Model("YOLOv5n")
GRAFT = Model("the default graft: SS2D with one state after P4 and P5", graft={})
EQUAL = Model("the same wrapper around convolutions of equal parameters", graft={"block": CONTROL})
SLOW = Model(
    "the same wrapper around convolutions of equal CPU time", graft={"block": CONTROL, "options": {"cost": "time"}}
)
MAIN = {"stock": STOCK, "graft": GRAFT, "control": EQUAL}

PARTS = {
    "screening": Part(
        "Where a graft goes, and what is in it: each model changes one thing. Seed 10, used only here",
        {
            "stock": STOCK,
            "graft": GRAFT,
            "after-P4": Model("after P4 alone", graft={"after": ("P4",)}),
            "after-P5": Model("after P5 alone", graft={"after": ("P5",)}),
            "after-N4": Model("after the neck's map of stride 16 alone", graft={"after": ("N4",)}),
            "after-N3-N4-N5": Model("after all three maps that the head reads", graft={"after": ("N3", "N4", "N5")}),
            "state-16": Model("16 states instead of one", graft={"options": {"d_state": 16}}),
            "mambalayer": Model("MambaLayer instead of SS2D", graft={"block": "MambaLayer"}),
            "lr-5": Model("five times the learning rate in the graft", graft={"lr_factor": 5.0}),
        },
        seeds=(10,),
    ),
    "report": Part("Whether a graft helps, or harms", MAIN, seeds=(0, 1, 2, 3, 4, 5)),
    "controls": Part(
        "Further controls",
        {
            "control-time": SLOW,
            "not-zero": Model("the default graft, its last projection drawn at random", graft={}, zero=False),
        },
        seeds=(0, 1, 2),
        beside="report",
    ),
    "long": Part("Three times as many epochs", MAIN, seeds=(0, 1, 2), sets=("cards",), epochs=45),
    "scratch-grafts": Part(
        "From scratch, beside two newer models",
        {
            "yolov5n": Model("YOLOv5n", SCRATCH),
            "yolov5n-graft": Model("its default graft", SCRATCH, {}),
            "yolo26n": Model("YOLO26n", "yolo26n.yaml"),
            "yolo12n": Model("YOLO12n", "yolo12n.yaml"),
        },
        seeds=(0, 1, 2),
    ),
    "musgd": Part(
        "MuSGD, which Ultralytics takes by itself for trainings of more than 10,000 steps",
        MAIN,
        seeds=(0, 1, 2),
        sets=("cards",),
        optimizer="MuSGD",
    ),
}
