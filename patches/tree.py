# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Laying upstream's files around this fork's own, and knowing at any time which of them set-up wrote.

The manifest lists, for each laid file, every hash that set-up may have written. It is saved before the first file
changes and again after the last one, so a run that was killed leaves files that the next run recognises. A file with
any other hash is somebody's work and is never overwritten unasked.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from patches import EXTRACT, ROOT, WORK, PatchesError
from patches.series import Patch, apply, load_series
from patches.upstream import Pin, fetch, is_here, load_pin, read_wheel, replace, sha256

MANIFEST = WORK / "manifest.json"
OURS = ("ultralytics/nn/Addmodules/*", "ultralytics/VMamba*", "ultralytics/*/VMamba*")  # .gitignore says the same
HELD = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)  # what a system says of a lock that another holds
COMPILED = (".pyd", ".so", ".o", ".obj", ".dll", ".dylib")


def is_ours(path: str) -> bool:
    """Tell whether a path below `ultralytics/` belongs to this fork's own files."""
    return any(fnmatchcase(path, pattern) for pattern in OURS)


def own_files(compiled: bool = True) -> dict[str, bytes]:
    """Return this fork's files below `ultralytics/`, whether git knows them or not, but no byte code.

    Args:
        compiled (bool): With what a compiler left among them, such as the scan for CPUs.

    Returns:
        (dict[str, bytes]): Their contents by path.
    """
    unwanted = {".pyc"} if compiled else {".pyc", *COMPILED}
    found = {}
    for file in sorted((ROOT / "ultralytics").rglob("*")):
        path = file.relative_to(ROOT).as_posix()
        if is_ours(path) and file.suffix not in unwanted and file.is_file():
            found[path] = file.read_bytes()
    return found


@contextlib.contextmanager
def lock(patience: float = 300, name: str = "lock") -> Iterator[None]:
    """Hold the tree for one process; the system lets go of it when the process ends, however it ends.

    Args:
        patience (float): Seconds to wait for another process.
        name (str): File to lock; another than the tree's own serves what doesn't touch the tree.

    Raises:
        PatchesError: If another process still holds it after that.
    """
    WORK.mkdir(exist_ok=True)
    with open(WORK / name, "a+b") as handle:
        end = time.monotonic() + patience
        while not _try_lock(handle):
            if time.monotonic() > end:
                raise PatchesError(f"Another process has held {WORK / name} for {patience:.0f} s. Wait for it to end.")
            time.sleep(0.05)
        if name == "lock":
            shutil.rmtree(WORK / "tmp", ignore_errors=True)  # left by a run that was killed
        yield


def _try_lock(handle) -> bool:
    """Try to lock an open file, without waiting; where the file system has no locks, say so and go on."""
    try:
        if os.name == "nt":
            import msvcrt

            handle.seek(0)
            msvcrt.locking(handle.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as e:
        if e.errno in HELD:
            return False
        print(
            f"WARNING: {handle.name} cannot be locked ({e.strerror}), as on some network drives: see that nobody else "
            "installs or changes this checkout meanwhile.",
            file=sys.stderr,
            flush=True,
        )
    return True


def read(path: str) -> bytes | None:
    """Return the contents of a file of the tree, or None where there is none."""
    try:
        return (ROOT / path).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (IsADirectoryError, PermissionError):
        what = "is a folder where upstream has a file" if (ROOT / path).is_dir() else "cannot be read"
        raise PatchesError(f"{path} {what}. Nothing was changed. Move it away and try again.") from None


def digest(path: str) -> str | None:
    """Return the hash of a file of the tree, or None where there is none."""
    data = read(path)
    return None if data is None else sha256(data)


def read_manifest() -> dict:
    """Return what set-up recorded; an empty record if there is none, or a damaged one, as after a power failure."""
    empty = {"inputs": None, "complete": False, "requires": [], "files": {}}
    try:
        found = json.loads(MANIFEST.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return empty
    return found if _is_record(found) else empty


def _is_record(found: object) -> bool:
    """Return whether something read from the manifest has the form that `record` gives it."""

    def texts(value: object) -> bool:
        return isinstance(value, list) and all(isinstance(text, str) for text in value)

    return (
        isinstance(found, dict)
        and isinstance(found.get("inputs"), (str, type(None)))
        and isinstance(found.get("complete"), bool)
        and texts(found.get("requires"))
        and isinstance(found.get("files"), dict)
        and all(map(texts, found["files"].values()))
    )


def record(inputs: str, complete: bool, requires: list[str], files: dict[str, list[str]]) -> dict:
    """Save which hashes each laid file may have, and return what was saved."""
    manifest = {"inputs": inputs, "complete": complete, "requires": requires, "files": files}
    replace(MANIFEST, json.dumps(manifest, indent=0).encode())
    return manifest


def fingerprint(pin: Pin, patches: list[Patch]) -> str:
    """Return a hash of all that decides what is laid."""
    return sha256(b"\0".join([pin.sha256.encode(), *(part for p in patches for part in (p.name.encode(), p.mail))]))


def build(pin: Pin, patches: list[Patch]) -> tuple[dict[str, bytes], dict[str, bytes], list[str]]:
    """Make the tree to be laid, in memory.

    Returns:
        (tuple): The pristine files, the patched files, and the wheel's requirements.

    Raises:
        PatchesError: If upstream cannot be had, has a file of ours, or a patch does not apply.
    """
    base, requires = pristine(pin)
    return base, apply(base, patches), requires


def pristine(pin: Pin) -> tuple[dict[str, bytes], list[str]]:
    """Return the files of a release, and its wheel's requirements.

    Raises:
        PatchesError: If the release cannot be had, or has a file of ours.
    """
    base, requires = read_wheel(fetch(pin))
    refuse_clash(pin.version, base)
    return base, requires


def refuse_clash(label: str, base: dict[str, bytes]) -> None:
    """Refuse a release that has files under our names."""
    if clash := [path for path in base if is_ours(path)]:
        raise PatchesError(
            f"Upstream {label} ships files under names that this fork keeps for its own: {', '.join(clash)}.\n"
            f"Nothing was changed. Rename ours before moving the pin to this release."
        )


def setup(force: bool = False) -> tuple[dict, str]:
    """Bring the laid files to what the pin and the series say.

    Args:
        force (bool): Replace files that set-up did not write, after saving them.

    Returns:
        (tuple): The manifest, and a sentence about what was done; empty when there was nothing to do.

    Raises:
        PatchesError: If anything stands in the way. The tree is then as it was.
    """
    try:
        with lock():
            return _setup(force)
    except OSError as e:
        raise PatchesError(
            f"Set-up stopped: {e}.\n{_cure(e)}"
            f"Run it again once that is cured; it goes on where it stopped and nothing is lost."
        ) from e


def _cure(e: OSError) -> str:
    """Return what to do about a file that cannot be written, as a sentence, or an empty text."""
    if e.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
        return ""
    if os.name == "nt":
        return "Close the programs that have this file open, editors and Python programs among them.\n"
    return "Installation writes into the checkout: get the right to, or copy the checkout to a folder of yours.\n"


def compare(
    base: dict[str, bytes], target: dict[str, bytes], laid: dict[str, list[str]]
) -> tuple[list[str], list[str]]:
    """Compare the tree with what is to be laid.

    Args:
        base (dict[str, bytes]): The pristine files.
        target (dict[str, bytes]): The patched files.
        laid (dict[str, list[str]]): The hashes that each laid file may have.

    Returns:
        (tuple): The paths to be set or removed, and those among them that hold what set-up did not write.
    """
    changes, foreign = [], []
    for path in sorted(target.keys() | laid.keys()):
        now = digest(path)
        if now != (sha256(target[path]) if path in target else None):
            changes.append(path)
            untouched = path in base and now == sha256(base[path])
            if now is not None and now not in laid.get(path, []) and not untouched:
                foreign.append(path)
    return changes, foreign


def _setup(force: bool) -> tuple[dict, str]:
    pin, patches, manifest = load_pin(), load_series(), read_manifest()
    inputs, laid = fingerprint(pin, patches), manifest["files"]
    current = manifest["complete"] and manifest["inputs"] == inputs
    if current and all([digest(path)] == known for path, known in laid.items()):
        return manifest, ""

    base, target, requires = build(pin, patches)
    wanted = {path: sha256(data) for path, data in target.items()}
    changes, foreign = compare(base, target, laid)
    saved = _save(foreign) if foreign and force else None
    if foreign and not force:
        raise PatchesError(_refusal(foreign, laid, same=manifest["inputs"] == inputs))

    known = {path: sorted({*laid.get(path, []), *([wanted[path]] if path in wanted else [])}) for path in wanted | laid}
    record(inputs, False, requires, known)
    for path in sorted(changes, key=lambda path: path in target):  # removals first: a module may become a package
        if path in target:
            replace(ROOT / path, target[path])
        else:
            _remove(path)
    manifest = record(inputs, True, requires, {path: [wanted[path]] for path in wanted})
    did = f"Upstream ultralytics {pin.version} laid with {len(patches)} patches: {len(changes)} files set or removed."
    return manifest, did + (f"\nWhat was replaced is kept in {saved}" if saved else "")


def obstacle(pin: Pin, patches: list[Patch], fetched: bool = True) -> str:
    """Return why set-up would stop, or an empty text where it would not.

    Args:
        pin (Pin): The release.
        patches (list[Patch]): The series.
        fetched (bool): Fetch the release where it is not here; else nothing is said of what needs it.
    """
    if not fetched and not is_here(pin):
        return ""
    manifest = read_manifest()
    try:
        base, target, _ = build(pin, patches)
    except PatchesError as e:
        return str(e)
    foreign = compare(base, target, manifest["files"])[1]
    same = manifest["inputs"] == fingerprint(pin, patches)
    return _refusal(foreign, manifest["files"], same) if foreign else ""


def _refusal(foreign: list[str], laid: dict, same: bool) -> str:
    """Say which files stand in the way and what to do about them."""
    edited, strange = [p for p in foreign if p in laid], [p for p in foreign if p not in laid]
    keep = f"To keep the edits as a patch:  {EXTRACT}"
    if not same:
        keep = (
            "The pin or the series changed since these files were laid. To keep the edits as a patch, go back to the\n"
            f"patches/ that they were made on (git stash, git checkout), run\n  {EXTRACT}\nand return."
        )
    text = "Nothing was changed.\n"
    if edited:
        text += f"Upstream files edited in place, which set-up does not overwrite:\n{_listing(edited)}{keep}\n"
    if strange:
        text += f"Files that set-up did not lay stand where upstream has files:\n{_listing(strange)}Move them away.\n"
    return text + f"To give them up:  python -m patches setup --force  (saves them under {WORK.name}/saved first)"


def _listing(paths: list[str], most: int = 20) -> str:
    more = f"  ... and {len(paths) - most} more\n" if len(paths) > most else ""
    return "".join(f"  {path}\n" for path in paths[:most]) + more


def _save(paths: list[str]) -> Path:
    """Copy files to a new folder under WORK/saved."""
    stem = WORK / "saved" / time.strftime("%Y%m%d-%H%M%S")
    folder = next(f for f in (stem, *(stem.with_name(f"{stem.name}-{n}") for n in range(2, 999))) if not f.exists())
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / path, folder / path)
    return folder


def _remove(path: str) -> None:
    """Delete a laid file with its byte code, and the folders that it leaves empty."""
    file = ROOT / path
    file.unlink(missing_ok=True)
    for cached in (file.parent / "__pycache__").glob(f"{file.stem}.*.pyc"):
        cached.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # a folder that still holds something stays
        for folder in (file.parent / "__pycache__", *file.parents):
            if folder == ROOT / "ultralytics":
                break
            if folder.exists():
                folder.rmdir()


def survey() -> dict[str, list[str]]:
    """Return the laid files that are edited or missing, by comparison with the manifest alone."""
    out = {"edited": [], "missing": []}
    for path, known in read_manifest()["files"].items():
        now = digest(path)
        if now not in known:
            out["missing" if now is None else "edited"].append(path)
    return out
