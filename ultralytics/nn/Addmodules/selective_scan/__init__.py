# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Selective scan (S6) and the block around it: operators, and backends for them. Never imports ultralytics."""

from .backends.reference import selective_scan_ref
from .contract import FORWARD, REVERSED, Block, Scan
from .op import mamba_inner, scan, scan_flops, selective_scan_fn, token_norm
from .registry import names, report, use_backend

__all__ = (
    "FORWARD",
    "REVERSED",
    "Block",
    "Scan",
    "mamba_inner",
    "names",
    "report",
    "scan",
    "scan_flops",
    "selective_scan_fn",
    "selective_scan_ref",
    "token_norm",
    "use_backend",
)
