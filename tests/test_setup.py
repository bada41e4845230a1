# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""The upkeep tool on a toy upstream: laying, refusing, recovering, extracting.

Each test gets a fork of its own in a temporary folder, with a copy of the tool and a wheel of a few small files, and
runs the tool as users do, as a process.
"""

import errno
import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from forks import TASKS, UPSTREAM, Fork, patched_fork, patches_of

from patches import ROOT, PatchesError, tree, upstream


@pytest.fixture
def fork(tmp_path):
    """A fork with nothing laid."""
    return Fork(tmp_path)


@pytest.fixture
def patched(tmp_path):
    """A fork with two patches to one file, set up."""
    return patched_fork(tmp_path)


# Laying


def test_lays_and_is_idempotent(fork):
    assert "nothing laid" in fork.run("status", code=1)
    assert "laid with 0 patches: 13 files" in fork.run("setup")
    assert fork.laid(UPSTREAM)
    stamps = {path: path.stat().st_mtime_ns for path in (fork.root / "ultralytics").rglob("*")}
    assert "Nothing to do" in fork.run("setup")
    assert stamps == {path: path.stat().st_mtime_ns for path in (fork.root / "ultralytics").rglob("*")}
    fork.run("status")


def test_needs_neither_wheel_nor_git_when_nothing_changed(patched):
    shutil.rmtree(patched.wheels)
    shutil.rmtree(patched.root / ".upstream/cache")
    patched.env["PATH"] = str(patched.root / "nowhere")
    assert "Nothing to do" in patched.run("setup")
    patched.run("status")


def test_needs_no_git_to_lay_and_patch(patched):
    want = patched.tree()
    shutil.rmtree(patched.root / "ultralytics/nn")
    patched.write("ultralytics/nn/Addmodules/__init__.py", "ours = True\n")
    patched.env["PATH"] = str(patched.root / "nowhere")
    assert "2 patches: 1 files" in patched.run("setup")
    assert patched.tree() == want
    assert "git is not on the PATH" in patched.run("extract", code=1)


def test_state_folder_may_be_deleted(patched):
    shutil.rmtree(patched.root / ".upstream")
    patched.run("setup")
    patched.run("status")
    patched.run("check")


def test_pin_moves_and_removes_what_upstream_dropped(patched):
    files = {path: text for path, text in UPSTREAM.items() if "gone" not in path}
    files["ultralytics/new/__init__.py"] = "new = 1\n"
    patched.pin("1.1", files)
    cached = patched.root / "ultralytics/gone/__pycache__/old.cpython-310.pyc"
    cached.parent.mkdir()
    cached.touch()
    assert "older pin or series" in patched.run("status", code=1)
    patched.run("setup")
    assert not (patched.root / "ultralytics/gone").exists()
    assert patched.read("ultralytics/new/__init__.py") == "new = 1\n"
    assert patched.tree().keys() == {*files, "ultralytics/nn/Addmodules/__init__.py"}


def test_file_becomes_folder(fork):
    fork.run("setup")
    package = {**UPSTREAM, "ultralytics/gone/old.py/inner.py": "y = 2\n"}
    del package["ultralytics/gone/old.py"]
    fork.pin("1.1", package)
    fork.run("setup")
    assert fork.laid(package)


def test_own_files_are_never_overwritten(fork):
    fork.pin("1.0", {**UPSTREAM, "ultralytics/nn/Addmodules/__init__.py": "theirs = True\n"})
    for command in (["setup"], ["setup", "--force"]):
        said = fork.run(*command, code=1)
        assert "names that this fork keeps" in said
        assert "ultralytics/nn/Addmodules/__init__.py" in said
    assert fork.tree() == {"ultralytics/nn/Addmodules/__init__.py": b"ours = True\n"}


def test_own_files_with_and_without_what_a_compiler_left(fork):
    fork.run("setup")
    names = ("nn/Addmodules/a.so", "nn/Addmodules/a.cpp", "nn/Addmodules/__pycache__/a.pyc", "cfg/VMamba/x.yaml")
    for name in names:
        fork.write(f"ultralytics/{name}", "x")
    code = "from patches import tree; print(*tree.own_files(), *tree.own_files(compiled=False), sep='\\n')"
    said = subprocess.check_output([sys.executable, "-c", code], cwd=fork.root, env=fork.env, text=True)
    found = [line.removeprefix("ultralytics/") for line in said.splitlines()]
    ours = [names[3], "nn/Addmodules/__init__.py", names[1]]
    assert found == [*ours, names[0], *ours]


def test_a_file_system_without_locks_is_told_and_used(tmp_path, monkeypatch, capsys):
    fcntl = pytest.importorskip("fcntl", reason="Windows")
    monkeypatch.setattr(tree, "WORK", tmp_path)

    def refuse(why):
        def flock(*_):
            raise OSError(why, os.strerror(why))

        monkeypatch.setattr(fcntl, "flock", flock)

    refuse(errno.ENOLCK)
    with tree.lock(0):
        pass
    assert re.match(r"WARNING: .*lock cannot be locked \(No locks available\)", capsys.readouterr().err)
    refuse(errno.EAGAIN)
    with pytest.raises(PatchesError, match="Another process has held"), tree.lock(0):
        pass


# Edits and foreign files


def test_edited_file_is_refused_then_saved_by_force(patched):
    before = patched.tree()
    patched.edit(TASKS, "return 3\n", "return 333\n")
    (patched.root / "ultralytics/cfg/default.yaml").unlink()
    edited = patched.tree()
    said = patched.run("setup", code=1)
    assert TASKS in said
    assert "python -m patches extract NAME" in said
    assert "python -m patches setup --force" in said
    assert "default.yaml" not in said
    assert patched.tree() == edited
    assert TASKS in patched.run("status", code=1)
    said = patched.run("setup", "--force")
    assert patched.tree() == before
    saved = Path(said.split("kept in ")[1].strip())
    assert (saved / TASKS).read_bytes() == edited[TASKS]
    assert [path for path in saved.rglob("*") if path.is_file()] == [saved / TASKS]


def test_edited_file_is_refused_when_the_pin_moved(patched):
    patched.edit("ultralytics/gone/old.py", "x = 1", "x = 2")
    patched.pin("1.1", {path: text for path, text in UPSTREAM.items() if "gone" not in path})
    before = patched.tree()
    said = patched.run("setup", code=1)
    assert "ultralytics/gone/old.py" in said
    assert "go back to the" in said
    assert patched.tree() == before
    refused = patched.run("extract", "third", "-m", "why", code=1)
    assert "not laid from this pin" in refused
    told = patched.run("status", code=1)
    for text in (refused, told):  # none of them advises what set-up refuses
        assert "go back to the" in text
        assert "Next: python -m patches setup" not in text


def test_foreign_file_is_refused(fork):
    fork.write("ultralytics/__init__.py", "mine = 1\n")
    fork.write("ultralytics/nn/tasks.py", UPSTREAM[TASKS])  # the same as upstream's: nothing can be lost
    said = fork.run("setup", code=1)
    assert "did not lay" in said
    assert "ultralytics/__init__.py" in said
    assert TASKS not in said
    assert "kept in" in fork.run("setup", "--force")
    assert fork.laid(UPSTREAM)


def test_folder_in_the_way_is_refused(fork):
    (fork.root / "ultralytics/__init__.py").mkdir()
    assert "is a folder where upstream has a file" in fork.run("setup", code=1)


@pytest.mark.parametrize(
    ("system", "said"), [("posix", "copy the checkout to a folder of yours"), ("nt", "Close the prog")]
)
def test_checkout_that_cannot_be_written_to_is_told(monkeypatch, system, said):
    def locked(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied", ".upstream/lock")

    monkeypatch.setattr(tree, "lock", locked)
    monkeypatch.setattr(tree.os, "name", system)
    with pytest.raises(PatchesError, match=r"Set-up stopped: .*Permission denied: '\.upstream/lock'") as told:
        tree.setup()
    monkeypatch.undo()
    assert said in str(told.value)


def test_file_that_another_program_holds_for_a_moment_is_replaced(monkeypatch, tmp_path):
    """On Windows a virus scanner opens what was just written."""
    replace, refusals = os.replace, [1, 1]

    def held(source, target):
        if refusals:
            refusals.pop()
            raise PermissionError(errno.EACCES, "being used by another process", str(target))
        replace(source, target)

    monkeypatch.setattr(upstream, "PAUSES", (0.0, 0.0))
    monkeypatch.setattr(upstream, "WORK", tmp_path)
    monkeypatch.setattr(os, "replace", held)
    upstream.replace(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"new"
    refusals += [1, 1, 1]
    with pytest.raises(PermissionError):
        upstream.replace(tmp_path / "a", b"newer")


def test_console_that_lacks_a_letter(tmp_path):
    """A pipe on Windows has the code page of the system: paths of another language must not end a command."""
    fork = Fork(tmp_path / "文件")
    fork.env["PYTHONIOENCODING"] = "cp1252"
    fork.write(TASKS, "mine = 1\n")
    fork.env["VMAMBA_UPSTREAM_DIR"] = str(tmp_path / "没有")
    assert "??" in fork.run("setup", code=1)


# Where the wheel comes from


def test_wrong_hash_is_refused(fork):
    pin = json.loads(fork.read("patches/upstream.json"))
    fork.write("patches/upstream.json", json.dumps({**pin, "sha256": "0" * 64}))
    said = fork.run("setup", code=1)
    assert pin["sha256"] in said
    assert "0" * 64 in said
    assert "Nothing was changed" in said
    assert len(fork.tree()) == 1
    assert not (fork.root / ".upstream/cache").exists()


def test_damaged_cache_is_fetched_again_or_reported(patched):
    cached = patched.root / ".upstream/cache/ultralytics-1.0-py3-none-any.whl"
    whole = cached.read_bytes()
    cached.write_bytes(whole[:100])
    (patched.root / TASKS).unlink()
    said = patched.run("setup")
    assert "cached copy" in said
    assert cached.read_bytes() == whole
    cached.write_bytes(whole[:100])
    shutil.rmtree(patched.wheels)
    (patched.root / TASKS).unlink()
    said = patched.run("setup", code=1)
    assert "cached copy" in said
    assert "holds no ultralytics-1.0-py3-none-any.whl" in said


def test_no_network_and_no_cache(fork):
    del fork.env["VMAMBA_UPSTREAM_DIR"]
    fork.env.update(PIP_NO_INDEX="1", PIP_FIND_LINKS=str(fork.root), PIP_CONFIG_FILE=os.devnull)
    said = fork.run("setup", code=1)
    assert "could not be downloaded" in said
    assert "VMAMBA_UPSTREAM_DIR=FOLDER" in said
    assert len(fork.tree()) == 1


def test_pip_brings_the_wheel_and_checks_it(fork):
    del fork.env["VMAMBA_UPSTREAM_DIR"]
    fork.env.update(PIP_NO_INDEX="1", PIP_FIND_LINKS=str(fork.wheels), PIP_CONFIG_FILE=os.devnull)
    pin = fork.read("patches/upstream.json")
    fork.write("patches/upstream.json", json.dumps({**json.loads(pin), "sha256": "0" * 64}))
    assert "does not have the pinned hash" in fork.run("setup", code=1)
    fork.write("patches/upstream.json", pin)
    fork.run("setup")
    assert fork.laid(UPSTREAM)


def test_broken_pin_is_refused(fork):
    pin = json.loads(fork.read("patches/upstream.json"))
    broken = [{"version": "1.0"}, [pin], {**pin, "sha256": None}, {**pin, "version": 1.0}, {**pin, "version": "../1"}]
    for text in map(json.dumps, broken):
        fork.write("patches/upstream.json", text)
        for verb in ("setup", "status"):
            said = fork.run(verb, code=1)
            assert "is no pin" in said
            assert said.count("\n") == 1


# Patches that do not fit


def test_patch_that_does_not_apply_names_itself_and_changes_nothing(patched):
    moved = UPSTREAM[TASKS].replace("return 10\n", "return ten\n")
    patched.pin("1.1", {**UPSTREAM, TASKS: moved, "ultralytics/cfg/default.yaml": "epochs: 5\n"})
    before = patched.tree()
    said = patched.run("setup", code=1)
    assert "Patch first does not apply to ultralytics/nn/tasks.py, line 42" in said
    assert "upstream  '    return ten'" in said
    assert patched.tree() == before


def test_patch_never_lands_elsewhere(patched):
    """Context that stands a line further down is what git would take, with an offset."""
    patched.pin("1.1", {**UPSTREAM, TASKS: "# one line more\n" + UPSTREAM[TASKS]})
    assert "Patch first does not apply" in patched.run("setup", code=1)
    patched.pin("1.2", {**UPSTREAM, TASKS: UPSTREAM[TASKS] + "# one line more\n"})
    assert "made for other contents of that file" in patched.run("setup", code=1)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("# first", "# furst", "as recorded: it was edited by hand"),
        ("+    return 10  # first\n", "", "cut short or damaged"),
        ("index ", "old mode 100644\nindex ", "only edits of text files"),
        ("diff --git", "diff --not", "is empty: it edits no file"),
    ],
)
def test_damaged_patch_is_refused(patched, old, new, said):
    before = patched.tree()
    patched.edit("patches/first.patch", old, new)
    assert said in patched.run("setup", code=1)
    assert said in patched.run("check", code=1)
    assert patched.tree() == before


@pytest.mark.parametrize(
    ("series", "said"),
    [
        ("first.patch\n", "second.patch: present but not listed"),
        ("first.patch\nsecond.patch\nthird.patch\n", "third.patch: listed in patches/series but missing"),
        ("first.patch\nfirst.patch\nsecond.patch\n", "first.patch: listed twice"),
        ("<<<<<<< HEAD\nfirst.patch\n=======\nsecond.patch\n>>>>>>> x\n", "marks of a merge in lines 1, 3, 5. Take"),
    ],
)
def test_series_and_folder_must_agree(patched, series, said):
    patched.write("patches/series", series)
    assert said in patched.run("setup", code=1)


def test_the_applier_agrees_with_git(patched, tmp_path):
    patched.edit("ultralytics/assets/no-newline.txt", "last", "last\nand more")
    patched.edit(TASKS, "def task_0():\n    return 0\n", "")
    patched.run("extract", "third", "-m", "why third")
    for path, text in UPSTREAM.items():
        (tmp_path / "git" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "git" / path).write_text(text, encoding="utf-8")
    for name in ("first", "second", "third"):
        patch = patched.root / f"patches/{name}.patch"
        env = {**os.environ, "GIT_CEILING_DIRECTORIES": str(tmp_path)}
        subprocess.run(["git", "apply", patch], cwd=tmp_path / "git", env=env, check=True)
    for path in UPSTREAM:
        assert (tmp_path / "git" / path).read_bytes() == patched.tree()[path]
    patched.run("check")


# Extracting


def test_extract_writes_what_git_made_and_repeats_to_the_byte(patched):
    before = patches_of(patched)
    assert before["series"] == b"first.patch\nsecond.patch\n"
    patch = before["first.patch"].decode()
    assert patch.startswith("From " + "0" * 40)
    assert "From: VMamba-YOLO <vmamba-yolo@users.noreply.github.com>" in patch
    assert "Subject: [PATCH] first\n\nwhy first\n" in patch
    patched.run("extract")
    assert patches_of(patched) == before
    patched.env.update(GIT_AUTHOR_NAME="someone", GIT_CONFIG_COUNT="1", GIT_CONFIG_KEY_0="diff.noprefix")
    patched.env.update(GIT_CONFIG_VALUE_0="true", GIT_DIR="/nowhere", GIT_DIFF_OPTS="-u1")
    patched.run("extract")
    assert patches_of(patched) == before
    assert "Nothing to do" in patched.run("setup")


def test_extract_refuses_what_is_empty(patched):
    before = patches_of(patched)
    for name in ("first", "third"):
        assert "Nothing to extract" in patched.run("extract", name, "-m", "why", code=1)
    patched.edit(TASKS, "return 10  # first\n", "return 10\n")
    assert "takes out all that patch first does" in patched.run("extract", "first", code=1)
    assert patches_of(patched) == before


def test_extract_updates_an_earlier_patch(patched):
    before = patches_of(patched)
    patched.edit(TASKS, "return 12\n", "return 12  # more\n")
    patched.edit("ultralytics/cfg/default.yaml", "100", "300")
    edited = patched.tree()
    patched.run("extract", "first.patch")
    after = patches_of(patched)
    assert after.keys() == before.keys()
    assert b"# more" in after["first.patch"]
    assert b"epochs: 300" in after["first.patch"]
    assert b"why first" in after["first.patch"]
    assert b"# more" not in after["second.patch"]
    assert patched.tree() == edited
    assert "Nothing to do" in patched.run("setup")
    patched.run("extract")
    assert patches_of(patched) == after
    patched.edit(TASKS, "return 13\n", "return 13  # too\n")
    patched.run("extract", "first", "-m", "subject", "-m", "new reason")
    assert "Subject: [PATCH] subject\n\nnew reason\n" in patched.read("patches/first.patch")


def test_edit_gives_lines_a_message_or_both(patched):
    before, tree = patches_of(patched), patched.tree()
    said = patched.run("edit", "first", "-m", "title", "-m", "better reason")
    assert "python -m patches edit first -m title -m 'Why. Drop when ...'" in said
    said = patched.run("edit", "first", "-m", "title", "-m", "better reason", "-m", "Drop when it rains.")
    assert "Wrote patches/first.patch" in said
    assert "Drop when" not in said
    after = patches_of(patched)
    message = "Subject: [PATCH] title\n\nbetter reason\n\nDrop when it rains.\n"
    assert after == {
        **before,
        "first.patch": before["first.patch"].replace(b"Subject: [PATCH] first\n\nwhy first\n", message.encode()),
    }
    assert patched.tree() == tree
    assert "Nothing to do" in patched.run("setup")
    patched.edit(TASKS, "return 12\n", "return 12  # more\n")
    patched.run("edit", "first")
    assert "# more" in patched.read("patches/first.patch")
    assert message in patched.read("patches/first.patch")
    assert "Nothing to extract" in patched.run("edit", "first", code=1)
    assert "no patch 'third'. It has: first, second" in patched.run("edit", "third", "-m", "why", code=1)
    patched.run("edit", code=2)
    patched.run("check")


def test_an_end_may_be_never_and_the_command_to_tell_it_can_be_copied(patched):
    title, asked = 'it\'s "$HOME" \\ `now`', "does not tell when it can be dropped"
    said = patched.run("edit", "first", "-m", title, "-m", "reason")
    assert asked in said
    command = shlex.split(said.partition("Next: python -m patches ")[2])
    assert command == ["edit", "first", "-m", title, "-m", "Why. Drop when ..."]
    assert asked not in patched.run(*command)
    for end in ("Drop never.", "It stays: drop\nnever", "drop When it rains"):
        assert asked not in patched.run("edit", "first", "-m", title, "-m", f"reason. {end}")
    assert asked in patched.run("edit", "first", "-m", title, "-m", "Raindrop never falls. Drop whenever.")


def test_a_title_with_brackets_stays(patched):
    for title in ("[WIP] fonts", "[a] [b] c", "fonts: [x]"):
        patched.run("edit", "first", "-m", title, "-m", "why")
        assert f"Subject: [PATCH] {title}\n\nwhy\n" in patched.read("patches/first.patch")
        patched.run("check")
        before = patches_of(patched)
        patched.run("extract")
        assert patches_of(patched) == before


@pytest.mark.parametrize(
    ("message", "line"),
    [
        (("fonts", "why\n---\nmore"), "---"),
        (("fonts", "why\ndiff --git a/x b/x\nmore"), "diff --git a/x b/x"),
        (("fonts", "diff --git a/x b/x\n--- a/x\n+++ b/x\n@@ -1 +1 @@\n-a\n+b"), "diff --git a/x b/x"),
        (("fonts", "Index: x\nmore"), "Index: x"),
        (("[PATCH v2] fonts", "why"), "Subject: [PATCH] [PATCH v2] fonts"),
        (("fonts", "From: someone <a@b.c>\n\nwhy"), "From: someone <a@b.c>"),
    ],
)
def test_a_message_that_git_reads_otherwise_is_refused(patched, message, line):
    """Nothing is written then: a patch that cannot be read would stop every command."""
    patched.edit(TASKS, "return 20\n", "return 20  # third\n")
    before = patches_of(patched)
    words = [word for part in message for word in ("-m", part)]
    for command in (("extract", "third"), ("edit", "second")):
        said = patched.run(*command, *words, code=1)
        assert f"Patch {command[1]}: git would read its message otherwise in a patch, from {line!r} on." in said
        assert patches_of(patched) == before
    patched.run("extract", "third", "-m", "fonts", "-m", "why --- and diff --git a/x b/x")
    patched.run("check")


def test_one_broken_patch_takes_no_other_with_it(patched):
    """What cannot be read must not pass for a series without it."""
    patched.edit("patches/first.patch", "diff --git", "diff --not")
    patched.edit(TASKS, "return 12\n", "return 12  # more\n")
    before = patches_of(patched)
    for command in (
        ["extract"],
        ["extract", "second"],
        ["edit", "second", "-m", "why"],
        ["status"],
        ["setup", "--force"],
    ):
        assert "Patch first is empty" in patched.run(*command, code=1)
    assert patches_of(patched) == before
    (patched.root / "patches/first.patch").rename(patched.root / "patches/my first.patch")
    patched.write("patches/series", "my first.patch\nsecond.patch\n")
    assert "Restore it: git checkout -- 'patches/my first.patch'\n" in patched.run("setup", code=1)


def test_extract_refuses_an_edit_that_belongs_to_a_later_patch(patched):
    before = patches_of(patched)
    patched.edit(TASKS, "return 30  # second\n", "return 30  # second, better\n")
    said = patched.run("extract", "first", code=1)
    assert "cannot go into first" in said
    assert patches_of(patched) == before
    patched.run("extract", "second")
    assert "second, better" in patched.read("patches/second.patch")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<<<<<<< ours\nx\n=======\ny\n>>>>>>> theirs\n", "has conflict markers"),
        ("def f(:\n", "is not valid Python"),
        ("", "is empty or binary"),
        ("\0", "is empty or binary"),
    ],
)
def test_extract_refuses_what_is_not_finished(patched, text, said):
    before = patches_of(patched)
    patched.write(TASKS, text)
    assert said in patched.run("extract", "third", "-m", "why", code=1)
    assert patches_of(patched) == before


def test_extract_asks_for_what_it_needs(patched):
    patched.edit(TASKS, "return 3\n", "return 333\n")
    assert TASKS in patched.run("extract", code=1)
    assert "python -m patches extract third -m" in patched.run("extract", "third", code=1)
    for name in ("0001-third", "../third", "Third"):
        assert "is no patch name" in patched.run("extract", name, "-m", "why", code=1)


def merged(fork: Fork, name: str, old: str, new: str) -> None:
    """Put a patch of another copy of this fork, made on the same series, in front of this one's last patch."""
    mail = fork.read("patches/second.patch")
    fork.write("patches/series", "first.patch\n")
    (fork.root / "patches/second.patch").unlink()
    fork.run("setup")
    fork.patch(name, old, new)
    fork.write("patches/second.patch", mail)
    fork.write("patches/series", f"first.patch\n{name}.patch\nsecond.patch\n")


def test_refit_makes_a_patch_again_for_its_file_as_it_is(patched):
    assert "Nothing to do" in patched.run("refit")
    merged(patched, "theirs", "def task_0():\n", "# theirs\ndef task_0():\n")
    before = patches_of(patched), patched.tree()
    said = patched.run("setup", code=1)
    assert "Patch second does not apply" in said
    assert "python -m patches refit" in said
    told = patched.run("status", code=1)
    assert "Set-up would refuse to go on" in told
    assert "Next: python -m patches setup" not in told
    assert (patches_of(patched), patched.tree()) == before
    said = patched.run("refit")
    assert f"Wrote patches/second.patch: {TASKS}, 1 line down" in said
    assert "first.patch" not in said
    assert {n: b for n, b in patches_of(patched).items() if n != "second.patch"} == {
        n: b for n, b in before[0].items() if n != "second.patch"
    }
    patched.run("setup")
    patched.run("check")
    assert "# theirs\ndef task_0()" in patched.read(TASKS)
    assert "return 30  # second\n" in patched.read(TASKS)


def test_refit_refuses_what_git_does_not_find(patched):
    merged(patched, "theirs", "    return 30\n", "    return 3 * 10\n")
    before = patches_of(patched), patched.tree()
    said = patched.run("refit", code=1)
    assert "Patch second cannot be made again" in said
    assert "python -m patches extract second -m" in said
    assert (patches_of(patched), patched.tree()) == before


def test_check_tells_foreign_form_and_extract_cures_it(patched):
    before = patches_of(patched)
    patched.write("patches/first.patch", patched.read("patches/first.patch") + "-- \n2.39.5\n\n")
    patched.run("setup")  # it says the same
    assert "these patches differ from what is stored: first." in patched.run("check", code=1)
    patched.run("extract")
    assert patches_of(patched) == before
    patched.run("check")


def test_check_tells_an_edited_tree_a_lost_hook_and_a_committed_file(patched):
    patched.edit(TASKS, "return 3\n", "return 333\n")
    assert f"The laid tree differs from the series: {TASKS}" in patched.run("check", code=1)
    patched.run("setup", "--force")
    patched.run("check")
    patched.write(".gitignore", "/ultralytics/\n/.upstream/\n__pycache__/\n")
    subprocess.run(["git", "init", "-q"], cwd=patched.root, check=True)
    patched.run("check")
    subprocess.run(["git", "add", "-f", TASKS, "ultralytics/__init__.py"], cwd=patched.root, check=True)
    said = patched.run("check", code=1)
    assert re.search(rf"{TASKS}:\d+: more than 30 lines are those of upstream's {TASKS}", said)
    assert "ultralytics/__init__.py is upstream's" in said
    patched.write("patches/hooks.py", patched.read("patches/hooks.py").replace("task_10", "task_11"))
    assert "the hook 'return 10' must stand in task_11" in patched.run("check", code=1)


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="these have no names of files but in Unicode")
def test_a_file_whose_name_is_no_unicode(patched):
    """Git gives names as bytes; such a file may lie in any checkout."""
    patched.write(".gitignore", "/ultralytics/\n/.upstream/\n__pycache__/\n")
    subprocess.run(["git", "init", "-q"], cwd=patched.root, check=True)
    whole = int(re.search(r"(\d+) files of this repository", patched.run("check"))[1])
    Path(os.fsdecode(os.fsencode(patched.root) + b"/caf\xe9.txt")).write_bytes((patched.root / TASKS).read_bytes())
    assert ".txt:" in patched.run("check", code=1)
    Path(os.fsdecode(os.fsencode(patched.root) + b"/caf\xe9.txt")).write_bytes(b"ours")
    assert f"{whole + 1} files of this repository" in patched.run("check")


def test_dropping_a_patch(patched):
    (patched.root / "patches/second.patch").unlink()
    patched.write("patches/series", "first.patch\n")
    patched.run("setup")
    assert "# second" not in patched.read(TASKS)
    assert "# first" in patched.read(TASKS)


# Interruption and concurrency


def whole_or_recovered(fork, want):
    """Assert that what a killed set-up left is made whole by the next one."""
    fork.run("setup")
    assert fork.tree() == want
    assert not (fork.root / ".upstream/tmp").exists() or not list((fork.root / ".upstream/tmp").iterdir())
    fork.run("status")


@pytest.fixture
def two_states(patched, tmp_path):
    """A fork to go to and fro between two pins and series, and the trees that belong to them."""
    states = []
    for version, drop in (("1.0", "nothing"), ("1.1", "gone")):
        files = {path: text + f"# {version}\n" * (path != TASKS) for path, text in UPSTREAM.items() if drop not in path}
        patched.pin(version, files)
        patched.run("setup")
        states.append((patched.read("patches/upstream.json"), patched.tree()))
    return patched, states


def test_killed_at_every_write(two_states):
    """Kill -9 before each rename and each removal that a set-up makes, one after the other."""
    fork, states = two_states
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
        "os.replace, Path.unlink = counted(os.replace), counted(Path.unlink)\n"
        "from patches import tree; tree.setup()\n"
    )
    kills, at = 0, 1
    for steps in range(200):
        pin, want = states[1 - at]
        fork.write("patches/upstream.json", pin)
        command = [sys.executable, "-c", code, str(steps)]
        if subprocess.run(command, cwd=fork.root, env=fork.env, check=False).returncode == 0:
            break
        kills += 1
        if steps % 3 == 0:  # the next run goes where the killed one came from
            pin, want = states[at]
            fork.write("patches/upstream.json", pin)
        else:
            at = 1 - at
        whole_or_recovered(fork, want)
    assert 12 < kills < 199


def kill_at_random(fork, states, times, seed=0):
    """Kill -9 set-ups at random points, at times several in a row."""
    rng = random.Random(seed)
    fork.write("patches/upstream.json", states[0][0])
    fork.run("setup")
    started = time.monotonic()
    fork.write("patches/upstream.json", states[1][0])
    fork.run("setup")
    span = time.monotonic() - started
    killed = 0
    for turn in range(times):
        pin, want = states[turn % 2]
        fork.write("patches/upstream.json", pin)
        for _ in range(rng.choice((1, 1, 2, 3))):
            process = fork.start("setup")
            time.sleep(rng.uniform(0.3, 1.1) * span)
            process.send_signal(getattr(signal, "SIGKILL", signal.SIGTERM))
            process.communicate()
            killed += process.returncode != 0
        whole_or_recovered(fork, want)
    return killed


def test_killed_at_random(two_states):
    assert kill_at_random(*two_states, times=12)


@pytest.mark.slow
def test_killed_at_random_fifty_times(two_states):
    killed, turns = 0, 0
    while killed < 50 and turns < 300:  # a set-up that was through before its kill does not count
        killed += kill_at_random(*two_states, times=10, seed=turns)
        turns += 10
    assert killed >= 50


def test_edit_after_a_killed_setup_is_still_refused(two_states):
    fork, states = two_states
    fork.write("patches/upstream.json", states[0][0])
    code = "import os; from patches import tree; tree._remove = lambda path: os._exit(9); tree.setup()"
    fork.edit("ultralytics/__init__.py", "# 1.1", "# 1.0")  # as if laid by the run that is to be killed
    fork.write("patches/upstream.json", states[1][0])
    fork.write("ultralytics/gone/old.py", "x = 'mine'\n")
    subprocess.run([sys.executable, "-c", code], cwd=fork.root, env=fork.env, check=False)
    fork.write("patches/upstream.json", states[0][0])
    assert "ultralytics/gone/old.py" in fork.run("setup", code=1)
    assert fork.read("ultralytics/gone/old.py") == "x = 'mine'\n"


def test_two_setups_at_once(two_states):
    fork, states = two_states
    for turn in range(3):
        pin, want = states[turn % 2]
        fork.write("patches/upstream.json", pin)
        running = [fork.start("setup") for _ in range(4)]
        said = [process.communicate(timeout=120)[0] for process in running]
        assert [process.returncode for process in running] == [0] * 4, said
        assert sum("laid with" in text for text in said) == 1
        assert fork.tree() == want


def test_half_laid_tree_is_told(two_states):
    fork, states = two_states
    manifest = json.loads(fork.read(".upstream/manifest.json"))
    fork.write(".upstream/manifest.json", json.dumps({**manifest, "complete": False}))
    assert "half laid" in fork.run("status", code=1)
    fork.write(".upstream/manifest.json", "{")  # a power failure
    whole_or_recovered(fork, states[1][1])


# Usage


def test_another_copy_that_python_imports_is_told(patched, tmp_path):
    """Edits made in this tree would change nothing, and their author would look for the reason elsewhere."""
    for folder, said in ((patched.root, "this tree"), (tmp_path / "site", f"another copy, {tmp_path / 'site'}")):
        (folder / "ultralytics").mkdir(parents=True, exist_ok=True)
        (folder / "ultralytics/__init__.py").touch()
        patched.env["PYTHONPATH"] = str(folder)
        assert f"Import    {said}" in patched.run("status")


def test_usage():
    for args, code in ((["--help"], 0), (["setup", "--help"], 0), ([], 2), (["nonsense"], 2)):
        command = [sys.executable, "-m", "patches", *args]
        assert subprocess.run(command, cwd=ROOT, capture_output=True, check=False).returncode == code
