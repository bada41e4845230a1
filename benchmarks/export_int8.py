# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Exports in 8 bits on a CPU: what they lose in mAP50-95, and their time beside the float32 file and a stock model.

Accuracy is of trained weights, in the size of their training; files are validated with square pictures, as files of a
fixed size have to be. Times are of files of 640 pixels, and do not depend on the weights: models without weights of
their own, calibrated on a few pictures, are timed too. Calibration is upstream's: the validation pictures of the data.

Usage:
    python benchmarks/export_int8.py --data bccd/data.yaml --weights stock.pt graft.pt
    python benchmarks/export_int8.py --data bccd/data.yaml --files exported     # keep the files, for more runs
    python benchmarks/export_int8.py --data tiny/data.yaml --quick              # prints, writes nothing
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from benchmarks.export_cpu import IMGSZ, inside, model, needs, runner  # noqa: E402
from benchmarks.rendering import Goal, earlier, ms, quotient, source, table, times, verdicts  # noqa: E402
from benchmarks.result import RESULTS  # noqa: E402
from benchmarks.timing import Absent, Timed, heading, in_process, interleave, parse, write  # noqa: E402
from ultralytics import YOLO  # noqa: E402

COMMAND = "python benchmarks/export_int8.py --data ... --weights ..."
# Name: format, precision asked of OpenVINO
CASES: dict[str, tuple[str, str | None]] = {
    "ONNX Runtime": ("onnx", None),
    "OpenVINO, float32": ("openvino", "f32"),
    "OpenVINO, its own choice": ("openvino", None),
}
MODELS = ["yolov8n.yaml", "VMamba-yolon.yaml", "VMamba-yolo26n-graft.yaml"]  # the first is what others are beside
PRECISIONS = {"float32": None, "int8": 8}
LOST = 1.0  # points of mAP50-95, at most
QUICK = {"MODELS": ["VMamba-yolo26n-graft.yaml"], "imgsz": 64}


def exported(source: str, form: str, bits: int | None, imgsz: int, data: str, folder: Path, few: bool) -> Path:
    """Return the exported file of a model file or of weights, which is made unless it is there.

    Args:
        source (str): A YAML by name, or the path of trained weights.
        form (str): Ultralytics' name of the format.
        bits (int, optional): 8, or None for float32.
        imgsz (int): Side of the pictures.
        data (str): Data to calibrate with.
        folder (Path): Where exported files are kept.
        few (bool): Calibrate with a few pictures, where nothing but the time is asked.
    """
    name = (
        f"{Path(source).stem if source in MODELS else '-'.join(Path(source).parts[-3:-2])}-{form}-{bits or 32}-{imgsz}"
    )
    place = folder / name.replace("/", "-")
    if not place.is_dir():
        making = folder / f"{place.name}-making"  # so that a run that was ended leaves nothing that looks whole
        shutil.rmtree(making, ignore_errors=True)
        making.mkdir(parents=True)
        with inside(making):
            if source.endswith(".pt"):
                shutil.copy(source, making / "model.pt")
                yolo = YOLO(making / "model.pt")
            else:
                yolo = model(source)
            settings = {"quantize": bits, "data": data, "fraction": 0.1 if few else 1.0} if bits else {}
            yolo.export(format=form, imgsz=imgsz, device="cpu", **settings)
        making.rename(place)
    return next(p for p in place.iterdir() if p.suffix == ".onnx" or p.name.endswith("_openvino_model"))


def validated(file: Path | str, imgsz: int, data: str, folder: Path) -> float:
    """Return the mAP50-95 of a file or of weights, in percent."""
    settings = {"data": data, "imgsz": imgsz, "device": "cpu", "batch": 1, "rect": False, "plots": False, "workers": 0}
    metrics = YOLO(file, task="detect").val(**settings, verbose=False, project=str(folder), name="val", exist_ok=True)
    return round(100 * float(metrics.box.map), 2)


def accuracy(job: dict) -> list[dict]:
    """Return the mAP50-95 of weights in PyTorch and in files of one format."""
    form, rows, folder = job["form"], [], Path(job["files"])
    needs(form)
    for weights in job["weights"]:
        imgsz = int(torch.load(weights, weights_only=False, map_location="cpu")["train_args"]["imgsz"])
        found = {"PyTorch": validated(weights, imgsz, job["data"], folder)}
        for name, bits in PRECISIONS.items():
            file = exported(weights, form, bits, imgsz, job["data"], folder, False)
            found[name] = validated(file, imgsz, job["data"], folder)
        rows.append({"part": "accuracy", "form": form, "model": Path(weights).parts[-3], "imgsz": imgsz, "mAP": found})
    return rows


def speed(job: dict) -> list[dict]:
    """Return times of float32 and int8 files of every model in one runtime."""
    form, precision = CASES[job["case"]]
    needs(form)
    calls, imgsz = {}, job["imgsz"]
    x = torch.rand(1, 3, imgsz, imgsz, generator=torch.Generator().manual_seed(0)).numpy()
    for name in job["models"]:
        for kind, bits in PRECISIONS.items():
            file = exported(name, form, bits, imgsz, job["data"], Path(job["files"]), True)
            file = next(file.glob("*.xml")) if file.is_dir() else file
            run = partial(runner(file, job["threads"], precision), x)
            run()
            calls[name, kind] = Timed(run)
    if job["seconds"] == 0:  # files alone
        return []
    timed = interleave(calls, job["seconds"])
    where = {"part": "speed", "case": job["case"], "threads": job["threads"], "imgsz": imgsz}
    return [where | {"model": n, "times": {k: timed[n, k] for k in PRECISIONS}} for n in job["models"]]


def render(r: dict) -> dict[str, str]:
    """Return the tables of a result."""
    lost, fast, goals, notes = [], [], [], []
    for row in r["rows"]:
        if "absent" in row:
            notes.append(f"{row.get('case') or row['form']} not run: {row['absent']}.")
        elif row["part"] == "accuracy":
            of, name = row["mAP"], {"onnx": "ONNX Runtime", "openvino": "OpenVINO"}[row["form"]]
            lost.append([name, row["model"], row["imgsz"], *(f"{of[k]:.1f}" for k in ("PyTorch", *PRECISIONS))])
            if "stock" not in row["model"]:
                drop = round(of["float32"] - of["int8"], 2)
                goals.append(Goal(f"{row['model']}, {name}: points that int8 loses", LOST, False, drop))
        else:
            beside = next(o for o in r["rows"] if all(o.get(k) == row[k] for k in ("part", "case", "threads")))
            taken = {k: t["median_ms"] for k, t in row["times"].items()}
            ratio = quotient(taken["int8"], beside["times"]["int8"]["median_ms"])
            stem, both = Path(row["model"]).stem, quotient(taken["int8"], taken["float32"])
            cells = [ms(row["times"][k]) for k in PRECISIONS]
            fast.append([row["case"], row["threads"], stem, *cells, times(both), times(ratio)])
            if stem.startswith("VMamba"):
                what = f"{stem}, {row['case']}, {row['threads']} thread{'s' * (row['threads'] > 1)}: int8 over float32"
                goals.append(Goal(what, 1.0, False, both))
    stock = next((Path(row["model"]).stem for row in r["rows"] if row.get("part") == "speed"), "")
    parts = [
        "mAP50-95 in percent on the validation pictures of BCCD, after 15 epochs of 320 pixels (one run each):",
        table(["format", "model", "px", "PyTorch", "float32 file", "int8 file"], lost),
        "Milliseconds at 640 px, batch 1:",
        table(["format", "threads", "model", "float32", "int8", "int8 over float32", f"int8 over {stock} int8"], fast),
        *sorted(set(notes)),
        verdicts(goals),
        *([f"{before}."] if (before := earlier(r, "case", "form")) else []),
        source(r, COMMAND),
    ]
    return {"export_int8": "\n\n".join(parts)}


def main() -> None:
    """Measure each format in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="a data.yaml: to calibrate with, and to validate on")
    parser.add_argument("--weights", nargs="*", default=[], help="trained weights, RUN/weights/best.pt; 'stock' in RUN")
    parser.add_argument("--files", type=Path, help="folder for exported files, which are used again if they are there")
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parts = ["accuracy", "speed"]
    parser.add_argument("--parts", nargs="+", default=parts, choices=parts, help="one; rows of the other stay")
    parser.add_argument("--export-only", action="store_true", help="make the files to time, and time nothing")
    args = parse(parser, seconds=2.0)
    if args.job:
        job = json.loads(args.job)
        torch.set_num_threads(job["threads"])
        try:
            rows = {"accuracy": accuracy, "speed": speed}[job["part"]](job)
        except Absent as e:
            rows = [{k: job[k] for k in ("part", "form", "case") if k in job} | {"absent": str(e)}]
        print(json.dumps({"rows": rows}))
        return
    if args.base:
        raise SystemExit("export_int8.py compares 8 bits with float32; for another commit use export_cpu.py --base.")
    if not args.data or not Path(args.data).is_file():
        raise SystemExit(f"--data {args.data}: give the data.yaml of pictures to calibrate with.")
    missing = [w for w in args.weights if not Path(w).is_file()]
    if missing:
        raise SystemExit(f"--weights {' '.join(missing)}: no such file.")
    result = heading("export_int8", args)
    file = args.out or RESULTS / "export_int8.json"
    kept = json.loads(file.read_text(encoding="utf-8"))["rows"] if file.exists() and not args.quick else []
    models, imgsz = (QUICK["MODELS"], QUICK["imgsz"]) if args.quick else (MODELS, IMGSZ)
    with tempfile.TemporaryDirectory() as temporary:
        files = (args.files or Path(temporary)).resolve()
        shared = {"data": str(Path(args.data).resolve()), "files": str(files), "seconds": args.seconds}
        jobs = [
            {"part": "accuracy", "form": form, "weights": [str(Path(w).resolve()) for w in args.weights], "threads": 2}
            for form in dict.fromkeys(CASES[case][0] for case in args.cases)
            if args.weights
        ]
        jobs += [
            {"part": "speed", "case": case, "models": models, "threads": threads, "imgsz": imgsz}
            for case in args.cases
            for threads in args.threads
        ]
        jobs = [job for job in jobs if job["part"] in args.parts]
        if args.export_only:
            jobs = [job | {"seconds": 0} for job in jobs if job["part"] == "speed"]
        rows = []
        for job in jobs:
            done = in_process(__file__, shared | job)["rows"]
            rows += [row | {"commit": result["environment"]["commit"]} for row in done]
            for row in rows[-len(models) :] if rows else []:
                print(json.dumps(row), flush=True)
    if args.export_only:
        return
    keys = "part", "form", "case", "threads"
    again = [{k: row.get(k) for k in keys} for row in rows]
    result["rows"] = [row for row in kept if {k: row.get(k) for k in keys} not in again] + rows
    result["rows"].sort(key=lambda row: row["part"])
    result["settings"]["threads"] = sorted({row["threads"] for row in result["rows"] if "threads" in row})
    write(result, args.out)


if __name__ == "__main__":
    main()
