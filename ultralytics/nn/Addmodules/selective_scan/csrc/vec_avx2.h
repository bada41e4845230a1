// Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
// 8 floats a vector: AVX2, FMA and F16C.
#pragma once

typedef __m256 V;
constexpr int kW = 8;
constexpr int kFwdGroup = 8;
constexpr int kBwdVecs = 1;
constexpr int kBatch = 2;
constexpr float kFastRange = 125.0f;  // the exponent is built by an integer shift, which must stay in range

VM_INLINE V vload(const float* p) { return _mm256_loadu_ps(p); }
VM_INLINE void vstore(float* p, V a) { _mm256_storeu_ps(p, a); }
VM_INLINE V vset(float x) { return _mm256_set1_ps(x); }
VM_INLINE V vzero() { return _mm256_setzero_ps(); }
VM_INLINE V vadd(V a, V b) { return _mm256_add_ps(a, b); }
VM_INLINE V vsub(V a, V b) { return _mm256_sub_ps(a, b); }
VM_INLINE V vmul(V a, V b) { return _mm256_mul_ps(a, b); }
VM_INLINE V vfma(V a, V b, V c) { return _mm256_fmadd_ps(a, b, c); }
VM_INLINE V vfms(V a, V b, V c) { return _mm256_fmsub_ps(a, b, c); }
VM_INLINE V vfnma(V a, V b, V c) { return _mm256_fnmadd_ps(a, b, c); }
VM_INLINE V vmax(V a, V b) { return _mm256_max_ps(a, b); }
VM_INLINE V vmin(V a, V b) { return _mm256_min_ps(a, b); }
VM_INLINE V vabs(V a) { return _mm256_and_ps(a, _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff))); }
VM_INLINE V vselect_neg(V x, V neg, V other) {
  return _mm256_blendv_ps(other, neg, _mm256_cmp_ps(x, _mm256_setzero_ps(), _CMP_LT_OQ));
}
// 1 / x for x in [1, 4]: two Newton steps on a 12-bit estimate take a third of a division's time.
template <int M>
VM_INLINE void vrecip(const V* x, V* r) {
  V e[M];
  VM_EACH(r[i] = _mm256_rcp_ps(x[i]));
  VM_EACH(e[i] = vfnma(x[i], r[i], vset(1.0f)));
  VM_EACH(r[i] = vfma(e[i], r[i], r[i]));
  VM_EACH(e[i] = vfnma(x[i], r[i], vset(1.0f)));
  VM_EACH(r[i] = vfma(e[i], r[i], r[i]));
}
// Two factors, so that results on both sides of the exponent range come out as infinity and zero. |n| <= 250.
VM_INLINE V vldexp(V p, V n) {
  __m256i e = _mm256_cvtps_epi32(n);
  __m256i half = _mm256_srai_epi32(e, 1);
  __m256i one = _mm256_set1_epi32(127);
  V a = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(half, one), 23));
  V b = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_sub_epi32(e, half), one), 23));
  return vmul(vmul(p, a), b);
}
VM_INLINE __m128 half_sum(V a) { return _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1)); }
VM_INLINE float vhsum(V a) {
  __m128 h = half_sum(a);
  h = _mm_add_ps(h, _mm_movehl_ps(h, h));
  return _mm_cvtss_f32(_mm_add_ss(h, _mm_shuffle_ps(h, h, 1)));
}
VM_INLINE float vhmax(V a) {
  __m128 h = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  h = _mm_max_ps(h, _mm_movehl_ps(h, h));
  return _mm_cvtss_f32(_mm_max_ss(h, _mm_shuffle_ps(h, h, 1)));
}

struct ExpTable {};
VM_INLINE ExpTable exp_table() { return {}; }

// 2^(dt * a) with a degree-5 polynomial on [-1/2, 1/2] that is exactly 1 at 0, where slowly decaying states live.
template <bool FAST>
VM_INLINE V exp2_dt(V dt, V a, const ExpTable&) {
  const V magic = vset(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer, left in the low bits
  V t, n, f;
  if (FAST) {
    t = vfma(dt, a, magic);
    n = vsub(t, magic);
    f = vfms(dt, a, n);
  } else {
    V x = vmin(vset(240.0f), vmax(vset(-240.0f), vmul(dt, a)));
    t = vadd(x, magic);
    n = vsub(t, magic);
    f = vsub(x, n);
  }
  V p = vfma(f, vset(kExp2C5), vset(kExp2C4));
  p = vfma(f, p, vset(kExp2C3));
  p = vfma(f, p, vset(kExp2C2));
  p = vfma(f, p, vset(kExp2C1));
  p = vfma(f, p, vset(1.0f));
  if (!FAST) return vldexp(p, n);
  return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), _mm256_slli_epi32(_mm256_castps_si256(t), 23)));
}

// e^-x for x >= 0, to about one unit in the last place; NaN stays NaN, infinity gives zero.
template <int M>
VM_INLINE void exp_neg(const V* x, V* e) {
  const V magic = vset(12582912.0f);
  V y[M], n[M], f[M], p[M];
  VM_EACH(y[i] = vmin(vset(120.0f), x[i]));
  VM_EACH(n[i] = vsub(vfnma(y[i], vset(1.44269502f), magic), magic));
  // ln 2 in two parts, the first short enough for an exact product even without FMA.
  VM_EACH(f[i] = vfma(n[i], vset(-0.693359375f), vsub(vzero(), y[i])));
  VM_EACH(f[i] = vfma(n[i], vset(2.12194440e-4f), f[i]));
  VM_EACH(f[i] = vmul(f[i], vset(1.44269502f)));
  VM_EACH(p[i] = vfma(f[i], vset(kExp2D6), vset(kExp2D5)));
  VM_EACH(p[i] = vfma(f[i], p[i], vset(kExp2D4)));
  VM_EACH(p[i] = vfma(f[i], p[i], vset(kExp2D3)));
  VM_EACH(p[i] = vfma(f[i], p[i], vset(kExp2D2)));
  VM_EACH(p[i] = vfma(f[i], p[i], vset(kExp2D1)));
  VM_EACH(p[i] = vfma(f[i], p[i], vset(1.0f)));
  VM_EACH(e[i] = vldexp(p[i], n[i]));
}

VM_INLINE V vreduce4(V a, V b, V c, V d) {
  V ab = vadd(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
  V cd = vadd(_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
  return vadd(_mm256_shuffle_ps(ab, cd, 0x44), _mm256_shuffle_ps(ab, cd, 0xee));
}
VM_INLINE void vfold4(float* p, V a) { _mm_storeu_ps(p, half_sum(a)); }

VM_INLINE __m256i vmask(int n) { return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)); }
VM_INLINE V vload_part(const float* p, int n) { return _mm256_maskload_ps(p, vmask(n)); }
VM_INLINE void vstore_part(float* p, V a, int n) { _mm256_maskstore_ps(p, vmask(n), a); }

VM_INLINE V vload_bf16(const uint16_t* p) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), 16));
}
VM_INLINE void vstore_bf16(uint16_t* p, V a) {
  __m256i x = _mm256_castps_si256(a);
  __m256i odd = _mm256_and_si256(_mm256_srli_epi32(x, 16), _mm256_set1_epi32(1));
  __m256i r = _mm256_add_epi32(x, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q));
  r = _mm256_blendv_epi8(r, _mm256_or_si256(x, _mm256_set1_epi32(0x400000)), nan);
  r = _mm256_srli_epi32(r, 16);
  _mm_storeu_si128((__m128i*)p, _mm_packus_epi32(_mm256_castsi256_si128(r), _mm256_extracti128_si256(r, 1)));
}
VM_INLINE V vload_f16(const uint16_t* p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)); }
VM_INLINE void vstore_f16(uint16_t* p, V a) {
  _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
