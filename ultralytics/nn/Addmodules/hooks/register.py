# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""What needs no patch: our modules made known to upstream's registries, once, at import."""

from __future__ import annotations

from ..layers.ss2d import SS2D, ConvSS2D
from ..VMamba import Mamba
from .checkpoints import admit
from .exporter import prepare_export
from .flops import count_mamba, count_ss2d
from .initial_weights import with_declared_boxes
from .threads import use_all_cores
from .transfer import with_matched_rows

__all__ = ("register",)


def register() -> None:
    """Enter our classes, callbacks and rules into the registries of PyTorch, Ultralytics and thop."""
    admit()
    from ultralytics.nn.modules.head import Detect
    from ultralytics.nn.tasks import BaseModel  # which imports this package, below that class
    from ultralytics.utils.callbacks import default_callbacks

    with_declared_boxes(Detect)
    with_matched_rows(BaseModel)
    default_callbacks["on_export_start"].append(prepare_export)
    default_callbacks["on_train_start"].append(use_all_cores)
    try:
        from thop.profile import register_hooks
    except ImportError:  # upstream shows no GFLOPs at all then
        return
    register_hooks[Mamba] = count_mamba
    register_hooks[SS2D] = register_hooks[ConvSS2D] = count_ss2d
