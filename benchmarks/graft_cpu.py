# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""What the default graft costs on a CPU beside the model that it is made of: size, inference, training step, grafting.

Both models of a pair run in one process, in turns, with two classes each. Inference is of the fused model on one
picture of 640 pixels; a training step is loss, backward and SGD on pictures of 320 pixels.

Usage:
    python benchmarks/graft_cpu.py                # yolov8n, yolo11n, yolo26n, 1 and 2 threads: four minutes
    python benchmarks/graft_cpu.py --quick        # tiny pictures; prints, writes nothing
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from benchmarks.model_cpu import (  # noqa: E402
    BATCH,
    FORWARD,
    TRAIN,
    facts,
    forward_call,
    fused,
    labelled,
    step_call,
)
from benchmarks.model_cpu import build as untrained  # noqa: E402
from benchmarks.rendering import Goal, ms, quotient, source, table, times  # noqa: E402
from benchmarks.timing import Timed, heading, in_process, interleave, parse, write  # noqa: E402

PAIRS = {
    "yolov8n.yaml": "VMamba-yolov8n-graft.yaml",
    "yolo11n.yaml": "VMamba-yolo11n-graft.yaml",
    "yolo26n.yaml": "VMamba-yolo26n-graft.yaml",
}
LIMITS = {"parameters": 1.12, "forward": 1.15, "training step": 1.2, "grafting": 10.0}  # the last in seconds


def measure(job: dict) -> list[dict]:
    """Return times of a pair: one row for inference, one for a training step."""
    rows = []
    pair = {"stock": job["stock"], "graft": PAIRS[job["stock"]]}
    data = labelled(job["imgsz"], job["batch"])
    calls = {
        "forward": {n: forward_call(fused(file), job["size"]) for n, file in pair.items()},
        "training step": {n: step_call(untrained(file).train(), data) for n, file in pair.items()},
    }
    for kind, runs in calls.items():
        for run in runs.values():
            run()  # strides, anchors and the optimizer's state
        timed = interleave({n: Timed(run) for n, run in runs.items()}, job["seconds"])
        rows.append({"kind": kind, "source": job["stock"], "threads": job["threads"], **timed})
    return rows


def grafting(stock: str) -> float:
    """Return the seconds that `graft` takes."""
    from ultralytics import YOLO
    from ultralytics.nn.Addmodules import graft

    model, begin = YOLO(stock), time.perf_counter()
    graft(model)
    return round(time.perf_counter() - begin, 2)


def render(r: dict) -> dict[str, str]:
    """Return the table of a result."""
    rows = []
    for size in r["models"]:
        stock = size["source"]
        rows.append([Path(stock).stem, "parameters", "", f"{size['stock']:,}", f"{size['graft']:,}", factor(size)])
        rows += [
            [Path(stock).stem, f"{row['kind']}, ms", row["threads"], ms(row["stock"]), ms(row["graft"]), factor(row)]
            for row in r["rows"]
            if row["source"] == stock
        ]
        rows.append([Path(stock).stem, "grafting, s", "", "", f"{size['grafting']:.1f}", ""])
    head = ["source", "what", "threads", "source's", "graft's", "ratio"]
    return {"graft_cpu": f"{table(head, rows)}\n\n{source(r, 'python benchmarks/graft_cpu.py')}"}


def ratio(row: dict) -> float | None:
    """Return the graft's figure over its source's."""
    stock, own = (row[n]["median_ms"] if isinstance(row[n], dict) else row[n] for n in ("stock", "graft"))
    return quotient(own, stock)


def factor(row: dict) -> str:
    """Return the ratio of a row for a table."""
    return times(ratio(row))


def goals(r: dict | None) -> list[Goal]:
    """Return the targets beside a result: each is the worst of all pairs and thread counts."""
    found = {kind: [] for kind in LIMITS}
    for row in r["rows"] if r else ():
        found[row["kind"]].append(ratio(row))
    for size in r["models"] if r else ():
        found["parameters"].append(ratio(size))
        found["grafting"].append(size["grafting"])
    words = {"parameters": "parameters", "forward": "forward at 640", "training step": "training step at 320"}
    return [
        Goal(
            f"default graft, {words[kind]}: times its source's" if kind in words else "grafting: seconds",
            limit,
            False,
            max(found[kind]) if found[kind] else None,
            "worst of three sources" if found[kind] else "",
        )
        for kind, limit in LIMITS.items()
    ]


def main() -> None:
    """Measure, each pair and thread count in a process of its own, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sources", nargs="+", default=[*PAIRS], choices=[*PAIRS])
    args = parse(parser, seconds=6.0)
    if args.base:
        raise SystemExit("graft_cpu.py compares grafts with their sources; for another commit use model_cpu.py --base.")
    if args.job:
        job = json.loads(args.job)
        torch.set_num_threads(job["threads"])
        print(json.dumps({"rows": measure(job)}))
        return
    sizes = {"size": 64, "imgsz": 64, "batch": 2} if args.quick else {"size": FORWARD, "imgsz": TRAIN, "batch": BATCH}
    result = heading("graft_cpu", args)
    result["models"], result["rows"] = [], []
    for stock in args.sources:
        counts = {n: facts(file, 64)["parameters"] for n, file in (("stock", stock), ("graft", PAIRS[stock]))}
        result["models"].append({"source": stock, **counts, "grafting": grafting(stock)})
        for threads in args.threads:
            job = {"stock": stock, "threads": threads, "seconds": args.seconds, **sizes}
            for row in in_process(__file__, job)["rows"]:
                result["rows"].append(row)
                print(f"{stock:14} {row['kind']:14} {threads} threads  {factor(row)}", flush=True)
    write(result, args.out)


if __name__ == "__main__":
    main()
