# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Pytest plugin for runs of upstream's suite: keeps the tests of a list and writes down how each of them ended."""

import json
import os
from pathlib import Path

OUTCOMES = {}


def pytest_collection_modifyitems(items):
    """Keep what the list names; a name that upstream has since dropped is no error."""
    wanted = set(Path(os.environ["UPSTREAM_TESTS"]).read_text(encoding="utf-8").splitlines())
    items[:] = [item for item in items if item.nodeid in wanted]


def pytest_runtest_logreport(report):
    """Note the worst outcome of a test's phases."""
    if report.outcome != "passed" or report.nodeid not in OUTCOMES:
        OUTCOMES[report.nodeid] = report.outcome


def pytest_sessionfinish():
    """Write the outcomes."""
    Path(os.environ["UPSTREAM_OUTCOMES"]).write_text(json.dumps(OUTCOMES, indent=0), encoding="utf-8")
