# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""The loop over runs of tokens as ONNX's `Scan` operator, whose body is a graph written here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .softplus import SERIES

if TYPE_CHECKING:
    from .runs import Run, Weights

__all__ = ("OPSET", "OnnxScan")

OPSET = 13  # the first whose operators the body is written in


class OnnxScan(torch.autograd.Function):
    """A Scan operator over runs of tokens, for the tracing exporter of ONNX."""

    @staticmethod
    def forward(ctx, run: Run, weights: Weights, start: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Return K zeros (runs, run.length, B, 1, 1, D): the exporter looks at shapes only."""
        return tuple(torch.zeros_like(x) for x in inputs[: len(inputs) // 4])

    @staticmethod
    def symbolic(g, run: Run, weights: Weights, start, *inputs):
        """Return the values of the K outputs in the graph."""
        if g.opset < OPSET:
            raise ValueError(f"a selective scan needs ONNX opset {OPSET} or later, got opset={g.opset}")
        groups = weights.A.shape[0]
        body = Body(run, weights, g.opset).graph
        out = g.op("Scan", start, *inputs, body_g=body, num_scan_inputs_i=4 * groups, outputs=1 + groups)
        for y in out[1:]:  # or the exporter takes the sizes of the traced example for those of every input
            y.setType(torch._C.TensorType.create_from_tensor(weights.A).with_sizes([None] * 6))
        return out[1:]


class Body:
    """The graph that takes the state through a run of tokens.

    Inputs are the state (1, B, K, N, D) and, for each group, u, delta (T, B, 1, 1, D), B (T, B, 1, N, 1) and
    C (T, B, 1, 1, N) of T = run.length tokens; outputs the state and y (T, B, 1, 1, D) for each group. What can be is
    done for the whole run; the tokens then take one multiplication and one addition each.

    Attributes:
        graph (torch._C.Graph): The graph.
    """

    def __init__(self, run: Run, weights: Weights, opset: int) -> None:
        """Write the graph."""
        self.graph, self.opset = torch._C.Graph(), opset
        self.type = torch._C.TensorType.create_from_tensor(weights.A)
        groups, state, dim = weights.A.shape

        def all_groups(name: str, *sizes: int):
            sizes = run.length, None, 1, *sizes
            parts = [self.typed(self.graph.addInput(), f"{name}{k}", sizes) for k in range(groups)]
            return parts[0] if groups == 1 else parts

        h = self.typed(self.graph.addInput(), "h", (1, None, groups, state, dim))
        given = (
            all_groups("u", 1, dim),
            all_groups("delta", 1, dim),
            all_groups("B", state, 1),
            all_groups("C", 1, state),
        )
        u, dt, B, C = (x if groups == 1 else self.add("Concat", x, axis=2) for x in given)
        if weights.delta_bias is not None:
            dt = self.add("Add", [dt, self.constant(weights.delta_bias)])
        if weights.delta_softplus:
            dt = self.softplus(dt)
        A = self.constant(weights.A)
        x = self.add("Mul", [dt, u])
        decays = self.add("Exp", [self.add("Mul", [dt, A])])
        news = self.product(B, x, state)
        if run.chunks == 1:
            h, states = self.walk(self.split(decays, run.tokens, 0), self.split(news, run.tokens, 0), h, 0)
        else:
            h, states = self.two_level(run, dt, A, decays, news, h, groups, state, dim)
        y = self.product(C, states, state)
        if weights.D is not None:
            y = self.add("Add", [y, self.add("Mul", [u, self.constant(weights.D)])])
        self.graph.registerOutput(self.typed(self.add("Identity", [h]), "h_next", (1, None, groups, state, dim)))
        ys = [self.add("Identity", [y])] if groups == 1 else self.split(y, groups, 2)
        for k, value in enumerate(ys):
            self.graph.registerOutput(self.typed(value, f"y{k}", (run.length, None, 1, 1, dim)))

    def typed(self, value, name: str, sizes: Sequence[int | None]):
        """Give a value a name and sizes, None where they are free."""
        value.setType(self.type.with_sizes(list(sizes)))
        value.setDebugName(f"scan.{name}")
        return value

    def add(self, kind: str, inputs: Sequence, outputs: int = 1, rank: int = 5, **integers: int):
        """Add an operator and return its output, or the list of its outputs."""
        node = self.graph.create(f"onnx::{kind}", list(inputs), outputs)
        for key, i in integers.items():
            node.i_(key, i)
        if kind == "Split" and self.opset >= 18:  # before, equal parts were what no further argument means
            node.i_("num_outputs", outputs)
        self.graph.insertNode(node)
        for value in node.outputs():
            value.setType(self.type.with_sizes([None] * rank))
        return node.output() if outputs == 1 else list(node.outputs())

    def constant(self, x: Tensor):
        """Add a constant."""
        node = self.graph.create("onnx::Constant", [], 1)
        node.t_("value", x)
        self.graph.insertNode(node)
        return node.output()

    def number(self, x: float):
        """Add a number. Not a scalar: simplifiers share scalars with the outer graph, which may become float16."""
        return self.constant(torch.full((1, 1, 1, 1, 1), x, dtype=self.type.dtype()))

    def integers(self, *x: int):
        """Add a list of integers."""
        return self.constant(torch.tensor(x, dtype=torch.int64))

    def split(self, x, parts: int, axis: int, rank: int = 5) -> list:
        """Cut a value into equal parts."""
        return self.add("Split", [x], parts, rank, axis=axis)

    def product(self, a, b, state: int):
        """Multiply (..., N, 1) and (..., 1, D), or (..., 1, N) and (..., N, D), N = state."""
        return self.add("Mul" if state == 1 else "MatMul", [a, b])

    def softplus(self, x):
        """Write softplus in elementary operators: see softplus.py, and for float64 the exact form of log(1 + z)."""
        z = self.add("Exp", [self.add("Neg", [self.add("Abs", [x])])])
        if self.type.dtype() == torch.float64:
            one = self.number(1)
            w = self.add("Add", [z, one])
            log1p = self.add("Add", [self.add("Log", [w]), self.add("Sub", [z, self.add("Sub", [w, one])])])
            return self.add("Add", [self.add("Relu", [x]), log1p])
        s = self.add("Div", [z, self.add("Add", [z, self.number(2)])])
        q = self.add("Mul", [s, s])
        p = self.number(SERIES[-1])
        for c in SERIES[-2::-1]:
            p = self.add("Add", [self.add("Mul", [p, q]), self.number(c)])
        return self.add("Add", [self.add("Relu", [x]), self.add("Mul", [s, p])])

    def step(self, decay, h, new):
        """Take a state through a token, or through a chunk."""
        return self.add("Add", [self.add("Mul", [decay, h]), new])

    def walk(self, decays: list, news: list, h, axis: int) -> tuple:
        """Return the last state, and the states after each token, joined along an axis."""
        hs = []
        for decay, new in zip(decays, news):
            h = self.step(decay, h, new)
            hs.append(h)
        return h, self.add("Concat", hs, axis=axis)

    def two_level(self, run: Run, dt, A, decays, news, h, groups: int, state: int, dim: int) -> tuple:
        """Do what `walk` does for all tokens (T, B, K, N, D) of a run, all chunks at once."""
        cut = self.integers(run.chunks, run.tokens, -1, groups, state, dim)
        parts = [self.split(self.add("Reshape", [x, cut], rank=6), run.tokens, 1, 6) for x in (decays, news)]
        steps = self.add("Reshape", [dt, self.integers(run.chunks, run.tokens, -1, groups, 1, dim)], rank=6)
        total = self.add("ReduceSum", [steps, self.integers(1)], rank=6, keepdims=1)
        lasts = self.add("Exp", [self.add("Mul", [total, A], rank=6)], rank=6)
        end = parts[1][0]
        for decay, new in zip(parts[0][1:], parts[1][1:]):
            end = self.step(decay, end, new)
        h, starts = self.add("Unsqueeze", [h, self.integers(0)], rank=6), []
        for last, new in zip(self.split(lasts, run.chunks, 0, 6), self.split(end, run.chunks, 0, 6)):
            starts.append(h)
            h = self.step(last, h, new)
        _, states = self.walk(*parts, self.add("Concat", starts, axis=0, rank=6), 1)
        states = self.add("Reshape", [states, self.integers(run.length, -1, groups, state, dim)])
        return self.add("Squeeze", [h, self.integers(0)]), states
