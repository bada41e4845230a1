# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Warnings about model YAMLs: the commonest mistakes are named, and no file that ships gives one."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

import ultralytics
from ultralytics import YOLO
from ultralytics.nn.Addmodules.hooks import yaml_lint
from ultralytics.nn.Addmodules.hooks.yaml_lint import lint, refuse_strides
from ultralytics.nn.tasks import yaml_model_load
from ultralytics.utils import YAML

MODELS = sorted((Path(ultralytics.__file__).parent / "cfg/models").rglob("*.yaml"))


@pytest.mark.parametrize("file", MODELS, ids=lambda file: file.stem)
def test_no_file_that_ships_gives_a_warning(file: Path) -> None:
    assert lint(YAML.load(file)) == []


def recipe() -> dict:
    """Return the recipe's model file."""
    return copy.deepcopy(yaml_model_load("VMamba-yolov8n.yaml"))


def test_a_row_put_in_without_moving_the_numbers_after_it() -> None:
    """It builds, trains, and has 6.39 M parameters where 3.63 M were meant."""
    d = recipe()
    d["backbone"].append([-1, 1, "MambaLayer", [1024]])
    assert lint(d) == [
        "nobody reads layer 22 (C2f): was a row put in without moving the numbers after it?",
        *(
            f"the head, layer 23 (Detect), reads layer {j}, a Concat: is the block after it meant?"
            for j in (15, 18, 21)
        ),
    ]


def test_the_other_mistakes() -> None:
    d = recipe()
    d["backbone"][2][3] = [128, 3, 2]
    assert lint(d) == [
        "layer 2 (MambaLayer) has [128, 3, 2], which looks like a Conv's channels, kernel and stride; here it means "
        "d_state=3 and d_conv=2"
    ]
    d = recipe()
    d["head"][-1][0] = [21, 18, 15]
    assert lint(d) == ["the head, layer 22 (Detect), reads strides [32, 16, 8]: it expects the finest first"]


def test_declared_strides_that_do_not_fit_are_an_error(tmp_path: Path) -> None:
    d = {**recipe(), "strides": [4, 8, 16]}
    with pytest.raises(ValueError, match=r"strides: \[4, 8, 16\] are declared, but .* reads \[8, 16, 32\]; leave"):
        refuse_strides(d, "mine.yaml")
    d.pop("yaml_file")
    YAML.save(tmp_path / "mine.yaml", d)
    with pytest.raises(ValueError, match=r"^mine.yaml: strides: \[4, 8, 16\]"):
        YOLO(str(tmp_path / "mine.yaml"))
    d["backbone"][9][2] = "Unknown"  # whose stride this table does not know: nothing is said of strides
    refuse_strides(d, "mine.yaml")
    assert lint(d) == []


@pytest.mark.parametrize(
    ("row", "stride"),
    [
        (["Focus", [16, 3]], 2),
        (["Focus", [16, 3, 2]], 4),
        (["nn.MaxPool2d", [3, 1, 1]], 1),
        (["nn.MaxPool2d", [2, 2]], 2),
        (["nn.MaxPool2d", [3]], 3),
        (["Conv", [16, 3, 2]], 2),
    ],
)
def test_strides_of_rows_are_those_measured(row: list, stride: int, tmp_path: Path) -> None:
    """What the table says of a row's class is what a map of 48 pixels comes out with."""
    d = {"backbone": [[-1, 1, *row]], "head": [[[0], 1, "Detect", ["nc"]]], "nc": 2}
    YAML.save(tmp_path / "mine.yaml", d)
    model = YOLO(tmp_path / "mine.yaml").model
    assert 48 / model.model[0](torch.zeros(1, 3, 48, 48)).shape[2] == stride
    refuse_strides({**d, "strides": [stride]}, "mine.yaml")
    with pytest.raises(ValueError, match=f"reads \\[{stride}\\]"):
        refuse_strides({**d, "strides": [64]}, "mine.yaml")


@pytest.mark.parametrize("factor", [0, -2, float("nan"), float("inf"), "2", None, [2]])
@pytest.mark.parametrize(("name", "place"), [("nn.Upsample", 1), ("Conv", 2)])
def test_a_factor_of_any_kind_is_no_error_of_the_check(name: str, place: int, factor: object) -> None:
    """Found by the fuzz: nn.Upsample by 0. Whether such a row can be built is for the row to say."""
    d = recipe()
    next(row for row in d["head"] if row[2] == name)[3][place] = factor
    lint(d)
    refuse_strides({**d, "strides": [8, 16, 32]}, "mine.yaml")


def test_each_warning_is_said_once_with_the_file(tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch) -> None:
    monkeypatch.setattr(yaml_lint, "_said", set())
    d = recipe()
    d["backbone"][2][3] = [128, 3, 2]
    d.pop("yaml_file")
    YAML.save(tmp_path / "mine.yaml", d)
    for _ in range(2):
        YOLO(str(tmp_path / "mine.yaml"))
    said = [r.getMessage() for r in caplog.records if "looks like a Conv's" in r.getMessage()]
    assert len(said) == 1
    assert "mine.yaml: layer 2 (MambaLayer)" in said[0]
