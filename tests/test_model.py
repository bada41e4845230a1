# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""The patched tree as a user meets it: model files, parser, strides, checkpoints, optimizer, training and resume."""

from __future__ import annotations

import ast
import copy
import inspect
import io
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import ultralytics
from ultralytics import YOLO
from ultralytics.nn.Addmodules import Mamba, MambaLayer
from ultralytics.nn.Addmodules.hooks.optimizer import exempt_ssm_parameters
from ultralytics.nn.Addmodules.hooks.yaml_rows import LAYERS, parse_layer
from ultralytics.nn.Addmodules.layers.graft import Graft
from ultralytics.nn.tasks import (
    DetectionModel,
    SegmentationModel,
    guess_model_scale,
    load_checkpoint,
    torch_safe_load,
    yaml_model_load,
)
from ultralytics.utils import YAML, checks

ROOT = Path(ultralytics.__file__).parents[1]
FILE = ROOT / "ultralytics/cfg/models/v8/VMamba-yolov8.yaml"
SCALES = "nsdmlx"


def config(**changes) -> dict:
    """Return the parsed VMamba-yolov8n.yaml with top-level changes; a value of None removes the key."""
    d = {**yaml_model_load("VMamba-yolov8n.yaml"), **changes}
    return {k: v for k, v in d.items() if v is not None}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the YAML of a small set: bright squares and dark discs on noise, 64 pictures to train, 8 to validate."""
    folder, g = tmp_path_factory.mktemp("shapes"), np.random.default_rng(0)
    yy, xx = np.mgrid[:64, :64]
    for split, count in (("train", 64), ("val", 8)):
        (folder / "images" / split).mkdir(parents=True)
        (folder / "labels" / split).mkdir(parents=True)
        for i in range(count):
            image, rows = g.integers(90, 160, (64, 64, 3)), []
            for cls in (0, 1):
                r, x, y = g.integers(8, 13), g.integers(14, 50), 16 + 32 * cls
                inside = np.maximum(abs(xx - x), abs(yy - y)) <= r if cls == 0 else np.hypot(xx - x, yy - y) <= r
                image[inside] = 230 if cls == 0 else 20
                rows.append(f"{cls} {(x + 0.5) / 64} {(y + 0.5) / 64} {(2 * r + 1) / 64} {(2 * r + 1) / 64}")
            Image.fromarray(image.astype(np.uint8)).save(folder / f"images/{split}/{i}.png")
            (folder / f"labels/{split}/{i}.txt").write_text("\n".join(rows), encoding="utf-8")
    YAML.save(
        folder / "shapes.yaml",
        {"path": str(folder), "train": "images/train", "val": "images/val", "names": {0: "square", 1: "disc"}},
    )
    return folder / "shapes.yaml"


SMALL = {"imgsz": 64, "batch": 8, "workers": 0, "plots": False, "verbose": False, "device": "cpu", "optimizer": "AdamW"}


# Model files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", SCALES)
def test_every_scale_builds_by_name_and_matches_its_summary(scale: str) -> None:
    model = YOLO(f"VMamba-yolov8{scale}.yaml", verbose=False).model
    assert model.yaml["scale"] == scale
    assert model.stride.tolist() == [8, 16, 32]
    layers, params, gradients, gflops = model.info(verbose=True)
    line = re.search(rf"^  {scale}: .*# summary: (.*)$", FILE.read_text(encoding="utf-8"), re.MULTILINE)[1]
    assert line == f"{layers} layers, {params} parameters, {gradients} gradients, {gflops:.1f} GFLOPs"
    states = {m.d_state for m in model.modules() if isinstance(m, Mamba)}
    assert states == {16}  # never the channel count


@pytest.mark.parametrize("kind", ["none", "v1", "v2"])
def test_flops_of_a_block_are_counted_once(kind: str) -> None:
    """The counter hooks every child, so children are called and count themselves; the block adds its scans."""
    from thop.profile import profile

    block, length = Mamba(16, d_state=4, bimamba_type=kind), 1000
    counted = profile(block, inputs=[torch.zeros(2, length, 16)], verbose=False)[0] * 2
    assert counted == pytest.approx(block.flops(2, length), rel=0.01)  # the convolution's padding is counted, too


def test_gflops_count_the_scans() -> None:
    """Thop's figure for the whole model, with our rule and without, against an analytic count of the scans."""
    from thop.profile import profile

    model = DetectionModel("VMamba-yolov8n.yaml", verbose=False)
    blocks = [(m, h.dim) for h in model.modules() if isinstance(h, MambaLayer) for m in [h.mamba]]
    tokens = {32: 160 * 160, 64: 80 * 80, 128: 40 * 40, 256: 20 * 20}
    image = [torch.empty(1, 3, 640, 640)]
    counted, without = (
        2 * profile(model, inputs=image, stride=32, custom_ops=rules, verbose=False)[0]
        for rules in ({}, {Mamba: lambda m, x, y: None})
    )
    scans = sum(m.own_flops(1, tokens[dim]) for m, dim in blocks)
    assert counted - without == pytest.approx(scans, rel=0.01)
    assert scans == sum(2 * 9 * m.d_inner * tokens[dim] * m.d_state for m, dim in blocks)
    assert 0.9 < scans / (137.6e6 * 9) < 1.1  # scan-engine figure: 137.6 M (token, channel, state) an image


def test_yaml_arguments_reach_the_layer() -> None:
    d = config()
    d["backbone"][2][3] = [128, 8, 3, 1]
    layer = DetectionModel(d, verbose=False).model[2]
    assert (layer.mamba.d_state, layer.mamba.d_conv, layer.mamba.d_inner) == (8, 3, 32)
    d["backbone"][4][3] = [256]
    assert DetectionModel(d, verbose=False).model[4][0].mamba.d_state == 16


@pytest.mark.parametrize(
    ("args", "error", "message"),
    [
        ([128, -3], ValueError, r"layer 2 \(MambaLayer\): Mamba: d_state must be at least 1, got -3"),
        ([128, 16, 4, 2, 1], TypeError, r"layer 2 \(MambaLayer\) takes at most 4 arguments"),
        ([True], TypeError, "first argument must be its channel count, a positive integer, or None .* got True"),
        ([None, 0], ValueError, "d_state must be at least 1, got 0"),
        ([128, "many"], TypeError, r"d_state must be an integer, got 'many'"),
        (["wide"], TypeError, "first argument must be its channel count"),
        ([128, 16, 4, float("inf")], ValueError, "expand must be positive, got inf"),
        ([128, 16, 4, 0.01], ValueError, r"expand \* d_model must be at least 1, got expand=0.01, d_model=32"),
        ([256], ValueError, r"256 channels are 64 at this scale .* but its input has 32"),
    ],
)
def test_wrong_layer_arguments_name_the_layer(args: list, error: type[Exception], message: str) -> None:
    d = config()
    d["backbone"][2][3] = args
    with pytest.raises(error, match=message):
        DetectionModel(d, verbose=False)


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.__name__)
@pytest.mark.parametrize("count_of_args", [0, 1, 2])
def test_without_a_width_a_layer_takes_that_of_its_input(layer: type, count_of_args: int) -> None:
    args = [None, "SS2D" if layer is Graft else 1][:count_of_args]
    width, own, count = parse_layer(layer, 5, 384, args, 0.25, 1024, 3)
    wide = layer.__name__.startswith("C2f")  # these have widths for input and output, and their own repeats
    assert (width, count) == (384, 1 if wide else 3)
    assert own == ([384, 384, 3] if wide else [384]) + args[1:]


@pytest.mark.parametrize("layer", ["MambaLayer", "SS2D", "VSSBlock", "C2fVSS", "C2fSS2D"])
def test_a_layer_after_a_concat_or_an_hgblock(layer: str) -> None:
    """No number gives 384 after a Concat at scale n, and an HGBlock's width is not scaled at all."""
    d = config(strides=[32])
    d["backbone"] += [
        [[-1, 7], 1, "Concat", [1]],
        [-1, 1, layer, []],
        [-1, 1, "HGBlock", [16, 72, 3]],
        [-1, 1, layer, []],
    ]
    d["head"] = [[[-1], 1, "Detect", ["nc"]]]
    model = DetectionModel(d, verbose=False)
    outputs = []
    for row in (11, 13):
        model.model[row].register_forward_hook(lambda m, x, out: outputs.append((x[0].shape[1], out.shape[1])))
    model.eval()(torch.rand(1, 3, 64, 64))
    assert outputs == [(512, 512), (72, 72)]


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("rest", [[], [1]])
def test_advice_about_a_width_was_tried(scale: str, rest: list) -> None:
    _, width, most = config()["scales"][scale]
    for channels in (24, 64, 72, 256, 384, 640, 1024, 1536):
        with pytest.raises(ValueError, match="channels are .* write") as error:
            parse_layer(MambaLayer, 3, channels, [1, *rest], width, most, 1)
        advised = [ast.literal_eval(text) for text in re.findall(r"\[.*?\]", str(error.value).partition("write")[2])]
        assert advised[0] == ([None, *rest] if rest else [])
        for args in advised:
            assert parse_layer(MambaLayer, 3, channels, args, width, most, 1)[0] == channels


def test_each_layer_is_built_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row is checked without building its layer."""
    built = []
    for layer in LAYERS:
        init = layer.__init__
        monkeypatch.setattr(
            layer, "__init__", lambda self, *a, init=init, **k: built.append(type(self)) or init(self, *a, **k)
        )
        layer.__init__.__signature__ = inspect.signature(init)
    model = DetectionModel("VMamba-yolon.yaml", verbose=False)
    assert len(built) == sum(isinstance(m, LAYERS) for m in model.modules()) == 4


# Strides and scales ---------------------------------------------------------------------------------------------------


def count_forwards(monkeypatch: pytest.MonkeyPatch) -> list:
    """Record the forward passes of detection models."""
    calls = []
    forward = DetectionModel.forward
    monkeypatch.setattr(DetectionModel, "forward", lambda self, *a, **k: calls.append(1) or forward(self, *a, **k))
    return calls


def test_declared_strides_need_no_forward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = count_forwards(monkeypatch)
    monkeypatch.setattr(DetectionModel, "info", lambda self, **k: None)
    assert DetectionModel("VMamba-yolov8n.yaml", verbose=False).stride.tolist() == [8, 16, 32]
    assert not calls
    declared = DetectionModel(config(strides=[4, 12, 7.5]), verbose=False)
    assert declared.stride.tolist() == declared.model[-1].stride.tolist() == [4, 12, 7.5]
    measured = DetectionModel(config(strides=None), verbose=False)  # the recipe's own text has no such key
    assert calls == [1]
    assert measured.stride.tolist() == [8, 16, 32]


@pytest.mark.parametrize("strides", [[8, 16], "8", [8, 16, -32], [8, 16, True], [8, 16, float("nan")], [8, 16, 1e9]])
def test_wrong_declared_strides_are_refused(strides: object) -> None:
    with pytest.raises(ValueError, match="strides must be 3 numbers from 1 to 256"):
        DetectionModel(config(strides=strides), verbose=False)


@pytest.mark.parametrize("name", ["VMamba-yolo", "yolo26"])
@pytest.mark.parametrize("start", [{"init_std": 0.02}, {"init_dense": 0.25}, {"init_std": 0.02, "init_dense": 0.25}])
def test_declared_initial_weights(name: str, start: dict[str, float]) -> None:
    """Convolutions with BatchNorm start smaller as declared, and nothing else changes."""
    d = {**YAML.load(checks.check_yaml(f"{name}.yaml")), "scale": "n", "init_std": None, "init_dense": None}
    models = []
    for keys in ({}, start):
        torch.manual_seed(0)
        models.append(DetectionModel({**d, **keys}, verbose=False))
    plain, scaled = (dict(m.named_modules()) for m in models)
    kinds = set()
    for n, m in plain.items():
        conv = getattr(m, "conv", None)
        if not isinstance(conv, torch.nn.Conv2d) or not hasattr(m, "bn"):  # DFL has numbers of its own
            continue
        few = conv.kernel_size == (1, 1) or conv.groups == conv.in_channels > 1
        if few:
            factor = min(1, start.get("init_std", 100) / conv.weight.square().mean().sqrt().item())
        else:
            factor = start.get("init_dense", 1)
        kinds.add((few, conv.groups > 1, factor < 1))
        torch.testing.assert_close(scaled[n].conv.weight, conv.weight * factor)
        torch.testing.assert_close(scaled[n].bn.running_var, m.bn.running_var * factor**2)
    assert kinds >= {(True, c, "init_std" in start) for c in (True, False)} | {(False, False, "init_dense" in start)}
    others = [k for k, _ in models[0].named_parameters() if not k.endswith("conv.weight")]
    assert all(torch.equal(models[0].get_parameter(k), models[1].get_parameter(k)) for k in others)
    models[1].train()(torch.rand(1, 3, 64, 64))
    head = models[1].model[-1]
    if hasattr(head, "one2one_cv3"):  # both branches of an end-to-end head start as one
        for a, b in zip(head.cv3.parameters(), head.one2one_cv3.parameters()):
            assert torch.equal(a, b)


@pytest.mark.parametrize("key", ["init_std", "init_dense"])
@pytest.mark.parametrize("value", [0, -1, "0.02", True, float("inf"), 0.001, 2])
def test_wrong_initial_weights_are_refused(key: str, value: object) -> None:
    with pytest.raises((TypeError, ValueError), match=f"model YAML: {key} must be"):
        DetectionModel(config(**{key: value}), verbose=False)


@pytest.mark.parametrize("keys", [["init_std"], ["init_dense"], ["init_dfl"], ["init_std", "init_dfl"]])
def test_start_of_a_file_that_nothing_would_act_on_is_refused(tmp_path: Path, keys: list[str]) -> None:
    d = {**YAML.load(checks.check_yaml("yolov8-cls.yaml")), **dict.fromkeys(keys, 0.7)}
    file = tmp_path / "mine-cls.yaml"
    YAML.save(file, d)
    with pytest.raises(ValueError, match=rf"mine-cls.yaml: {' and '.join(keys)}: for models .* is Detect .*Classify"):
        YOLO(str(file))


@pytest.mark.parametrize(
    ("name", "of", "bins"),
    [
        ("VMamba-yolov8", DetectionModel, 16),
        ("VMamba-yolov8-seg", SegmentationModel, 16),
        ("yolo26", DetectionModel, 12),
        ("yolov10n", DetectionModel, 16),
    ],
)
def test_declared_initial_boxes(name: str, of: type[DetectionModel], bins: int) -> None:
    """Every level and branch begins with the declared distribution, so its boxes have one size in strides."""
    d = {**YAML.load(checks.check_yaml(f"{name}.yaml")), "scale": "n", "reg_max": bins}
    models = []
    for ratio in (None, 0.7):
        torch.manual_seed(0)
        models.append(of({**d, "init_dfl": ratio}, verbose=False))
    plain, declared = models
    head = declared.model[-1]
    branches = [head.cv2] + ([head.one2one_cv2] if getattr(head, "one2one_cv2", None) is not None else [])
    changed = {n for n, p in plain.named_parameters() if not torch.equal(p, declared.get_parameter(n))}
    expected = {n for n, p in declared.named_parameters() if any(p is lv[-1].bias for b in branches for lv in b)}
    assert changed == expected
    assert len(expected) == 3 * len(branches)
    weights = 0.7 ** torch.arange(bins)
    for level in (lv for b in branches for lv in b):
        share = level[-1].bias.view(4, bins).softmax(1)
        torch.testing.assert_close(share, (weights / weights.sum()).expand(4, -1))
    other = pickle.loads(pickle.dumps(copy.deepcopy(declared))).model[-1]  # has the rule, and for itself
    other.cv2[0][-1].bias.data.zero_()
    other.bias_init()
    assert other.cv2[0][-1].bias.equal(head.cv2[0][-1].bias)


@pytest.mark.parametrize("source", ["yolov8n", "yolo11n"])
def test_initial_boxes_outlive_weights_of_another_class_count(source: str) -> None:
    """Upstream then rebuilds the class branch and sets every bias anew."""
    model = DetectionModel("VMamba-yolon.yaml", nc=3, verbose=False)
    want = [level[-1].bias.clone() for level in model.model[-1].cv2]
    model.load(DetectionModel(f"{source}.yaml", nc=80, verbose=False), verbose=False)
    for level, bias in zip(model.model[-1].cv2, want):
        assert level[-1].bias.equal(bias)


@pytest.mark.parametrize("ratio", [0, -1, "0.7", True, float("nan"), 0.3, 1.5])
def test_wrong_initial_boxes_are_refused(ratio: object) -> None:
    with pytest.raises((TypeError, ValueError), match="model YAML: init_dfl must be"):
        DetectionModel(config(init_dfl=ratio), verbose=False)


def test_initial_boxes_of_a_head_without_distributions_are_refused() -> None:
    d = {**YAML.load(checks.check_yaml("yolo26.yaml")), "scale": "n", "init_dfl": 0.7}
    with pytest.raises(ValueError, match="init_dfl needs a head with reg_max above 1, got reg_max=1"):
        DetectionModel(d, verbose=False)


def test_mamba_layers_in_a_p2_model_get_its_strides() -> None:
    """The recipe's fixed strides broke every other model of the fork."""
    d = YAML.load(checks.check_yaml("yolov8-p2.yaml"))
    d["scale"] = "n"
    d["backbone"][2] = [-1, 1, "MambaLayer", [128]]
    assert DetectionModel(d, verbose=False).stride.tolist() == [4, 8, 16, 32]


def test_scale_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert yaml_model_load("VMamba-yolov8d.yaml")["scale"] == "d"
    with pytest.raises(ValueError, match=r"no scale 'q', only \['d', 'l', 'm', 'n', 's', 'x'\]"):
        yaml_model_load("VMamba-yolov8q.yaml")
    folder = tmp_path / "data2x"  # upstream's own rewriting spoils such folder names
    folder.mkdir()
    (folder / "VMamba-yolov8.yaml").write_text(FILE.read_text(encoding="utf-8"), encoding="utf-8")
    assert yaml_model_load(folder / "VMamba-yolov8m.yaml")["scale"] == "m"
    assert yaml_model_load(str(folder / "VMamba-yolov8.yaml"))["scale"] == ""
    (folder / "VMamba-yolov8d_mine.yaml").write_text(FILE.read_text(encoding="utf-8"), encoding="utf-8")
    assert yaml_model_load(folder / "VMamba-yolov8d_mine.yaml")["scale"] == "d"
    d = yaml_model_load("yolov8s.yaml")
    assert (d["scale"], d["yaml_file"]) == ("s", "yolov8s.yaml")
    for name in ("yolov8d.yaml", "VMamba-yolov9n.yaml", "no-such.yaml"):
        with pytest.raises(FileNotFoundError):
            yaml_model_load(name)
    assert guess_model_scale("VMamba-yolov8d.yaml") == ""  # upstream's own function is as it was


def test_scale_names_of_a_file_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Upstream knows n s m l x by name, and the recipe's file declares a d."""
    monkeypatch.chdir(tmp_path)
    for name in ("mine-yolov8.yaml", "mine-yolov8-two.yaml", "mine.yaml"):
        Path(name).write_text(FILE.read_text(encoding="utf-8"), encoding="utf-8")
    Path("plain.yaml").write_text("nc: 2\nbackbone: []\nhead: []\n", encoding="utf-8")
    Path("list.yaml").write_text("[1]", encoding="utf-8")
    Path("VMamba-yolo9.yaml").write_text("a: [", encoding="utf-8")
    for name in ("mine-yolov8d.yaml", "mine-yolov8d-two.yaml", "mined.yaml", str(tmp_path / "mine-yolov8d.yaml")):
        d = yaml_model_load(name)
        assert (d["scale"], d["yaml_file"]) == ("d", name)
    assert yaml_model_load("mine-yolov8s.yaml")["scale"] == "s"
    with pytest.raises(ValueError, match=r"mine-yolov8q.yaml: mine-yolov8.yaml has no scale 'q', only \['d', 'l'"):
        yaml_model_load("mine-yolov8q.yaml")
    for name in ("plaind.yaml", "mine2d.yaml", "mindful.yaml"):
        with pytest.raises(FileNotFoundError):
            yaml_model_load(name)
    for name in ("listd.yaml", "VMamba-yolo9d.yaml"):
        with pytest.raises(ValueError, match="is no model YAML"):
            yaml_model_load(name)


STOCK = "yolov8n yolov8n-p2 yolov8n-p6 yolov8n-seg yolov8n-pose yolov8n-obb yolo11n yolo26n rtdetr-resnet50".split()
PROBE = """
import hashlib, sys, torch
torch.set_num_threads(1)
from ultralytics import RTDETR, YOLO
for name in sys.argv[1:]:
    torch.manual_seed(0)
    model = (RTDETR if name.startswith("rtdetr") else YOLO)(name + ".yaml").model.eval()
    h = hashlib.sha256()
    for k, v in model.state_dict().items():
        h.update(k.encode() + v.numpy().tobytes())
    with torch.no_grad():
        out = model(torch.rand(1, 3, 64, 64))
    h.update((out[0] if isinstance(out, (tuple, list)) else out)[0].numpy().tobytes())
    print(name, model.stride.tolist(), h.hexdigest())
"""


def test_stock_models_are_upstreams_to_the_last_bit(tmp_path: Path) -> None:
    """Weights from one seed, strides and outputs of stock models: this tree against the pristine wheel."""
    from patches.upstream import fetch, load_pin

    with zipfile.ZipFile(io.BytesIO(fetch(load_pin()))) as wheel:
        wheel.extractall(tmp_path / "pristine")
    outputs = []
    for tree in (tmp_path / "pristine", ROOT):
        env = {**os.environ, "PYTHONPATH": str(tree), "YOLO_OFFLINE": "true"}
        run = [sys.executable, "-c", PROBE, *STOCK]
        out = subprocess.run(run, env=env, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
        outputs.append([line for line in out.splitlines() if line.startswith(tuple(STOCK))])
    assert len(outputs[0]) == len(STOCK)
    assert outputs[0] == outputs[1]


# Inputs, precision, checkpoints ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model() -> DetectionModel:
    """Return a small eval model with features of ordinary size: without training, the recipe's layers shrink them."""
    torch.manual_seed(0)
    model = DetectionModel("VMamba-yolov8n.yaml", verbose=False)
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    model.train()
    with torch.no_grad():
        for m in norms:
            m.momentum = None  # a plain average
        for _ in range(4):
            model(torch.rand(2, 3, 64, 64))
    for m in norms:
        m.momentum = 0.03
    return model.eval()


def predict(model: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Return the decoded predictions of an eval model."""
    with torch.no_grad():
        return model(x)[0].float()


def assert_same(out: torch.Tensor, expected: torch.Tensor, pixels: float, score: float) -> None:
    """Hold boxes and class scores apart: boxes are hundreds of pixels, scores at most one."""
    assert expected[:, 4:].max() > 0.05  # else the scores would show nothing
    assert (out[:, :4] - expected[:, :4]).abs().max() < pixels
    assert (out[:, 4:] - expected[:, 4:]).abs().max() < score


def test_layouts_copies_and_fusing(model: DetectionModel) -> None:
    x = torch.rand(2, 3, 96, 64)
    expected = predict(model, x)
    torch.testing.assert_close(predict(copy.deepcopy(model), x), expected)
    assert_same(predict(copy.deepcopy(model).fuse(verbose=False), x), expected, 0.1, 1e-3)
    nhwc = copy.deepcopy(model).to(memory_format=torch.channels_last)
    assert_same(predict(nhwc, x.contiguous(memory_format=torch.channels_last)), expected, 0.1, 1e-3)


@pytest.mark.parametrize("shape", [(32, 32), (32, 416), (416, 32), (160, 96)])
def test_rectangles_and_maps_one_pixel_tall(model: DetectionModel, shape: tuple[int, int]) -> None:
    h, w = shape
    out = predict(model, torch.rand(1, 3, h, w))
    assert out.shape[-1] == sum(h // s * (w // s) for s in (8, 16, 32))
    assert torch.isfinite(out).all()


def test_safe_loading_takes_our_checkpoints(model: DetectionModel, tmp_path: Path, environment: dict[str, str]) -> None:
    file = tmp_path / "vmamba.pt"
    torch.save({"model": copy.deepcopy(model).half(), "train_args": {}}, file)
    ckpt, _ = torch_safe_load(file, safe_only=True)
    assert isinstance(ckpt["model"].model[2], MambaLayer)
    env = {**environment, "ULTRALYTICS_SAFE_LOAD": "true"}
    code = f"from ultralytics import YOLO; print(type(YOLO({str(file)!r}).model.model[2]).__name__)"
    out = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert "MambaLayer" in out.stdout, out.stderr


def test_half_checkpoint_keeps_the_state_parameters(model: DetectionModel, tmp_path: Path) -> None:
    torch.save({"model": copy.deepcopy(model).half(), "train_args": {}}, tmp_path / "half.pt")
    loaded, _ = load_checkpoint(tmp_path / "half.pt")
    for a, b in zip(model.modules(), loaded.modules()):
        if isinstance(a, Mamba):
            for (n, p), q in zip(a.state_parameters().items(), b.state_parameters().values()):
                assert torch.equal(p, q), n


def test_the_update_notice_is_silent(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Upstream would advise `pip install -U ultralytics`, which replaces the fork."""
    monkeypatch.setattr(checks, "ONLINE", True)
    monkeypatch.setattr(checks, "IS_PIP_PACKAGE", True)
    monkeypatch.setattr(checks, "check_latest_pypi_version", lambda *a: "99.0.0")
    assert not checks.check_pip_update_available()
    assert "pip install -U" not in caplog.text


# Optimizer ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "iterations"),
    [("auto", 100), ("auto", 20000), ("SGD", 1), ("AdamW", 1), ("MuSGD", 1), ("Adam", 1), ("RMSprop", 1)],
)
def test_state_parameters_escape_decay_and_orthogonalisation(name: str, iterations: int, model: DetectionModel) -> None:
    from types import SimpleNamespace

    from ultralytics.engine.trainer import BaseTrainer

    model = copy.deepcopy(model)  # as an EMA copy, which loses attributes of parameters
    trainer = SimpleNamespace(args=SimpleNamespace(lr0=0.01, optimizer=name, warmup_bias_lr=0.1), data={"nc": 2})
    optimizer = BaseTrainer.build_optimizer(trainer, model, name, 0.01, 0.9, 5e-4, iterations)
    exempt = {id(p) for m in model.modules() if isinstance(m, Mamba) for p in m.state_parameters().values()}
    assert len(exempt) == 6 * 6  # MambaLayers of scale n, twice three each
    seen = []
    for g in optimizer.param_groups:
        seen += [id(p) for p in g["params"]]
        inside = [p for p in g["params"] if id(p) in exempt]
        assert not inside or (g["weight_decay"] == 0 and not g.get("use_muon") and g["param_group"] == "bn")
    trainable = [id(p) for p in model.parameters()]
    assert sorted(seen) == sorted(trainable)  # each once
    if name == "MuSGD" or iterations == 20000:
        assert type(optimizer).__name__ == "MuSGD"
        muon = {id(p) for g in optimizer.param_groups if g.get("use_muon") for p in g["params"]}
        assert any(id(m.in_proj.weight) in muon for m in model.modules() if isinstance(m, Mamba))


def test_a_model_without_mamba_is_left_alone() -> None:
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD([{"params": [*model.parameters()], "param_group": "weight"}], lr=0.1)
    before = copy.copy(optimizer.param_groups[0]["params"])
    exempt_ssm_parameters(optimizer, model)
    assert all(a is b for a, b in zip(optimizer.param_groups[0]["params"], before))


def test_an_optimizer_without_an_undecayed_group_is_refused() -> None:
    model = Mamba(8)
    with pytest.raises(ValueError, match="none of the optimizer's 1 parameter groups is without weight decay"):
        exempt_ssm_parameters(torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1), model)
    optimizer = torch.optim.SGD([*model.parameters()], lr=0.1)
    exempt_ssm_parameters(optimizer, model)  # as older releases, which do not name their groups
    assert len(optimizer.param_groups[0]["params"]) == len(list(model.parameters()))


# Training -------------------------------------------------------------------------------------------------------------


def test_train_val_predict_track_and_reload(data: Path, tmp_path: Path) -> None:
    """One short life of a model; and a reloaded best.pt has the metrics of its last in-training validation."""
    model = YOLO("VMamba-yolov8n.yaml")
    seen = []
    model.add_callback("on_fit_epoch_end", lambda t: seen.append((t.epoch, dict(t.metrics), t.fitness)))
    quick = {**SMALL, "batch": 4, "nbs": 4, "lr0": 0.002, "warmup_epochs": 0, "mosaic": 0}
    model.train(data=data, epochs=12, project=str(tmp_path), name="run", **quick)
    trainer = model.trainer
    assert [e for e, *_ in seen][:12] == [*range(12)]
    assert all(np.isfinite(list(m.values())).all() for _, m, _ in seen)
    best = max(seen[:12], key=lambda s: s[2])[1]
    # It has learned, so that equal metrics mean something: 0.55 to 0.99 over six seeds, by chance of rounding too.
    assert best["metrics/mAP50(B)"] > 0.3

    reloaded = YOLO(trainer.best)
    metrics = reloaded.val(
        data=data, project=str(tmp_path), name="val", **{k: v for k, v in SMALL.items() if k != "optimizer"}
    )
    for k, v in metrics.results_dict.items():
        if k in best:  # all weights but the state parameters were rounded to float16 in between
            assert v == pytest.approx(best[k], abs=5e-3), k
    image = str(data.parent / "images/val/0.png")
    assert len(reloaded.predict(image, imgsz=64, verbose=False, project=str(tmp_path))) == 1
    assert len(reloaded.track(image, imgsz=64, verbose=False, project=str(tmp_path))) == 1
    x = torch.from_numpy(np.array(Image.open(image))).permute(2, 0, 1)[None] / 255  # half() and AMP, trained weights
    expected = predict(reloaded.model.eval(), x)
    assert_same(predict(copy.deepcopy(reloaded.model).half(), x.half()), expected, 0.5, 0.02)
    with torch.autocast("cpu", torch.bfloat16):
        assert_same(predict(reloaded.model, x), expected, 4, 0.1)
    ckpt, _ = torch_safe_load(trainer.best, safe_only=True)
    assert ckpt["train_args"]["imgsz"] == 64


def test_a_stock_model_trains_in_the_same_groups_as_upstream() -> None:
    """The optimizer hook leaves models without Mamba blocks as they were."""
    from types import SimpleNamespace

    from ultralytics.engine.trainer import BaseTrainer

    model = DetectionModel("yolov8n.yaml", verbose=False)
    trainer = SimpleNamespace(args=SimpleNamespace(lr0=0.01, optimizer="SGD", warmup_bias_lr=0.1), data={"nc": 2})
    groups = BaseTrainer.build_optimizer(trainer, model, "SGD", 0.01, 0.9, 5e-4, 1).param_groups
    sizes = {g["param_group"]: len(g["params"]) for g in groups}
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    biases = [n for n, _ in model.named_parameters() if "bias" in n]
    assert sizes["bn"] == len(norms)
    assert sizes["bias"] == len(biases)
    assert sum(sizes.values()) == len(list(model.parameters()))


def test_another_class_count_transfers_all_but_the_classes(data: Path, tmp_path: Path, model: DetectionModel) -> None:
    torch.save({"model": copy.deepcopy(model), "train_args": {}}, tmp_path / "two.pt")
    d = YAML.load(data)
    YAML.save(tmp_path / "one.yaml", {**d, "names": {0: "square", 1: "disc", 2: "star"}})
    tuned = YOLO(tmp_path / "two.pt")
    tuned.train(data=tmp_path / "one.yaml", epochs=1, project=str(tmp_path), name="tuned", val=False, **SMALL)
    assert tuned.trainer.model.model[-1].nc == 3


def test_data_without_images_is_named(tmp_path: Path) -> None:
    (tmp_path / "images/train").mkdir(parents=True)
    YAML.save(
        tmp_path / "empty.yaml",
        {"path": str(tmp_path), "train": "images/train", "val": "images/train", "names": {0: "a"}},
    )
    with pytest.raises(Exception, match="Error loading data from .*images/train"):
        YOLO("VMamba-yolov8n.yaml").train(data=tmp_path / "empty.yaml", epochs=1, project=str(tmp_path), **SMALL)


RUN = """
import sys
from ultralytics import YOLO
YOLO("VMamba-yolov8n.yaml").train(data=sys.argv[1], epochs=6, project=sys.argv[2], name="killed", imgsz=64, batch=8,
                                  workers=0, plots=False, device="cpu", optimizer="MuSGD", val=False)
"""


def test_resume_after_a_kill(data: Path, tmp_path: Path, environment: dict[str, str]) -> None:
    log = tmp_path / "log.txt"
    with log.open("w", encoding="utf-8") as out:
        run = subprocess.Popen(
            [sys.executable, "-c", RUN, str(data), str(tmp_path)], env=environment, stdout=out, stderr=out
        )
    last, csv = tmp_path / "killed/weights/last.pt", tmp_path / "killed/results.csv"
    deadline = time.time() + 300
    while not (
        csv.exists() and len(csv.read_text(encoding="utf-8").splitlines()) >= 4 and last.exists()
    ):  # a header and three epochs
        assert run.poll() is None, log.read_text(encoding="utf-8")[-2000:]
        assert time.time() < deadline, log.read_text(encoding="utf-8")[-2000:]
        time.sleep(0.05)
    run.send_signal(signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)
    run.wait()
    model = YOLO(last)
    start = []
    model.add_callback("on_train_start", lambda t: start.append(t.start_epoch))
    model.train(resume=True)
    assert start[0] >= 2
    assert model.trainer.epoch == 5
    groups = model.trainer.optimizer.param_groups
    exempt = {
        id(p) for m in model.trainer.model.modules() if isinstance(m, Mamba) for p in m.state_parameters().values()
    }
    for g in groups:
        for p in g["params"]:
            state = model.trainer.optimizer.state[p]
            assert all(v.shape == p.shape for v in state.values() if torch.is_tensor(v) and v.dim())
            if id(p) in exempt:
                assert "momentum_buffer_SGD" not in state


def test_a_first_row_that_upstream_replaces_is_let_through(tmp_path: Path) -> None:
    rows = [[-1, 1, "Silence", []], [-1, 1, "Conv", [16, 3, 2]]]
    head = [[-1, 1, "Conv", [16, 3, 2]], [[1, 2], 1, "Detect", ["nc"]]]
    file = tmp_path / "old.yaml"
    file.write_text(f"nc: 2\nbackbone: {json.dumps(rows)}\nhead: {json.dumps(head)}\n", encoding="utf-8")
    assert type(YOLO(file).model.model[0]) is nn.Identity


@pytest.mark.parametrize(
    ("row", "error", "message"),
    [
        ([[0, 1], 1, "MambaLayer", [128]], TypeError, r"layer 2 \(MambaLayer\): `from` must be the index of one layer"),
        ([5, 1, "SS2D", [128]], ValueError, r"layer 2 \(SS2D\): `from` is 5, but the layers before it are 0 to 1"),
        ([-3, 1, "VSSBlock", [128]], ValueError, r"layer 2 \(VSSBlock\): `from` is -3"),
        ([-1, 0, "C2fVSS", [128]], ValueError, "repeats must be an integer of at least 1, got 0"),
        ([-1, 1, "C2fVSS"], TypeError, "a row is"),
        ([-1, 1, "VSSblock", [128]], ValueError, r"there is no such layer; did you mean VSSBlock\?"),
        (
            [-1, 1, "MambaLayr", [128]],
            ValueError,
            r"layer 2 \(MambaLayr\): there is no such layer; did you mean MambaLayer\?",
        ),
        ([-1, 1, "Mamba", [128]], ValueError, r"did you mean MambaLayer\?"),
        ([[-1], 1, "MambaLayer", [128]], TypeError, r"`from` must be the index of one layer, got \[-1\]; write -1"),
        ({"from": -1, "n": 1}, TypeError, r"layer 2: a row is \[from, repeats, module, \[arguments\]\], got \{'from"),
        ([-1, 1, "mamba_ssm.Mamba", [128]], ValueError, "there is no such layer in Ultralytics or in this fork"),
        ([-1, 1, "nn.MambaLayer", [128]], ValueError, r"there is no such layer in torch.nn; write MambaLayer"),
        ([-1, 1, "C2fVSSS", [128]], ValueError, r"did you mean C2fVSS\?"),
        ([-1, 1, "ConvSS2D", [128]], ValueError, r"did you mean C2fSS2D\?"),
        (
            [-1, 1, "C2fSS2D", [128, 1, 1, 3, 3]],
            ValueError,
            r"layer 2 \(C2fSS2D\): ConvSS2D: directions must be 2 .* got 3",
        ),
        ([-1, 1, "VSSBlock", [64]], ValueError, "64 channels are 16 at this scale .* but its input has 32"),
        (
            [-1, 1, "VSSBlock", [128, 16, 4]],
            ValueError,
            r"layer 2 \(VSSBlock\): SS2D: d_conv must be odd, got 4; its arg",
        ),
        (
            [-1, 1, "C2fVSS", [128, 1, 1, "two"]],
            ValueError,
            "mlp_ratio must be a number from 0 to below inf, got 'two'",
        ),
    ],
)
def test_wrong_rows_of_a_file_name_the_layer(row: list, error: type[Exception], message: str, tmp_path: Path) -> None:
    d = config()
    d["backbone"][2] = row
    file = tmp_path / "VMamba-broken.yaml"
    YAML.save(file, d)
    with pytest.raises(error, match=message):
        YOLO(str(file), verbose=False)


@pytest.mark.parametrize(("key", "part"), [("backbone", "backbone"), ("head", "head")])
def test_a_file_that_is_no_model_is_named(key: str, part: str, tmp_path: Path) -> None:
    """A data YAML given as model=, or a misspelt key."""
    YAML.save(tmp_path / "mine-v8.yaml", {k: v for k, v in config().items() if k not in (key, "yaml_file")})
    with pytest.raises(ValueError, match=f"mine-v8.yaml is no model YAML: it has no list of rows called '{part}'"):
        yaml_model_load(tmp_path / "mine-v8.yaml")


def test_rows_build_repeats_in_or_behind_each_other() -> None:
    d = config()
    d["scales"] = {"n": [1.0, 0.25, 1024]}
    d["backbone"][2] = [-1, 3, "VSSBlock", [128, 1, 3, 1]]
    d["backbone"][4] = [-1, 6, "C2fVSS", [256]]
    model = DetectionModel(d, verbose=False).model
    assert [type(m).__name__ for m in model[2]] == ["VSSBlock"] * 3
    assert type(model[4]).__name__ == "C2fVSS"
    assert len(model[4].m) == 6
    assert model[4].c == 32
