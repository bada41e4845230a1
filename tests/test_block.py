# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""The block around the scan in one operator: the C++ kernels and the composition against float64, layouts, refusals."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.block_cases import CASES, FLOAT32, LOW, NAMES, WHOLE, cast, make, run, whole, whole_in_float32
from ultralytics.nn.Addmodules.selective_scan import (
    Block,
    compose,
    mamba_inner,
    op,
    registry,
    scan,
    token_norm,
    use_backend,
)
from ultralytics.nn.Addmodules.selective_scan.backends.cpu import MAX_TAPS
from ultralytics.nn.Addmodules.selective_scan.contract import NEEDS, Linear, Norm
from ultralytics.nn.Addmodules.selective_scan.proof import rms_error
from ultralytics.nn.Addmodules.VMamba import Mamba, MambaLayer

cpu = registry.get("cpu")
needs_cpu = pytest.mark.skipif(not cpu.works, reason=cpu.about)


@pytest.fixture(autouse=True)
def _restore(threads_put_back: None):
    """Put threads and instruction set back."""
    yield
    if cpu.works:
        cpu.set_isa("auto")


@pytest.fixture(params=["avx512", "avx2", "plain", "chunked"])
def backend(request: pytest.FixtureRequest) -> str:
    """Return a backend's name, for each instruction set of the C++ one."""
    if request.param == "chunked":
        return "chunked"
    if not cpu.works:
        pytest.skip(cpu.about)
    try:
        cpu.set_isa(request.param)
    except ValueError as e:
        pytest.skip(str(e))
    return "cpu"


@pytest.mark.parametrize("case", CASES, ids=lambda c: "-".join(map(str, c[:7])))
@pytest.mark.parametrize("threads", [1, 2, 7])
def test_forward_and_gradients_against_float64(backend: str, case: tuple, threads: int) -> None:
    torch.set_num_threads(threads)
    *sizes, orders = case
    args = make(*sizes, orders)
    truth = run(args, orders, "reference")
    for name, x in run(cast(args, torch.float32), orders, backend).items():
        assert x.shape == truth[name].shape
        assert rms_error(x, truth[name]) < FLOAT32, name


@pytest.mark.parametrize("softplus", [True, False])
def test_optional_arguments_left_out(backend: str, softplus: bool) -> None:
    orders = [0, 1]
    args = make(2, 45, 20, 4, 2, 4, 2, orders, optional=False)
    args["dt_proj"] = args["dt_proj"].abs() * 0.1
    args["x_proj"][:, :2] = args["x_proj"][:, :2].abs()
    args["xz"][..., :20] = args["xz"][..., :20].abs() + 0.5  # step sizes stay positive without softplus
    args["conv_w"] = args["conv_w"].abs()
    truth = run(args, orders, "reference", softplus)
    got = run(cast(args, torch.float32), orders, backend, softplus)
    assert got.keys() == truth.keys() == {"out", "dxz", "dconv_w", "dx_proj", "ddt_proj", "dA"}
    for name, x in got.items():
        assert rms_error(x, truth[name]) < FLOAT32, name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_low_precision_against_plain_pytorch(backend: str, dtype: torch.dtype) -> None:
    """No further from float64 than PyTorch's own composition in that dtype, and gradients in their inputs' dtypes."""
    orders = [0, 1]
    args = cast(make(2, 90, 40, 8, 3, 4, 2, orders), dtype)
    truth = run({n: t.double() for n, t in args.items()}, orders, "reference")
    plain = run(args, orders, "reference")
    for name, x in run(args, orders, backend).items():
        assert x.dtype == (dtype if name == "out" else args[name[1:]].dtype)
        assert rms_error(x, truth[name]) <= LOW[backend] * rms_error(plain[name], truth[name]) + FLOAT32, name


def test_without_gradients_nothing_is_kept_and_the_output_is_the_same(backend: str) -> None:
    orders = [0, 1]
    args = cast(make(2, 70, 24, 4, 2, 4, 2, orders), torch.float32)
    with_grad = run(args, orders, backend)["out"]
    with use_backend(backend), torch.no_grad():
        assert torch.equal(mamba_inner(Block(**args, orders=orders)), with_grad)
    out, *kept = torch.ops.vmamba.mamba_inner(*args.values(), True, orders, "chunked", False)
    assert [t.numel() for t in kept] == [0, 0, 0]


@pytest.mark.parametrize("case", CASES[1:6], ids=lambda c: "-".join(map(str, c[:7])))
def test_threads_change_only_rounding(backend: str, case: tuple) -> None:
    *sizes, orders = case
    args = cast(make(*sizes, orders), torch.float32)
    torch.set_num_threads(1)
    expected = run(args, orders, backend)
    for threads in (2, 5, 16):
        torch.set_num_threads(threads)
        for name, x in run(args, orders, backend).items():
            assert rms_error(x, expected[name].double()) < 1e-6, (threads, name)


def test_same_call_same_bits(backend: str) -> None:
    torch.set_num_threads(3)
    orders = [0, 1]
    args = cast(make(2, 200, 48, 16, 3, 4, 2, orders), torch.float32)
    first = run(args, orders, backend)
    for name, x in run(args, orders, backend).items():
        assert torch.equal(x, first[name]), name


def test_any_layout(backend: str) -> None:
    """Tokens innermost, sliced and expanded tensors give what contiguous ones give."""
    orders = [0, 1]
    args = cast(make(2, 67, 40, 5, 3, 4, 2, orders), torch.float32)
    args["conv_b"], args["D"] = args["conv_b"][:, :1].expand(-1, 40), args["D"][:1].expand(2, -1)
    expected = run({n: t.contiguous() for n, t in args.items()}, orders, backend)
    strange = {n: t.transpose(-1, -2).contiguous().transpose(-1, -2) for n, t in args.items() if t.dim() > 1}
    strange = {n: torch.stack((t, t), -1)[..., 0] for n, t in strange.items()}
    for name, x in run(args | strange | {"conv_b": args["conv_b"], "D": args["D"]}, orders, backend).items():
        assert rms_error(x, expected[name].double()) < 1e-6, name


def test_gradient_of_an_expanded_output(backend: str) -> None:
    """What `sum().backward()` passes has stride 0 everywhere."""
    orders = [0, 1]
    args = make(1, 40, 24, 4, 2, 4, 2, orders)
    ones = torch.ones((), dtype=torch.float64).expand(1, 40, 27)
    truth = run(args, orders, "reference", dout=ones)
    for name, x in run(cast(args, torch.float32), orders, backend, dout=ones).items():
        assert rms_error(x, truth[name]) < FLOAT32, name


@pytest.mark.parametrize("shape", [(0, 5, 8), (2, 0, 8)], ids=["no batch", "no tokens"])
def test_empty(backend: str, shape: tuple) -> None:
    args = cast(make(1, 5, 8, 4, 2, 4, 2, [0, 1]), torch.float32)
    args["xz"] = torch.zeros(shape[0], shape[1], 16)
    if shape[1] == 0 and backend == "chunked":
        pytest.skip("a convolution of no tokens is an error in PyTorch")
    got = run(args, [0, 1], backend)
    assert got["out"].shape == (*shape[:2], 11)
    assert all(not g.any() for n, g in got.items() if n not in {"out", "dxz"})


def test_not_a_number_stays_in_its_sequence(backend: str) -> None:
    args = cast(make(2, 50, 24, 4, 2, 4, 2, [0, 1]), torch.float32)
    clean = run(args, [0, 1], backend)["out"]
    args["xz"][1, 20, 3] = float("nan")
    out = run(args, [0, 1], backend)["out"]
    assert torch.equal(out[0], clean[0])
    assert out[1].isnan().all()


@needs_cpu
def test_wrong_arguments_are_refused_by_name() -> None:
    args = cast(make(2, 9, 8, 4, 2, 4, 2, [0, 1]), torch.float32)
    b = Block(**args, orders=[0, 1])
    settings = True, [0, 1], "cpu"
    for i, wrong in (
        (1, torch.zeros(2, 7, 4)),
        (3, torch.zeros(2, 9, 8)),
        (5, torch.zeros(2, 8, 5)),
        (7, torch.zeros(2, 9)),
    ):
        with pytest.raises(ValueError, match="must have shape"):
            torch.ops.vmamba.mamba_inner(*b[:i], wrong, *b[i + 1 : 10], *settings, True)
    for orders in ([0], [0, 2]):
        with pytest.raises(ValueError, match="orders"):
            torch.ops.vmamba.mamba_inner(*b[:10], True, orders, "cpu", True)
    out, *kept = torch.ops.vmamba.mamba_inner(*b[:8], None, None, *settings, True)
    with pytest.raises(ValueError, match="does not belong"):
        torch.ops.vmamba.mamba_inner_backward(out[:, 1:], *b[:8], None, None, *kept, *settings)


@needs_cpu
def test_what_the_kernels_do_not_take_is_composed() -> None:
    """More taps than the kernels hold: the scan still runs in C++, the rest in PyTorch."""
    orders = [0, 1]
    args = make(1, 40, 8, 4, 2, MAX_TAPS + 1, 2, orders)
    assert not cpu.fuses(Block(**cast(args, torch.float32)))
    truth = run(args, orders, "reference")
    for name, x in run(cast(args, torch.float32), orders, "cpu").items():
        assert rms_error(x, truth[name]) < FLOAT32, name


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("project", [True, False])
@pytest.mark.parametrize("name", ["cpu", "chunked"])
def test_opcheck(name: str, project: bool, keep: bool) -> None:
    if not registry.get(name).works:
        pytest.skip(registry.get(name).about)
    args = cast(make(2, 11, 6, 4, 2, 4, 2, [0, 1]), torch.float32)
    if not project:
        args["out_w"] = args["out_b"] = None
    settings = (True, [0, 1], name)
    leaves = [None if t is None else t.requires_grad_(keep) for t in args.values()]
    torch.library.opcheck(torch.ops.vmamba.mamba_inner.default, (*leaves, *settings, keep))
    if keep:
        plain = [None if t is None else t.detach() for t in leaves]
        out, *kept = torch.ops.vmamba.mamba_inner(*plain, *settings, True)
        torch.library.opcheck(torch.ops.vmamba.mamba_inner_backward.default, (out, *plain, *kept, *settings))


def test_compile_fullgraph_forward_and_backward() -> None:
    args = cast(make(2, 20, 8, 4, 2, 4, 2, [0, 1]), torch.float32)
    leaves = [t.requires_grad_() for t in args.values()]
    fn = lambda *a: mamba_inner(Block(*a, orders=[0, 1])).square().sum()  # noqa: E731
    expected = torch.autograd.grad(fn(*leaves), leaves)
    compiled = torch.compile(fn, fullgraph=True, backend="aot_eager")
    for a, b in zip(expected, torch.autograd.grad(compiled(*leaves), leaves)):
        torch.testing.assert_close(a, b)


def test_flops_are_those_of_the_composition() -> None:
    """One operator counts what its parts count one by one."""
    args = cast(make(2, 30, 8, 4, 2, 4, 2, [0, 1]), torch.float32)
    with FlopCounterMode(display=False) as fused:
        mamba_inner(Block(**args, orders=[0, 1]))
    with FlopCounterMode(display=False) as parts:
        y, *_ = compose.block(Block(**args, orders=[0, 1]), lambda s: scan(s, "chunked"))
        torch.nn.functional.linear(y, args["out_w"], args["out_b"])
    # PyTorch counts the W - 1 tokens of padding that a convolution leaves behind; the operator counts outputs used.
    padding = 2 * 2 * 2 * 3 * 8 * 4
    assert fused.get_total_flops() == parts.get_total_flops() - padding


@pytest.mark.parametrize(("biases", "norm"), [(True, False), (False, False), (True, True)])
@pytest.mark.parametrize("threads", [1, 2, 7])
@pytest.mark.parametrize("case", WHOLE, ids=lambda c: "-".join(map(str, c[:9])))
def test_whole_block_against_float64(backend: str, case: tuple, threads: int, biases: bool, norm: bool) -> None:
    """Without a gradient the compiled kernels do norm, in_proj and out_proj as well, with the same bits."""
    torch.set_num_threads(threads)
    exact = whole(*case, biases=biases, norm=norm)
    b = whole_in_float32(exact)
    with torch.no_grad():
        with use_backend("reference"):
            truth = mamba_inner(exact)
        with use_backend(backend):
            got = mamba_inner(b)
            assert rms_error(got, truth) < FLOAT32
            turned = b._replace(xz=b.xz.transpose(1, 2).contiguous().transpose(1, 2))
            tokens = b.xz
            if norm:
                assert torch.equal(mamba_inner(turned), got) or backend != "cpu"
                tokens = torch.nn.functional.layer_norm(tokens, b.norm_w.shape, b.norm_w, b.norm_b, b.norm_eps)
            xz = torch.nn.functional.linear(tokens, b.in_w, b.in_b)
            apart = b._replace(xz=xz, in_w=None, in_b=None, norm_w=None, norm_b=None)
            for other in (turned, apart):
                assert rms_error(mamba_inner(other), truth) < FLOAT32
    with use_backend(backend):
        recorded = mamba_inner(b._replace(xz=b.xz.clone().requires_grad_()))
    assert rms_error(recorded, truth) < FLOAT32
    if backend == "cpu" and cpu.columns:
        assert cpu.whole(b)
        assert torch.equal(recorded, got)


@needs_cpu
def test_what_is_not_computed_whole() -> None:
    """Sizes that fill no vector, other dtypes, and plain vectors; wrong arguments are refused by name all the same."""
    b = whole_in_float32(whole(*WHOLE[1]))
    assert cpu.whole(b) == bool(cpu.columns)
    odd = b._replace(out_w=b.out_w[:13], out_b=b.out_b[:13])
    assert not cpu.whole(odd)
    assert not cpu.whole(b._replace(out_w=None, out_b=None))
    assert not cpu.whole(b._replace(xz=b.xz.bfloat16()))
    with torch.no_grad():
        torch.testing.assert_close(mamba_inner(odd), mamba_inner(b)[..., :13], rtol=1e-5, atol=1e-5)
        assert mamba_inner(b._replace(xz=b.xz[:0])).shape == (0, 37, 32)
        with pytest.raises(ValueError, match="in_w must have shape"):
            mamba_inner(b._replace(in_w=b.in_w[:, :7]))
        with pytest.raises(ValueError, match="out_b must have shape"):
            mamba_inner(b._replace(out_b=b.out_b[:7]))
        with pytest.raises(ValueError, match="norm_w must have shape"):
            mamba_inner(b._replace(norm_w=b.in_b[:7], norm_b=b.in_b[:7]))
    cpu.set_isa("plain")
    assert not cpu.whole(b)


@pytest.mark.parametrize("grad", [True, False])
def test_a_layer_call_looks_its_backends_up_once(monkeypatch: pytest.MonkeyPatch, grad: bool) -> None:
    """One question for the block with both its linear layers, one for the norm where the block's kernels leave it."""
    asked = []
    usual = registry.choose
    monkeypatch.setattr(op, "choose", lambda kind, problem: asked.append(kind) or usual(kind, problem))
    with torch.set_grad_enabled(grad):
        MambaLayer(16)(torch.randn(1, 16, 4, 4))
    assert asked == (["block", "norm"] if grad or not cpu.columns else ["block"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("kind", ["none", "v1", "v2"])
def test_without_a_gradient_a_layer_gives_the_same_bits(kind: str, dtype: torch.dtype) -> None:
    """Kernels are then called without their operators."""
    block, x = Mamba(16, bimamba_type=kind, bias=True).to(dtype), torch.randn(2, 30, 16, dtype=dtype)
    with_gradient = block(x).detach()
    with torch.no_grad():
        assert torch.equal(block(x), with_gradient)
        with torch.autocast("cpu", torch.bfloat16):
            low = block(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(block(x), low)


# LayerNorm of a map's tokens ------------------------------------------------------------------------------------------


def run_norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, backend: str) -> list[torch.Tensor]:
    """Return tokens and gradients."""
    leaves = [t.detach().requires_grad_() for t in (x, weight, bias)]
    with use_backend(backend):
        out = token_norm(leaves[0], weight.shape, *leaves[1:], 1e-5)
        dout = torch.randn(out.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        out.backward(dout.to(out.dtype))
    return [out.detach(), *(t.grad for t in leaves)]


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    "shape", [(1, 7, 1), (2, 24, 37), (1, 32, 300), (3, 5, 70), (1, 129, 33), (2, 64, 256)], ids=str
)
def test_norm_against_float64(backend: str, shape: tuple, channels_last: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=torch.float64) * 2 + 3
    if channels_last:
        x = x.transpose(1, 2).contiguous().transpose(1, 2)
    parameters = torch.randn(shape[1], dtype=torch.float64), torch.randn(shape[1], dtype=torch.float64)
    truth = run_norm(x, *parameters, "reference")
    got = run_norm(x.float(), *(p.float() for p in parameters), backend)
    assert got[1].stride() == x.stride() or backend != "cpu"
    for a, b in zip(got, truth):
        assert rms_error(a, b) < FLOAT32
    rounded = [t.bfloat16() for t in (x, *parameters)]
    truth, plain = run_norm(*(t.double() for t in rounded), "reference"), run_norm(*rounded, "reference")
    for a, b, c in zip(run_norm(*rounded, backend), truth, plain):
        assert a.dtype == torch.bfloat16
        assert rms_error(a, b) <= LOW[backend] * rms_error(c, b) + FLOAT32


def test_norm_of_large_values_keeps_its_variance(backend: str) -> None:
    """Channels that differ by little beside their mean, in a row that does not fill its vectors."""
    x = 1000 + torch.rand(1, 19, 40, dtype=torch.float64)
    parameters = torch.ones(19, dtype=torch.float64), torch.zeros(19, dtype=torch.float64)
    truth = run_norm(x.float().double(), *parameters, "reference")[0]
    got = run_norm(x.float(), *(p.float() for p in parameters), backend)[0]
    plain = run_norm(x.float(), *(p.float() for p in parameters), "reference")[0]
    assert rms_error(got, truth) <= 2 * rms_error(plain, truth) + FLOAT32


@needs_cpu
def test_opcheck_of_the_norm() -> None:
    x, weight, bias = torch.randn(2, 6, 11), torch.randn(6), torch.randn(6)
    leaves = tuple(t.clone().requires_grad_() for t in (x, weight, bias))
    torch.library.opcheck(torch.ops.vmamba.token_norm.default, (*leaves, 1e-5, "cpu"))
    out, mean, rstd = torch.ops.vmamba.token_norm(x, weight, bias, 1e-5, "cpu")
    torch.library.opcheck(torch.ops.vmamba.token_norm_backward.default, (out, x, weight, mean, rstd, "cpu"))


@needs_cpu
def test_wrong_norm_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="weight"):
        torch.ops.vmamba.token_norm(torch.zeros(1, 4, 5), torch.zeros(5), torch.zeros(5), 1e-5, "cpu")
    x, numbers = torch.zeros(1, 4, 5), torch.zeros(1, 5)
    with pytest.raises(ValueError, match="does not belong"):
        torch.ops.vmamba.token_norm_backward(x, x, torch.zeros(4), numbers, numbers, "cpu")


# Linear layers --------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["avx512", "avx2", "plain"])
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Force each instruction set that this CPU has, and its product, which is used with AVX2 and AVX-512."""
    if not cpu.works:
        pytest.skip(cpu.about)
    try:
        name = cpu.set_isa(request.param)
    except ValueError as e:
        pytest.skip(str(e))
    monkeypatch.setattr(cpu, "columns", 16)
    return name


def factors(m: int, k: int, n: int, bias: bool = True) -> list[torch.Tensor | None]:
    """Return a, b and bias of a product."""
    g = torch.Generator().manual_seed(m + k + n)
    a, b = torch.randn(m, k, generator=g), torch.randn(k, n, generator=g)
    return [a, b, torch.randn(n, generator=g) if bias else None]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "sizes", [(1, 1, 16), (5, 3, 48), (67, 40, 64), (130, 257, 80), (3, 700, 112), (64, 512, 512)], ids=str
)
def test_product_against_float64(isa: str, sizes: tuple, bias: bool) -> None:
    """In any layout, the same bits for any number of threads, and as exact as PyTorch's."""
    a, b, c = factors(*sizes, bias)
    exact = a.double() @ b.double() + (0 if c is None else c.double())
    scale = a.double().abs() @ b.double().abs() + (0 if c is None else c.double().abs())
    got = cpu.linear(Linear(a, b, c))
    assert ((got - exact).abs() / scale).max() < 4e-7
    layouts = (
        (a.t().contiguous().t(), b.t().contiguous().t(), None if c is None else torch.stack((c, c), 1)[:, 0]),
        (torch.cat((a, a), 1)[:, : sizes[1]], torch.stack((b, b), 2)[..., 0], c),
    )
    for x, y, z in layouts:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            assert torch.equal(cpu.linear(Linear(x, y, z)), got)


def test_product_over_the_tokens_of_a_batch(isa: str) -> None:
    """The gradient of a weight: one running sum over so many numbers of one sign would be off by 4e-6 and more."""
    g = torch.Generator().manual_seed(0)
    a, b = torch.rand(50_000, 5, generator=g).t(), torch.rand(50_000, 16, generator=g)
    assert rms_error(cpu.linear(Linear(a, b, None)), a.double() @ b.double()) < 5e-7


def test_product_of_expanded_factors(isa: str) -> None:
    a, b, c = factors(20, 9, 32)
    a, b = a[:1].expand(20, -1), b[:1].expand(9, -1)
    torch.testing.assert_close(cpu.linear(Linear(a, b, c)), a @ b + c)


@needs_cpu
def test_what_a_product_does_not_take() -> None:
    cpu.set_isa("auto")
    a, b, c = factors(4, 3, 16)
    for wrong in ((a, b[:2], c), (a, b, c[:8])):
        with pytest.raises((ValueError, RuntimeError), match=r"must be|cannot be multiplied|doesn't match|expand"):
            cpu.linear(Linear(*wrong))
    assert cpu.linear(Linear(a[:0], b, c)).shape == (0, 16)
    for p in ((a, b[:, :15], None), (a.bfloat16(), b.bfloat16(), None), (a.double(), b.double(), None)):
        assert torch.equal(cpu.linear(Linear(*p)), p[0] @ p[1])  # PyTorch's
    cpu.set_isa("plain")
    assert not cpu.columns, "four floats at a time are slower than PyTorch's own product"
    assert torch.equal(cpu.linear(Linear(a, b, c)), torch.addmm(c, a, b))


def product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Do what F.linear does with the operator, as in_proj in training."""
    backend = "cpu" if cpu.works else "chunked"
    return torch.ops.vmamba.matmul(x.flatten(0, -2), weight.t(), bias, backend).unflatten(0, x.shape[:-1])


@pytest.mark.parametrize("shape", [(7, 16), (2, 37, 16), (0, 5, 16)], ids=str)
@pytest.mark.parametrize("outputs", [48, 13], ids=["kernel", "odd"])
def test_linear_layer_is_that_of_pytorch(shape: tuple, outputs: int) -> None:
    torch.manual_seed(0)
    given = torch.randn(shape), torch.randn(outputs, 16), torch.randn(outputs)
    weight = torch.randn(*shape[:-1], outputs)
    for args in (given, given[:2]):
        results = []
        for fn in (product, torch.nn.functional.linear):
            leaves = [t.clone().requires_grad_() for t in args]
            out = fn(*leaves)
            results.append([out, *torch.autograd.grad((out * weight).sum(), leaves)])
        for x, y in zip(*results):
            torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["cpu", "chunked"])
def test_opcheck_of_the_product(name: str) -> None:
    if not registry.get(name).works:
        pytest.skip(registry.get(name).about)
    for bias in (True, False):
        leaves = [None if t is None else t.requires_grad_() for t in factors(5, 32, 16, bias)]
        torch.library.opcheck(torch.ops.vmamba.matmul.default, (*leaves, name))


def test_linear_layer_compiles_and_is_counted() -> None:
    x, w = torch.randn(3, 5, 16, requires_grad=True), torch.randn(32, 16, requires_grad=True)
    fn = lambda a, b: product(a, b).square().sum()  # noqa: E731
    compiled = torch.compile(fn, fullgraph=True, backend="aot_eager")
    for a, b in zip(torch.autograd.grad(fn(x, w), (x, w)), torch.autograd.grad(compiled(x, w), (x, w))):
        torch.testing.assert_close(a, b)
    with FlopCounterMode(display=False) as counter:
        fn(x, w).backward()
    assert counter.get_total_flops() == 3 * 2 * 15 * 16 * 32


# Threads --------------------------------------------------------------------------------------------------------------


@needs_cpu
def test_own_threads_and_those_of_openmp_give_the_same_bits() -> None:
    torch.set_num_threads(3)
    orders = [0, 1]
    args = cast(make(2, 150, 40, 8, 3, 4, 2, orders), torch.float32)
    try:
        assert not cpu.library.vmamba_use_openmp(0)
        own = run(args, orders, "cpu")
    finally:
        cpu.library.vmamba_use_openmp(1)
    for name, x in run(args, orders, "cpu").items():
        assert torch.equal(x, own[name]), name


@pytest.mark.skipif(sys.platform != "linux", reason="threads are counted in /proc")
@needs_cpu
def test_pytorchs_threads_live_on() -> None:
    """A call with fewer tasks than threads must not end the workers that PyTorch's next operation starts again."""
    torch.set_num_threads(4)
    x, weight, big = torch.randn(1, 16, 300), torch.ones(16), torch.randn(1 << 20)
    seen = set()
    for _ in range(10):
        big.add(1)
        cpu.norm(Norm(x, weight, weight))  # two tasks
        seen |= set(os.listdir("/proc/self/task"))
    assert len(seen) <= len(os.listdir("/proc/self/task")) + 4


# Differentiation that the operators do not have, and users' own changes -----------------------------------------------


def test_forward_mode_derivative_is_right() -> None:
    """Custom operators have none, so it goes through plain operators."""
    orders = [0, 1]
    args = make(1, 12, 4, 3, 2, 4, 2, orders)
    torch.manual_seed(0)
    step = torch.randn_like(args["xz"])
    _, tangent = torch.func.jvp(
        lambda x: mamba_inner(Block(**{**args, "xz": x}, orders=orders)), (args["xz"],), (step,)
    )
    plus, minus = (mamba_inner(Block(**{**args, "xz": args["xz"] + e * step}, orders=orders)) for e in (1e-6, -1e-6))
    torch.testing.assert_close(tangent, (plus - minus) / 2e-6, rtol=1e-6, atol=1e-6)


def test_another_norm_or_a_hook_on_it_is_respected() -> None:
    layer, x = MambaLayer(8, d_state=4), torch.randn(1, 8, 3, 4)
    expected, seen = layer(x), []
    handle = layer.norm.register_forward_hook(lambda *a: seen.append(a))
    torch.testing.assert_close(layer(x), expected)
    assert seen
    handle.remove()
    layer.norm = torch.nn.Identity()
    assert layer(x).shape == x.shape


def test_wrong_sizes_are_named() -> None:
    args = cast(make(2, 9, 8, 4, 2, 4, 2, [0, 1]), torch.float32)
    for name, wrong, match in (
        ("xz", torch.zeros(9, 16), r"xz must have shape \(B, L, 2D or D\)"),
        ("A", torch.zeros(8, 4), r"A must have shape \(K, D, N\)"),
        ("x_proj", torch.zeros(2, 9, 8), "x_proj must have shape"),
        ("conv_w", torch.zeros(3, 8, 4), "conv_w must have shape"),
        ("x_proj", torch.zeros(3, 10, 8), "x_proj has 3 rows for 2 directions"),
        ("xz", torch.zeros(2, 9, 8), "out_w needs a gate"),
        ("out_w", torch.zeros(11, 7), "out_w must have shape"),
    ):
        with pytest.raises(ValueError, match=match):
            mamba_inner(Block(**{**args, name: wrong}, orders=[0, 1]))
    with pytest.raises(ValueError, match=r"orders must hold 0 or 1 for each of 2 groups, got \[0, 1, 0\]"):
        mamba_inner(Block(**args, orders=[0, 1, 0]))


@pytest.mark.parametrize("grad", [True, False])
def test_parts_that_belong_together(grad: bool) -> None:
    """A part whose other one is missing would be left out without a word, or read where there is nothing."""
    b = whole_in_float32(whole(*WHOLE[1], norm=True))
    with torch.set_grad_enabled(grad):
        for _, other in NEEDS:
            with pytest.raises((ValueError, TypeError), match=f"is given without {other}|must have shape|None"):
                mamba_inner(b._replace(**{other: None}))
        for name in ("x_proj", "dt_proj"):
            with pytest.raises((TypeError, AttributeError), match=f"{name} must be a tensor|NoneType"):
                mamba_inner(b._replace(**{name: None}))


def test_tensors_of_two_devices_are_refused() -> None:
    """One tensor on meta, and the output would be memory that nobody wrote."""
    args = cast(make(1, 9, 8, 4, 2, 4, 2, [0, 1]), torch.float32)
    for name in NAMES:
        with pytest.raises(ValueError, match="on one device"):
            mamba_inner(Block(**{**args, name: args[name].to("meta")}, orders=[0, 1]))


def test_an_in_proj_without_memory_is_refused_in_training() -> None:
    """As `load_state_dict(assign=True)` leaves it where a key is missing."""
    layer = MambaLayer(64)
    layer.mamba.in_proj.weight = torch.nn.Parameter(layer.mamba.in_proj.weight.to("meta"))
    with pytest.raises((RuntimeError, ValueError), match="device"):
        layer(torch.randn(1, 64, 4, 4))


# Copies and counts ----------------------------------------------------------------------------------------------------


def test_average_of_weights_copies_a_layer_in_training() -> None:
    """Ultralytics keeps a deep copy whose weights are a moving average."""
    from ultralytics.utils.torch_utils import ModelEMA

    layer, x = MambaLayer(16, d_state=4), torch.randn(1, 16, 3, 4)
    layer(x).sum().backward()
    ema = ModelEMA(layer)
    with torch.no_grad():
        for p in layer.parameters():
            p.add_(0.1)
    ema.update(layer)
    assert torch.isfinite(ema.ema(x)).all()
    assert all(not p.requires_grad for p in ema.ema.parameters())
    assert not torch.equal(ema.ema(x), layer(x))


YAMLS = sorted(p.name for p in (Path(__file__).parents[1] / "ultralytics/cfg/models").rglob("[Vv][Mm]amba*.yaml"))


@pytest.mark.parametrize("name", YAMLS)
def test_flops_of_every_model_file(name: str) -> None:
    """What `model.info()` says, which is thop's figure, is what PyTorch counts operator by operator."""
    from ultralytics import YOLO
    from ultralytics.utils.torch_utils import get_flops

    model = YOLO(name, verbose=False).model.eval().fuse(verbose=False)  # thop counts batch norms, PyTorch does not
    told = get_flops(model, 128)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 3, 128, 128))
    assert told > 0
    assert abs(1e9 * told / counter.get_total_flops() - 1) < 0.01


# Training in several processes ----------------------------------------------------------------------------------------

RANK = """
import sys
import torch
import torch.distributed as dist
from torch import nn
from ultralytics.nn.Addmodules.VMamba import MambaLayer

rank, rendezvous, out = int(sys.argv[1]), sys.argv[2], sys.argv[3]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
torch.manual_seed(0)
layer = nn.parallel.DistributedDataParallel(MambaLayer(8, d_state=4))
x = torch.randn(4, 8, 5, 7)[2 * rank : 2 * rank + 2]
for _ in range(2):
    layer.zero_grad()
    layer(x).square().mean().backward()
torch.save([p.grad for p in layer.parameters()], f"{out}/{rank}.pt")
dist.barrier()  # gloo aborts a process now and then whose peer has left before it
dist.destroy_process_group()
"""


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this PyTorch has no torch.distributed")
def test_two_processes_train_as_one(tmp_path: Path) -> None:
    """Gradients that two gloo processes average over halves of a batch are those of the whole batch."""
    command = [sys.executable, "-c", RANK]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "GLOO_SOCKET_IFNAME": "lo"}
    ranks = [
        subprocess.Popen([*command, str(r), str(tmp_path / "meet"), str(tmp_path)], env=environment) for r in (0, 1)
    ]
    assert [r.wait(timeout=120) for r in ranks] == [0, 0]
    torch.manual_seed(0)
    layer = MambaLayer(8, d_state=4)
    layer(torch.randn(4, 8, 5, 7)).square().mean().backward()
    for rank in (0, 1):
        for got, p in zip(torch.load(tmp_path / f"{rank}.pt"), layer.parameters(), strict=True):
            torch.testing.assert_close(got, p.grad, rtol=1e-4, atol=1e-6)
