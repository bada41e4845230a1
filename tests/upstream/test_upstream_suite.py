# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Upstream's own tests on the patched tree, offline: what passes on the pristine release must pass here.

Only on request, `pytest -m upstream`, because it fetches upstream's source archive and takes minutes. Two lists beside
this file name the tests: those that need no downloads, and all that pass with stand-ins for weights and data. What does
not pass on the patched tree is run on both trees again, so a test that fails on this machine either way is no
regression, and one that fails once is not either.
"""

import hashlib
import json
import os
import re
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
QUICK, FULL = ((HERE / name).read_text(encoding="utf-8").splitlines() for name in ("quick.txt", "full.txt"))
SETTINGS = """
import sys
from ultralytics import settings
folder = sys.argv[1]
settings.update(weights_dir=folder + "/weights", datasets_dir=folder + "/datasets", runs_dir=folder + "/runs")
settings.update(sync=False)
"""
pytestmark = [pytest.mark.upstream, pytest.mark.timeout(4 * 3600)]


class Suite:
    """Upstream's tests, and the trees to run them on.

    Attributes:
        folder (Path): For all that follows.
        source (Path): Upstream's source archive without its package.
    """

    def __init__(self, folder: Path):
        """Fetch the archive and lay both trees."""
        pin, self.folder = load_pin(), folder
        name = f"ultralytics-{pin.version}"
        self.source, self.standins, self.runs = folder / name, None, 0
        with tarfile.open(fetch(pin.version, folder)) as files:
            files.extractall(folder)
        base, target, _ = build(pin, load_series())
        for path, data in base.items():  # the tests are those of the pinned wheel
            assert (self.source / path).read_bytes() == data, path
        shutil.rmtree(self.source / "ultralytics")
        for tree, files in (("pristine", base), ("patched", {**target, **own_files()})):
            for path, data in files.items():
                (folder / tree / path).parent.mkdir(parents=True, exist_ok=True)
                (folder / tree / path).write_bytes(data)
        (folder / "bin").mkdir()
        (folder / "bin/yolo").write_text(
            f"#!{sys.executable}\nfrom ultralytics.cfg import entrypoint\nentrypoint()\n", encoding="utf-8"
        )
        (folder / "bin/yolo").chmod(0o755)  # whatever else is installed here under that name

    def run(self, tree: str, work: Path, *words: str) -> str:
        """Run Python on a tree."""
        env = {k: v for k, v in os.environ.items() if not k.startswith(("YOLO_", "ULTRALYTICS_", "PYTEST_"))}
        env.update(PYTHONPATH=os.pathsep.join([str(self.folder / tree), str(HERE)]), YOLO_CONFIG_DIR=str(work / "cfg"))
        env.update(YOLO_OFFLINE="true", YOLO_AUTOINSTALL="false", CUDA_VISIBLE_DEVICES="", MPLBACKEND="Agg")
        env.update(PATH=f"{self.folder / 'bin'}{os.pathsep}{env['PATH']}", TORCH_HOME=str(self.folder / "made/torch"))
        env.update(UPSTREAM_TESTS=str(work / "names.txt"), UPSTREAM_OUTCOMES=str(work / "outcomes.json"))
        where = {"cwd": work, "env": env, "text": True, "errors": "replace"}
        done = subprocess.run([sys.executable, *words], **where, capture_output=True, check=False)
        return done.stdout[-5000:] + done.stderr[-5000:]

    def make(self) -> None:
        """Make the stand-ins, with the pristine release."""
        made = self.folder / "made"
        made.mkdir()
        said = self.run("pristine", made, "-c", SETTINGS, str(made)) + self.run(
            "pristine", made, str(HERE / "standins.py"), str(made)
        )
        assert (made / "weights/solution_assets/4-imgs-similaritysearch.zip").exists(), said
        self.standins = made

    def outcomes(self, tree: str, names: list[str]) -> dict[str, str]:
        """Run tests on a tree, in a folder of their own."""
        self.runs += 1
        work = self.folder / f"work-{self.runs}-{tree}"
        shutil.copytree(self.source, work)
        for part in ("weights", "datasets") if self.standins else ():  # the tests write there
            shutil.copytree(self.standins / part, work / "home" / part)
        self.run(tree, work, "-c", SETTINGS, str(work / "home"))
        (work / "names.txt").write_text("\n".join(names), encoding="utf-8")
        plugins = ["-p", "selection", "-p", "no:cacheprovider"]
        said = self.run(tree, work, "-m", "pytest", "-q", *plugins, "--timeout=1200", "--tb=short", "tests")
        (work / "said.txt").write_text(said, encoding="utf-8")
        assert (work / "outcomes.json").exists(), said
        found = json.loads((work / "outcomes.json").read_text(encoding="utf-8"))
        shutil.rmtree(work / "home", ignore_errors=True)
        return found


def fetch(version: str, folder: Path) -> Path:
    """Return upstream's source archive: from the folder in VMAMBA_UPSTREAM_DIR, or by pip."""
    line = re.search(rf"(?m)^ultralytics=={re.escape(version)} .*", (HERE / "archives.txt").read_text(encoding="utf-8"))
    archive = Path(os.environ.get(FOLDER_VARIABLE, folder)).expanduser() / f"ultralytics-{version}.tar.gz"
    if not archive.exists():
        (folder / "wanted.txt").write_text(line[0] if line else f"ultralytics=={version}", encoding="utf-8")
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "-q", "--no-deps"]
        subprocess.run([*pip, "--no-binary=:all:", "-d", folder, "-r", folder / "wanted.txt"], check=True)
        archive = folder / archive.name
    if line:
        assert hashlib.sha256(archive.read_bytes()).hexdigest() == line[0].rpartition(":")[2], archive
    return archive


@pytest.fixture(scope="module")
def suite(request, tmp_path_factory) -> Suite:
    if "upstream" not in request.config.getoption("markexpr"):
        pytest.skip("on request: pytest -m upstream")
    return Suite(tmp_path_factory.mktemp("suite"))


def loses_nothing(suite: Suite, names: list[str]) -> None:
    """Assert that no test passes on the pristine release and not here."""
    here = suite.outcomes("patched", names)
    assert len(here) > 0.9 * len(names), "upstream has renamed its tests: bring the list up to date"
    others = [name for name, outcome in here.items() if outcome != "passed"]
    both = {tree: suite.outcomes(tree, others) for tree in ("pristine", "patched")} if others else {}
    lost = [name for name in others if [both[tree].get(name) == "passed" for tree in both] == [True, False]]
    print(f"\n{len(here)} of upstream's tests: {len(here) - len(others)} passed", end="")
    for name in others:
        print(
            f"\n  {name}: {here[name]}, again {both['patched'].get(name)}, pristine {both['pristine'].get(name)}",
            end="",
        )
    print()
    assert lost == []
    assert len(here) - len(others) > 0.8 * len(names)


def test_quick_part_loses_nothing(suite):
    loses_nothing(suite, QUICK)


def test_full_set_loses_nothing_with_stand_ins(suite):
    suite.make()
    loses_nothing(suite, FULL)
