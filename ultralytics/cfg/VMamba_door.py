# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""The command `yolo`: upstream's own, in which what this fork refuses is one sentence and not a traceback.

It lies here because this folder is imported without the model code, so that `yolo help` stays as fast as it was.
"""

from __future__ import annotations

import sys

__all__ = ("main",)


def main() -> int | None:
    """Run upstream's command line; what upstream or a bug raises keeps its traceback, Ctrl-C has none.

    Returns:
        (int | None): Exit status, for a console script.
    """
    try:
        from ultralytics.cfg import entrypoint

        if any(arg.lstrip("-").partition("=")[0] == "resume" for arg in sys.argv[1:]):
            from ultralytics.nn.Addmodules.tools.resume import refuse_finished

            refuse_finished(sys.argv[1:])
        return entrypoint()
    except Exception as e:
        from ultralytics.nn.Addmodules.hooks.failures import is_ours, sentence

        text = sentence(e) if is_ours(e) else None
        if text is None:
            raise
        print(f"yolo: {text}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        said = "stopped"
        if "ultralytics.nn.Addmodules" in sys.modules:  # else no training has begun
            from ultralytics.nn.Addmodules.tools.resume import stopped

            said = stopped("yolo train resume model=")
        print(f"\nyolo: {said}", file=sys.stderr)
        return 130
