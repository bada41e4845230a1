# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Command line of the upkeep tool: `python -m patches --help`, from the repository's root."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from patches import WORK, PatchesError, rebase, tree
from patches.check import check
from patches.export import to_branch, to_folder
from patches.extract import extract
from patches.matrix import matrix
from patches.refit import refit
from patches.status import status
from patches.upstream import load_pin


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line; end the process with 2 where its use is wrong."""
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
    commands.add_parser(
        "refit",
        help="make patches again that were made for other contents of their files",
        description="Makes each patch of the series again for its file as the release and the patches before it leave "
        "it, where git finds its lines. For a merge that brought another patch of the same file. The tree stays as it "
        "is until the next set-up.",
    )
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
    return args


def run(args: argparse.Namespace) -> int:
    """Run one command and return its exit code."""
    if args.command == "status":
        return status(args.online)
    if args.command == "matrix":
        return matrix(args.versions, not args.no_smoke, args.write)
    if args.command == "setup":
        _, did = tree.setup(args.force)
        print(did or f"Nothing to do: upstream {load_pin().version} is laid and every patch is in it.")
    elif args.command in ("extract", "edit"):
        extract(args.name, args.message, args.command == "edit")
    elif args.command == "refit":
        refit()
    elif args.command == "check":
        print("".join(f"ok  {line}\n" for line in check()), end="")
    elif args.command == "export":
        print(to_folder(args.to) if args.to else to_branch(args.branch, args.clone, args.onto))
    elif args.resume:
        rebase.resume()
    elif args.abort:
        rebase.abort()
    else:
        rebase.start(args.version, args.source)
    return 0


def main(argv: list[str] | None = None) -> int:
    """Run one command, and say in a sentence why it failed.

    Args:
        argv (list[str] | None): Arguments; those of the process by default.

    Returns:
        (int): 0 if all is well, 1 if something needs attention; 2 for wrong usage; 130 if it was interrupted.
    """
    for stream in (sys.stdout, sys.stderr):  # a console without a letter shows ? for it
        stream.reconfigure(errors="replace")
    args = parse(argv)
    try:
        return run(args)
    except (PatchesError, OSError) as e:
        text = f"{e.strerror}: '{e.filename}'" if isinstance(e, OSError) and e.filename is not None else e
        print(f"error: {text}", file=sys.stderr)
        if (state := rebase.read_state()) and state["moving"]:
            print(
                f"A rebase was cut short while the pin moved. Next: {rebase.GO_ON}, or {rebase.GIVE_UP}",
                file=sys.stderr,
            )
        return 1
    except KeyboardInterrupt:
        words = "Give the same command again"
        if rebase.read_state():
            words = f"A rebase is under way. Next: {rebase.GO_ON}, or {rebase.GIVE_UP}"
        print(f"\nerror: python -m patches {args.command} was stopped. {words}.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
