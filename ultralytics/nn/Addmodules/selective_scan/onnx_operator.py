# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""The block around the scan as an operator in an ONNX file, with standard operators as its body.

A file made under `in_one_file` runs in every ONNX Runtime, which takes the bodies, and runs the C++ kernels where the
session was given the compiled library (backends/csrc/ort.cpp). docs/design/export.md tells why it is built so.
"""

from __future__ import annotations

import ctypes
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path

import torch
from torch import Tensor

from .contract import Block
from .export.target import traced_for_onnx
from .registry import LOGGER, get

__all__ = ("ALONG_COLUMNS", "in_one_file", "inline", "operator_library", "recorded", "recording", "version_in")

VERSION = (
    1  # of the operator, as in backends/csrc/ort.cpp: raised whenever a file that was exported before would be misread
)
LAYERS = 64  # names that the library registers
OPSET = 15  # the first whose files may hold bodies of operators
DOMAIN, NAME, KEY = "vmamba", "MambaInner_", "vmamba_operator"  # KEY: of the version in the metadata of a file
INPUTS = "x", "x_proj", "dt_proj", "conv_w", "conv_b"  # those that are absent last; A, D and dt_bias are attributes
ALONG_COLUMNS = 2  # a bit of an order

_recording: list[dict] | None = None  # attributes of the operators so far, while a file is made


def recording() -> bool:
    """Return whether a file with our operators is being made."""
    return _recording is not None and traced_for_onnx()


def recorded(composed: Callable[[Block], Tensor], b: Block) -> Tensor:
    """Return composed(b), as one operator where a file for both worlds is made.

    Args:
        composed (Callable[[Block], Tensor]): Does what the operator does, in PyTorch, with the block that it is given.
        b (Block): Without in_proj and out_proj. Its xz may also be a map (B, H, W, D), for directions along columns;
            their orders have the bit ALONG_COLUMNS.
    """
    if not recording():
        return composed(b)
    if not _within_limits(b):
        LOGGER.warning(
            f"ONNX: {b.A.shape[2]} states, rank {b.dt_proj.shape[2]} or the convolution's taps are more than the "
            f"operator library takes; this layer has standard operators alone, which are slower"
        )
        return composed(b)
    layer = len(_recording)
    attributes = {"orders": list(b.orders), "delta_softplus": int(b.delta_softplus), "version": VERSION}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # they are constants of the file
        for name, t in (("A", b.A), ("D", b.D), ("dt_bias", b.dt_bias)):
            attributes[name] = (b.A.new_zeros(b.A.shape[:2]) if t is None else t).detach().float().flatten().tolist()
    _recording.append(attributes)
    tensors = [t for t in (b.xz, b.x_proj, b.dt_proj, b.conv_w, b.conv_b) if t is not None]
    x, x_proj, dt_proj, *conv = _Enter.apply(layer, *tensors)
    conv_w, conv_b = (*conv, None, None)[:2]
    inside = b._replace(xz=x, conv_w=conv_w, conv_b=conv_b, x_proj=x_proj, dt_proj=dt_proj)
    return _Leave.apply(layer, composed(inside))


def _within_limits(b: Block) -> bool:
    """Return whether the library's kernels take a block: where they do not, a file must have its body alone."""
    kernels = get("cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # sizes of parameters are constants of the file
        return kernels.fuses(b) and b.A.shape[2] <= kernels.max_states


class _Enter(torch.autograd.Function):
    """Marks where the body of an operator begins; in PyTorch its outputs are its inputs."""

    @staticmethod
    def forward(ctx, layer: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(t.view_as(t) for t in tensors)

    @staticmethod
    def symbolic(g, layer: int, *tensors):
        out = g.op(f"{DOMAIN}::Enter", *tensors, layer_i=layer, outputs=len(tensors))
        for inside, outside in zip(out, tensors):
            inside.setType(outside.type())
        return tuple(out)


class _Leave(torch.autograd.Function):
    """Marks where the body of an operator ends."""

    @staticmethod
    def forward(ctx, layer: int, y: Tensor) -> Tensor:
        return y.view_as(y)

    @staticmethod
    def symbolic(g, layer: int, y):
        out = g.op(f"{DOMAIN}::Leave", y, layer_i=layer)
        out.setType(y.type())
        return out


@contextmanager
def in_one_file(half: bool = False) -> Iterator[None]:
    """Let torch.onnx.export write our operators, each with its body, instead of the bodies alone.

    onnxslim gets such a model without the bodies. It finds nothing in them, and takes eight seconds to look.

    Args:
        half (bool): The file will be converted to float16 after the export: bodies are made to take either.
    """
    export = torch.onnx.export

    def both(model, args, f, *rest, **settings):
        global _recording
        if settings.get("opset_version", OPSET) < OPSET:
            return export(model, args, f, *rest, **settings)
        _recording = []
        try:
            done = export(model, args, f, *rest, **settings)
            if _recording:
                import onnx

                file = onnx.load(f)
                _to_functions(file, _recording, half)
                onnx.save(file, f)
            return done
        finally:
            _recording = None

    try:
        import onnxslim
    except ImportError:  # upstream says what is missing, if it is needed
        onnxslim = None
    slim = onnxslim and onnxslim.slim
    torch.onnx.export = both
    if slim:
        onnxslim.slim = _bodies_aside(slim)
    try:
        yield
    finally:
        torch.onnx.export = export
        if slim:
            onnxslim.slim = slim


def _bodies_aside(slim: Callable) -> Callable:
    """Return onnxslim's `slim`, which does not see the bodies of operators."""

    @wraps(slim)
    def outside(model, *args, **kwargs):
        bodies = [type(f).FromString(f.SerializeToString()) for f in getattr(model, "functions", ())]
        if not bodies:
            return slim(model, *args, **kwargs)
        del model.functions[:]
        try:
            slimmed = slim(model, *args, **kwargs)
        except BaseException:  # then upstream goes on with the model that it has
            model.functions.extend(bodies)
            raise
        slimmed.functions.extend(bodies)
        known = [v for v in slimmed.graph.value_info if v.type.tensor_type.elem_type]
        del slimmed.graph.value_info[:]  # what follows an operator without a body has no type, which runtimes refuse
        slimmed.graph.value_info.extend(known)
        return slimmed

    return outside


def operator_library() -> str:
    """Return the path of the library for `onnxruntime.SessionOptions.register_custom_ops_library`.

    It needs neither this package nor PyTorch where it runs: the file may be copied to a machine of the same kind.

    Raises:
        RuntimeError: If there is none, or one of another version.

    Examples:
        >>> Path(operator_library()).stem.split(".")[0]
        '_cpu'
    """
    backend = get("cpu")
    if not backend.works:
        raise RuntimeError(backend.about)
    path = backend.find_library()
    try:
        library = ctypes.CDLL(str(path))
        library.vmamba_operator_version.restype = ctypes.c_int64
        version = library.vmamba_operator_version()
    except AttributeError:
        raise RuntimeError(f"{path.name} is older than the operator for ONNX Runtime: reinstall") from None
    if version != VERSION:
        raise RuntimeError(f"{path.name} has version {version} of the operator, need {VERSION}: reinstall")
    return str(path)


def version_in(file: str | Path) -> int | None:
    """Return the version of our operator that an ONNX file was made with, or None if it has none."""
    entry = re.search(rb"\x0a.%b\x12.(\d+)" % KEY.encode(), Path(file).read_bytes(), re.DOTALL)  # as protobuf writes it
    return int(entry[1]) if entry else None


def inline(file: str | Path) -> None:
    """Replace our operators in an ONNX file by their bodies."""
    import onnx
    from onnx import inliner

    model = onnx.load(file)
    if not model.functions:
        return
    model = inliner.inline_local_functions(model)
    kept = [o for o in model.opset_import if o.domain != DOMAIN]
    del model.opset_import[:]
    model.opset_import.extend(kept)
    onnx.helper.set_model_props(model, {p.key: p.value for p in model.metadata_props if p.key != KEY})
    onnx.save(model, file)


# The file -------------------------------------------------------------------------------------------------------------


def _graphs(node) -> list:
    """Return the graphs inside a node."""
    return [a.g for a in node.attribute if a.HasField("g")]


def _uses(node) -> list[str]:
    """Return the names that a node and the graphs inside it read from outside of it."""
    names = list(node.input)
    for graph in _graphs(node):
        own = {i.name for i in graph.input} | {t.name for t in graph.initializer}
        own |= {o for n in graph.node for o in n.output}
        names += [name for n in graph.node for name in _uses(n) if name not in own]
        names += [o.name for o in graph.output if o.name not in own]
    return [name for name in names if name]


def _rename(node, names: dict[str, str]) -> None:
    """Rename what a node and the graphs inside it read and write."""
    for values in (node.input, node.output):
        values[:] = [names.get(v, v) for v in values]
    for graph in _graphs(node):
        for n in graph.node:
            _rename(n, names)
        for o in graph.output:
            o.name = names.get(o.name, o.name)


def _to_functions(model, operators: list[dict], half: bool) -> None:
    """Turn what stands between two marks into the body of a function of the model, and the marks into its call."""
    from onnx import helper

    graph = model.graph
    made = {o: n for n in graph.node for o in n.output}
    weights = {t.name: t for t in graph.initializer}
    ours = [n for n in graph.node if n.domain == DOMAIN]
    marks = {kind: {n.attribute[0].i: n for n in ours if n.op_type == kind} for kind in ("Enter", "Leave")}
    outside = {inner: outer for n in marks["Enter"].values() for inner, outer in zip(n.output, n.input)}
    calls = {}
    for layer, attributes in enumerate(operators[:LAYERS]):
        enter, leave = marks["Enter"].get(layer), marks["Leave"].get(layer)
        body = _body(enter, leave, made, weights) if enter and leave else None
        if body is None:
            continue  # the layer stays as it is
        inputs = INPUTS[: len(enter.input)]
        for node in body:
            _rename(node, dict(zip(enter.output, inputs)) | {leave.input[0]: "y"})
        if half:
            body = _either_type(body, inputs)
        imports = [o for o in model.opset_import if o.domain != DOMAIN]
        name = f"{NAME}{layer}"
        model.functions.append(helper.make_function(DOMAIN, name, inputs, ["y"], body, imports, list(attributes)))
        calls[layer] = helper.make_node(name, enter.input, leave.output, f"/{name}", domain=DOMAIN, **attributes)
    nodes = []
    for node in graph.node:
        kind = node.op_type if node.domain == DOMAIN else ""
        if kind == "Leave":
            node = calls.get(node.attribute[0].i) or helper.make_node("Identity", node.input, node.output, node.name)
        if kind != "Enter":
            nodes.append(node)
    for node in nodes:
        _rename(node, outside)
    needed, kept = {o.name for o in graph.output}, []
    for node in reversed(nodes):
        if needed.intersection(node.output):
            needed.update(_uses(node))
            kept.append(node)
    for values, keep in (
        (graph.node, kept[::-1]),
        (graph.initializer, [t for t in graph.initializer if t.name in needed]),
        (graph.value_info, [v for v in graph.value_info if v.name in needed]),
    ):
        keep = [type(x).FromString(x.SerializeToString()) for x in keep]
        del values[:]
        values.extend(keep)
    if calls:
        model.ir_version = max(model.ir_version, 8)  # the first with functions
        helper.set_model_props(model, {p.key: p.value for p in model.metadata_props} | {KEY: str(VERSION)})


def _body(enter, leave, made: dict, weights: dict) -> list | None:
    """Return copies of the nodes between two marks in their order, or None if they need more than what enters."""
    from onnx import helper

    inner, found, waiting = set(enter.output), {}, [leave.input[0]]
    while waiting:
        name = waiting.pop()
        if name in inner or name in found:
            continue
        node = helper.make_node("Constant", [], [name], value=weights[name]) if name in weights else made.get(name)
        if node is None or node.domain == DOMAIN:
            return None
        found.update(dict.fromkeys(node.output, node))
        waiting += _uses(node)
    order = {id(n): i for i, n in enumerate(made.values())}
    nodes = {id(n): n for n in found.values()}.values()
    return [type(n).FromString(n.SerializeToString()) for n in sorted(nodes, key=lambda n: order.get(id(n), -1))]


def _either_type(body: list, names: Sequence[str]) -> list:
    """Return a body that computes in float32 and takes and returns float16, too."""
    from onnx import TensorProto, helper

    wide = {name: f"{name}.float" for name in names}
    for node in body:
        _rename(node, wide | {"y": "y.float"})
    casts = [helper.make_node("Cast", [name], [to], to=TensorProto.FLOAT) for name, to in wide.items()]
    return [*casts, *body, helper.make_node("CastLike", ["y.float", "x"], ["y"])]
