# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""The report on this machine: every usual trouble gets its own advice, and nothing wrong passes the self-test."""

from __future__ import annotations

import ast
import io
import json
import os
import platform
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ultralytics.nn.Addmodules import MambaLayer
from ultralytics.nn.Addmodules.selective_scan import registry
from ultralytics.nn.Addmodules.selective_scan.backends.chunked import Chunked
from ultralytics.nn.Addmodules.tools import checks, machine, report_rows, selftest
from ultralytics.nn.Addmodules.tools.machine import Torch
from ultralytics.nn.Addmodules.tools.report_rows import ABSENT, OK, PROBLEM, Row
from ultralytics.nn.Addmodules.tools.verbs import main

ROOT = Path(__file__).resolve().parents[1]
SMI = """
| NVIDIA-SMI 550.54.14              Driver Version: 550.54.14      CUDA Version: 12.4     |
"""
CUDA_TORCH = Torch("2.9.0+cu128", "12.8", None, False, (), (), "")

CPU = registry.get("cpu")


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Return a function that puts a fake program on a PATH where nothing else is."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(machine, "DRIVER_FOLDERS", ())
    monkeypatch.setattr(sysconfig, "get_config_var", lambda name: "g++ -pthread" if name == "CXX" else None)

    def put(name: str, code: str) -> Path:
        script = tmp_path / f"{name}.py"
        script.write_text(f"import sys, time\n{code}\n", encoding="utf-8")
        if os.name == "nt":
            path = folder / f"{name}.bat"
            path.write_text(f'@"{sys.executable}" -IS "{script}" %*\n', encoding="utf-8")
        else:
            path = folder / name
            path.write_text(f'#!/bin/sh\nexec "{sys.executable}" -IS "{script}" "$@"\n', encoding="utf-8")
            path.chmod(0o755)
        return path

    return put


@pytest.fixture
def add_backend(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that adds a backend to the registry: the chunked one with some methods replaced."""

    def add(name: str, **methods: Callable) -> None:
        monkeypatch.setitem(registry.BACKENDS, name, type("Added", (Chunked,), {**methods, "name": name})())

    return add


def lines(rows: list[Row]) -> dict[str, Row]:
    return {row.item: row for row in rows}


# Programs -------------------------------------------------------------------------------------------------------------


def test_ask_never_raises(program, monkeypatch) -> None:
    assert machine.ask("nothing") == machine.Answer(False, False, "nothing not found")
    program("good", "print('one', *sys.argv[1:])")
    assert machine.ask("good", "two") == machine.Answer(True, True, "one two")
    program("bad", "sys.stdout.buffer.write(b'out \\xff'); print('err', file=sys.stderr); sys.exit(9)")
    said = machine.ask("bad")
    assert (said.found, said.ok) == (True, False)
    assert said.text == "out \ufffd\nerr"
    program("silent", "sys.exit(3)")
    assert "status 3" in machine.ask("silent").text
    program("slow", "time.sleep(30)")
    assert "no answer in 0.2 seconds" in machine.ask("slow", timeout=0.2).text


@pytest.mark.skipif(os.name == "nt", reason="file modes of POSIX")
def test_ask_survives_what_is_no_program(program) -> None:
    path = program("junk", "")
    path.write_bytes(b"\x7fELF junk")
    assert "does not start" in machine.ask("junk").text


# NVIDIA ---------------------------------------------------------------------------------------------------------------


def test_driver(program) -> None:
    assert machine.driver_row().state == ABSENT
    assert "nvidia.com/drivers" in machine.driver_row().advice
    gpu = "GPU {}: NVIDIA A100-SXM4-40GB (UUID: GPU-{})"
    program("nvidia-smi", f"print({[gpu.format(i, i) for i in (0, 1)]!r}[0] if '--list-gpus' in sys.argv else {SMI!r})")
    row = machine.driver_row()
    assert row.state == OK
    assert row.detail == "550.54.14, serves CUDA up to 12.4: NVIDIA A100-SXM4-40GB"
    program("nvidia-smi", "print('something new')")
    assert machine.driver_row().state == OK


@pytest.mark.parametrize(
    ("said", "advice"),
    [
        ("Failed to initialize NVML: Driver/library version mismatch", "updated while it ran: restart"),
        ("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.", "install the driver again"),
    ],
)
def test_driver_that_does_not_work(program, said: str, advice: str) -> None:
    program("nvidia-smi", f"print({said!r}); sys.exit(9)")
    row = machine.driver_row()
    assert row.state == PROBLEM
    assert said in row.detail
    assert advice in row.advice
    assert machine.cuda_row(CUDA_TORCH, row).state == PROBLEM


def driver(cuda: str | None = "12.4", state: str = OK) -> Row:
    return Row("NVIDIA driver", state, "", data={"cuda": cuda})


@pytest.mark.parametrize(
    ("facts", "row", "state", "words"),
    [
        (CUDA_TORCH, Row("NVIDIA driver", ABSENT, ""), ABSENT, "the CPU is used"),
        (Torch("2.9.0+cpu", None, None, False, (), (), ""), driver(), PROBLEM, "pip uninstall -y torch torchvision"),
        (Torch("2.9.0+cu130", "13.0", None, False, (), (), "too old"), driver(), PROBLEM, "Update the driver"),
        (CUDA_TORCH, driver(), PROBLEM, "CUDA_VISIBLE_DEVICES"),
        (CUDA_TORCH, driver(None), PROBLEM, "CUDA_VISIBLE_DEVICES"),
        (Torch("2.9.0", "12.8", None, True, (("T4", 14.6, 7, 5),), ("sm_75",), ""), driver(), OK, "T4 (15 GiB, sm_75)"),
        (Torch("2.9.0", "13.0", None, True, (("P4", 8, 6, 1),), ("sm_75",), ""), driver(), PROBLEM, "no code for P4"),
        (Torch("2.9.0", None, "7.0", True, (("MI", 64, 9, 4),), ("gfx942",), ""), driver(), OK, "MI"),
    ],
)
def test_torch_cuda(facts: Torch, row: Row, state: str, words: str) -> None:
    found = machine.cuda_row(facts, row)
    assert found.state == state
    assert words in f"{found.detail} {found.advice}"
    assert bool(found.advice) == (state == PROBLEM)


def test_facts_of_torch_when_a_gpu_cannot_be_opened(monkeypatch) -> None:
    def broken(index: int) -> None:
        raise RuntimeError("CUDA error:\nout of luck")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", broken)
    facts = machine.torch_facts()
    assert not facts.available
    assert facts.warning == "CUDA error: out of luck"


def test_nobody_needs_nvcc(program) -> None:
    assert machine.nvcc_row() == Row("nvcc", ABSENT, "nvcc not found; not needed")
    program("nvcc", "print('Cuda compilation tools, release 12.4, V12.4.131')")
    assert machine.nvcc_row() == Row("nvcc", OK, "12.4; not used, not needed")
    program("nvcc", "sys.exit(1)")
    assert machine.nvcc_row().state == ABSENT


# Compilers ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("manager", "command"), [("", "install g++"), ("apt-get", "sudo apt-get install g++"), ("dnf", "gcc-c++")]
)
def test_no_compiler_on_linux(program, monkeypatch, manager: str, command: str) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    if manager:
        program(manager, "")
    row = machine.compiler_row(wanted=True)
    assert row.state == PROBLEM
    for words in (command, "conda install -c conda-forge gxx", "`pip install -e .`"):
        assert words in row.advice
    assert machine.compiler_row(wanted=False) == Row(
        "C++ compiler", ABSENT, "no g++ or clang++; only needed to compile again"
    )


def test_compilers_on_linux(program, monkeypatch) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    program("g++", "print('g++ (GCC) 4.8.5 20150623 (Red Hat 4.8.5-44)')")
    row = machine.compiler_row(wanted=True)
    assert row.state == PROBLEM
    assert row.detail.startswith("g++ 4.8.5 is too old")
    program("clang++", "print('Debian clang version 14.0.6\\nTarget: x86_64-pc-linux-gnu')")
    row = machine.compiler_row(wanted=True)
    assert (row.state, row.detail) == (OK, "clang++ 14.0.6")
    assert "`CC=clang++ CXX=clang++ pip install -e .`" in row.advice
    program("g++", "print('g++ (Debian 12.2.0-14+deb12u1) 12.2.0\\nCopyright (C) 2022')")
    assert machine.compiler_row(wanted=True) == Row("C++ compiler", OK, "g++ 12.2.0")


def test_compilers_on_windows(program, monkeypatch) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Windows")
    row = machine.compiler_row(wanted=True)
    assert row.state == PROBLEM
    assert "winget install" in row.advice
    assert "VCTools" in row.advice
    banner = "用于 x64 的 Microsoft (R) C/C++ 优化编译器 19.40.33811 版"
    program("cl", f"sys.stderr.buffer.write({banner!r}.encode('gbk'))")
    assert machine.compiler_row(wanted=True) == Row("C++ compiler", OK, "cl 19.40.33811")
    program("vswhere", "print('17.10.35013.160' if '-requires' in sys.argv else '')")
    assert machine.compiler_row(wanted=True) == Row("C++ compiler", OK, "Visual Studio 17.10.35013.160")


def test_compilers_on_macos(program, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    called = tmp_path / "called"
    program("g++", f"open({str(called)!r}, 'w'); print('Apple clang version 15.0.0 (clang-1500.3.9.4)')")
    row = machine.compiler_row(wanted=True)
    assert row.state == PROBLEM
    assert "`xcode-select --install`" in row.advice
    assert not called.exists(), "without the tools, Apple's stub of a compiler opens a dialogue"
    program("xcode-select", "print('/Library/Developer/CommandLineTools')")
    assert machine.compiler_row(wanted=True) == Row("C++ compiler", OK, "g++ 15.0.0")


# Installation and backends --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("versions", "state"),
    [(["8.4.190+vmamba.1"], OK), ([], ABSENT), (["8.4.190"], PROBLEM), (["8.4.190+vmamba.1", "8.5.0"], PROBLEM)],
)
def test_stock_ultralytics_is_seen(versions: list[str], state: str) -> None:
    row = machine.installation_row(versions)
    assert row.state == state
    assert ("`pip install -e .`" in row.advice) == (state != OK)


def take_away_the_library(monkeypatch, why: str) -> None:
    """Let the C++ backend be one that cannot run."""
    monkeypatch.setattr(CPU, "works", False)
    monkeypatch.setattr(CPU, "about", why)


def test_missing_backend(monkeypatch) -> None:
    take_away_the_library(monkeypatch, "no such luck")
    monkeypatch.setattr(CPU, "find_library", lambda: None)
    rows = lines(machine.environment())
    assert (rows["backend cpu"].state, rows["backend cpu"].detail) == (ABSENT, "no such luck")
    assert "times slower" in rows["backend cpu"].advice
    assert "`pip install -e .`" in rows["backend cpu"].advice
    assert rows["scan on cpu"].detail == "chunked"
    assert "test cpu cpu" not in lines(selftest.self_test())
    assert "chunked on cpu" in checks.checks_line()
    assert "no cpu: no such luck" in checks.checks_line()


def test_a_scan_slower_than_it_could_be_is_said_once(monkeypatch, caplog) -> None:
    """Laptops without a compiler: ten to twenty times slower, and nothing told them why."""
    monkeypatch.setattr(registry, "_logged", set())
    x, had_library = torch.zeros(1, 4, 3, 3), CPU.works
    layer = MambaLayer(4)
    layer(x)
    assert "plain PyTorch" not in caplog.text or not had_library
    caplog.clear()
    monkeypatch.setattr(registry, "_logged", set())
    take_away_the_library(monkeypatch, "no such luck")
    for _ in range(2):
        layer(x)
    said = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    why = "selective scan: plain PyTorch on cpu, many times slower than compiled kernels (cpu: no such luck). "
    assert len(said) == 1
    assert said[0].endswith(why + "`vmamba checks` tells what to do.")
    with registry.use_backend("chunked"):  # asked for
        monkeypatch.setattr(registry, "_logged", set())
        caplog.clear()
        layer(x)
    assert not [r for r in caplog.records if r.levelname == "WARNING"]


def test_library_that_cannot_be_loaded_has_to_go(monkeypatch) -> None:
    take_away_the_library(monkeypatch, "of another version")
    monkeypatch.setattr(CPU, "find_library", lambda: Path("_cpu.so"))
    assert "delete _cpu.so" in lines(machine.backend_rows())["backend cpu"].advice


def test_whose_product_linear_layers_get(monkeypatch) -> None:
    monkeypatch.setattr(CPU, "columns", 16)
    here = CPU.works
    assert machine.linear_row().detail == ("cpu, for multiples of 16 outputs; else PyTorch's" if here else "PyTorch's")
    monkeypatch.setattr(CPU, "columns", 0)
    assert machine.linear_row().detail == "PyTorch's"
    with registry.use_backend("reference"):
        assert machine.linear_row().detail == "PyTorch's"


def test_forced_backend(monkeypatch, capsys) -> None:
    with registry.use_backend("reference"):
        assert lines(machine.choice_rows())["scan on cpu"].detail == "reference, forced by VMAMBA_BACKEND"
    take_away_the_library(monkeypatch, "no such\nluck")
    with registry.use_backend("cpu"):
        assert lines(machine.choice_rows())["scan on cpu"].state == PROBLEM
        assert "none on cpu" in checks.checks_line()
        assert "\n" not in checks.checks_line()
        assert main(["checks", "speed=False"]) == (0 if len(machine.devices()) > 1 else 1)
    capsys.readouterr()


def test_line_for_checks_starts_no_program_and_no_test(monkeypatch) -> None:
    def forbidden(*args, **kwargs):
        raise AssertionError("too slow for yolo checks")

    for owner, name in ((subprocess, "run"), (subprocess, "Popen"), (checks, "self_test"), (checks, "speed")):
        monkeypatch.setattr(owner, name, forbidden)
    line = checks.checks_line()
    assert line.startswith(f"{'VMamba scan':<23}")
    assert len(line.splitlines()) == 1
    assert "vmamba checks" in line


# Self-test and speed --------------------------------------------------------------------------------------------------


def test_backends_of_this_machine_are_right() -> None:
    rows = selftest.self_test()
    assert {r.data["backend"] for r in rows} == {name for name, ok, _ in registry.report() if ok}
    assert all(r.state == OK and 0 < r.data["error"] <= selftest.BOUND and not r.advice for r in rows)


def wrong_output(self, *args):
    out, states = Chunked.scan(self, *args)
    return out * 1.001, states


def no_numbers(self, *args):
    out, states = Chunked.scan(self, *args)
    return out.fill_(float("nan")), states


def wrong_gradient(self, *args):
    grads = list(Chunked.scan_backward(self, *args))
    grads[2] = grads[2] * 1.001
    return tuple(grads)


def crash(self, *args):
    raise OSError("library went\naway")


@pytest.mark.parametrize(
    ("functions", "words"),
    [
        ({"scan": wrong_output}, "(out)"),
        ({"scan": no_numbers}, "inf"),
        ({"scan_backward": wrong_gradient}, "(dA)"),
        ({"scan_backward": crash}, "OSError: library went away"),
    ],
)
def test_wrong_backend_fails_loudly(add_backend, monkeypatch, capsys, functions: dict, words: str) -> None:
    monkeypatch.setattr(selftest, "SPEED_SHAPE", (1, 4, 9, 2))
    monkeypatch.setattr(selftest.speed, "__defaults__", (0.01,))
    add_backend("wrong", **functions)
    row = lines(selftest.self_test())["test wrong cpu"]
    assert row.state == PROBLEM
    assert row.detail.startswith("FAILED: ")
    assert words in row.detail
    right = next(name for name, ok, _ in registry.report() if ok)
    assert f"VMAMBA_BACKEND={right}" in row.advice
    assert main(["checks"]) == 1
    shown = capsys.readouterr().out
    assert "PROBLEM  test wrong cpu" in shown
    assert shown.splitlines()[-1].startswith("FAILED: wrong results from backend wrong on ")
    assert "speed chunked cpu" in shown
    assert "speed wrong" not in shown, "a wrong backend has no speed"


def test_backend_that_takes_no_such_call_is_not_tested(add_backend) -> None:
    add_backend("elsewhere", refuses=lambda self, problem: "only on the moon")
    assert "test elsewhere cpu" not in lines(selftest.self_test())


def test_speed(monkeypatch) -> None:
    monkeypatch.setattr(selftest, "SPEED_SHAPE", (1, 4, 9, 2))
    tested = selftest.self_test()
    rows = lines(selftest.speed(tested, seconds=0.01))
    assert {f"test {i.partition(' ')[2]}" for i in rows} == {r.item for r in tested if "reference" not in r.item}
    for row in rows.values():
        assert 0 < row.data["forward_ms"]
        assert 0 < row.data["forward_backward_ms"]
    assert "times" not in next(iter(rows.values())).detail


def test_speed_without_memory(monkeypatch) -> None:
    def full(*args) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(selftest, "median_ms", full)
    assert all(r.state == PROBLEM and r.detail == "out of memory" for r in selftest.speed(selftest.self_test()))


# Showing --------------------------------------------------------------------------------------------------------------


def test_columns_and_whole_commands() -> None:
    text = report_rows.render([*machine.environment(), *selftest.self_test()])
    assert all(len(line) <= report_rows.WIDTH for line in text.splitlines())
    text = report_rows.render([Row("item", PROBLEM, "detail", f"In a shell: `{machine.BUILD_TOOLS}`, then again")])
    assert f"`{machine.BUILD_TOOLS}`" in text, "a broken command cannot be copied"
    assert text.startswith("PROBLEM  item ")


def test_old_windows_console(monkeypatch) -> None:
    console = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr(sys, "stdout", console)
    take_away_the_library(monkeypatch, "C:\\用户\\é.pyd cannot be loaded")
    assert main(["checks", "speed=False"]) == 0
    console.flush()
    text = console.buffer.getvalue().decode("cp1252")
    assert "é.pyd cannot be loaded" in text
    assert "\\u7528" in text


def test_json(tmp_path, capsys) -> None:
    assert main(["checks", "json", "speed=False"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {"environment", "self_test", "speed", "conclusion", "status"} == set(found)
    assert found["status"] == 0
    assert {"NVIDIA driver", "torch.cuda", "nvcc", "C++ compiler"} <= {r["item"] for r in found["environment"]}
    assert {r["state"] for r in found["environment"]} <= {OK, ABSENT, PROBLEM}
    assert main(["checks", "--speed=False", f"--json={tmp_path / 'report.json'}"]) == 0
    assert "backend chunked" in capsys.readouterr().out
    assert json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["self_test"] == found["self_test"]


def test_json_replaces_nothing_unasked(tmp_path, capsys) -> None:
    weights = tmp_path / "best.pt"
    weights.write_bytes(b"a week of training")
    assert main(["checks", f"json={weights}", "speed=False"]) == 1
    assert "exists: choose another json=" in capsys.readouterr().err
    assert weights.read_bytes() == b"a week of training"
    assert main(["checks", f"json={weights}", "speed=False", "exist_ok"]) == 0
    assert json.loads(weights.read_text(encoding="utf-8"))["status"] == 0


def test_json_has_no_infinity(add_backend, capsys) -> None:
    add_backend("wrong", scan_backward=crash)
    assert main(["checks", "json", "speed=False"]) == 1
    rows = json.loads(capsys.readouterr().out)["self_test"]
    assert [r["data"]["error"] for r in rows if r["data"]["backend"] == "wrong"][0] is None


def test_command(tmp_path, environment) -> None:
    env = {**environment, "YOLO_CONFIG_DIR": str(tmp_path), "PYTHONIOENCODING": "cp1252"}
    command = [sys.executable, "-m", "ultralytics.nn.Addmodules", "checks", "speed=False"]
    run = subprocess.run(command, capture_output=True, text=True, encoding="cp1252", env=env, cwd=tmp_path)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "Vision Mamba works on this machine" in run.stdout


# House rules ----------------------------------------------------------------------------------------------------------


def test_nothing_but_the_command_imports_the_tools() -> None:
    folder = Path(checks.__file__).parents[1]
    for file in folder.rglob("*.py"):
        if file.parent.name == "tools" or file == folder / "__main__.py":
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                names = [getattr(node, "module", None) or "", *(a.name for a in node.names)]
                assert not any("tools" in name.split(".") for name in names), file.name


def test_page_tells_of_every_row() -> None:
    page = (ROOT / "docs/environment.md").read_text(encoding="utf-8")
    for row in machine.environment():
        assert row.item in page, f"docs/environment.md, 'The rows', lacks '{row.item}'"
