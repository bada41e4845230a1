# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""What cannot be trained or exported: one line on the command line of `yolo`, and the error itself in Python."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from tests.data import make_data
from ultralytics import RTDETR, YOLO
from ultralytics.nn.Addmodules import graft
from ultralytics.nn.Addmodules.hooks.refusals import refuse_training
from ultralytics.nn.Addmodules.tools.resume import refuse_finished
from ultralytics.nn.tasks import DetectionModel

SMALL = {"epochs": 1, "imgsz": 32, "batch": 4, "device": "cpu", "plots": False, "workers": 0}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the YAML of a set for detection."""
    return make_data(tmp_path_factory.mktemp("data"), "detect", 4, 4)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("segment train model=VMamba-yolon-seg.yaml", "Segment dataset requires equal numbers of boxes and segments"),
        ("pose train model=VMamba-yolon-pose.yaml", "No `kpt_shape` in the "),
        ("export model=yolov8n.yaml format=nonsense", "Invalid export format='nonsense'"),
    ],
)
def test_what_ultralytics_says_is_one_line_of_yolo(command: str, said: str, data: Path, tmp_path: Path) -> None:
    code = "import sys; sys.argv[0] = 'yolo'; from ultralytics.cfg import VMamba_door as door; sys.exit(door.main())"
    words = [*command.split(), f"data={data}", "imgsz=32", "device=cpu"]
    env = {**os.environ, "YOLO_OFFLINE": "true"}
    run = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=tmp_path, env=env, capture_output=True, encoding="utf-8", check=False
    )
    assert run.returncode == 1
    assert "Traceback" not in run.stdout + run.stderr
    line = run.stderr.strip().splitlines()[-1]
    assert line.startswith("yolo")
    assert said in line


def test_python_programs_get_the_error(data: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="No `kpt_shape`"):
        YOLO("VMamba-yolon-pose.yaml").train(data=str(data), project=str(tmp_path), **SMALL)


@pytest.mark.parametrize(
    ("model", "task", "said"),
    [
        (
            "VMamba-yolon-seg.yaml",
            "detect",
            "task=detect does not go with .*VMamba-yolon-seg.yaml, whose head is for segment",
        ),
        ("VMamba-yolon.yaml", "pose", "task=pose does not go with .*VMamba-yolon.yaml, whose head is for detect"),
    ],
)
def test_a_head_for_another_task_is_refused(model: str, task: str, said: str) -> None:
    trainer = SimpleNamespace(model=YOLO(model).model, args=SimpleNamespace(task=task, model=model, classes=None))
    with pytest.raises(ValueError, match=said):
        refuse_training(trainer)


def test_a_head_that_tells_no_task_is_not_refused() -> None:
    """RT-DETR's; a graft of it is trained as detection."""
    model = graft(RTDETR("yolov8n-rtdetr.yaml")).model
    refuse_training(SimpleNamespace(model=model, args=SimpleNamespace(task="detect", model="m.pt"), train_loader=None))


def test_classes_without_an_object_are_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"classes=9: no picture .* there are 0 square, 1 bar"):
        YOLO("VMamba-yolon.yaml").train(data=str(data), project=str(tmp_path), classes=9, **SMALL)


def test_classes_of_masks_are_not_looked_for_in_labels(tmp_path: Path) -> None:
    data = make_data(tmp_path / "data", "semantic")
    for image in (data.parent / "images").rglob("*.png"):
        mask = data.parent / "masks" / image.relative_to(data.parent / "images")
        mask.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", Image.open(image).size).save(mask)
    YOLO("VMamba-yolon-sem.yaml").train(data=str(data), project=str(tmp_path), classes=[0], **SMALL)


def test_stock_models_are_left_alone() -> None:
    trainer = SimpleNamespace(model=DetectionModel("yolov8n.yaml", verbose=False), args=SimpleNamespace(task="segment"))
    refuse_training(trainer)


def test_resume_names_a_run(tmp_path: Path) -> None:
    """Without one Ultralytics takes weights, and a data set, of its own."""
    nothing = (
        ["train", "resume"],
        ["detect", "train", "resume=True"],
        ["mode=train", "resume", "=", "true,"],
        ["resume"],
    )
    for args in nothing:
        with pytest.raises(ValueError, match="names no run; name its last.pt: yolo train resume model="):
            refuse_finished(args)
    gone = (["train", "resume", "model=gone.pt"], ["train", "resume=gone.pt"])
    spaced = (["train", "resume", "=", "gone.pt"], ["train", "resume=", "gone.pt"], ["train", "resume", "=gone.pt"])
    for args in (*gone, *spaced, ["train", "resume", "model", "=", "gone.pt"]):
        with pytest.raises(FileNotFoundError, match=r"'resume=gone\.pt': there is no such file; name the last\.pt"):
            refuse_finished(args)
    refuse_finished(["train", "resume", "cfg=mine.yaml"])
    refuse_finished(["train", "resume=False"])
    refuse_finished(["train", "resume", "=", "False"])
    refuse_finished(["predict", "resume"])
