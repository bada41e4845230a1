// Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
// The path that every CPU can take: SSE2 on x86-64, NEON on arm64, plain loops elsewhere.
#include "common.h"

namespace vmamba {
namespace plain {
#if defined(__aarch64__)
#define VM_NAME "NEON"
#elif defined(VM_X86)
#define VM_NAME "SSE2"
#else
#define VM_NAME "plain C++"
#endif
#include "vec_plain.h"
#include "kernels.inl"
#include "block.inl"
}  // namespace plain

const Kernels* kernels_plain() { return &plain::kTable; }

}  // namespace vmamba
