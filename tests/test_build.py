# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""How the C++ library is compiled at installation and packed for releases: other systems and failures are simulated."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import importlib.metadata
import io
import os
import platform
import re
import shutil
import struct
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytest.importorskip("setuptools", minversion="77")

from setuptools.dist import Distribution
from setuptools.errors import CompileError

from ultralytics.nn.Addmodules import building
from ultralytics.nn.Addmodules.building import compilers, library, machines, wheels
from ultralytics.nn.Addmodules.building.binaries import read_binary
from ultralytics.nn.Addmodules.building.targets import TARGETS, here, library_name
from ultralytics.nn.Addmodules.selective_scan.backends import cpu as cpu_module

cpu = cpu_module.Cpu()  # apart from the one that layers use
ROOT = Path(__file__).resolve().parents[1]
SYSTEMS = {  # sys.platform, platform.machine(), sysconfig.get_platform()
    "linux-x86_64": ("linux", "x86_64", "linux-x86_64"),
    "linux-arm64": ("linux", "aarch64", "linux-aarch64"),
    "windows-x86_64": ("win32", "AMD64", "win-amd64"),
    "windows-arm64": ("win32", "ARM64", "win-arm64"),
    "macos-arm64": ("darwin", "arm64", "macosx-11.0-arm64"),
    "macos-x86_64": ("darwin", "x86_64", "macosx-10.9-universal2"),
}


@pytest.fixture
def on(monkeypatch):
    """Return a function that lets the code believe it runs on another system."""

    def pretend(name: str) -> None:
        system, machine, label = SYSTEMS[name]
        monkeypatch.setattr(sys, "platform", system)
        monkeypatch.setattr(platform, "machine", lambda: machine)
        monkeypatch.setattr(sysconfig, "get_platform", lambda: label)

    return pretend


@pytest.fixture
def wish(monkeypatch):
    """Return a function that sets VMAMBA_COMPILER; it is unset before."""
    monkeypatch.delenv("VMAMBA_COMPILER", raising=False)
    return lambda value: monkeypatch.setenv("VMAMBA_COMPILER", value)


# What pip is asked for


@pytest.mark.parametrize(
    ("asked", "problem", "needed"),
    [
        ("auto", "", False),
        ("auto", "g++ not found", True),
        ("", "g++ not found", True),
        ("system", "g++ not found", False),
        ("none", "g++ not found", False),
        ("zig", "", True),
    ],
)
def test_zig_is_asked_for_where_no_compiler_works(monkeypatch, wish, asked, problem, needed):
    wish(asked)
    monkeypatch.setattr(compilers, "system_problem", lambda: problem)
    monkeypatch.setattr(library, "up_to_date", lambda: False)
    told = []
    monkeypatch.setattr(library, "aloud", told.append)
    from setuptools import build_meta

    for hook in ("get_requires_for_build_wheel", "get_requires_for_build_editable"):
        monkeypatch.setattr(build_meta, hook, lambda settings: ["theirs"])
        assert getattr(building, hook)() == ["theirs", *[compilers.ZIG] * needed]
    if needed and problem:  # where the registry has no zig, pip stops; this line names the way out
        assert all("No C++ compiler works here (g++ not found)" in text for text in told)
        assert all("VMAMBA_COMPILER to none" in text and "\n" not in text for text in told)
    assert len(told) == 2 * bool(needed and problem)


def test_no_compiler_is_asked_for_where_there_is_nothing_to_do(monkeypatch, wish, on):
    monkeypatch.setattr(compilers, "system_problem", lambda: "g++ not found")
    assert building._compiler(compiled=True) == []
    monkeypatch.setattr(sys, "platform", "freebsd14")
    assert building._compiler(compiled=False) == []


def test_unknown_choice_is_told(wish):
    wish("gcc")
    with pytest.raises(SystemExit, match=r"VMAMBA_COMPILER is 'gcc'; choose one of auto, system, zig, none"):
        building._compiler(compiled=False)


def test_other_hooks_are_those_of_setuptools():
    from setuptools import build_meta

    assert building.build_wheel == build_meta.build_wheel
    with pytest.raises(AttributeError):
        building.no_such_hook  # noqa: B018


@pytest.mark.parametrize("found", ["65.5.0", "76.1.0.post1", "missing"])
def test_setuptools_that_is_too_old_is_told_by_every_hook_and_by_setup(monkeypatch, tmp_path, found):
    """Isolated builds bring a new one, and `--no-build-isolation` does not."""
    setup = [sys.executable, "setup.py", "--version"]
    package = tmp_path / "setuptools/__init__.py"
    package.parent.mkdir()
    text = "raise ImportError" if found == "missing" else f"__version__ = {found!r}\nbuild_meta = None"
    package.write_text(text, encoding="utf-8")
    said = subprocess.run(
        setup, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True
    ).stderr.strip()
    assert "\n" not in said
    assert f"which is {found} here: run `pip install" in said

    for name in [name for name in sys.modules if name.partition(".")[0] == "setuptools"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    for hook in ("get_requires_for_build_wheel", "get_requires_for_build_editable", "build_editable"):
        with pytest.raises(SystemExit, match=f"which is {re.escape(found)} here"):
            getattr(building, hook)()
    asked = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'requires = ["setuptools>={building.SETUPTOOLS}"' in asked


def test_probe_finds_a_compiler_or_says_in_one_line_why_not(monkeypatch, wish):
    monkeypatch.setenv("PATH", os.devnull)
    for name in ("CC", "CXX", "LDSHARED", "LDCXXSHARED"):
        monkeypatch.setenv(name, "no-such-compiler")
    said = compilers.system_problem()
    assert "no-such-compiler" in said or os.name == "nt"
    assert said
    assert "\n" not in said


@pytest.mark.skipif(not shutil.which("g++") or sys.platform != "linux", reason="compiles with g++")
def test_probe_of_a_compiler_that_is_too_old(monkeypatch):
    monkeypatch.setattr(compilers, "FLAGS", ["-std=c++98"])
    said = compilers.system_problem()
    assert "error" in said
    assert "\n" not in said


# Platforms


@pytest.mark.parametrize("name", SYSTEMS)
def test_platform_of_this_python(on, name):
    on(name)
    assert here() is TARGETS[name]
    assert library_name() == TARGETS[name].library


def test_backend_looks_for_the_library_of_its_system(on, monkeypatch, tmp_path):
    monkeypatch.setattr(cpu_module, "__file__", str(tmp_path / "cpu.py"))
    for target in TARGETS.values():
        (tmp_path / target.library).write_bytes(b"")
    for name in SYSTEMS:
        on(name)
        assert cpu.find_library() == tmp_path / TARGETS[name].library


def test_a_python_for_intel_on_windows_for_arm(on, monkeypatch):
    on("windows-arm64")
    monkeypatch.setattr(sysconfig, "get_platform", lambda: "win-amd64")
    assert here() is TARGETS["windows-x86_64"]


# Compiling with zig


@pytest.mark.parametrize("name", SYSTEMS)
def test_zig_never_compiles_for_the_processor_at_hand(monkeypatch, tmp_path, name):
    seen = {}

    def ran(command, cwd, env, **_):
        seen.update(command=command, cwd=cwd, env=env)
        (Path(cwd) / command[command.index("-o") + 1]).write_bytes(b"library")
        return subprocess.CompletedProcess(command, 0, b"")

    monkeypatch.setattr(subprocess, "run", ran)
    target, made = TARGETS[name], tmp_path / "out 文件" / "_cpu"
    compilers.compile_library(target, made, tmp_path / "work")
    command = seen["command"]
    assert command[:4] == [sys.executable, "-m", "ziglang", "c++"]
    assert command[command.index("-target") + 1] == target.triple
    assert "-mcpu=baseline" in command
    assert not any("native" in word for word in command)
    assert any("version-script" in word for word in command) == name.startswith("linux")
    assert {Path(word).name for word in command if word.endswith(".cpp")} == {
        p.name for p in compilers.CSRC.glob("*.cpp")
    }
    assert seen["env"]["ZIG_GLOBAL_CACHE_DIR"].startswith(str(tmp_path)), "zig's cache would fill the home folder"
    assert made.read_bytes() == b"library"


def test_failure_of_zig_is_one_line(monkeypatch, tmp_path):
    said = b"warning: x\n/a/block.cpp:3:1: error: no such thing\nmore\n"
    monkeypatch.setattr(subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 1, said))
    with pytest.raises(compilers.CompilerError, match=r"zig failed for macos-arm64: /a/block.cpp:3:1: error: no such"):
        compilers.compile_library(TARGETS["macos-arm64"], tmp_path / "x", tmp_path)


# The step of an installation


class Step(library.BuildExt):
    """The step with compilers that fail as a test wants."""

    system = zig = None

    def _by_system(self, ext):
        self.tried.append("system")
        if self.system:
            raise self.system

    def _by_zig(self, made):
        self.tried.append("zig")
        if self.zig:
            raise self.zig


@pytest.fixture
def step(tmp_path, monkeypatch):
    """Return the step of an installation into a temporary folder, with its extension."""
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("VMAMBA_COMPILER", raising=False)
    monkeypatch.setattr(library, "aloud", lambda text: step.said.append(text))
    step = Step(Distribution({"name": "ultralytics", "ext_modules": library.extensions()}))
    step.build_lib, step.build_temp = str(tmp_path / "lib"), str(tmp_path / "temp")
    step.tried, step.said = [], []
    step.ensure_finalized()
    return step


def test_compilers_are_tried_in_turn(step):
    step.build_extension(step.extensions[0])
    assert (step.tried, step.said) == (["system"], [])
    step.system = CompileError("internal compiler error")
    step.build_extension(step.extensions[0])
    assert (step.tried, step.said) == (["system", "system", "zig"], [])


@pytest.mark.parametrize(
    "problem", ["the package ziglang is not there", "zig failed for windows-x86_64: out of memory"]
)
def test_without_any_compiler_the_installation_goes_on_and_says_so(step, problem):
    """No compiler and no network, no build isolation, or compilers that fail half-way."""
    step.system, step.zig = FileNotFoundError(2, "No such file", "g++"), compilers.CompilerError(problem)
    with pytest.raises(CompileError):
        step.build_extension(step.extensions[0])
    (said,) = step.said
    assert "\n" not in said
    assert f"was not compiled (the system's compiler: g++ not found; zig: {problem})" in said
    assert "installation goes on" in said
    assert "10 to 20 times slower" in said
    assert step.extensions[0].optional, "setuptools goes on, because the extension is optional"


def test_a_library_that_could_not_be_compiled_anew_is_said_to_stay(step, tmp_path, monkeypatch):
    (tmp_path / "csrc").mkdir()
    (tmp_path / library_name()).write_bytes(b"of an earlier installation")
    monkeypatch.setattr(compilers, "CSRC", tmp_path / "csrc")
    step.editable_mode, step.system, step.zig = True, CompileError("no"), compilers.CompilerError("no")
    with pytest.raises(CompileError):
        step.build_extension(step.extensions[0])
    assert f"{library_name()} of an earlier installation stays in use, and may be older than its" in step.said[0]
    assert "plain PyTorch" not in step.said[0]


@pytest.mark.parametrize(("asked", "tried"), [("system", ["system"]), ("zig", ["zig"])])
def test_one_compiler_can_be_asked_for(step, wish, asked, tried):
    wish(asked)
    step.system = step.zig = CompileError("no")
    with pytest.raises(CompileError):
        step.build_extension(step.extensions[0])
    assert step.tried == tried


def test_none_leaves_the_library_out(wish):
    wish("none")
    assert library.extensions() == []


def test_none_takes_an_older_library_away_and_says_so(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(library, "aloud", told.append)
    monkeypatch.setattr(compilers, "CSRC", tmp_path / "csrc")
    library.leave_out()
    assert told == []
    (tmp_path / library_name()).write_bytes(b"compiled before")
    library.leave_out()
    assert not (tmp_path / library_name()).exists()
    assert [f"{library_name()}, was removed" in text for text in told] == [True]


@pytest.mark.parametrize("kind", ["whole", "cut short", "of another system", "garbage"])
def test_only_a_whole_library_for_this_machine_is_up_to_date(kind, installed, tmp_path, monkeypatch):
    monkeypatch.setattr(compilers, "CSRC", tmp_path / "csrc")
    monkeypatch.setattr(compilers, "exported_names", lambda: ["vmamba_tile"])
    monkeypatch.setattr(library, "_inputs", list)
    data = {"cut short": installed[: len(installed) // 2], "garbage": b"garbage"}.get(kind, installed)
    (tmp_path / library_name()).write_bytes(data)
    if kind == "of another system":
        other = next(target for target in TARGETS.values() if target is not here())
        monkeypatch.setattr(library, "here", lambda: other)
    assert library.up_to_date() == (kind == "whole")


def test_two_installations_at_once(tmp_path):
    built, beside = tmp_path / "built.so", tmp_path / "_cpu.so"
    built.write_bytes(b"new" * 100_000)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: library.put_in_place(built, beside), range(60)))
    assert beside.read_bytes() == built.read_bytes()
    assert sorted(tmp_path.iterdir()) == [beside, built]


def test_library_has_one_name_for_every_python(step):
    name = f"ultralytics/nn/Addmodules/selective_scan/backends/{library_name()}"
    assert Path(step.get_ext_filename("ultralytics.nn.Addmodules.selective_scan.backends._cpu")).as_posix() == name
    assert step.get_export_symbols(step.extensions[0]) == []


def test_microsofts_compiler_is_told_the_encoding_of_our_sources():
    assert {"/utf-8", "/std:c++17"} <= {*compilers.compile_flags(msvc=True)}


def test_message_reaches_the_terminal_that_pip_keeps_it_from():
    pty = pytest.importorskip("pty")
    code = (
        "import sys, os; sys.path.insert(0, sys.argv[1]); from building.library import aloud\n"
        "devnull = os.open(os.devnull, os.O_WRONLY); os.dup2(devnull, 1); os.dup2(devnull, 2); aloud('not compiled')"
    )
    process, terminal = pty.fork()
    if process == 0:
        os.environ.pop("CI", None)
        os.execv(sys.executable, [sys.executable, "-c", code, str(ROOT / "ultralytics/nn/Addmodules")])
    said = b""
    with contextlib.suppress(OSError):  # the end, on Linux
        while more := os.read(terminal, 1000):
            said += more
    os.waitpid(process, 0)
    os.close(terminal)
    assert b"VMamba-YOLO: not compiled" in said


def test_loaded_library_is_replaced(tmp_path, monkeypatch):
    """Windows refuses to overwrite a loaded library, and lets it be renamed."""
    built, beside = tmp_path / "built.dll", tmp_path / "_cpu.dll"
    built.write_bytes(b"new")
    beside.write_bytes(b"old")
    (tmp_path / "_cpu.old-1.dll").write_bytes(b"older")
    replace = os.replace

    def locked(source, target):
        if Path(target).exists():
            raise PermissionError(13, "Access is denied", str(target))
        replace(source, target)

    monkeypatch.setattr(os, "replace", locked)
    library.put_in_place(built, beside)
    assert beside.read_bytes() == b"new"
    (left,) = tmp_path.glob("_cpu.old-*.dll")
    assert left.read_bytes() == b"old"
    ignored = subprocess.run(["git", "check-ignore", "--no-index", f"ultralytics/nn/Addmodules/{left.name}"], cwd=ROOT)
    assert ignored.returncode in (0, 128), "git would show what is left over"

    def refused(source, target):
        raise PermissionError(13, "Access is denied", str(source))

    monkeypatch.setattr(os, "rename", refused)
    with pytest.raises(SystemExit, match=r"_cpu.dll could not be replaced \(Access is denied\). Close the Python prog"):
        library.put_in_place(built, beside)
    assert beside.read_bytes() == b"new"
    assert not list(tmp_path.glob("*.new*"))


# What comes with the fork on some systems


@pytest.mark.parametrize(
    ("system", "machine", "wanted"),
    [("win32", "AMD64", True), ("win32", "ARM64", False), ("linux", "x86_64", False), ("darwin", "arm64", False)],
)
def test_triton_comes_along_on_windows(system, machine, wanted):
    """PyTorch brings Triton on Linux alone, and triton-windows has files for x86-64 only."""
    packaging = pytest.importorskip("packaging.requirements")
    (line,) = re.findall(r"'(triton-windows.*)'", (ROOT / "setup.py").read_text(encoding="utf-8"))
    found = packaging.Requirement(line)
    assert found.marker.evaluate({"sys_platform": system, "platform_machine": machine}) == wanted


# Machines without a PyTorch


@pytest.mark.parametrize(
    ("name", "kernel", "torch", "said"),
    [
        ("linux-x86_64", "", None, ""),
        ("windows-arm64", "", None, ""),
        ("macos-arm64", "RELEASE_ARM64", None, ""),
        ("macos-x86_64", "RELEASE_X86_64", None, "PyTorch ended its packages for Intel Macs"),
        ("macos-x86_64", "RELEASE_X86_64", "2.2.2", "PyTorch ended its packages for Intel Macs"),
        ("macos-x86_64", "RELEASE_X86_64", "2.10.0", ""),
        ("macos-x86_64", "RELEASE_ARM64_T6000", None, "install a Python for arm64"),
    ],
)
def test_machines_that_pytorch_left_behind(on, monkeypatch, name, kernel, torch, said):
    def version(package):
        if torch is None:
            raise importlib.metadata.PackageNotFoundError(package)
        return torch

    on(name)
    monkeypatch.setattr(platform, "version", lambda: f"Darwin Kernel Version 23; root:xnu-1/{kernel}")
    monkeypatch.setattr(importlib.metadata, "version", version)
    assert said in machines.problem()
    assert bool(machines.problem()) == bool(said)
    assert "\n" not in machines.problem()


def test_a_32_bit_python_is_told(monkeypatch):
    monkeypatch.setattr("struct.calcsize", lambda kind: 4)
    assert "is a 32-bit Python, for which" in machines.problem()


# The library that is here


@pytest.fixture(scope="module")
def installed() -> bytes:
    """The library of this installation."""
    found = cpu.find_library()
    if not found:
        pytest.skip("no compiled library")
    return found.read_bytes()


def test_library_exports_what_the_list_says(installed):
    names = compilers.exported_names()
    assert names == sorted(set(names))
    found = read_binary(installed)
    assert found.platform == here().name
    assert {*found.exports} - ({*found.exports} - {*names} if sys.platform == "darwin" else set()) == {*names}
    marked = set()
    for source in compilers.CSRC.glob("*.cpp"):
        marked |= {*re.findall(r"^VM_EXPORT .*?(\w+)\(", source.read_text(encoding="utf-8"), re.MULTILINE)}
    assert marked <= {*names}, "functions that are marked as exported and stand in no list"


@pytest.mark.skipif(sys.platform != "linux", reason="about libstdc++")
def test_library_needs_no_cpp_runtime(installed):
    """An environment may bring an older libstdc++ than that of the compiler."""
    archive = subprocess.run(["g++", "-print-file-name=libstdc++.a"], capture_output=True, text=True).stdout.strip()
    if not os.path.isabs(archive):
        pytest.skip("no static libstdc++ here")
    found = read_binary(installed)
    assert not [name for name in found.needs if "stdc++" in name or "gcc" in name]
    assert all(version.startswith("GLIBC_") for version in found.versions)


def test_what_is_no_library_is_told(installed):
    for data in (
        b"",
        b"MZ",
        b"not a library" * 9,
        installed[:50],
        installed[:4000] if sys.platform == "linux" else b"MZ",
    ):
        with pytest.raises(ValueError, match="librar"):
            read_binary(data)


@pytest.mark.parametrize(
    ("head", "said"),
    [
        (b"\x7fELF\2\1\1" + bytes(11) + b"\xb7\0", "made for Linux on arm64"),
        (b"MZ" + bytes(58) + b"\x40\0\0\0PE\0\0\x64\x86", "made for Windows on x86-64"),
        (b"MZ" + bytes(58) + b"\x40\0\0\0PE\0\0\x64\xaa", "made for Windows on arm64"),
        (b"\xcf\xfa\xed\xfe\x07\0\0\1", "made for macOS on x86-64"),
        (b"<html>", "no library of any system"),
    ],
)
def test_library_of_another_system_is_told(tmp_path, head, said):
    path = tmp_path / "_cpu.so"
    path.write_bytes(head + bytes(100))
    other = cpu_module.Cpu()
    assert not other.load(path)
    assert other.about.startswith(f"_cpu.so cannot be loaded ({said}): ")


# Wheels


@pytest.fixture
def plain() -> dict[str, bytes]:
    """The files of a small wheel for any platform."""
    info = "ultralytics-1.0+vmamba.1.dist-info"
    metadata = b"Metadata-Version: 2.1\nName: ultralytics\nVersion: 1.0+vmamba.1\n\n"
    files = {"ultralytics/b.py": b"b = 1\n", "ultralytics/a.py": b"", f"{info}/METADATA": metadata}
    return files | {f"{info}/WHEEL": b"Root-Is-Purelib: true\n", f"{info}/RECORD": b"old"}


@pytest.mark.parametrize("machine", ["arm64", "x86_64", "another"])
def test_a_library_for_several_processors_is_read_as_that_of_this_one(machine, monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: machine)
    parts = [struct.pack("<8I", 0xFEEDFACF, kind, 0, 6, 0, 0, 0, 0) for kind in (0x01000007, 0x0100000C)]
    head = struct.pack(">2I", 0xCAFEBABE, 2)
    for i, (kind, part) in enumerate(zip((0x01000007, 0x0100000C), parts)):
        head += struct.pack(">5I", kind, 0, 64 + 32 * i, len(part), 0)
    found = read_binary(head.ljust(64, b"\0") + b"".join(parts))
    assert found.platform == f"macos-{'x86_64' if machine == 'another' else machine}"


def test_wheel_is_the_same_to_the_byte_and_lists_what_it_holds(plain):
    backwards = dict(reversed(plain.items()))
    made = [wheels.pack(files, {"ultralytics/_cpu.so": b"x"}, "a_1.b_2", 1_700_000_000) for files in (plain, backwards)]
    assert made[0] == made[1]
    assert made[0] != wheels.pack(plain, {"ultralytics/_cpu.so": b"y"}, "a_1.b_2", 1_700_000_000)
    with zipfile.ZipFile(io.BytesIO(made[0])) as archive:
        info = "ultralytics-1.0+vmamba.1.dist-info"
        assert {entry.date_time for entry in archive.infolist()} == {(2023, 11, 14, 22, 13, 20)}
        assert archive.namelist()[-1] == f"{info}/RECORD"
        said = archive.read(f"{info}/WHEEL").decode()
        assert "Root-Is-Purelib: false\nTag: py3-none-a_1\nTag: py3-none-b_2\n" in said
        rows = [line.rsplit(",", 2) for line in archive.read(f"{info}/RECORD").decode().splitlines()]
        assert sorted(row[0] for row in rows) == sorted(archive.namelist())
        for path, digest, size in rows[:-1]:
            data = archive.read(path)
            want = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            assert (digest, int(size)) == (f"sha256={want}", len(data))
        assert rows[-1] == [f"{info}/RECORD", "", ""]


def test_pip_refuses_a_wheel_for_another_platform_in_one_line(plain, tmp_path):
    name = "linux-arm64" if sys.platform == "win32" else "windows-arm64"
    wheel = tmp_path / f"ultralytics-1.0+vmamba.1-py3-none-{TARGETS[name].tag}.whl"
    wheel.write_bytes(wheels.pack(plain, {}, TARGETS[name].tag, 1_700_000_000))
    command = [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "--target", tmp_path / "site", wheel]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode
    errors = [line for line in done.stderr.splitlines() if "ERROR" in line]
    assert [line.partition(" is ")[2] for line in errors] == ["not a supported wheel on this platform."]


def test_libraries_that_are_not_what_the_wheel_promises_are_refused(installed):
    if sys.platform != "linux":
        pytest.skip("reads a library of Linux")
    other = next(target for target in TARGETS.values() if target is not here() and target.suffix == ".so")
    with pytest.raises(compilers.CompilerError, match=f"the library for {other.name} is one for {here().name}"):
        wheels.check_library(other, installed, compilers.exported_names())
    with pytest.raises(compilers.CompilerError, match="cannot be read"):
        wheels.check_library(other, b"nothing", compilers.exported_names())
    same_length = installed.replace(b"vmamba_tile\0", b"vmamba_tale\0")
    with pytest.raises(compilers.CompilerError, match=r"differ in exports: vmamba_tale, vmamba_tile"):
        wheels.check_library(here(), same_length, compilers.exported_names())
    if read_binary(installed).glibc > (2, 17):
        with pytest.raises(compilers.CompilerError, match=r"needs glibc \(2, \d+\), and its wheel promises \(2, 17\)"):
            wheels.check_library(here(), installed, compilers.exported_names())


def test_other_versions_of_the_tools_are_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(wheels, "version", lambda name: "0.1")
    with pytest.raises(compilers.CompilerError, match=r'setuptools is 0.1, and wheels are made with .*"\.\[release\]"'):
        wheels.make(tmp_path, "HEAD", [])
    assert wheels.main(["--out", str(tmp_path)]) == 1


def test_a_checkout_that_was_cut_short_is_made_anew(monkeypatch, tmp_path):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name in ("setup.py", "ultralytics.py"):
            archive.addfile(tarfile.TarInfo(name))
    folder = tmp_path / "commit"
    monkeypatch.setattr(wheels, "_git", lambda *args: packed.getvalue())

    def full(archive, path):
        (path / "setup.py").write_text("", encoding="utf-8")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as m:
        m.setattr(tarfile.TarFile, "extractall", full)
        with pytest.raises(OSError, match="No space"):
            wheels._check_out("commit", folder)
    assert not folder.exists()
    wheels._check_out("commit", folder)
    assert {p.name for p in folder.iterdir()} == {"setup.py", "ultralytics.py"}


# Workflows


@pytest.mark.skipif(os.name != "posix", reason="a script of bash")
def test_an_unknown_part_of_ci_is_refused():
    done = subprocess.run(["bash", ROOT / ".ci/run", "teests"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "There is no part 'teests'" in done.stderr


def test_workflows_call_parts_that_exist_and_test_the_oldest_that_we_claim():
    script = (ROOT / ".ci/run").read_text(encoding="utf-8")
    parts = {*re.findall(r"wanted (\w+)", script)}
    texts = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / ".github/workflows").glob("*.yml")}
    called = re.findall(r"bash \.ci/run *([\w ]*)\n", "".join(texts.values()))
    assert "" in called, "one job runs everything"
    assert {word for words in called for word in words.split()} <= parts
    assert {*re.findall(r"^#   (\w+) ", script, re.MULTILINE)} == parts, "the comment on top lists the parts"
    torch = re.search(r'"torch>=([\d.]+)"', (ROOT / "setup.py").read_text(encoding="utf-8"))[1]
    python = re.search(r'requires-python = ">=([\d.]+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"))[1]
    assert f"torch=={torch} " in texts["ci.yml"]
    assert f'python: ["{python}", ' in texts["ci.yml"]
