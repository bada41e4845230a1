// Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
// AVX-512 F, BW, DQ and VL. The target is switched on for this file's own functions only, so the build needs no flags.
#include "common.h"

#if defined(VM_X86)
#if defined(__clang__)
#define VM_TARGET __attribute__((target("avx,avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")))
#pragma clang attribute push(VM_TARGET, apply_to = function)
#elif defined(__GNUC__)
// GCC 12 warns of the undefined vectors in its own header.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC push_options
#pragma GCC target("avx,avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")
#endif

namespace vmamba {
namespace avx512 {
#define VM_NAME "AVX-512"
#include "vec_avx512.h"
#include "kernels.inl"
#include "block.inl"
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
const Kernels* kernels_avx512() { return &avx512::kTable; }
#else
const Kernels* kernels_avx512() { return nullptr; }
#endif
}  // namespace vmamba
