# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""The docs are true: examples in docstrings run, tables are what the results give, links lead somewhere."""

from __future__ import annotations

import doctest
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ultralytics.nn import Addmodules

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(p for p in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("*/README.md")] if p.is_file())
MODULES = sorted(
    ".".join(p.relative_to(ROOT).with_suffix("").parts)
    for p in Path(Addmodules.__file__).parent.rglob("*.py")
    if p.name != "__init__.py"
)


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name: str) -> None:
    import torch

    module = importlib.import_module(name)
    assert doctest.testmod(module, extraglobs={"torch": torch}).failed == 0


def test_tables_are_generated_from_the_results() -> None:
    run = subprocess.run([sys.executable, ROOT / "benchmarks/tables.py", "--check"], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_environment_is_read_in_one_module_and_documented() -> None:
    engine = Path(Addmodules.__file__).parent
    for file in engine.rglob("*.py"):
        # schedule.py hands it on to the processes that it starts; compilers.py is for installation; threads.py asks for
        # OpenMP's variable, which is not ours
        if file.name not in ("registry.py", "schedule.py", "compilers.py", "threads.py"):
            assert "os.environ" not in file.read_text(encoding="utf-8"), file
    registry = (engine / "selective_scan/registry.py").read_text(encoding="utf-8")
    for name in re.findall(r'environ\.get\("(\w+)"', registry):
        assert f"`{name}`" in registry.split('"""')[1]
        assert name in (ROOT / "docs/design/selective-scan.md").read_text(encoding="utf-8")
