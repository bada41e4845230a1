# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""The wheels of a release: one for each platform, from one machine and one commit, the same to the byte each time.

The commit is taken out of git into a folder of its own, so that nothing else that lies in the tree gets in. setuptools
makes one wheel there without the C++ library; zig compiles the library for each platform; both are packed with the
platform's tag, in a fixed order and with the commit's time.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import io
import re
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
import zlib
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from .binaries import read_binary
from .compilers import CSRC, CompilerError, compile_library, environment, exported_names
from .targets import TARGETS, Target

__all__ = ("RELEASE", "check_library", "main", "make", "pack")

ROOT = Path(__file__).resolve().parents[4]
WORK = ROOT / ".upstream/wheels"  # zig's caches: a second run for the same commit takes seconds
RELEASE = {"setuptools": "84.2.1", "ziglang": "0.17.1"}  # what decides the bytes; the extra `release` asks for these
RUNTIME = re.compile(r"_Z[nd][alw]|__dso_handle$|_mh_dylib_header$")
PLACE = CSRC.parent.relative_to(ROOT).as_posix()


def main(args: list[str] | None = None) -> int:
    """Build wheels and print a line for each. Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python ultralytics/nn/Addmodules/building", description="Builds the wheels of a commit for all platforms."
    )
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="folder for the wheels (default: dist)")
    parser.add_argument("--ref", default="HEAD", help="commit to build (default: HEAD)")
    parser.add_argument("--only", nargs="+", choices=[*TARGETS], metavar="NAME", help=f"some of {', '.join(TARGETS)}")
    options = parser.parse_args(args)
    try:
        sums = make(options.out, options.ref, [TARGETS[name] for name in options.only or TARGETS])
    except (CompilerError, OSError) as e:
        print(f"\nNo wheels: {e}", file=sys.stderr)
        return 1
    tools = ", ".join(f"{name} {number}" for name, number in RELEASE.items())
    print(f"{options.out / 'SHA256SUMS'}: {len(sums)} wheels, made with {tools}, zlib {zlib.ZLIB_RUNTIME_VERSION}")
    return 0


def make(out: Path, ref: str, targets: list[Target]) -> dict[str, str]:
    """Build the wheels of a commit and a file of their hashes.

    Returns:
        (dict[str, str]): Their sha256 by file name.

    Raises:
        CompilerError: If a tool is missing or fails, or a library is not what its wheel promises.
    """
    for name, wanted in RELEASE.items():
        try:
            found = version(name)
        except PackageNotFoundError:
            found = "missing"
        if found != wanted:
            raise CompilerError(f'{name} is {found}, and wheels are made with {wanted}: pip install -e ".[release]"')
    moment = int(_git("show", "-s", "--format=%ct", f"{ref}^{{commit}}"))
    if ref == "HEAD" and (changed := _git("status", "--porcelain").decode().strip()):
        print(f"Not in the wheels, because it is not committed:\n{changed}", file=sys.stderr)
    out.mkdir(parents=True, exist_ok=True)
    commit = _git("rev-parse", f"{ref}^{{commit}}").decode().strip()
    checkout = WORK / commit
    _check_out(commit, checkout)
    name, files = _without_library(checkout, moment)
    sums = {}
    for target in targets:
        started = time.monotonic()
        library = WORK / commit / ".libraries" / target.name / target.library
        compile_library(target, library, WORK, checkout / PLACE / "csrc")
        data = library.read_bytes()
        check_library(target, data, exported_names(checkout / PLACE / "csrc"))
        wheel = out / f"{name}-py3-none-{target.tag}.whl"
        wheel.write_bytes(pack(files, {f"{PLACE}/{target.library}": data}, target.tag, moment))
        sums[wheel.name] = hashlib.sha256(wheel.read_bytes()).hexdigest()
        size = f"{wheel.stat().st_size / 1e6:.2f} MB, library {len(data) / 1e6:.2f} MB"
        print(f"{wheel.name}: {size}, {time.monotonic() - started:.0f} s", flush=True)
    shutil.rmtree(checkout, ignore_errors=True)
    lines = "".join(f"{digest}  {file}\n" for file, digest in sums.items())
    (out / "SHA256SUMS").write_text(lines, encoding="utf-8", newline="\n")
    return sums


def _git(*args: str) -> bytes:
    """Run git in this checkout.

    Raises:
        CompilerError: If there is no git, or it fails.
    """
    try:
        return subprocess.run(["git", *args], cwd=ROOT, capture_output=True, check=True).stdout
    except FileNotFoundError:
        raise CompilerError("git is not on the PATH, and wheels are made from a commit") from None
    except subprocess.CalledProcessError as e:
        raise CompilerError(f"git {' '.join(args)} failed: {e.stderr.decode(errors='replace').strip()}") from None


def _check_out(commit: str, folder: Path) -> None:
    """Write the files of a commit into a folder, if they are not there yet; a folder that is there is whole."""
    if folder.is_dir():
        return
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    with tarfile.open(fileobj=io.BytesIO(_git("archive", "--format=tar", commit))) as archive:
        archive.extractall(part)
    part.rename(folder)


def _without_library(checkout: Path, moment: int) -> tuple[str, dict[str, bytes]]:
    """Have setuptools make the wheel of a checkout without the library; return the name's start and the files."""
    sys.path.insert(0, str(ROOT))
    from patches.upstream import fetch, load_pin

    out = checkout / ".wheel"
    upstream = checkout / ".upstream/cache"
    upstream.mkdir(parents=True, exist_ok=True)
    if not (upstream / load_pin().wheel).is_file():
        (upstream / load_pin().wheel).write_bytes(fetch(load_pin()))
    env = environment(VMAMBA_COMPILER="none", SOURCE_DATE_EPOCH=str(moment), PYTHONHASHSEED="0")
    code = "import sys; sys.path.insert(0, ''); from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", code, str(out)], cwd=checkout, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    wheels = sorted(out.glob("*-py3-none-any.whl"))
    if done.returncode or not wheels:
        raise CompilerError(f"setuptools failed: {done.stdout.decode(errors='replace').strip()[-500:]}")
    with zipfile.ZipFile(wheels[-1]) as archive:
        files = {name: archive.read(name) for name in archive.namelist() if not name.endswith("/")}
    return wheels[-1].name.removesuffix("-py3-none-any.whl"), files


def check_library(target: Target, data: bytes, names: Sequence[str]) -> None:
    """Refuse a library that is not what the wheel's tag promises.

    Args:
        target (Target): The platform.
        data (bytes): The library.
        names (Sequence[str]): What it has to export.

    Raises:
        CompilerError: If platform, exported names or the needed C library differ.
    """
    try:
        found = read_binary(data)
    except ValueError as e:
        raise CompilerError(f"the library for {target.name} cannot be read: {e}") from None
    if found.platform != target.name:
        raise CompilerError(f"the library for {target.name} is one for {found.platform}")
    # zig's linker for macOS takes no list of exports, so the memory functions of its C++ runtime stay visible there.
    mac = target.suffix == ".dylib"
    if odd := sorted({name for name in found.exports if not (mac and RUNTIME.match(name))} ^ {*names}):
        raise CompilerError(f"the library for {target.name} and csrc/exported.txt differ in exports: {', '.join(odd)}")
    if target.suffix == ".so" and found.glibc > (oldest := tuple(map(int, target.tag.split("_")[1:3]))):
        raise CompilerError(f"the library for {target.name} needs glibc {found.glibc}, and its wheel promises {oldest}")


def pack(files: dict[str, bytes], more: dict[str, bytes], tag: str, moment: int) -> bytes:
    """Return a wheel for a platform, made of the files of one for any and of more.

    Args:
        files (dict[str, bytes]): The files of the wheel for any platform.
        more (dict[str, bytes]): What comes in addition.
        tag (str): Platform tags, joined by dots.
        moment (int): The time of all files, in seconds since 1970.
    """
    (info,) = {path.partition("/")[0] for path in files if path.partition("/")[0].endswith(".dist-info")}
    said = "".join(f"Tag: py3-none-{one}\n" for one in tag.split("."))
    files = {
        **files,
        **more,
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nGenerator: vmamba-yolo\nRoot-Is-Purelib: false\n{said}".encode(),
    }
    del files[f"{info}/RECORD"]
    record = "".join(f"{path},sha256={_hash(data)},{len(data)}\n" for path, data in sorted(files.items()))
    ordered = [*sorted(files.items(), key=lambda item: (item[0].startswith(info), item[0]))]
    ordered.append((f"{info}/RECORD", f"{record}{info}/RECORD,,\n".encode()))
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for path, data in ordered:
            entry = zipfile.ZipInfo(path, time.gmtime(moment)[:6])
            entry.create_system, entry.external_attr, entry.compress_type = 3, 0o100644 << 16, zipfile.ZIP_DEFLATED
            archive.writestr(entry, data, compresslevel=9)
    return out.getvalue()


def _hash(data: bytes) -> str:
    """Return the sha256 of a file as RECORD has it."""
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
