# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""GPU backend of the selective scan and of the block around it, in Triton, for NVIDIA and AMD.

Here is how a call is divided, and its memory. The kernels are in gpu_kernels.py and gpu_block_kernels.py, which are
imported where a GPU is: this module imports everywhere. With TRITON_INTERPRET=1 and triton imported before, it takes
CPU tensors instead, for tests. See docs/design/gpu-kernel.md.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache, lru_cache
from importlib.util import find_spec
from types import ModuleType

import torch
from torch import Tensor

__all__ = (
    "accepts",
    "available",
    "backward",
    "block_accepts",
    "block_backward",
    "block_forward",
    "forced_only",
    "forward",
    "name",
    "num_checkpoints",
)

name = "triton"

MAX_STATES = 256
MAX_LAUNCHES = 4096  # remembered
MAX_GROUPS = 31  # token orders travel as bits of a 32-bit integer
MAX_RANK = 16  # of a delta formed inside the scan; for a larger one a matrix product pays, which keeps (B, K, L, D)
MAX_TAPS = 16  # of the block's convolution
MIN_TRITON = (3, 3)  # tuples inside kernels
MIN_CAPABILITY = (7, 5)
FORWARD_ROWS = 2  # tokens loaded ahead; divides every tile
LOW_RANK_ROWS = 4  # the same where delta is formed inside: Triton 3.6 spreads the channels of two tokens over threads
BACKWARD_ROWS = 2  # tokens whose states and decays are held in registers at a time; divides every tile
CARRY_ROWS = 8
PART_ROWS = 16  # parts that are added up at a time
SHORT = 2048  # tokens up to which checkpoints are twice as dense, so that a short scan can be divided further
BLOCK_D = 32
FMA_STATES = 0  # states whose exponential goes to the FMA units; on an H100 it costs time, so off
SCHEDULERS = 4  # of a multiprocessor; each issues one warp's instruction a clock
FORWARD_PROGRAMS, LOW_RANK_PROGRAMS, BACKWARD_PROGRAMS = 16, 12, 8  # a multiprocessor holds these, by their registers
FORWARD_COST, BACKWARD_COST = 1.9, 1.2  # work of a scan that is divided, in that of one that is not
START = 0.1  # of a program, in tiles
WAVES = 4  # that a divided scan has at most: every program of backward has its own working memory
BLOCK_TOKENS, BLOCK_CHANNELS, BLOCK_WARPS = 16, 64, 4  # a program of the block's own kernels
SLOPE_STEPS = 4  # times as many tokens where weights get their gradients: fewer rows to add up
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


# Filled by the first available(), which registry.py calls on import: torch.compile cannot trace an import.
_kernels: ModuleType | None = None
_block_kernels: ModuleType | None = None
_interpreted = False
_state: tuple[bool, str] | None = None
_devices: dict[int, tuple[bool, str]] = {}  # by index: whether a kernel ran there, tried once
_launches: dict[tuple, tuple[Callable[..., None], list[int]]] = {}  # what starts a kernel again, see _launch


def available() -> tuple[bool, str]:
    """Return whether the backend can run here, and its version or the reason why not.

    Whether a kernel can be built for a device is tried when the first tensors on it come, see `accepts`.
    """
    global _state
    if _state is None:
        _state = _load()
    return _state


def _load() -> tuple[bool, str]:
    """Import triton and the kernels if this process can run them, and say why not otherwise."""
    global _kernels, _block_kernels, _interpreted
    # Not is_available(): it starts CUDA, and importing a package must not fix the visible devices or hinder a fork.
    gpu = torch.cuda.device_count() > 0  # also for ROCm
    if not gpu and "triton" not in sys.modules:  # importing it would cost every CPU user half a second
        return False, "no CUDA or ROCm device"
    if find_spec("triton") is None:
        hint = "triton-windows" if sys.platform == "win32" else "triton"
        return False, f"the package triton is not installed (pip install {hint})"
    try:
        import triton

        version = tuple(int("".join(filter(str.isdigit, part)) or 0) for part in triton.__version__.split(".")[:2])
        if version < MIN_TRITON:
            return False, f"triton {triton.__version__} is too old: need {'.'.join(map(str, MIN_TRITON))} (PyTorch 2.7)"
        from . import gpu_block_kernels, gpu_kernels
    except (ImportError, OSError) as e:
        return False, f"triton cannot be imported: {e}"
    _kernels, _block_kernels = gpu_kernels, gpu_block_kernels
    _interpreted = type(gpu_kernels.scan_forward).__name__ == "InterpretedFunction"
    if _interpreted:
        return True, f"triton {triton.__version__}, interpreted on the CPU: for tests"
    return (True, f"triton {triton.__version__}") if gpu else (False, "no CUDA or ROCm device")


def _runs_on(t: Tensor) -> tuple[bool, str]:
    """Return whether kernels run on a tensor's device, found out once for each device by running one."""
    # While a graph is traced nothing can be run, and the compiler at work there needs triton itself.
    if _interpreted or torch.compiler.is_compiling() or type(t) not in (Tensor, torch.nn.Parameter):
        return True, ""
    if t.device.index not in _devices:
        _devices[t.device.index] = _try(t.device)
    return _devices[t.device.index]


def _try(device: torch.device) -> tuple[bool, str]:
    """Run the smallest kernel on a device."""
    model = torch.cuda.get_device_name(device)
    if torch.version.hip is None and torch.cuda.get_device_capability(device) < MIN_CAPABILITY:
        return False, f"{model} is older than compute capability {'.'.join(map(str, MIN_CAPABILITY))}"
    try:
        x = torch.ones(1, 1, 2, 1, device=device)
        call = _Call(x, torch.zeros(1, 2, 1, device=device), [0], backward=False)
        with _guard(device):
            call.pack(x[:, :, :1], x[:, :, :1])
    except Exception as e:  # no C compiler, no Python.h, a driver or assembler that does not fit: each its own class
        reason = " ".join(str(e).split())[:300]
        return False, f"triton cannot build or start a kernel for {model}: {type(e).__name__}: {reason}"
    return True, model


def forced_only() -> bool:
    """Return whether the backend must be asked for by name: the interpreter is a thousand times slower than a CPU."""
    return _interpreted


def accepts(u, delta, A, B, C, D, z, delta_bias) -> tuple[bool, str]:
    """Return whether the kernels take these tensors, and if not the reason."""
    device = "cpu" if _interpreted else "cuda"
    for label, t in zip(("u", "delta", "A", "B", "C", "D", "z", "delta_bias"), (u, delta, A, B, C, D, z, delta_bias)):
        if t is None:
            continue
        if t.device.type != device or t.layout != torch.strided:
            return False, f"{label} is not a dense {device} tensor"
        wide = label in ("A", "D", "delta_bias")
        if t.dtype not in (_DTYPES[:1] if wide else _DTYPES):
            return False, f"{label} is {t.dtype}: only float32{'' if wide else ', bfloat16 and float16'}"
    if not 1 <= A.shape[-1] <= MAX_STATES:
        return False, f"{A.shape[-1]} states: only 1 to {MAX_STATES}"
    if u.shape[1] > MAX_GROUPS:
        return False, f"{u.shape[1]} groups: only up to {MAX_GROUPS}"
    for label, t in (("u", u), ("delta", delta), ("z", z)):
        if t is not None and _far_apart(t, 2, 3):
            return False, f"{label} has strides {tuple(t.stride())}: channels more than 2**31 elements apart"
    return _runs_on(u)


def _far_apart(t: Tensor, channels: int, tokens: int) -> bool:
    """Return whether the kernels' 32-bit offsets, over channels and a few tokens, are too short for a tensor."""
    return t.shape[channels] * abs(t.stride(channels)) + LOW_RANK_ROWS * abs(t.stride(tokens)) >= 1 << 31


def tile_length(length: int) -> int:
    """Return the tokens between two checkpoints."""
    return 32 if length <= SHORT else 64


def num_checkpoints(length: int) -> int:
    """Return how many states forward keeps for backward, one after every tile; the last is the final state."""
    return max(1, -(-length // tile_length(length)))


def _processors(device: torch.device) -> int:
    """Return the multiprocessors of the device; 0 for the interpreter, where dividing a scan gains nothing."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 0


def _power_of_two(n: int) -> int:
    """Return the smallest power of two that is at least n."""
    return 1 << (n - 1).bit_length()


@lru_cache(maxsize=1024)
def divide(rows: int, tiles: int, processors: int, programs: int, cost: float) -> tuple[int, int]:
    """Return into how many segments a scan is divided, and their tiles: what should take least time.

    Programs run in waves of as many as multiprocessors hold. A program alone on its scheduler mostly waits; with n of
    them each takes n^0.3 times as long (reckoned from the machine code of the kernels, see docs/design/gpu-kernel.md).

    Args:
        rows (int): Programs there are without dividing: batch x groups x blocks of channels.
        tiles (int): Tiles of one scan.
        processors (int): Multiprocessors of the device; 0: never divide.
        programs (int): Programs that a multiprocessor holds.
        cost (float): Work of a divided scan, which goes over its tokens once more, in that of one that is not.
    """
    if not processors or not rows:
        return 1, tiles

    def wave(count: int) -> float:
        """Return the time of a tile in a wave of that many programs."""
        return max(1.0, count / (processors * SCHEDULERS)) ** 0.3 if count else 0.0

    best, least = (1, tiles), float("inf")
    for segments in range(1, max(1, min(tiles, WAVES * processors * programs // rows)) + 1):
        per_segment = -(-tiles // segments)
        if -(-tiles // per_segment) != segments:
            continue  # some would be empty
        waves, rest = divmod(rows * segments, processors * programs)
        time = (per_segment + START) * (waves * wave(processors * programs) + wave(rest))
        time *= cost if segments > 1 else 1.0
        if time < least:
            best, least = (segments, per_segment), time
    return best


def _bits(orders: list[int]) -> int:
    """Return an integer whose bit k is set if group k runs against token order."""
    return sum(1 << k for k, order in enumerate(orders) if order)


def _guard(device: torch.device) -> AbstractContextManager:
    """Make a device current: Triton launches there."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


class _Call:
    """One call's sizes, block shapes and way of launching, the same for forward and backward.

    Args:
        u (Tensor): Input (B, K, D, L).
        A (Tensor): (K, D, N).
        orders (list[int]): Token order of each group.
        backward (bool): For the backward pass, which is divided in another way.
        dt_proj (Tensor, optional): (K, D, R): delta is a product formed inside the scan.
    """

    def __init__(self, u: Tensor, A: Tensor, orders: list[int], backward: bool, dt_proj: Tensor | None = None):
        self.kernels = _kernels
        self.batch, self.groups, self.channels, self.length = u.shape
        self.state = A.shape[-1]
        self.block_n, self.block_d = _power_of_two(self.state), min(BLOCK_D, _power_of_two(self.channels))
        self.blocks = -(-self.channels // self.block_d)
        self.width = self.blocks * self.block_d
        self.proj, self.rank = dt_proj, 0 if dt_proj is None else dt_proj.shape[2]
        self.block_r = max(4, _power_of_two(self.rank)) if self.rank else 0  # rows of 16 bytes
        self.tile, self.tiles = tile_length(self.length), num_checkpoints(self.length)
        self.rows = self.batch * self.groups * self.blocks
        self.warps = max(1, self.block_n // (16 if backward else 64))
        self.ahead = LOW_RANK_ROWS if self.rank else FORWARD_ROWS
        most = LOW_RANK_PROGRAMS if self.rank else FORWARD_PROGRAMS
        if backward or self.rank > 8 or self.block_n > 16:  # columns of dt_proj and states take registers
            most = BACKWARD_PROGRAMS
        held = max(1, most // self.warps), BACKWARD_COST if backward else FORWARD_COST
        self.segments, self.per_segment = divide(self.rows, self.tiles, _processors(u.device), *held)
        self.orders = _bits(orders)
        self.device = u.device

    def sizes(self, rows: int) -> dict[str, int]:
        """Return the arguments that all scan kernels take, which load `rows` tokens at a time."""
        return {
            "K": self.groups,
            "channels": self.channels,
            "L": self.length,
            "tiles": self.tiles,
            "per_seg": self.per_segment,
            "segs": self.segments,
            "blocks": self.blocks,
            "orders": self.orders,
            "N": self.state,
            "BLOCK_N": self.block_n,
            "BLOCK_D": self.block_d,
            "RANK": self.rank,
            "BLOCK_R": self.block_r,
            "TILE": self.tile,
            "ROWS": rows,
            "SECTORS": _power_of_two(-(-rows * (2 * self.block_n + self.block_r) // 8)),  # 32 bytes of packed rows
        }

    def floats(self, like: Tensor, *shape: int) -> Tensor:
        """Return uninitialised float32 working memory."""
        return like.new_empty(shape, dtype=torch.float32)

    def pack(self, B: Tensor, C: Tensor, low: Tensor | None = None) -> Tensor:
        """Return B, C and low (B, K, R, L) as the kernels read them: (B K, L padded to tiles, row) in scan order."""
        padded = self.tiles * self.tile
        packed = self.floats(B, self.batch * self.groups, padded, 2 * self.block_n + self.block_r)
        given = {"K": self.groups, "L": self.length, "padded": padded, "orders": self.orders, "N": self.state}
        given |= {"BLOCK_N": self.block_n, "RANK": self.rank, "BLOCK_R": self.block_r, "TOKENS": self.tile}
        given |= {**_strides("bknl", B=B, C=C), **_strides("bkrl", low=low)}
        programs = self.tiles * self.batch * self.groups
        _launch(self.kernels.pack_weights, programs, (B, C, low, packed), given, num_warps=4)
        return packed

    def entering(self, v, delta, A, packed, z, bias, softplus: bool, adjoint: bool) -> Tensor | None:
        """Return the states (or adjoint states) that enter each segment, None if there is only one segment."""
        if self.segments == 1:
            return None
        ends = self.floats(v, self.batch * self.groups, self.segments, self.block_n, self.width)
        sums = self.floats(v, self.batch * self.groups, self.segments, self.width)
        scan = self.sizes(self.ahead) | _strides("kdn", A=A) | _strides("kd", bias=bias)
        scan |= _strides("bkdl", v=v, delta=delta, z=z) | _strides("kdr", proj=self.proj)
        scan |= {"first": int(adjoint), "SOFTPLUS": softplus, "ADJOINT": adjoint, "FMA_STATES": FMA_STATES}
        tensors = v, delta, A, packed, self.proj, z, bias, ends, sums
        _launch(self.kernels.scan_local, self.rows * (self.segments - 1), tensors, scan, max(1, self.block_n // 64))
        carry = {"K": self.groups, "channels": self.channels, "segs": self.segments, "blocks": self.blocks}
        carry |= {"width": self.width, "N": self.state, "BLOCK_N": self.block_n, "BLOCK_D": self.block_d}
        carry |= {"ROWS": CARRY_ROWS, "ADJOINT": adjoint, **_strides("kdn", A=A)}
        _launch(self.kernels.scan_carry, self.rows * self.block_n, (ends, sums, A), carry, num_warps=1)
        return ends

    def forward(self, out, u, delta, low, A, B, C, D, z, bias, softplus: bool, checkpoints: bool) -> Tensor:
        """Fill out and return the states (B, K, n, N, D); delta or low is None."""
        count = self.tiles if checkpoints else 1
        states = self.floats(u, self.batch, self.groups, count, self.state, self.channels)
        with _guard(self.device):
            packed = self.pack(B, C, low)
            enter = self.entering(u, delta, A, packed, None, bias, softplus, adjoint=False)
            given = self.sizes(self.ahead) | _strides("kdn", A=A) | _strides("kd", D=D, bias=bias)
            given |= _strides("bkdl", u=u, delta=delta, z=z, out=out) | _strides("kdr", proj=self.proj)
            given |= {"SOFTPLUS": softplus, "KEEP": checkpoints, "FMA_STATES": FMA_STATES}
            tensors = u, delta, A, packed, self.proj, D, z, bias, out, states, enter
            _launch(self.kernels.scan_forward, self.rows * self.segments, tensors, given, self.warps)
        return states

    def backward(self, grads, dout, u, delta, low, A, B, C, D, z, bias, states, softplus: bool):
        """Fill grads, (du, ddelta, dB, dC, dz), and return dA, dD and dbias; delta or low is None."""
        du, ddelta, dB, dC, dz = grads
        rows = max(1, min(BACKWARD_ROWS, 64 // self.block_n))
        scratch = self.floats(u, self.rows * self.segments, self.tile // rows, self.block_n, self.block_d)
        parts = self.floats(u, self.batch, self.groups, self.segments, self.block_n + 2, self.width)
        dA, dD, dbias = (None if t is None else self.floats(u, *t.shape) for t in (A, D, bias))
        if self.blocks == 1:  # nothing to add up
            part_dB, part_dC = dB.unsqueeze(2), dC.unsqueeze(2)
        else:
            shape = self.batch, self.groups, self.blocks, self.length, self.state
            part_dB, part_dC = (self.floats(u, *shape).transpose(-1, -2) for _ in range(2))
        with _guard(self.device):
            packed = self.pack(B, C, low)
            enter = self.entering(dout, delta, A, packed, z, bias, softplus, adjoint=True)
            given = self.sizes(rows) | _strides("kdn", A=A) | _strides("kd", D=D, bias=bias)
            given |= _strides("bkdl", dout=dout, u=u, delta=delta, z=z, du=du, ddelta=ddelta, dz=dz)
            given |= _strides("bkinl", dB=part_dB, dC=part_dC) | _strides("kdr", proj=self.proj)
            tensors = dout, u, delta, A, packed, self.proj, D, z, bias, states, enter, scratch, du, ddelta, dz
            tensors = *tensors, part_dB, part_dC, parts
            given |= {"SOFTPLUS": softplus}
            _launch(self.kernels.scan_backward, self.rows * self.segments, tensors, given, self.warps)
            if self.blocks > 1:
                given = {"K": self.groups, "L": self.length, "blocks": self.blocks, "N": self.state}
                given |= {"BLOCK_N": self.block_n, "TOKENS": self.tile, **_strides("bknl", dB=dB, dC=dC)}
                programs = self.tiles * self.batch * self.groups
                _launch(self.kernels.add_weights, programs, (part_dB, part_dC, dB, dC), given, num_warps=4)
            given = {"K": self.groups, "batch": self.batch, "channels": self.channels, "segs": self.segments}
            given |= {"blocks": self.blocks, "N": self.state, "BLOCK_N": self.block_n, "BLOCK_D": self.block_d}
            given |= {"ROWS": PART_ROWS}
            programs = self.blocks * (self.block_n + 2) * self.groups
            _launch(self.kernels.add_parts, programs, (parts, dA, dD, dbias), given, num_warps=1)
        return dA, dD, dbias


def _strides(axes: str, **tensors: Tensor | None) -> dict[str, int]:
    """Return the strides of tensors under the kernels' names for them, 0 for an absent tensor."""
    strides: list[int] = []
    for t in tensors.values():
        strides += (0,) * len(axes) if t is None else t.stride()[: len(axes)]
    return dict(zip(_stride_names(axes, *tensors), strides))


@cache
def _stride_names(axes: str, *labels: str) -> list[str]:
    """Return the names of `_strides`: the same ones for every call."""
    return [f"{label}_{axis}" for label in labels for axis in axes]


def _launch(kernel, programs: int, tensors: Sequence[Tensor | None], given: dict[str, int], num_warps: int) -> None:
    """Start a kernel on the current device.

    Triton looks at every argument of a launch to find what it has compiled, longer than small maps take to scan. A
    launch with the numbers, dtypes and alignments of an earlier one is the same kernel. Hooks of launches are called
    for it, too; what Triton asks before it looks, `pre_run_hooks` and the knobs of debugging, only the first time.

    Args:
        kernel (JITFunction): The kernel.
        programs (int): Its programs.
        tensors (Sequence[Tensor | None]): Its tensors, which are its first arguments.
        given (dict[str, int]): All its other arguments, always in the same order.
        num_warps (int): Warps of a program.
    """
    like = [None if t is None else (t.dtype, t.data_ptr() % 16) for t in tensors]
    key = kernel.__name__, tensors[0].device, programs, num_warps, *like, *given.values()
    known = _launches.get(key)
    if known is not None:
        start, rest = known
        start(*tensors, *rest)
        return
    compiled = kernel[(programs,)](*tensors, **given, num_warps=num_warps)
    if compiled is None or hasattr(compiled, "result"):  # the interpreter; compiled elsewhere, at some time
        return
    if len(_launches) >= MAX_LAUNCHES:  # every size of picture adds some
        _launches.clear()
    _launches[key] = compiled[(programs, 1, 1)], [given[name] for name in kernel.arg_names[len(tensors) :]]


def forward(u, delta, A, B, C, D, z, delta_bias, delta_softplus: bool, orders: list[int], checkpoints: bool = True):
    """Scan all groups of a batch.

    Args:
        u (Tensor): Input (B, K, D, L). Channel-last memory, stride 1 over D, is the fast layout of every tensor here;
            any strides are right.
        delta (Tensor): Step sizes before bias and softplus, (B, K, D, L).
        A (Tensor): Decay rates (K, D, N), float32.
        B (Tensor): Input weights (B, K, N, L).
        C (Tensor): Output weights (B, K, N, L).
        D (Tensor, optional): Skip weights (K, D), float32.
        z (Tensor, optional): Gate (B, K, D, L).
        delta_bias (Tensor, optional): Added to delta (K, D), float32.
        delta_softplus (bool): Pass delta through softplus.
        orders (list[int]): Token order of each group: 0 forward, 1 reversed.
        checkpoints (bool): Keep the states that backward needs; otherwise only the last one.

    Returns:
        out (Tensor): (B, K, D, L) in the dtype and, if it is dense, the layout of u.
        states (Tensor): (B, K, num_checkpoints(L) or 1, D, N) float32, in scan order, channels innermost.
    """
    _check(u, delta, A, B, C, D, z, delta_bias, orders)
    call = _Call(u, A, orders, backward=False)
    out = torch.empty_like(u)
    if u.numel() == 0:
        count = call.tiles if checkpoints else 1
        states = call.floats(u, call.batch, call.groups, count, call.state, call.channels).zero_()
    else:
        states = call.forward(out, u, delta, None, A, B, C, D, z, delta_bias, delta_softplus, checkpoints)
    return out, states.transpose(-1, -2)


def backward(dout, u, delta, A, B, C, D, z, delta_bias, states, delta_softplus: bool, orders: list[int]):
    """Return the gradients (du, ddelta, dA, dB, dC, dD, dz, ddelta_bias), None for absent inputs.

    dout is the gradient of forward's output, (B, K, D, L), states are forward's checkpoints, (B, K, n, D, N), and the
    other arguments are forward's. Every sum has a fixed order and nothing is added atomically, so the gradients are the
    same bits every time, whether or not deterministic algorithms were asked for.
    """
    _check(u, delta, A, B, C, D, z, delta_bias, orders)
    call = _Call(u, A, orders, backward=True)
    if dout.shape != u.shape or states.shape != (*u.shape[:2], call.tiles, call.channels, call.state):
        raise ValueError(f"dout {tuple(dout.shape)} or states {tuple(states.shape)} do not belong to this scan")
    if _far_apart(dout, 2, 3):  # nobody asked `accepts` about it
        dout = dout.contiguous()
    states = states.transpose(-1, -2).contiguous()  # no copy of what forward returned
    du, ddelta, dB, dC = (torch.empty_like(t) for t in (u, delta, B, C))
    dz = None if z is None else torch.empty_like(z)
    if u.numel() == 0:
        dA, dD, dbias = (None if t is None else torch.zeros_like(t) for t in (A, D, delta_bias))
        return du, ddelta, dA, dB.zero_(), dC.zero_(), dD, dz, dbias

    scan = u, delta, None, A, B, C, D, z, delta_bias, states, delta_softplus
    dA, dD, dbias = call.backward((du, ddelta, dB, dC, dz), dout, *scan)
    return du, ddelta, dA, dB, dC, dD, dz, dbias


def _check(u, delta, A, B, C, D, z, delta_bias, orders) -> None:
    """Check what the kernels take on trust, since a wrong shape there reads foreign memory."""
    ok, reason = available()
    if not ok:
        raise RuntimeError(f"the Triton selective scan is not available: {reason}")
    bs, k, d, length = u.shape
    n = A.shape[-1]
    want = {"delta": (delta, u.shape), "A": (A, (k, d, n)), "B": (B, (bs, k, n, length)), "C": (C, (bs, k, n, length))}
    want |= {"D": (D, (k, d)), "z": (z, u.shape), "delta_bias": (delta_bias, (k, d))}
    for label, (t, shape) in want.items():
        if t is not None and t.shape != shape:
            raise ValueError(f"{label} has shape {tuple(t.shape)}, expected {tuple(shape)}")
    if len(orders) != k:
        raise ValueError(f"{len(orders)} orders for {k} groups")
    ok, reason = accepts(u, delta, A, B, C, D, z, delta_bias)
    if not ok:
        raise ValueError(reason)


# The block around the scan


def block_accepts(xz, conv_w, conv_b, x_proj, dt_proj, A, D, dt_bias) -> tuple[bool, str]:
    """Return whether the block's kernels take these tensors (see `block_forward`), and if not the reason."""
    device = "cpu" if _interpreted else "cuda"
    narrow = {"xz": xz, "conv_w": conv_w, "conv_b": conv_b, "x_proj": x_proj, "dt_proj": dt_proj}
    for label, t in {**narrow, "A": A, "D": D, "dt_bias": dt_bias}.items():
        if t is None:
            continue
        if t.device.type != device or t.layout != torch.strided:
            return False, f"{label} is not a dense {device} tensor"
        if t.dtype not in (_DTYPES if label in narrow else _DTYPES[:1]) or (label in narrow and t.dtype != xz.dtype):
            return False, f"{label} is {t.dtype} beside xz of {xz.dtype}"
    if _far_apart(xz, 2, 1):
        return False, f"xz has strides {tuple(xz.stride())}: channels more than 2**31 elements apart"
    taps = 1 if conv_w is None else conv_w.shape[2]
    sizes = ("taps", taps, MAX_TAPS), ("directions", A.shape[0], MAX_GROUPS), ("states", A.shape[2], MAX_STATES)
    for label, size, most in sizes:
        if not 1 <= size <= most:
            return False, f"{label}: {size}, only 1 to {most}"
    return _runs_on(xz)


class _Block:
    """The block's sizes and kernels, the same for forward and backward.

    Tokens of all directions are (K, B, L, D) in memory: matrix products with each direction's weights are then one
    batched product over all pictures, and nothing is transposed between the stages.
    """

    def __init__(self, xz, conv_w, conv_b, x_proj, dt_proj, A, D, dt_bias, orders: list[int]):
        self.batch, self.length = xz.shape[:2]
        self.groups, self.channels, self.state = A.shape
        self.rows, self.rank = x_proj.shape[0], dt_proj.shape[2]
        self.x, self.z = (xz, None) if xz.shape[2] == self.channels else xz.chunk(2, dim=-1)
        self.conv_w, self.conv_b, self.dt_proj = conv_w, None if conv_w is None else conv_b, dt_proj
        self.A, self.D, self.dt_bias, self.orders = A, D, dt_bias, orders
        self.taps = 1 if conv_w is None else conv_w.shape[2]
        self.block_d = min(BLOCK_CHANNELS, _power_of_two(self.channels))
        self.blocks = -(-self.channels // self.block_d)

    def launch(self, kernel: str, tensors: list[Tensor | None], steps: int = 1, copies: int = 1, **given) -> None:
        """Start a kernel of gpu_block_kernels.py.

        Args:
            kernel (str): Its name.
            tensors (list[Tensor | None]): Its tensors, in order.
            steps (int): Times BLOCK_TOKENS tokens that a program takes.
            copies (int): Programs for the same tokens and channels.
            **given (int): Its arguments beyond tensors and the sizes that all of them take.
        """
        tokens = BLOCK_TOKENS * steps
        chunks = -(-self.length // tokens)
        programs = self.blocks * chunks * copies * self.batch
        given |= {"channels": self.channels, "L": self.length, "blocks": self.blocks, "chunks": chunks}
        given |= {"TOKENS": BLOCK_TOKENS, "BLOCK_D": self.block_d}
        with _guard(self.x.device):
            _launch(getattr(_block_kernels, kernel), programs, tensors, given, BLOCK_WARPS)

    def tokens(self, groups: int) -> Tensor:
        """Return uninitialised tokens of a number of directions, (K, B, L, D)."""
        return self.x.new_empty(groups, self.batch, self.length, self.channels)

    def convolution(self) -> dict[str, int]:
        """Return the arguments that all convolution kernels take."""
        given = {**_strides("kdj", w=self.conv_w), "rows": self.rows, "TAPS": self.taps}
        return given | {"orders": _bits(self.orders)}

    def convolved(self) -> Tensor:
        """Return u = SiLU(conv(x)), (Kc, B, L, D)."""
        u = self.tokens(self.rows)
        self.launch(
            "conv_silu", [self.x, self.conv_w, self.conv_b, u], **_strides("bld", x=self.x), **self.convolution(),
            **_strides("kd", bias=self.conv_b), **_strides("kbl", u=u),
        )  # fmt: skip
        return u

    def convolution_gradients(self, dv: Tensor, dx: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Fill dx (B, L, D) and return the gradients of weights and bias; dv (Kc, B, L, D), that of u, is used up."""
        chunks = -(-self.length // (BLOCK_TOKENS * SLOPE_STEPS))
        parts = None
        if self.conv_w is not None:
            parts = self.x.new_empty(
                (self.batch * chunks, self.rows, self.taps + 1, self.channels), dtype=torch.float32
            )
        self.launch(
            "conv_silu_slope", [self.x, self.conv_w, self.conv_b, dv, parts], SLOPE_STEPS, self.rows,
            **_strides("bld", x=self.x), **self.convolution(), **_strides("kd", bias=self.conv_b),
            **_strides("kbl", dv=dv), STEPS=SLOPE_STEPS,
        )  # fmt: skip
        self.launch(
            "conv_input", [dv, self.conv_w, dx], **_strides("kbl", dv=dv), **self.convolution(), **_strides("bl", dx=dx)
        )
        if parts is None:
            return None, None
        total = parts.sum(0, dtype=torch.float64)
        dw = total[:, : self.taps].transpose(1, 2).to(dv.dtype).contiguous()
        return dw, None if self.conv_b is None else total[:, self.taps].to(dv.dtype)

    def scan(self, u: Tensor, x_dbl: Tensor, backward: bool) -> tuple[_Call, tuple]:
        """Return a scan's call and inputs u, delta, low, A, B, C, D, no gate, bias from u and x_dbl (Kc, B, L, ...)."""

        def of_all(t: Tensor) -> Tensor:
            """View (Kc, B, L, C) as (B, K, C, L): shared tokens are one, seen K times."""
            return t.permute(1, 0, 3, 2).expand(-1, self.groups, -1, -1)

        low, B, C = (of_all(t) for t in x_dbl.split([self.rank, self.state, self.state], dim=-1))
        inside = self.rank <= MAX_RANK
        delta = None if inside else of_all(_matmul(x_dbl[..., : self.rank], self.dt_proj.transpose(1, 2)))
        proj = self.dt_proj.expand(self.groups, -1, -1) if inside else None
        call = _Call(of_all(u), self.A, self.orders, backward, proj)
        return call, (of_all(u), delta, low if inside else None, self.A, B, C, self.D, None, self.dt_bias)


def _matmul(x: Tensor, weight: Tensor) -> Tensor:
    """Multiply the tokens (K, B, L, C) of each direction by its weight (K, C, M)."""
    return torch.bmm(x.flatten(1, 2), weight).unflatten(1, x.shape[1:3])


def _weight_gradient(dy: Tensor, x: Tensor) -> Tensor:
    """Return the sum over tokens of dy (K, B, L, M) times x (K, B, L, C), (K, M, C).

    A product for each direction: the result has one tile or few, and of a single product cuBLAS divides the sum, over
    up to millions of tokens, among multiprocessors.
    """
    return torch.stack([a.flatten(0, 1).t() @ b.flatten(0, 1) for a, b in zip(dy, x)])


def block_forward(
    xz, conv_w, conv_b, x_proj, dt_proj, A, D, dt_bias, delta_softplus: bool, orders: list[int], keep: bool
):
    """Run conv, SiLU, projections, the scans of all directions, their sum and the gate.

    With Kc = 1 row, conv and projections are shared by all directions. delta is formed inside the scan.

    Args:
        xz (Tensor): Input projection, x beside the gate z (B, L, 2D), or x alone (B, L, D) and no gate.
        conv_w (Tensor, optional): (Kc, D, W); without it the scans take SiLU(x).
        conv_b (Tensor, optional): (Kc, D).
        x_proj (Tensor): (Kc, R + 2N, D).
        dt_proj (Tensor): (Kc, D, R).
        A (Tensor): (K, D, N), float32.
        D (Tensor, optional): (K, D), float32.
        dt_bias (Tensor, optional): (K, D), float32.
        delta_softplus (bool): Pass delta through softplus.
        orders (list[int]): Token order of each direction: 0 forward, 1 reversed.
        keep (bool): Return what backward needs; the last three are None otherwise.

    Returns:
        out (Tensor): Gated output (B, L, D).
        y (Tensor, optional): The same before the gate (B, L, D), None too where there is no gate.
        projected (Tensor, optional): Projections (B, Kc, L, R + 2N).
        states (Tensor, optional): States (B, K, num_checkpoints(L), D, N) float32, in scan order.
    """
    inputs = xz, conv_w, conv_b, x_proj, dt_proj, A, D, dt_bias
    _check_block(*inputs, orders)
    block = _Block(*inputs, orders)
    out = xz.new_empty(block.batch, block.length, block.channels)
    y = torch.empty_like(out) if keep and block.z is not None else None
    if xz.numel() == 0:
        projected = xz.new_empty(block.batch, block.rows, block.length, x_proj.shape[1])
        states = A.new_zeros(block.batch, block.groups, num_checkpoints(block.length), block.state, block.channels)
        return (out, y, projected, states.transpose(-1, -2)) if keep else (out, None, None, None)
    u = block.convolved()
    x_dbl = _matmul(u, x_proj.transpose(1, 2))
    call, scan = block.scan(u, x_dbl, backward=False)
    ys = block.tokens(block.groups)
    states = call.forward(ys.permute(1, 0, 3, 2), *scan, delta_softplus, keep)
    block.launch(
        "merge_gate", [ys, block.z, y, out], **_strides("kbl", ys=ys), **_strides("bld", z=block.z),
        **_strides("bl", y=y, out=out), rows=block.groups,
    )  # fmt: skip
    if not keep:
        return out, None, None, None
    return out, y, x_dbl.transpose(0, 1).contiguous(), states.transpose(-1, -2)


def block_backward(
    dout,
    xz,
    conv_w,
    conv_b,
    x_proj,
    dt_proj,
    A,
    D,
    dt_bias,
    y,
    projected,
    states,
    delta_softplus: bool,
    orders: list[int],
    gated: bool,
):
    """Return the gradients of `block_forward` by its tensors, None for absent ones, and its output if `gated`.

    dout is the gradient of the output (B, L, D), and y, projected and states are what forward kept. Each gradient has
    its input's dtype, and is the same bits every time as far as the matrix products are. Without a gate y is None, and
    `gated` must be False.
    """
    inputs = xz, conv_w, conv_b, x_proj, dt_proj, A, D, dt_bias
    _check_block(*inputs, orders)
    block = _Block(*inputs, orders)
    shape = block.batch, block.length, block.channels
    kept = {"dout": (dout, shape), "y": (y if block.z is not None else None, shape)}
    kept["projected"] = projected, (block.batch, block.rows, block.length, x_proj.shape[1])
    kept["states"] = states, (block.batch, block.groups, num_checkpoints(block.length), block.channels, block.state)
    for label, (t, want) in kept.items():
        if t is not None and t.shape != want:
            raise ValueError(f"{label} {tuple(t.shape)} does not belong to this block, expected {want}")
    if xz.numel() == 0:
        return (*(None if t is None else torch.zeros_like(t) for t in inputs), torch.empty_like(y) if gated else None)

    if _far_apart(dout, 2, 1):
        dout = dout.contiguous()
    dxz = torch.empty_like(xz, memory_format=torch.contiguous_format)
    dx, dy, out = dxz[..., : block.channels], dout, None
    x_dbl = projected.transpose(0, 1).contiguous()
    du_all, ddelta_all = block.tokens(block.groups), block.tokens(block.groups)
    if block.z is not None:
        y = y.contiguous()
        dy, out, dz = torch.empty_like(y), torch.empty_like(y) if gated else None, dxz[..., block.channels :]
        block.launch(
            "gate_slope", [dout, y, block.z, dy, dz, out], **_strides("bld", dout=dout, z=block.z),
            **_strides("bl", y=y, dy=dy, dz=dz, out=out),
        )  # fmt: skip
    u = block.convolved()
    call, scan = block.scan(u, x_dbl, backward=True)
    dx_dbl_all = x_dbl.new_empty(block.groups, *x_dbl.shape[1:])
    _, dB, dC = dx_dbl_all.permute(1, 0, 3, 2).split([block.rank, block.state, block.state], dim=2)
    grads = du_all.permute(1, 0, 3, 2), ddelta_all.permute(1, 0, 3, 2), dB, dC, None
    along = dy.transpose(1, 2).unsqueeze(1).expand(-1, block.groups, -1, -1)
    kept_states = states.transpose(-1, -2).contiguous()  # no copy of what forward returned
    dA, dD, ddt_bias = call.backward(grads, along, *scan, kept_states, delta_softplus)

    def shared(t: Tensor) -> Tensor:
        """Add up over the directions that share a row of weights."""
        return t.sum(0, keepdim=True) if block.rows < block.groups else t

    du, ddelta, dx_dbl = shared(du_all), shared(ddelta_all), shared(dx_dbl_all)
    dx_dbl[..., : block.rank] = _matmul(ddelta, dt_proj)
    ddt_proj = _weight_gradient(ddelta, x_dbl[..., : block.rank])
    dx_proj = _weight_gradient(dx_dbl, u)
    dv = du.add_(_matmul(dx_dbl, x_proj))
    dconv_w, dconv_b = block.convolution_gradients(dv, dx)
    return dxz, dconv_w, dconv_b, dx_proj, ddt_proj, dA, dD, ddt_bias, out


def _check_block(xz, conv_w, conv_b, x_proj, dt_proj, A, D, dt_bias, orders) -> None:
    """Check what the block's kernels take on trust."""
    ok, reason = available()
    if not ok:
        raise RuntimeError(f"the Triton block is not available: {reason}")
    ok, reason = block_accepts(xz, conv_w, conv_b, x_proj, dt_proj, A, D, dt_bias)
    if not ok:
        raise ValueError(reason)
    (bs, length, width), (k, d, n), kc, r = xz.shape, A.shape, x_proj.shape[0], dt_proj.shape[2]
    taps = None if conv_w is None else conv_w.shape[2]
    want = {"xz": (xz, (bs, length, d if width == d else 2 * d)), "conv_w": (conv_w, (kc, d, taps))}
    want |= {"conv_b": (conv_b, (kc, d)), "x_proj": (x_proj, (kc, r + 2 * n, d)), "dt_proj": (dt_proj, (kc, d, r))}
    for label, (t, shape) in {**want, "D": (D, (k, d)), "dt_bias": (dt_bias, (k, d))}.items():
        if t is not None and t.shape != shape:
            raise ValueError(f"{label} has shape {tuple(t.shape)}, expected {shape}")
    if kc not in (1, k) or len(orders) != k:
        raise ValueError(f"{kc} rows of conv and projections and {len(orders)} orders for {k} directions")
