# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""The Chinese pages: each names its English pages, and their commands are commands that run on English pages."""

from __future__ import annotations

import re
import subprocess
import warnings

import pytest

from tests.pages import CHINESE, PAGES, ROOT, blocks

SOURCE = re.compile(r"\[([\w./-]+)\]\([\w./-]+\) 提交 `([0-9a-f]{10})`")


def sources(page: str) -> list[tuple[str, str]]:
    """Return the English pages that a page names, each with the commit that was translated."""
    lines = CHINESE[page].read_text(encoding="utf-8").split("\n")
    return [found for line in lines if line.startswith("英文原文：") for found in SOURCE.findall(line)]


def git(*words: str) -> str:
    """Return what git says of this repository; a test is skipped where there is no whole history."""
    done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, encoding="utf-8", check=False)
    if done.returncode:
        pytest.skip(f"git {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout.strip()


def bare(text: str, language: str) -> list[str]:
    """Return the lines of a block without comments, blank lines and continuations."""
    lines = re.sub(r"\\\n\s*", "", text).split("\n")
    cut = [re.sub(r"\s+#\s.*", "", line) if language in ("bash", "python", "yaml") else line for line in lines]
    return [line.rstrip() for line in cut if line.strip() and not line.lstrip().startswith("# ")]


ENGLISH = {line for page in PAGES for block in blocks(page) for line in bare(block.text, block.language)}


@pytest.mark.parametrize("page", CHINESE)
def test_a_page_names_its_english_pages(page: str) -> None:
    named = [english for english, _ in sources(page)]
    assert named, f"{page} has no line '英文原文：[PAGE](LINK) 提交 `COMMIT`'"
    assert set(named) <= PAGES.keys()


@pytest.mark.parametrize("page", CHINESE)
def test_commands_are_those_of_english_pages(page: str) -> None:
    """English pages are run by tests/test_pages.py. Fences of text show files and are translated."""
    for block in blocks(page):
        if block.language in ("bash", "python"):
            unknown = [line for line in bare(block.text, block.language) if line not in ENGLISH]
            assert not unknown, f"{block}: no English page has {unknown}"


@pytest.mark.parametrize("page", CHINESE)
def test_rows_of_model_files_are_those_of_english_pages(page: str) -> None:
    """Those are built by tests/test_own_models.py."""
    rows = [line for b in blocks(page) if b.language == "yaml" for line in bare(b.text, "yaml") if "- [" in line]
    assert [row for row in rows if row not in ENGLISH] == []


def test_a_command_of_ones_own_is_found() -> None:
    assert "pip install -e . && python train.py" in ENGLISH
    assert "vmamba graft model=yolo99n.pt" not in ENGLISH


def test_which_pages_are_behind() -> None:
    """A page whose English page has changed since is told of, not refused: its author may read no Chinese."""
    if git("rev-parse", "--is-shallow-repository") == "true":
        pytest.skip("a clone without history")
    for page in CHINESE:
        for english, commit in sources(page):
            git("merge-base", "--is-ancestor", commit, "HEAD")
            if since := git("log", "--format=%h", f"{commit}..HEAD", "--", english).split():
                warnings.warn(f"{page} is behind: {english} changed in {', '.join(since)}", stacklevel=1)
