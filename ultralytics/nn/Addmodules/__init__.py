# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Vision Mamba modules for Ultralytics YOLO. Star-imported by `nn/tasks.py`: layers and what patches call."""

from .hooks.initial_weights import declared_start
from .hooks.register import register
from .hooks.scale_names import own_scales
from .hooks.strides import declared_strides
from .hooks.yaml_rows import parse_layer
from .layers.graft import Graft
from .VMamba import SS2D, C2fSS2D, C2fVSS, MambaLayer, VSSBlock
from .VMamba import Mamba as Mamba  # for Python only: a model YAML names layers of feature maps

__all__ = (
    "SS2D",
    "C2fSS2D",
    "C2fVSS",
    "Graft",
    "MambaLayer",
    "VSSBlock",
    "declared_start",
    "declared_strides",
    "own_scales",
    "parse_layer",
)


def __getattr__(name: str) -> object:
    """Import `graft` when it is asked for, so that `import ultralytics` does not take longer."""
    if name == "graft":
        from .grafting.graft import graft

        return graft
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


register()
