# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Triton kernels of the GPU backend; of the scan; imported by load.py alone, because they need triton.

A state tile is (N, channels) with the channels last: Triton then gives each thread whole channels, all N states of
them, and sums over states cost no exchange between threads. docs/design/gpu-kernel.md derives the passes and counts
their work. Only what triton.language offers is used, so that the same source serves NVIDIA and AMD.

Names of the arguments: `x_b, x_k, x_d, x_l` are the strides of x, `segs` the parts that one scan is divided into,
`blocks` the blocks of channels, bit k of `orders` is set if group k runs against token order. With RANK > 0 there is no
delta in memory: it is dt_proj (K, D, RANK) times the RANK numbers of a token that pack_weights puts behind its B and C.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)
LN2: tl.constexpr = tl.constexpr(0.6931471805599453)

# Lengths and most strides stay run-time values: one compiled kernel serves every size. Of a channel stride the compiler
# is to know whether it is 1, so that it keeps neighbouring channels in neighbouring threads, and of the others nothing,
# so that it does not spread one channel's states over threads in exchange for wider loads.
_TOKENS = ("u", "v", "delta", "z", "dout", "out", "du", "ddelta", "dz")
_RUNTIME = [f"{x}_{i}" for x in _TOKENS for i in "bkl"] + [f"{x}_{i}" for x in ("B", "C") for i in "bknl"]
_RUNTIME += [f"{x}_{i}" for x in ("dB", "dC") for i in "bkinl"]
_RUNTIME += [f"{x}_{i}" for x in ("low", "proj") for i in "bklrd"]
_RUNTIME += ["A_k", "A_d", "A_n", "D_k", "D_d", "bias_k", "bias_d"]
_RUNTIME += ["K", "L", "tiles", "per_seg", "segs", "blocks", "orders", "first", "width", "padded"]
_CHANNEL_A_THREAD = [*_RUNTIME, "channels"]


@triton.jit
def _row(x, i: tl.constexpr, ROWS: tl.constexpr):
    """Return row i of a (ROWS, channels) tile; integers, because the compiler drops an integer sum with zeros."""
    bits = x.to(tl.int32, bitcast=True)
    return tl.sum(tl.where(tl.arange(0, ROWS)[:, None] == i, bits, 0), axis=0).to(tl.float32, bitcast=True)


@triton.jit
def _bits(x):
    """Return numbers as integers: the bits of their float32."""
    return x.to(tl.float32).to(tl.int32, bitcast=True)


# The recurrence has a few warps to a multiprocessor, too few to hide a load that goes past the first cache, and the
# compiler moves no load over a store. So every loop asks for what its next round needs: one load brings a sector of 32
# bytes into the first cache, in one register for 32 sectors. What has been `asked` for is kept in `seen` a round later,
# not before, since a warp waits where a load is used; and stored under a condition that never holds, or the compiler
# would drop the load.


@triton.jit
def _touch(packed, at, limit, sectors, ROWS: tl.constexpr, ROW: tl.constexpr):
    """Ask for the rows of ROWS tokens of packed; nothing outside 0 <= at < limit."""
    ok = (sectors * 8 < ROWS * ROW) & (at >= 0) & (at < limit)
    return tl.load(packed + at.to(tl.int64) * ROW + sectors * 8, ok, 0.0)


@triton.jit
def _touch_tokens(x, x_d, x_l, sign, pos, at, L, rows, d, ok_d):
    """Ask for one token's channels d at each of rows, which count from token `at` at position pos; within 0 and L."""
    ok = ok_d & (at + rows >= 0) & (at + rows < L)
    return tl.load(x + pos * x_l + (sign * rows * x_l + d * x_d), ok, 0.0)


@triton.jit
def _keep(packed, sectors, seen, L):
    """Use what was asked for: a store that never happens."""
    tl.store(packed + sectors, seen.to(tl.float32, bitcast=True), (sectors >= 0) & (L < 0))


@triton.jit
def _exp(x):
    """Return e^x for x <= 0, not below 1e-38; the rounding of x log2(e), up to 6e-8 |x|, is put back."""
    x = tl.where(x < -87.0, -87.0, x)
    p = x * LOG2E
    e = tl.exp2(p)
    return e + e * (tl.fma(x, LOG2E, -p) * LN2)


@triton.jit
def _sigmoid(x):
    e = _exp(-tl.abs(x))
    return tl.where(x >= 0, 1.0, e) / (1.0 + e)


@triton.jit
def _step(x, SOFTPLUS: tl.constexpr):
    """Return the step size dt from delta + bias.

    log1p(e) = 2 atanh(e / (2 + e)) keeps full relative precision for small e, as log(1 + e) does not.
    """
    if SOFTPLUS:
        e = _exp(-tl.abs(x))
        s = e / (2.0 + e)
        t = s * s
        p = 0.33333338 + t * (0.19999436 + t * (0.14308484 + t * (0.10713574 + t * 0.12150912)))
        x = tl.where(x < 0, 0.0, x) + 2.0 * (s + s * t * p)
    return x


@triton.jit
def _over_states(x, BLOCK_N: tl.constexpr):
    """Return the sum over the states of a tile (BLOCK_N, channels): of every 16th state, then of those 16 sums.

    A plain sum adds one state after another, and its rounding grows with the root of their number. The states of one
    thread are added first: the other way round each of the 16 would take shuffles.
    """
    if BLOCK_N > 16:
        x = tl.sum(tl.reshape(x, [BLOCK_N // 16, 16, x.shape[1]]), axis=0)
    return tl.sum(x, axis=0)


@triton.jit
def _projection(proj, proj_r, d, proj_d, ok_d, RANK: tl.constexpr):
    """Return the columns of dt_proj that a block of channels needs, RANK times (channels)."""
    columns = ()
    for r in tl.static_range(RANK):
        columns = columns + (tl.load(proj + d.to(tl.int64) * proj_d + r * proj_r, ok_d, 0.0).to(tl.float32),)
    return columns


# A column at a time, not one tile (RANK, channels) and its sum: Triton 3.6 would spread a channel over threads.


@triton.jit
def _delta_rows(low, columns, rows, d, ROW: tl.constexpr, RANK: tl.constexpr):
    """Return delta of a few tokens, (ROWS, channels), whose low ranks are rows of packed; before bias and softplus.

    Each channel loads for itself, which costs as little as one load for all and keeps a channel in its thread.
    """
    low += rows[:, None] * ROW + (d * 0)[None, :]
    x = tl.load(low) * columns[0][None, :]
    for r in tl.static_range(1, RANK):
        x += tl.load(low + r) * columns[r][None, :]
    return x


@triton.jit
def _delta(delta, at, ok, low, columns, RANK: tl.constexpr):
    """Return delta of one token, (channels), before bias and softplus: from memory, or from its low ranks."""
    if RANK > 0:
        x = tl.load(low) * columns[0]
        for r in tl.static_range(1, RANK):
            x += tl.load(low + r) * columns[r]
    else:
        x = tl.load(delta + at, ok, 0.0).to(tl.float32)
    return x


@triton.jit(do_not_specialize=_CHANNEL_A_THREAD)
def pack_weights(
    B, C, low, packed, B_b, B_k, B_n, B_l, C_b, C_k, C_n, C_l, low_b, low_k, low_r, low_l, K, L, padded, orders,
    N: tl.constexpr, BLOCK_N: tl.constexpr, RANK: tl.constexpr, BLOCK_R: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    """Copy B, C and low to float32 rows (B K, padded L, B | C | low) in scan order, zeros beyond N, RANK and L.

    Every thread of the scan needs every B and C: aligned rows make that 8 loads a token in place of 32 and a
    conversion each. Programs: padded / TOKENS x (B K).
    """
    pid = tl.program_id(0)
    per_bk = padded // TOKENS
    bk = (pid // per_bk).to(tl.int64)
    b, k = bk // K, bk % K
    reverse = (orders >> k.to(tl.int32)) & 1
    t = (pid % per_bk) * TOKENS + tl.arange(0, TOKENS)
    n = tl.arange(0, BLOCK_N)
    ok = (t < L)[:, None] & (n < N)[None, :]
    pos = (reverse * (L - 1) + (1 - 2 * reverse) * t).to(tl.int64)[:, None]
    n64 = n.to(tl.int64)[None, :]
    place = packed + (bk * padded + t[:, None]) * (2 * BLOCK_N + BLOCK_R) + n[None, :]
    row = tl.load(B + b * B_b + k * B_k + n64 * B_n + pos * B_l, ok, 0.0)
    tl.store(place, row.to(tl.float32))
    row = tl.load(C + b * C_b + k * C_k + n64 * C_n + pos * C_l, ok, 0.0)
    tl.store(place + BLOCK_N, row.to(tl.float32))
    if RANK > 0:
        r = tl.arange(0, BLOCK_R)
        ok = (t < L)[:, None] & (r < RANK)[None, :]
        row = tl.load(low + b * low_b + k * low_k + r.to(tl.int64)[None, :] * low_r + pos * low_l, ok, 0.0)
        place = packed + (bk * padded + t[:, None]) * (2 * BLOCK_N + BLOCK_R) + 2 * BLOCK_N + r[None, :]
        tl.store(place, row.to(tl.float32))


@triton.jit(do_not_specialize=_CHANNEL_A_THREAD)
def scan_local(
    v, delta, A, packed, proj, z, bias, ends, sums,
    v_b, v_k, v_d, v_l, delta_b, delta_k, delta_d, delta_l, z_b, z_k, z_d, z_l, A_k, A_d, A_n,
    proj_k, proj_d, proj_r, bias_k, bias_d,
    K, channels, L, tiles, per_seg, segs, blocks, orders, first,
    N: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, RANK: tl.constexpr, BLOCK_R: tl.constexpr,
    TILE: tl.constexpr, ROWS: tl.constexpr, SECTORS: tl.constexpr, SOFTPLUS: tl.constexpr, ADJOINT: tl.constexpr,
):  # fmt: skip
    """Scan each segment from zero: its end state and the sum of its steps.

    Forward: v is u, h = a h + dt u B. Adjoint, against scan order: v is dout, w = a (w + dy C).
    Programs: blocks x (segments from `first`) x (B K).
    """
    ROW: tl.constexpr = 2 * BLOCK_N + BLOCK_R
    FIRST: tl.constexpr = ROWS - 1 if ADJOINT else 0
    STOP: tl.constexpr = -1 if ADJOINT else ROWS
    STRIDE: tl.constexpr = -1 if ADJOINT else 1
    pid = tl.program_id(0)
    block = pid % blocks
    seg = (pid // blocks) % (segs - 1) + first
    bk = (pid // (blocks * (segs - 1))).to(tl.int64)
    b, k = bk // K, bk % K
    reverse = (orders >> k.to(tl.int32)) & 1
    origin = reverse * (L - 1)
    sign = 1 - 2 * reverse
    n = tl.arange(0, BLOCK_N)
    d = block * BLOCK_D + tl.arange(0, BLOCK_D)
    rows = tl.arange(0, ROWS)
    ok_d, ok_n = d < channels, n < N
    d64, n64 = d.to(tl.int64), n.to(tl.int64)
    a2 = tl.load(A + k * A_k + d64[None, :] * A_d + n64[:, None] * A_n, ok_n[:, None] & ok_d[None, :], 0.0) * LOG2E
    shift = tl.zeros([BLOCK_D], tl.float32)
    if bias is not None:
        shift = tl.load(bias + k * bias_k + d64 * bias_d, ok_d, 0.0)
    # A pointer that moves from rows to rows, and 32-bit offsets that stay.
    v += b * v_b + k * v_k
    v_at = sign * rows[:, None] * v_l + d[None, :] * v_d
    if RANK > 0:
        proj += k * proj_k
    else:
        delta += b * delta_b + k * delta_k
        delta_at = sign * rows[:, None] * delta_l + d[None, :] * delta_d
    columns = _projection(proj, proj_r, d, proj_d, ok_d, RANK)
    if z is not None:
        z += b * z_b + k * z_k
        z_at = sign * rows[:, None] * z_l + d[None, :] * z_d
    packed += bk * tiles * TILE * ROW
    B_or_C = packed + (BLOCK_N if ADJOINT else 0) + n

    h = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    total = tl.zeros([BLOCK_D], tl.float32)
    t_begin = seg * per_seg * TILE
    t_end = tl.minimum(t_begin + per_seg * TILE, L)
    groups = tl.cdiv(t_end - t_begin, ROWS)
    # The next rows are loaded before the current ones are used, and asked for before that.
    sectors = tl.arange(0, SECTORS)
    seen, asked = tl.zeros([SECTORS], tl.int32), tl.zeros([SECTORS], tl.float32)
    at = t_begin + (groups - 1) * ROWS if ADJOINT else t_begin
    ok = ((at + rows >= t_begin) & (at + rows < t_end))[:, None] & ok_d[None, :]
    pos = (origin + sign * at).to(tl.int64)
    if RANK == 0:
        next_delta = tl.load(delta + pos * delta_l + delta_at, ok, 0.0)
    next_v = tl.load(v + pos * v_l + v_at, ok, 0.0)
    if z is not None:
        next_z = tl.load(z + pos * z_l + z_at, ok, 0.0)
    for i in range(groups):
        at = t_begin + (groups - 1 - i if ADJOINT else i) * ROWS
        ok = (at + rows < t_end)[:, None] & ok_d[None, :]
        x = next_v.to(tl.float32)
        after = at + STRIDE * ROWS
        ok_after = ((after + rows >= t_begin) & (after + rows < t_end))[:, None] & ok_d[None, :]
        pos = (origin + sign * after).to(tl.int64)
        seen |= _bits(asked)
        asked = _touch(packed, after, tiles * TILE, sectors, ROWS, ROW)
        if RANK > 0:
            dt = _delta_rows(packed + at.to(tl.int64) * ROW + 2 * BLOCK_N, columns, rows, d, ROW, RANK)
        else:
            dt = next_delta.to(tl.float32)
            next_delta = tl.load(delta + pos * delta_l + delta_at, ok_after, 0.0)
        next_v = tl.load(v + pos * v_l + v_at, ok_after, 0.0)
        dt = tl.where(ok, _step(dt + shift, SOFTPLUS), 0.0)
        if ADJOINT:
            if z is not None:
                gate = next_z.to(tl.float32)
                next_z = tl.load(z + pos * z_l + z_at, ok_after, 0.0)
                x *= gate * _sigmoid(gate)
        else:
            x *= dt
        total += tl.sum(dt, axis=0)
        for r in tl.static_range(FIRST, STOP, STRIDE):
            weight = tl.load(B_or_C + (at + r).to(tl.int64) * ROW)
            decay = tl.exp2(_row(dt, r, ROWS)[None, :] * a2)
            drive = weight[:, None] * _row(x, r, ROWS)[None, :]
            h = decay * (h + drive) if ADJOINT else decay * h + drive
    _keep(packed, sectors, seen | _bits(asked), L)
    place = (bk * segs + seg) * (BLOCK_N * BLOCK_D * blocks)
    tl.store(ends + place + n[:, None] * (BLOCK_D * blocks) + d[None, :], h)
    tl.store(sums + (bk * segs + seg) * (BLOCK_D * blocks) + d, total)


@triton.jit(do_not_specialize=_CHANNEL_A_THREAD)
def scan_carry(
    ends, sums, A, A_k, A_d, A_n, K, channels, segs, blocks, width,
    N: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr, ADJOINT: tl.constexpr,
):  # fmt: skip
    """Replace the local end states by the states that enter each segment, in place.

    h_in[s + 1] = end[s] + exp(A sum_s) h_in[s]; the adjoint goes from the last segment to the first. ROWS segments are
    loaded at a time: their loads do not wait for each other. Programs: blocks x BLOCK_N x (B K).
    """
    pid = tl.program_id(0)
    n = (pid // blocks) % BLOCK_N
    bk = (pid // (blocks * BLOCK_N)).to(tl.int64)
    d = (pid % blocks) * BLOCK_D + tl.arange(0, BLOCK_D)
    k = bk % K
    a2 = tl.load(A + k * A_k + d.to(tl.int64) * A_d + n.to(tl.int64) * A_n, (n < N) & (d < channels), 0.0) * LOG2E
    rows = tl.arange(0, ROWS)
    h = tl.zeros([BLOCK_D], tl.float32)
    for i in range(tl.cdiv(segs, ROWS)):
        s = (i * ROWS + rows)[:, None]
        seg = bk * segs + (segs - 1 - s if ADJOINT else s)
        place = ends + (seg * BLOCK_N + n) * width + d[None, :]
        # The segment at the end of the carry hands nothing on, and scan_local left it out.
        ok = (s < segs - 1) & (d >= 0)[None, :]
        end = tl.load(place, ok, 0.0)
        decay = tl.exp2(tl.load(sums + seg * width + d[None, :], ok, 0.0) * a2[None, :])
        enter = tl.zeros([ROWS, BLOCK_D], tl.float32)
        for r in tl.static_range(ROWS):
            enter = tl.where(rows[:, None] == r, h[None, :], enter)
            h = _row(decay, r, ROWS) * h + _row(end, r, ROWS)
        tl.store(place, enter, (s < segs) & (d >= 0)[None, :])


@triton.jit(do_not_specialize=_CHANNEL_A_THREAD)
def scan_forward(
    u, delta, A, packed, proj, D, z, bias, out, states, enter,
    u_b, u_k, u_d, u_l, delta_b, delta_k, delta_d, delta_l, z_b, z_k, z_d, z_l, out_b, out_k, out_d, out_l,
    A_k, A_d, A_n, proj_k, proj_d, proj_r, D_k, D_d, bias_k, bias_d,
    K, channels, L, tiles, per_seg, segs, blocks, orders,
    N: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, RANK: tl.constexpr, BLOCK_R: tl.constexpr,
    TILE: tl.constexpr, ROWS: tl.constexpr, SECTORS: tl.constexpr, SOFTPLUS: tl.constexpr, KEEP: tl.constexpr,
):  # fmt: skip
    """Scan each segment from the state that enters it, with output and the state after every tile.

    Programs: blocks x segs x (B K). Without KEEP only the last state of a scan is stored.
    """
    ROW: tl.constexpr = 2 * BLOCK_N + BLOCK_R
    pid = tl.program_id(0)
    block = pid % blocks
    seg = (pid // blocks) % segs
    bk = (pid // (blocks * segs)).to(tl.int64)
    b, k = bk // K, bk % K
    reverse = (orders >> k.to(tl.int32)) & 1
    origin = reverse * (L - 1)
    sign = 1 - 2 * reverse
    n = tl.arange(0, BLOCK_N)
    d = block * BLOCK_D + tl.arange(0, BLOCK_D)
    rows = tl.arange(0, ROWS)
    ok_d, ok_n = d < channels, n < N
    ok_nd = ok_n[:, None] & ok_d[None, :]
    d64, n64 = d.to(tl.int64), n.to(tl.int64)
    a2 = tl.load(A + k * A_k + d64[None, :] * A_d + n64[:, None] * A_n, ok_nd, 0.0) * LOG2E
    shift = tl.zeros([BLOCK_D], tl.float32)
    if bias is not None:
        shift = tl.load(bias + k * bias_k + d64 * bias_d, ok_d, 0.0)
    if D is not None:
        skip = tl.load(D + k * D_k + d64 * D_d, ok_d, 0.0)
    u += b * u_b + k * u_k
    u_at = sign * rows[:, None] * u_l + d[None, :] * u_d
    if RANK > 0:
        proj += k * proj_k
    else:
        delta += b * delta_b + k * delta_k
        delta_at = sign * rows[:, None] * delta_l + d[None, :] * delta_d
    columns = _projection(proj, proj_r, d, proj_d, ok_d, RANK)
    out += b * out_b + k * out_k
    out_at = sign * rows[:, None] * out_l + d[None, :] * out_d
    if z is not None:
        z += b * z_b + k * z_k
        z_at = sign * rows[:, None] * z_l + d[None, :] * z_d
    packed += bk * tiles * TILE * ROW
    if KEEP:
        states += bk * tiles * N * channels
    else:
        states += bk * N * channels

    h = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    if enter is not None:
        place = (bk * segs + seg) * (BLOCK_N * BLOCK_D * blocks)
        h = tl.load(enter + place + n[:, None] * (BLOCK_D * blocks) + d[None, :])
    t_begin = seg * per_seg * TILE
    t_end = tl.minimum(t_begin + per_seg * TILE, L)
    groups = tl.cdiv(t_end - t_begin, ROWS)
    # The next rows are loaded before the current ones are used, and asked for before that.
    sectors = tl.arange(0, SECTORS)
    seen, asked = tl.zeros([SECTORS], tl.int32), tl.zeros([SECTORS], tl.float32)
    ok = (t_begin + rows < t_end)[:, None] & ok_d[None, :]
    pos = (origin + sign * t_begin).to(tl.int64)
    if RANK == 0:
        next_delta = tl.load(delta + pos * delta_l + delta_at, ok, 0.0)
    next_u = tl.load(u + pos * u_l + u_at, ok, 0.0)
    for i in range(groups):
        at = t_begin + i * ROWS
        ok = (at + rows < t_end)[:, None] & ok_d[None, :]
        pos = (origin + sign * at).to(tl.int64)
        x = next_u.to(tl.float32)
        ok_next = (at + ROWS + rows < t_end)[:, None] & ok_d[None, :]
        next_pos = (origin + sign * (at + ROWS)).to(tl.int64)
        seen |= _bits(asked)
        asked = _touch(packed, at + ROWS, tiles * TILE, sectors, ROWS, ROW)
        if RANK > 0:
            dt = _delta_rows(packed + at.to(tl.int64) * ROW + 2 * BLOCK_N, columns, rows, d, ROW, RANK)
        else:
            dt = next_delta.to(tl.float32)
            next_delta = tl.load(delta + next_pos * delta_l + delta_at, ok_next, 0.0)
        next_u = tl.load(u + next_pos * u_l + u_at, ok_next, 0.0)
        dt = tl.where(ok, _step(dt + shift, SOFTPLUS), 0.0)
        y = tl.zeros([ROWS, BLOCK_D], tl.float32)
        v = x * dt
        for r in tl.static_range(ROWS):
            weight = packed + (at + r).to(tl.int64) * ROW + n
            B_r = tl.load(weight)
            C_r = tl.load(weight + BLOCK_N)
            decay = tl.exp2(_row(dt, r, ROWS)[None, :] * a2)
            h = decay * h + B_r[:, None] * _row(v, r, ROWS)[None, :]
            y = tl.where(rows[:, None] == r, _over_states(h * C_r[:, None], BLOCK_N)[None, :], y)
        if D is not None:
            y += skip[None, :] * x
        if z is not None:
            gate = tl.load(z + pos * z_l + z_at, ok, 0.0).to(tl.float32)
            y *= gate * _sigmoid(gate)
        tl.store(out + pos * out_l + out_at, y.to(out.dtype.element_ty), ok)
        end = at + ROWS
        if KEEP:
            if (end >= t_end) | (end % TILE == 0):
                tile = (tl.minimum(end, L) - 1) // TILE
                tl.store(states + tile.to(tl.int64) * N * channels + n64[:, None] * channels + d64[None, :], h, ok_nd)
        else:
            if end >= L:
                tl.store(states + n64[:, None] * channels + d64[None, :], h, ok_nd)
    _keep(packed, sectors, seen | _bits(asked), L)


@triton.jit(do_not_specialize=_RUNTIME)
def scan_backward(
    dout, u, delta, A, packed, proj, D, z, bias, states, enter, scratch, du, ddelta, dz, dB, dC, parts,
    dout_b, dout_k, dout_d, dout_l, u_b, u_k, u_d, u_l, delta_b, delta_k, delta_d, delta_l,
    z_b, z_k, z_d, z_l,
    du_b, du_k, du_d, du_l, ddelta_b, ddelta_k, ddelta_d, ddelta_l, dz_b, dz_k, dz_d, dz_l,
    dB_b, dB_k, dB_i, dB_n, dB_l, dC_b, dC_k, dC_i, dC_n, dC_l,
    A_k, A_d, A_n, proj_k, proj_d, proj_r, D_k, D_d, bias_k, bias_d,
    K, channels, L, tiles, per_seg, segs, blocks, orders,
    N: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, RANK: tl.constexpr, BLOCK_R: tl.constexpr,
    TILE: tl.constexpr, ROWS: tl.constexpr, SECTORS: tl.constexpr, SOFTPLUS: tl.constexpr,
):  # fmt: skip
    """Return every gradient of each segment, tile by tile against scan order.

    A tile is scanned once from its checkpoint, leaving the state before every ROWS tokens in `scratch`; then, last rows
    first, ROWS states and decays are made again in registers and the adjoint w (what later tokens say of the state)
    goes back over them. dB and dC are sums over this block's channels only; what A, D and bias get of this segment is
    one part (BLOCK_N + 2, width), dD and dbias last. add_weights and add_parts add them up, in a fixed order.
    Programs: blocks x segs x (B K).
    """
    ROW: tl.constexpr = 2 * BLOCK_N + BLOCK_R
    pid = tl.program_id(0)
    block = pid % blocks
    seg = (pid // blocks) % segs
    bk = (pid // (blocks * segs)).to(tl.int64)
    b, k = bk // K, bk % K
    reverse = (orders >> k.to(tl.int32)) & 1
    origin = reverse * (L - 1)
    sign = 1 - 2 * reverse
    n = tl.arange(0, BLOCK_N)
    d = block * BLOCK_D + tl.arange(0, BLOCK_D)
    ok_d, ok_n = d < channels, n < N
    ok_nd = ok_n[:, None] & ok_d[None, :]
    d64, n64 = d.to(tl.int64), n.to(tl.int64)
    a2 = tl.load(A + k * A_k + d64[None, :] * A_d + n64[:, None] * A_n, ok_nd, 0.0) * LOG2E
    shift = tl.zeros([BLOCK_D], tl.float32)
    if bias is not None:
        shift = tl.load(bias + k * bias_k + d64 * bias_d, ok_d, 0.0)
    skip = tl.zeros([BLOCK_D], tl.float32)
    if D is not None:
        skip = tl.load(D + k * D_k + d64 * D_d, ok_d, 0.0)
    # What a group of ROWS tokens is asked for with: 8 places in the channels of each.
    near = tl.arange(0, ROWS * 8)
    near_row, near_d = near // 8, block * BLOCK_D + near % 8 * BLOCK_D // 8
    near_ok = near_d < channels
    sectors = tl.arange(0, SECTORS)
    seen, seen_packed = tl.zeros_like(near), tl.zeros_like(sectors)
    asked_packed, asked_u = tl.zeros([SECTORS], tl.float32), tl.zeros([ROWS * 8], u.dtype.element_ty)
    asked_dout = tl.zeros([ROWS * 8], dout.dtype.element_ty)
    if RANK == 0:
        asked_delta = tl.zeros([ROWS * 8], delta.dtype.element_ty)
    if z is not None:
        asked_z = tl.zeros([ROWS * 8], z.dtype.element_ty)
    dout += b * dout_b + k * dout_k
    near_dout = dout
    dout += d64 * dout_d
    u += b * u_b + k * u_k
    near_u = u
    u += d64 * u_d
    if RANK > 0:
        proj += k * proj_k
    else:
        delta += b * delta_b + k * delta_k
        near_delta = delta
        delta += d64 * delta_d
    columns = _projection(proj, proj_r, d, proj_d, ok_d, RANK)
    du += b * du_b + k * du_k + d64 * du_d
    ddelta += b * ddelta_b + k * ddelta_k + d64 * ddelta_d
    low = packed + bk * tiles * TILE * ROW + 2 * BLOCK_N
    packed += bk * tiles * TILE * ROW
    near_packed = packed
    packed += n
    dB += b * dB_b + k * dB_k + block.to(tl.int64) * dB_i + n64 * dB_n
    dC += b * dC_b + k * dC_k + block.to(tl.int64) * dC_i + n64 * dC_n
    if z is not None:
        z += b * z_b + k * z_k
        near_z = z
        z += d64 * z_d
        dz += b * dz_b + k * dz_k + d64 * dz_d
    tile_nd = n[:, None] * BLOCK_D + tl.arange(0, BLOCK_D)[None, :]
    scratch += pid.to(tl.int64) * (TILE // ROWS * BLOCK_N * BLOCK_D) + tile_nd
    states += bk * tiles * N * channels + n64[:, None] * channels + d64[None, :]

    width = BLOCK_D * blocks
    part = (bk * segs + seg) * width
    w = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    if enter is not None:
        w = tl.load(enter + part * BLOCK_N + n[:, None] * width + d[None, :])
    parts += part * (BLOCK_N + 2) + d
    dA = parts[None, :] + n[:, None] * width
    dD, dbias = parts + BLOCK_N * width, parts + (BLOCK_N + 1) * width
    tile_begin = seg * per_seg
    tile_end = tl.minimum(tile_begin + per_seg, tiles)
    for i in range(tile_end - tile_begin):
        tile = tile_end - 1 - i
        t_begin = tile * TILE
        t_end = tl.minimum(t_begin + TILE, L)
        groups = tl.cdiv(t_end - t_begin, ROWS)
        h = tl.load(states + (tile - 1).to(tl.int64) * N * channels, ok_nd & (tile > 0), 0.0)
        tl.debug_barrier()  # the previous tile's scratch has been read
        tl.store(scratch, h)
        for m in range(1, groups):
            ask = t_begin + m * ROWS
            ask_pos = (origin + sign * ask).to(tl.int64)
            seen_packed |= _bits(asked_packed)
            asked_packed = _touch(near_packed, ask, tiles * TILE, sectors, ROWS, ROW)
            seen |= _bits(asked_u)
            asked_u = _touch_tokens(near_u, u_d, u_l, sign, ask_pos, ask, L, near_row, near_d, near_ok)
            if RANK == 0:
                seen |= _bits(asked_delta)
                asked_delta = _touch_tokens(
                    near_delta, delta_d, delta_l, sign, ask_pos, ask, L, near_row, near_d, near_ok
                )
            for r in tl.static_range(ROWS):
                t = t_begin + (m - 1) * ROWS + r
                pos = (origin + sign * t).to(tl.int64)
                row = t.to(tl.int64) * ROW
                dt = _step(_delta(delta, pos * delta_l, ok_d, low + row, columns, RANK) + shift, SOFTPLUS)
                x = tl.load(u + pos * u_l, ok_d, 0.0).to(tl.float32) * dt
                B_r = tl.load(packed + row)
                h = tl.exp2(dt[None, :] * a2) * h + B_r[:, None] * x[None, :]
            tl.store(scratch + m * (BLOCK_N * BLOCK_D), h)
        tl.debug_barrier()  # it has been written

        dA_tile = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
        dD_tile = tl.zeros([BLOCK_D], tl.float32)
        dbias_tile = tl.zeros([BLOCK_D], tl.float32)
        for j in range(groups):
            at = t_begin + (groups - 1 - j) * ROWS
            # The group before; of the tile before that its first, which is scanned first.
            ask = tl.where(j < groups - 1, at - ROWS, t_begin - TILE)
            ask_pos = (origin + sign * ask).to(tl.int64)
            seen_packed |= _bits(asked_packed)
            asked_packed = _touch(near_packed, ask, tiles * TILE, sectors, ROWS, ROW)
            seen |= _bits(asked_u) | _bits(asked_dout)
            asked_u = _touch_tokens(near_u, u_d, u_l, sign, ask_pos, ask, L, near_row, near_d, near_ok)
            asked_dout = _touch_tokens(near_dout, dout_d, dout_l, sign, ask_pos, ask, L, near_row, near_d, near_ok)
            if RANK == 0:
                seen |= _bits(asked_delta)
                asked_delta = _touch_tokens(
                    near_delta, delta_d, delta_l, sign, ask_pos, ask, L, near_row, near_d, near_ok
                )
            if z is not None:
                seen |= _bits(asked_z)
                asked_z = _touch_tokens(near_z, z_d, z_l, sign, ask_pos, ask, L, near_row, near_d, near_ok)
            h = tl.load(scratch + (groups - 1 - j) * (BLOCK_N * BLOCK_D))
            before = ()
            decays = ()
            steps = ()
            for r in tl.static_range(ROWS):
                ok = ok_d & (at + r < t_end)
                pos = (origin + sign * (at + r)).to(tl.int64)
                row = (at + r).to(tl.int64) * ROW
                dt = _step(_delta(delta, pos * delta_l, ok, low + row, columns, RANK) + shift, SOFTPLUS)
                dt = tl.where(ok, dt, 0.0)
                x = tl.load(u + pos * u_l, ok, 0.0).to(tl.float32) * dt
                B_r = tl.load(packed + row)
                decay = tl.exp2(dt[None, :] * a2)
                before = before + (h,)
                decays = decays + (decay,)
                steps = steps + (dt,)
                h = decay * h + B_r[:, None] * x[None, :]
            for r in tl.static_range(ROWS - 1, -1, -1):
                ok = ok_d & (at + r < t_end)
                ok_r = ok_n & (at + r < t_end)
                pos = (origin + sign * (at + r)).to(tl.int64)
                row = (at + r).to(tl.int64) * ROW
                dt = steps[r]
                u_r = tl.load(u + pos * u_l, ok, 0.0).to(tl.float32)
                B_r = tl.load(packed + row)
                C_r = tl.load(packed + row + BLOCK_N)
                dy = tl.load(dout + pos * dout_l, ok, 0.0).to(tl.float32)
                if z is not None:
                    gate = tl.load(z + pos * z_l, ok, 0.0).to(tl.float32)
                    sig = _sigmoid(gate)
                    y = _over_states(h * C_r[:, None], BLOCK_N) + skip * u_r
                    slope = sig + gate * sig * (1.0 - sig)
                    tl.store(dz + pos * dz_l, (dy * y * slope).to(dz.dtype.element_ty), ok)
                    dy *= gate * sig
                tl.store(dC + pos * dC_l, tl.sum(h * dy[None, :], axis=1).to(dC.dtype.element_ty), ok_r)
                g = w + C_r[:, None] * dy[None, :]
                tl.store(dB + pos * dB_l, tl.sum(g * (u_r * dt)[None, :], axis=1).to(dB.dtype.element_ty), ok_r)
                dx = _over_states(g * B_r[:, None], BLOCK_N)
                h = before[r]
                w = g * decays[r]
                q = w * h
                dA_tile += q * dt[None, :]
                ddt = _over_states(q * a2, BLOCK_N) * LN2 + dx * u_r
                if SOFTPLUS:  # its slope, of delta itself: 1 - exp(-dt) would lose small steps
                    raw = _delta(delta, pos * delta_l, ok, low + row, columns, RANK)
                    ddt *= _sigmoid(raw + shift)
                ddt = tl.where(ok, ddt, 0.0)
                tl.store(du + pos * du_l, (dx * dt + skip * dy).to(du.dtype.element_ty), ok)
                tl.store(ddelta + pos * ddelta_l, ddt.to(ddelta.dtype.element_ty), ok)
                dD_tile += dy * u_r
                dbias_tile += ddt
        # Two levels of sums, a tile and the segment: rounding of thousands of terms would show in dA. The segment's
        # wait in memory, where they cost no registers.
        tl.store(dA, dA_tile + tl.load(dA, (n[:, None] >= 0) & (i > 0), 0.0))
        if D is not None:
            tl.store(dD, dD_tile + tl.load(dD, (d >= 0) & (i > 0), 0.0))
        if bias is not None:
            tl.store(dbias, dbias_tile + tl.load(dbias, (d >= 0) & (i > 0), 0.0))
    seen |= _bits(asked_u) | _bits(asked_dout)
    if RANK == 0:
        seen |= _bits(asked_delta)
    if z is not None:
        seen |= _bits(asked_z)
    _keep(near_packed, sectors, seen_packed | _bits(asked_packed), L)
    _keep(near_packed, near, seen, L)


@triton.jit(do_not_specialize=["K", "batch", "channels", "segs", "blocks"])
def add_parts(
    parts, dA, dD, dbias, K, batch, channels, segs, blocks,
    N: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Add up what A, D and bias get of all pictures and segments, ROWS parts at a time, in float64.

    Programs: blocks x (BLOCK_N + 2) x K, a program for BLOCK_D channels of one row of the parts.
    """
    pid = tl.program_id(0)
    row = (pid // blocks) % (BLOCK_N + 2)
    k = pid // (blocks * (BLOCK_N + 2))
    d = (pid % blocks) * BLOCK_D + tl.arange(0, BLOCK_D)
    width = blocks * BLOCK_D
    total = tl.zeros([ROWS, BLOCK_D], tl.float64)
    for i in range(tl.cdiv(batch * segs, ROWS)):
        part = i * ROWS + tl.arange(0, ROWS)
        place = (part // segs * K + k).to(tl.int64) * segs + part % segs
        at = parts + (place * (BLOCK_N + 2) + row)[:, None] * width + d[None, :]
        total += tl.load(at, (part < batch * segs)[:, None] & (d >= 0)[None, :], 0.0).to(tl.float64)
    value = tl.sum(total, axis=0).to(tl.float32)
    at = k.to(tl.int64) * channels + d
    tl.store(dA + at * N + row, value, (d < channels) & (row < N))
    if dD is not None:
        tl.store(dD + at, value, (d < channels) & (row == BLOCK_N))
    if dbias is not None:
        tl.store(dbias + at, value, (d < channels) & (row == BLOCK_N + 1))


@triton.jit(do_not_specialize=_CHANNEL_A_THREAD)
def add_weights(
    part_dB, part_dC, dB, dC, dB_b, dB_k, dB_n, dB_l, dC_b, dC_k, dC_n, dC_l, K, L, blocks,
    N: tl.constexpr, BLOCK_N: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    """Add up dB and dC (B, K, blocks, L, N) over the blocks of channels. Programs: parts of TOKENS x (B K)."""
    pid = tl.program_id(0)
    per_bk = tl.cdiv(L, TOKENS)
    bk = (pid // per_bk).to(tl.int64)
    b, k = bk // K, bk % K
    t, n = (pid % per_bk) * TOKENS + tl.arange(0, TOKENS), tl.arange(0, BLOCK_N)
    ok = (t < L)[:, None] & (n < N)[None, :]
    sum_B, sum_C = tl.zeros([TOKENS, BLOCK_N], tl.float32), tl.zeros([TOKENS, BLOCK_N], tl.float32)
    for i in range(blocks):
        at = ((bk * blocks + i) * L + t[:, None]) * N + n[None, :]
        sum_B += tl.load(part_dB + at, ok, 0.0)
        sum_C += tl.load(part_dC + at, ok, 0.0)
    t64, n64 = t.to(tl.int64)[:, None], n.to(tl.int64)[None, :]
    tl.store(dB + b * dB_b + k * dB_k + t64 * dB_l + n64 * dB_n, sum_B.to(dB.dtype.element_ty), ok)
    tl.store(dC + b * dC_b + k * dC_k + t64 * dC_l + n64 * dC_n, sum_C.to(dC.dtype.element_ty), ok)
