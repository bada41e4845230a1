# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""The pinned upstream release: which one it is, where it comes from, and what its wheel holds."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from patches import WORK, PatchesError

PIN = Path(__file__).with_name("upstream.json")
CACHE = WORK / "cache"
FOLDER_VARIABLE = "VMAMBA_UPSTREAM_DIR"
PAUSES = (0.05, 0.2, 0.5, 1.0) if os.name == "nt" else ()  # seconds between tries to replace a file
# What reading an archive raises: of another form, cut short, encrypted, compressed in a way that this Python lacks
UNREADABLE = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError)
NUMBERED = re.compile(r"\d+(?:\.\d+)+")  # releases; not their candidates or development versions


@dataclass(frozen=True)
class Pin:
    """One upstream release and this fork's count of releases upon it.

    Attributes:
        version (str): Upstream's version.
        local (str): Local version label of this fork.
        sha256 (str): Hash of upstream's wheel.
    """

    version: str
    local: str
    sha256: str

    @property
    def wheel(self) -> str:
        """File name of upstream's wheel."""
        return f"ultralytics-{self.version}-py3-none-any.whl"

    def dumps(self) -> bytes:
        """Return the pin as its file holds it."""
        return (json.dumps(asdict(self), indent=2) + "\n").encode()

    @property
    def fork_version(self) -> str:
        """Version of this fork's distribution."""
        return f"{self.version}+{self.local}"


def load_pin() -> Pin:
    """Read the pin.

    Returns:
        (Pin): The release that this tree is built on.

    Raises:
        PatchesError: If the file is missing or holds anything but the three texts of a pin.
    """
    try:
        pin = Pin(**json.loads(PIN.read_text(encoding="utf-8")))
        for name, value in asdict(pin).items():
            if not isinstance(value, str):
                raise TypeError(f"{name} is {value!r}, but must be a text")
        if not NUMBERED.fullmatch(pin.version):
            raise ValueError(f"version is {pin.version!r}, but must be the number of a release")
        return pin
    except (OSError, ValueError, TypeError) as e:
        raise PatchesError(f"{PIN} is no pin ({e}). Restore it: git checkout -- patches/upstream.json") from None


def sha256(data: bytes) -> str:
    """Return the SHA-256 of some bytes in hex."""
    return hashlib.sha256(data).hexdigest()


def scratch(prefix: str) -> tempfile.TemporaryDirectory:
    """Make a folder on the tree's own file system, so that what is written there can be moved into place at once."""
    (WORK / "tmp").mkdir(parents=True, exist_ok=True)
    return tempfile.TemporaryDirectory(prefix=prefix, dir=WORK / "tmp", ignore_cleanup_errors=True)


def replace(path: Path, data: bytes) -> None:
    """Write a file so that it is either the old one or the new one, whenever the process dies."""
    aside = WORK / "tmp" / f"{os.getpid()}-{path.name}"
    aside.parent.mkdir(parents=True, exist_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside.write_bytes(data)
    for pause in PAUSES:
        try:
            return os.replace(aside, path)
        except PermissionError:  # on Windows: a virus scanner or an indexer has just opened the file
            time.sleep(pause)
    os.replace(aside, path)


def remove(folder: Path) -> None:
    """Delete a folder with a git repository in it: some systems keep git's objects until they are made writable."""

    def writable(function, path, _) -> None:
        os.chmod(path, 0o700)
        function(path)

    if folder.exists():
        shutil.rmtree(folder, onerror=writable)


def is_here(pin: Pin) -> bool:
    """Return whether the cache holds the whole wheel of a release."""
    cached = CACHE / pin.wheel
    return cached.is_file() and sha256(cached.read_bytes()) == pin.sha256


def fetch(pin: Pin) -> bytes:
    """Return upstream's wheel from the cache, the folder in VMAMBA_UPSTREAM_DIR or the package registry.

    Whatever its source, the wheel is used only when its hash is the pinned one.

    Args:
        pin (Pin): The release wanted.

    Returns:
        (bytes): The wheel.

    Raises:
        PatchesError: If it cannot be had, or is not the pinned one.
    """
    cached = CACHE / pin.wheel
    damaged = ""
    if cached.is_file():
        data = cached.read_bytes()
        if sha256(data) == pin.sha256:
            return data
        damaged = f"The cached copy {cached} does not have the pinned hash (its sha256: {sha256(data)}).\n"
        print(damaged, end="", flush=True)

    if path := given(pin.wheel, damaged):
        data, source = path.read_bytes(), str(path)
    else:
        data, source = _download(pin.version, pin.sha256, damaged), "the registry's wheel"
    if sha256(data) != pin.sha256:
        raise PatchesError(
            f"{source} is not the pinned upstream release: its sha256 is\n  {sha256(data)}\n"
            f"and {PIN.relative_to(PIN.parents[1])} asks for\n  {pin.sha256}\nNothing was changed. Get the wheel again "
            f"from a source you trust; the pin itself moves only with a new upstream release."
        )
    _keep(pin.wheel, data)
    return data


def given(wheel: str, before: str = "") -> Path | None:
    """Return a wheel in the folder in VMAMBA_UPSTREAM_DIR, or None where that is not set.

    Args:
        wheel (str): Its file name.
        before (str): What to say first if it is not there.
    """
    if not (folder := os.environ.get(FOLDER_VARIABLE)):
        return None
    path = Path(os.path.expanduser(folder)) / wheel
    if not path.is_file():
        raise PatchesError(
            f"{before}{FOLDER_VARIABLE}={folder} holds no {wheel}. Put that wheel there, or unset {FOLDER_VARIABLE} "
            f"to download it."
        )
    return path


def _keep(wheel: str, data: bytes) -> None:
    """Keep a wheel in the cache with its hash beside it, by which `release` knows a whole one."""
    replace(CACHE / wheel, data)
    replace(CACHE / f"{wheel}.sha256", sha256(data).encode())


def release(version: str) -> Pin:
    """Find a release that need not be the pinned one, and what its wheel's hash is.

    The wheel comes from the folder in VMAMBA_UPSTREAM_DIR or the package registry, where pip holds it against the
    registry's own hash. It is kept in the cache with the hash beside it, where `fetch` then finds it.

    Args:
        version (str): Upstream's version.

    Returns:
        (Pin): What would pin this release.

    Raises:
        PatchesError: If the wheel cannot be had.
    """
    if version == load_pin().version:
        return load_pin()
    pin = Pin(version, "vmamba.1", "")  # this fork's first release upon it
    cached, noted = CACHE / pin.wheel, CACHE / f"{pin.wheel}.sha256"
    if path := given(pin.wheel):
        data, source = path.read_bytes(), str(path)
    elif cached.is_file() and noted.is_file() and sha256(cached.read_bytes()).encode() == noted.read_bytes().strip():
        data, source = cached.read_bytes(), str(cached)
    else:
        data, source = _download(version, None, ""), "the registry's wheel"
    read_wheel(data, source)
    _keep(pin.wheel, data)
    return Pin(pin.version, pin.local, sha256(data))


def by_number(version: str) -> tuple[int, ...]:
    """Return the key that sorts versions such as 8.4.190."""
    return tuple(map(int, version.split(".")))


def versions(patience: float | None = None) -> list[str]:
    """List upstream's releases, newest first.

    Args:
        patience (float | None): Seconds to wait for the package registry; None leaves it to pip.

    Returns:
        (list[str]): Versions in the folder in VMAMBA_UPSTREAM_DIR, or those that the registry offers this Python.

    Raises:
        PatchesError: If there are none to be found.
    """
    if folder := os.environ.get(FOLDER_VARIABLE):
        wheels = Path(os.path.expanduser(folder)).glob("ultralytics-*-py3-none-any.whl")
        found = [path.name.split("-")[1] for path in wheels]
        said = f"{FOLDER_VARIABLE}={folder} holds no wheel of ultralytics"
    else:
        command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "index", "versions", "ultralytics"]
        if patience:
            command += [f"--timeout={patience}", "--retries=0"]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, errors="replace", timeout=patience and 3 * patience
            )
            listed = re.search(r"^Available versions: (.+)$", done.stdout, re.MULTILINE)
            found, said = listed[1].split(", ") if listed else [], "pip said:\n" + done.stderr.strip()[-300:]
        except subprocess.TimeoutExpired:
            found, said = [], "no answer in time"
    if not (found := sorted(filter(NUMBERED.fullmatch, found), key=by_number, reverse=True)):
        raise PatchesError(f"Upstream's releases could not be listed: {said}")
    return found


def _download(version: str, digest: str | None, damaged: str) -> bytes:
    """Have pip download a wheel, held against a hash if there is one, into a folder that nothing else reads."""
    wheel = Pin(version, "", "").wheel
    print(f"Fetching upstream ultralytics {version} ...", flush=True)
    with scratch("download-") as folder:
        wanted = Path(folder) / "requirements.txt"
        wanted.write_text(
            f"ultralytics=={version}" + (f" --hash=sha256:{digest}\n" if digest else "\n"), encoding="utf-8"
        )
        command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-input"]
        command += ["--no-deps", "--only-binary=:all:", "-r", str(wanted), "-d", folder]
        command += ["--require-hashes"] * bool(digest)
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
        if done.returncode == 0:
            return (Path(folder) / wheel).read_bytes()
    lines = [line for line in done.stdout.strip().splitlines() if not re.search(r"Retry\(total=[1-9]", line)]
    said = "".join(f"  {line if len(line) <= 300 else line[:297] + '...'}\n" for line in lines[-8:])
    if "DO NOT MATCH THE HASHES" in done.stdout:
        raise PatchesError(
            f"The download of {wheel} does not have the pinned hash and was thrown away. pip said:\n{said}"
            f"Nothing was changed. Check the index or proxy that pip uses here; do not edit the hash."
        )
    offered = re.search(r"\(from versions: ([^)]+)\)", done.stdout)
    if offered and (known := sorted(filter(NUMBERED.fullmatch, offered[1].split(", ")), key=by_number)):
        raise PatchesError(
            f"{damaged}The registry has no ultralytics {version} for this Python ({sys.version.split()[0]}). It has "
            f"{len(known)} releases, the newest {known[-1]}. Nothing was changed.\nName one of them, or a folder that "
            f"holds the wheel: {FOLDER_VARIABLE}=FOLDER"
        )
    raise PatchesError(
        f"{damaged}{wheel} could not be downloaded. pip said:\n{said}Nothing was changed. Either try again with a "
        f"network (pip's own settings hold, a mirror too),\nor get that wheel on another machine and name its folder: "
        f"{FOLDER_VARIABLE}=FOLDER"
    )


def read_wheel(wheel: bytes, source: str = "Upstream's wheel") -> tuple[dict[str, bytes], list[str]]:
    """Read an upstream wheel.

    Args:
        wheel (bytes): The wheel.
        source (str): Where it is from, for messages.

    Returns:
        (tuple): The package's files by their path in the repository, and the wheel's `Requires-Dist` lines.

    Raises:
        PatchesError: If it is no wheel, or a damaged one.
    """
    files, requires = {}, []
    try:
        with zipfile.ZipFile(io.BytesIO(wheel)) as archive:
            for name in archive.namelist():
                if name.startswith("ultralytics/") and not name.endswith("/") and ".." not in name.split("/"):
                    files[name] = archive.read(name)
                elif name.endswith(".dist-info/METADATA"):
                    headers = archive.read(name).decode().split("\n\n")[0]
                    requires = re.findall(r"^Requires-Dist: (.+)$", headers, re.MULTILINE)
    except UNREADABLE as e:
        raise PatchesError(
            f"{source} is no wheel, or a damaged one ({e}). Nothing was changed. Get that wheel again from a source "
            f"you trust."
        ) from None
    return files, requires


def split_requires(requires: list[str]) -> tuple[list[str], dict[str, list[str]]]:
    """Sort `Requires-Dist` lines into plain requirements and extras.

    Args:
        requires (list[str]): Lines such as `onnx>=1.12.0; python_version < "3.13" and extra == "export"`.

    Returns:
        (tuple): The requirements without an extra, and those of each extra with its marker taken off.
    """
    plain, extras = [], {}
    for line in requires:
        match = re.fullmatch(r"(.+?) ?; (?:(.+) and )?extra == [\"']([^\"']+)[\"']", line)
        requirement, marker, extra = match.groups() if match else (line, None, None)
        if "extra ==" in requirement + (marker or ""):
            raise PatchesError(f"The wheel's requirement {line!r} has a form that split_requires() does not know.")
        if extra is None:
            plain.append(requirement)
        else:
            extras.setdefault(extra, []).append(f"{requirement}; {marker}" if marker else requirement)
    return plain, extras


def missing(requires: list[str]) -> list[str]:
    """Return the plain requirements of a wheel whose package is not installed here, whatever its version."""
    out = []
    for line in split_requires(requires)[0]:
        try:
            distribution(re.match(r"[\w.-]+", line)[0])
        except PackageNotFoundError:
            out.append(line)
    return out
