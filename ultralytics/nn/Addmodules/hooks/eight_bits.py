# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Exports in 8 bits of models with our layers: what is rounded, and how. Stock models are left to upstream."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import wraps
from unittest.mock import patch

from torch import nn

from ..layers.state_space import StateSpace

__all__ = ("in_onnx", "in_openvino")


def in_onnx(export: Callable[..., str]) -> Callable[..., str]:
    """Return an export to ONNX whose 8 bits are fast on every processor and round less.

    Upstream rounds convolutions and matrix products alone, has signed activations, and one scale for all weights of a
    layer. Here:

    - activations are unsigned. ONNX Runtime has no fast kernels for signed ones on x86: a file of VMamba-yolon took
      1.3 times the float32 file's time, and takes 0.7 times with unsigned ones;
    - SiLU after a convolution is rounded, too, so that what lies between two convolutions stays in 8 bits (0.6 times);
    - weights have 7 bits. Processors with AVX2 or AVX-512 and without VNNI add two products in 16 bits, which 8 bits
      on both sides overflow: scores were wrong by 0.9 there, emulated by qemu, and with 7 bits equal elsewhere;
    - weights have a scale for each output channel;
    - the convolution that reads the picture stays float32.

    Source: https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html, "When and why do I need to
    try U8U8?" and "reduce_range".
    """

    @wraps(export)
    def finer(*args, **kwargs) -> str:
        try:
            import onnx
            from onnxruntime import quantization
        except ImportError:  # upstream says what is missing
            return export(*args, **kwargs)
        quantize = quantization.quantize_static

        def finest(file, *args, nodes_to_exclude: Iterable[str] = (), **kwargs) -> None:
            graph = onnx.load(file).graph
            left_alone = set(nodes_to_exclude) - silu_after_convolution(graph) | of_the_picture(graph)
            kwargs |= {
                "nodes_to_exclude": sorted(left_alone),
                "activation_type": quantization.QuantType.QUInt8,
                "weight_type": quantization.QuantType.QInt8,
                "reduce_range": True,
                "per_channel": True,
            }
            quantize(file, *args, **kwargs)

        with patch.object(quantization, "quantize_static", finest):
            return export(*args, **kwargs)

    return finer


def silu_after_convolution(graph) -> set[str]:
    """Return the names of the nodes of an ONNX graph that compute x * sigmoid(x) of a convolution's output x."""
    convolved = {name for node in graph.node if node.op_type == "Conv" for name in node.output}
    gates = {node.output[0]: node for node in graph.node if node.op_type == "Sigmoid" and node.input[0] in convolved}
    found = set()
    for node in graph.node:
        for gate, x in (node.input, reversed(node.input)) if node.op_type == "Mul" else ():
            if gate in gates and gates[gate].input[0] == x:
                found |= {node.name, gates[gate].name}
    return found


def of_the_picture(graph) -> set[str]:
    """Return the names of the convolutions of an ONNX graph that read its input."""
    pictures = {value.name for value in graph.input}
    return {node.name for node in graph.node if node.op_type == "Conv" and node.input[0] in pictures}


def in_openvino(export: Callable[..., str], model: nn.Module) -> Callable[..., str]:
    """Return an export to OpenVINO whose 8 bits leave scans in float32: NNCF would round the state of a scan.

    NNCF gets a clone of the model. OpenVINO's conversion of a loop leaves an output behind that the model no longer
    lists, and NNCF stops at it with "Could not find a node Result_..."; a clone holds what the model lists.
    """
    scans = [name for name, m in model.named_modules() if isinstance(m, StateSpace)]
    # Names of operators begin with their module
    patterns = [rf"__module\.(.*\.)?{re.escape(name)}/.*" for name in scans]

    @wraps(export)
    def leaving(*args, **kwargs) -> str:
        try:
            import nncf
        except ImportError:  # upstream says what is missing
            return export(*args, **kwargs)
        quantize = nncf.quantize

        def around(model, *args, **kwargs):
            scope = kwargs.get("ignored_scope") or nncf.IgnoredScope()
            kwargs["ignored_scope"] = replace(scope, patterns=[*scope.patterns, *patterns], validate=False)
            return quantize(model.clone() if hasattr(model, "clone") else model, *args, **kwargs)

        with patch.object(nncf, "quantize", around):
            return export(*args, **kwargs)

    return leaving
