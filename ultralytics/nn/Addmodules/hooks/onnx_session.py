# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""ONNX files with our operator in `yolo predict` and `yolo val`: their scans run in the compiled library."""

from __future__ import annotations

from functools import wraps
from pathlib import Path

import torch

from ..selective_scan import onnx_operator

__all__ = ("with_scan_library",)


def with_scan_library(backend: type) -> None:
    """Let upstream's backend for ONNX files give the compiled library to the sessions that it makes on a CPU.

    Without the library, or with one of another version, the file runs its standard operators, and a warning says so.

    Args:
        backend (type): `ultralytics.nn.backends.onnx.ONNXBackend`.
    """
    load = backend.load_model

    @wraps(load)
    def load_model(self, weight: str | Path) -> None:
        on_gpu = torch.cuda.is_available() and getattr(self.device, "type", "cpu") != "cpu"
        if self.format == "onnx" and not on_gpu and Path(weight).is_file():
            self.session_options = add_library(weight, self.session_options)
        load(self, weight)

    backend.load_model = load_model


def add_library(file: str | Path, options: object | None = None) -> object | None:
    """Register the compiled library with the options of a session for a file that has our operator.

    Args:
        file (str | Path): The ONNX file.
        options (onnxruntime.SessionOptions, optional): Those of the session so far.

    Returns:
        (onnxruntime.SessionOptions | None): The options, new ones if there were none and the file has our operator.
    """
    version = onnx_operator.version_in(file)
    if version is None:
        return options
    try:
        import onnxruntime
    except ImportError:  # upstream says what is missing
        return options
    from ultralytics.utils import LOGGER

    reason = ""
    if version != onnx_operator.VERSION:
        reason = f"it was exported for version {version} of the scan's operator, and this installation has version "
        reason += f"{onnx_operator.VERSION}; export the model again"
    else:
        try:
            library = onnx_operator.operator_library()
            fresh = onnxruntime.SessionOptions() if options is None else options
            fresh.register_custom_ops_library(library)
            LOGGER.info("Scans run in this package's operator library for ONNX Runtime.")
            return fresh
        except RuntimeError as e:  # ours, and what the library answers to a session of an old ONNX Runtime
            reason = str(e).strip().splitlines()[0]
    LOGGER.warning(f"{Path(file).name} runs its scans with standard operators, which takes longer: {reason}.")
    return options
