# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""The scan in an exported graph: standard operators only, in the form that the runtime of the file runs fastest.

`traced_block` makes the graph of a block's scans, `traced_scan` that of a single call of the scan operator. Both ask
`table.choose` for the form. docs/design/export.md has the forms and what was measured.
"""

from .graph import traced_block, traced_scan
from .maps import map_scans
from .onnx_scan import OPSET
from .table import MAX_STATE, choose, wants_maps
from .target import Target, exporting_for, target

__all__ = (
    "MAX_STATE",
    "OPSET",
    "Target",
    "choose",
    "exporting_for",
    "map_scans",
    "target",
    "traced_block",
    "traced_scan",
    "wants_maps",
)
