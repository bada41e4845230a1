# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Every row of the recipe's table: functions against their references, modules, parameters, bad input."""

from __future__ import annotations

import copy
import inspect
import math
import os
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck

from ultralytics.nn.Addmodules import VMamba, selective_scan
from ultralytics.nn.Addmodules.selective_scan.proof import rms_error
from ultralytics.nn.Addmodules.VMamba import (
    BiMambaInnerFn,
    Mamba,
    MambaInnerFn,
    MambaInnerFnNoOutProj,
    MambaLayer,
    SelectiveScanFn,
    bimamba_inner_fn,
    bimamba_inner_ref,
    mamba_inner_fn,
    mamba_inner_fn_no_out_proj,
    mamba_inner_ref,
    selective_scan_fn,
)

B, DM, D, L, N, R, W = 2, 4, 8, 9, 3, 2, 4


def weights(
    is_complex: bool = False, given: str = "", bias: bool = True, dtype: torch.dtype = torch.float64, length: int = L
) -> dict[str, torch.Tensor | None]:
    """Return arguments of the inner functions; `given` names those of B and C that are not projected."""
    g = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> torch.Tensor:
        return (torch.randn(*shape, generator=g, dtype=torch.float64) / 2).to(dtype).requires_grad_()

    parts = 2 if is_complex else 1
    rows = R + N * parts * (2 - len(given))
    A = -torch.rand(D, N, generator=g, dtype=torch.float64) - 0.1
    A = (torch.complex(A, A.flip(0)) if is_complex else A.to(dtype)).requires_grad_()
    args = {
        "xz": randn(B, 2 * D, length),
        "conv1d_weight": randn(D, 1, W),
        "conv1d_bias": randn(D) if bias else None,
        "x_proj_weight": randn(rows, D),
        "delta_proj_weight": randn(D, R),
        "out_proj_weight": randn(DM, D),
        "out_proj_bias": randn(DM) if bias else None,
        "A": A,
        "D": randn(D) if bias else None,
        "delta_bias": randn(D) if bias else None,
    }
    for name in given:
        args[name] = randn(B, N, length * parts)
    if not given and bias and not is_complex:
        args["B_proj_bias"], args["C_proj_bias"] = randn(N), randn(N)
    return args


def grads(fn, args: dict) -> list[torch.Tensor]:
    """Return the output of fn and the gradients of a fixed projection of it by every tensor argument."""
    out = fn(**args)
    w = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    leaves = [v for v in args.values() if v is not None]
    return [out, *torch.autograd.grad((out * w).sum(), leaves)]


@pytest.mark.parametrize("is_complex", [False, True])
@pytest.mark.parametrize("given", ["", "B", "BC"])
@pytest.mark.parametrize("bias", [False, True])
def test_inner_functions_equal_their_references(is_complex: bool, given: str, bias: bool) -> None:
    args = weights(is_complex, given, bias)
    for a, b in zip(grads(mamba_inner_fn, args), grads(mamba_inner_ref, args)):
        torch.testing.assert_close(a, b)
    two = {**args, "A_b": (2 * args["A"]).detach().requires_grad_()}
    for a, b in zip(grads(bimamba_inner_fn, two), grads(bimamba_inner_ref, two)):
        torch.testing.assert_close(a, b)
    no_out = {k: v for k, v in args.items() if not k.startswith("out_proj")}
    y = mamba_inner_fn_no_out_proj(**no_out)
    assert y.shape == (B, D, L)
    y = nn.functional.linear(y.transpose(1, 2), args["out_proj_weight"], args["out_proj_bias"])
    torch.testing.assert_close(y, mamba_inner_ref(**args))


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 17])
def test_inner_functions_at_odd_lengths(length: int) -> None:
    """Lengths below, at and above the taps of the convolution, on the recomputing path (no projection biases)."""
    args = {k: v for k, v in weights(length=length).items() if not k.endswith("proj_bias") or k == "out_proj_bias"}
    for a, b in zip(grads(mamba_inner_fn, args), grads(mamba_inner_ref, args)):
        torch.testing.assert_close(a, b)
    two = {**args, "A_b": (2 * args["A"]).detach().requires_grad_()}
    for a, b in zip(grads(bimamba_inner_fn, two), grads(bimamba_inner_ref, two)):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("two", [False, True])
def test_gradcheck_of_the_recomputing_block(two: bool) -> None:
    args = {k: v for k, v in weights(length=3).items() if not k.endswith("proj_bias") or k == "out_proj_bias"}
    if two:
        args["A_b"] = (2 * args["A"]).detach().requires_grad_()
    names, fn = list(args), bimamba_inner_fn if two else mamba_inner_fn
    assert gradcheck(lambda *values: fn(**dict(zip(names, values))), list(args.values()), fast_mode=True)


def test_error_of_a_block_at_the_sizes_of_mamba_ssms_test() -> None:
    """Projections of 768 channels that nothing normalises, and values to 1e7: one running sum was too coarse there."""
    dim, state, rank, length = 768, 8, 48, 128
    ours, plain = {}, {}
    for seed in range(2):
        torch.manual_seed(seed)
        args = {
            "xz": torch.randn(2, 2 * dim, length),
            "conv1d_weight": torch.randn(dim, 1, 3),
            "conv1d_bias": torch.randn(dim),
            "x_proj_weight": torch.randn(rank + 2 * state, dim),
            "delta_proj_weight": torch.randn(dim, rank) * rank**-0.5,
            "out_proj_weight": torch.randn(dim // 2, dim),
            "out_proj_bias": None,
            "A": -0.5 * torch.rand(dim, state),
            "D": torch.randn(dim),
            "delta_bias": 0.5 * torch.rand(dim),
        }
        dout = torch.randn(2, length, dim // 2)

        def run(fn, dtype: torch.dtype, args=args, dout=dout) -> dict[str, torch.Tensor]:
            leaves = {k: None if x is None else x.clone().to(dtype).requires_grad_() for k, x in args.items()}
            out = fn(**leaves)
            out.backward(dout.to(dtype))
            return {"out": out.detach(), **{k: x.grad for k, x in leaves.items() if x is not None}}

        exact = run(mamba_inner_ref, torch.float64)
        for errors, fn in ((ours, mamba_inner_fn), (plain, mamba_inner_ref)):
            for name, x in run(fn, torch.float32).items():
                errors[name] = errors.get(name, 0.0) + rms_error(x, exact[name])
    for name, error in ours.items():
        assert error <= 2 * plain[name], f"{name}: {error:.2e}, plain PyTorch {plain[name]:.2e}"


def cpu_backends() -> list:
    """Return the backends that take CPU tensors here; where there is a GPU, its own is available too."""
    u, A = torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1)
    scan, registry = selective_scan.Scan(u, u, A, u, u), selective_scan.registry
    return [b for b in registry.BACKENDS.values() if b.operator and not registry.why_not(b, "scan", scan)]


def test_what_the_block_keeps_for_backward() -> None:
    """The documented budget: xz (2), y (1), projections and scan states, no conv output, no delta."""
    block = Mamba(32, d_state=8, bimamba_type="v2")
    length, kept = 400, []
    x = torch.randn(1, length, 32)
    own = {p.data_ptr() for p in block.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        block(x)
    sizes = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() // 4 for t in kept}
    big = sum(n for p, n in sizes.items() if p not in own and p != x.data_ptr() and n >= length)
    inner, rank = 64, 2
    checkpoints = next(b.num_checkpoints(length) for b in cpu_backends())
    budget = length * (3 * inner + 2 * (rank + 16)) + 2 * checkpoints * inner * 8
    budget += sum(p.numel() for p in block.parameters())  # stacked weights of the two directions
    assert big <= budget, f"{big} floats kept, {budget} documented"


def test_names_of_the_recipe() -> None:
    assert SelectiveScanFn.apply is selective_scan_fn
    assert MambaInnerFnNoOutProj.apply is mamba_inner_fn_no_out_proj
    assert MambaInnerFn.apply is mamba_inner_fn
    assert BiMambaInnerFn.apply is bimamba_inner_fn
    assert all(hasattr(VMamba, n) for n in VMamba.__all__)
    defaults = {k: p.default for k, p in inspect.signature(Mamba).parameters.items()}
    expected = {"d_model": inspect.Parameter.empty, "d_state": 16, "d_conv": 4, "expand": 2, "dt_rank": "auto"}
    expected |= {"dt_min": 0.001, "dt_max": 0.1, "dt_init": "random", "dt_scale": 1.0, "dt_init_floor": 1e-4}
    expected |= {"conv_bias": True, "bias": False, "use_fast_path": True, "layer_idx": None, "device": None}
    assert defaults == {**expected, "dtype": None, "bimamba_type": "none"}


MAMBA_SSM = {
    "A_log": (64, 16), "D": (64,), "in_proj.weight": (128, 32), "conv1d.weight": (64, 1, 4), "conv1d.bias": (64,),
    "x_proj.weight": (34, 64), "dt_proj.weight": (64, 2), "dt_proj.bias": (64,), "out_proj.weight": (32, 64),
}  # fmt: skip
VIM_V2 = {
    "A_b_log": (64, 16), "D_b": (64,), "conv1d_b.weight": (64, 1, 4), "conv1d_b.bias": (64,),
    "x_proj_b.weight": (34, 64), "dt_proj_b.weight": (64, 2), "dt_proj_b.bias": (64,),
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("none", MAMBA_SSM), ("v1", {**MAMBA_SSM, "A_b_log": (64, 16)}), ("v2", {**MAMBA_SSM, **VIM_V2})],
)
def test_state_dict_is_that_of_mamba_ssm_and_vim(kind: str, expected: dict) -> None:
    block = Mamba(32, bimamba_type=kind)
    assert {k: tuple(v.shape) for k, v in block.state_dict().items()} == expected
    other = {k: torch.randn(shape) for k, shape in expected.items()}
    block.load_state_dict(other, strict=True)
    assert torch.equal(block.A_log, other["A_log"])


@pytest.mark.parametrize("suffix", ["", "_b"])
def test_initial_values(suffix: str) -> None:
    torch.manual_seed(0)
    block = Mamba(256, d_state=16, dt_rank=16, bimamba_type="v2")
    A_log = block.A_b_log if suffix else block.A_log
    torch.testing.assert_close(A_log.exp(), torch.arange(1.0, 17).repeat(512, 1))  # S4D-real
    assert torch.equal(getattr(block, f"D{suffix}"), torch.ones(512))
    dt_proj = getattr(block, f"dt_proj{suffix}")
    log_dt = nn.functional.softplus(dt_proj.bias).log()
    low, high = math.log(0.001), math.log(0.1)
    assert low - 1e-3 <= log_dt.min() < low + 0.1
    assert high - 0.1 < log_dt.max() <= high + 1e-3
    assert abs(log_dt.mean().item() - (low + high) / 2) < 0.2  # uniform in log
    assert dt_proj.weight.abs().max() <= 16**-0.5
    assert abs(dt_proj.weight.std().item() - 0.25 / math.sqrt(3)) < 0.01
    assert A_log._no_weight_decay
    assert getattr(block, f"D{suffix}")._no_weight_decay
    assert dt_proj.bias._no_reinit
    assert Mamba(32, dt_init="constant").dt_proj.weight.unique().tolist() == pytest.approx([2**-0.5])


def naive_vim_v2(block: Mamba, x: torch.Tensor) -> torch.Tensor:
    """Compute a v2 block as Vim does: the second direction runs on the flipped sequence and is flipped back."""
    xz = (x @ block.in_proj.weight.t()).transpose(1, 2)

    def direction(xz: torch.Tensor, s: str, A_log: torch.Tensor) -> torch.Tensor:
        conv, x_proj, dt_proj = (getattr(block, n + s) for n in ("conv1d", "x_proj", "dt_proj"))
        identity = torch.eye(block.d_inner, dtype=x.dtype)
        return mamba_inner_ref(
            xz, conv.weight, conv.bias, x_proj.weight, dt_proj.weight, identity, None, -torch.exp(A_log),
            D=getattr(block, "D" + s), delta_bias=dt_proj.bias,
        )  # fmt: skip

    y = direction(xz, "", block.A_log) + direction(xz.flip(-1), "_b", block.A_b_log).flip(1)
    return y @ block.out_proj.weight.t()


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("length", [1, 3, 20])
def test_v2_runs_both_directions_on_every_path(fast: bool, length: int) -> None:
    torch.manual_seed(0)
    block = Mamba(16, d_state=4, use_fast_path=fast, bimamba_type="v2")
    for p in block.parameters():
        p.data = p.data + 0.1 * torch.randn_like(p)
    truth = copy.deepcopy(block).double()
    x = torch.randn(2, length, 16)
    leaves = list(block.parameters())
    out, expected = block(x), naive_vim_v2(truth, x.double())
    torch.testing.assert_close(out.double(), expected, rtol=1e-4, atol=1e-6)
    ours = torch.autograd.grad(out.sum(), leaves)
    for a, b in zip(ours, torch.autograd.grad(expected.sum(), list(truth.parameters()))):
        torch.testing.assert_close(a.double(), b, rtol=1e-3, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(block(x), out)
    with selective_scan.use_backend("reference"):
        torch.testing.assert_close(block(x), out, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["none", "v1", "v2"])
def test_paths_agree_in_every_kind(kind: str) -> None:
    torch.manual_seed(0)
    slow = Mamba(16, use_fast_path=False, bimamba_type=kind).double()
    fast = Mamba(16, use_fast_path=True, bimamba_type=kind).double()
    fast.load_state_dict(slow.state_dict())
    x = torch.randn(2, 30, 16, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(fast(x), slow(x))
    for a, b in zip(
        torch.autograd.grad(fast(x).square().sum(), [x, *fast.parameters()]),
        torch.autograd.grad(slow(x).square().sum(), [x, *slow.parameters()]),
    ):
        torch.testing.assert_close(a, b)


def test_reversal_symmetry() -> None:
    """A v2 block with equal directions commutes with reversing the tokens; a causal one does not."""
    block = Mamba(16, bimamba_type="v2")
    with torch.no_grad():
        for name, p in block.named_parameters():
            twin = (
                name.replace("A_log", "A_b_log") if "A_" in name else name.replace(".", "_b.") if "." in name else "D_b"
            )
            if twin in dict(block.named_parameters()):
                block.get_parameter(twin).copy_(p)
    x = torch.randn(1, 12, 16)
    torch.testing.assert_close(block(x.flip(1)), block(x).flip(1), rtol=1e-4, atol=1e-6)
    causal = Mamba(16)
    changed = x.clone()
    changed[:, 8:] = 0
    torch.testing.assert_close(causal(changed)[:, :8], causal(x)[:, :8])
    assert not torch.allclose(block(changed)[:, :8], block(x)[:, :8])


# Layer ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2, 16, 5, 7), (1, 16, 1, 3), (1, 16, 1, 1), (2, 16, 11), (1, 16, 2, 3, 4)])
@pytest.mark.parametrize("channels_last", [False, True])
def test_layer_keeps_shape_and_row_order(shape: tuple[int, ...], channels_last: bool) -> None:
    if channels_last and len(shape) != 4:
        pytest.skip("channels_last is a layout of 4D maps")
    layer = MambaLayer(16, 4)
    x = torch.randn(shape)
    expected = layer.mamba(layer.norm(x.reshape(*shape[:2], -1).transpose(1, 2))).transpose(1, 2).reshape(shape)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(layer(x), expected)


def test_layer_has_the_recipes_parameters() -> None:
    layer = MambaLayer(32)
    assert {"norm.weight", "norm.bias"} | {f"mamba.{k}" for k in (*MAMBA_SSM, *VIM_V2)} == set(layer.state_dict())
    assert (layer.mamba.d_state, layer.mamba.d_conv, layer.mamba.expand) == (16, 4, 2)


def test_state_parameters_stay_float32_under_half() -> None:
    block = Mamba(16, bimamba_type="v2")
    before = {n: p.detach().clone() for n, p in block.state_parameters().items()}
    assert set(before) == {"A_log", "A_b_log", "D", "D_b", "dt_proj.bias", "dt_proj_b.bias"}
    half = copy.deepcopy(block).half()
    for n, p in half.named_parameters():
        assert p.dtype == (torch.float32 if n in before else torch.float16), n
        if n in before:
            assert torch.equal(p, before[n])
    back = half.float()
    assert all(p.dtype == torch.float32 for p in back.parameters())
    assert all(p.dtype == torch.float64 for p in copy.deepcopy(block).double().parameters())
    assert all(p.dtype == torch.bfloat16 for n, p in Mamba(16).bfloat16().named_parameters() if n == "in_proj.weight")
    block(torch.randn(1, 5, 16)).sum().backward()
    assert all(p.grad.dtype == p.dtype for p in block.half().parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_and_autocast_are_near_float32(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer = MambaLayer(32)
    x = torch.randn(2, 32, 12, 12)
    expected = layer(x)
    scale = expected.abs().max()
    with torch.autocast("cpu", dtype):
        out = layer(x)
        out.float().square().mean().backward()
    assert out.dtype == dtype
    assert ((out - expected).abs().max() / scale) < 0.05
    assert all(torch.isfinite(p.grad).all() and p.grad.dtype == torch.float32 for p in layer.parameters())
    out = copy.deepcopy(layer).to(dtype)(x.to(dtype))
    assert out.dtype == dtype
    assert ((out.float() - expected).abs().max() / scale) < 0.05


def test_deepcopy_and_pickle_free_of_functions() -> None:
    """What upstream's restricted loading admits: modules, tensors, numbers, strings; and an EMA copy is equal."""
    layer = MambaLayer(16)
    for m in layer.modules():
        for k, v in vars(m).items():
            if not k.startswith("_"):
                assert isinstance(v, (bool, int, float, str, tuple, type(None))), f"{type(m).__name__}.{k} = {v!r}"
    x = torch.randn(1, 16, 4, 4)
    torch.testing.assert_close(copy.deepcopy(layer)(x), layer(x))


def test_flops_agree_with_the_counter() -> None:
    """The analytic count is FlopCounterMode's for the slow path, which runs every product as an operator."""
    from torch.utils.flop_counter import FlopCounterMode

    for kind in ("none", "v2"):
        block = Mamba(32, use_fast_path=False, bimamba_type=kind)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            block(torch.randn(2, 400, 32))
        counted = counter.get_total_flops()
        assert abs(block.flops(2, 400) / counted - 1) < 0.01


COLD = """
import torch
from ultralytics.nn.Addmodules import Mamba
torch.manual_seed(0)
block, x = Mamba(16, bimamba_type="{kind}"), torch.randn(1, 40, 16)
compiled = torch.compile(block, fullgraph=True, backend="{backend}")  # no eager call before it
ours = torch.autograd.grad(compiled(x).sum(), list(block.parameters()))
for a, b in zip(ours, torch.autograd.grad(block(x).sum(), list(block.parameters()))):
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
print("equal")
"""


@pytest.mark.parametrize(
    ("kind", "backend"),
    [("v2", "aot_eager"), ("v1", "aot_eager"), pytest.param("v2", "inductor", marks=pytest.mark.slow)],
)
def test_compiling_before_any_eager_call(kind: str, backend: str) -> None:
    """Nothing that cannot be traced is left to the first call; and the shapes and strides told in advance are true."""
    run = [sys.executable, "-c", COLD.format(kind=kind, backend=backend)]
    out = subprocess.run(
        run, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    )
    assert out.stdout.strip().endswith("equal"), out.stderr[-2000:]


def test_backward_inside_autocast_is_as_outside() -> None:
    args = {k: v for k, v in weights(dtype=torch.float32).items() if not k.endswith("proj_bias")}
    expected = grads(mamba_inner_fn, {**args, "out_proj_bias": None})
    with torch.autocast("cpu", torch.bfloat16), selective_scan.use_backend("chunked"):
        inside = grads(mamba_inner_fn, {**args, "out_proj_bias": None})
    for a, b in zip(inside, expected):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("is_complex", "given"), [(False, "B"), (False, ""), (True, "")])
def test_recipes_functions_under_autocast(is_complex: bool, given: str) -> None:
    """A given B, biases of B and C, a complex A: no operator takes them, and their types are left alone as it does."""
    args = weights(is_complex, given, dtype=torch.float32)
    if is_complex:
        args["A"] = args["A"].detach().to(torch.complex64)
    expected = mamba_inner_fn(**args)
    with torch.autocast("cpu", torch.bfloat16):
        got = mamba_inner_fn(**args)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, expected)
    args["xz"] = args["xz"].detach().bfloat16()  # as in_proj gives it under autocast
    with torch.autocast("cpu", torch.bfloat16):
        narrow = mamba_inner_fn(**args)
    assert narrow.dtype == torch.bfloat16
    assert (narrow.float() - expected).norm() < 0.03 * expected.norm()


def test_float64_is_float64_throughout() -> None:
    block = Mamba(16, d_state=4, bimamba_type="v2").double()
    for p in block.parameters():
        p.data += 0.1 * torch.randn_like(p)
    x = torch.randn(2, 9, 16, dtype=torch.float64)
    torch.testing.assert_close(block(x), naive_vim_v2(block, x), rtol=1e-12, atol=1e-14)


def test_meta_device_and_empty_batch() -> None:
    assert MambaLayer(8).to("meta")(torch.empty(2, 8, 3, 3, device="meta")).shape == (2, 8, 3, 3)
    for backend in [b.name for b in cpu_backends()]:
        with selective_scan.use_backend(backend):
            layer = MambaLayer(8)
            out = layer(torch.zeros(0, 8, 3, 3))
            out.sum().backward()
        assert out.shape == (0, 8, 3, 3)
        assert all(not p.grad.abs().sum() for p in layer.parameters())


@pytest.mark.skipif(not hasattr(torch.compiler, "is_exporting"), reason="PyTorch says that it exports since 2.7")
def test_exported_graph_holds_standard_operators_only() -> None:
    program = torch.export.export(MambaLayer(8).eval(), (torch.randn(1, 8, 3, 3),))
    assert "vmamba" not in str(program.graph_module)


def test_torch_compile_fullgraph_trains() -> None:
    block = Mamba(16, bimamba_type="v2")
    x = torch.randn(1, 8, 16)
    expected = torch.autograd.grad(block(x).sum(), list(block.parameters()))
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), block(x), rtol=1e-4, atol=1e-5)
    for a, b in zip(torch.autograd.grad(compiled(x).sum(), list(block.parameters())), expected):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


# Bad input ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"d_state": -1}, ValueError, "d_state must be at least 1, got -1"),
        ({"d_state": 2.5}, TypeError, "d_state must be an integer, got 2.5"),
        ({"d_conv": 0}, ValueError, "d_conv must be at least 1, got 0"),
        ({"expand": "two"}, TypeError, "expand must be a number, got 'two'"),
        ({"expand": 0}, ValueError, "expand must be positive, got 0"),
        ({"expand": 0.01}, ValueError, "expand \\* d_model must be at least 1"),
        ({"dt_rank": 0}, ValueError, "dt_rank must be at least 1"),
        ({"dt_init": "zero"}, ValueError, "dt_init must be 'random' or 'constant', got 'zero'"),
        ({"dt_min": 1.0}, ValueError, "dt_min <= dt_max"),
        ({"bimamba_type": "v3"}, ValueError, r"bimamba_type must be one of \('none', 'v1', 'v2'\), got 'v3'"),
    ],
)
def test_bad_options_are_named(kwargs: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Mamba(16, **kwargs)


def test_bad_maps_and_tokens_are_named() -> None:
    layer = MambaLayer(16)
    for shape in ((1, 8, 4, 4), (1, 16), (1, 16, 0, 4)):
        with pytest.raises(ValueError, match=r"MambaLayer expects \(B, 16, \*spatial\) with tokens, got"):
            layer(torch.zeros(shape))
    with pytest.raises(ValueError, match=r"Mamba expects \(B, L, d_model\) with d_model = 16 and L >= 1"):
        layer.mamba(torch.zeros(1, 0, 16))
    args = {k: v for k, v in weights().items() if v is not None}
    for name, bad, message in (
        ("D", torch.zeros(1), r"D must have shape \(D\) = \(8,\), got \(1,\)"),
        ("A", torch.zeros(9, 3), r"A must have shape \(D, N\) with D = 8"),
        ("x_proj_weight", torch.zeros(7, 8), r"x_proj_weight must have shape .* = \(8, 8\), got \(7, 8\)"),
        ("out_proj_bias", torch.zeros(1), r"out_proj_bias must have shape \(M\) = \(4,\)"),
        ("B_proj_bias", torch.zeros(1), r"B_proj_bias must have shape \(N\) = \(3,\)"),
        ("conv1d_weight", torch.zeros(8, 1, 4, device="meta"), "xz is on cpu, conv1d_weight on meta"),
    ):
        with pytest.raises(ValueError, match=message):
            mamba_inner_fn(**{**args, name: bad})
    with pytest.raises(TypeError, match="xz must be a torch.Tensor, got str"):
        mamba_inner_fn(**{**args, "xz": "x"})
    with pytest.raises(TypeError, match="A must be floating point, got torch.int64"):
        mamba_inner_fn(**{**args, "A": torch.zeros(8, 3, dtype=torch.int64)})
    with pytest.raises(ValueError, match=r"conv1d_weight must have shape \(D, 1, W\) with D = 8"):
        mamba_inner_fn(**{**args, "conv1d_weight": torch.zeros(4, 1, 4)})
    with pytest.raises(ValueError, match="A_b must match A"):
        bimamba_inner_fn(**args, A_b=torch.zeros(1, 1))
