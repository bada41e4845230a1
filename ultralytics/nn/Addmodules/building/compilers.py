# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""How the C++ sources become a library: by the system's compiler, or by zig, which the package registry has.

| environment variable | meaning | values |
|---|---|---|
| `VMAMBA_COMPILER` | which compiler an installation uses | `auto` (default), `system`, `zig`, `none` |

`auto` takes the system's compiler, and zig where there is none that works. Of installation only
`patches/upstream.py` reads the environment besides (VMAMBA_UPSTREAM_DIR). Only standard library and setuptools here:
installation runs this file before anything is installed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

from .targets import Target, here

__all__ = (
    "CHOICES",
    "CSRC",
    "ZIG",
    "CompilerError",
    "choice",
    "compile_flags",
    "compile_library",
    "environment",
    "exported_names",
    "link_flags",
    "system_problem",
    "zig",
    "zig_problem",
)

CSRC = Path(__file__).resolve().parents[1] / "selective_scan/backends/csrc"
VARIABLE = "VMAMBA_COMPILER"
CHOICES = ("auto", "system", "zig", "none")
ZIG = "ziglang>=0.17,<0.18"  # one series: its command line changes between series
FLAGS = ["-O3", "-std=c++17", "-fno-math-errno", "-fvisibility=hidden", "-g0"]
# /utf-8: sources are UTF-8, whatever the code page of the system. /EHsc: the pool of threads catches exceptions.
MSVC_FLAGS = ["/O2", "/std:c++17", "/utf-8", "/EHsc"]
# What our sources need of a compiler and of its library, in a second: found out before installation asks for zig.
PROBE = """
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#endif
static std::atomic<long> count{0};
template <int N> long twice() { if constexpr (N > 0) return 2 * N; else return 0; }
#if defined(_WIN32)
__declspec(dllexport)
#endif
long vmamba_probe() {
  std::mutex m;
  std::condition_variable c;
  std::thread t([&] { std::lock_guard<std::mutex> lock(m); count = twice<3>(); c.notify_one(); });
  t.join();
  return count.load();
}
"""


class CompilerError(RuntimeError):
    """A compiler that cannot be used: what is wrong, in one line."""


def choice() -> str:
    """Return the wish of the environment.

    Raises:
        CompilerError: If it names no choice.
    """
    wish = os.environ.get(VARIABLE, "") or "auto"
    if wish not in CHOICES:
        raise CompilerError(f"{VARIABLE} is {wish!r}; choose one of {', '.join(CHOICES)}")
    return wish


def environment(**more: str) -> dict[str, str]:
    """Return the environment for a program that is started here, with more variables."""
    return {**os.environ, **more}


def exported_names(csrc: Path = CSRC) -> list[str]:
    """Return the functions that the library exports: those of `exported.txt` beside the sources, and nothing else."""
    lines = (csrc / "exported.txt").read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def compile_flags(msvc: bool) -> list[str]:
    """Return what a compiler is told beside its defaults. Never the processor at hand: csrc/kernels_*.cpp choose."""
    return MSVC_FLAGS if msvc else FLAGS


def link_flags(compiler: list[str], folder: Path) -> list[str]:
    """Return what a compiler of Linux or macOS is told when it links, and write the list of exports it needs.

    The C++ runtime goes into the library where that is possible: an environment may bring an older libstdc++ of its
    own, which refuses a library made for a newer one. Its functions must not get out again, so exports are listed.

    Args:
        compiler (list[str]): The command that links.
        folder (Path): Where the list goes.
    """
    names = exported_names()
    if sys.platform == "darwin":
        listed = folder / "exports.txt"
        listed.write_text("".join(f"_{name}\n" for name in names), encoding="utf-8")
        return ["-Xlinker", "-exported_symbols_list", "-Xlinker", str(listed)]
    flags = ["-Xlinker", f"--version-script={write_version_script(folder)}"]
    archive = _said([*compiler, "-print-file-name=libstdc++.a"])
    if archive and Path(archive).is_absolute() and Path(archive).is_file():  # Fedora has it in a package of its own
        flags += ["-static-libstdc++", "-static-libgcc"]
    return flags


def write_version_script(folder: Path, csrc: Path = CSRC) -> Path:
    """Write the exports as the linkers of Linux read them, and return the file."""
    script = folder / "exports.map"
    script.write_text(f"{{ global: {'; '.join(exported_names(csrc))}; local: *; }};\n", encoding="utf-8")
    return script


def system_problem() -> str:
    """Compile and link a few lines as an installation would; return in one line why that fails, or an empty text."""
    if sys.platform == "darwin" and not _said(["xcode-select", "-p"]):
        return "no Xcode command line tools"  # without them c++ is a stub that opens a dialogue
    from setuptools.errors import BaseError, CCompilerError  # isort: skip  # first: it brings a distutils of its own
    from distutils.ccompiler import new_compiler
    from distutils.sysconfig import customize_compiler

    with (
        tempfile.TemporaryDirectory(prefix="vmamba-probe-", ignore_cleanup_errors=True) as folder,
        _overheard() as said,
    ):
        source = Path(folder) / "probe.cpp"
        source.write_text(PROBE, encoding="utf-8")
        try:
            compiler = new_compiler()
            customize_compiler(compiler)
            flags = compile_flags(compiler.compiler_type == "msvc")
            objects = compiler.compile([str(source)], output_dir=folder, extra_postargs=flags)
            compiler.link_shared_object(objects, str(Path(folder) / "probe.lib"), target_lang="c++")
        except (CCompilerError, BaseError, OSError) as e:
            return said_by(e, said())
    return ""


def zig_problem() -> str:
    """Return why zig cannot compile for this machine, in one line, or an empty text."""
    if here() is None:
        return "zig is not set up for this platform"
    return "" if find_spec("ziglang") else "the package ziglang is not there"


def zig(target: Target, args: list[str], work: Path) -> None:
    """Run zig as a C++ compiler for a platform, never for the processor at hand.

    Args:
        target (Target): The platform, mostly another than this one.
        args (list[str]): Flags and files; relative ones are in `work`.
        work (Path): Folder for zig's cache, which it would otherwise keep in the home folder; the C++ runtime of each
            platform that was built for is in it.

    Raises:
        CompilerError: If zig fails; with its words.
    """
    work.mkdir(parents=True, exist_ok=True)
    env = environment(ZIG_GLOBAL_CACHE_DIR=str(work / "cache"), ZIG_LOCAL_CACHE_DIR=str(work / "cache"))
    command = [sys.executable, "-m", "ziglang", "c++", "-target", target.triple, "-mcpu=baseline", *args]
    done = subprocess.run(command, cwd=work, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        raise CompilerError(f"zig failed for {target.name}: {one_line(done.stdout.decode(errors='replace'))}")


def compile_library(target: Target, library: Path, work: Path, csrc: Path = CSRC, strip: bool = True) -> None:
    """Compile and link the library for a platform with zig.

    Args:
        target (Target): The platform.
        library (Path): The file to write.
        work (Path): Folder for what zig leaves.
        csrc (Path): The sources.
        strip (bool): Leave the names of inner functions out.

    Raises:
        CompilerError: If zig fails; with its words.
    """
    out = work / target.name  # of its own: zig leaves an import library beside a .dll
    out.mkdir(parents=True, exist_ok=True)
    args = [*FLAGS, "-fPIC", "-shared", *(["-s"] if strip else [])]
    if target.suffix == ".so":
        # Relative, because -Wl splits at commas
        args.append(f"-Wl,--version-script={write_version_script(out, csrc).relative_to(work).as_posix()}")
    args += [*map(str, sorted(csrc.glob("*.cpp"))), "-o", f"{target.name}/{target.library}"]
    zig(target, args, work)
    library.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(out / target.library, library)


def _said(command: list[str]) -> str:
    """Return what a program prints, or an empty text if it fails or is not there."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=30)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


@contextlib.contextmanager
def _overheard() -> Iterator[Callable[[], str]]:
    """Keep what compilers print from the screen; yield a function that returns it so far."""
    with tempfile.TemporaryFile() as file:
        sys.stdout.flush()
        sys.stderr.flush()
        kept = os.dup(1), os.dup(2)
        try:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)

            def so_far() -> str:
                file.seek(0)
                return file.read().decode(errors="replace")

            yield so_far
        finally:
            for number, copy in zip((1, 2), kept):
                os.dup2(copy, number)
                os.close(copy)


def said_by(error: Exception, output: str = "") -> str:
    """Return in one line why a compiler failed: a program that is not there, or its errors."""
    if isinstance(error, FileNotFoundError) and error.filename:
        return f"{Path(str(error.filename)).name} not found"
    return one_line(f"{output}\n{error}")


def one_line(text: str, most: int = 300) -> str:
    """Return a text of several lines as one, its errors first."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower()]
    return " ".join(" ".join(errors or lines).split())[:most]
