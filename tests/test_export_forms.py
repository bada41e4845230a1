# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""The forms of a scan in a graph: each equal to the float64 reference, whatever the decays and lengths."""

from __future__ import annotations

import functools
import itertools
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.strong import strengthen
from tests.onnx_files import kinds, plain, session
from ultralytics import YOLO
from ultralytics.nn.Addmodules.layers.cross_scan import cross_scan
from ultralytics.nn.Addmodules.selective_scan import selective_scan_fn, selective_scan_ref, use_backend
from ultralytics.nn.Addmodules.selective_scan.export import MAX_STATE, Target, choose, exporting_for
from ultralytics.nn.Addmodules.selective_scan.export.softplus import softplus
from ultralytics.nn.Addmodules.selective_scan.export.table import FLAT, LEVELS, LOOP, TABLE
from ultralytics.nn.tasks import DetectionModel

onnx = pytest.importorskip("onnx", reason="pip install -e '.[deploy]'")
FORMS = LOOP, LEVELS, FLAT
# Below, at and above a chunk of 16 or 20, a run of 80, and one, two and three levels of chunks
LENGTHS = (1, 2, 15, 16, 17, 35, 79, 80, 81, 400, 417, 1601, 4200)
# Largest error in units of the largest value, where the reference's own in that dtype is not larger
BOUNDS = {torch.float64: 1e-13, torch.float32: 2e-6}
TIMES_REFERENCE = 2  # as for every backend
STEPS = 2e-5  # of scans as maps, whose steps have four to five digits


class Scan(nn.Module):
    """The scan of two groups, with strong decays: log decay to -500 a token."""

    def __init__(self, state: int, softplus: bool = True) -> None:
        """Draw A over eight orders of magnitude."""
        super().__init__()
        self.softplus = softplus
        self.A = nn.Parameter(-torch.exp(torch.linspace(-12, 5, 6 * state)).reshape(6, state))
        self.D, self.bias = nn.Parameter(torch.randn(6)), nn.Parameter(torch.randn(6) - 1)

    def inputs(self, x: torch.Tensor) -> tuple:
        """Return the arguments of the scan for x (B, 6 + 4N, L)."""
        state, n = self.A.shape[1], x.shape[0]
        B, C = (p.reshape(n, 2, state, -1) for p in x[:, 6:].split(2 * state, 1))
        dt = (
            x[:, :6] * 3 if self.softplus else (x[:, :6] * 3).abs() - self.bias[:, None]
        )  # with the bias no step is negative
        return x[:, :6].cos(), dt, self.A, B, C, self.D, x[:, :6], self.bias, self.softplus

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scan."""
        return selective_scan_fn(*self.inputs(x))


def distance(got: torch.Tensor, want: torch.Tensor) -> float:
    """Return the largest difference in units of the largest value."""
    assert torch.isfinite(got).all()
    return float((got.double() - want.double()).abs().max() / want.double().abs().max())


def scanned(module: Scan, x: torch.Tensor, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Return what the sequential reference makes of x."""
    with torch.no_grad():
        return selective_scan_ref(*(v.to(dtype) if isinstance(v, torch.Tensor) else v for v in module.inputs(x)))


@functools.cache
def case(state: int, length: int, dtype: torch.dtype) -> tuple[Scan, torch.Tensor, torch.Tensor, float]:
    """Return a scan, its input, the right output, and the largest error allowed."""
    torch.manual_seed(length)
    module = Scan(state, softplus=length != 417)
    x = torch.randn(1 + (length < 100), 6 + 4 * state, length, dtype=torch.float64).to(dtype)
    want, bound = scanned(module, x), BOUNDS[dtype]
    if dtype == torch.float32:
        bound = max(bound, TIMES_REFERENCE * distance(scanned(module, x, dtype), want))
    return module.to(dtype), x, want, bound


@pytest.mark.parametrize("dtype", BOUNDS, ids=["float64", "float32"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("runtime", ["torchscript", "onnx", "ncnn"])  # own softplus or not, directions apart or not
def test_a_form_equals_the_reference(form: str, runtime: str, dtype: torch.dtype) -> None:
    for state, length in [*((1, n) for n in LENGTHS), (3, 37), (3, 417)]:
        module, x, want, bound = case(state, length, dtype)
        with torch.no_grad(), exporting_for(runtime, True, form):
            got = torch.jit.trace(module, x, check_trace=False)(x)
        assert distance(got, want) < bound, (state, length)


@pytest.mark.parametrize(("form", "state"), itertools.product(FORMS, (1, 2)))
def test_a_form_in_onnx_equals_the_reference(form: str, state: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Scan(state)
    for length in (1, 17, 81, 437):
        x = torch.randn(2, 6 + 4 * state, length)
        with torch.no_grad(), exporting_for("onnx", True, form):
            torch.onnx.export(module, x, str(tmp_path / "s.onnx"), opset_version=18, input_names=["x"], dynamo=False)
        assert ("Scan" in kinds(onnx.load(tmp_path / "s.onnx").graph)) == (form != FLAT)
        got = torch.from_numpy(session(tmp_path / "s.onnx").run(None, {"x": x.numpy()})[0])
        assert distance(got, scanned(module, x)) < BOUNDS[torch.float32]


class Cross(nn.Module):
    """Four scans of a map, or two."""

    def __init__(self, directions: int, state: int, height: int, width: int) -> None:
        """Draw the weights."""
        super().__init__()
        self.size = height, width
        shapes = (directions, 2 + 2 * state, 8), (directions, 8, 2), (directions, 8, state), (directions, 8)
        self.x_proj, self.dt_proj, self.A, self.D = (nn.Parameter(torch.randn(s)) for s in shapes)
        self.bias = nn.Parameter(torch.randn(directions, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scan."""
        return cross_scan(x, *self.size, self.x_proj, self.dt_proj, -torch.exp(self.A), self.D, self.bias)


@pytest.mark.parametrize("runtime", ["onnx", "ncnn"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("directions", [2, 4])
@pytest.mark.parametrize("batch", [1, 3])
def test_directions_of_a_map(form: str, directions: int, batch: int, runtime: str) -> None:
    torch.manual_seed(0)
    for state, size in ((1, (5, 7)), (1, (22, 20)), (2, (7, 6))):
        module = Cross(directions, state, *size).double()
        x = torch.randn(batch, size[0] * size[1], 8, dtype=torch.float64)
        with torch.no_grad(), use_backend("reference"):
            want = module(x)
        with torch.no_grad(), exporting_for(runtime, True, form):
            got = torch.jit.trace(module, x, check_trace=False)(x)
        assert distance(got, want) < BOUNDS[torch.float64]


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (2, 2), (7, 13), (13, 3), (16, 16), (40, 24), (23, 29)])
@pytest.mark.parametrize("directions", [2, 4])
def test_scans_as_maps_of_any_size(directions: int, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    module, large = Cross(directions, 2, *size), Cross(directions, 1, *size)
    with torch.no_grad():
        large.bias.add_(30)  # steps of 30, at which a sigmoid has no digits left
        large.A.sub_(5)
    for m in (module, large):
        x = torch.randn(2, size[0] * size[1], 8)
        with torch.no_grad(), use_backend("reference"):
            want = m.double()(x.double())
        m.float()
        with torch.no_grad(), exporting_for("ncnn", True):
            trace = torch.jit.trace(m, x, check_trace=False)
        assert "aten::clamp" in str(trace.inlined_graph)  # the form that is meant
        assert distance(trace(x), want) < STEPS


def test_softplus_keeps_every_digit_of_a_float32() -> None:
    x = torch.linspace(-80, 80, 100_001)
    torch.testing.assert_close(softplus(x, True).double(), softplus(x.double(), True), rtol=2.5e-7, atol=0)


def test_the_table() -> None:
    for runtime, row in TABLE.items():
        if not row.loops:
            continue
        assert choose(Target(runtime, True), max(row.flat, 1)) == (FLAT if row.flat else LOOP)
        assert choose(Target(runtime, False), 16) == LOOP
        assert choose(Target(runtime, True), 16) == LOOP  # a scan of many states takes that many times the operators
        assert choose(Target(runtime, False), 1) == (LEVELS if row.levels else LOOP)
    assert choose(Target("ncnn", True), MAX_STATE) == FLAT
    with pytest.raises(ValueError, match=r"format='ncnn' has no loop .* d_state 4 or less .* this scan has d_state 5"):
        choose(Target("ncnn", True), 5)
    with pytest.raises(ValueError, match="this scan has d_state 1 and sizes that are free"):
        choose(Target("mnn", False), 1)


# Whole models ---------------------------------------------------------------------------------------------------------


def strong(stem: str) -> YOLO:
    """Return a model whose outputs depend on its scans, as its own test makes sure."""
    torch.manual_seed(0)
    yolo = YOLO(f"{stem}.yaml", verbose=False)
    model = DetectionModel(f"{stem}.yaml", nc=2, verbose=False)
    model.args, model.task = yolo.model.args, yolo.model.task
    yolo.model = strengthen(model, 64)
    return yolo


def outputs(model: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return boxes and scores."""
    with torch.no_grad():
        y = model(x)[0]
    return y[:, :4], y[:, 4:]


@pytest.mark.parametrize("stem", ["VMamba-yolon", "VMamba-yolov8n"])
def test_a_strong_model_depends_on_its_scans(stem: str) -> None:
    model, x = strong(stem).model, torch.rand(1, 3, 64, 64)
    _, before = outputs(model, x)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith(("A_log", "A_b_log", "A_logs")):
                p.add_(1)
    _, after = outputs(model, x)
    assert 0.3 < before.max()
    assert (after - before).abs().max() > 0.1


@pytest.mark.parametrize(
    ("stem", "arguments", "scans"),
    [
        ("VMamba-yolon", {}, False),
        ("VMamba-yolon", {"dynamic": True}, True),
        pytest.param("VMamba-yolov8n", {}, True, marks=pytest.mark.slow),
        pytest.param("VMamba-yolon", {"half": True}, True, marks=pytest.mark.slow),
        pytest.param("VMamba-yolon", {"half": True, "dynamic": True}, True, marks=pytest.mark.slow),
    ],
)
def test_an_exported_strong_model_equals_pytorch(
    stem: str, arguments: dict, scans: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    yolo = strong(stem)
    file = yolo.export(format="onnx", imgsz=96, device="cpu", **arguments)
    assert ("Scan" in kinds(plain(file).graph)) == scans
    assert "Softmax" not in kinds(plain(file).graph)
    x = torch.rand(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    type_ = torch.half if "half" in arguments else torch.float
    plainly = outputs(deepcopy(yolo.model).to(type_), x.to(type_))
    exact = outputs(yolo.model.double(), x.double())
    got = torch.from_numpy(session(file).run(None, {"images": x.numpy()})[0]).split([4, 2], dim=1)
    for file_s, own, want, limit in zip(got, plainly, exact, (0.1, 1e-3)):  # pixels; scores
        limit = max(limit, 3 * float((own - want).abs().max()))  # PyTorch's own rounding
        torch.testing.assert_close(file_s.double(), want, rtol=0, atol=limit)


def test_an_exported_trained_model_equals_pytorch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A strong model after steps that moved its scans."""
    monkeypatch.chdir(tmp_path)
    yolo = strong("VMamba-yolon")
    model = yolo.model.train()
    before = {k: v.clone() for k, v in model.state_dict().items() if k.endswith("A_logs")}
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(3):
        loss = sum(x.float().square().mean() for x in model(torch.rand(2, 3, 64, 64))["scores"].unsqueeze(0))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert all(not torch.equal(v, before[k]) for k, v in model.state_dict().items() if k in before)
    model.eval()
    file = yolo.export(format="onnx", imgsz=64, device="cpu")
    x = torch.rand(1, 3, 64, 64)
    boxes, scores = outputs(model, x)
    got = torch.from_numpy(session(file).run(None, {"images": x.numpy()})[0])
    np.testing.assert_allclose(got[:, 4:], scores, atol=1e-3)
    np.testing.assert_allclose(got[:, :4], boxes, atol=0.1)
