# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Selective scan (S6): one operator, several backends, and the block around it. Never imports ultralytics."""

from .backends.reference import selective_scan_ref
from .inner import mamba_inner
from .linear import token_linear
from .norm import token_norm
from .op import FORWARD, REVERSED, scan, scan_flops, selective_scan_fn
from .registry import names, report, use_backend

__all__ = (
    "FORWARD",
    "REVERSED",
    "mamba_inner",
    "names",
    "report",
    "scan",
    "scan_flops",
    "selective_scan_fn",
    "selective_scan_ref",
    "token_linear",
    "token_norm",
    "use_backend",
)
