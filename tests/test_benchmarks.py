# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""The CPU benchmarks run end to end, give no number while a check is red, and tables say what the results say."""

from __future__ import annotations

import builtins
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import model_cpu, scan_cpu, tables, timing
from benchmarks.timing import Absent, Timed, distance, interleave
from ultralytics.nn.Addmodules.selective_scan import cpu

ROOT = Path(__file__).resolve().parents[1]
TIME = {"median_ms", "min_ms", "runs"}
CASE = scan_cpu.Case(1, 8, 20)


def quick(name: str, folder: Path, *args: str) -> dict:
    """Run a benchmark as users do and return its result."""
    out = folder / f"{name}.json"
    command = [sys.executable, ROOT / f"benchmarks/{name}.py", "--quick", "--threads", "1", "--out", out, *args]
    run = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert run.returncode == 0, run.stdout + run.stderr
    return json.loads(out.read_text())


def test_scan_runs_end_to_end(tmp_path: Path) -> None:
    r = quick("scan_cpu", tmp_path)
    assert r["benchmark"] == "scan_cpu"
    assert r["quick"]
    assert {"cpu", "threads", "torch", "commit", "uncommitted", "scan_backends"} <= r["environment"].keys()
    present = {row["subject"] for row in r["rows"]}
    assert present | r["absent"].keys() >= scan_cpu.SUBJECTS.keys()
    assert not present & r["absent"].keys()
    assert all(r["absent"].values())
    for row in r["rows"]:
        assert row["check"]["ok"], row
        assert row["forward"].keys() == row["forward_backward"].keys() == TIME
        assert 0 < row["forward"]["min_ms"] <= row["forward"]["median_ms"]
        elements = row["batch"] * row["channels"] * row["length"] * row["states"]
        assert row["ns_per_element"] == pytest.approx(row["forward"]["median_ms"] * 1e6 / elements, rel=1e-3)
    if "bound" not in r["absent"]:
        assert all(row["times_bound"] > 1 for row in r["rows"])
        assert all(b["median_ns"] > 0 for b in r["bounds"])


def test_model_runs_end_to_end(tmp_path: Path) -> None:
    r = quick("model_cpu", tmp_path)
    assert [m["model"] for m in r["models"]] == model_cpu.MODELS
    kinds = {(row["model"], row["backend"], row["kind"]) for row in r["rows"]}
    for kind in ("forward", "training step"):
        assert {(m, b) for m, b, k in kinds if k == kind} == {
            ("yolov8n.yaml", "auto"),
            ("VMamba-yolov8n.yaml", "auto"),
            ("VMamba-yolov8n.yaml", "chunked"),
        }
    for row in r["rows"]:
        assert row["check"]["ok"], row
        assert row["time"].keys() == TIME


@pytest.mark.slow
@pytest.mark.parametrize(("case", "package"), [("ONNX Runtime", "onnxslim"), ("TorchScript", "torch")])
def test_export_runs_end_to_end_and_becomes_a_table(
    case: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(package, reason="pip install -e '.[deploy]'")
    models = ["yolov8n.yaml", "VMamba-yolon.yaml"]
    r = quick("export_cpu", tmp_path, "--models", *models, "--cases", case)
    assert [row["model"] for row in r["rows"]] == models
    for row in r["rows"]:
        assert row["check"]["ok"], row
        assert row["time"].keys() == TIME
        assert row["file_mb"] < 1.1 * row["weights_mb"]
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    (tmp_path / "export_cpu.json").write_text(json.dumps(r | {"quick": False}))
    assert f"| {case} | 1 | VMamba-yolon |" in tables.export_cpu()


def test_accuracy_runs_and_becomes_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "accuracy.json"
    command = [sys.executable, ROOT / "benchmarks/accuracy.py", "--quick", "--out", out]
    run = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert run.returncode == 0, run.stdout + run.stderr
    result = json.loads(out.read_text())
    assert [row["dtype"] for row in result["rows"]] == ["float32", "bfloat16", "float16"]
    for row in result["rows"]:
        assert {"plain", "chunked"} <= row["errors"].keys()
        assert all(0 < e < 0.1 for of in row["errors"].values() for e in of.values())
    result["quick"] = False
    result["rows"][1]["errors"]["chunked"]["dA"] = 9 * result["rows"][1]["errors"]["plain"]["dA"]
    out.write_text(json.dumps(result))
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    assert "| bfloat16 | plain PyTorch, `chunked` |" in tables.accuracy()
    worst = next(goal for goal in tables.goals() if goal[0].startswith("error"))
    assert worst[3:] == (pytest.approx(9), "most, dA of chunked, bfloat16")


def test_a_quick_run_never_becomes_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    (tmp_path / "scan_cpu.json").write_text(json.dumps({"quick": True}))
    with pytest.raises(SystemExit, match="quick"):
        tables.scan_cpu()


# Checks


def wrong(change) -> scan_cpu.Subject:
    """Return the loop with a fault."""
    return scan_cpu.Subject(lambda *x: change(scan_cpu.loop(*x)), "wrong on purpose")


@pytest.fixture
def one_thread():
    """One thread, and as many as before afterwards."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    "change",
    [
        lambda y: y * 1.001,
        lambda y: y + 0 * y.log(),
        lambda y: y.detach() + 2 * (y - y.detach()),  # right output, wrong gradients
        lambda y: y if y.shape[1] == scan_cpu.SMALL.channels else y.flip(-1),  # wrong on the large case only
    ],
    ids=["output", "nan", "gradients", "large"],
)
def test_no_number_while_the_check_is_red(change) -> None:
    makers = {"chunked": scan_cpu.chunked_subject, "wrong": lambda: wrong(change)}
    rows = {r["subject"]: r for r in scan_cpu.measure(CASE, 1, 0.001, None, makers)["rows"]}
    assert rows["chunked"]["check"]["ok"]
    assert rows["chunked"]["forward"]
    assert not rows["wrong"]["check"]["ok"]
    assert rows["wrong"]["forward"] is None
    assert rows["wrong"]["forward_backward"] is None
    assert "ns_per_element" not in rows["wrong"]


@pytest.mark.usefixtures("one_thread")
def test_tokens_last_without_the_slow_ones() -> None:
    case = scan_cpu.Case(2, 16, 64, "tokens-last", peers=False)
    assert scan_cpu.tensors(case)[0].stride(-1) == 1
    assert scan_cpu.tensors(CASE)[0].stride(1) == 1
    r = scan_cpu.measure(case, 1, 0.001)
    subjects = {row["subject"] for row in r["rows"]}
    assert "chunked" in subjects
    assert not subjects & {"loop", "mambapy"}
    assert all(row["check"]["ok"] and row["layout"] == "tokens-last" for row in r["rows"])


def test_no_number_for_a_model_whose_backends_disagree() -> None:
    values = iter([1.0, 1.01])
    assert not model_cpu.verdict(True, lambda: [torch.tensor([next(values)])])["ok"]
    assert not model_cpu.verdict(False, lambda: [torch.tensor([float("nan")])])["ok"]
    assert model_cpu.verdict(True, lambda: [torch.ones(1)])["ok"]


def test_distance() -> None:
    one, nan = torch.tensor([4.0, 1.0]), torch.tensor([float("nan"), 1.0])
    assert distance([one, one + 1], [one, one]) == pytest.approx(0.25)
    assert distance([one, nan, one], [one, one, one]) != distance([one], [one])
    assert not distance([nan], [one]) <= timing.LIMIT
    assert distance([torch.zeros(2)], [torch.zeros(2)]) == 0


# What is absent


def test_mambapy_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("mambapy"):
            raise ModuleNotFoundError("No module named 'mambapy'")
        return usual(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    present, absent = scan_cpu.resolve(scan_cpu.SUBJECTS)
    assert "mambapy" not in present
    assert "pip install" in absent["mambapy"]


def test_library_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "available", lambda: (False, "no library"))
    present, absent = scan_cpu.resolve(scan_cpu.SUBJECTS)
    assert absent["cpp"] == absent["cpp avx2"] == "no library"
    assert "chunked" in present


def test_compiler_absent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(scan_cpu.shutil, "which", lambda name: None)
    assert scan_cpu.build_bound(tmp_path) == (None, "no C++ compiler found")


def test_bound_that_computes_something_else_gives_no_number(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    library, how = scan_cpu.build_bound(tmp_path)
    if library is None:
        pytest.skip(how)
    usual = scan_cpu.Bound.call

    def faulty(self, group: int, worker: int, passes: int) -> None:
        usual(self, group, worker, passes)
        self.data[worker][5].mul_(1.01)

    monkeypatch.setattr(scan_cpu.Bound, "call", faulty)
    with pytest.raises(Absent, match="red"):
        scan_cpu.Bound(library, 1)


def test_turns() -> None:
    seen = []
    timed = interleave({n: Timed(lambda n=n: seen.append(n)) for n in "ab"}, 0.0)
    assert "".join(seen) == "ab" * timing.FEWEST
    assert timed["a"]["runs"] == timing.FEWEST


def test_timing_processes_do_not_sleep_between_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    monkeypatch.setenv("VMAMBA_BACKEND", "chunked")
    env = timing.isolated(2)
    assert not {"OMP_WAIT_POLICY", "VMAMBA_BACKEND"} & env.keys()
    assert env["OMP_NUM_THREADS"] == "2"


# Tables


def clock(median: float) -> dict:
    """Return a time."""
    return {"median_ms": median, "min_ms": median, "runs": 3}


def made_up() -> dict[str, dict]:
    """Return results with simple figures."""
    environment = {"cpu": "A CPU", "threads": 2, "torch": "9.9", "commit": "0123456789ab", "uncommitted": False}
    common = {"date": "2001-02-03", "environment": environment, "settings": {"threads": [1, 2]}}
    scans = []
    for threads in (1, 2):
        for case in scan_cpu.CASES:
            for name, forward, both in (("cpp", 8, 40), ("mambapy", 80, 400), ("loop", 1600, 4000)):
                row = {"subject": name, "threads": threads, **vars(case), "about": "avx512", "times_bound": 1.25}
                slower = 1 if threads == 1 or name != "cpp" or case.length != 400 else 1.5
                row |= {"forward": clock(forward / threads * slower), "forward_backward": clock(both / threads)}
                scans.append(row | {"ns_per_element": 0.2, "check": {"ok": True}})
    models = []
    for threads in (1, 2):
        for name, backend, base in (
            (tables.STOCK, "auto", 100),
            (tables.OURS, "auto", 120),
            (tables.OURS, "chunked", 900),
        ):
            keys = {"model": name, "backend": backend, "threads": threads, "batch": 1}
            models += [
                keys | {"kind": "forward", "imgsz": s, "time": clock(base * (s / 640) ** 2 / threads)}
                for s in ([320, 640, 1280] if backend == "auto" else [640])
            ]
            models.append(keys | {"kind": "training step", "imgsz": 320, "time": clock(2 * base / threads)})
    facts = [{"model": m, "parameters": 3e6, "gflops": 8.5, "gflops_imgsz": 640} for m in (tables.STOCK, tables.OURS)]
    return {
        "scan_cpu": common
        | {"rows": scans, "bounds": [{"threads": 1, "median_ns": 0.16}], "absent": {"cpp avx2": "none"}},
        "model_cpu": common | {"rows": models, "models": facts},
        "memory": {
            "steps": [
                {"model": m, "fast_path": True, "peak_mib": p} for m, p in zip((tables.STOCK, tables.OURS), (200, 400))
            ]
        },
    }


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Made-up results in a folder that the tables are written from."""
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    for name, result in made_up().items():
        (tmp_path / f"{name}.json").write_text(json.dumps(result))
    return tmp_path


def verdicts() -> dict[str, tuple[str, str]]:
    """Return measured and verdict of every target."""
    lines = [line.strip("| ").split(" | ") for line in tables.targets().splitlines()[2:]]
    return {line[0]: (line[2], line[3].strip(" |")) for line in lines}


def test_targets_are_judged_from_the_results(results: Path) -> None:
    got = verdicts()
    assert got["scan forward at (1, 64, 25600), 1 thread: times the loop's speed"] == ("200", "met")
    assert got["scan forward at (1, 64, 25600), 1 thread: times mambapy's speed"] == ("10", "**missed**")
    assert got["scan forward at (1, 64, 25600), 1 thread: times the bound"] == ("1.25", "met")
    assert got["scan forward + backward at (1, 64, 25600), 1 thread: times the loop's speed"] == ("100", "**missed**")
    assert got["scan forward, batch 1: speed of 2 threads over 1"] == ("1.33", "**missed**")  # the least of the cases
    assert got["scan forward + backward, batch 1: speed of 2 threads over 1"] == ("2.00", "met")
    assert got["model forward at 640, 2 threads: times stock's time"] == ("1.20", "met")
    assert got["model training step at 320, 1 thread: times stock's time"] == ("1.20", "met")
    assert got["model training step: times stock's peak memory"] == ("2.00", "**missed**")
    assert got["model forward from 640 to 1280, 1 thread: growth over pixels'"] == ("1.00", "met")


def test_tables_of_results(results: Path) -> None:
    scan = tables.scan_cpu()
    assert "| 1, 64, 25600 | channel-last | C++ | 8 | 40 | 200 | 100 | 0.2 | 1.25 |" in scan
    assert "Absent: C++, held to AVX2 (none)." in scan
    assert "A CPU, 1 and 2 threads, torch 9.9, 2001-02-03, commit 0123456789; `python benchmarks/scan_cpu.py`." in scan
    assert "| 1, 64, 25600 | channel-last | 8 / 40 | 4 / 20 |" in tables.scan_isa()
    model = tables.model_cpu()
    assert "| forward, 640 px, batch 1 | 2 | VMamba-yolov8n, scans in plain PyTorch | 450 | 450 | 9.00 |" in model
    assert "| forward, 1280 px, batch 1 | 1 | VMamba-yolov8n | 480 | 480 | 1.20 |" in model
    assert model.index("320 px, batch 1 |") < model.index("1280 px") < model.index("training step")


def test_red_rows_have_no_figure_in_the_tables(results: Path) -> None:
    file = results / "scan_cpu.json"
    r = json.loads(file.read_text())
    for row in r["rows"]:
        if row["subject"] == "cpp":
            row |= {"forward": None, "forward_backward": None, "check": {"ok": False}}
            del row["ns_per_element"], row["times_bound"]
    file.write_text(json.dumps(r))
    assert "| 1, 64, 25600 | channel-last | C++ | red | red |  |  |  |  |" in tables.scan_cpu()
    assert {v for k, v in verdicts().items() if k.startswith("scan")} == {("", "not measured")}


def test_tables_without_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    for make, name in ((tables.scan_cpu, "scan_cpu"), (tables.scan_isa, "scan_cpu"), (tables.model_cpu, "model_cpu")):
        assert make() == tables.unmeasured(name)
    assert {v for _, v in verdicts().values()} == {"not measured"}


def test_pages_are_written_and_checked(results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- targets:begin -->\n<!-- targets:end -->\nafter\n")
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    monkeypatch.setattr(tables, "PAGES", {"page.md": {"targets": tables.targets}})
    monkeypatch.setattr(sys, "argv", ["tables.py", "--check"])
    assert tables.main() == 1
    monkeypatch.setattr(sys, "argv", ["tables.py"])
    assert tables.main() == 0
    assert page.read_text() == f"before\n<!-- targets:begin -->\n{tables.targets()}\n<!-- targets:end -->\nafter\n"
    monkeypatch.setattr(sys, "argv", ["tables.py", "--check"])
    assert tables.main() == 0
