# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""The GPU backends: what can be held without a GPU, and (marked gpu) what needs one.

Without: the Triton kernels in Triton's interpreter, their machine code for an H100 and an MI300, how a scan is divided,
and the adapter to mamba-ssm with the reference in place of its compiled module.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks import gpu_compile, gpu_peer
from benchmarks.gpu_compile import HOPPER, MI300, Case
from tests import block_cases, scan_cases
from tests.scan_cases import TOLERANCE, close, errors, hold, loop, make
from ultralytics.nn.Addmodules import Mamba
from ultralytics.nn.Addmodules import selective_scan as engine
from ultralytics.nn.Addmodules.selective_scan import Block, Scan, op, registry, selective_scan_ref
from ultralytics.nn.Addmodules.selective_scan.backends import chunked, mamba_ssm
from ultralytics.nn.Addmodules.selective_scan.backends import gpu as backend_gpu
from ultralytics.nn.Addmodules.selective_scan.backends.gpu import block as gpu_block
from ultralytics.nn.Addmodules.selective_scan.backends.gpu import launch as gpu_launch
from ultralytics.nn.Addmodules.selective_scan.backends.gpu import load as gpu_load
from ultralytics.nn.Addmodules.selective_scan.backends.gpu import scan as gpu_scan
from ultralytics.nn.Addmodules.selective_scan.proof import rms_error

ROOT = Path(__file__).resolve().parents[1]
MODEL = [(64, 25600), (128, 6400), (256, 1600), (512, 400)]  # D and L of the four stages at 640


def why_no_triton() -> str:
    """Return why the kernels do not take the triton that is installed, without importing it; "" if they do."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    names = {d.metadata["Name"]: d.version for d in importlib.metadata.distributions()}
    version = names.get("triton") or names.get("triton-windows") or names.get("pytorch-triton") or "0"
    found = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    return "" if found >= gpu_load.MIN_TRITON else f"triton {version} is older than the kernels need"


no_triton = why_no_triton()
has_triton = not no_triton
needs_triton = pytest.mark.skipif(not has_triton, reason=no_triton or "there is triton")


# Without a GPU --------------------------------------------------------------------------------------------------------


@needs_triton
def test_kernels_in_the_interpreter():
    """In a process of its own: the variable has to be set before triton is imported, and torch imports it at will."""
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", "tests/gpu_interpreted.py"]
    done = subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
    )
    if done.returncode == pytest.ExitCode.NO_TESTS_COLLECTED:
        pytest.skip(next(x for x in done.stdout.splitlines() if x.startswith("SKIPPED")))
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert re.search(r"\d{2} passed", done.stdout), done.stdout[-500:]


def spills(kernel, folder: Path) -> int:
    """Return the bytes of registers that a kernel for NVIDIA spills, or skip where nothing can count them."""
    found = gpu_compile.resources(kernel, folder)
    if found is None:
        pytest.skip("no ptxas beside triton")
    return found["spilled"]


@needs_triton
@pytest.mark.parametrize(
    "case",
    [
        case
        for case in gpu_compile.KERNELS
        if case.kernel in ("scan_local", "scan_carry", "scan_forward") and case.constants.get("RANK", 4) == 4
    ],
    ids=lambda case: case.label,
)
def test_machine_code_of_the_forward_kernels(case, tmp_path):
    """A thread has whole channels: no value crosses threads, and B and C arrive by loads of four floats."""
    kernel = gpu_compile.compiled(case, HOPPER, tmp_path)
    shuffles = kernel.asm["ptx"].count("shfl.sync")
    assert shuffles == 0
    if case.kernel != "scan_carry":
        loads = len(re.findall(r"ld\.global\.v4", kernel.asm["ptx"]))
        assert loads >= case.constants["ROWS"] * (8 if case.kernel == "scan_forward" else 4)
    assert spills(kernel, tmp_path) <= 16


@needs_triton
def test_resources_are_counted_from_machine_code(tmp_path, monkeypatch, capsys):
    """The command that writes the table, for one kernel: figures of both dtypes, and a sentence for an unknown name."""
    out = tmp_path / "found.json"
    monkeypatch.setattr(sys, "argv", ["gpu_compile.py", "conv_silu_slope", "--out", str(out)])
    if not (Path(importlib.util.find_spec("triton").origin).parent / "backends/nvidia/bin/ptxas").exists():
        pytest.skip("no ptxas beside triton")
    assert gpu_compile.main() == 0
    rows = json.loads(out.read_text(encoding="utf-8"))["rows"]
    assert [(x["kernel"], x["dtype"]) for x in rows] == [("conv_silu_slope", d) for d in gpu_compile.DTYPES]
    for x in rows:
        assert x["spilled"] == 0
        assert 32 <= x["registers"] <= 128, "two programs of 8 warps fit a multiprocessor"
        assert x["shared"] > 0
    assert f"| conv_silu_slope | 8 | {rows[0]['registers']} | 0 |" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["gpu_compile.py", "conv"])
    with pytest.raises(SystemExit):
        gpu_compile.main()
    assert "no kernel is called 'conv'; there are add_parts, " in capsys.readouterr().err


@needs_triton
@pytest.mark.parametrize("target", [HOPPER, MI300], ids=["sm_90", "gfx942"])
def test_multiply_and_add_stay_together(target, tmp_path, monkeypatch):
    """Also in releases of Triton that keep them apart unless asked; this is what the next ones do by themselves."""
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "0")
    case = next(case for case in gpu_compile.KERNELS if case.kernel == "add_parts")
    assert gpu_compile.compiled(case, target, tmp_path).metadata.enable_fp_fusion


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("target", [HOPPER, MI300], ids=["sm_90", "gfx942"])
@pytest.mark.parametrize("case", gpu_compile.KERNELS, ids=lambda case: case.label)
def test_kernels_compile_for(target, case, tmp_path):
    kernel = gpu_compile.compiled(case, target, tmp_path)
    if target is HOPPER:
        assert spills(kernel, tmp_path) <= 16
    else:
        assert re.search(r"\.vgpr_spill_count:\s+0\b", kernel.asm["amdgcn"])


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("target", [HOPPER, MI300], ids=["sm_90", "gfx942"])
@pytest.mark.parametrize("name", gpu_compile.BLOCK_KERNELS)
def test_block_kernels_compile_for(target, name, tmp_path):
    for absent in ((), gpu_compile.BLOCK_KERNELS[name]):
        kernel = gpu_compile.compiled(Case(name, {"absent": absent}, gpu_block.warps(name)), target, tmp_path)
        if target is HOPPER:
            assert spills(kernel, tmp_path) == 0
        else:
            assert re.search(r"\.vgpr_spill_count:\s+0\b", kernel.asm["amdgcn"])


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("state", [1, 64, 256])
def test_kernels_compile_for_other_state_sizes(state, tmp_path):
    sizes = {"N": state, "BLOCK_N": state, "absent": ()}
    forward = Case("scan_forward", {"ROWS": 8, "KEEP": True, **sizes}, max(1, state // 64))
    backward = Case("scan_backward", {"ROWS": max(1, min(4, 64 // state)), **sizes}, max(1, state // 16))
    for case in (forward, backward):
        gpu_compile.compiled(case, HOPPER, tmp_path)


def test_reasons_for_an_unusable_backend(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(gpu_load, "find_spec", lambda name: None)
    assert gpu_load.load() == (False, "the package triton is not installed (pip install triton)")
    monkeypatch.setattr(sys, "platform", "win32")
    assert "triton-windows" in gpu_load.load()[1]
    monkeypatch.setattr(gpu_load, "find_spec", lambda name: True)
    monkeypatch.setitem(sys.modules, "triton", SimpleNamespace(__version__="2.3.1"))
    assert "too old" in gpu_load.load()[1]
    monkeypatch.setitem(sys.modules, "triton", None)
    gpu = backend_gpu.Gpu()
    assert not gpu.works
    assert "cannot be imported" in gpu.about
    monkeypatch.setitem(registry.BACKENDS, "gpu", gpu)
    with pytest.raises(RuntimeError, match="'gpu' is not available: triton cannot be imported"):
        torch.ops.vmamba.selective_scan(*make(1, 1, 2, 3, 1), True, [0], "gpu")


def test_import_does_not_start_cuda():
    """Else CUDA_VISIBLE_DEVICES set after it would be ignored, and a forked process could not use the GPU."""
    code = (
        "import torch\n"
        "def started(*a, **k): raise SystemExit('CUDA was started by an import')\n"
        "torch.cuda.is_available = torch.cuda._lazy_init = torch.cuda.get_device_properties = started\n"
        "torch.cuda.device_count = lambda: 1\n"
        "from ultralytics.nn.Addmodules.selective_scan import registry\n"
        "print(registry.get('gpu').works)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not has_triton or "True" in done.stdout


def test_a_device_that_runs_no_kernel_is_refused_with_the_reason(monkeypatch):
    device, gpu = torch.device("cuda", 0), backend_gpu.Gpu()
    monkeypatch.setattr(gpu_load, "interpreted", False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "GeForce GTX 1080")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (6, 1))
    assert gpu._try(device) == "GeForce GTX 1080 is older than compute capability 7.5"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))

    def fails(*_, **__):
        raise RuntimeError("no C\ncompiler")

    monkeypatch.setattr(gpu_scan, "Call", fails)
    monkeypatch.setattr(torch, "ones", lambda *a, device, make=torch.ones: make(*a))
    monkeypatch.setattr(torch, "zeros", lambda *a, device, make=torch.zeros: make(*a))
    why = gpu._try(device)
    assert why.endswith("cannot build or start a kernel for GeForce GTX 1080: RuntimeError: no C compiler")


def on_a_gpu(args):
    """Return stand-ins for tensors on a GPU, of which the choice of a backend sees as much."""
    wide = {"device": torch.device("cuda", 0), "layout": torch.strided, "dtype": torch.float32}
    return [SimpleNamespace(**wide, shape=a.shape, stride=a.stride) for a in args]


def test_a_gpu_without_kernels_is_told_once(monkeypatch):
    told, gpu = [], backend_gpu.Gpu()
    gpu.works, gpu.about = False, "the package triton is not installed (pip install triton)"
    monkeypatch.setattr(registry, "_logged", set())
    monkeypatch.setattr(registry.LOGGER, "warning", told.append)
    monkeypatch.setattr(registry, "BACKENDS", {"gpu": gpu, "chunked": chunked.Chunked()})
    for _ in range(2):
        assert registry.choose("scan", Scan(*on_a_gpu(make(1, 1, 2, 3, 1)))).name == "chunked"
    assert len(told) == 1
    assert "pip install triton" in told[0]


def test_what_is_taken():
    args, gpu = make(1, 1, 4, 5, 3), backend_gpu.Gpu()
    gpu.works = True
    assert registry.why_not(gpu, "scan", Scan(*args)) == "u is torch.strided on cpu: only dense tensors on cuda"
    fake = on_a_gpu(args)
    assert registry.why_not(gpu, "scan", Scan(*fake)) == ""
    fake[2].dtype = torch.bfloat16
    assert registry.why_not(gpu, "scan", Scan(*fake)) == "A is torch.bfloat16: only float32"
    fake[2].dtype, fake[2].shape = torch.float32, (1, 4, 257)
    assert "257 states" in registry.why_not(gpu, "scan", Scan(*fake))
    fake[2].shape = (32, 4, 3)
    assert "32 groups" in registry.why_not(gpu, "scan", Scan(*fake))
    fake[2].shape, fake[0].stride = (1, 4, 3), lambda i=None: (0, 0, 1 << 30, 1) if i is None else 1 << 30
    assert "strides" in registry.why_not(gpu, "scan", Scan(*fake))


def test_tiles_cover_every_length():
    for length in [*range(1, 300), 400, 1600, 2048, 2049, 6400, 25600, 25601]:
        tile, n = gpu_scan.tile_length(length), gpu_scan.num_checkpoints(length)
        assert (n - 1) * tile < length <= n * tile
        assert tile % gpu_scan.FORWARD_ROWS == tile % gpu_scan.LOW_RANK_ROWS == tile % gpu_scan.BACKWARD_ROWS == 0


@pytest.mark.parametrize(
    ("programs", "cost"),
    [(gpu_scan.FORWARD_PROGRAMS, gpu_scan.FORWARD_COST), (gpu_scan.BACKWARD_PROGRAMS, gpu_scan.BACKWARD_COST)],
)
def test_division_of_a_scan(programs, cost):
    for (dim, length), batch in itertools.product(MODEL, (1, 16, 70)):
        tiles, rows = gpu_scan.num_checkpoints(length), batch * 2 * -(-dim // 32)
        segments, per_segment = gpu_scan.divide(rows, tiles, 132, programs, cost)
        assert (segments - 1) * per_segment < tiles <= segments * per_segment
        if rows < 132:  # no device stays half empty
            assert rows * segments >= 132 * gpu_scan.SCHEDULERS or segments == tiles
    assert gpu_scan.divide(132 * programs, 400, 132, programs, cost) == (1, 400), "one full wave needs no dividing"
    assert gpu_scan.divide(132 * programs + 1, 400, 132, programs, 1.2)[0] > 1, "one program more is a second wave"
    assert gpu_scan.divide(1, 400, 0, programs, cost) == gpu_scan.divide(0, 400, 132, programs, cost) == (1, 400)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("rank", [1, 2, 4, 16])
def test_layouts_of_the_block_allow_wide_loads(dtype, rank):
    """Rows of projections begin at multiples of 16 bytes; channels of the convolution's weights are neighbours."""
    args = block_cases.cast(block_cases.make(2, 6, 24, 16, rank, 4, 2, [0, 1]), dtype)
    call = gpu_block._Call(Block(**{**args, "out_w": None, "out_b": None}, orders=[0, 1]))
    rows = call.projections(2)
    assert rows.shape == (2, 2, 6, rank + 32)
    assert rows.stride(3) == 1
    assert all(rows.stride(i) * rows.element_size() % 16 == 0 for i in range(3))
    assert torch.equal(call.conv_w, args["conv_w"])
    assert call.conv_w.stride() == (4 * 24, 1, 24)


class _NoDevice:
    """Stands in for Triton's driver: kernels are compiled, and a launch is written down in place of being made."""

    index = 1000  # no device's: what Triton keeps for it is nobody else's

    def __init__(self, launches: list) -> None:
        self.launches, self.utils = launches, self

    def get_current_device(self) -> int:
        return self.index

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self):
        from triton.backends.compiler import GPUTarget

        return GPUTarget(*HOPPER)

    def get_device_properties(self, device: int) -> dict:
        return {"max_shared_mem": 1 << 17}

    def load_binary(self, name: str, binary: bytes, *args) -> tuple:
        import triton

        several = (3, 4) <= tuple(map(int, triton.__version__.split(".")[:2]))
        return (None, name, 32, 0, 1024) if several else (None, name, 32, 0)  # no module, which nobody unloads

    def launcher_cls(self, source, metadata):
        # grid, stream, function, packed metadata, metadata of the launch, two hooks, and then the kernel's arguments
        return lambda *args: self.launches.append(((args[4], metadata.hash), args[:3], args[9:]))


@needs_triton
def test_a_launch_like_an_earlier_one_is_the_same(tmp_path, monkeypatch):
    """What starts without Triton's look at its arguments is the kernel, and the arguments, that Triton would take."""
    from triton.runtime import driver

    from ultralytics.nn.Addmodules.selective_scan.backends.gpu import block_kernels, kernels

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(gpu_load, "kernels", kernels)
    monkeypatch.setattr(gpu_load, "block_kernels", block_kernels)
    monkeypatch.setattr(gpu_launch, "launches", {})
    monkeypatch.setattr(gpu_scan, "processors", lambda device: 132)
    launches: list = []
    calls = []
    for dtype, length in ((torch.bfloat16, 100), (torch.bfloat16, 40)):
        args = make(1, 2, 40, length, 4, dtype=dtype)
        skewed = torch.empty(args[0].numel() + 1, dtype=dtype)[1:].as_strided(args[0].shape, args[0].stride(), 1)
        assert skewed.data_ptr() % 16, "this view starts between two places where Triton loads 16 bytes"
        calls += [(args, [0, 1]), (args, [1, 0]), ([skewed, *args[1:]], [0, 1])]

    def launched(args: list, orders: list[int]) -> list:
        """Return each launch's kernel, grid and arguments; of working memory, which is new each time, its look."""
        launches.clear()
        out, states = gpu_scan.scan(Scan(*args, True, orders), True)
        gpu_scan.scan_backward(out, Scan(*args, True, orders), states)
        return [
            (*launch, [(x.shape, x.stride(), x.dtype) if isinstance(x, torch.Tensor) else x for x in given])
            for *launch, given in launches
        ]

    monkeypatch.setattr(driver, "_active" if hasattr(driver, "_active") else "active", _NoDevice(launches))
    want = []
    for call in calls:
        gpu_launch.launches.clear()
        want.append(launched(*call))
    assert len(want[0]) == 4 + 6
    assert [x[0] for x in want[0]] != [x[0] for x in want[2]], "alignment makes another kernel"
    gpu_launch.launches.clear()
    assert [launched(*call) for call in calls] == want
    known = len(gpu_launch.launches)
    assert [launched(*call) for call in calls] == want
    assert len(gpu_launch.launches) == known, "all of them had been there"
    monkeypatch.setattr(gpu_launch, "MAX_LAUNCHES", known)
    launched(make(1, 2, 40, 41, 4), [0, 1])
    assert len(gpu_launch.launches) <= 10, "what is remembered is bounded"
    for name in {x[0][0] for x in want[0]}:
        getattr(kernels, name).device_caches.pop(_NoDevice.index)


# The adapter to mamba-ssm, without its compiled module ----------------------------------------------------------------


def peer_fwd(u, delta, A, B, C, D, z, bias, softplus):
    """What `selective_scan_cuda.fwd` takes and returns, computed by the reference."""
    batch, dim, length = u.shape
    assert all(t.stride(-1) == 1 for t in (u, delta, B, C) if t.shape[-1] > 1)
    assert B.shape == C.shape == (batch, B.shape[1], A.shape[1], length)
    assert all(t is None or t.dtype == torch.float32 and t.is_contiguous() for t in (A, D, bias))
    chunks = -(-length // mamba_ssm.CHUNK)
    kept = torch.full((batch, dim, chunks, 2 * A.shape[1]), float("nan"))
    run = [t.float() for t in (u, delta, A, B, C)]
    for c in range(chunks):
        end = min(length, (c + 1) * mamba_ssm.CHUNK)
        cut = [t if i == 2 else t[..., :end] for i, t in enumerate(run)]
        kept[:, :, c, 1::2] = selective_scan_ref(*cut, None, None, bias, softplus, True)[1]
    out = selective_scan_ref(*run, D, None, bias, softplus)
    result = [out.to(u.dtype), kept]
    return result if z is None else [*result, (out * torch.nn.functional.silu(z.float())).to(u.dtype)]


def peer_bwd(u, delta, A, B, C, D, z, bias, dout, kept, out, dz, softplus, recompute_out_z):
    """What `selective_scan_cuda.bwd` takes and returns."""
    assert kept.shape == (*u.shape[:2], -(-u.shape[-1] // mamba_ssm.CHUNK), 2 * A.shape[1])
    assert kept.is_contiguous()
    assert (z is None) == (out is None)
    assert dz is None
    assert not recompute_out_z
    want = peer_fwd(u, delta, A, B, C, D, None, bias, softplus)[1][..., 1::2]
    torch.testing.assert_close(kept[..., 1::2], want)
    leaves = [None if t is None else t.float().detach().requires_grad_() for t in (u, delta, A, B, C, D, z, bias)]
    with torch.enable_grad():
        y = selective_scan_ref(*leaves, softplus)
        found = iter(torch.autograd.grad(y, [t for t in leaves if t is not None], dout.float()))
    du, ddelta, dA, dB, dC, dD, dz, dbias = (None if t is None else next(found) for t in leaves)
    narrow = [du.to(u.dtype), ddelta.to(u.dtype), dA, dB.to(u.dtype), dC.to(u.dtype), dD, dbias]
    return narrow if z is None else [*narrow, dz.to(u.dtype)]


@pytest.fixture
def peer(monkeypatch):
    """Return the adapter with the reference in the place of mamba-ssm's module, on the CPU."""
    adapter = mamba_ssm.MambaSsm()
    adapter.kernels, adapter.works, adapter.about = SimpleNamespace(fwd=peer_fwd, bwd=peer_bwd), True, "stand-in"
    adapter.device = "cpu"
    monkeypatch.setattr(mamba_ssm, "CHUNK", 8)
    monkeypatch.setitem(registry.BACKENDS, "mamba_ssm", adapter)
    return adapter


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("options", [{}, {"gate": False}, {"gate": False, "skip": False, "bias": False}], ids=str)
@pytest.mark.parametrize("last", [True, False], ids=["channels_last", "tokens_last"])
def test_adapter_against_the_loop(peer, dtype, options, last):
    args = make(2, 2, 5, 19, 3, dtype=dtype, last=last, **options)
    dout = torch.randn_like(args[0])
    out, states = scan_cases.forward(peer, args, True, [0, 1])
    assert states.shape == (2, 2, peer.num_checkpoints(19), 5, 3)
    assert out.stride() == args[0].stride()
    close(args, dout, True, [0, 1], scan_cases.run(peer, args, dout, True, [0, 1]))
    short, final = scan_cases.forward(peer, args, True, [0, 1], keep=False)
    assert torch.equal(short, out)
    assert torch.equal(final, states[:, :, -1:])


def test_adapter_is_never_chosen(peer):
    s = Scan(*make(1, 1, 4, 5, 3), True, [1])
    assert registry.choose("scan", s).name != "mamba_ssm"
    with engine.use_backend("mamba_ssm"):
        assert registry.choose("scan", s).name == "mamba_ssm"
        torch.testing.assert_close(op.scan(s)[0], loop(*s[:8], True, [1])[0], rtol=1e-5, atol=1e-5)
    assert "bfloat16" in registry.why_not(peer, "scan", s._replace(B=s.B.bfloat16()))


@pytest.mark.skipif(registry.get("mamba_ssm").works, reason="mamba-ssm is here")
def test_adapter_says_why_it_is_not_there():
    args = make(1, 1, 4, 5, 3)
    with engine.use_backend("mamba_ssm"), pytest.raises(RuntimeError, match="mamba_ssm: "):
        registry.choose("scan", Scan(*args))
    with pytest.raises(RuntimeError, match="'mamba_ssm' is not available"):
        torch.ops.vmamba.selective_scan(*args, True, [0], "mamba_ssm")


# The benchmark --------------------------------------------------------------------------------------------------------


def test_peers_are_built_without_what_is_not_measured(tmp_path):
    folder = tmp_path / "source/csrc/selective_scan"
    folder.mkdir(parents=True)
    (folder / "selective_scan.cpp").write_text("// dispatch", encoding="utf-8")
    (folder / "selective_scan_bwd_fp32_complex.cu").write_text("template void f<float, complex_t>();", encoding="utf-8")
    (folder / "selective_scan_fwd_fp32.cu").write_text(
        "template void f<float, float>();\ntemplate void f<float, complex_t>();", encoding="utf-8"
    )
    name, files = gpu_peer.sources(tmp_path / "source", tmp_path / "into")
    assert name == "selective_scan_cuda"
    assert [p.name for p in files] == ["selective_scan.cpp", "selective_scan_fwd_fp32.cu", "not_measured.cpp"]
    assert "complex_t" not in (tmp_path / "into/selective_scan_fwd_fp32.cu").read_text(encoding="utf-8")
    assert (tmp_path / "into/not_measured.cpp").read_text(encoding="utf-8").count("TORCH_CHECK(false") == 6

    (tmp_path / "conv/csrc").mkdir(parents=True)
    (tmp_path / "conv/csrc/causal_conv1d.cpp").write_text("// all", encoding="utf-8")
    types = "float", "at::Half", "at::BFloat16"
    made = [f"template void causal_conv1d_fwd_cuda<{i}, {w}>();" for w in types for i in types]
    made += [x.replace("_fwd", "_channellast_fwd") for x in made]
    (tmp_path / "conv/csrc/causal_conv1d_fwd.cu").write_text("\n".join(["// kernel", *made]), encoding="utf-8")
    (tmp_path / "conv/csrc/causal_conv1d_update.cu").write_text(
        "template void causal_conv1d_update_cuda<float, float>();", encoding="utf-8"
    )
    name, files = gpu_peer.sources(tmp_path / "conv", tmp_path / "into_conv")
    assert name == "causal_conv1d_cuda"
    assert [p.name for p in files] == [
        "causal_conv1d.cpp", *(f"causal_conv1d_fwd_{i}.cu" for i in range(5)), "not_measured.cpp",
    ]  # fmt: skip
    assert files[1].read_text(encoding="utf-8") == f"// kernel\n{made[0]}\n", (
        "one instance a file, to be compiled side by side"
    )
    missing = files[-1].read_text(encoding="utf-8")
    assert missing.count("template <> void causal_conv1d_fwd_cuda<") == 4, "and none of them twice"
    assert missing.count("TORCH_CHECK(false") == 5 * 9 - len(gpu_peer.MEASURED_CONVS)
    with pytest.raises(SystemExit, match="holds neither"):
        gpu_peer.sources(tmp_path, tmp_path / "into")


def conv_of(x, w, b):
    """What causal_conv1d computes: (B, D, L) -> same, with SiLU."""
    length, taps = x.shape[-1], w.shape[1]
    y = torch.nn.functional.conv1d(x, w[:, None], b, padding=taps - 1, groups=w.shape[0])[..., :length]
    return torch.nn.functional.silu(y)


def conv_bwd(x, w, b, dout, seq, initial, dfinal, dx, dw, db, dinitial, silu):
    """What `causal_conv1d_cuda.causal_conv1d_bwd` takes and fills."""
    assert silu
    assert dw.dtype == db.dtype == torch.float32
    leaves = [t.detach().requires_grad_() for t in (x, w, b)]
    with torch.enable_grad():
        grads = torch.autograd.grad(conv_of(*leaves), leaves, dout)
    for target, grad in zip((dx, dw, db), grads):
        target.copy_(grad)


def test_the_recipes_module_in_the_benchmark_computes_what_ours_does(monkeypatch):
    """On stand-ins for the peers' compiled modules: outputs and every gradient."""

    def scan_bwd(u, delta, A, B, C, D, z, bias, dout, kept, out, dz, softplus, recompute_out_z):
        *grads, gate = peer_bwd(u, delta, A, B, C, D, z, bias, dout, kept, out, None, softplus, recompute_out_z)
        dz.copy_(gate)
        return [*grads, dz]

    def conv_fwd(x, w, b, seq, initial, out, final, silu):
        out.copy_(conv_of(x, w, b))

    stand_ins = {
        "selective_scan_cuda": SimpleNamespace(fwd=peer_fwd, bwd=scan_bwd),
        "causal_conv1d_cuda": SimpleNamespace(causal_conv1d_fwd=conv_fwd, causal_conv1d_bwd=conv_bwd),
    }
    monkeypatch.setattr(gpu_peer, "import_module", stand_ins.get)
    monkeypatch.setattr(mamba_ssm, "CHUNK", 8)
    block, x = Mamba(6, d_state=3, bimamba_type="v2"), torch.randn(2, 11, 6, requires_grad=True)
    leaves = [x, *block.parameters()]
    runs = []
    for _ in range(2):
        out = block(x)
        runs.append([out, *torch.autograd.grad(out.square().sum(), leaves)])
        gpu_peer.as_recipe(block)
    for ours, theirs in zip(*runs):
        torch.testing.assert_close(theirs, ours, rtol=1e-3, atol=1e-5)


@needs_triton
@pytest.mark.slow
def test_benchmark_runs():
    done = subprocess.run(
        [sys.executable, "benchmarks/gpu.py", "--dry-run"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "TRITON_INTERPRET": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"1, 5, 6 \| bfloat16 \| gpu \| \d", done.stdout), done.stdout
    assert "VMamba-yolov8n | train" in done.stdout


# On a GPU -------------------------------------------------------------------------------------------------------------

ON_GPU = ["gpu", "mamba_ssm"]

# Hardware's own exponentials are less exact than the loop's, by up to 2 units in the last place for Triton's exp2, and
# by 2 + |1.173 x| for the exp that mamba-ssm's flag -use_fast_math asks for. Source: CUDA C++ Programming Guide,
# "Mathematical Functions".
EXPONENTIALS = {
    "gpu": lambda x: torch.exp(x) * (1 + signs(x) * 2**-22),
    "mamba_ssm": lambda x: torch.exp(x) * (1 + signs(x) * (2 + 1.173 * x.detach().abs()) * 2**-23),
}


def signs(x: torch.Tensor) -> torch.Tensor:
    """Return as many random signs, the same each time: an error that never cancels would allow too much."""
    return torch.randint(0, 2, x.shape, generator=torch.Generator().manual_seed(0), dtype=x.dtype) * 2 - 1


@pytest.fixture
def backend(request):
    """Return a GPU backend, or skip with the reason why it cannot run here."""
    found = registry.get(request.param)
    if not found.works:
        pytest.skip(f"{request.param}: {found.about}")
    torch.manual_seed(0)
    return found


def on_gpu(args):
    return [None if x is None else x.cuda() for x in args]


def run(backend, args, dout, softplus, orders):
    """Return output, last state and gradients, back on the CPU."""
    results = scan_cases.run(backend, on_gpu(args), dout.cuda(), softplus, orders)
    return [None if x is None else x.cpu() for x in results]


GRID = [
    (2, 2, 32, 67, 16, [0, 1], True, {}),
    (1, 1, 16, 1, 16, [0], True, {}),
    (1, 2, 24, 31, 5, [1, 0], True, {"gate": False}),
    (2, 1, 17, 37, 64, [1], False, {"bias": False}),
    (1, 4, 3, 33, 1, [0, 1, 0, 1], True, {"skip": False}),
    (1, 1, 40, 64, 8, [0], True, {"gate": False, "skip": False, "bias": False}),
    (1, 2, 7, 19, 256, [1, 1], True, {}),
    (70, 1, 66, 45, 17, [0], True, {}),
]


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ON_GPU, indirect=True)
@pytest.mark.parametrize("last", [True, False], ids=["channels_last", "tokens_last"])
@pytest.mark.parametrize("case", GRID, ids=lambda c: "-".join(map(str, c[:5])))
def test_gpu_forward_and_gradients(backend, case, last):
    *shape, orders, softplus, options = case
    runs = []
    for seed in range(3):
        args = make(*shape, last=last, seed=seed, **options)
        if not softplus:
            args[1] = args[1].abs()
        dout = torch.randn_like(args[0])
        runs.append(
            errors(args, dout, softplus, orders, run(backend, args, dout, softplus, orders), EXPONENTIALS[backend.name])
        )
    hold(*runs)


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ON_GPU, indirect=True)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("dim", "length"), MODEL)
def test_gpu_lengths_of_the_model(backend, dim, length, dtype):
    """All of a stage's channels at its own length, both directions, at a step size with a long memory."""
    args = make(1, 2, dim, length, 16, dtype=dtype)
    args[1] -= 4
    dout = torch.randn_like(args[0])
    ours = run(backend, args, dout, True, [0, 1])
    # The float64 loop keeps a state for every token: 32 channels of it are enough, but dB and dC need them all.
    keep = [args[0][:, :, :32], args[1][:, :, :32], args[2][:, :32], *args[3:5], args[5][:, :32]]
    keep += [args[6][:, :, :32], args[7][:, :32]]
    some = run(backend, keep, dout[:, :, :32], True, [0, 1])
    for x, y in zip(ours, some):
        if x.shape != y.shape:
            part = x[:, :, :32] if x.dim() == 4 and x.shape[2] == dim else x[:, :32]
            torch.testing.assert_close(part, y, rtol=1e-4, atol=1e-4)
    hold(errors(keep, dout[:, :, :32], True, [0, 1], some, EXPONENTIALS[backend.name]))


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["gpu"], indirect=True)
@pytest.mark.parametrize(("dim", "length"), MODEL)
def test_gpu_gradients_are_the_same_bits_every_time(backend, dim, length):
    args = make(4, 2, dim, length, 16, dtype=torch.bfloat16)
    dout = torch.randn_like(args[0])
    first = run(backend, args, dout, True, [0, 1])
    for _ in range(3):
        for x, y in zip(run(backend, args, dout, True, [0, 1]), first):
            assert torch.equal(x, y)


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["gpu"], indirect=True)
def test_gpu_division_does_not_change_the_result(backend, monkeypatch):
    args = make(2, 2, 40, 1000, 16)
    dout = torch.randn_like(args[0])
    whole, parts = [], []
    for results, processors in ((whole, 0), (parts, 1000)):
        monkeypatch.setattr(gpu_scan, "processors", lambda device, n=processors: n)
        results += run(backend, args, dout, True, [0, 1])
    for x, y in zip(whole, parts):  # sums over all tokens cancel: what is left may be small beside their rounding
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-5 * y.abs().max().item())


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["gpu"], indirect=True)
def test_gpu_is_chosen_and_passes_opcheck(backend):
    args = [x.requires_grad_() for x in on_gpu(make(1, 2, 8, 21, 4))]
    s = Scan(*args, True, [0, 1])
    assert registry.choose("scan", s).name == "gpu"
    torch.library.opcheck(torch.ops.vmamba.selective_scan.default, (*s, "gpu"))
    out, states = op.scan(s, "gpu")
    torch.library.opcheck(
        torch.ops.vmamba.selective_scan_backward.default,
        (out.detach(), *(a.detach() for a in args), states, True, [0, 1], "gpu"),
    )


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["gpu"], indirect=True)
@pytest.mark.parametrize("case", block_cases.CASES, ids=lambda c: "-".join(map(str, c[:7])))
def test_gpu_block_and_every_gradient(backend, case):
    *sizes, orders = case
    args = block_cases.make(*sizes, orders)
    truth = block_cases.run(args, orders, "reference")
    ours = {n: None if t is None else t.cuda() for n, t in block_cases.cast(args, torch.float32).items()}
    torch.backends.cuda.matmul.allow_tf32 = False
    dout = torch.randn(truth["out"].shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    for name, x in block_cases.run(ours, orders, "gpu", dout=dout.cuda()).items():
        assert rms_error(x.cpu(), truth[name]) < block_cases.FLOAT32, name


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["gpu"], indirect=True)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("dim", "length"), MODEL)
def test_gpu_block_against_its_composition(backend, dim, length, dtype, monkeypatch):
    """At the model's sizes: close to PyTorch's operators around the same scan, in less memory."""
    torch.manual_seed(0)
    block, x = Mamba(dim // 2, bimamba_type="v2").cuda(), torch.randn(4, length, dim // 2, device="cuda")
    found = []
    for whole in (True, False):
        if not whole:
            monkeypatch.setattr(backend, "fuses", lambda b: False)
        block.zero_grad()
        torch.cuda.reset_peak_memory_stats()
        with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
            # Scaled as by a GradScaler: gradients of a mean over so many numbers are too small for float16.
            (block(x).float().square().mean() * 65536).backward()
        peak = torch.cuda.max_memory_allocated()
        found.append(([p.grad.cpu() for p in block.parameters()], peak))
    (ours, least), (theirs, most) = found
    for x, y in zip(ours, theirs):
        assert rms_error(x, y.double()) < (1e-3 if dtype == torch.float32 else 5e-2)
    assert least < most


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["gpu"], indirect=True)
@pytest.mark.parametrize("amp", [False, True], ids=["float32", "autocast"])
def test_gpu_compiled_block(backend, amp):
    """A whole block, forward and backward in one graph, with and without autocast."""
    torch.manual_seed(0)
    block, x = Mamba(32, bimamba_type="v2").cuda(), torch.randn(2, 400, 32, device="cuda")

    def step(fn):
        block.zero_grad()
        with torch.autocast("cuda", torch.bfloat16, enabled=amp):
            fn(x).float().square().mean().backward()
        return [p.grad.clone() for p in block.parameters()]

    bound = 5e-2 if amp else 1e-3
    for a, b in zip(step(block), step(torch.compile(block))):
        torch.testing.assert_close(a, b, rtol=bound, atol=bound * a.abs().max().item())


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["gpu"], indirect=True)
def test_gpu_graph_replays(backend):
    args = on_gpu(make(1, 2, 64, 1600, 16))
    dout = torch.randn_like(args[0])

    def step():
        out, states = scan_cases.forward(backend, args, True, [0, 1])
        return [out, *scan_cases.backward(backend, dout, args, states, True, [0, 1])]

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()  # kernels are compiled here
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for x in args[:2]:
        x.copy_(torch.randn_like(x))
    graph.replay()
    torch.cuda.synchronize()
    for x, y in zip(captured, step()):
        assert torch.equal(x, y)


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["gpu"], indirect=True)
def test_gpu_other_device_than_the_current_one(backend):
    if torch.cuda.device_count() < 2:
        pytest.skip("one device")
    args = [None if x is None else x.to("cuda:1") for x in make(1, 2, 8, 40, 4)]
    out, _ = scan_cases.forward(backend, args, True, [0, 1])
    torch.testing.assert_close(out.cpu(), loop(*(x.cpu() for x in args), True, [0, 1])[0], rtol=1e-4, atol=1e-5)
