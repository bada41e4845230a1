# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Turning edits made in place to upstream files into patches of the series, new or old ones."""

from __future__ import annotations

import re
import shlex

from patches import EXTRACT, PatchesError, rebase, tree
from patches.check import refuse_unfinished
from patches.series import FOLDER, SERIES, Repository, apply, load_series, prove
from patches.upstream import load_pin, replace, sha256


def extract(name: str | None, message: list[str] | None, edit: bool) -> None:
    """Write edits made in place into the series, or write the series anew when there are none.

    Args:
        name (str | None): The patch that takes the edits.
        message (list[str] | None): Paragraphs of its message; None keeps the one it has.
        edit (bool): The patch must exist, and a new message without edits will do.

    Raises:
        PatchesError: If there is nothing to extract, or the edits cannot be that patch. Nothing is changed then.
    """
    with tree.lock():
        _extract(name and name.removesuffix(".patch"), message, edit)


def _extract(name: str | None, message: list[str] | None, edit: bool) -> None:
    pin, patches, manifest = load_pin(), load_series(), tree.read_manifest()
    rebase.refuse_under_way()
    names = [patch.name for patch in patches]
    if edit and name not in names:
        raise PatchesError(f"The series has no patch {name!r}. It has: {', '.join(names) or 'none'}.")
    if not manifest["complete"] or manifest["inputs"] != tree.fingerprint(pin, patches):
        raise PatchesError(
            "The tree was not laid from this pin and series, so edits in it cannot be told from older patches.\n"
            + (tree.obstacle(pin, patches) or "Nothing was changed. Next: python -m patches setup")
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
            + f"  {EXTRACT}"
        )
    for path, data in edited.items():
        refuse_unfinished(path, data)
    if name and not re.fullmatch(r"[a-z][a-z0-9.-]*", name):
        raise PatchesError(f"{name!r} is no patch name: use small letters, digits and hyphens, such as nn-tasks-what.")
    if name and name not in names and not message:
        raise PatchesError(f"{name} is a new patch: give its reason and its end. {EXTRACT.replace('NAME', name)}")
    text = "\n\n".join([name] * (len(message) == 1) + message) + "\n" if message else None

    with Repository(base, patches, also=set(edited)) as repository:
        if name in names:
            repository.fold(names.index(name), edited, text)
        elif name:
            repository.commit(edited, text)
            repository.commits.append(repository.git("rev-parse", "HEAD"))
            names.append(name)
        mails = repository.mails()
    proven = prove(base, list(zip(names, mails)), {*edited, *(edit.path for patch in patches for edit in patch.edits)})
    apply(base, proven)
    stored = {patch.name: patch.mail for patch in patches}
    changed = {n: mail for n, mail in zip(names, mails) if stored.get(n) != mail}
    for n, mail in changed.items():
        replace(FOLDER / f"{n}.patch", mail)
    if set(names) - stored.keys():
        replace(SERIES, (SERIES.read_text(encoding="utf-8").rstrip("\n") + f"\n{name}.patch\n").lstrip("\n").encode())
    # The files on disk are what the new series gives: record that, so that the next set-up finds nothing to do
    files = {**manifest["files"], **{path: [sha256(data)] for path, data in edited.items()}}
    tree.record(tree.fingerprint(pin, proven), True, requires, files)
    print("".join(f"Wrote patches/{n}.patch\n" for n in changed), end="")
    print(f"The {'other ' * bool(changed)}{len(names) - len(changed)} patches are to the byte what they were.")
    if text and not re.search(r"\bdrop\s+(when|never)\b", text, re.IGNORECASE):
        title = shlex.quote(text.splitlines()[0])
        print(
            "Its message does not tell when it can be dropped: 'Drop when ...', or 'Drop never.' "
            f"Next: python -m patches edit {name} -m {title} -m 'Why. Drop when ...'"
        )
