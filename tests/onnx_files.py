# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""ONNX files in tests: run, and looked into. Tests skip where onnx and onnxruntime are missing."""

from __future__ import annotations

from pathlib import Path

import pytest

onnx = pytest.importorskip("onnx", reason="pip install -e '.[deploy]'")
onnxruntime = pytest.importorskip("onnxruntime", reason="pip install -e '.[deploy]'")

__all__ = ("kinds", "session")


def session(file: Path | str) -> onnxruntime.InferenceSession:
    """Return an ONNX Runtime session with one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def kinds(graph: onnx.GraphProto) -> list[str]:
    """Return the operators of a graph and of the graphs inside it."""
    inner = [a.g for n in graph.node for a in n.attribute if a.type == onnx.AttributeProto.GRAPH]
    return [n.op_type for n in graph.node] + [kind for g in inner for kind in kinds(g)]
