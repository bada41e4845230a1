# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Exported graphs: equal to PyTorch for every size, of standard operators, through upstream's command and back."""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tests.data import FILES, make_data, scaled
from tests.onnx_files import kinds, plain, session, simplified
from ultralytics import YOLO
from ultralytics.cfg import get_cfg
from ultralytics.engine.exporter import Exporter
from ultralytics.nn.Addmodules import C2fSS2D, C2fVSS, Mamba, MambaLayer, VSSBlock
from ultralytics.nn.Addmodules.hooks.eight_bits import (
    of_scans,
    of_the_picture,
    own_initializers,
    silu_after_convolution,
)
from ultralytics.nn.Addmodules.layers.graft import Graft
from ultralytics.nn.Addmodules.layers.state_space import StateSpace
from ultralytics.nn.Addmodules.selective_scan import selective_scan_fn, selective_scan_ref
from ultralytics.nn.Addmodules.selective_scan.export import MAX_STATE
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils import ASSETS

ROOT = Path(__file__).resolve().parents[1]
onnx = pytest.importorskip("onnx", reason="pip install -e '.[deploy]'")
pytest.importorskip("onnx.inliner")
onnxruntime = pytest.importorskip("onnxruntime", reason="pip install -e '.[deploy]'")

# Maps whose numbers of tokens lie below, at, above and between multiples of a run of 16.
MAPS = [(1, 1), (3, 5), (4, 4), (1, 17), (5, 7), (8, 8)]


class PerToken(nn.Module):
    """The recipe's function on a map (B, 8, H, W), with two groups, a gate and everything optional."""

    def __init__(self) -> None:
        """Make the weights."""
        super().__init__()
        self.A = nn.Parameter(-torch.rand(8, 4))
        self.D, self.bias = nn.Parameter(torch.randn(8)), nn.Parameter(torch.randn(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scan."""
        u = x.flatten(2)
        B, C = u[:, :8].reshape(u.shape[0], 2, 4, -1), u.cos().reshape(u.shape[0], 2, 4, -1)
        y = selective_scan_fn(u, u.sin(), self.A, B, C, self.D, u.tanh(), self.bias, delta_softplus=True)
        return y.reshape(x.shape)


LAYERS = {
    "MambaLayer": lambda: nn.Sequential(MambaLayer(8), MambaLayer(8, d_state=3)),
    "VSSBlock": lambda: nn.Sequential(VSSBlock(8), VSSBlock(8, d_state=1, gate=False, mlp_ratio=2)),
    "C2fVSS": lambda: C2fVSS(8, 8, n=2),
    "C2fSS2D": lambda: nn.Sequential(C2fSS2D(8, 8), C2fSS2D(8, 8, 1, 4, 2, 3, 2, False)),
    "selective_scan_fn": PerToken,
}


SOME = [pytest.param(name, marks=[pytest.mark.slow] if name in ("VSSBlock", "C2fVSS") else []) for name in LAYERS]


@pytest.fixture(scope="module", params=LAYERS)
def layer(request: pytest.FixtureRequest) -> nn.Module:
    """Return layers with random weights, in the way a trained model has them."""
    torch.manual_seed(0)
    module = LAYERS[request.param]().eval()
    with torch.no_grad():
        for p in module.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    return module


def to_onnx(module: nn.Module, x: torch.Tensor, file: Path, opset: int = 18) -> onnx.ModelProto:
    """Export a layer for every batch and size as upstream does, and return the checked model."""
    axes = {0: "batch", 2: "height", 3: "width"}
    with torch.no_grad():
        torch.onnx.export(
            module, x, str(file), opset_version=opset, input_names=["x"], dynamic_axes={"x": axes}, dynamo=False
        )
    model = onnx.load(file)
    onnx.checker.check_model(model, full_check=True)
    return model


# Layers ---------------------------------------------------------------------------------------------------------------


def test_onnx_equals_pytorch_for_every_size(layer: nn.Module, tmp_path: Path) -> None:
    model = to_onnx(layer, torch.randn(1, 8, 4, 4), tmp_path / "layer.onnx")
    assert all(node.domain == "" for node in model.graph.node)
    run = session(tmp_path / "layer.onnx")
    for batch, size in [(1, s) for s in MAPS] + [(3, (3, 5))]:
        x = torch.randn(batch, 8, *size)
        got = torch.from_numpy(run.run(None, {"x": x.numpy()})[0])
        with torch.no_grad():
            torch.testing.assert_close(got, layer(x), rtol=1e-4, atol=1e-5)


def test_a_trace_equals_pytorch_for_every_size(layer: nn.Module, tmp_path: Path) -> None:
    with torch.no_grad():
        torch.jit.trace(layer, torch.randn(1, 8, 4, 4), strict=False, check_trace=False).save(tmp_path / "layer.ts")
        loaded = torch.jit.load(tmp_path / "layer.ts")
        for batch, size in [(1, s) for s in MAPS] + [(3, (3, 5))]:
            x = torch.randn(batch, 8, *size)
            torch.testing.assert_close(loaded(x), layer(x), rtol=1e-4, atol=1e-5)
    assert "vmamba" not in str(loaded.inlined_graph)


@pytest.mark.skipif(not hasattr(torch.compiler, "is_exporting"), reason="torch.export is for PyTorch 2.7 and newer")
@pytest.mark.parametrize("layer", SOME, indirect=True)
def test_torch_export_equals_pytorch_for_every_size(layer: nn.Module) -> None:
    auto = torch.export.Dim.AUTO
    with torch.no_grad():
        program = torch.export.export(layer, (torch.randn(2, 8, 5, 6),), dynamic_shapes=({0: auto, 2: auto, 3: auto},))
        for batch, size in [(2, s) for s in ((4, 4), (5, 7))] + [(3, (3, 5))]:  # its sizes are 2 or more
            x = torch.randn(batch, 8, *size)
            torch.testing.assert_close(program.module()(x), layer(x), rtol=1e-4, atol=1e-5)
    assert "vmamba" not in str(program.graph_module)


@pytest.mark.skipif(not hasattr(torch.compiler, "is_exporting"), reason="torch.export is for PyTorch 2.7 and newer")
@pytest.mark.parametrize("layer", SOME, indirect=True)
def test_onnx_of_torch_export_equals_pytorch_for_every_size(layer: nn.Module, tmp_path: Path) -> None:
    """What `torch.onnx.export` does where nobody tells it not to, as Ultralytics tells it."""
    pytest.importorskip("onnxscript", reason="pip install onnxscript")
    auto, file = torch.export.Dim.AUTO, tmp_path / "layer.onnx"
    with torch.no_grad():
        shapes = ({0: auto, 2: auto, 3: auto},)
        torch.onnx.export(layer, (torch.randn(2, 8, 5, 6),), file, dynamo=True, dynamic_shapes=shapes, verbose=False)
        run = session(file)
        for batch, size in [(2, (5, 6)), (2, (4, 4)), (3, (3, 5))]:
            x = torch.randn(batch, 8, *size)
            got = run.run(None, {run.get_inputs()[0].name: x.numpy()})[0]
            torch.testing.assert_close(torch.from_numpy(got), layer(x), rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(not hasattr(torch.compiler, "is_exporting"), reason="torch.export is for PyTorch 2.7 and newer")
def test_a_graft_has_its_exact_norm_in_onnx_of_torch_export(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="pip install onnxscript")
    file = tmp_path / "graft.onnx"
    torch.onnx.export(Graft(8).eval(), (torch.randn(1, 8, 6, 5),), file, dynamo=True, verbose=False)
    assert "InstanceNormalization" not in {node.op_type for node in onnx.load(file).graph.node}


@pytest.mark.parametrize("layer", SOME, indirect=True)
def test_openvino_equals_pytorch_for_every_size(layer: nn.Module) -> None:
    ov = pytest.importorskip("openvino", reason="pip install -e '.[deploy]'")
    with torch.no_grad():
        x = torch.randn(1, 8, 4, 4)
        model = ov.convert_model(torch.jit.trace(layer, x, strict=False, check_trace=False), example_input=x)
        run = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1})
        for batch, size in [(1, s) for s in MAPS] + [(3, (3, 5))]:
            x = torch.randn(batch, 8, *size)
            torch.testing.assert_close(torch.from_numpy(run(x.numpy())[0]), layer(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bimamba_type", Mamba.bimamba_types)
@pytest.mark.parametrize("fast", [True, False])
def test_every_block_is_exported(bimamba_type: str, fast: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    block = Mamba(8, d_state=5, d_conv=3, bimamba_type=bimamba_type, conv_bias=False, use_fast_path=fast).eval()
    x = torch.randn(2, 21, 8)
    with torch.no_grad():
        torch.onnx.export(block, x, str(tmp_path / "block.onnx"), opset_version=18, input_names=["x"], dynamo=False)
        got = session(tmp_path / "block.onnx").run(None, {"x": x.numpy()})[0]
        torch.testing.assert_close(torch.from_numpy(got), block(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("opset", [13, 17, 20])
def test_opsets(opset: int, tmp_path: Path) -> None:
    module, x = MambaLayer(8).eval(), torch.randn(1, 8, 5, 5)
    to_onnx(module, x, tmp_path / "layer.onnx", opset)
    got = session(tmp_path / "layer.onnx").run(None, {"x": x.numpy()})[0]
    torch.testing.assert_close(torch.from_numpy(got), module(x).detach(), rtol=1e-4, atol=1e-5)


def test_an_old_opset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs ONNX opset 13 or later, got opset=12"):
        to_onnx(MambaLayer(8).eval(), torch.randn(1, 8, 4, 4), tmp_path / "layer.onnx", 12)
    assert not (tmp_path / "layer.onnx").exists()


def test_steps_from_tiny_to_huge_keep_their_digits(tmp_path: Path) -> None:
    """Softplus of -20 to 60, whose naive form loses the small ones and overflows on the large ones."""

    class Steps(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            u, ones = torch.ones_like(x), torch.ones_like(x[:, :1])
            return selective_scan_fn(u, x, -torch.ones(x.shape[1], 1), ones, ones, delta_softplus=True)

    x = torch.linspace(-20, 60, 40).repeat(2, 3, 1)
    with torch.no_grad():
        torch.onnx.export(Steps(), x, str(tmp_path / "s.onnx"), opset_version=18, input_names=["x"], dynamo=False)
    got = torch.from_numpy(session(tmp_path / "s.onnx").run(None, {"x": x.numpy()})[0])
    u, ones = torch.ones_like(x).double(), torch.ones_like(x[:, :1]).double()
    want = selective_scan_ref(u, x.double(), -torch.ones(3, 1).double(), ones, ones, delta_softplus=True)
    torch.testing.assert_close(got.double(), want, rtol=2e-6, atol=1e-12)


def test_the_last_state_is_refused() -> None:
    class Last(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return selective_scan_fn(x, x, -torch.ones(4, 1), x[:, :1], x[:, :1], return_last_state=True)[1]

    with pytest.raises(ValueError, match="return_last_state=True cannot be exported"):
        torch.jit.trace(Last(), torch.randn(1, 4, 6))


# Through upstream's exporter ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a saved model whose classes have scores that differ from place to place."""
    torch.manual_seed(0)
    yolo = YOLO("VMamba-yolov8n.yaml", verbose=False)
    with torch.no_grad():
        for branch in yolo.model.model[-1].cv3:
            branch[-1].weight.mul_(30)
            branch[-1].bias.add_(9)
    file = tmp_path_factory.mktemp("model") / "best.pt"
    yolo.save(file)
    return file


@pytest.fixture(scope="module")
def exported(checkpoint: Path) -> Path:
    """Return the ONNX file of it, for 96 x 96 pixels."""
    pytest.importorskip("onnxslim", reason="pip install -e '.[deploy]'")
    return Path(YOLO(checkpoint).export(format="onnx", imgsz=96, device="cpu"))


def boxes(file: Path) -> np.ndarray:
    """Return (x1, y1, x2, y2, score, class) of what a file finds in a picture, best first."""
    result = YOLO(file, task="detect").predict(ASSETS / "bus.jpg", imgsz=96, rect=False, verbose=False, device="cpu")
    return result[0].boxes.data.numpy()


def test_an_exported_file_finds_what_the_model_finds(checkpoint: Path, exported: Path) -> None:
    want, got = boxes(checkpoint), boxes(exported)
    assert len(want) > 3
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=0.5)  # pixels of a picture 810 wide


def test_the_file_is_small_and_of_standard_operators(checkpoint: Path, exported: Path) -> None:
    onnx.checker.check_model(onnx.load(exported), full_check=True)
    model = simplified(exported)
    assert {node.domain for node in model.graph.node} == {""}
    found = kinds(model.graph)
    assert found.count("Scan") == 6  # a layer each
    assert len(found) <= 1500
    weights = 4 * sum(p.numel() for p in YOLO(checkpoint).model.parameters())
    assert exported.stat().st_size < 1.1 * weights


@pytest.mark.parametrize("form", ["ncnn", "mnn"])
def test_a_format_without_loops_is_refused_before_anything_is_written(form: str, checkpoint: Path) -> None:
    before = sorted(checkpoint.parent.iterdir())
    with pytest.raises(ValueError, match=f"format='{form}' cannot hold .* d_state 4 or less, not 16.* format=onnx"):
        YOLO(checkpoint).export(format=form, imgsz=32)
    assert sorted(checkpoint.parent.iterdir()) == before


def test_an_old_opset_and_an_unknown_format_are_refused(checkpoint: Path) -> None:
    before = sorted(checkpoint.parent.iterdir())
    with pytest.raises(ValueError, match="opset=12 is too old for a selective scan; leave it out, or give 13 or later"):
        YOLO(checkpoint).export(format="onnx", imgsz=32, opset=12)
    with pytest.raises(ValueError, match=r"Invalid export format='xyz'\. Valid formats are"):
        YOLO(checkpoint).export(format="xyz")
    assert sorted(checkpoint.parent.iterdir()) == before


@pytest.mark.parametrize(("form", "begun"), [("onnx", "best.onnx"), ("openvino", "best_openvino_model")])
def test_a_failed_export_leaves_nothing_behind(
    form: str, begun: str, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if form == "openvino":
        pytest.importorskip("openvino", reason="pip install -e '.[deploy]'")

    def fails(exporter: Exporter) -> str:
        path = exporter.file.with_name(begun)
        if form == "openvino":
            path.mkdir()
            path /= "best.xml"
        path.write_bytes(b"half a model")
        exporter.file.with_name("best.txt").write_text("somebody else's", encoding="utf-8")
        raise OSError("No space left on device")

    (tmp_path / "best.pt").write_bytes(checkpoint.read_bytes())
    (tmp_path / "best_other.onnx").write_text("an older one", encoding="utf-8")
    monkeypatch.setattr(Exporter, f"export_{form}", fails)
    with pytest.raises(OSError, match="No space left"):
        YOLO(tmp_path / "best.pt").export(format=form, imgsz=32)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best.pt", "best.txt", "best_other.onnx"]


def test_a_folder_that_cannot_be_written_to_is_named(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writable = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path != checkpoint.parent and writable(path, mode))
    before = sorted(checkpoint.parent.iterdir())
    with pytest.raises(PermissionError, match=f"{re.escape(str(checkpoint.parent))} cannot be written to; .* beside"):
        YOLO(checkpoint).export(format="onnx", imgsz=32)
    assert sorted(checkpoint.parent.iterdir()) == before


def test_a_corrupt_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "broken.onnx"
    file.write_bytes(b"not a model")
    with pytest.raises(Exception, match=r"broken\.onnx"):
        YOLO(file, task="detect").predict(ASSETS / "bus.jpg", imgsz=32, verbose=False)


QUICK = ("VMamba-yolo", "VMamba-yolov8-cls")


@pytest.mark.parametrize(
    "stem", [pytest.param(stem, marks=[] if stem in QUICK else pytest.mark.slow) for stem in FILES]
)
def test_every_model_file_is_exported(stem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # where a model that has no file yet is exported to
    torch.manual_seed(0)
    yolo = YOLO(f"{scaled(stem, 'n')}.yaml", verbose=False)
    file = yolo.export(format="onnx", imgsz=64, device="cpu")
    model = yolo.model.eval()
    if hasattr(model, "end2end"):
        model.end2end = False  # as upstream exports it by default
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        want = list(flat(model(x)))
    got = session(file).run(None, {"images": x.numpy()})
    layers = sum(isinstance(m, StateSpace) for m in model.modules())
    loops = sum(m.d_state > MAX_STATE for m in model.modules() if isinstance(m, StateSpace))
    assert layers > 0
    assert kinds(plain(file).graph).count("Scan") == loops  # all directions of a layer in one loop
    torch.testing.assert_close(torch.from_numpy(got[0]), want[0], rtol=1e-3, atol=2e-3)  # boxes in pixels
    if yolo.task == "segment":
        protos = next(p for p in want if p.shape == got[1].shape)
        torch.testing.assert_close(torch.from_numpy(got[1]), protos, rtol=1e-3, atol=1e-4)


def test_a_graph_for_every_size_is_not_much_larger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = YOLO("VMamba-yolon.yaml", verbose=False).export(format="onnx", imgsz=64, dynamic=True, device="cpu")
    assert len(kinds(simplified(file).graph)) <= 1700  # the operator takes a map: two reshapes with their sizes a layer


def flat(x: object) -> Iterator[torch.Tensor]:
    """Return the tensors of what a model returns."""
    if isinstance(x, torch.Tensor):
        yield x
    else:
        for part in x.values() if isinstance(x, dict) else x:
            yield from flat(part)


@pytest.mark.slow
def test_a_model_trained_in_low_precision_is_exported(tmp_path: Path) -> None:
    """Steps under autocast, as upstream takes them: its own trainer has bfloat16 on GPUs only."""
    torch.manual_seed(0)
    yolo = YOLO("VMamba-yolov8n.yaml", verbose=False)
    model = yolo.model.train()
    model.args = get_cfg()
    batch = {
        "img": torch.rand(2, 3, 64, 64),
        "batch_idx": torch.tensor([0.0, 1.0]),
        "cls": torch.tensor([[0.0], [1.0]]),
    }
    batch["bboxes"] = torch.tensor([[0.5, 0.5, 0.4, 0.4], [0.3, 0.6, 0.2, 0.5]])
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    for _ in range(4):
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(batch)[0].sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert torch.isfinite(loss)
    moved = [k for k, v in model.state_dict().items() if k.endswith("A_log") and not torch.equal(v, before[k])]
    assert moved
    yolo.save(tmp_path / "m.pt")
    file = YOLO(tmp_path / "m.pt").export(format="onnx", imgsz=64, device="cpu")
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        want = YOLO(tmp_path / "m.pt").model.float().eval()(x)[0]
    got = torch.from_numpy(session(file).run(None, {"images": x.numpy()})[0])
    torch.testing.assert_close(got, want, rtol=1e-3, atol=2e-3)


@pytest.mark.slow
def test_half_keeps_the_state_float32(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "half.pt").write_bytes(checkpoint.read_bytes())
    file = Path(YOLO(tmp_path / "half.pt").export(format="onnx", imgsz=96, half=True, device="cpu"))
    for node in plain(file).graph.node:
        if node.op_type == "Scan":
            body = next(a.g for a in node.attribute if a.name == "body")
            constants = [a.t.data_type for n in body.node for a in n.attribute if n.op_type == "Constant"]
            kept = {t.data_type for t in body.initializer} | set(constants)
            assert onnx.TensorProto.FLOAT16 not in kept
    x = np.random.default_rng(0).random((1, 3, 96, 96), np.float32)
    with torch.no_grad():
        want = YOLO(checkpoint).model.eval()(torch.from_numpy(x))[0].numpy()
    got = session(file).run(None, {"images": x})[0]
    np.testing.assert_allclose(got[:, :4], want[:, :4], atol=1.5)  # pixels
    np.testing.assert_allclose(got[:, 4:], want[:, 4:], atol=0.05)


def test_what_is_rounded_to_eight_bits() -> None:
    node = onnx.helper.make_node
    nodes = [
        node("Conv", ["x", "w"], ["a"], "conv"),
        node("Sigmoid", ["a"], ["b"], "gate"),
        node("Mul", ["b", "a"], ["c"], "silu"),
        node("Sigmoid", ["c"], ["d"], "not of a convolution"),
        node("Mul", ["c", "d"], ["e"], "its product"),
        node("Mul", ["c", "b"], ["f"], "a gate of another value"),
        node("Conv", ["f", "w"], ["g"], "head"),
        node("Sigmoid", ["g"], ["h"], "scores"),
    ]
    picture = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 3, 8, 8])
    graph = onnx.helper.make_graph(nodes, "graph", [picture], [])
    assert silu_after_convolution(graph) == {"gate", "silu"}
    assert of_the_picture(graph) == {"conv"}
    model = DetectionModel("VMamba-yolon.yaml", verbose=False)
    places = ["model.7/op", "model.9/m.0", "model/model.13/m.1", "model.9/m.0/in_proj", "model.9", "other.9/m.0"]
    graph = onnx.helper.make_graph([node("MatMul", ["a", "b"], ["c"], f"/{p}/MatMul_3") for p in places], "g", [], [])
    assert of_scans(onnx.helper.make_model(graph), model) == {f"/{p}/MatMul_3" for p in places[:3]}
    scan = onnx.helper.make_function("vmamba", "Scan", ["x"], ["y"], [node("Exp", ["x"], ["y"])], [])
    assert of_scans(onnx.helper.make_model(graph, functions=[scan]), model) == set()


def test_an_identity_of_an_initializer_becomes_one() -> None:
    node = onnx.helper.make_node
    nodes = [
        node("Identity", ["w"], ["v"]),
        node("Identity", ["v"], ["u"]),
        node("Add", ["x", "u"], ["y"]),
        node("Identity", ["y"], ["z"]),
    ]
    x, z = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [2]) for name in "xz")
    graph = onnx.helper.make_graph(
        nodes, "graph", [x], [z], [onnx.numpy_helper.from_array(np.ones(2, np.float32), "w")]
    )
    own_initializers(graph)
    assert [n.op_type for n in graph.node] == ["Add", "Identity"]
    assert {t.name: onnx.numpy_helper.to_array(t).tolist() for t in graph.initializer} == dict.fromkeys("wvu", [1, 1])
    onnx.checker.check_model(onnx.helper.make_model(graph))


@pytest.mark.slow
@pytest.mark.parametrize(("form", "package"), [("onnx", "onnxruntime"), ("openvino", "nncf")])
def test_eight_bits_keep_the_scores(form: str, package: str, checkpoint: Path, tmp_path: Path) -> None:
    pytest.importorskip(package, reason="pip install nncf")
    (tmp_path / "m.pt").write_bytes(checkpoint.read_bytes())
    data = make_data(tmp_path / "data", "detect")
    file = Path(YOLO(tmp_path / "m.pt").export(format=form, imgsz=96, quantize=8, data=str(data), device="cpu"))
    size = (file if file.is_file() else next(file.glob("*.bin"))).stat().st_size
    assert size < 0.5 * 4 * sum(p.numel() for p in YOLO(checkpoint).model.parameters())
    want, got = boxes(checkpoint), boxes(file)
    assert len(want) > 3
    assert got[0, 5] == want[0, 5]
    np.testing.assert_allclose(got[0, 4], want[0, 4], atol=0.1)
    if form == "onnx":
        graph = onnx.load(file).graph
        tensors = {i.name: onnx.numpy_helper.to_array(i) for i in graph.initializer}
        scales = {name: t for name, t in tensors.items() if name.endswith("conv.weight_scale")}
        assert scales
        assert all(t.ndim == 1 for t in scales.values())  # one a channel: a single one has no axis
        weights = [t for name, t in tensors.items() if name.endswith("conv.weight_quantized")]
        assert 60 < max(abs(t.astype(int)).max() for t in weights) <= 64  # 7 bits
        rounded = {node.input[0]: node for node in graph.node if node.op_type == "QuantizeLinear"}
        assert {tensors[node.input[2]].dtype for node in rounded.values()} == {np.dtype("uint8")}
        silu = [node for node in graph.node if node.op_type == "Mul" and "/act/" in node.name]
        assert silu
        assert all(node.output[0] in rounded for node in silu)


@pytest.mark.slow
def test_nms_batch_and_dynamic_sizes(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "m.pt").write_bytes(checkpoint.read_bytes())
    yolo = YOLO(tmp_path / "m.pt")
    file = yolo.export(format="onnx", imgsz=96, dynamic=True, device="cpu")
    run, model = session(file), YOLO(checkpoint).model.eval()
    for shape in ((1, 3, 96, 96), (2, 3, 32, 64), (3, 3, 160, 96)):
        x = torch.rand(shape)
        with torch.no_grad():
            want = model(x)[0]
        torch.testing.assert_close(
            torch.from_numpy(run.run(None, {"images": x.numpy()})[0]), want, rtol=1e-3, atol=2e-3
        )
    file = yolo.export(format="onnx", imgsz=96, nms=True, batch=2, device="cpu")
    assert ast.literal_eval(session(file).get_modelmeta().custom_metadata_map["batch"]) == 2
    found = session(file).run(None, {"images": np.random.default_rng(0).random((2, 3, 96, 96), np.float32)})[0]
    assert found.shape[0] == 2
    assert np.isfinite(found).all()


@pytest.mark.slow
@pytest.mark.parametrize("form", ["torchscript", "openvino"])
def test_other_formats_find_what_the_model_finds(form: str, checkpoint: Path, tmp_path: Path) -> None:
    if form == "openvino":
        pytest.importorskip("openvino", reason="pip install -e '.[deploy]'")
    (tmp_path / "m.pt").write_bytes(checkpoint.read_bytes())
    file = Path(YOLO(tmp_path / "m.pt").export(format=form, imgsz=96, device="cpu"))
    want, got = boxes(checkpoint), boxes(file)
    assert len(want) > 3
    if form == "torchscript":
        np.testing.assert_allclose(got, want, rtol=1e-3, atol=0.5)
    else:  # OpenVINO may choose bfloat16
        np.testing.assert_allclose(got[0, :4], want[0, :4], atol=20)
