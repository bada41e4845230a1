# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""C++ CPU backend of the selective scan: finds and loads the compiled library and passes tensors to it by address."""

from __future__ import annotations

import ctypes
import struct
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import torch

__all__ = (
    "accepts",
    "available",
    "backward",
    "block_accepts",
    "block_backward",
    "block_forward",
    "forward",
    "load",
    "matmul",
    "matmul_accepts",
    "name",
    "norm_accepts",
    "norm_backward",
    "norm_forward",
    "num_checkpoints",
    "set_isa",
)

name = "cpp"

ABI_VERSION = 4  # of csrc/scan.h
TILE = 32  # tokens per checkpoint; the library reports its own, and another number is refused
MAX_STATES = 256
NO_GATE = 2  # a flag of the block
WHOLE_COLUMNS = 16  # of a product
MAX_TAPS, MAX_RANK, MAX_DIRECTIONS = 16, 256, 16  # of the block
ISA_LEVELS = {"auto": 0, "plain": 1, "avx2": 2, "avx512": 3}
_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_NO_TENSOR = (0, 0, 0, 0, 0, 0, 0)
_FORWARD_ARGS = ctypes.c_int64 * (10 + 10 * 7)
_BACKWARD_ARGS = ctypes.c_int64 * (10 + 18 * 7)
_BLOCK_ARGS = ctypes.c_int64 * (13 + 12 * 7)
_BLOCK_GRAD_ARGS = ctypes.c_int64 * (13 + 21 * 7)
_NORM_ARGS = ctypes.c_int64 * (6 + 6 * 7)
_NORM_GRAD_ARGS = ctypes.c_int64 * (6 + 8 * 7)
_MATMUL_ARGS = ctypes.c_int64 * (5 + 4 * 7)

_library: ctypes.CDLL | None = None
_state: tuple[bool, str] | None = None


def find_library() -> Path | None:
    """Return the compiled library beside this file, or None."""
    folder = Path(__file__).resolve().parent
    for suffix in dict.fromkeys((*EXTENSION_SUFFIXES, ".so", ".dylib", ".pyd")):
        path = folder / f"_cpu{suffix}"
        if path.is_file():
            return path
    return None


def load(path: str | Path | None = None) -> tuple[bool, str]:
    """Load the library, from `path` if given, and say whether it can be used and why not.

    A file that is not a library, one for another machine, one that lacks our functions and one with another argument
    layout are all refused with a reason; after a refusal no library is in use.
    """
    global _library, _state
    _library = None
    path = Path(path) if path else find_library()
    if path is None:
        _state = False, "the compiled library _cpu is not in the package: no C++ compiler when it was installed?"
        return _state
    try:
        lib = ctypes.CDLL(str(path))
    except OSError as e:
        _state = False, f"{path.name} cannot be loaded: {e}"
        return _state
    try:
        lib.vmamba_abi_version.restype = lib.vmamba_tile.restype = ctypes.c_int64
        abi, tile = lib.vmamba_abi_version(), lib.vmamba_tile()
        if (abi, tile) != (ABI_VERSION, TILE):
            need = f"need {ABI_VERSION}, {TILE}"
            _state = False, f"{path.name} is of another version (ABI {abi}, tile {tile}; {need}): reinstall"
            return _state
        for text in (lib.vmamba_isa_name, lib.vmamba_compiler, lib.vmamba_status):
            text.restype = ctypes.c_char_p
        lib.vmamba_status.argtypes = (ctypes.c_int,)
        lib.vmamba_set_isa.argtypes = lib.vmamba_use_openmp.argtypes = (ctypes.c_int,)
        lib.vmamba_forward.argtypes = (_FORWARD_ARGS, ctypes.c_int64)
        lib.vmamba_backward.argtypes = (_BACKWARD_ARGS, ctypes.c_int64)
        lib.vmamba_block_forward.argtypes = (_BLOCK_ARGS, ctypes.c_int64)
        lib.vmamba_block_backward.argtypes = (_BLOCK_GRAD_ARGS, ctypes.c_int64)
        lib.vmamba_norm.argtypes = (_NORM_ARGS, ctypes.c_int64)
        lib.vmamba_norm_backward.argtypes = (_NORM_GRAD_ARGS, ctypes.c_int64)
        lib.vmamba_matmul.argtypes = (_MATMUL_ARGS, ctypes.c_int64)
    except AttributeError as e:
        _state = False, f"{path.name} is not this package's library: {e}"
        return _state
    _library = lib
    _state = True, f"{lib.vmamba_isa_name().decode()}, built with {lib.vmamba_compiler().decode()}"
    return _state


def available() -> tuple[bool, str]:
    """Return whether the backend can run here, and its instruction set and compiler or the reason why not."""
    return _state if _state is not None else load()


def set_isa(level: str) -> str:
    """Force an instruction set ("auto", "plain", "avx2", "avx512") for every later call; return the one in use.

    Raises:
        ValueError: If the level is unknown or this CPU does not have it.
    """
    global _state
    if level not in ISA_LEVELS:
        raise ValueError(f"unknown instruction set {level!r}: choose from {', '.join(ISA_LEVELS)}")
    lib = _loaded()
    if lib.vmamba_set_isa(ISA_LEVELS[level]) < 0:
        raise ValueError(f"this CPU has no {level}")
    isa = lib.vmamba_isa_name().decode()
    _state = True, f"{isa}, built with {lib.vmamba_compiler().decode()}"
    return isa


def accepts(u, delta, A, B, C, D, z, delta_bias) -> tuple[bool, str]:
    """Return whether the kernels take these tensors, and if not the reason."""
    for label, t in (("u", u), ("delta", delta), ("B", B), ("C", C), ("z", z)):
        if t is not None and not (t.dtype in _DTYPES and t.is_cpu and t.layout == torch.strided):
            narrow = "a dense CPU tensor" if t.dtype in _DTYPES else "float32, bfloat16 or float16"
            return False, f"{label} is {t.dtype}, {t.layout}, on {t.device}: only {narrow}"
    for label, t in (("A", A), ("D", D), ("delta_bias", delta_bias)):
        if t is not None and not (t.dtype == torch.float32 and t.is_cpu and t.layout == torch.strided):
            wide = "a dense CPU tensor" if t.dtype == torch.float32 else "float32"
            return False, f"{label} is {t.dtype}, {t.layout}, on {t.device}: only {wide}"
    if not 1 <= A.shape[-1] <= MAX_STATES:
        return False, f"{A.shape[-1]} states: only 1 to {MAX_STATES}"
    return True, ""


def num_checkpoints(L: int) -> int:
    """Return how many states a forward pass over L tokens keeps for backward; the last is the final state."""
    return max(1, (L + TILE - 1) // TILE)


def forward(u, delta, A, B, C, D, z, delta_bias, delta_softplus: bool, orders: list[int], checkpoints: bool = True):
    """Scan all groups of a batch.

    Args:
        u (torch.Tensor): Input (B, K, D, L). Channel-last memory, stride 1 over D, is the fast layout for every tensor
            here; any strides are right, and a stride of 0 reads a shared tensor once per group.
        delta (torch.Tensor): Step sizes before bias and softplus, (B, K, D, L).
        A (torch.Tensor): Decay rates (K, D, N), float32.
        B (torch.Tensor): Input weights (B, K, N, L).
        C (torch.Tensor): Output weights (B, K, N, L).
        D (torch.Tensor | None): Skip weights (K, D), float32.
        z (torch.Tensor | None): Gate (B, K, D, L).
        delta_bias (torch.Tensor | None): Added to delta (K, D), float32.
        delta_softplus (bool): Pass delta through softplus.
        orders (list[int]): Token order of each group: 0 forward, 1 reversed.
        checkpoints (bool): Keep the states that backward needs; otherwise only the last one.

    Returns:
        (torch.Tensor): Output (B, K, D, L) in u's dtype, with u's strides if u is dense, else stride 1 over D.
        (torch.Tensor): States (B, K, num_checkpoints(L) or 1, D, N) float32, in scan order.
    """
    lib = _loaded()
    bs, k, d, length, n = _check(u, delta, A, B, C, D, z, delta_bias, orders)
    count = num_checkpoints(length) if checkpoints else 1
    out = torch.empty_like(u)
    states = u.new_empty((bs, k, count, n, d), dtype=torch.float32).transpose(-1, -2)
    if u.numel() == 0:
        return out, states.zero_()
    order = (ctypes.c_int64 * k)(*orders)
    args = [
        ABI_VERSION,
        torch.get_num_threads(),
        int(delta_softplus),
        bs,
        k,
        d,
        length,
        n,
        count,
        ctypes.addressof(order),
    ]
    for t in (u, delta, A, B, C, D, z, delta_bias, out, states):
        args += _tensor(t)
    _raise(lib, lib.vmamba_forward(_FORWARD_ARGS(*args), len(args)))
    return out, states


def backward(dout, u, delta, A, B, C, D, z, delta_bias, states, delta_softplus: bool, orders: list[int]):
    """Return the gradients (du, ddelta, dA, dB, dC, dD, dz, ddelta_bias), None for absent inputs.

    dout is the gradient of forward's output, (B, K, D, L), states are forward's checkpoints, (B, K, n, D, N), and the
    other arguments are forward's. Gradients of float32 parameters are float32, others in their input's dtype.
    """
    lib = _loaded()
    bs, k, d, length, n = _check(u, delta, A, B, C, D, z, delta_bias, orders)
    count = num_checkpoints(length)
    if dout.shape != u.shape or states.shape != (bs, k, count, d, n) or states.dtype != torch.float32:
        raise ValueError(f"dout {tuple(dout.shape)} or states {tuple(states.shape)} do not belong to this scan")
    du, ddelta, dB, dC = torch.empty_like(u), torch.empty_like(delta), torch.empty_like(B), torch.empty_like(C)
    dz = None if z is None else torch.empty_like(z)
    dA = torch.empty_like(A, memory_format=torch.contiguous_format)
    dD, dbias = (
        None if t is None else torch.empty_like(t, memory_format=torch.contiguous_format) for t in (D, delta_bias)
    )
    if u.numel() == 0:
        for t in (dA, dB, dC, dD, dbias):
            if t is not None:
                t.zero_()
        return du, ddelta, dA, dB, dC, dD, dz, dbias
    order = (ctypes.c_int64 * k)(*orders)
    args = [
        ABI_VERSION,
        torch.get_num_threads(),
        int(delta_softplus),
        bs,
        k,
        d,
        length,
        n,
        count,
        ctypes.addressof(order),
    ]
    for t in (u, delta, A, B, C, D, z, delta_bias, dout, states, du, ddelta, dA, dB, dC, dD, dz, dbias):
        args += _tensor(t)
    _raise(lib, lib.vmamba_backward(_BACKWARD_ARGS(*args), len(args)))
    return du, ddelta, dA, dB, dC, dD, dz, dbias


def block_accepts(xz, conv_w, conv_b, x_proj, dt_proj, A, D, dt_bias) -> tuple[bool, str]:
    """Return whether the block's kernels take these tensors (see `block_forward`), and if not the reason."""
    named = {"xz": xz, "conv_w": conv_w, "conv_b": conv_b, "x_proj": x_proj, "dt_proj": dt_proj}
    for label, t in named.items():
        if t is not None and (t.device.type != "cpu" or t.layout != torch.strided or t.dtype not in _DTYPES):
            return False, f"{label} is no dense CPU tensor of float32, bfloat16 or float16"
    for label, t in (("A", A), ("D", D), ("dt_bias", dt_bias)):
        if t is not None and (t.device.type != "cpu" or t.layout != torch.strided or t.dtype != torch.float32):
            return False, f"{label} is no dense CPU tensor of float32"
    taps = 1 if conv_w is None else conv_w.shape[2]
    sizes = ("taps", taps, MAX_TAPS), ("rank", dt_proj.shape[2], MAX_RANK)
    for label, size, most in (*sizes, ("directions", A.shape[0], MAX_DIRECTIONS), ("states", A.shape[2], MAX_STATES)):
        if not 1 <= size <= most:
            return False, f"{label}: {size}, only 1 to {most}"
    return True, ""


def block_forward(
    xz, conv_w, conv_b, x_proj, dt_proj, A, D, dt_bias, delta_softplus: bool, orders: list[int], keep: bool
):
    """Run conv, SiLU, projections, the scans of all directions, their sum and the gate.

    Nothing of size (B, K, L, D) is stored. With Kc = 1 row, conv and projections are shared by all directions.

    Args:
        xz (torch.Tensor): Input projection, x beside the gate z (B, L, 2D), or x alone (B, L, D) and no gate.
        conv_w (torch.Tensor | None): (Kc, D, W); without it, one tap of 1.
        conv_b (torch.Tensor | None): (Kc, D).
        x_proj (torch.Tensor): (Kc, R + 2N, D).
        dt_proj (torch.Tensor): (Kc, D, R).
        A (torch.Tensor): (K, D, N), float32.
        D (torch.Tensor | None): (K, D), float32.
        dt_bias (torch.Tensor | None): (K, D), float32.
        delta_softplus (bool): Pass delta through softplus.
        orders (list[int]): Token order of each direction: 0 forward, 1 reversed.
        keep (bool): Return what backward needs; the last three are None otherwise.

    Returns:
        (torch.Tensor): Gated output (B, L, D).
        (torch.Tensor | None): The same before the gate (B, L, D), None too where there is no gate.
        (torch.Tensor | None): Projections (B, Kc, L, R + 2N).
        (torch.Tensor | None): States (B, K, num_checkpoints(L), D, N) float32, in scan order.
    """
    lib = _loaded()
    conv_w = _identity_taps(x_proj) if conv_w is None else conv_w
    head, order = _block_head(xz, conv_w, conv_b, x_proj, dt_proj, A, D, dt_bias, delta_softplus, orders)
    _, _, _, bs, k, kc, d, length, n, r, _ = head
    out = xz.new_empty(bs, length, d)
    y = projected = states = None
    if keep:
        y = torch.empty_like(out) if xz.shape[2] == 2 * d else None
        projected = xz.new_empty(bs, kc, length, r + 2 * n)
        states = xz.new_empty((bs, k, num_checkpoints(length), n, d), dtype=torch.float32).transpose(-1, -2)
    args = [*head, states.shape[2] if keep else 0, ctypes.addressof(order)]
    for t in (xz, conv_w, conv_b, x_proj, dt_proj, A, D, dt_bias, out, y, projected, states):
        args += _tensor(t)
    _raise(lib, lib.vmamba_block_forward(_BLOCK_ARGS(*args), len(args)))
    return out, y, projected, states


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
    its input's dtype. Without a gate y is None, and `gated` must be False.
    """
    lib = _loaded()
    convolves = conv_w is not None
    conv_w = conv_w if convolves else _identity_taps(x_proj)
    head, order = _block_head(xz, conv_w, conv_b, x_proj, dt_proj, A, D, dt_bias, delta_softplus, orders)
    _, _, _, bs, k, kc, d, length, n, r, _ = head
    count = num_checkpoints(length)
    for label, t, shape in (
        ("dout", dout, (bs, length, d)),
        ("y", y, (bs, length, d)),
        ("projected", projected, (bs, kc, length, r + 2 * n)),
        ("states", states, (bs, k, count, d, n)),
    ):
        if label == "y" and xz.shape[2] == d:
            continue
        if t.shape != shape or t.dtype not in ((torch.float32,) if label == "states" else _DTYPES):
            raise ValueError(f"{label} {tuple(t.shape)} {t.dtype} does not belong to this block, expected {shape}")
    inputs = (xz, conv_w, conv_b, x_proj, dt_proj, A, D, dt_bias)
    make = torch.zeros_like if xz.numel() == 0 else torch.empty_like
    grads = [None if t is None else make(t, memory_format=torch.contiguous_format) for t in inputs]
    out = torch.empty_like(y, memory_format=torch.contiguous_format) if gated else None
    args = [*head, count, ctypes.addressof(order)]
    for t in (*inputs, y, projected, states, dout, *grads, out):
        args += _tensor(t)
    _raise(lib, lib.vmamba_block_backward(_BLOCK_GRAD_ARGS(*args), len(args)))
    if not convolves:
        grads[1] = None
    return (*grads, out)


def _identity_taps(x_proj: torch.Tensor) -> torch.Tensor:
    """Return the weights (Kc, D, 1) of a convolution that changes nothing, for x_proj (Kc, P, D)."""
    return x_proj.new_ones(x_proj.shape[0], x_proj.shape[2], 1)


def _block_head(xz, conv_w, conv_b, x_proj, dt_proj, A, D, dt_bias, delta_softplus, orders) -> tuple[list[int], object]:
    """Check what the block's kernels take on trust; return the start of their arguments and the orders behind it."""
    ok, reason = block_accepts(xz, conv_w, conv_b, x_proj, dt_proj, A, D, dt_bias)
    if not ok:
        raise ValueError(reason)
    (bs, length, width), (k, d, n), (kc, _, w), r = xz.shape, A.shape, conv_w.shape, dt_proj.shape[2]
    for label, t, shape in (
        ("xz", xz, (bs, length, d if width == d else 2 * d)),
        ("conv_w", conv_w, (kc, d, w)),
        ("conv_b", conv_b, (kc, d)),
        ("x_proj", x_proj, (kc, r + 2 * n, d)),
        ("dt_proj", dt_proj, (kc, d, r)),
        ("A", A, (k, d, n)),
        ("D", D, (k, d)),
        ("dt_bias", dt_bias, (k, d)),
    ):
        if t is not None and t.shape != shape:
            raise ValueError(f"{label} has shape {tuple(t.shape)}, expected {shape}")
    if kc not in (1, k) or len(orders) != k:
        raise ValueError(f"{kc} rows of conv and projections and {len(orders)} orders for {k} directions")
    flags = int(delta_softplus) | (NO_GATE if width == d else 0)
    head = [ABI_VERSION, torch.get_num_threads(), flags, bs, k, kc, d, length, n, r, w]
    return head, (ctypes.c_int64 * k)(*orders)


def norm_accepts(x, weight, bias) -> tuple[bool, str]:
    """Return whether `norm_forward` takes these tensors, and if not the reason."""
    for label, t in (("x", x), ("weight", weight), ("bias", bias)):
        if t.device.type != "cpu" or t.layout != torch.strided or t.dtype not in _DTYPES:
            return False, f"{label} is no dense CPU tensor of float32, bfloat16 or float16"
    return True, ""


def norm_forward(x, weight, bias, eps: float):
    """Normalise the channels of each token of a map, with the tokens' transposition in the same pass.

    Args:
        x (torch.Tensor): (B, C, L), any strides.
        weight (torch.Tensor): (C).
        bias (torch.Tensor): (C).
        eps (float): Added to the variance.

    Returns:
        (torch.Tensor): Tokens (B, L, C) in the dtype of x, contiguous.
        (torch.Tensor): Means (B, L) float32.
        (torch.Tensor): Reciprocal standard deviations (B, L) float32.
    """
    lib = _loaded()
    bs, c, length = _check_norm(x, weight, bias)
    out = x.new_empty(bs, length, c)
    mean, rstd = (x.new_empty((bs, length), dtype=torch.float32) for _ in range(2))
    args = [ABI_VERSION, torch.get_num_threads(), bs, c, length, _bits(eps)]
    for t in (x, weight, bias, out, mean, rstd):
        args += _tensor(t)
    _raise(lib, lib.vmamba_norm(_NORM_ARGS(*args), len(args)))
    return out, mean, rstd


def norm_backward(dout, x, weight, mean, rstd):
    """Return the gradients of `norm_forward` by x, in its layout, weight and bias."""
    lib = _loaded()
    bs, c, length = _check_norm(x, weight, weight)
    for label, t, shape in (
        ("dout", dout, (bs, length, c)),
        ("mean", mean, (bs, length)),
        ("rstd", rstd, (bs, length)),
    ):
        if t.shape != shape or t.dtype not in ((torch.float32,) if label != "dout" else _DTYPES):
            raise ValueError(f"{label} {tuple(t.shape)} {t.dtype} does not belong to this norm, expected {shape}")
    dx, dweight, dbias = torch.empty_like(x), torch.empty_like(weight), torch.empty_like(weight)
    args = [ABI_VERSION, torch.get_num_threads(), bs, c, length, 0]
    for t in (x, weight, mean, rstd, dout, dx, dweight, dbias):
        args += _tensor(t)
    _raise(lib, lib.vmamba_norm_backward(_NORM_GRAD_ARGS(*args), len(args)))
    return dx, dweight, dbias


def _check_norm(x, weight, bias) -> tuple[int, int, int]:
    """Check what the norm's kernels take on trust and return B, C, L."""
    ok, reason = norm_accepts(x, weight, bias)
    if not ok:
        raise ValueError(reason)
    if x.dim() != 3 or weight.shape != x.shape[1:2] or bias.shape != x.shape[1:2]:
        raise ValueError(f"x {tuple(x.shape)} must be (B, C, L), weight {tuple(weight.shape)} and bias (C)")
    return tuple(x.shape)


def matmul_accepts(a, b, bias) -> tuple[bool, str]:
    """Return whether `matmul` takes these and is worth it, and if not the reason."""
    for label, t in (("a", a), ("b", b), ("bias", bias)):
        if t is not None and (t.device.type != "cpu" or t.layout != torch.strided or t.dtype != torch.float32):
            return False, f"{label} is no dense CPU tensor of float32"
    if b.shape[1] % WHOLE_COLUMNS or not a.shape[1]:
        return False, f"{b.shape[1]} columns: only multiples of {WHOLE_COLUMNS}, and sums of at least one product"
    if _state is None or not _state[1].startswith("AVX-512"):  # torch.compile cannot trace a question to the library
        return False, "without AVX-512 PyTorch's own product is as fast"
    return True, ""


def matmul(a, b, bias):
    """Return a (M, K) times b (K, N), any strides, plus bias (N), if given: (M, N) float32.

    PyTorch's product, MKL's, has no AVX-512 kernel for AMD's processors and runs at under half of their peak.
    """
    lib = _loaded()
    if a.dim() != 2 or b.dim() != 2 or a.shape[1] != b.shape[0] or (bias is not None and bias.shape != b.shape[1:]):
        shapes = ", ".join(str(None if t is None else tuple(t.shape)) for t in (a, b, bias))
        raise ValueError(f"a, b, bias must be (M, K), (K, N), (N), got {shapes}")
    if any(t is not None and (t.dtype != torch.float32 or t.device.type != "cpu") for t in (a, b, bias)):
        raise ValueError("a, b and bias must be float32 on the CPU")
    out = a.new_empty(a.shape[0], b.shape[1])
    args = [ABI_VERSION, torch.get_num_threads(), *a.shape, b.shape[1]]
    for t in (a, b, bias, out):
        args += _tensor(t)
    _raise(lib, lib.vmamba_matmul(_MATMUL_ARGS(*args), len(args)))
    return out


def _bits(value: float) -> int:
    """Return the bits of a double as an integer."""
    return int.from_bytes(struct.pack("=d", value), sys.byteorder, signed=True)


def _loaded() -> ctypes.CDLL:
    """Return the library or raise RuntimeError with the reason why there is none."""
    ok, reason = available()
    if not ok or _library is None:
        raise RuntimeError(f"the C++ selective scan is not available: {reason}")
    return _library


def _check(u, delta, A, B, C, D, z, delta_bias, orders) -> tuple[int, int, int, int, int]:
    """Check what the kernels take on trust, since a wrong shape there reads foreign memory."""
    bs, k, d, length = u.shape
    n = A.shape[-1]
    want = {"delta": (delta, (bs, k, d, length)), "A": (A, (k, d, n)), "B": (B, (bs, k, n, length))}
    want |= {
        "C": (C, (bs, k, n, length)),
        "D": (D, (k, d)),
        "z": (z, (bs, k, d, length)),
        "delta_bias": (delta_bias, (k, d)),
    }
    for label, (t, shape) in want.items():
        if t is not None and t.shape != shape:
            raise ValueError(f"{label} has shape {tuple(t.shape)}, expected {shape}")
    if len(orders) != k:
        raise ValueError(f"{len(orders)} orders for {k} groups")
    ok, reason = accepts(u, delta, A, B, C, D, z, delta_bias)
    if not ok:
        raise ValueError(reason)
    return bs, k, d, length, n


def _tensor(t: torch.Tensor | None) -> tuple[int, ...]:
    """Return address, dtype code and strides, padded to five."""
    if t is None:
        return _NO_TENSOR
    stride = t.stride()
    return (t.data_ptr(), _DTYPES[t.dtype], *stride, *(0,) * (5 - len(stride)))


def _raise(lib: ctypes.CDLL, status: int) -> None:
    """Turn a status code of the library into an exception."""
    if status:
        message = lib.vmamba_status(status).decode()
        raise MemoryError(message) if message == "out of memory" else ValueError(message)
