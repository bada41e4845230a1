# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""The benchmarks run end to end, give no number while a check is red, and tables say what the results say."""

from __future__ import annotations

import builtins
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks import (
    accuracy,
    arm_counts,
    base,
    environment,
    export_cpu,
    export_int8,
    gpu,
    gpu_amp,
    graft_cpu,
    layer_cpu,
    linear_cpu,
    memory,
    model_bound,
    model_cpu,
    result,
    scan_cpu,
    ss2d_cpu,
    tables,
    timing,
)
from benchmarks.rendering import source, verdicts
from benchmarks.study import runs
from benchmarks.timing import Absent, Timed, distance, interleave
from tests.data import make_data
from ultralytics.nn.Addmodules.building import compilers, library, targets
from ultralytics.nn.Addmodules.selective_scan import registry

ROOT = Path(__file__).resolve().parents[1]
TIME = {"median_ms", "min_ms", "runs"}
CASE = scan_cpu.Case(1, 8, 20)


def test_a_library_that_is_not_of_the_commit_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "up_to_date", lambda: False)
    if not (compilers.CSRC.parent / targets.library_name()).is_file():
        pytest.skip("without the compiled library")
    args = SimpleNamespace(quick=False, threads=(1,), seconds=1)
    with pytest.raises(SystemExit, match="older than its sources"):
        timing.heading("scan_cpu", args)
    args.quick = True
    assert timing.heading("scan_cpu", args)["benchmark"] == "scan_cpu"


def quick(name: str, folder: Path, *args: str) -> dict:
    """Run a benchmark as users do and return its result."""
    out = folder / f"{name}.json"
    command = [sys.executable, ROOT / f"benchmarks/{name}.py", "--quick", "--out", out, *args]
    run = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert run.returncode == 0, run.stdout + run.stderr
    return json.loads(out.read_text(encoding="utf-8"))


def test_scan_runs_end_to_end(tmp_path: Path) -> None:
    r = quick("scan_cpu", tmp_path, "--threads", "1")
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
        assert all(row["times_bound"] > 0 for row in r["rows"])  # how far above 1 is no matter for a busy machine
        assert all(b["median_ns"] > 0 for b in r["bounds"])


def test_model_runs_end_to_end(tmp_path: Path) -> None:
    models = ["yolov8n.yaml", "VMamba-yolov8n.yaml", "graft:yolov8n.yaml"]
    r = quick("model_cpu", tmp_path, "--threads", "1", "--models", *models)
    assert [m["model"] for m in r["models"]] == models
    kinds = {(row["model"], row["backend"], row["kind"]) for row in r["rows"]}
    for kind in ("forward", "training step"):
        assert {(m, b) for m, b, k in kinds if k == kind} == {
            ("yolov8n.yaml", "auto"),
            ("VMamba-yolov8n.yaml", "auto"),
            ("VMamba-yolov8n.yaml", "chunked"),
            ("graft:yolov8n.yaml", "auto"),
            ("graft:yolov8n.yaml", "chunked"),
        }
    for row in r["rows"]:
        assert row["check"]["ok"], row
        assert row["time"].keys() == TIME


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "package"), [("ONNX Runtime", "onnxslim"), ("ONNX Runtime Web", "onnxslim"), ("TorchScript", "torch")]
)
def test_export_runs_end_to_end_and_becomes_a_table(case: str, package: str, tmp_path: Path) -> None:
    pytest.importorskip(package, reason="pip install -e '.[deploy]'")
    models = ["yolov8n.yaml", "VMamba-yolon.yaml"]
    r = quick("export_cpu", tmp_path, "--threads", "1", "--models", *models, "--cases", case)
    if absent := r["rows"][0].get("absent"):
        pytest.skip(absent)
    assert [row["model"] for row in r["rows"]] == models
    for row in r["rows"]:
        assert row["check"]["ok"], row
        assert row["time"].keys() == TIME
        assert row["file_mb"] < 1.1 * row["weights_mb"]
    assert f"| {case} | 1 | VMamba-yolon |" in export_cpu.render(r)["export_cpu"]


@pytest.mark.slow
def test_int8_runs_end_to_end_and_becomes_a_table(tmp_path: Path) -> None:
    pytest.importorskip("onnxslim", reason="pip install -e '.[deploy]'")
    data = make_data(tmp_path, "detect")
    r = quick("export_int8", tmp_path, "--threads", "1", "--data", str(data), "--cases", "ONNX Runtime")
    (row,) = r["rows"]
    assert row["times"].keys() == {"float32", "int8"}
    assert all(t.keys() == TIME for t in row["times"].values())
    assert "| ONNX Runtime | 1 | VMamba-yolo26n-graft |" in export_int8.render(r)["export_int8"]


def test_int8_says_what_is_lost_and_what_is_not_faster() -> None:
    def time_of(ms: float) -> dict:
        return {"median_ms": ms, "min_ms": ms, "runs": 3}

    where = {"part": "speed", "case": "ONNX Runtime", "threads": 1, "imgsz": 640}
    mAP = {"part": "accuracy", "form": "onnx", "imgsz": 320}
    rows = [
        mAP | {"model": "stock-seed0", "mAP": {"PyTorch": 57.0, "float32": 57.0, "int8": 50.0}},
        mAP | {"model": "graft-seed0", "mAP": {"PyTorch": 57.0, "float32": 57.0, "int8": 55.5}},
        where | {"model": "yolov8n.yaml", "times": {"float32": time_of(80), "int8": time_of(40)}},
        where | {"model": "VMamba-yolon.yaml", "times": {"float32": time_of(80), "int8": time_of(60)}},
        {"part": "speed", "case": "OpenVINO, float32", "threads": 1, "absent": "openvino is not installed"},
    ]
    env = {"cpu": "a", "threads": 1, "torch": "2", "commit": "0" * 40}
    text = export_int8.render({"rows": rows, "environment": env, "date": "d"})["export_int8"]
    assert "| graft-seed0, ONNX Runtime: points that int8 loses | at most 1.0 | 1.50 | **missed** |" in text
    assert "stock-seed0, ONNX Runtime" not in text
    assert "| ONNX Runtime | 1 | VMamba-yolon | 80 | 60 | 0.75 | 1.50 |" in text
    assert "VMamba-yolon, ONNX Runtime, 1 thread: int8 over float32 | at most 1.0 | 0.75 | met |" in text
    assert "OpenVINO, float32 not run: openvino is not installed." in text


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ([], "--data None: give the data.yaml of pictures to calibrate with."),
        (["--data", __file__, "--weights", "no.pt"], "--weights no.pt: no such file."),
    ],
)
def test_int8_names_what_is_missing(arguments: list[str], what: str) -> None:
    command = [sys.executable, ROOT / "benchmarks/export_int8.py", *arguments]
    run = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert run.returncode == 1
    assert run.stderr.splitlines()[-1] == what


def test_accuracy_runs_and_becomes_a_table(tmp_path: Path) -> None:
    r = quick("accuracy", tmp_path)
    assert [row["dtype"] for row in r["rows"]] == ["float32", "bfloat16", "float16"]
    for row in r["rows"]:
        assert {"plain", "chunked"} <= row["errors"].keys()
        assert all(0 < e < 0.1 for of in row["errors"].values() for e in of.values())
    r["rows"][1]["errors"]["chunked"]["dA"] = 9 * r["rows"][1]["errors"]["plain"]["dA"]
    assert "| bfloat16 | plain PyTorch, `chunked` |" in accuracy.render(r)["accuracy"]
    assert accuracy.goals(r)[0][3:] == (pytest.approx(9), "most, dA of chunked, bfloat16")


def test_memory_runs_and_becomes_a_table(tmp_path: Path) -> None:
    r = quick("memory", tmp_path)
    assert [b["d_model"] for b in r["blocks"]] == [32]
    assert 0 < r["blocks"][0]["recompute"] < r["blocks"][0]["keep"]
    assert [(s["model"], s["fast_path"]) for s in r["steps"]] == memory.STEPS
    assert all(s["peak_mib"] > 1 for s in r["steps"])
    assert f"| yolov8n | {r['steps'][0]['peak_mib']} | 1.00 |" in memory.render(r)["memory"]
    assert memory.goals(r)[0].measured == r["steps"][1]["peak_mib"] / r["steps"][0]["peak_mib"]


def test_block_runs_and_becomes_a_table(tmp_path: Path) -> None:
    r = quick("ss2d_cpu", tmp_path, "--threads", "1")
    timed = [row for row in r["rows"] if row["subject"] != "VMamba repository"]
    assert all(row["error"] < ss2d_cpu.LIMIT and row["time"] for row in timed)
    assert "| 1 x 8 x 6 x 5 | forward + backward | 1 |" in ss2d_cpu.render(r)["ss2d_cpu"]
    assert "Not run: no --peer given." in ss2d_cpu.render(r)["ss2d_cpu"]


def test_grafts_run_beside_their_sources(tmp_path: Path) -> None:
    r = quick("graft_cpu", tmp_path, "--threads", "1", "--sources", "yolov8n.yaml")
    assert [row["kind"] for row in r["rows"]] == ["forward", "training step"]
    assert all(row["stock"].keys() == row["graft"].keys() == TIME for row in r["rows"])
    assert "| yolov8n | parameters |  | 3,011,238 | 3,202,470 | 1.06 |" in graft_cpu.render(r)["graft_cpu"]
    assert [goal.measured is not None for goal in graft_cpu.goals(r)] == [True] * 4


def test_layer_runs_and_becomes_a_table(tmp_path: Path) -> None:
    r = quick("layer_cpu", tmp_path, "--threads", "1")
    (row,) = r["rows"]
    assert row["absent"] or (row["error"] < layer_cpu.LIMIT and row["layer"] and row["kernels"])
    assert "| 1 x 16 x 4 x 5 | 1 |" in layer_cpu.render(r)["layer_cpu"]


def test_products_run_and_become_a_table(tmp_path: Path) -> None:
    r = quick("linear_cpu", tmp_path, "--threads", "1")
    for row in r["rows"]:
        assert row["absent"] or (row["error"] < r["settings"]["limit"] and all(row[s] for s in linear_cpu.SUBJECTS))
    kernels = {row["kernels"] for row in r["rows"]}
    can = linear_cpu.answers_for_intel(tmp_path) is not None
    assert kernels == ({linear_cpu.OTHERS, linear_cpu.INTEL} if can else {linear_cpu.OTHERS})
    row = "| 40 x 16 x 64 | 1 | {} |".format
    for cpu, shown, hidden in (
        ("AMD EPYC", linear_cpu.OTHERS, None),
        ("Intel(R) Xeon(R) Processor", linear_cpu.INTEL, linear_cpu.OTHERS),
    ):
        page = linear_cpu.render({**r, "environment": {**r["environment"], "cpu": cpu}})["linear_cpu"]
        assert page.count(row(shown)) == 1
        assert row(hidden) not in page


def test_a_result_of_another_processor_has_a_table_of_its_own() -> None:
    found = tables.blocks()
    for name, benchmark in tables.ELSEWHERE.items():
        assert found[name] != found[benchmark]
        assert f"`python benchmarks/{benchmark}.py`" in found[name]


@pytest.mark.foreign
def test_arm_counts_run(tmp_path: Path) -> None:
    if why := arm_counts.problem():
        pytest.skip(why)
    r = quick("arm_counts", tmp_path)
    whole, bare, bound = (row["instructions"] for row in r["rows"])
    assert whole > bare > bound > 16  # the fewest operations of a vector: 13 and three loads


def test_arm_counts_weigh_blocks_by_their_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = """IN:
0x01020:  a9bf7bfd  stp x29, x30, [sp, #-0x10]!
0x01024:  910003fd  mov x29, sp

Trace 0: 0x7f01 [00000000/0000000000001020/0/0] main
----------------
IN:
0x01028:  d65f03c0  ret

Trace 0: 0x7f02 [00000000/0000000000001028/0/0] main
----------------
IN:
0x01020:  a9bf7bfd  stp x29, x30, [sp, #-0x10]!
0x01024:  910003fd  mov x29, sp

Trace 0: 0x7f01 [00000000/0000000000001020/0/0] main
"""
    program = tmp_path / "program"
    monkeypatch.setattr(
        arm_counts.subprocess, "run", lambda c, **_: program.with_suffix(".log").write_text(log, encoding="utf-8")
    )
    assert arm_counts.instructions(program, 0, 64) == 5
    log += "Trace 0: 0x7f03 [00000000/0000000000002000/0/0] lost\n"
    with pytest.raises(RuntimeError, match="1 blocks that it did not list"):
        arm_counts.instructions(program, 0, 64)


def test_arm_counts_become_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        {"what": "scan", "bound": False, "instructions": 30.0},
        {"what": "the bound", "bound": True, "instructions": 24},
    ]
    settings = {"compiler": "zig 1", "emulator": "qemu 2"}
    text = arm_counts.render({"rows": rows, "settings": settings, "date": "d", "environment": {"commit": "0" * 40}})
    assert "| scan | 30.0 | 1.25 |" in text["arm_counts"]
    assert "| the bound | 24.0 | 1.00 |" in text["arm_counts"]
    monkeypatch.setattr(arm_counts, "zig_problem", lambda: "the package ziglang is not there")
    assert arm_counts.problem() == 'the package ziglang is not there: pip install -e ".[release]".'


def test_a_models_least_time_counts_its_layers(tmp_path: Path) -> None:
    r = quick("model_bound", tmp_path, "--threads", "1")
    if r["absent"]:
        pytest.skip(r["absent"])
    (run,) = r["rows"]
    assert [s["layers"] for s in run["stages"]] == [1, 2, 2, 1]
    # 32 channels, 256 tokens at 64 px: in_proj and out_proj 3 * 64 * 32, x_proj and dt_proj 64 * (34 + 2) each way
    stage = model_bound.Stage(256, 32, 64, 16, 2)
    assert {k: run["stages"][0][k] for k in stage._fields} == stage._asdict()
    assert stage.gflops == pytest.approx(2e-9 * 256 * (3 * 64 * 32 + 2 * 64 * 36))
    assert stage.elements == 2 * 256 * 64 * 16
    assert model_bound.least(run) > run["models"]["none"]["median_ms"]
    assert "| 1 | 1 layer, 32 channels, 256 tokens |" in model_bound.render(r)["model_bound"]


# Result files


def test_a_result_is_written_one_row_a_line(tmp_path: Path) -> None:
    r = {"benchmark": "toy", "settings": {"threads": [1, 2]}, "rows": [{"a": 1, "b": [2]}, {"a": None}], "absent": {}}
    result.save(r, tmp_path / "new/toy.json")
    text = (tmp_path / "new/toy.json").read_text(encoding="utf-8")
    assert json.loads(text) == r
    assert text.splitlines()[3:6] == [' "rows": [', '  {"a": 1, "b": [2]},', '  {"a": null}']


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of results."""
    monkeypatch.setattr(result, "RESULTS", tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"quick": True}, "--quick run"),
        ({"uncommitted": True}, r"uncommitted changes.*commit, then run `python benchmarks/scan_cpu.py` again"),
        ({"commit": ""}, "names no commit"),
        ({"committed_as": "0" * 40, "uncommitted": True}, "this repository does not have"),
    ],
)
def test_results_that_may_not_be_quoted(change: dict, why: str, results: Path) -> None:
    r = made_up()["scan_cpu"]
    (results / "scan_cpu.json").write_text(json.dumps(r), encoding="utf-8")
    assert result.load("scan_cpu") == r
    r["environment"] |= {k: v for k, v in change.items() if k in r["environment"]}
    r |= {k: v for k, v in change.items() if k not in r["environment"]}
    (results / "scan_cpu.json").write_text(json.dumps(r), encoding="utf-8")
    with pytest.raises(SystemExit, match=why):
        result.load("scan_cpu")
    (results / "memory.json").write_text(json.dumps({"quick": True}), encoding="utf-8")
    with pytest.raises(SystemExit, match=f"{why}.*\nmemory.json is of a --quick run"):
        tables.blocks()


def test_a_tree_that_was_committed_after_it_was_measured(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    r = made_up()["scan_cpu"] | {"committed_as": "abc1234"}
    r["environment"]["uncommitted"] = True
    (results / "scan_cpu.json").write_text(json.dumps(r), encoding="utf-8")
    known = {"rev-parse --is-shallow-repository": "false", "rev-parse --verify --quiet abc1234^{commit}": "abc1234def"}
    monkeypatch.setattr(result, "git", lambda *args: known.get(" ".join(args), ""))
    assert "commit abc1234, measured before it was committed;" in source(result.load("scan_cpu"), "x")
    known.popitem()
    with pytest.raises(SystemExit, match="abc1234"):
        result.load("scan_cpu")
    known.clear()  # no git
    assert result.load("scan_cpu")


def test_results_do_not_count_as_uncommitted_code(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    repository(tmp_path, {"code.py": "1", "benchmarks/results/a.json": "1", "docs/a.md": "1"})
    monkeypatch.setattr(environment, "ROOT", tmp_path)
    (tmp_path / "benchmarks/results/a.json").write_text("2", encoding="utf-8")
    (tmp_path / "docs/a.md").write_text("2", encoding="utf-8")
    assert not environment.uncommitted()
    (tmp_path / "code.py").write_text("2", encoding="utf-8")
    assert environment.uncommitted()


def test_new_sources_count_as_uncommitted_code(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The library is made of every C++ file in its folder."""
    repository(tmp_path, {"code.py": "1"})
    monkeypatch.setattr(environment, "ROOT", tmp_path)
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    assert not environment.uncommitted()
    (tmp_path / "ultralytics").mkdir()
    (tmp_path / "ultralytics/new.cpp").write_text("1", encoding="utf-8")
    assert environment.uncommitted()


# Checks


def wrong(change) -> scan_cpu.Subject:
    """Return the loop with a fault."""
    return scan_cpu.Subject(lambda *x: change(scan_cpu.loop(*x)), "wrong on purpose")


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
    monkeypatch.setattr(registry.BACKENDS["cpu"], "works", False)
    monkeypatch.setattr(registry.BACKENDS["cpu"], "about", "no library")
    present, absent = scan_cpu.resolve(scan_cpu.SUBJECTS)
    assert absent["cpp"] == absent["cpp avx2"] == absent["cpp plain"] == "no library"
    assert "chunked" in present


def test_compiler_absent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(scan_cpu.shutil, "which", lambda name: None)
    assert scan_cpu.build_bounds(tmp_path) == ({}, "no C++ compiler found")


def test_bound_that_computes_something_else_gives_no_number(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    libraries, how = scan_cpu.build_bounds(tmp_path)
    if not libraries:
        pytest.skip(how)
    usual = scan_cpu.Bound.call

    def faulty(self, group: int, worker: int, passes: int) -> None:
        usual(self, group, worker, passes)
        self.data[worker][5].mul_(1.01)

    monkeypatch.setattr(scan_cpu.Bound, "call", faulty)
    with pytest.raises(Absent, match="red"):
        scan_cpu.Bound(libraries["native"], 1)


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
        for name, backend, least in (
            (model_cpu.STOCK, "auto", 100),
            (model_cpu.OURS, "auto", 120),
            (model_cpu.OURS, "chunked", 900),
        ):
            keys = {"model": name, "backend": backend, "threads": threads, "batch": 1}
            models += [
                keys | {"kind": "forward", "imgsz": s, "time": clock(least * (s / 640) ** 2 / threads)}
                for s in ([320, 640, 1280] if backend == "auto" else [640])
            ]
            models.append(keys | {"kind": "training step", "imgsz": 320, "time": clock(2 * least / threads)})
    facts = [
        {"model": m, "parameters": 3e6, "gflops": 8.5, "gflops_imgsz": 640} for m in (model_cpu.STOCK, model_cpu.OURS)
    ]
    return {
        "scan_cpu": common
        | {
            "rows": scans,
            "bounds": [{"level": "native", "threads": 1, "median_ns": 0.16}],
            "absent": {"cpp avx2": "none"},
        },
        "model_cpu": common | {"rows": models, "models": facts},
        "memory": common
        | {
            "steps": [
                {"model": m, "fast_path": True, "peak_mib": p}
                for m, p in zip((model_cpu.STOCK, model_cpu.OURS), (200, 400))
            ]
        },
    }


@pytest.fixture
def measured(results: Path) -> Path:
    """Made-up results in a folder that the tables are written from."""
    for name, r in made_up().items():
        (results / f"{name}.json").write_text(json.dumps(r), encoding="utf-8")
    return results


def judged() -> dict[str, tuple[str, str]]:
    """Return measured and verdict of every target."""
    lines = [line.strip("| ").split(" | ") for line in tables.targets(tables.results()).splitlines()[2:]]
    return {line[0]: (line[2], line[3].strip(" |")) for line in lines}


def test_targets_are_judged_from_the_results(measured: Path) -> None:
    got = judged()
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


def test_tables_of_results() -> None:
    made = made_up()
    scan = scan_cpu.render(made["scan_cpu"])
    assert "| 1, 64, 25600 | channel-last | C++ | 8 | 40 | 200 | 100 | 0.2 | 1.25 |" in scan["scan_cpu"]
    assert "Absent: C++, held to AVX2 (none)." in scan["scan_cpu"]
    line = "A CPU, 1 and 2 threads, torch 9.9, 2001-02-03, commit 0123456789; `python benchmarks/scan_cpu.py`."
    assert line in scan["scan_cpu"]
    assert "| 1, 64, 25600 | channel-last | 8 / 40, 1.25 | 4 / 20, 1.25 |" in scan["scan_isa"]
    model = model_cpu.render(made["model_cpu"])["model_cpu"]
    assert "| forward, 640 px, batch 1 | 2 | VMamba-yolov8n, scans in plain PyTorch | 450 | 450 | 9.00 |" in model
    assert "| forward, 1280 px, batch 1 | 1 | VMamba-yolov8n | 480 | 480 | 1.20 |" in model
    assert model.index("320 px, batch 1 |") < model.index("1280 px") < model.index("training step")


def test_red_rows_have_no_figure_in_the_tables(measured: Path) -> None:
    r = made_up()["scan_cpu"]
    for row in r["rows"]:
        if row["subject"] == "cpp":
            row |= {"forward": None, "forward_backward": None, "check": {"ok": False}}
            del row["ns_per_element"], row["times_bound"]
    (measured / "scan_cpu.json").write_text(json.dumps(r), encoding="utf-8")
    assert "| 1, 64, 25600 | channel-last | C++ | red | red |  |  |  |  |" in scan_cpu.render(r)["scan_cpu"]
    assert {v for k, v in judged().items() if k.startswith("scan")} == {("", "not measured")}


def test_tables_without_results(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "FILE", results / "study.csv")
    found = tables.blocks()
    assert {name for names in tables.PAGES.values() for name in names} == found.keys()
    for name in ("scan_cpu", "scan_isa"):
        assert found[name].startswith("Not measured yet: `python benchmarks/scan_cpu.py`")
    assert found["gpu"].startswith("Not measured yet: `benchmarks/gpu.sh")
    assert {v for _, v in judged().values()} == {"not measured"}
    assert verdicts(gpu.goals(None)).count("not measured") == 23


def test_pages_are_written_and_checked(measured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- targets:begin -->\n<!-- targets:end -->\nafter\n", encoding="utf-8")
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    monkeypatch.setattr(tables, "PAGES", {"page.md": ("targets",)})
    monkeypatch.setattr(tables, "blocks", lambda: {"targets": tables.targets(tables.results())})
    monkeypatch.setattr(sys, "argv", ["tables.py", "--check"])
    monkeypatch.setattr("sys.argv", ["tables.py", "chek"])
    with pytest.raises(SystemExit):  # it would have written the pages
        tables.main()
    monkeypatch.setattr("sys.argv", ["tables.py", "--check"])
    assert tables.main() == 1
    monkeypatch.setattr(sys, "argv", ["tables.py"])
    assert tables.main() == 0
    assert (
        page.read_text(encoding="utf-8")
        == f"before\n<!-- targets:begin -->\n{tables.targets(tables.results())}\n<!-- targets:end -->\nafter\n"
    )
    monkeypatch.setattr(sys, "argv", ["tables.py", "--check"])
    assert tables.main() == 0
    page.write_text("no comment lines", encoding="utf-8")
    with pytest.raises(SystemExit, match="must stand there once, found 0"):
        tables.main()


def test_tables_of_a_measured_gpu() -> None:
    """Targets, ratios and what stands instead of a figure, from a result with one row of each kind."""
    case = {"batch": 16, "dim": 64, "length": 25600, "dtype": "bfloat16"}
    bound = {"bound_forward": {"ms": 1.0}, "bound_forward_backward": {"ms": 2.0}}
    scans = [
        {**case, "subject": "triton", "forward": {"median_ms": 1.5}, "forward_backward": {"median_ms": 4.0}},
        {**case, "subject": "mamba_ssm", "forward": {"median_ms": 5}, "forward_backward": {"median_ms": 12}, **bound},
    ]
    block = {"block": "Mamba", **case, "amp": True}
    blocks = [{**block, "subject": s, "left_out": why} for s, why in (("triton", "failed"), ("mamba_ssm", gpu.LATE))]
    for subject, ms in (("triton", 7.5), ("mamba_ssm", 10.0)):
        blocks.append({**block, "subject": subject, "time": {"median_ms": ms}, "queued": {"median_ms": ms - 1}})
    kind = {"kind": "train", "batch": 16, "imgsz": 640, "amp": False}
    models = [
        {**kind, "model": m, "time": {"median_ms": t}, "images_per_second": 16e3 / t, "peak_mib": p}
        for m, t, p in (("yolov8n", 10, 10), ("VMamba-yolov8n", 14, 12), ("VMamba-yolov8n on mamba-ssm", 28, 20))
    ]
    e = {"gpu": "a GPU", "cpu": "a CPU", "threads": 1, "torch": "2", "commit": "0" * 40, "uncommitted": False}
    r = {"ceilings": {"bytes_per_second": 4e12, "exps_per_second": 4e12}, "date": "today", "environment": e}
    text = gpu.render(r | {"scans": scans, "blocks": blocks, "models": models})["gpu"]
    for line in (
        "speed of mamba-ssm's kernel | at least 2 | 3.00 | met",
        "(16, 64, 25600), bfloat16: times the bound | at most 1.6 | 1.50 | met",
        "batch 16: times the recipe's images a second | at least 1.5 | 2.00 | met",
        "batch 16: times the recipe's peak memory | at most 0.7 | 0.60 | met",
        "batch 16: times stock yolov8n's time | at most 1.3 | 1.40 | **missed**",
        "Mamba block forward + backward at (16, 64, 25600), AMP: times the recipe's time | at most 0.8 | 0.75 | met",
        "| Mamba | 16, 64, 25600 | yes | triton | failed |",
        "| Mamba | 16, 64, 25600 | yes | triton | 7.5 | 6.5 |",
        "No time was left for 1 of 4 blocks.",
    ):
        assert line in text, line
    assert "out of time" not in text
    amp = {"settings": {"data": "cards", "epochs": 3, "imgsz": 320, "batch": 8}, "date": "today", "environment": e}
    which = {"model": "VMamba-yolon.yaml", "imgsz": 640}
    amp["rows"] = [
        {**which, "precision": "fp16", "finite": True, "in_training": 0.5},
        {**which, "precision": "bf16", "left_out": "failed"},
    ]
    assert "| VMamba-yolon.yaml | 640 | bf16 | failed |" in gpu_amp.render(amp)["gpu_amp"]


# Another commit beside this tree


def repository(folder: Path, files: dict[str, str]) -> None:
    """Make a repository with one commit."""
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "-A"], [*who, "commit", "-q", "-m", "first"]):
        subprocess.run(["git", *command], cwd=folder, check=True)


TOY = """
import sys, time
from pathlib import Path
from types import SimpleNamespace
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from benchmarks.base import compare
from benchmarks.timing import Timed

def public(job):
    import ultralytics
    log, side = open(ROOT / "log.txt", "a"), ultralytics.SIDE
    print("noise of a library")
    def call():
        print(side, file=log, flush=True)
        time.sleep(ultralytics.SECONDS)
    return {"call": Timed(call), "figure": ultralytics.FIGURE}

if __name__ == "__main__":
    compare(__file__, [{"threads": 1}], sys.argv[1], 0.01)
"""


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    """A repository with a benchmark of its own, whose tree differs from its commit."""
    files = {
        f"benchmarks/{n}.py": (ROOT / f"benchmarks/{n}.py").read_text(encoding="utf-8")
        for n in ("timing", "environment", "result")
    }
    files |= {"benchmarks/base.py": Path(base.__file__).read_text(encoding="utf-8"), "benchmarks/toy.py": TOY}
    files |= {"patches/__init__.py": "", "patches/__main__.py": "open('laid', 'w')", "setup.py": "open('laid')"}
    files["ultralytics/__init__.py"] = "SIDE, FIGURE, SECONDS = 'base', 2.0, 0.004"
    repository(tmp_path, files)
    (tmp_path / "ultralytics/__init__.py").write_text("SIDE, FIGURE, SECONDS = 'head', 3.0, 0.002", encoding="utf-8")
    return tmp_path


def toy_command(toy: Path, ref: str = "HEAD") -> list:
    """Return the command of the toy benchmark."""
    return [sys.executable, toy / "benchmarks/toy.py", ref]


def worktrees(toy: Path) -> int:
    """Return how many working trees the repository has."""
    listed = subprocess.run(["git", "worktree", "list"], cwd=toy, capture_output=True, text=True, check=True)
    return len(listed.stdout.splitlines())


def test_another_commit_takes_turns_with_this_tree(toy: Path) -> None:
    done = subprocess.run(toy_command(toy), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    figure, call = (line.split() for line in done.stdout.splitlines()[-2:])
    assert figure == ["figure,", "1", "thread", "2", "3", "1.500"]
    assert call[:3] == ["call,", "1", "thread"]
    assert float(call[3]) > float(call[5])
    assert float(call[7]) < 0.9
    turns = re.sub(r"(\w+\n)\1*", r"\1", (toy / "log.txt").read_text(encoding="utf-8")).split()
    assert turns == ["base", "head"] * base.ROUNDS
    assert worktrees(toy) == 1


@pytest.mark.skipif(os.name == "nt", reason="Windows sends no signals to a group of processes")
def test_another_commit_is_cleared_away_after_an_interruption(toy: Path) -> None:
    (toy / "ultralytics/__init__.py").write_text("SIDE, FIGURE, SECONDS = 'head', 3.0, 60", encoding="utf-8")
    process = subprocess.Popen(toy_command(toy), stderr=subprocess.PIPE, text=True, start_new_session=True)
    end = time.monotonic() + 60
    while "head" not in ((toy / "log.txt").read_text(encoding="utf-8") if (toy / "log.txt").exists() else ""):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < end
        time.sleep(0.05)
    assert worktrees(toy) == 2
    os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C does
    process.communicate(timeout=120)
    assert process.returncode != 0
    assert worktrees(toy) == 1


def test_a_commit_that_is_not_there(toy: Path) -> None:
    done = subprocess.run(toy_command(toy, "nonsense"), capture_output=True, text=True)
    assert done.returncode == 1
    assert (
        done.stderr == "--base nonsense: this repository has no such commit; `git log --oneline` lists its commits.\n"
    )


def test_a_commit_whose_code_fails(toy: Path) -> None:
    (toy / "ultralytics/__init__.py").write_text("raise ImportError('broken on purpose')", encoding="utf-8")
    done = subprocess.run(toy_command(toy), capture_output=True, text=True)
    assert done.returncode == 1
    assert "broken on purpose" in done.stderr
    assert done.stderr.rstrip().endswith(f"--base: the process of {toy.resolve()} failed, see above.")
    assert worktrees(toy) == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["scan_cpu", "model_cpu", "ss2d_cpu", "layer_cpu", "export_cpu", "accuracy", "memory"])
def test_this_commit_beside_this_tree(name: str) -> None:
    if not environment.git("rev-parse", "HEAD"):
        pytest.skip("no git checkout")
    more = {"export_cpu": ["--cases", "TorchScript"]}.get(name, [])
    command = [sys.executable, ROOT / f"benchmarks/{name}.py", "--base", "HEAD", "--quick", *more]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    ratios = [float(line.split()[-1]) for line in done.stdout.splitlines()[2:]]
    assert ratios
    assert all(0.05 < ratio < 20 for ratio in ratios)
    if name == "accuracy":
        assert set(ratios) == {1.0}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--models", "x"], "argument --models: 'x' is no model: "),
        (["--models", "graft:nothere.yaml"], "argument --models: 'graft:nothere.yaml' is no model: "),
        (["--threads", "0"], "argument --threads: '0' is no whole number above 0"),
        (["--seconds", "-1"], "argument --seconds: '-1' is no number above 0"),
    ],
)
def test_wrong_options_are_one_sentence(
    options: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(sys, "argv", ["model_cpu.py", *options])
    with pytest.raises(SystemExit) as stopped:
        model_cpu.arguments()
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err.splitlines()[-1]
