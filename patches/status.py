# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Where the tree stands: the pin, what is laid, each patch, and what has been edited by hand."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from patches import EXTRACT, ROOT, PatchesError, rebase, tree
from patches.series import holds, load_series
from patches.upstream import Pin, by_number, load_pin, versions


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
    hindrance = tree.obstacle(pin, patches, fetched=False) if "patches setup" in state else ""
    hindrance = hindrance.replace("Nothing was changed.\n", "").replace("Nothing was changed. ", "")
    if hindrance:
        state = state.replace("Next: python -m patches setup", "Set-up would refuse to go on:\n")
        state += "\n".join(f"  {line}" for line in hindrance.split("\n") if line)
    print(f"Upstream  ultralytics {pin.version}, as {pin.fork_version}\nTree      {state}")
    print(f"Import    {_imported()}")
    print(f"Patches   {len(patches)} in patches/series")
    marks = [holds(patch, tree.read) for patch in patches]
    for patch, mark in zip(patches, marks):
        print(f"  {mark:14} {patch.name}: {', '.join(edit.path for edit in patch.edits)}")
    if now["edited"]:
        print("Edited    these upstream files differ from what set-up laid:")
        print("".join(f"  {path}\n" for path in now["edited"]), end="")
        if not hindrance:
            print(f"  Next: {EXTRACT}, or python -m patches setup --force to give them up")
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
        command = [sys.executable, "-X", "utf8", "-c", code]
        done = subprocess.run(command, cwd=elsewhere, capture_output=True)
    where = os.fsdecode(done.stdout).strip()
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
