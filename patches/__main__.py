# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Command line of the upkeep tool: `python -m patches --help`, from the repository's root."""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from patches import ROOT, WORK, PatchesError, rebase, tree
from patches.check import check, refuse_unfinished
from patches.export import to_branch, to_folder
from patches.matrix import matrix
from patches.series import FOLDER, SERIES, Repository, holds, load_series
from patches.upstream import Pin, by_number, load_pin, replace, sha256, versions


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
    if (state := rebase.read_state()) is not None:
        cut = " was cut short while the pin moved" if state["moving"] else " is under way"
        print(f"Rebase    to {state['label']}{cut}. Next: {rebase.GO_ON}, or {rebase.GIVE_UP}")
    print(f"Newest    {_newest(pin) if online else 'not asked for. Next: python -m patches status --online'}")
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


def _newest(pin: Pin) -> str:
    """Ask for upstream's newest release, with little patience."""
    try:
        newest = versions(patience=10)[0]
    except PatchesError as e:
        return f"unknown: {e}"
    if by_number(newest) <= by_number(pin.version):
        return f"the pin is upstream's newest release, {newest}" if newest == pin.version else f"{newest}, an older one"
    return f"ultralytics {newest} is out. Next: python -m patches rebase {newest}"


def setup(force: bool) -> int:
    """Lay the tree."""
    _, did = tree.setup(force)
    print(did or f"Nothing to do: upstream {load_pin().version} is laid and every patch is in it.")
    return 0


def extract(name: str | None, message: list[str] | None, edit: bool = False) -> int:
    """Write edits made in place into the series, or write the series anew when there are none.

    Args:
        name (str | None): The patch that takes the edits.
        message (list[str] | None): Paragraphs of its message; None keeps the one it has.
        edit (bool): The patch must exist; a new message alone is enough to do then.

    Returns:
        (int): 0, the exit code.
    """
    with tree.lock():
        _extract(name and name.removesuffix(".patch"), message, edit)
    return 0


def _extract(name: str | None, message: list[str] | None, edit: bool) -> None:
    pin, patches, manifest = load_pin(), load_series(), tree.read_manifest()
    if (state := rebase.read_state()) is not None:
        raise PatchesError(
            f"A rebase to {state['label']} is under way and rests on the series as it is. Nothing was changed.\n"
            f"Next: {rebase.GO_ON}, or {rebase.GIVE_UP}"
        )
    names = [patch.name for patch in patches]
    if edit and name not in names:
        raise PatchesError(f"The series has no patch {name!r}. It has: {', '.join(names) or 'none'}.")
    if not manifest["complete"] or manifest["inputs"] != tree.fingerprint(pin, patches):
        raise PatchesError(
            "The tree was not laid from this pin and series, so edits in it cannot be told from older patches.\n"
            "Nothing was changed. Next: python -m patches setup"
        )
    base, target, requires = tree.build(pin, patches)
    edited = {path: data for path in target if (data := tree.read(path)) is not None and data != target[path]}
    if bool(edited) != bool(name) and not (edit and message):
        raise PatchesError(
            "Nothing to extract: no upstream file differs from what is laid. Edit one under ultralytics/ first"
            + (", or give a new message with -m." if edit else ".")
            if name
            else "These upstream files are edited. Say which patch takes the edits, new or old:\n"
            + "".join(f"  {path}\n" for path in edited)
            + "  python -m patches extract NAME -m 'why it exists' -m 'when it can be dropped'"
        )
    for path, data in edited.items():
        refuse_unfinished(path, data)
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
    if text and "drop when" not in text.lower():
        print(
            f"Its message does not tell when it can be dropped. Next: python -m patches edit {name} "
            f"-m {text.splitlines()[0]!r} -m 'why it exists' -m 'Drop when ...'"
        )


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
    add = commands.add_parser(
        "edit",
        help="change a patch of the series: its lines, its message, or both",
        description="Adds edits made in place to upstream files to a patch of the series, as extract does, or gives it "
        "another message, or both.",
        epilog="example: python -m patches edit utils-plotting-font -m 'utils/plotting: find fonts' "
        "-m 'The look-up fails offline. Drop when upstream ships a font.'",
    )
    add.add_argument("name", metavar="NAME", help="the patch, without .patch")
    add.add_argument("-m", "--message", action="append", help="a paragraph of its new message; the first is its title")
    commands.add_parser("check", help="apply from scratch, extract again, verify the hooks, look for upstream's code")
    add = commands.add_parser(
        "rebase",
        help="move the series and the pin to another upstream release",
        description="Moves the series to another upstream release with git rebase in a scratch repository, tries the "
        "result, and only then writes the patches and the pin and lays the tree. A conflict stops it with what to do.",
        epilog="examples: python -m patches rebase latest; python -m patches rebase 8.4.180; "
        "python -m patches rebase main --from ../ultralytics",
    )
    add.add_argument("version", nargs="?", metavar="VERSION", help="the release, or latest; with --from any ref there")
    add.add_argument("--from", dest="source", metavar="CLONE", help="take it from a clone of upstream: path or address")
    add.add_argument("--continue", dest="resume", action="store_true", help="go on once a conflict is resolved")
    add.add_argument("--abort", action="store_true", help="give up; nothing has changed")
    add = commands.add_parser(
        "matrix",
        help="try the series on many upstream releases",
        description="Rebases the series to many releases, straight from the pin and stepwise forward, and runs the "
        "smoke test on each. Nothing in the tree or the pin changes. A run that is cut short goes on where it was.",
    )
    add.add_argument("versions", nargs="*", metavar="VERSION", help="releases; a sample of all of them by default")
    add.add_argument("--no-smoke", action="store_true", help="run no smoke test; earlier ones count: no torch needed")
    add.add_argument("--write", action="store_true", help="write the results and docs/upkeep/matrix.md")
    add = commands.add_parser(
        "export",
        help="write the whole fork as mails for a clone of upstream's repository",
        description="Writes the whole fork, its own files included, for people who work in a clone of upstream's "
        "repository: as mails for `git am -3`, or as a branch there that leaves what is checked out alone.",
        epilog="examples: python -m patches export --to ../mails; "
        "python -m patches export --branch vmamba --in ../ultralytics",
    )
    how = add.add_mutually_exclusive_group(required=True)
    how.add_argument("--to", type=Path, metavar="DIR", help="new folder for the mails")
    how.add_argument("--branch", metavar="NAME", help="branch to make in the clone that --in names")
    add.add_argument("--in", dest="clone", type=Path, metavar="CLONE", help="clone of upstream's repository")
    add.add_argument("--onto", metavar="REF", help="where the branch begins; the pinned release's tag by default")
    args = parser.parse_args(argv)
    if args.command == "export" and (bool(args.branch) != bool(args.clone) or (args.to and args.onto)):
        parser.error("export takes --to DIR, or --branch NAME --in CLONE, with --onto REF if need be")
    if args.command == "rebase" and (
        bool(args.version) + args.resume + args.abort != 1 or (args.source and not args.version)
    ):
        parser.error("rebase takes a VERSION (with --from, a ref), or --continue, or --abort")
    try:
        if args.command == "status":
            return status(args.online)
        if args.command == "setup":
            return setup(args.force)
        if args.command in ("extract", "edit"):
            return extract(args.name, args.message, args.command == "edit")
        if args.command == "check":
            print("".join(f"ok  {line}\n" for line in check()), end="")
        elif args.command == "export":
            print(to_folder(args.to) if args.to else to_branch(args.branch, args.clone, args.onto))
        elif args.command == "matrix":
            return matrix(args.versions, not args.no_smoke, args.write)
        elif args.resume:
            rebase.resume()
        elif args.abort:
            rebase.abort()
        else:
            rebase.start(args.version, args.source)
        return 0
    except (PatchesError, OSError) as e:
        print(f"error: {e}", file=sys.stderr)
        if (state := rebase.read_state()) and state["moving"]:
            print(
                f"A rebase was cut short while the pin moved. Next: {rebase.GO_ON}, or {rebase.GIVE_UP}",
                file=sys.stderr,
            )
        return 1


if __name__ == "__main__":
    sys.exit(main())
