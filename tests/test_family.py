# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Every model file of ours: sizes and strides as it says, gradients, and a life of each task on data made here."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch

from tests.data import FILES, MODELS, ROOT, SIDE, make_data, scaled
from ultralytics import YOLO
from ultralytics.engine.results import Results
from ultralytics.nn.Addmodules import MambaLayer
from ultralytics.nn.Addmodules.layers.ss2d import CrossScan
from ultralytics.nn.tasks import guess_model_task, torch_safe_load, yaml_model_load
from ultralytics.utils import YAML

pytestmark = pytest.mark.usefixtures("one_thread")
SUMMARY = re.compile(r"^  (\w): \[.*# summary: (.*)$", re.MULTILINE)
SIZES = [(stem, *found) for stem, path in FILES.items() for found in SUMMARY.findall(path.read_text(encoding="utf-8"))]


def documented() -> dict[str, list[str]]:
    """Return what tables in docs/models say of each model at its own image size, as "parameters in M / GFLOPs".

    Two forms: rows `name | ... | 3.14 M | 10.1`, also two models in a row, and rows of a file with a column per scale.
    """
    said = {}
    for page in sorted((ROOT / "docs/models").glob("*.md")):
        header = None
        for line in page.read_text(encoding="utf-8").splitlines():
            cells = [cell.strip() for cell in line.strip().strip("|").split("|")] if line.startswith("|") else None
            if cells is None or header is None:
                header = cells
                continue
            if not any(f"GFLOPs at {size}" in title for title in header for size in (224, 640)):
                continue  # results of trainings, at other sizes and class counts
            name = cells[0]
            for title, cell, after in zip(header[1:], cells[1:], [*cells[2:], ""]):
                if name in FILES and len(title) == 1:
                    said.setdefault(scaled(name, title), []).append(cell)
                elif cell.endswith(" M"):
                    said.setdefault(name, []).append(f"{cell.removesuffix(' M')} / {after}")
                elif "yolo" in cell:
                    name = cell
    return said


def config(stem: str, **changes) -> dict:
    """Return a file at scale n with top-level changes; a value of None removes the key."""
    d = {**yaml_model_load(f"{scaled(stem, 'n')}.yaml"), **changes}
    return {k: v for k, v in d.items() if v is not None}


def build(d: dict) -> torch.nn.Module:
    """Return the model of a configuration, of the class that upstream takes for its head."""
    tasks = YOLO("VMamba-yolov8n.yaml", verbose=False).task_map
    return tasks[guess_model_task(d)]["model"](d, verbose=False)


# What the files say ---------------------------------------------------------------------------------------------------


def test_every_file_gives_every_scale_a_summary() -> None:
    assert len(FILES) >= 9
    for stem, path in FILES.items():
        scales = YAML.load(path)["scales"]
        assert [scale for name, scale, _ in SIZES if name == stem] == [*scales], stem
        assert [*scales] == [*("nsdmlx" if stem.startswith("VMamba-yolov8") else "nsmlx")], stem


@pytest.mark.parametrize(("stem", "scale", "summary"), SIZES, ids=[scaled(*s[:2]) for s in SIZES])
def test_sizes_are_as_the_file_and_its_page_say(stem: str, scale: str, summary: str) -> None:
    name = scaled(stem, scale)
    model = YOLO(f"{name}.yaml", verbose=False).model
    assert model.yaml["scale"] == scale
    assert model.stride.tolist() == model.yaml.get("strides", [1 if stem.endswith("-cls") else 32])  # 1: no constraint
    layers, params, gradients, gflops = model.info(verbose=True, imgsz=224 if stem.endswith("-cls") else 640)
    assert summary == f"{layers} layers, {params} parameters, {gradients} gradients, {gflops:.1f} GFLOPs"
    assert {*documented().get(name, ["stands in no table of docs/models"])} == {f"{params / 1e6:.2f} / {gflops:.1f}"}


@pytest.mark.parametrize("name", sorted(name for name in documented() if not name.startswith("VMamba-")))
def test_sizes_of_stock_models_are_as_our_pages_say(name: str) -> None:
    model = YOLO(f"{name}.yaml", verbose=False).model
    _, params, _, gflops = model.info(verbose=True, imgsz=224 if name.endswith("-cls") else 640)
    assert {*documented()[name]} == {f"{params / 1e6:.2f} / {gflops:.1f}"}


@pytest.mark.parametrize("stem", [s for s, p in FILES.items() if "strides" in YAML.load(p)])
def test_declared_strides_are_those_that_upstream_measures(stem: str) -> None:
    assert build(config(stem, strides=None)).stride.tolist() == build(config(stem)).stride.tolist()


REPLACED = {  # the rows that are ours, by the stock file that the others are taken from
    "yolov8": ("C2f", "MambaLayer", {2, 4, 6, 8, 10}),
    "yolo11": ("C3k2", "C2fVSS", {4, 6, 8}),
    "yolo26": ("C3k2", "C2fVSS", {4, 6, 8}),
}


@pytest.mark.parametrize("stem", [s for s in FILES if any(s.startswith(f"VMamba-{family}") for family in REPLACED)])
def test_all_rows_but_ours_are_upstreams(stem: str) -> None:
    stock = stem.removeprefix("VMamba-")
    theirs, ours, indices = REPLACED[stock.split("-")[0]]
    a, b = YAML.load(MODELS / FILES[stem].parent.name / f"{stock}.yaml"), YAML.load(FILES[stem])
    assert len(a["backbone"]) == len(b["backbone"])
    for i, (old, new) in enumerate(zip(a["backbone"], b["backbone"])):
        if old[2] == theirs and i in indices:
            assert new[:3] == [*old[:2], ours]  # the same repeats
            assert new[3][0] == old[3][0]  # the same width
        else:
            assert new == old
    assert a["head"] == b["head"]
    for key in (a.keys() | b.keys()) - {"nc", "strides", "scales", "backbone", "head"}:
        assert a[key] == b[key], key
    assert {k: v for k, v in b["scales"].items() if k != "d"} == a["scales"]
    if ours == "C2fVSS":  # inside, too, as wide as the block that it replaces
        name = scaled(stem, "n")
        old, new = (YOLO(f"{n}.yaml", verbose=False).model.model for n in (name.removeprefix("VMamba-"), name))
        assert [new[i].c for i in indices] == [old[i].c for i in indices]


# Gradients ------------------------------------------------------------------------------------------------------------


def tensors(out: object) -> list[torch.Tensor]:
    """Return all floating tensors of a nested output."""
    if torch.is_tensor(out):
        return [out] if out.is_floating_point() else []
    parts = out.values() if isinstance(out, dict) else out if isinstance(out, (list, tuple)) else ()
    return [t for part in parts for t in tensors(part)]


@pytest.mark.parametrize("scale", ["n", pytest.param("x", marks=pytest.mark.slow)])
@pytest.mark.parametrize("stem", FILES)
def test_a_rectangle_gives_finite_outputs_and_every_parameter_a_gradient(stem: str, scale: str) -> None:
    torch.manual_seed(0)
    model = YOLO(f"{scaled(stem, scale)}.yaml", verbose=False).model.train()
    side = max(32, int(model.stride.max()))  # maps of one pixel by two at the last level
    outputs = tensors(model(torch.rand(2, 3, side, 2 * side)))
    assert outputs
    assert all(torch.isfinite(t).all() for t in outputs)
    sum(t.float().square().mean() for t in outputs if t.requires_grad).backward()
    for name, p in model.named_parameters():
        if p.requires_grad:
            assert p.grad is not None, name
            assert torch.isfinite(p.grad).all(), name
    ours = [m for m in model.modules() if isinstance(m, (MambaLayer, CrossScan))]
    assert ours
    assert all(p.grad.abs().max() > 0 for m in ours for p in m.parameters())
    with torch.no_grad():
        out = model.eval()(torch.rand(1, 3, 2 * side, side))
    assert all(torch.isfinite(t).all() for t in tensors(out))
    if "strides" in model.yaml:
        assert tensors(out)[0].shape[-1] == sum(2 * side * side // s**2 for s in model.yaml["strides"])
    if model.yaml.get("end2end"):
        model.end2end = True  # as nms=False has it
        with torch.no_grad():
            out = model(torch.rand(1, 3, 2 * side, side))
        assert tensors(out)[0].shape[2] == 6  # final boxes, with no NMS to come


# Results --------------------------------------------------------------------------------------------------------------

SMALL = {"imgsz": SIDE, "batch": 4, "workers": 0, "device": "cpu"}
TRAIN = {**SMALL, "plots": False, "optimizer": "AdamW", "nbs": 4, "lr0": 0.002, "warmup_epochs": 0, "mosaic": 0}


def check_results(result: Results, task: str) -> None:
    """Hold the results of one image to what the task gives."""
    others = {"boxes", "masks", "keypoints", "obb", "probs", "semantic_mask", "depth"}
    given = {
        "detect": {"boxes"},
        "segment": {"boxes", "masks"},
        "pose": {"boxes", "keypoints"},
        "obb": {"obb"},
        "classify": {"probs"},
        "semantic": {"semantic_mask"},
        "depth": {"depth"},
    }[task]
    assert {name for name in others if getattr(result, name) is not None} == given
    names = {
        "classify": {0: "bar", 1: "square"},
        "semantic": {0: "square", 1: "bar", 2: "background"},
        "depth": {0: "depth"},
    }
    assert result.names == names.get(task, {0: "square", 1: "bar"})
    if task in {"semantic", "depth"}:
        pixels = (result.semantic_mask or result.depth).data
        assert pixels.shape == (SIDE, SIDE)
        assert set(pixels.unique().tolist()) <= {0, 1, 2} if task == "semantic" else pixels.min() > 0
        assert torch.isfinite(pixels.float()).all()
        return
    if task == "classify":
        assert result.probs.data.shape == (2,)
        assert float(result.probs.data.sum()) == pytest.approx(1, abs=1e-3)
        return
    count = len(result)
    assert count > 0
    boxes = result.obb if task == "obb" else result.boxes
    assert boxes.data.shape == (count, 7 if task == "obb" else 6)
    assert torch.isfinite(boxes.data).all()
    assert set(boxes.cls.tolist()) <= {0, 1}
    if task == "obb":
        assert boxes.xyxyxyxy.shape == (count, 4, 2)
    if task == "segment":
        assert result.masks.data.shape == (count, SIDE, SIDE)
        assert len(result.masks.xy) == count
    if task == "pose":
        assert result.keypoints.data.shape == (count, 4, 3)
        assert torch.isfinite(result.keypoints.data).all()


# Lives of models ------------------------------------------------------------------------------------------------------

LIVES = {
    "VMamba-yolo": "detect",
    "VMamba-yolo-seg": "segment",
    "VMamba-yolo-pose": "pose",
    "VMamba-yolo-obb": "obb",
    "VMamba-yolo-cls": "classify",
    "VMamba-yolo-sem": "semantic",
    "VMamba-yolo-depth": "depth",
    "VMamba-yolov8-seg": "segment",
    "VMamba-yolov8-pose": "pose",
    "VMamba-yolov8-obb": "obb",
    "VMamba-yolov8-cls": "classify",
    "VMamba-yolo26": "detect",
    "VMamba-yolo26-sem": "semantic",
    "VMamba-yolo26-depth": "depth",
    "VMamba-yolo11": "detect",
    "VMamba-yolov8-p2": "detect",
    "VMamba-yolov8-p6": "detect",
}
QUICK = (
    12  # our own and the recipe's, of each task, and one with two branches; VMamba-yolov8 itself is in test_model.py
)


def train(stem: str, data: Path, folder: Path, epochs: int) -> tuple[YOLO, list[dict]]:
    """Train a file at scale n; return the model and the metrics of its epochs."""
    model, seen = YOLO(f"{scaled(stem, 'n')}.yaml"), []
    model.add_callback("on_fit_epoch_end", lambda t: seen.append({**t.metrics, "loss": t.loss.item()}))
    model.train(data=data, epochs=epochs, project=str(folder), name="run", **TRAIN)
    return model, seen


@pytest.mark.parametrize(
    ("stem", "task"),
    [pytest.param(*life, marks=[pytest.mark.slow] if i >= QUICK else []) for i, life in enumerate(LIVES.items())],
)
def test_an_epoch_a_checkpoint_and_predictions(stem: str, task: str, tmp_path: Path) -> None:
    data = make_data(tmp_path / "data", task)
    model, seen = train(stem, data, tmp_path, epochs=1)
    assert model.task == task
    assert seen
    assert all(math.isfinite(v) for metrics in seen for v in metrics.values())
    best = Path(model.trainer.best)
    torch_safe_load(best, safe_only=True)

    reloaded = YOLO(best)
    assert reloaded.task == task
    assert any(isinstance(m, (MambaLayer, CrossScan)) for m in reloaded.model.modules())
    assert reloaded.model.yaml["nc"] == {"semantic": 3, "depth": 1}.get(task, 2)
    metrics = reloaded.val(data=data, project=str(tmp_path), name="val", plots=False, verbose=False, **SMALL)
    assert metrics.results_dict
    assert all(math.isfinite(v) for v in metrics.results_dict.values())
    if strides := yaml_model_load(f"{scaled(stem, 'n')}.yaml").get("strides"):
        assert reloaded.model.model[-1].stride.tolist() == strides
    images = sorted(p for p in (tmp_path / "data").rglob("*.png") if "val" in p.parts)
    results = reloaded.predict(images[:2], conf=1e-6, imgsz=SIDE, device="cpu", verbose=False, project=str(tmp_path))
    assert len(results) == 2
    for result in results:
        check_results(result, task)
        assert result.plot().shape == (*result.orig_shape, 3)


SCORES = {  # and what no model reaches by chance, nor by giving every pixel the same
    "segment": ("metrics/mAP50(M)", 0.3),
    "pose": ("metrics/mAP50(P)", 0.3),
    "classify": ("metrics/accuracy_top1", 0.9),
    "semantic": ("metrics/mIoU", 0.6),
    "depth": ("metrics/delta1", 0.85),
}


@pytest.mark.slow
@pytest.mark.parametrize(("stem", "task"), LIVES.items())
def test_it_learns(stem: str, task: str, tmp_path: Path) -> None:
    """Enough epochs for the task's own score, masks and keypoints included."""
    torch.manual_seed(0)
    _, seen = train(stem, make_data(tmp_path / "data", task, train=48, val=8), tmp_path, epochs=20)
    score, least = SCORES.get(task, ("metrics/mAP50(B)", 0.3))
    scores = [m.get(score, 0) for m in seen]
    assert max(scores) > least, scores


# Between tasks, and mistakes ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return untrained checkpoints of segmentation models, ours and the stock one."""
    folder, files = tmp_path_factory.mktemp("checkpoints"), {}
    for name in ("VMamba-yolov8n-seg", "yolov8n-seg"):
        files[name] = folder / f"{name}.pt"
        model = YOLO(f"{name}.yaml", verbose=False)
        model.save(files[name])
    return files


@pytest.mark.parametrize("prefix", ["", "VMamba-"])
@pytest.mark.parametrize("suffix", ["", "-pose", "-obb", "-cls", "-p2"])
def test_weights_pass_to_another_task_as_with_stock_models(
    prefix: str, suffix: str, checkpoints: dict[str, Path]
) -> None:
    source, _ = torch_safe_load(checkpoints[f"{prefix}yolov8n-seg"])
    given = source["model"].float().state_dict()
    model = YOLO(f"{prefix}yolov8n{suffix}.yaml", verbose=False).load(checkpoints[f"{prefix}yolov8n-seg"]).model
    got = model.state_dict()
    assert all(torch.equal(got[k], given[k]) for k in got if k in given and given[k].shape == got[k].shape)
    assert all(torch.equal(got[k], given[k]) for k in got if int(k.split(".")[1]) < 9)  # the backbone, whole


@pytest.mark.parametrize("prefix", ["", "VMamba-"])
def test_a_checkpoint_keeps_its_own_task(prefix: str, checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """Asked for another task, and given boxes where it needs polygons: upstream's answers, for our models too."""
    model = YOLO(checkpoints[f"{prefix}yolov8n-seg"], task="detect")
    assert model.task == "segment"
    with pytest.raises(ValueError, match="Please supply a segment dataset, not a detect dataset"):
        model.train(data=make_data(tmp_path / "data", "detect"), epochs=1, project=str(tmp_path), **TRAIN)


@pytest.mark.parametrize("stem", FILES)
def test_a_scale_that_a_file_lacks_is_named(stem: str) -> None:
    for scale in "qd" if "d" not in YAML.load(FILES[stem])["scales"] else "q":
        with pytest.raises(
            ValueError, match=rf"^{scaled(stem, scale)}.yaml: {stem}.yaml has no scale '{scale}', only "
        ):
            YOLO(f"{scaled(stem, scale)}.yaml")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("VMamba-yolov8n-sgm.yaml", "did you mean VMamba-yolov8n-seg.yaml?"),
        ("VMamba-YOLOn.yaml", "did you mean VMamba-yolon.yaml?"),  # as the summary prints it
        ("VMamba-yolo8n.yaml", "did you mean VMamba-yolov8n.yaml?"),
        ("vmamba_yolon.yaml", "did you mean VMamba-yolon.yaml?"),
        ("VMamba-anything-at-all.yaml", "docs/models lists those that there are"),
    ],
)
def test_a_name_that_does_not_exist_gets_the_nearest(name: str, hint: str) -> None:
    with pytest.raises(FileNotFoundError) as error:
        yaml_model_load(name)
    assert str(error.value) == f"there is no model file {name}; {hint}"
