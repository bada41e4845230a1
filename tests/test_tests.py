# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""The tests themselves: each file runs by itself, and what several share is in modules that are not tests."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

FILES = sorted(Path(__file__).parent.glob("*.py"))


def imported(code: str) -> set[str]:
    """Return the last part of every module, or name of one, that a source imports anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module or "", *(alias.name for alias in node.names)}
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in {
            "import_module",
            "__import__",
            "importorskip",
        }:
            found |= {x.value for x in node.args if isinstance(x, ast.Constant) and isinstance(x.value, str)}
    return {name.rpartition(".")[2] for name in found}


@pytest.mark.parametrize("file", FILES, ids=lambda p: p.name)
def test_no_file_imports_a_test(file: Path) -> None:
    others = {p.stem for p in FILES if p.stem.startswith("test_") or p.stem == "gpu_interpreted"}
    assert not imported(file.read_text(encoding="utf-8")) & others


@pytest.mark.parametrize(
    "code",
    [
        "import tests.test_block",
        "import test_block as b",
        "from tests import test_block",
        "from .test_block import make",
        "def f():\n    from tests.test_block import make",
        "importlib.import_module('tests.test_block')",
    ],
)
def test_every_way_to_import_a_test_is_seen(code: str) -> None:
    assert "test_block" in imported(code)
