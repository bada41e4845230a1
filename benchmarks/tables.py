# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Write the tables of the docs from benchmarks/results: each stands between two comment lines in its page.

Every benchmark renders its own tables; here they are collected. Results of uncommitted code and of --quick runs are
refused.

Usage:
    python benchmarks/tables.py            # write them
    python benchmarks/tables.py --check    # exit 1 if a page differs from what would be written
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import (  # noqa: E402
    accuracy,
    arm_counts,
    export_cpu,
    export_forms,
    export_int8,
    gpu,
    gpu_amp,
    gpu_compile,
    graft_cpu,
    layer_cpu,
    linear_cpu,
    memory,
    model_bound,
    model_cpu,
    scan_cpu,
    ss2d_cpu,
)
from benchmarks.rendering import verdicts  # noqa: E402
from benchmarks.result import load  # noqa: E402
from benchmarks.study import runs  # noqa: E402
from benchmarks.study import tables as study  # noqa: E402

BENCHMARKS = {
    "scan_cpu": scan_cpu,
    "model_cpu": model_cpu,
    "model_bound": model_bound,
    "memory": memory,
    "accuracy": accuracy,
    "ss2d_cpu": ss2d_cpu,
    "graft_cpu": graft_cpu,
    "layer_cpu": layer_cpu,
    "linear_cpu": linear_cpu,
    "arm_counts": arm_counts,
    "export_cpu": export_cpu,
    "export_forms": export_forms,
    "export_int8": export_int8,
    "gpu": gpu,
    "gpu_amp": gpu_amp,
    "gpu_compile": gpu_compile,
}
ELSEWHERE = {"linear_cpu_intel": "linear_cpu"}  # results of a benchmark on another processor, in a table of their own
TARGETS = ("scan_cpu", "model_cpu", "graft_cpu", "memory", "accuracy")
PAGES = {
    "README.md": ("overview",),
    "README.zh-CN.md": ("overview_zh",),
    "docs/benchmarks.md": ("targets", "scan_cpu", "accuracy", "model_cpu", "gpu", "gpu_amp"),
    "docs/deploy.md": ("export_cpu", "export_int8"),
    "docs/design/export.md": ("export_forms",),
    "docs/design/cpu-kernel.md": ("scan_isa", "arm_counts", "linear_cpu", "linear_cpu_intel", "model_bound"),
    "docs/design/gpu-kernel.md": ("gpu_compile",),
    "docs/design/selective-scan.md": ("memory", "layer_cpu"),
    "docs/design/grafts.md": ("graft_cpu",),
    "docs/design/scan2d.md": ("ss2d_cpu",),
    "docs/study.md": ("grafts", "study", "choices"),
}
BLOCKS_OF = {"scan_cpu": ("scan_cpu", "scan_isa")}  # where a benchmark has others than one of its own name


def unmeasured(name: str) -> str:
    """Return what stands in a page where there is no result."""
    name = ELSEWHERE.get(name, name)
    command = getattr(BENCHMARKS[name], "COMMAND", f"python benchmarks/{name}.py")
    return f"Not measured yet: `{command}`, then `python benchmarks/tables.py`."


def results() -> dict[str, dict | None]:
    """Return the result of every benchmark.

    Raises:
        SystemExit: If figures may not be quoted, with all reasons at once.
    """
    found, refused = {}, []
    for name in (*BENCHMARKS, *ELSEWHERE):
        try:
            found[name] = load(name)
        except SystemExit as e:
            refused.append(str(e))
    if refused:
        raise SystemExit("\n".join(refused))
    return found


def targets(found: dict[str, dict | None]) -> str:
    """Return the CPU targets beside what was measured."""
    return verdicts([goal for name in TARGETS for goal in BENCHMARKS[name].goals(found[name])])


def blocks() -> dict[str, str]:
    """Return every block of every page by its name."""
    measured = results()
    found = {"targets": targets(measured), **study.render(runs.read(runs.FILE), measured["model_cpu"])}
    for name, result in measured.items():
        names, benchmark = BLOCKS_OF.get(name, (name,)), ELSEWHERE.get(name, name)
        made = dict.fromkeys(names, unmeasured(name)) if result is None else BENCHMARKS[benchmark].render(result)
        found |= {name: made[benchmark]} if result is not None and name in ELSEWHERE else made
    return found


def filled(page: str, text: str, found: dict[str, str]) -> str:
    """Return a page with its blocks replaced."""
    for name in PAGES[page]:
        block = f"<!-- {name}:begin -->\n{found[name]}\n<!-- {name}:end -->"
        pattern = rf"<!-- {name}:begin -->\n.*?<!-- {name}:end -->"
        text, n = re.subn(pattern, lambda _, block=block: block, text, flags=re.DOTALL)
        if n != 1:
            raise SystemExit(f"{page}: the comment lines of table '{name}' must stand there once, found {n}")
    return text


def main() -> int:
    """Write or check every page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; end with 1 where a page differs")
    stale, found, check = [], blocks(), parser.parse_args().check
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        new = filled(page, text, found)
        if new != text:
            stale.append(page)
            if not check:
                (ROOT / page).write_text(new, encoding="utf-8")
    print(f"{'differ' if check else 'written'}: {', '.join(stale) or 'none'}")
    return bool(stale and check)


if __name__ == "__main__":
    sys.exit(main())
