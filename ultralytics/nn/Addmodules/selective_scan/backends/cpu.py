# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""C++ backend for CPUs: finds and loads the compiled library, and passes it addresses and strides of tensors."""

from __future__ import annotations

import ctypes
import struct
import sys
from pathlib import Path

import torch
from torch import Tensor

from ..contract import Backend, Block, Linear, Norm, Scan

__all__ = ("Cpu",)

# What csrc/scan.h and csrc/tasks.h say; a test compares them.
ABI_VERSION = 6
TILE = 32  # tokens per checkpoint
VECTOR = 16  # channels: of products and of a whole block's sizes; kFwdBlock
NO_MEMORY = 5  # a status
SOFTPLUS, NO_GATE = 1, 2  # flags
MAX_STATES, MAX_TAPS, MAX_RANK, MAX_DIRECTIONS = 256, 16, 256, 16
ISA_LEVELS = {"auto": 0, "plain": 1, "avx2": 2, "avx512": 3}
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
UNKNOWN = -1  # the library refuses it in a sentence

_SCAN = "u delta A Bm Cm D_skip z bias"
_BLOCK = "xz conv_w conv_b x_proj dt_proj A D_skip bias"
FUNCTIONS = {  # name of a function: its argument block in scan.h, the sizes in it, and the tensors
    "forward": ("ForwardArgs", "flags B K D L N checkpoints orders", f"{_SCAN} out states"),
    "backward": (
        "BackwardArgs",
        "flags B K D L N checkpoints orders",
        f"{_SCAN} dout states du ddelta dA dB dC dD dz dbias",
    ),
    "block_forward": (
        "BlockArgs",
        "flags B K Q D L N R W checkpoints orders C M eps",
        f"{_BLOCK} out y projected states in_w in_b out_w out_b norm_w norm_b",
    ),
    "block_backward": (
        "BlockGradArgs",
        "flags B K Q D L N R W checkpoints orders",
        f"{_BLOCK} y projected states dout dxz dconv_w dconv_b dx_proj ddt_proj dA dD dbias gated",
    ),
    "norm": ("NormArgs", "B C L eps", "x weight bias out mean rstd"),
    "norm_backward": ("NormGradArgs", "B C L eps", "x weight mean rstd dout dx dweight dbias"),
    "matmul": ("MatmulArgs", "M K N", "a b bias c"),
}
_PACKERS = {
    name: struct.Struct(f"={2 + len(sizes.split()) + 7 * len(tensors.split())}q")
    for name, (_, sizes, tensors) in FUNCTIONS.items()
}
_ABSENT = (0,) * 7
_PADDING = [(0,) * (5 - axes) for axes in range(6)]


def made_for(path: Path) -> str:
    """Return which system and processor a library was made for: loaders tell a wrong one in words that mislead."""
    with path.open("rb") as file:
        head = file.read(4096)
    if head[:4] == b"\x7fELF":
        kind, system = head[18:20], "Linux"
    elif head[:2] == b"MZ":
        at = int.from_bytes(head[60:64], "little") + 4
        kind, system = head[at : at + 2], "Windows"
    elif head[:4] == b"\xcf\xfa\xed\xfe":
        kind, system = head[4:8], "macOS"
    else:
        return "no library of any system"
    arm = (b"\xb7\x00", b"\x64\xaa", b"\x0c\x00\x00\x01")
    x86 = (b"\x3e\x00", b"\x64\x86", b"\x07\x00\x00\x01")
    return f"made for {system} on {'arm64' if kind in arm else 'x86-64' if kind in x86 else 'another processor'}"


class Cpu(Backend):
    """Kernels for the scan, the block, the norm and, with AVX2 or AVX-512, linear layers.

    Attributes:
        library (ctypes.CDLL, optional): The library in use.
    """

    name = "cpu"
    device = "cpu"
    dtypes = tuple(DTYPES)
    max_states = MAX_STATES
    kinds = frozenset({"scan", "block", "norm"})

    def __init__(self) -> None:
        """Load the library beside this file."""
        self.load()

    # The library

    @staticmethod
    def find_library() -> Path | None:
        """Return the compiled library beside this file, or None. One checkout may hold those of several systems."""
        suffix = {"win32": ".dll", "darwin": ".dylib"}.get(sys.platform, ".so")
        path = Path(__file__).resolve().with_name(f"_cpu{suffix}")
        return path if path.is_file() else None

    @staticmethod
    def _why_missing(here: Path) -> str:
        """Return why there is no library beside this file: a clone of Ultralytics has its sources, and no set-up."""
        root = next((p.parent for p in here.parents if p.name == "ultralytics"), here.parent)
        if (root / "pyproject.toml").is_file() and not (root / "patches").is_dir():
            return (
                f"a clone of Ultralytics does not compile it; copy _cpu.* of an installed VMamba-YOLO to {here.parent}"
            )
        return "it was installed without a C++ compiler"

    def load(self, path: str | Path | None = None) -> bool:
        """Load the library, from `path` if given, and return whether it can be used; `about` says what or why not.

        A file that is not a library, one for another machine, one that lacks our functions and one with another
        argument layout are all refused; after a refusal no library is in use.
        """
        self.works, self.library, self.columns = False, None, 0
        path = Path(path) if path else self.find_library()
        if path is None:
            self.about = (
                f"the compiled library _cpu is not in the package: {self._why_missing(Path(__file__).resolve())}"
            )
            return False
        try:
            library = ctypes.CDLL(str(path))
        except OSError as e:
            made = made_for(path) if path.is_file() else "not there"
            self.about = f"{path.name} cannot be loaded ({made}): {e}"
            return False
        try:
            library.vmamba_abi_version.restype = library.vmamba_tile.restype = ctypes.c_int64
            found, need = (library.vmamba_abi_version(), library.vmamba_tile()), (ABI_VERSION, TILE)
            if found != need:
                of = f"ABI {found[0]}, tile {found[1]}; need {need[0]}, {need[1]}"
                self.about = f"{path.name} is of another version ({of}): reinstall"
                return False
            for text in (library.vmamba_isa_name, library.vmamba_compiler, library.vmamba_status):
                text.restype = ctypes.c_char_p
            for function in (library.vmamba_status, library.vmamba_set_isa, library.vmamba_use_openmp):
                function.argtypes = (ctypes.c_int,)
            for name in FUNCTIONS:
                getattr(library, f"vmamba_{name}").argtypes = ctypes.c_char_p, ctypes.c_int64
            self._use(library)
        except AttributeError as e:
            self.about = f"{path.name} is not this package's library: {e}"
            return False
        self.works, self.library = True, library
        return True

    def _use(self, library: ctypes.CDLL) -> str:
        """Note the instruction set in use and return its name."""
        isa = library.vmamba_isa_name().decode()
        self.about = f"{isa}, built with {library.vmamba_compiler().decode()}"
        # PyTorch's product, MKL's, has no AVX-512 kernel for AMD's processors; with AVX2 both are about as fast
        self.columns = VECTOR if library.vmamba_get_isa() >= ISA_LEVELS["avx2"] else 0
        return isa

    def set_isa(self, level: str) -> str:
        """Force an instruction set ("auto", "plain", "avx2", "avx512") for every later call; return the one in use.

        Raises:
            ValueError: If the level is unknown or this CPU does not have it.
        """
        if level not in ISA_LEVELS:
            raise ValueError(f"unknown instruction set {level!r}: choose from {', '.join(ISA_LEVELS)}")
        if self.library.vmamba_set_isa(ISA_LEVELS[level]) < 0:
            raise ValueError(f"this CPU has no {level}")
        return self._use(self.library)

    def _call(self, function: str, sizes: tuple[int, ...], tensors: tuple[Tensor | None, ...]) -> None:
        """Call a function of the library with the sizes and tensors that `FUNCTIONS` lists."""
        block = [ABI_VERSION, torch.get_num_threads(), *sizes]
        for t in tensors:
            if t is None:
                block += _ABSENT
            else:
                stride = t.stride()
                block += (t.data_ptr(), DTYPES.get(t.dtype, UNKNOWN), *stride, *_PADDING[len(stride)])
        status = getattr(self.library, f"vmamba_{function}")(_PACKERS[function].pack(*block), len(block))
        if status:
            message = self.library.vmamba_status(status).decode()
            raise MemoryError(message) if status == NO_MEMORY else ValueError(message)

    # The scan

    def num_checkpoints(self, length: int) -> int:
        """Return how many states are kept: one after each tile of tokens."""
        return max(1, (length + TILE - 1) // TILE)

    def scan(self, s: Scan, keep: bool = True) -> tuple[Tensor, Tensor]:
        """Scan all groups. A stride of 0 reads a shared tensor once per group."""
        u, (groups, dim, state) = s.u, s.A.shape
        batch, _, _, length = u.shape
        count = self.num_checkpoints(length) if keep else 1
        out = torch.empty_like(u)
        states = u.new_empty((batch, groups, count, state, dim), dtype=torch.float32).transpose(-1, -2)
        if u.numel() == 0:
            return out, states.zero_()
        orders = (ctypes.c_int64 * groups)(*s.orders)
        sizes = s.delta_softplus, batch, groups, dim, length, state, count, ctypes.addressof(orders)
        self._call("forward", sizes, (*s[:8], out, states))
        return out, states

    def scan_backward(self, dout: Tensor, s: Scan, states: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of `scan`."""
        (batch, groups, dim, length), state, count = s.u.shape, s.A.shape[2], self.num_checkpoints(s.u.shape[3])
        _belongs("dout", dout, s.u.shape)
        _belongs("states", states, (batch, groups, count, dim, state), torch.float32)
        make = torch.zeros_like if s.u.numel() == 0 else torch.empty_like
        grads = [None if t is None else make(t) if t.dim() == 4 else _dense(make, t) for t in s[:8]]
        if s.u.numel():
            orders = (ctypes.c_int64 * groups)(*s.orders)
            sizes = s.delta_softplus, batch, groups, dim, length, state, count, ctypes.addressof(orders)
            self._call("backward", sizes, (*s[:8], dout, states, *grads))
        return tuple(grads)

    # The block

    @staticmethod
    def fuses(b: Block) -> bool:
        """Return whether the block's own kernels take a block."""
        taps, rank, directions = 1 if b.conv_w is None else b.conv_w.shape[2], b.dt_proj.shape[2], b.A.shape[0]
        return 1 <= taps <= MAX_TAPS and 1 <= rank <= MAX_RANK and directions <= MAX_DIRECTIONS

    def whole(self, b: Block) -> bool:
        """Return whether the block's kernels do all around it too; without AVX2 their products are too slow."""
        if not self.columns or b.in_w is None or b.out_w is None or b.xz.dtype != torch.float32 or not self.fuses(b):
            return False
        if b.norm_w is None:
            fits = b.xz.stride(2) == 1
        else:
            fits = b.norm_w.dtype in DTYPES and b.norm_b.dtype in DTYPES
        return fits and b.A.shape[1] % self.columns == 0 and b.out_w.shape[0] % self.columns == 0

    def block(self, b: Block, keep: bool = True) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
        """Compute a block; nothing of size (B, K, L, D) is stored, and of a whole one nothing of size (B, L, 2D)."""
        if b.in_w is not None:
            outputs = b.out_w.shape[0]
            out = b.xz.new_empty(*b.xz.shape[:2], outputs)
            outer = b.in_w, b.in_b, b.out_w, b.out_b, b.norm_w, b.norm_b
            more = b.xz.shape[2], outputs, _bits(b.norm_eps)
            self._call_block("block_forward", b, 0, (out, None, None, None, *outer), more)
            return out, None, None, None
        if not self.fuses(b):
            return super().block(b, keep)
        xz, (batch, length, width), (groups, dim, state) = b.xz, b.xz.shape, b.A.shape
        out, y, projected, states, count = xz.new_empty(batch, length, dim), None, None, None, 0
        if keep:
            count = self.num_checkpoints(length)
            y = torch.empty_like(out) if width != dim else None
            projected = xz.new_empty(batch, b.x_proj.shape[0], length, b.x_proj.shape[1])
            states = xz.new_empty((batch, groups, count, state, dim), dtype=torch.float32).transpose(-1, -2)
        self._call_block("block_forward", b, count, (out, y, projected, states, *(None,) * 6), (width, 0, 0))
        return out, y, projected, states

    def block_backward(
        self, dout: Tensor, b: Block, kept: tuple[Tensor | None, Tensor, Tensor], again: bool
    ) -> tuple[Tensor | None, ...]:
        """Return the gradients of `block`."""
        if not self.fuses(b):
            return super().block_backward(dout, b, kept, again)
        (batch, length, width), (groups, dim, state), (rows, columns, _) = b.xz.shape, b.A.shape, b.x_proj.shape
        count, (y, projected, states) = self.num_checkpoints(length), kept
        _belongs("dout", dout, (batch, length, dim))
        if width != dim:
            _belongs("y", y, (batch, length, dim))
        _belongs("projected", projected, (batch, rows, length, columns))
        _belongs("states", states, (batch, groups, count, dim, state), torch.float32)
        make = torch.zeros_like if b.xz.numel() == 0 else torch.empty_like
        grads = [None if t is None else _dense(make, t) for t in b[:8]]
        if b.conv_w is None:
            grads[1] = b.x_proj.new_empty(rows, dim, 1)  # of the taps that stand for no convolution
        out = _dense(torch.empty_like, y) if again else None
        self._call_block("block_backward", b, count, (y, projected, states, dout, *grads, out))
        if b.conv_w is None:
            grads[1] = None
        return (*grads, out)

    def _call_block(
        self, function: str, b: Block, count: int, tensors: tuple[Tensor | None, ...], more: tuple[int, ...] = ()
    ) -> None:
        """Call a function of the block and `more` sizes; without a convolution the kernels get one tap of 1."""
        if b.conv_w is None:
            b = b._replace(conv_w=b.x_proj.new_ones(b.x_proj.shape[0], b.x_proj.shape[2], 1), conv_b=None)
        (batch, length, width), (groups, dim, state), (rows, _, taps) = b.xz.shape, b.A.shape, b.conv_w.shape
        gated = b.in_w is not None or width != dim
        flags = (SOFTPLUS if b.delta_softplus else 0) | (0 if gated else NO_GATE)
        orders = (ctypes.c_int64 * groups)(*b.orders)
        sizes = (
            flags,
            batch,
            groups,
            rows,
            dim,
            length,
            state,
            b.dt_proj.shape[2],
            taps,
            count,
            ctypes.addressof(orders),
            *more,
        )
        self._call(function, sizes, (*b[:8], *tensors))

    # The norm and linear layers

    def norm(self, n: Norm) -> tuple[Tensor, Tensor, Tensor]:
        """Normalise tokens and turn the map in the same pass."""
        batch, channels, length = n.x.shape
        out = n.x.new_empty(batch, length, channels)
        mean, rstd = (n.x.new_empty((batch, length), dtype=torch.float32) for _ in range(2))
        self._call("norm", (batch, channels, length, _bits(n.eps)), (*n[:3], out, mean, rstd))
        return out, mean, rstd

    def norm_backward(self, dout: Tensor, n: Norm, mean: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients of `norm`, that by x in its layout."""
        batch, channels, length = n.x.shape
        _belongs("dout", dout, (batch, length, channels))
        _belongs("mean", mean, (batch, length), torch.float32)
        _belongs("rstd", rstd, (batch, length), torch.float32)
        grads = torch.empty_like(n.x), torch.empty_like(n.weight), torch.empty_like(n.weight)
        self._call("norm_backward", (batch, channels, length, 0), (n.x, n.weight, mean, rstd, dout, *grads))
        return grads

    def linear(self, p: Linear) -> Tensor:
        """Return the product: by a kernel for whole vectors of columns, with AVX2 or AVX-512; by PyTorch otherwise."""
        a, b, bias = p
        (m, k), n = a.shape, b.shape[1]
        if not self.columns or n % self.columns or not k or not a.dtype == b.dtype == torch.float32:
            return super().linear(p)
        if b.shape[0] != k or (bias is not None and (bias.shape != (n,) or bias.dtype != torch.float32)):
            shapes = ", ".join(str(None if t is None else tuple(t.shape)) for t in p)
            raise ValueError(f"a, b, bias must be (M, K), (K, N), (N), got {shapes}")
        out = a.new_empty(m, n)
        self._call("matmul", (m, k, n), (a, b, bias, out))
        return out


def _belongs(name: str, t: Tensor, shape: tuple[int, ...], dtype: torch.dtype | None = None) -> None:
    """Raise ValueError unless what an operator was given back is what forward gave: kernels take that on trust."""
    if t.shape != shape or (t.dtype != dtype if dtype else t.dtype not in DTYPES):
        raise ValueError(f"{name} {tuple(t.shape)} {t.dtype} does not belong to this call, expected {tuple(shape)}")


def _dense(make, t: Tensor) -> Tensor:
    """Return a contiguous tensor like another one."""
    return make(t, memory_format=torch.contiguous_format)


def _bits(value: float) -> int:
    """Return the bits of a double as an integer."""
    return struct.unpack("=q", struct.pack("=d", value))[0]
