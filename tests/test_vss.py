# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""SS2D, the VSS block and its CSP form: against float64, gradients, peers' state dicts, bad input."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from ultralytics.nn.Addmodules.layers.cross_scan import cross_scan, token_order, transpose_tokens
from ultralytics.nn.Addmodules.layers.ss2d import ConvSS2D
from ultralytics.nn.Addmodules.layers.vss import DropPath
from ultralytics.nn.Addmodules.selective_scan import report, selective_scan_ref, use_backend
from ultralytics.nn.Addmodules.VMamba import SS2D, C2fSS2D, C2fVSS, MambaLayer, VSSBlock

SIZES = ((1, 1), (1, 7), (5, 1), (5, 7), (8, 8), (3, 40))


def cpu_backends() -> list[str]:
    """Names of the backends that take CPU tensors here."""
    return [name for name, ok, _ in report() if ok and name in ("reference", "cpu", "chunked")]


def parameters(dim: int, state: int, rank: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Seeded x_proj, dt_proj, A, D and dt_bias of four directions."""
    g = torch.Generator().manual_seed(0)

    def make(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g, dtype=torch.float64).to(dtype)

    x_proj, dt_proj = make(4, rank + 2 * state, dim) * dim**-0.5, make(4, dim, rank) * rank**-0.5
    return [x_proj, dt_proj, -make(4, dim, state).exp(), make(4, dim), make(4, dim) - 3]


def written_out(x: Tensor, height: int, width: int, x_proj, dt_proj, A, D, dt_bias) -> Tensor:
    """SS2D's core as the paper has it: gather each direction, scan it with the reference, scatter, add.

    Two sets of parameters are those of rows and rows reversed.
    """
    u, rank, state = F.silu(x), dt_proj.shape[2], A.shape[2]
    y = torch.zeros_like(u)
    for k in range(len(A)):
        order = token_order(k if len(A) == 4 else 2 * k, height, width)
        seq = u[:, order]  # (B, L, D)
        dt, B, C = (seq @ x_proj[k].T).split([rank, state, state], -1)
        out = selective_scan_ref(
            seq.transpose(1, 2),
            (dt @ dt_proj[k].T).transpose(1, 2),
            A[k],
            B.transpose(1, 2),
            C.transpose(1, 2),
            D[k],
            None,
            dt_bias[k],
            True,
        )
        y = y.index_add(1, order, out.transpose(1, 2))
    return y


def test_orders_visit_every_token_once() -> None:
    assert token_order(0, 2, 3).tolist() == [0, 1, 2, 3, 4, 5]
    assert token_order(1, 2, 3).tolist() == [0, 3, 1, 4, 2, 5]
    assert token_order(2, 2, 3).tolist() == [5, 4, 3, 2, 1, 0]
    assert token_order(3, 2, 3).tolist() == [5, 2, 4, 1, 3, 0]
    with pytest.raises(ValueError, match="direction must be 0 to 3"):
        token_order(4, 2, 3)
    x = torch.randn(2, 15, 4)
    assert torch.equal(transpose_tokens(x, 3, 5), x[:, token_order(1, 3, 5)])
    assert torch.equal(transpose_tokens(transpose_tokens(x, 3, 5), 5, 3), x)


@pytest.mark.parametrize("directions", [4, 2])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("backend", cpu_backends())
def test_cross_scan_equals_its_definition(size: tuple[int, int], backend: str, directions: int) -> None:
    """Float32 values and every gradient against float64 of the written-out form."""
    torch.manual_seed(1)
    x = torch.randn(2, size[0] * size[1], 6, dtype=torch.float64)
    weight = torch.randn_like(x)
    exact = [t.requires_grad_() for t in (x.clone(), *(p[:directions] for p in parameters(6, 3, 2)))]
    want = written_out(exact[0], *size, *exact[1:])
    grads = torch.autograd.grad((want * weight).sum(), exact)
    given = [t.detach().float().requires_grad_() for t in exact]
    with use_backend(backend):
        got = cross_scan(given[0], *size, *given[1:])
        own = torch.autograd.grad((got * weight.float()).sum(), given)
    torch.testing.assert_close(got.double(), want, rtol=2e-5, atol=2e-5)
    for name, a, b in zip(("x", "x_proj", "dt_proj", "A", "D", "dt_bias"), own, grads):
        torch.testing.assert_close(a.double(), b, rtol=2e-4, atol=2e-4, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.usefixtures("threads_put_back")
def test_wide_and_long_maps_on_any_number_of_threads() -> None:
    """Streams of whole tiles and divided scans, many channel blocks, lengths that no tile divides."""
    torch.manual_seed(2)
    x, params = torch.randn(1, 33 * 31, 70, dtype=torch.float64), parameters(70, 5, 5)
    want = written_out(x, 33, 31, *params)
    for n in (1, 2, 5):
        torch.set_num_threads(n)
        got = cross_scan(x.float(), 33, 31, *(p.float() for p in params))
        torch.testing.assert_close(got.double(), want, rtol=2e-5, atol=5e-5)


def test_operator_without_convolution_and_gate_passes_opcheck() -> None:
    x, (x_proj, dt_proj, A, D, bias) = torch.randn(1, 9, 6), (p[:2].float() for p in parameters(6, 3, 2))
    args = [x, None, None, x_proj, dt_proj, A, D, bias, None, None]
    args = [t if t is None else t.requires_grad_() for t in args]
    for backend in ("cpu", "chunked"):
        if backend in cpu_backends():
            torch.library.opcheck(torch.ops.vmamba.mamba_inner.default, (*args, True, [0, 1], backend, True))


def test_cross_scan_gradients_in_float64() -> None:
    args = [t.requires_grad_() for t in (torch.randn(1, 6, 2, dtype=torch.float64), *parameters(2, 2, 1))]
    assert torch.autograd.gradcheck(lambda x, *p: cross_scan(x, 2, 3, *p), args)


@pytest.mark.parametrize("gate", [True, False])
@pytest.mark.parametrize("d_conv", [1, 3])
def test_ss2d_is_the_papers_block(gate: bool, d_conv: int) -> None:
    torch.manual_seed(0)
    m = SS2D(8, d_state=4, d_conv=d_conv, gate=gate).double()
    x = torch.randn(2, 8, 4, 6, dtype=torch.float64)
    xz = F.linear(x.permute(0, 2, 3, 1), m.in_proj.weight)
    u, z = (xz[..., :16], xz[..., 16:]) if gate else (xz, None)
    u = m.conv2d(u.permute(0, 3, 1, 2)).flatten(2).transpose(1, 2)
    A = -m.A_logs.exp().view(4, 16, 4)
    y = written_out(u, 4, 6, m.x_proj_weight, m.dt_projs_weight, A, m.Ds.view(4, 16), m.dt_projs_bias)
    y = m.out_norm(y).view(2, 4, 6, 16)
    want = m.out_proj(y if z is None else y * F.silu(z)).permute(0, 3, 1, 2)
    torch.testing.assert_close(m(x), want)
    torch.testing.assert_close(m(x.contiguous(memory_format=torch.channels_last)), want)


def peer_block(dim: int, state: int, inner: int, gate: bool, mlp: int, first_release: bool) -> dict[str, Tensor]:
    """State dict of one block as the VMamba repository writes it (classification/models/vmamba.py)."""
    g, rank = torch.Generator().manual_seed(3), -(-dim // 16)
    norm, op = ("ln_1", "self_attention") if first_release else ("norm", "op")
    shapes = {
        f"{norm}.weight": (dim,),
        f"{norm}.bias": (dim,),
        f"{op}.x_proj_weight": (4, rank + 2 * state, inner),
        f"{op}.dt_projs_weight": (4, inner, rank),
        f"{op}.dt_projs_bias": (4, inner),
        f"{op}.A_logs": (4 * inner, state),
        f"{op}.Ds": (4 * inner,),
        f"{op}.in_proj.weight": ((1 + gate) * inner, dim),
        f"{op}.conv2d.weight": (inner, 1, 3, 3),
        f"{op}.out_norm.weight": (inner,),
        f"{op}.out_norm.bias": (inner,),
        f"{op}.out_proj.weight": (dim, inner),
    }
    if first_release:
        shapes[f"{op}.conv2d.bias"] = (inner,)
    if mlp:
        shapes |= {"norm2.weight": (dim,), "norm2.bias": (dim,), "mlp.fc1.weight": (mlp * dim, dim)}
        shapes |= {"mlp.fc1.bias": (mlp * dim,), "mlp.fc2.weight": (dim, mlp * dim), "mlp.fc2.bias": (dim,)}
    return {k: torch.randn(v, generator=g) for k, v in shapes.items()}


def test_state_dicts_of_the_vmamba_repository_load() -> None:
    """Both releases, into one block and into a model's row of blocks; strict, and every value arrives."""
    first = VSSBlock(32)
    given = peer_block(32, 16, 64, True, 0, True)
    first.load_state_dict(given)
    assert torch.equal(first.norm.weight, given["ln_1.weight"])
    assert torch.equal(first.op.A_logs, given["self_attention.A_logs"])
    assert len(first.state_dict()) == len(given)

    later = VSSBlock(32, d_state=1, expand=1, gate=False, mlp_ratio=4, conv_bias=False)
    given = peer_block(32, 1, 32, False, 4, False)
    later.load_state_dict(given)
    assert all(torch.equal(v, given[k]) for k, v in later.state_dict().items())

    channel_first = {
        k: v[..., None, None] if "proj.weight" in k or "fc" in k and v.dim() == 2 else v for k, v in given.items()
    }
    other = VSSBlock(32, d_state=1, expand=1, gate=False, mlp_ratio=4, conv_bias=False)
    other.load_state_dict(channel_first)  # as its channel-first models keep pointwise weights
    assert all(torch.equal(v, given[k]) for k, v in other.state_dict().items())

    stage = nn.Sequential(VSSBlock(32), VSSBlock(32))
    both = {f"{i}.{k}": v for i in range(2) for k, v in peer_block(32, 16, 64, True, 0, True).items()}
    stage.load_state_dict(both)
    assert "0.ln_1.weight" in both  # the caller's own dictionary is left as it was


def test_a_peers_linear_scan_has_our_result() -> None:
    """The original core (einsum, cat of flips, cross-merge by transposing) written out, on a peer's weights."""
    block = VSSBlock(16, d_state=2, expand=1, gate=False, mlp_ratio=0, conv_bias=False).double()
    block.load_state_dict({k: v.double() for k, v in peer_block(16, 2, 16, False, 0, False).items()})
    m, x = block.op, torch.randn(1, 16, 3, 5, dtype=torch.float64)
    u = F.silu(m.conv2d(m.in_proj(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)))
    hw = torch.stack([u.flatten(2), u.transpose(2, 3).flatten(2)], 1)
    xs = torch.cat([hw, hw.flip(-1)], 1)  # (b, 4, d, l)
    dts, Bs, Cs = torch.einsum("bkdl,kcd->bkcl", xs, m.x_proj_weight).split([1, 2, 2], 2)
    dts = torch.einsum("bkrl,kdr->bkdl", dts, m.dt_projs_weight)
    ys = selective_scan_ref(
        xs.flatten(1, 2), dts.flatten(1, 2), -m.A_logs.exp(), Bs, Cs, m.Ds, None, m.dt_projs_bias.flatten(), True
    ).view(1, 4, 16, 15)
    ys = torch.cat([ys[:, :2], ys[:, 2:].flip(-1)], 1)
    rows = ys[:, 0] + ys[:, 2]
    columns = (ys[:, 1] + ys[:, 3]).unflatten(-1, (5, 3)).transpose(2, 3).flatten(2)
    want = m.out_proj(m.out_norm((rows + columns).transpose(1, 2))).transpose(1, 2).view(1, 16, 3, 5)
    torch.testing.assert_close(m(x), want)


@pytest.mark.parametrize(
    "layer",
    [
        lambda: SS2D(8),
        lambda: SS2D(8, d_conv=1, gate=False, bias=True),
        lambda: VSSBlock(8),
        lambda: VSSBlock(8, 1, 3, 1, 2, False, 0.5, 1e-2),
        lambda: C2fVSS(8, 16, 2),
        lambda: ConvSS2D(8),
        lambda: ConvSS2D(8, 3, 1.5, 1, 2, False),
        lambda: C2fSS2D(8, 16, 2),
    ],
)
def test_layers_train_and_keep_their_shape(layer) -> None:
    torch.manual_seed(0)
    m = layer()
    for size in ((1, 1), (1, 9), (6, 5)):
        x = torch.randn(2, 8, *size, requires_grad=True)
        y = m(x)
        assert y.shape == (2, 16 if isinstance(m, (C2fVSS, C2fSS2D)) else 8, *size)
        if size == (6, 5):
            y.square().sum().backward()
            assert torch.isfinite(x.grad).all()
            assert x.grad.abs().sum() > 0
            missing = [n for n, p in m.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
            assert not missing
    m.eval()
    same = copy.deepcopy(m)
    torch.testing.assert_close(same(x), m(x))


def test_modules_pickled_before_directions_were_a_setting() -> None:
    """Checkpoints hold whole modules, and an SS2D of then has no such attribute of its own."""
    m, x = SS2D(8), torch.randn(1, 8, 3, 4)
    want = m(x)
    del m.__dict__["directions"]
    assert torch.equal(m(x), want)
    assert m.own_flops(1, 12) == SS2D(8).own_flops(1, 12)


def test_residual_and_layer_scale() -> None:
    x = torch.randn(1, 8, 4, 4)
    block = VSSBlock(8, mlp_ratio=2, layer_scale=1e-9)
    torch.testing.assert_close(block(x), x)
    block = VSSBlock(8)
    with torch.no_grad():
        block.op.out_proj.weight.zero_()
    assert torch.equal(block(x), x)
    dropped = VSSBlock(8, drop_path=0.999999).train()
    assert torch.equal(dropped(x), x)
    assert not torch.equal(dropped.eval()(x), x)


@pytest.mark.parametrize(("state", "expand", "k", "directions"), [(1, 1, 3, 4), (3, 2, 5, 2)])
def test_conv_ss2d_is_what_it_says(state: int, expand: int, k: int, directions: int) -> None:
    """Convolution with BatchNorm, SiLU, scans, LayerNorm, linear, residual; values and gradients, against float64."""
    torch.manual_seed(0)
    m, x = ConvSS2D(6, state, expand, k, directions), torch.randn(2, 6, 5, 7)
    exact, inner = copy.deepcopy(m).double(), 6 * expand
    u = F.conv2d(x.double(), exact.conv.conv.weight, padding=k // 2)
    u = F.batch_norm(u, None, None, exact.conv.bn.weight, exact.conv.bn.bias, True, eps=exact.conv.bn.eps)
    A, D = -exact.A_logs.exp().view(directions, inner, state), exact.Ds.view(directions, inner)
    own = exact.x_proj_weight, exact.dt_projs_weight, A, D, exact.dt_projs_bias
    y = exact.out_proj(exact.out_norm(written_out(u.flatten(2).transpose(1, 2), 5, 7, *own)))
    want = x.double() + y.transpose(1, 2).view_as(x)
    got, weight = m(x), torch.randn_like(want)
    torch.testing.assert_close(got.double(), want, rtol=2e-5, atol=2e-5)
    (got * weight.float()).sum().backward()
    (want * weight).sum().backward()
    for (name, p), q in zip(m.named_parameters(), exact.parameters()):
        torch.testing.assert_close(p.grad.double(), q.grad, rtol=1e-3, atol=2e-4, msg=lambda t, n=name: f"{n}: {t}")
    bare = copy.deepcopy(m)
    bare.shortcut = False
    torch.testing.assert_close(bare.eval()(x) + x, m.eval()(x))


def test_drop_path_is_stochastic_depth() -> None:
    x = torch.randn(64, 3, 2, 2)
    drop, peer = DropPath(0.3), StochasticDepth(0.3, "row")
    torch.manual_seed(0)
    got = drop(x)
    torch.manual_seed(0)
    assert torch.equal(got, peer(x))
    dropped = int((got.flatten(1) == 0).all(1).sum())
    assert 0 < dropped < 64
    assert torch.equal(drop.eval()(x), x)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision(dtype: torch.dtype) -> None:
    """Half modules keep float32 states; their error stays near that of the same block's rounded input."""
    torch.manual_seed(0)
    block, x = VSSBlock(16, mlp_ratio=2).eval(), torch.randn(1, 16, 12, 12)
    want = block.double()(x.double())
    half = copy.deepcopy(block).float().to(dtype)
    assert half.op.A_logs.dtype == half.op.Ds.dtype == half.op.dt_projs_bias.dtype == torch.float32
    with torch.no_grad():
        got = half(x.to(dtype))
    assert got.dtype == dtype
    eps = torch.finfo(dtype).eps
    assert (got.double() - want).abs().max() < 12 * eps * want.abs().max()


def test_autocast_trains() -> None:
    torch.manual_seed(0)
    for block in (C2fVSS(8, 8, 1), C2fSS2D(8, 8, 1)):
        x = torch.randn(2, 8, 6, 6)
        with torch.autocast("cpu", torch.bfloat16):
            y = block(x)
        y.float().square().mean().backward()
        assert all(torch.isfinite(p.grad).all() for p in block.parameters())


@pytest.mark.parametrize("make", [lambda: VSSBlock(8, mlp_ratio=1), lambda: ConvSS2D(8, directions=2)])
def test_compiles_and_exports(make) -> None:
    torch.manual_seed(0)
    block, x = make().eval(), torch.randn(1, 8, 4, 6)
    with torch.no_grad():
        want = block(x)
        torch.testing.assert_close(torch.compile(block, fullgraph=True, backend="aot_eager")(x), want)
        torch.testing.assert_close(torch.export.export(block, (x,)).module()(x), want)
        torch.testing.assert_close(torch.jit.trace(block, x)(x), want)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: SS2D(8, d_conv=4), ValueError, "SS2D: d_conv must be odd, got 4"),
        (lambda: SS2D(8, gate="yes"), TypeError, "SS2D: gate must be True or False, got 'yes'"),
        (lambda: SS2D(8, expand=0.01), ValueError, "expand \\* dim must be at least 1"),
        (lambda: SS2D(8, d_state=0), ValueError, "d_state must be at least 1, got 0"),
        (lambda: SS2D(8, dt_rank=1.5), TypeError, "dt_rank must be an integer"),
        (lambda: VSSBlock(8, drop_path=1.0), ValueError, "drop_path must be a number from 0 to below 1.0, got 1.0"),
        (lambda: VSSBlock(8, layer_scale=float("nan")), ValueError, "layer_scale must be a number from 0 to below inf"),
        (
            lambda: VSSBlock(8, layer_scale=True),
            ValueError,
            "layer_scale must be a number from 0 to below inf, got True",
        ),
        (lambda: VSSBlock(8, mlp_ratio=-1), ValueError, "mlp_ratio must be a number from 0"),
        (lambda: C2fVSS(8, 8, 0), ValueError, "C2fVSS: n must be at least 1, got 0"),
        (lambda: C2fVSS(8, 1), ValueError, "hidden_channels must be at least 1"),
        (lambda: C2fSS2D(8, 8, -1), ValueError, "C2fSS2D: n must be at least 1, got -1"),
        (lambda: ConvSS2D(8, k=2), ValueError, "ConvSS2D: k must be odd, got 2"),
        (lambda: ConvSS2D(8, directions=3), ValueError, r"ConvSS2D: directions must be 2 .* or 4 .*, got 3"),
        (lambda: ConvSS2D(8, directions=4.0), TypeError, "directions must be an integer, got 4.0"),
        (lambda: ConvSS2D(8, shortcut=1), TypeError, "ConvSS2D: shortcut must be True or False, got 1"),
        (lambda: ConvSS2D(8, d_state=1.0), TypeError, "ConvSS2D: d_state must be an integer, got 1.0"),
        (lambda: ConvSS2D(8)(torch.zeros(1, 4, 2, 2)), ValueError, r"ConvSS2D expects \(B, 8, H, W\) with pixels"),
        (lambda: SS2D(8)(torch.zeros(1, 4, 2, 2)), ValueError, r"SS2D expects \(B, 8, H, W\) with pixels"),
        (lambda: VSSBlock(8)(torch.zeros(1, 8, 2)), ValueError, r"VSSBlock expects \(B, 8, H, W\)"),
        (lambda: VSSBlock(8)(torch.zeros(1, 8, 0, 2)), ValueError, "with pixels"),
    ],
)
def test_wrong_arguments(make, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def test_flops_are_counted() -> None:
    """What thop counts for a block is its linears, its convolution and its scans, within 1 %."""
    thop = pytest.importorskip("thop")
    dim, length, inner, state, rank = 32, 12 * 10, 64, 16, 2
    counted = 2 * thop.profile(VSSBlock(dim), (torch.zeros(1, dim, 12, 10),), verbose=False)[0]
    linear = 2 * length * (dim * 2 * inner + inner * dim + 4 * inner * (rank + 2 * state) + 4 * rank * inner)
    want = linear + 2 * length * 9 * inner + 9 * length * 4 * inner * state
    assert abs(counted / want - 1) < 0.03  # the norms are the rest
    counted = 2 * thop.profile(ConvSS2D(dim, 3, 2), (torch.zeros(1, dim, 12, 10),), verbose=False)[0]
    linear = 2 * length * (9 * dim * inner + inner * dim + 4 * inner * (rank + 6) + 4 * rank * inner)
    assert abs(counted / (linear + 9 * length * 4 * inner * 3) - 1) < 0.03
    before = thop.profile(MambaLayer(dim), (torch.zeros(1, dim, 12, 10),), verbose=False)[0]
    assert before > 0
