// Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
// The block around the scan, compiled once per instruction set after kernels.inl: what has no recurrence and goes over
// tokens in any order. Convolution and SiLU are computed wherever they are needed and never stored.

constexpr int kRowTile = 64;  // tokens at a time
constexpr int kCols = 64;     // channels at a time
static_assert(kCols % kBB == 0 && kRowTile % kTile == 0, "whole vectors and tiles");

// The input half and the gate half of xz as (b, k, d, l), alike for every direction.
VM_INLINE Tensor half_of(const Tensor& xz, int64_t half, int64_t D) {
  Tensor t = xz;
  t.data += half * D * xz.s[2] * item_size(xz);
  t.s[1] = 0;
  t.s[2] = xz.s[2];
  t.s[3] = xz.s[1];
  return t;
}

// ------------------------------------------------------------------------------------------------- small matrix products

constexpr int kGemmVecs = kW == 16 ? 4 : 2;  // times four rows: what fits the registers
constexpr int64_t kStrip = kGemmVecs * kW;   // columns of a second factor that lie together

// c (MB x NV vectors) = a b, or += with `add`; a[m * am + k * ak], rows of b and c contiguous. The product is summed apart
// from what c held: one running sum over the tokens of a batch, added to piece by piece, would lose two digits.
template <int MB, int NV>
VM_INLINE void gemm_tile(int64_t K, const float* a, int64_t am, int64_t ak, const float* b, int64_t ldb, float* c, int64_t ldc,
                         bool add) {
  V sum[MB * NV];
  VM_UNROLL for (int i = 0; i < MB * NV; ++i) sum[i] = vzero();
  for (int64_t k = 0; k < K; ++k) {
    V row[NV];
    VM_UNROLL for (int v = 0; v < NV; ++v) row[v] = vload(b + k * ldb + v * kW);
    VM_UNROLL for (int m = 0; m < MB; ++m) {
      const V x = vset(a[m * am + k * ak]);
      VM_UNROLL for (int v = 0; v < NV; ++v) sum[m * NV + v] = vfma(x, row[v], sum[m * NV + v]);
    }
  }
  if (add) {
    VM_UNROLL for (int i = 0; i < MB * NV; ++i) sum[i] = vadd(vload(c + i / NV * ldc + i % NV * kW), sum[i]);
  }
  VM_UNROLL for (int i = 0; i < MB * NV; ++i) vstore(c + i / NV * ldc + i % NV * kW, sum[i]);
}

template <int NV>
static void gemm_columns(int64_t M, int64_t K, const float* a, int64_t am, int64_t ak, const float* b, int64_t ldb, float* c,
                         int64_t ldc, bool add) {
  int64_t m = 0;
  for (; m + 4 <= M; m += 4) gemm_tile<4, NV>(K, a + m * am, am, ak, b, ldb, c + m * ldc, ldc, add);
  for (; m < M; ++m) gemm_tile<1, NV>(K, a + m * am, am, ak, b, ldb, c + m * ldc, ldc, add);
}

// c (M x N) = a (M x K) b (K x N), or += with `add`. N is a number of whole vectors.
static void gemm(int64_t M, int64_t N, int64_t K, const float* a, int64_t am, int64_t ak, const float* b, int64_t ldb, float* c,
                 int64_t ldc, bool add) {
  for (int64_t n = 0; n < N;) {
    const int64_t left = (N - n) / kW;
    if (left >= 4 && kGemmVecs >= 4) gemm_columns<kGemmVecs>(M, K, a, am, ak, b + n, ldb, c + n, ldc, add);
    else if (left >= 3 && kGemmVecs >= 4) gemm_columns<kGemmVecs - 1>(M, K, a, am, ak, b + n, ldb, c + n, ldc, add);
    else if (left >= 2) gemm_columns<2>(M, K, a, am, ak, b + n, ldb, c + n, ldc, add);
    else gemm_columns<1>(M, K, a, am, ak, b + n, ldb, c + n, ldc, add);
    n += kW * (left >= 4 && kGemmVecs >= 4 ? kGemmVecs : left >= 3 && kGemmVecs >= 4 ? kGemmVecs - 1 : left >= 2 ? 2 : 1);
  }
}

struct Sizes {
  int64_t M, N, K;
};

// c = a b + bias in panels of kDepth rows of b; longer sums go on in c. bias may be absent. b is in strips, or its rows are `ldb`
// floats apart. A strip's panel stays in the first cache, and the columns of c that it makes in the second. A transposed a, whose
// rows are columns in memory, is copied by panels: its lines are a whole row of the other factor apart.
static void product(const Sizes& size, const float* a, int64_t am, int64_t ak, const float* b, int64_t ldb, const Tensor& bias,
                    float* c, int64_t ldc) {
  constexpr int64_t kDepth = 128, kRows = 64, kPanelLd = kRows + 16;
  if (bias.data)
    for (int64_t m = 0; m < size.M; ++m) load_rows(c + m * ldc, size.N, bias, 0, 0, bias.s[0], 1, (int)size.N, (int)size.N);
  const int64_t wide = ldb ? size.N : kStrip;
  for (int64_t n = 0; n < size.N; n += wide) {
    const int64_t width = size.N - n < wide ? size.N - n : wide, ld = ldb ? ldb : width;
    const float* columns = b + (ldb ? 0 : n * size.K);
    for (int64_t k = 0; k < size.K; k += kDepth) {
      const int64_t depth = size.K - k < kDepth ? size.K - k : kDepth;
      const bool add = bias.data != 0 || k > 0;
      if (am != 1) {
        gemm(size.M, width, depth, a + k * ak, am, ak, columns + k * ld, ld, c + n, ldc, add);
        continue;
      }
      float panel[kDepth * kPanelLd];
      for (int64_t m = 0; m < size.M; m += kRows) {
        const int64_t rows = size.M - m < kRows ? size.M - m : kRows;
        for (int64_t i = 0; i < depth; ++i) memcpy(panel + i * kPanelLd, a + m + (k + i) * ak, sizeof(float) * (size_t)rows);
        gemm(rows, width, depth, panel, 1, kPanelLd, columns + k * ld, ld, c + m * ldc + n, ldc, add);
      }
    }
  }
}

static size_t block_scratch(int64_t N, int64_t R, int64_t W, int64_t Q) {
  const size_t rows = (size_t)(kRowTile + 2 * W), projections = (size_t)padded_projections(R, N);
  return 6 * rows * kCols + (size_t)(Q + 1) * rows * projections + 16 * 64 + 1024;
}

// --------------------------------------------------------------------------------------------------------------- forward

// Rows of projections as the products leave them, each part padded, to tokens s of direction q.
static void store_projections(const BlockArgs& p, const Tensor& t, int64_t b, int64_t q, const Span& s, const float* rows) {
  const int64_t Rp = padded_rank(p.R), Np = padded_states(p.N), width = padded_projections(p.R, p.N);
  const int64_t offset = b * t.s[0] + q * t.s[1] + s.first * t.s[2], step = s.step * t.s[2];
  if (Rp == p.R && Np == p.N) return store_rows(t, offset, step, t.s[3], rows, width, s.T, (int)(p.R + 2 * p.N));
  store_rows(t, offset, step, t.s[3], rows, width, s.T, (int)p.R);
  store_rows(t, offset + p.R * t.s[3], step, t.s[3], rows + Rp, width, s.T, (int)p.N);
  store_rows(t, offset + (p.R + p.N) * t.s[3], step, t.s[3], rows + Rp + Np, width, s.T, (int)p.N);
}

static void block_project(const BlockArgs& p, const RowsTask& task, int64_t q, const Weights& weights, bool reversed,
                          const Tensor& projected, float* scratch) {
  const int64_t Dp = padded_channels(p.D), width = padded_projections(p.R, p.N);
  Carver carve{scratch};
  float* window = carve.take((size_t)(kRowTile + p.W) * kCols);
  float* u = carve.take(kRowTile * kCols);
  float* sums = carve.take((size_t)kRowTile * width);
  const Tensor x = half_of(p.xz, 0, p.D);
  for (int64_t l = task.l0; l < task.l1; l += kRowTile) {
    const Span s = {(int)(task.l1 - l < kRowTile ? task.l1 - l : kRowTile), l, 1};
    for (int64_t d0 = 0; d0 < p.D; d0 += kCols) {
      const int cols = (int)(p.D - d0 < kCols ? p.D - d0 : kCols);
      conv_tile(x, task.b, 0, d0, s, p.L, cols, kCols, weights, Dp, p.W, reversed, window, u, kCols);
      gemm(s.T, width, cols, u, kCols, 1, weights.to_rows + d0 * width, width, sums, width, d0 > 0);
    }
    store_projections(p, projected, task.b, q, s, sums);
  }
}

// out = y silu(z) for M tokens of one channel vector.
template <int M>
VM_INLINE void gate_steps(const float* y, int64_t y_ld, Rows z, int t, int c, float* out, int64_t ld) {
  V g[M], r[M];
  VM_EACH(g[i] = vload(z.p + (t + i) * z.ld + c));
  silu_steps<M>(g, r);
  VM_EACH(vstore(out + (t + i) * ld + c, vmul(r[i], vload(y + (t + i) * y_ld + c))));
}

static void block_finish(const BlockArgs& p, const RowsTask& task, int64_t d0, float* const* partial_y, int64_t y_ld,
                         int64_t parts, float* scratch) {
  const int dn = (int)(p.D - d0 < kFB ? p.D - d0 : kFB), vecs = (dn + kW - 1) / kW;
  float* zs = scratch;
  float* os = scratch + kTile * kFB;
  const Tensor gate = half_of(p.xz, 1, p.D);
  for (int64_t l = task.l0; l < task.l1; l += kTile) {
    const Span s = {(int)(task.l1 - l < kTile ? task.l1 - l : kTile), l, 1};
    float* y = partial_y[0] + l * y_ld;
    for (int64_t part = 1; part < parts; ++part)
      for (int t = 0; t < s.T; ++t)
        for (int c = 0; c < vecs * kW; c += kW)
          vstore(y + t * y_ld + c, vadd(vload(y + t * y_ld + c), vload(partial_y[part] + (l + t) * y_ld + c)));
    if (p.y.data) store_rows(p.y, task.b * p.y.s[0] + l * p.y.s[1] + d0 * p.y.s[2], p.y.s[1], p.y.s[2], y, y_ld, s.T, dn);
    const int64_t offset = task.b * p.out.s[0] + l * p.out.s[1] + d0 * p.out.s[2];
    if (p.flags & kFlagNoGate) {
      if (y != (float*)(intptr_t)p.out.data + offset || p.out.dtype != kF32)  // else the output held the sum all along
        store_rows(p.out, offset, p.out.s[1], p.out.s[2], y, y_ld, s.T, dn);
      continue;
    }
    const Rows z = token_rows(gate, task.b, 0, d0, s, dn, kFB, zs);
    const bool direct = p.out.dtype == kF32 && p.out.s[2] == 1 && dn == kFB;
    float* out = direct ? (float*)(intptr_t)p.out.data + offset : os;
    const int64_t ld = direct ? p.out.s[1] : kFB;
    for (int v = 0; v < vecs; ++v) {
      int t = 0;
      for (; t + kBatch <= s.T; t += kBatch) gate_steps<kBatch>(y, y_ld, z, t, v * kW, out, ld);
      for (; t < s.T; ++t) gate_steps<1>(y, y_ld, z, t, v * kW, out, ld);
    }
    if (!direct) store_rows(p.out, offset, p.out.s[1], p.out.s[2], os, kFB, s.T, dn);
  }
}

static size_t output_scratch(int64_t D) { return (size_t)(kRowTile * (D + kFB)); }

static void block_output(const BlockArgs& p, const RowsTask& task, const Sums& sums, const Products& products, float* scratch) {
  const int64_t ld = p.D + kFB;  // rows a large power of two apart fall into the same few lines of a cache
  const float* tokens = (const float*)(intptr_t)p.xz.data + task.b * p.xz.s[0];
  float* out = (float*)(intptr_t)p.out.data + task.b * p.out.s[0];
  Tensor gate_bias = p.in_b;
  if (gate_bias.data) gate_bias.data += p.D * gate_bias.s[0] * (int64_t)sizeof(float);
  for (int64_t l = task.l0; l < task.l1; l += kRowTile) {
    const int64_t T = task.l1 - l < kRowTile ? task.l1 - l : kRowTile;
    product({T, p.D, p.C}, tokens + l * p.xz.s[1], p.xz.s[1], 1, products.gate, 0, gate_bias, scratch, ld);
    for (int64_t d0 = 0; d0 < p.D; d0 += kFB) {
      float* y = sums.first + d0 / kFB * sums.per_block + l * sums.ld;
      for (int64_t part = 1; part < sums.parts; ++part)
        for (int64_t t = 0; t < T; ++t)
          for (int c = 0; c < kFB; c += kW)
            vstore(y + t * sums.ld + c, vadd(vload(y + t * sums.ld + c), vload(y + part * sums.per_part + t * sums.ld + c)));
      for (int c = 0; c < kFB; c += kW) {
        const Rows z = {scratch + d0, ld};
        int t = 0;
        for (; t + kBatch <= T; t += kBatch) gate_steps<kBatch>(y, sums.ld, z, t, c, scratch + d0, ld);
        for (; t < T; ++t) gate_steps<1>(y, sums.ld, z, t, c, scratch + d0, ld);
      }
    }
    product({T, p.M, p.D}, scratch, ld, 1, products.out, 0, p.out_b, out + l * p.out.s[1], p.out.s[1]);
  }
}

// What one block of 16 channels carries from tile to tile.
struct Lane {
  float *a2, *h, *bias, *skip, *dt_sum, decay;
};

static size_t stream_scratch(int64_t D, int64_t N, int64_t R, int64_t W) {
  const size_t Dp = (size_t)padded_channels(D), blocks = Dp / kFB;
  return blocks * (2 * (padded_states(N) * kFB + 48) + 3 * (kFB + 48) + sizeof(Lane) / sizeof(float) + 1) +
         (kTile + W) * kCols + kTile * (Dp + padded_projections(R, N) + 5 * kFB) + 8 * 64 + 1024;
}

static void block_stream(const BlockArgs& p, const ForwardArgs& f, const StreamTask& task, const Source& source,
                         float* scratch) {
  const int64_t b = task.b, k = task.k, Dp = source.Dp, Rp = padded_rank(p.R), Np = padded_states(p.N);
  const int64_t width = padded_projections(p.R, p.N), blocks = (p.D + kFB - 1) / kFB, tiles = num_tiles(p.L);
  const int count = (int)p.N;
  const bool reversed = ((const int64_t*)(intptr_t)p.orders)[k] == 1, soft = (p.flags & kFlagSoftplus) != 0;
  const Weights& weights = source.weights[k];
  Carver carve{scratch};
  float* window = carve.take((size_t)(kTile + p.W) * kCols);
  float* u = carve.take((size_t)(kTile * Dp));
  float* rows = carve.take((size_t)(kTile * width));
  float* delta = carve.take(kTile * kFB);
  float* dt = carve.take(kTile * kFB);
  float* dtu = carve.take(kTile * kFB);
  float* gate_scratch = carve.take(2 * kTile * kFB);
  Lane* lanes = (Lane*)carve.take((size_t)blocks * (sizeof(Lane) / sizeof(float) + 1));
  for (int64_t i = 0; i < blocks; ++i) {
    const int64_t d0 = i * kFB;
    const int dn = (int)(p.D - d0 < kFB ? p.D - d0 : kFB);
    Lane& lane = lanes[i];
    lane.a2 = carve.take((size_t)(Np * kFB));
    lane.h = carve.take((size_t)(Np * kFB));
    lane.bias = carve.take(kFB);
    lane.skip = carve.take(kFB);
    lane.dt_sum = carve.take(kFB);
    lane.decay = load_decay(lane.a2, kFB, p.A, k, d0, dn, 0, count, (int)Np);
    load_channels(lane.bias, kFB, p.bias, k, d0, dn);
    load_channels(lane.skip, kFB, p.D_skip, k, d0, dn);
    memset(lane.h, 0, sizeof(float) * (size_t)(Np * kFB));
    memset(lane.dt_sum, 0, sizeof(float) * kFB);
  }
  const Rows low = {rows, width}, B = {rows + Rp, width}, C = {rows + Rp + Np, width};

  for (int64_t tile = 0; tile < tiles; ++tile) {
    const Span s = tile_span(tile, p.L, reversed);
    for (int64_t d0 = 0; d0 < p.D; d0 += kCols) {
      const int cols = (int)(p.D - d0 < kCols ? p.D - d0 : kCols);
      conv_tile(f.u, b, 0, d0, s, p.L, cols, kCols, weights, Dp, p.W, source.mirrored[k], window, u + d0, Dp);
      // In pieces: one running sum over hundreds of channels doubles the error of the projections.
      gemm(s.T, width, cols, u + d0, Dp, 1, weights.to_rows + d0 * width, width, rows, width, d0 > 0);
    }
    if (p.projected.data && k < p.Q) store_projections(p, p.projected, b, k, s, rows);
    float* y = task.y + s.first * task.y_ld;
    const int64_t y_ld = s.step * task.y_ld;
    for (int64_t i = 0; i < blocks; ++i) {
      const int64_t d0 = i * kFB;
      const int dn = (int)(p.D - d0 < kFB ? p.D - d0 : kFB), vecs = (dn + kW - 1) / kW;
      const Lane& lane = lanes[i];
      const Rows x = {u + d0, Dp};
      low_rank_tile(low, s.T, dn, weights.dt_proj + d0, Dp, p.R, delta, kFB);
      const bool fast = forward_prepare(s.T, vecs, soft, lane.bias, {delta, kFB}, x, lane.decay, dt, dtu, lane.dt_sum);
      if (fast) forward_groups<true, true>(s.T, vecs, count, dt, dtu, B, C, lane.a2, lane.h, y + d0, y_ld, task.accumulate, nullptr);
      else forward_groups<false, true>(s.T, vecs, count, dt, dtu, B, C, lane.a2, lane.h, y + d0, y_ld, task.accumulate, nullptr);
      keep_state(f, b, k, tile, d0, dn, 0, count, lane.h);
      add_skip(s.T, vecs, lane.skip, x, y + d0, y_ld);
      if (task.finish) {
        const int64_t l0 = s.step > 0 ? s.first : s.first - (s.T - 1);
        float* sum = task.y + d0;
        block_finish(p, RowsTask{b, l0, l0 + s.T}, d0, &sum, task.y_ld, 1, gate_scratch);
      }
    }
  }
}

// -------------------------------------------------------------------------------------------------------------- backward

template <int M>
VM_INLINE void gate_gradient_steps(Rows y, Rows z, Rows g, int t, int c, float* dy, int64_t dy_ld, float* dz, float* gated) {
  V x[M], e[M], s[M], d[M], h[M];
  VM_EACH(x[i] = vload(z.p + (t + i) * z.ld + c));
  exp_neg_abs<M>(x, e);
  sigmoid<M>(x, e, s);
  VM_EACH(d[i] = vload(g.p + (t + i) * g.ld + c));
  VM_EACH(h[i] = vload(y.p + (t + i) * y.ld + c));
  // silu'(z) = s (1 + z (1 - s))
  VM_EACH(e[i] = vmul(s[i], vfma(x[i], vsub(vset(1.0f), s[i]), vset(1.0f))));
  VM_EACH(x[i] = vmul(x[i], s[i]));
  VM_EACH(vstore(dz + (t + i) * kFB + c, vmul(vmul(d[i], h[i]), e[i])));
  VM_EACH(vstore(gated + (t + i) * kFB + c, vmul(h[i], x[i])));
  VM_EACH(vstore(dy + (t + i) * dy_ld + c, vmul(d[i], x[i])));
}

static void block_gate(const BlockGradArgs& p, const RowsTask& task, float* dy, float* scratch) {
  const int64_t Dp = padded_channels(p.D);
  Carver carve{scratch};
  float* ys = carve.take(kTile * kFB);
  float* zs = carve.take(kTile * kFB);
  float* gs = carve.take(kTile * kFB);
  float* dz = carve.take(kTile * kFB);
  float* gated = carve.take(kTile * kFB);
  const Tensor gate = half_of(p.xz, 1, p.D), dgate = half_of(p.dxz, 1, p.D);
  for (int64_t l = task.l0; l < task.l1; l += kTile) {
    const Span s = {(int)(task.l1 - l < kTile ? task.l1 - l : kTile), l, 1};
    for (int64_t d0 = 0; d0 < p.D; d0 += kFB) {
      const int dn = (int)(p.D - d0 < kFB ? p.D - d0 : kFB);
      const Tensor& o = p.dout;
      const int64_t at = task.b * o.s[0] + l * o.s[1] + d0 * o.s[2];
      if (p.flags & kFlagNoGate) {
        load_rows(dy + l * Dp + d0, Dp, o, at, o.s[1], o.s[2], s.T, dn, (dn + kW - 1) / kW * kW);
        continue;
      }
      const Rows g = get_rows(o, at, o.s[1], o.s[2], s.T, dn, kFB, gs);
      const Rows z = token_rows(gate, task.b, 0, d0, s, dn, kFB, zs);
      const Rows y = get_rows(p.y, task.b * p.y.s[0] + l * p.y.s[1] + d0 * p.y.s[2], p.y.s[1], p.y.s[2], s.T, dn, kFB, ys);
      for (int c = 0; c < dn; c += kW) {
        float* to = dy + l * Dp + d0;
        int t = 0;
        for (; t + kBatch <= s.T; t += kBatch) gate_gradient_steps<kBatch>(y, z, g, t, c, to, Dp, dz, gated);
        for (; t < s.T; ++t) gate_gradient_steps<1>(y, z, g, t, c, to, Dp, dz, gated);
      }
      store_rows(dgate, task.b * dgate.s[0] + d0 * dgate.s[2] + l * dgate.s[3], dgate.s[3], dgate.s[2], dz, kFB, s.T, dn);
      if (p.gated.data)
        store_rows(p.gated, task.b * p.gated.s[0] + l * p.gated.s[1] + d0 * p.gated.s[2], p.gated.s[1], p.gated.s[2], gated,
                   kFB, s.T, dn);
    }
  }
}

// dst[i * width + c] = sum over groups and blocks of rows [l, l + rows) of a partial tensor [K][blocks][L][padded].
static void sum_partials(float* dst, int64_t width, const float* partial, int64_t padded, int64_t used, int64_t k0, int64_t k1,
                         int64_t blocks, int64_t L, int64_t l, int64_t rows) {
  for (int64_t j = k0 * blocks; j < k1 * blocks; ++j)
    for (int64_t i = 0; i < rows; ++i) {
      const float* src = partial + (j * L + l + i) * padded;
      float* to = dst + i * width;
      if (j == k0 * blocks)
        for (int64_t c = 0; c < used; ++c) to[c] = src[c];
      else
        for (int64_t c = 0; c < used; ++c) to[c] += src[c];
    }
}

// u = silu(v), and dv = du silu'(v) over du, for M tokens of one channel vector.
template <int M>
VM_INLINE void conv_gradient_steps(const float* x, int64_t ld, const float* taps, int64_t tap_step, int64_t W, V bias, float* u,
                                   float* du) {
  V v[M], e[M], s[M];
  conv_steps<M>(x, ld, taps, tap_step, W, bias, v);
  exp_neg_abs<M>(v, e);
  sigmoid<M>(v, e, s);
  VM_EACH(e[i] = vmul(s[i], vfma(v[i], vsub(vset(1.0f), s[i]), vset(1.0f))));
  VM_EACH(vstore(u + i * kCols, vmul(v[i], s[i])));
  VM_EACH(vstore(du + i * kCols, vmul(vload(du + i * kCols), e[i])));
}

static void block_inputs(const BlockGradArgs& p, const RowsTask& task, const Weights* weights, const bool* reversed,
                         const BlockGrads& grads, float* scratch) {
  const int64_t Dp = padded_channels(p.D), width = padded_projections(p.R, p.N), P = p.R + 2 * p.N, W = p.W;
  const int64_t Np = padded_states(p.N), Rp = padded_rank(p.R), halo = W - 1, sums_size = (P + W + 1) * Dp;
  Carver carve{scratch};
  float* window = carve.take((size_t)(kRowTile + 2 * W) * kCols);
  float* u = carve.take((size_t)(kRowTile + W) * kCols);
  float* dv = carve.take((size_t)(kRowTile + W) * kCols);
  float* dx = carve.take(kRowTile * kCols);
  float* rows = carve.take((size_t)(p.Q * (kRowTile + W) * width));
  const Tensor x = half_of(p.xz, 0, p.D), to_x = half_of(p.dxz, 0, p.D);
  memset(grads.sums, 0, sizeof(float) * (size_t)(p.Q * sums_size));
  for (int64_t l = task.l0; l < task.l1; l += kRowTile) {
    const int T = (int)(task.l1 - l < kRowTile ? task.l1 - l : kRowTile);
    // dx of a token needs dv of the W - 1 tokens whose convolution sees it. Row j of dv is the token at from[q] + j, and
    // rows outside [j0[q], j1[q]) lie outside the sequence.
    for (int64_t q = 0; q < p.Q; ++q) {
      const int64_t from = reversed[q] ? l - halo : l, j0 = from < 0 ? -from : 0;
      const int64_t j1 = from + T + halo > p.L ? p.L - from : T + halo;
      const int64_t k0 = p.Q == 1 ? 0 : q, k1 = p.Q == 1 ? p.K : q + 1;
      float* r = rows + q * (kRowTile + W) * width + j0 * width;
      sum_partials(r, width, grads.partial_r, Rp, p.R, k0, k1, grads.blocks, p.L, from + j0, j1 - j0);
      sum_partials(r + p.R, width, grads.partial_b, Np, p.N, k0, k1, grads.blocks, p.L, from + j0, j1 - j0);
      sum_partials(r + p.R + p.N, width, grads.partial_c, Np, p.N, k0, k1, grads.blocks, p.L, from + j0, j1 - j0);
    }
    for (int64_t d0 = 0; d0 < p.D; d0 += kCols) {
      const int cols = (int)(p.D - d0 < kCols ? p.D - d0 : kCols), whole = (cols + kW - 1) / kW * kW;
      for (int64_t q = 0; q < p.Q; ++q) {
        const Weights& w = weights[q];
        const int64_t from = reversed[q] ? l - halo : l, j0 = from < 0 ? -from : 0;
        const int64_t j1 = from + T + halo > p.L ? p.L - from : T + halo, own = reversed[q] ? halo : 0;
        const int64_t k0 = p.Q == 1 ? 0 : q, k1 = p.Q == 1 ? p.K : q + 1;
        const float* r = rows + q * (kRowTile + W) * width;
        float* sums = grads.sums + q * sums_size + d0;
        memset(dv, 0, sizeof(float) * (size_t)(j0 * kCols));
        memset(dv + j1 * kCols, 0, sizeof(float) * (size_t)((T + halo - j1) * kCols));
        for (int64_t k = k0; k < k1; ++k)
          for (int64_t j = j0; j < j1; ++j) {
            const float* src = grads.du + (k * p.L + from + j) * Dp + d0;
            float* to = dv + j * kCols;
            for (int c = 0; c < whole; c += kW) vstore(to + c, k == k0 ? vload(src + c) : vadd(vload(to + c), vload(src + c)));
          }
        gemm(j1 - j0, whole, P, r + j0 * width, width, 1, w.from_rows + d0, Dp, dv + j0 * kCols, kCols, true);

        const int64_t start = from + j0 - (reversed[q] ? 0 : halo);
        const int count = (int)(j1 - j0);
        const Rows in = window_rows(x, task.b, 0, d0, start, 1, count + (int)halo, p.L, cols, kCols, window);
        const float* taps = w.conv + d0 + (reversed[q] ? halo * Dp : 0);
        const int64_t tap_step = reversed[q] ? -Dp : Dp;
        for (int c = 0; c < whole; c += kW) {
          const V bias = vload(w.conv_bias + d0 + c);
          int t = 0;
          for (; t + kBatch <= count; t += kBatch)
            conv_gradient_steps<kBatch>(in.p + t * in.ld + c, in.ld, taps + c, tap_step, W, bias, u + (j0 + t) * kCols + c,
                                        dv + (j0 + t) * kCols + c);
          for (; t < count; ++t)
            conv_gradient_steps<1>(in.p + t * in.ld + c, in.ld, taps + c, tap_step, W, bias, u + (j0 + t) * kCols + c,
                                   dv + (j0 + t) * kCols + c);

          float* to_bias = sums + (P + W) * Dp + c;
          V sum = vload(to_bias);
          for (int i = 0; i < T; ++i) sum = vadd(sum, vload(dv + (own + i) * kCols + c));
          vstore(to_bias, sum);
          for (int64_t tap = 0; tap < W; ++tap) {
            const int64_t shift = own - j0 + (reversed[q] ? halo - tap : tap);
            float* to_tap = sums + (P + tap) * Dp + c;
            sum = vload(to_tap);
            for (int i = 0; i < T; ++i)
              sum = vfma(vload(dv + (own + i) * kCols + c), vload(in.p + (shift + i) * in.ld + c), sum);
            vstore(to_tap, sum);
          }
          // The transposed convolution: taps in the other order.
          const float* back = w.conv + d0 + c + (reversed[q] ? 0 : halo * Dp);
          const int64_t back_step = reversed[q] ? Dp : -Dp;
          for (t = 0; t < T; ++t) {
            V g;
            conv_steps<1>(dv + t * kCols + c, kCols, back, back_step, W, q ? vload(dx + t * kCols + c) : vzero(), &g);
            vstore(dx + t * kCols + c, g);
          }
        }
        gemm(P, whole, T, r + own * width, 1, width, u + own * kCols, kCols, sums, Dp, true);
      }
      store_rows(to_x, task.b * to_x.s[0] + d0 * to_x.s[2] + l * to_x.s[3], to_x.s[3], to_x.s[2], dx, kCols, T, cols);
    }
  }
}

// ------------------------------------------------------------------------------------------------------- the norm before

static size_t norm_scratch(int64_t C) {
  return (size_t)(2 * kTile + 2) * (size_t)padded_channels(C) + 8 * 64 + 1024;
}

// Ones for the channels of the last vector of a row, zeros behind them.
VM_INLINE V last_lanes(int64_t C) {
  float m[kW];
  for (int i = 0; i < kW; ++i) m[i] = (C - 1) % kW >= i ? 1.0f : 0.0f;
  return vload(m);
}

static void norm(const NormArgs& p, const RowsTask& task, float* scratch) {
  const int64_t C = p.C, Cp = padded_channels(C), whole = (C + kW - 1) / kW * kW;
  double eps;
  memcpy(&eps, &p.eps, sizeof(eps));
  Carver carve{scratch};
  float* xs = carve.take((size_t)(kTile * Cp));
  float* weight = carve.take((size_t)Cp);
  float* bias = carve.take((size_t)Cp);
  load_rows(weight, Cp, p.weight, 0, 0, p.weight.s[0], 1, (int)C, (int)Cp);
  load_rows(bias, Cp, p.bias, 0, 0, p.bias.s[0], 1, (int)C, (int)Cp);
  const V lanes = last_lanes(C);
  for (int64_t l = task.l0; l < task.l1; l += kTile) {
    const int T = (int)(task.l1 - l < kTile ? task.l1 - l : kTile);
    load_rows(xs, Cp, p.x, task.b * p.x.s[0] + l * p.x.s[2], p.x.s[2], p.x.s[1], T, (int)C, (int)Cp);
    float stats[2 * kTile];
    for (int t = 0; t < T; ++t) {
      float* row = xs + t * Cp;
      V sum = vzero(), square = vzero();
      for (int64_t c = 0; c < whole; c += kW) sum = vadd(sum, vload(row + c));
      const float mean = vhsum(sum) / (float)C;
      for (int64_t c = 0; c < whole; c += kW) {
        V d = vsub(vload(row + c), vset(mean));
        if (c + kW >= whole) d = vmul(d, lanes);
        square = vfma(d, d, square);
      }
      const float rstd = (float)(1.0 / sqrt((double)(vhsum(square) / (float)C) + eps));
      stats[t] = mean;
      stats[kTile + t] = rstd;
      for (int64_t c = 0; c < whole; c += kW) {
        const V x = vmul(vsub(vload(row + c), vset(mean)), vset(rstd));
        vstore(row + c, vfma(x, vload(weight + c), vload(bias + c)));
      }
    }
    store_rows(p.out, task.b * p.out.s[0] + l * p.out.s[1], p.out.s[1], p.out.s[2], xs, Cp, T, (int)C);
    if (p.mean.data) store_rows(p.mean, task.b * p.mean.s[0] + l * p.mean.s[1], 0, p.mean.s[1], stats, kTile, 1, T);
    if (p.rstd.data) store_rows(p.rstd, task.b * p.rstd.s[0] + l * p.rstd.s[1], 0, p.rstd.s[1], stats + kTile, kTile, 1, T);
  }
}

// dx = rstd (g - mean(g) - y mean(g y)) with y the normalised x and g = dout weight.
static void norm_backward(const NormGradArgs& p, const RowsTask& task, float* sums, float* scratch) {
  const int64_t C = p.C, Cp = padded_channels(C), whole = (C + kW - 1) / kW * kW;
  Carver carve{scratch};
  float* xs = carve.take((size_t)(kTile * Cp));
  float* gs = carve.take((size_t)(kTile * Cp));
  float* weight = carve.take((size_t)Cp);
  load_rows(weight, Cp, p.weight, 0, 0, p.weight.s[0], 1, (int)C, (int)Cp);
  memset(sums, 0, sizeof(float) * (size_t)(2 * Cp));
  for (int64_t l = task.l0; l < task.l1; l += kTile) {
    const int T = (int)(task.l1 - l < kTile ? task.l1 - l : kTile);
    float stats[2 * kTile];
    load_rows(stats, kTile, p.mean, task.b * p.mean.s[0] + l * p.mean.s[1], 0, p.mean.s[1], 1, T, (int)kTile);
    load_rows(stats + kTile, kTile, p.rstd, task.b * p.rstd.s[0] + l * p.rstd.s[1], 0, p.rstd.s[1], 1, T, (int)kTile);
    load_rows(xs, Cp, p.x, task.b * p.x.s[0] + l * p.x.s[2], p.x.s[2], p.x.s[1], T, (int)C, (int)Cp);
    load_rows(gs, Cp, p.dout, task.b * p.dout.s[0] + l * p.dout.s[1], p.dout.s[1], p.dout.s[2], T, (int)C, (int)Cp);
    for (int t = 0; t < T; ++t) {
      float* row = xs + t * Cp;
      const float* g = gs + t * Cp;
      const V mean = vset(stats[t]), rstd = vset(stats[kTile + t]);
      V sum = vzero(), product = vzero();
      for (int64_t c = 0; c < whole; c += kW) {  // padding: g is zero there
        const V y = vmul(vsub(vload(row + c), mean), rstd), d = vload(g + c), dy = vmul(d, vload(weight + c));
        vstore(sums + c, vfma(d, y, vload(sums + c)));
        vstore(sums + Cp + c, vadd(d, vload(sums + Cp + c)));
        sum = vadd(sum, dy);
        product = vfma(dy, y, product);
      }
      const V shift = vset(vhsum(sum) / (float)C), slope = vset(vhsum(product) / (float)C);
      for (int64_t c = 0; c < whole; c += kW) {
        const V y = vmul(vsub(vload(row + c), mean), rstd), dy = vmul(vload(g + c), vload(weight + c));
        vstore(row + c, vmul(rstd, vsub(vsub(dy, shift), vmul(y, slope))));
      }
    }
    store_rows(p.dx, task.b * p.dx.s[0] + l * p.dx.s[2], p.dx.s[2], p.dx.s[1], xs, Cp, T, (int)C);
  }
}

// ----------------------------------------------------------------------------------------------------- plain products

static void matmul(const MatmulArgs& p, const float* b, int64_t ldb, int64_t m0, int64_t m1) {
  const float* a = (const float*)(intptr_t)p.a.data + m0 * p.a.s[0];
  float* c = (float*)(intptr_t)p.c.data + m0 * p.c.s[0];
  product({m1 - m0, p.N, p.K}, a, p.a.s[0], p.a.s[1], b, ldb, p.bias, c, p.c.s[0]);
}

static const Kernels kTable = {VM_NAME,       forward_scratch, backward_scratch, forward_task,
                               forward_finish, backward_task,   reduce_rows,      block_scratch,
                               stream_scratch, block_project,   block_stream,     block_finish,
                               output_scratch, block_output,    block_gate,       block_inputs,
                               norm_scratch,   norm,            norm_backward,    matmul,
                               load_rows,      store_rows,      kStrip};
