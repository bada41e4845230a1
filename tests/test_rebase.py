# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Moving to another upstream release, on toy releases: clean, stopped, given up, gone on with, killed."""

import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile

import pytest
from forks import (
    CONFLICT,
    FAR,
    SMOKE,
    TASKS,
    UPSTREAM,
    Fork,
    files,
    git,
    patches_of,
    state,
    wheel,
)


def untouched(fork: Fork, before: tuple) -> None:
    """Assert that nothing changed and no rebase is under way."""
    assert state(fork) == before
    assert not (fork.root / ".upstream/rebase").exists()
    fork.run("status")


def moved(fork: Fork, version: str) -> None:
    """Assert that the pin is another release, laid and in order."""
    data = (fork.wheels / f"ultralytics-{version}-py3-none-any.whl").read_bytes()
    pin = {"version": version, "local": "vmamba.1", "sha256": hashlib.sha256(data).hexdigest()}
    assert fork.read("patches/upstream.json") == json.dumps(pin, indent=2) + "\n"
    assert not (fork.root / ".upstream/rebase").exists()
    fork.run("status")
    fork.run("check")


# Clean


def test_moves_there_and_back_to_the_byte(fork):
    fork.write("patches/upstream.json", json.dumps(json.loads(fork.read("patches/upstream.json")), indent=2) + "\n")
    before = state(fork)
    said = fork.run("rebase", "1.1")
    assert "The pin is upstream 1.1 now, as 1.1+vmamba.1; 2 patches were written anew" in said
    moved(fork, "1.1")
    assert fork.laid(
        files("1.1"), **{TASKS: FAR.replace("10\n", "10  # first\n", 1).replace("return 30\n", "return 30  # second\n")}
    )
    assert "@@ -42,7 +42,7 @@" in fork.read("patches/first.patch")
    fork.run("rebase", "1.0")
    assert state(fork) == before


def test_latest_is_by_number_and_status_tells(fork):
    wheel(fork.wheels, "1.10", files("1.10"))
    wheel(fork.wheels, "1.9", files("1.9"))
    wheel(fork.wheels, "1.11rc1", files("1.11rc1"))
    assert "ultralytics 1.10 is out. Next: python -m patches rebase 1.10" in fork.run("status", "--online")
    fork.run("rebase", "latest")
    moved(fork, "1.10")
    assert "Nothing to do" in fork.run("rebase", "latest")
    assert "the pin is upstream's newest release, 1.10" in fork.run("status", "--online")


def test_latest_never_goes_back(fork, clone):
    """A mirror may lag behind the pin, and a clone may lack the newest tags."""
    fork.run("rebase", "1.1")
    before = state(fork)
    (fork.wheels / "ultralytics-1.1-py3-none-any.whl").unlink()
    assert "the newest release there, 1.0, is older than the pin, 1.1" in fork.run("rebase", "latest")
    git(clone, "tag", "-d", "v1.1")
    assert "the newest release there, 1.0, is older than the pin, 1.1" in fork.run(
        "rebase", "latest", "--from", str(clone)
    )
    untouched(fork, before)


def test_only_the_folder_of_patches_changes(fork):
    shutil.copy(fork.root.parents[0] / "fork/patches/README.md", fork.root / "README.md")
    fork.write(".gitignore", "/ultralytics/**\n!/ultralytics/**/\n!/ultralytics/nn/Addmodules/**\n/.upstream/\n*.pyc\n")
    git(fork.root, "init", "-q")
    git(fork.root, "add", "-A")
    git(fork.root, "commit", "-qm", "fork")
    fork.run("rebase", "1.1")
    changed = [line[3:] for line in git(fork.root, "status", "--porcelain", "-uall").splitlines()]
    assert changed == ["patches/first.patch", "patches/second.patch", "patches/upstream.json"]


def test_an_unlaid_checkout_can_be_moved(fork):
    """As in a scheduled job, from a fresh clone; there is no object of the old release about."""
    for path in ("ultralytics", ".upstream"):
        shutil.rmtree(fork.root / path)
    fork.write("ultralytics/nn/Addmodules/__init__.py", "ours = True\n")
    fork.run("rebase", "1.1")
    moved(fork, "1.1")


def test_the_same_rebase_by_two_people_gives_the_same_patches(fork, tmp_path):
    """Whoever carries own patches moves them first and merges the fork's own move after it, with nothing to resolve."""
    shutil.copytree(fork.root, tmp_path / "other/fork")
    other = fork.at(tmp_path / "other/fork")
    other.patch("third", "return 20\n", "return 20  # third\n")
    fork.run("rebase", "1.1")
    other.run("rebase", "1.1")
    ours, theirs = patches_of(fork), patches_of(other)
    assert theirs.pop("third.patch")
    assert theirs.pop("series") == ours.pop("series") + b"third.patch\n"
    assert ours == theirs


def rewrite(path, old: bytes, new: bytes) -> None:
    """Replace bytes in every file of a wheel."""
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name).replace(old, new) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data)


def test_requirements_that_change_are_told(fork):
    rewrite(fork.wheels / "ultralytics-1.1-py3-none-any.whl", b"numpy>=1.23", b"numpy>=2.0")
    assert "  - numpy>=1.23\n  + numpy>=2.0\n" in fork.run("rebase", "1.1")


# Conflicts


def test_conflict_then_abort(fork, tmp_path):
    fork.cwd, fork.env["PYTHONPATH"] = tmp_path, str(fork.root)  # from there, what is shown must be quoted
    wheel(fork.wheels, "1.2", files("1.2", CONFLICT))
    before = state(fork)
    said = fork.run("rebase", "1.2", code=1)
    assert f"Patch first conflicts with upstream 1.2 in\n  {TASKS}\n" in said
    assert "|||||||  upstream 1.0, where the patch was made" in said
    for command in ("python -m patches rebase --continue", "python -m patches rebase --abort"):
        assert command in said
    text = (fork.repository / TASKS).read_text(encoding="utf-8")
    assert "<<<<<<< HEAD\n    return 5 + 5\n||||||| parent of" in text
    assert "\n    return 10\n=======\n    return 10  # first\n>>>>>>> " in text
    assert state(fork) == before
    for line in re.findall(r"   (git -C .*)", said):  # what it proposes works
        shown = subprocess.run(shlex.split(line), cwd=tmp_path, capture_output=True, text=True, check=True).stdout
        assert "-    return 10\n" in shown
    assert "to 1.2 is under way" in fork.run("status")
    for command in (("rebase", "1.1"), ("extract",), ("refit",)):
        assert "A rebase to 1.2 is under way, and it needs the patches as they are" in fork.run(*command, code=1)
    for command in (["extract"], ["edit", "first", "-m", "why"]):  # its end would throw the work on the conflict away
        assert "needs the patches as they are" in fork.run(*command, code=1)
    assert state(fork) == before
    assert "given up" in fork.run("rebase", "--abort")
    untouched(fork, before)
    assert "No rebase is under way" in fork.run("rebase", "--abort", code=1)
    assert "No rebase is under way" in fork.run("rebase", "--continue", code=1)


@pytest.mark.parametrize("by_hand", [False, True])
def test_conflict_then_continue(fork, by_hand):
    wheel(fork.wheels, "1.2", files("1.2", CONFLICT.replace("return 30\n", "return 15 + 15\n")))
    fork.write("patches/hooks.py", fork.read("patches/hooks.py").replace("return 10", "return 5 + 5"))
    before = state(fork)
    fork.run("rebase", "1.2", code=1)
    assert "has conflict markers in it" in fork.run("rebase", "--continue", code=1)
    for old, new in (("5 + 5", "5 + 5  # first"), ("15 + 15", "15 + 15  # second")):
        text = (fork.repository / TASKS).read_text(encoding="utf-8")
        ahead, _, rest = text.partition("<<<<<<< ")
        (fork.repository / TASKS).write_text(
            f"{ahead}    return {new}\n" + rest.partition(">>>>>>> ")[2].partition("\n")[2], encoding="utf-8"
        )
        assert state(fork) == before
        if by_hand:
            git(fork.repository, "add", "-A")
            env = {**os.environ, "GIT_EDITOR": ":"}
            command = ["git", "rebase", "--continue"]
            subprocess.run(command, cwd=fork.repository, env=env, capture_output=True, check=False)
        elif old == "5 + 5":
            assert "Patch second conflicts" in fork.run("rebase", "--continue", code=1)
    fork.run("rebase", "--continue")
    moved(fork, "1.2")
    assert "return 5 + 5  # first" in fork.read(TASKS)
    assert "return 15 + 15  # second" in fork.read(TASKS)
    assert "why second" in fork.read("patches/second.patch")


def test_patch_already_upstream_leaves_the_series(fork):
    fork.write("patches/series", "# order\nfirst.patch\n# then\nsecond.patch\n")
    wheel(fork.wheels, "1.2", files("1.2", FAR.replace("return 10\n", "return 10  # first\n")))
    assert "Patch first changes nothing on 1.2: upstream has taken it" in fork.run("rebase", "1.2")
    moved(fork, "1.2")
    assert sorted(patches_of(fork)) == ["README.md", "second.patch", "series", "upstream.json"]
    assert fork.read("patches/series").splitlines() == ["# order", "second.patch", "# then"]


def test_conflict_resolved_to_what_upstream_has(fork):
    wheel(fork.wheels, "1.2", files("1.2", UPSTREAM[TASKS].replace("return 10\n", "return 10  # first, upstream's\n")))
    fork.run("rebase", "1.2", code=1)
    (fork.repository / TASKS).write_text(
        files("1.2", UPSTREAM[TASKS].replace("return 10\n", "return 10  # first, upstream's\n"))[TASKS],
        encoding="utf-8",
    )
    assert "Patch first changes nothing on 1.2" in fork.run("rebase", "--continue")
    moved(fork, "1.2")


def test_a_commit_that_belongs_to_no_patch_is_refused(fork):
    wheel(fork.wheels, "1.2", files("1.2", UPSTREAM[TASKS] + "raise SystemExit('broken')\n"))
    assert "The smoke test failed on upstream 1.2" in fork.run("rebase", "1.2", code=1)
    (fork.repository / "ultralytics/cfg/default.yaml").write_text("epochs: 7\n", encoding="utf-8")
    assert "holds changes that no commit has" in fork.run("rebase", "--continue", code=1)
    git(fork.repository, "commit", "-qam", "loose")
    assert "belongs to no patch of the series" in fork.run("rebase", "--continue", code=1)
    git(fork.repository, "reset", "-q", "--hard", "HEAD^")
    git(fork.repository, "commit", "-q", "--amend", "--cleanup=verbatim", "-m", "second\n\nwhy\n---\nmore\n")
    git(fork.repository, "notes", "add", "-f", "-m", "second")
    assert "Patch second: git would read its message otherwise" in fork.run("rebase", "--continue", code=1)
    fork.run("rebase", "--abort")


# What comes out is tried first


def test_failing_smoke_test_leaves_everything_as_it_was(fork):
    wheel(fork.wheels, "1.2", files("1.2", FAR.replace("return 0\n", "return -1\n")))
    before = state(fork)
    said = fork.run("rebase", "1.2", code=1)
    assert "task 0 is broken" in said
    assert "The smoke test failed on upstream 1.2" in said
    assert "The tree, the series and the pin are as they were" in said
    assert state(fork) == before
    assert "The smoke test failed" in fork.run("rebase", "--continue", code=1)
    (fork.repository / TASKS).write_text(
        (fork.repository / TASKS).read_text(encoding="utf-8").replace("return -1\n", "return 0\n"), encoding="utf-8"
    )
    git(fork.repository, "commit", "-qa", "--amend", "--no-edit")  # into the last patch: mended
    fork.run("rebase", "--continue")
    moved(fork, "1.2")


def test_failing_smoke_test_then_abort(fork):
    wheel(fork.wheels, "1.2", files("1.2", FAR.replace("return 0\n", "return -1\n")))
    before = state(fork)
    path = fork.wheels / "ultralytics-1.2-py3-none-any.whl"
    rewrite(path, b"numpy>=1.23", b"no-such-package>=1.23")
    assert "Not installed here: no-such-package>=1.23\n" in fork.run("rebase", "1.2", code=1)
    fork.run("rebase", "--abort")
    untouched(fork, before)


def test_hook_that_landed_elsewhere_is_told(fork):
    """Upstream has moved the lines into another function: git merges, and the syntax tree tells."""
    wheel(fork.wheels, "1.2", files("1.2", FAR.replace("def task_20()", "def task_twenty()")))
    fork.write("patches/hooks.py", fork.read("patches/hooks.py").replace("task_10", "task_20").replace("10'", "20'"))
    before = state(fork)
    assert "the hook 'return 20' must stand in task_20" in fork.run("rebase", "1.2", code=1)
    fork.run("rebase", "--abort")
    untouched(fork, before)


def test_result_that_is_no_python_is_refused(fork):
    wheel(fork.wheels, "1.2", files("1.2", FAR + "def f(:\n"))
    before = state(fork)
    assert "is not valid Python" in fork.run("rebase", "1.2", code=1)
    fork.run("rebase", "--abort")
    untouched(fork, before)


# Refusals before anything begins


def test_edited_files_are_refused(fork):
    fork.edit(TASKS, "return 3\n", "return 333\n")
    before = state(fork)
    assert TASKS in fork.run("rebase", "1.1", code=1)
    assert state(fork) == before
    assert not (fork.root / ".upstream/rebase").exists()


def test_foreign_file_in_the_way_is_refused(fork):
    new = "ultralytics/new.py"
    wheel(fork.wheels, "1.2", files("1.2", **{new: "theirs = 1\n"}))
    fork.write(new, "mine = 1\n")
    before = state(fork)
    assert f"  {new}\n" in fork.run("rebase", "1.2", code=1)
    assert state(fork) == before
    (fork.root / new).unlink()
    fork.run("rebase", "--continue")
    moved(fork, "1.2")


def test_patched_file_that_upstream_renames_or_drops(fork):
    """Git follows a rename; where the file is gone, the hooks are missed and nothing moves."""
    moved_to, hooks = "ultralytics/nn/parser.py", fork.read("patches/hooks.py")
    renamed = files("1.2", **{TASKS: None, moved_to: FAR})
    wheel(fork.wheels, "1.2", renamed)
    wheel(fork.wheels, "1.3", files("1.3", **{TASKS: None}))
    before = state(fork)
    said = fork.run("rebase", "1.2", code=1)
    assert f"{TASKS} cannot be read as Python" in said
    fork.run("rebase", "--abort")
    assert f"Patch first conflicts with upstream 1.3 in\n  {TASKS}\n" in fork.run("rebase", "1.3", code=1)
    fork.run("rebase", "--abort")
    untouched(fork, before)
    fork.write("patches/hooks.py", hooks.replace(TASKS, moved_to))
    fork.write("patches/smoke.py", SMOKE.replace("import tasks", "import parser as tasks"))
    fork.run("rebase", "1.2")
    moved(fork, "1.2")
    assert "return 10  # first" in fork.read(moved_to)


def test_release_with_our_names_is_refused(fork):
    wheel(fork.wheels, "1.2", files("1.2", **{"ultralytics/nn/Addmodules/__init__.py": "theirs = 1\n"}))
    before = state(fork)
    assert "names that this fork keeps" in fork.run("rebase", "1.2", code=1)
    untouched(fork, before)


@pytest.mark.parametrize("version", ["9.9", "nonsense", "1.11rc1"])
def test_no_such_release(fork, version):
    before = state(fork)
    fork.run("rebase", version, code=1)
    untouched(fork, before)


@pytest.mark.parametrize("damage", ["text", "cut", "method", "headers"])
def test_a_wheel_that_is_none(fork, damage):
    """It is said in a sentence, and nothing of it is kept."""
    path = fork.wheels / "ultralytics-1.1-py3-none-any.whl"
    data = path.read_bytes()
    if damage == "headers":
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("other-1.dist-info/METADATA", b"\xff\xff")
    else:
        method = re.sub(rb"(?s)(PK\x01\x02.{6})\0\0", rb"\g<1>c\0", data)  # one that no Python knows
        path.write_bytes({"text": b"<html>not found</html>", "cut": data[: len(data) // 2], "method": method}[damage])
        assert path.read_bytes() != data
    before = state(fork)
    for words in (("rebase", "1.1"), ("rebase", "latest"), ("matrix", "1.1", "--no-smoke")):
        said = fork.run(*words, code=1)
        assert f"{path} is no wheel, or a damaged one (" in said
        assert "Get that wheel again" in said
        assert not list((fork.root / ".upstream/cache").glob("*1.1*"))
    untouched(fork, before)
    path.write_bytes(data)
    fork.run("rebase", "1.1")
    moved(fork, "1.1")


def test_old_release_that_is_not_to_be_had(fork):
    """Without the old release there is nothing to merge with; say so instead of guessing."""
    (fork.wheels / "ultralytics-1.0-py3-none-any.whl").unlink()
    shutil.rmtree(fork.root / ".upstream/cache")
    before = state(fork)
    assert "holds no ultralytics-1.0-py3-none-any.whl" in fork.run("rebase", "1.1", code=1)
    assert state(fork) == before


def test_no_network(fork):
    del fork.env["VMAMBA_UPSTREAM_DIR"]
    fork.env.update(PIP_NO_INDEX="1", PIP_FIND_LINKS=fork.root.as_uri(), PIP_CONFIG_FILE=os.devnull)
    before = state(fork)
    assert "ultralytics-1.1-py3-none-any.whl could not be downloaded" in fork.run("rebase", "1.1", code=1)
    assert "Upstream's releases could not be listed" in fork.run("rebase", "latest", code=1)
    assert "unknown: Upstream's releases could not be listed" in fork.run("status", "--online")
    untouched(fork, before)


def test_pip_brings_the_new_release(fork):
    del fork.env["VMAMBA_UPSTREAM_DIR"]
    fork.env.update(PIP_NO_INDEX="1", PIP_FIND_LINKS=fork.wheels.as_uri(), PIP_CONFIG_FILE=os.devnull)
    assert "Fetching upstream ultralytics 1.1" in fork.run("rebase", "1.1")
    moved(fork, "1.1")
    said = fork.run("rebase", "7.7", code=1)
    assert "The registry has no ultralytics 7.7 for this Python" in said
    assert "It has 2 releases, the newest 1.1." in said
    assert "Fetching" not in fork.run("rebase", "1.0")  # both wheels were fetched before


def test_usage(fork):
    for args in ([], ["1.1", "--abort"], ["--continue", "--abort"], ["--continue", "--from", "x"]):
        fork.run("rebase", *args, code=2)


# Killed


def test_killed_at_every_write_of_the_move(fork):
    """Kill -9 before each rename and removal: --continue goes through, --abort gives back what there was."""
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        "left = int(sys.argv[1])\n"
        "def counted(real):\n"
        "    def call(*args, **kwargs):\n"
        "        global left\n"
        "        left -= 1\n"
        "        if left < 0: os.kill(os.getpid(), getattr(signal, 'SIGKILL', signal.SIGTERM))\n"
        "        return real(*args, **kwargs)\n"
        "    return call\n"
        "from patches import rebase\n"
        "def move(*args, real=rebase.move):\n"
        "    os.replace, Path.unlink = counted(os.replace), counted(Path.unlink)\n"
        "    real(*args)\n"
        "rebase.move = move\n"
        "rebase.start('1.2', None)\n"
    )
    wheel(fork.wheels, "1.2", files("1.2", FAR.replace("return 10\n", "return 10  # first\n")))  # one patch goes
    before, kills, half = state(fork), 0, 0
    for steps in range(30):
        command = [sys.executable, "-c", code, str(steps)]
        if subprocess.run(command, cwd=fork.root, env=fork.env, capture_output=True, check=False).returncode == 0:
            break
        kills += 1
        if fork.read(".upstream/rebase/state.json") if (fork.root / ".upstream/rebase/state.json").exists() else "":
            half += state(fork) != before
            if state(fork) != before:
                assert "cut short while the pin moved" in fork.run("status", code=1)
            if steps % 2:
                fork.run("rebase", "--abort")
                untouched(fork, before)
                continue
            fork.run("rebase", "--continue")
        else:
            fork.run("setup")
        moved(fork, "1.2")
        for name, data in before[0].items():
            (fork.root / "patches" / name).write_bytes(data)
        fork.run("setup")
    assert kills >= 5
    assert half >= 3


# From a clone of upstream's repository


@pytest.mark.parametrize("ref", ["v1.1", "1.1", "latest", "commit", "address"])
def test_rebase_from_a_clone(fork, clone, ref):
    source = clone.as_uri() if ref == "address" else str(clone)
    ref = {"commit": git(clone, "rev-parse", "v1.1^{commit}").strip(), "address": "v1.1"}.get(ref, ref)
    fork.run("rebase", ref, "--from", source)
    moved(fork, "1.1")


def test_what_is_no_release_is_a_rehearsal(fork, clone):
    before = state(fork)
    said = fork.run("rebase", "main", "--from", str(clone))
    assert "is not release 1.1: 1 files differ" in said
    assert "Rehearsed" in said
    untouched(fork, before)
    git(clone, "commit", "-q", "--allow-empty", "-m", "x")
    (clone / TASKS).write_text(CONFLICT, encoding="utf-8")
    git(clone, "commit", "-qam", "conflict")
    assert "Patch first conflicts with upstream clone-" in fork.run("rebase", "main", "--from", str(clone), code=1)
    fork.run("rebase", "--abort")
    untouched(fork, before)


def test_wrong_clone_is_told(fork, clone, tmp_path):
    for ref, source in (("v9", clone), ("main", tmp_path / "nowhere"), ("main", fork.root)):
        said = fork.run("rebase", ref, "--from", str(source), code=1)
        assert f"{source} cannot be reached, or has no {ref}. Nothing was changed." in said
    untouched(fork, state(fork))
