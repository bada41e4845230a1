# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""One scan on a GPU: how it is divided among programs, its working memory, and the order of its kernels."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from ...contract import Scan
from . import load
from .launch import bits, far_apart, guard, launch, power_of_two, strides

__all__ = ("Call", "divide", "num_checkpoints", "scan", "scan_backward", "tile_length")

FORWARD_ROWS = 2  # tokens loaded ahead; divides every tile
LOW_RANK_ROWS = 4  # the same where delta is formed inside: Triton 3.6 spreads the channels of two tokens over threads
LOW_RANK_ADJOINT_ROWS = 1  # against scan order four tokens are spread as well, and spill; one is not
BACKWARD_ROWS = 2  # tokens whose states and decays are held in registers at a time; divides every tile
CARRY_ROWS = 8
PART_ROWS = 16  # parts that are added up at a time
SHORT = 2048  # tokens up to which checkpoints are twice as dense, so that a short scan can be divided further
BLOCK_D = 32
SCHEDULERS = 4  # of a multiprocessor; each issues one warp's instruction a clock
FORWARD_PROGRAMS, LOW_RANK_PROGRAMS, BACKWARD_PROGRAMS = 16, 12, 8  # a multiprocessor holds these, by their registers
FORWARD_COST, BACKWARD_COST = 1.9, 1.2  # time of a divided scan, relative to the same work undivided
START = 0.1  # of a program, in tiles
WAVES = 4  # that a divided scan has at most: every program of backward has its own working memory


def tile_length(length: int) -> int:
    """Return the tokens between two checkpoints."""
    return 32 if length <= SHORT else 64


def num_checkpoints(length: int) -> int:
    """Return how many states forward keeps for backward, one after every tile; the last is the final state."""
    return max(1, -(-length // tile_length(length)))


def processors(device: torch.device) -> int:
    """Return the multiprocessors of the device; 0 for the interpreter, where dividing a scan gains nothing."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 0


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


class Call:
    """One call's sizes, block shapes and way of launching, the same for forward and backward.

    Args:
        s (Scan): The scan.
        backward (bool): For the backward pass, which is divided in another way.
        dt_proj (Tensor, optional): (K, D, R): delta, which the scan lacks, is a product formed inside.
    """

    def __init__(self, s: Scan, backward: bool, dt_proj: Tensor | None = None):
        self.kernels = load.kernels
        self.batch, self.groups, self.channels, self.length = s.u.shape
        self.state = s.A.shape[-1]
        self.block_n, self.block_d = power_of_two(self.state), min(BLOCK_D, power_of_two(self.channels))
        self.blocks = -(-self.channels // self.block_d)
        self.width = self.blocks * self.block_d
        self.proj, self.rank = dt_proj, 0 if dt_proj is None else dt_proj.shape[2]
        self.block_r = max(4, power_of_two(self.rank)) if self.rank else 0  # rows of 16 bytes
        self.tile, self.tiles = tile_length(self.length), num_checkpoints(self.length)
        self.rows = self.batch * self.groups * self.blocks
        self.warps = max(1, self.block_n // (16 if backward else 64))
        self.ahead = LOW_RANK_ROWS if self.rank else FORWARD_ROWS
        most = LOW_RANK_PROGRAMS if self.rank else FORWARD_PROGRAMS
        if backward or self.rank > 8 or self.block_n > 16:  # columns of dt_proj and states take registers
            most = BACKWARD_PROGRAMS
        held = max(1, most // self.warps), BACKWARD_COST if backward else FORWARD_COST
        self.segments, self.per_segment = divide(self.rows, self.tiles, processors(s.u.device), *held)
        self.orders = bits(s.orders)
        self.device = s.u.device

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
            "SECTORS": power_of_two(-(-rows * (2 * self.block_n + self.block_r) // 8)),  # 32 bytes of packed rows
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
        given |= {**strides("bknl", B=B, C=C), **strides("bkrl", low=low)}
        programs = self.tiles * self.batch * self.groups
        launch(self.kernels.pack_weights, programs, (B, C, low, packed), given, num_warps=4)
        return packed

    def entering(self, v: Tensor, s: Scan, packed: Tensor, adjoint: bool) -> Tensor | None:
        """Return the states that v = u leads to at the start of each segment, or adjoint states of v = dout.

        None if there is only one segment.
        """
        if self.segments == 1:
            return None
        delta, A, bias, softplus, z = s.delta, s.A, s.delta_bias, s.delta_softplus, s.z if adjoint else None
        ends = self.floats(v, self.batch * self.groups, self.segments, self.block_n, self.width)
        sums = self.floats(v, self.batch * self.groups, self.segments, self.width)
        ahead = LOW_RANK_ADJOINT_ROWS if adjoint and self.rank else self.ahead
        scan = self.sizes(ahead) | strides("kdn", A=A) | strides("kd", bias=bias)
        scan |= strides("bkdl", v=v, delta=delta, z=z) | strides("kdr", proj=self.proj)
        scan |= {"first": int(adjoint), "SOFTPLUS": softplus, "ADJOINT": adjoint}
        tensors = v, delta, A, packed, self.proj, z, bias, ends, sums
        launch(self.kernels.scan_local, self.rows * (self.segments - 1), tensors, scan, max(1, self.block_n // 64))
        carry = {"K": self.groups, "channels": self.channels, "segs": self.segments, "blocks": self.blocks}
        carry |= {"width": self.width, "N": self.state, "BLOCK_N": self.block_n, "BLOCK_D": self.block_d}
        carry |= {"ROWS": CARRY_ROWS, "ADJOINT": adjoint, **strides("kdn", A=A)}
        launch(self.kernels.scan_carry, self.rows * self.block_n, (ends, sums, A), carry, num_warps=1)
        return ends

    def forward(self, out: Tensor, s: Scan, low: Tensor | None, keep: bool) -> Tensor:
        """Fill out and return the states (B, K, n, N, D); low are the low ranks of a delta formed inside."""
        u, delta, A, B, C, D, z, bias, softplus, _ = s
        count = self.tiles if keep else 1
        states = self.floats(u, self.batch, self.groups, count, self.state, self.channels)
        with guard(self.device):
            packed = self.pack(B, C, low)
            enter = self.entering(u, s, packed, adjoint=False)
            given = self.sizes(self.ahead) | strides("kdn", A=A) | strides("kd", D=D, bias=bias)
            given |= strides("bkdl", u=u, delta=delta, z=z, out=out) | strides("kdr", proj=self.proj)
            given |= {"SOFTPLUS": softplus, "KEEP": keep}
            tensors = u, delta, A, packed, self.proj, D, z, bias, out, states, enter
            launch(self.kernels.scan_forward, self.rows * self.segments, tensors, given, self.warps)
        return states

    def backward(self, grads: tuple, dout: Tensor, s: Scan, low: Tensor | None, states: Tensor) -> tuple:
        """Fill grads, (du, ddelta, dB, dC, dz), and return dA, dD and dbias; low as in `forward`."""
        u, delta, A, B, C, D, z, bias, softplus, _ = s
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
        with guard(self.device):
            packed = self.pack(B, C, low)
            enter = self.entering(dout, s, packed, adjoint=True)
            given = self.sizes(rows) | strides("kdn", A=A) | strides("kd", D=D, bias=bias)
            given |= strides("bkdl", dout=dout, u=u, delta=delta, z=z, du=du, ddelta=ddelta, dz=dz)
            given |= strides("bkinl", dB=part_dB, dC=part_dC) | strides("kdr", proj=self.proj)
            tensors = dout, u, delta, A, packed, self.proj, D, z, bias, states, enter, scratch, du, ddelta, dz
            tensors = *tensors, part_dB, part_dC, parts
            given |= {"SOFTPLUS": softplus}
            launch(self.kernels.scan_backward, self.rows * self.segments, tensors, given, self.warps)
            if self.blocks > 1:
                given = {"K": self.groups, "L": self.length, "blocks": self.blocks, "N": self.state}
                given |= {"BLOCK_N": self.block_n, "TOKENS": self.tile, **strides("bknl", dB=dB, dC=dC)}
                programs = self.tiles * self.batch * self.groups
                launch(self.kernels.add_weights, programs, (part_dB, part_dC, dB, dC), given, num_warps=4)
            given = {"K": self.groups, "batch": self.batch, "channels": self.channels, "segs": self.segments}
            given |= {"blocks": self.blocks, "N": self.state, "BLOCK_N": self.block_n, "BLOCK_D": self.block_d}
            given |= {"ROWS": PART_ROWS}
            programs = self.blocks * (self.block_n + 2) * self.groups
            launch(self.kernels.add_parts, programs, (parts, dA, dD, dbias), given, num_warps=1)
        return dA, dD, dbias


def scan(s: Scan, keep: bool) -> tuple[Tensor, Tensor]:
    """Do what `Backend.scan` does."""
    call, out = Call(s, backward=False), torch.empty_like(s.u)
    if s.u.numel() == 0:
        count = call.tiles if keep else 1
        states = call.floats(s.u, call.batch, call.groups, count, call.state, call.channels).zero_()
    else:
        states = call.forward(out, s, None, keep)
    return out, states.transpose(-1, -2)


def scan_backward(dout: Tensor, s: Scan, states: Tensor) -> tuple[Tensor | None, ...]:
    """Do what `Backend.scan_backward` does.

    Every sum has a fixed order and nothing is added atomically, so the gradients are the same bits every time, whether
    or not deterministic algorithms were asked for.
    """
    call = Call(s, backward=True)
    if dout.shape != s.u.shape or states.shape != (*s.u.shape[:2], call.tiles, call.channels, call.state):
        raise ValueError(f"dout {tuple(dout.shape)} or states {tuple(states.shape)} do not belong to this scan")
    if s.u.numel() == 0:
        return tuple(None if t is None else torch.zeros_like(t) for t in s[:8])
    if far_apart(dout, 2, 3):  # nobody asked about it beforehand
        dout = dout.contiguous()
    states = states.transpose(-1, -2).contiguous()  # no copy of what forward returned
    du, ddelta, dB, dC, dz = (None if t is None else torch.empty_like(t) for t in (s.u, s.delta, s.B, s.C, s.z))
    dA, dD, dbias = call.backward((du, ddelta, dB, dC, dz), dout, s, None, states)
    return du, ddelta, dA, dB, dC, dD, dz, dbias
