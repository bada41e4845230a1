# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""The orders in which layers scan the tokens of a map, by name."""

from __future__ import annotations

import numpy as np

from ..layers.cross_scan import COLUMNS, COLUMNS_REVERSED, ROWS, ROWS_REVERSED, token_order

__all__ = ("ORDERS", "token_path")

ORDERS = {"rows": ROWS, "rows-reversed": ROWS_REVERSED, "columns": COLUMNS, "columns-reversed": COLUMNS_REVERSED}


def token_path(order: str, height: int, width: int) -> np.ndarray:
    """Return the cells of a map in the order in which they are scanned, (L, 2) rows and columns.

    Raises:
        ValueError: If the order is unknown.

    Examples:
        >>> token_path("columns", 2, 2).tolist()
        [[0, 0], [1, 0], [0, 1], [1, 1]]
    """
    if order not in ORDERS:
        raise ValueError(f"unknown order '{order}': choose from {', '.join(ORDERS)}")
    tokens = token_order(ORDERS[order], height, width).numpy()
    return np.stack(np.divmod(tokens, width), 1)
