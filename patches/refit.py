# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Making patches again for files that have other contents now: those of the same release with another patch in them."""

from __future__ import annotations

import shlex

from patches import EXTRACT, PatchesError, rebase, tree
from patches.check import check_hooks, refuse_unfinished
from patches.series import AM, FOLDER, Patch, Repository, apply, load_series, parse
from patches.upstream import load_pin, replace


def refit() -> None:
    """Make each patch again for its file as the patches before it leave it, and write those that changed.

    Git looks for a patch's lines with all of their context, further up or down. The user is told where it found them,
    because the same lines may stand in a file twice.

    Raises:
        PatchesError: If git does not find the lines of a patch, or the result is unfinished. Nothing is changed then.
    """
    with tree.lock():
        rebase.refuse_under_way()
        pin, patches = load_pin(), load_series()
        base, _ = tree.pristine(pin)
        made = _make(base, patches)
        target = apply(base, made)
        for path in {edit.path for patch in made for edit in patch.edits}:
            refuse_unfinished(path, target[path])
        if wrong := check_hooks(target):
            raise PatchesError("The patches apply, but not where they must. Nothing was changed.\n" + "\n".join(wrong))
        changed = [(old, new) for old, new in zip(patches, made) if old.mail != new.mail]
        for _, new in changed:
            replace(FOLDER / f"{new.name}.patch", new.mail)
    for old, new in changed:
        print(f"Wrote patches/{new.name}.patch: {'; '.join(_moved(old, new))}")
    if changed:
        print("See whether each is in its place: git diff patches. Next: python -m patches setup")
    else:
        print("Nothing to do: every patch is made for its file as it is.")


def _make(base: dict[str, bytes], patches: list[Patch]) -> list[Patch]:
    """Return the patches, each made for the files that the ones before it leave."""
    if gone := {edit.path for patch in patches for edit in patch.edits} - base.keys():
        raise PatchesError(
            f"The pinned release lacks what patches edit: {', '.join(sorted(gone))}. Nothing was changed."
        )
    made = []
    with Repository(base, [], also={edit.path for patch in patches for edit in patch.edits}) as repository:
        for patch in patches:
            try:
                repository.git(*AM, stdin=patch.mail)
            except PatchesError:
                files = ", ".join(edit.path for edit in patch.edits)
                file = shlex.quote(f"patches/{patch.name}.patch")
                raise PatchesError(
                    f"Patch {patch.name} cannot be made again: {files} has no longer the lines that it stands between. "
                    f"Nothing was changed.\nTake it out: move {file} elsewhere, delete its line in patches/series, and "
                    f"run python -m patches setup.\nThen make its edit by hand and run: "
                    f"{EXTRACT.replace('NAME', patch.name)}"
                ) from None
            made.append(parse(patch.name, repository.mail("HEAD")))
    return made


def _way(lines: int) -> str:
    """Return how far lines went."""
    number = f"{abs(lines)} line{'s' * (abs(lines) > 1)}"
    return f"{number} {'down' if lines > 0 else 'up'}" if lines else "at the same lines"


def _moved(old: Patch, new: Patch) -> list[str]:
    """Return where each hunk of a patch went."""
    said = []
    for before, after in zip(old.edits, new.edits):
        steps = sorted({b[0] - a[0] for a, b in zip(before.hunks, after.hunks)})
        said.append(f"{before.path}, {' and '.join(_way(n) for n in steps)}")
    return said
