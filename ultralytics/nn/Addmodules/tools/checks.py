# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""`vmamba checks`: what runs on this machine, what does not, why, and what to do.

Rows about the environment, then a self-test of every scan backend that works here against the float64 reference, then
its speed. Nothing here is imported by the layers; `yolo checks` shows `checks_line()`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

from ..selective_scan import registry
from .machine import chosen, devices, environment, threads
from .report_rows import OK, PROBLEM, Row, emit, render
from .selftest import SPEED_SHAPE, self_test, speed

__all__ = ("checks_line", "conclusion", "run")

COMMAND = "vmamba checks"


def checks_line() -> str:
    """Return one line for `yolo checks`: the backend of each device, and why others do not work; runs no test."""
    reasons = {name: (ok, reason) for name, ok, reason in registry.report()}
    parts = []
    for device in devices():
        try:
            name = chosen(device)
            parts.append(f"{name} on {device} ({reasons[name][1]})")
        except RuntimeError as e:
            parts.append(f"none on {device} ({e})")
    parts += [f"no {name}: {reason}" for name, (ok, reason) in reasons.items() if not ok]
    return f"{'VMamba scan':<23}{' '.join('; '.join(parts).split())}; more: {COMMAND}"  # 23: as its other lines


def conclusion(rows: Sequence[Row], tested: Sequence[Row]) -> tuple[int, str]:
    """Return the exit status and the last line: 1 if a result is wrong, or if no device has a backend, else 0."""

    def where(rows: Sequence[Row]) -> str:
        return ", ".join(f"backend {r.data['backend']} on {r.data['device']}" for r in rows)

    failed = [r for r in tested if r.state != OK]
    scans = [r for r in rows if r.item.startswith("scan on ") and r.state == OK]
    if failed:
        return 1, f"FAILED: wrong results from {where(failed)}. Above it says what to do."
    if not scans or not tested:
        return 1, "FAILED: no scan backend can be used. Above it says what to do."
    problems = [r.item for r in rows if r.state == PROBLEM]
    note = f" See the problems above: {', '.join(problems)}." if problems else ""
    return 0, f"Vision Mamba works on this machine: {where(scans)}.{note}"


def run(args: SimpleNamespace) -> int:
    """Print the report.

    Args:
        args (SimpleNamespace): json, a file, "-" for standard output or None; exist_ok, whether to replace the file;
            speed, whether to time backends.

    Returns:
        (int): Exit status: 0 if all backends that work here are right, else 1.

    Raises:
        FileExistsError: If the file exists.
    """
    if args.json not in (None, "-") and Path(args.json).exists() and not args.exist_ok:
        raise FileExistsError(f"'{args.json}' exists: choose another json=, or replace it with exist_ok=True")
    show = (lambda text: None) if args.json == "-" else emit
    rows = environment()
    show(f"VMamba-YOLO: what runs on this machine\n\n{render(rows)}")
    tested = self_test()
    show(f"\nEvery backend against the float64 reference, output and all gradients\n{render(tested)}")
    timed = speed(tested) if args.speed else []
    if timed:
        shape = "B, D, L, N = " + ", ".join(map(str, SPEED_SHAPE))
        show(f"\nSpeed of a scan in float32, {shape}, {threads()}\n{render(timed)}")
    status, last = conclusion(rows, tested)
    show(f"\n{last}")
    if args.json:
        parts = {"environment": rows, "self_test": tested, "speed": timed}
        result = {name: [asdict(r) for r in part] for name, part in parts.items()}
        text = json.dumps({**result, "conclusion": last, "status": status}, indent=2, allow_nan=False)
        if args.json == "-":
            emit(text)
        else:
            Path(args.json).write_text(text + "\n", encoding="utf-8")
    return status
