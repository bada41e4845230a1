# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""The scan in an exported graph: standard operators only, any number of tokens, in the form each exporter runs best.

ONNX gets one `Scan` operator for all directions of a layer, whose body works through a run of tokens. What was measured
and why it was chosen stands in docs/design/export.md.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ("fill", "in_order", "scan", "tokens_scan")

OPSET = 13  # the first whose operators the Scan's body is written in
RUN = 16  # tokens that a graph works through at once: fewer take more operator calls, more leave the cache


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


def fill(groups: Sequence[Tensor]) -> list[Tensor]:
    """Append zeros to the tokens (L, B, C) of each group until they make whole runs.

    They come after every token in scan order, so whatever they turn into changes no output. All groups get the same
    zeros: how many there are takes ten operators in a graph of any size.
    """
    length, batch, channels = groups[0].shape
    missing = 2 * RUN - length % RUN  # torch.export gives no graph for every size if this may be 0 or 1
    if torch.jit.is_tracing():
        missing = missing % RUN
    zeros = groups[0].new_zeros(missing, batch, channels)
    return [torch.cat([x, zeros]) for x in groups]


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
    (length, batch, dim), groups, state = u[0].shape, A.shape[0], A.shape[2]
    D, delta_bias = (None if p is None else p.detach().to(dtype).unsqueeze(1) for p in (D, delta_bias))
    weights = Weights(A.detach().to(dtype).transpose(1, 2).contiguous(), D, delta_bias, delta_softplus)
    forms = (1, dim), (1, dim), (state, 1), (1, state)
    runs = [[x.to(dtype).reshape(-1, RUN, batch, 1, *form) for x in of] for of, form in zip((u, delta, B, C), forms)]
    h = runs[0][0].new_zeros(1, batch, *weights.A.shape)
    if torch.onnx.is_in_onnx_export():
        ys = _Scan.apply(weights, h, *(x for of in runs for x in of))
    else:
        u, dt, B, C = (of[0] if groups == 1 else torch.cat(of, 3) for of in runs)
        dt = dt if delta_bias is None else dt + delta_bias
        dt = F.softplus(dt) if delta_softplus else dt
        y = (_scripted() if torch.jit.is_tracing() else _higher_order)(h, dt * u, dt, B, C, weights.A)
        ys = (y if D is None else y + u * D).unbind(3)
    return [y.reshape(length, batch, dim) for y in ys]


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
    tokens = [fill([in_order(x[:, k].permute(2, 0, 1), o) for k, o in enumerate(orders)]) for x in (u, delta, B, C)]
    ys = tokens_scan(*tokens, A, D, delta_bias, delta_softplus)
    ys = [in_order(y[: u.shape[3]], o).permute(1, 2, 0) for y, o in zip(ys, orders)]
    y = torch.stack(ys, 1)
    return (y if z is None else y * F.silu(z.to(y.dtype))).to(u.dtype)


# TorchScript, what converts it, and torch.export ---------------------------------------------------------------------


def _run(h: Tensor, x: Tensor, dt: Tensor, B: Tensor, C: Tensor, A: Tensor) -> tuple[Tensor, Tensor]:
    """Take the state through a run of tokens.

    Args:
        h (Tensor): State (1, B, K, N, D).
        x (Tensor): Step size times input (RUN, B, K, 1, D).
        dt (Tensor): Step size (RUN, B, K, 1, D).
        B (Tensor): (RUN, B, K, N, 1).
        C (Tensor): (RUN, B, K, 1, N).
        A (Tensor): (K, N, D).

    Returns:
        h (Tensor): State after the run.
        y (Tensor): (RUN, B, K, 1, D).
    """
    decays, news, hs = torch.exp(dt * A), B * x, []
    for decay, new in zip(decays.split(1), news.split(1)):
        h = new + decay * h
        hs.append(h)
    return h, torch.matmul(C, torch.cat(hs))


def _higher_order(h: Tensor, x: Tensor, dt: Tensor, B: Tensor, C: Tensor, A: Tensor) -> Tensor:
    """Walk over the runs with the scan of torch.export."""
    from torch._higher_order_ops.scan import scan as higher_order_scan  # here, because PyTorch 2.4 has none

    return higher_order_scan(lambda h, now: _run(h, *now, A), h, (x, dt, B, C))[1]


@functools.cache
def _scripted() -> Callable[..., Tensor]:
    """Return a TorchScript function that walks over the runs: the loop stays one in a trace of what calls it."""
    one = torch.zeros(1, 1, 1, 1, 1)
    many = one.expand(RUN, -1, -1, -1, -1)
    outer = torch._C._get_tracing_state()
    torch._C._set_tracing_state(None)  # the run has a trace of its own, so that its tokens are not a loop
    try:
        run = torch.jit.trace(_run, (one, many, many, many, many, one[0, 0]), check_trace=False)

        def walk(h, x, dt, B, C, A):
            ys: list[torch.Tensor] = []
            for i in range(x.shape[0]):
                h, y = run(h, x[i], dt[i], B[i], C[i], A)
                ys.append(y)
            return torch.stack(ys)

        return torch.jit.script(walk)
    finally:
        torch._C._set_tracing_state(outer)


# ONNX -----------------------------------------------------------------------------------------------------------------


class _Scan(torch.autograd.Function):
    """A Scan operator over runs of tokens, for the tracing exporter of ONNX."""

    @staticmethod
    def forward(ctx, weights: Weights, start: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Return K zeros (runs, RUN, B, 1, 1, D): the exporter looks at shapes only."""
        return tuple(torch.zeros_like(x) for x in inputs[: len(inputs) // 4])

    @staticmethod
    def symbolic(g, weights: Weights, start, *inputs):
        """Return the values of the K outputs in the graph."""
        if g.opset < OPSET:
            raise ValueError(f"a selective scan needs ONNX opset {OPSET} or later, got opset={g.opset}")
        groups = weights.A.shape[0]
        out = g.op(
            "Scan", start, *inputs, body_g=_body(weights, g.opset), num_scan_inputs_i=4 * groups, outputs=1 + groups
        )
        for y in out[1:]:  # or the exporter takes the sizes of the traced example for those of every input
            y.setType(torch._C.TensorType.create_from_tensor(weights.A).with_sizes([None] * 6))
        return out[1:]


def _body(weights: Weights, opset: int) -> torch._C.Graph:
    """Return the graph that takes the state through a run of tokens.

    Inputs are the state (1, B, K, N, D) and, for each group, u, delta (RUN, B, 1, 1, D), B (RUN, B, 1, N, 1) and C
    (RUN, B, 1, 1, N); outputs the state and y (RUN, B, 1, 1, D) for each group. What can be is done for the
    whole run; the tokens then take one multiplication and one addition each.
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
        if kind == "Split" and opset >= 18:  # before, equal parts were what no further argument means
            node.i_("num_outputs", outputs)
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
        # Not a scalar: simplifiers would share it with a scalar 1 of the outer graph, which may become float16.
        one = constant(torch.ones(1, 1, 1, 1, 1, dtype=weights.A.dtype))
        z = add("Exp", [add("Neg", [add("Abs", [dt])])])
        w = add("Add", [z, one])
        log1p = add("Add", [add("Log", [w]), add("Sub", [z, add("Sub", [w, one])])])
        dt = add("Add", [add("Relu", [dt]), log1p])
    decays = add("Exp", [add("Mul", [dt, constant(weights.A)])])
    news = add("MatMul", [B, add("Mul", [dt, u])])
    decays, news = (add("Split", [x], RUN, axis=0) for x in (decays, news))
    hs = []
    for decay, new in zip(decays, news):
        h = add("Add", [add("Mul", [decay, h]), new])
        hs.append(h)
    y = add("MatMul", [C, add("Concat", hs, axis=0)])
    if weights.D is not None:
        y = add("Add", [y, add("Mul", [u, constant(weights.D)])])
    graph.registerOutput(typed(add("Identity", [h]), "h_next", (1, None, groups, state, dim)))
    ys = [add("Identity", [y])] if groups == 1 else add("Split", [y], groups, axis=2)
    for k, value in enumerate(ys):
        graph.registerOutput(typed(value, f"y{k}", (RUN, None, 1, 1, dim)))
    return graph
