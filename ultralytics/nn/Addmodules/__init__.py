# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Vision Mamba modules for Ultralytics YOLO. Star-imported by `nn/tasks.py`: layers and what patches call."""

from .upstream import declared_strides, exempt_ssm_parameters, own_scales, parse_layer, register
from .VMamba import SS2D, C2fSS2D, C2fVSS, MambaLayer, VSSBlock
from .VMamba import Mamba as Mamba  # for Python only: a model YAML names layers of feature maps

__all__ = (
    "SS2D",
    "C2fSS2D",
    "C2fVSS",
    "MambaLayer",
    "VSSBlock",
    "declared_strides",
    "exempt_ssm_parameters",
    "own_scales",
    "parse_layer",
)

register()
