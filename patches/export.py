# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""The whole fork as a series of mails for a clone of upstream's repository, for people who live in one."""

from __future__ import annotations

import os
import shlex
import tempfile
from pathlib import Path

from patches import ROOT, PatchesError, tree
from patches.check import check_hooks, is_top, tracked_files
from patches.hooks import HOOKS
from patches.series import AM, FORMAT, Repository, load_series
from patches.upstream import load_pin, remove

BESIDES = ("train.py", "datasets/")  # what goes along with our files under ultralytics/, where upstream has nothing
# Of the user's settings, those that would change what a mail gives
PLAIN = ("-c", "core.autocrlf=false", "-c", f"core.hooksPath={os.devnull}")
MESSAGE = """VMamba-YOLO: layers, selective scan, model files

The files of this fork that stand beside upstream's. The commits after this
one hook them in. They need einops and scikit-learn besides what upstream
asks for; the compiled scan for CPUs comes with the fork's own installation,
and plain PyTorch takes its place here.
"""


def exported() -> dict[str, bytes]:
    """Return the files of the first mail by path: those of ours that git tracks or would add."""
    tracked = tracked_files()
    if tracked is None:
        raise PatchesError(
            "This is no git checkout, so this fork's own files cannot be told from others lying here. Take it from a "
            "clone of the fork, where git is on the PATH."
        )
    ours = {path: data for path, data in tree.own_files().items() if path in tracked}
    return ours | {path: (ROOT / path).read_bytes() for path in tracked if path.startswith(BESIDES)}


def mails() -> list[tuple[str, bytes]]:
    """Return the fork as mails in order, each with a name.

    The first adds our own files, so that every commit after it can be imported.
    """
    pin, patches = load_pin(), load_series()
    with tree.lock(), Repository(tree.build(pin, patches)[0], patches) as repository:
        series = repository.mails()
        repository.git("checkout", "-q", "--detach", repository.commits[0])
        repository.commit(exported(), MESSAGE)
        ours = repository.git(*FORMAT, "--binary", "HEAD", raw=True)
    names = ["vmamba-files", *(patch.name for patch in patches)]
    return [(f"{n:04}-{name}.patch", mail) for n, (name, mail) in enumerate(zip(names, [ours, *series]), 1)]


def to_folder(folder: Path) -> str:
    """Write the mails into a new or empty folder, and say what to do with them."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise PatchesError(f"{folder} is not an empty folder. Nothing was written. Name a new one.")
    written = mails()
    folder.mkdir(parents=True, exist_ok=True)
    for name, mail in written:
        (folder / name).write_bytes(mail)
    version = load_pin().version
    return (
        f"{len(written)} mails in {folder}, made on upstream {version}. In a clone of upstream's repository:\n"
        f"  git switch -c vmamba v{version} && git am -3 --keep-non-patch {shlex.quote(str(folder.resolve()))}/*.patch"
    )


def to_branch(branch: str, clone: Path, onto: str | None) -> str:
    """Make a branch with the fork in a clone of upstream's repository, without touching what is checked out there.

    Args:
        branch (str): Name of the branch, which must not exist.
        clone (Path): The clone.
        onto (str | None): Where the branch begins; the tag of the pinned release by default.

    Returns:
        (str): What was done.

    Raises:
        PatchesError: If the clone lacks the commit, or the series does not go onto it. The clone is then as it was.
    """
    tag = f"v{load_pin().version}"
    onto = onto or tag
    repository = Repository({}, []).at(clone, foreign=True)
    git = repository.git
    if not is_top(clone):
        raise PatchesError(f"{clone} is not the top folder of a git repository. Name a clone of upstream's.")
    if clone.resolve() == ROOT:
        raise PatchesError("This is the fork's own repository, which upstream's files must never enter. Name a clone.")
    try:
        start = git("rev-parse", "--verify", "--quiet", f"{onto}^{{commit}}")
    except PatchesError:
        fetch = f"tag {tag}" if onto == tag else onto
        raise PatchesError(f"{clone} has no {onto}. In it: git fetch origin {fetch}") from None
    try:
        git("check-ref-format", "--branch", branch)
    except PatchesError:
        raise PatchesError(f"'{branch}' is no name of a branch. Give one such as vmamba.") from None
    if git("for-each-ref", f"refs/heads/{branch}"):
        raise PatchesError(f"{clone} has a branch {branch} already. Give another name, or delete it there.")
    written = mails()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder) / "work"
        git(*PLAIN, "worktree", "add", "-q", "--detach", str(work), start)
        try:
            inside = Repository({}, []).at(work)
            inside.env = repository.env
            box = b"".join(mail for _, mail in written)
            inside.git(*PLAIN, *AM, "-3", "--no-gpg-sign", stdin=box)
            if wrong := check_hooks({row[0]: (work / row[0]).read_bytes() for row in HOOKS}):
                raise PatchesError("\n".join(wrong))
            git("branch", branch, inside.git("rev-parse", "HEAD"))
        except PatchesError as e:
            raise PatchesError(
                f"{e}\nThe series was made on {tag} and does not go onto {onto} as it is. Nothing changed. "
                f"Next: python -m patches rebase {onto} --from {shlex.quote(str(clone))}, "
                f"or a branch on {tag} and git rebase"
            ) from None
        finally:
            remove(work)
            git("worktree", "prune")
    return f"Branch {branch} in {clone}: {len(written)} commits on {onto}. In it: git switch {branch}"
