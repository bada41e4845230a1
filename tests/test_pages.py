# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Every command of every page runs, in the page's order, from a folder that is not the checkout, or says why not."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import pytest

from tests.pages import PAGES, REASONS, WAYS, Reader, blocks, find_blocks, small

QUICK = [page for page in PAGES if any(b.runs() for b in blocks(page))]
LONG = [page for page in PAGES if any(b.runs() != b.runs(long=True) for b in blocks(page))]
needs_bash = pytest.mark.skipif(shutil.which("bash") is None, reason="the pages' commands are for a Unix shell")


def complaints(page_blocks: list) -> list[str]:
    """Return what is wrong with a page's blocks: neither commands nor declared as something else, or a wrong word."""
    found = []
    for block in page_blocks:
        if block.language not in ("bash", "python", "text", "yaml"):
            found.append(f"{block}: a fence of '{block.language}': write bash, python, text or yaml")
        for word, about in block.notes:
            if word not in {**REASONS, **WAYS}:
                found.append(f"{block}: '{word}' is none of {[*REASONS, *WAYS]}")
            elif word in REASONS and not block.commands():
                found.append(f"{block}: '{word}', and there is no command")
            elif word in REASONS or word == "long":
                unused = [start for start in about if not any(c.startswith(start) for c in block.commands())]
                found += [f"{block}: no command begins with '{start}'" for start in unused]
            elif word == "arguments" and block.language != "python":
                found.append(f"{block}: arguments are for scripts")
    return found


def test_every_block_runs_or_says_why_not(capsys: pytest.CaptureFixture) -> None:
    every = [block for page in PAGES for block in blocks(page)]
    assert complaints(every) == []
    counts = Counter()
    for block in every:
        for command in block.commands():
            counts[block.reason(command) or ("long" if block.is_long(command) else "run")] += 1
    with capsys.disabled():
        left = ", ".join(f"{word} {counts[word]}" for word in REASONS if counts[word])
        print(f"\npages: {counts['run']} commands run, {counts['long']} more with -m slow; not run: {left}")
    assert counts["run"] > 40


def test_a_block_with_neither_is_found() -> None:
    page = "Look:\n\n```\nx\n```\n\n<!-- pages: sometimes -->\n\n    yolo\n\n<!-- pages: gpu: python -->\n\n    yolo\n"
    said = complaints(find_blocks("a.md", page))
    assert [line.split(":")[1] for line in said] == ["3", "9", "13"], said
    assert "write bash" in said[0]
    assert "'sometimes'" in said[1]
    assert "begins with 'python'" in said[2]


def test_settings_are_made_small() -> None:
    assert small("yolo train epochs=300 imgsz=640 device=0") == "yolo train epochs=1 imgsz=64 plots=False device=cpu"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder for what several pages need."""
    return tmp_path_factory.mktemp("shared")


def follow(page: str, folder: Path, shared: Path, long: bool) -> None:
    """Run a page from its first block to its last."""
    reader = Reader(folder, shared, runs_dir=page != "README.md")
    assert sum(reader.follow(block, long) for block in blocks(page))


@needs_bash
@pytest.mark.parametrize("page", QUICK)
def test_commands_run(page: str, tmp_path: Path, shared: Path) -> None:
    follow(page, tmp_path, shared, long=False)


@needs_bash
@pytest.mark.slow
@pytest.mark.timeout(7200)  # several trainings a page
@pytest.mark.parametrize("page", LONG)
def test_long_commands_run(page: str, tmp_path: Path, shared: Path) -> None:
    follow(page, tmp_path, shared, long=True)


ROWS = [block for page in PAGES for block in blocks(page) if block.language == "yaml" and block.text.startswith("- [")]


@pytest.mark.parametrize("block", ROWS, ids=str)
def test_rows_shown_in_pages_build(block) -> None:
    import yaml

    from ultralytics.nn.tasks import DetectionModel

    for row in yaml.safe_load(block.text):
        width = row[3][0] if row[3] and isinstance(row[3][0], int) else 32
        head = [[[1], 1, "Detect", ["nc"]]]
        DetectionModel({"nc": 2, "backbone": [[-1, 1, "Conv", [width, 3, 2]], row], "head": head}, verbose=False)
