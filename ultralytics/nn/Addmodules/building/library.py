# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""The step of an installation that compiles the C++ library and puts it beside the sources."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import time
from pathlib import Path

from setuptools import Extension
from setuptools.command.build_ext import build_ext
from setuptools.errors import BaseError, CCompilerError, CompileError

from . import compilers
from .binaries import read_binary
from .targets import here, library_name

__all__ = ("BuildExt", "aloud", "extensions", "leave_out", "put_in_place", "up_to_date")

ROOT = Path(__file__).resolve().parents[4]
SLOWER = "10 to 20"


def extensions() -> list[Extension]:
    """Return the library as setuptools takes it, or nothing where none is wanted.

    Raises:
        CompilerError: If the environment names no choice.
    """
    if compilers.choice() == "none":
        return []
    files = [path.relative_to(ROOT).as_posix() for path in _inputs()]
    name = ".".join((*compilers.CSRC.parent.relative_to(ROOT).parts, "_cpu"))
    cpp = [path for path in files if path.endswith(".cpp")]
    return [Extension(name, cpp, depends=files, language="c++", optional=True)] if cpp else []


def up_to_date() -> bool:
    """Return whether the library beside the sources is newer than all that it is made of, whole, and for this machine.

    A tree may have been copied from another machine, and a download may have been cut short.
    """
    library, target = compilers.CSRC.parent / library_name(), here()
    if not library.is_file() or any(path.stat().st_mtime > library.stat().st_mtime for path in _inputs()):
        return False
    try:
        found = read_binary(library.read_bytes())
    except ValueError:
        return False
    # zig's C++ runtime shows more names on macOS
    return target is not None and found.platform == target.name and {*compilers.exported_names()} <= {*found.exports}


def leave_out() -> None:
    """Take away the library of an earlier installation, where this one was told to have none, and say so."""
    library = compilers.CSRC.parent / library_name()
    if library.is_file():
        try:
            library.unlink()
            aloud(f"VMAMBA_COMPILER is none: the library of an earlier installation, {library.name}, was removed.")
        except OSError as e:
            aloud(f"VMAMBA_COMPILER is none, but an earlier library stays in use ({e}): delete {library}")


def _inputs() -> list[Path]:
    """Return the files that decide what the library is."""
    return sorted(path for path in compilers.CSRC.iterdir() if path.is_file()) + [Path(compilers.__file__).resolve()]


class BuildExt(build_ext):
    """Compiles the library with the compiler of the system or with zig, and says aloud when neither works."""

    def get_ext_filename(self, fullname: str) -> str:
        """Return the library's path in the package: one name for all versions of Python."""
        return str(Path(*fullname.split(".")).with_name(library_name()))

    def get_export_symbols(self, ext: Extension) -> list[str]:
        """Return nothing: the sources mark what is exported, and there is no module to initialise."""
        return []

    def build_extension(self, ext: Extension) -> None:
        """Compile the extension, unless this is an editable installation again and no source has changed."""
        library, wish, failed = Path(self.get_ext_fullpath(ext.name)), compilers.choice(), []
        library.parent.mkdir(parents=True, exist_ok=True)
        if self.editable_mode and wish == "auto" and up_to_date():
            shutil.copy2(compilers.CSRC.parent / library_name(), library)
            return
        for name in ("system", "zig"):
            if wish in ("auto", name):
                try:
                    self._by_system(ext) if name == "system" else self._by_zig(library)
                    return
                except (CCompilerError, BaseError, compilers.CompilerError, OSError) as e:
                    label = "the system's compiler" if name == "system" else "zig"
                    failed.append(f"{label}: {compilers.said_by(e)}")
        why = "; ".join(failed)
        earlier = compilers.CSRC.parent / library_name()
        meanwhile = f"scans on the CPU run in plain PyTorch, {SLOWER} times slower"
        if self.editable_mode and earlier.is_file():
            meanwhile = f"{earlier.name} of an earlier installation stays in use, and may be older than its sources"
        aloud(
            f"The C++ selective scan was not compiled ({why}). The installation goes on; {meanwhile}. "
            f"`pip install -e .` with a network brings a compiler; docs/environment.md says what else to do."
        )
        raise CompileError(why)  # setuptools goes on, because the extension is optional

    def _by_system(self, ext: Extension) -> None:
        """Compile as setuptools does, with our flags."""
        kind = self.compiler.compiler_type
        ext.extra_compile_args = compilers.compile_flags(kind == "msvc")
        if kind == "unix":
            folder = Path(self.build_temp).resolve()
            folder.mkdir(parents=True, exist_ok=True)
            command = getattr(self.compiler, "compiler_so_cxx", None) or self.compiler.compiler_so
            ext.extra_link_args = compilers.link_flags(command, folder)
        super().build_extension(ext)

    def _by_zig(self, library: Path) -> None:
        """Compile with the package ziglang."""
        if problem := compilers.zig_problem():
            raise compilers.CompilerError(problem)
        work = Path(self.build_temp).resolve() / "zig"
        compilers.compile_library(here(), library, work)
        shutil.rmtree(work, ignore_errors=True)  # a C++ runtime and its objects

    def copy_extensions_to_source(self) -> None:
        """Put the library beside the sources, even while a program has it loaded.

        Raises:
            SystemExit: If that cannot be done.
        """
        build_py = self.get_finalized_command("build_py")
        for ext in self.extensions:
            beside, built = self._get_inplace_equivalent(build_py, ext)
            if os.path.exists(built):
                put_in_place(Path(built), Path(beside))


def put_in_place(built: Path, beside: Path) -> None:
    """Replace a library that programs may have loaded; they keep the old one until they end.

    Windows lets nobody write to a loaded library or delete it, but it may be renamed. What was renamed goes with the
    next installation.

    Raises:
        SystemExit: If even that is refused, with what to do.
    """
    for leftover in beside.parent.glob(f"{beside.stem}.old-*"):
        with contextlib.suppress(OSError):  # still loaded
            leftover.unlink()
    aside = beside.with_name(f"{beside.stem}.old-{time.time_ns()}{beside.suffix}")
    fresh = beside.with_name(f"{beside.stem}.new-{time.time_ns()}{beside.suffix}")  # another may install meanwhile
    try:
        shutil.copyfile(built, fresh)
        try:
            os.replace(fresh, beside)
        except PermissionError:
            os.rename(beside, aside)
            os.replace(fresh, beside)
    except OSError as e:
        with contextlib.suppress(OSError):
            fresh.unlink(missing_ok=True)
        raise SystemExit(
            f"\n{beside} could not be replaced ({e.strerror or e}). Close the Python programs and notebooks that use "
            f"this fork, see that the folder can be written to, then install again.\n"
        ) from None


def aloud(text: str) -> None:
    """Say what has to be seen. pip and uv show nothing of what a successful build prints, so write to the terminal."""
    print(f"\nVMamba-YOLO: {text}\n", file=sys.stderr, flush=True)
    if sys.stderr.isatty():
        return
    with (
        contextlib.suppress(OSError),
        open("CONOUT$" if os.name == "nt" else "/dev/tty", "w", encoding="utf-8") as screen,
    ):
        screen.write(f"\nVMamba-YOLO: {text}\n")
