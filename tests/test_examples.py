# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""The examples of docs/examples, run as their readers run them: each finds what `yolo predict` finds."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch

from ultralytics import YOLO
from ultralytics.utils import ASSETS

pytest.importorskip("onnx", reason="pip install -e '.[deploy]'")
ort = pytest.importorskip("onnxruntime", reason="pip install -e '.[deploy]'")

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "docs/examples"
PICTURE = ASSETS / "bus.jpg"
KINDS = {  # a model and the settings of its export
    "plain": ("VMamba-yolon.yaml", {}),
    "nms": ("VMamba-yolon.yaml", {"nms": True}),
    "end to end": ("VMamba-yolo26n.yaml", {"end2end": True}),
}


def lively(name: str) -> YOLO:
    """Return a model whose scores differ from place to place."""
    torch.manual_seed(0)
    yolo = YOLO(name, verbose=False)
    head = yolo.model.model[-1]
    with torch.no_grad():
        for branch in [*head.cv3, *(getattr(head, "one2one_cv3", None) or [])]:
            branch[-1].weight.mul_(30)
            branch[-1].bias.add_(9)
    return yolo


@pytest.fixture(scope="module", params=KINDS)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an exported file for 96 x 96 pixels, of each kind."""
    name, settings = KINDS[request.param]
    file = tmp_path_factory.mktemp("model") / "best.pt"
    lively(name).save(file)
    return Path(YOLO(file).export(format="onnx", imgsz=96, device="cpu", **settings))


def expected(file: Path) -> np.ndarray:
    """Return what `yolo predict` finds, (x1, y1, x2, y2, score, class), best first."""
    settings = {"imgsz": 96, "rect": False, "verbose": False, "device": "cpu"}
    return YOLO(file, task="detect").predict(PICTURE, **settings)[0].boxes.data.numpy()


def check(found: list[tuple], file: Path) -> None:
    """Assert that the best boxes (x1, y1, x2, y2, score, class) are those of `yolo predict`."""
    want = expected(file)
    assert len(want) > 3
    assert len(found) == pytest.approx(len(want), rel=0.2)
    for row in want[:3]:
        near = [f for f in found if np.abs(np.clip(f[:4], 0, (810, 1080) * 2) - row[:4]).max() < 12 and f[5] == row[5]]
        assert near, (row, found[:5])  # in pixels of a picture 810 wide, of which the model saw one in eleven
        assert min(abs(f[4] - row[4]) for f in near) < 0.03


def parse(lines: list[str], names: dict[int, str]) -> list[tuple]:
    """Return the boxes that an example printed: a name of one or more words, a score, four corners."""
    numbers = {name: kind for kind, name in names.items()}
    rows = [line.rsplit(" ", 5) for line in lines]
    return [(*map(float, row[2:]), float(row[1]), numbers[row[0]]) for row in rows]


# Python ---------------------------------------------------------------------------------------------------------------


def python_example(*arguments: Path | str) -> subprocess.CompletedProcess:
    """Run the example in Python."""
    command = [sys.executable, EXAMPLES / "python/detect.py", *arguments]
    return subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=600)


def test_the_python_example_finds_what_predict_finds(exported: Path, tmp_path: Path) -> None:
    from ultralytics.nn.Addmodules.selective_scan.onnx_operator import operator_library

    ran = python_example(exported, PICTURE, tmp_path / "out.jpg", operator_library())
    assert ran.returncode == 0, ran.stderr
    assert (tmp_path / "out.jpg").stat().st_size > 1000
    check(parse(ran.stdout.splitlines(), YOLO(exported, task="detect").names), exported)
    without = python_example(exported, PICTURE, tmp_path / "out.jpg")
    assert len(without.stdout.splitlines()) == len(ran.stdout.splitlines())


@pytest.mark.parametrize(
    ("picture", "target", "said"),
    [
        ("missing.jpg", "out.jpg", "missing.jpg is not there or is no picture"),
        ("text.jpg", "out.jpg", "text.jpg is not there or is no picture"),
        (str(PICTURE), "missing/out.jpg", "missing/out.jpg cannot be written"),
    ],
)
@pytest.mark.parametrize("exported", ["plain"], indirect=True)
def test_the_python_example_names_what_is_wrong(
    picture: str, target: str, said: str, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.jpg").write_text("no picture", encoding="utf-8")
    ran = python_example(exported, picture, target)
    assert ran.returncode == 1
    assert ran.stderr.splitlines()[-1] == f"detect.py: {said}"
    assert "Traceback" not in ran.stderr


@pytest.mark.parametrize("exported", ["plain"], indirect=True)
def test_the_python_example_takes_the_smallest_score(exported: Path, tmp_path: Path) -> None:
    few, many = (
        [
            float(line.rsplit(" ", 5)[1])
            for line in python_example(exported, PICTURE, tmp_path / "out.jpg", *more).stdout.splitlines()
        ]
        for more in (("--score", "0.5"), ("--score", "0.01"))
    )
    assert len(few) < len(many)
    assert not few or min(few) > 0.5
    assert 0.01 < min(many) < 0.25


def test_the_python_example_tells_how_a_checkpoint_is_exported(tmp_path: Path) -> None:
    ran = python_example("best.pt", PICTURE, tmp_path / "out.jpg")
    assert ran.returncode == 1
    assert ran.stderr == "detect.py: best.pt is no ONNX file: yolo export model=best.pt format=onnx\n"
    ran = python_example("best.onnx", PICTURE, tmp_path / "out.jpg", "--score", "25")
    assert ran.stderr == "detect.py: --score is a number from 0 to 1, not 25\n"


@pytest.mark.parametrize("exported", ["plain"], indirect=True)
def test_the_python_example_takes_a_picture_that_is_hardly_one(exported: Path, tmp_path: Path) -> None:
    """Two pixels wide, of which the model's input has less than half a pixel."""
    import cv2

    cv2.imwrite(str(tmp_path / "thin.png"), np.zeros((1080, 2, 3), np.uint8))
    ran = python_example(exported, tmp_path / "thin.png", tmp_path / "out.png")
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize(
    ("key", "value", "said"), [("head", "RTDETRDecoder", "is of RT-DETR"), ("task", "segment", "is no exported det")]
)
@pytest.mark.parametrize("exported", ["plain"], indirect=True)
def test_the_python_example_refuses_other_outputs(
    key: str, value: str, said: str, exported: Path, tmp_path: Path
) -> None:
    import onnx

    model = onnx.load(exported)
    next(entry for entry in model.metadata_props if entry.key == key).value = value
    onnx.save(model, tmp_path / "other.onnx")
    ran = python_example(tmp_path / "other.onnx", PICTURE, tmp_path / "out.jpg")
    assert ran.returncode == 1
    assert said in ran.stderr.splitlines()[-1]


def test_the_python_example_takes_one_picture_at_a_time(tmp_path: Path) -> None:
    lively("VMamba-yolon.yaml").save(tmp_path / "best.pt")
    file = YOLO(tmp_path / "best.pt").export(format="onnx", imgsz=32, batch=2, device="cpu")
    ran = python_example(file, PICTURE, tmp_path / "out.jpg")
    assert ran.stderr.splitlines()[-1].endswith("takes 2 pictures at once, and this program one: export with batch=1")


def test_the_python_example_names_a_file_that_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "best.onnx").write_text("no model", encoding="utf-8")
    ran = python_example(tmp_path / "best.onnx", PICTURE, tmp_path / "out.jpg")
    assert ran.returncode == 1
    assert "best.onnx" in ran.stderr
    assert "Traceback" not in ran.stderr
    assert python_example().returncode == 2  # argparse says how it is called


def test_the_examples_know_nothing_of_ultralytics() -> None:
    for path in EXAMPLES.rglob("*.*"):
        code = path.read_text(encoding="utf-8").partition("\n")[2]
        assert "import ultralytics" not in code
        assert "from ultralytics" not in code


# C++ ------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the example in C++, compiled as its first lines tell."""
    if not shutil.which("cmake"):
        pytest.skip("no cmake")
    folder = tmp_path_factory.mktemp("build")
    given = [f"-DONNXRUNTIME_ROOT={os.environ.get('ONNXRUNTIME_ROOT', '')}"]
    configured = subprocess.run(
        ["cmake", "-S", EXAMPLES / "cpp", "-B", folder, *given], capture_output=True, text=True, timeout=300
    )
    if configured.returncode:
        for missing in ("ONNXRUNTIME_INCLUDE", "ONNXRUNTIME_LIBRARY", "OpenCV", "CMAKE_CXX_COMPILER"):
            if missing in configured.stderr:
                pytest.skip(f"{missing} not found: Debian 13's libonnxruntime-dev, or ONNXRUNTIME_ROOT; libopencv-dev")
    assert configured.returncode == 0, configured.stderr
    built = subprocess.run(["cmake", "--build", folder], capture_output=True, text=True, timeout=600)
    assert built.returncode == 0, built.stdout + built.stderr
    return folder / "detect"


def test_the_cpp_example_finds_what_predict_finds(program: Path, exported: Path, tmp_path: Path) -> None:
    ran = subprocess.run(
        [program, exported, PICTURE, tmp_path / "out.jpg"], capture_output=True, text=True, timeout=600
    )
    assert ran.returncode == 0, ran.stderr
    rows = [line.split() for line in ran.stdout.splitlines()]
    check([(*map(float, r[3:]), float(r[2]), int(r[1])) for r in rows], exported)
    assert (tmp_path / "out.jpg").stat().st_size > 1000


@pytest.mark.parametrize("exported", ["plain"], indirect=True)
def test_the_cpp_example_takes_the_operator_library(program: Path, exported: Path, tmp_path: Path) -> None:
    from ultralytics.nn.Addmodules.selective_scan.onnx_operator import operator_library

    command = [program, exported, PICTURE, tmp_path / "out.jpg"]
    with_, without = (
        subprocess.run([*command, *more], capture_output=True, text=True, timeout=600)
        for more in ([operator_library()], [])
    )
    assert with_.returncode == 0, with_.stderr
    assert len(with_.stdout.splitlines()) == len(without.stdout.splitlines()) > 3


@pytest.mark.parametrize("exported", ["plain"], indirect=True)
def test_the_cpp_example_names_a_missing_picture(program: Path, exported: Path, tmp_path: Path) -> None:
    ran = subprocess.run([program, exported, "missing.jpg", tmp_path / "out.jpg"], capture_output=True, text=True)
    assert ran.returncode == 1
    assert ran.stderr.splitlines()[-1] == "detect: missing.jpg is not there or is no picture"  # OpenCV warns before


# The browser ----------------------------------------------------------------------------------------------------------

# Drops files on the page one after the other as a person does, and sends what the page then says and found.
DROP = """
<script>
addEventListener("load", async () => {
  const said = document.getElementById("said"), told = [];
  const while_ = async (waits) => {
    while (waits(said.textContent)) await new Promise((r) => setTimeout(r, 50));
    told.push(said.textContent);
  };
  const drop = async (name) => {
    const given = new DataTransfer();
    const type = name.endsWith("jpg") ? "image/jpeg" : "";
    given.items.add(new File([await (await fetch(name)).blob()], name, { type }));
    const before = said.textContent;
    document.dispatchEvent(new DragEvent("drop", { dataTransfer: given, bubbles: true, cancelable: true }));
    await while_((text) => text === before || text.startsWith("Loading"));
  };
  let boxes = [];
  document.addEventListener("detected", (e) => (boxes = e.detail.boxes));
  await while_((text) => text.startsWith("Loading"));
  for (const name of FILES) await drop(name);
  const canvas = document.getElementById("picture");
  fetch("/done", { method: "POST", body: JSON.stringify({ told, boxes, size: [canvas.width, canvas.height] }) });
});
</script>
"""


class Page(SimpleHTTPRequestHandler):
    """Serves a folder, with our script at the end of the page, and keeps what the script sends."""

    def do_GET(self) -> None:
        """Serve a file."""
        if self.path != "/":
            return super().do_GET()
        page = (Path(self.directory) / "index.html").read_text(encoding="utf-8")
        body = (page + DROP.replace("FILES", json.dumps(self.server.dropped))).encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        return self.wfile.write(body)

    def do_POST(self) -> None:
        """Keep what the page found."""
        self.server.answer = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(204)
        self.end_headers()
        self.server.done.set()

    def log_message(self, *args) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Return the files of onnxruntime-web that the page needs, from npm."""
    if not shutil.which("npm"):
        pytest.skip("no npm")
    folder = tmp_path_factory.mktemp("npm")
    pack = ["npm", "pack", "onnxruntime-web@1.30.0", "--silent"]
    if subprocess.run(pack, cwd=folder, capture_output=True, timeout=300).returncode:
        pytest.skip("npm does not give onnxruntime-web")
    shutil.unpack_archive(next(folder.glob("*.tgz")), folder, "gztar")
    names = ("ort.wasm.min.js", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
    return [folder / "package/dist" / name for name in names]


def in_chromium(folder: Path, dropped: list[str]) -> dict:
    """Return what the page says and finds when these files are dropped on it."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not chromium:
        pytest.skip("no Chromium")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Page, directory=str(folder)))
    server.dropped, server.done, server.answer = dropped, threading.Event(), {}
    threading.Thread(target=server.serve_forever, daemon=True).start()
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"]
    browser = subprocess.Popen(
        [chromium, *flags, f"http://127.0.0.1:{server.server_port}/"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert server.done.wait(300), "the page did not answer"
    finally:
        browser.terminate()
        browser.wait(30)
        server.shutdown()
        server.server_close()
    return server.answer


@pytest.fixture
def site(exported: Path, runtime: list[Path], tmp_path: Path) -> Path:
    """Return a folder with the page, onnxruntime-web, the model and a picture."""
    for file in [*(EXAMPLES / "web").iterdir(), *runtime, exported, PICTURE]:
        shutil.copy(file, tmp_path)
    return tmp_path


def test_the_page_finds_what_predict_finds(site: Path, exported: Path) -> None:
    got = in_chromium(site, ["bus.jpg"])
    assert got["told"][0].startswith("best.onnx is ready: ")
    assert got["told"][1].endswith(" ms")
    assert got["size"] == [810, 1080]
    check([(b["x1"], b["y1"], b["x2"], b["y2"], b["score"], b["kind"]) for b in got["boxes"]], exported)


@pytest.mark.parametrize("exported", ["plain"], indirect=True)
def test_the_page_names_what_is_wrong(site: Path) -> None:
    (site / "best.onnx").rename(site / "mine.onnx")
    (site / "text.jpg").write_text("no picture", encoding="utf-8")
    (site / "other.onnx").write_bytes(b"no model")
    got = in_chromium(site, ["bus.jpg", "other.onnx", "text.jpg", "mine.onnx", "bus.jpg"])
    assert got["told"][:4] == [
        "best.onnx is not beside this page: drop an .onnx file here",
        "there is no model yet: drop an .onnx file first",
        "other.onnx is no exported detection model",
        "there is no model yet: drop an .onnx file first",
    ]
    assert got["told"][4].startswith("mine.onnx is ready: ")
    assert got["told"][5].endswith(" ms")


@pytest.mark.parametrize("exported", ["plain"], indirect=True)
def test_the_page_says_that_onnxruntime_web_is_missing(site: Path) -> None:
    (site / "ort.wasm.min.js").unlink()
    assert in_chromium(site, [])["told"] == ["ort.wasm.min.js of onnxruntime-web is not beside this page"]
