# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Wheels for all platforms: `python ultralytics/nn/Addmodules/building`, in a checkout. Nothing of it is imported."""

import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from building.wheels import main
else:
    from .wheels import main

if __name__ == "__main__":
    sys.exit(main())
