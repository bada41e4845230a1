# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Command line of the upkeep tool: `python -m patches --help`, from the repository's root."""

from __future__ import annotations

import argparse
import ast
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from patches import ROOT, WORK, PatchesError, tree
from patches.check import check
from patches.series import FOLDER, SERIES, Repository, holds, load_series
from patches.upstream import load_pin, replace, sha256

MARKERS = re.compile(rb"^(<{7} |>{7} )", re.MULTILINE)


def status(online: bool) -> int:
    """Print where the tree stands; 0 if it is laid, current and unedited, else 1."""
    pin, patches, manifest, now = load_pin(), load_series(), tree.read_manifest(), tree.survey()
    laid, same = manifest["files"], manifest["inputs"] == tree.fingerprint(pin, patches)
    if not laid:
        state = "nothing laid. Next: python -m patches setup"
    elif not manifest["complete"]:
        state = "half laid: a set-up was cut short. Next: python -m patches setup"
    elif not same:
        state = "laid from an older pin or series. Next: python -m patches setup"
    elif now["missing"]:
        state = f"{len(now['missing'])} of {len(laid)} files missing. Next: python -m patches setup"
    else:
        state = f"{len(laid)} files laid"
    print(f"Upstream  ultralytics {pin.version}, as {pin.fork_version}\nTree      {state}")
    print(f"Import    {_imported()}")
    print(f"Patches   {len(patches)} in patches/series")
    marks = [holds(patch, tree.read) for patch in patches]
    for patch, mark in zip(patches, marks):
        print(f"  {mark:14} {patch.name}: {', '.join(edit.path for edit in patch.edits)}")
    if now["edited"]:
        print("Edited    these upstream files differ from what set-up laid:")
        print("".join(f"  {path}\n" for path in now["edited"]), end="")
        print("  Next: python -m patches extract NAME -m WHY, or python -m patches setup --force to give them up")
    else:
        print("Edited    no upstream file is edited by hand")
    if online:
        print(f"Newest    {_newest()}")
    print(
        "Note      `pip install -U ultralytics` would replace this fork by stock Ultralytics, of the same name.\n"
        "          Should that happen: pip install -e ."
    )
    return int(not (laid and same and manifest["complete"] and {*marks} <= {"applied"}) or any(now.values()))


def _imported() -> str:
    """Say which copy `import ultralytics` takes outside this folder."""
    code = "import importlib.util as u; s = u.find_spec('ultralytics'); print(s.origin if s else '')"
    with tempfile.TemporaryDirectory() as elsewhere:
        done = subprocess.run([sys.executable, "-c", code], cwd=elsewhere, capture_output=True, text=True)
    where = done.stdout.strip()
    if not where:
        return "ultralytics is not installed in this Python. Next: pip install -e ."
    if Path(where).resolve() == ROOT / "ultralytics" / "__init__.py":
        return "this tree"
    return f"another copy, {where}: edits made here do not reach it. Next: pip install -e ."


def _newest() -> str:
    """Ask the package registry for upstream's newest release."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "index", "versions", "ultralytics"]
    done = subprocess.run(command, capture_output=True, text=True)
    found = re.search(r"^ultralytics \(([^)]+)\)", done.stdout, re.MULTILINE)
    return f"ultralytics {found[1]} is upstream's newest release" if found else f"unknown: {done.stderr.strip()[-300:]}"


def setup(force: bool) -> int:
    """Lay the tree."""
    _, did = tree.setup(force)
    print(did or f"Nothing to do: upstream {load_pin().version} is laid and every patch is in it.")
    return 0


def extract(name: str | None, message: list[str] | None) -> int:
    """Write edits made in place into the series, or write the series anew when there are none."""
    with tree.lock():
        _extract(name and name.removesuffix(".patch"), message)
    return 0


def _extract(name: str | None, message: list[str] | None) -> None:
    pin, patches, manifest = load_pin(), load_series(), tree.read_manifest()
    if not manifest["complete"] or manifest["inputs"] != tree.fingerprint(pin, patches):
        raise PatchesError(
            "The tree was not laid from this pin and series, so edits in it cannot be told from older patches.\n"
            "Nothing was changed. Next: python -m patches setup"
        )
    base, target, requires = tree.build(pin, patches)
    edited = {path: data for path in target if (data := tree.read(path)) is not None and data != target[path]}
    if bool(edited) != bool(name):
        raise PatchesError(
            "Nothing to extract: no upstream file differs from what is laid. Edit one under ultralytics/ first."
            if name
            else "These upstream files are edited. Say which patch takes the edits, new or old:\n"
            + "".join(f"  {path}\n" for path in edited)
            + "  python -m patches extract NAME -m 'why it exists' -m 'when it can be dropped'"
        )
    for path, data in edited.items():
        _refuse_unfinished(path, data)
    names = [patch.name for patch in patches]
    if name and not re.fullmatch(r"[a-z][a-z0-9.-]*", name):
        raise PatchesError(f"{name!r} is no patch name: use small letters, digits and hyphens, such as nn-tasks-what.")
    if name and name not in names and not message:
        raise PatchesError(f"{name} is a new patch: give its reason and its end with -m, as `extract --help` shows.")
    text = "\n\n".join([name] * (len(message) == 1) + message) + "\n" if message else None

    with Repository(base, patches, also=set(edited)) as repository:
        if name in names:
            repository.fold(names.index(name), edited, text)
        elif name:
            repository.commit(edited, text)
            repository.commits.append(repository.git("rev-parse", "HEAD"))
            names.append(name)
        mails = repository.mails()
    stored = {patch.name: patch.mail for patch in patches}
    changed = {n: mail for n, mail in zip(names, mails) if stored.get(n) != mail}
    for n, mail in changed.items():
        replace(FOLDER / f"{n}.patch", mail)
    if set(names) - stored.keys():
        replace(SERIES, (SERIES.read_text(encoding="utf-8").rstrip("\n") + f"\n{name}.patch\n").lstrip("\n").encode())
    # The files on disk are what the new series gives: record that, so that the next set-up finds nothing to do
    files = {**manifest["files"], **{path: [sha256(data)] for path, data in edited.items()}}
    tree.record(tree.fingerprint(pin, load_series()), True, requires, files)
    print("".join(f"Wrote patches/{n}.patch\n" for n in changed), end="")
    print(f"The {'other ' * bool(changed)}{len(names) - len(changed)} patches are to the byte what they were.")


def _refuse_unfinished(path: str, data: bytes) -> None:
    """Refuse an edit that cannot be meant as it stands."""
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
        raise PatchesError(f"{path} {problem}. Nothing was changed. Finish the edit and extract again.")


def main(argv: list[str] | None = None) -> int:
    """Run one command.

    Args:
        argv (list[str] | None): Arguments; those of the process by default.

    Returns:
        (int): 0 if all is well, 1 if something needs attention; 2 for wrong usage.
    """
    parser = argparse.ArgumentParser(
        prog="python -m patches",
        description="Keeps this fork on upstream: the pinned Ultralytics release and the patches in patches/series.",
        epilog=f"Exit codes: 0 all is well, 1 something needs attention, 2 wrong usage. State lives in {WORK.name}/.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    add = commands.add_parser("status", help="show the pin, what is laid, patches, and upstream files edited by hand")
    add.add_argument("--online", action="store_true", help="also ask the registry for upstream's newest release")
    add = commands.add_parser("setup", help="lay the pinned upstream release with the patches; installation runs this")
    add.add_argument("--force", action="store_true", help=f"replace edited files, once saved in {WORK.name}/saved")
    add = commands.add_parser(
        "extract",
        help="turn edits made in place to upstream files into a patch",
        description="Turns edits made in place to upstream files into a new patch, or adds them to the one named. "
        "Without NAME, and without edits, writes the series anew: to the byte what it was.",
        epilog="example: python -m patches extract utils-plotting-font -m 'utils/plotting: find fonts' "
        "-m 'The look-up fails offline. Drop when upstream ships a font.'",
    )
    add.add_argument("name", nargs="?", metavar="NAME", help="patch that takes the edits, without .patch")
    add.add_argument("-m", "--message", action="append", help="a paragraph: why it exists, when it can be dropped")
    commands.add_parser("check", help="apply from scratch, extract again, verify the hooks, look for upstream's code")
    args = parser.parse_args(argv)
    try:
        if args.command == "status":
            return status(args.online)
        if args.command == "setup":
            return setup(args.force)
        if args.command == "extract":
            return extract(args.name, args.message)
        print("".join(f"ok  {line}\n" for line in check()), end="")
        return 0
    except (PatchesError, OSError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
