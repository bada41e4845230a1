# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""The scan operator and its plain-PyTorch backends against the sequential reference in float64."""

from __future__ import annotations

import ast
import contextlib
import itertools
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

from ultralytics.nn.Addmodules import selective_scan as engine
from ultralytics.nn.Addmodules.selective_scan import Scan, op, registry, selective_scan_fn, selective_scan_ref
from ultralytics.nn.Addmodules.selective_scan.backends import chunked
from ultralytics.nn.Addmodules.selective_scan.proof import oracle, rms_error, run_with_gradients, scan_inputs

# RMS error against float64 over that of the plain reference in the same dtype, or twice its eps; never loosened.
TOLERANCE = {torch.float32: 2.0, torch.bfloat16: 2.0, torch.float16: 2.0}
pytestmark = pytest.mark.usefixtures("poisoned_memory")
BACKENDS = [name for name in registry.BACKENDS if name not in ("mamba_ssm", "reference")]  # the first needs CUDA
OPERATORS = [name for name in BACKENDS if registry.BACKENDS[name].operator]


def make(
    batch: int = 2,
    dim: int = 6,
    length: int = 13,
    state: int = 4,
    groups: int = 0,
    dtype: torch.dtype = torch.float64,
    skip: bool = True,
    gate: bool = True,
    bias: bool = True,
    requires_grad: bool = False,
    seed: int = 0,
) -> dict[str, torch.Tensor | None]:
    """Return arguments of the scan in the recipe's shapes; A, D and bias are float32 at the least."""
    x = scan_inputs(
        batch, max(1, groups), dim // max(1, groups), length, state,
        dtype=dtype, skip=skip, gate=gate, bias=bias, layout="tokens-last", seed=seed,
    )  # fmt: skip
    args = x.recipe()._asdict()
    if groups == 1:
        args |= {"B": x.B, "C": x.C}
    return {k: None if v is None else v.requires_grad_(requires_grad) for k, v in args.items()}


def weight_of(args: dict) -> torch.Tensor:
    """Return the gradient of the output that all results are compared for."""
    return torch.randn(args["u"].shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


def assert_close_to_truth(args: dict, backend: str, delta_softplus: bool) -> None:
    """Hold out and every gradient of a backend to k times the error of the plain reference in the same dtype."""
    dtype, dout, x = args["u"].dtype, weight_of(args), list(args.values())
    truth = oracle(x, dout, delta_softplus)
    plain = run_with_gradients(lambda *a: selective_scan_ref(*a, delta_softplus=delta_softplus), x, dout)
    with engine.use_backend(backend):
        ours = run_with_gradients(lambda *a: selective_scan_fn(*a, delta_softplus=delta_softplus), x, dout)
    assert truth.keys() - ours.keys() == {"last"}
    for name, got in ours.items():
        assert got.dtype == args["u" if name == "out" else name[1:]].dtype
        error, bound = rms_error(got, truth[name]), rms_error(plain[name], truth[name])
        allowed = TOLERANCE[dtype] * max(bound, 2 * torch.finfo(dtype).eps)
        assert error <= allowed, f"{name}: {error:.3g}, plain PyTorch {bound:.3g}"


def accepting(backend: str, dtype: torch.dtype) -> str:
    """Return the backend, or skip with the reason why it cannot run here."""
    if reason := registry.why_not(registry.get(backend), "scan", Scan(*canonical([0], dtype))):
        pytest.skip(f"{backend}: {reason}")
    return backend


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("length", [1, 2, 7, 64, 97, 400])
def test_forward_and_gradients_against_float64(backend: str, dtype: torch.dtype, length: int) -> None:
    accepting(backend, dtype)
    assert_close_to_truth(make(length=length, dtype=dtype, requires_grad=True), backend, delta_softplus=True)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("skip", "gate", "bias", "softplus"), list(itertools.product([False, True], repeat=4)))
def test_every_optional_argument(backend: str, skip: bool, gate: bool, bias: bool, softplus: bool) -> None:
    accepting(backend, torch.float32)
    args = make(skip=skip, gate=gate, bias=bias, dtype=torch.float32, requires_grad=True)
    if not softplus:  # without softplus a negative step makes the state grow
        args["delta"] = args["delta"].detach().abs().requires_grad_()
        if bias:
            args["delta_bias"] = args["delta_bias"].detach().abs().requires_grad_()
    assert_close_to_truth(args, backend, delta_softplus=softplus)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("groups", [1, 2, 3])
@pytest.mark.parametrize("state", [1, 5, 16, 64, 256])
def test_groups_and_state_sizes(backend: str, groups: int, state: int) -> None:
    accepting(backend, torch.float32)
    args = make(groups=groups, state=state, dtype=torch.float32, requires_grad=True)
    assert_close_to_truth(args, backend, delta_softplus=True)


LONG = [pytest.param(length, marks=pytest.mark.slow) for length in (1024, 2048, 4096)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("length", [128, 256, 512, *LONG])
def test_grid_of_mamba_ssm(backend: str, dtype: torch.dtype, groups: int, length: int) -> None:
    """The sizes of mamba-ssm's own test: batch 2, 4 channels, 8 states."""
    accepting(backend, dtype)
    args = make(2, 4, length, 8, groups, dtype, requires_grad=True)
    assert_close_to_truth(args, backend, delta_softplus=True)


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("dim", "length"), [(17, 25600), (33, 6400), (65, 1600), (129, 400)])
def test_lengths_of_the_model(backend: str, dim: int, length: int) -> None:
    accepting(backend, torch.float32)
    args = make(batch=1, dim=dim, length=length, state=16, dtype=torch.float32, requires_grad=True)
    assert_close_to_truth(args, backend, delta_softplus=True)


@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(1, 3),
    per_group=st.integers(1, 5),
    groups=st.integers(1, 3),
    length=st.integers(1, 70),
    state=st.integers(1, 9),
    seed=st.integers(0, 99),
)
def test_any_shape(batch: int, per_group: int, groups: int, length: int, state: int, seed: int) -> None:
    args = make(batch, per_group * groups, length, state, groups, seed=seed, requires_grad=True)
    x, dout = list(args.values()), weight_of(args)
    truth = oracle(x, dout)
    with engine.use_backend("chunked"):
        ours = run_with_gradients(lambda *a: selective_scan_fn(*a, delta_softplus=True), x, dout)
    for name, t in ours.items():
        torch.testing.assert_close(t, truth[name], rtol=1e-9, atol=1e-9)


def canonical(orders: list[int], dtype: torch.dtype = torch.float64, length: int = 11, dim: int = 3) -> list:
    """Return (u, delta, A, B, C, D, z, bias) of the canonical form, K = len(orders)."""
    return list(scan_inputs(2, len(orders), dim, length, 4, dtype=dtype, seed=3))


@pytest.mark.parametrize("orders", [[0], [1], [0, 1], [1, 1], [1, 0, 1]])
def test_reversed_groups_equal_flipped_tokens(orders: list[int]) -> None:
    args = canonical(orders)
    dout = torch.randn_like(args[0])
    states = []

    def scan(*x: torch.Tensor) -> torch.Tensor:
        out, kept = op.scan(Scan(*x, True, orders), "chunked")
        states.append(kept)
        return out

    got = run_with_gradients(scan, args, dout)
    for name, want in oracle(args, dout, orders=orders).items():
        torch.testing.assert_close(states[0][:, :, -1] if name == "last" else got[name], want)


@pytest.mark.parametrize("orders", [[0], [1], [0, 1]])
def test_gradcheck(orders: list[int]) -> None:
    args = [t.requires_grad_() for t in canonical(orders, length=7, dim=2)]
    assert gradcheck(lambda *a: op.scan(Scan(*a, True, orders), "chunked")[0], args)


@pytest.mark.parametrize("form", ["dn", "bnl", "bgnl"])
@pytest.mark.parametrize("is_complex", [False, True])
def test_every_form_of_b_and_c(form: str, is_complex: bool) -> None:
    """The recipe's forms, real and complex, against a direct evaluation of the recurrence."""
    args = make(groups=2 if form == "bgnl" else 0, dim=4)
    g = torch.Generator().manual_seed(5)
    if is_complex:
        args["A"] = torch.complex(args["A"], torch.randn(args["A"].shape, generator=g, dtype=torch.float64))
        for k in ("B", "C"):
            args[k] = torch.randn(*args[k].shape[:-1], 2 * args[k].shape[-1], generator=g, dtype=torch.float64)
    if form == "dn":
        for k in ("B", "C"):
            x = torch.randn(4, 4, 2, generator=g, dtype=torch.float64)
            args[k] = torch.view_as_complex(x) if is_complex else x[..., 0]
    args = {k: v.requires_grad_() for k, v in args.items()}
    out, last = selective_scan_fn(**args, delta_softplus=True, return_last_state=True)

    u, delta, A, B, C, D, z, bias = args.values()
    dt = torch.log1p(torch.exp(delta + bias[:, None]))

    def at(x: torch.Tensor, t: int, d: int) -> torch.Tensor:
        if x.dim() == 2:
            return x[d]
        x = x if x.dim() == 4 else x.unsqueeze(1)
        x = x[:, d * x.shape[1] // 4]
        return torch.complex(x[..., 2 * t], x[..., 2 * t + 1]) if is_complex else x[..., t]

    for d in range(4):
        h = 0
        for t in range(u.shape[-1]):
            h = torch.exp(dt[:, d, t, None] * A[d]) * h + (dt[:, d, t] * u[:, d, t])[:, None] * at(B, t, d)
            y = (h * at(C, t, d)).sum(-1)
            y = 2 * y.real if is_complex else y
            y = (y + D[d] * u[:, d, t]) * z[:, d, t] * torch.sigmoid(z[:, d, t])
            torch.testing.assert_close(out[:, d, t], y)
        torch.testing.assert_close(last[:, d], h.detach())
    out.sum().backward()
    assert all(
        v.grad is not None and torch.isfinite(torch.view_as_real(v.grad) if v.is_complex() else v.grad).all()
        for v in args.values()
    )
    assert not last.requires_grad


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("form", ["dn", "bnl", "bgnl"])
def test_complex_forms_in_low_precision(form: str, dtype: torch.dtype) -> None:
    """Computed in float32, so that the error is the rounding of results; gradients in the dtypes of their inputs."""
    args = make(groups=2 if form == "bgnl" else 0, dim=4, length=9)
    g = torch.Generator().manual_seed(5)
    args["A"] = torch.complex(args["A"], torch.randn(args["A"].shape, generator=g, dtype=torch.float64))
    for k in ("B", "C"):
        shape = (4, 4, 2) if form == "dn" else (*args[k].shape[:-1], 2 * args[k].shape[-1])
        x = torch.randn(shape, generator=g, dtype=torch.float64)
        args[k] = torch.view_as_complex(x).to(torch.complex64) if form == "dn" else x.to(dtype)
    narrow = {k: x.to(dtype) if k in ("u", "delta", "z") else x.float() for k, x in args.items() if k not in "ABC"}
    args = {**args, **narrow, "A": args["A"].to(torch.complex64)}
    wide = {k: x.to(torch.complex128 if x.is_complex() else torch.float64) for k, x in args.items()}
    results = []
    for inputs in (args, wide):
        leaves = {k: x.detach().clone().requires_grad_() for k, x in inputs.items()}
        out, last = selective_scan_fn(**leaves, delta_softplus=True, return_last_state=True)
        out.double().square().sum().backward()
        results.append({"out": out.detach(), "last": last, **{k: x.grad for k, x in leaves.items()}})
    ours, exact = results
    assert ours["out"].dtype == dtype
    for name, x in ours.items():
        if name in args:
            assert x.dtype == args[name].dtype
        x, want = (torch.view_as_real(t) if t.is_complex() else t for t in (x, exact[name]))
        assert rms_error(x, want) < 4 * torch.finfo(dtype).eps, name
    assert selective_scan_ref(**args, delta_softplus=True).isfinite().all()  # the definition takes them, too


def test_groups_of_b_and_c_may_differ() -> None:
    args = make(groups=2)
    args["C"] = make(groups=3, seed=1)["C"]
    torch.testing.assert_close(selective_scan_fn(**args), selective_scan_ref(**args))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layout", ["channel_last", "strided", "expanded"])
def test_layouts_give_the_same(backend: str, layout: str) -> None:
    accepting(backend, torch.float32)
    args = make(dtype=torch.float32)
    if layout == "expanded":
        args["u"] = args["u"][:, :, :1].expand(-1, -1, 13)
        args["B"] = args["B"][:1].expand(2, -1, -1)
    with engine.use_backend(backend):
        expected = selective_scan_fn(**{k: v.contiguous() for k, v in args.items()}, delta_softplus=True)
        if layout == "channel_last":
            args = {k: v.transpose(1, 2).contiguous().transpose(1, 2) if v.dim() == 3 else v for k, v in args.items()}
        elif layout == "strided":
            args = {k: torch.stack([v, v + 1], -1)[..., 0] for k, v in args.items()}
        torch.testing.assert_close(selective_scan_fn(**args, delta_softplus=True), expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_extreme_values_are_defined(backend: str) -> None:
    """Underflow, huge steps and zeros are finite; infinities and growing states give what the definition gives."""
    accepting(backend, torch.float32)
    args = make(dtype=torch.float32, length=40)
    for delta, A in ((50.0, -100.0), (-100.0, -1.0), (0.0, 0.0), (1e4, -1e4)):
        args["delta"] = torch.full_like(args["delta"], delta)
        args["A"] = torch.full_like(args["A"], A)
        with engine.use_backend(backend):
            out = selective_scan_fn(**args, delta_softplus=True)
        assert torch.isfinite(out).all()
        torch.testing.assert_close(out, selective_scan_ref(**args, delta_softplus=True), rtol=2e-5, atol=2e-5)
    args.update(A=torch.full_like(args["A"], 1e3), delta=torch.ones_like(args["delta"]), delta_bias=None)
    with engine.use_backend(backend):
        assert not torch.isfinite(selective_scan_fn(**args)[..., -1]).any()


def test_chunk_length_covers_every_length() -> None:
    for length in [*range(1, 300), 400, 1600, 6400, 25600, 25601]:
        chunk, n = chunked.chunk_length(length), registry.get("chunked").num_checkpoints(length)
        assert (n - 1) * chunk < length <= n * chunk


def test_backward_in_blocks_equals_backward_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    args = [t.requires_grad_() for t in canonical([0, 1], length=90)]
    out = op.scan(Scan(*args, True, [0, 1]), "chunked")[0]
    whole = torch.autograd.grad(out.sum(), args, retain_graph=True)
    monkeypatch.setattr(chunked, "BLOCK_ELEMENTS", 1)
    for a, b in zip(whole, torch.autograd.grad(out.sum(), args)):
        torch.testing.assert_close(a, b)


def test_no_full_state_tensor_is_kept() -> None:
    """What autograd keeps of a scan is its inputs and the chunk borders."""
    args = [t.requires_grad_() for t in canonical([0], length=400, dim=8)]
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        op.scan(Scan(*args, True, [0]), "chunked")
    beyond_inputs = [t for t in kept if not any(t is a or t.data_ptr() == a.data_ptr() for a in args)]
    assert sum(t.numel() for t in beyond_inputs) == 2 * 8 * 4 * registry.get("chunked").num_checkpoints(400)


@pytest.mark.parametrize("backend", OPERATORS)
def test_without_a_gradient_only_the_last_state_is_kept(backend: str) -> None:
    accepting(backend, torch.float32)
    args = canonical([0, 1], torch.float32, length=100)
    whole, states = op.scan(Scan(*args, True, [0, 1]), backend, keep=True)
    out, last = op.scan(Scan(*args, True, [0, 1]), backend)
    assert states.shape[2] == registry.get(backend).num_checkpoints(100) > 1, "100 tokens are more than one state"
    assert last.shape[2] == 1
    assert torch.equal(out, whole)
    assert torch.equal(last, states[:, :, -1:])
    assert last.untyped_storage().nbytes() == 4 * last.numel()
    args[0].requires_grad_()
    assert op.scan(Scan(*args, True, [0, 1]), backend)[1].shape == states.shape
    with torch.no_grad():
        assert op.scan(Scan(*args, True, [0, 1]), backend)[1].shape == last.shape


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("backend", OPERATORS)
def test_opcheck(backend: str, dtype: torch.dtype, full: bool) -> None:
    accepting(backend, dtype)
    u, delta, A, B, C, D, z, bias = canonical([0, 1], dtype)
    if not full:  # one input that both directions share
        u = u[:, :1].expand(-1, 2, -1, -1)
    A = A.transpose(1, 2).contiguous().transpose(1, 2)  # gradients of parameters are dense all the same
    args = (u, delta, A, B, C, *((D, z, bias) if full else (None, None, None)), True, [0, 1], backend)
    leaves = tuple(a.detach().requires_grad_() if isinstance(a, torch.Tensor) else a for a in args)
    torch.library.opcheck(torch.ops.vmamba.selective_scan.default, leaves)
    out, states = op.scan(Scan(*args[:-1]), backend, keep=True)
    torch.library.opcheck(torch.ops.vmamba.selective_scan_backward.default, (out, *args[:8], states, *args[8:]))


def test_every_registered_operator_is_checked() -> None:
    checked = "".join(
        Path(__file__).with_name(n).read_text(encoding="utf-8") for n in ("test_selective_scan.py", "test_block.py")
    )
    for name in torch._C._dispatch_get_all_op_names():
        if name.startswith("vmamba::"):
            assert f"torch.ops.{name.replace('::', '.')}.default" in checked, f"{name} has no opcheck"


def test_compile_fullgraph_forward_and_backward() -> None:
    args = [t.requires_grad_() for t in canonical([0, 1], torch.float32)]
    fn = lambda *a: op.scan(Scan(*a, True, [0, 1]))[0].square().sum()  # noqa: E731
    expected = torch.autograd.grad(fn(*args), args)
    compiled = torch.compile(fn, fullgraph=True, backend="aot_eager")
    for a, b in zip(expected, torch.autograd.grad(compiled(*args), args)):
        torch.testing.assert_close(a, b)


def test_flops_of_a_scan() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    args = [t.requires_grad_() for t in canonical([0, 1], torch.float32)]
    with FlopCounterMode(display=False) as counter:
        out = op.scan(Scan(*args, True, [0, 1]))[0]
    forward = counter.get_total_flops()
    assert forward == 9 * 2 * (2 * 3) * 11 * 4 == engine.scan_flops(2, 6, 11, 4)
    with FlopCounterMode(display=False) as counter:
        out.sum().backward()
    assert counter.get_total_flops() == 3 * forward


# Choice of backend ----------------------------------------------------------------------------------------------------


def test_forced_backend_is_used_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    args = make(dtype=torch.float32)
    calls = []
    backend = registry.get("chunked")
    monkeypatch.setattr(backend, "scan", lambda *a, run=backend.scan: calls.append(1) or run(*a))
    with engine.use_backend("chunked"):
        selective_scan_fn(**args)
    assert calls == [1]
    with engine.use_backend("reference"):
        selective_scan_fn(**args)
    assert calls == [1]
    monkeypatch.setattr(chunked.Chunked, "refuses", lambda self, problem: "it rains")
    with engine.use_backend("chunked"), pytest.raises(RuntimeError, match="chunked: it rains"):
        selective_scan_fn(**args)
    with (
        pytest.raises(ValueError, match=r"'cuda9', which is no scan backend; choose one of .*'chunked'"),
        engine.use_backend("cuda9"),
    ):
        pass
    assert registry.forced() == "auto"


def test_unavailable_backend_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    for b in registry.BACKENDS.values():
        if b.name != "chunked":
            monkeypatch.setattr(b, "works", False)
            monkeypatch.setattr(b, "about", "no binary")
    assert registry.choose("scan", Scan(*canonical([0], torch.float32))).name == "chunked"
    assert all(isinstance(ok, bool) and reason for _, ok, reason in registry.report())


def test_unknown_environment_value_lists_the_valid_ones() -> None:
    with pytest.raises(ValueError, match=r"VMAMBA_BACKEND is 'fast'.*'auto'.*'reference'"):
        registry._check("fast", "environment variable VMAMBA_BACKEND")


def test_engine_never_imports_ultralytics() -> None:
    folder = Path(registry.__file__).parent
    for file in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names.append(node.module)
            assert not any(n.split(".")[0] == "ultralytics" for n in names), file.name


# Bad input ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"delta": torch.zeros(2, 6, 12, dtype=torch.float64)},
            ValueError,
            r"delta must have shape \(B, D, L\) = \(2, 6, 13\), got \(2, 6, 12\)",
        ),
        ({"delta": torch.zeros(2, 6, 13)}, TypeError, "delta must have the dtype of u"),
        ({"u": torch.zeros(2, 6, 13, dtype=torch.int64)}, TypeError, "u must be floating point"),
        ({"u": torch.zeros(2, 6)}, ValueError, r"u must have shape \(B, D, L\), got \(2, 6\)"),
        ({"A": torch.zeros(5, 4)}, ValueError, "A must have shape"),
        ({"B": torch.zeros(2, 3, 13)}, ValueError, r"B must have shape \(B, N, L\) = \(2, 4, 13\), got \(2, 3, 13\)"),
        ({"B": torch.zeros(2, 4, 4, 13)}, ValueError, "B has G = 4 groups, which does not divide D = 6"),
        ({"C": torch.zeros(13)}, ValueError, r"C must be \(D, N\), \(B, N, L\) or \(B, G, N, L\)"),
        ({"D": torch.zeros(5)}, ValueError, r"D must have shape \(D\) = \(6,\), got \(5,\)"),
        ({"z": torch.zeros(2, 6, 13)}, TypeError, "z must have the dtype of u"),
        ({"delta_bias": 1.0}, TypeError, "delta_bias must be a torch.Tensor, got float"),
        ({"B": torch.zeros(6, 4, dtype=torch.complex64)}, TypeError, "B is complex, so A must be complex too"),
        ({"A": torch.zeros(6, 4, device="meta")}, ValueError, "u is on cpu, A on meta"),
    ],
)
@pytest.mark.parametrize("fn", [selective_scan_fn, selective_scan_ref])
def test_bad_arguments_are_named(fn, change: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        fn(**{**make(), **change})


def test_no_tokens_is_an_error() -> None:
    args = {k: v[..., :0] if v.dim() == 3 else v for k, v in make().items()}
    with pytest.raises(ValueError, match="no tokens"):
        selective_scan_fn(**args)


def test_canonical_inputs_are_not_broadcast() -> None:
    u, delta, A, B, C, D, z, bias = canonical([0, 1])
    for args, message in (
        ((u, delta, A[:1], B, C), r"A must have shape \(K, D, N\) = \(2, 3, 4\), got \(1, 3, 4\)"),
        ((u, delta, A, B[:1], C), r"B must have shape \(B, K, N, L\) = \(2, 2, 4, 11\), got \(1, 2, 4, 11\)"),
        ((u[..., :0], delta[..., :0], A, B[..., :0], C[..., :0]), "no tokens"),
    ):
        with pytest.raises(ValueError, match=message):
            op.scan(Scan(*args))
    with pytest.raises(ValueError, match="backend 'foo' is no scan backend"):
        op.scan(Scan(u, delta, A, B, C), "foo")
    assert not op.scan(Scan(u.requires_grad_(), delta, A, B, C))[1].requires_grad


@pytest.mark.parametrize("name", ["u", "delta", "A", "B", "C"])
def test_a_tensor_that_must_be_there(name: str) -> None:
    s = Scan(*canonical([0, 1], torch.float32)[:5])
    with torch.no_grad(), pytest.raises((TypeError, AttributeError), match=f"{name} must be a tensor|NoneType"):
        op.scan(s._replace(**{name: None}))


def test_a_backend_asked_for_by_name_is_held_to_its_limits() -> None:
    """Its kernels take A for float32: gradients of another type would be written past their end."""
    accepting("cpu", torch.float32)
    u, delta, A, B, C, *rest = canonical([0, 1], torch.float32)
    for args, why in (
        ((u, delta, A.bfloat16(), B, C), "A is torch.bfloat16: only float32"),
        ((u.double(), delta, A, B, C), "u is torch.float64: only float32, bfloat16, float16"),
    ):
        with pytest.raises(RuntimeError, match=f"scan backend 'cpu' cannot take this call: {why}"):
            op.scan(Scan(*args), "cpu")
    A16 = A.bfloat16().requires_grad_()
    with pytest.raises(
        ValueError, match="a dtype is not float32, bfloat16 or float16, or a gradient that must be float32"
    ):
        torch.ops.vmamba.selective_scan(u, delta, A16, B, C, None, None, None, True, [0, 1], "cpu")[0].sum().backward()
    with pytest.raises(ValueError, match="a dtype is not float32, bfloat16 or float16"):
        torch.ops.vmamba.selective_scan(u.double(), delta, A, B, C, None, None, None, True, [0, 1], "cpu")


@pytest.mark.parametrize("backend", OPERATORS)
def test_tensors_that_stand_for_others(backend: str) -> None:
    """The imaginary part of a conjugate is a view whose sign is still to be changed; zeros may have no memory."""
    accepting(backend, torch.float32)
    tensors = [*canonical([0, 1], torch.float32)]
    with torch.no_grad():
        for i, t in enumerate(tensors):
            odd = torch.complex(torch.zeros_like(t), -t).conj().imag
            assert odd.is_neg()
            given = tensors[:i] + [odd] + tensors[i + 1 :]
            want, got = (op.scan(Scan(*x, True, [0, 1]), backend)[0] for x in (tensors, given))
            torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)
        none = torch._efficientzerotensor(tensors[0].shape)
        want, got = (op.scan(Scan(x, *tensors[1:], True, [0, 1]), backend)[0] for x in (torch.zeros_like(none), none))
        torch.testing.assert_close(got, want)


def test_bad_orders_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"orders must hold 0 or 1 for each of 1 groups, got \[0, 7\]"):
        op.scan(Scan(*canonical([0]), True, [0, 7]))


def test_nothing_is_left_behind_by_a_failing_block() -> None:
    with contextlib.suppress(KeyError), engine.use_backend("chunked"):
        raise KeyError
    assert registry.forced() == "auto"
