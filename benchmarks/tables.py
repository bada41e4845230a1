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


def source(result: dict, command: str) -> str:
    """Return the line that tells where figures come from."""
    e = result["environment"]
    dirty = " with uncommitted changes" if e["uncommitted"] else ""
    return (
        f"{e['cpu']}, {e['threads']} thread{'s' if e['threads'] > 1 else ''}, torch {e['torch']}, {result['date']}, "
        f"commit {e['commit'][:10]}{dirty}; `{command}`."
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


def train() -> str:
    """Return the tables of benchmarks/train_from_scratch.py, one for each data set."""
    parts = []
    for file in sorted(RESULTS.glob("train-*.json")):
        r = json.loads(file.read_text())
        s = r["settings"]
        rows = []
        for run in r["runs"]:
            seconds = [e["train_cpu_seconds"] for e in run["epochs"]]  # others on the machine matter less
            rows.append(
                [
                    Path(run["model"]).stem,
                    run["seed"],
                    f"{run['parameters'] / 1e6:.2f} M",
                    f"{run['gflops']:.2f}",
                    f"{run['best']['mAP50']:.3f}",
                    f"{run['best']['mAP50-95']:.3f}",
                    f"{sorted(seconds)[len(seconds) // 2]:.1f}",
                ]
            )
        head = [
            "model",
            "seed",
            "parameters",
            f"GFLOPs at {s['imgsz']}",
            "mAP50",
            "mAP50-95",
            "CPU seconds a training epoch",
        ]
        command = (
            f"python benchmarks/train_from_scratch.py --data <{r['data']}> --name {r['data']} --epochs {s['epochs']} "
            f"--imgsz {s['imgsz']} --batch {s['batch']} --threads {r['environment']['threads']}"
        )
        title = f"{r['data']}, {s['epochs']} epochs at {s['imgsz']} px, batch {s['batch']}, optimizer {s['optimizer']}:"
        parts.append(f"{title}\n\n{table(head, rows)}\n\n{source(r, command)}")
    return "\n\n".join(parts)


PAGES = {
    "docs/design/selective-scan.md": {"memory": memory},
    "docs/models/vmamba-yolov8.md": {"train": train},
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
