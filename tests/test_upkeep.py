# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Export to a clone of upstream's repository, the matrix of releases, and the pages in docs/upkeep."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest
from forks import CONFLICT, FAR, SMOKE, TASKS, UPSTREAM, files, git, state, wheel

from patches import ROOT
from patches.matrix import PAGE, RESULTS, fine, render, sample
from patches.series import load_series
from patches.tree import fingerprint
from patches.upstream import load_pin

IGNORE = "/ultralytics/**\n!/ultralytics/**/\n!/ultralytics/nn/Addmodules/**\n/.upstream/\n*.pyc\n"


# Export


@pytest.fixture
def checkout(fork):
    """The fork as a git checkout, with files of its own besides."""
    fork.write(".gitignore", IGNORE)
    fork.write("ultralytics/nn/Addmodules/weights.bin", "\0\1\2")
    fork.write("train.py", "print('train')\n")
    fork.write("README.md", "ours\n")
    git(fork.root, "init", "-q")
    git(fork.root, "add", "-A")
    git(fork.root, "commit", "-qm", "fork")
    return fork


def patched(tasks: str) -> str:
    """Return tasks.py with both patches in it."""
    return tasks.replace("return 10\n", "return 10  # first\n").replace("return 30\n", "return 30  # second\n")


def test_mails_go_onto_a_clone(checkout, clone, tmp_path):
    folder = tmp_path / "the reader's mails"
    said = checkout.run("export", "--to", str(folder))
    assert [path.name for path in sorted(folder.iterdir())] == [
        "0001-vmamba-files.patch",
        "0002-first.patch",
        "0003-second.patch",
    ]
    command = said.splitlines()[-1].strip()
    subprocess.run(command, shell=True, cwd=clone, check=True, capture_output=True, env=identity())
    assert (clone / TASKS).read_text(encoding="utf-8") == checkout.read(TASKS) == patched(UPSTREAM[TASKS])
    assert (clone / "ultralytics/nn/Addmodules/weights.bin").read_bytes() == b"\0\1\2"
    assert (clone / "train.py").exists()
    assert (clone / "README.md").read_text(encoding="utf-8") == "theirs\n"
    assert not (clone / "patches").exists()
    subjects = git(clone, "log", "--format=%an %s", "v1.0..").splitlines()
    assert subjects[::-1] == [
        f"VMamba-YOLO {s}" for s in ("VMamba-YOLO: layers, selective scan, model files", "first", "second")
    ]
    git(clone, "switch", "-qc", "later", "v1.1")  # git merges with the old release's objects, which the clone has
    subprocess.run(["git", "am", "-q", "-3", *sorted(folder.iterdir())], cwd=clone, check=True, env=identity())
    assert (clone / TASKS).read_text(encoding="utf-8") == patched(FAR)
    assert "not an empty folder" in checkout.run("export", "--to", str(folder), code=1)


def identity() -> dict:
    """Return an environment in which git knows who commits."""
    return {**os.environ, **{f"GIT_COMMITTER_{k}": v for k, v in (("NAME", "U"), ("EMAIL", "u@example.org"))}}


def test_branch_leaves_the_rest_of_the_clone_alone(checkout, clone):
    (clone / "README.md").write_text("being edited\n", encoding="utf-8")
    before = git(clone, "status", "--porcelain", "--branch"), git(clone, "rev-parse", "HEAD")
    export = ("export", "--branch", "vmamba", "--in", str(clone))
    assert "3 commits on v1.0" in checkout.run(*export)
    assert git(clone, "show", f"vmamba:{TASKS}") == patched(UPSTREAM[TASKS])
    assert (git(clone, "status", "--porcelain", "--branch"), git(clone, "rev-parse", "HEAD")) == before
    assert len(git(clone, "worktree", "list").splitlines()) == 1
    assert "has a branch vmamba already" in checkout.run(*export, code=1)
    checkout.run("export", "--branch", "later", "--in", str(clone), "--onto", "v1.1")
    assert git(clone, "show", f"later:{TASKS}") == patched(FAR)


def test_branch_that_cannot_be_made_changes_nothing(checkout, clone, tmp_path):
    clone = clone.rename(tmp_path / "the reader's clone")
    (clone / TASKS).write_text(CONFLICT, encoding="utf-8")
    git(clone, "commit", "-qam", "conflict")
    before = git(clone, "for-each-ref")
    export = ("export", "--branch", "vmamba", "--in")
    said = checkout.run(*export, str(clone), "--onto", "main", code=1)
    assert "does not go onto main" in said
    command = re.search(r"Next: python -m patches (.*), or a branch", said)[1]
    assert shlex.split(command) == ["rebase", "main", "--from", str(clone)]
    assert "has no v9. In it: git fetch origin v9" in checkout.run(*export, str(clone), "--onto", "v9", code=1)
    assert "must never enter" in checkout.run(*export, str(checkout.root), code=1)
    (tmp_path / "empty").mkdir()
    for folder in ("nowhere", "empty"):
        said = checkout.run(*export, str(tmp_path / folder), code=1)
        assert "is not the top folder of a git repository. Name a clone of upstream's." in said
        assert len(said.strip().splitlines()) == 1
    named = ("export", "--branch", "a b", "--in", str(clone), "--onto", "main")
    assert "'a b' is no name of a branch" in checkout.run(*named, code=1)
    checkout.run(*export, str(clone), "--to", "x", code=2)
    checkout.run("export", "--branch", "vmamba", code=2)
    assert git(clone, "for-each-ref") == before
    assert len(git(clone, "worktree", "list").splitlines()) == 1


def test_hook_that_landed_elsewhere_is_told(checkout, clone):
    hooks = checkout.read("patches/hooks.py")
    checkout.write("patches/hooks.py", hooks.replace("task_10", "task_20").replace("10'", "20'"))
    (clone / TASKS).write_text(FAR.replace("def task_20()", "def task_twenty()"), encoding="utf-8")
    git(clone, "commit", "-qam", "renamed")
    export = ("export", "--branch", "vmamba", "--in", str(clone))
    assert "must stand in task_20" in checkout.run(*export, "--onto", "main", code=1)
    checkout.run(*export)


@pytest.fixture
def anothers(checkout, clone, tmp_path):
    """The clone, which git takes for another user's, and a home whose settings may trust it."""
    if os.name == "nt":
        pytest.skip("the stand-in for git is for a POSIX shell")
    (tmp_path / "bin").mkdir()
    (tmp_path / "home").mkdir()
    stand_in = tmp_path / "bin/git"
    stand_in.write_text(
        f'#!/bin/sh\ncase "$PWD $*" in *{shlex.quote(str(clone))}*) export GIT_TEST_ASSUME_DIFFERENT_OWNER=1;; esac\n'
        f'exec {shlex.quote(shutil.which("git"))} "$@"\n',
        encoding="utf-8",
    )
    stand_in.chmod(0o755)
    for name in ("XDG_CONFIG_HOME", "GIT_CONFIG_GLOBAL"):
        checkout.env.pop(name, None)
    checkout.env.update(HOME=str(tmp_path / "home"), PATH=f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    return clone


def test_a_clone_of_another_user_is_taken_where_the_user_trusts_it(checkout, anothers, tmp_path):
    export, rebase = ("export", "--branch", "vmamba", "--in", str(anothers)), ("rebase", "1.1", "--from", str(anothers))
    for command in (export, rebase):
        said = checkout.run(*command, code=1)
        assert "detected dubious ownership" in said
        assert "has no v1.0" not in said
    hooks = tmp_path / "hooks"
    hooks.mkdir()
    (hooks / "applypatch-msg").write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
    (hooks / "applypatch-msg").chmod(0o755)
    settings = f"[safe]\n\tdirectory = *\n[core]\n\tautocrlf = true\n\thooksPath = {json.dumps(str(hooks))}\n"
    (tmp_path / "home/.gitconfig").write_text(settings, encoding="utf-8")
    checkout.run(*export)  # settings that would change the result are not heard
    shown = subprocess.run(["git", "show", f"vmamba:{TASKS}"], cwd=anothers, capture_output=True, check=True).stdout
    assert shown == patched(UPSTREAM[TASKS]).encode()
    checkout.run(*rebase)
    assert checkout.read(TASKS) == patched(FAR)


def test_a_proxy_of_the_user_is_used(checkout, tmp_path):
    (tmp_path / ".gitconfig").write_text("[http]\n\tproxy = http://127.0.0.1:1\n", encoding="utf-8")
    for name in ("XDG_CONFIG_HOME", "GIT_CONFIG_GLOBAL"):
        checkout.env.pop(name, None)
    checkout.env["HOME"] = str(tmp_path)
    said = checkout.run("rebase", "main", "--from", "http://upstream.invalid/x", code=1)
    if "remote-http" in said:
        pytest.skip("this git has no http")
    assert "127.0.0.1" in said


def test_no_old_blobs(checkout, clone, tmp_path):
    """A shallow clone of another release cannot merge: git says so, and nothing lands in a wrong place."""
    shallow = tmp_path / "shallow"
    (clone / TASKS).write_text(CONFLICT, encoding="utf-8")
    git(clone, "commit", "-qam", "upstream goes on")
    git(tmp_path, "clone", "-q", "--depth=1", f"file://{clone}", str(shallow))
    said = checkout.run("export", "--branch", "vmamba", "--in", str(shallow), "--onto", "main", code=1)
    assert "lacks necessary blobs" in said
    assert "has no v1.0. In it: git fetch origin tag v1.0" in checkout.run(
        "export", "--branch", "vmamba", "--in", str(shallow), code=1
    )
    git(shallow, "fetch", "-q", "--depth=1", "origin", "tag", "v1.0")  # as the message says
    checkout.run("export", "--branch", "vmamba", "--in", str(shallow))


# What people do to the tool's own files, and a stop


def test_damaged_notes(fork):
    """What is no list or record of the tool's form is said, or counts as none."""
    fork.run("setup")
    series = fork.root / "patches/series"
    text = series.read_bytes()
    for verb in ("status", "setup", "check"):
        series.write_bytes(b"\xff\xfe\0")
        assert "series cannot be read" in fork.run(verb, code=1)
    series.write_bytes(text)
    whole = json.loads(fork.read(".upstream/manifest.json"))
    wrong = [{"files": []}, {"files": {"x": None}}, {"files": {"x": [1]}}, {"requires": "numpy"}, {"requires": [1]}]
    wrong += [{"inputs": [1]}, {"complete": "no"}]
    for record in ("[1]", "{}", '"x"', "{", *(json.dumps({**whole, **part}) for part in wrong)):
        fork.write(".upstream/manifest.json", record)
        fork.run("status", code=1)
        assert "0 files set or removed" in fork.run("setup")
    for notes in ("[1]", "{}", "{", '{"moving": false}', '{"moving": true, "label": [1]}'):
        fork.write(".upstream/rebase/state.json", notes)
        assert "No rebase is under way" in fork.run("rebase", "--abort", code=1)


@pytest.mark.parametrize("state", [None, {"moving": False}])
def test_a_stop_is_one_sentence(state, monkeypatch, capsys):
    from patches import __main__ as tool

    def stopped(args):
        raise KeyboardInterrupt

    monkeypatch.setattr(tool, "run", stopped)
    monkeypatch.setattr(tool.rebase, "read_state", lambda: state)
    assert tool.main(["rebase", "8.4.0"]) == 130
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: python -m patches rebase was stopped. ")
    assert ("--continue" in line) == bool(state)


@pytest.mark.parametrize("text", ["{", "[1]", "", None])
def test_damaged_results_of_earlier_smoke_tests_count_as_none(text, monkeypatch, tmp_path):
    from patches import matrix

    monkeypatch.setattr(matrix, "PASSED", tmp_path / "passed.json")
    if text is not None:
        (tmp_path / "passed.json").write_text(text, encoding="utf-8")
    assert matrix.earlier() == {}


def test_what_the_system_says_of_a_file_has_no_number(monkeypatch, capsys):
    from patches import __main__ as tool

    def refused(args):
        raise PermissionError(13, "Permission denied", "/x")

    monkeypatch.setattr(tool, "run", refused)
    assert tool.main(["status"]) == 1
    assert capsys.readouterr().err == "error: Permission denied: '/x'\n"


# Matrix


def test_sample():
    all_versions = [f"8.{a}.{b}" for a, n in ((4, 190), (3, 50), (2, 9)) for b in range(n, 0, -1)]
    found = sample(all_versions)
    assert found[:20] == all_versions[:20]
    assert found[20:23] == ["8.4.166", "8.4.161", "8.4.156"]
    assert found[-5:] == ["8.3.41", "8.3.31", "8.3.21", "8.3.11", "8.3.1"]
    assert sample(["8.5.0", "8.4.1"]) == ["8.5.0", "8.4.1"]


def test_matrix_tells_what_goes_and_changes_nothing(fork):
    wheel(fork.wheels, "1.2", files("1.2", FAR.replace("return 0\n", "return -1\n")))
    wheel(fork.wheels, "1.2.1", files("1.2.1", FAR.replace("return 0\n", "return -2\n")))
    wheel(fork.wheels, "1.3", files("1.3", CONFLICT))
    wheel(fork.wheels, "1.4", files("1.4", FAR))
    wheel(fork.wheels, "1.5", files("1.5", FAR.replace("return 10\n", "return 10  # first\n")))
    before = state(fork)
    said = fork.run("matrix", "--write", code=1)
    assert state(fork) == before
    rows = {row["version"]: row for row in json.loads(fork.read("benchmarks/results/upkeep-matrix.json"))["rows"]}
    assert list(rows) == ["1.0", "1.1", "1.2", "1.2.1", "1.3", "1.4", "1.5"]
    assert [rows[v]["smoke"] for v in ("1.0", "1.1", "1.4", "1.5")] == ["passed"] * 4
    assert "task 0 is broken" in rows["1.2"]["smoke"]
    assert rows["1.2.1"]["smoke"] == "cannot run here, pristine upstream neither: a package is | missing"
    assert rows["1.3"]["direct"] == f"first conflicts in {TASKS}"
    assert rows["1.3"]["smoke"] == "not run"
    assert rows["1.5"]["direct"] == "first became empty"
    assert rows["1.4"]["stepwise"] == ""
    assert [row["same"] for row in rows.values()] == [None, True, True, True, None, True, True]
    assert [row["stepwise"] for row in rows.values()][:2] == [None, ""]
    assert "1.0  direct: clean; stepwise: not tried; smoke test: passed" in said
    counted = "4 of 7 releases without a hand's help; smoke test run on 6, passed on 4; on 1 pristine upstream cannot"
    assert counted in said
    page = fork.read("docs/upkeep/matrix.md")
    assert f"| 1.3 | first conflicts in {TASKS} | first conflicts in {TASKS} | not run |" in page
    assert "| 1.0 | clean | not tried | passed |" in page
    assert "| 1.2 | clean | clean, same | task 0 is broken |" in page
    assert "| 1.2.1 | clean | clean, same | cannot run here, pristine upstream neither: a package is \\| mis" in page
    assert counted in page


def test_matrix_says_what_was_not_tried(fork):
    """A release that cannot be had has its line, and what follows a first one that failed took no step."""
    wheel(fork.wheels, "0.9", files("0.9", CONFLICT))
    said = fork.run("matrix", "0.8", "0.9", "1.0", "--no-smoke", code=1).splitlines()
    assert len(said) == 4
    assert "0.8  direct: VMAMBA_UPSTREAM_DIR=" in said[0]
    assert "holds no ultralytics-0.8-py3-none-any.whl" in said[0]
    assert said[0].endswith("; stepwise: not tried; smoke test: not run")
    assert f"0.9  direct: first conflicts in {TASKS}; stepwise: not tried; smoke" in said[1]
    assert "1.0  direct: clean; stepwise: not tried; smoke" in said[2]


def test_matrix_goes_on_where_it_was(fork):
    fork.write("ultralytics/cfg/VMamba/x.yaml", "ours: in a folder\n")
    fork.write("patches/smoke.py", SMOKE + "print('again', file=open('../../../../ran', 'a'))\n")
    fork.run("matrix", "1.1")
    fork.run("matrix", "1.0", "1.1")
    assert fork.read("ran").count("again") == 2
    fork.write("ultralytics/nn/Addmodules/__init__.py", "ours = 2\n")
    fork.run("matrix", "1.1")
    assert fork.read("ran").count("again") == 3
    fork.run("matrix", "nonsense", code=1)
    fork.run("matrix", "7.7", code=1)
    fork.run("matrix", "1.1", "--no-smoke")
    assert not (fork.root / "docs").exists()


# Pages and what they promise


def test_own_patches_follow_the_fork(checkout, tmp_path):
    """docs/upkeep/own-edits.md: move first, merge then."""
    origin, own = checkout.root, checkout.at(tmp_path / "own")
    git(tmp_path, "clone", "-q", str(origin), str(own.root))
    own.run("setup")
    own.patch("third", "return 20\n", "return 20  # third\n")
    commit = ("commit", "-qam")
    git(own.root, "add", "-A", "patches")
    git(own.root, *commit, "third")
    checkout.run("rebase", "1.1")
    git(origin, *commit, "Upstream 1.1")

    git(own.root, "pull", "-q", "--no-rebase", "--no-edit")  # merged first, against the page
    assert "Patch third does not apply" in own.run("setup", code=1)
    git(own.root, "reset", "-q", "--keep", "ORIG_HEAD")
    own.run("rebase", "1.1")
    git(own.root, "add", "-A", "patches")
    git(own.root, *commit, "Upstream 1.1")
    git(own.root, "pull", "-q", "--no-rebase", "--no-edit")
    own.run("setup")
    own.run("check")
    assert own.read(TASKS) == patched(FAR).replace("return 20\n", "return 20  # third\n")


@pytest.mark.skipif(os.name == "nt", reason="the script is for a POSIX shell")
def test_the_scheduled_job_opens_one_change(checkout, tmp_path):
    yaml = pytest.importorskip("yaml")
    job = yaml.safe_load((ROOT / "docs/upkeep/follow-upstream.yml").read_text(encoding="utf-8"))["jobs"]["rebase"]
    script = job["steps"][-1]["run"]
    for name, text in (("pip", "true"), ("gh", 'echo "gh $*" >> "$HOME/gh.log"')):
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "bin/python").symlink_to(sys.executable)
    env = {**checkout.env, "HOME": str(tmp_path), "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    git(tmp_path, "clone", "-q", "--bare", str(checkout.root), str(tmp_path / "origin.git"))

    def run(name: str) -> subprocess.CompletedProcess:
        git(tmp_path, "clone", "-q", str(tmp_path / "origin.git"), str(tmp_path / name))
        where = {"cwd": tmp_path / name, "env": env}
        return subprocess.run(["bash", "-c", script], **where, capture_output=True, text=True, check=False)

    (checkout.wheels / "ultralytics-1.1-py3-none-any.whl").rename(tmp_path / "later.whl")
    assert run("quiet").returncode == 0
    assert not (tmp_path / "gh.log").exists()
    (tmp_path / "later.whl").rename(checkout.wheels / "ultralytics-1.1-py3-none-any.whl")
    for name in ("first", "again"):
        done = run(name)
        assert done.returncode == 0, done.stdout + done.stderr
        said = (tmp_path / "gh.log").read_text(encoding="utf-8")
        assert said == "gh pr create --head upstream-1.1 --title Upstream 1.1 --body-file rebase.log\n"
    changed = git(tmp_path / "origin.git", "diff", "--name-only", "HEAD", "upstream-1.1").split()
    assert changed == ["patches/first.patch", "patches/second.patch", "patches/upstream.json"]
    wheel(checkout.wheels, "1.2", files("1.2", CONFLICT))
    assert run("conflict").returncode == 1
    assert "upstream-1.2" not in git(tmp_path / "origin.git", "branch")


@pytest.mark.skipif(not RESULTS.exists(), reason="no results yet")
def test_page_of_the_matrix_is_that_of_the_results():
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    assert PAGE.read_text(encoding="utf-8") == render(results)
    assert all(map(fine, results["rows"]))


@pytest.mark.skipif(not RESULTS.exists(), reason="no results yet")
def test_page_of_the_matrix_is_of_this_series():
    results, pin = json.loads(RESULTS.read_text(encoding="utf-8")), load_pin()
    if results["pin"] != pin.version:
        pytest.skip(f"the page is of upstream {results['pin']}; python -m patches matrix --write makes it anew")
    assert results["series"] == fingerprint(pin, load_series()), "the series changed: python -m patches matrix --write"
