# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""ONNX files in a browser: onnxruntime-web, which npm brings, in headless Chromium."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np

from benchmarks.timing import ROUNDS, Absent, summary

__all__ = ("in_browser", "needs_browser")

PACKAGE = "onnxruntime-web@1.30.0"
FILES = "ort.wasm.min.js", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm"
PATIENCE = 900  # seconds for all models together
PAGE = """<!doctype html>
<meta charset="utf-8">
<script src="ort.wasm.min.js"></script>
<script>
const job = JOB;
async function main() {
  ort.env.wasm.numThreads = job.threads;
  const x = new ort.Tensor("float32", new Float32Array(await (await fetch("x.bin")).arrayBuffer()), job.shape);
  const sessions = [], answers = job.files.map(() => ({ ms: [] }));
  const wasm = { executionProviders: ["wasm"] };
  for (const file of job.files) sessions.push(await ort.InferenceSession.create(file, wasm));
  for (const [i, session] of sessions.entries()) {
    const y = (await session.run({ images: x }))[session.outputNames[0]];
    answers[i].shape = y.dims;
    await fetch("/y" + i, { method: "POST", body: y.data });
  }
  for (let round = 0; round < job.rounds; round++)
    for (const [i, session] of sessions.entries())
      for (let spent = 0; spent < job.slice_ms || spent === 0; ) {
        const begin = performance.now();
        await session.run({ images: x });
        const took = performance.now() - begin;
        answers[i].ms.push(took);
        spent += took;
      }
  return { answers, agent: navigator.userAgent };
}
main().catch((e) => ({ error: String(e) })).then((r) => fetch("/done", { method: "POST", body: JSON.stringify(r) }));
</script>
"""


class Server(SimpleHTTPRequestHandler):
    """Serves a folder to a page that may use threads, and keeps what the page sends."""

    def end_headers(self) -> None:
        """Isolate the page, or the browser gives it no threads."""
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        super().end_headers()

    def do_POST(self) -> None:
        """Keep an answer."""
        self.server.answers[self.path] = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(204)
        self.end_headers()
        if self.path == "/done":
            self.server.done.set()

    def log_message(self, *args) -> None:
        """Say nothing."""


def chromium() -> str | None:
    """Return the path of Chromium, or of a browser made of it."""
    return next((p for name in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(name))), None)


def needs_browser() -> None:
    """Raise Absent where there is no browser, or nothing to take onnxruntime-web from."""
    if not chromium():
        raise Absent("there is no Chromium")
    if not shutil.which("npm"):
        raise Absent("there is no npm, which brings onnxruntime-web")


def in_browser(files: list[Path], x: np.ndarray, threads: int, seconds: float) -> list[tuple[np.ndarray, dict]]:
    """Return the first output of each file for x, and its times side by side with the others.

    Args:
        files (list[Path]): ONNX files.
        x (np.ndarray): Their input.
        threads (int): Threads of onnxruntime-web.
        seconds (float): Time for each file.

    Raises:
        Absent: If npm does not give the package.
        SystemExit: If the page fails, with what the browser said.
    """
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        folder = Path(temporary)
        done = subprocess.run(["npm", "pack", PACKAGE, "--silent"], cwd=folder, capture_output=True, text=True)
        if done.returncode:
            raise Absent(f"npm does not give {PACKAGE}")
        shutil.unpack_archive(next(folder.glob("*.tgz")), folder, "gztar")
        for name in FILES:
            shutil.copy(folder / "package/dist" / name, folder)
        names = [f"{i}.onnx" for i in range(len(files))]
        for file, name in zip(files, names):
            shutil.copy(file, folder / name)
        (folder / "x.bin").write_bytes(np.ascontiguousarray(x, np.float32).tobytes())
        job = {"files": names, "shape": list(x.shape), "threads": threads, "rounds": ROUNDS}
        page = PAGE.replace("JOB", json.dumps(job | {"slice_ms": 1e3 * seconds / ROUNDS}))
        (folder / "index.html").write_text(page, encoding="utf-8")
        answers = run(folder)
    said = json.loads(answers["/done"])
    if "error" in said:
        raise SystemExit(f"onnxruntime-web in the browser: {said['error']}")
    found = []
    for i, of in enumerate(said["answers"]):
        y = np.frombuffer(answers[f"/y{i}"], np.float32).reshape(of["shape"])
        found.append((y, summary([t / 1e3 for t in of["ms"]])))
    return found


def run(folder: Path) -> dict[str, bytes]:
    """Open the page of a folder in headless Chromium and return what it sent, by path."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Server, directory=str(folder)))
    server.done, server.answers = threading.Event(), {}
    threading.Thread(target=server.serve_forever, daemon=True).start()
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"]
    url = f"http://127.0.0.1:{server.server_port}/"
    browser = subprocess.Popen([chromium(), *flags, url], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        if not server.done.wait(PATIENCE):
            raise SystemExit(f"onnxruntime-web in the browser: no answer within {PATIENCE} seconds")
    finally:
        browser.terminate()
        browser.wait(30)
        server.shutdown()
        server.server_close()
    return server.answers
