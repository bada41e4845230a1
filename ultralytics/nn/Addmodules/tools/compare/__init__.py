# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""`vmamba compare`: models trained alike on one data set, and tables that say how sure a difference is."""

from __future__ import annotations

from .plan import Plan
from .verb import compare

__all__ = ("Plan", "compare")
