# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""The scan as an operator in an ONNX file: equal to PyTorch with the library and without, refusals in a sentence."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from ultralytics import YOLO
from ultralytics.nn.Addmodules import C2fSS2D, Mamba, MambaLayer
from ultralytics.nn.Addmodules.hooks.onnx_session import add_library
from ultralytics.nn.Addmodules.layers.state_space import StateSpace
from ultralytics.nn.Addmodules.selective_scan import onnx_operator, registry
from ultralytics.utils import ASSETS, LOGGER

onnx = pytest.importorskip("onnx", reason="pip install -e '.[deploy]'")
ort = pytest.importorskip("onnxruntime", reason="pip install -e '.[deploy]'")
onnxslim = pytest.importorskip("onnxslim", reason="pip install -e '.[deploy]'")
inliner = pytest.importorskip("onnx.inliner")

try:
    LIBRARY = onnx_operator.operator_library()
except RuntimeError as e:
    pytest.skip(str(e), allow_module_level=True)


def strengthen(module: nn.Module) -> nn.Module:
    """Give the scans large steps and small skips, so that what they compute decides the output; return the module."""
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for m in module.modules():
            if isinstance(m, StateSpace):
                for name, p in m.named_parameters():
                    if "dt_proj" in name and "bias" in name:
                        p.uniform_(-1, 1, generator=g)
                    elif name.rpartition(".")[2] in ("D", "D_b", "Ds"):
                        p.uniform_(0, 0.2, generator=g)
                    elif "x_proj" in name:
                        p.mul_(3)
    return module


def session(file: Path | bytes, library: str | None, threads: int = 1):
    """Return a session with the library, or without one."""
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    if library:
        options.register_custom_ops_library(library)
    given = file if isinstance(file, bytes) else str(file)
    return ort.InferenceSession(given, options, providers=["CPUExecutionProvider"])


def export(module: nn.Module, x: torch.Tensor, file: Path, half: bool = False, opset: int = 18) -> onnx.ModelProto:
    """Export a layer for every batch and size, with our operators."""
    axes = {"x": {0: "batch", 2: "height", 3: "width"}} if x.dim() == 4 else {"x": {0: "batch", 1: "length"}}
    settings = {"opset_version": opset, "input_names": ["x"], "dynamic_axes": axes, "dynamo": False}
    with torch.no_grad(), onnx_operator.in_one_file(half):
        torch.onnx.export(module, x, str(file), **settings)
    model = onnx.load(file)
    onnx.checker.check_model(model, full_check=True)
    return model


def to_half(model: onnx.ModelProto, file: Path) -> Path:
    """Convert to float16 as upstream does, and write the file."""
    from onnxruntime.transformers import float16

    onnx.save(float16.convert_float_to_float16(model, keep_io_types=True), file)
    return file


def calls(model: onnx.ModelProto) -> list[str]:
    """Return the names of our operators in a model."""
    return [n.op_type for n in model.graph.node if n.domain == onnx_operator.DOMAIN]


# Layers ---------------------------------------------------------------------------------------------------------------


class Tokens(nn.Module):
    """A Mamba block of (B, L, 8)."""

    def __init__(self, **settings) -> None:
        super().__init__()
        self.block = Mamba(8, **settings)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Mix tokens."""
        return self.block(x)


LAYERS = {  # a module, and how many operators its file has
    "MambaLayer": (lambda: nn.Sequential(MambaLayer(8), MambaLayer(8, d_state=3)), 2),
    "four directions": (lambda: C2fSS2D(8, 8, 2), 2),
    "two directions": (lambda: C2fSS2D(8, 8, 1, 4, 2, 3, 2), 1),
    "one direction, no bias": (lambda: Tokens(conv_bias=False, d_conv=2), 1),
    "shared projections": (lambda: Tokens(bimamba_type="v1", d_state=5), 1),
    "wide": (lambda: Tokens(bimamba_type="v2", d_state=33, expand=9, dt_rank=7), 1),
}
SIZES = {
    4: [(1, 8, 4, 4), (1, 8, 1, 1), (1, 8, 1, 17), (3, 8, 5, 7), (2, 8, 20, 33)],
    3: [(1, 5, 8), (3, 1, 8), (2, 700, 8)],
}


@pytest.fixture(scope="module", params=LAYERS)
def layer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    """Return layers with strong scans, and their file."""
    torch.manual_seed(0)
    make, count = LAYERS[request.param]
    module = strengthen(make().eval())
    rank = 3 if isinstance(module, Tokens) else 4
    file = tmp_path_factory.mktemp("layer") / "layer.onnx"
    model = export(module, torch.randn(SIZES[rank][0]), file)
    assert len(calls(model)) == len(model.functions) == count
    return module, file


def inputs(module: nn.Module) -> list[torch.Tensor]:
    """Return inputs of several batches and sizes."""
    return [torch.randn(size) for size in SIZES[3 if isinstance(module, Tokens) else 4]]


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("library", [None, LIBRARY], ids=["bodies", "library"])
def test_a_file_equals_pytorch_for_every_size(library: str | None, threads: int, layer: tuple[nn.Module, Path]) -> None:
    module, file = layer
    run = session(file, library, threads)
    for x in inputs(module):
        with torch.no_grad():
            want = module(x)
        for _ in range(2):  # the second call knows how many threads there are
            got = torch.from_numpy(run.run(None, {"x": x.numpy()})[0])
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_simplified_and_inlined_files_equal_the_file(layer: tuple[nn.Module, Path]) -> None:
    module, file = layer
    model = onnx.load(file)
    slim = onnxslim.slim(onnx.load(file))
    plain = inliner.inline_local_functions(model)
    assert calls(slim) == calls(model)
    assert calls(plain) == []
    assert not plain.functions
    for x in inputs(module)[-2:]:
        want = session(file, None).run(None, {"x": x.numpy()})[0]
        for changed, library in ((slim, None), (slim, LIBRARY), (plain, None)):
            got = session(changed.SerializeToString(), library).run(None, {"x": x.numpy()})[0]
            np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("library", [None, LIBRARY], ids=["bodies", "library"])
def test_float16(library: str | None, layer: tuple[nn.Module, Path], tmp_path: Path) -> None:
    module, _ = layer
    model = export(module, inputs(module)[0], tmp_path / "layer.onnx", half=True)
    file = to_half(model, tmp_path / "half.onnx")
    kinds = {t.data_type for t in onnx.load(file).graph.initializer if t.dims}
    assert onnx.TensorProto.FLOAT not in kinds
    run = session(file, library)
    for x in inputs(module):
        with torch.no_grad():
            want = module(x)
        got = torch.from_numpy(run.run(None, {"x": x.numpy()})[0])
        torch.testing.assert_close(got, want, rtol=1e-2, atol=1e-2 * want.abs().max().item())


def test_the_library_computes_the_scans(layer: tuple[nn.Module, Path]) -> None:
    """With a body that answers 7, the answer without the library is wrong, and with it right."""
    module, file = layer
    model = onnx.load(file)
    for function in model.functions:
        seven = onnx.helper.make_node("Constant", [], ["seven"], value_float=7.0)
        names = {"x": function.input[0]}
        wrong = [seven, onnx.helper.make_node("Mul", [names["x"], "seven"], ["wrong"])]
        if function.node[-1].op_type == "CastLike":
            raise AssertionError("a float32 file needs no casts")
        for node in function.node:
            node.output[:] = ["right" if o == "y" else o for o in node.output]
            node.input[:] = ["right" if i == "y" else i for i in node.input]
        zero = onnx.helper.make_node("Constant", [], ["zero"], value_float=0.0)
        none = [zero, onnx.helper.make_node("Mul", ["right", "zero"], ["none"])]
        total = onnx.helper.make_node("ReduceSum", ["wrong"], ["sum"], keepdims=0)
        function.node.extend([*wrong, *none, total, onnx.helper.make_node("Add", ["none", "sum"], ["y"])])
    x = inputs(module)[-1]
    with torch.no_grad():
        want = module(x).numpy()
    without, with_ = (session(model.SerializeToString(), lib).run(None, {"x": x.numpy()})[0] for lib in (None, LIBRARY))
    assert not np.allclose(without, want, rtol=1e-2, atol=1e-2)
    np.testing.assert_allclose(with_, want, rtol=1e-4, atol=1e-5)


def test_many_sessions_and_threads_at_once(layer: tuple[nn.Module, Path]) -> None:
    from concurrent.futures import ThreadPoolExecutor

    module, file = layer
    runs = [session(file, LIBRARY, threads) for threads in (1, 2)]
    xs = inputs(module) * 4
    with torch.no_grad():
        wants = [module(x).numpy() for x in xs]
    with ThreadPoolExecutor(4) as pool:
        gots = pool.map(lambda i: runs[i % 2].run(None, {"x": xs[i].numpy()})[0], range(len(xs)))
        for got, want in zip(gots, wants):
            np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_layers_beyond_the_names_of_the_library_keep_standard_operators(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_operator, "LAYERS", 1)
    module, x = strengthen(nn.Sequential(MambaLayer(8), MambaLayer(8)).eval()), torch.randn(1, 8, 5, 6)
    model = export(module, x, tmp_path / "m.onnx")
    assert calls(model) == ["MambaInner_0"]
    got = torch.from_numpy(session(tmp_path / "m.onnx", LIBRARY).run(None, {"x": x.numpy()})[0])
    torch.testing.assert_close(got, module(x).detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [{"d_conv": 17}, {"d_state": 257}, {"dt_rank": 257}], ids=str)
def test_sizes_beyond_the_kernels_keep_standard_operators(
    size: dict, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, x = strengthen(Tokens(**size).eval()), torch.randn(1, 12, 8)
    monkeypatch.setattr(logging.getLogger("ultralytics"), "propagate", True)
    assert calls(export(module, x, tmp_path / "m.onnx")) == []
    assert "standard operators alone, which are slower" in caplog.text
    got = torch.from_numpy(session(tmp_path / "m.onnx", LIBRARY).run(None, {"x": x.numpy()})[0])
    torch.testing.assert_close(got, module(x).detach(), rtol=1e-4, atol=1e-5)


def test_an_opset_without_functions_has_standard_operators(tmp_path: Path) -> None:
    model = export(MambaLayer(8).eval(), torch.randn(1, 8, 5, 6), tmp_path / "m.onnx", opset=14)
    assert not model.functions
    assert {n.domain for n in model.graph.node} == {""}


def test_only_the_export_that_asks_for_operators_has_them(tmp_path: Path) -> None:
    with onnx_operator.in_one_file():
        pass
    x = torch.randn(1, 8, 5, 6)
    torch.onnx.export(MambaLayer(8).eval(), x, str(tmp_path / "m.onnx"), opset_version=18, dynamo=False)
    assert not onnx.load(tmp_path / "m.onnx").functions


# Bad input ------------------------------------------------------------------------------------------------------------


def one_operator(tmp_path: Path, **changes) -> onnx.ModelProto:
    """Return the model of a layer, with changes to the attributes of its operator."""
    torch.manual_seed(0)
    model = export(MambaLayer(8).eval(), torch.randn(1, 8, 4, 4), tmp_path / "m.onnx")
    node = next(n for n in model.graph.node if n.domain)
    kept = [a for a in node.attribute if a.name not in changes]
    del node.attribute[:]
    node.attribute.extend([*kept, *(onnx.helper.make_attribute(k, v) for k, v in changes.items())])
    return model


def test_a_file_of_another_version_is_refused_by_the_library(tmp_path: Path) -> None:
    model = one_operator(tmp_path, version=2).SerializeToString()
    said = "MambaInner_0 of the file is of version 2 and this library has version 1: export the model again, or leave"
    with pytest.raises(Exception, match=said):
        session(model, LIBRARY)
    session(model, None)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"orders": [0]},
            "have 512, 32 and 32 values, which do not belong to 1 directions of 16",
        ),
        ({"D": [1.0]}, "A, D and dt_bias .* have 512, 1 and 32 values, which do not belong to 2"),
        ({"orders": [0, 4]}, "MambaInner_0 has the order 4, expected 0 to 3: export the model again"),
        ({"orders": [0] * 17}, "MambaInner_0 has 17 directions"),
        ({"orders": [2, 3]}, "the scan's operator got x with 3 axes, .* expected 4, 3 and 3"),
    ],
    ids=str,
)
def test_operators_that_do_not_fit_are_refused_in_a_sentence(changes: dict, said: str, tmp_path: Path) -> None:
    model = one_operator(tmp_path, **changes).SerializeToString()
    with pytest.raises(Exception, match=said):
        session(model, LIBRARY).run(None, {"x": np.zeros((1, 8, 4, 4), np.float32)})


def test_a_library_of_another_version_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_operator, "VERSION", 2)
    with pytest.raises(RuntimeError, match=r"_cpu.* has version 1 of the operator, need 2: reinstall"):
        onnx_operator.operator_library()


def test_no_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = registry.get("cpu")
    monkeypatch.setattr(backend, "works", False)
    monkeypatch.setattr(backend, "about", "the compiled library _cpu is not there")
    with pytest.raises(RuntimeError, match="the compiled library _cpu is not there"):
        onnx_operator.operator_library()


# Whole models ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a saved model whose scores depend on its scans."""
    torch.manual_seed(0)
    yolo = YOLO("VMamba-yolon.yaml", verbose=False)
    strengthen(yolo.model)
    norms = [m for m in yolo.model.modules() if isinstance(m, nn.BatchNorm2d)]
    with torch.no_grad():
        for norm in norms:  # untrained statistics let the numbers fade on their way, and products of them the more
            norm.momentum = 1.0
        yolo.model.train()(torch.rand(4, 3, 96, 96))
        for norm in norms:
            norm.momentum = 0.03
        for branch in yolo.model.eval().model[-1].cv3:
            branch[-1].bias.add_(4)
    file = tmp_path_factory.mktemp("model") / "best.pt"
    yolo.save(file)
    return file


def outputs(checkpoint: Path, x: torch.Tensor, scans: bool = True) -> np.ndarray:
    """Return what the model says in PyTorch, in the dtype of x, or without what scans carry from token to token."""
    model = YOLO(checkpoint).model.eval().to(x.dtype)
    if not scans:
        for m in model.modules():
            if isinstance(m, StateSpace):
                m.x_proj_weight.data.zero_()
    with torch.no_grad():
        return model(x)[0].float().numpy()


FILES = {
    "fixed": ({}, (1, 96)),
    "dynamic": ({"dynamic": True}, (3, 64)),
    "batch": ({"batch": 2}, (2, 96)),
    "half": ({"quantize": 16}, (1, 96)),
}


@pytest.mark.parametrize("kind", [pytest.param(k, marks=[pytest.mark.slow] if k == "batch" else []) for k in FILES])
def test_a_model_with_strong_scans_equals_pytorch(kind: str, checkpoint: Path, tmp_path: Path) -> None:
    settings, (batch, side) = FILES[kind]
    (tmp_path / "best.pt").write_bytes(checkpoint.read_bytes())
    file = Path(YOLO(tmp_path / "best.pt").export(format="onnx", imgsz=96, device="cpu", **settings))
    assert len(calls(onnx.load(file))) == 5
    x = torch.rand(batch, 3, side, side, generator=torch.Generator().manual_seed(0))
    want, weak = outputs(checkpoint, x), outputs(checkpoint, x, scans=False)
    assert np.abs(want - weak)[:, 4:].max() > 0.2  # or this test would prove nothing
    pixels, scores = 1e-2, 1e-3
    if kind == "half":  # twice what PyTorch itself loses in float16
        loss = np.abs(outputs(checkpoint, x.half()) - want)
        pixels, scores = 2 * loss[:, :4].max(), 2 * loss[:, 4:].max()
    for library in (None, LIBRARY):
        got = session(file, library).run(None, {"images": x.numpy()})[0]
        np.testing.assert_allclose(got[:, :4], want[:, :4], rtol=0, atol=pixels)
        np.testing.assert_allclose(got[:, 4:], want[:, 4:], rtol=0, atol=scores)


@pytest.fixture(scope="module")
def exported(checkpoint: Path) -> Path:
    """Return the file of the model."""
    return Path(YOLO(checkpoint).export(format="onnx", imgsz=96, device="cpu"))


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return what is logged."""
    lines: list[str] = []
    for level in ("info", "warning"):
        monkeypatch.setattr(LOGGER, level, lambda text, *a, **k: lines.append(str(text)))
    return lines


def boxes(file: Path) -> np.ndarray:
    """Return the boxes that `yolo predict` finds."""
    settings = {"imgsz": 96, "rect": False, "verbose": False, "device": "cpu"}
    return YOLO(file, task="detect").predict(ASSETS / "bus.jpg", **settings)[0].boxes.data.numpy()


def test_predict_takes_the_library_by_itself(
    checkpoint: Path, exported: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with_library = boxes(exported)
    assert any("operator library for ONNX Runtime" in line for line in said)
    assert not any("standard operators" in line for line in said)
    said.clear()
    backend = registry.get("cpu")
    monkeypatch.setattr(backend, "works", False)
    monkeypatch.setattr(backend, "about", "no C++ compiler when it was installed")
    without = boxes(exported)
    warnings = [line for line in said if "standard operators" in line]
    assert warnings == [
        "best.onnx runs its scans with standard operators, which takes longer: no C++ compiler when it was installed."
    ]
    want = boxes(checkpoint)
    assert len(want) > 3
    for got in (with_library, without):
        assert abs(len(got) - len(want)) <= 2  # boxes that overlap by just the limit
        # In any order, since scores of several are 1. Those of two classes may both be 1, so either may be named
        found = [(np.abs(got[:, :5] - row[:5]) < [0.5, 0.5, 0.5, 0.5, 1e-3]).all(1).any() for row in want[:20]]
        assert sum(found) >= 19  # NMS keeps another box where two overlap by just the limit


def test_predict_says_that_a_file_is_of_another_version(exported: Path, tmp_path: Path, said: list[str]) -> None:
    model = onnx.load(exported)
    for p in model.metadata_props:
        p.value = "2" if p.key == onnx_operator.KEY else p.value
    onnx.save(model, tmp_path / "later.onnx")
    assert add_library(tmp_path / "later.onnx") is None
    assert said == [
        "later.onnx runs its scans with standard operators, which takes longer: it was exported for version 2 of the "
        "scan's operator, and this installation has version 1; export the model again."
    ]


def test_a_file_without_our_operator_is_left_alone(tmp_path: Path, said: list[str]) -> None:
    torch.onnx.export(nn.Conv2d(3, 3, 1), torch.rand(1, 3, 4, 4), str(tmp_path / "c.onnx"), dynamo=False)
    assert add_library(tmp_path / "c.onnx") is None
    assert said == []


ALONE = """
import sys
import numpy as np
import onnxruntime as ort

options = ort.SessionOptions()
options.register_custom_ops_library(sys.argv[2])
run = ort.InferenceSession(sys.argv[1], options)
size = [d if isinstance(d, int) else 5 for d in run.get_inputs()[0].shape]
for batch in (1, 2):
    out = run.run(None, {run.get_inputs()[0].name: np.ones((batch, *size[1:]), np.float32)})[0]
    assert np.isfinite(out).all()
assert "torch" not in sys.modules and "ultralytics" not in sys.modules
print("ran", ort.__version__)
"""


def run_alone(file: Path, library: Path | str, environment: dict[str, str] | None = None) -> str:
    """Run a file in a process of its own that has neither PyTorch nor this package."""
    command = [sys.executable, "-c", ALONE, str(file), str(library)]
    ran = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env={**os.environ, **(environment or {})}
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def test_the_library_needs_neither_pytorch_nor_this_package(layer: tuple[nn.Module, Path], tmp_path: Path) -> None:
    copy = tmp_path / Path(LIBRARY).name
    copy.write_bytes(Path(LIBRARY).read_bytes())
    assert "ran" in run_alone(layer[1], copy)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="sanitizer runtimes are expected on Linux only")
def test_address_and_undefined_behaviour_sanitizers(tmp_path: Path) -> None:
    compiler = shutil.which("g++")
    if not compiler:
        pytest.skip("no g++")
    sources = sorted((Path(onnx_operator.__file__).parent / "backends/csrc").glob("*.cpp"))
    flags = ["-std=c++17", "-O1", "-g1", "-fPIC", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
    command = [compiler, *flags, *sources, "-shared", "-pthread", "-o", tmp_path / "_cpu.so"]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    if "cannot find -l" in built.stderr:
        pytest.skip("no sanitizer runtime")
    assert built.returncode == 0, built.stderr
    found = [
        subprocess.run([compiler, f"-print-file-name={n}"], capture_output=True, text=True, check=True).stdout.strip()
        for n in ("libasan.so", "libubsan.so")
    ]
    environment = {"LD_PRELOAD": ":".join(found), "ASAN_OPTIONS": "detect_leaks=0"}  # Python's own would be reported
    for i, (make, _) in enumerate(LAYERS.values()):
        module = strengthen(make().eval())
        x = torch.randn(SIZES[3 if isinstance(module, Tokens) else 4][0])
        model = export(module, x, tmp_path / f"{i}.onnx", half=True)
        for file in (tmp_path / f"{i}.onnx", to_half(model, tmp_path / f"{i}-half.onnx")):
            assert "ran" in run_alone(file, tmp_path / "_cpu.so", environment)


def test_a_slimmed_graft_loads_and_keeps_its_bodies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    yolo = YOLO("VMamba-yolo26n-graft.yaml", verbose=False)
    file = onnx.load(yolo.export(format="onnx", imgsz=64, device="cpu"))
    assert len(file.functions) == 2
    assert all(v.type.tensor_type.elem_type for v in file.graph.value_info)
    onnx.checker.check_model(file)
    ort.InferenceSession(file.SerializeToString(), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("raises", [False, True])
def test_onnxslim_sees_no_bodies(raises: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    seen = []

    def slim(model: onnx.ModelProto) -> onnx.ModelProto:
        seen.append(len(model.functions))
        if raises:
            raise ValueError("on purpose")
        return model

    monkeypatch.setattr(onnxslim, "slim", slim)
    file = YOLO("VMamba-yolon.yaml", verbose=False).export(format="onnx", imgsz=64, device="cpu")
    assert seen == [0]
    assert len(onnx.load(file).functions) == 5
    assert onnxslim.slim is slim
