# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Exported graphs: equal to PyTorch for every size, of standard operators, through upstream's command and back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from ultralytics.nn.Addmodules import C2fVSS, Mamba, MambaLayer, VSSBlock
from ultralytics.nn.Addmodules.selective_scan import selective_scan_fn, selective_scan_ref

onnx = pytest.importorskip("onnx", reason="pip install -e '.[export]'")
onnxruntime = pytest.importorskip("onnxruntime", reason="pip install -e '.[export]'")

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
    "selective_scan_fn": PerToken,
}


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


def session(file: Path | str) -> onnxruntime.InferenceSession:
    """Return an ONNX Runtime session with one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def kinds(graph: onnx.GraphProto) -> list[str]:
    """Return the operators of a graph and of the graphs inside it."""
    inner = [a.g for n in graph.node for a in n.attribute if a.type == onnx.AttributeProto.GRAPH]
    return [n.op_type for n in graph.node] + [kind for g in inner for kind in kinds(g)]


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


def test_torch_export_equals_pytorch_for_every_size(layer: nn.Module) -> None:
    auto = torch.export.Dim.AUTO
    with torch.no_grad():
        program = torch.export.export(layer, (torch.randn(2, 8, 5, 6),), dynamic_shapes=({0: auto, 2: auto, 3: auto},))
        for batch, size in [(2, s) for s in ((4, 4), (5, 7))] + [(3, (3, 5))]:  # its sizes are 2 or more
            x = torch.randn(batch, 8, *size)
            torch.testing.assert_close(program.module()(x), layer(x), rtol=1e-4, atol=1e-5)
    assert "vmamba" not in str(program.graph_module)


def test_openvino_equals_pytorch_for_every_size(layer: nn.Module) -> None:
    ov = pytest.importorskip("openvino", reason="pip install -e '.[export]'")
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
