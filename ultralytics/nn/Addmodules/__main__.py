# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""`python -m ultralytics.nn.Addmodules VERB ...`: the long form of `vmamba`, which needs no console script."""

from __future__ import annotations

import sys

from .tools.verbs import main

if __name__ == "__main__":
    sys.exit(main())
