// Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
// What every kernels_*.cpp needs before it switches instruction sets: headers, inlining macros, constants, 16-bit floats.
#pragma once

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "scan.h"

#if defined(__x86_64__) || defined(_M_X64)
#define VM_X86 1
#include <immintrin.h>
#elif defined(__aarch64__) && defined(__GNUC__)
#include <arm_neon.h>
#endif

#if defined(_MSC_VER) && !defined(__clang__)
#define VM_INLINE static __forceinline
#define VM_UNROLL
#elif defined(__clang__)
#define VM_INLINE static inline __attribute__((always_inline))
#define VM_UNROLL _Pragma("clang loop unroll(full)")
#else
#define VM_INLINE static inline __attribute__((always_inline))
#define VM_UNROLL _Pragma("GCC unroll 16")
#endif

// One step of an elementwise function on M vectors at once. A chain of dependent operations fills the scheduler before
// the next vector's chain is seen, so the vectors are interleaved by hand.
#define VM_EACH(...) VM_UNROLL for (int i = 0; i < M; ++i) __VA_ARGS__

#if defined(__GNUC__)
#define VM_PREFETCH(p) __builtin_prefetch(p)
#define VM_PREFETCH_L2(p) __builtin_prefetch(p, 0, 2)
#elif defined(VM_X86)
#define VM_PREFETCH(p) _mm_prefetch((const char*)(p), _MM_HINT_T0)
#define VM_PREFETCH_L2(p) _mm_prefetch((const char*)(p), _MM_HINT_T1)
#else
#define VM_PREFETCH(p) ((void)(p))
#define VM_PREFETCH_L2(p) ((void)(p))
#endif

namespace vmamba {

// Minimax coefficients of 2^x on [-1/2, 1/2] with the constant term held at 1; relative error 9e-8 and 2e-9.
constexpr float kExp2C1 = 6.931469776e-01f, kExp2C2 = 2.402224209e-01f, kExp2C3 = 5.550733745e-02f;
constexpr float kExp2C4 = 9.671512613e-03f, kExp2C5 = 1.326472679e-03f;
constexpr float kExp2D1 = 6.931472029e-01f, kExp2D2 = 2.402264791e-01f, kExp2D3 = 5.550332471e-02f;
constexpr float kExp2D4 = 9.618437361e-03f, kExp2D5 = 1.339887437e-03f, kExp2D6 = 1.535336108e-04f;
// The same on [-1/64, 1/64]: relative error 5e-8.
constexpr float kExp2T1 = 6.931573298e-01f, kExp2T2 = 2.402264974e-01f;

#if defined(VM_X86)
extern const float kExp2Table[32];  // 2^(i / 32)
#endif

VM_INLINE float float_from_bits(uint32_t x) {
  float f;
  memcpy(&f, &x, 4);
  return f;
}
VM_INLINE uint32_t bits_from_float(float f) {
  uint32_t x;
  memcpy(&x, &f, 4);
  return x;
}
VM_INLINE float bf16_to_float(uint16_t h) { return float_from_bits((uint32_t)h << 16); }
VM_INLINE uint16_t float_to_bf16(float f) {
  uint32_t x = bits_from_float(f);
  if (f != f) return (uint16_t)((x >> 16) | 0x40);
  return (uint16_t)((x + 0x7fff + ((x >> 16) & 1)) >> 16);
}
VM_INLINE float f16_to_float(uint16_t h) {
  const uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = (h >> 10) & 31, mantissa = h & 1023;
  if (exponent == 31) return float_from_bits(sign | 0x7f800000u | (mantissa << 13) | (mantissa ? 0x400000u : 0u));
  if (exponent) return float_from_bits(sign | ((exponent + 112) << 23) | (mantissa << 13));
  const float tiny = (float)mantissa * 5.9604644775390625e-8f;  // 2^-24: subnormal halves are normal floats
  return sign ? -tiny : tiny;
}
VM_INLINE uint16_t float_to_f16(float f) {
  const uint32_t x = bits_from_float(f), sign = (x >> 16) & 0x8000, a = x & 0x7fffffffu;
  if (a > 0x7f800000u) return (uint16_t)(sign | 0x7e00 | ((a >> 13) & 1023));
  if (a >= 0x477ff000u) return (uint16_t)(sign | 0x7c00);  // 65520 and above round to infinity
  if (a < 0x38800000u) {                                   // below 2^-14: round to a multiple of 2^-24
    const float scaled = float_from_bits(a) + 0.5f;        // 0.5 has that spacing
    return (uint16_t)(sign | (bits_from_float(scaled) - 0x3f000000u));
  }
  const uint32_t r = a + 0xfff + ((a >> 13) & 1);
  return (uint16_t)(sign | ((r - 0x38000000u) >> 13));
}

}  // namespace vmamba
