# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""For the tests of the upkeep tool: releases of a toy upstream, a clone of its repository, and forks of it.

A fork lies in a folder of its own, with a copy of the tool, which runs there as users run it: as a process.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from patches import ROOT

UPSTREAM = {
    "ultralytics/__init__.py": "__version__ = '1.0'\n",
    "ultralytics/nn/tasks.py": "".join(f"def task_{i}():\n    return {i}\n\n\n" for i in range(40)),
    "ultralytics/cfg/default.yaml": "epochs: 100\n",
    "ultralytics/assets/no-newline.txt": "first\nlast",
    "ultralytics/gone/old.py": "x = 1\n",
    **{f"ultralytics/data/part_{i}.py": f"part = {i}\n" * 200 for i in range(8)},
}
TASKS = "ultralytics/nn/tasks.py"
HOOK = (TASKS, "task_10", "<first>", "return 10", "<last>")
SMOKE = """
import sys
from pathlib import Path
import ultralytics
from ultralytics.nn import tasks
assert ultralytics.__version__ == sys.argv[1]
assert Path(ultralytics.__file__).is_relative_to(sys.argv[2])
pristine = len(sys.argv) > 3
assert (Path(sys.argv[2]) / "ultralytics/nn/Addmodules/__init__.py").exists() != pristine
if tasks.task_0() == -1 and not pristine:
    sys.exit("task 0 is broken")
if tasks.task_0() == -2:
    sys.exit("a package is | missing")
"""
FAR = "# lines far from any patch\n" * 3 + UPSTREAM[TASKS]
CONFLICT = UPSTREAM[TASKS].replace("return 10\n", "return 5 + 5\n")


def files(version: str, tasks: str = FAR, **more: str) -> dict:
    """Return the files of an upstream release."""
    out = {**UPSTREAM, "ultralytics/__init__.py": f"__version__ = '{version}'\n", TASKS: tasks, **more}
    return {path: text for path, text in out.items() if text is not None}


def wheel(folder: Path, version: str, files: dict) -> str:
    """Write an upstream wheel and return its hash."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"ultralytics-{version}-py3-none-any.whl"
    info = f"ultralytics-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
        archive.writestr(
            f"{info}/METADATA",
            f"Metadata-Version: 2.1\nName: ultralytics\nVersion: {version}\nRequires-Dist: numpy>=1.23\n\n",
        )
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Fork:
    """A fork of the toy upstream."""

    def __init__(self, root: Path):
        """Copy the tool and pin release 1.0, with no patches yet."""
        self.root, self.wheels = root / "fork", root / "wheels"
        self.cwd = self.root
        shutil.copytree(
            ROOT / "patches", self.root / "patches", ignore=shutil.ignore_patterns("*.patch", "__pycache__")
        )
        self.write("patches/series", "")
        self.write("patches/hooks.py", f"ANY, FIRST, LAST = None, '<first>', '<last>'\nHOOKS = ({HOOK!r},)\n")
        # No bytecode: hooks.py changes within a second here, and folders are compared file by file.
        self.env = {**os.environ, "VMAMBA_UPSTREAM_DIR": str(self.wheels), "PYTHONDONTWRITEBYTECODE": "1"}
        self.pin("1.0", UPSTREAM)
        self.write("ultralytics/nn/Addmodules/__init__.py", "ours = True\n")

    def at(self, root: Path) -> Fork:
        """Return the copy of this fork that lies in another folder, beside the same releases."""
        other = copy.copy(self)
        other.root = other.cwd = root
        return other

    @property
    def repository(self) -> Path:
        """The repository of a rebase under way."""
        return self.root / ".upstream/rebase/repository"

    def pin(self, version: str, files: dict) -> None:
        """Release an upstream version and move the pin to it."""
        pin = {"version": version, "local": "vmamba.1", "sha256": wheel(self.wheels, version, files)}
        self.write("patches/upstream.json", json.dumps(pin))

    def write(self, path: str, text: str) -> None:
        """Write a file of the tree."""
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_bytes(text.encode())

    def read(self, path: str) -> str:
        """Read a file of the tree."""
        return (self.root / path).read_bytes().decode()

    def edit(self, path: str, old: str, new: str) -> None:
        """Replace text that stands once in a file."""
        assert self.read(path).count(old) == 1
        self.write(path, self.read(path).replace(old, new))

    def start(self, *args: str) -> subprocess.Popen:
        """Start the tool."""
        command = [sys.executable, "-m", "patches", *args]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, cwd=self.cwd, env=self.env, stdout=pipe, stderr=subprocess.STDOUT, text=True)

    def run(self, *args: str, code: int = 0) -> str:
        """Run the tool to its end and return what it prints."""
        process = self.start(*args)
        said = process.communicate(timeout=300)[0]
        assert process.returncode == code, said
        assert "Traceback" not in said, said
        return said

    def tree(self) -> dict[str, bytes]:
        """Return every file below `ultralytics/`."""
        files = (path for path in (self.root / "ultralytics").rglob("*") if path.is_file())
        return {path.relative_to(self.root).as_posix(): path.read_bytes() for path in files}

    def patch(self, name: str, old: str, new: str, path: str = TASKS) -> None:
        """Make a patch as users do."""
        self.edit(path, old, new)
        self.run("extract", name, "-m", f"why {name}")

    def laid(self, files: dict, **changed: str) -> bool:
        """Tell whether exactly these upstream files, and ours, are in the tree."""
        want = {path: text.encode() for path, text in {**files, **changed}.items()}
        return self.tree() == {**want, "ultralytics/nn/Addmodules/__init__.py": b"ours = True\n"}


def patches_of(fork: Fork) -> dict[str, bytes]:
    """Return the bytes of the series and its patches."""
    return {path.name: path.read_bytes() for path in (fork.root / "patches").iterdir() if path.suffix != ".py"}


def state(fork: Fork) -> tuple:
    """Return all that a rebase may not change before it is through."""
    patches = {path.name: path.read_bytes() for path in (fork.root / "patches").iterdir() if path.is_file()}
    return patches, fork.tree(), fork.read(".upstream/manifest.json")


def git(folder: Path, *args: str) -> str:
    """Run git as a user does."""
    identity = [word for key in ("user.name=U", "user.email=u@example.org") for word in ("-c", key)]
    done = subprocess.run(["git", *identity, *args], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def patched_fork(root: Path) -> Fork:
    """Return a fork with two patches to one file, set up on release 1.0."""
    fork = Fork(root)
    fork.run("setup")
    fork.patch("first", "return 10\n", "return 10  # first\n")
    fork.patch("second", "return 30\n", "return 30  # second\n")
    return fork


def movable_fork(root: Path) -> Fork:
    """Return a patched fork with a smoke test of its own, and a release 1.1 that moves the lines of its patches."""
    fork = patched_fork(root)
    fork.write("patches/smoke.py", SMOKE)
    wheel(fork.wheels, "1.1", files("1.1"))
    return fork


def clone_of_upstream(folder: Path) -> Path:
    """Make a clone as upstream's repository is laid out, with tags of releases and a main beyond them."""
    folder.mkdir()
    git(folder, "init", "-q", "-b", "main")
    for version in ("1.0", "1.1", None):
        content = {
            "README.md": "theirs\n",
            "tests/test_x.py": "x = 1\n",
            **(UPSTREAM if version == "1.0" else files("1.1")),
        }
        for path, text in content.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(text.encode())
        if version is None:
            (folder / TASKS).write_text(FAR + "# beyond 1.1\n", encoding="utf-8")
        git(folder, "add", "-A")
        git(folder, "commit", "-qm", f"release {version}")
        if version:
            git(folder, "tag", f"v{version}")
    return folder
