# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""`python -m ultralytics.nn.Addmodules`: what runs on this machine, what does not, why, and what to do."""

from __future__ import annotations

import sys

from .report import main

if __name__ == "__main__":
    sys.exit(main())
