// Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
// The arithmetic that a selective scan cannot do without, and nothing else: for each (token, channel, state) one
// exponential as a degree-5 polynomial and three multiply-adds, on data that stays in registers and the first-level
// cache. No softplus, no gate, no memory traffic. scan_cpu.py compiles this for the machine at hand and times it.

#include <cstdint>
#include <cstring>

#if defined(__AVX512F__)
#include <immintrin.h>
#define BYTES 64
#elif defined(__AVX__)
#define BYTES 32
#else
#define BYTES 16
#endif

typedef float Floats __attribute__((vector_size(BYTES)));
typedef int32_t Ints __attribute__((vector_size(BYTES)));

namespace {

constexpr int kStates = 16, kTokens = 64, kLanes = BYTES / 4;

inline Floats all(float x) { return x - Floats{}; }  // x - 0 is x for every x, so compilers make it a broadcast

// 2^(dt a) for |dt a| < 126; the coefficients are our own minimax fit on [-1/2, 1/2], 7.5e-8 relative before rounding.
inline Floats exp2_product(Floats dt, Floats a) {
  const Floats magic = all(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer, kept in the low bits
  const Floats t = dt * a + magic;
  const Floats n = t - magic;
  const Floats f = dt * a - n;
  Floats p = f * all(0.0013276472f) + all(0.009675542f);
  p = f * p + all(0.05550713f);
  p = f * p + all(0.2402212f);
  p = f * p + all(0.69314694f);
  p = f * p + all(1.0000001f);
#if defined(__AVX512F__)
  return (Floats)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
  Ints bits, exponent;
  std::memcpy(&bits, &p, sizeof p);
  std::memcpy(&exponent, &t, sizeof t);
  bits += exponent << 23;
  std::memcpy(&p, &bits, sizeof p);
  return p;
#endif
}

// `Group` states at a time stay in registers; which number is fastest depends on how many registers there are.
template <int Group>
void run(const float* A, const float* dt, const float* dtu, const float* B, const float* C, float* y, int64_t passes) {
  const Floats *va = (const Floats*)A, *vdt = (const Floats*)dt, *vdtu = (const Floats*)dtu;
  Floats* vy = (Floats*)y;
  for (int first = 0; first < kStates; first += Group) {
    Floats h[Group] = {};
    for (int64_t pass = 0; pass < passes; ++pass) {
      for (int t = 0; t < kTokens; ++t) {
        Floats sum = first ? vy[t] : Floats{};
#pragma GCC unroll 16
        for (int n = 0; n < Group; ++n) {
          const int i = t * kStates + first + n;
          h[n] = exp2_product(vdt[t], va[first + n]) * h[n] + vdtu[t] * all(B[i]);
          sum = all(C[i]) * h[n] + sum;
        }
        vy[t] = sum;
      }
    }
  }
}

}  // namespace

extern "C" {

int bound_lanes() { return kLanes; }

// A is (16, lanes) times log2(e); dt, dt * u and y are (64, lanes); B and C are (64, 16); all aligned to 64 bytes.
void bound_run(int group, const float* A, const float* dt, const float* dtu, const float* B, const float* C, float* y,
               int64_t passes) {
  if (group == 16) run<16>(A, dt, dtu, B, C, y, passes);
  if (group == 8) run<8>(A, dt, dtu, B, C, y, passes);
  if (group == 4) run<4>(A, dt, dtu, B, C, y, passes);
}
}
