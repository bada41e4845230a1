// Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
// One forward scan of the kernel, or the loop of bound.cpp, for arm_counts.py, which counts their instructions.
// Usage: arm_counts WHAT TOKENS. WHAT: 0, the whole scan; 1, without softplus and gate; 4, 8 or 16, the bound with as many states
// at a time in registers. TOKENS: a multiple of 64, at most 2048.
#include <cstdio>
#include <cstdlib>

#include "bound.cpp"
#include "kernels_plain.cpp"

using namespace vmamba;

namespace {

constexpr int kMost = 2048, kChannels = 16;
alignas(64) float u[kMost * kChannels], delta[kMost * kChannels], z[kMost * kChannels], out[kMost * kChannels];
alignas(64) float B[kMost * kStates], C[kMost * kStates], A[kStates * kChannels], D[kChannels], bias[kChannels];
alignas(64) float state[kStates * kChannels], scratch[1 << 20];

void fill(float* p, int n, float least, float most) {
  for (int i = 0; i < n; ++i) p[i] = least + (most - least) * (float)(rand() / (double)RAND_MAX);
}

Tensor rows(float* p, int64_t channel, int64_t token) { return {(int64_t)(intptr_t)p, kF32, {0, 0, channel, token, 0}}; }

void scan(bool whole, int64_t tokens) {
  int64_t order = 0;
  ForwardArgs p{};
  p.flags = whole ? kFlagSoftplus : 0;
  p.B = p.K = p.threads = p.checkpoints = 1;
  p.D = kChannels, p.L = tokens, p.N = kStates;
  p.orders = (int64_t)(intptr_t)&order;
  p.u = rows(u, 1, kChannels), p.delta = rows(delta, 1, kChannels), p.out = rows(out, 1, kChannels);
  if (whole) p.z = rows(z, 1, kChannels);
  p.Bm = rows(B, 1, kStates), p.Cm = rows(C, 1, kStates);
  p.A = {(int64_t)(intptr_t)A, kF32, {0, kStates, 1, 0, 0}};
  p.D_skip = {(int64_t)(intptr_t)D, kF32, {0, 1, 0, 0, 0}};
  p.bias = {(int64_t)(intptr_t)bias, kF32, {0, 1, 0, 0, 0}};
  p.states = {(int64_t)(intptr_t)state, kF32, {0, 0, 0, kStates, 1}};
  FwdTask task{};
  task.dn = kChannels, task.tile1 = num_tiles(tokens), task.n1 = kStates;
  kernels_plain()->forward(p, task, scratch);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) return 90;
  const int what = atoi(argv[1]), tokens = atoi(argv[2]);
  if (tokens <= 0 || tokens > kMost || tokens % kTokens) return 91;
  fill(u, kMost * kChannels, -1, 1), fill(delta, kMost * kChannels, 0.01f, 0.1f), fill(z, kMost * kChannels, -1, 1);
  fill(B, kMost * kStates, -1, 1), fill(C, kMost * kStates, -1, 1), fill(A, kStates * kChannels, -16, -1);
  fill(D, kChannels, -1, 1), fill(bias, kChannels, -1, 1);
  if (what < 2) scan(what == 0, tokens);
  else bound_run(what, A, delta, u, B, C, out, tokens / kTokens);
  float sum = 0;
  for (float x : out) sum += x;
  printf("%g\n", (double)sum);  // nothing that was computed is left out by the compiler
}
