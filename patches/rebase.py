# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Moving the series to another upstream release, with git's own rebase in a scratch repository.

The repository holds both releases as commits and the series on top of the old one, so every merge has all three sides.
A conflict leaves it in git's ordinary state, for any git tool. This fork's tree, series and pin change only after the
rebase, the checks and the smoke test are through.
"""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

from patches import EXTRACT, WORK, PatchesError, tree
from patches.check import check_hooks, refuse_unfinished
from patches.series import FOLDER, SERIES, Patch, Repository, apply, load_series, prove
from patches.upstream import (
    NUMBERED,
    PIN,
    Pin,
    by_number,
    fetch,
    load_pin,
    missing,
    read_wheel,
    release,
    remove,
    replace,
    scratch,
    split_requires,
    versions,
)

HOME = WORK / "rebase"  # one rebase at a time: its repository, its notes, the tree for the smoke test
REPOSITORY, STATE, BEFORE = HOME / "repository", HOME / "state.json", HOME / "before"
NOTES = ("label", "version", "tree", "series")  # of the notes, what is always a text
GO_ON = "python -m patches rebase --continue"
GIVE_UP = "python -m patches rebase --abort"


def prepare(root: Path, old: dict, patches: list[Patch], new: dict, labels: tuple[str, str]) -> Repository:
    """Make a repository with two releases, tagged, and the series on top of the old one.

    Args:
        root (Path): Folder for it.
        old (dict[str, bytes]): Files of the release that the series is made for.
        patches (list[Patch]): The series.
        new (dict[str, bytes]): Files of the other release.
        labels (tuple[str, str]): Tags of the two.

    Returns:
        (Repository): The repository, on branch `series`. Each patch's name is in a note that git carries along.
    """
    root.mkdir(parents=True)
    repository = Repository(old, patches, also=set(old)).make(root)
    git, start = repository.git, repository.commits[0]
    for key, value in (
        ("merge.conflictStyle", "diff3"),
        ("notes.rewriteRef", "refs/notes/commits"),
        ("user.name", repository.env["GIT_AUTHOR_NAME"]),
        ("user.email", repository.env["GIT_AUTHOR_EMAIL"]),
        ("commit.gpgSign", "false"),
        ("core.hooksPath", os.devnull),
    ):
        git("config", key, value)
    for patch, commit in zip(patches, repository.commits[1:]):
        git("notes", "add", "-m", patch.name, commit)
    git("branch", "-m", "series")
    git("tag", labels[0], start)
    git("checkout", "-q", "--detach", start)
    for path in old.keys() - new.keys():
        (root / path).unlink()
        if not any((root / path).parent.iterdir()):
            (root / path).parent.rmdir()
    repository.commit({path: data for path, data in new.items() if old.get(path) != data}, f"upstream {labels[1]}")
    git("tag", labels[1])
    git("checkout", "-q", "series")
    return repository


def unmerged(repository: Repository) -> list[str]:
    """Return the files with a conflict in them."""
    return repository.git("diff", "--name-only", "--diff-filter=U").splitlines()


def under_way(repository: Repository) -> bool:
    """Tell whether git is in the middle of a rebase."""
    return any((repository.root / ".git" / name).exists() for name in ("rebase-merge", "rebase-apply"))


def result(repository: Repository, label: str, new: dict[str, bytes]) -> tuple[list[Patch], dict[str, bytes]]:
    """Read the rebased series and prove it on the release.

    Args:
        repository (Repository): With the rebase done.
        label (str): Tag of the release.
        new (dict[str, bytes]): Its files.

    Returns:
        (tuple): The patches, and the patched files.

    Raises:
        PatchesError: If the commits are no series, a file is unfinished, or a hook is not where it must be.
    """
    git = repository.git
    if under_way(repository) or git("status", "--porcelain", "--untracked-files=no"):
        raise PatchesError(f"{repository.root} holds changes that no commit has. Commit or amend, then: {GO_ON}")
    mails = []
    for commit in git("rev-list", "--reverse", f"{label}..HEAD").splitlines():
        try:
            name = git("notes", "show", commit).splitlines()[0]
        except PatchesError:
            raise PatchesError(
                f"Commit {git('log', '-1', '--format=%h (%s)', commit)} in {repository.root} belongs to no patch of "
                f"the series. Squash it into one (git rebase -i {label}), then: {GO_ON}"
            ) from None
        mails.append((name, repository.mail(commit)))
    edited = git("diff", "--name-only", "-z", "--no-renames", label, "HEAD").split("\0")
    patches = prove(new, mails, new.keys() & edited)
    target = apply(new, patches)
    for path in {edit.path for patch in patches for edit in patch.edits}:
        refuse_unfinished(path, target[path])
    if wrong := check_hooks(target):
        raise PatchesError("The patches apply, but not where they must:\n" + "\n".join(wrong))
    return patches, target


def smoke(version: str, files: dict[str, bytes], requires: list[str], folder: Path, *words: str) -> str:
    """Run patches/smoke.py on a release, in a tree of its own.

    Args:
        version (str): Upstream's version.
        files (dict[str, bytes]): The tree: patched files and this fork's own, or pristine ones alone.
        requires (list[str]): The wheel's requirements; a failure names those that are not installed.
        folder (Path): Where the tree may stand; made anew.
        *words (str): More arguments for it.

    Returns:
        (str): What went wrong; empty if nothing did.
    """
    shutil.rmtree(folder, ignore_errors=True)
    site, run = folder / "site", folder / "run"
    for name, data in files.items():
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).write_bytes(data)
    run.mkdir()
    shutil.copy2(FOLDER / "smoke.py", run / "smoke.py")
    env = {k: v for k, v in os.environ.items() if not k.startswith(("YOLO_", "ULTRALYTICS_"))}
    env.update(PYTHONPATH=str(site), YOLO_CONFIG_DIR=str(run), YOLO_OFFLINE="true", YOLO_AUTOINSTALL="false")
    env.update(CUDA_VISIBLE_DEVICES="", MPLBACKEND="Agg", PYTHONDONTWRITEBYTECODE="1", OMP_NUM_THREADS="1")
    command = [sys.executable, "smoke.py", version, str(site), *words]
    try:
        done = subprocess.run(command, cwd=run, env=env, capture_output=True, text=True, errors="replace", timeout=900)
    except subprocess.TimeoutExpired:
        return "no end within 900 s"
    finally:
        shutil.rmtree(site, ignore_errors=True)
    if done.returncode == 0:
        return ""
    lacking = f"\nNot installed here: {', '.join(names)}" if (names := missing(requires)) else ""
    return (done.stdout + done.stderr).strip()[-3000:] + lacking or f"exit {done.returncode}"


def read_state() -> dict | None:
    """Return the notes of the rebase under way, or None."""
    try:
        found = json.loads(STATE.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    whole = isinstance(found, dict) and all(
        isinstance(found.get(key, 0), kinds)
        for key, kinds in (("pin", (str, type(None))), ("moving", bool), *((k, str) for k in NOTES))
    )
    return found if whole else None


def refuse_under_way() -> None:
    """Refuse to change the series, or to begin another rebase, while one is under way."""
    if (state := read_state()) is not None:
        raise PatchesError(
            f"A rebase to {state['label']} is under way, and it needs the patches as they are. Nothing was changed.\n"
            f"Next: {GO_ON}, or {GIVE_UP}"
        )


def start(version: str, source: str | None) -> None:
    """Begin a rebase and go as far as it goes.

    Args:
        version (str): The release wanted, or `latest`; with a source, a tag, branch or commit of it.
        source (str | None): A clone of upstream's repository, as path or address, to take the release from.

    Raises:
        PatchesError: If it cannot begin, or stops on the way.
    """
    with tree.lock():
        refuse_under_way()
        pin, patches = load_pin(), load_series()
        if edited := tree.survey()["edited"]:
            raise PatchesError(
                "These upstream files are edited by hand, and the new release would replace them:\n"
                + "".join(f"  {path}\n" for path in edited)
                + f"Nothing was changed. Next: {EXTRACT}, or python -m patches setup --force"
            )
        old = read_wheel(fetch(pin))[0]
        apply(old, patches)
        latest = version == "latest"
        if source:
            label, files, new = from_clone(source, version)
        else:
            if latest:
                version = versions()[0]
            if not NUMBERED.fullmatch(version):
                raise PatchesError(f"{version!r} is no release of upstream: give a version such as {pin.version}.")
            new = release(version)
            label, files = version, read_wheel(fetch(new))[0]
        if new == pin:
            print(f"Nothing to do: the pin is upstream {pin.version} already.")
            return
        if latest and new and by_number(new.version) < by_number(pin.version):  # a mirror or a clone that lags behind
            print(f"Nothing to do: the newest release there, {new.version}, is older than the pin, {pin.version}.")
            return
        tree.refuse_clash(label, files)
        remove(HOME)
        repository = prepare(REPOSITORY, old, patches, files, (pin.version, label))
        new_tree = repository.git("rev-parse", f"{label}^{{tree}}")
        state = {"label": label, "pin": new and new.sha256, "version": upstream_version(files), "tree": new_tree}
        save({**state, "series": tree.fingerprint(pin, patches), "moving": False})
        print(f"Rebasing {len(patches)} patches from upstream {pin.version} to {label}", flush=True)
        step(repository, "rebase", "--onto", label, pin.version, "series")
        finish(repository)


def save(state: dict) -> None:
    """Keep the notes of the rebase under way."""
    replace(STATE, json.dumps(state, indent=2).encode())


def upstream_version(files: dict[str, bytes]) -> str:
    """Return the version that a release says it is."""
    found = re.search(rb"(?m)^__version__ = [\"']([^\"']+)", files.get("ultralytics/__init__.py", b""))
    if not found:
        raise PatchesError("This is no tree of upstream's: ultralytics/__init__.py there gives no __version__.")
    return found[1].decode(errors="replace")


def from_clone(source: str, ref: str) -> tuple[str, dict[str, bytes], Pin | None]:
    """Take a release from a clone of upstream's repository.

    Args:
        source (str): Path or address of the clone.
        ref (str): Tag, branch or commit; a version stands for its tag, `latest` for the newest tag of a release.

    Returns:
        (tuple): A label, the package's files, and the release's pin; None if these files are no release's.
    """
    source = str(Path(source).resolve()) if Path(source).exists() else source
    with scratch("clone-") as folder:
        git, reach = (Repository({}, []).at(Path(folder), foreign).git for foreign in (False, True))
        git("-c", "init.defaultBranch=main", "init", "-q", "--template=")
        if ref == "latest":
            tags = re.findall(r"refs/tags/v(\d+(?:\.\d+)+)$", reach("ls-remote", "--tags", source), re.MULTILINE)
            if not tags:
                raise PatchesError(
                    f"{source} has no tag of a release, such as v8.4.190. Fetch its tags, or name a ref."
                )
            ref = max(tags, key=by_number)
        try:
            reach("fetch", "-q", "--depth=1", source, f"refs/tags/v{ref}" if NUMBERED.fullmatch(ref) else ref)
        except PatchesError as e:
            raise PatchesError(
                f"{e}\n{source} cannot be reached, or has no {ref}. Nothing was changed. Name a clone of upstream's "
                f"repository and a tag, a branch or a whole commit id that it has, such as v{load_pin().version}."
            ) from None
        with tarfile.open(fileobj=io.BytesIO(git("archive", "FETCH_HEAD", "ultralytics", raw=True))) as archive:
            files = {m.name: archive.extractfile(m).read() for m in archive if m.isfile()}
        label = f"clone-{git('rev-parse', '--short=12', 'FETCH_HEAD')}"
    try:
        pin = release(upstream_version(files))
    except PatchesError as e:
        print(f"No wheel of this version: {e}")
        return label, files, None
    wheel = read_wheel(fetch(pin))[0]
    if differing := sorted(path for path in wheel if wheel[path] != files.get(path)):
        print(
            f"{ref} of {source} is not release {pin.version}: {len(differing)} files differ, {differing[0]} the first."
        )
        return label, files, None
    return pin.version, wheel, pin


def step(repository: Repository, *command: str) -> None:
    """Have git rebase, and explain where it stops."""
    try:
        repository.git(*command)
    except PatchesError as e:
        if not (files := unmerged(repository)):
            raise PatchesError(f"{e}\nIn {repository.root}. Next: {GO_ON}, or {GIVE_UP}") from None
        raise PatchesError(stopped(repository, files)) from None


def stopped(repository: Repository, files: list[str]) -> str:
    """Say what conflicts, where each side comes from, and what to do."""
    git, label = repository.git, read_state()["label"]
    name = git("notes", "show", "REBASE_HEAD").splitlines()[0]
    old = load_pin().version
    here = shlex.quote(os.path.relpath(repository.root))
    listed = "".join(f"  {path}\n" for path in files)
    return (
        f"Patch {name} conflicts with upstream {label} in\n{listed}"
        f"The tree, the series and the pin are as they were. The conflict is in {here}, an ordinary rebase of git.\n"
        f"Between the markers there:\n"
        f"  <<<<<<<  upstream {label}, with the patches before {name}\n"
        f"  |||||||  upstream {old}, where the patch was made\n"
        f"  =======  patch {name} on upstream {old}\n"
        f"What upstream changed:   git -C {here} diff {old} {label} -- {shlex.quote(files[0])}\n"
        f"What the patch does:     git -C {here} show REBASE_HEAD\n"
        f"Edit the files, keep what the patch is for, then:   {GO_ON}\n"
        f"To give up, with nothing changed:                   {GIVE_UP}"
    )


def resume() -> None:
    """Go on after a conflict was resolved, or after something was mended."""
    with tree.lock():
        state = begun()
        if state["moving"]:
            restore()
            save({**state, "moving": False})
        if tree.fingerprint(load_pin(), load_series()) != state["series"]:
            raise PatchesError(f"The pin or the series changed since this rebase began. Next: {GIVE_UP}")
        repository = Repository({}, []).at(REPOSITORY)
        if under_way(repository):
            files = unmerged(repository)
            for path in files:
                if (REPOSITORY / path).exists():
                    refuse_unfinished(path, (REPOSITORY / path).read_bytes())
            repository.git("add", "--update")
            step(repository, "rebase", "--continue")
        finish(repository)


def begun() -> dict:
    """Return the notes of the rebase under way."""
    if (state := read_state()) is None:
        raise PatchesError("No rebase is under way. To begin one: python -m patches rebase VERSION")
    return state


def abort() -> None:
    """Give a rebase up."""
    with tree.lock():
        state = begun()
        if state["moving"]:
            restore()
        leave()
    print(f"The rebase to {state['label']} is given up. The tree, the series and the pin are as they were.")


def finish(repository: Repository) -> None:
    """Check and try what the rebase gave, then move the series and the pin to it and lay the tree."""
    state, patches = read_state(), load_series()
    label, git = state["label"], repository.git
    mend = f"\nThe tree, the series and the pin are as they were. Mend the commits in {os.path.relpath(REPOSITORY)} "
    mend += f"(git rebase -i {label}) or this fork's own files, then:  {GO_ON}\nTo give up:  {GIVE_UP}"
    if git("rev-parse", f"{label}^{{tree}}") != state["tree"] or git("merge-base", label, "HEAD") != git(
        "rev-parse", f"{label}^{{commit}}"
    ):
        raise PatchesError(f"The branch in {REPOSITORY} is not on top of upstream {label} any more. Next: {GIVE_UP}")
    if state["pin"]:
        new = release(state["version"])
        if new.sha256 != state["pin"]:
            raise PatchesError(f"The wheel of {label} is another one than when this rebase began. Next: {GIVE_UP}")
        files, requires = read_wheel(fetch(new))
    else:
        requires = []
        with tarfile.open(fileobj=io.BytesIO(git("archive", label, raw=True))) as archive:
            files = {m.name: archive.extractfile(m).read() for m in archive if m.isfile()}
    try:
        rebased, target = result(repository, label, files)
    except PatchesError as e:
        raise PatchesError(f"{e}{mend}") from None
    for name in [p.name for p in patches if p.name not in {r.name for r in rebased}]:
        print(
            f"Patch {name} changes nothing on {label}: upstream has taken it, or it was skipped. It leaves the series."
        )
    print("Smoke test: build, strides, forward pass, training step", flush=True)
    if wrong := smoke(state["version"], {**target, **tree.own_files()}, requires, HOME / "smoke"):
        raise PatchesError(f"{wrong}\nThe smoke test failed on upstream {label}.{mend}")
    if not state["pin"]:
        leave()
        print(f"Rehearsed: the series goes onto {label} and works. That is no release, so nothing was changed.")
        return
    if foreign := tree.compare(files, target, tree.read_manifest()["files"])[1]:
        raise PatchesError(
            "Files that set-up did not lay stand where this release has files:\n"
            + "".join(f"  {path}\n" for path in foreign)
            + f"Move them away, then:  {GO_ON}\nTo give up:  {GIVE_UP}"
        )
    before = read_wheel(fetch(load_pin()))[1]
    move(state, new, rebased)
    _, did = tree._setup(False)
    moved = sum(a.mail != b.mail for a in patches for b in rebased if a.name == b.name)
    print(f"{did}\nThe pin is upstream {new.version} now, as {new.fork_version}; {moved} patches were written anew.")
    before, requires = split_requires(before)[0], split_requires(requires)[0]
    if before != requires:
        print("Upstream's requirements changed:")
        print("".join(f"  - {r}\n" for r in before if r not in requires), end="")
        print("".join(f"  + {r}\n" for r in requires if r not in before), end="")
    print("Next: pip install -e . && pytest, then commit patches/")


def move(state: dict, pin: Pin, patches: list[Patch]) -> None:
    """Replace the series and the pin; a run that is killed here is finished by --continue or undone by --abort."""
    shutil.rmtree(BEFORE, ignore_errors=True)
    BEFORE.mkdir()
    for path in (*FOLDER.glob("*.patch"), SERIES, PIN):
        shutil.copy2(path, BEFORE / path.name)
    names = iter([f"{patch.name}.patch" for patch in patches])
    lines = SERIES.read_text(encoding="utf-8").splitlines()
    listed = [line if not line.strip() or line.startswith("#") else next(names, None) for line in lines]
    save({**state, "moving": True})
    for patch in patches:
        replace(FOLDER / f"{patch.name}.patch", patch.mail)
    for path in FOLDER.glob("*.patch"):
        if path.stem not in {patch.name for patch in patches}:
            path.unlink()
    replace(SERIES, "".join(f"{line}\n" for line in listed if line is not None).encode())
    replace(PIN, pin.dumps())
    leave()


def leave() -> None:
    """End a rebase: first its notes, without which nothing takes the rest for one under way."""
    STATE.unlink()
    remove(HOME)


def restore() -> None:
    """Put back the series and the pin that a move which was cut short began to replace."""
    for path in FOLDER.glob("*.patch"):
        if not (BEFORE / path.name).exists():
            path.unlink()
    for path in BEFORE.iterdir():
        replace(FOLDER / path.name, path.read_bytes())
    print("Found a move that was cut short, and put the series and the pin back.")
