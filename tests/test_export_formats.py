# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Every file format: it works, or it is refused at once with a reason and an alternative."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
from copy import deepcopy
from functools import wraps
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.strong import strengthen
from ultralytics import YOLO
from ultralytics.engine.exporter import Exporter, export_formats
from ultralytics.nn.Addmodules.hooks import eight_bits, export_head, formats
from ultralytics.nn.Addmodules.hooks import exporter as hook
from ultralytics.nn.Addmodules.hooks.formats import FORMATS, REFUSED, Refusal, refuse_format
from ultralytics.nn.modules.block import DFL
from ultralytics.nn.tasks import DetectionModel

ROOT = Path(__file__).resolve().parents[1]
PHOTOS = ROOT.parent / "shared/data/bccd/images"
# The smallest model with a scan of ours and a head
TINY = """
nc: 2
backbone:
  - [-1, 1, Conv, [16, 3, 4]]
  - [-1, 1, Conv, [32, 3, 2]]
  - [-1, 1, C2fSS2D, [32{arguments}]]
head:
  - [[2], 1, Detect, [nc]]
"""


def tiny(folder: Path, state: int = 1) -> YOLO:
    """Return a small model whose outputs depend on its scan, saved as best.pt."""
    (folder / "tiny.yaml").write_text(TINY.format(arguments=f", {state}"), encoding="utf-8")
    torch.manual_seed(0)
    yolo = YOLO(folder / "tiny.yaml", task="detect", verbose=False)
    strengthen(yolo.model, 64)
    yolo.save(folder / "best.pt")
    return YOLO(folder / "best.pt")


@pytest.fixture(scope="module")
def model() -> DetectionModel:
    """Return a model of d_state 1."""
    return DetectionModel("VMamba-yolon.yaml", verbose=False)


def test_every_format_of_this_release_has_a_line() -> None:
    assert set(FORMATS) == set(export_formats()["Argument"][1:])


@pytest.mark.parametrize("form", [name for name, of in FORMATS.items() if of.state == REFUSED])
def test_a_refused_format_is_named_first_of_all(form: str, model: DetectionModel) -> None:
    with pytest.raises(Refusal, match=rf"^format='{form}' does not take this model: it .*\. Export with format=onnx"):
        Exporter(overrides={"format": form, "imgsz": 32})(model=model)


def test_exports_are_wrapped_once() -> None:
    """Every exporter that is made asks for it, and upstream decorates `__call__` itself in some releases."""

    class Older:
        def call(self, model) -> str:
            return "exported"

        @wraps(call)
        def __call__(self, model) -> str:
            return self.call(model)

    inner = Older.__call__
    hook.with_refusals(Older)
    outer = Older.__call__
    hook.with_refusals(Older)
    assert Older.__call__ is outer is not inner


@pytest.mark.parametrize("form", [name for name, of in FORMATS.items() if of.state != REFUSED and not of.loops])
def test_large_states_and_free_sizes_are_refused_without_loops(
    form: str, model: DetectionModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formats, "find_spec", lambda name: True)
    monkeypatch.setattr(np, "__version__", "2.2.6")
    large = DetectionModel("VMamba-yolov8n.yaml", verbose=False)
    with pytest.raises(Refusal, match=f"format='{form}' .* d_state 4 or less, not 16.* VMamba-yolo .d_state 1"):
        refuse_format(form, large)
    with pytest.raises(Refusal, match=f"format='{form}' .* leave out dynamic=True"):
        refuse_format(form, model, dynamic=True)
    refuse_format(form, model)


def test_coreml_needs_an_older_numpy(model: DetectionModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "find_spec", lambda name: True)
    monkeypatch.setattr(np, "__version__", "2.4.6")
    with pytest.raises(Refusal, match=r"format='coreml' needs NumPy before 2\.3, .* the 2\.4\.6 here: pip install"):
        refuse_format("coreml", model)


def test_a_missing_package_is_named(model: DetectionModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "find_spec", lambda name: None)
    monkeypatch.setattr(formats, "installs", lambda: False)
    with pytest.raises(Refusal, match=r"format='ncnn' needs packages that are not installed: pip install ncnn pnnx=="):
        refuse_format("ncnn", model)
    with pytest.raises(Refusal, match=r"format='tflite'|format='litert' .* pip install litert-torch ai-edge-litert"):
        refuse_format("tflite", model)


def test_stock_models_are_left_to_upstream() -> None:
    stock = DetectionModel("yolov8n.yaml", verbose=False)
    for form in FORMATS:
        refuse_format(form, stock)


def test_the_command_says_it_in_a_sentence(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-c",
        "import sys; sys.argv[0] = 'yolo'; from ultralytics.cfg import entrypoint; entrypoint()",
    ]
    settings = ["export", "model=VMamba-yolov8n.yaml", "format=hailo", "imgsz=32"]
    run = subprocess.run(
        [*command, *settings], capture_output=True, text=True, encoding="utf-8", cwd=tmp_path, env=os.environ
    )
    assert run.returncode == 1
    assert "Traceback" not in run.stderr
    assert (
        run.stderr.strip()
        .splitlines()[-1]
        .startswith("yolo export: format='hailo' does not take this model: it computes")
    )
    assert not list(tmp_path.iterdir())


def test_a_failed_converter_is_a_sentence_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(exporter: Exporter) -> str:
        raise KeyError("aten::whatever\nmore lines")

    yolo = tiny(tmp_path)
    before = sorted(tmp_path.iterdir())
    monkeypatch.setattr(Exporter, "export_torchscript", fails)
    with pytest.raises(hook.ExportError, match="format='torchscript' could not be written: .*aten::whatever.* Nothing"):
        yolo.export(format="torchscript", imgsz=32)
    assert sorted(tmp_path.iterdir()) == before


def test_a_converter_that_wrote_nothing_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    yolo = tiny(tmp_path)
    older = tmp_path / "best.torchscript"
    older.write_bytes(b"an older file")
    monkeypatch.setattr(Exporter, "export_torchscript", lambda exporter: str(older))
    with pytest.raises(hook.ExportError, match="reported success, but there is no best.torchscript"):
        yolo.export(format="torchscript", imgsz=32)
    assert older.read_bytes() == b"an older file"


@pytest.mark.parametrize("fails", [True, False])
def test_older_exports_of_the_user_are_left_alone(fails: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A converter writes an ONNX file on its way, and its own over the older one, before it fails or not."""
    yolo = tiny(tmp_path)
    older = {name: name.encode() for name in ("best.onnx", "best.torchscript", "best.mnn", "notes.onnx")}
    for name, data in older.items():
        (tmp_path / name).write_bytes(data)
    before = sorted(tmp_path.iterdir())

    def converts(exporter: Exporter) -> str:
        assert not (tmp_path / "best.torchscript").exists()
        for name in ("best.onnx", "best.torchscript"):
            (tmp_path / name).write_bytes(b"new")
        if fails:
            raise RuntimeError("no more")
        return str(tmp_path / "best.torchscript")

    monkeypatch.setattr(Exporter, "export_torchscript", converts)
    if fails:
        with pytest.raises(hook.ExportError, match="no more"):
            yolo.export(format="torchscript", imgsz=32)
    else:
        yolo.export(format="torchscript", imgsz=32)
        older["best.torchscript"] = b"new"
    assert sorted(tmp_path.iterdir()) == before
    assert {name: (tmp_path / name).read_bytes() for name in older} == older


def test_an_older_file_of_8_bits_survives_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    yolo = tiny(tmp_path)
    older = tmp_path / "best_int8.torchscript"  # any format: the names are made alike
    older.write_bytes(b"older")

    def fails(exporter: Exporter) -> str:
        older.write_bytes(b"half of a new one")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Exporter, "export_torchscript", fails)
    with pytest.raises(OSError, match="No space left"):
        yolo.export(format="torchscript", imgsz=32)
    assert older.read_bytes() == b"older"


@pytest.mark.skipif(os.name != "posix", reason="Windows cannot lock a folder")
def test_two_exports_into_one_folder_wait_for_each_other(tmp_path: Path) -> None:
    came = threading.Event()

    def second() -> None:
        with hook.alone(tmp_path):
            came.set()

    thread = threading.Thread(target=second)
    with hook.alone(tmp_path):
        thread.start()
        assert not came.wait(0.5)
    assert came.wait(60)
    thread.join()
    assert not list(tmp_path.iterdir())


def test_an_export_that_was_killed_hides_nothing_for_long(tmp_path: Path) -> None:
    """What it had put aside is back with the next export, but for what is there again."""
    yolo = tiny(tmp_path)
    away = tmp_path / "best-older-xyz"
    away.mkdir()
    for name in ("best.onnx", "best.mnn"):
        (away / name).write_bytes(b"older")
    (tmp_path / "best.mnn").write_bytes(b"new")
    yolo.export(format="torchscript", imgsz=32)
    assert (tmp_path / "best.onnx").read_bytes() == b"older"
    assert (tmp_path / "best.mnn").read_bytes() == b"new"
    assert [p.name for p in tmp_path.glob("best-older-*/*")] == ["best.mnn"]


def test_ncnn_takes_one_picture_at_a_time(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match="format='ncnn' takes one picture at a time, not batch=2: leave out batch"):
        refuse_format("ncnn", tiny(tmp_path).model, batch=2)


def needs(form: str) -> None:
    """Skip unless a format's packages are here."""
    for package in {"ncnn": ("ncnn", "pnnx"), "mnn": ("MNN", "onnx", "onnxslim")}[form]:
        pytest.importorskip(package, reason=f"pip install {package}")


@pytest.mark.parametrize("form", ["ncnn", "mnn"])
@pytest.mark.parametrize("state", [1, 2])
def test_an_edge_file_equals_pytorch(form: str, state: int, tmp_path: Path) -> None:
    needs(form)
    from ultralytics.nn.autobackend import AutoBackend

    yolo = tiny(tmp_path, state)
    file = yolo.export(format=form, imgsz=96, device="cpu")
    x = torch.rand(1, 3, 96, 96)
    with torch.no_grad():
        want = YOLO(tmp_path / "best.pt").model.float().eval()(x)[0]
    got = AutoBackend(file, device=torch.device("cpu"), verbose=False)(x)
    got = torch.as_tensor(np.asarray(got[0] if isinstance(got, list) else got)).reshape(want.shape)
    assert want[:, 4:].max() > 0.3
    torch.testing.assert_close(got[:, 4:], want[:, 4:], rtol=0, atol=0.02)
    torch.testing.assert_close(got[:, :4], want[:, :4], rtol=0, atol=0.5)  # pixels


def test_a_file_that_computes_something_else_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs("mnn")
    yolo = tiny(tmp_path)
    convert = Exporter.export_mnn

    def other(exporter: Exporter) -> str:
        wrong = {p: p.data.clone() for p in exporter.model.parameters()}
        for p in wrong:
            p.data.mul_(1.5)
        try:
            return convert(exporter)
        finally:
            for p, data in wrong.items():
                p.data = data

    monkeypatch.setattr(Exporter, "export_mnn", other)
    with pytest.raises(hook.ExportError, match=r"best\.mnn does not compute what the model does: an output is off by"):
        yolo.export(format="mnn", imgsz=32, device="cpu")
    assert not (tmp_path / "best.mnn").exists()


@pytest.mark.parametrize("bins", [2, 12, 16])
def test_distances_without_a_softmax_are_the_heads(bins: int) -> None:
    head = DFL(bins)
    x = 30 * torch.randn(2, 4 * bins, 21, generator=torch.Generator().manual_seed(0))
    x[:, :, 0], x[:, ::2, 1], x[:, 1::2, 1] = 1e4, 1e4, -1e4  # exp overflows beyond 88
    want = head.double()(x.double())
    got = export_head.expected(head.float(), x)
    torch.testing.assert_close(got.double(), want, rtol=1e-6, atol=1e-6)


def test_only_exports_of_ours_to_onnx_and_mnn_leave_the_softmax_out(model: DetectionModel) -> None:
    x = torch.randn(1, 48, 21)
    for form, changed in (("onnx", True), ("mnn", True), ("openvino", False), ("torchscript", False), ("ncnn", False)):
        copy = deepcopy(model)
        export_head.without_softmax(copy, form)
        assert ("forward" in vars(copy.model[-1].dfl)) == changed
        torch.testing.assert_close(copy.model[-1].dfl(x), model.model[-1].dfl(x))


@pytest.mark.slow
@pytest.mark.parametrize("form", ["ncnn", "mnn"])
def test_detections_on_photos_are_those_of_pytorch(form: str, tmp_path: Path) -> None:
    needs(form)
    if not PHOTOS.is_dir():
        pytest.skip(f"no photos in {PHOTOS.name}")
    photos = sorted(PHOTOS.rglob("*.jpg"))[:4]
    torch.manual_seed(0)
    yolo = YOLO("VMamba-yolon.yaml", verbose=False)
    strengthen(yolo.model, 128)
    yolo.save(tmp_path / "best.pt")
    file = YOLO(tmp_path / "best.pt").export(format=form, imgsz=320, device="cpu")
    settings = {"imgsz": 320, "rect": False, "verbose": False, "device": "cpu", "conf": 0.3}
    for photo in photos:
        want = YOLO(tmp_path / "best.pt").predict(photo, **settings)[0].boxes
        got = YOLO(file, task="detect").predict(photo, **settings)[0].boxes
        assert len(want) > 0
        sure = want.conf > 0.35  # those at the threshold may come or go
        for box, kind in zip(want.xyxy[sure], want.cls[sure]):
            same = got.xyxy[got.cls == kind]
            assert float((same - box).abs().amax(1).min()) < 4  # pixels of a photo 640 wide


def test_the_page_lists_every_format() -> None:
    page = (ROOT / "docs/deploy.md").read_text(encoding="utf-8")
    words = {formats.RUNS: "works", formats.CONVERTS: "converts, not run", REFUSED: "refused"}
    for name, of in FORMATS.items():
        rows = re.findall(rf"^\| `{name}` .*\|$", page, re.MULTILINE)
        assert len(rows) == 1, name
        assert f"| {words[of.state]}" in rows[0], rows[0]


@pytest.mark.slow
def test_benchmark_over_all_formats_ends_with_a_table(tmp_path: Path) -> None:
    pytest.importorskip("polars", reason="upstream's benchmark needs it")
    from tests.data import make_data

    shutil.copy(tiny(tmp_path).ckpt_path, tmp_path / "model.pt")
    data = make_data(tmp_path / "data", "detect")
    command = [sys.executable, "-c", "from ultralytics.cfg import entrypoint; entrypoint()"]
    settings = ["benchmark", "model=model.pt", f"data={data}", "imgsz=64", "device=cpu"]
    env = {**os.environ, "YOLO_AUTOINSTALL": "false"}
    run = subprocess.run([*command, *settings], capture_output=True, text=True, encoding="utf-8", cwd=tmp_path, env=env)
    out = run.stdout + run.stderr
    assert run.returncode == 0, out[-3000:]
    assert "Traceback" not in out
    assert "Benchmarks complete" in out


def test_eight_bits_leave_scans_alone_in_openvino(monkeypatch: pytest.MonkeyPatch) -> None:
    nncf = pytest.importorskip("nncf", reason="pip install nncf")
    model, asked = YOLO("VMamba-yolo26n-graft.yaml", verbose=False).model, []
    monkeypatch.setattr(nncf, "quantize", lambda model, **kwargs: asked.append(kwargs["ignored_scope"]) or model)
    before = nncf.quantize
    export = eight_bits.in_openvino(
        lambda: nncf.quantize(model=1, ignored_scope=nncf.IgnoredScope(names=["Sigmoid"])), model
    )
    assert export() == 1
    assert nncf.quantize is before
    (scope,) = asked
    assert scope.names == ["Sigmoid"]

    def left_alone(name: str) -> bool:
        return any(re.fullmatch(pattern, name) for pattern in scope.patterns)

    assert left_alone("__module.model.7.block/aten::mul/Multiply_3")
    assert left_alone("__module.model.model.12.block/aten::exp/Exp")  # with nms=True
    assert not left_alone("__module.model.7.block.out_proj/aten::linear/MatMul")
    assert not left_alone("__module.model.17.block/aten::mul/Multiply_3")
