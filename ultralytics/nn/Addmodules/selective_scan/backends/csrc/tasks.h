// Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
// What api.cpp (the scan) and block.cpp (the block around it) share: status codes, memory of a call, division into tasks.
#pragma once

#include <stdlib.h>

#include <atomic>
#include <initializer_list>

#include "pool.h"
#include "scan.h"

namespace vmamba {

enum Status : int {
  kOk = 0,
  kBadAbi = 1,
  kBadShape = 2,
  kBadDtype = 3,
  kBadOrder = 4,
  kNoMemory = 5,
  kBadStates = 6,
};

// Whether tensors, those that are there, are of a type that kernels read and write as rows, or of float32.
inline bool known(std::initializer_list<const Tensor*> tensors) {
  for (const Tensor* t : tensors)
    if (t->data && (t->dtype < kF32 || t->dtype > kF16)) return false;
  return true;
}
inline bool wide(std::initializer_list<const Tensor*> tensors) {
  for (const Tensor* t : tensors)
    if (t->data && t->dtype != kF32) return false;
  return true;
}

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }

// Memory for one call, aligned to 64 bytes, one at a time per calling thread and slot. The thread keeps up to 128 MB from call to
// call: faulting fresh pages in costs about as much as writing them eight times. A picture of 1280 pixels needs 80 MB.
class Buffer {
 public:
  explicit Buffer(int64_t floats, Slot slot = kCallSlot) {
    constexpr int64_t kept = (int64_t)32 << 20;
    if (floats <= kept) {
      data_ = floats ? thread_scratch((size_t)floats, slot) : nullptr;
    } else if ((raw_ = malloc((size_t)floats * sizeof(float) + 64))) {
      data_ = (float*)(((uintptr_t)raw_ + 63) & ~(uintptr_t)63);
    }
  }
  ~Buffer() { free(raw_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  float* get() const { return data_; }

 private:
  void* raw_ = nullptr;
  float* data_ = nullptr;
};

template <class F>
void for_each_task(int64_t tasks, int64_t threads, F&& body) {
  parallel_for(tasks, threads, [](void* c, int64_t i) { (*static_cast<F*>(c))(i); }, &body);
}

// How a scan with too few channel blocks for the threads is shared further.
struct Split {
  int64_t parts = 1;  // tasks among which the states of one block are divided
  int64_t segs = 1;   // parts of the token axis
};

Split plan_forward(int64_t blocks, int64_t tiles, int64_t N, int64_t threads);
int64_t plan_backward(int64_t blocks, int64_t tiles, int64_t threads);

const Kernels* current_kernels();

// Where run_backward and the block's backward pass put what each scan task found: [N][32] of dA, [32] of dD, [32] of dbias,
// [padded_rank][32] of dt_proj, for every (b, k, channel block, part of the tokens).
inline int64_t task_sums(int64_t N, int64_t R) { return (N + 2 + padded_rank(R)) * kBwdBlock; }
// Adds them up over batch and parts in double precision; dt_proj's over directions too where they share one.
bool reduce_task_sums(const Kernels& kernels, const float* sums, int64_t B, int64_t K, int64_t Q, int64_t D, int64_t N, int64_t R,
                      int64_t segs, int64_t threads, const Tensor& dA, const Tensor& dD, const Tensor& dbias,
                      const Tensor& ddt_proj);

int run_block_forward(const BlockArgs& p);
int run_block_backward(const BlockGradArgs& p);
int run_norm(const NormArgs& p);
int run_norm_backward(const NormGradArgs& p);
int run_matmul(const MatmulArgs& p);

}  // namespace vmamba
