# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Our model files by name, and small data sets of every task, drawn here: what tests of whole models share."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

import ultralytics
from ultralytics.utils import YAML

ROOT = Path(ultralytics.__file__).parents[1]
MODELS = ROOT / "ultralytics/cfg/models"
ALL = {path.stem: path for path in sorted(MODELS.rglob("VMamba*.yaml"))}
GRAFTS = {stem: path for stem, path in ALL.items() if stem.endswith("-graft")}  # of stock models: tests/test_graft.py
FILES = {stem: path for stem, path in ALL.items() if stem not in GRAFTS}
SIDE = 64  # of a drawn image


def scaled(stem: str, scale: str) -> str:
    """Return the name by which a user asks for a file at a scale: VMamba-yolov8-seg and n give VMamba-yolov8n-seg."""
    return re.sub(r"^(VMamba-yolo(?:v?\d+)?)", rf"\g<1>{scale}", stem)


def draw(g: np.random.Generator) -> tuple[Image.Image, list[tuple[int, np.ndarray]]]:
    """Return noise with a bright turned square at the left and a dark turned bar at the right, and their corners."""
    image = Image.fromarray(g.integers(90, 160, (SIDE, SIDE, 3)).astype(np.uint8))
    shapes = []
    for cls, (half, grey) in enumerate((((9, 9), 240), ((12, 6), 10))):
        turn = g.uniform(0, math.pi)
        axes = np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])
        corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * half @ axes + [16 + 32 * cls, g.uniform(16, 48)]
        ImageDraw.Draw(image).polygon([tuple(c) for c in corners], fill=(grey,) * 3)
        shapes.append((cls, corners / SIDE))
    return image, shapes


def label(task: str, cls: int, corners: np.ndarray) -> str:
    """Return the line of a label file that describes an object for a task."""
    corners = corners.clip(0, 1)
    low, high = corners.min(0), corners.max(0)
    box = [*(low + high) / 2, *high - low]
    numbers = {
        "detect": box,
        "segment": corners.ravel(),
        "semantic": corners.ravel(),  # what no polygon covers becomes a class of its own, the last
        "obb": corners.ravel(),
        "pose": [*box, *(v for corner in corners for v in (*corner, 2))],  # 2: visible
    }[task]
    return " ".join([str(cls), *(f"{v:.6g}" for v in numbers)])


def depths(shapes: list[tuple[int, np.ndarray]]) -> Image.Image:
    """Return distances in millimetres: the square a metre away, the bar two, all else four."""
    image = Image.new("I", (SIDE, SIDE), 4000)
    for cls, corners in shapes:
        ImageDraw.Draw(image).polygon([tuple(c) for c in corners * SIDE], fill=1000 * (cls + 1))
    return Image.fromarray(np.asarray(image).astype(np.uint16))


def make_data(folder: Path, task: str, train: int = 12, val: int = 4) -> Path:
    """Write a small set and return what `data=` takes: a YAML, or the folder itself for classification."""
    g = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for i in range(count):
            image, shapes = draw(g)
            if task == "classify":
                left = image.crop((0, 0, SIDE // 2, SIDE)) if i % 2 else image.crop((SIDE // 2, 0, SIDE, SIDE))
                path = folder / split / ("square" if i % 2 else "bar") / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                left.save(path)
                continue
            for kind in ("images", "depth" if task == "depth" else "labels"):
                (folder / kind / split).mkdir(parents=True, exist_ok=True)
            image.save(folder / f"images/{split}/{i}.png")
            if task == "depth":
                depths(shapes).save(folder / f"depth/{split}/{i}.png")
                continue
            text = "\n".join(label(task, *shape) for shape in shapes)
            (folder / f"labels/{split}/{i}.txt").write_text(text, encoding="utf-8")
    if task == "classify":
        return folder
    d = {"path": str(folder), "train": "images/train", "val": "images/val", "names": {0: "square", 1: "bar"}}
    if task == "pose":
        d |= {"kpt_shape": [4, 3], "flip_idx": [1, 0, 3, 2]}
    if task == "depth":
        d |= {"names": {0: "depth"}, "depth_scale": 1000}
    YAML.save(folder / "data.yaml", d)
    return folder / "data.yaml"
