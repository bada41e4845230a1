// Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
// 8 floats a vector: AVX2, FMA and F16C.
#pragma once

typedef __m256 V;
constexpr int kW = 8;
constexpr int kFwdGroup = 16;  // half of them lie on the stack, which costs less than reading dt and adding y twice
constexpr int kBwdVecs = 1;
// The exponent is built by an integer shift, which must stay in range, and smaller results would lose bits to flushing.
constexpr float kFastRange = 100.0f;

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
// 1 / x for x in [1, 2]: a step of third order on a 12-bit estimate takes a third of a division's time.
template <int M>
VM_INLINE void vrecip(const V* x, V* r) {
  V e[M];
  VM_EACH(r[i] = _mm256_rcp_ps(x[i]));
  VM_EACH(e[i] = vfnma(x[i], r[i], vset(1.0f)));
  VM_EACH(e[i] = vfma(e[i], e[i], e[i]));
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

// 2^(i/8) for the table form of exp2 below, as bits less i << 20: adding a number of eighths, shifted to the same place,
// gives fraction and exponent at once.
struct ExpTable {
  __m256i bits;
};
VM_INLINE ExpTable exp_table() {
  return {_mm256_setr_epi32(0x3f800000, 0x3f7b95c2, 0x3f7837f0, 0x3f75fed7,
                            0x3f7504f3, 0x3f75672a, 0x3f7744fd, 0x3f7ac0c7)};
}

// 2^n for a number of eighths n whose `magic` sum is t, and at least 2^-126.
VM_INLINE V eighth_power(const ExpTable& table, V t) {
  const __m256i eighths = _mm256_castps_si256(t);
  const __m256i fraction = _mm256_castps_si256(_mm256_permutevar8x32_ps(_mm256_castsi256_ps(table.bits), eighths));
  return _mm256_castsi256_ps(_mm256_add_epi32(fraction, _mm256_slli_epi32(eighths, 20)));
}

// 2^(dt * a): split into a multiple of 1/8, looked up, and a remainder of at most 1/16 that four coefficients cover.
// The shuffle and the addition run beside the two FMA units, which are the bottleneck.
template <bool FAST>
VM_INLINE V exp2_dt(V dt, V a, const ExpTable& table) {
  const V magic = vset(12582912.0f / 8.0f);  // 1.5 * 2^23 / 8: adding it rounds to multiples of 1/8
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
  V q = vfma(f, vset(kExp2E4), vset(kExp2E3));
  q = vfma(f, q, vset(kExp2E2));
  q = vfma(f, q, vset(kExp2E1));
  if (FAST) {
    const V s = eighth_power(table, t);
    return vfma(vmul(s, f), q, s);
  }
  const V s = eighth_power(table, _mm256_and_ps(t, _mm256_castsi256_ps(_mm256_set1_epi32(7))));
  return vldexp(vfma(vmul(s, f), q, s), _mm256_floor_ps(n));
}

// e^-x for x >= 0, to about one unit in the last place; NaN stays NaN, and beyond 87 it is zero. log2(e) comes in two parts
// because the integer part of a large product would eat the last bits of the remainder. What an x beyond 87 yields is masked.
template <int M>
VM_INLINE void exp_neg(const V* x, V* e) {
  const ExpTable table = exp_table();
  const V magic = vset(12582912.0f / 8.0f), most = vset(87.0f);
  V t[M], f[M], s[M];
  VM_EACH(t[i] = vfnma(x[i], vset(1.44269502f), magic));
  VM_EACH(f[i] = _mm256_fnmsub_ps(x[i], vset(1.44269502f), vsub(t[i], magic)));
  VM_EACH(f[i] = vfnma(x[i], vset(1.92596299e-8f), f[i]));
  VM_EACH(s[i] = eighth_power(table, t[i]));
  VM_EACH(t[i] = vfma(f[i], vset(kExp2E4), vset(kExp2E3)));
  VM_EACH(t[i] = vfma(f[i], t[i], vset(kExp2E2)));
  VM_EACH(t[i] = vfma(f[i], t[i], vset(kExp2E1)));
  VM_EACH(e[i] = vfma(s[i], vmul(f[i], t[i]), s[i]));  // s f may be subnormal, which is flushed
  VM_EACH(e[i] = _mm256_andnot_ps(_mm256_cmp_ps(x[i], most, _CMP_GT_OQ), e[i]));
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
