# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Run all CPU benchmarks, one after the other, and write the tables. Leave the machine alone meanwhile.

Usage:
    python benchmarks/measure.py --peer path/to/VMamba/classification/models
    python benchmarks/measure.py --only scan_cpu memory
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.environment import uncommitted  # noqa: E402

BENCHMARKS = {
    "accuracy": [],
    "memory": [],
    "scan_cpu": [],
    "model_cpu": [],
    "model_bound": [],
    "ss2d_cpu": [],
    "layer_cpu": [],
    "linear_cpu": [],
    "graft_cpu": [],
    "export_cpu": [],
    "export_forms": [],
}


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=BENCHMARKS, default=list(BENCHMARKS), help="these alone")
    parser.add_argument("--peer", help="folder classification/models of the VMamba repository, for ss2d_cpu")
    args = parser.parse_args()
    if uncommitted():
        raise SystemExit("Code has changes that no commit has, and tables refuse such results: commit first.")
    for i, name in enumerate(args.only, 1):
        extra = ["--peer", args.peer] if name == "ss2d_cpu" and args.peer else BENCHMARKS[name]
        print(f"== {i} of {len(args.only)}: {name}", flush=True)
        begin = time.monotonic()
        subprocess.run([sys.executable, ROOT / f"benchmarks/{name}.py", *extra], check=True)
        print(f"== {name} took {time.monotonic() - begin:.0f} s", flush=True)
    sys.exit(subprocess.run([sys.executable, ROOT / "benchmarks/tables.py"]).returncode)


if __name__ == "__main__":
    main()
