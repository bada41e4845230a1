// Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
// The scan itself, compiled once per instruction set: kernels_*.cpp include a vec_*.h and then this file inside a
// namespace of their own. Nothing from the standard library's templates may be used here: an inline function compiled
// with AVX-512 enabled could be the copy that the linker keeps for every caller.

constexpr float kLog2e = 1.44269504088896340736f;
constexpr float kLn2 = 0.69314718055994530942f;
constexpr int kBatch = 4;  // vectors that elementwise functions take in lockstep

// ---------------------------------------------------------------------------------------------- elementwise functions

// x = max(x, 0) + log1p(e), e = exp(-|x|). The factor of e is our own minimax fit of log1p(e) / e on [0, 1], 6.3e-8 relative
// with its coefficients in float32; its constant term is exact, so the far tail is e.
template <int M>
VM_INLINE void softplus(V* x, const V* e) {
  V p[M];
  VM_EACH(p[i] = vfma(e[i], vset(5.364826415e-03f), vset(-3.006579913e-02f)));
  VM_EACH(p[i] = vfma(e[i], p[i], vset(7.920454443e-02f)));
  VM_EACH(p[i] = vfma(e[i], p[i], vset(-1.375380307e-01f)));
  VM_EACH(p[i] = vfma(e[i], p[i], vset(1.915365607e-01f)));
  VM_EACH(p[i] = vfma(e[i], p[i], vset(-2.485716343e-01f)));
  VM_EACH(p[i] = vfma(e[i], p[i], vset(3.332132399e-01f)));
  VM_EACH(p[i] = vfma(e[i], p[i], vset(-4.999964833e-01f)));
  VM_EACH(p[i] = vfma(e[i], p[i], vset(1.0f)));
  VM_EACH(x[i] = vfma(e[i], p[i], vmax(vzero(), x[i])));
}

// 1 / (1 + exp(-x)) from x and e = exp(-|x|).
template <int M>
VM_INLINE void sigmoid(const V* x, const V* e, V* s) {
  V p[M];
  VM_EACH(p[i] = vadd(vset(1.0f), e[i]));
  vrecip<M>(p, s);
  VM_EACH(p[i] = vselect_neg(x[i], e[i], vset(1.0f)));
  VM_EACH(s[i] = vmul(s[i], p[i]));
}
template <int M>
VM_INLINE void exp_neg_abs(const V* x, V* e) {
  V a[M];
  VM_EACH(a[i] = vabs(x[i]));
  exp_neg<M>(a, e);
}

// ------------------------------------------------------------------------------------------------------ tile transfers

template <int DT>
VM_INLINE V load_full(const char* p) {
  if (DT == kBF16) return vload_bf16((const uint16_t*)p);
  if (DT == kF16) return vload_f16((const uint16_t*)p);
  return vload((const float*)p);
}
template <int DT>
VM_INLINE void store_full(char* p, V a) {
  if (DT == kBF16) return vstore_bf16((uint16_t*)p, a);
  if (DT == kF16) return vstore_f16((uint16_t*)p, a);
  vstore((float*)p, a);
}
template <int DT>
VM_INLINE V load_part(const char* p, int n) {
  if (DT == kF32) return vload_part((const float*)p, n);
  uint16_t t[kW] = {0};
  memcpy(t, p, 2 * (size_t)n);
  return load_full<DT>((const char*)t);
}
template <int DT>
VM_INLINE void store_part(char* p, V a, int n) {
  if (DT == kF32) return vstore_part((float*)p, a, n);
  uint16_t t[kW];
  store_full<DT>((char*)t, a);
  memcpy(p, t, 2 * (size_t)n);
}
template <int DT>
VM_INLINE float load_one(const char* p) {
  if (DT == kBF16) return bf16_to_float(*(const uint16_t*)p);
  if (DT == kF16) return f16_to_float(*(const uint16_t*)p);
  return *(const float*)p;
}
template <int DT>
VM_INLINE void store_one(char* p, float x) {
  if (DT == kBF16) *(uint16_t*)p = float_to_bf16(x);
  else if (DT == kF16) *(uint16_t*)p = float_to_f16(x);
  else *(float*)p = x;
}

// Four rows of four floats to four columns.
VM_INLINE void transpose4(const float* a, int64_t lda, float* b, int64_t ldb) {
#if defined(VM_X86)
  __m128 r0 = _mm_loadu_ps(a), r1 = _mm_loadu_ps(a + lda), r2 = _mm_loadu_ps(a + 2 * lda), r3 = _mm_loadu_ps(a + 3 * lda);
  _MM_TRANSPOSE4_PS(r0, r1, r2, r3);
  _mm_storeu_ps(b, r0);
  _mm_storeu_ps(b + ldb, r1);
  _mm_storeu_ps(b + 2 * ldb, r2);
  _mm_storeu_ps(b + 3 * ldb, r3);
#else
  for (int i = 0; i < 4; ++i)
    for (int j = 0; j < 4; ++j) b[j * ldb + i] = a[i * lda + j];
#endif
}

// dst[r * ld + c] = src[r * s_row + c * s_col] for r < rows, c < cols, and 0 for cols <= c < width.
template <int DT>
static void load_rows_as(float* dst, int64_t ld, const char* src, int64_t s_row, int64_t s_col, int rows, int cols,
                         int width) {
  constexpr int64_t size = DT == kF32 ? 4 : 2;
  if (s_col == 1) {
    for (int r = 0; r < rows; ++r) {
      const char* p = src + r * s_row * size;
      float* q = dst + r * ld;
      int c = 0;
      for (; c + kW <= cols; c += kW) vstore(q + c, load_full<DT>(p + c * size));
      if (c < cols && c + kW <= width) {
        vstore(q + c, load_part<DT>(p + c * size, cols - c));
        c += kW;
      }
      for (; c < cols; ++c) q[c] = load_one<DT>(p + c * size);
      for (; c < width; ++c) q[c] = 0.0f;
    }
    return;
  }
  if (s_row == 1 || s_row == -1) {
    // Tokens are contiguous: read along them and transpose blocks of 4 x 4. A reversed scan walks the block backwards.
    for (int r0 = 0; r0 < rows; r0 += (int)kTile) {
      const int n = rows - r0 < kTile ? rows - r0 : (int)kTile;
      const char* low = src + (s_row == 1 ? (int64_t)r0 : -(int64_t)(r0 + n - 1)) * size;
      float* first = dst + (s_row == 1 ? r0 : r0 + n - 1) * ld;
      const int64_t step = s_row * ld;
      for (int c = 0; c < cols; c += 4) {
        const int m = cols - c < 4 ? cols - c : 4;
        float buffer[4 * kTile];
        const float* a;
        int64_t lda;
        if (DT == kF32) {
          a = (const float*)low + c * s_col;
          lda = s_col;
        } else {
          for (int i = 0; i < m; ++i) {
            const char* p = low + (c + i) * s_col * size;
            int r = 0;
            for (; r + kW <= n; r += kW) vstore(buffer + i * kTile + r, load_full<DT>(p + r * size));
            for (; r < n; ++r) buffer[i * kTile + r] = load_one<DT>(p + r * size);
          }
          a = buffer;
          lda = kTile;
        }
        float* q = first + c;
        int r = 0;
        if (m == 4)
          for (; r + 4 <= n; r += 4) transpose4(a + r, lda, q + r * step, step);
        for (; r < n; ++r)
          for (int i = 0; i < m; ++i) q[r * step + i] = a[i * lda + r];
      }
    }
  } else {
    for (int r = 0; r < rows; ++r)
      for (int c = 0; c < cols; ++c) dst[r * ld + c] = load_one<DT>(src + (r * s_row + c * s_col) * size);
  }
  if (cols < width)
    for (int r = 0; r < rows; ++r)
      for (int c = cols; c < width; ++c) dst[r * ld + c] = 0.0f;
}

template <int DT>
static void store_rows_as(char* dst, int64_t s_row, int64_t s_col, const float* src, int64_t ld, int rows, int cols) {
  constexpr int64_t size = DT == kF32 ? 4 : 2;
  if (s_col == 1) {
    for (int r = 0; r < rows; ++r) {
      char* p = dst + r * s_row * size;
      const float* q = src + r * ld;
      int c = 0;
      for (; c + kW <= cols; c += kW) store_full<DT>(p + c * size, vload(q + c));
      if (c < cols) store_part<DT>(p + c * size, vload_part(q + c, cols - c), cols - c);
    }
    return;
  }
  if (s_row == 1 || s_row == -1) {
    for (int r0 = 0; r0 < rows; r0 += (int)kTile) {
      const int n = rows - r0 < kTile ? rows - r0 : (int)kTile;
      char* low = dst + (s_row == 1 ? (int64_t)r0 : -(int64_t)(r0 + n - 1)) * size;
      const float* first = src + (s_row == 1 ? r0 : r0 + n - 1) * ld;
      const int64_t step = s_row * ld;
      for (int c = 0; c < cols; c += 4) {
        const int m = cols - c < 4 ? cols - c : 4;
        float buffer[4 * kTile];
        const float* q = first + c;
        int r = 0;
        if (m == 4)
          for (; r + 4 <= n; r += 4) transpose4(q + r * step, step, buffer + r, kTile);
        for (; r < n; ++r)
          for (int i = 0; i < m; ++i) buffer[i * kTile + r] = q[r * step + i];
        for (int i = 0; i < m; ++i) {
          char* p = low + (c + i) * s_col * size;
          int k = 0;
          for (; k + kW <= n; k += kW) store_full<DT>(p + k * size, vload(buffer + i * kTile + k));
          for (; k < n; ++k) store_one<DT>(p + k * size, buffer[i * kTile + k]);
        }
      }
    }
    return;
  }
  for (int r = 0; r < rows; ++r)
    for (int c = 0; c < cols; ++c) store_one<DT>(dst + (r * s_row + c * s_col) * size, src[r * ld + c]);
}

static void load_rows(float* dst, int64_t ld, const Tensor& t, int64_t offset, int64_t s_row, int64_t s_col, int rows,
                      int cols, int width) {
  const char* p = (const char*)(intptr_t)t.data;
  if (t.dtype == kBF16) load_rows_as<kBF16>(dst, ld, p + 2 * offset, s_row, s_col, rows, cols, width);
  else if (t.dtype == kF16) load_rows_as<kF16>(dst, ld, p + 2 * offset, s_row, s_col, rows, cols, width);
  else load_rows_as<kF32>(dst, ld, p + 4 * offset, s_row, s_col, rows, cols, width);
}

static void store_rows(const Tensor& t, int64_t offset, int64_t s_row, int64_t s_col, const float* src, int64_t ld,
                       int rows, int cols) {
  char* p = (char*)(intptr_t)t.data;
  if (t.dtype == kBF16) store_rows_as<kBF16>(p + 2 * offset, s_row, s_col, src, ld, rows, cols);
  else if (t.dtype == kF16) store_rows_as<kF16>(p + 2 * offset, s_row, s_col, src, ld, rows, cols);
  else store_rows_as<kF32>(p + 4 * offset, s_row, s_col, src, ld, rows, cols);
}

// Rows of floats: either the tensor itself, when it already has the layout that the kernels walk, or a converted copy.
struct Rows {
  const float* p;
  int64_t ld;
};

VM_INLINE Rows get_rows(const Tensor& t, int64_t offset, int64_t s_row, int64_t s_col, int rows, int cols, int width,
                        float* scratch) {
  if (t.dtype == kF32 && s_col == 1 && cols == width) return {(const float*)(intptr_t)t.data + offset, s_row};
  load_rows(scratch, width, t, offset, s_row, s_col, rows, cols, width);
  return {scratch, width};
}

// Tile `tile` of a scan: its length, and where its first token lies and which way the next one is. Orders 2 and 3, the
// columns of a map, would make this an index table; every transfer above takes one row at a time already.
struct Span {
  int T;
  int64_t first, step;
};
VM_INLINE Span tile_span(int64_t tile, int64_t L, bool reversed) {
  int64_t j = tile * kTile;
  int T = (int)(L - j < kTile ? L - j : kTile);
  return {T, reversed ? L - 1 - j : j, reversed ? (int64_t)-1 : (int64_t)1};
}

VM_INLINE Rows token_rows(const Tensor& t, int64_t b, int64_t k, int64_t c0, const Span& s, int cols, int width,
                          float* scratch) {
  return get_rows(t, b * t.s[0] + k * t.s[1] + c0 * t.s[2] + s.first * t.s[3], s.step * t.s[3], t.s[2], s.T, cols, width,
                  scratch);
}

// ------------------------------------------------------------------------------------ u and delta made inside the block

// Rows of the convolution's input that T tokens of it need: `taps` - 1 rows more, zero outside the sequence. Row j is the
// token at start + j * step.
static Rows window_rows(const Tensor& t, int64_t b, int64_t k, int64_t c0, int64_t start, int64_t step, int count, int64_t L,
                        int cols, int width, float* scratch) {
  const int64_t end = start + (count - 1) * step;
  const bool inside = start >= 0 && start < L && end >= 0 && end < L;
  const int64_t offset = b * t.s[0] + k * t.s[1] + c0 * t.s[2];
  if (inside)
    return get_rows(t, offset + start * t.s[3], step * t.s[3], t.s[2], count, cols, width, scratch);
  // Steps before the first and after the last row that exist.
  int64_t j0 = step > 0 ? -start : start - (L - 1), j1 = step > 0 ? L - start : start + 1;
  j0 = j0 < 0 ? 0 : j0 > count ? count : j0;
  j1 = j1 < j0 ? j0 : j1 > count ? count : j1;
  memset(scratch, 0, sizeof(float) * (size_t)(j0 * width));
  memset(scratch + j1 * width, 0, sizeof(float) * (size_t)((count - j1) * width));
  if (j1 > j0)
    load_rows(scratch + j0 * width, width, t, offset + (start + j0 * step) * t.s[3], step * t.s[3], t.s[2], (int)(j1 - j0),
              cols, width);
  return {scratch, width};
}

// v = bias + sum of taps * x for M tokens of one channel vector; x row t is the first of the window of token t.
template <int M>
VM_INLINE void conv_steps(const float* x, int64_t ld, const float* taps, int64_t tap_step, int64_t W, V bias, V* v) {
  VM_EACH(v[i] = bias);
  for (int64_t w = 0; w < W; ++w) {
    const V tap = vload(taps + w * tap_step);
    VM_EACH(v[i] = vfma(tap, vload(x + (i + w) * ld), v[i]));
  }
}
template <int M>
VM_INLINE void silu_steps(const V* v, V* u) {
  V e[M], s[M];
  exp_neg_abs<M>(v, e);
  sigmoid<M>(v, e, s);
  VM_EACH(u[i] = vmul(v[i], s[i]));
}
template <int M>
VM_INLINE void conv_silu_store(const float* x, int64_t ld, const float* taps, int64_t tap_step, int64_t W, V bias, float* u,
                               int64_t u_ld) {
  V v[M], r[M];
  conv_steps<M>(x, ld, taps, tap_step, W, bias, v);
  silu_steps<M>(v, r);
  VM_EACH(vstore(u + i * u_ld, r[i]));
}

// u = silu(conv(x)) of the T tokens at first + t * step, channels [c0, c0 + cols) of `width`, to u[t * u_ld + c]. With
// `mirrored` the convolution looks ahead in that order. `window` holds (T + W - 1) * width floats.
static void conv_tile(const Tensor& x, int64_t b, int64_t k, int64_t c0, const Span& s, int64_t L, int cols, int width,
                      const Weights& weights, int64_t Dp, int64_t W, bool mirrored, float* window, float* u, int64_t u_ld) {
  const int64_t start = mirrored ? s.first : s.first - s.step * (W - 1);
  const Rows in = window_rows(x, b, k, c0, start, s.step, s.T + (int)W - 1, L, cols, width, window);
  const float* taps = weights.conv + c0 + (mirrored ? (W - 1) * Dp : 0);
  const int64_t tap_step = mirrored ? -Dp : Dp;
  for (int c = 0; c < cols; c += kW) {
    const V bias = vload(weights.conv_bias + c0 + c);
    int t = 0;
    for (; t + kBatch <= s.T; t += kBatch)
      conv_silu_store<kBatch>(in.p + t * in.ld + c, in.ld, taps + c, tap_step, W, bias, u + t * u_ld + c, u_ld);
    for (; t < s.T; ++t)
      conv_silu_store<1>(in.p + t * in.ld + c, in.ld, taps + c, tap_step, W, bias, u + t * u_ld + c, u_ld);
  }
}

template <int M>
VM_INLINE void low_rank_steps(const float* low, int64_t ld, const float* w, int64_t Dp, int64_t R, float* out, int64_t out_ld) {
  V d[M];
  VM_EACH(d[i] = vzero());
  for (int64_t r = 0; r < R; ++r) {
    const V weight = vload(w + r * Dp);
    VM_EACH(d[i] = vfma(weight, vset(low[i * ld + r]), d[i]));
  }
  VM_EACH(vstore(out + i * out_ld, d[i]));
}

// delta = the first R projections times dt_proj, a tile's rows to out[t * out_ld + c].
static void low_rank_tile(const Rows& low, int T, int cols, const float* dt_proj, int64_t Dp, int64_t R, float* out,
                          int64_t out_ld) {
  for (int c = 0; c < cols; c += kW) {
    int t = 0;
    for (; t + kBatch <= T; t += kBatch)
      low_rank_steps<kBatch>(low.p + t * low.ld, low.ld, dt_proj + c, Dp, R, out + t * out_ld + c, out_ld);
    for (; t < T; ++t) low_rank_steps<1>(low.p + t * low.ld, low.ld, dt_proj + c, Dp, R, out + t * out_ld + c, out_ld);
  }
}

// Rows of the next tile, fetched while this one is computed: rows are a whole token apart, which hardware prefetchers
// follow badly or, from half a page on, not at all. Unused entries point at scratch.
struct Ahead {
  const char* p[6];
  int64_t step[6];
};
constexpr int kBwdAhead = 11;
struct BwdAhead {
  const char* p[kBwdAhead];
  int64_t step[kBwdAhead];
  int per_group;  // each group of four states fetches some of them
};
template <class A>
VM_INLINE void set_ahead(A& a, int i, const Tensor& t, int64_t b, int64_t k, int64_t c0, const Span& s, int64_t size,
                         const float* idle) {
  a.p[i] = (const char*)idle;
  a.step[i] = 0;
  // Only where channels are contiguous; tokens one after another prefetch themselves.
  if (!t.data || t.s[2] != 1 || s.T == 0) return;
  a.p[i] = (const char*)(intptr_t)t.data + (b * t.s[0] + k * t.s[1] + c0 + s.first * t.s[3]) * size;
  a.step[i] = s.step * t.s[3] * size;
}
VM_INLINE int64_t item_size(const Tensor& t) { return t.dtype == kF32 ? 4 : 2; }

// A times log2(e) as rows of channels, zero beyond `count` states and `cols` channels; returns the largest magnitude, NaN if there is one.
static float load_decay(float* a2, int width, const Tensor& A, int64_t k, int64_t d0, int cols, int64_t n0, int count,
                        int padded) {
  load_rows(a2, width, A, k * A.s[0] + d0 * A.s[1] + n0 * A.s[2], A.s[2], A.s[1], count, cols, width);
  memset(a2 + (size_t)count * width, 0, sizeof(float) * (size_t)(padded - count) * width);
  V m = vzero(), nothing = vzero();
  for (int i = 0; i < count * width; i += kW) {
    V a = vmul(vload(a2 + i), vset(kLog2e));
    vstore(a2 + i, a);
    m = vmax(vabs(a), m);
    nothing = vfma(a, vzero(), nothing);  // the maximum drops a NaN
  }
  return vhmax(m) + vhsum(nothing);
}

// One value per channel of a (k, d) tensor, zero when it is absent.
static void load_channels(float* dst, int width, const Tensor& t, int64_t k, int64_t d0, int cols) {
  if (t.data) load_rows(dst, width, t, k * t.s[0] + d0 * t.s[1], 0, t.s[1], 1, cols, width);
  else memset(dst, 0, sizeof(float) * width);
}

// Whether the unclamped exp2 is right for a whole tile. NaN and infinity in dt make its sum times 0 NaN and the answer no.
VM_INLINE bool in_fast_range(V largest, V sum, float decay) {
  return vhmax(largest) * decay <= kFastRange && vhsum(vmul(sum, vzero())) == 0.0f;
}

// state = local + decay^(sum of dt) * state, the hand-over between parts of a split scan. A state of zero stays zero
// under an overflowing factor, as it does step by step.
static void carry_over(float* state, const float* local, const float* a2, const float* dt_sum, int count, int width) {
  const ExpTable table = exp_table();
  for (int n = 0; n < count; ++n)
    for (int c = 0; c < width; c += kW) {
      float factor[kW];
      vstore(factor, exp2_dt<false>(vload(dt_sum + c), vload(a2 + n * width + c), table));
      for (int i = 0; i < kW; ++i) {
        float& s = state[n * width + c + i];
        s = local[n * width + c + i] + (s == 0.0f ? 0.0f : factor[i] * s);
      }
    }
}

struct Carver {
  float* p;
  // Odd line counts between arrays: rows of equal index in two arrays must not be 4096 bytes apart.
  float* take(size_t n) {
    float* r = p;
    p += (n + 15) / 16 * 16 + 48;
    return r;
  }
};

// ------------------------------------------------------------------------------------------------------------- forward

constexpr int kFB = (int)kFwdBlock;

// NB states of one channel vector through a tile; h stays in registers. Sums y over states in fours, so that sharing
// the states among tasks (halves of 8 or 16, or sixteens) does not change a bit of the result.
template <int NB, bool FAST, bool OUT>
static void forward_states(int T, const float* dt, const float* dtu, Rows B, Rows C, const float* a2, float* h_state,
                           float* y, int64_t y_ld, bool add, const Ahead* ahead) {
  const ExpTable table = exp_table();
  const float* b = B.p;
  const float* c = C.p;
  V h[NB];
  VM_UNROLL for (int n = 0; n < NB; ++n) h[n] = vload(h_state + n * kFB);
  for (int t = 0; t < T; ++t) {
    if (ahead)
      for (int i = 0; i < 6; ++i) VM_PREFETCH(ahead->p[i] + t * ahead->step[i]);
    const V d = vload(dt + t * kFB);
    const V x = vload(dtu + t * kFB);
    V sum[(NB + 3) / 4];
    VM_UNROLL for (int n = 0; n < NB; ++n) {
      V a = exp2_dt<FAST>(d, vload(a2 + n * kFB), table);
      h[n] = vfma(a, h[n], vmul(x, vset(b[n])));
      if (OUT) sum[n / 4] = n % 4 ? vfma(h[n], vset(c[n]), sum[n / 4]) : vmul(h[n], vset(c[n]));
    }
    if (OUT) {
      V s = sum[0];
      if (NB == 8) s = vadd(sum[0], sum[(NB + 3) / 4 - 1]);
      if (NB == 16) s = vadd(vadd(sum[0], sum[NB / 16]), vadd(sum[NB / 8], sum[(NB + 3) / 4 - 1]));
      if (add) s = vadd(vload(y + t * y_ld), s);
      vstore(y + t * y_ld, s);
      c += C.ld;
    }
    b += B.ld;
  }
  VM_UNROLL for (int n = 0; n < NB; ++n) vstore(h_state + n * kFB, h[n]);
}

template <bool FAST, bool OUT>
static void forward_groups(int T, int vecs, int count, const float* dt, const float* dtu, Rows B, Rows C, const float* a2,
                           float* h, float* y, int64_t y_ld, bool accumulate, const Ahead* ahead) {
  for (int n = 0; n < count;) {
    const int left = count - n;
    const int group = left >= kFwdGroup ? kFwdGroup : left >= 8 ? 8 : left >= 2 ? 4 : 1;
    for (int v = 0; v < vecs; ++v) {
      const int o = v * kW;
      const Rows b = {B.p + n, B.ld}, c = {C.p + n, C.ld};
      const float* a = a2 + n * kFB + o;
      float* s = h + n * kFB + o;
      const bool add = n > 0 || accumulate;
#define VM_GO(NB) \
  forward_states<NB, FAST, OUT>(T, dt + o, dtu + o, b, c, a, s, y + o, y_ld, add, n > 0 || v ? nullptr : ahead)
      if (group == 16) VM_GO((kFwdGroup < 16 ? 4 : 16));
      else if (group == 8) VM_GO(8);
      else if (group == 4) VM_GO(4);
      else VM_GO(1);
#undef VM_GO
    }
    n += group;
  }
}

static size_t forward_scratch(int64_t N, int64_t R, int64_t W) {
  const size_t np = (size_t)padded_states(N);
  return 2 * np * kFB + 2 * kTile * np + (7 * kTile + W) * kFB + kTile * padded_rank(R) + 4 * kFB + 18 * 64 + 1024;
}

// dt and dt * u of M tokens of one channel vector.
template <int M>
VM_INLINE void forward_steps(int t, int c, bool soft, V shift, Rows delta, Rows u, float* dt, float* dtu, V& largest,
                             V& sum) {
  V d[M];
  VM_EACH(d[i] = vadd(vload(delta.p + (t + i) * delta.ld + c), shift));
  if (soft) {
    V e[M];
    exp_neg_abs<M>(d, e);
    softplus<M>(d, e);
    VM_EACH(largest = vmax(d[i], largest));
  } else {
    VM_EACH(largest = vmax(vabs(d[i]), largest));
  }
  VM_EACH(sum = vadd(sum, d[i]));
  VM_EACH(vstore(dt + (t + i) * kFB + c, d[i]));
  VM_EACH(vstore(dtu + (t + i) * kFB + c, vmul(d[i], vload(u.p + (t + i) * u.ld + c))));
}

template <int M>
VM_INLINE void finish_steps(int t, int c, V skip, Rows u, Rows z, const float* y, float* out, int64_t ld) {
  V r[M];
  VM_EACH(r[i] = vfma(skip, vload(u.p + (t + i) * u.ld + c), vload(y + (t + i) * kFB + c)));
  if (z.p) {
    V g[M], e[M], s[M];
    VM_EACH(g[i] = vload(z.p + (t + i) * z.ld + c));
    exp_neg_abs<M>(g, e);
    sigmoid<M>(g, e, s);
    VM_EACH(r[i] = vmul(r[i], vmul(g[i], s[i])));
  }
  VM_EACH(vstore(out + (t + i) * ld + c, r[i]));
}

// out = (y + D u) * silu(z) for one tile whose u rows are at hand.
VM_INLINE void finish_tile(const ForwardArgs& p, int64_t b, int64_t k, int64_t d0, int dn, const Span& s, const float* skip,
                           Rows u, const float* y, float* zs, float* os) {
  const Tensor& o = p.out;
  const int vecs = (dn + kW - 1) / kW;
  const int64_t offset = b * o.s[0] + k * o.s[1] + d0 * o.s[2] + s.first * o.s[3];
  const bool direct = o.dtype == kF32 && o.s[2] == 1 && dn == kFB;
  float* out = direct ? (float*)(intptr_t)o.data + offset : os;
  const int64_t ld = direct ? s.step * o.s[3] : kFB;
  Rows z = {nullptr, 0};
  if (p.z.data) z = token_rows(p.z, b, k, d0, s, dn, kFB, zs);
  for (int v = 0; v < vecs; ++v) {
    const int c = v * kW;
    const V scale = vload(skip + c);
    int t = 0;
    for (; t + kBatch <= s.T; t += kBatch) finish_steps<kBatch>(t, c, scale, u, z, y, out, ld);
    for (; t < s.T; ++t) finish_steps<1>(t, c, scale, u, z, y, out, ld);
  }
  if (!direct) store_rows(o, offset, s.step * o.s[3], o.s[2], os, kFB, s.T, dn);
}

// dt, dt * u and the sum of dt of one tile; returns whether the unclamped exp2 is right for it.
VM_INLINE bool forward_prepare(int T, int vecs, bool soft, const float* bias, Rows delta, Rows u, float decay, float* dt,
                               float* dtu, float* dt_sum) {
  V largest = vzero(), sum = vzero();
  for (int v = 0; v < vecs; ++v) {
    const int c = v * kW;
    const V shift = vload(bias + c);
    V part = vzero();
    int t = 0;
    for (; t + kBatch <= T; t += kBatch) forward_steps<kBatch>(t, c, soft, shift, delta, u, dt, dtu, largest, part);
    for (; t < T; ++t) forward_steps<1>(t, c, soft, shift, delta, u, dt, dtu, largest, part);
    vstore(dt_sum + c, vadd(vload(dt_sum + c), part));
    sum = vadd(sum, part);
  }
  return in_fast_range(largest, sum, decay);
}

// y += D u of one tile.
VM_INLINE void add_skip(int T, int vecs, const float* skip, Rows u, float* y, int64_t y_ld) {
  for (int c = 0; c < vecs * kW; c += kW) {
    const V scale = vload(skip + c);
    for (int t = 0; t < T; ++t) vstore(y + t * y_ld + c, vfma(scale, vload(u.p + t * u.ld + c), vload(y + t * y_ld + c)));
  }
}

// Stores the state behind a tile where forward was asked to keep it.
static void keep_state(const ForwardArgs& p, int64_t b, int64_t k, int64_t tile, int64_t d0, int dn, int64_t n0, int count,
                       const float* h) {
  const int64_t slot = tile - (num_tiles(p.L) - p.checkpoints);
  if (slot < 0) return;
  const Tensor& t = p.states;
  store_rows(t, b * t.s[0] + k * t.s[1] + slot * t.s[2] + d0 * t.s[3] + n0 * t.s[4], t.s[4], t.s[3], h, kFB, count, dn);
}

static void forward_task(const ForwardArgs& p, const FwdTask& task, float* scratch) {
  const int count = (int)(task.n1 - task.n0), padded = (int)padded_states(count), dn = (int)task.dn;
  const int vecs = (dn + kW - 1) / kW;
  const int64_t b = task.b, k = task.k, d0 = task.d0;
  const bool reversed = ((const int64_t*)(intptr_t)p.orders)[k] == 1;
  const bool soft = (p.flags & kFlagSoftplus) != 0;
  Carver carve{scratch};
  float* a2 = carve.take((size_t)padded * kFB);
  float* h = carve.take((size_t)padded * kFB);
  float* bs = carve.take((size_t)kTile * padded);
  float* cs = carve.take((size_t)kTile * padded);
  const Source* const source = task.source;
  float* us = carve.take(kTile * kFB);
  float* ds = carve.take(kTile * kFB);
  float* zs = carve.take((size_t)(kTile + (source ? source->W : 0)) * kFB);  // or the convolution's window
  float* os = carve.take(kTile * kFB);
  float* rs = carve.take(source ? (size_t)kTile * padded_rank(source->R) : 0);
  float* dt = carve.take(kTile * kFB);
  float* dtu = carve.take(kTile * kFB);
  float* ys = carve.take(kTile * kFB);
  float* bias = carve.take(kFB);
  float* skip = carve.take(kFB);
  float* dt_sum = carve.take(kFB);

  const float decay = load_decay(a2, kFB, p.A, k, d0, dn, task.n0, count, padded);
  load_channels(bias, kFB, p.bias, k, d0, dn);
  load_channels(skip, kFB, p.D_skip, k, d0, dn);
  memset(h, 0, sizeof(float) * (size_t)padded * kFB);
  memset(dt_sum, 0, sizeof(float) * kFB);
  const size_t state_size = (size_t)count * kFB;
  if (task.seg_state && !task.states_only)
    for (int64_t s = 0; s < task.seg; ++s)
      carry_over(h, task.seg_state + s * state_size, a2, task.seg_state + task.segs * state_size + s * kFB, count, kFB);

  for (int64_t tile = task.tile0; tile < task.tile1; ++tile) {
    const Span s = tile_span(tile, p.L, reversed);
    Rows u = {us, kFB}, delta = {ds, kFB};
    if (source) {
      const Weights& weights = source->weights[k];
      const Rows low = token_rows(p.delta, b, k, 0, s, (int)source->R, (int)source->R, rs);
      conv_tile(p.u, b, k, d0, s, p.L, dn, kFB, weights, source->Dp, source->W, source->mirrored[k], zs, us, kFB);
      low_rank_tile(low, s.T, dn, weights.dt_proj + d0, source->Dp, source->R, ds, kFB);
    } else {
      u = token_rows(p.u, b, k, d0, s, dn, kFB, us);
      delta = token_rows(p.delta, b, k, d0, s, dn, kFB, ds);
    }
    const Rows B = token_rows(p.Bm, b, k, task.n0, s, count, padded, bs);
    const Rows C = task.states_only ? B : token_rows(p.Cm, b, k, task.n0, s, count, padded, cs);
    const bool fast = forward_prepare(s.T, vecs, soft, bias, delta, u, decay, dt, dtu, dt_sum);
    Ahead ahead;
    Span next = tile_span(tile + 1, p.L, reversed);
    if (tile + 1 >= task.tile1) next.T = 0;
    set_ahead(ahead, 0, p.u, b, k, d0, next, item_size(p.u), dt);
    set_ahead(ahead, 1, p.delta, b, k, source ? 0 : d0, next, item_size(p.delta), dt);
    set_ahead(ahead, 2, p.Bm, b, k, task.n0, next, item_size(p.Bm), dt);
    set_ahead(ahead, 3, p.Cm, b, k, task.n0, next, item_size(p.Cm), dt);
    set_ahead(ahead, 4, p.z, b, k, d0, next, item_size(p.z), dt);
    set_ahead(ahead, 5, p.out, b, k, d0, next, item_size(p.out), dt);
    if (task.states_only) {
      if (fast) forward_groups<true, false>(s.T, vecs, count, dt, dtu, B, C, a2, h, ys, kFB, false, &ahead);
      else forward_groups<false, false>(s.T, vecs, count, dt, dtu, B, C, a2, h, ys, kFB, false, &ahead);
      continue;
    }
    float* y = task.partial_y ? task.partial_y + (source ? s.first : tile * kTile) * kFB : ys;
    const int64_t y_ld = source ? s.step * kFB : kFB;
    if (fast) forward_groups<true, true>(s.T, vecs, count, dt, dtu, B, C, a2, h, y, y_ld, false, &ahead);
    else forward_groups<false, true>(s.T, vecs, count, dt, dtu, B, C, a2, h, y, y_ld, false, &ahead);
    keep_state(p, b, k, tile, d0, dn, task.n0, count, h);
    if (source && task.n0 == 0) add_skip(s.T, vecs, skip, u, y, y_ld);
    if (!task.partial_y) finish_tile(p, b, k, d0, dn, s, skip, u, y, zs, os);
  }
  if (task.states_only) {
    memcpy(task.seg_state + task.seg * state_size, h, sizeof(float) * state_size);
    memcpy(task.seg_state + task.segs * state_size + task.seg * kFB, dt_sum, sizeof(float) * kFB);
  }
}

static void forward_finish(const ForwardArgs& p, const FwdTask& task, float* const* partial_y, int64_t parts,
                           float* scratch) {
  const int dn = (int)task.dn;
  const bool reversed = ((const int64_t*)(intptr_t)p.orders)[task.k] == 1;
  Carver carve{scratch};
  float* us = carve.take(kTile * kFB);
  float* zs = carve.take(kTile * kFB);
  float* os = carve.take(kTile * kFB);
  float* ys = carve.take(kTile * kFB);
  float* skip = carve.take(kFB);
  load_channels(skip, kFB, p.D_skip, task.k, task.d0, dn);
  for (int64_t tile = task.tile0; tile < task.tile1; ++tile) {
    const Span s = tile_span(tile, p.L, reversed);
    const Rows u = token_rows(p.u, task.b, task.k, task.d0, s, dn, kFB, us);
    for (int i = 0; i < s.T * kFB; i += kW) {
      const size_t o = (size_t)(tile * kTile * kFB + i);
      V y = vload(partial_y[0] + o);
      for (int64_t part = 1; part < parts; ++part) y = vadd(y, vload(partial_y[part] + o));
      vstore(ys + i, y);
    }
    finish_tile(p, task.b, task.k, task.d0, dn, s, skip, u, ys, zs, os);
  }
}

// ------------------------------------------------------------------------------------------------------------ backward

constexpr int kBB = (int)kBwdBlock;

// sum += x with the rounding error carried in `low`: parameters' gradients add up tens of thousands of tokens, tile by
// tile, and would lose about two digits.
VM_INLINE void add_exactly(float* sum, float* low, V x) {
  const V before = vload(sum), y = vsub(x, vload(low));
  const V after = vadd(before, y);
  vstore(low, vsub(vsub(after, before), y));
  vstore(sum, after);
}

// Sum over channels of NB vectors, kept as one vector a token until all channels of the block have been added.
template <int NB>
VM_INLINE V pack_sums(const V* r) {
  if (NB == 4) return vreduce4(r[0], r[1 % NB], r[2 % NB], r[3 % NB]);
  return r[0];
}

// Forward through one tile again, from its checkpoint: leaves decay and state of every token in `hist_a` and `hist_h`
// (row 0 is the state before the tile), adds C h to y when the gate's gradient needs it, and sums dy h for dC.
template <int NB, int NV, bool FAST, bool GATE>
static void backward_recompute(int T, const float* dt, const float* dtu, const float* dy, Rows B, Rows C, const float* a2,
                               const float* h0, float* hist_h, float* hist_a, float* y, float* sum_c, bool first_states,
                               bool first) {
  const ExpTable table = exp_table();
  constexpr int kRow = NB * NV * kW;
  V h[NB * NV];
  VM_UNROLL for (int n = 0; n < NB; ++n) VM_UNROLL for (int v = 0; v < NV; ++v) {
    h[n * NV + v] = vload(h0 + n * kBB + v * kW);
    vstore(hist_h + (n * NV + v) * kW, h[n * NV + v]);
  }
  const float* b = B.p;
  const float* c = C.p;
  for (int t = 0; t < T; ++t) {
    float* to_h = hist_h + (t + 1) * kRow;
    float* to_a = hist_a + t * kRow;
    V d[NV], x[NV], g[NV], o[NV], r[NB];
    VM_UNROLL for (int v = 0; v < NV; ++v) {
      d[v] = vload(dt + t * kBB + v * kW);
      x[v] = vload(dtu + t * kBB + v * kW);
      g[v] = vload(dy + t * kBB + v * kW);
    }
    VM_UNROLL for (int n = 0; n < NB; ++n) VM_UNROLL for (int v = 0; v < NV; ++v) {
      const int i = n * NV + v;
      V a = exp2_dt<FAST>(d[v], vload(a2 + n * kBB + v * kW), table);
      h[i] = vfma(a, h[i], vmul(x[v], vset(b[n])));
      vstore(to_a + i * kW, a);
      vstore(to_h + i * kW, h[i]);
      if (GATE) o[v] = n ? vfma(h[i], vset(c[n]), o[v]) : vmul(h[i], vset(c[n]));
      r[n] = v ? vfma(g[v], h[i], r[n]) : vmul(g[v], h[i]);
    }
    if (GATE) VM_UNROLL for (int v = 0; v < NV; ++v) {
      float* to = y + t * kBB + v * kW;
      vstore(to, first_states ? o[v] : vadd(vload(to), o[v]));
    }
    V packed = pack_sums<NB>(r);
    vstore(sum_c + t * kW, first ? packed : vadd(packed, vload(sum_c + t * kW)));
    b += B.ld;
    c += C.ld;
  }
}

// The adjoint, last token first. `w` is the decay of the next token times its adjoint. Adds g B to sum_x (gradient of
// dt * u) and q A to sum_a (gradient of dt through the decay, over ln 2), where q = g * decay * previous state.
template <int NB, int NV>
static void backward_adjoint(int T, const float* dt, const float* dtu, const float* dy, Rows B, Rows C, const float* a2,
                             const float* hist_h, const float* hist_a, float* adjoint, float* dA, float* dA_low,
                             float* sum_x, float* sum_a, float* sum_b, bool first_states, bool first,
                             const BwdAhead& ahead, int i0, int i1) {
  constexpr int kRow = NB * NV * kW;
  V w[NB * NV], da[NB * NV];
  VM_UNROLL for (int n = 0; n < NB; ++n) VM_UNROLL for (int v = 0; v < NV; ++v) {
    w[n * NV + v] = vload(adjoint + n * kBB + v * kW);
    da[n * NV + v] = vzero();
  }
  for (int t = T - 1; t >= 0; --t) {
    const float* b = B.p + t * B.ld;
    const float* c = C.p + t * C.ld;
    for (int i = i0; i < i1; ++i) {
      const char* line = ahead.p[i] + t * ahead.step[i];
      VM_PREFETCH_L2(line);
      VM_PREFETCH_L2(line + 64);
    }
    V sx[NV], sa[NV], r[NB];
    VM_UNROLL for (int n = 0; n < NB; ++n) VM_UNROLL for (int v = 0; v < NV; ++v) {
      const int i = n * NV + v, o = t * kBB + v * kW;
      V g = vfma(vset(c[n]), vload(dy + o), w[i]);
      r[n] = v ? vfma(g, vload(dtu + o), r[n]) : vmul(g, vload(dtu + o));
      sx[v] = n ? vfma(g, vset(b[n]), sx[v]) : vmul(g, vset(b[n]));
      w[i] = vmul(g, vload(hist_a + t * kRow + i * kW));
      V q = vmul(w[i], vload(hist_h + t * kRow + i * kW));
      sa[v] = n ? vfma(q, vload(a2 + n * kBB + v * kW), sa[v]) : vmul(q, vload(a2 + n * kBB + v * kW));
      da[i] = vfma(q, vload(dt + o), da[i]);
    }
    VM_UNROLL for (int v = 0; v < NV; ++v) {
      float* to_x = sum_x + t * kBB + v * kW;
      float* to_a = sum_a + t * kBB + v * kW;
      vstore(to_x, first_states ? sx[v] : vadd(vload(to_x), sx[v]));
      vstore(to_a, first_states ? sa[v] : vadd(vload(to_a), sa[v]));
    }
    V packed = pack_sums<NB>(r);
    vstore(sum_b + t * kW, first ? packed : vadd(packed, vload(sum_b + t * kW)));
  }
  VM_UNROLL for (int n = 0; n < NB; ++n) VM_UNROLL for (int v = 0; v < NV; ++v) {
    add_exactly(dA + n * kBB + v * kW, dA_low + n * kBB + v * kW, da[n * NV + v]);
    vstore(adjoint + n * kBB + v * kW, w[n * NV + v]);
  }
}

// First pass of a split scan: only the adjoint that leaves the part at its first token.
template <int NB, bool FAST>
static void backward_carry(int T, const float* dt, const float* dy, Rows C, const float* a2, float* adjoint) {
  const ExpTable table = exp_table();
  V w[NB];
  VM_UNROLL for (int n = 0; n < NB; ++n) w[n] = vload(adjoint + n * kBB);
  for (int t = T - 1; t >= 0; --t) {
    const float* c = C.p + t * C.ld;
    const V d = vload(dt + t * kBB), g = vload(dy + t * kBB);
    VM_UNROLL for (int n = 0; n < NB; ++n)
      w[n] = vmul(vfma(vset(c[n]), g, w[n]), exp2_dt<FAST>(d, vload(a2 + n * kBB), table));
  }
  VM_UNROLL for (int n = 0; n < NB; ++n) vstore(adjoint + n * kBB, w[n]);
}

struct BwdTile {
  BwdAhead ahead;
  int T, vecs;
  bool fast, gate;
  const float *dt, *dtu, *dy, *a2, *h0;
  Rows B, C;
  float *hist_h, *hist_a, *y, *sum_x, *sum_a, *part_b, *part_c, *adjoint, *dA, *dA_low;
};

// Where a tile's results go: straight to the tensor when its layout is the kernels' own, else to scratch and from there.
struct TokenStore {
  float* p;
  int64_t ld, offset;
  bool direct;
  TokenStore(const Tensor& t, int64_t b, int64_t k, int64_t d0, const Span& s, int dn, float* scratch)
      : p(scratch), ld(kBB), offset(b * t.s[0] + k * t.s[1] + d0 * t.s[2] + s.first * t.s[3]) {
    direct = t.dtype == kF32 && t.s[2] == 1 && dn == kBB;
    if (direct) {
      p = (float*)(intptr_t)t.data + offset;
      ld = s.step * t.s[3];
    }
  }
  void finish(const Tensor& t, const Span& s, int dn) const {
    if (!direct) store_rows(t, offset, s.step * t.s[3], t.s[2], p, kBB, s.T, dn);
  }
};

template <int NB, int NV>
static void backward_states(const BwdTile& t, int n, int v, bool first_states, bool first) {
  const int o = v * kW;
  const Rows B = {t.B.p + n, t.B.ld}, C = {t.C.p + n, t.C.ld};
  const float* a2 = t.a2 + n * kBB + o;
#define VM_GO(FAST, GATE)                                                                                            \
  backward_recompute<NB, NV, FAST, GATE>(t.T, t.dt + o, t.dtu + o, t.dy + o, B, C, a2, t.h0 + n * kBB + o, t.hist_h, \
                                         t.hist_a, t.y + o, t.part_c, first_states, first)
  if (t.fast) {
    if (t.gate) VM_GO(true, true);
    else VM_GO(true, false);
  } else {
    if (t.gate) VM_GO(false, true);
    else VM_GO(false, false);
  }
#undef VM_GO
  int i0 = n / 4 * t.ahead.per_group, i1 = i0 + t.ahead.per_group;
  if (i0 > kBwdAhead || v > 0) i0 = kBwdAhead;
  if (i1 > kBwdAhead) i1 = kBwdAhead;
  backward_adjoint<NB, NV>(t.T, t.dt + o, t.dtu + o, t.dy + o, B, C, a2, t.hist_h, t.hist_a, t.adjoint + n * kBB + o,
                           t.dA + n * kBB + o, t.dA_low + n * kBB + o, t.sum_x + o, t.sum_a + o, t.part_b, first_states,
                           first, t.ahead, i0, i1);
}

template <int NB>
static void backward_group(const BwdTile& t, int n) {
  const bool first_states = n == 0;
  int v = 0;
  for (; v + kBwdVecs <= t.vecs; v += kBwdVecs) backward_states<NB, kBwdVecs>(t, n, v, first_states, v == 0);
  for (; v < t.vecs; ++v) backward_states<NB, 1>(t, n, v, first_states, v == 0);
}

static size_t backward_scratch(int64_t N, int64_t R, int64_t W) {
  const size_t np = (size_t)padded_states(N), rp = (size_t)padded_rank(R);
  return 5 * np * kBB + 2 * kTile * np + 2 * rp * kBB + kTile * rp + W * kBB + 3 * 64 + 12 * kTile * kBB + (2 * kTile + 1) * 4 * kBwdVecs * kW + 2 * kTile * kW +
         7 * kBB + 32 * 64 + 1024;
}

// What the backward scan needs of M tokens of one channel vector: dt, dt * u, the derivative of softplus, the gradient
// dy behind the gate, and the factor of y in the gate's own gradient.
template <int M>
VM_INLINE void backward_steps(int t, int c, bool soft, V shift, Rows delta, Rows u, Rows dout, Rows z, float* dt,
                              float* dtu, float* sig, float* gz, float* dy, V& largest, V& sum) {
  V d[M], e[M], s[M];
  VM_EACH(d[i] = vadd(vload(delta.p + (t + i) * delta.ld + c), shift));
  if (soft) {
    exp_neg_abs<M>(d, e);
    sigmoid<M>(d, e, s);
    VM_EACH(vstore(sig + (t + i) * kBB + c, s[i]));
    softplus<M>(d, e);
    VM_EACH(largest = vmax(d[i], largest));
  } else {
    VM_EACH(largest = vmax(vabs(d[i]), largest));
  }
  VM_EACH(sum = vadd(sum, d[i]));
  VM_EACH(vstore(dt + (t + i) * kBB + c, d[i]));
  VM_EACH(vstore(dtu + (t + i) * kBB + c, vmul(d[i], vload(u.p + (t + i) * u.ld + c))));
  VM_EACH(d[i] = vload(dout.p + (t + i) * dout.ld + c));
  if (z.p) {
    V x[M];
    VM_EACH(x[i] = vload(z.p + (t + i) * z.ld + c));
    exp_neg_abs<M>(x, e);
    sigmoid<M>(x, e, s);
    // silu'(z) = s (1 + z (1 - s))
    VM_EACH(e[i] = vfma(x[i], vsub(vset(1.0f), s[i]), vset(1.0f)));
    VM_EACH(vstore(gz + (t + i) * kBB + c, vmul(vmul(d[i], s[i]), e[i])));
    VM_EACH(d[i] = vmul(d[i], vmul(x[i], s[i])));
  }
  VM_EACH(vstore(dy + (t + i) * kBB + c, d[i]));
}

// Gradients by the first R projections, summed over the block's channels, and by dt_proj, from a tile of ddelta.
static void backward_low_rank(const Span& s, int vecs, const float* ddelta, Rows low, const float* dt_proj, int64_t Dp, int rank,
                              float* partial, float* ddt, float* ddt_low) {
  for (int r = 0; r < rank; r += 4) {
    for (int t = 0; t < s.T; ++t) {
      V sum[4] = {vzero(), vzero(), vzero(), vzero()};
      for (int v = 0; v < vecs; ++v) {
        const V d = vload(ddelta + t * kBB + v * kW);
        VM_UNROLL for (int j = 0; j < 4; ++j) sum[j] = vfma(d, vload(dt_proj + (r + j) * Dp + v * kW), sum[j]);
      }
      vfold4(partial + (s.first + t * s.step) * rank + r, vreduce4(sum[0], sum[1], sum[2], sum[3]));
    }
    for (int v = 0; v < vecs; ++v) {
      V sum[4] = {vzero(), vzero(), vzero(), vzero()};
      for (int t = 0; t < s.T; ++t) {
        const V d = vload(ddelta + t * kBB + v * kW);
        VM_UNROLL for (int j = 0; j < 4; ++j) sum[j] = vfma(d, vset(low.p[t * low.ld + r + j]), sum[j]);
      }
      for (int j = 0; j < 4; ++j) add_exactly(ddt + (r + j) * kBB + v * kW, ddt_low + (r + j) * kBB + v * kW, sum[j]);
    }
  }
}

static void backward_task(const BackwardArgs& p, const BwdTask& task, float* scratch) {
  const int count = (int)p.N, padded = (int)padded_states(count), dn = (int)task.dn;
  const int vecs = (dn + kW - 1) / kW;
  const int64_t b = task.b, k = task.k, d0 = task.d0;
  const bool reversed = ((const int64_t*)(intptr_t)p.orders)[k] == 1;
  const bool soft = (p.flags & kFlagSoftplus) != 0, gate = p.z.data != 0;
  Carver carve{scratch};
  float* a2 = carve.take((size_t)padded * kBB);
  float* h0 = carve.take((size_t)padded * kBB);
  float* adjoint = carve.take((size_t)padded * kBB);
  float* dA = carve.take((size_t)padded * kBB);
  float* dA_low = carve.take((size_t)padded * kBB);
  float* bs = carve.take((size_t)kTile * padded);
  float* cs = carve.take((size_t)kTile * padded);
  float* us = carve.take(kTile * kBB);
  float* ds = carve.take(kTile * kBB);
  float* gs = carve.take(kTile * kBB);
  const Source* const source = task.source;
  const int rank = source ? (int)padded_rank(source->R) : 0;
  float* zs = carve.take((size_t)(kTile + (source ? source->W : 0)) * kBB);  // or the convolution's window
  float* rs = carve.take((size_t)kTile * rank);
  float* ddt = carve.take((size_t)rank * kBB);
  float* ddt_low = carve.take((size_t)rank * kBB);
  float* sig = carve.take(kTile * kBB);
  float* gz = carve.take(kTile * kBB);
  float* dt = carve.take(kTile * kBB);
  float* dtu = carve.take(kTile * kBB);
  float* dy = carve.take(kTile * kBB);
  float* y = carve.take(kTile * kBB);
  float* sum_x = carve.take(kTile * kBB);
  float* sum_a = carve.take(kTile * kBB);
  float* hist_h = carve.take((kTile + 1) * 4 * kBwdVecs * kW);
  float* hist_a = carve.take(kTile * 4 * kBwdVecs * kW);
  float* part_b = carve.take(kTile * kW);
  float* part_c = carve.take(kTile * kW);
  float* bias = carve.take(kBB);
  float* skip = carve.take(kBB);
  float* dt_sum = carve.take(kBB);
  float* dD = carve.take(kBB);
  float* dbias = carve.take(kBB);
  float* dD_low = carve.take(kBB);
  float* dbias_low = carve.take(kBB);

  const float decay = load_decay(a2, kBB, p.A, k, d0, dn, 0, count, padded);
  load_channels(bias, kBB, p.bias, k, d0, dn);
  load_channels(skip, kBB, p.D_skip, k, d0, dn);
  const size_t state_size = (size_t)padded * kBB;
  memset(adjoint, 0, sizeof(float) * state_size);
  memset(dA, 0, sizeof(float) * state_size);
  memset(dA_low, 0, sizeof(float) * state_size);
  memset(dt_sum, 0, sizeof(float) * kBB);
  memset(dD, 0, sizeof(float) * kBB);
  memset(dbias, 0, sizeof(float) * kBB);
  memset(dD_low, 0, sizeof(float) * kBB);
  memset(dbias_low, 0, sizeof(float) * kBB);
  memset(ddt, 0, sizeof(float) * (size_t)rank * kBB);
  memset(ddt_low, 0, sizeof(float) * (size_t)rank * kBB);
  if (task.seg_adjoint && !task.adjoint_only)
    for (int64_t s = task.segs - 1; s > task.seg; --s)
      carry_over(adjoint, task.seg_adjoint + s * state_size, a2, task.seg_adjoint + task.segs * state_size + s * kBB,
                 padded, kBB);

  BwdTile tile_args;
  tile_args.vecs = vecs;
  tile_args.gate = gate;
  tile_args.dt = dt;
  tile_args.dtu = dtu;
  tile_args.dy = dy;
  tile_args.a2 = a2;
  tile_args.h0 = h0;
  tile_args.hist_h = hist_h;
  tile_args.hist_a = hist_a;
  tile_args.y = y;
  tile_args.sum_x = sum_x;
  tile_args.sum_a = sum_a;
  tile_args.part_b = part_b;
  tile_args.part_c = part_c;
  tile_args.adjoint = adjoint;
  tile_args.dA = dA;
  tile_args.dA_low = dA_low;

  for (int64_t tile = task.tile1 - 1; tile >= task.tile0; --tile) {
    const Span s = tile_span(tile, p.L, reversed);
    Rows u = {us, kBB}, delta = {ds, kBB}, low = {nullptr, 0};
    if (source) {
      const Weights& weights = source->weights[k];
      low = token_rows(p.delta, b, k, 0, s, (int)source->R, rank, rs);
      conv_tile(p.u, b, k, d0, s, p.L, dn, kBB, weights, source->Dp, source->W, source->mirrored[k], zs, us, kBB);
      low_rank_tile(low, s.T, dn, weights.dt_proj + d0, source->Dp, source->R, ds, kBB);
    } else {
      u = token_rows(p.u, b, k, d0, s, dn, kBB, us);
      delta = token_rows(p.delta, b, k, d0, s, dn, kBB, ds);
    }
    const Rows dout = token_rows(p.dout, b, k, d0, s, dn, kBB, gs);
    const Rows C = token_rows(p.Cm, b, k, 0, s, count, padded, cs);
    Rows z = {nullptr, 0};
    if (gate) z = token_rows(p.z, b, k, d0, s, dn, kBB, zs);
    V largest = vzero(), sum = vzero();
    for (int v = 0; v < vecs; ++v) {
      const int c = v * kW;
      const V shift = vload(bias + c);
      V part = vzero();
      int t = 0;
      for (; t + kBatch <= s.T; t += kBatch)
        backward_steps<kBatch>(t, c, soft, shift, delta, u, dout, z, dt, dtu, sig, gz, dy, largest, part);
      for (; t < s.T; ++t)
        backward_steps<1>(t, c, soft, shift, delta, u, dout, z, dt, dtu, sig, gz, dy, largest, part);
      vstore(dt_sum + c, vadd(vload(dt_sum + c), part));
      sum = vadd(sum, part);
    }
    const bool fast = in_fast_range(largest, sum, decay);
    if (task.adjoint_only) {
      for (int n = 0; n < padded; n += 4)
        for (int v = 0; v < vecs; ++v) {
          const int o = v * kW;
          const Rows c = {C.p + n, C.ld};
          if (fast) backward_carry<4, true>(s.T, dt + o, dy + o, c, a2 + n * kBB + o, adjoint + n * kBB + o);
          else backward_carry<4, false>(s.T, dt + o, dy + o, c, a2 + n * kBB + o, adjoint + n * kBB + o);
        }
      continue;
    }

    if (tile > 0) {
      const Tensor& t = p.states;
      load_rows(h0, kBB, t, b * t.s[0] + k * t.s[1] + (tile - 1) * t.s[2] + d0 * t.s[3], t.s[4], t.s[3], count, dn, kBB);
      memset(h0 + (size_t)count * kBB, 0, sizeof(float) * (size_t)(padded - count) * kBB);
    } else {
      memset(h0, 0, sizeof(float) * state_size);
    }
    const Span next = tile > task.tile0 ? tile_span(tile - 1, p.L, reversed) : Span{0, 0, 1};
    const Tensor* rows[9] = {&p.u, &p.delta, &p.dout, &p.z, &p.Bm, &p.Cm, &p.du, &p.ddelta, &p.dz};
    for (int i = 0; i < 9; ++i)
      set_ahead(tile_args.ahead, i, *rows[i], b, k, i == 4 || i == 5 || (source && i == 1) ? 0 : d0, next, item_size(*rows[i]), dt);
    for (int i = 9; i < kBwdAhead; ++i) {
      const float* partial = i == 9 ? task.partial_b : task.partial_c;
      tile_args.ahead.p[i] = (const char*)(next.T ? partial + next.first * padded : dt);
      tile_args.ahead.step[i] = next.T ? next.step * padded * (int64_t)sizeof(float) : 0;
    }
    tile_args.ahead.per_group = (kBwdAhead * 4 + padded - 1) / padded;
    tile_args.T = s.T;
    tile_args.fast = fast;
    tile_args.B = token_rows(p.Bm, b, k, 0, s, count, padded, bs);
    tile_args.C = C;
    for (int n = 0; n < count; n += 4) {
      const bool single = count - n == 1;
      if (single) backward_group<1>(tile_args, n);
      else backward_group<4>(tile_args, n);
      for (int t = 0; t < s.T; ++t) {
        const int64_t row = (s.first + t * s.step) * padded + n;
        if (single) {
          task.partial_b[row] = vhsum(vload(part_b + t * kW));
          task.partial_c[row] = vhsum(vload(part_c + t * kW));
        } else {
          vfold4(task.partial_b + row, vload(part_b + t * kW));
          vfold4(task.partial_c + row, vload(part_c + t * kW));
        }
      }
    }

    const TokenStore du(p.du, b, k, d0, s, dn, sum_x), ddelta(p.ddelta, b, k, d0, s, dn, sum_a);
    const TokenStore dz(gate ? p.dz : p.du, b, k, d0, s, dn, gz);
    for (int v = 0; v < vecs; ++v) {
      const int c = v * kW;
      const V scale = vload(skip + c);
      V bias_sum = vzero(), skip_sum = vzero();
      for (int t = 0; t < s.T; ++t) {
        const int o = t * kBB + c;
        V x = vload(u.p + t * u.ld + c), g = vload(dy + o), sx = vload(sum_x + o);
        if (gate) vstore(dz.p + t * dz.ld + c, vmul(vload(gz + o), vfma(scale, x, vload(y + o))));
        skip_sum = vfma(g, x, skip_sum);
        V d = vfma(x, sx, vmul(vload(sum_a + o), vset(kLn2)));
        if (soft) d = vmul(d, vload(sig + o));
        bias_sum = vadd(bias_sum, d);
        vstore(ddelta.p + t * ddelta.ld + c, d);
        vstore(du.p + t * du.ld + c, vfma(vload(dt + o), sx, vmul(scale, g)));
      }
      add_exactly(dbias + c, dbias_low + c, bias_sum);
      add_exactly(dD + c, dD_low + c, skip_sum);
    }
    du.finish(p.du, s, dn);
    if (source) backward_low_rank(s, vecs, sum_a, low, source->weights[k].dt_proj + d0, source->Dp, rank, task.partial_r, ddt, ddt_low);
    else ddelta.finish(p.ddelta, s, dn);
    if (gate) dz.finish(p.dz, s, dn);
  }

  if (task.adjoint_only) {
    memcpy(task.seg_adjoint + task.seg * state_size, adjoint, sizeof(float) * state_size);
    memcpy(task.seg_adjoint + task.segs * state_size + task.seg * kBB, dt_sum, sizeof(float) * kBB);
    return;
  }
  memcpy(task.dA, dA, sizeof(float) * (size_t)count * kBB);
  memcpy(task.dD, dD, sizeof(float) * kBB);
  memcpy(task.dbias, dbias, sizeof(float) * kBB);
  if (source) memcpy(task.ddt, ddt, sizeof(float) * (size_t)rank * kBB);
}

static void reduce_rows(const Tensor& out, int64_t b, int64_t k, int64_t N, int64_t l0, int64_t l1, const float* partial,
                        int64_t blocks, int64_t block_stride, float* scratch) {
  const int64_t padded = padded_states(N);
  for (int64_t l = l0; l < l1; l += kTile) {
    const int rows = (int)(l1 - l < kTile ? l1 - l : kTile);
    const float* src = partial + l * padded;
    const int64_t n = rows * padded;
    for (int64_t i = 0; i < n; ++i) scratch[i] = src[i];
    for (int64_t j = 1; j < blocks; ++j) {
      const float* more = src + j * block_stride;
      for (int64_t i = 0; i < n; ++i) scratch[i] += more[i];
    }
    store_rows(out, b * out.s[0] + k * out.s[1] + l * out.s[3], out.s[3], out.s[2], scratch, padded, rows, (int)N);
  }
}
