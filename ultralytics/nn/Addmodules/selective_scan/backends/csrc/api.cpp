// Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
// The C ABI that cpu.py calls through ctypes: which kernels, which tasks, in what order their results are added.
#include <string.h>

#include <initializer_list>

#include "tasks.h"

#if defined(__x86_64__) || defined(_M_X64)
#if defined(_MSC_VER)
#include <intrin.h>
#else
#include <cpuid.h>
#endif
#endif

#if defined(_WIN32)
#define VM_EXPORT extern "C" __declspec(dllexport)
#else
#define VM_EXPORT extern "C" __attribute__((visibility("default")))
#endif

#define VM_STR2(x) #x
#define VM_STR(x) VM_STR2(x)

namespace vmamba {
namespace {

enum Level : int { kAuto = 0, kPlain = 1, kAvx2 = 2, kAvx512 = 3 };

#if defined(__x86_64__) || defined(_M_X64)
void cpuid(unsigned leaf, unsigned sub, unsigned r[4]) {
#if defined(_MSC_VER)
  int t[4];
  __cpuidex(t, (int)leaf, (int)sub);
  for (int i = 0; i < 4; ++i) r[i] = (unsigned)t[i];
#else
  if (!__get_cpuid_count(leaf, sub, &r[0], &r[1], &r[2], &r[3])) r[0] = r[1] = r[2] = r[3] = 0;
#endif
}

uint64_t enabled_registers() {
#if defined(_MSC_VER)
  return _xgetbv(0);
#else
  unsigned low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return ((uint64_t)high << 32) | low;
#endif
}

int detect() {
  unsigned r[4];
  cpuid(1, 0, r);
  const bool fma = r[2] >> 12 & 1, osxsave = r[2] >> 27 & 1, avx = r[2] >> 28 & 1, f16c = r[2] >> 29 & 1;
  if (!(osxsave && avx && fma && f16c)) return kPlain;
  // The operating system has to save the wide registers too: 0x6 for AVX, 0xe6 for AVX-512.
  const uint64_t saved = enabled_registers();
  if ((saved & 0x6) != 0x6) return kPlain;
  cpuid(7, 0, r);
  if (!(r[1] >> 5 & 1)) return kPlain;
  const bool wide = (r[1] >> 16 & 1) && (r[1] >> 17 & 1) && (r[1] >> 30 & 1) && (r[1] >> 31 & 1);
  return wide && (saved & 0xe6) == 0xe6 ? kAvx512 : kAvx2;
}
#else
int detect() { return kPlain; }
#endif

int best_level() {
  static const int level = detect();
  return level;
}

std::atomic<int> g_forced{kAuto};

const Kernels* table(int level) {
  const Kernels* k = level == kAvx512 ? kernels_avx512() : level == kAvx2 ? kernels_avx2() : nullptr;
  return k ? k : kernels_plain();
}

}  // namespace

const Kernels* current_kernels() {
  const int forced = g_forced.load(std::memory_order_relaxed);
  return table(forced == kAuto ? best_level() : forced);
}

namespace {

template <class Args>
int check(const Args& p) {
  if (p.abi != kAbiVersion) return kBadAbi;
  if (p.B < 0 || p.K < 0 || p.D < 0 || p.L < 0 || p.N < 1 || p.N > kMaxStates || p.threads < 1) return kBadShape;
  if (!known({&p.u, &p.delta, &p.A, &p.Bm, &p.Cm, &p.D_skip, &p.z, &p.bias}) || !wide({&p.states})) return kBadDtype;
  const int64_t* orders = (const int64_t*)(intptr_t)p.orders;
  for (int64_t k = 0; k < p.K; ++k)
    if (orders[k] != 0 && orders[k] != 1) return kBadOrder;
  return kOk;
}

}  // namespace

// Relative times: what a task does once a token whatever its states, and a split scan's first pass.
Split plan_forward(int64_t blocks, int64_t tiles, int64_t N, int64_t threads) {
  Split best;
  double best_cost = (double)ceil_div(blocks, threads);
  if (threads < 2) return best;
  // Only partitions that leave every sum in the order of the undivided kernel.
  const int64_t parts = N % 16 == 0 && N > 16 ? N / 16 : N == 8 || N == 16 ? 2 : 1;
  if (parts > 1) {
    const double cost = (double)ceil_div(blocks * parts, threads) * (1.0 / (double)parts + 0.2);
    if (cost < 0.9 * best_cost) {
      best_cost = cost;
      best.parts = parts;
    }
  }
  if (blocks < threads)
    for (int64_t segs = 2; segs <= min64(threads, tiles / 4); ++segs) {
      const double cost = (double)ceil_div(blocks * (segs - 1), threads) * 0.9 / (double)segs +
                          (double)ceil_div(blocks * segs, threads) / (double)segs;
      if (cost < 0.85 * best_cost) {
        best_cost = cost;
        best.parts = 1;
        best.segs = segs;
      }
    }
  return best;
}

int64_t plan_backward(int64_t blocks, int64_t tiles, int64_t threads) {
  int64_t best = 1;
  if (threads < 2 || blocks >= 4 * threads) return best;
  double best_cost = (double)ceil_div(blocks, threads);
  for (int64_t segs = 2; segs <= min64(threads, tiles / 4); ++segs) {
    const double cost = (double)ceil_div(blocks * (segs - 1), threads) * 0.45 / (double)segs +
                        (double)ceil_div(blocks * segs, threads) / (double)segs;
    if (cost < 0.85 * best_cost) {
      best_cost = cost;
      best = segs;
    }
  }
  return best;
}

namespace {

int run_forward(const ForwardArgs& p) {
  if (int status = check(p)) return status;
  if (p.checkpoints != 1 && p.checkpoints != num_tiles(p.L)) return kBadStates;
  if (p.B * p.K * p.D * p.L == 0) return kOk;
  const Kernels* kernels = current_kernels();
  const int64_t per_group = ceil_div(p.D, kFwdBlock), blocks = p.B * p.K * per_group, tiles = num_tiles(p.L);
  const size_t scratch = kernels->forward_scratch(p.N, 0, 0);
  const Split split = plan_forward(blocks, tiles, p.N, p.threads);
  std::atomic<bool> failed{false};

  auto block_task = [&](int64_t i) {
    FwdTask t = {};
    t.b = i / (p.K * per_group);
    t.k = i / per_group % p.K;
    t.d0 = i % per_group * kFwdBlock;
    t.dn = min64(kFwdBlock, p.D - t.d0);
    t.tile1 = tiles;
    t.n1 = p.N;
    t.segs = 1;
    return t;
  };
  auto run = [&](const FwdTask& t) {
    float* s = thread_scratch(scratch, kTaskSlot);
    if (s) kernels->forward(p, t, s);
    else failed.store(true, std::memory_order_relaxed);
  };

  if (split.segs > 1) {
    const int64_t segs = split.segs, per_state = p.N * kFwdBlock;
    const int64_t per_block = segs * (per_state + kFwdBlock);
    Buffer states(blocks * per_block);
    if (!states.get()) return kNoMemory;
    auto seg_task = [&](int64_t i) {
      FwdTask t = block_task(i / segs);
      t.seg = i % segs;
      t.segs = segs;
      t.tile0 = tiles * t.seg / segs;
      t.tile1 = tiles * (t.seg + 1) / segs;
      t.seg_state = states.get() + i / segs * per_block;
      return t;
    };
    for_each_task(blocks * (segs - 1), p.threads, [&](int64_t i) {
      FwdTask t = seg_task(i / (segs - 1) * segs + i % (segs - 1));
      t.states_only = true;
      run(t);
    });
    for_each_task(blocks * segs, p.threads, [&](int64_t i) { run(seg_task(i)); });
  } else if (split.parts > 1) {
    const int64_t parts = split.parts, rows = tiles * kTile * kFwdBlock, width = ceil_div(p.N, parts);
    Buffer sums(blocks * parts * rows);
    if (!sums.get()) return kNoMemory;
    for_each_task(blocks * parts, p.threads, [&](int64_t i) {
      FwdTask t = block_task(i / parts);
      t.n0 = i % parts * width;
      t.n1 = min64(p.N, t.n0 + width);
      t.partial_y = sums.get() + i * rows;
      run(t);
    });
    const int64_t chunks = max64(1, min64(tiles, ceil_div(4 * p.threads, blocks)));
    for_each_task(blocks * chunks, p.threads, [&](int64_t i) {
      FwdTask t = block_task(i / chunks);
      t.tile0 = tiles * (i % chunks) / chunks;
      t.tile1 = tiles * (i % chunks + 1) / chunks;
      float* y[kMaxStates / 16];
      for (int64_t j = 0; j < parts; ++j) y[j] = sums.get() + (i / chunks * parts + j) * rows;
      float* s = thread_scratch(scratch, kTaskSlot);
      if (s) kernels->forward_finish(p, t, y, parts, s);
      else failed.store(true, std::memory_order_relaxed);
    });
  } else {
    for_each_task(blocks, p.threads, [&](int64_t i) { run(block_task(i)); });
  }
  return failed.load() ? kNoMemory : kOk;
}

float* float_at(const Tensor& t, int64_t offset) { return (float*)(intptr_t)t.data + offset; }

}  // namespace

bool reduce_task_sums(const Kernels& kernels, const float* sums, int64_t B, int64_t K, int64_t Q, int64_t D, int64_t N, int64_t R,
                      int64_t segs, int64_t threads, const Tensor& dA, const Tensor& dD, const Tensor& dbias,
                      const Tensor& ddt_proj) {
  const int64_t per_group = ceil_div(D, kBwdBlock), small = task_sums(N, R), states = (N + 2) * kBwdBlock;
  std::atomic<bool> failed{false};
  auto add_up = [&](int64_t k0, int64_t k1, int64_t block, int64_t from, int64_t to, float* total) {
    for (int64_t j = from; j < to; ++j) {
      double sum = 0.0;
      for (int64_t k = k0; k < k1; ++k)
        for (int64_t b = 0; b < B; ++b)
          for (int64_t s = 0; s < segs; ++s) sum += sums[(((b * K + k) * per_group + block) * segs + s) * small + j];
      total[j] = (float)sum;
    }
  };
  for_each_task(K * per_group, threads, [&](int64_t i) {
    const int64_t k = i / per_group, d0 = i % per_group * kBwdBlock, dn = min64(kBwdBlock, D - d0);
    float* total = thread_scratch((size_t)small, kTaskSlot);
    if (!total) return failed.store(true, std::memory_order_relaxed);
    add_up(k, k + 1, i % per_group, 0, states, total);
    for (int64_t d = 0; d < dn; ++d) {
      for (int64_t n = 0; n < N; ++n)
        *float_at(dA, k * dA.s[0] + (d0 + d) * dA.s[1] + n * dA.s[2]) = total[n * kBwdBlock + d];
      if (dD.data) *float_at(dD, k * dD.s[0] + (d0 + d) * dD.s[1]) = total[N * kBwdBlock + d];
      if (dbias.data) *float_at(dbias, k * dbias.s[0] + (d0 + d) * dbias.s[1]) = total[(N + 1) * kBwdBlock + d];
    }
    if (!ddt_proj.data || k >= Q) return;
    add_up(k, Q == 1 ? K : k + 1, i % per_group, states, small, total);
    kernels.store_rows(ddt_proj, k * ddt_proj.s[0] + d0 * ddt_proj.s[1], ddt_proj.s[2], ddt_proj.s[1], total + states, kBwdBlock,
                       (int)R, (int)dn);
  });
  return !failed.load();
}

namespace {

int run_backward(const BackwardArgs& p) {
  if (int status = check(p)) return status;
  if (p.checkpoints != num_tiles(p.L)) return kBadStates;
  // dA, dD and dbias are written as float32, whatever A, D and bias are
  if (!known({&p.dout, &p.du, &p.ddelta, &p.dB, &p.dC, &p.dz}) || !wide({&p.dA, &p.dD, &p.dbias})) return kBadDtype;
  if (p.B * p.K * p.D * p.L == 0) return kOk;  // the caller zeroes what it allocates for an empty scan
  const Kernels* kernels = current_kernels();
  const int64_t per_group = ceil_div(p.D, kBwdBlock), pairs = p.B * p.K, blocks = pairs * per_group;
  const int64_t tiles = num_tiles(p.L), padded = padded_states(p.N), row_size = p.L * padded;
  const int64_t segs = plan_backward(blocks, tiles, p.threads);
  const size_t scratch = kernels->backward_scratch(p.N, 0, 0);
  std::atomic<bool> failed{false};

  // dA, dD and dbias of every task, added up in one fixed order at the end.
  const int64_t small = task_sums(p.N, 0);
  // dB and dC need a row per token and channel block: hold those of as many (batch, group) pairs as keep the threads
  // busy, at most 12 MB otherwise, and reduce them before the next ones. The order of additions never changes.
  const int64_t pair_size = 2 * per_group * row_size;
  const int64_t wave = min64(pairs, max64(ceil_div(4 * p.threads, per_group * segs), (int64_t)3145728 / pair_size));
  const int64_t carry_state = padded * kBwdBlock, carry_size = segs * (carry_state + kBwdBlock);
  const int64_t sums_size = round_up(blocks * segs * small, 16), rows_size = round_up(wave * pair_size, 16);
  Buffer memory(sums_size + rows_size + (segs > 1 ? blocks * carry_size : 0));
  if (!memory.get()) return kNoMemory;
  float* const sums = memory.get();
  float* const rows = sums + sums_size;
  float* const carries = rows + rows_size;

  auto make_task = [&](int64_t pair0, int64_t i) {
    const int64_t block = pair0 * per_group + i / segs, pair = block / per_group;
    BwdTask t = {};
    t.b = pair / p.K;
    t.k = pair % p.K;
    t.d0 = block % per_group * kBwdBlock;
    t.dn = min64(kBwdBlock, p.D - t.d0);
    t.seg = i % segs;
    t.segs = segs;
    t.tile0 = tiles * t.seg / segs;
    t.tile1 = tiles * (t.seg + 1) / segs;
    t.seg_adjoint = segs > 1 ? carries + block * carry_size : nullptr;
    t.partial_b = rows + ((pair - pair0) * 2 * per_group + block % per_group) * row_size;
    t.partial_c = t.partial_b + per_group * row_size;
    t.dA = sums + (block * segs + t.seg) * small;
    t.dD = t.dA + p.N * kBwdBlock;
    t.dbias = t.dD + kBwdBlock;
    return t;
  };
  auto run = [&](const BwdTask& t) {
    float* s = thread_scratch(scratch, kTaskSlot);
    if (s) kernels->backward(p, t, s);
    else failed.store(true, std::memory_order_relaxed);
  };

  for (int64_t pair0 = 0; pair0 < pairs; pair0 += wave) {
    const int64_t here = min64(wave, pairs - pair0);
    if (segs > 1)
      for_each_task(here * per_group * (segs - 1), p.threads, [&](int64_t i) {
        BwdTask t = make_task(pair0, i / (segs - 1) * segs + i % (segs - 1) + 1);
        t.adjoint_only = true;
        run(t);
      });
    for_each_task(here * per_group * segs, p.threads, [&](int64_t i) { run(make_task(pair0, i)); });
    const int64_t chunks = max64(1, min64(ceil_div(p.L, 4 * kTile), ceil_div(4 * p.threads, here)));
    for_each_task(here * chunks, p.threads, [&](int64_t i) {
      const int64_t pair = pair0 + i / chunks, chunk = i % chunks;
      const int64_t l0 = tiles * chunk / chunks * kTile, l1 = min64(p.L, tiles * (chunk + 1) / chunks * kTile);
      float* s = thread_scratch((size_t)(kTile * padded), kTaskSlot);
      if (!s) return failed.store(true, std::memory_order_relaxed);
      const float* part = rows + i / chunks * pair_size;
      kernels->reduce_rows(p.dB, pair / p.K, pair % p.K, p.N, l0, l1, part, per_group, row_size, s);
      kernels->reduce_rows(p.dC, pair / p.K, pair % p.K, p.N, l0, l1, part + per_group * row_size, per_group, row_size, s);
    });
  }

  if (!reduce_task_sums(*kernels, sums, p.B, p.K, p.K, p.D, p.N, 0, segs, p.threads, p.dA, p.dD, p.dbias, Tensor{}))
    return kNoMemory;
  return failed.load() ? kNoMemory : kOk;
}

}  // namespace
}  // namespace vmamba

using namespace vmamba;

VM_EXPORT int64_t vmamba_abi_version() { return kAbiVersion; }
VM_EXPORT int64_t vmamba_tile() { return kTile; }

// Instruction set in use: 1 plain, 2 AVX2, 3 AVX-512. Setting 0 returns to the best one; a level that this CPU or
// binary lacks is refused with -1 and changes nothing.
VM_EXPORT int vmamba_get_isa() {
  const int forced = g_forced.load();
  return forced == kAuto ? best_level() : forced;
}
VM_EXPORT int vmamba_set_isa(int level) {
  if (level < kAuto || level > best_level()) return -1;
  g_forced.store(level);
  return vmamba_get_isa();
}
// Whether to take the threads of the process' OpenMP runtime (the default) or the library's own; returns what is in use.
VM_EXPORT int vmamba_use_openmp(int on) { return use_openmp(on != 0); }

VM_EXPORT const char* vmamba_isa_name() { return current_kernels()->name; }

VM_EXPORT const char* vmamba_compiler() {
#if defined(__clang__)
  return "clang " VM_STR(__clang_major__) "." VM_STR(__clang_minor__);
#elif defined(__GNUC__)
  return "g++ " VM_STR(__GNUC__) "." VM_STR(__GNUC_MINOR__);
#elif defined(_MSC_VER)
  return "MSVC " VM_STR(_MSC_VER);
#else
  return "an unknown compiler";
#endif
}

VM_EXPORT const char* vmamba_status(int status) {
  switch (status) {
    case kOk: return "ok";
    case kBadAbi: return "argument layout of another version";
    case kBadShape: return "a size is out of range: 1 to 256 states and ranks, 1 to 16 taps and directions";
    case kBadDtype: return "a dtype is not float32, bfloat16 or float16, or a gradient that must be float32 is not";
    case kBadOrder: return "unknown token order (0 forward, 1 reversed)";
    case kNoMemory: return "out of memory";
    case kBadStates: return "wrong number of checkpoints";
    default: return "unknown status";
  }
}

template <class Args, int (*Run)(const Args&)>
static int call(const int64_t* args, int64_t count) {
  if (!args || count != (int64_t)(sizeof(Args) / sizeof(int64_t))) return kBadAbi;
  Args p;
  memcpy(&p, args, sizeof(p));
  return Run(p);
}

VM_EXPORT int vmamba_forward(const int64_t* args, int64_t count) { return call<ForwardArgs, run_forward>(args, count); }
VM_EXPORT int vmamba_backward(const int64_t* args, int64_t count) { return call<BackwardArgs, run_backward>(args, count); }
VM_EXPORT int vmamba_block_forward(const int64_t* args, int64_t count) {
  return call<BlockArgs, run_block_forward>(args, count);
}
VM_EXPORT int vmamba_block_backward(const int64_t* args, int64_t count) {
  return call<BlockGradArgs, run_block_backward>(args, count);
}
VM_EXPORT int vmamba_norm(const int64_t* args, int64_t count) { return call<NormArgs, run_norm>(args, count); }
VM_EXPORT int vmamba_norm_backward(const int64_t* args, int64_t count) {
  return call<NormGradArgs, run_norm_backward>(args, count);
}

VM_EXPORT int vmamba_matmul(const int64_t* args, int64_t count) { return call<MatmulArgs, run_matmul>(args, count); }
