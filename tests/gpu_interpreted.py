# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""The Triton kernels on CPU tensors, in Triton's interpreter; run by test_gpu_backend.py in a process of its own.

The interpreter takes about a tenth of a second for each token of a program, so shapes are tiny, and tiles, rows and
blocks are made smaller still, so that they cross every border there is.
"""

from __future__ import annotations

import functools
from types import SimpleNamespace

import pytest
import torch
import triton  # before the backend, which counts an interpreter only if triton has been imported
import triton.language as tl

from tests import block_cases as block
from tests import scan_cases
from tests.scan_cases import errors, layouts, loop, make
from ultralytics.nn.Addmodules import MambaLayer
from ultralytics.nn.Addmodules import selective_scan as engine
from ultralytics.nn.Addmodules.selective_scan import Block, Scan, registry
from ultralytics.nn.Addmodules.selective_scan.backends.gpu import block as gpu_block
from ultralytics.nn.Addmodules.selective_scan.backends.gpu import scan as gpu_scan
from ultralytics.nn.Addmodules.selective_scan.proof import rms_error


@triton.jit
def count(out, n):
    """Count to n."""
    total = 0
    for _ in range(n):
        total += 1
    tl.store(out, total)


try:
    count[(1,)](torch.zeros(1, dtype=torch.int32), 3)
except Exception as e:  # triton.runtime.errors.InterpreterError, which not every version has
    # Triton 3.6 takes int() of an array of one element, which NumPy 2.4 refuses.
    pytest.skip(f"no loop runs in this Triton's interpreter with this NumPy: {e}", allow_module_level=True)


def keep_booleans(splat):
    """Return a splat without a fault of Triton 3.9: its truth values became int32, which masks refuse."""

    def wrapped(self, shape, value):
        made = splat(self, shape, value)
        if value.data.dtype == bool:
            made.data = made.data.astype(bool)
        return made

    return wrapped


builder = triton.runtime.interpreter.InterpreterBuilder
builder.create_splat = keep_booleans(builder.create_splat)
gpu = registry.get("gpu")
forward, backward, run = (functools.partial(f, gpu) for f in (scan_cases.forward, scan_cases.backward, scan_cases.run))


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch, poisoned_memory: None) -> None:
    """Shrink what divides tokens and channels, ask for many segments, and poison fresh memory with NaN."""
    torch.manual_seed(0)
    sizes = {"FORWARD_ROWS": 2, "LOW_RANK_ROWS": 2, "BACKWARD_ROWS": 2, "CARRY_ROWS": 2, "PART_ROWS": 2, "BLOCK_D": 4}
    for name, value in sizes.items():
        monkeypatch.setattr(gpu_scan, name, value)
    for name, value in {"BLOCK_TOKENS": 4, "BLOCK_CHANNELS": 4, "SLOPE_STEPS": 2}.items():
        monkeypatch.setattr(gpu_block, name, value)
    monkeypatch.setattr(gpu_scan, "tile_length", lambda length: 4)
    monkeypatch.setattr(gpu_scan, "processors", lambda device: 1000)


def close(args, dout, softplus, orders) -> list:
    """Hold a run to the float64 loop with a fixed bound: an error over so few numbers is luck."""
    ours = run(args, dout, softplus, orders)
    for name, (dtype, error, _) in errors(args, dout, softplus, orders, ours).items():
        assert error <= 10 * torch.finfo(dtype).eps, f"{name}: {error:.2e}"
    return ours


# batch, K, D, L, N: one segment, several, one token, tokens that fill their tiles, several blocks of channels
CASES = [
    ((1, 2, 3, 7, 3), [0, 1], True, {}),
    ((1, 1, 2, 1, 1), [1], True, {}),
    ((1, 1, 5, 8, 4), [1], False, {"bias": False}),
    ((2, 1, 1, 13, 2), [0], True, {"gate": False, "skip": False}),
]


@pytest.mark.parametrize("case", CASES, ids=lambda c: "-".join(map(str, c[0])))
def test_forward_and_gradients(case):
    shape, orders, softplus, options = case
    args = make(*shape, **options)
    if not softplus:
        args[1] = args[1].abs()
    close(args, torch.randn_like(args[0]), softplus, orders)


def test_one_segment_without_anything_optional(monkeypatch):
    monkeypatch.setattr(gpu_scan, "processors", lambda device: 0)
    args = make(1, 1, 3, 6, 3, skip=False, gate=False, bias=False)
    close(args, torch.randn_like(args[0]), True, [0])


def test_sums_over_many_states_are_as_exact_as_plain_pytorch(monkeypatch):
    """One state added after another, 256 times, had two to three times the error of PyTorch's sums."""
    monkeypatch.setattr(gpu_scan, "processors", lambda device: 0)
    args = make(2, 1, 4, 4, 256)
    dout = torch.randn_like(args[0])
    scan_cases.hold(errors(args, dout, True, [0], run(args, dout, True, [0])))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_low_precision(dtype):
    args = make(1, 1, 3, 6, 3, dtype=dtype)
    results = close(args, torch.randn_like(args[0]), True, [1])
    wide = torch.float32
    assert [x.dtype for x in results] == [dtype, wide, dtype, dtype, wide, dtype, dtype, wide, dtype, wide]


def test_layouts_and_shared_inputs():
    args = make(1, 1, 3, 5, 2)
    dout = torch.randn_like(args[0])
    want = run(args, dout, True, [0])
    for index in (0, 2, 4):  # tokens innermost, padded channels, padded tokens
        moved = list(args)
        for i in (0, 1, 3, 4, 6):
            moved[i] = list(layouts(args[i]))[index]
        for x, y in zip(run(moved, dout.contiguous(), True, [0]), want):
            assert torch.equal(x, y)
    wide = [x.expand(-1, 2, -1, -1) if i in (0, 1, 3, 4, 6) else x.expand(2, *x.shape[1:]) for i, x in enumerate(args)]
    results = close(wide, torch.ones(()).expand(1, 2, 3, 5), True, [0, 1])
    assert all(x.stride(i) != 0 for x in results for i in range(x.dim()))


def test_a_gradient_with_channels_far_apart_is_copied(monkeypatch):
    """Offsets of channels have 32 bits; of the gradient nobody is asked beforehand whether that is enough."""
    monkeypatch.setattr(gpu_scan, "processors", lambda device: 0)
    args = make(1, 1, 3, 4, 2, dtype=torch.bfloat16, gate=False)
    try:
        far = torch.empty_strided((1, 1, 3, 4), (0, 0, 1 << 30, 1), dtype=torch.bfloat16)
    except RuntimeError as e:
        pytest.skip(f"four gigabytes of addresses are not to be had: {e}")
    far.copy_(torch.randn(1, 1, 3, 4))
    states = forward(args, True, [0])[1]
    for x, y in zip(*(backward(d, args, states, True, [0]) for d in (far, far.contiguous()))):
        assert x is y is None or torch.equal(x, y)


def test_checkpoints_can_be_left_out():
    args = make(1, 1, 3, 9, 2)
    out, states = forward(args, True, [0])
    short, last = forward(args, True, [0], keep=False)
    assert torch.equal(out, short)
    assert torch.equal(states[:, :, -1:], last)
    assert states.stride(3) == 1, "channels are innermost in memory"
    first = forward([x[..., :4] if x.dim() == 4 else x for x in args], True, [0])[1]
    torch.testing.assert_close(states[:, :, :1], first)


def test_far_out_and_special_values():
    args = make(1, 1, 6, 4, 2, gate=False, bias=False)
    for channel, value in enumerate((-100.0, -8.0, 60.0, float("-inf"), float("nan"))):
        args[1][:, :, channel] = value
    out, states = forward(args, True, [0])
    wide = [None if x is None else x.double() for x in args]
    want, last = loop(*wide, True, [0])
    torch.testing.assert_close(out.double(), want, rtol=1e-5, atol=1e-6, equal_nan=True)
    torch.testing.assert_close(states[:, :, -1].double(), last, rtol=1e-5, atol=1e-6, equal_nan=True)


def test_the_operator_and_the_choice():
    leaves = [None if x is None else x.requires_grad_() for x in make(1, 2, 2, 3, 2)]
    s = Scan(*leaves, True, [0, 1])
    assert registry.choose("scan", s).name != "gpu"
    with engine.use_backend("gpu"):
        assert registry.choose("scan", s).name == "gpu"
        ours = torch.autograd.grad(engine.scan(s)[0].square().sum(), leaves)
    with engine.use_backend("chunked"):
        theirs = torch.autograd.grad(engine.scan(s)[0].square().sum(), leaves)
    for x, y in zip(ours, theirs):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-5)
    assert "float64" in registry.why_not(gpu, "scan", Scan(*(x.double() for x in leaves)))


def test_empty_batch_and_bad_arguments():
    args = make(0, 1, 4, 5, 3)
    out, states = forward(args, True, [0])
    assert out.shape == (0, 1, 4, 5)
    assert (backward(out, args, states, True, [0])[2] == 0).all()
    args = make(1, 2, 2, 3, 2)
    with pytest.raises(ValueError, match="orders"):
        forward(args, True, [0])
    with pytest.raises(ValueError, match="delta"):
        forward([args[0], args[1][..., :-1], *args[2:]], True, [0, 1])


# The block: batch, L, D, N, R, W, rows of conv and projections, orders


BLOCKS = [(1, 7, 5, 3, 2, 4, 2, [0, 1]), (2, 3, 3, 1, 1, 2, 1, [1, 0]), (1, 1, 1, 2, 5, 1, 1, [0])]


@pytest.mark.parametrize("case", BLOCKS, ids=lambda c: "-".join(map(str, c[:7])))
def test_block_and_every_gradient(case):
    *sizes, orders = case
    args = block.make(*sizes, orders)
    truth = block.run(args, orders, "reference")
    for name, x in block.run(block.cast(args, torch.float32), orders, "gpu").items():
        assert x.shape == truth[name].shape
        assert rms_error(x, truth[name]) < block.FLOAT32, name


def test_block_with_delta_as_a_product_outside_the_scan(monkeypatch):
    monkeypatch.setattr(gpu_block, "MAX_RANK", 1)
    orders = [1, 0]
    args = block.make(1, 5, 5, 2, 3, 2, 2, orders)
    truth = block.run(args, orders, "reference", softplus=False)
    for name, x in block.run(block.cast(args, torch.float32), orders, "gpu", softplus=False).items():
        assert rms_error(x, truth[name]) < block.FLOAT32, name


def test_block_without_anything_optional(monkeypatch):
    """No gate, no convolution (as SS2D calls it), no bias, no skip, one segment."""
    monkeypatch.setattr(gpu_scan, "processors", lambda device: 0)
    args = block.make(1, 6, 5, 2, 2, 1, 2, [0, 1], optional=False)
    args |= {"conv_w": None, "xz": args["xz"][..., :5]}
    truth = block.run(args, [0, 1], "reference")
    for name, x in block.run(block.cast(args, torch.float32), [0, 1], "gpu").items():
        assert rms_error(x, truth[name]) < block.FLOAT32, name


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float16, 1.1), (torch.bfloat16, 3.0)], ids=str)
def test_block_in_low_precision(dtype, bound):
    """Held to the error of PyTorch's own composition; the interpreter cuts bfloat16 off where a GPU rounds it."""
    args = block.make(1, 6, 5, 3, 2, 3, 2, [0, 1])
    low = block.cast(args, dtype)
    truth = block.run(block.cast(low, torch.float64), [0, 1], "reference")
    plain, ours, again = (block.run(low, [0, 1], b) for b in ("reference", "gpu", "gpu"))
    total, allowed = (sum(rms_error(r[n], truth[n]) for n in truth) for r in (ours, plain))
    assert total <= bound * allowed
    for name, x in ours.items():
        assert x.dtype == low[name[1:]].dtype if name != "out" else x.dtype == dtype
        assert torch.equal(x, again[name]), name


def test_block_keeps_nothing_for_inference():
    args = block.cast(block.make(1, 6, 3, 2, 2, 3, 2, [0, 1]), torch.float32)
    b = Block(**{**args, "out_w": None, "out_b": None}, orders=[0, 1])
    full, y, projected, states = gpu.block(b, True)
    out, *kept = gpu.block(b, False)
    assert torch.equal(out, full)
    assert kept == [None, None, None]
    assert y.shape == out.shape
    assert projected.is_contiguous()
    assert states.stride(3) == 1
    empty = b._replace(xz=b.xz[:0])
    out, *kept = gpu.block(empty, True)
    assert [t.shape[0] for t in (out, *kept)] == [0] * 4
    grads = gpu.block_backward(out, empty, tuple(kept), True)
    assert [g.abs().sum().item() for g in grads] == [0] * 9
    assert "float64" in registry.why_not(gpu, "block", b._replace(xz=b.xz.double()))
    far = SimpleNamespace(device=b.xz.device, layout=b.xz.layout, dtype=b.xz.dtype, shape=b.xz.shape)
    far.stride = lambda i=None: (0, 0, 1 << 30) if i is None else 1 << 30
    assert "strides" in registry.why_not(gpu, "block", b._replace(xz=far))


# Automatic mixed precision


def mixed(dtype: torch.dtype | None, scale: float) -> dict[str, torch.Tensor]:
    """Return the gradients of a two-direction block trained in `dtype` by autocast, its loss scaled there and back."""
    torch.manual_seed(0)
    layer = MambaLayer(4, d_state=2, d_conv=2)
    x = torch.randn(1, 4, 2, 2).requires_grad_()
    with (
        engine.use_backend("gpu"),
        torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None),
    ):
        loss = layer(x).float().square().mean() * scale
    loss.backward()
    return {"x": x.grad / scale} | {n: p.grad / scale for n, p in layer.named_parameters()}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_with_a_scaled_loss(dtype):
    """GradScaler begins at 65536: nothing may overflow, and unscaled gradients are those of float32."""
    want = mixed(None, 1.0)
    for name, grad in mixed(dtype, 65536.0).items():
        assert grad.isfinite().all(), name
        assert grad.dtype == torch.float32
        assert rms_error(grad, want[name].double()) < 8 * torch.finfo(dtype).eps, name
