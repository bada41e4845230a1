// Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
// 4 floats a vector without intrinsics: SSE2 and NEON through the compiler's vector types, plain loops elsewhere.
#pragma once

constexpr int kW = 4;
#if defined(__aarch64__)
constexpr int kFwdGroup = 16;  // 32 registers
#else
constexpr int kFwdGroup = 8;
#endif
constexpr int kBwdVecs = 1;
constexpr float kFastRange = 125.0f;

#if defined(__GNUC__)
typedef float V __attribute__((vector_size(16)));
typedef int32_t VI __attribute__((vector_size(16)));
VM_INLINE VI vbits(V a) { return (VI)a; }
VM_INLINE V vfloat(VI a) { return (V)a; }
VM_INLINE V vset(float x) { return V{x, x, x, x}; }
VM_INLINE V vadd(V a, V b) { return a + b; }
VM_INLINE V vsub(V a, V b) { return a - b; }
VM_INLINE V vmul(V a, V b) { return a * b; }
VM_INLINE V vdiv(V a, V b) { return a / b; }
VM_INLINE VI viadd(VI a, VI b) { return a + b; }
VM_INLINE VI visub(VI a, VI b) { return a - b; }
typedef uint32_t VU __attribute__((vector_size(16)));
VM_INLINE VI vishl23(VI a) { return (VI)((VU)a << 23); }
VM_INLINE VI visra1(VI a) { return a >> 1; }
VM_INLINE VI viset(int32_t x) { return VI{x, x, x, x}; }
VM_INLINE V vabs(V a) { return (V)((VI)a & viset(0x7fffffff)); }
VM_INLINE V vpick(VI mask, V yes, V no) { return (V)((mask & (VI)yes) | (~mask & (VI)no)); }
VM_INLINE VI vless(V a, V b) { return (VI)(a < b); }
VM_INLINE VI vround(V a) { return __builtin_convertvector(a, VI); }
// The second operand comes back when either is NaN, as on x86.
VM_INLINE V vmax(V a, V b) { return a > b ? a : b; }
VM_INLINE V vmin(V a, V b) { return a < b ? a : b; }
#else
struct V {
  float f[4];
  float& operator[](int i) { return f[i]; }
  float operator[](int i) const { return f[i]; }
};
struct VI {
  int32_t i[4];
};
#define VM_LANES(type, expr)    \
  type r;                       \
  for (int i = 0; i < 4; ++i) { \
    expr;                       \
  }                             \
  return r
VM_INLINE VI vbits(V a) { VI r; memcpy(&r, &a, 16); return r; }
VM_INLINE V vfloat(VI a) { V r; memcpy(&r, &a, 16); return r; }
VM_INLINE V vset(float x) { return V{{x, x, x, x}}; }
VM_INLINE V vadd(V a, V b) { VM_LANES(V, r.f[i] = a.f[i] + b.f[i]); }
VM_INLINE V vsub(V a, V b) { VM_LANES(V, r.f[i] = a.f[i] - b.f[i]); }
VM_INLINE V vmul(V a, V b) { VM_LANES(V, r.f[i] = a.f[i] * b.f[i]); }
VM_INLINE V vdiv(V a, V b) { VM_LANES(V, r.f[i] = a.f[i] / b.f[i]); }
VM_INLINE VI viadd(VI a, VI b) { VM_LANES(VI, r.i[i] = (int32_t)((uint32_t)a.i[i] + (uint32_t)b.i[i])); }
VM_INLINE VI visub(VI a, VI b) { VM_LANES(VI, r.i[i] = (int32_t)((uint32_t)a.i[i] - (uint32_t)b.i[i])); }
VM_INLINE VI vishl23(VI a) { VM_LANES(VI, r.i[i] = (int32_t)((uint32_t)a.i[i] << 23)); }
VM_INLINE VI visra1(VI a) { VM_LANES(VI, r.i[i] = a.i[i] >> 1); }
VM_INLINE VI viset(int32_t x) { return VI{{x, x, x, x}}; }
VM_INLINE V vabs(V a) { VM_LANES(V, r.f[i] = fabsf(a.f[i])); }
VM_INLINE V vpick(VI mask, V yes, V no) { VM_LANES(V, r.f[i] = mask.i[i] ? yes.f[i] : no.f[i]); }
VM_INLINE VI vless(V a, V b) { VM_LANES(VI, r.i[i] = a.f[i] < b.f[i] ? -1 : 0); }
VM_INLINE VI vround(V a) { VM_LANES(VI, r.i[i] = (int32_t)a.f[i]); }
VM_INLINE V vmax(V a, V b) { VM_LANES(V, r.f[i] = a.f[i] > b.f[i] ? a.f[i] : b.f[i]); }
VM_INLINE V vmin(V a, V b) { VM_LANES(V, r.f[i] = a.f[i] < b.f[i] ? a.f[i] : b.f[i]); }
#undef VM_LANES
#endif

VM_INLINE V vload(const float* p) {
  V r;
  memcpy(&r, p, 16);
  return r;
}
VM_INLINE void vstore(float* p, V a) { memcpy(p, &a, 16); }
VM_INLINE V vzero() { return vset(0.0f); }
#if defined(__aarch64__) && defined(__GNUC__)
VM_INLINE V vfma(V a, V b, V c) { return (V)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b); }
VM_INLINE V vfnma(V a, V b, V c) { return (V)vfmsq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b); }
#else
VM_INLINE V vfma(V a, V b, V c) { return vadd(vmul(a, b), c); }
VM_INLINE V vfnma(V a, V b, V c) { return vsub(c, vmul(a, b)); }
#endif
VM_INLINE V vselect_neg(V x, V neg, V other) { return vpick(vless(x, vzero()), neg, other); }
template <int M>
VM_INLINE void vrecip(const V* x, V* r) {
  VM_EACH(r[i] = vdiv(vset(1.0f), x[i]));
}
VM_INLINE V vldexp(V p, V n) {
  // NaN has no integer: it stays in p, and the exponent only has to be harmless.
  V safe = vmin(vset(250.0f), vmax(vset(-250.0f), n));
  safe = vpick(vless(vabs(safe), vset(300.0f)), safe, vzero());
  VI e = vround(safe), half = visra1(e), bias = viset(127);
  V a = vfloat(vishl23(viadd(half, bias))), b = vfloat(vishl23(viadd(visub(e, half), bias)));
  return vmul(vmul(p, a), b);
}
VM_INLINE float vhsum(V a) { return (a[0] + a[1]) + (a[2] + a[3]); }
VM_INLINE float vhmax(V a) {
  float x = a[0] > a[1] ? a[0] : a[1], y = a[2] > a[3] ? a[2] : a[3];
  return x > y ? x : y;
}

struct ExpTable {};
VM_INLINE ExpTable exp_table() { return {}; }

template <bool FAST>
VM_INLINE V exp2_dt(V dt, V a, const ExpTable&) {
  const V magic = vset(12582912.0f);
  V x = vmul(dt, a);
  if (!FAST) x = vmin(vset(240.0f), vmax(vset(-240.0f), x));
  V t = vadd(x, magic);
  V n = vsub(t, magic);
  V f = vsub(x, n);
  V p = vfma(f, vset(kExp2C6), vset(kExp2C5));
  p = vfma(f, p, vset(kExp2C4));
  p = vfma(f, p, vset(kExp2C3));
  p = vfma(f, p, vset(kExp2C2));
  p = vfma(f, p, vset(kExp2C1));
  p = vfma(f, p, vset(1.0f));
  if (!FAST) return vldexp(p, n);
  return vfloat(viadd(vbits(p), vishl23(vbits(t))));
}

// e^-x for x >= 0, to about one unit in the last place; NaN stays NaN, and what is below 2^-125 is zero.
template <int M>
VM_INLINE void exp_neg(const V* x, V* e) {
  const V magic = vset(12582912.0f), most = vset(87.0f);
  V t[M], n[M], f[M], p[M];
  VM_EACH(t[i] = vfnma(x[i], vset(1.44269502f), magic));
  VM_EACH(n[i] = vsub(t[i], magic));
  // ln 2 in two parts, the first short enough for an exact product even without FMA.
  VM_EACH(f[i] = vsub(vmul(n[i], vset(-0.693359375f)), x[i]));
  VM_EACH(f[i] = vfma(n[i], vset(2.12194440e-4f), f[i]));
  VM_EACH(f[i] = vmul(f[i], vset(1.44269502f)));
  VM_EACH(p[i] = vfma(f[i], vset(kExp2C6), vset(kExp2C5)));
  VM_EACH(p[i] = vfma(f[i], p[i], vset(kExp2C4)));
  VM_EACH(p[i] = vfma(f[i], p[i], vset(kExp2C3)));
  VM_EACH(p[i] = vfma(f[i], p[i], vset(kExp2C2)));
  VM_EACH(p[i] = vfma(f[i], p[i], vset(kExp2C1)));
  VM_EACH(p[i] = vfma(f[i], p[i], vset(1.0f)));
  VM_EACH(p[i] = vmul(p[i], vfloat(vishl23(viadd(vbits(t[i]), viset(127))))));
  VM_EACH(e[i] = vpick(vless(most, x[i]), vzero(), p[i]));
}

VM_INLINE V vreduce4(V a, V b, V c, V d) {
#if defined(__SSE2__) && defined(__GNUC__)
  // Same grouping as the wider paths; written out because compilers do not find the transpose.
  __m128 ab = _mm_add_ps(_mm_unpacklo_ps((__m128)a, (__m128)b), _mm_unpackhi_ps((__m128)a, (__m128)b));
  __m128 cd = _mm_add_ps(_mm_unpacklo_ps((__m128)c, (__m128)d), _mm_unpackhi_ps((__m128)c, (__m128)d));
  return (V)_mm_add_ps(_mm_movelh_ps(ab, cd), _mm_movehl_ps(cd, ab));
#elif defined(__aarch64__) && defined(__GNUC__)
  return (V)vpaddq_f32(vpaddq_f32((float32x4_t)a, (float32x4_t)b), vpaddq_f32((float32x4_t)c, (float32x4_t)d));
#else
  V r = vzero();
  r[0] = vhsum(a);
  r[1] = vhsum(b);
  r[2] = vhsum(c);
  r[3] = vhsum(d);
  return r;
#endif
}
VM_INLINE void vfold4(float* p, V a) { vstore(p, a); }

VM_INLINE V vload_part(const float* p, int n) {
  float t[4] = {0.0f, 0.0f, 0.0f, 0.0f};
  for (int i = 0; i < n; ++i) t[i] = p[i];
  return vload(t);
}
VM_INLINE void vstore_part(float* p, V a, int n) {
  float t[4];
  vstore(t, a);
  for (int i = 0; i < n; ++i) p[i] = t[i];
}

VM_INLINE V vload_bf16(const uint16_t* p) {
  float t[4];
  for (int i = 0; i < 4; ++i) t[i] = bf16_to_float(p[i]);
  return vload(t);
}
VM_INLINE void vstore_bf16(uint16_t* p, V a) {
  float t[4];
  vstore(t, a);
  for (int i = 0; i < 4; ++i) p[i] = float_to_bf16(t[i]);
}
VM_INLINE V vload_f16(const uint16_t* p) {
  float t[4];
  for (int i = 0; i < 4; ++i) t[i] = f16_to_float(p[i]);
  return vload(t);
}
VM_INLINE void vstore_f16(uint16_t* p, V a) {
  float t[4];
  vstore(t, a);
  for (int i = 0; i < 4; ++i) p[i] = float_to_f16(t[i]);
}
