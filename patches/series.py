# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""The patch series: reading it, applying it exactly, and rebuilding it with git.

A patch's `index` line names the git object id of each file before and after it. Applying holds both: a hunk goes to its
exact line or nowhere, and what comes out is what the patch's author had. That needs no git and leaves nothing to guess;
whatever needs merging is done by git, in a repository of its own.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from patches import EXTRACT, PatchesError
from patches.upstream import scratch

FOLDER = Path(__file__).parent
SERIES = FOLDER / "series"
MARKS = ("<<<<<<<", "|||||||", "=======", ">>>>>>>")  # of git, around what two sides of a merge have
IDENTITY = {"NAME": "VMamba-YOLO", "EMAIL": "vmamba-yolo@users.noreply.github.com", "DATE": "2026-11-23T12:00:00+0000"}
# Every option that shapes a patch is given, so that no git version or setting changes a byte of it
FORMAT = (
    "format-patch -1 --stdout --zero-commit --no-signature --full-index --no-stat --no-numbered --no-renames "
    "--no-color --no-ext-diff --no-textconv --no-attach --no-thread --no-relative --subject-prefix=PATCH "
    "--src-prefix=a/ --dst-prefix=b/ --unified=3 --inter-hunk-context=0 --diff-algorithm=myers --indent-heuristic"
).split()

# Variables that say where the settings are and how others' repositories are reached
ACCESS = ("GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM", "GIT_CONFIG_NOSYSTEM", "GIT_ASKPASS", "GIT_SSH", "GIT_SSH_COMMAND")
ACCESS += ("GIT_SSL_CAINFO", "GIT_SSL_CAPATH", "GIT_SSL_NO_VERIFY", "GIT_PROXY_COMMAND", "GIT_TERMINAL_PROMPT")
# Brackets in a title stay, but for [PATCH]; a patch goes to its own lines, or nowhere
AM = ("am", "-q", "--keep-cr", "--keep-non-patch", "--whitespace=nowarn", "--no-3way")


@dataclass
class Edit:
    """What one patch does to one file: object ids around it, and hunks as (line, lines before, lines after)."""

    path: str
    old: str
    new: str
    hunks: list[tuple[int, list[bytes], list[bytes]]] = field(default_factory=list)


@dataclass
class Patch:
    """One patch of the series: its name without `.patch`, its mail, and what it edits."""

    name: str
    mail: bytes
    edits: list[Edit]


def split_lines(data: bytes) -> list[bytes]:
    """Split bytes at newlines only, keeping them: `bytes.splitlines` would split at carriage returns too."""
    return re.findall(rb"[^\n]*\n|[^\n]+", data)


def blob_id(data: bytes) -> str:
    """Return the id under which git stores a file."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def load_series() -> list[Patch]:
    """Read the patches in the order of `patches/series`.

    Returns:
        (list[Patch]): The patches.

    Raises:
        PatchesError: If the list and the folder disagree, or a patch is not of the form that `extract` writes.
    """
    try:
        lines = SERIES.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        raise PatchesError(f"{SERIES} cannot be read ({e}). Restore it: git checkout -- patches/series") from None
    marks = [n for n, line in enumerate(lines, 1) if line.startswith(MARKS)]
    if marks:
        raise PatchesError(
            f"{SERIES} holds marks of a merge in lines {', '.join(map(str, marks))}. Take these lines out and keep the "
            f"others: first those of this fork, then yours. Then: git add {shlex.quote('patches/series')}"
        )
    listed = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    present = {path.name for path in FOLDER.glob("*.patch")}
    for names, problem in (
        (sorted(set(listed) - present), "listed in patches/series but missing"),
        (sorted(present - set(listed)), "present but not listed in patches/series"),
        (sorted({n for n in listed if listed.count(n) > 1}), "listed twice in patches/series"),
    ):
        if names:
            raise PatchesError(
                f"{', '.join(names)}: {problem}. Restore the folder (git checkout -- patches), or correct the list."
            )
    return [parse(name.removesuffix(".patch"), (FOLDER / name).read_bytes()) for name in listed]


def parse(name: str, mail: bytes) -> Patch:
    """Read one patch.

    Args:
        name (str): Name of the patch, for messages.
        mail (bytes): The patch as `git format-patch --full-index` writes it.

    Returns:
        (Patch): The patch.

    Raises:
        PatchesError: If it does anything but edit text files.
    """
    edits = []
    for section in re.split(rb"(?m)^(?=diff --git )", mail)[1:]:
        head = re.match(
            rb"diff --git a/(?P<path>.+) b/(?P=path)\nindex (?P<old>[0-9a-f]{40})\.\.(?P<new>[0-9a-f]{40}) 100644\n"
            rb"--- a/(?P=path)\n\+\+\+ b/(?P=path)\n(?=@@ )",
            section,
        )
        if not head:
            first = section.split(b"\n", 1)[0].decode(errors="replace")
            raise PatchesError(
                f"Patch {name}, '{first}': only edits of text files with full object ids are taken, as "
                f"`python -m patches extract` writes them. New files belong to this fork's own, beside upstream's."
            )
        edit = Edit(*(head[key].decode(errors="replace") for key in ("path", "old", "new")))
        lines = split_lines(section[head.end() :])
        i = 0
        while i < len(lines) and (at := re.match(rb"@@ -(\d+)(?:,(\d+))? \+\d+(?:,(\d+))? @@", lines[i])):
            start, *counts = (1 if n is None else int(n) for n in at.groups())
            old, new, last = [], [], []
            for line in lines[i + 1 :]:
                if line.startswith(b"\\"):  # "No newline at end of file" speaks of the line above it
                    for side in last:
                        side[-1] = side[-1].removesuffix(b"\n")
                elif [len(old), len(new)] == counts:
                    break
                else:
                    last = {b" ": [old, new], b"-": [old], b"+": [new]}.get(line[:1], [])
                    for side in last:
                        side.append(line[1:])
                i += 1
            if [len(old), len(new)] != counts:
                raise PatchesError(f"Patch {name}, {edit.path}: the hunk at line {start} is cut short or damaged.")
            edit.hunks.append((start - 1 if counts[0] else start, old, new))
            i += 1
        edits.append(edit)
    if not edits:
        restore = shlex.quote(f"patches/{name}.patch")
        raise PatchesError(f"Patch {name} is empty: it edits no file. Restore it: git checkout -- {restore}")
    return Patch(name, mail, edits)


def apply(base: dict[str, bytes], patches: list[Patch]) -> dict[str, bytes]:
    """Apply patches in order, each hunk at its exact line.

    Args:
        base (dict[str, bytes]): Files by path; left as they are.
        patches (list[Patch]): The patches.

    Returns:
        (dict[str, bytes]): The files with the patches in them.

    Raises:
        PatchesError: If one does not apply exactly. It names the patch, the file and the first line that differs.
    """
    files = dict(base)
    restore = (
        "Pin and patches belong together: restore both (git checkout -- patches), or move the patches to this pin. "
        "If a merge\nbrought another patch of this file on the same release: python -m patches refit"
    )
    for patch in patches:
        for edit in patch.edits:
            where = f"Patch {patch.name} does not apply to {edit.path}"
            if edit.path not in files:
                raise PatchesError(f"{where}: upstream has no such file. Nothing was changed.")
            lines, out, done = split_lines(files[edit.path]), [], 0
            for start, old, new in edit.hunks:
                found = lines[start : start + len(old)]
                if found != old or start < done:
                    n = next((i for i, pair in enumerate(zip(found, old)) if pair[0] != pair[1]), len(found))
                    here, there = (b"".join(x[n : n + 1]).decode(errors="replace").rstrip() for x in (found, old))
                    raise PatchesError(
                        f"{where}, line {start + n + 1}:\n  patch     {there!r}\n  upstream  {here!r}\n"
                        f"Nothing was changed. {restore}"
                    )
                out += lines[done:start] + new
                done = start + len(old)
            result = b"".join(out + lines[done:])
            if blob_id(files[edit.path]) != edit.old:
                raise PatchesError(
                    f"{where}: it was made for other contents of that file (git object {edit.old[:12]}, here "
                    f"{blob_id(files[edit.path])[:12]}), though its lines would fit. Nothing was changed.\n{restore}"
                )
            if blob_id(result) != edit.new:
                raise PatchesError(
                    f"{where} as recorded: it was edited by hand. Nothing was changed. Restore it (git checkout -- "
                    f"patches),\nedit the laid file instead and run: python -m patches extract {patch.name}"
                )
            files[edit.path] = result
    return files


def holds(patch: Patch, read) -> str:
    """Tell whether the lines that a patch adds stand in the files as they are now.

    Args:
        patch (Patch): The patch.
        read (Callable[[str], bytes | None]): Returns a file's contents by path.

    Returns:
        (str): `applied`, `not applied` or `partly applied`.
    """
    found = []
    for edit in patch.edits:
        for _, old, new in edit.hunks:
            ahead = len(os.path.commonprefix([old, new]))
            behind = len(os.path.commonprefix([old[ahead:][::-1], new[ahead:][::-1]]))
            added = new[ahead : len(new) - behind] or new
            found.append(b"".join(added) in (read(edit.path) or b""))
    return "applied" if all(found) else "partly applied" if any(found) else "not applied"


class Repository:
    """A scratch git repository that holds upstream's files and the series as commits on top of them.

    Used as a context manager, or made in a folder that stays. It sees no git setting of the user or the machine, but
    for what reaches a repository that is somebody else's.
    """

    def __init__(self, base: dict[str, bytes], patches: list[Patch], also: set[str] = frozenset()):
        """Set what goes in.

        Args:
            base (dict[str, bytes]): Upstream's files by path.
            patches (list[Patch]): The series.
            also (set[str]): Paths to hold besides those that the series edits.
        """
        if not shutil.which("git"):
            raise PatchesError("git is not on the PATH, and patches are rebuilt with it. Install git and try again.")
        paths = also | {edit.path for patch in patches for edit in patch.edits}
        self.base, self.patches = {path: base[path] for path in paths}, patches

    def __enter__(self) -> Repository:
        """Make the repository in a folder that goes when it is done with."""
        self._scratch = scratch("git-")
        return self.make(Path(self._scratch.name))

    def at(self, root: Path, foreign: bool = False) -> Repository:
        """Take the folder that the repository is in.

        Args:
            root (Path): The folder.
            foreign (bool): Keep the settings of the user and the machine, such as safe.directory and http.proxy,
                without which git may refuse a repository of others or not reach it.
        """
        self.root = root
        self.env = {k: v for k, v in os.environ.items() if not k.startswith("GIT_") or (foreign and k in ACCESS)}
        self.env.update({f"GIT_{who}_{k}": v for who in ("AUTHOR", "COMMITTER") for k, v in IDENTITY.items()})
        self.env.update(LC_ALL="C", TZ="UTC", GIT_ATTR_NOSYSTEM="1", GIT_EDITOR=":")
        if not foreign:
            home = str(self.root / ".git")
            self.env.update(HOME=home, XDG_CONFIG_HOME=home, GIT_CONFIG_NOSYSTEM="1")
        return self

    def make(self, root: Path) -> Repository:
        """Make the repository in a folder and commit the series, one commit a patch."""
        self.at(root)
        self.git("-c", "init.defaultBranch=main", "init", "-q", "--template=")
        fast = "core.compression 0", "core.fsync none", "gc.auto 0"
        for setting in ("core.autocrlf false", "core.longpaths true", *fast):
            self.git("config", *setting.split())
        self.commit(self.base, "upstream")
        self.commits = [self.git("rev-parse", "HEAD")]
        for patch in self.patches:
            self.git(*AM, stdin=patch.mail)
            self.commits.append(self.git("rev-parse", "HEAD"))
        return self

    def __exit__(self, *_) -> None:
        """Remove the repository."""
        self._scratch.cleanup()

    def git(self, *args: str, stdin: bytes = b"", raw: bool = False):
        """Run git here and return what it prints.

        Raises:
            PatchesError: If git fails; with its words.
        """
        done = subprocess.run(["git", *args], cwd=self.root, env=self.env, input=stdin, capture_output=True)
        if done.returncode:
            words = (done.stderr or done.stdout).decode(errors="replace").strip()
            raise PatchesError(f"git {' '.join(args)} failed:\n{words}")
        return done.stdout if raw else os.fsdecode(done.stdout).strip()

    def commit(self, files: dict[str, bytes], message: str) -> None:
        """Write files and commit them."""
        for path, data in files.items():
            (self.root / path).parent.mkdir(parents=True, exist_ok=True)
            (self.root / path).write_bytes(data)
        self.git("add", "-A")
        self.git("commit", "-q", "--allow-empty", "--cleanup=verbatim", "-m", message)

    def fold(self, number: int, files: dict[str, bytes], message: str | None) -> None:
        """Move an edit of the finished tree into an earlier commit, and put the later ones back on top.

        Args:
            number (int): Which patch takes the edit, counted from 0.
            files (dict[str, bytes]): The files that differ from the finished tree, as they shall be in the end.
            message (str | None): The patch's new message; None keeps its own.

        Raises:
            PatchesError: If the edit cannot be told from what later patches do.
        """
        name = self.patches[number].name
        self.commit(files, "edit")
        edit, wanted = self.git("rev-parse", "HEAD"), self.git("rev-parse", "HEAD^{tree}")
        self.git("checkout", "-q", self.commits[number + 1])
        self._pick(edit, name)
        self.git("reset", "-q", "--soft", "HEAD^")
        if self.git("write-tree") == self.git("rev-parse", f"{self.commits[number]}^{{tree}}"):
            raise PatchesError(
                f"This edit takes out all that patch {name} does. To drop the patch, undo the edit "
                f"(python -m patches setup --force), delete patches/{name}.patch and its line in patches/series, "
                f"and run python -m patches setup."
            )
        self.git("commit", "-q", "--amend", "--cleanup=verbatim", *(["-m", message] if message else ["--no-edit"]))
        self.commits[number + 1] = self.git("rev-parse", "HEAD")
        for i, commit in enumerate(self.commits[number + 2 :], number + 2):
            self._pick(commit, name)
            self.commits[i] = self.git("rev-parse", "HEAD")
        if self.git("rev-parse", "HEAD^{tree}") != wanted:
            raise PatchesError(f"Moving the edit into {name} did not give back the tree as it is. Nothing was changed.")

    def _pick(self, commit: str, name: str) -> None:
        """Cherry-pick a commit while an edit moves into patch `name`."""
        try:
            self.git("cherry-pick", "--allow-empty", commit)
        except PatchesError:
            raise PatchesError(
                f"The edit and a later patch of the series touch the same lines, so it cannot go into {name}. Nothing "
                f"was changed. Give it to the later patch, or to a new one: {EXTRACT}"
            ) from None

    def mails(self) -> list[bytes]:
        """Return the commits above upstream's as patches."""
        return [self.mail(commit) for commit in self.commits[1:]]

    def mail(self, commit: str) -> bytes:
        """Return a commit as a patch."""
        return self.git(*FORMAT, commit, raw=True)


def prove(base: dict[str, bytes], mails: list[tuple[str, bytes]], paths: set[str]) -> list[Patch]:
    """Return new mails as patches, once git has made the very same of them again.

    Args:
        base (dict[str, bytes]): Upstream's files by path.
        mails (list[tuple[str, bytes]]): Names and mails of the whole series.
        paths (set[str]): The files that it edits.

    Raises:
        PatchesError: If a line of a message means something else to git in a mail.
    """
    with Repository(base, [], also=paths) as repository:
        for name, mail in mails:
            try:
                repository.git(*AM, stdin=mail)
                again = repository.mail("HEAD")
            except PatchesError:
                again = b""
            if again == mail:
                continue
            there = split_lines(mail)[3:] if again else re.findall(rb"(?m)^(?:diff -|Index: |---).*", mail)
            here = iter(split_lines(again)[3:])  # behind who wrote it and when
            line = next((line for line in there if line != next(here, None)), b"").decode(errors="replace").strip()
            raise PatchesError(
                f"Patch {name}: git would read its message otherwise in a patch, from {line!r} on.\n"
                f"Nothing was changed. Give another message (-m): a title of one line, without [PATCH], and no line "
                f"that begins with From:, ---, diff or Index: as a patch does."
            )
    return [parse(name, mail) for name, mail in mails]
