# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""The library of other systems: built here by zig, read, and run under qemu and wine at every instruction set.

Inputs, oracle and bounds are those of the tests of this system's library. Only the C++ functions run elsewhere, each in
a process that gets the memory of the tensors by a file.
"""

from __future__ import annotations

import ctypes
import gc
import os
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from tests import block_cases
from tests.scan_cases import hold_elsewhere, make, run
from ultralytics.nn.Addmodules.building.binaries import read_binary
from ultralytics.nn.Addmodules.building.compilers import CSRC, FLAGS, compile_library, exported_names, zig
from ultralytics.nn.Addmodules.building.targets import TARGETS
from ultralytics.nn.Addmodules.building.wheels import WORK, check_library
from ultralytics.nn.Addmodules.selective_scan import mamba_inner, registry, use_backend
from ultralytics.nn.Addmodules.selective_scan.backends.cpu import FUNCTIONS, ISA_LEVELS, Cpu
from ultralytics.nn.Addmodules.selective_scan.contract import Linear, Norm
from ultralytics.nn.Addmodules.selective_scan.proof import rms_error

pytestmark = [
    pytest.mark.foreign,
    pytest.mark.timeout(3600),  # zig makes a C++ runtime for each platform first
    pytest.mark.skipif(not find_spec("ziglang"), reason='needs zig: pip install -e ".[release]"'),
]
cpu = Cpu()  # apart from the one that layers use
HERE = Path(__file__).resolve().parent
RUNNERS = {  # what runs a program of that platform on Linux for x86-64, and the packages of Debian that bring it
    "linux-x86_64": ([], ""),
    "linux-arm64": (["qemu-aarch64", "-L", "/usr/aarch64-linux-gnu"], "qemu-user libc6-arm64-cross"),
    "windows-x86_64": (["wine"], "wine64"),
}
LEVELS = {"linux-arm64": ("plain",)}
RUNS = [(name, level) for name in RUNNERS for level in LEVELS.get(name, ("plain", "avx2", "avx512"))]


@pytest.fixture(scope="session")
def libraries(tmp_path_factory) -> dict[str, Path]:
    """Return libraries as they are asked for: zig compiles each once, with the caches that releases use, too."""

    class Built(dict):
        def __missing__(self, name: str) -> Path:
            path = tmp_path_factory.mktemp(name) / TARGETS[name].library
            compile_library(TARGETS[name], path, WORK)
            self[name] = path
            return path

    return Built()


@pytest.fixture(scope="session")
def callers(tmp_path_factory) -> dict[str, Path]:
    """Return the program that calls the library, for each platform."""

    class Built(dict):
        def __missing__(self, name: str) -> Path:
            path = tmp_path_factory.mktemp(f"call-{name}") / ("call.exe" if "windows" in name else "call")
            link = [] if "windows" in name else ["-ldl"]
            zig(TARGETS[name], ["-O1", str(HERE / "foreign_call.cpp"), "-o", str(path), *link], WORK)
            self[name] = path
            return path

    return Built()


@pytest.fixture(scope="session")
def environment(callers, tmp_path_factory) -> Iterator[dict[str, str]]:
    """Return the environment of foreign programs. One that waits keeps wine running, which takes seconds to start."""
    env = {**os.environ, "WINEDEBUG": "-all", "WINEPREFIX": str(tmp_path_factory.getbasetemp() / "wine")}
    name, waiting = "windows-x86_64", None
    if shutil.which(RUNNERS[name][0][0]):
        silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        waiting = subprocess.Popen([*RUNNERS[name][0], str(callers[name])], stdin=subprocess.PIPE, env=env, **silent)
    yield env
    if waiting:
        waiting.communicate()


class Elsewhere:
    """Stands for the loaded library: each call runs in a process of its own.

    Attributes:
        said (str): What the last process said of its library.
    """

    def __init__(self, command: list[str], library: Path, level: int, folder: Path, env: dict[str, str]):
        """Remember how a process is started."""
        self.command, self.library, self.level, self.folder, self.env = command, library, level, folder, env
        self.said = ""

    def __getattr__(self, name: str):
        """Return a function of the library, or this process' own answer where it computes nothing."""
        if not name.startswith("vmamba_"):
            raise AttributeError(name)
        if name == "vmamba_status":
            return lambda status: f"status {status}".encode()
        return lambda args, count: self.call(name, args, count)

    def call(self, name: str, args, count: int) -> int:
        """Run a function on a copy of the memory that its arguments point to, and bring the memory back."""
        words = struct.unpack(f"={count}q", args)
        pieces = {}
        held = [t.untyped_storage() for t in gc.get_objects() if type(t) is torch.Tensor and t.device.type == "cpu"]
        spans = {(s.data_ptr(), s.nbytes()) for s in held if s.nbytes()}
        _, sizes, tensors = FUNCTIONS[name.removeprefix("vmamba_")]
        sizes, first = sizes.split(), 2 + len(sizes.split())  # behind the version and the threads
        addresses = [2 + sizes.index("orders")] if "orders" in sizes else []
        addresses += range(first, first + 7 * len(tensors.split()), 7)
        for word in filter(None, (words[i] for i in addresses)):
            span = next(((at, size) for at, size in spans if at <= word < at + size), (word, 16 * 8))
            pieces[span[0]] = span[1]
        file = self.folder / "call.bin"
        data = struct.pack(f"=2q{count}q", count, len(pieces), *words)
        for at, size in pieces.items():
            data += struct.pack("=2q", at, size) + ctypes.string_at(at, size) + bytes(-size % 8)
        file.write_bytes(data)
        command = [*self.command, str(self.library), name, str(self.level), str(file)]
        done = subprocess.run(command, capture_output=True, env=self.env, timeout=600)
        if done.returncode == 93:
            pytest.skip("this processor lacks the level")
        assert done.returncode == 0, (done.returncode, done.stdout, done.stderr[-2000:])
        back, start = file.read_bytes(), 0
        for at, size in pieces.items():
            if any(at == first for first, _ in spans):
                ctypes.memmove(at, back[start : start + size], size)
            start += (size + 7) // 8 * 8
        status, _, self.said = done.stdout.decode().strip().partition(" ")
        return int(status)


@pytest.fixture(params=RUNS, ids="-".join)
def elsewhere(request, libraries, callers, environment, tmp_path, monkeypatch, poisoned_memory) -> Elsewhere:
    """Let the backend's functions call a library of another system at one instruction set."""
    name, level = request.param
    command, packages = RUNNERS[name]
    if sys.platform != "linux" or (command and not shutil.which(command[0])):
        pytest.skip(f"needs Linux and: apt-get install {packages}")
    library = Elsewhere([*command, str(callers[name])], libraries[name], ISA_LEVELS[level], tmp_path, environment)
    monkeypatch.setattr(cpu, "library", library)
    monkeypatch.setattr(cpu, "works", True)
    monkeypatch.setattr(cpu, "columns", 16)  # the product, too, which layers take with AVX2 and AVX-512 alone
    monkeypatch.setitem(registry.BACKENDS, "cpu", cpu)
    torch.manual_seed(0)
    yield library
    assert re.match({"avx512": "AVX-512", "avx2": "AVX2"}.get(level, "NEON" if "arm" in name else "SSE2"), library.said)
    assert "clang" in library.said  # zig's


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_scan_and_its_gradients(elsewhere, dtype, request):
    print(f"{request.node.callspec.id}: {hold_elsewhere(cpu, dtype)}")  # pytest -rP shows it


def test_threads_do_not_change_a_bit(elsewhere, threads_put_back):
    args = make(1, 2, 64, 257, 16)
    dout, results = torch.randn_like(args[0]), []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        results.append(run(cpu, args, dout, True, [0, 1])[:2])
    assert all(torch.equal(x, y) for x, y in zip(*results))


def test_block_norm_and_product(elsewhere, request):
    *sizes, orders = block_cases.CASES[0]
    args = block_cases.make(*sizes, orders)
    truth = block_cases.run(args, orders, "reference")
    found = block_cases.run(block_cases.cast(args, torch.float32), orders, "cpu")
    errors = {name: rms_error(x, truth[name]) for name, x in found.items()}
    assert all(error < block_cases.FLOAT32 for error in errors.values()), errors
    worst = max(errors, key=errors.get)
    print(f"{request.node.callspec.id}: errors of a block up to {errors[worst]:.1e} ({worst})")

    x, weight, bias = torch.randn(2, 48, 33), torch.randn(48), torch.randn(48)
    out, _, _ = cpu.norm(Norm(x, weight, bias, 1e-5))
    exact = torch.nn.functional.layer_norm(x.double().transpose(1, 2), (48,), weight.double(), bias.double())
    torch.testing.assert_close(out.double(), exact, rtol=1e-5, atol=1e-5)

    a, b = torch.randn(37, 50), torch.randn(50, 32)
    torch.testing.assert_close(cpu.linear(Linear(a, b, None)).double(), a.double() @ b.double(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", [1, 4])
def test_block_with_both_linear_layers(elsewhere, request, case):
    exact = block_cases.whole(*block_cases.WHOLE[case])
    block = block_cases.whole_in_float32(exact)
    assert cpu.whole(block)
    with torch.no_grad():
        with use_backend("reference"):
            truth = mamba_inner(exact)
        with use_backend("cpu"):
            error = rms_error(mamba_inner(block), truth)
    assert error < block_cases.FLOAT32
    print(f"{request.node.callspec.id}: error {error:.1e}")


@pytest.mark.parametrize("name", TARGETS)
def test_library_is_what_its_wheel_promises(libraries, name):
    """Platform, exported names and the oldest C library; needed libraries that every such system has."""
    data = libraries[name].read_bytes()
    check_library(TARGETS[name], data, exported_names())
    found = read_binary(data)
    allowed = {
        "linux": r"lib(c|m|dl|pthread)\.so\.\d|ld-linux-.*",
        "windows": r"api-ms-win-crt-.*|KERNEL32\.dll",
        "macos": r"/usr/lib/libSystem\.B\.dylib",
    }[name.partition("-")[0]]
    assert all(re.fullmatch(allowed, lib) for lib in found.needs), found.needs
    print(f"{name}: {len(data)} bytes, {len(found.exports)} names, needs {', '.join([*found.needs, *found.versions])}")


def test_the_same_library_each_time_wherever_it_is_built(libraries, tmp_path):
    """In another folder, of another name, from a copy of the sources, without what the cache holds of them."""
    sources = tmp_path / "a copy 文件" / "csrc"
    shutil.copytree(CSRC, sources)
    for name in ("linux-x86_64",):
        again = tmp_path / name / TARGETS[name].library
        compile_library(TARGETS[name], again, WORK, sources)
        assert again.read_bytes() == libraries[name].read_bytes(), name


WIDE = re.compile(r"%[yz]mm\d|\tv[a-z]+\d*[a-z]* ")


@pytest.mark.skipif(not shutil.which("objdump"), reason="needs binutils")
@pytest.mark.parametrize("name", ["linux-x86_64", "windows-x86_64"])
def test_common_path_has_no_instruction_that_old_processors_lack(name, tmp_path):
    """AVX is in the kernels that the processor is asked for, and nowhere else: not in zig's C++ runtime either.

    A library for Windows has no names of inner functions, so there the object files of our sources are read.
    """
    target, files = TARGETS[name], [tmp_path / TARGETS[name].library]
    if target.suffix == ".dll":
        (WORK / name).mkdir(parents=True, exist_ok=True)
        sources = sorted(CSRC.glob("*.cpp"))
        files = [WORK / name / f"{source.stem}.obj" for source in sources]
        for source, file in zip(sources, files):
            zig(target, [*FLAGS, "-c", str(source), "-o", f"{name}/{file.name}"], WORK)
    else:
        compile_library(target, files[0], WORK, strip=False)
    said = ""
    for file in files:
        command = ["objdump", "-d", "--no-show-raw-insn", str(file)]
        said += subprocess.run(command, capture_output=True, text=True, check=True).stdout
    function, wide, functions = "", set(), set()
    for line in said.splitlines():
        if match := re.match(r"[0-9a-f]+ <(.+)>:$", line):
            function = match[1]
            functions.add(function)
        elif WIDE.search(line):
            wide.add(function)
    assert len(functions) > 100, "the names of inner functions are missing"
    assert any("avx512" in f for f in wide)
    assert any("4avx2" in f for f in wide)
    assert {f for f in wide if "6avx512" not in f and "4avx2" not in f} == set()
