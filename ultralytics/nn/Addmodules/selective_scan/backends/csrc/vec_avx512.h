// Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
// 16 floats a vector: AVX-512 F, BW, DQ and VL.
#pragma once

typedef __m512 V;
constexpr int kW = 16;        // lanes
constexpr int kFwdGroup = 16; // states whose h stays in registers through a forward tile
constexpr int kBwdVecs = 2;   // channel vectors that a backward step handles together
// Largest |dt * A * log2(e)| for which exp2_dt is right without clamping. Far beyond it the index arithmetic breaks.
constexpr float kFastRange = 65536.0f;

VM_INLINE V vload(const float* p) { return _mm512_loadu_ps(p); }
VM_INLINE void vstore(float* p, V a) { _mm512_storeu_ps(p, a); }
VM_INLINE V vset(float x) { return _mm512_set1_ps(x); }
VM_INLINE V vzero() { return _mm512_setzero_ps(); }
VM_INLINE V vadd(V a, V b) { return _mm512_add_ps(a, b); }
VM_INLINE V vsub(V a, V b) { return _mm512_sub_ps(a, b); }
VM_INLINE V vmul(V a, V b) { return _mm512_mul_ps(a, b); }
VM_INLINE V vfma(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); }    // a * b + c
VM_INLINE V vfms(V a, V b, V c) { return _mm512_fmsub_ps(a, b, c); }    // a * b - c
VM_INLINE V vfnma(V a, V b, V c) { return _mm512_fnmadd_ps(a, b, c); }  // c - a * b
// The second operand comes back when either is NaN: write the constant first.
VM_INLINE V vmax(V a, V b) { return _mm512_max_ps(a, b); }
VM_INLINE V vmin(V a, V b) { return _mm512_min_ps(a, b); }
VM_INLINE V vabs(V a) { return _mm512_castsi512_ps(_mm512_and_epi32(_mm512_castps_si512(a), _mm512_set1_epi32(0x7fffffff))); }
VM_INLINE V vselect_neg(V x, V neg, V other) {
  return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_LT_OQ), other, neg);
}
// 1 / x for x in [1, 2]: the estimate is good to 14 bits and one Newton step doubles them; a division takes far longer.
template <int M>
VM_INLINE void vrecip(const V* x, V* r) {
  V e[M];
  VM_EACH(r[i] = _mm512_rcp14_ps(x[i]));
  VM_EACH(e[i] = vfnma(x[i], r[i], vset(1.0f)));
  VM_EACH(r[i] = vfma(e[i], r[i], r[i]));
}
VM_INLINE float vhmax(V a) { return _mm512_reduce_max_ps(a); }
VM_INLINE float vhsum(V a) { return _mm512_reduce_add_ps(a); }

// 2^(i/16) for the table form of exp2 below.
struct ExpTable {
  V power;
};
VM_INLINE ExpTable exp_table() {
  return {_mm512_setr_ps(1.0f, 1.04427378f, 1.09050773f, 1.13878863f,
                         1.18920712f, 1.24185781f, 1.29683955f, 1.35425555f,
                         1.41421356f, 1.47682615f, 1.54221083f, 1.61049033f,
                         1.68179283f, 1.75625216f, 1.83400809f, 1.91520656f)};
}
VM_INLINE V look_up(const ExpTable& table, V t) { return _mm512_permutexvar_ps(_mm512_castps_si512(t), table.power); }

// 2^(dt * a): split into a multiple of 1/16, looked up, and a remainder of at most 1/32 that three coefficients cover.
// One shuffle replaces three FMAs of a degree-6 polynomial; the remainder is exact because the product is fused.
template <bool FAST>
VM_INLINE V exp2_dt(V dt, V a, const ExpTable& table) {
  const V magic = vset(12582912.0f / 16.0f);  // 1.5 * 2^23 / 16: adding it rounds to multiples of 1/16
  V t, n, f;
  if (FAST) {
    t = vfma(dt, a, magic);
    n = vsub(t, magic);
    f = vfms(dt, a, n);
  } else {
    V x = vmin(vset(400.0f), vmax(vset(-400.0f), vmul(dt, a)));
    t = vadd(x, magic);
    n = vsub(t, magic);
    f = vsub(x, n);
  }
  V s = look_up(table, t);
  V q = vfma(f, vset(kExp2T3), vset(kExp2T2));
  q = vfma(f, q, vset(kExp2T1));
  return _mm512_scalef_ps(vfma(vmul(s, f), q, s), n);
}

// e^-x for x >= 0, to about one unit in the last place; NaN stays NaN, infinity gives zero. log2(e) comes in two parts
// because the integer part of a large product would eat the last bits of the remainder.
template <int M>
VM_INLINE void exp_neg(const V* x, V* e) {
  const ExpTable table = exp_table();
  const V magic = vset(12582912.0f / 16.0f);
  V y[M], t[M], n[M], f[M], s[M];
  VM_EACH(y[i] = vmin(vset(120.0f), x[i]));
  VM_EACH(t[i] = vfnma(y[i], vset(1.44269502f), magic));
  VM_EACH(n[i] = vsub(t[i], magic));
  VM_EACH(f[i] = _mm512_fnmsub_ps(y[i], vset(1.44269502f), n[i]));
  VM_EACH(f[i] = vfnma(y[i], vset(1.92596299e-8f), f[i]));
  VM_EACH(s[i] = look_up(table, t[i]));
  VM_EACH(t[i] = vfma(f[i], vset(kExp2T3), vset(kExp2T2)));
  VM_EACH(t[i] = vfma(f[i], t[i], vset(kExp2T1)));
  VM_EACH(f[i] = vmul(f[i], s[i]));
  VM_EACH(s[i] = vfma(f[i], t[i], s[i]));
  VM_EACH(e[i] = _mm512_scalef_ps(s[i], n[i]));
}

// Sums of four vectors inside each 128-bit quarter: lane 4 * i + j of the result is the sum of quarter i of vector j.
VM_INLINE V vreduce4(V a, V b, V c, V d) {
  V ab = vadd(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  V cd = vadd(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
  return vadd(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xee));
}
// Folds the quarters of vreduce4's result: four sums over all lanes.
VM_INLINE void vfold4(float* p, V a) {
  __m256 h = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
  _mm_storeu_ps(p, _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1)));
}

VM_INLINE __mmask16 vmask(int n) { return (__mmask16)((1u << n) - 1u); }
VM_INLINE V vload_part(const float* p, int n) { return _mm512_maskz_loadu_ps(vmask(n), p); }
VM_INLINE void vstore_part(float* p, V a, int n) { _mm512_mask_storeu_ps(p, vmask(n), a); }

VM_INLINE V widen_bf16(__m256i x) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16)); }
VM_INLINE __m256i narrow_bf16(V a) {
  __m512i x = _mm512_castps_si512(a);
  __m512i odd = _mm512_and_epi32(_mm512_srli_epi32(x, 16), _mm512_set1_epi32(1));
  __m512i r = _mm512_add_epi32(x, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  __mmask16 nan = _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q);
  r = _mm512_mask_or_epi32(r, nan, x, _mm512_set1_epi32(0x400000));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(r, 16));
}
VM_INLINE V vload_bf16(const uint16_t* p) { return widen_bf16(_mm256_loadu_si256((const __m256i*)p)); }
VM_INLINE V vload_f16(const uint16_t* p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p)); }
VM_INLINE void vstore_bf16(uint16_t* p, V a) { _mm256_storeu_si256((__m256i*)p, narrow_bf16(a)); }
VM_INLINE void vstore_f16(uint16_t* p, V a) {
  _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
