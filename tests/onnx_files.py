# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""ONNX files in tests: run, and looked into. Tests skip where onnx and onnxruntime are missing."""

from __future__ import annotations

from pathlib import Path

import pytest

onnx = pytest.importorskip("onnx", reason="pip install -e '.[deploy]'")
onnxruntime = pytest.importorskip("onnxruntime", reason="pip install -e '.[deploy]'")
onnxslim = pytest.importorskip("onnxslim", reason="pip install -e '.[deploy]'")
pytest.importorskip("onnx.inliner")

__all__ = ("kinds", "plain", "session", "simplified")


def session(file: Path | str) -> onnxruntime.InferenceSession:
    """Return an ONNX Runtime session with one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def kinds(graph: onnx.GraphProto) -> list[str]:
    """Return the operators of a graph and of the graphs inside it."""
    inner = [a.g for n in graph.node for a in n.attribute if a.type == onnx.AttributeProto.GRAPH]
    return [n.op_type for n in graph.node] + [kind for g in inner for kind in kinds(g)]


def plain(file: Path | str) -> onnx.ModelProto:
    """Return the model of a file with the bodies of our operators in their places."""
    return onnx.inliner.inline_local_functions(onnx.load(file))


def simplified(file: Path | str) -> onnx.ModelProto:
    """Return that model as onnxslim simplifies it, which leaves bodies alone while they are bodies."""
    return onnxslim.slim(plain(file))
