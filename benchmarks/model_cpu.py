# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Whole models on a CPU beside stock YOLOv8n: forward, its growth with the picture, and a training step.

Models are built as a user gets them, with two classes each, so that heads are equal. Every model with layers of ours
also runs with the scan in plain PyTorch, which shows what the C++ kernel is worth and checks it: where the two disagree
there is no number. Peak memory of a training step is measured by benchmarks/memory.py.

Usage:
    python benchmarks/model_cpu.py                                        # stock, ours and a graft, 1 and 2 threads
    python benchmarks/model_cpu.py --models yolov8n.yaml VMamba-yolov8n.yaml graft:yolo11n.yaml
    python benchmarks/model_cpu.py --base main                            # the models of another commit beside these
    python benchmarks/model_cpu.py --quick                                # tiny pictures; prints, writes nothing
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from benchmarks.base import compare  # noqa: E402
from benchmarks.rendering import Goal, median_of, ms, quotient, source, table, times  # noqa: E402
from benchmarks.timing import Timed, distance, heading, in_process, interleave, model_file, parse, write  # noqa: E402
from ultralytics.cfg import get_cfg  # noqa: E402
from ultralytics.nn.Addmodules.selective_scan import use_backend  # noqa: E402
from ultralytics.nn.tasks import DetectionModel  # noqa: E402
from ultralytics.utils.torch_utils import get_flops  # noqa: E402

STOCK, OURS, GRAFT = "yolov8n.yaml", "VMamba-yolov8n.yaml", "graft:"
MODELS = [  # the first is what the others are compared with
    *(STOCK, "yolo11n.yaml", "yolo26n.yaml", "yolov5n.yaml", OURS, "VMamba-yolon.yaml", f"{GRAFT}yolov5n.yaml"),
]
FORWARD, GROWTH = 640, (320, 640, 1280)
TRAIN, BATCH = 320, 4
AUTO, PLAIN = "auto", "chunked"
MODEL_LIMIT = 1e-3  # as timing.LIMIT; dozens of layers lie between a scan and what is compared


def build(name: str) -> DetectionModel:
    """Return a model with two classes and fixed weights; `graft:` before a name is the default graft of that model."""
    torch.manual_seed(0)
    model = DetectionModel(name.removeprefix(GRAFT), nc=2, verbose=False)
    if name.startswith(GRAFT):
        from ultralytics import YOLO
        from ultralytics.nn.Addmodules import graft  # here, because --base runs this file on older trees

        source = YOLO(name.removeprefix(GRAFT))
        source.model = model
        model = graft(source).model
    model.args = get_cfg()
    return model


def has_own_layers(model: torch.nn.Module) -> bool:
    """Return whether layers of this fork are in the model."""
    return any(type(m).__module__.startswith("ultralytics.nn.Addmodules.") for m in model.modules())


def facts(name: str, imgsz: int) -> dict:
    """Return parameters and GFLOPs of a model."""
    model = build(name)
    gflops = get_flops(model, imgsz)  # 0.0 stands for "could not be counted"
    count = sum(p.numel() for p in model.parameters())
    return {"model": name, "parameters": count, "gflops": round(gflops, 3) or None, "gflops_imgsz": imgsz}


def verdict(own: bool, run: Callable[[], list[torch.Tensor]]) -> dict:
    """Compare what a call returns under both backends, and return the check: ok and error.

    Args:
        own (bool): Whether backends make a difference; otherwise values must only be finite.
        run (Callable[[], list[torch.Tensor]]): The call.
    """
    with use_backend(AUTO):
        got = run()
    error = 0.0
    if own:
        with use_backend(PLAIN):
            error = distance(got, run())
    finite = all(bool(t.isfinite().all()) for t in got)
    return {"ok": finite and error <= MODEL_LIMIT, "error": float(f"{error:.2g}")}


def variants(name: str, own: bool) -> list[tuple[str, str]]:
    """Return the (model, backend) pairs that are timed."""
    return [(name, AUTO), (name, PLAIN)] if own else [(name, AUTO)]


def row(
    kind: str, model: str, backend: str, threads: int, imgsz: int, batch: int, check: dict, time: dict | None
) -> dict:
    """Return one row of the result."""
    keys = {"kind": kind, "model": model, "backend": backend, "threads": threads, "imgsz": imgsz, "batch": batch}
    return keys | {"check": check, "time": time}


def forward_call(model: DetectionModel, size: int) -> Callable[[], list[torch.Tensor]]:
    """Return inference of a fused model on one picture."""
    x = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))

    def run() -> list[torch.Tensor]:
        with torch.inference_mode():
            return [model(x)[0]]

    return run


def fused(name: str) -> DetectionModel:
    """Return a model as predict runs it on x86."""
    return build(name).eval().fuse(verbose=False).to(memory_format=torch.channels_last)


def forwards(names: list[str], threads: int, sizes: list[int], seconds: float) -> list[dict]:
    """Time inference of fused models; plain PyTorch scans at the first size only, since they take long."""
    calls, rows = {}, []
    for name in names:
        model = fused(name)
        own = has_own_layers(model)
        for size in sizes:
            run = forward_call(model, size)
            run()  # strides, anchors and the allocator are set up by a first call
            check = verdict(own and size == sizes[0], run)
            for model_name, backend in variants(name, own and size == sizes[0]):
                key = f"{model_name} {backend} {size}"
                if check["ok"]:
                    calls[key] = Timed(run, lambda backend=backend: use_backend(backend))
                rows.append((key, model_name, backend, size, check))
    timed = interleave(calls, seconds)
    return [row("forward", m, b, threads, size, 1, check, timed.get(key)) for key, m, b, size, check in rows]


def labelled(imgsz: int, batch: int) -> dict[str, torch.Tensor]:
    """Return pictures with two objects each."""
    make = torch.Generator().manual_seed(0)
    labels = 2 * batch
    return {
        "img": torch.rand(batch, 3, imgsz, imgsz, generator=make),
        "cls": torch.randint(0, 2, (labels, 1), generator=make).float(),
        "bboxes": torch.rand(labels, 4, generator=make) * 0.3 + 0.3,
        "batch_idx": torch.arange(labels) // 2,
    }


def step_call(model: DetectionModel, data: dict[str, torch.Tensor]) -> Callable[[], None]:
    """Return a training step: loss, backward and SGD."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)

    def step() -> None:
        model(data)[0].sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def training_steps(names: list[str], threads: int, imgsz: int, batch: int, seconds: float) -> list[dict]:
    """Time loss, backward and an SGD step."""
    data, calls, rows = labelled(imgsz, batch), {}, []
    for name in names:
        model = build(name).train()
        own, step = has_own_layers(model), step_call(model, data)

        def loss_and_gradients(model=model) -> list[torch.Tensor]:
            """Return the loss and the norm of every gradient."""
            loss = model(data)[0].sum()
            loss.backward()
            norms = [p.grad.norm() for p in model.parameters() if p.grad is not None]
            model.zero_grad()
            return [loss.detach(), torch.stack(norms)]

        check = verdict(own, loss_and_gradients)
        for model_name, backend in variants(name, own):
            if check["ok"]:
                with use_backend(backend):
                    step()  # warm-up: the optimizer makes its state
                calls[f"{model_name} {backend}"] = Timed(step, lambda backend=backend: use_backend(backend))
            rows.append((f"{model_name} {backend}", model_name, backend, check))
    timed = interleave(calls, seconds)
    return [row("training step", m, b, threads, imgsz, batch, check, timed.get(key)) for key, m, b, check in rows]


def render(r: dict) -> dict[str, str]:
    """Return the tables of a result."""
    base, rows = r["models"][0]["model"], []
    for row in r["rows"]:
        case = {k: row[k] for k in ("kind", "threads", "imgsz")}
        stock = median_of(r["rows"], "time", model=base, **case)
        rows.append(
            [
                f"{row['kind']}, {row['imgsz']} px, batch {row['batch']}",
                row["threads"],
                Path(row["model"]).stem + (", scans in plain PyTorch" if row["backend"] == "chunked" else ""),
                ms(row["time"]),
                ms(row["time"], "min_ms"),
                times(quotient(row["time"] and row["time"]["median_ms"], stock)),
            ]
        )
    rows.sort(key=lambda x: (x[0].startswith("training"), [int(n) for n in re.findall(r"\d+", x[0])], x[1]))
    imgsz = r["models"][0]["gflops_imgsz"]
    counts = table(
        ["model, two classes", "parameters", f"GFLOPs at {imgsz}"],
        [[Path(m["model"]).stem, f"{m['parameters'] / 1e6:.2f} M", m["gflops"] or "not counted"] for m in r["models"]],
    )
    head = ["what", "threads", "model", "median, ms", "least, ms", f"times {Path(base).stem}"]
    measured = [m["model"] for m in r["models"]]
    command = "python benchmarks/model_cpu.py" + ("" if measured == MODELS else f" --models {' '.join(measured)}")
    return {"model_cpu": f"{counts}\n\n{table(head, rows)}\n\n{source(r, command)}"}


def inference(r: dict | None, model: str) -> float | None:
    """Return the median milliseconds of a model on one picture of 640 pixels on one thread, if they were measured."""
    case = {"kind": "forward", "imgsz": FORWARD, "threads": 1, "backend": AUTO}
    return median_of(r["rows"] if r else [], "time", model=model, **case)


def goals(r: dict | None) -> list[Goal]:
    """Return the targets of whole models beside a result."""
    rows, found = r["rows"] if r else [], []

    def of(model: str, **case) -> float | None:
        return median_of(rows, "time", model=model, backend=AUTO, **case)

    def on(threads: int) -> str:
        return f"{threads} thread{'s' if threads > 1 else ''}"

    for kind, imgsz, limit in (("forward", FORWARD, 1.3), ("training step", TRAIN, 1.5)):
        for threads in (1, 2):
            case = {"kind": kind, "imgsz": imgsz, "threads": threads}
            ratio = quotient(of(OURS, **case), of(STOCK, **case))
            remark = "" if ratio is None else f"moonshot 1.0 {'met' if ratio <= 1 else 'missed'}"
            found.append(
                Goal(f"model {kind} at {imgsz}, {on(threads)}: times stock's time", limit, False, ratio, remark)
            )
    for threads in (1, 2):
        at = {size: of(OURS, kind="forward", threads=threads, imgsz=size) for size in GROWTH}
        for small, big in zip(GROWTH, GROWTH[1:]):
            ratio = quotient(at[big], at[small])
            what = f"model forward from {small} to {big}, {on(threads)}: growth over pixels'"
            found.append(Goal(what, 1.1, False, ratio and ratio / (big / small) ** 2))
    return found


def jobs(args: argparse.Namespace) -> list[dict]:
    """Return what --base compares: inference and a training step of every model."""
    sizes = {"size": 64, "imgsz": 64, "batch": 2} if args.quick else {"size": FORWARD, "imgsz": TRAIN, "batch": BATCH}
    return [{"model": model, "threads": threads, **sizes} for model in args.models for threads in args.threads]


def public(job: dict) -> dict[str, Timed]:
    """Return inference and a training step of a model, warmed up."""
    name = Path(job["model"]).stem
    forward = forward_call(fused(job["model"]), job["size"])
    step = step_call(build(job["model"]).train(), labelled(job["imgsz"], job["batch"]))
    forward(), step()
    return {
        f"{name}, forward, {job['size']} px": Timed(forward),
        f"{name}, training step, {job['imgsz']} px, batch {job['batch']}": Timed(step),
    }


def arguments() -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    of_models = {"nargs": "+", "type": model_file, "default": MODELS}
    parser.add_argument("--models", **of_models, help="the first is what the others are compared with")
    return parse(parser, seconds=8.0)


def main() -> None:
    """Measure, each kind and thread count in a process of its own, one after the other."""
    args = arguments()
    if args.job:
        job = json.loads(args.job)
        torch.set_num_threads(job["threads"])
        common, rows = (job["models"], job["threads"]), []
        if "sizes" in job:
            rows += forwards(*common, job["sizes"], job["seconds"])
        if "imgsz" in job:
            rows += training_steps(*common, job["imgsz"], job["batch"], job["seconds"])
        print(json.dumps({"rows": rows}))
        return
    if args.base:
        compare(__file__, jobs(args), args.base, args.seconds)
        return
    sizes = [64, 32] if args.quick else [FORWARD, *(s for s in GROWTH if s != FORWARD)]
    imgsz, batch = (64, 2) if args.quick else (TRAIN, BATCH)
    result = heading("model_cpu", args)
    result["settings"] |= {"nc": 2, "limit": MODEL_LIMIT}
    result["models"] = [facts(name, sizes[0]) for name in args.models]
    result["rows"] = []
    forward, training = {"sizes": sizes}, {"imgsz": imgsz, "batch": batch}
    for what in [forward | training] if args.quick else [forward, training]:  # starting a process takes seconds
        for threads in args.threads:
            job = {**what, "models": args.models, "threads": threads, "seconds": args.seconds}
            rows = in_process(__file__, job)["rows"]
            result["rows"] += rows
            for r in rows:
                time = f"{r['time']['median_ms']:.1f} ms" if r["time"] else f"red: {r['check']}"
                case = f"{r['kind']} {r['imgsz']} px, batch {r['batch']}"
                print(f"{r['model']:24} {r['backend']:8} {case:32} {threads} threads  {time}", flush=True)
    write(result, args.out)


if __name__ == "__main__":
    main()
