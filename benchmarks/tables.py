# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Write the tables of the docs from benchmarks/results: each stands between two comment lines in its page.

Usage:
    python benchmarks/tables.py            # write them
    python benchmarks/tables.py --check    # exit 1 if a page differs from what would be written
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks/results"


def table(head: list[str], rows: list[list]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(c) for c in line) + " |" for line in lines)


def load(name: str) -> dict | None:
    """Return a result, or None if it has not been measured."""
    file = RESULTS / f"{name}.json"
    if not file.exists():
        return None
    result = json.loads(file.read_text())
    if result.get("quick"):
        raise SystemExit(f"{file.name} is of a --quick run, whose figures mean nothing: measure, or remove it")
    return result


def unmeasured(name: str) -> str:
    """Return what stands in a page in place of a result that is not there."""
    return f"Not measured yet: `python benchmarks/{name}.py`, then `python benchmarks/tables.py`."


def source(result: dict, command: str) -> str:
    """Return the line that tells where figures come from."""
    e = result["environment"]
    dirty = " with uncommitted changes" if e["uncommitted"] else ""
    load = result.get("load_average")
    busy = "" if load is None else f", load average {load:.1f} when it began"
    threads = result.get("settings", {}).get("threads", e["threads"])
    if isinstance(threads, list):
        threads = " and ".join(map(str, threads))
    return (
        f"{e['cpu']}, {threads} thread{'' if threads in (1, '1') else 's'}, torch {e['torch']}, {result['date']}, "
        f"commit {e['commit'][:10]}{dirty}{busy}; `{command}`."
    )


def memory() -> str:
    """Return the tables of benchmarks/memory.py."""
    r = json.loads((RESULTS / "memory.json").read_text())
    s = r["settings"]
    blocks = table(
        ["d_model", "tokens", "kept with recomputation", "kept without"],
        [[b["d_model"], b["tokens"], b["recompute"], b["keep"]] for b in r["blocks"]],
    )
    base = r["steps"][0]["peak_mib"]
    steps = table(
        [f"training step, {s['imgsz']} px, batch {s['batch']}", "peak MiB", "times yolov8n"],
        [
            [
                Path(m["model"]).stem + ("" if m["fast_path"] else ", `use_fast_path=False`"),
                m["peak_mib"],
                f"{m['peak_mib'] / base:.2f}",
            ]
            for m in r["steps"]
        ],
    )
    note = "Floats kept for one two-direction block, in units of B L D:"
    return f"{note}\n\n{blocks}\n\n{steps}\n\n{source(r, 'python benchmarks/memory.py')}"


def study_runs() -> dict[str, dict[str, list[dict]]]:
    """Return the runs of benchmarks/train_from_scratch.py by data set and model, in the order of their seeds."""
    found: dict[str, dict[str, list[dict]]] = {}
    for file in sorted((RESULTS / "study").glob("*.json")):
        run = json.loads(file.read_text())
        found.setdefault(run["data"], {}).setdefault(Path(run["model"]).stem, []).append(run)
    for models in found.values():
        for runs in models.values():
            runs.sort(key=lambda run: run["seed"])
    return found


def study() -> str:
    """Return the tables of the study: models of each data set, the best first, and the variants tried beside them."""
    parts = []
    for name, models in study_runs().items():
        rows: dict[bool, list] = {False: [], True: []}
        for model, runs in models.items():
            settings = [run["settings"] for run in runs]
            if any(s != settings[0] for s in settings):
                raise SystemExit(f"study, {name}: runs of {model} with different settings do not go into one row")
            scores = {key: [run["best"][key] for run in runs] for key in ("mAP50", "mAP50-95")}
            mean = {key: sum(v) / len(v) for key, v in scores.items()}
            losses = [run["epochs"][-1].get("val_loss") for run in runs]  # early runs did not keep it
            row = [
                model,
                f"{runs[0]['parameters'] / 1e6:.2f} M",
                f"{runs[0]['gflops']:.2f}",
                ", ".join(str(run["seed"]) for run in runs),
                f"{mean['mAP50']:.3f}",
                f"**{mean['mAP50-95']:.3f}**",
                " / ".join(f"{x:.3f}" for x in scores["mAP50-95"]),
                "not kept" if None in losses else f"{sum(losses) / len(losses):.2f}",
            ]
            rows[runs[0]["model"].startswith("benchmarks/study/")].append((mean["mAP50-95"], row))
        first = next(iter(models.values()))[0]
        s, e = first["settings"], first["environment"]
        head = [
            "model",
            "parameters",
            f"GFLOPs at {s['imgsz']}",
            "seeds",
            "mAP50",
            "mAP50-95",
            "by seed",
            "validation loss",
        ]
        bodies = [table(head, [row for _, row in sorted(of, key=lambda r: -r[0])]) for of in rows.values() if of]
        title = (
            f"{name}, {s['epochs']} epochs at {s['imgsz']} px, batch {s['batch']}, "
            f"an optimizer step every {s['nbs']} images:"
        )
        note = f"{e['cpu']}, torch {e['torch']}; date, commit and every epoch in the JSON files."
        parts.append(
            "\n\n".join([title, bodies[0], *(["Variants tried on the way:", bodies[1]] if rows[True] else []), note])
        )
    return "\n\n".join(parts) or unmeasured("train_from_scratch")


def choices() -> str:
    """Return the variants with one thing changed, each beside the same seeds of the model that it varies."""
    variants = sorted((ROOT / "benchmarks/study").glob("*.yaml"))
    found = {d: m for d, m in study_runs().items() if any(file.stem in m for file in variants)}
    rows = []
    for file in variants:
        kind, what = (line.lstrip("# ") for line in file.read_text().splitlines()[2:4])
        control = kind.startswith("A control of the study")
        if not control and not kind.startswith("VMamba-yolo at scale n, with one thing changed"):
            continue
        base, cells, size = "yolov8n" if control else "VMamba-yolon", [], None
        for models in found.values():
            mine = {run["seed"]: run for run in models.get(file.stem, [])}
            other = {run["seed"]: run["best"]["mAP50-95"] for run in models.get(base, []) if run["seed"] in mine}
            if not mine or mine.keys() != other.keys():
                cells.append("not run")
                continue
            size = next(iter(mine.values()))
            scores = [run["best"]["mAP50-95"] for run in mine.values()]
            gain = 100 * (sum(scores) - sum(other.values())) / len(scores)
            cells.append(f"{sum(scores) / len(scores):.3f}, {gain:+.1f} points (seeds {', '.join(map(str, mine))})")
        if size:
            sizes = f"{size['parameters'] / 1e6:.2f} M", f"{size['gflops']:.2f}"
            rows.append([f"`{file.stem}`", what, base, *sizes, *cells])
    return table(["variant", "what is different", "from", "parameters", "GFLOPs at 320", *found], rows)


def ss2d_cpu() -> str:
    """Return the table of benchmarks/ss2d_cpu.py."""
    r = load("ss2d_cpu")
    if r is None:
        return unmeasured("ss2d_cpu")
    rows: dict[tuple, dict] = {}
    for row in r["rows"]:
        key = row["form"], " x ".join(map(str, row["shape"])), row["kind"].replace("_", " + "), row["threads"]
        rows.setdefault(key, {})[row["subject"]] = row
    subjects = ["ours", "four copies", "VMamba repository"]

    def cell(row: dict) -> str:
        if row["time"] is None:
            return "not run" if row["absent"] else "red"
        return ms(row["time"])

    def ratio(of: dict) -> str:
        return times(of["four copies"]["time"]["median_ms"] / of["ours"]["time"]["median_ms"])

    body = [[*key, *(cell(of[name]) for name in subjects), ratio(of)] for key, of in rows.items()]
    head = ["VSS block", "map (B, C, H, W)", "", "threads", "ours, ms", "four copies, ms", "VMamba repository, ms"]
    why = "; ".join(sorted({row["absent"] for row in r["rows"] if row["absent"]}))
    note = (
        "Four copies: our scan in the form that peers use. VMamba repository: its own module with our weights; it has "
        f"no CPU path, so its scan is a loop over tokens.{f' Not run: {why}.' if why else ''}"
    )
    command = "python benchmarks/ss2d_cpu.py --peer <VMamba>/classification/models"
    return f"{note}\n\n{table([*head, 'four copies / ours'], body)}\n\n{source(r, command)}"


def export_cpu() -> str:
    """Return the table of benchmarks/export_cpu.py."""
    r = load("export_cpu")
    if r is None:
        return unmeasured("export_cpu")
    base, rows, notes = r["rows"][0]["model"], [], []
    for row in r["rows"]:
        if "absent" in row:
            notes.append(f"{row['case']} not run: {row['absent']}.")
            continue
        stock = median_of([x for x in r["rows"] if "absent" not in x], "time", model=base, **only(row))
        rows.append(
            [
                row["case"],
                row["threads"],
                Path(row["model"]).stem,
                f"{row['file_mb']:.1f} ({row['file_mb'] / row['weights_mb'] - 1:+.0%})",
                row["operators"] or "",
                f"{row['export_s']:.0f}",
                f"{row['check']['error']:.0e}",
                ms(row["time"]),
                times(quotient(row["time"] and row["time"]["median_ms"], stock)),
            ]
        )
    head = ["format", "threads", "model", "MB (over weights)", "operators", "export, s", "error", "median, ms"]
    body = table([*head, f"times {Path(base).stem}"], rows)
    size = r["rows"][0]["imgsz"]
    text = f"At {size} px, batch 1; error in units of the largest output; operators with those of loop bodies."
    return "\n\n".join([text, body, *notes, source(r, "python benchmarks/export_cpu.py")])


def only(row: dict) -> dict:
    """Return the keys that tell cases of export_cpu.py apart."""
    return {k: row[k] for k in ("case", "threads")}


# The CPU benchmarks

NAMES = {
    "cpp": "C++",
    "cpp avx2": "C++, held to AVX2",
    "chunked": "plain PyTorch, `chunked`",
    "mambapy": "mambapy, `pscan`",
    "loop": "token by token",
}
BOTH = ("forward", "forward_backward")
LARGEST = (1, 64, 25600)
STOCK, OURS = "yolov8n.yaml", "VMamba-yolov8n.yaml"


def ms(time: dict | None, key: str = "median_ms") -> str:
    """Return a time in three digits, or what stands in its place where the check was red."""
    return "red" if time is None else f"{time[key]:.3g}" if time[key] < 1000 else f"{time[key]:.0f}"


def times(ratio: float | None) -> str:
    """Return a ratio for a table."""
    return "" if ratio is None else f"{ratio:.2f}" if ratio < 10 else f"{ratio:.0f}"


def median_of(rows: list[dict], key: str, **which) -> float | None:
    """Return the median under `key` of the one row that has these values, or None where there is none or it is red."""
    found = [r[key]["median_ms"] for r in rows if r[key] and all(r[k] == v for k, v in which.items())]
    if len(found) > 1:
        raise SystemExit(f"{len(found)} rows of a result have {which}")
    return found[0] if found else None


def quotient(a: float | None, b: float | None) -> float | None:
    """Return a / b, or None where one is missing."""
    return None if a is None or b is None else a / b


def shape(r: dict) -> dict:
    """Return the keys that tell cases of scan_cpu.py apart."""
    return {k: r[k] for k in ("batch", "channels", "length", "layout")}


def scan_cpu() -> str:
    """Return the tables of benchmarks/scan_cpu.py, one for each number of threads."""
    r = load("scan_cpu")
    if r is None:
        return unmeasured("scan_cpu")
    parts = []
    for threads in r["settings"]["threads"]:
        rows = []
        for row in (x for x in r["rows"] if x["threads"] == threads):
            loop = {k: median_of(r["rows"], k, subject="loop", threads=threads, **shape(row)) for k in BOTH}
            mine = {k: row[k] and row[k]["median_ms"] for k in BOTH}
            rows.append(
                [
                    f"{row['batch']}, {row['channels']}, {row['length']}",
                    row["layout"],
                    NAMES[row["subject"]],
                    ms(row["forward"]),
                    ms(row["forward_backward"]),
                    *(times(quotient(loop[k], mine[k])) for k in BOTH),
                    row.get("ns_per_element", ""),
                    times(row.get("times_bound")),
                ]
            )
        head = ["B, D, L", "memory", "scan", "forward, ms", "forward + backward, ms"]
        head += ["x loop", "x loop, both", "forward, ns an element", "x bound"]
        bounds = [b["median_ns"] for b in r["bounds"] if b["threads"] == threads]
        title = f"{threads} thread{'s' if threads > 1 else ''}"
        if bounds:
            low, high = min(bounds), max(bounds)
            title += f", bound {low:.3f}" + (f" to {high:.3f}" if low < high else "") + " ns an element"
        parts.append(f"{title}:\n\n{table(head, rows)}")
    parts += [f"Absent: {NAMES.get(name, name)} ({why})." for name, why in r["absent"].items()]
    return "\n\n".join([*parts, source(r, "python benchmarks/scan_cpu.py")])


def scan_isa() -> str:
    """Return the kernel's own part of benchmarks/scan_cpu.py: instruction sets and threads side by side."""
    r = load("scan_cpu")
    if r is None:
        return unmeasured("scan_cpu")
    subjects = [s for s in ("cpp", "cpp avx2") if any(x["subject"] == s for x in r["rows"])]
    columns = [(s, t) for s in subjects for t in r["settings"]["threads"]]
    cases = {tuple(shape(x).items()): shape(x) for x in r["rows"]}.values()
    rows = []
    for case in cases:
        cells = []
        for s, t in columns:
            found = [x for x in r["rows"] if x["subject"] == s and x["threads"] == t and shape(x) == case]
            cells.append(" / ".join(ms(found[0][k]) for k in BOTH) if found else "")
        rows.append([f"{case['batch']}, {case['channels']}, {case['length']}", case["layout"], *cells])
    head = [f"{NAMES[s]}, {t} thread{'s' if t > 1 else ''}" for s, t in columns]
    about = next((x["about"] for x in r["rows"] if x["subject"] == "cpp"), "")
    note = f"Milliseconds, forward / forward + backward; C++ is {about}:" if about else "Absent here."
    command = source(r, "python benchmarks/scan_cpu.py")
    return f"{note}\n\n{table(['B, D, L', 'memory', *head], rows)}\n\n{command}"


def model_cpu() -> str:
    """Return the tables of benchmarks/model_cpu.py."""
    r = load("model_cpu")
    if r is None:
        return unmeasured("model_cpu")
    base, rows = r["models"][0]["model"], []
    for row in r["rows"]:
        which = {k: row[k] for k in ("kind", "threads", "imgsz")}
        stock = median_of(r["rows"], "time", model=base, **which)
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
    facts = table(
        ["model, two classes", "parameters", f"GFLOPs at {imgsz}"],
        [[Path(m["model"]).stem, f"{m['parameters'] / 1e6:.2f} M", m["gflops"] or "not counted"] for m in r["models"]],
    )
    head = ["what", "threads", "model", "median, ms", "least, ms", f"times {Path(base).stem}"]
    command = "python benchmarks/model_cpu.py --models " + " ".join(m["model"] for m in r["models"])
    return f"{facts}\n\n{table(head, rows)}\n\n{source(r, command)}"


def accuracy() -> str:
    """Return the table of benchmarks/accuracy.py: the errors of ours, those of plain PyTorch in brackets."""
    r = load("accuracy")
    if r is None:
        return unmeasured("accuracy")
    backends = list(dict.fromkeys(name for row in r["rows"] for name in row["errors"] if name != "plain"))
    names = list(r["rows"][0]["errors"]["plain"])
    rows = []
    for row in r["rows"]:
        plain = row["errors"]["plain"]
        for b in (b for b in backends if b in row["errors"]):
            ours = row["errors"][b]
            cells = [f"{ours[n]:.1e} ({plain[n]:.1e})".replace("e-0", "e-") for n in names]
            worst = max(ours[n] / plain[n] for n in names)
            rows.append([", ".join(map(str, row["shape"])), row["dtype"], NAMES.get(b, b), *cells, times(worst)])
    head = ["B, D, L", "dtype", "scan", *names, "largest ratio"]
    note = "RMS error against float64 over the exact result's, that of plain PyTorch in the same dtype in brackets:"
    return f"{note}\n\n{table(head, rows)}\n\n{source(r, 'python benchmarks/accuracy.py')}"


def largest_error() -> tuple[float | None, str]:
    """Return the largest ratio of a backend's error to plain PyTorch's, and where it is."""
    r, found = load("accuracy"), {}
    for row in r["rows"] if r else []:
        plain = row["errors"]["plain"]
        for b, ours in row["errors"].items():
            if b != "plain":
                found |= {f"{n} of {b}, {row['dtype']}": ours[n] / plain[n] for n in plain}
    where = max(found, key=found.get, default=None)
    return (None, "") if where is None else (found[where], f"most, {where}")


def goals() -> list[tuple[str, float, bool, float | None, str]]:
    """Return (what, target, whether more is better, measured or None, remark) for every target."""
    scan, model, peak = load("scan_cpu"), load("model_cpu"), load("memory")
    scans, models = scan["rows"] if scan else [], model["rows"] if model else []
    largest = dict(zip(("batch", "channels", "length"), LARGEST)) | {"layout": "channel-last"}

    def scan_ratio(subject: str, key: str) -> float | None:
        mine, other = (median_of(scans, key, subject=s, threads=1, **largest) for s in ("cpp", subject))
        return quotient(other, mine)

    where = f"at {LARGEST}"
    row = next((x for x in scans if x["subject"] == "cpp" and x["threads"] == 1 and largest.items() <= x.items()), {})
    found = [
        (f"scan forward {where}, 1 thread: times the loop's speed", 150, True, scan_ratio("loop", "forward"), ""),
        (f"scan forward {where}, 1 thread: times mambapy's speed", 15, True, scan_ratio("mambapy", "forward"), ""),
        (f"scan forward {where}, 1 thread: times the bound", 1.5, False, row.get("times_bound"), ""),
        (
            f"scan forward + backward {where}, 1 thread: times the loop's speed",
            200,
            True,
            scan_ratio("loop", "forward_backward"),
            "",
        ),
    ]
    for key, label in (("forward", "forward"), ("forward_backward", "forward + backward")):
        gains = {}
        for x in scans:
            if x["subject"] == "cpp" and x["batch"] == 1 and x["layout"] == "channel-last" and x["threads"] == 1:
                two = median_of(scans, key, subject="cpp", threads=2, **shape(x))
                if (gain := quotient(x[key] and x[key]["median_ms"], two)) is not None:
                    gains[f"{x['batch']}, {x['channels']}, {x['length']}"] = gain
        least = min(gains, key=gains.get, default=None)
        remark = "" if least is None else f"least, at ({least}); most {max(gains.values()):.2f}"
        what = f"scan {label}, batch 1: speed of 2 threads over 1"
        found.append((what, 1.8, True, gains.get(least), remark))
    for kind, imgsz, limit in (("forward", 640, 1.3), ("training step", 320, 1.5)):
        for threads in (1, 2):
            which = {"kind": kind, "imgsz": imgsz, "backend": "auto", "threads": threads}
            ratio = quotient(*(median_of(models, "time", model=m, **which) for m in (OURS, STOCK)))
            remark = "" if ratio is None else f"moonshot 1.0 {'met' if ratio <= 1 else 'missed'}"
            what = f"model {kind} at {imgsz}, {threads} thread{'s' if threads > 1 else ''}: times stock's time"
            found.append((what, limit, False, ratio, remark))
    peaks = {(s["model"], s["fast_path"]): s["peak_mib"] for s in peak["steps"]} if peak else {}
    ratio = quotient(*(peaks.get((m, True)) for m in (OURS, STOCK)))
    found.append(("model training step: times stock's peak memory", 1.5, False, ratio, ""))
    found.append(("error against float64: times plain PyTorch's in the same dtype", 2, False, *largest_error()))
    for threads in (1, 2):
        at = {
            size: median_of(models, "time", model=OURS, kind="forward", backend="auto", threads=threads, imgsz=size)
            for size in (320, 640, 1280)
        }
        for small, big in ((320, 640), (640, 1280)):
            ratio = quotient(at[big], at[small])
            plural = "s" if threads > 1 else ""
            what = f"model forward from {small} to {big}, {threads} thread{plural}: growth over pixels'"
            found.append((what, 1.1, False, ratio and ratio / (big / small) ** 2, ""))
    return found


def verdicts(found: list[tuple[str, float, bool, float | None, str]]) -> str:
    """Return targets, as `goals` lists them, beside what was measured."""
    rows = []
    for what, target, more, measured, remark in found:
        met = measured is not None and (measured >= target if more else measured <= target)
        verdict = "not measured" if measured is None else "met" if met else "**missed**"
        rows.append([what, f"{'at least' if more else 'at most'} {target}", times(measured), verdict, remark])
    return table(["what", "target", "measured", "", ""], rows)


def targets() -> str:
    """Return the CPU targets beside what was measured."""
    return verdicts(goals())


# The GPU benchmark

GPU_COMMAND = "benchmarks/gpu.sh MAMBA_SSM CAUSAL_CONV1D DATA.yaml"
RECIPE = "VMamba-yolov8n on mamba-ssm"


def gpu_goals(r: dict | None) -> list[tuple[str, float, bool, float | None, str]]:
    """Return the GPU targets as `goals` does; r is the result of benchmarks/gpu.py."""
    scans, models = (r["scans"], r["models"]) if r else ([], [])

    def of(rows: list[dict], *keys: str, **which) -> float | None:
        """Return the number under a chain of keys of the one row that has these values."""
        found = [x for x in rows if all(x.get(k) == v for k, v in which.items())]
        for key in keys:
            found = [x[key] for x in found if x.get(key) is not None]
        return found[0] if found else None

    gains: dict[bool, dict[str, float]] = {True: {}, False: {}}
    for x in scans:
        case = {k: x[k] for k in ("batch", "dim", "length", "dtype")}
        both = (of(scans, "forward_backward", "median_ms", subject=s, **case) for s in ("mamba_ssm", "triton"))
        if x["subject"] == "triton" and (gain := quotient(*both)) is not None:
            gains[x["length"] >= 1600][", ".join(map(str, case.values()))] = gain
    found = []
    for long, target, label in ((True, 2, "L >= 1600"), (False, 1, "L = 400")):
        least = min(gains[long], key=gains[long].get, default=None)
        what = f"scan forward + backward, {label}: times the speed of mamba-ssm's kernel"
        found.append((what, target, True, gains[long].get(least), "" if least is None else f"least, at ({least})"))
    for dtype in ("float32", "bfloat16"):
        which = {"batch": 16, "dim": 64, "length": 25600, "dtype": dtype}
        limit = of(scans, "bound_forward", "ms", **which)
        ratio = quotient(of(scans, "forward", "median_ms", subject="triton", **which), limit)
        found.append((f"scan forward at (16, 64, 25600), {dtype}: times the bound", 1.6, False, ratio, ""))
    for batch, amp in ((b, a) for b in (16, 70) for a in (False, True)):
        label = f"training step, 640 px, batch {batch}{', AMP' if amp else ''}"

        def ratio(of_model: str, *keys: str, batch: int = batch, amp: bool = amp) -> float | None:
            mine, other = (
                of(models, *keys, kind="train", model=m, batch=batch, amp=amp) for m in ("VMamba-yolov8n", of_model)
            )
            return quotient(mine, other)

        found.append(
            (f"{label}: times the recipe's images a second", 1.5, True, ratio(RECIPE, "images_per_second"), "")
        )
        found.append((f"{label}: times the recipe's peak memory", 0.7, False, ratio(RECIPE, "peak_mib"), ""))
        found.append((f"{label}: times stock yolov8n's time", 1.5, False, ratio("yolov8n", "time", "median_ms"), ""))
    return found


def gpu() -> str:
    """Return the tables of benchmarks/gpu.sh: targets, scans, blocks, models and mixed precision."""
    r, amp = load("gpu"), load("gpu_amp")
    parts = [verdicts(gpu_goals(r))]
    if r is None:
        return "\n\n".join([f"Not measured yet: `{GPU_COMMAND}`, then `python benchmarks/tables.py`.", *parts])

    def cell(row: dict, key: str) -> str:
        return ms(row[key]) if key in row else row.get("left_out", "red")

    bounds = {tuple(x[k] for k in ("batch", "dim", "length", "dtype")): x for x in r["scans"] if "bound_forward" in x}
    rows = []
    for x in r["scans"]:
        limit = bounds[tuple(x[k] for k in ("batch", "dim", "length", "dtype"))]
        row = [f"{x['batch']}, {x['dim']}, {x['length']}", x["dtype"], x["subject"]]
        for key in BOTH:
            row += [cell(x, key), times(x[key]["median_ms"] / limit[f"bound_{key}"]["ms"]) if key in x else ""]
        rows.append(row)
    head = ["B, D, L", "dtype", "subject", "forward, ms", "x bound", "forward + backward, ms", "x bound"]
    parts.append(table(head, rows))
    rows = [
        [
            x["block"],
            f"{x['batch']}, {x['dim']}, {x['length']}",
            "yes" if x["amp"] else "no",
            x["subject"],
            cell(x, "time"),
            x.get("peak_mib", ""),
        ]
        for x in r["blocks"]
    ]
    parts.append(table(["block", "B, D, L", "AMP", "subject", "forward + backward, ms", "peak MiB"], rows))
    rows = []
    for x in r["models"]:
        what = [x["kind"], f"{x['imgsz']} px", f"batch {x['batch']}", *["AMP"] * bool(x.get("amp"))]
        what += ["half"] * bool(x.get("half"))
        rows.append([x["model"], ", ".join(what), cell(x, "time"), x.get("images_per_second", "")])
        rows[-1].append(x.get("peak_mib", ""))
    parts.append(table(["model", "what", "ms", "images/s", "peak MiB"], rows))
    if amp:
        keys = ("in_training", "final", "float32_validation", "half_validation")
        rows = [
            [x["precision"], x.get("finite", ""), *(x.get(k, x.get("left_out", "")) for k in keys)] for x in amp["rows"]
        ]
        s = amp["settings"]
        parts.append(f"{s['data']}, {s['epochs']} epochs at {s['imgsz']} px, batch {s['batch']}, mAP50-95:")
        parts.append(table(["training", "finite", *(k.replace("_", " ") for k in keys)], rows))
    c = r["ceilings"]
    rate = f"{c['bytes_per_second'] / 1e12:.2f} TB/s copied, {c['exps_per_second'] / 1e12:.2f} T exp/s measured"
    parts.append(f"{r['environment']['gpu']}, {rate}; {source(r, GPU_COMMAND)}")
    return "\n\n".join(parts)


PAGES = {
    "docs/benchmarks.md": {
        "targets": targets,
        "scan_cpu": scan_cpu,
        "accuracy": accuracy,
        "model_cpu": model_cpu,
        "gpu": gpu,
    },
    "docs/deploy.md": {"export_cpu": export_cpu},
    "docs/design/cpu-kernel.md": {"scan_isa": scan_isa},
    "docs/design/selective-scan.md": {"memory": memory},
    "docs/design/scan2d.md": {"ss2d_cpu": ss2d_cpu},
    "docs/study.md": {"study": study, "choices": choices},
}


def main() -> int:
    """Write or check every page."""
    stale = []
    for page, tables in PAGES.items():
        text = new = (ROOT / page).read_text()
        for name, make in tables.items():
            block = f"<!-- {name}:begin -->\n{make()}\n<!-- {name}:end -->"
            new, n = re.subn(
                rf"<!-- {name}:begin -->\n.*?<!-- {name}:end -->", lambda _, block=block: block, new, flags=re.DOTALL
            )
            if n != 1:
                raise SystemExit(f"{page}: the comment lines of table '{name}' must stand there once, found {n}")
        if new != text:
            stale.append(page)
            if "--check" not in sys.argv:
                (ROOT / page).write_text(new)
    print(f"{'differ' if '--check' in sys.argv else 'written'}: {', '.join(stale) or 'none'}")
    return bool(stale and "--check" in sys.argv)


if __name__ == "__main__":
    sys.exit(main())
