# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""The plan for a GPU's fifteen minutes, without a GPU: parts that end, fail, overrun, are interrupted and go on."""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks import gpu, gpu_amp, gpu_profile, gpu_run
from benchmarks.gpu import Rows
from benchmarks.gpu_run import Part, Runner, arguments, chosen
from ultralytics.nn.Addmodules.selective_scan.backends.gpu import block as gpu_block

ROOT = Path(__file__).resolve().parents[1]
SLEEPS = "import time; print('begun', flush=True); time.sleep(60)"


def part(name: str, seconds: float = 30, **more) -> Part:
    return Part(name, seconds, "", f"what {name} tells", **more)


def run(runner: Runner, name: str, code: str, seconds: float = 30) -> str:
    """Run python code as a part."""
    return runner.run(part(name), [sys.executable, "-c", code], seconds, dict(os.environ))


def states(folder: Path) -> dict[str, str]:
    known = json.loads((folder / "gpu_run.json").read_text(encoding="utf-8"))
    return {name: x["state"] for name, x in known.items()}


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def runner(tmp_path, said) -> Runner:
    return Runner(tmp_path / "out", 100, "c0ffee", said.append)


def test_what_became_of_parts_is_written_as_they_end(runner, said):
    assert run(runner, "good", "print('fine')") == "done"
    assert states(runner.out) == {"good": "done"}
    assert run(runner, "bad", "import sys; print('broken'); sys.exit(3)") == "failed"
    assert states(runner.out) == {"good": "done", "bad": "failed"}
    known = Runner(runner.out, 100, "c0ffee").known
    assert known["bad"]["code"] == 3
    assert known["good"]["commit"] == "c0ffee"
    assert (runner.out / "bad.log").read_text(encoding="utf-8") == "broken\n"
    assert "   broken" in said
    assert any(line.startswith("-- bad: failed after") for line in said)


def alive(pid: int) -> bool:
    """Return whether a process runs; one that ended and waits for nobody does not."""
    file = Path(f"/proc/{pid}/stat")
    return file.exists() and file.read_text(encoding="utf-8").rsplit(")", 1)[1].split()[0] != "Z"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_a_part_that_overruns_is_stopped_with_all_it_started(runner, monkeypatch):
    monkeypatch.setattr(gpu_run, "GRACE", 0.5)
    code = (
        "import signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        f"child = subprocess.Popen([sys.executable, '-c', {SLEEPS!r}])\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(60)"
    )
    assert run(runner, "slow", code, seconds=3) == "overran"
    assert states(runner.out) == {"slow": "overran"}
    child = int((runner.out / "slow.log").read_text(encoding="utf-8").split()[0])
    deadline = time.monotonic() + 10
    while alive(child):
        assert time.monotonic() < deadline, "what it started is still there"
        time.sleep(0.05)


def test_a_part_may_end_by_itself_when_it_is_stopped(runner):
    code = (
        "import time\ntry:\n    print('begun', flush=True); time.sleep(60)\n"
        "except KeyboardInterrupt:\n    print('written', flush=True)"
    )
    assert run(runner, "slow", code, seconds=3) == "overran"
    assert "written" in (runner.out / "slow.log").read_text(encoding="utf-8")


def test_the_next_call_goes_on():
    parts = [part(n) for n in ("done", "failed", "overran", "killed", "stopped", "late", "older", "new")]
    known = {p.name: {"state": p.name, "commit": "c0ffee"} for p in parts[:3]}
    known |= {
        "killed": {"state": "running", "commit": "c0ffee"},
        "stopped": {"state": "interrupted", "commit": "c0ffee"},
    }
    known |= {"late": {"state": "no time", "commit": "c0ffee"}, "older": {"state": "done", "commit": "decade"}}
    assert [p.name for p in chosen(parts, known, "c0ffee", None)] == [
        "killed",
        "stopped",
        "late",
        "older",
        "new",
        "overran",
    ]
    assert [p.name for p in chosen(parts, known, "c0ffee", ["done", "failed"])] == ["done", "failed"]
    assert [p.name for p in chosen(parts, {}, "c0ffee", None)] == [p.name for p in parts]


def test_a_broken_file_is_not_overwritten(tmp_path):
    (tmp_path / "gpu_run.json").write_text("{", encoding="utf-8")
    with pytest.raises(SystemExit, match="move it away"):
        Runner(tmp_path, 100, "c0ffee")
    assert (tmp_path / "gpu_run.json").read_text(encoding="utf-8") == "{"


def test_words_of_commands():
    given = {"out": Path("a b"), "data": None, "seconds": "70"}
    words = arguments(gpu_run.PARTS[0].arguments, workers="", **given)
    assert words[:4] == ["-m", "pytest", "-q", "-p"]
    assert words[-2:] == ["-k", "block_and_every_gradient or division_does or graph_replays"]
    assert "-n6" in arguments(gpu_run.PARTS[0].arguments, workers="-n6", **given)
    assert arguments("x --out {out}/y", workers="", **given) == ["x", "--out", "a b/y"]


def takes(expression: str, name: str) -> bool:
    """Return whether pytest's -k with these words takes a test of that name."""
    words = re.sub(r"\w+", lambda w: w[0] if w[0] in ("and", "or", "not") else str(w[0] in name), expression)
    return eval(words)  # True, False, and, or, not and parentheses, of our own list


def test_parts_name_options_that_their_scripts_have():
    """What a dry run cannot start on a CPU is at least no mistyped option, and every test of a GPU is in some part."""
    tests = re.findall(r"^def (test_gpu_\w+)", (ROOT / "tests/test_gpu_backend.py").read_text(encoding="utf-8"), re.M)
    tests = {f"{name}[gpu]" for name in tests}
    tests |= {f"test_gpu_{name}[mamba_ssm]" for name in ("forward_and_gradients", "lengths_of_the_model")}
    left = set(tests)
    for p in gpu_run.PARTS:
        for text in filter(None, (p.arguments, p.dry)):
            words = arguments(text, out="o", data="d.yaml", seconds="1", workers="")
            if words[0] == "-m":
                assert words[:2] == ["-m", "pytest"]
                if text == p.arguments:
                    found = {name for name in tests if takes(words[-1], name)}
                    assert found, p.name
                    left -= found
                continue
            source = (ROOT / words[0]).read_text(encoding="utf-8")
            for word in words:
                assert not word.startswith("--") or f'"{word}"' in source, f"{p.name}: {word}"
    assert len(tests) >= 12
    assert left == set()
    assert len({p.name for p in gpu_run.PARTS}) == len(gpu_run.PARTS)
    first = [p.seconds for p in gpu_run.PARTS[:6]]
    assert sum(first) <= 870, "checks, profiles, blocks, a training and models fit the first call"


PLAN = """
import sys
from benchmarks import gpu_run
from benchmarks.gpu_run import Part
again = (
    "import pathlib, time; p = pathlib.Path('{out}/begun'); known = p.exists(); p.touch(); "
    "time.sleep(0 if known else 60)"
)
gpu_run.PARTS = [
    Part("one", 40, "-c 'print(1)'", "one"),
    Part("two", 80, f'-c "{again}"', "two"),
    Part("three", 40, "-c 'import sys; sys.exit(1)'", "three"),
    Part("four", 40, "-c 'print(4)'", "four", data=True),
]
sys.exit(gpu_run.main())
"""


def test_a_call_that_is_terminated_and_the_next(tmp_path):
    """End to end: the first call is terminated in its second part; the next begins there, and says what failed."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", PLAN, "--out", str(tmp_path)]
    with open(tmp_path / "said", "w", encoding="utf-8") as log:
        first = subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=log)
    deadline = time.monotonic() + 60
    while not (tmp_path / "begun").exists():
        assert first.poll() is None, (tmp_path / "said").read_text(encoding="utf-8")
        assert time.monotonic() < deadline
        time.sleep(0.05)
    first.send_signal(signal.SIGTERM)
    assert first.wait(timeout=30) == 143
    assert states(tmp_path) == {"one": "done", "two": "interrupted"}

    def call(*more: str) -> subprocess.CompletedProcess:
        return subprocess.run([*command, *more], cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)

    late = call("--limit", "10")
    assert late.returncode == 0, late.stdout + late.stderr
    assert "Not at their end: two, three. The same command goes on with them." in late.stdout
    again = call()
    assert again.returncode == 1, again.stdout + again.stderr
    assert "== one" not in again.stdout, "it was done"
    assert states(tmp_path) == {"one": "done", "two": "done", "three": "failed", "four": "left out"}
    listed = call("--list").stdout
    assert "left out: four" in listed
    assert "done: two" in listed
    assert call("--dry-run", "--limit", "100").returncode == 0
    assert states(tmp_path / "dry") == dict.fromkeys(("one", "two", "three", "four"), "left out"), "none can run so"
    assert states(tmp_path)["two"] == "done", "a dry run leaves what was measured"
    assert call("--data", str(tmp_path / "none.yaml")).stderr.endswith("is no file: give the YAML of a data set\n")


# The parts' own going on


def test_rows_are_written_as_they_come_and_kept():
    written: list[list[dict]] = []
    before = [{"a": 1, "time": 3}, {"a": 2, "left_out": gpu.LATE}, {"a": 3, "time": 5}]
    rows = Rows(before, lambda found: written.append([dict(x) for x in found]))
    assert rows.begin({"a": 1}), "it is there"
    assert rows[0] == {"a": 1, "time": 3}
    assert not rows.begin({"a": 2}), "no time was left for it, so it is measured now"
    rows[1]["time"] = 4
    assert not rows.begin({"a": 4})
    assert written[-1] == [{"a": 1, "time": 3}, {"a": 2, "time": 4}, {"a": 3, "time": 5}], "none is lost on the way"


def test_a_result_of_another_commit_is_moved_aside(tmp_path, monkeypatch):
    about = {"commit": "c" * 40, "uncommitted": False}
    monkeypatch.setattr(gpu, "environment", lambda threads: dict(about))
    file = tmp_path / "gpu.json"
    file.write_text(json.dumps({"environment": dict(about), "blocks": [1]}), encoding="utf-8")
    assert gpu.started(file)["blocks"] == [1]
    about["commit"] = "d" * 40
    assert gpu.started(file)["blocks"] == []
    assert json.loads((tmp_path / f"gpu-{'c' * 10}.json").read_text(encoding="utf-8"))["blocks"] == [1]


def test_a_training_is_judged_by_its_end():
    row = {"model": "a.yaml", "precision": "fp16", "finite": True, "in_training": 0.5, "final": 0.501}
    assert gpu_amp.wrong(row) == ""
    assert "not finite" in gpu_amp.wrong({**row, "finite": False})
    assert "gives 0.0, the one in training gave 0.5" in gpu_amp.wrong({**row, "final": 0.0})
    assert gpu_amp.wrong({"left_out": "out of time"}) == "out of time"


def test_a_training_that_is_cut_short_in_its_last_validations_counts(tmp_path, monkeypatch, capsys):
    printed = b'epoch 1\nRESULT {"final": 0.5}\n\xff\nRESULT {"final": 0.5, "float32_validation": 0.5}\nval'
    assert gpu_amp.told(printed) == {"final": 0.5, "float32_validation": 0.5}
    assert gpu_amp.told("epoch 1\n") is None
    assert gpu_amp.told(None) is None

    row = {"model": "a.yaml", "imgsz": 640, "precision": "fp16", "finite": True, "in_training": 0.5, "final": 0.5}

    def late(command, **_):
        told = f"RESULT {json.dumps(row)}\n".encode() if command[command.index("--only") + 1] == "fp16" else b""
        raise subprocess.TimeoutExpired(command, 1, output=told)

    out, about = tmp_path / "amp.json", {"commit": "c", "uncommitted": False, "gpu": "a GPU", "torch": "2"}
    words = ["gpu_amp.py", "d.yaml", "--model", "a.yaml", "--imgsz", "640", "--out", str(out)]
    monkeypatch.setattr(gpu_amp, "environment", lambda threads: dict(about))
    monkeypatch.setattr(gpu_amp, "source", lambda *_: "")
    monkeypatch.setattr(gpu_amp.subprocess, "run", late)
    monkeypatch.setattr(sys, "argv", [*words, "--precisions", "fp16", "bf16"])
    assert gpu_amp.main() == 1
    rows = json.loads(out.read_text(encoding="utf-8"))["rows"]
    assert rows == [row, {"model": "a.yaml", "imgsz": 640, "precision": "bf16", "left_out": "out of time"}]
    assert "a.yaml in bf16: out of time" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", [*words, "--precisions", "fp16"])
    monkeypatch.setattr(gpu_amp.subprocess, "run", None)
    assert gpu_amp.main() == 0, "what came to its end is not trained again"


def test_weight_gradients_of_the_profile_are_those_of_the_block():
    torch.manual_seed(0)
    dy, x = torch.randn(2, 3, 40, 5, dtype=torch.float64), torch.randn(2, 3, 40, 9, dtype=torch.float64)
    want = torch.einsum("kblm,kblc->kmc", dy, x)
    torch.testing.assert_close(gpu_block._weight_gradient(dy, x), want)
    torch.testing.assert_close(gpu_profile.one_product(dy, x), want)
    torch.testing.assert_close(gpu_profile.by_parts(dy, x), want, rtol=1e-5, atol=1e-5)


def test_the_profile_runs_and_quotes_the_recipe(tmp_path, monkeypatch, capsys):
    """On a CPU, with PyTorch's operators in the place of kernels; a suspect that cannot be tried leaves the others."""
    out = tmp_path / "profile.json"
    monkeypatch.setattr(sys, "argv", ["gpu_profile.py", "--dry-run", "--out", str(out)])
    monkeypatch.setattr(
        gpu_profile, "VARIANTS", {"broken": (gpu_profile, {"SHOWN": 1}), "no such": (gpu_block, {"X": 1})}
    )
    assert gpu_profile.main() == 1
    rows = json.loads(out.read_text(encoding="utf-8"))["rows"]
    ours = [x for x in rows if x["variant"] == ""]
    assert [(x["block"], x["amp"]) for x in ours] == [(b, a) for a in (False, True) for b in ("Mamba", "VSSBlock")]
    for x in ours:
        for name in ("forward", "backward"):
            assert x[name]["busy_us"] > 0
            assert all(idle >= 0 for _, _, idle in x[name]["kernels"])
    assert {x["variant"] for x in rows if "failed" in x} == {"no such"}
    assert "ms as called" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["gpu_profile.py", "--dry-run", "--recipe"])
    assert gpu_profile.main() == 0
    assert capsys.readouterr().out.count("the recipe's: no CUDA device") == 2, "float32 and AMP"
    case = {"block": "Mamba", "batch": 16, "dim": 64, "length": 25600, "amp": True}
    last = gpu_profile.quoted(case)
    assert last["ms"] > 0
    assert last["date"]
    assert gpu_profile.quoted({**case, "dim": 7}) is None


def test_benchmark_measures_what_is_asked_for(monkeypatch, tmp_path, capsys):
    """One kind alone, which leaves the others of the file as they are, and the file is written."""
    done = {"kind": "train", "model": "yolov8n", "time": {"median_ms": 2.0}, "batch": 1, "imgsz": 64}
    about = {"commit": "c" * 40, "uncommitted": False, "cpu": "a CPU", "gpu": None, "threads": 1, "torch": "2"}
    monkeypatch.setattr(gpu, "environment", lambda threads: dict(about))
    file = tmp_path / "gpu.json"
    ceilings = {"bytes_per_second": 1.0, "exps_per_second": 1.0}
    before = {"environment": about, "ceilings": ceilings, "date": "today", "scans": [], "blocks": [], "models": [done]}
    file.write_text(json.dumps({**before, "seconds": 1}), encoding="utf-8")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    case = {"block": "Mamba", "batch": 1, "dim": 4, "length": 9, "amp": False, "subject": "triton"}

    def rows(args: argparse.Namespace, device: torch.device, late, rows: Rows) -> None:
        assert not rows.begin(dict(case))
        rows[0]["time"] = {"median_ms": 1.0}

    monkeypatch.setattr(gpu, "block_rows", rows)
    monkeypatch.setattr(gpu.registry.get("gpu"), "works", True)
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--only", "blocks", "--out", str(file)])
    assert gpu.main() == 0
    found = json.loads(file.read_text(encoding="utf-8"))
    assert found["models"] == [done]
    assert found["blocks"] == [{**case, "time": {"median_ms": 1.0}}]
    assert "| Mamba | 1, 4, 9 | no | triton | 1 |" in capsys.readouterr().out
