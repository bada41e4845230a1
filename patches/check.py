# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""What must hold of the series and the repository: exact, reproducible, hooked in where it counts, nothing copied."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
from pathlib import Path

from patches import ROOT, PatchesError
from patches.hooks import ANY, FIRST, HOOKS, LAST
from patches.series import Repository, load_series
from patches.tree import build, digest, lock
from patches.upstream import load_pin, sha256

MARKERS = re.compile(rb"^(<{7} |>{7} )", re.MULTILINE)
COPY = 30  # identical consecutive lines that are no chance any more


def check() -> list[str]:
    """Run every check, while no set-up runs.

    Returns:
        (list[str]): One sentence for each thing that was found in order.

    Raises:
        PatchesError: With everything that was found wrong.
    """
    with lock():
        return _check()


def _check() -> list[str]:
    pin, patches = load_pin(), load_series()
    base, target, _ = build(pin, patches)
    wrong, fine = [], [f"{len(patches)} patches apply exactly to upstream {pin.version}"]

    with Repository(base, patches) as repository:
        names = [patch.name for patch, mail in zip(patches, repository.mails()) if mail != patch.mail]
    if names:
        wrong.append(
            f"Extracted again, these patches differ from what is stored: {', '.join(names)}. They were edited by hand "
            f"or by another tool. Write them anew, as git reads them: python -m patches extract. What that changed: "
            f"git diff patches"
        )
    fine.append("extracted again they are the same to the byte")

    wrong += check_hooks(target)
    fine.append(f"{len(HOOKS)} hooks sit where they must in the syntax trees")

    if differing := [path for path in target if digest(path) not in (None, sha256(target[path]))]:
        wrong.append(f"The laid tree differs from the series: {', '.join(differing)}. See: python -m patches status")
    elif any(digest(path) is None for path in target):
        fine.append("the tree is not (wholly) laid")
    else:
        fine.append(f"{len(target)} laid files are what pin and series give")

    tracked = tracked_files()
    if tracked is None:
        fine.append("no git checkout: tracked files not compared with upstream")
    else:
        wrong += check_copies({path: (ROOT / path).read_bytes() for path in tracked}, base)
        fine.append(f"{len(tracked)} files of this repository: none is upstream's, nor a long stretch of one")
    if wrong:
        raise PatchesError("\n".join(wrong))
    return fine


def refuse_unfinished(path: str, data: bytes) -> None:
    """Refuse an edited file that cannot be meant as it stands.

    Args:
        path (str): Its path, for messages.
        data (bytes): Its contents.

    Raises:
        PatchesError: If it is empty or binary, has conflict markers, or is no Python.
    """
    problem = ""
    if not data.strip() or b"\0" in data:
        problem = "is empty or binary, which a patch cannot carry"
    elif MARKERS.search(data):
        problem = "has conflict markers in it"
    elif path.endswith(".py"):
        try:
            ast.parse(data)
        except (SyntaxError, ValueError) as e:
            problem = f"is not valid Python: {e}"
    if problem:
        raise PatchesError(f"{path} {problem}. Nothing was changed. Finish the edit and try again.")


def check_hooks(files: dict[str, bytes], hooks: tuple = HOOKS) -> list[str]:
    """Look for the hooks in the syntax trees of patched files.

    Args:
        files (dict[str, bytes]): The patched files by path.
        hooks (tuple): Rows as in HOOKS.

    Returns:
        (list[str]): What is wrong; empty if every hook stands once, in its place.
    """
    wrong, seen = [], {}
    for path, scope, *statements in hooks:
        before, hook, after = map(_normal, statements)
        if path not in seen:
            try:
                seen[path] = list(_statements(ast.parse(files[path])))
            except (KeyError, SyntaxError, ValueError) as e:
                seen[path] = []
                wrong.append(f"{path} cannot be read as Python: {e!r}")
        places = [row[1:] for row in seen[path] if row[0] == scope and row[2] == hook]
        if not any(before in (ANY, b) and after in (ANY, a) for b, _, a in places):
            found = "; ".join(f"after {b!r}, before {a!r}" for b, _, a in places) or "nowhere"
            wrong.append(
                f"{path}: the hook {hook!r} must stand in {scope or 'the module'}"
                f"{f', after {before!r}' if before else ''}{f', before {after!r}' if after else ''}; found {found}."
            )
        elif len(places) > 1 and before is not FIRST:
            wrong.append(f"{path}: the hook {hook!r} stands {len(places)} times in {scope or 'the module'}.")
    return wrong


def _statements(node: ast.AST, scope: str = ""):
    """Yield (scope, statement before, statement, statement after) for every statement and decorator, as text."""
    for name in ("body", "orelse", "finalbody", "handlers"):
        block = getattr(node, name, None)
        if not isinstance(block, list):
            continue
        texts = [FIRST if _is_docstring(block, i) else _text(child) for i, child in enumerate(block)]
        for i, child in enumerate(block):
            yield scope, ([FIRST, *texts])[i], texts[i], ([*texts, LAST])[i + 1]
            named = isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
            inner = f"{scope}.{child.name}".lstrip(".") if named else scope
            for decorator in getattr(child, "decorator_list", ()):
                yield inner, ANY, f"@{ast.unparse(decorator)}", ANY
            yield from _statements(child, inner)


def _normal(text: str | None) -> str | None:
    """Write a statement or decorator of the table as this Python writes it: releases differ in brackets and spaces."""
    if text in (ANY, FIRST, LAST):
        return text
    return "@" * text.startswith("@") + ast.unparse(ast.parse(text.removeprefix("@")))


def _text(node: ast.AST) -> str:
    """Return a simple statement as text; a compound one by its kind alone, which is enough and much faster."""
    return type(node).__name__ if hasattr(node, "body") else ast.unparse(node)


def _is_docstring(block: list, i: int) -> bool:
    return i == 0 and isinstance(block[0], ast.Expr) and isinstance(getattr(block[0], "value", None), ast.Constant)


def is_top(folder: Path) -> bool:
    """Return whether a folder is the top of a git repository.

    Raises:
        PatchesError: If git refuses to say, as it does for a repository of another user; with its words.
    """
    if not folder.is_dir():
        return False
    repository = Repository({}, []).at(folder, foreign=True)
    try:
        top = os.fsdecode(repository.git("rev-parse", "--show-toplevel", raw=True)).removesuffix("\n")
    except PatchesError as e:
        if "not a git repository" in str(e) or "must be run in a work tree" in str(e):
            return False
        raise PatchesError(f"{e}\nThis is what git says of {folder}. Nothing was changed.") from None
    return Path(top).resolve() == folder.resolve()


def tracked_files() -> list[str] | None:
    """Return the files that git tracks or would add, or None where this is no checkout of its own.

    A folder of which git tracks nothing is the user's, such as one of pictures to train with, and is left out.
    """
    if not shutil.which("git") or not is_top(ROOT):
        return None

    def listed(*options: str) -> set[str]:
        command = ["git", "ls-files", "-z", *options]
        names = os.fsdecode(subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout).split("\0")
        return {*filter(None, names)}

    ours = listed("--cached")
    folders = {name.partition("/")[0] for name in ours}
    new = {n for n in listed("--others", "--exclude-standard") if "/" not in n or n.partition("/")[0] in folders}
    return [name for name in without_environments(sorted(ours | new)) if (ROOT / name).is_file()]


def without_environments(names: list[str]) -> list[str]:
    """Return the files that lie in no virtual environment: before Python 3.13 those do not hide from git by themselves.

    Args:
        names (list[str]): Paths from the repository's root, with slashes.
    """
    folders = tuple(name.removesuffix("pyvenv.cfg") for name in names if name.endswith("/pyvenv.cfg"))
    return [name for name in names if not name.startswith(folders)]


def check_copies(files: dict[str, bytes], base: dict[str, bytes]) -> list[str]:
    """Look for upstream's code among this repository's files.

    Args:
        files (dict[str, bytes]): Our files by path.
        base (dict[str, bytes]): Upstream's files by path.

    Returns:
        (list[str]): One sentence for each whole file, or stretch of more than COPY telling lines, that is upstream's.
    """
    whole = {sha256(data): path for path, data in base.items() if data.strip()}
    stretches = {}
    for path, data in base.items():
        for line, window in _windows(data):
            stretches.setdefault(window, f"{path}:{line}")
    wrong = []
    for path, data in files.items():
        if (source := whole.get(sha256(data))) is not None:
            wrong.append(f"{path} is upstream's {source}. Upstream's files are laid by set-up, never committed.")
        elif hit := next(((n, stretches[w]) for n, w in _windows(data) if w in stretches), None):
            wrong.append(f"{path}:{hit[0]}: more than {COPY} lines are those of upstream's {hit[1]}. Write them anew.")
    return wrong


def _windows(data: bytes):
    """Yield (line number, hash) of every stretch of COPY + 1 telling lines: blank and bracket-only ones don't count."""
    if b"\0" in data:
        return
    lines = [(n, line.strip()) for n, line in enumerate(data.split(b"\n"), 1) if re.search(rb"\w\w", line)]
    for i in range(len(lines) - COPY):
        yield lines[i][0], hash(tuple(line for _, line in lines[i : i + COPY + 1]))
