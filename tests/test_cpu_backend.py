# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""The C++ CPU backend alone, through its own interface, against a sequential loop in float64."""

from __future__ import annotations

import functools
import itertools
import os
import re
import shutil
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests import scan_cases
from tests.scan_cases import NAMES, TOLERANCE, close, errors, hold, layouts, loop, make
from ultralytics.nn.Addmodules.selective_scan import registry
from ultralytics.nn.Addmodules.selective_scan.backends import cpu as cpu_module
from ultralytics.nn.Addmodules.selective_scan.contract import Scan
from ultralytics.nn.Addmodules.selective_scan.proof import oracle, rms_error

PACKAGE = Path(__file__).resolve().parents[1] / "ultralytics/nn/Addmodules/selective_scan/backends"
SOURCES = sorted((PACKAGE / "csrc").glob("*.cpp"))
FLAGS = ["-std=c++17", "-fno-math-errno", "-fvisibility=hidden", "-fPIC"]
cpu = cpu_module.Cpu()  # apart from the one that layers use


def compiler() -> str:
    """Return a C++ compiler or skip."""
    found = next(filter(None, map(shutil.which, ("g++", "clang++", "c++"))), None)
    if not found:
        pytest.skip("no C++ compiler")
    return found


def compile_all(
    folder: Path, flags: list[str], link: list[str], extra: tuple[Path, ...] = ()
) -> subprocess.CompletedProcess:
    """Compile every source on its own, all at once, and link them; return the first failure or the link step."""
    cxx, jobs, objects = compiler(), [], []
    for source in (*SOURCES, *extra):
        objects.append(folder / f"{source.stem}.o")
        command = [cxx, *flags, f"-I{PACKAGE / 'csrc'}", "-c", str(source), "-o", str(objects[-1])]
        jobs.append((command, subprocess.Popen(command, stderr=subprocess.PIPE, text=True)))
    results = [(command, job.communicate()[1], job.returncode) for command, job in jobs]
    for command, said, code in results:
        if code:
            return subprocess.CompletedProcess(command, code, stderr=said)
    return subprocess.run([cxx, *flags, *link, *map(str, objects)], capture_output=True, text=True, check=False)


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the installed library if it is no older than its sources, else one built here."""
    installed = cpu.find_library()
    newest = max(p.stat().st_mtime for p in (PACKAGE / "csrc").iterdir())
    if installed and installed.stat().st_mtime >= newest:
        return installed
    folder = tmp_path_factory.mktemp("cpu")
    built = compile_all(folder, [*FLAGS, "-O2"], ["-shared", "-pthread", "-o", str(folder / "_cpu.so")])
    assert built.returncode == 0, built.stderr
    return folder / "_cpu.so"


@pytest.fixture(autouse=True)
def _backend(library: Path, poisoned_memory: None, threads_put_back: None):
    """Load the library, restore instruction set and threads afterwards, and poison fresh memory with NaN."""
    assert cpu.load(library), cpu.about
    torch.manual_seed(0)
    yield
    cpu.load(library)
    cpu.set_isa("auto")


@pytest.fixture(params=["avx512", "avx2", "plain"])
def isa(request: pytest.FixtureRequest) -> str:
    """Force each instruction set that this CPU has."""
    try:
        return cpu.set_isa(request.param)
    except ValueError as e:
        pytest.skip(str(e))


forward, backward, run = (functools.partial(f, cpu) for f in (scan_cases.forward, scan_cases.backward, scan_cases.run))


def rms(x: torch.Tensor) -> float:
    return x.double().square().mean().sqrt().item()


def measured(args, dout, softplus, orders) -> dict[str, tuple[torch.dtype, float, float]]:
    """Return the errors of a run of the backend."""
    return errors(args, dout, softplus, orders, run(args, dout, softplus, orders))


def run_close(args, dout, softplus, orders) -> None:
    """Hold a run of the backend with a fixed bound."""
    close(args, dout, softplus, orders, run(args, dout, softplus, orders))


SEEDS = 12  # with 3 the mean of one result was up to 1.2 times its bound on a Xeon, and below it on an EPYC: luck

# (batch, K, D, L, N, orders, softplus, options)
CASES = [
    (2, 2, 32, 67, 16, [0, 1], True, {}),
    (1, 1, 16, 1, 16, [0], True, {}),
    (1, 2, 24, 31, 5, [1, 0], True, {"gate": False}),
    (2, 1, 17, 37, 64, [1], False, {"bias": False}),
    (1, 4, 3, 33, 1, [0, 1, 0, 1], True, {"skip": False}),
    (1, 1, 40, 64, 8, [0], True, {"gate": False, "skip": False, "bias": False}),
    (1, 2, 7, 19, 256, [1, 1], True, {}),
    (3, 1, 48, 97, 12, [0], True, {}),
    (1, 2, 21, 59, 3, [1, 0], False, {"gate": False, "bias": False}),
    (1, 2, 66, 45, 17, [0, 0], True, {}),
]


@pytest.mark.parametrize("case", CASES, ids=lambda c: "-".join(map(str, c[:5])))
@pytest.mark.parametrize("last", [True, False], ids=["channels_last", "tokens_last"])
def test_forward_and_gradients(isa, case, last):
    *shape, orders, softplus, options = case
    runs = []
    for seed in range(SEEDS):
        args = make(*shape, last=last, seed=seed, **options)
        if not softplus:
            args[1] = args[1].abs()
        runs.append(measured(args, torch.randn_like(args[0]), softplus, orders))
    hold(*runs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("bc", [None, torch.float32], ids=["same", "float32"])
@pytest.mark.parametrize("last", [True, False], ids=["channels_last", "tokens_last"])
def test_low_precision(isa, dtype, bc, last):
    wide, runs = torch.float32, []
    for seed in range(SEEDS):
        args = make(2, 2, 21, 43, 16, dtype=dtype, bc=bc, last=last, seed=seed)
        dout = torch.randn_like(args[0])
        results = run(args, dout, True, [0, 1])
        want = [dtype, wide, dtype, dtype, wide, bc or dtype, bc or dtype, wide, dtype, wide]
        assert [x.dtype for x in results] == want
        runs.append(errors(args, dout, True, [0, 1], results))
    hold(*runs)


@pytest.mark.parametrize("length", [400, 1600, pytest.param(6400, marks=pytest.mark.slow)])
def test_lengths_of_the_model(length):
    runs = []
    for seed in range(2):
        args = make(1, 2, 18, length, 2, seed=seed)
        args[1] -= 4  # slow decay: a long memory
        runs.append(measured(args, torch.randn_like(args[0]), True, [0, 1]))
    hold(*runs)


def test_longest_of_the_model():
    args = make(1, 1, 16, 25600, 1, gate=False)
    args[1] -= 4
    out, states = forward(args, True, [0])
    exact, last = loop(*[None if x is None else x.double() for x in args], True, [0])
    plain, _ = loop(*args, True, [0])
    assert rms_error(out, exact) <= TOLERANCE[torch.float32] * rms_error(plain, exact)
    assert states.shape == (1, 1, cpu.num_checkpoints(25600), 16, 1)
    torch.testing.assert_close(states[:, :, -1].double(), last, rtol=1e-5, atol=1e-6)


def test_every_layout_gives_the_same_bits(isa):
    args = make(2, 2, 37, 41, 6)
    dout = torch.randn_like(args[0])
    want = run(args, dout, True, [0, 1])
    for other in zip(*(layouts(args[i]) for i in (0, 1, 3, 4, 6))):
        moved = list(args)
        for i, x in zip((0, 1, 3, 4, 6), other):
            moved[i] = x
        moved[2] = args[2].permute(2, 0, 1).contiguous().permute(1, 2, 0)
        moved[5] = torch.stack([args[5], args[5]], -1)[..., 0]
        for name, x, y in zip(NAMES, run(moved, other[0].clone() * 0 + dout, True, [0, 1]), want):
            assert torch.equal(x, y), name


def test_expanded_inputs(isa):
    args = make(2, 1, 20, 23, 16)
    wide = [x.expand(-1, 4, -1, -1) if i in (0, 3, 4, 6) else x for i, x in enumerate(args)]
    wide[1] = args[1].repeat(1, 4, 1, 1)
    wide[2], wide[5], wide[7] = (args[i].expand(4, *args[i].shape[1:]) for i in (2, 5, 7))
    results = run(wide, torch.randn(2, 4, 20, 23), True, [0, 1, 0, 1])
    assert all(x.stride(i) != 0 for x in results for i in range(x.dim()))
    run_close(wide, torch.ones(()).expand(2, 4, 20, 23), True, [0, 1, 0, 1])


def test_output_keeps_a_dense_layout():
    for last in (True, False):
        args = make(2, 2, 8, 9, 4, last=last)
        out, _ = forward(args, True, [0, 1])
        assert out.stride() == args[0].stride()
    args = [x.expand(-1, 2, -1, -1) if x is not None and x.dim() == 4 else x for x in make(1, 1, 8, 9, 4)]
    args[2], args[5], args[7] = (x.repeat(2, *[1] * (x.dim() - 1)) for x in (args[2], args[5], args[7]))
    assert forward(args, True, [0, 1])[0].stride() == (2 * 8 * 9, 8 * 9, 1, 8)


def test_checkpoints_can_be_left_out(isa):
    args = make(2, 2, 19, 100, 16)
    out, states = forward(args, True, [0, 1])
    short, last = forward(args, True, [0, 1], keep=False)
    assert states.shape == (2, 2, cpu.num_checkpoints(100), 19, 16)
    assert last.shape == (2, 2, 1, 19, 16)
    assert torch.equal(out, short)
    assert torch.equal(states[:, :, -1:], last)
    for c in range(states.shape[2]):  # each checkpoint is the last state of a shorter scan
        cut = [x[..., : 32 * (c + 1)] if x is not None and x.dim() == 4 else x for x in args]
        assert torch.equal(forward(cut, True, [0, 0])[1][:, 0, -1], states[:, 0, c])


# ---------------------------------------------------------------------------------------------------- extreme values


def test_strong_decay_underflows_to_zero(isa):
    args = make(1, 1, 20, 50, 16)
    args[2] = args[2] * torch.logspace(0, 8, 16)
    args[1] = args[1] * 20
    run_close(args, torch.randn_like(args[0]), True, [0])


def test_decaying_to_subnormals_is_fast_and_leaves_the_mode_alone(isa):
    args = make(1, 1, 16, 3000, 16, gate=False, skip=False, bias=False)
    args[0][..., 1:] = 0  # one impulse, then a long decay through the subnormal numbers
    args[1] = args[1] * 0 + 0.05
    args[2] = -torch.ones_like(args[2])
    out, states = forward(args, False, [0])
    assert (states[:, :, -1] == 0).all()
    assert out.isfinite().all()
    subnormal = torch.tensor([1e-40])
    assert (subnormal * 1.5).item() > 0


@pytest.mark.parametrize("softplus", [True, False])
def test_overflow_and_special_inputs_as_in_the_loop(isa, softplus):
    args = make(1, 1, 40, 70, 16, bias=False)
    for i in (0, 1, 3, 4):  # nothing cancels, or the float32 loop itself would be off by more than is allowed here
        args[i] = args[i].abs()
    clean = forward(args, softplus, [0])[0]
    spots = ((0, 3, float("inf")), (0, 20, float("nan")), (1, 5, float("nan")), (1, 22, float("inf")), (1, 36, -3e38))
    for i, channel, value in spots:
        args[i][0, 0, channel, 33] = value
    args[2][0, 9] = 5.0  # growth: the state overflows
    args[2][0, 10] = 0.0
    args[2][0, 11] = -float("inf")
    args[6][0, 0, 12, 30] = float("inf")
    args[6][0, 0, 13, 30] = -200.0
    got, states = forward(args, softplus, [0])
    want, last = loop(*args, softplus, [0])
    for x, w in ((got, want), (states[:, :, -1], last)):
        # Which of inf and NaN an overflowing channel shows depends on rounding; that it is not finite does not.
        assert torch.equal(x.isfinite(), w.isfinite())
        torch.testing.assert_close(x[w.isfinite()], w[w.isfinite()], rtol=2e-5, atol=1e-5)
    untouched = [c for c in range(40) if c not in (3, 5, 9, 10, 11, 12, 13, 20, 22, 36)]
    # Not the same bits: a tile with such values takes the clamped exponential for all its channels.
    torch.testing.assert_close(got[:, :, untouched], clean[:, :, untouched], rtol=2e-6, atol=2e-6)
    grads = backward(torch.ones_like(got), args, states, softplus, [0])
    assert grads[0][:, :, untouched].isfinite().all()


def test_every_nan_in_a_shows(isa):
    """Also one whose lowest bits the index arithmetic of the exponential would take for an exponent."""
    for bits in (0x7FC00000, 0x7FC00001, 0x7FC000FF, -0x3FFF01):
        args = make(1, 1, 24, 40, 4)
        args[2][0, 5, 1] = torch.tensor(bits, dtype=torch.int32).view(torch.float32)
        out, _ = forward(args, True, [0])
        assert out[0, 0, 5].isnan().all()
        assert out[0, 0, :5].isfinite().all()


def test_zeros(isa):
    args = [None if x is None else torch.zeros_like(x) for x in make(1, 2, 18, 35, 5)]
    results = run(args, torch.zeros(1, 2, 18, 35), True, [0, 1])
    assert all((x == 0).all() for x in results)


@pytest.mark.parametrize("shift", [-100.0, -30.0, -8.0, 8.0, 60.0, 3e4])
def test_softplus_far_out(isa, shift):
    args = make(1, 1, 16, 4, 4, bias=False)
    args[1] = args[1] + shift
    if shift > 0:
        args[2] = args[2] / shift
    run_close(args, torch.randn_like(args[0]), True, [0])


def test_exponential_is_exact_to_rounding(isa):
    """One impulse and one decay step show exp(dt * A) itself, over all magnitudes."""
    for low, high in ((0, 0.02), (0.02, 0.3), (0.3, 3), (3, 20), (20, 86)):
        x = torch.linspace(low, high, 4096)
        u, delta = torch.tensor([1.0, 0.0]).expand(1, 1, 4096, 2), torch.stack([torch.ones(4096), x], -1)[None, None]
        ones = torch.ones(1, 1, 1, 2)
        args = [u, delta, -torch.ones(1, 4096, 1), ones, ones, None, None, None]
        got = forward(args, False, [0])[1][0, 0, -1, :, 0].double()
        relative = (got / torch.exp(-x.double()) - 1).abs().max().item()
        assert relative <= 1.5e-7 + 6e-8 * high, f"{relative:.2e} up to {high}"  # the product dt * A is rounded once


def test_softplus_is_exact_to_rounding(isa):
    """The state after one impulse is softplus(delta) itself, over all magnitudes and on both sides of zero."""
    for low, high in ((-86, -20), (-20, -3), (-3, -0.1), (-0.1, 0.1), (0.1, 3), (3, 20), (20, 1000)):
        x = torch.linspace(low, high, 4096)
        ones = torch.ones(1, 1, 1, 1)
        args = [
            ones.expand(1, 1, 4096, 1),
            x[None, None, :, None],
            -torch.ones(1, 4096, 1),
            ones,
            ones,
            None,
            None,
            None,
        ]
        got = forward(args, True, [0])[1][0, 0, -1, :, 0].double()
        exact = torch.log1p(torch.exp(-x.double().abs())) + x.double().clamp(min=0)
        relative = (got / exact - 1).abs().max().item()
        assert relative <= 3e-7, f"{relative:.2e} from {low} to {high}"


# ------------------------------------------------------------------------------------------------------------- threads


@pytest.mark.parametrize("shape", [(2, 2, 64, 130, 16), (1, 1, 48, 300, 16), (3, 2, 20, 70, 5), (1, 2, 64, 257, 64)])
def test_threads_do_not_change_a_bit(shape):
    args = make(*shape)
    dout, orders = torch.randn_like(args[0]), [0, 1][: shape[1]]
    results = []
    for threads in (1, 2, 3, 4):
        torch.set_num_threads(threads)
        results.append(run(args, dout, True, orders)[:2])
    for other in results[1:]:
        for name, x, y in zip(NAMES, other, results[0]):
            assert torch.equal(x, y), name


@pytest.mark.parametrize("threads", [2, 3, 8, 16])
@pytest.mark.parametrize("shape", [(1, 1, 16, 1031, 16), (1, 2, 24, 700, 5), (1, 1, 8, 515, 8)])
def test_few_channels_use_many_threads(isa, shape, threads):
    """Fewer channel blocks than threads: states or tokens are divided, and the same call gives the same bits again."""
    torch.set_num_threads(threads)
    args = make(*shape)
    args[1] -= 3
    dout, orders = torch.randn_like(args[0]), [1, 0][: shape[1]]
    results = run(args, dout, True, orders)
    close(args, dout, True, orders, results)
    for name, x, y in zip(NAMES, run(args, dout, True, orders), results):
        assert torch.equal(x, y), name


def test_calls_from_several_threads():
    torch.set_num_threads(2)
    jobs = [make(1, 2, 16 * (i + 1), 60 + 11 * i, 16, seed=i) for i in range(4)]
    douts = [torch.randn_like(j[0]) for j in jobs]
    want = [run(j, d, True, [0, 1]) for j, d in zip(jobs, douts)]
    failures = []

    def work(i):
        torch.set_num_threads(2)  # per thread in torch
        for _ in range(40):
            got = run(jobs[i], douts[i], True, [0, 1])
            failures.extend(n for n, x, y in zip(NAMES, got, want[i]) if not torch.equal(x, y))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(60)
    assert not any(t.is_alive() for t in threads)
    assert not failures


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_call_after_fork():
    torch.set_num_threads(3)
    args = make(1, 2, 64, 90, 16)
    want = forward(args, True, [0, 1])[0]
    child = os.fork()
    if child == 0:  # only our kernels here: torch's own threads did not survive the fork either
        code = 1
        try:
            got = forward(args, True, [0, 1])[0]
            code = 0 if got.numpy().tobytes() == want.numpy().tobytes() else 2
        finally:
            os._exit(code)
    for _ in range(600):
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            break
        time.sleep(0.05)
    else:
        os.kill(child, 9)
        os.waitpid(child, 0)
        pytest.fail("the child hung")
    assert os.waitstatus_to_exitcode(status) == 0
    assert torch.equal(forward(args, True, [0, 1])[0], want)


# ------------------------------------------------------------------------------------------------------ any small shape


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shape=st.tuples(*(st.integers(1, n) for n in (2, 3, 35, 70, 20))),
    level=st.sampled_from(["avx512", "avx2", "plain"]),
    flags=st.tuples(*[st.booleans()] * 5),
    reverse=st.integers(0, 7),
    threads=st.integers(1, 4),
)
def test_any_small_shape(shape, level, flags, reverse, threads):
    try:
        cpu.set_isa(level)
    except ValueError:
        cpu.set_isa("plain")
    torch.set_num_threads(threads)
    softplus, skip, gate, bias, last = flags
    args = make(*shape, skip=skip, gate=gate, bias=bias, last=last)
    if not softplus:
        args[1] = args[1].abs()
        args[7] = None if args[7] is None else args[7].abs()
    orders = [reverse >> k & 1 for k in range(shape[1])]
    dout = torch.randn_like(args[0])
    ours, exact = run(args, dout, softplus, orders), oracle(args, dout, softplus, orders)
    # One rounding (2^-24) of the same sums without cancellation is added: with one token every output has the factor
    # B C, a sum of N products, and where that is near zero by chance, the roundings of its terms are all that is left.
    positive = [x if x is None or k == 2 else x.abs() for k, x in enumerate(args)]  # A stays negative
    sums = oracle(positive, dout.abs(), softplus, orders)
    for name, x in zip(NAMES, ours):
        assert (x is None) == (name not in exact), name
        if x is not None:  # a handful of numbers: their plain float32 error is luck, so a fixed bound
            e, s = exact[name], sums[name]
            assert x.shape == e.shape, name
            assert rms(x - e) <= 3e-6 * max(rms(e), 1e-3) + 2**-24 * rms(s), name


def test_empty():
    args = make(0, 1, 4, 5, 3)
    out, states = forward(args, True, [0])
    assert out.shape == (0, 1, 4, 5)
    grads = backward(out, args, states, True, [0])
    assert (grads[2] == 0).all()


# ----------------------------------------------------------------------------------------------- refusals, not crashes


def test_reasons_for_an_unusable_library(tmp_path, monkeypatch):
    assert not cpu.load(tmp_path / "_cpu.so")
    assert "cannot be loaded" in cpu.about
    (tmp_path / "_cpu.so").write_text("not a library", encoding="utf-8")
    assert not cpu.load(tmp_path / "_cpu.so")
    assert not cpu.works
    monkeypatch.setitem(registry.BACKENDS, "cpu", cpu)
    assert registry.choose("scan", Scan(*make(1, 1, 2, 3, 1), True, [0])).name == "chunked"
    with pytest.raises(RuntimeError, match="'cpu' is not available: _cpu.so cannot be loaded"):
        torch.ops.vmamba.selective_scan(*make(1, 1, 2, 3, 1), True, [0], "cpu")
    foreign = tmp_path / "foreign.so"
    (tmp_path / "foreign.c").write_text("int answer(void) { return 42; }", encoding="utf-8")
    old = tmp_path / "old.so"
    functions = "isa_name compiler status set_isa get_isa forward backward tile".split()
    body = "".join(f"long long vmamba_{f}(void) {{ return 0; }}" for f in functions)
    (tmp_path / "old.c").write_text(body + "long long vmamba_abi_version(void) { return 0; }", encoding="utf-8")
    for path in (foreign, old):
        source = path.with_suffix(".c")
        subprocess.run([compiler(), "-x", "c", "-shared", "-fPIC", str(source), "-o", str(path)], check=True)
    assert not cpu.load(foreign)
    assert "not this package's library" in cpu.about
    assert not cpu.load(old)
    assert "another version" in cpu.about


def test_missing_library(monkeypatch, tmp_path):
    monkeypatch.setattr(cpu_module, "__file__", str(tmp_path / "cpu.py"))
    assert not cpu.load()
    assert "not in the package" in cpu.about
    here = tmp_path / "ultralytics/nn/Addmodules/selective_scan/backends/cpu.py"
    assert cpu._why_missing(here) == "it was installed without a C++ compiler"
    (tmp_path / "pyproject.toml").touch()
    assert f"a clone of Ultralytics does not compile it; copy _cpu.* of an installed VMamba-YOLO to {here.parent}" in (
        cpu._why_missing(here)
    )
    (tmp_path / "patches").mkdir()
    assert cpu._why_missing(here) == "it was installed without a C++ compiler"


def test_what_it_says_names_instruction_set_and_compiler(isa):
    assert cpu.works
    assert cpu.about.startswith(isa)
    assert "built with" in cpu.about


def test_what_is_taken():
    args = make(1, 1, 4, 5, 3)
    assert registry.why_not(cpu, "scan", Scan(*args)) == ""
    for i, bad, word in (
        (0, args[0].double(), "float64"),
        (2, args[2].bfloat16(), "bfloat16"),
        (2, args[2].to(torch.complex64), "complex"),
        (3, args[3].to("meta"), "on cpu"),
        (2, torch.zeros(1, 4, 257), "257"),
    ):
        assert word in registry.why_not(cpu, "scan", Scan(*args[:i], bad, *args[i + 1 :]))


def test_wrong_arguments_raise():
    args = make(1, 2, 4, 5, 3)
    for i, name in ((1, "delta"), (2, "A"), (3, "B"), (4, "C"), (5, "D"), (6, "z"), (7, "delta_bias")):
        wrong = list(args)
        wrong[i] = args[i][..., :-1]
        with pytest.raises(ValueError, match=name if name != "A" else "shape"):
            forward(wrong, True, [0, 1])
    with pytest.raises(ValueError, match="orders"):
        forward(args, True, [0])
    with pytest.raises(ValueError, match="order"):
        forward(args, True, [0, 7])
    out, states = forward(args, True, [0, 1])
    with pytest.raises(ValueError, match="states"):
        backward(out, args, states[:, :, :0], True, [0, 1])
    with pytest.raises(ValueError, match="avx2"):
        cpu.set_isa("sse9")


def test_gradients_of_parameters_must_be_float32():
    """The library writes them as such, so a narrower tensor would be written past its end."""
    args = make(1, 2, 4, 5, 3)
    out, states = forward(args, True, [0, 1])
    for i in (2, 5, 7):
        narrow = [t.bfloat16() if j == i else t for j, t in enumerate(args)]
        with pytest.raises(ValueError, match="a gradient that must be float32 is not"):
            backward(out, narrow, states, True, [0, 1])


def test_a_foreign_argument_block_is_refused():
    block = struct.pack("80q", *[99] * 80)
    assert cpu.library.vmamba_forward(block, 80) != 0
    assert cpu.library.vmamba_forward(block, 79) != 0


def fields(name: str) -> tuple[list[str], list[str]]:
    """Return the names of the sizes and of the tensors in an argument block of scan.h, behind version and threads."""
    body = re.search(rf"struct {name} {{(.*?)}};", (PACKAGE / "csrc/scan.h").read_text(encoding="utf-8"), re.S)[1]
    found = {"int64_t": [], "Tensor": []}
    for kind, names in re.findall(r"(int64_t|Tensor) ([^;]*);", body):
        found[kind] += [x.strip() for x in names.split(",")]
    assert found["int64_t"][:2] == ["abi", "threads"]
    return found["int64_t"][2:], found["Tensor"]


@pytest.mark.parametrize("function", cpu_module.FUNCTIONS)
def test_argument_blocks_are_those_of_the_header(function):
    """Names in the same order: what is packed under a name is read under it."""
    block, sizes, tensors = cpu_module.FUNCTIONS[function]
    assert fields(block) == (sizes.split(), tensors.split())


def test_numbers_are_those_of_the_headers():
    text = "".join((PACKAGE / "csrc" / name).read_text(encoding="utf-8") for name in ("scan.h", "tasks.h"))
    for name, value in {
        "kAbiVersion": cpu_module.ABI_VERSION,
        "kTile": cpu_module.TILE,
        "kNoMemory": cpu_module.NO_MEMORY,
        "kFlagSoftplus": cpu_module.SOFTPLUS,
        "kFlagNoGate": cpu_module.NO_GATE,
        "kMaxStates": cpu_module.MAX_STATES,
        "kMaxTaps": cpu_module.MAX_TAPS,
        "kMaxRank": cpu_module.MAX_RANK,
        "kMaxDirections": cpu_module.MAX_DIRECTIONS,
    }.items():
        assert re.search(rf"\b{name} = (\d+)", text)[1] == str(value), name


def test_memory_that_is_not_there_is_a_memory_error(monkeypatch):
    """Told by the status's number, whatever its text says."""

    def out_of_memory(*_: object) -> int:
        return cpu_module.NO_MEMORY

    library = SimpleNamespace(vmamba_forward=out_of_memory, vmamba_status=lambda status: b"kein Speicher")
    monkeypatch.setattr(cpu, "library", library)
    with pytest.raises(MemoryError, match="kein Speicher"):
        forward(make(1, 1, 4, 5, 3), True, [0])


# ---------------------------------------------------------------------------------------------------------- sanitizers

DRIVER = r"""
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <thread>
#include <vector>
#include "scan.h"
using namespace vmamba;
extern "C" int vmamba_set_isa(int);
extern "C" int vmamba_forward(const int64_t*, int64_t);
extern "C" int vmamba_backward(const int64_t*, int64_t);
extern "C" int vmamba_block_forward(const int64_t*, int64_t);
extern "C" int vmamba_block_backward(const int64_t*, int64_t);
extern "C" int vmamba_norm(const int64_t*, int64_t);
extern "C" int vmamba_norm_backward(const int64_t*, int64_t);
extern "C" int vmamba_matmul(const int64_t*, int64_t);

static unsigned long long seed = 1;
static float next_value() {
  seed = seed * 6364136223846793005ull + 1442695040888963407ull;
  return (float)((seed >> 40) % 2001) / 1000.0f - 1.0f;
}
struct Store {  // exact allocations, so that one element too far is seen
  std::vector<void*> all;
  ~Store() { for (void* p : all) free(p); }
  Tensor make(int64_t dtype, std::vector<int64_t> shape, std::vector<int> order, bool fill) {
    Tensor t = {};
    int64_t n = 1;
    for (int i = (int)order.size() - 1; i >= 0; --i) { t.s[order[i]] = n; n *= shape[order[i]]; }
    void* p = malloc((size_t)n * (dtype == kF32 ? 4 : 2));
    all.push_back(p);
    t.data = (int64_t)(intptr_t)p;
    t.dtype = dtype;
    for (int64_t i = 0; i < n; ++i) {
      float f = fill ? next_value() : 0.0f;
      uint32_t bits;
      memcpy(&bits, &f, 4);
      if (dtype == kF32) ((float*)p)[i] = f;
      else if (dtype == kBF16) ((uint16_t*)p)[i] = (uint16_t)(bits >> 16);
      else ((uint16_t*)p)[i] = fill ? (uint16_t)(0x3000 | (bits >> 9 & 0x83ff)) : 0;
    }
    return t;
  }
};
static int once(int64_t B, int64_t K, int64_t D, int64_t L, int64_t N, int64_t dtype, bool last, int options,
                int threads) {
  Store s;
  std::vector<int> tokens = last ? std::vector<int>{0, 1, 3, 2} : std::vector<int>{0, 1, 2, 3};
  auto wide = [&](bool fill) { return s.make(dtype, {B, K, D, L}, tokens, fill); };
  auto narrow = [&](bool fill) { return s.make(dtype, {B, K, N, L}, tokens, fill); };
  auto channels = [&](bool on) { return on ? s.make(kF32, {K, D}, {0, 1}, true) : Tensor{}; };
  std::vector<int64_t> orders;
  for (int64_t k = 0; k < K; ++k) orders.push_back(k & 1);
  BackwardArgs b = {};
  b.abi = kAbiVersion; b.threads = threads; b.flags = options & 1; b.B = B; b.K = K; b.D = D; b.L = L; b.N = N;
  b.checkpoints = num_tiles(L); b.orders = (int64_t)(intptr_t)orders.data();
  b.u = wide(true); b.delta = wide(true); b.A = s.make(kF32, {K, D, N}, {0, 1, 2}, true);
  b.Bm = narrow(true); b.Cm = narrow(true);
  b.D_skip = channels(options & 2); b.z = options & 4 ? wide(true) : Tensor{}; b.bias = channels(options & 8);
  b.states = s.make(kF32, {B, K, num_tiles(L), D, N}, {0, 1, 2, 4, 3}, false);
  ForwardArgs f = {};
  memcpy(&f, &b, 10 * sizeof(int64_t) + 8 * sizeof(Tensor));
  f.out = wide(false);
  f.states = b.states;
  int status = vmamba_forward((const int64_t*)&f, sizeof(f) / 8);
  b.dout = f.out;
  b.du = wide(false); b.ddelta = wide(false); b.dA = s.make(kF32, {K, D, N}, {0, 1, 2}, false);
  b.dB = narrow(false); b.dC = narrow(false);
  b.dD = channels(options & 2); b.dz = options & 4 ? wide(false) : Tensor{}; b.dbias = channels(options & 8);
  return status | vmamba_backward((const int64_t*)&b, sizeof(b) / 8);
}
static int block(int64_t B, int64_t K, int64_t Q, int64_t D, int64_t L, int64_t N, int64_t R, int64_t W, int64_t dtype,
                 bool keep, bool optional, int threads) {
  Store s;
  auto make = [&](std::vector<int64_t> shape, bool fill) {
    std::vector<int> order;
    for (int i = 0; i < (int)shape.size(); ++i) order.push_back(i);
    return s.make(dtype, shape, order, fill);
  };
  auto channels = [&](bool fill) { return optional ? s.make(kF32, {K, D}, {0, 1}, fill) : Tensor{}; };
  std::vector<int64_t> orders;
  for (int64_t k = 0; k < K; ++k) orders.push_back(k & 1);
  BlockGradArgs g = {};
  g.abi = kAbiVersion; g.threads = threads; g.flags = 1; g.B = B; g.K = K; g.Q = Q; g.D = D; g.L = L; g.N = N; g.R = R;
  g.W = W; g.checkpoints = num_tiles(L); g.orders = (int64_t)(intptr_t)orders.data();
  g.xz = make({B, L, 2 * D}, true); g.conv_w = make({Q, D, W}, true);
  g.conv_b = optional ? make({Q, D}, true) : Tensor{};
  g.x_proj = make({Q, R + 2 * N, D}, true); g.dt_proj = make({Q, D, R}, true);
  g.A = s.make(kF32, {K, D, N}, {0, 1, 2}, true);
  g.D_skip = channels(true); g.bias = channels(true);
  g.y = make({B, L, D}, false); g.projected = make({B, Q, L, R + 2 * N}, false);
  g.states = s.make(kF32, {B, K, num_tiles(L), D, N}, {0, 1, 2, 4, 3}, false);
  BlockArgs f = {};
  memcpy(&f, &g, 13 * sizeof(int64_t));
  memcpy(&f.xz, &g.xz, 8 * sizeof(Tensor));
  f.out = make({B, L, D}, false);
  if (keep) { f.y = g.y; f.projected = g.projected; f.states = g.states; }
  else f.checkpoints = 0;
  const int status = vmamba_block_forward((const int64_t*)&f, sizeof(f) / 8);
  if (!keep) return status;
  g.dout = f.out;
  g.dxz = make({B, L, 2 * D}, false); g.dconv_w = make({Q, D, W}, false);
  g.dconv_b = optional ? make({Q, D}, false) : Tensor{};
  g.dx_proj = make({Q, R + 2 * N, D}, false); g.ddt_proj = make({Q, D, R}, false);
  g.dA = s.make(kF32, {K, D, N}, {0, 1, 2}, false); g.dD = channels(false); g.dbias = channels(false);
  g.gated = optional ? make({B, L, D}, false) : Tensor{};
  return status | vmamba_block_backward((const int64_t*)&g, sizeof(g) / 8);
}
static int whole(int64_t B, int64_t K, int64_t Q, int64_t C, int64_t L, int64_t N, int64_t R, int64_t W, int64_t D,
                 int64_t M, bool optional, bool norm, int threads) {
  Store s;
  auto make = [&](std::vector<int64_t> shape, bool fill) {
    std::vector<int> order;
    for (int i = 0; i < (int)shape.size(); ++i) order.push_back(i);
    return s.make(kF32, shape, order, fill);
  };
  std::vector<int64_t> orders;
  for (int64_t k = 0; k < K; ++k) orders.push_back(k & 1);
  BlockArgs f = {};
  f.abi = kAbiVersion; f.threads = threads; f.flags = 1; f.B = B; f.K = K; f.Q = Q; f.D = D; f.L = L; f.N = N; f.R = R;
  f.W = W; f.orders = (int64_t)(intptr_t)orders.data(); f.C = C; f.M = M;
  f.xz = norm ? s.make(kF32, {B, L, C}, {0, 2, 1}, true) : make({B, L, C}, true);
  f.conv_w = make({Q, D, W}, true); f.x_proj = make({Q, R + 2 * N, D}, true);
  f.dt_proj = make({Q, D, R}, true); f.A = make({K, D, N}, true); f.out = make({B, L, M}, false);
  f.in_w = make({2 * D, C}, true); f.out_w = make({M, D}, true);
  if (optional) {
    f.conv_b = make({Q, D}, true); f.D_skip = make({K, D}, true); f.bias = make({K, D}, true);
    f.in_b = make({2 * D}, true); f.out_b = make({M}, true);
  }
  if (norm) { f.norm_w = make({C}, true); f.norm_b = make({C}, true); }
  return vmamba_block_forward((const int64_t*)&f, sizeof(f) / 8);
}
static int norm(int64_t B, int64_t C, int64_t L, int64_t dtype, bool last, int threads) {
  Store s;
  std::vector<int> map = last ? std::vector<int>{0, 2, 1} : std::vector<int>{0, 1, 2};
  auto channels = [&](bool fill) { return s.make(dtype, {C}, {0}, fill); };
  NormArgs f = {};
  f.abi = kAbiVersion; f.threads = threads; f.B = B; f.C = C; f.L = L;
  f.x = s.make(dtype, {B, C, L}, map, true); f.weight = channels(true); f.bias = channels(true);
  f.out = s.make(dtype, {B, L, C}, {0, 1, 2}, false);
  f.mean = s.make(kF32, {B, L}, {0, 1}, false); f.rstd = s.make(kF32, {B, L}, {0, 1}, false);
  const int status = vmamba_norm((const int64_t*)&f, sizeof(f) / 8);
  NormGradArgs g = {};
  g.abi = kAbiVersion; g.threads = threads; g.B = B; g.C = C; g.L = L;
  g.x = f.x; g.weight = f.weight; g.mean = f.mean; g.rstd = f.rstd; g.dout = f.out;
  g.dx = s.make(dtype, {B, C, L}, map, false); g.dweight = channels(false); g.dbias = channels(false);
  return status | vmamba_norm_backward((const int64_t*)&g, sizeof(g) / 8);
}
static int product(int64_t M, int64_t K, int64_t N, bool turned, bool bias, int threads) {
  Store s;
  const std::vector<int> order = turned ? std::vector<int>{1, 0} : std::vector<int>{0, 1};
  MatmulArgs p = {};
  p.abi = kAbiVersion; p.threads = threads; p.M = M; p.K = K; p.N = N;
  p.a = s.make(kF32, {M, K}, order, true); p.b = s.make(kF32, {K, N}, order, true);
  p.bias = bias ? s.make(kF32, {N}, {0}, true) : Tensor{};
  p.c = s.make(kF32, {M, N}, {0, 1}, false);
  return vmamba_matmul((const int64_t*)&p, sizeof(p) / 8);
}
int main() {
  int bad = 0, runs = 0;
  const int64_t shapes[][5] = {{1, 1, 1, 1, 1}, {2, 2, 17, 33, 5}, {1, 2, 35, 70, 16}, {1, 1, 64, 31, 64},
                               {1, 3, 3, 65, 17}, {1, 1, 16, 400, 16}, {1, 1, 8, 300, 256}, {1, 1, 33, 32, 3},
                               {2, 1, 47, 129, 8}};
  for (int isa = 1; isa <= 3; ++isa) {
    if (vmamba_set_isa(isa) < 0) continue;
    for (auto& s : shapes)
      for (int64_t dtype = 0; dtype < 3; ++dtype)
        for (int last = 0; last < 2; ++last) {
          bad |= once(s[0], s[1], s[2], s[3], s[4], dtype, last, (runs * 7) & 15, 1 + runs % 5);
          ++runs;
        }
    // B, K, Q, D, L, N, R, W
    const int64_t blocks[][8] = {{1, 1, 1, 1, 1, 1, 1, 1}, {2, 2, 2, 17, 33, 5, 3, 4},
                                 {1, 2, 1, 70, 70, 16, 4, 3}, {1, 3, 3, 33, 131, 17, 9, 16},
                                 {1, 2, 2, 16, 300, 16, 1, 4}, {2, 2, 2, 40, 2, 8, 2, 5}};
    for (auto& s : blocks)
      for (int64_t dtype = 0; dtype < 3; ++dtype)
        for (int keep = 0; keep < 2; ++keep) {
          bad |= norm(s[0], s[3], s[4], dtype, keep, 1 + runs % 3);
          bad |= product(s[3], 100 * s[0] + s[4], 16 * s[6], keep, dtype > 0, 1 + runs % 3);
          bad |= block(s[0], s[1], s[2], s[3], s[4], s[5], s[6], s[7], dtype, keep, runs % 3 > 0, 1 + runs % 5);
          bad |= whole(s[0], s[1], s[2], s[3], s[4], s[5], s[6], s[7], 16 * (1 + runs % 3), 16 + 16 * keep, runs % 2,
                       runs % 3 == 0, 1 + runs % 5);
          ++runs;
        }
  }
  std::vector<std::thread> callers;
  std::vector<int> codes(4);
  seed = 1;
  for (int i = 0; i < 4; ++i)
    callers.emplace_back([i, &codes] {
      for (int j = 0; j < 8; ++j) {
        codes[(size_t)i] |= once(1, 2, 16 * (i + 1), 90, 16, 0, true, 15, 2 + i % 2);
        codes[(size_t)i] |= block(1, 2, 2, 16 * (i + 1), 90, 16, 2, 4, 0, true, true, 2 + i % 2);
      }
    });
  for (auto& t : callers) t.join();
  for (int c : codes) bad |= c;
  printf("%d runs, status %d\n", runs, bad);
  return bad;
}
"""


def sanitize(folder: Path, kinds: str, environment: dict[str, str]) -> None:
    """Build the driver and every source with the sanitizers and run it."""
    source = folder / "driver.cpp"
    text = (
        DRIVER
        if "thread" not in kinds
        else DRIVER.replace("static unsigned long long seed", "static thread_local unsigned long long seed")
    )
    source.write_text(text, encoding="utf-8")
    probe = folder / "probe.cpp"
    probe.write_text("int main() { return 0; }", encoding="utf-8")
    flag = f"-fsanitize={kinds}"
    tried = subprocess.run(
        [compiler(), flag, str(probe), "-o", str(folder / "probe")], capture_output=True, check=False
    )
    if tried.returncode or subprocess.run([str(folder / "probe")], capture_output=True, check=False).returncode:
        pytest.skip(f"no sanitizer runtime for {kinds}")
    flags = ["-std=c++17", "-O0", "-g1", "-fno-omit-frame-pointer", flag, "-fno-sanitize-recover=all", "-pthread"]
    built = compile_all(folder, flags, ["-o", str(folder / "driver")], (source,))
    assert built.returncode == 0, built.stderr
    ran = subprocess.run(
        [str(folder / "driver")],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, **environment},
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "runs, status 0" in ran.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="sanitizer runtimes are expected on Linux only")
def test_address_and_undefined_behaviour_sanitizers(tmp_path):
    sanitize(tmp_path, "address,undefined", {"ASAN_OPTIONS": "detect_leaks=1"})


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="sanitizer runtimes are expected on Linux only")
def test_thread_sanitizer(tmp_path):
    sanitize(tmp_path, "thread", {"TSAN_OPTIONS": "halt_on_error=1"})


@pytest.mark.slow
@pytest.mark.parametrize("flags", list(itertools.product(("-O0", "-O3"), ("g++", "clang++"))), ids=str)
def test_compiles_without_a_warning(tmp_path, flags):
    level, cxx = flags
    if not shutil.which(cxx):
        pytest.skip(f"no {cxx}")
    for source in SOURCES:
        command = [
            cxx,
            "-std=c++17",
            level,
            "-fPIC",
            "-Wall",
            "-Wextra",
            "-Werror",
            "-c",
            str(source),
            "-o",
            str(tmp_path / "x.o"),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
