# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""What needs no patch: our modules made known to upstream's registries, once, at import."""

from __future__ import annotations

from ..layers.ss2d import SS2D, ConvSS2D
from ..VMamba import Mamba
from .checkpoints import admit, checkpoints_only
from .exporter import prepare_export
from .flops import count_mamba, count_ss2d
from .fonts import show_names, show_names_of_training, when_drawn
from .initial_weights import with_declared_boxes
from .no_weights import without_weights
from .notices import at_inference, at_training, with_notices
from .onnx_session import with_scan_library
from .refusals import refuse_training, say_what_is_wrong_with_data
from .stops import remember_training
from .threads import train_with_all_cores
from .transfer import with_matched_rows

__all__ = ("register",)


def register() -> None:
    """Enter our classes, callbacks and rules into the registries of PyTorch, Ultralytics and thop."""
    admit()
    from ultralytics.nn import tasks
    from ultralytics.nn.modules.head import Detect
    from ultralytics.nn.tasks import BaseModel  # which imports this package, below that class
    from ultralytics.utils import checks, downloads
    from ultralytics.utils.callbacks import default_callbacks

    if hasattr(tasks, "torch_load"):  # older releases have none
        tasks.torch_load = checkpoints_only(tasks.torch_load)
    with_declared_boxes(Detect)
    with_matched_rows(BaseModel)
    with_notices(BaseModel)
    default_callbacks["on_export_start"].append(prepare_export)
    default_callbacks["on_train_start"] += [train_with_all_cores, at_training, show_names, remember_training]
    for event in ("on_val_start", "on_predict_start"):
        default_callbacks[event] += [at_inference, show_names]
    default_callbacks["on_pretrain_routine_start"] += [show_names_of_training, say_what_is_wrong_with_data]
    default_callbacks["on_pretrain_routine_end"].append(refuse_training)
    downloads.attempt_download_asset = without_weights(downloads.attempt_download_asset)
    checks.check_font = when_drawn(checks.check_font)  # data/utils.py takes it from there after this
    try:
        from ultralytics.nn.backends.onnx import ONNXBackend
    except ImportError:  # releases before 8.4 have one class for all formats; files run their standard operators there
        pass
    else:
        with_scan_library(ONNXBackend)
    try:
        from thop.profile import register_hooks
    except ImportError:  # upstream shows no GFLOPs at all then
        return
    register_hooks[Mamba] = count_mamba
    register_hooks[SS2D] = register_hooks[ConvSS2D] = count_ss2d
