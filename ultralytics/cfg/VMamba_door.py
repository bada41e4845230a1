# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""The commands `yolo`, upstream's own, and `vmamba`: what this fork refuses is one sentence and not a traceback.

They lie here because this folder is imported without the model code, so that `yolo help` stays as fast as it was, and a
setting with which that code cannot be imported, as VMAMBA_BACKEND=cuda, is refused in a sentence as well.
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable
from pathlib import Path

__all__ = ("main", "vmamba")


def main() -> int | None:
    """Run upstream's command line; what upstream or a bug raises keeps its traceback.

    Returns:
        (int | None): Exit status, for a console script.
    """

    def run() -> int | None:
        from ultralytics.cfg import entrypoint

        if any(arg.lstrip("-").partition("=")[0] == "resume" for arg in sys.argv[1:]):
            from ultralytics.nn.Addmodules.tools.resume import refuse_finished

            refuse_finished(sys.argv[1:])
        return entrypoint()

    return _through("yolo", run)


def vmamba() -> int | None:
    """Run the command line of what this fork adds, and return its exit status."""

    def run() -> int:
        from ultralytics.nn.Addmodules.tools import verbs

        return verbs.main()

    return _through("vmamba", run)


def _through(name: str, run: Callable[[], int | None]) -> int | None:
    """Run a command; a refusal of this fork becomes a sentence and the status 1."""
    try:
        return run()
    except Exception as e:
        # By its path, because it may be the import of our package that was refused
        said = runpy.run_path(str(Path(__file__).parents[1] / "nn/Addmodules/tools/failures.py"))
        text = said["sentence"](e) if said["is_ours"](e) else None
        if text is None:
            raise
        print(f"{name}: {text}", file=sys.stderr)
        return 1
