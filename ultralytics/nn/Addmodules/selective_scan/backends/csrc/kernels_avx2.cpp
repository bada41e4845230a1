// Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
// AVX2, FMA and F16C. The target is switched on for this file's own functions only, so the build needs no flags.
#include "common.h"

#if defined(VM_X86)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx,avx2,fma,f16c"))), apply_to = function)
#elif defined(__GNUC__)
#pragma GCC push_options
#pragma GCC target("avx,avx2,fma,f16c")
#endif

namespace vmamba {
namespace avx2 {
#define VM_NAME "AVX2"
#include "vec_avx2.h"
#include "kernels.inl"
#include "block.inl"
}  // namespace avx2
}  // namespace vmamba

#if defined(__clang__)
#pragma clang attribute pop
#elif defined(__GNUC__)
#pragma GCC pop_options
#endif
#endif

namespace vmamba {
#if defined(VM_X86)
const Kernels* kernels_avx2() { return &avx2::kTable; }
#else
const Kernels* kernels_avx2() { return nullptr; }
#endif
}  // namespace vmamba
