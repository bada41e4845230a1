# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""The scan in an exported graph: standard operators only, any number of tokens, in the form each exporter runs best.

ONNX gets one `Scan` operator for all directions of a layer, whose body works through a run of tokens. What was measured
and why it was chosen stands in docs/design/export.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ("fill", "in_order", "scan", "tokens_scan")

RUN = 16  # tokens that a graph works through at once: fewer cost operator calls, more leave the cache


@dataclass
class Weights:
    """What does not depend on the tokens; exporters store it as it is.

    Args:
        A (Tensor): (K, N, D), in the dtype of the state.
        D (Tensor, optional): (K, 1, D).
        delta_bias (Tensor, optional): (K, 1, D).
        delta_softplus (bool): Whether delta goes through softplus after the bias.
    """

    A: Tensor
    D: Tensor | None
    delta_bias: Tensor | None
    delta_softplus: bool


def fill(x: Tensor) -> Tensor:
    """Append zeros to tokens (L, B, C) until they make whole runs, where the graph needs that.

    They come after every token in scan order, so whatever they turn into changes no output.
    """
    if not torch.onnx.is_in_onnx_export():
        return x
    length, batch, channels = x.shape
    return torch.cat([x, x.new_zeros((RUN - length % RUN) % RUN, batch, channels)])


def in_order(x: Tensor, order: int) -> Tensor:
    """Turn tokens (L, B, C) from sequence order to scan order or back."""
    return x.flip(0) if order else x


def tokens_scan(
    u: Sequence[Tensor],
    delta: Sequence[Tensor],
    B: Sequence[Tensor],
    C: Sequence[Tensor],
    A: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> list[Tensor]:
    """Scan the tokens of K groups, each of which is in scan order already and filled by `fill`.

    Args:
        u (Sequence[Tensor]): K inputs (L, B, D).
        delta (Sequence[Tensor]): K step sizes (L, B, D) before bias and softplus.
        B (Sequence[Tensor]): K input matrices (L, B, N).
        C (Sequence[Tensor]): K output matrices (L, B, N).
        A (Tensor): (K, D, N).
        D (Tensor, optional): (K, D).
        delta_bias (Tensor, optional): (K, D).
        delta_softplus (bool): Apply softplus to delta after the bias.

    Returns:
        (list[Tensor]): K outputs (L, B, D) in the dtype of the state.
    """
    dtype = torch.float64 if u[0].dtype == torch.float64 else torch.float32
    D, delta_bias = (None if p is None else p.detach().to(dtype).unsqueeze(1) for p in (D, delta_bias))
    weights = Weights(A.detach().to(dtype).transpose(1, 2).contiguous(), D, delta_bias, delta_softplus)
    inputs = [[t if t.dtype == dtype else t.to(dtype) for t in of] for of in (u, delta, B, C)]
    return _onnx(*inputs, weights)


def scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    orders: Sequence[int],
) -> Tensor:
    """Do what the scan operator does with the same arguments, and return (B, K, D, L) in the dtype of u."""
    tokens = [[fill(in_order(x[:, k].permute(2, 0, 1), o)) for k, o in enumerate(orders)] for x in (u, delta, B, C)]
    ys = tokens_scan(*tokens, A, D, delta_bias, delta_softplus)
    ys = [in_order(y[: u.shape[3]], o).permute(1, 2, 0) for y, o in zip(ys, orders)]
    y = torch.stack(ys, 1)
    return (y if z is None else y * F.silu(z.to(y.dtype))).to(u.dtype)


# ONNX -----------------------------------------------------------------------------------------------------------------


def _onnx(u: list[Tensor], delta: list[Tensor], B: list[Tensor], C: list[Tensor], weights: Weights) -> list[Tensor]:
    """Scan by one Scan operator over runs of tokens; arguments and result as in `tokens_scan`."""
    (length, batch, _), (_, state, dim) = u[0].shape, weights.A.shape
    forms = (1, dim), (1, dim), (state, 1), (1, state)
    inputs = [x.reshape(-1, RUN, batch, 1, *form) for of, form in zip((u, delta, B, C), forms) for x in of]
    ys = _Scan.apply(weights, u[0].new_zeros(1, batch, *weights.A.shape), *inputs)
    return [y.reshape(length, batch, dim) for y in ys]


class _Scan(torch.autograd.Function):
    """A Scan operator over runs of tokens, for the tracing exporter of ONNX."""

    @staticmethod
    def forward(ctx, weights: Weights, start: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Return K zeros (runs, RUN, B, 1, 1, D): the exporter looks at shapes only."""
        return tuple(torch.zeros_like(x) for x in inputs[: len(inputs) // 4])

    @staticmethod
    def symbolic(g, weights: Weights, start, *inputs):
        """Return the values of the K outputs in the graph."""
        groups = weights.A.shape[0]
        out = g.op("Scan", start, *inputs, body_g=_body(weights), num_scan_inputs_i=4 * groups, outputs=1 + groups)
        for y in out[1:]:  # or the exporter takes the sizes of the traced example for those of every input
            y.setType(torch._C.TensorType.create_from_tensor(weights.A).with_sizes([None] * 6))
        return out[1:]


def _body(weights: Weights) -> torch._C.Graph:
    """Return the graph that takes the state through a run of tokens.

    Inputs are the state (1, B, K, N, D) and, for each group, u, delta (RUN, B, 1, 1, D), B (RUN, B, 1, N, 1) and C
    (RUN, B, 1, 1, N); outputs the state and y (RUN, B, 1, 1, D) for each group. What can be done for a whole run is; the
    tokens then take one multiplication and one addition each.
    """
    graph = torch._C.Graph()
    groups, state, dim = weights.A.shape
    of = torch._C.TensorType.create_from_tensor(weights.A)

    def typed(value, name: str, sizes: Sequence[int | None]):
        value.setType(of.with_sizes(list(sizes)))
        value.setDebugName(f"scan.{name}")
        return value

    def add(kind: str, inputs: Sequence, outputs: int = 1, **integers: int):
        node = graph.create(f"onnx::{kind}", list(inputs), outputs)
        for key, i in integers.items():
            node.i_(key, i)
        graph.insertNode(node)
        for value in node.outputs():
            value.setType(of.with_sizes([None] * 5))
        return node.output() if outputs == 1 else list(node.outputs())

    def constant(x: Tensor):
        node = graph.create("onnx::Constant", [], 1)
        node.t_("value", x)
        graph.insertNode(node)
        return node.output()

    def all_groups(name: str, *sizes: int):
        parts = [typed(graph.addInput(), f"{name}{k}", (RUN, None, 1, *sizes)) for k in range(groups)]
        return parts[0] if groups == 1 else parts

    h = typed(graph.addInput(), "h", (1, None, groups, state, dim))
    given = all_groups("u", 1, dim), all_groups("delta", 1, dim), all_groups("B", state, 1), all_groups("C", 1, state)
    u, dt, B, C = (x if groups == 1 else add("Concat", x, axis=2) for x in given)
    if weights.delta_bias is not None:
        dt = add("Add", [dt, constant(weights.delta_bias)])
    if weights.delta_softplus:  # not Softplus: ONNX Runtime's is a scalar loop, and loses digits of small steps
        one = constant(torch.ones((), dtype=weights.A.dtype))
        z = add("Exp", [add("Neg", [add("Abs", [dt])])])
        w = add("Add", [z, one])
        log1p = add("Add", [add("Log", [w]), add("Sub", [z, add("Sub", [w, one])])])
        dt = add("Add", [add("Relu", [dt]), log1p])
    decays = add("Exp", [add("Mul", [dt, constant(weights.A)])])
    news = add("MatMul", [B, add("Mul", [dt, u])])
    decays, news = (add("Split", [x], RUN, axis=0, num_outputs=RUN) for x in (decays, news))
    hs = []
    for decay, new in zip(decays, news):
        h = add("Add", [add("Mul", [decay, h]), new])
        hs.append(h)
    y = add("MatMul", [C, add("Concat", hs, axis=0)])
    if weights.D is not None:
        y = add("Add", [y, add("Mul", [u, constant(weights.D)])])
    graph.registerOutput(typed(add("Identity", [h]), "h_next", (1, None, groups, state, dim)))
    ys = [add("Identity", [y])] if groups == 1 else add("Split", [y], groups, axis=2, num_outputs=groups)
    for k, value in enumerate(ys):
        graph.registerOutput(typed(value, f"y{k}", (RUN, None, 1, 1, dim)))
    return graph
