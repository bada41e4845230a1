# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""The blocks of the pages: how they are found, what a page says of them, how they are made small, and how they run.

An indented block and a fence of `bash` hold commands, a fence of `python` a script; fences of `text` and `yaml` hold
neither. What a page says of a block stands in comments above it, which its readers do not see:

    <!-- pages: WORD -->                  for the whole block
    <!-- pages: WORD: START, START -->    for its commands that begin with one of these words

The words are those of `REASONS` and `WAYS`. CONTRIBUTING.md says the same to authors.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.data import make_data

ROOT = Path(__file__).resolve().parents[1]
CHINESE = {  # their commands are those of English pages: tests/test_chinese.py
    p.relative_to(ROOT).as_posix(): p for p in [ROOT / "README.zh-CN.md", *sorted(ROOT.glob("docs/zh/*.md"))]
}
PAGES = {
    name: p
    for p in sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("*/README.md")])
    if (name := p.relative_to(ROOT).as_posix()) not in CHINESE
}

# What a page may say ------------------------------------------------------------------------------------------------
REASONS = {  # why a command does not run in a test
    "network": "it downloads",
    "gpu": "it needs a CUDA device",
    "release": "it needs a state that only a new release or a conflict brings; tests of the upkeep tool have their own",
    "hours": "it measures or trains for hours; tests/test_benchmarks.py runs the scripts on small cases",
    "tests": "it runs these tests",
    "example": "tests/test_examples.py runs it",
    "form": "it is a form to fill in, not a command",
}
WAYS = {  # how a block runs
    "long": "with `pytest -m slow` alone",
    "checkout": "in a copy of the checkout, where other blocks run in a folder of the reader's own",
    "arguments": "a script with these arguments: `<!-- pages: arguments: best.onnx picture.jpg -->`",
}

# How commands are made small: the one place. Each expression is replaced in every block, in this order. --------------
SMALL = (
    (r"(epochs=\d+(?: seeds=\d+| batch=\d+)?),? imgsz=\d+", r"\1"),
    (r"\bimgsz=\d+", "imgsz=64"),
    (r"\bepochs=\d+(?=[^\n]*\))", "epochs=1, imgsz=64, plots=False"),
    (r"\bepochs=\d+(?!,)", "epochs=1 imgsz=64 plots=False"),
    (r"^(vmamba compare .*) plots=False", r"\1"),  # it draws its own
    (r"data=DATA\.yaml", "data=DATA.yaml epochs=1 imgsz=64 plots=False"),
    (r'"epochs": \d+', '"epochs": 1, "imgsz": 64'),
    (r"data=datasets/digits.yaml", "data=datasets/digits.yaml epochs=1"),
    # the tour resumes a run that was stopped: the checkpoint after its first epoch stands for that of a stop
    (r"epochs=1 imgsz=64 plots=False name=mine", "epochs=2 imgsz=64 name=mine save_period=1"),
    (r"(yolo detect train resume model=(\S+)/last\.pt)", r"cp \2/epoch0.pt \2/last.pt && \1"),
    (r"\bbatch=\d+", "batch=4"),
    (r"\bcount=\d+", "count=1"),
    (r"(vmamba visualize erf)(?!.* count=)", r"\1 count=1"),
    (r"\bfraction=0.05\b", "fraction=0.5"),
    (r"\bseeds=3\b", "seeds=1"),
    (r"\bseeds=\(0, 1, 2\)", "seeds=(0,)"),
    (r"\bdevice=0\b", "device=cpu"),
    (r"(VMamba-yolo(?:v?\d+)?)s\.yaml", r"\1n.yaml"),
    (r"\.show\(\)", ".plot()"),  # no window
    (r"DATASETS/", ""),
    (r"C:/data/mydata\b", "mydata"),
    # an edit for the upkeep tool to find
    (r"^(python -m patches extract utils-plotting-font)", r"echo '# ours' >> ultralytics/utils/plotting.py && \1"),
)


@dataclass(frozen=True)
class Block:
    """One block of a page.

    Attributes:
        page (str): The page's path in the checkout.
        line (int): Number of its first line.
        language (str): "bash", "python", another word after the fence, or nothing where there is none.
        text (str): What it holds.
        notes (tuple[tuple[str, tuple[str, ...]], ...]): Words of the page on it, and the commands that each is about.
    """

    page: str
    line: int
    language: str
    text: str
    notes: tuple[tuple[str, tuple[str, ...]], ...] = ()

    def __str__(self) -> str:
        """Return where it is."""
        return f"{self.page}:{self.line}"

    def says(self, word: str) -> tuple[str, ...] | None:
        """Return what a word of the page is about, or None where the page does not say it."""
        return next((about for said, about in self.notes if said == word), None)

    def commands(self) -> list[str]:
        """Return the commands of a block of them, each with its continuation lines; a script is one."""
        if self.language == "python":
            return [f"python {self.script} {' '.join(self.says('arguments') or ())}".strip()]
        if self.language != "bash":
            return []
        joined = re.sub(r"\\\n\s*", "", self.text)
        return [line for line in joined.split("\n") if line.strip() and not line.lstrip().startswith("#")]

    @property
    def script(self) -> str:
        """Name of the file in which a script runs."""
        return f"{self.page.replace('/', '-').removesuffix('.md')}-{self.line}.py"

    def reason(self, command: str) -> str:
        """Return why a command does not run, or nothing where it does."""
        for word, about in self.notes:
            if word in REASONS and (not about or command.startswith(about)):
                return word
        return ""

    def is_long(self, command: str) -> bool:
        """Return whether a command runs only on demand."""
        about = self.says("long")
        return about is not None and (not about or command.startswith(about))

    def runs(self, long: bool = False) -> list[str]:
        """Return its commands that run; with the long ones if that is asked."""
        return [c for c in self.commands() if not self.reason(c) and (long or not self.is_long(c))]


def small(text: str) -> str:
    """Return commands with their settings made small."""
    for old, new in SMALL:
        text = re.sub(old, new, text, flags=re.MULTILINE)
    return text


# Reading ------------------------------------------------------------------------------------------------------------


@cache
def blocks(page: str) -> tuple[Block, ...]:
    """Return the blocks of a page, in order."""
    return tuple(find_blocks(page, {**PAGES, **CHINESE}[page].read_text(encoding="utf-8")))


def find_blocks(page: str, text: str) -> list[Block]:
    r"""Return the blocks of a page's text.

    Examples:
        >>> [b] = find_blocks("a.md", "Do\\n\\n<!-- pages: gpu: x -->\\n\\n    x 1 \\\\\\n      2\\n    y\\n")
        >>> b.line, b.commands(), b.runs()
        (5, ['x 1 2', 'y'], ['y'])
    """
    lines, found, i = text.split("\n"), [], 0
    while i < len(lines):
        fence = re.match(r"\s*(```+|~~~+)\s*(\w*)", lines[i])
        start = i
        if fence:
            i += 1
            while i < len(lines) and not lines[i].strip().startswith(fence[1]):
                i += 1
            body, language = lines[start + 1 : i], fence[2]
        elif lines[i].startswith("    ") and lines[i].strip() and not "".join(lines[i - 1 : i]).strip():
            while i + 1 < len(lines) and (lines[i + 1].startswith("    ") or not lines[i + 1].strip()):
                i += 1
            body, language = lines[start : i + 1], "bash"
        else:
            i += 1
            continue
        content = textwrap.dedent("\n".join(body)).strip("\n")
        found.append(Block(page, start + 1, language, content, tuple(notes(lines[:start]))))
        i += 1
    return found


def notes(above: list[str]) -> list[tuple[str, tuple[str, ...]]]:
    """Return what the comments right above a block say."""
    found = []
    while above and (not above[-1].strip() or above[-1].strip().startswith("<!-- pages:")):
        if said := re.fullmatch(r"<!-- pages: (\w+)(?:: (.+?))? -->", above[-1].strip()):
            about = said[2] or ""
            found.append((said[1], tuple(about.split() if said[1] == "arguments" else filter(None, about.split(", ")))))
        elif above[-1].strip():
            found.append((above[-1].strip(), ()))  # for the test to complain of
        above = above[:-1]
    return found


# What a page's reader has -------------------------------------------------------------------------------------------


def drawn_data(task: str, shared: Path) -> Path:
    """Return the folder of a task's drawn data, made on first use."""
    folder = shared / task
    if not folder.exists():
        make_data(folder, task)
    return folder


def data_file(task: str):
    """Return a maker of a YAML of drawn data."""

    def make(path: Path, shared: Path) -> None:
        shutil.copy(drawn_data(task, shared) / "data.yaml", path)

    return make


def pictures(path: Path, shared: Path) -> None:
    """Make a folder of pictures."""
    shutil.copytree(drawn_data("detect", shared) / "images/val", path)


def picture(path: Path, shared: Path) -> None:
    """Make a picture."""
    from PIL import Image

    Image.open(drawn_data("detect", shared) / "images/val/0.png").save(path)


def data_folder(path: Path, shared: Path) -> None:
    """Make a folder of classes."""
    make_data(path, "classify")


def drawn(path: Path, shared: Path) -> None:
    """Make a folder of images and labels."""
    make_data(path, "detect")


def weights(model: str):
    """Return a maker of a checkpoint that has learned nothing."""

    def make(path: Path, shared: Path) -> None:
        file = shared / f"{model}.pt"
        if not file.exists():
            from ultralytics import YOLO

            YOLO(f"{model}.yaml").save(file)
        shutil.copy(file, path)

    return make


GIVEN = {  # made in the folder where a block runs, if the block names it and no earlier one has made it
    "their.yaml": data_file("detect"),
    "DATA.yaml": data_file("detect"),
    "small-objects.yaml": data_file("detect"),
    "large-images.yaml": data_file("detect"),
    "bccd/data.yaml": data_file("detect"),
    "polygons.yaml": data_file("segment"),
    "keypoints.yaml": data_file("pose"),
    "corners.yaml": data_file("obb"),
    "pixels.yaml": data_file("semantic"),
    "distances.yaml": data_file("depth"),
    "folder": data_folder,
    "mydata": drawn,
    "bccd/images/val": pictures,
    "photos": pictures,
    "pictures": pictures,
    "photo.jpg": picture,
    "picture.jpg": picture,
    "vmamba-digits-1/images/val/0004.png": picture,
    "yolo11n.pt": weights("yolo11n"),  # what Ultralytics would download
    "yolov8n.pt": weights("yolov8n"),
    "best.pt": weights("VMamba-yolon"),
    "mine.pt": weights("VMamba-yolon"),
    "stock.pt": weights("yolov8n"),
    "runs/detect/train/weights/best.pt": weights("VMamba-yolov8n"),
    "bccd-yolov8n/weights/best.pt": weights("yolov8n"),
    "bccd-yolov8n-1/weights/best.pt": weights("yolov8n"),
    "bccd-yolo11n-1/weights/best.pt": weights("yolo11n"),
    "bccd-VMamba-yolov8n/weights/best.pt": weights("VMamba-yolov8n"),
    "bccd-VMamba-yolon-1/weights/best.pt": weights("VMamba-yolon"),
}


# Running ------------------------------------------------------------------------------------------------------------


class Reader:
    """Somebody who has installed this fork and follows a page, in an empty folder of their own."""

    def __init__(self, folder: Path, shared: Path, runs_dir: bool = True) -> None:
        """Make the folder, the commands that an installation brings, and settings as the tour of README leaves them.

        Args:
            folder (Path): An empty folder.
            shared (Path): Where data and weights are kept that several pages need.
            runs_dir (bool): Whether the reader has followed the tour's first line, about where results go.
        """
        self.folder, self.shared, self.top = folder / "mine", shared, folder
        self.folder.mkdir()
        programs = {"yolo": "ultralytics.cfg.VMamba_door:main", "vmamba": "ultralytics.nn.Addmodules.tools.verbs:main"}
        (folder / "bin").mkdir()
        for name, call in programs.items():
            module, function = call.split(":")
            self._program(name, f"-c 'import sys; from {module} import {function}; sys.exit({function}())'")
        self._program("python", "")
        self._program("ruff", "-m ruff")
        (folder / "lib").mkdir()  # this tree's package and nothing beside it, as an installation gives
        (folder / "lib/ultralytics").symlink_to(ROOT / "ultralytics")
        self.env = {
            **{k: v for k, v in os.environ.items() if not k.startswith("PYTEST")},  # upstream saves elsewhere in tests
            "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(folder / "lib"),
            "YOLO_CONFIG_DIR": str(folder / "config"),
            "YOLO_OFFLINE": "true",
            "YOLO_AUTOINSTALL": "false",
            "MPLBACKEND": "Agg",
        }
        (folder / "config").mkdir()
        settings = ["datasets_dir=" + str(folder / "datasets"), *(["runs_dir=runs"] if runs_dir else [])]
        done = self._bash(f"yolo settings sync=false {' '.join(settings)}", self.folder, 120)
        assert done.returncode == 0, done.stdout

    def _program(self, name: str, rest: str) -> None:
        file = self.top / "bin" / name
        file.write_text(f'#!/bin/sh\nexec "{sys.executable}" {rest} "$@"\n', encoding="utf-8")
        file.chmod(0o755)

    def _bash(self, script: str, folder: Path, seconds: float) -> subprocess.CompletedProcess:
        return subprocess.run(
            ["bash", "-c", script],
            cwd=folder,
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
            timeout=seconds,
            check=False,
        )

    def checkout(self) -> Path:
        """Return a copy of the checkout, a repository as a clone is, made on first use."""
        copy = self.top / "checkout"
        if not copy.exists():
            left = shutil.ignore_patterns(".git", "runs", "__pycache__", ".venv*", "venv", "*.egg-info", "*cache")
            shutil.copytree(ROOT, copy, ignore=left, symlinks=True)
            shutil.copytree(ROOT / ".upstream/cache", copy / ".upstream/cache", dirs_exist_ok=True)
            identity = "-c user.name=U -c user.email=u@example.org"
            done = self._bash(f"git init -q && git add -A && git {identity} commit -qm copy", copy, 120)
            assert done.returncode == 0, done.stdout
            for key, value in (("name", "U"), ("email", "u@example.org")):
                self._bash(f"git config user.{key} {value}", copy, 60)
        return copy

    def follow(self, block: Block, long: bool = False) -> int:
        """Run a block's commands and return how many ran; a failure is an assertion error with the output."""
        folder = self.folder if block.says("checkout") is None else self.checkout()
        text = small(block.text)
        if block.language == "yaml" and (name := re.match(r"# ([\w-]+\.yaml)$", text, re.MULTILINE)):
            self.give(folder, text)
            (folder / name[1]).write_text(text, encoding="utf-8")
        commands = [small(command) for command in block.runs(long)]
        if not commands:
            return 0
        self.give(folder, text if block.language == "python" else "\n".join(commands))
        self.give(folder, "\n".join(commands))
        if block.language == "python":
            (folder / block.script).write_text(text, encoding="utf-8")
        shown = "\n".join(f"printf '%s\\n' {quoted(f'$ {c}')}\n{c}" for c in commands)
        done = self._bash(f"set -e\n{shown}", folder, 3600 if long else 600)
        said = done.stdout
        assert done.returncode == 0, f"{block} fails:\n{said[-6000:]}"
        assert "Traceback (most recent call last)" not in said, f"{block} prints a traceback:\n{said[-6000:]}"
        return len(commands)

    def give(self, folder: Path, text: str) -> None:
        """Make what a text names and its reader has."""
        for name, make in GIVEN.items():
            path = folder / name
            if re.search(rf"(?<![\w./-]){re.escape(name)}(?![\w.-])", text) and not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                make(path, self.shared)


def quoted(text: str) -> str:
    """Return a text as one word for a shell."""
    return "'" + text.replace("'", "'\\''") + "'"
