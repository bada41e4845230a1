# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""GPU backend of the selective scan in Triton, for NVIDIA and AMD: how a call is divided, and its memory.

The kernels are in gpu_kernels.py, which is imported when a GPU is there: this module imports everywhere. With
TRITON_INTERPRET=1 and triton imported before, it takes CPU tensors instead, for tests. See docs/design/gpu-kernel.md.
"""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec
from types import ModuleType

import torch
from torch import Tensor

__all__ = ("accepts", "available", "backward", "forced_only", "forward", "name", "num_checkpoints")

name = "triton"

MAX_STATES = 256
MAX_GROUPS = 31  # token orders travel as bits of a 32-bit integer
MIN_TRITON = (3, 3)  # tuples inside kernels
MIN_CAPABILITY = (7, 5)
FORWARD_ROWS = 8  # tokens loaded ahead; divides every tile
BACKWARD_ROWS = 4  # tokens whose states and decays are held in registers at a time; divides every tile
CARRY_ROWS = 8
SHORT = 2048  # tokens up to which checkpoints are twice as dense, so that a short scan can be divided further
BLOCK_D = 32
FMA_STATES = 0  # states whose exponential goes to the FMA units; unmeasured, so off
WARPS_A_PROCESSOR = 4  # one for each scheduler: with 16 independent states a warp keeps its exp unit busy
PROGRAMS_A_PROCESSOR = 8  # what a divided scan aims at
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


# Filled by the first available(), which registry.py calls on import: torch.compile cannot trace an import.
_kernels: ModuleType | None = None
_interpreted = False
_state: tuple[bool, str] | None = None


def available() -> tuple[bool, str]:
    """Return whether the backend can run here, and the device or the reason why not."""
    global _state
    if _state is None:
        _state = _load()
    return _state


def _load() -> tuple[bool, str]:
    """Import triton and the kernels if this process can run them, and say why not otherwise."""
    global _kernels, _interpreted
    gpu = torch.cuda.is_available()  # also for ROCm
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
        from . import gpu_kernels
    except (ImportError, OSError) as e:
        return False, f"triton cannot be imported: {e}"
    _kernels = gpu_kernels
    _interpreted = type(gpu_kernels.scan_forward).__name__ == "InterpretedFunction"
    if _interpreted:
        return True, f"triton {triton.__version__}, interpreted on the CPU: for tests"
    if not gpu:
        return False, "no CUDA or ROCm device"
    device = torch.cuda.get_device_name()
    if torch.version.hip is None and torch.cuda.get_device_capability() < MIN_CAPABILITY:
        return False, f"{device} is older than compute capability {'.'.join(map(str, MIN_CAPABILITY))}"
    return True, f"triton {triton.__version__}, {device}"


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
        if t is not None and t.shape[2] * abs(t.stride(2)) + FORWARD_ROWS * abs(t.stride(3)) >= 1 << 31:
            return False, f"{label} has strides {tuple(t.stride())}: channels more than 2**31 elements apart"
    return True, ""


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


def divide(rows: int, tiles: int, processors: int, passes: int) -> tuple[int, int]:
    """Return into how many segments a scan is divided, and their tiles.

    A divided scan computes every exponential once more, `passes` + 1 times in place of `passes`; it pays when the
    segments keep more of the schedulers busy than that costs.

    Args:
        rows (int): Programs there are without dividing: batch x groups x blocks of channels.
        tiles (int): Tiles of one scan.
        processors (int): Multiprocessors of the device.
        passes (int): Exponentials of each token, channel and state when not divided.
    """
    rows, slots = max(1, rows), max(1, processors * WARPS_A_PROCESSOR)
    per_segment = -(-tiles // max(1, min(tiles, processors * PROGRAMS_A_PROCESSOR // rows)))
    segments = -(-tiles // per_segment)
    busier = min(rows * segments, slots) / min(rows, slots)
    return (segments, per_segment) if busier * passes > passes + 1 else (1, tiles)


class _Call:
    """One call's sizes, block shapes and way of launching, the same for forward and backward."""

    def __init__(self, u: Tensor, A: Tensor, orders: list[int], passes: int):
        self.kernels = _kernels
        self.batch, self.groups, self.channels, self.length = u.shape
        self.state = A.shape[-1]
        self.block_n, self.block_d = _power_of_two(self.state), min(BLOCK_D, _power_of_two(self.channels))
        self.blocks = -(-self.channels // self.block_d)
        self.width = self.blocks * self.block_d
        self.tile, self.tiles = tile_length(self.length), num_checkpoints(self.length)
        self.rows = self.batch * self.groups * self.blocks
        self.segments, self.per_segment = divide(self.rows, self.tiles, _processors(u.device), passes)
        self.orders = sum(1 << k for k, order in enumerate(orders) if order)
        self.device = u.device

    def guard(self) -> AbstractContextManager:
        """Make the tensors' device current: Triton launches there."""
        return torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext()

    def sizes(self) -> dict[str, int]:
        """Return the arguments that all scan kernels take."""
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
            "TILE": self.tile,
        }

    def floats(self, like: Tensor, *shape: int) -> Tensor:
        """Return uninitialised float32 working memory."""
        return like.new_empty(shape, dtype=torch.float32)

    def pack(self, B: Tensor, C: Tensor) -> Tensor:
        """Return B and C as the kernels read them, (B K, L padded to tiles, 2, N padded) in scan order."""
        padded = self.tiles * self.tile
        packed = self.floats(B, self.batch * self.groups, padded, 2, self.block_n)
        self.kernels.pack_weights[(self.tiles * self.batch * self.groups,)](
            B, C, packed, **_strides("bknl", B=B, C=C), K=self.groups, L=self.length, padded=padded,
            orders=self.orders, N=self.state, BLOCK_N=self.block_n, TOKENS=self.tile, num_warps=4,
        )  # fmt: skip
        return packed

    def entering(self, v, delta, A, packed, z, bias, softplus: bool, adjoint: bool) -> Tensor | None:
        """Return the states (or adjoint states) that enter each segment, None if there is only one segment."""
        if self.segments == 1:
            return None
        ends = self.floats(v, self.batch * self.groups, self.segments, self.block_n, self.width)
        sums = self.floats(v, self.batch * self.groups, self.segments, self.width)
        self.kernels.scan_local[(self.rows * (self.segments - 1),)](
            v, delta, A, packed, z, bias, ends, sums,
            **_strides("bkdl", v=v, delta=delta, z=z), **_strides("kdn", A=A), **_strides("kd", bias=bias),
            **self.sizes(), first=int(adjoint), ROWS=FORWARD_ROWS, SOFTPLUS=softplus, ADJOINT=adjoint,
            FMA_STATES=FMA_STATES, num_warps=max(1, self.block_n // 64),
        )  # fmt: skip
        self.kernels.scan_carry[(self.rows * self.block_n,)](
            ends, sums, A, **_strides("kdn", A=A), K=self.groups, channels=self.channels, segs=self.segments,
            blocks=self.blocks, width=self.width, N=self.state, BLOCK_N=self.block_n, BLOCK_D=self.block_d,
            ROWS=CARRY_ROWS, ADJOINT=adjoint, num_warps=1,
        )  # fmt: skip
        return ends


def _strides(axes: str, **tensors: Tensor | None) -> dict[str, int]:
    """Return the strides of tensors under the kernels' names for them, 0 for an absent tensor."""
    return {
        f"{label}_{axis}": 0 if t is None else t.stride(i)
        for label, t in tensors.items()
        for i, axis in enumerate(axes)
    }


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
    call = _Call(u, A, orders, passes=1)
    count = call.tiles if checkpoints else 1
    out = torch.empty_like(u)
    states = call.floats(u, call.batch, call.groups, count, call.state, call.channels)
    if u.numel() == 0:
        return out, states.zero_().transpose(-1, -2)
    with call.guard():
        packed = call.pack(B, C)
        enter = call.entering(u, delta, A, packed, None, delta_bias, delta_softplus, adjoint=False)
        call.kernels.scan_forward[(call.rows * call.segments,)](
            u, delta, A, packed, D, z, delta_bias, out, states, enter,
            **_strides("bkdl", u=u, delta=delta, z=z, out=out), **_strides("kdn", A=A),
            **_strides("kd", D=D, bias=delta_bias), **call.sizes(), ROWS=FORWARD_ROWS,
            SOFTPLUS=delta_softplus, KEEP=checkpoints, FMA_STATES=FMA_STATES, num_warps=max(1, call.block_n // 64),
        )  # fmt: skip
    return out, states.transpose(-1, -2)


def backward(dout, u, delta, A, B, C, D, z, delta_bias, states, delta_softplus: bool, orders: list[int]):
    """Return the gradients (du, ddelta, dA, dB, dC, dD, dz, ddelta_bias), None for absent inputs.

    dout is the gradient of forward's output, (B, K, D, L), states are forward's checkpoints, (B, K, n, D, N), and the
    other arguments are forward's. Every sum has a fixed order and nothing is added atomically, so the gradients are the
    same bits every time, whether or not deterministic algorithms were asked for.
    """
    _check(u, delta, A, B, C, D, z, delta_bias, orders)
    call = _Call(u, A, orders, passes=2)
    if dout.shape != u.shape or states.shape != (*u.shape[:2], call.tiles, call.channels, call.state):
        raise ValueError(f"dout {tuple(dout.shape)} or states {tuple(states.shape)} do not belong to this scan")
    states = states.transpose(-1, -2).contiguous()  # no copy of what forward returned
    du, ddelta, dB, dC = (torch.empty_like(t) for t in (u, delta, B, C))
    dz = None if z is None else torch.empty_like(z)
    if u.numel() == 0:
        dA, dD, dbias = (None if t is None else torch.zeros_like(t) for t in (A, D, delta_bias))
        return du, ddelta, dA, dB.zero_(), dC.zero_(), dD, dz, dbias

    rows = max(1, min(BACKWARD_ROWS, 64 // call.block_n))
    groups, parts = call.groups, (call.batch, call.groups, call.segments)
    scratch = call.floats(u, call.rows * call.segments, call.tile // rows, call.block_n, call.block_d)
    part_dA = call.floats(u, *parts, call.block_n, call.width)
    part_dD, part_dbias = (None if t is None else call.floats(u, *parts, call.width) for t in (D, delta_bias))
    if call.blocks == 1:  # nothing to add up
        part_dB, part_dC = dB.unsqueeze(2), dC.unsqueeze(2)
    else:
        shape = call.batch, groups, call.blocks, call.length, call.state
        part_dB, part_dC = (call.floats(u, *shape).transpose(-1, -2) for _ in range(2))
    with call.guard():
        packed = call.pack(B, C)
        enter = call.entering(dout, delta, A, packed, z, delta_bias, delta_softplus, adjoint=True)
        call.kernels.scan_backward[(call.rows * call.segments,)](
            dout, u, delta, A, packed, D, z, delta_bias, states, enter, scratch, du, ddelta, dz, part_dB, part_dC,
            part_dA, part_dD, part_dbias,
            **_strides("bkdl", dout=dout, u=u, delta=delta, z=z, du=du, ddelta=ddelta, dz=dz),
            **_strides("bkinl", dB=part_dB, dC=part_dC), **_strides("kdn", A=A),
            **_strides("kd", D=D, bias=delta_bias), **call.sizes(), ROWS=rows,
            SOFTPLUS=delta_softplus, num_warps=max(1, call.block_n // 16),
        )  # fmt: skip
        if call.blocks > 1:
            dB.copy_(part_dB.sum(2))
            dC.copy_(part_dC.sum(2))
        # float64: few numbers, and thousands of them in one sum
        dA = part_dA.sum((0, 2), dtype=torch.float64)[:, : call.state, : call.channels].transpose(1, 2)
        dD, dbias = (
            None if t is None else t.sum((0, 2), dtype=torch.float64)[:, : call.channels].float().contiguous()
            for t in (part_dD, part_dbias)
        )
    return du, ddelta, dA.float().contiguous(), dB, dC, dD, dz, dbias


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
