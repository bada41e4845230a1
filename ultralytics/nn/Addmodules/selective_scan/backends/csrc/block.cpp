// Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
// The block around the scan: convolution, projections, scan of every direction, their sum and the gate, in tasks.
#include <string.h>


#include "tasks.h"

namespace vmamba {
namespace {

constexpr int64_t kChunk = 256;       // tokens of a task without recurrence
constexpr int64_t kProductRows = 64;  // the same with products of a block
constexpr int64_t kMatmulRows = 256;  // rows of a product by itself in a task: large weights are read once for each task
constexpr int64_t kFarRows = 512;     // floats: a factor whose rows are so far apart is packed
// Floats of working memory that a wave of sequences should stay below.
constexpr int64_t kForwardWave = (int64_t)1 << 21, kBackwardWave = (int64_t)3 << 20;

template <class Args>
int check(const Args& p) {
  if (p.abi != kAbiVersion) return kBadAbi;
  if (p.B < 0 || p.D < 0 || p.L < 0 || p.N < 1 || p.N > kMaxStates || p.threads < 1) return kBadShape;
  if (p.K < 1 || p.K > kMaxDirections || (p.Q != 1 && p.Q != p.K)) return kBadShape;
  if (p.R < 1 || p.R > kMaxRank || p.W < 1 || p.W > kMaxTaps) return kBadShape;
  if (!known({&p.xz, &p.conv_w, &p.conv_b, &p.x_proj, &p.dt_proj, &p.A, &p.D_skip, &p.bias, &p.y, &p.projected})) return kBadDtype;
  if (!wide({&p.states})) return kBadDtype;
  const int64_t* orders = (const int64_t*)(intptr_t)p.orders;
  for (int64_t k = 0; k < p.K; ++k)
    if (orders[k] != 0 && orders[k] != 1) return kBadOrder;
  return kOk;
}

// x_proj (q, p, d) as [D][padded_projections], R, B's and C's rows each followed by zeros.
void pack_projections(const Kernels& kernels, const Tensor& x, int64_t q, int64_t D, int64_t R, int64_t N, float* rows) {
  const int64_t Rp = padded_rank(R), Np = padded_states(N), width = padded_projections(R, N), last = width - Rp - Np;
  const int64_t at = q * x.s[0];
  kernels.load_rows(rows, width, x, at, x.s[2], x.s[1], (int)D, (int)R, (int)Rp);
  kernels.load_rows(rows + Rp, width, x, at + R * x.s[1], x.s[2], x.s[1], (int)D, (int)N, (int)Np);
  kernels.load_rows(rows + Rp + Np, width, x, at + (R + N) * x.s[1], x.s[2], x.s[1], (int)D, (int)N, (int)last);
}

// The weights of every direction, packed once a call.
struct Packed {
  Weights weights[kMaxDirections];  // of direction k
  bool reversed[kMaxDirections];    // convolution q looks at later tokens
  bool mirrored[kMaxDirections];    // and thus ahead in the scan order of direction k
  Source source;

  template <class Args>
  static int64_t size(const Args& p, bool backward) {
    const int64_t P = p.R + 2 * p.N, Dp = padded_channels(p.D);
    return p.Q * ((p.W + 1 + padded_rank(p.R) + (backward ? P : 0)) * Dp + (backward ? 0 : p.D * padded_projections(p.R, p.N)));
  }

  template <class Args>
  void fill(const Args& p, const Kernels& kernels, bool backward, float* memory) {
    const int64_t P = p.R + 2 * p.N, Dp = padded_channels(p.D), width = padded_projections(p.R, p.N), Rp = padded_rank(p.R);
    const int64_t* orders = (const int64_t*)(intptr_t)p.orders;
    for (int64_t q = 0; q < p.Q; ++q) {
      float* conv = memory;
      float* bias = conv + p.W * Dp;
      float* dt = bias + Dp;
      float* rows = dt + Rp * Dp;
      kernels.load_rows(conv, Dp, p.conv_w, q * p.conv_w.s[0], p.conv_w.s[2], p.conv_w.s[1], (int)p.W, (int)p.D, (int)Dp);
      if (p.conv_b.data) kernels.load_rows(bias, Dp, p.conv_b, q * p.conv_b.s[0], 0, p.conv_b.s[1], 1, (int)p.D, (int)Dp);
      else memset(bias, 0, sizeof(float) * (size_t)Dp);
      kernels.load_rows(dt, Dp, p.dt_proj, q * p.dt_proj.s[0], p.dt_proj.s[2], p.dt_proj.s[1], (int)p.R, (int)p.D, (int)Dp);
      memset(dt + p.R * Dp, 0, sizeof(float) * (size_t)((Rp - p.R) * Dp));
      const Tensor& x = p.x_proj;
      if (backward) kernels.load_rows(rows, Dp, x, q * x.s[0], x.s[1], x.s[2], (int)P, (int)p.D, (int)Dp);
      else pack_projections(kernels, x, q, p.D, p.R, p.N, rows);
      memory = rows + (backward ? P * Dp : p.D * width);
      weights[q] = {conv, bias, dt, backward ? nullptr : rows, backward ? rows : nullptr};
      reversed[q] = orders[q] == 1;
    }
    for (int64_t k = 0; k < p.K; ++k) {
      if (p.Q == 1) weights[k] = weights[0];
      mirrored[k] = p.Q == 1 && orders[k] != orders[0];
    }
    source = {weights, Dp, p.R, p.W, mirrored};
  }
};

template <class To, class From>
void copy_sizes(To& to, const From& p) {
  to.abi = p.abi;
  to.threads = p.threads;
  to.flags = p.flags;
  to.B = p.B;
  to.K = p.K;
  to.D = p.D;
  to.L = p.L;
  to.N = p.N;
  to.checkpoints = p.checkpoints;
  to.orders = p.orders;
}

// The first half of xz as the canonical (b, k, d, l), alike for every direction, and parts of the projections.
Tensor input_of(const Tensor& xz) { return {xz.data, xz.dtype, {xz.s[0], 0, xz.s[2], xz.s[1], 0}}; }
Tensor projection_of(const Tensor& t, int64_t Q, int64_t first) {
  const int64_t size = t.dtype == kF32 ? 4 : 2;
  return {t.data + first * t.s[3] * size, t.dtype, {t.s[0], Q == 1 ? 0 : t.s[1], t.s[3], t.s[2], 0}};
}
// Float rows of `width` a token, of sequences from b0 on, as (b, k, d, l).
Tensor rows_of(const float* data, int64_t b0, int64_t groups, int64_t L, int64_t width) {
  const int64_t per_b = groups * L * width;
  return {(int64_t)(intptr_t)data - b0 * per_b * (int64_t)sizeof(float), kF32, {per_b, groups == 1 ? 0 : L * width, 1, width, 0}};
}

// A matrix in strips for `matmul`: rows of t from `offset` on, s_row apart, whose elements are s_col apart.
void pack_strips(const Kernels& kernels, const Tensor& t, int64_t offset, int64_t s_row, int64_t s_col, int64_t rows, int64_t cols,
                 float* to, int64_t threads) {
  constexpr int64_t piece = 64;
  const int64_t pieces = ceil_div(rows, piece);
  for_each_task(ceil_div(cols, kernels.strip) * pieces, threads, [&](int64_t i) {
    const int64_t c = i / pieces * kernels.strip, r = i % pieces * piece, width = min64(kernels.strip, cols - c);
    kernels.load_rows(to + c * rows + r * width, width, t, offset + r * s_row + c * s_col, s_row, s_col,
                      (int)min64(piece, rows - r), (int)width, (int)width);
  });
}

int check_whole(const BlockArgs& p) {
  if (!wide({&p.xz, &p.in_w, &p.in_b, &p.out_w, &p.out_b, &p.out}) || !known({&p.norm_w, &p.norm_b})) return kBadDtype;
  const bool kept = p.y.data || p.projected.data || p.states.data, gated = !(p.flags & kFlagNoGate);
  const bool contiguous = p.out.s[2] == 1 && (p.norm_w.data ? p.norm_b.data != 0 : p.xz.s[2] == 1);
  const bool fits = p.C > 0 && p.M > 0 && p.D % kFwdBlock == 0 && p.M % kFwdBlock == 0;
  return fits && !kept && gated && p.out_w.data && contiguous ? kOk : kBadShape;
}

}  // namespace

int run_block_forward(const BlockArgs& p) {
  const bool whole = p.in_w.data != 0;
  int status = check(p);
  if (!status && !known({&p.out})) status = kBadDtype;
  if (!status && whole) status = check_whole(p);
  if (status) return status;
  const int64_t tiles = num_tiles(p.L);
  if (p.B * p.D * p.L == 0) return kOk;
  if (p.checkpoints != 0 && p.checkpoints != tiles) return kBadStates;
  const Kernels& kernels = *current_kernels();
  const int64_t P = p.R + 2 * p.N, per_group = ceil_div(p.D, kFwdBlock), chunks = ceil_div(p.L, kChunk);
  const int64_t threads = p.threads, part_rows = p.L * kFwdBlock;
  const size_t scratch = kernels.forward_scratch(p.N, p.R, p.W), rows_scratch = kernels.block_scratch(p.N, p.R, p.W, p.Q);
  std::atomic<bool> failed{false};
  auto scratch_or_fail = [&](size_t floats) {
    float* s = thread_scratch(floats, kTaskSlot);
    if (!s) failed.store(true, std::memory_order_relaxed);
    return s;
  };

  // With enough sequences and directions for the threads each is a stream: convolution, projections and scan of a tile
  // follow each other in the cache. Otherwise projections come first, divided by tokens, and then the scans, divided by
  // channels and, as in the plain scan, by states or tokens. Either way sequences go in waves, which bounds the memory.
  const int64_t rows_size = p.L * padded_channels(p.D), kept = p.Q * p.L * P;
  const int64_t stream_wave = min64(p.B, max64(kForwardWave / (p.K * rows_size), ceil_div(threads, p.K)));
  const bool streams = stream_wave * p.K >= threads;
  const int64_t wave = streams ? stream_wave : min64(p.B, max64(max64(1, kForwardWave / kept), ceil_div(threads, per_group)));
  // Directions that follow each other in one task need one sum, but fill the threads worse.
  const bool in_turn = ceil_div(wave, threads) * p.K * 8 <= ceil_div(wave * p.K, threads) * 9;
  const Split split = streams ? Split{} : plan_forward(wave * per_group * p.K, tiles, p.N, threads);
  const int64_t tasks_of_block = p.K * split.parts, per_state = p.N * kFwdBlock, carry = split.segs * (per_state + kFwdBlock);
  const int64_t packed_size = round_up(Packed::size(p, false), 16);
  const int64_t projected_size = streams || p.projected.data ? 0 : round_up(wave * kept, 16);
  // The output holds the sum of directions that follow each other until the gate replaces it, where its rows are fit for it.
  const bool in_place = !whole && in_turn && p.out.dtype == kF32 && p.out.s[2] == 1 && p.D % kFwdBlock == 0;
  const int64_t stream_sums = in_place ? 0 : wave * (in_turn ? 1 : p.K) * rows_size;
  const int64_t sums_size = streams ? stream_sums : wave * per_group * tasks_of_block * part_rows;
  const int64_t carry_size = split.segs > 1 ? wave * per_group * p.K * carry : 0;
  // A whole block keeps the scans' half of in_proj's output for a wave; the gate's half is made where it is used.
  const int64_t pieces = ceil_div(p.L, kProductRows);
  const int64_t input_size = whole ? wave * p.L * p.D : 0;
  const bool normed = whole && p.norm_w.data;  // the tokens behind the norm are kept for a wave, too
  const int64_t tokens_size = normed ? wave * p.L * p.C : 0;
  const int64_t products_size = whole ? round_up(2 * p.C * p.D + p.D * p.M, 16) : 0;
  Buffer memory(packed_size + projected_size + sums_size + carry_size + products_size + input_size + tokens_size);
  if (!memory.get()) return kNoMemory;
  float* const sums = memory.get() + packed_size + projected_size;
  float* const carries = sums + sums_size;
  float* const in_proj = carries + carry_size;
  float* const input = in_proj + products_size;
  float* const gate = in_proj + p.C * p.D;
  float* const out_proj = gate + p.C * p.D;
  const Products products = {in_proj, gate, out_proj};
  if (whole) {
    pack_strips(kernels, p.in_w, 0, p.in_w.s[1], p.in_w.s[0], p.C, p.D, in_proj, threads);
    pack_strips(kernels, p.in_w, p.D * p.in_w.s[0], p.in_w.s[1], p.in_w.s[0], p.C, p.D, gate, threads);
    pack_strips(kernels, p.out_w, 0, p.out_w.s[1], p.out_w.s[0], p.D, p.M, out_proj, threads);
  }
  Packed packed;
  packed.fill(p, kernels, false, memory.get());
  BlockArgs outer = p, inner = p;  // behind the norm; between in_proj and out_proj
  const Tensor map = {p.xz.data, p.xz.dtype, {p.xz.s[0], p.xz.s[2], p.xz.s[1], 0, 0}};
  NormArgs norm = {p.abi, 1, p.B, p.C, p.L, p.eps, map, p.norm_w, p.norm_b, {}, {}, {}};
  float* const normed_tokens = input + input_size;
  ForwardArgs f = {};
  copy_sizes(f, p);
  f.u = input_of(p.xz);
  f.A = p.A;
  f.D_skip = p.D_skip;
  f.bias = p.bias;
  f.states = p.states;

  for (int64_t b0 = 0; b0 < p.B; b0 += wave) {
    const int64_t nb = min64(wave, p.B - b0);
    if (whole) {
      inner.xz = {(int64_t)(intptr_t)(input - b0 * p.L * p.D), kF32, {p.L * p.D, p.D, 1, 0, 0}};
      f.u = input_of(inner.xz);
      if (normed) outer.xz = norm.out = {(int64_t)(intptr_t)(normed_tokens - b0 * p.L * p.C), kF32, {p.L * p.C, p.C, 1, 0, 0}};
      for_each_task(nb * pieces, threads, [&](int64_t i) {
        const int64_t b = b0 + i / pieces, l0 = i % pieces * kProductRows, l1 = min64(p.L, l0 + kProductRows);
        if (normed) {
          float* s = scratch_or_fail(kernels.norm_scratch(p.C));
          if (!s) return;
          kernels.norm(norm, {b, l0, l1}, s);
        }
        const Tensor tokens = {outer.xz.data + b * outer.xz.s[0] * (int64_t)sizeof(float), kF32, {outer.xz.s[1], 1, 0, 0, 0}};
        const Tensor x = {(int64_t)(intptr_t)(input + (b - b0) * p.L * p.D), kF32, {p.D, 1, 0, 0, 0}};
        kernels.matmul({p.abi, 1, p.L, p.C, p.D, tokens, {}, p.in_b, x}, in_proj, 0, l0, l1);
      });
    }
    auto finish_whole = [&](int64_t per_sequence, int64_t per_block, int64_t per_part, int64_t ld, int64_t parts) {
      for_each_task(nb * pieces, threads, [&](int64_t i) {
        const int64_t b = i / pieces, l0 = i % pieces * kProductRows;
        if (float* s = scratch_or_fail(kernels.output_scratch(p.D)))
          kernels.block_output(outer, {b0 + b, l0, min64(p.L, l0 + kProductRows)}, {sums + b * per_sequence, per_block, per_part, ld, parts},
                               products, s);
      });
    };
    if (streams) {
      const size_t stream_scratch = kernels.stream_scratch(p.D, p.N, p.R, p.W);
      const int64_t in_task = in_turn ? p.K : 1;
      for_each_task(nb * p.K / in_task, threads, [&](int64_t i) {
        float* s = scratch_or_fail(stream_scratch);
        if (!s) return;
        for (int64_t j = 0; j < in_task; ++j) {
          const int64_t b = b0 + i * in_task / p.K, k = in_turn ? j : i % p.K;
          float* y = in_place ? (float*)(intptr_t)p.out.data + b * p.out.s[0] : sums + i * rows_size;
          const int64_t y_ld = in_place ? p.out.s[1] : padded_channels(p.D);
          kernels.block_stream(inner, f, {b, k, y, y_ld, j > 0, in_turn && !whole && j + 1 == p.K}, packed.source, s);
        }
      });
      if (whole) {
        const int64_t parts = in_turn ? 1 : p.K;
        finish_whole(parts * rows_size, kFwdBlock, rows_size, padded_channels(p.D), parts);
      }
      if (whole || in_turn) continue;
      for_each_task(nb * chunks, threads, [&](int64_t i) {
        const int64_t b = i / chunks, l0 = i % chunks * kChunk;
        const RowsTask t = {b0 + b, l0, min64(p.L, l0 + kChunk)};
        float* s = scratch_or_fail(scratch);
        if (!s) return;
        for (int64_t d0 = 0; d0 < p.D; d0 += kFwdBlock) {
          float* y[kMaxDirections];
          for (int64_t k = 0; k < p.K; ++k) y[k] = sums + (b * p.K + k) * rows_size + d0;
          kernels.block_finish(p, t, d0, y, padded_channels(p.D), p.K, s);
        }
      });
      continue;
    }

    Tensor projected = p.projected;
    if (!projected.data) {
      const int64_t first = (int64_t)(intptr_t)(memory.get() + packed_size) - b0 * kept * (int64_t)sizeof(float);
      projected = {first, kF32, {kept, p.L * P, P, 1, 0}};
    }
    for_each_task(nb * p.Q * chunks, threads, [&](int64_t i) {
      const int64_t q = i % p.Q, l0 = i / p.Q % chunks * kChunk;  // directions of one chunk share its xz
      const RowsTask t = {b0 + i / (chunks * p.Q), l0, min64(p.L, l0 + kChunk)};
      if (float* s = scratch_or_fail(rows_scratch))
        kernels.block_project(inner, t, q, packed.weights[q], packed.reversed[q], projected, s);
    });
    f.delta = projection_of(projected, p.Q, 0);
    f.Bm = projection_of(projected, p.Q, p.R);
    f.Cm = projection_of(projected, p.Q, p.R + p.N);

    // Task i is (b, block, k, part), which puts what is added up side by side.
    const int64_t parts = split.parts, segs = split.segs, width = ceil_div(p.N, parts);
    auto seg_task = [&](int64_t i) {
      const int64_t task = i / segs, block = task / tasks_of_block;
      FwdTask t = {};
      t.b = b0 + block / per_group;
      t.k = task / parts % p.K;
      t.d0 = block % per_group * kFwdBlock;
      t.dn = min64(kFwdBlock, p.D - t.d0);
      t.n0 = task % parts * width;
      t.n1 = min64(p.N, t.n0 + width);
      t.seg = i % segs;
      t.segs = segs;
      t.tile0 = tiles * t.seg / segs;
      t.tile1 = tiles * (t.seg + 1) / segs;
      t.seg_state = segs > 1 ? carries + task * carry : nullptr;
      t.partial_y = sums + task * part_rows;
      t.source = &packed.source;
      return t;
    };
    auto run = [&](const FwdTask& t) {
      if (float* s = scratch_or_fail(scratch)) kernels.forward(f, t, s);
    };
    const int64_t tasks = nb * per_group * tasks_of_block;
    if (segs > 1)
      for_each_task(tasks * (segs - 1), threads, [&](int64_t i) {
        FwdTask t = seg_task(i / (segs - 1) * segs + i % (segs - 1));
        t.states_only = true;
        run(t);
      });
    for_each_task(tasks * segs, threads, [&](int64_t i) { run(seg_task(i)); });
    if (whole) {
      const int64_t per_block = tasks_of_block * part_rows;
      finish_whole(per_group * per_block, per_block, part_rows, kFwdBlock, tasks_of_block);
      continue;
    }
    for_each_task(nb * per_group * chunks, threads, [&](int64_t i) {
      const int64_t block = i / chunks, l0 = i % chunks * kChunk;
      float* y[kMaxDirections * kMaxStates / 16];
      for (int64_t j = 0; j < tasks_of_block; ++j) y[j] = sums + (block * tasks_of_block + j) * part_rows;
      const RowsTask t = {b0 + block / per_group, l0, min64(p.L, l0 + kChunk)};
      if (float* s = scratch_or_fail(scratch))
        kernels.block_finish(p, t, block % per_group * kFwdBlock, y, kFwdBlock, tasks_of_block, s);
    });
  }
  return failed.load() ? kNoMemory : kOk;
}

int run_block_backward(const BlockGradArgs& p) {
  if (const int status = check(p)) return status;
  if (!known({&p.dout, &p.dxz, &p.dconv_w, &p.dconv_b, &p.dx_proj, &p.ddt_proj, &p.gated})) return kBadDtype;
  if (!wide({&p.dA, &p.dD, &p.dbias})) return kBadDtype;  // they are written as float32, whatever A, D and bias are
  const int64_t tiles = num_tiles(p.L);
  if (p.B * p.D * p.L == 0) return kOk;  // the caller zeroes what it allocates for an empty block
  if (p.checkpoints != tiles) return kBadStates;
  const Kernels& kernels = *current_kernels();
  const int64_t P = p.R + 2 * p.N, Dp = padded_channels(p.D), Np = padded_states(p.N), Rp = padded_rank(p.R);
  const int64_t per_group = ceil_div(p.D, kBwdBlock), blocks = p.K * per_group, threads = p.threads;
  const size_t scratch = kernels.backward_scratch(p.N, p.R, p.W), rows_scratch = kernels.block_scratch(p.N, p.R, p.W, p.Q);
  std::atomic<bool> failed{false};
  auto scratch_or_fail = [&](size_t floats) {
    float* s = thread_scratch(floats, kTaskSlot);
    if (!s) failed.store(true, std::memory_order_relaxed);
    return s;
  };

  // Parameters' sums go by pieces of tokens that do not depend on the threads, so neither do their roundings.
  const int64_t piece = min64(1024, max64(64, round_up(ceil_div(p.B * p.L, 16), 64))), pieces = ceil_div(p.L, piece);
  const int64_t per_piece = p.Q * (P + p.W + 1) * Dp;
  const int64_t dy_size = p.L * Dp, du_size = p.K * p.L * Dp, r_size = blocks * p.L * Rp, n_size = blocks * p.L * Np;
  const int64_t per_b = dy_size + du_size + r_size + 2 * n_size;
  const int64_t wave = min64(p.B, max64(max64(1, kBackwardWave / per_b), ceil_div(2 * threads, blocks)));
  const int64_t segs = plan_backward(wave * blocks, tiles, threads);
  const int64_t small = task_sums(p.N, p.R), carry_state = Np * kBwdBlock, carry_size = segs * (carry_state + kBwdBlock);
  const int64_t packed_size = round_up(Packed::size(p, true), 16), sums_size = p.B * blocks * segs * small;
  const int64_t pieces_size = p.B * pieces * per_piece, carries_size = segs > 1 ? wave * blocks * carry_size : 0;
  Buffer memory(packed_size + round_up(sums_size, 16) + pieces_size + wave * per_b + carries_size);
  if (!memory.get()) return kNoMemory;
  float* const sums = memory.get() + packed_size;
  float* const piece_sums = sums + round_up(sums_size, 16);
  float* const dy = piece_sums + pieces_size;
  float* const du = dy + wave * dy_size;
  float* const partial_r = du + wave * du_size;
  float* const partial_b = partial_r + wave * r_size;
  float* const partial_c = partial_b + wave * n_size;
  float* const carries = partial_c + wave * n_size;
  Packed packed;
  packed.fill(p, kernels, true, memory.get());

  for (int64_t b0 = 0; b0 < p.B; b0 += wave) {
    const int64_t nb = min64(wave, p.B - b0), chunks = ceil_div(p.L, kChunk);
    for_each_task(nb * chunks, threads, [&](int64_t i) {
      const int64_t b = i / chunks, l0 = i % chunks * kChunk;
      if (float* s = scratch_or_fail(rows_scratch))
        kernels.block_gate(p, {b0 + b, l0, min64(p.L, l0 + kChunk)}, dy + b * dy_size, s);
    });

    BackwardArgs g = {};
    copy_sizes(g, p);
    g.u = input_of(p.xz);
    g.delta = projection_of(p.projected, p.Q, 0);
    g.A = p.A;
    g.Bm = projection_of(p.projected, p.Q, p.R);
    g.Cm = projection_of(p.projected, p.Q, p.R + p.N);
    g.D_skip = p.D_skip;
    g.bias = p.bias;
    g.dout = rows_of(dy, b0, 1, p.L, Dp);
    g.states = p.states;
    g.du = rows_of(du, b0, p.K, p.L, Dp);
    auto make_task = [&](int64_t i) {
      const int64_t local = i / segs, b = b0 + local / blocks, k = local % blocks / per_group, block = local % per_group;
      BwdTask t = {};
      t.b = b;
      t.k = k;
      t.d0 = block * kBwdBlock;
      t.dn = min64(kBwdBlock, p.D - t.d0);
      t.seg = i % segs;
      t.segs = segs;
      t.tile0 = tiles * t.seg / segs;
      t.tile1 = tiles * (t.seg + 1) / segs;
      t.seg_adjoint = segs > 1 ? carries + local * carry_size : nullptr;
      t.partial_r = partial_r + local * p.L * Rp;
      t.partial_b = partial_b + local * p.L * Np;
      t.partial_c = partial_c + local * p.L * Np;
      t.dA = sums + ((b * blocks + local % blocks) * segs + t.seg) * small;
      t.dD = t.dA + p.N * kBwdBlock;
      t.dbias = t.dD + kBwdBlock;
      t.ddt = t.dbias + kBwdBlock;
      t.source = &packed.source;
      return t;
    };
    auto run = [&](const BwdTask& t) {
      if (float* s = scratch_or_fail(scratch)) kernels.backward(g, t, s);
    };
    if (segs > 1)
      for_each_task(nb * blocks * (segs - 1), threads, [&](int64_t i) {
        BwdTask t = make_task(i / (segs - 1) * segs + i % (segs - 1) + 1);
        t.adjoint_only = true;
        run(t);
      });
    for_each_task(nb * blocks * segs, threads, [&](int64_t i) { run(make_task(i)); });

    for_each_task(nb * pieces, threads, [&](int64_t i) {
      const int64_t b = i / pieces, l0 = i % pieces * piece;
      const BlockGrads grads = {du + b * du_size,        partial_r + b * r_size,
                                partial_b + b * n_size,  partial_c + b * n_size,
                                per_group,               piece_sums + ((b0 + b) * pieces + i % pieces) * per_piece};
      if (float* s = scratch_or_fail(rows_scratch))
        kernels.block_inputs(p, {b0 + b, l0, min64(p.L, l0 + piece)}, packed.weights, packed.reversed, grads, s);
    });
  }

  if (!reduce_task_sums(kernels, sums, p.B, p.K, p.Q, p.D, p.N, p.R, segs, threads, p.dA, p.dD, p.dbias, p.ddt_proj))
    return kNoMemory;
  const int64_t lines = P + p.W + 1;
  for_each_task(p.Q * lines, threads, [&](int64_t i) {
    float* total = scratch_or_fail((size_t)(3 * Dp));
    if (!total) return;
    double* const sum = (double*)(total + Dp);  // Dp is a multiple of 32: aligned
    for (int64_t d = 0; d < p.D; ++d) sum[d] = 0.0;
    for (int64_t j = 0; j < p.B * pieces; ++j)
      for (int64_t d = 0; d < p.D; ++d) sum[d] += piece_sums[j * per_piece + i * Dp + d];
    for (int64_t d = 0; d < p.D; ++d) total[d] = (float)sum[d];
    const int64_t q = i / lines, line = i % lines, D = p.D;
    if (line < P) kernels.store_rows(p.dx_proj, q * p.dx_proj.s[0] + line * p.dx_proj.s[1], 0, p.dx_proj.s[2], total, Dp, 1, (int)D);
    else if (line < P + p.W)
      kernels.store_rows(p.dconv_w, q * p.dconv_w.s[0] + (line - P) * p.dconv_w.s[2], 0, p.dconv_w.s[1], total, Dp, 1, (int)D);
    else if (p.dconv_b.data)
      kernels.store_rows(p.dconv_b, q * p.dconv_b.s[0], 0, p.dconv_b.s[1], total, Dp, 1, (int)D);
  });
  return failed.load() ? kNoMemory : kOk;
}

int run_norm(const NormArgs& p) {
  if (p.abi != kAbiVersion) return kBadAbi;
  if (p.B < 0 || p.C < 1 || p.L < 0 || p.threads < 1) return kBadShape;
  if (!known({&p.x, &p.weight, &p.bias, &p.out, &p.mean, &p.rstd})) return kBadDtype;
  const Kernels& kernels = *current_kernels();
  const int64_t chunks = ceil_div(p.L, kChunk);
  const size_t scratch = kernels.norm_scratch(p.C);
  std::atomic<bool> failed{false};
  for_each_task(p.B * chunks, p.threads, [&](int64_t i) {
    const int64_t l0 = i % chunks * kChunk;
    float* s = thread_scratch(scratch, kTaskSlot);
    if (s) kernels.norm(p, {i / chunks, l0, min64(p.L, l0 + kChunk)}, s);
    else failed.store(true, std::memory_order_relaxed);
  });
  return failed.load() ? kNoMemory : kOk;
}

int run_norm_backward(const NormGradArgs& p) {
  if (p.abi != kAbiVersion) return kBadAbi;
  if (p.B < 0 || p.C < 1 || p.L < 0 || p.threads < 1) return kBadShape;
  if (!known({&p.x, &p.weight, &p.mean, &p.rstd, &p.dout, &p.dx, &p.dweight, &p.dbias})) return kBadDtype;
  const Kernels& kernels = *current_kernels();
  const int64_t chunks = ceil_div(p.L, kChunk), Cp = padded_channels(p.C), tasks = p.B * chunks;
  const size_t scratch = kernels.norm_scratch(p.C);
  std::atomic<bool> failed{false};
  Buffer memory(tasks * 2 * Cp + Cp);
  if (!memory.get()) return kNoMemory;
  for_each_task(tasks, p.threads, [&](int64_t i) {
    const int64_t l0 = i % chunks * kChunk;
    float* s = thread_scratch(scratch, kTaskSlot);
    if (s) kernels.norm_backward(p, {i / chunks, l0, min64(p.L, l0 + kChunk)}, memory.get() + i * 2 * Cp, s);
    else failed.store(true, std::memory_order_relaxed);
  });
  float* total = memory.get() + tasks * 2 * Cp;
  for (int64_t line = 0; line < 2; ++line) {
    for (int64_t c = 0; c < p.C; ++c) {
      double sum = 0.0;
      for (int64_t i = 0; i < tasks; ++i) sum += memory.get()[(2 * i + line) * Cp + c];
      total[c] = (float)sum;
    }
    const Tensor& t = line ? p.dbias : p.dweight;
    kernels.store_rows(t, 0, 0, t.s[0], total, Cp, 1, (int)p.C);
  }
  return failed.load() ? kNoMemory : kOk;
}

int run_matmul(const MatmulArgs& p) {
  if (p.abi != kAbiVersion) return kBadAbi;
  if (p.M < 0 || p.K < 1 || p.N < 0 || p.N % kFwdBlock || p.c.s[1] != 1 || p.threads < 1) return kBadShape;
  if (!wide({&p.a, &p.b, &p.bias, &p.c})) return kBadDtype;
  if (p.M * p.N == 0) return kOk;
  const Kernels& kernels = *current_kernels();
  // Rows far apart are each on a page of their own, and large powers of two apart in the same few lines of a cache.
  const bool direct = p.b.s[1] == 1 && p.b.s[0] < kFarRows && p.b.s[0] % 512 != 0;
  const int64_t ldb = direct ? p.b.s[0] : 0;
  Buffer memory(direct ? 0 : p.K * p.N);
  if (!direct) {
    if (!memory.get()) return kNoMemory;
    pack_strips(kernels, p.b, 0, p.b.s[0], p.b.s[1], p.K, p.N, memory.get(), p.threads);
  }
  const float* b = direct ? (const float*)(intptr_t)p.b.data : memory.get();
  const int64_t rows = min64(kMatmulRows, round_up(ceil_div(p.M, p.threads), 4));
  for_each_task(ceil_div(p.M, rows), p.threads,
                [&](int64_t i) { kernels.matmul(p, b, ldb, i * rows, min64(p.M, (i + 1) * rows)); });
  return kOk;
}

}  // namespace vmamba
