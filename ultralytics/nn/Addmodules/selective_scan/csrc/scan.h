// Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
// Types shared by the C ABI (api.cpp) and the per-instruction-set kernels (kernels_*.cpp).
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace vmamba {

// Raised whenever the argument layout below changes: cpu.py refuses any other number.
constexpr int64_t kAbiVersion = 1;

// Tokens per tile and per checkpoint. The backward pass keeps decay and state of one tile for four states at a time
// in scratch; 32 tokens keep that near the first-level cache and the checkpoints at N / 32 floats a token and channel.
constexpr int64_t kTile = 32;
constexpr int64_t kFwdBlock = 16;  // channels of one forward task
constexpr int64_t kBwdBlock = 32;  // channels of one backward task, summed before dB and dC leave the task
constexpr int64_t kMaxStates = 256;

enum DType : int64_t { kF32 = 0, kBF16 = 1, kF16 = 2 };

// One tensor as it crosses the ABI: strides count elements, `data` is 0 for an absent tensor.
struct Tensor {
  int64_t data;
  int64_t dtype;
  int64_t s[5];
};

// u, delta, z, out, dout, du, ddelta, dz: (b, k, d, l); B, C, dB, dC: (b, k, n, l); A, dA: (k, d, n);
// D, bias, dD, dbias: (k, d); states: (b, k, c, d, n) with c running in scan order.
struct ForwardArgs {
  int64_t abi, threads, flags, B, K, D, L, N, checkpoints, orders;
  Tensor u, delta, A, Bm, Cm, D_skip, z, bias, out, states;
};

struct BackwardArgs {
  int64_t abi, threads, flags, B, K, D, L, N, checkpoints, orders;
  Tensor u, delta, A, Bm, Cm, D_skip, z, bias, dout, states;
  Tensor du, ddelta, dA, dB, dC, dD, dz, dbias;
};

constexpr int64_t kFlagSoftplus = 1;

inline int64_t round_up(int64_t x, int64_t m) { return (x + m - 1) / m * m; }
inline int64_t num_tiles(int64_t L) { return (L + kTile - 1) / kTile; }

// A contiguous run of tiles of one (batch, group, channel block), and where its partial results go.
struct FwdTask {
  int64_t b, k, d0, dn;      // channels [d0, d0 + dn)
  int64_t tile0, tile1;      // tiles in scan order
  int64_t n0, n1;            // states, when they are shared among tasks
  int64_t seg;               // which part of the scan; parts before it hand over their state through seg_state
  bool states_only;          // first pass of a split scan: local final state and summed dt, no output
  float* seg_state;          // [seg][N][16] local final states, then [seg][16] summed dt; null when L is not split
  int64_t segs;
  float* partial_y;          // [L][16] sums over the task's own states; null when one task holds all states
};

struct BwdTask {
  int64_t b, k, d0, dn;
  int64_t tile0, tile1;
  int64_t seg, segs;
  bool adjoint_only;         // first pass of a split scan: adjoint carried out of the part, and summed dt
  float* seg_adjoint;        // [seg][Np][32], then [seg][32]; null when L is not split
  float* partial_b;          // [L][Np] sums of dB over this block's channels, rows at their token's position
  float* partial_c;
  float* dA;                 // [N][32] of this task
  float* dD;                 // [32]
  float* dbias;              // [32]
};

struct Kernels {
  const char* name;
  size_t (*forward_scratch)(int64_t N);   // floats
  size_t (*backward_scratch)(int64_t N);  // floats
  void (*forward)(const ForwardArgs&, const FwdTask&, float* scratch);
  // Adds the partial sums of the tasks that shared the states of one channel block, then applies D and the gate.
  void (*forward_finish)(const ForwardArgs&, const FwdTask&, float* const* partial_y, int64_t parts, float* scratch);
  void (*backward)(const BackwardArgs&, const BwdTask&, float* scratch);
  // Sums `blocks` partial tensors [L][Np], `block_stride` floats apart, and stores tokens [l0, l1) to dB or dC.
  void (*reduce_rows)(const Tensor& out, int64_t b, int64_t k, int64_t N, int64_t l0, int64_t l1, const float* partial,
                      int64_t blocks, int64_t block_stride, float* scratch);
};

// Row width of the partial dB and dC: whole groups of four states.
inline int64_t padded_states(int64_t N) { return round_up(N, 4); }

const Kernels* kernels_plain();
const Kernels* kernels_avx2();    // null when the compiler or architecture cannot make them
const Kernels* kernels_avx512();

}  // namespace vmamba
