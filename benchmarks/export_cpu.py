# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Exported models on a CPU beside stock YOLO in the same runtime: size, operators, export time, latency, equality.

Models are built with two classes and exported through upstream's exporter, as `yolo export` does. Their outputs depend
on their scans (strong.py), and an exported model that is further from float64 than three times PyTorch's own float32
gets no latency. OpenVINO runs in float32, and also in the precision that it chooses by itself, where that is another.
That, ncnn and MNN may compute in 16 bits: there a model may be off by twice what the first model is.

Usage:
    python benchmarks/export_cpu.py          # every format, 1 and 2 threads
    python benchmarks/export_cpu.py --cases ncnn   # one; the rows of the others stay in the result
    python benchmarks/export_cpu.py --quick  # tiny pictures; prints, writes nothing
    python benchmarks/export_cpu.py --base main    # another commit's exported models beside this tree's
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import contextmanager
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402

from benchmarks.base import compare  # noqa: E402
from benchmarks.browser import in_browser, needs_browser  # noqa: E402
from benchmarks.rendering import Goal, earlier, median_of, ms, quotient, source, table, times, verdicts  # noqa: E402
from benchmarks.result import RESULTS  # noqa: E402
from benchmarks.strong import strengthen  # noqa: E402
from benchmarks.timing import Absent, Timed, distance, heading, in_process, interleave, model_file, parse, write  # noqa: E402
from ultralytics import YOLO  # noqa: E402
from ultralytics.nn.Addmodules.hooks.formats import Refusal, refuse_format  # noqa: E402
from ultralytics.nn.Addmodules.selective_scan.onnx_operator import operator_library  # noqa: E402
from ultralytics.nn.tasks import DetectionModel  # noqa: E402

# The first is what others are compared with
STOCK = ["yolov8n.yaml", "yolo11n.yaml", "yolo26n.yaml"]
MODELS = [*STOCK, "VMamba-yolon.yaml", "VMamba-yolo26n-graft.yaml", "VMamba-yolov8n.yaml"]
IMGSZ = 640
LIBRARY, BROWSER = "operator library", "browser"
# Name: format, arguments of the export, precision asked of OpenVINO or None for its own choice, or LIBRARY, or BROWSER
CASES: dict[str, tuple[str, dict, str | None]] = {
    "ONNX Runtime": ("onnx", {}, None),
    "ONNX Runtime, dynamic": ("onnx", {"dynamic": True}, None),
    "ONNX Runtime, operator library": ("onnx", {}, LIBRARY),
    "ONNX Runtime Web": ("onnx", {}, BROWSER),
    "OpenVINO, float32": ("openvino", {}, "f32"),
    "OpenVINO, its own choice": ("openvino", {}, None),
    "TorchScript": ("torchscript", {}, None),
    "ncnn": ("ncnn", {}, None),
    "MNN": ("mnn", {}, None),
}
SIXTEEN = ("OpenVINO, its own choice", "ncnn", "MNN")  # may compute in 16 bits
LIMIT = 1e-4
TIMES_OWN = 3  # or that often the error of PyTorch's own float32
LIMIT_16 = 5e-2  # or twice the error of the first model
# Ratio to the first model in the same runtime, at most
GOALS = {
    ("ONNX Runtime", "VMamba-yolon"): 1.10,
    ("ONNX Runtime, dynamic", "VMamba-yolon"): 1.16,
    ("ONNX Runtime, operator library", "VMamba-yolon"): 0.80,
    ("ONNX Runtime, operator library", "VMamba-yolov8n"): 1.50,
    ("ONNX Runtime Web", "VMamba-yolon"): 0.87,
    ("OpenVINO, float32", "VMamba-yolon"): 0.93,
    ("OpenVINO, its own choice", "VMamba-yolon"): 1.05,
    ("ncnn", "VMamba-yolon"): 1.05,  # 0.85 of what it was first
    ("MNN", "VMamba-yolon"): 0.88,  # likewise
}


@contextmanager
def inside(folder: Path):
    """Run in a folder: a model from a YAML is exported to where the process stands."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def end2end(model: DetectionModel) -> None:
    """Take the head's branch that upstream exports by default."""
    if hasattr(model, "end2end"):
        model.end2end = False


def model(name: str) -> YOLO:
    """Return a model with two classes and fixed weights."""
    torch.manual_seed(0)
    yolo = YOLO(name, verbose=False)
    two = DetectionModel(name, nc=2, verbose=False)
    two.args, two.task = yolo.model.args, yolo.model.task
    yolo.model = strengthen(two, 128)
    return yolo


def operators(file: Path) -> int | None:
    """Return the operators of a graph, those of loop bodies included, or None where the format does not list them."""
    if file.suffix == ".onnx":
        import onnx

        def count(graph) -> int:
            return sum(1 + sum(count(a.g) for a in node.attribute if a.HasField("g")) for node in graph.node)

        model = onnx.load(file)  # our operators' bodies count, too
        return count(model.graph) + sum(count(f) for f in model.functions)
    if file.suffix == ".xml":
        return file.read_text(encoding="utf-8").count("<layer ")
    if file.suffix == ".param":
        return int(file.read_text(encoding="utf-8").split()[1])
    return None


def runner(file: Path, threads: int, precision: str | None) -> Callable[[np.ndarray], np.ndarray]:
    """Return a call that runs an exported file."""
    if file.suffix == ".onnx":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        if precision == LIBRARY:
            options.register_custom_ops_library(operator_library())
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        return lambda x: session.run(None, {"images": x})[0]
    if file.suffix == ".xml":
        import openvino

        config = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1}
        if precision:
            config["INFERENCE_PRECISION_HINT"] = precision
        core = openvino.Core()
        compiled = core.compile_model(core.read_model(file), "CPU", config)
        return lambda x: compiled([x])[0]
    if file.suffix == ".param":
        import ncnn

        net = ncnn.Net()
        net.opt.num_threads = threads
        net.load_param(str(file))
        net.load_model(str(file.with_suffix(".bin")))

        def forward(x: np.ndarray) -> np.ndarray:
            extractor = net.create_extractor()
            extractor.input("in0", ncnn.Mat(x[0]))
            return np.array(extractor.extract("out0")[1])[None]

        return forward
    if file.suffix == ".mnn":
        import MNN

        config = {"precision": "low", "backend": "CPU", "numThread": threads}  # as upstream runs it
        manager = MNN.nn.create_runtime_manager((config,))
        module = MNN.nn.load_module_from_file(str(file), [], [], runtime_manager=manager, rearrange=True)
        return lambda x: module.onForward([MNN.expr.const(x.ctypes.data, list(x.shape))])[0].read().copy()
    script = torch.jit.load(file).eval()
    torch.set_num_threads(threads)  # the export has set Ultralytics' own number

    def run(x: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return script(torch.from_numpy(x))[0].numpy()[None]

    return run


def needs(form: str, precision: str | None = None) -> None:
    """Raise Absent if what runs a format is not installed."""
    packages = {
        "onnx": ["onnx", "onnxruntime", "onnxslim"],
        "openvino": ["openvino"],
        "ncnn": ["ncnn", "pnnx"],
        "mnn": ["MNN", "onnx", "onnxslim"],
    }
    for package in packages.get(form, []):
        try:
            __import__(package)
        except ImportError:
            how = package if form in ("ncnn", "mnn") else "-e '.[deploy]'"
            raise Absent(f"{package} is not installed: pip install {how}") from None
    if precision == LIBRARY:
        try:
            operator_library()
        except RuntimeError as e:
            raise Absent(str(e)) from None
    if precision == BROWSER:
        needs_browser()


def export(name: str, form: str, arguments: dict, imgsz: int) -> tuple[Path, float]:
    """Export a model into the current folder and return the file and the seconds it took."""
    begin = time.perf_counter()
    out = Path(model(name).export(format=form, imgsz=imgsz, device="cpu", **arguments)).resolve()
    seconds = time.perf_counter() - begin
    return next(f for f in out.iterdir() if f.suffix in (".xml", ".param")) if out.is_dir() else out, seconds


def off(got: torch.Tensor, want: torch.Tensor) -> float:
    """Return the error of boxes or scores (B, 4 + classes, anchors), whichever is larger, in units of the largest."""
    got = got.double()
    return max(distance([got[:, :4]], [want[:, :4]]), distance([got[:, 4:]], [want[:, 4:]]))


def measure(case: str, names: list[str], threads: int, imgsz: int, seconds: float) -> list[dict]:
    """Export every model in one format, compare outputs and time them side by side."""
    form, arguments, precision = CASES[case]
    try:
        needs(form, precision)
    except Absent as e:
        return [{"case": case, "absent": str(e)}]
    x = torch.rand(1, 3, imgsz, imgsz, generator=torch.Generator().manual_seed(0))
    made, truth, rows, limit = {}, {}, [], LIMIT_16 if case in SIXTEEN else LIMIT
    for name in names:
        try:
            refuse_format(form, model(name).model)
        except Refusal as e:
            print(f"{case}: {name} is left out: {e}", file=sys.stderr, flush=True)
            continue
        print(f"{case}: {name} is exported and compared", file=sys.stderr, flush=True)
        yolo = model(name)
        parameters = sum(p.numel() for p in yolo.model.parameters())
        with torch.inference_mode():
            end2end(yolo.model)
            plain = yolo.model.eval().fuse(verbose=False)(x)[0]
            want = yolo.model.double()(x.double())[0]
        file, took = export(name, form, arguments, imgsz)
        files = [file, file.with_suffix(".bin")] if file.suffix in (".xml", ".param") else [file]
        made[name] = file
        rows.append(
            {
                "case": case,
                "model": name,
                "threads": threads,
                "imgsz": imgsz,
                "weights_mb": round(parameters * 4 / 1e6, 3),
                "file_mb": round(sum(f.stat().st_size for f in files) / 1e6, 3),
                "operators": operators(file),
                "export_s": round(took, 1),
            }
        )
        truth[name] = want, off(plain, want)
    if precision == BROWSER:
        answers = dict(zip(made, in_browser(list(made.values()), x.numpy(), threads, seconds)))
        outputs, timed = ({name: answer[i] for name, answer in answers.items()} for i in (0, 1))
    else:
        runs = {name: partial(runner(file, threads, precision), x.numpy()) for name, file in made.items()}
        outputs, timed = {name: np.array(run()) for name, run in runs.items()}, None
    for row in rows:
        name = row["model"]
        want, own = truth[name]
        error = off(torch.from_numpy(outputs[name].copy()).reshape(want.shape), want)
        ok = error <= max(limit, TIMES_OWN * own)
        if case in SIXTEEN and row is rows[0]:
            ok, limit = True, max(limit, 2 * error)
        row["check"] = {"ok": ok, "error": float(f"{error:.2g}"), "pytorch": float(f"{own:.2g}")}
    right = [row["model"] for row in rows if row["check"]["ok"]]
    print(f"{case}: {len(right)} models are timed", file=sys.stderr, flush=True)
    timed = timed or interleave({name: Timed(runs[name]) for name in right}, seconds)
    return [row | {"time": timed[row["model"]] if row["check"]["ok"] else None} for row in rows]


def render(r: dict) -> dict[str, str]:
    """Return the table of a result."""
    there = [row for row in r["rows"] if "absent" not in row]
    base, rows, notes = there[0]["model"], [], []
    for row in r["rows"]:
        if "absent" in row:
            notes.append(f"{row['case']} not run: {row['absent']}.")
            continue
        stock = median_of(there, "time", model=base, case=row["case"], threads=row["threads"])
        rows.append(
            [
                row["case"],
                row["threads"],
                Path(row["model"]).stem,
                f"{row['file_mb']:.1f} ({row['file_mb'] / row['weights_mb'] - 1:+.0%})",
                row["operators"] or "",
                f"{row['export_s']:.0f}",
                f"{row['check']['error']:.0e} ({row['check']['pytorch']:.0e})",
                ms(row["time"]),
                times(quotient(row["time"] and row["time"]["median_ms"], stock)),
            ]
        )
    head = [
        "format",
        "threads",
        "model",
        "MB (over weights)",
        "operators",
        "export, s",
        "error (PyTorch)",
        "median, ms",
    ]
    body = table([*head, f"times {Path(base).stem}"], rows)
    size = there[0]["imgsz"]
    text = (
        f"At {size} px, batch 1; error from float64 in units of the largest output, with weights that enlarge it, and "
        f"PyTorch's own in float32; operators with those of loop bodies."
    )
    goals = []
    for (case, name), target in GOALS.items():
        for threads in sorted({row["threads"] for row in there if row["case"] == case}):
            which = {"case": case, "threads": threads}
            taken = median_of(there, "time", model=f"{name}.yaml", **which)
            ratio = quotient(taken, median_of(there, "time", model=base, **which))
            goals.append(Goal(f"{name}, {case}, {threads} thread{'s' * (threads > 1)}", target, False, ratio))
    parts = [text, body, *notes, f"Targets, as a ratio to {Path(base).stem}:", verdicts(goals)]
    before = earlier(r, "case")
    parts += [f"{before}."] if before else []
    return {"export_cpu": "\n\n".join([*parts, source(r, "python benchmarks/export_cpu.py")])}


def jobs(args: argparse.Namespace) -> list[dict]:
    """Return what --base compares: every model in every format whose packages are here."""
    found = []
    for case in args.cases:
        if CASES[case][2] == BROWSER:
            print(f"{case}: left out, --base does not open a browser")
            continue
        try:
            needs(CASES[case][0], CASES[case][2])
        except Absent as e:
            print(f"{case}: not run, {e}")
            continue
        size = {"imgsz": 64 if args.quick else IMGSZ}
        found += [{"case": case, "model": m, "threads": t, **size} for m in args.models for t in args.threads]
    return found


def public(job: dict) -> dict[str, Timed | float]:
    """Return a run of the exported file, warmed up, and the seconds that its export took."""
    form, arguments, precision = CASES[job["case"]]
    file, seconds = export(job["model"], form, arguments, job["imgsz"])
    x = torch.rand(1, 3, job["imgsz"], job["imgsz"], generator=torch.Generator().manual_seed(0)).numpy()
    run = partial(runner(file, job["threads"], precision), x)
    run()
    name = f"{job['case']}, {Path(job['model']).stem}"
    return {name: Timed(run), f"{name}, export, s": round(seconds, 2)}


def main() -> None:
    """Measure each format in a process of its own, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    of_models = {"nargs": "+", "type": model_file, "default": MODELS}
    parser.add_argument("--models", **of_models, help="the first is what the others are compared with")
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    args = parse(parser, seconds=3.0)
    if args.job:
        job = json.loads(args.job)
        torch.set_num_threads(job["threads"])
        with tempfile.TemporaryDirectory() as folder, inside(Path(folder)):
            rows = measure(job["case"], job["models"], job["threads"], job["imgsz"], job["seconds"])
        print(json.dumps({"rows": rows}))
        return
    if args.base:
        compare(__file__, jobs(args), args.base, args.seconds)
        return
    imgsz = 64 if args.quick else IMGSZ
    result = heading("export_cpu", args)
    result["settings"] |= {"nc": 2, "limit": LIMIT, "limit of 16 bits": LIMIT_16}
    file = args.out or RESULTS / "export_cpu.json"
    kept = json.loads(file.read_text(encoding="utf-8"))["rows"] if file.exists() and not args.quick else []
    again = {(case, threads) for case in args.cases for threads in args.threads}
    result["rows"] = [row for row in kept if (row["case"], row.get("threads")) not in again and row["case"] in CASES]
    result["rows"] = [row for row in result["rows"] if "threads" in row or row["case"] not in args.cases]  # was absent
    for case in args.cases:
        for threads in args.threads:
            job = {"case": case, "models": args.models, "threads": threads, "imgsz": imgsz, "seconds": args.seconds}
            for row in in_process(__file__, job)["rows"]:
                result["rows"].append(row | {"commit": result["environment"]["commit"]})
                if "absent" in row:
                    print(f"{case}: not run, {row['absent']}", flush=True)
                    continue
                took = f"{row['time']['median_ms']:.1f} ms" if row["time"] else f"red: {row['check']}"
                print(f"{row['model']:24} {case:26} {threads} threads  {took}", flush=True)
    result["rows"].sort(key=lambda row: (list(CASES).index(row["case"]), row.get("threads", 0)))
    result["settings"]["threads"] = sorted({row["threads"] for row in result["rows"] if "threads" in row})
    write(result, args.out)


if __name__ == "__main__":
    main()
