# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Count the instructions of a scan on an arm64 processor, where none is at hand, beside those of its bound.

zig compiles for Linux on arm64, as for a release. qemu runs the program and lists the blocks of instructions that it
runs. The count is the difference between two lengths, so what happens once is not in it. A count is no time: it says
how much more there is to do than the bound of scan_cpu.py has, not how well a processor does it.

Usage:
    python benchmarks/arm_counts.py            # needs pip install -e ".[release]", qemu-user and libc6-arm64-cross
    python benchmarks/arm_counts.py --quick    # shorter scans, to see that it works; prints, writes nothing
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from datetime import datetime, timezone
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.environment import environment  # noqa: E402
from benchmarks.rendering import table, times  # noqa: E402
from benchmarks.timing import write  # noqa: E402
from ultralytics.nn.Addmodules.building.compilers import CSRC, FLAGS, CompilerError, zig, zig_problem  # noqa: E402
from ultralytics.nn.Addmodules.building.targets import TARGETS  # noqa: E402
from ultralytics.nn.Addmodules.building.wheels import WORK  # noqa: E402

CHANNELS, STATES, LANES = 16, 16, 4
LENGTHS, QUICK = (512, 1536), (64, 128)
SCANS = {"softplus, scan, D, gate": 0, "scan, D": 1}
GROUPS = (4, 8, 16)  # states that the bound holds in registers; the fewest instructions count
LIBC = "/usr/aarch64-linux-gnu"
EMULATOR = ["qemu-aarch64", "-L", LIBC, "-d", "nochain,exec,in_asm", "-D"]


def problem() -> str:
    """Return why nothing can be counted here and what to do, or an empty text."""
    if why := zig_problem():
        return f'{why}: pip install -e ".[release]".'
    missing = EMULATOR[0] if not shutil.which(EMULATOR[0]) else "" if Path(LIBC).is_dir() else LIBC
    return f"{missing} is not there: install qemu-user and libc6-arm64-cross." if missing else ""


def build(folder: Path) -> Path:
    """Compile the program for Linux on arm64 and return it."""
    program = folder / "arm_counts"
    sources = ["-I", str(CSRC), str(ROOT / "benchmarks/arm_counts.cpp")]
    zig(TARGETS["linux-arm64"], [*FLAGS, *sources, "-o", str(program)], WORK)
    return program


def instructions(program: Path, what: int, tokens: int) -> int:
    """Return how many instructions the program runs, from start to end.

    Raises:
        RuntimeError: If the emulator ran a block that it did not list.
    """
    log = program.with_suffix(".log")
    subprocess.run([*EMULATOR, str(log), str(program), str(what), str(tokens)], check=True, capture_output=True)
    length, runs, block = {}, Counter(), None
    with log.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if line.startswith("0x"):  # an instruction of the block that comes next
                if block is None:  # a block may be listed again, when its translation was thrown away
                    block = line.partition(":")[0].removeprefix("0x").lstrip("0")
                    length[block] = 0
                length[block] += 1
            elif line.startswith("Trace"):  # Trace 0: HOST [flags/ADDRESS/...]
                runs[line.partition("[")[2].split("/")[1].lstrip("0")] += 1
                block = None
            elif line.startswith("IN:"):
                block = None
    log.unlink()
    if unknown := runs.keys() - length.keys():
        raise RuntimeError(f"qemu ran {len(unknown)} blocks that it did not list.")
    return sum(n * length[block] for block, n in runs.items())


def per_vector(program: Path, what: int, lengths: tuple[int, int], channels: int) -> float:
    """Return the instructions for each vector of four channels, token and state."""
    less, more = (instructions(program, what, n) for n in lengths)
    return (more - less) * LANES / ((lengths[1] - lengths[0]) * channels * STATES)


def render(r: dict) -> dict[str, str]:
    """Return the table of a result."""
    head = ["arm64", "instructions for each vector of four channels, token and state", "over the bound"]
    bound = min(row["instructions"] for row in r["rows"] if row["bound"])
    rows = [[row["what"], f"{row['instructions']:.1f}", times(row["instructions"] / bound)] for row in r["rows"]]
    text = table(head, rows)
    return {
        "arm_counts": f"{text}\n\n{r['settings']['compiler']} for Linux on arm64, {r['settings']['emulator']}, "
        f"{r['date']}, commit {r['environment']['commit'][:10]}; `python benchmarks/arm_counts.py`."
    }


def measure(lengths: tuple[int, int]) -> list[dict]:
    """Return a row for the scans and one for the bound."""
    with tempfile.TemporaryDirectory() as folder:
        program = build(Path(folder))
        rows = [
            {"what": name, "bound": False, "instructions": per_vector(program, what, lengths, CHANNELS)}
            for name, what in SCANS.items()
        ]
        least = min(per_vector(program, group, lengths, LANES) for group in GROUPS)
    return [*rows, {"what": "the bound", "bound": True, "instructions": least}]


def version(*command: str) -> str:
    """Return the first line of what a program says of itself."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[0]


def main() -> None:
    """Count and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="shorter scans, to see that it works")
    parser.add_argument("--out", type=Path, help="result file; by default in benchmarks/results, none with --quick")
    args = parser.parse_args()
    if why := problem():
        raise SystemExit(why)
    try:
        rows = measure(QUICK if args.quick else LENGTHS)
    except (CompilerError, RuntimeError) as e:
        raise SystemExit(str(e)) from None
    except subprocess.CalledProcessError as e:
        raise SystemExit(
            f"{EMULATOR[0]} ended with {e.returncode}: {e.stderr.decode(errors='replace').strip()}"
        ) from None
    compiler = f"zig {version(sys.executable, '-m', 'ziglang', 'version')}"
    result = {
        "benchmark": "arm_counts",
        "quick": args.quick,
        "date": datetime.now(timezone.utc).date().isoformat(),
        "environment": environment(1),
        "settings": {"compiler": compiler, "emulator": version(EMULATOR[0], "--version")},
        "rows": rows,
    }
    for row in rows:
        print(f"{row['what']:24} {row['instructions']:.1f}")
    write(result, args.out)


if __name__ == "__main__":
    main()
