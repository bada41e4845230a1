# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Grafts compute what their source computes, keep all that it holds, learn, and train as any model of Ultralytics."""

from __future__ import annotations

import copy
import errno
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import ultralytics
from tests.data import GRAFTS, scaled
from ultralytics import RTDETR, YOLO
from ultralytics.engine.model import Model
from ultralytics.engine.trainer import BaseTrainer
from ultralytics.nn import tasks
from ultralytics.nn.Addmodules import Graft, MambaLayer, graft
from ultralytics.nn.Addmodules.hooks.transfer import matched_rows, renumbered
from ultralytics.nn.Addmodules.layers.graft import BLOCKS, ZeroProjection, is_graft
from ultralytics.nn.Addmodules.layers.ss2d import SS2D, ConvSS2D
from ultralytics.nn.Addmodules.layers.vss import VSSBlock
from ultralytics.nn.Addmodules.tools import graft as command
from ultralytics.nn.Addmodules.tools.graft import tensors
from ultralytics.nn.Addmodules.tools.key_value import quoted
from ultralytics.nn.Addmodules.tools.models_and_images import calibrate, read_pictures
from ultralytics.nn.Addmodules.tools.verbs import main as vmamba
from ultralytics.nn.Addmodules.VMamba import Mamba
from ultralytics.nn.tasks import (
    ClassificationModel,
    DetectionModel,
    guess_model_task,
    load_checkpoint,
    torch_safe_load,
    yaml_model_load,
)
from ultralytics.utils import ASSETS, YAML
from ultralytics.utils.checks import check_yaml

ROOT = Path(ultralytics.__file__).parents[1]
CONFIGS = ROOT / "ultralytics/cfg/models"
SMALL = {"imgsz": 64, "batch": 8, "nbs": 8, "warmup_epochs": 0, "workers": 0, "plots": False, "device": "cpu"}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Compute on one thread: teams of threads wait for each other where other programs hold the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def photo() -> torch.Tensor:
    return read_pictures([str(ASSETS / "bus.jpg")], 1, 320)[0].tensor()


@pytest.fixture(scope="module")
def sources(photo: torch.Tensor) -> dict[str, YOLO]:
    """Return stock models with features of ordinary size: batch norms have the statistics of a photo."""
    made = {}
    for name in ("yolov8n", "yolo11n", "yolo26n"):
        torch.manual_seed(0)
        made[name] = YOLO(f"{name}.yaml")
        calibrate(made[name].model, [photo])
        for m in made[name].model.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.momentum = 0.03
    return made


@pytest.fixture(scope="module")
def source(sources: dict[str, YOLO]) -> YOLO:
    return sources["yolo11n"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty folder, in which the test runs."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the YAML of a small set with three classes: squares of three sizes on noise."""
    folder, g = tmp_path_factory.mktemp("squares"), np.random.default_rng(0)
    for split, count in (("train", 16), ("val", 4)):
        (folder / "images" / split).mkdir(parents=True)
        (folder / "labels" / split).mkdir(parents=True)
        for i in range(count):
            image, cls = g.integers(90, 160, (64, 64, 3)), i % 3
            side = 12 + 8 * cls
            y, x = g.integers(0, 64 - side, 2)
            image[y : y + side, x : x + side] = 250
            Image.fromarray(image.astype(np.uint8)).save(folder / f"images/{split}/{i}.png")
            box = [(x + side / 2) / 64, (y + side / 2) / 64, side / 64, side / 64]
            (folder / f"labels/{split}/{i}.txt").write_text(
                f"{cls} {' '.join(f'{v:.4f}' for v in box)}\n", encoding="utf-8"
            )
    YAML.save(
        folder / "data.yaml",
        {"path": str(folder), "train": "images/train", "val": "images/val", "names": {0: "s", 1: "m", 2: "l"}},
    )
    return folder / "data.yaml"


def grafts(module: nn.Module) -> list[int]:
    """Return the rows of a model that are grafts."""
    return [i for i, row in enumerate(module.model) if is_graft(row)]


def same(a: object, b: object) -> bool:
    """Return whether all tensors of two outputs are the same, bit by bit but for the sign of zero."""
    first, second = list(tensors(a)), list(tensors(b))
    return len(first) == len(second) > 0 and all(map(torch.equal, first, second))


def outputs(module: nn.Module, x: torch.Tensor) -> object:
    """Return what a model computes, as numbers that it cannot change any more."""
    with torch.no_grad():
        return copy.deepcopy(module(x))


def noisy(module: nn.Module, deviation: float = 0.05) -> nn.Module:
    """Return a model whose grafts have learned something."""
    for m in module.modules():
        if isinstance(m, ZeroProjection):
            nn.init.normal_(m.weight, std=deviation)
    return module


# The layer ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [*BLOCKS, "ultralytics.nn.modules.CBAM"])
def test_a_new_graft_is_the_identity_in_every_layout(block: str) -> None:
    layer = Graft(16, block)
    for shape in ((2, 16, 5, 7), (1, 16, 1, 9), (1, 16, 1, 1)):
        x = torch.randn(shape)
        x[0, 0] = -0.0
        for form in (x, x.contiguous(memory_format=torch.channels_last)):
            for training in (True, False):
                y = layer.train(training)(form)
                assert torch.equal(y, form)
                assert y.stride() == form.stride()  # other strides would have the next convolution round differently


def test_first_step_moves_the_projection_second_the_whole_graft() -> None:
    torch.manual_seed(0)
    layer = Graft(16)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    x = torch.randn(2, 16, 5, 7)
    for step in range(2):
        layer.zero_grad()
        (layer(x) * torch.randn(x.shape)).sum().backward()
        for name, p in layer.named_parameters():
            assert bool(p.grad.any()) == (step == 1 or name == "proj.weight"), (step, name)
        optimizer.step()


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW", "MuSGD"])
def test_a_step_with_a_silent_graft_is_finite(optimizer: str, source: YOLO) -> None:
    """The first gradient of all but the projection is zero, which MuSGD divides by its norm."""
    from ultralytics.engine.trainer import BaseTrainer

    module = copy.deepcopy(graft(source, ["P5"]).model).train()
    trainer = SimpleNamespace(args=SimpleNamespace(lr0=0.01, optimizer=optimizer, warmup_bias_lr=0.1), data={"nc": 80})
    made = BaseTrainer.build_optimizer(trainer, module, optimizer, 0.01, 0.9, 5e-4, 1)
    for _ in range(2):
        sum(t.square().mean() for t in tensors(module(torch.rand(2, 3, 64, 64)))).backward()
        made.step()
    assert all(p.isfinite().all() for p in module.parameters())


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"block": "ss2d"}, ValueError, "did you mean SS2D"),
        ({"block": "Convolution"}, ValueError, "there are .*'VSSBlock'.*classes as module.Class"),
        ({"block": "no_such_module.Block"}, ValueError, "PYTHONPATH=."),
        ({"block": "torch.nn.Conv"}, ValueError, "'torch.nn' has no class 'Conv'"),
        ({"block": "math.pi"}, TypeError, "no torch.nn.Module"),
        ({"block": "torch.nn.Conv2d"}, TypeError, "cannot be called with 16 channels"),
        ({"block": "torch.nn.AdaptiveAvgPool2d"}, ValueError, "must keep its map's shape"),
        ({"block": "torch.nn.Linear", "options": {"out_features": 16}}, ValueError, "cannot be run on a map"),
        ({"options": {"width": 1}}, ValueError, "SS2D has no option 'width'; it has d_state, d_conv"),
        ({"options": {"expand": 0}}, ValueError, "expand must be positive"),
        ({"options": [1]}, TypeError, "by name"),
        ({"lr_factor": 0}, ValueError, "lr_factor must be positive, got 0"),
        ({"lr_factor": "5"}, TypeError, "lr_factor must be a number"),
        ({"block": 3}, TypeError, "must be a name"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Graft(16, **arguments)


def test_a_row_of_a_yaml_is_checked_and_takes_options() -> None:
    d = {**yaml_model_load("yolov8n.yaml")}
    d["backbone"] = [*d["backbone"], [-1, 1, "Graft", [None, "SS2D", {"expand": 1}]]]
    d["head"] = [[[g + 1 if g >= 10 else g for g in f] if isinstance(f, list) else f, *r] for f, *r in d["head"]]
    d["head"][10][0] = [-1, 10]  # the neck's Concat with P5 takes the graft
    layer = DetectionModel(copy.deepcopy(d), verbose=False).model[10]
    assert isinstance(layer, Graft)
    assert layer.block.d_inner == 256
    d["backbone"][-1] = [-1, 1, "Graft", [None, "SS2D", {"width": 1}]]
    with pytest.raises(ValueError, match=r"model YAML layer 10 \(Graft\): Graft: SS2D has no option 'width'"):
        DetectionModel(d, verbose=False)


@pytest.mark.skipif(not tasks._SafeLoad.SUPPORTED, reason="upstream's restricted loading needs PyTorch 2.6")
def test_restricted_loading_imports_no_block(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    (folder / "foreign_block.py").write_text("raise SystemExit('imported')\n", encoding="utf-8")
    monkeypatch.syspath_prepend(folder)
    d = graft("yolov8n.yaml").model.yaml
    d["backbone"][7][3][1] = "foreign_block.Block"
    monkeypatch.setattr(tasks._SafeLoad._local, "active", True, raising=False)
    with pytest.raises(TypeError, match="foreign_block.Block.*unset ULTRALYTICS_SAFE_LOAD"):
        DetectionModel(d, verbose=False)


# A start outlives reset_parameters ------------------------------------------------------------------------------------


def starts(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return what a start that is not random has, and the range of what is random, by name."""
    found = {}
    for name, p in module.named_parameters():
        last = name.rsplit(".", 1)[-1]
        if last in ("A_log", "A_b_log", "A_logs", "D", "D_b", "Ds", "gamma_1", "gamma_2") or name.endswith(
            "proj.weight"
        ):
            found[name] = p.detach().clone()
        if "dt_proj" in name and last.endswith("bias"):
            steps = nn.functional.softplus(p.detach())
            found[name] = torch.tensor([bool((steps > 9e-4).all() and (steps < 0.11).all())])
    return found


@pytest.mark.parametrize(
    "make",
    [
        lambda: Graft(16),
        lambda: Graft(16, "MambaLayer"),
        lambda: Mamba(16),
        lambda: Mamba(16, bimamba_type="v1"),
        lambda: MambaLayer(16),
        lambda: SS2D(16),
        lambda: ConvSS2D(16),
        lambda: VSSBlock(16, mlp_ratio=2, layer_scale=0.1),
    ],
    ids=["Graft", "Graft-MambaLayer", "Mamba", "Mamba-v1", "MambaLayer", "SS2D", "ConvSS2D", "VSSBlock"],
)
def test_a_reset_gives_a_start_and_not_that_of_any_layer(make: object) -> None:
    module = make()
    kept = {k: v for k, v in starts(module).items() if not k.endswith(("in_proj.weight", "out_proj.weight"))}
    kept = {k: v for k, v in kept.items() if "x_proj" not in k and not k.endswith("dt_proj.weight")}
    kept = {k: v for k, v in kept.items() if not k.endswith("dt_proj_b.weight")}
    assert kept
    with torch.no_grad():
        for p in module.parameters():
            p.add_(torch.randn_like(p))
    for order in (list(module.modules()), list(module.modules())[::-1]):  # upstream's, and that of Module.apply
        for m in order:
            if hasattr(m, "reset_parameters"):
                m.reset_parameters()
        now = starts(module)
        for name, value in kept.items():
            assert torch.equal(now[name], value), name


def test_a_reset_model_computes_what_a_reset_source_would(source: YOLO) -> None:
    model = graft(source)
    noisy(model.model)
    model.reset_weights()
    for m in model.model.modules():
        if isinstance(m, ZeroProjection):
            assert not m.weight.any()


def test_classify_without_pretrained_weights_keeps_the_zero_start(folder: Path) -> None:
    from ultralytics.models.yolo.classify import ClassificationTrainer

    trainer = SimpleNamespace(
        data={"nc": 3, "channels": 3}, args=SimpleNamespace(pretrained=False, dropout=0.0), resume=False
    )
    model = ClassificationTrainer.get_model(trainer, cfg=graft("yolo11n-cls.yaml").model.yaml, verbose=False)
    assert len(grafts(model)) == 2
    model.eval()
    for i in grafts(model):
        x = torch.randn(1, model.model[i].norm.num_channels, 7, 7)
        assert torch.equal(model.model[i](x), x)


# Exact ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["yolov8n", "yolo11n", "yolo26n"])
@pytest.mark.parametrize("shape", [(320, 320), (640, 640), (352, 608)])
def test_a_graft_computes_exactly_what_its_source_does(
    name: str, shape: tuple[int, int], sources: dict[str, YOLO], photo: torch.Tensor
) -> None:
    source, x = sources[name].model, nn.functional.interpolate(photo, shape, mode="bilinear")
    module = graft(sources[name], ("P4", "P5", "N3", 2)).model
    assert same(outputs(module, x), outputs(source, x))
    form = {"memory_format": torch.channels_last}
    ordered = [copy.deepcopy(m).to(**form) for m in (module, source)]
    assert same(*(outputs(m, x.contiguous(**form)) for m in ordered))
    assert same(*(outputs(m, x.contiguous(**form)) for m in (module, source)))  # as upstream's predict on a CPU
    assert same(*(outputs(copy.deepcopy(m).fuse(verbose=False), x) for m in (module, source)))


@pytest.mark.parametrize("name", ["yolov8n", "yolo11n", "yolo26n"])
def test_exact_in_half_precision_and_under_autocast(name: str, sources: dict[str, YOLO], photo: torch.Tensor) -> None:
    x = nn.functional.interpolate(photo, (160, 192))
    source, module = sources[name].model, graft(sources[name]).model
    assert same(*(outputs(copy.deepcopy(m).half(), x.half()) for m in (module, source)))
    with torch.autocast("cpu", torch.bfloat16):
        assert same(outputs(module, x), outputs(source, x))


@pytest.mark.parametrize("name", ["yolov8n", "yolo11n", "yolo26n"])
def test_exact_in_training(name: str, sources: dict[str, YOLO], photo: torch.Tensor) -> None:
    """Outputs, gradients, batch-norm statistics and the state of the random numbers."""
    x = torch.cat((photo, photo.flip(3)))
    runs = []
    for module in (copy.deepcopy(sources[name].model), graft(sources[name]).model):
        for p in module.parameters():
            p.requires_grad_()
        torch.manual_seed(1)
        y = list(tensors(module.train()(x)))
        sum(t.square().mean() for t in y).backward()
        stock = [row for row in module.model if not is_graft(row)]
        runs.append(
            [
                *y,
                *(p.grad for row in stock for p in row.parameters() if p.grad is not None),
                *(b for row in stock for b in row.buffers()),
                torch.get_rng_state(),
            ]
        )
    assert len(runs[0]) > 100
    assert same(*runs)


def test_a_graft_that_has_learned_reaches_every_reader_and_the_head(source: YOLO, photo: torch.Tensor) -> None:
    after = [4, 6, 10, 13, 16, 19]  # all rows that others but the next one read, too
    module = graft(source, after).model
    rows = grafts(module)
    for row in rows:
        one = copy.deepcopy(module)
        nn.init.normal_(one.model[row].proj.weight, std=0.05)
        readers = [m.i for m in one.model if row in [f % m.i for f in np.atleast_1d(m.f).tolist() if m.i]]
        assert len(readers) == 2 or row == rows[-1] or row == rows[-2], row
        seen = [[], []]
        for found, m in zip(seen, (module, one)):
            hooks = [m.model[r].register_forward_pre_hook(lambda _, x, f=found: f.append(x[0])) for r in readers]
            found.append(outputs(m, photo))
            for hook in hooks:
                hook.remove()
        for reader, (a, b) in enumerate(zip(*seen)):
            assert not same(a, b), (row, [*readers, "output"][reader])


# What the model holds -------------------------------------------------------------------------------------------------


def rebuilt(module: nn.Module) -> nn.Module:
    """Return what the stored YAML builds."""
    return type(module)(copy.deepcopy(module.yaml), ch=module.yaml.get("channels", 3), verbose=False)


def assert_rebuilds(module: nn.Module) -> None:
    """Hold a model against what its YAML builds."""
    again = rebuilt(module)
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in module.state_dict().items()}
    assert again.save == module.save
    for a, b in zip(again.model, module.model):
        assert (a.i, a.f, a.np, a.type) == (b.i, b.f, b.np, b.type)


FAST = (
    "yolov8n",
    "yolov5-p6",
    "yolov6n",
    "yolov8n-ghost",
    "yolov10n",
    "yolo26n-seg",
    "yolo26n-sem",
    "yolo26n-depth",
    "yolo11n-pose",
    "yolo11n-obb",
    "yolo11n-cls",
    "yolov8n-rtdetr",
    "yolov8s-world",
    "yolov8s-worldv2",
    "yoloe-11s",
    "yoloe-26s-seg",
    "VMamba-yolon",
    "VMamba-yolov8n",
)
ALL = [str(path) for path in sorted(CONFIGS.rglob("*.yaml"))]


def no_torchvision_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Build torchvision's models without the weights that upstream downloads."""
    import torchvision

    get_model = torchvision.models.get_model
    monkeypatch.setattr(torchvision.models, "get_model", lambda name, weights=None: get_model(name))


def test_the_norm_in_an_onnx_file_is_as_exact_as_pytorch(folder: Path) -> None:
    pytest.importorskip("onnxruntime", reason="pip install -e '.[deploy]'")
    import onnxruntime

    torch.manual_seed(0)
    layer = Graft(64).eval()
    nn.init.normal_(layer.proj.weight)
    x = 3 + torch.randn(1, 64, 80, 80)  # a mean that is not zero, of many values
    with torch.no_grad():
        plain, want = layer(x), copy.deepcopy(layer).double()(x.double())
    torch.onnx.export(layer, (x,), "graft.onnx", input_names=["x"], opset_version=20, dynamo=False)
    session = onnxruntime.InferenceSession("graft.onnx", providers=["CPUExecutionProvider"])
    found = torch.from_numpy(session.run(None, {"x": x.numpy()})[0])
    assert (found - want).abs().max() <= 3 * (plain - want).abs().max()


@pytest.mark.parametrize(
    "file", [*(f"{name}.yaml" for name in FAST), *(pytest.param(f, marks=pytest.mark.slow) for f in ALL)]
)
def test_model_files_of_every_task_and_kind(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    no_torchvision_weights(monkeypatch)
    after = ["P5", "P4"] if "resnet18" not in file else ["P5"]  # torchvision's model is one row
    model = graft(file, after)
    module = model.model.eval()
    size = 64 if model.task == "classify" else 256 if file.endswith("sem.yaml") else 128
    source = copy.deepcopy(module)
    stock = [m for m in source.model if not is_graft(m)]
    assert len(stock) + len(after) == len(module.model)
    for i in grafts(source):
        source.model[i].forward = lambda x: x
    x = torch.rand(1, module.yaml.get("channels", 3), size, size)
    assert same(outputs(source, x), outputs(module, x))
    assert guess_model_task(module.yaml) == (model.task if not isinstance(model, RTDETR) else None)
    assert_rebuilds(module)
    cleared = [row for row in (*module.yaml["backbone"], *module.yaml["head"]) if row[2] != "Graft"]
    reference = yaml_model_load(file)
    assert [row[1:] for row in cleared] == [row[1:] for row in (*reference["backbone"], *reference["head"])]
    for key in reference.keys() - {"backbone", "head", "scales", "yaml_file", "scale"}:
        assert module.yaml[key] == reference[key], key


def test_what_is_no_tensor_stays(sources: dict[str, YOLO]) -> None:
    world = YOLO("yolov8s-world.yaml")
    world.model.txt_feats = torch.randn(1, 5, 512)
    world.model.model[-1].nc = 5
    world.model.names = dict(enumerate("abcde"))
    x = torch.rand(1, 3, 64, 64)
    expected = outputs(world.model.eval(), x)
    new = graft(world)
    assert type(new) is type(world)
    assert new.model.names == world.model.names
    assert same(outputs(new.model.eval(), x), expected)
    source = sources["yolo26n"]
    source.model.model[-1].max_det = 7
    model = graft(source)
    assert model.model.model[-1].max_det == 7
    assert model.model.stride.tolist() == source.model.stride.tolist()
    assert not model.model.training
    assert model.task == "detect"


def test_the_source_is_left_alone(source: YOLO) -> None:
    before, d = {k: v.clone() for k, v in source.model.state_dict().items()}, copy.deepcopy(source.model.yaml)
    saved, callbacks = list(source.model.save), {k: list(v) for k, v in source.callbacks.items()}
    model = graft(source)
    model.add_callback("on_train_start", print)
    model.overrides["imgsz"] = 32
    noisy(model.model)
    assert source.model.yaml == d
    assert source.model.save == saved
    assert source.callbacks == callbacks
    assert "imgsz" not in source.overrides
    assert not grafts(source.model)
    for k, v in source.model.state_dict().items():
        assert torch.equal(v, before[k])


def test_one_scale_is_left_that_no_file_name_can_change(folder: Path) -> None:
    YOLO("yolo11s.yaml").save("best.pt")
    assert vmamba(["graft", "model=best.pt"]) == 0
    d = YAML.load("best-vmamba.yaml")
    assert [*d["scales"]] == ["s"]
    wanted = sum(p.numel() for p in YOLO("best-vmamba.pt").model.parameters())
    Path("best-vmamba.yaml").rename("yolo11n-mine.yaml")  # a name that tells another scale
    assert sum(p.numel() for p in YOLO("yolo11n-mine.yaml").model.parameters()) == wanted
    Path("yolo11n-mine.yaml").rename("mine.yaml")
    assert sum(p.numel() for p in YOLO("mine.yaml").model.parameters()) == wanted


def test_flops_count_the_graft(sources: dict[str, YOLO]) -> None:
    from ultralytics.utils.torch_utils import get_flops

    model, channels = graft(sources["yolov8n"], ["P5"]).model, 256
    more = get_flops(model, 640) - get_flops(sources["yolov8n"].model, 640)
    pixels, layer = 20 * 20, model.model[10]
    own = layer.block.own_flops(1, pixels) + 2 * pixels * (9 * 128 + 2 * 128 * channels + channels**2)
    assert more * 1e9 == pytest.approx(own, rel=0.03)  # and the norms


@pytest.mark.parametrize("stem", sorted(GRAFTS))
def test_the_ready_files_are_the_default_grafts_at_every_scale(stem: str) -> None:
    family = stem.removeprefix("VMamba-").removesuffix("-graft")
    ready, stock = YAML.load(GRAFTS[stem]), YAML.load(next(CONFIGS.rglob(f"{family}.yaml")))
    made = graft(f"{family}n.yaml").model.yaml
    assert ready["scales"] == stock["scales"]
    assert {k: v for k, v in ready.items() if k in stock and k not in ("backbone", "head")} == {
        k: v for k, v in stock.items() if k not in ("backbone", "head")
    }
    for part in ("backbone", "head"):
        assert ready[part] == made[part]
    said = dict(re.findall(r"^  (\w): \[.*# summary: (.*)$", GRAFTS[stem].read_text(encoding="utf-8"), re.MULTILINE))
    assert [*said] == [*ready["scales"]]
    for scale in ("n", "s"):
        model = YOLO(scaled(stem, scale) + ".yaml").model
        layers, parameters, gradients, gflops = model.info(imgsz=640)
        assert said[scale] == (f"{layers} layers, {parameters} parameters, {gradients} gradients, {gflops:.1f} GFLOPs")
    source = YOLO(f"{family}n.yaml").model
    loaded = YOLO(scaled(stem, "n") + ".yaml").load(source).model  # what pretrained= does
    x = torch.rand(1, 3, 64, 64)
    assert same(outputs(loaded.eval(), x), outputs(source.eval(), x))


@pytest.mark.parametrize("name", ["yolov8n", "yolo11n", "yolo26n"])
def test_the_default_adds_few_parameters(name: str, sources: dict[str, YOLO]) -> None:
    counts = [sum(p.numel() for p in m.model.parameters()) for m in (graft(sources[name]), sources[name])]
    assert 1.05 < counts[0] / counts[1] < 1.08


# Where, and what not --------------------------------------------------------------------------------------------------


def test_places_are_levels_of_backbone_and_neck_or_rows(source: YOLO) -> None:
    for after, rows in (
        (["P3"], [5]),
        ("P5", [11]),
        (["N3", "N4", "N5"], [17, 21, 25]),
        (["n4"], [20]),
        ([2, "6", "P4"], [3, 8]),
        (["P1", "P2"], [1, 4]),
    ):
        assert grafts(graft(source, after).model) == rows, after


@pytest.mark.parametrize(
    ("after", "message"),
    [
        (["P6"], "has no place 'P6': its levels are P1, P2, P3, P4, P5, N3, N4, N5, its rows 0 to 22"),
        (["N6"], "has no place 'N6'"),
        (["24"], "has no place '24'"),
        ([-1], "has no place '-1'"),
        (["backbone"], "has no place 'backbone'"),
        ([23], r"row 23 \(Detect\) is the head"),
        ([], "no place is given"),
    ],
)
def test_places_that_are_none(after: list, message: str, source: YOLO) -> None:
    with pytest.raises(ValueError, match=message):
        graft(source, after)


@pytest.mark.parametrize(("file", "kind"), [("yolov9e.yaml", "CBLinear"), ("yolov8s-world.yaml", "ImagePoolingAttn")])
def test_rows_without_a_map_are_refused(file: str, kind: str) -> None:
    model = YOLO(file)
    row = next(i for i, m in enumerate(model.model.model) if type(m).__name__ == kind)
    with pytest.raises(ValueError, match=rf"row {row} \({kind}\) gives no map"):
        graft(model, [row])


def test_a_torchvision_row_that_gives_a_list_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_torchvision_weights(monkeypatch)
    d = YAML.load(CONFIGS / "11/yolo11-cls-resnet18.yaml")
    d["backbone"] = [[-1, 1, "TorchVision", [512, "resnet18", "DEFAULT", True, 2, True]], [0, 1, "Index", [512, -1]]]
    YAML.save(folder / "split-cls.yaml", d)
    with pytest.raises(ValueError, match=r"row 0 \(TorchVision\) gives no map of features; levels are P5"):
        graft("split-cls.yaml", [0])
    assert grafts(graft("split-cls.yaml", ["P5"]).model) == [2]


def test_classify_has_levels_of_the_backbone_alone() -> None:
    with pytest.raises(ValueError, match="levels are P1, P2, P3, P4, P5, its rows 0 to 9"):
        graft("yolo11n-cls.yaml", ["N3"])


def test_models_that_are_not_as_their_yaml_are_refused(sources: dict[str, YOLO], folder: Path) -> None:
    fused = YOLO("yolov8n.yaml")
    fused.model.fuse(verbose=False)
    with pytest.raises(ValueError, match="fused for inference"):
        graft(fused)

    pruned = YOLO("yolov8n.yaml")
    conv = pruned.model.model[2].cv1
    conv.conv, conv.bn = nn.Conv2d(32, 24, 1, bias=False), nn.BatchNorm2d(24)
    with pytest.raises(ValueError, match=r"not what its YAML builds \(model.2.cv1.conv.weight: .*24.*pruning"):
        graft(pruned)

    class TensorQuantizer(nn.Identity):
        pass

    quantized = YOLO("yolov8n.yaml")
    quantized.model.model[0].conv.quantizer = TensorQuantizer()
    with pytest.raises(ValueError, match="quantisation"):
        graft(quantized)
    torch.save({"model": sources["yolov8n"].model, "modelopt": {"some": "state"}}, "qat.pt")
    with pytest.raises(ValueError, match="quantisation"):
        graft("qat.pt")

    class DistillationModel(nn.Module):
        pass

    student = copy.copy(sources["yolov8n"])
    student.__dict__ = {**student.__dict__, "_modules": {"model": DistillationModel()}}
    with pytest.raises(ValueError, match="distillation"):
        graft(student)

    exported = folder / "yolov8n.onnx"
    exported.write_bytes(b"")
    with pytest.raises(ValueError, match="no model file"):
        graft(exported)


def test_a_graft_is_grafted_again_only_if_it_is_meant(source: YOLO, photo: torch.Tensor) -> None:
    once = graft(source, ["P5"])
    with pytest.raises(ValueError, match="graft already; again=True"):
        graft(once)
    twice = graft(once, ["P5", "P4"], block="MambaLayer", again=True).model
    assert grafts(twice) == [7, 12, 13]
    assert [type(twice.model[i].block).__name__ for i in (7, 12, 13)] == ["MambaLayer", "SS2D", "MambaLayer"]
    assert same(outputs(twice, photo), outputs(source.model, photo))
    assert_rebuilds(twice)


def test_a_fine_tuned_model_keeps_its_head(source: YOLO, photo: torch.Tensor) -> None:
    """Upstream gives a model of another class count the source's class branch, which is wider than its YAML says."""
    tuned = DetectionModel("yolov8n.yaml", nc=3, verbose=False)
    tuned.load(YOLO("yolov8n.yaml").model, verbose=False)
    wrapper = YOLO("yolov8n.yaml")
    wrapper.model = tuned.eval()
    wrapper.model.args, wrapper.model.task = {}, "detect"
    module = graft(wrapper).model
    assert module.model[-1].cv3[0][-1].in_channels == 80 != rebuilt(module).model[-1].cv3[0][-1].in_channels
    assert same(outputs(module, photo), outputs(tuned, photo))


# Blocks of a user's own -----------------------------------------------------------------------------------------------

OWN = """
import torch
from torch import nn


class Attention(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.fc = nn.Conv2d(channels, channels, 1)

    def forward(self, x):
        return x * torch.sigmoid(self.fc(x.mean((2, 3), keepdim=True)))
"""


def test_a_block_from_a_file_of_the_user(folder: Path, capsys: pytest.CaptureFixture) -> None:
    (folder / "own_blocks.py").write_text(OWN, encoding="utf-8")
    YOLO("yolov8n.yaml").save("mine.pt")
    command = [sys.executable, "-m", "ultralytics.nn.Addmodules", "graft", "model=mine.pt"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*command, "block=own_blocks.Attention"], env=env, capture_output=True, text=True, check=True)
    assert "PYTHONPATH=. yolo detect train" in done.stdout
    env["PYTHONPATH"] += os.pathsep + "."
    code = "from ultralytics import YOLO; print(YOLO('mine-vmamba.pt').model.model[7].block)"
    load = [sys.executable, "-c", code]
    assert "Attention" in subprocess.run(load, env=env, capture_output=True, text=True, check=True).stdout
    if not tasks._SafeLoad.SUPPORTED:
        pytest.skip("all but the last step passed: upstream's restricted loading needs PyTorch 2.6")
    env["ULTRALYTICS_SAFE_LOAD"] = "true"
    failed = subprocess.run(load, env=env, capture_output=True, text=True)
    assert failed.returncode
    assert "outside the supported Ultralytics checkpoint format" in failed.stderr


# The command ----------------------------------------------------------------------------------------------------------


def test_the_command_writes_both_files_and_says_what_it_did(folder: Path, capsys: pytest.CaptureFixture) -> None:
    torch.manual_seed(0)
    YOLO("yolo11n.yaml").save("best.pt")
    assert vmamba(["graft", "model=best.pt", "after=P4,N3", "options=expand:0.25,gate:true"]) == 0
    said = capsys.readouterr().out
    assert "Wrote best-vmamba.pt and best-vmamba.yaml" in said
    assert "row 7: Graft of 128 channels, after row 6 (C3k2)" in said
    assert "row 18: Graft of 64 channels, after row 17 (C3k2)" in said
    assert "parameters 2,624,080 -> " in said
    assert 'instead of freeze=10: "freeze=[0,1,2,3,4,5,6,8,9,10]"' in said
    assert "model=best-vmamba.pt\n" in said
    assert sorted(p.name for p in folder.iterdir()) == ["best-vmamba.pt", "best-vmamba.yaml", "best.pt"]

    made, old = YOLO("best-vmamba.pt"), YOLO("best.pt")
    assert made.model.model[7].block.gate
    x = torch.rand(1, 3, 64, 64)
    assert same(outputs(made.model, x), outputs(old.model, x))
    assert_rebuilds(made.model)
    from_yaml = YOLO("best-vmamba.yaml").model
    assert from_yaml.state_dict().keys() == made.model.state_dict().keys()
    stored = {k: v for k, v in made.model.yaml.items() if k not in ("yaml_file", "scale")}
    assert {k: v for k, v in from_yaml.yaml.items() if k not in ("yaml_file", "scale")} == stored
    listed = said.split('to train the grafts alone: "freeze=[')[1].split("]")[0].split(",")
    assert [int(i) for i in listed] == [i for i in range(26) if i not in (7, 18)]
    first = Path("best-vmamba.yaml").read_bytes(), made.model.state_dict()
    assert vmamba(["graft", "model=best.pt", "after=P4,N3", "options=expand:0.25,gate:true", "exist_ok=True"]) == 0
    assert Path("best-vmamba.yaml").read_bytes() == first[0]
    for k, v in YOLO("best-vmamba.pt").model.state_dict().items():
        assert torch.equal(v, first[1][k])  # the same source gives the same file


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_the_file_keeps_the_dtype_of_its_source(dtype: torch.dtype, folder: Path) -> None:
    module = YOLO("yolov8n.yaml").model.to(dtype)
    torch.save({"model": module, "train_args": {"imgsz": 96, "task": "detect"}}, "mine.pt")
    assert vmamba(["graft", "model=mine.pt", "out=new/../other"]) == 1  # no such folder
    assert vmamba(["graft", "model=mine.pt", "out=other"]) == 0
    ckpt, _ = torch_safe_load("other.pt", safe_only=True)
    before, after = module.state_dict(), ckpt["model"].state_dict()
    names = matched_rows(module, ckpt["model"])
    for k, v in renumbered(module, names).state_dict().items():
        assert torch.equal(after[k], v)
        assert after[k].dtype == v.dtype
    assert len(before) < len(after)
    assert ckpt["model"].model[7].proj.weight.dtype == dtype
    assert ckpt["model"].model[7].block.A_logs.dtype == torch.float32
    assert ckpt["train_args"]["imgsz"] == 96


def test_a_model_file_gives_a_model_file(folder: Path, capsys: pytest.CaptureFixture) -> None:
    assert vmamba(["graft", "model=yolo26n.yaml"]) == 0
    assert [p.name for p in folder.iterdir()] == ["yolo26n-vmamba.yaml"]
    assert "model=yolo26n-vmamba.yaml pretrained=WEIGHTS.pt" in capsys.readouterr().out
    model = YOLO("yolo26n-vmamba.yaml").model
    assert grafts(model) == [7, 12]
    assert model.yaml["scale"] == "n"


def test_kinds_that_upstream_tells_by_a_name(folder: Path, capsys: pytest.CaptureFixture) -> None:
    YOLO("yolov8s-world.yaml").save("best.pt")
    assert vmamba(["graft", "model=best.pt"]) == 0
    said = capsys.readouterr().out
    assert "only if its name has '-world' in it" in said
    assert "pretrained=" not in said
    assert type(YOLO("best-vmamba.pt")).__name__ == "YOLOWorld"
    RTDETR("yolov8n-rtdetr.yaml").save("rtdetr.pt")
    assert vmamba(["graft", "model=rtdetr.pt"]) == 0
    assert "pretrained=rtdetr.pt" in capsys.readouterr().out
    assert type(YOLO("rtdetr-vmamba.pt")) is RTDETR


def test_names_are_quoted_where_a_shell_needs_it(folder: Path, capsys: pytest.CaptureFixture) -> None:
    assert vmamba(["graft", "model=yolov8n.yaml", "out=嫁接.yaml"]) == 0
    assert "model=嫁接.yaml " in capsys.readouterr().out
    assert vmamba(["graft", "model=yolov8n.yaml", "out=我的 嫁接.yaml"]) == 0
    assert f"model={quoted('我的 嫁接.yaml')} " in capsys.readouterr().out


def test_bad_input_is_one_line_and_writes_nothing(
    folder: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    YOLO("yolov8n.yaml").save("good.pt")
    Path("half.pt").write_bytes(Path("good.pt").read_bytes()[:100_000])
    torch.save({"state_dict": {"w": torch.zeros(2)}}, "weights.pt")
    torch.save(nn.Linear(2, 2), "module.pt")
    Path("list.yaml").write_text("- 1\n", encoding="utf-8")
    package = folder / "another_library_of_models"
    package.mkdir()
    (package / "__init__.py").write_text(
        "from torch import nn\n\n\nclass Net(nn.Module):\n    pass\n", encoding="utf-8"
    )
    code = "import torch, another_library_of_models as a; torch.save({'model': a.Net()}, 'foreign.pt')"
    subprocess.run([sys.executable, "-c", code], check=True)
    (package / "__init__.py").unlink()
    package.rmdir() if not any(package.iterdir()) else package.rename(folder / "gone")
    installs = []
    monkeypatch.setattr(subprocess, "check_output", lambda *a, **k: installs.append(a))
    files = sorted(folder.iterdir())
    for words, message in (
        (["model=none.pt"], "no such model file: 'none.pt'"),
        (["model=good.onnx"], "no model file"),
        (["model=half.pt"], "cannot read the model 'half.pt'.*truncated"),
        (["model=weights.pt"], "cannot read the model 'weights.pt': it is no checkpoint of Ultralytics"),
        (["model=module.pt"], "cannot read the model 'module.pt': it is no checkpoint of Ultralytics"),
        (["model=list.yaml"], "cannot read the model 'list.yaml'"),
        (["model=foreign.pt"], "cannot read the model 'foreign.pt'.*another_library_of_models"),
        (["model=none.yaml"], "cannot read the model 'none.yaml'"),
        (["model=good.pt", "after=P9"], "'good.pt' has no place 'P9'"),
        (["model=good.pt", "block=Mamba2"], "no block 'Mamba2'"),
        (["model=good.pt", "block=no_file.Block"], "cannot import 'no_file'"),
        (["model=good.pt", "options=width:2"], "no option 'width'"),
        (["model=good.pt", "lr_factor=-1"], "lr_factor must be positive, got -1"),
        (["model=good.pt", "out=missing/x.pt"], "no such folder"),
    ):
        assert vmamba(["graft", *words]) == 1, words
        lines = capsys.readouterr().err.strip().splitlines()
        said = [line for line in lines if line.startswith("vmamba graft: ")]
        assert len(said) == 1, lines
        assert said[0] == lines[-1]
        assert re.search(message, said[0]), said
        assert sorted(folder.iterdir()) == files, words
    assert not installs
    assert vmamba(["graft", "model=good.pt", "plcae=P4"]) == 2


def test_files_that_exist_stay_without_exist_ok(folder: Path, capsys: pytest.CaptureFixture) -> None:
    YOLO("yolov8n.yaml").save("best.pt")
    Path("best-vmamba.yaml").write_text("mine", encoding="utf-8")
    assert vmamba(["graft", "model=best.pt"]) == 1
    assert "'best-vmamba.yaml' exists; exist_ok=True replaces it" in capsys.readouterr().err
    assert Path("best-vmamba.yaml").read_text(encoding="utf-8") == "mine"
    assert not Path("best-vmamba.pt").exists()
    assert vmamba(["graft", "model=best.pt", "exist_ok=True"]) == 0
    assert Path("best-vmamba.pt").exists()


def test_a_full_disk_or_a_locked_folder_leaves_nothing(
    folder: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    YOLO("yolov8n.yaml").save("best.pt")

    def full(file: Path, content: object) -> None:
        with file.open("wb") as out:
            out.write(b"some of it")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as m:
        m.setattr(Path, "write_bytes", full)
        assert vmamba(["graft", "model=best.pt"]) == 1
    assert "cannot write to" in (said := capsys.readouterr().err)
    assert "No space left" in said
    monkeypatch.setattr(command.os, "access", lambda *_: False)
    assert vmamba(["graft", "model=best.pt"]) == 1
    assert "cannot be written to" in capsys.readouterr().err
    assert [p.name for p in folder.iterdir()] == ["best.pt"]


def test_importing_ultralytics_imports_no_tool_of_this() -> None:
    rooms = "('Addmodules.tools', 'Addmodules.grafting')"
    code = f"import ultralytics.nn.tasks, sys; print([m for m in sys.modules if any(r in m for r in {rooms})])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


# Weights from one model in another ------------------------------------------------------------------------------------


def arrived(target: nn.Module, source: nn.Module) -> set[str]:
    """Return the source's tensors that a loaded target has, by the source's names."""
    names = matched_rows(source, target) or [str(i) for i in range(len(source.model))]
    mine = target.state_dict()
    found = set()
    for key, value in source.state_dict().items():
        _, row, rest = key.split(".", 2)
        here = mine.get(f"model.{names[int(row)]}.{rest}")
        if here is not None and here.shape == value.shape and torch.equal(here.to(value.dtype), value):
            found.add(key)
    return found


def trained(name: str) -> Model:
    """Return a model of which every tensor has values of its own."""
    torch.manual_seed(0)
    model = YOLO(f"{name}.yaml")
    with torch.no_grad():
        for tensor in model.model.state_dict().values():
            tensor.copy_((torch.rand(tensor.shape) + 0.1) / 50 if tensor.is_floating_point() else torch.tensor(7))
    return model


@pytest.mark.parametrize(("name", "moved", "total"), [("yolov8n", 349, 355), ("yolo11n", 493, 499)])
def test_both_doors_take_what_stock_takes(name: str, moved: int, total: int, folder: Path) -> None:
    """By name: with as many classes all, with others those that go from stock to stock, and all of the graft."""
    source = trained(name)
    source.save("mine.pt")
    assert vmamba(["graft", "model=mine.pt"]) == 0
    stock, _ = load_checkpoint("mine.pt")
    made, _ = load_checkpoint("mine-vmamba.pt")
    noisy(made)
    for classes, count in ((80, total), (3, moved)):
        reference = DetectionModel(f"{name}.yaml", nc=classes, verbose=False)
        reference.load(copy.deepcopy(stock), verbose=False)
        wanted = arrived(reference, stock)
        assert len(wanted) == count
        by_weights = DetectionModel(copy.deepcopy(made.yaml), nc=classes, verbose=False)
        by_weights.load(copy.deepcopy(made), verbose=False)
        new = {k for k in made.state_dict() if int(k.split(".")[1]) in grafts(made)}
        found = arrived(by_weights, made)
        assert new <= found
        assert len(found - new) == count
        by_file = DetectionModel("mine-vmamba.yaml", nc=classes, verbose=False)
        by_file.load(copy.deepcopy(stock), verbose=False)
        assert arrived(by_file, stock) == wanted
        ungrafted = DetectionModel(f"{name}.yaml", nc=classes, verbose=False)
        ungrafted.load(copy.deepcopy(made), verbose=False)  # and the way back
        assert arrived(ungrafted, stock) == wanted


def test_the_log_says_what_came_what_did_not_and_what_is_new(source: YOLO, log: list[str]) -> None:
    target = DetectionModel(graft(source).model.yaml, nc=3, verbose=False)
    log.clear()
    target.load(copy.deepcopy(source.model))
    assert log == [
        "Transferred 493/527 items from pretrained weights",
        "VMamba: 493 of 499 tensors of the weights arrived",
        "VMamba:   left out: 6 tensors of its row 23 (80 classes there, 3 here)",
        "VMamba:   new, without effect at the start: 28 tensors of rows 7, 12 (Graft)",
        "VMamba:   new, untrained: 6 tensors of row 25 (Detect)",
    ]
    log.clear()
    target.load(graft(source).model)
    assert "VMamba: 521 of 527 tensors of the weights arrived" in log
    assert "VMamba:   without effect at the start: 28 tensors of rows 7, 12 (Graft)" in log
    log.clear()
    DetectionModel("yolo11n.yaml", verbose=False).load(noisy(graft(source).model))
    assert "VMamba:   left out: 28 tensors of its rows 7, 12 (there is no such row here)" in log


def test_stock_weights_in_our_own_model_are_told_apart(log: list[str]) -> None:
    """Half of VMamba-yolov8n is not in yolov8n, and the class branch of its head is exchanged."""
    weights = YOLO("yolov8n.yaml").model
    log.clear()
    YOLO("VMamba-yolov8n.yaml").model.load(weights)
    assert "VMamba: 229 of 355 tensors of the weights arrived" in log
    assert "VMamba:   left out: 120 tensors of its rows 2, 4, 6, 8 (C2f there, MambaLayer here)" in log
    assert "VMamba:   new, untrained: 108 tensors of rows 2, 4, 6, 8 (MambaLayer)" in log


def test_stock_models_load_as_ever(source: YOLO, log: list[str]) -> None:
    target = DetectionModel("yolo11n.yaml", nc=3, verbose=False)
    log.clear()
    target.load(copy.deepcopy(source.model))
    assert log == ["Transferred 493/499 items from pretrained weights"]
    target.load({"model": copy.deepcopy(source.model), "ema": None}, verbose=False)
    target.load(nn.Sequential(nn.Linear(2, 2)), verbose=False)
    assert len(log) == 1


def test_class_names_come_along_where_every_tensor_does(source: YOLO) -> None:
    weights = copy.deepcopy(source.model)
    weights.names = {i: f"kind {i}" for i in range(80)}
    target = DetectionModel(graft(source).model.yaml, verbose=False)
    target.load(copy.deepcopy(weights), verbose=False)
    assert target.names == weights.names
    other = DetectionModel(graft(source).model.yaml, nc=3, verbose=False)
    other.load(weights, verbose=False)
    assert other.names == {0: "0", 1: "1", 2: "2"}


def test_classes_are_matched_by_name_in_a_graft_too(source: YOLO) -> None:
    weights = copy.deepcopy(source.model)
    weights.names = {i: f"kind {i}" for i in range(80)}
    target = DetectionModel(graft(source).model.yaml, nc=2, verbose=False)
    target.names = {0: "kind 7", 1: "new"}
    target.load(weights, verbose=False)
    assert torch.equal(target.model[-1].cv3[0][-1].weight[0], weights.model[-1].cv3[0][-1].weight[7])


@pytest.mark.parametrize("kind", ["world", "yoloe"])
def test_trainers_that_build_from_a_file_find_the_graft_or_nothing(kind: str, folder: Path) -> None:
    """They take `yaml_file` and not the YAML that the checkpoint holds: the source's file would lose the graft."""
    if kind == "world":
        from ultralytics.models.yolo.world.train import WorldTrainer as Trainer

        name = "yolov8s-world"
    else:
        from ultralytics.models.yolo.yoloe.train import YOLOETrainer as Trainer

        name = "yoloe-11s"
    YOLO(f"{name}.yaml").save("mine.pt")
    assert vmamba(["graft", "model=mine.pt"]) == 0
    model = YOLO("mine-vmamba.pt").model
    trainer = SimpleNamespace(
        data={"nc": 80, "channels": 3},
        args=SimpleNamespace(task="detect"),
        callbacks={"on_pretrain_routine_end": []},
        add_callback=lambda *_: None,
    )
    built = Trainer.get_model(trainer, cfg=model.yaml, weights=model, verbose=False)
    assert grafts(built) == grafts(model) != []
    assert arrived(built, model) == {*model.state_dict()}
    Path("mine-vmamba.yaml").unlink()
    with pytest.raises(FileNotFoundError, match="mine-vmamba.yaml"):
        Trainer.get_model(trainer, cfg=model.yaml, weights=model, verbose=False)


# Training -------------------------------------------------------------------------------------------------------------


def test_a_life_from_the_file(data: Path, folder: Path, log: list[str]) -> None:
    """Train, best.pt, val, predict, track, resume, export, safe loading."""
    YOLO("yolov8n.yaml").save("mine.pt")
    assert vmamba(["graft", "model=mine.pt"]) == 0
    model = YOLO("mine-vmamba.pt")
    rows = grafts(model.model)
    seen = []
    model.add_callback("on_train_start", lambda t: seen.append(grafts(t.model)))
    model.train(data=data, epochs=2, project=str(folder), name="run", freeze=[0, 1, 2], **SMALL)
    assert seen == [rows]
    assert any("tensors of mine-vmamba.pt arrived" in line for line in log)
    best, image = model.trainer.best, str(data.parent / "images/val/0.png")
    frozen = torch_safe_load(best, safe_only=True)[0]["model"]
    assert torch.equal(frozen.model[0].conv.weight, torch_safe_load("mine.pt")[0]["model"].model[0].conv.weight)
    assert all(frozen.model[i].proj.weight.any() for i in rows)
    assert all(m.A_logs.dtype == torch.float32 for m in frozen.modules() if isinstance(m, SS2D))

    tuned = YOLO(best)
    assert np.isfinite(tuned.val(data=data, project=str(folder), **SMALL).box.map)
    assert len(tuned.predict(image, imgsz=64, verbose=False)) == 1
    assert len(tuned.track(image, imgsz=64, verbose=False)) == 1
    exported = tuned.export(format="torchscript", imgsz=64)
    x = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(torch.jit.load(exported)(x), outputs(YOLO(best).model, x)[0], rtol=1e-3, atol=1e-2)

    tuned.train(data=data, epochs=1, project=str(folder), name="again", **SMALL)  # the graft's training goes on
    assert grafts(tuned.trainer.model) == rows


def test_a_life_in_python_and_from_the_model_file(data: Path, folder: Path) -> None:
    model = graft("yolov8n.yaml")
    model.train(data=data, epochs=1, project=str(folder), name="python", **SMALL)
    assert grafts(model.trainer.model) == grafts(torch_safe_load(model.trainer.best)[0]["model"]) == [7, 11]
    YOLO("yolov8n.yaml").save("mine.pt")
    assert vmamba(["graft", "model=yolov8n.yaml", "out=new.yaml"]) == 0
    YOLO("new.yaml").train(data=data, epochs=1, pretrained="mine.pt", project=str(folder), name="file", **SMALL)
    stopped = YOLO("new.yaml")
    stopped.add_callback("on_train_epoch_end", lambda t: setattr(t, "stop", True))
    stopped.train(data=data, epochs=3, project=str(folder), name="stopped", **SMALL)


def test_resume_of_a_graft_has_the_same_optimizer_groups(data: Path, folder: Path) -> None:
    class Stop(Exception):
        pass

    def stop(trainer: object) -> None:
        if trainer.epoch == 1:
            raise Stop

    model = graft("yolov8n.yaml", lr_factor=5)
    model.add_callback("on_train_epoch_start", stop)
    with pytest.raises(Stop):
        model.train(data=data, epochs=2, project=str(folder), name="run", optimizer="SGD", **SMALL)
    groups = [[p.shape for p in g["params"]] for g in model.trainer.optimizer.param_groups]
    resumed, seen = YOLO(folder / "run/weights/last.pt"), []
    resumed.add_callback("on_train_start", lambda t: seen.append((t.start_epoch, t.optimizer.param_groups)))
    resumed.train(resume=True)
    assert seen[0][0] == 1
    assert [[p.shape for p in g["params"]] for g in seen[0][1]] == groups
    assert grafts(resumed.model) == [7, 11]
    assert [m.lr_factor for m in resumed.model.modules() if isinstance(m, Graft)] == [5, 5]


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW", "MuSGD"])
def test_grafts_have_the_learning_rate_that_they_ask_for(optimizer: str) -> None:
    def rates(model: nn.Module) -> dict[str, tuple]:
        """Return learning rate and the other settings of each parameter's group, by its name."""
        trainer = SimpleNamespace(args=SimpleNamespace(warmup_bias_lr=0.1), data={"nc": 80})
        built = BaseTrainer.build_optimizer(trainer, model, name=optimizer, lr=0.01, momentum=0.9, decay=5e-4)
        groups = {id(p): g for g in built.param_groups for p in g["params"]}
        assert sum(len(g["params"]) for g in built.param_groups) == len(groups) == len([*model.parameters()])
        kept = {n: groups[id(p)] for n, p in model.named_parameters()}
        return {n: (g["lr"], {k: v for k, v in g.items() if k not in {"lr", "params"}}) for n, g in kept.items()}

    model = graft("yolov8n.yaml", lr_factor=5).model
    found, plain = rates(model), rates(graft("yolov8n.yaml").model)
    own = {f"model.{i}." for i in grafts(model)}
    for name, (rate, settings) in found.items():
        grafted = name.startswith(tuple(own))
        assert rate == plain[name][0] * (5 if grafted else 1), name
        if grafted and settings.get("param_group") == "graft bias":  # upstream would warm "bias" up from 0.1
            settings = {**settings, "param_group": "bias"}
        assert settings == plain[name][1], name
        assert not (grafted and found[name][1].get("param_group") == "bias"), name


def test_classify_takes_the_graft_of_a_source_with_other_classes() -> None:
    source = YOLO("yolo11n-cls.yaml").model
    target = ClassificationModel(graft("yolo11n-cls.yaml").model.yaml, nc=3, verbose=False)
    target.load(source, verbose=False)
    assert len(arrived(target, source)) == len(source.state_dict()) - 2


def test_the_source_is_never_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(Path(check_yaml("yolov8.yaml")).read_text(encoding="utf-8"), encoding="utf-8")
    before = Path("mine.yaml").read_bytes()
    for out in ("mine.yaml", "mine", "mine.pt"):
        assert vmamba(["graft", "model=mine.yaml", f"out={out}", "exist_ok=True"]) == 1
        assert "is the source itself" in capsys.readouterr().err
    assert Path("mine.yaml").read_bytes() == before
    Path("there").mkdir()
    assert vmamba(["graft", "model=mine.yaml", "out=there"]) == 0
    assert Path("there/mine-vmamba.yaml").is_file()
    assert vmamba(["graft", "model=mine.yaml", "out=mine.onnx"]) == 1
    assert "must end in .pt or .yaml" in capsys.readouterr().err
    assert vmamba(["graft", "model=mine.yaml", "block=."]) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine.yaml", "there"]
    YOLO("yolo11n.yaml").save("yolo11n.pt")
    before = Path("yolo11n.pt").read_bytes()
    assert vmamba(["graft", "model=yolo11n", "out=yolo11n.pt", "exist_ok=True"]) == 1
    assert "is the source itself" in capsys.readouterr().err
    assert Path("yolo11n.pt").read_bytes() == before


def test_names_that_upstream_maps_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    YOLO("yolov5n.yaml").save("yolov5nu.pt")
    assert vmamba(["graft", "model=yolov5n.pt"]) == 0
    assert Path("yolov5n-vmamba.pt").is_file()
    capsys.readouterr()
    assert vmamba(["graft", "model=yolov5n.pt", "out=yolov5nu.pt", "exist_ok=True"]) == 1
    assert "is the source itself" in capsys.readouterr().err
    YOLO("yolov8n-cls.yaml").save("mine.pt")
    capsys.readouterr()
    assert vmamba(["graft", "model=mine.pt"]) == 0
    assert "yolo classify train data=FOLDER model=" in capsys.readouterr().out
