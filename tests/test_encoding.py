# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Text files are read and written as UTF-8 by name: on a Chinese Windows the default is another encoding."""

from __future__ import annotations

import ast
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BINARY = {"Image", "zipfile", "tarfile", "os", "webbrowser", "fitz"}  # whose open() is none of text files


def ours() -> list[Path]:
    """Return every Python file of this project, committed or not."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8", check=False)
    return [file for name in run.stdout.split("\n") if name and (file := ROOT / name).is_file()]


def unnamed(code: str) -> list[int]:
    """Return the lines that open a text file, or a path's text, without saying its encoding."""
    found = []
    for node in ast.walk(ast.parse(code)):
        if not isinstance(node, ast.Call) or any(k.arg in ("encoding", None) for k in node.keywords):
            continue
        f = node.func
        if isinstance(f, ast.Attribute) and f.attr in ("read_text", "write_text"):
            place = 0 if f.attr == "read_text" else 1
            if len(node.args) <= place:  # else it is the second argument
                found.append(node.lineno)
            continue
        if isinstance(f, ast.Name) and f.id == "open":
            at = 1
        elif isinstance(f, ast.Attribute) and f.attr == "open" and getattr(f.value, "id", "") not in BINARY:
            at = 0
        else:
            continue
        mode = next((k.value for k in node.keywords if k.arg == "mode"), None)
        mode = mode or (node.args[at] if len(node.args) > at else ast.Constant("r"))
        if not (isinstance(mode, ast.Constant) and "b" in str(mode.value)):
            found.append(node.lineno)
    return found


def undecoded(code: str) -> list[int]:
    """Return the lines that read text from a program and say neither its encoding nor what becomes of odd letters.

    git writes paths as UTF-8; read in a Chinese code page, they are other paths, or an exception.
    """
    calls = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]
    named = [(node.lineno, {k.arg for k in node.keywords}) for node in calls]
    return [line for line, args in named if args & {"text", "universal_newlines"} and not args & {"encoding", "errors"}]


def test_what_programs_print_has_an_encoding() -> None:
    """In what users run; tests and benchmarks run programs that print ASCII."""
    shipped = [f for f in ours() if f.relative_to(ROOT).parts[0] not in ("tests", "benchmarks")]
    found = [f"{f.relative_to(ROOT)}:{n}" for f in shipped for n in undecoded(f.read_text(encoding="utf-8"))]
    assert found == []
    assert undecoded("subprocess.run(x, text=True)") == [1]
    assert undecoded("subprocess.run(x, encoding='utf-8'), run(x, text=True, errors='replace'), run(x)") == []


def test_every_text_file_has_an_encoding() -> None:
    files = ours()
    if not files:
        pytest.skip("no git repository here")
    found = [f"{f.relative_to(ROOT)}:{n}" for f in files for n in unnamed(f.read_text(encoding="utf-8"))]
    assert found == []


@pytest.mark.parametrize(
    ("code", "wrong"),
    [
        ("open('x')", True),
        ("open('x', 'w')", True),
        ("p.open()", True),
        ("p.open('a')", True),
        ("p.read_text()", True),
        ("p.write_text('a')", True),
        ("p.read_text(errors='replace')", True),
        ("open('x', 'rb')", False),
        ("open('x', mode='wb')", False),
        ("p.open('rb')", False),
        ("open('x', encoding='utf-8')", False),
        ("p.read_text('utf-8')", False),
        ("p.write_text('a', 'utf-8')", False),
        ("Image.open('x')", False),
        ("open('x', **how)", False),
    ],
)
def test_the_next_one_is_found(code: str, wrong: bool) -> None:
    assert bool(unnamed(code)) is wrong
