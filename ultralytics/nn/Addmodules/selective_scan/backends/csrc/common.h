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

// Coefficients of 2^x whose constant and linear terms are exact: a state that decays by x a token remembers 1 / x tokens,
// so what counts near 0 is the error relative to x. Relative error on [-1/2, 1/2] 7e-9, on [-1/16, 1/16] 3e-10 and on
// [-1/32, 1/32] 2e-9.
constexpr float kExp2C1 = 6.931471825e-01f, kExp2C2 = 2.402264923e-01f, kExp2C3 = 5.550366268e-02f;
constexpr float kExp2C4 = 9.618462995e-03f, kExp2C5 = 1.338785165e-03f, kExp2C6 = 1.532882743e-04f;
constexpr float kExp2E1 = 6.931471825e-01f, kExp2E2 = 2.402265072e-01f, kExp2E3 = 5.550785735e-02f;
constexpr float kExp2E4 = 9.616467170e-03f;
constexpr float kExp2T1 = 6.931471825e-01f, kExp2T2 = 2.402340323e-01f, kExp2T3 = 5.550216138e-02f;

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
