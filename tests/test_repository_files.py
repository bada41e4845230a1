# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""CITATION, CHANGELOG, CONTRIBUTING and the form for reports say what is so."""

from __future__ import annotations

import re

import pytest
import yaml

from patches.upstream import by_number, load_pin
from tests.data import ROOT
from ultralytics.nn.Addmodules.tools.key_value import parse
from ultralytics.nn.Addmodules.tools.verbs import VERBS

VERSION = load_pin().fork_version


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_versions() -> None:
    citation = yaml.safe_load(text("CITATION.cff"))  # without versions, which change with the pin
    release, number = re.search(r"^## (\S+)\+vmamba\.(\d+)$", text("CHANGELOG.md"), re.MULTILINE).groups()
    pinned, ours = VERSION.split("+vmamba.")
    assert number == ours
    assert by_number(release) <= by_number(pinned)  # a move to a newer release of upstream changes patches/ alone
    for reference in citation["references"]:
        assert {"type", "title", "authors", "url"} <= reference.keys()


def test_the_number_of_patches() -> None:
    count = len([*(ROOT / "patches").glob("*.patch")])
    words = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    assert f"applies {words[count]} insertion-only patches" in text("CHANGELOG.md")


def test_files_that_contributing_names() -> None:
    page = text("CONTRIBUTING.md")
    ours = ROOT / "ultralytics/nn/Addmodules"
    for name in set(re.findall(r"`([\w/]+\.py|[\w/]+/)`", page)):
        scan = ours / "selective_scan"
        places = [p / name for p in (ROOT, ours.parent, ours, ours / "layers", scan, scan / "backends")]
        assert any(place.exists() for place in places), name


@pytest.mark.parametrize("folder", ["building", "grafting", "hooks", "layers", "tools"])
def test_the_page_of_files_has_each(folder: str) -> None:
    page = text("docs/design/fork.md")
    files = [file.name for file in (ROOT / "ultralytics/nn/Addmodules" / folder).glob("[a-z]*.py")]
    assert files
    assert [name for name in files if f" {name} " not in page] == []


def test_the_form_asks_for_commands_that_there_are() -> None:
    form = yaml.safe_load(text(".github/ISSUE_TEMPLATE/bug.yml"))
    fields = {field["id"]: field for field in form["body"] if field["type"] != "markdown"}
    assert fields["checks"]["validations"]["required"]
    said = " ".join(f"{f['attributes']['label']} {f['attributes'].get('description', '')}" for f in fields.values())
    verbs = {verb.name: verb for verb in VERBS}
    commands = re.findall(r"`(?:vmamba|python -m ultralytics\.nn\.Addmodules) (\w+) ([^`]*)`", said)
    assert {name for name, _ in commands} == {"checks", "dataset"}
    for name, arguments in commands:
        parse(verbs[name], name, arguments.split())  # raises for a setting that there is not
