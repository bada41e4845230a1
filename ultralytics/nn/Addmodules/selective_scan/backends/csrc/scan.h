// Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
// Types shared by the C ABI (api.cpp) and the per-instruction-set kernels (kernels_*.cpp).
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace vmamba {

// Raised whenever the argument layout below changes: cpu.py refuses any other number.
constexpr int64_t kAbiVersion = 6;

// Tokens per tile and per checkpoint. The backward pass keeps decay and state of one tile for four states at a time
// in scratch; 32 tokens keep that near the first-level cache and the checkpoints at N / 32 floats a token and channel.
constexpr int64_t kTile = 32;
constexpr int64_t kFwdBlock = 16;  // channels of one forward task
constexpr int64_t kBwdBlock = 32;  // channels of one backward task, summed before dB and dC leave the task
constexpr int64_t kMaxStates = 256;
constexpr int64_t kMaxTaps = 16;   // of the block's convolution
constexpr int64_t kMaxRank = 256;  // of its step sizes
constexpr int64_t kMaxDirections = 16;

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

// The block around the scan. xz, dxz: (b, l, c), x before z, or x alone with kFlagNoGate; conv_w: (q, d, w), conv_b: (q, d), x_proj: (q, p, d),
// dt_proj: (q, d, r), where q is one row a direction k or one for all, and p counts r, then B's n, then C's n;
// projected: (b, q, l, p); out, y, dout, gated: (b, l, d), y before the gate. y, projected and gated may be absent.
//
// With in_w (2 d, c) and out_w (m, d) the block is whole: xz holds tokens (b, l, c), which in_proj turns into xz, and out_proj's
// out is (b, l, m). Then all but the scan's parameters is float32, channels of tokens and out are contiguous, D and M are
// numbers of 16s, there is a gate, and nothing is kept for backward. in_b (2 d) and out_b (m) may be absent. With norm_w and norm_b (c)
// LayerNorm comes first, and tokens may have any strides; `eps` holds the bits of a double.
struct BlockArgs {
  int64_t abi, threads, flags, B, K, Q, D, L, N, R, W, checkpoints, orders, C, M, eps;
  Tensor xz, conv_w, conv_b, x_proj, dt_proj, A, D_skip, bias, out, y, projected, states, in_w, in_b, out_w, out_b, norm_w, norm_b;
};

struct BlockGradArgs {
  int64_t abi, threads, flags, B, K, Q, D, L, N, R, W, checkpoints, orders;
  Tensor xz, conv_w, conv_b, x_proj, dt_proj, A, D_skip, bias, y, projected, states, dout;
  Tensor dxz, dconv_w, dconv_b, dx_proj, ddt_proj, dA, dD, dbias, gated;
};

// LayerNorm over the channels of each token of a map: x, dx (b, c, l); weight, bias, dweight, dbias (c); out, dout
// (b, l, c); mean, rstd (b, l), float32. `eps` holds the bits of a double.
struct NormArgs {
  int64_t abi, threads, B, C, L, eps;
  Tensor x, weight, bias, out, mean, rstd;
};

struct NormGradArgs {
  int64_t abi, threads, B, C, L, eps;
  Tensor x, weight, mean, rstd, dout, dx, dweight, dbias;
};

// c (m, n) = a (m, k) b (k, n) + bias (n), float32; rows of c are contiguous and n is a number of 16s. bias may be absent.
struct MatmulArgs {
  int64_t abi, threads, M, K, N;
  Tensor a, b, bias, c;
};

constexpr int64_t kFlagSoftplus = 1;
constexpr int64_t kFlagNoGate = 2;  // of the block: out is the sum over directions, and y and gated are absent

inline int64_t round_up(int64_t x, int64_t m) { return (x + m - 1) / m * m; }
inline int64_t num_tiles(int64_t L) { return (L + kTile - 1) / kTile; }

// Row widths of the packed weights below and of rows of projections: whole vectors, whole groups of four states.
inline int64_t padded_channels(int64_t D) { return round_up(D, kBwdBlock); }
inline int64_t padded_rank(int64_t R) { return round_up(R, 4); }
inline int64_t padded_states(int64_t N) { return round_up(N, 4); }  // also rows of the partial dB and dC
inline int64_t padded_projections(int64_t R, int64_t N) { return round_up(padded_rank(R) + 2 * padded_states(N), 16); }

// One direction's weights as the kernels walk them, float32, zero in the padding, Dp = padded_channels(D).
struct Weights {
  const float* conv;       // [W][Dp], the last tap on the token itself
  const float* conv_bias;  // [Dp]
  const float* dt_proj;    // [padded_rank(R)][Dp]
  const float* to_rows;    // [D][padded_projections]: x_proj transposed, the R, B's and C's N each padded
  const float* from_rows;  // [P][Dp]: x_proj
};

// Where u and delta come from inside the block: p.u is the convolution's input and p.delta holds the first R projections,
// (b, k, r, l).
struct Source {
  const Weights* weights;  // of each direction k
  int64_t Dp, R, W;
  const bool* mirrored;    // of each direction k: the convolution looks ahead in scan order, not back
};

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
  const Source* source;      // inside the block: partial_y is then set and has a row at each token's position
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
  const Source* source;      // inside the block: ddelta is then not stored but projected
  float* partial_r;          // [L][padded_rank] sums of the gradient of the first R projections
  float* ddt;                // [padded_rank][32] of dt_proj
};

// A whole sequence in one direction with all its channels: convolution, projections and scan tile by tile.
struct StreamTask {
  int64_t b, k;
  float* y;           // [L][y_ld], rows at their tokens' positions, whole vectors of 16
  int64_t y_ld;
  bool accumulate;    // add to what the direction before left in y
  bool finish;        // y is complete behind the last direction: gate and store
};

// Positions [l0, l1) of one sequence, in the phases of the block that have no recurrence.
struct RowsTask {
  int64_t b, l0, l1;
};

// Sums over the states of one sequence, in parts that are still to be added: of channels [16 i, 16 i + 16) part j begins at
// first + i * per_block + j * per_part, and has a row of 16 every `ld` floats.
struct Sums {
  float* first;
  int64_t per_block, per_part, ld, parts;
};

// The halves of in_proj (c, d) and out_proj (d, m), transposed for `matmul` and in strips.
struct Products {
  const float *in, *gate, *out;
};

// What the scan's backward pass leaves for the block's: sums over channels and directions are still to be done.
struct BlockGrads {
  const float* du;         // [K][L][Dp]
  const float* partial_r;  // [K][blocks][L][padded_rank]
  const float* partial_b;  // [K][blocks][L][padded_states]
  const float* partial_c;
  int64_t blocks;
  float* sums;             // [Q][P + W + 1][Dp] of this task: dx_proj, dconv_w, dconv_b
};

struct Kernels {
  const char* name;
  size_t (*forward_scratch)(int64_t N, int64_t R, int64_t W);   // floats
  size_t (*backward_scratch)(int64_t N, int64_t R, int64_t W);  // floats
  void (*forward)(const ForwardArgs&, const FwdTask&, float* scratch);
  // Adds the partial sums of the tasks that shared the states of one channel block, then applies D and the gate.
  void (*forward_finish)(const ForwardArgs&, const FwdTask&, float* const* partial_y, int64_t parts, float* scratch);
  void (*backward)(const BackwardArgs&, const BwdTask&, float* scratch);
  // Sums `blocks` partial tensors [L][Np], `block_stride` floats apart, and stores tokens [l0, l1) to dB or dC.
  void (*reduce_rows)(const Tensor& out, int64_t b, int64_t k, int64_t N, int64_t l0, int64_t l1, const float* partial,
                      int64_t blocks, int64_t block_stride, float* scratch);

  size_t (*block_scratch)(int64_t N, int64_t R, int64_t W, int64_t Q);   // floats
  size_t (*stream_scratch)(int64_t D, int64_t N, int64_t R, int64_t W);  // of block_stream
  // Convolution, SiLU and the projections of direction q: (b, q, l, p).
  void (*block_project)(const BlockArgs&, const RowsTask&, int64_t q, const Weights&, bool reversed, const Tensor& projected,
                        float* scratch);
  // All of that and the scan, its sum over directions and the gate, for one sequence and direction after the other.
  void (*block_stream)(const BlockArgs&, const ForwardArgs&, const StreamTask&, const Source&, float* scratch);
  // Sums `parts` rows of partial_y, `ld` floats a token, of channels [d0, d0 + 16), applies the gate and stores.
  void (*block_finish)(const BlockArgs&, const RowsTask&, int64_t d0, float* const* partial_y, int64_t ld, int64_t parts,
                       float* scratch);
  size_t (*output_scratch)(int64_t D);  // floats, of block_output
  // The same for all channels of a whole block, with the gate's half of in_proj and with out_proj.
  void (*block_output)(const BlockArgs&, const RowsTask&, const Sums&, const Products&, float* scratch);
  // Gradients behind and of the gate; dy is [L][Dp].
  void (*block_gate)(const BlockGradArgs&, const RowsTask&, float* dy, float* scratch);
  // Gradients of x, conv and x_proj.
  void (*block_inputs)(const BlockGradArgs&, const RowsTask&, const Weights*, const bool* reversed, const BlockGrads&,
                       float* scratch);
  size_t (*norm_scratch)(int64_t C);  // floats, of the two below
  void (*norm)(const NormArgs&, const RowsTask&, float* scratch);
  void (*norm_backward)(const NormGradArgs&, const RowsTask&, float* sums, float* scratch);  // [2][Cp]: dweight, dbias
  // Rows [m0, m1) of a product whose second factor (K, N) lies at b, rows of it `ldb` floats apart, or in strips if that is 0:
  // columns [n, n + strip) begin at b + n K, row after row, so that a product reads memory in order.
  void (*matmul)(const MatmulArgs&, const float* b, int64_t ldb, int64_t m0, int64_t m1);
  // Between any tensor and rows of float32: dst[r * ld + c] = t[offset + r * s_row + c * s_col], zero from cols to width.
  void (*load_rows)(float* dst, int64_t ld, const Tensor& t, int64_t offset, int64_t s_row, int64_t s_col, int rows, int cols,
                    int width);
  void (*store_rows)(const Tensor& t, int64_t offset, int64_t s_row, int64_t s_col, const float* src, int64_t ld, int rows,
                     int cols);
  int64_t strip;
};

const Kernels* kernels_plain();
const Kernels* kernels_avx2();    // null when the compiler or architecture cannot make them
const Kernels* kernels_avx512();

}  // namespace vmamba
