// Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
// AVX-512 F, BW, DQ and VL. The target is switched on for this file's own functions only, so the build needs no flags.
#include "common.h"

#if defined(VM_X86)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx,avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl"))), apply_to = function)
#elif defined(__GNUC__)
#pragma GCC push_options
#pragma GCC target("avx,avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")
#endif

namespace vmamba {
namespace avx512 {
#define VM_NAME "AVX-512"
#include "vec_avx512.h"
#include "kernels.inl"
}  // namespace avx512
}  // namespace vmamba

#if defined(__clang__)
#pragma clang attribute pop
#elif defined(__GNUC__)
#pragma GCC pop_options
#endif
#endif

namespace vmamba {
#if defined(VM_X86)
alignas(64) const float kExp2Table[32] = {
    1.0f, 1.02189715f, 1.04427378f, 1.0671404f, 1.09050773f, 1.11438674f, 1.13878863f, 1.16372486f,
    1.18920712f, 1.21524736f, 1.24185781f, 1.26905096f, 1.29683955f, 1.32523664f, 1.35425555f, 1.38390988f,
    1.41421356f, 1.44518081f, 1.47682615f, 1.50916443f, 1.54221083f, 1.57598085f, 1.61049033f, 1.64575548f,
    1.68179283f, 1.7186193f, 1.75625216f, 1.79470908f, 1.83400809f, 1.87416763f, 1.91520656f, 1.95714412f,
};
const Kernels* kernels_avx512() { return &avx512::kTable; }
#else
const Kernels* kernels_avx512() { return nullptr; }
#endif
}  // namespace vmamba
