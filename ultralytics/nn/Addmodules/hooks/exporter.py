# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Export of models with our layers: refusals before anything is written, and nothing left of a failed one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from functools import cache, wraps
from pathlib import Path

from ..layers.state_space import StateSpace
from ..selective_scan.export import OPSET

__all__ = ("prepare_export",)


# Formats whose converter was tried, and what it does with the loop over tokens
NO_LOOP = {
    "ncnn": "pnnx writes no layer for its loop over tokens, and a network without an input",
    "mnn": "MNN's converter knows neither Scan nor another loop with a state",
}


def prepare_export(exporter) -> None:
    """Refuse what cannot be exported of a model with our layers before anything is written, and see to what may fail.

    Args:
        exporter (Exporter): Upstream's, about to export `exporter.model`.

    Raises:
        PermissionError: If the folder cannot be written to.
        ValueError: If the format or an argument does not go with a selective scan.
    """
    if not any(isinstance(m, StateSpace) for m in exporter.model.modules()):
        return
    args, file = exporter.args, exporter.file.resolve()
    refuse(args.format, args.opset, file.parent)
    if export := getattr(exporter, f"export_{args.format}", None):
        setattr(exporter, f"export_{args.format}", leaving_nothing(export, file.parent, file.stem))
    if args.format == "openvino" and args.quantize == 8:
        quantize_clones()
    if args.format == "onnx" and args.quantize == 16:
        keep_scans_float32()


def refuse(form: str, opset: int | None, folder: Path) -> None:
    """Raise where an export cannot succeed.

    Args:
        form (str): Ultralytics' name of the format.
        opset (int, optional): Opset that was asked for.
        folder (Path): Where the file would be written.
    """
    if form in NO_LOOP:
        raise ValueError(
            f"format='{form}' cannot hold a selective scan: {NO_LOOP[form]}. "
            f"Export with format=onnx, openvino or torchscript instead."
        )
    if opset and opset < OPSET:
        raise ValueError(f"opset={opset} is too old for a selective scan; leave it out, or give {OPSET} or later")
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"{folder} cannot be written to; the exported file would go beside the model")


def keep_scans_float32() -> None:
    """Keep the state of a scan float32 in a float16 ONNX file, as it is in PyTorch."""
    try:
        from onnxruntime.transformers import float16
    except ImportError:  # upstream says what is missing
        return
    if "Scan" not in float16.DEFAULT_OP_BLOCK_LIST:
        float16.DEFAULT_OP_BLOCK_LIST.append("Scan")


@cache
def quantize_clones() -> None:
    """Make NNCF quantize a clone of a model that it is given.

    OpenVINO's conversion of a loop leaves an output behind that the model no longer lists, and NNCF stops at it with
    "Could not find a node Result_..."; a clone holds what the model lists.
    """
    try:
        import nncf
    except ImportError:  # upstream says what is missing
        return
    quantize = nncf.quantize

    @wraps(quantize)
    def cloning(model, *args, **kwargs):
        return quantize(model.clone() if hasattr(model, "clone") else model, *args, **kwargs)

    nncf.quantize = cloning


def leaving_nothing(export: Callable[..., str], folder: Path, stem: str) -> Callable[..., str]:
    """Return an export that removes what it began to write before it failed.

    Args:
        export (Callable[..., str]): Upstream's, for one format.
        folder (Path): Where the model lies, and what is exported.
        stem (str): The name of the model's file without its ending.
    """
    from ultralytics.engine.exporter import export_formats

    begins, ends = (f"{stem}.", f"{stem}_"), tuple(export_formats()["Suffix"][1:])  # the first is the model's own

    def present() -> dict[Path, tuple[int, int]]:
        """Return the files and folders that an export may have written, and how to tell that it did."""
        found = {p: p.stat() for p in folder.iterdir() if p.name.startswith(begins) and p.name.endswith(ends)}
        return {p: (s.st_mtime_ns, s.st_size) for p, s in found.items()}

    @wraps(export)
    def cleaning(*args, **kwargs) -> str:
        before = present()
        try:
            return export(*args, **kwargs)
        except BaseException:  # Ctrl-C, too
            for path, of in present().items():
                if before.get(path) != of:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            raise

    return cleaning
