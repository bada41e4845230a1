# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""The proofs themselves: inputs are what they say, the oracle is the recurrence, and no measure lets a NaN pass."""

from __future__ import annotations

import math

import pytest
import torch

from tests.scan_cases import loop
from ultralytics.nn.Addmodules.selective_scan import op, proof, registry, selective_scan_fn, use_backend


@pytest.mark.parametrize("values", ["any", "model"])
def test_inputs_are_the_same_numbers_in_every_dtype_and_layout(values: str) -> None:
    plain = proof.scan_inputs(2, 3, 4, 5, 6, values=values)
    assert [tuple(x.shape) for x in plain[:6]] == [*[(2, 3, 4, 5)] * 2, (3, 4, 6), *[(2, 3, 6, 5)] * 2, (3, 4)]
    assert plain.u.stride(2) == 1
    for dtype in (torch.float64, torch.bfloat16):
        other = proof.scan_inputs(2, 3, 4, 5, 6, values=values, dtype=dtype, layout="tokens-last")
        assert other.u.stride(3) == 1
        for name, a, b in zip(plain._fields, plain, other):
            kept = a if name in proof.WIDE and dtype != torch.float64 else a.to(dtype)
            assert torch.equal(b, kept), name
    assert not torch.equal(proof.scan_inputs(2, 3, 4, 5, 6, values=values, seed=1).u, plain.u)
    some = proof.scan_inputs(1, 1, 4, 5, 6, values=values, skip=False, gate=False, bias=False)
    assert some[5:] == (None, None, None)


def test_other_values_and_layouts_are_refused() -> None:
    for wrong in ({"values": "all"}, {"layout": "rows"}):
        with pytest.raises(ValueError, match="must be"):
            proof.scan_inputs(1, 1, 1, 1, 1, **wrong)


@pytest.mark.parametrize("values", ["any", "model"])
@pytest.mark.parametrize("softplus", [True, False])
@pytest.mark.parametrize("options", [{}, {"gate": False}, {"skip": False, "bias": False}], ids=str)
def test_the_oracle_is_the_recurrence(values: str, softplus: bool, options: dict) -> None:
    """Written out once more by hand, both orders, with every gradient."""
    orders = [1, 0, 1]
    x = proof.scan_inputs(2, 3, 4, 9, 3, values=values, dtype=torch.float64, **options)
    if not softplus:
        x = x._replace(delta=x.delta.abs())
    dout, leaves = torch.randn_like(x.u), [None if t is None else t.clone().requires_grad_() for t in x]
    out, last = loop(*leaves, softplus, orders)
    grads = torch.autograd.grad(out, [t for t in leaves if t is not None], dout)
    found = proof.oracle(x, dout, softplus, orders)
    assert list(found) == ["out", *(f"d{n}" for n, t in zip(x._fields, x) if t is not None), "last"]
    for got, want in zip(found.values(), (out, *grads, last), strict=True):
        assert got.dtype == torch.float64
        torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("groups", [1, 3])
def test_a_recipes_scan_is_the_canonical_one(groups: int) -> None:
    x = proof.scan_inputs(2, groups, 4, 9, 3, dtype=torch.float64)
    dout = torch.randn_like(x.u)
    grouped, flat = proof.oracle(x, dout, orders=[0] * groups), proof.oracle(x.recipe(), dout.flatten(1, 2))
    for name, want in grouped.items():
        torch.testing.assert_close(flat[name].reshape(want.shape), want)


def test_the_oracle_asks_no_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    x = proof.scan_inputs(1, 1, 2, 3, 2).recipe()
    with use_backend("chunked"):
        got = proof.run_with_gradients(lambda *a: selective_scan_fn(*a, delta_softplus=True), x, x.u)

    def asked(*args: object) -> str:
        raise AssertionError("a backend is chosen")

    monkeypatch.setattr(op, "choose", asked)
    monkeypatch.setattr(registry, "choose", asked)
    want = proof.oracle(x, x.u)
    del want["last"]
    assert proof.worst(got, want, proof.rms_error)[1] < 1e-6


@pytest.mark.parametrize("measure", [proof.max_error, proof.rms_error])
def test_what_cannot_be_compared_is_infinitely_wrong(measure) -> None:
    x = torch.tensor([1.0, -2.0])
    assert measure(x, x) == 0
    assert measure(x * 1.5, x) == pytest.approx(0.5)
    assert measure(x.bfloat16(), x.double()) == 0
    for value in (math.nan, math.inf):
        wrong = torch.tensor([1.0, value])
        assert measure(wrong, x) == measure(x, wrong) == measure(wrong, wrong) == math.inf
    assert measure(x[:1], x) == measure(x[None], x) == math.inf, "nothing is broadcast"
    assert measure(x[:0], x[:0]) == measure(x * 0, x * 0) == 0
    assert measure(x, x * 0) > 1e29


def test_measures_weigh_as_they_say() -> None:
    want = torch.tensor([3.0, 4.0])
    assert proof.max_error(want + torch.tensor([1.0, 0.0]), want) == pytest.approx(1 / 4)
    assert proof.rms_error(want + torch.tensor([1.0, 0.0]), want) == pytest.approx(1 / 5)
    assert proof.worst({"a": want, "b": want * 2, "more": want}, {"a": want, "b": want}) == ("b", 1.0)
    with pytest.raises(KeyError):
        proof.worst({}, {"a": want})


def test_the_clock_gives_the_median_of_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    now, took = [0.0], iter([5.0, 0.001, 0.002, 0.004])
    monkeypatch.setattr(proof.time, "perf_counter", lambda: now[0])

    def run() -> None:
        now[0] += next(took)

    assert proof.median_ms(run, seconds=5.0065) == pytest.approx(2)  # the first call, which warms up, is not counted
    took = iter([5.0, 0.003])
    assert proof.median_ms(run, seconds=1) == pytest.approx(3), "one run at the least"
    waited, took = [], iter([1.0, 1.0])
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waited.append(now[0]))
    proof.median_ms(run, "cuda:0", seconds=0)
    assert len(waited) == 2
