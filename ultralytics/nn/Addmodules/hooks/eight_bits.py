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


def in_onnx(export: Callable[..., str], model: nn.Module) -> Callable[..., str]:
    """Return an export to ONNX whose 8 bits are fast and right on all x86 processors.

    Upstream computes convolutions and matrix products in 8 bits, with signed activations, and with one scale for all
    weights of a layer. Here:

    - activations are unsigned, because ONNX Runtime has no fast kernels for signed ones on x86;
    - SiLU after a convolution is in 8 bits, too, so values between two convolutions stay in 8 bits;
    - weights have 7 bits. Processors with AVX2 or AVX-512 but without VNNI add two products in 16 bits, which 8 bits
      of activation and 8 of weight overflow;
    - weights have a scale for each output channel;
    - the convolution that reads the picture, and what is inside a scan, stay float32.

    docs/design/export.md has what each is worth.

    Args:
        export (Callable[..., str]): Upstream's.
        model (nn.Module): What is exported.

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
            made = onnx.load(file)
            own_initializers(made.graph)
            left_alone = set(nodes_to_exclude) - silu_after_convolution(made.graph)
            kwargs |= {
                "nodes_to_exclude": sorted(left_alone | of_the_picture(made.graph) | of_scans(made, model)),
                "activation_type": quantization.QuantType.QUInt8,
                "weight_type": quantization.QuantType.QInt8,
                "reduce_range": True,
                "per_channel": True,
            }
            quantize(made, *args, **kwargs)

        with patch.object(quantization, "quantize_static", finest):
            return export(*args, **kwargs)

    return finer


def own_initializers(graph) -> None:
    """Give every Identity of an initializer, of an ONNX graph, an initializer of its own instead.

    The exporter lets equal weights share one. A bias behind an Identity is no constant for ONNX Runtime, which then
    rounds it like an activation: with the initial weights of a training boxes were off by half a picture.
    """
    constants = {t.name: t for t in graph.initializer}
    for node in list(graph.node):
        if node.op_type != "Identity" or node.input[0] not in constants:
            continue
        own = graph.initializer.add()
        own.CopyFrom(constants[node.input[0]])
        own.name = node.output[0]
        constants[own.name] = own
        graph.node.remove(node)


def of_scans(made, model: nn.Module) -> set[str]:
    """Return the names of the matrix products of an ONNX model that may be inside a scan.

    Where a file has functions, scans are in them. Without (opset 13 and 14) all products that a layer with a scan
    computes itself count, in_proj of some included. A node is called after its module: `/model.9/m.0/MatMul` is of the
    module `model.9.m.0`, and `/model.9/m.0/in_proj/MatMul` of a layer inside it.
    """
    if made.functions:
        return set()
    scans = {re.sub(r"\.(?=\D)", "/", name) for name, m in model.named_modules() if isinstance(m, StateSpace)}
    places = tuple(f"/{scan}/" for scan in scans)
    return {
        node.name
        for node in made.graph.node
        if node.op_type in ("MatMul", "Gemm") and f"{node.name.rpartition('/')[0]}/".endswith(places)
    }


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
