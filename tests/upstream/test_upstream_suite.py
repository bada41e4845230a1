# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Upstream's own tests on the patched tree, offline: what passes on the pristine release must pass here.

Only on request, `pytest -m upstream`, because it fetches upstream's source archive and takes minutes. The list beside
this file names the tests that need no downloads. What fails on the patched tree is run on the pristine one as well, so
a test that fails on this machine either way is no regression.
"""

import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from patches.series import load_series
from patches.tree import build, own_files
from patches.upstream import FOLDER_VARIABLE, load_pin

HERE = Path(__file__).parent
QUICK = (HERE / "quick.txt").read_text(encoding="utf-8").splitlines()
pytestmark = [pytest.mark.upstream, pytest.mark.timeout(5400)]


@pytest.fixture(scope="module")
def suite(request, tmp_path_factory):
    """Folder with upstream's tests, and the two trees to run them on."""
    if "upstream" not in request.config.getoption("markexpr"):
        pytest.skip("on request: pytest -m upstream")
    pin, folder = load_pin(), tmp_path_factory.mktemp("suite")
    name = f"ultralytics-{pin.version}"
    archive = Path(os.environ.get(FOLDER_VARIABLE, folder)).expanduser() / f"{name}.tar.gz"
    if not archive.exists():
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "-q", "--no-deps"]
        subprocess.run([*pip, "--no-binary=:all:", "-d", folder, f"ultralytics=={pin.version}"], check=True)
        archive = folder / f"{name}.tar.gz"
    with tarfile.open(archive) as files:
        files.extractall(folder)
    base, target, _ = build(pin, load_series())
    for path, data in base.items():  # the archive has no pinned hash: what it shares with the wheel must be the same
        assert (folder / name / path).read_bytes() == data, path
    shutil.rmtree(folder / name / "ultralytics")
    for tree, files in (("pristine", base), ("patched", {**target, **own_files()})):
        for path, data in files.items():
            (folder / tree / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / tree / path).write_bytes(data)
    return folder, folder / name


def outcomes(suite, tree: str, names: list[str]) -> dict[str, str]:
    """Run tests of upstream's on a tree."""
    folder, source = suite
    work = folder / f"work-{tree}"
    shutil.copytree(source, work)
    (folder / "names.txt").write_text("\n".join(names), encoding="utf-8")
    env = {k: v for k, v in os.environ.items() if not k.startswith(("YOLO_", "ULTRALYTICS_", "PYTEST_"))}
    env.update(PYTHONPATH=os.pathsep.join([str(folder / tree), str(HERE)]), YOLO_CONFIG_DIR=str(work / "config"))
    env.update(YOLO_OFFLINE="true", YOLO_AUTOINSTALL="false", CUDA_VISIBLE_DEVICES="", MPLBACKEND="Agg")
    env.update(UPSTREAM_TESTS=str(folder / "names.txt"), UPSTREAM_OUTCOMES=str(work / "outcomes.json"))
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "selection",
        "-p",
        "no:cacheprovider",
        "--timeout=300",
        "tests",
    ]
    done = subprocess.run(command, cwd=work, env=env, capture_output=True, text=True, errors="replace", check=False)
    assert (work / "outcomes.json").exists(), done.stdout[-3000:] + done.stderr[-3000:]
    return json.loads((work / "outcomes.json").read_text(encoding="utf-8"))


def test_quick_part_loses_nothing(suite):
    here = outcomes(suite, "patched", QUICK)
    assert len(here) > 0.9 * len(QUICK), "upstream has renamed its tests: bring the list up to date"
    failed = [name for name, outcome in here.items() if outcome == "failed"]
    pristine = outcomes(suite, "pristine", failed) if failed else {}
    print(f"{len(here)} of upstream's tests: {list(here.values()).count('passed')} passed, {len(failed)} failed")
    assert [name for name in failed if pristine.get(name) == "passed"] == []
    assert list(here.values()).count("passed") > 0.8 * len(QUICK)
