// Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
// The block around the scan as an operator of ONNX Runtime, which RegisterCustomOps adds to the options of a session.
//
// ONNX Runtime hands its functions over in a table whose places never change, so neither a header of it is needed to compile
// this file nor a library to link it. Source: onnxruntime_c_api.h at ORT_API_VERSION 17 for the places and for the layout of
// OrtCustomOp.
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <chrono>
#include <mutex>
#include <new>
#include <thread>

#include "tasks.h"

#if defined(_WIN32)
#define VM_EXPORT extern "C" __declspec(dllexport)
#else
#define VM_EXPORT extern "C" __attribute__((visibility("default")))
#endif

struct OrtStatus;  // null for success
extern "C" const char* vmamba_status(int status);  // of api.cpp

namespace vmamba {
namespace {

// Raised whenever a file that was exported before would be misread; onnx_operator.py has the same number.
constexpr int64_t kOperatorVersion = 1;
constexpr uint32_t kApiVersion = 17;  // the first with ParallelFor
constexpr int kLayers = 64;           // operators of a file: each has a name of its own, because it has a body of its own

enum Place : int {
  kCreateStatus = 0,
  kCreateCustomOpDomain = 26,
  kCustomOpDomainAdd = 27,
  kAddCustomOpDomain = 28,
  kGetTensorMutableData = 51,
  kGetTensorElementType = 60,
  kGetDimensionsCount = 61,
  kGetDimensions = 62,
  kGetTensorTypeAndShape = 65,
  kKernelInfoGetAttributeInt64 = 86,
  kKernelContextGetInput = 90,
  kKernelContextGetOutput = 91,
  kReleaseTensorTypeAndShapeInfo = 99,
  kKernelInfoGetAttributeArrayFloat = 162,
  kKernelInfoGetAttributeArrayInt64 = 163,
  kKernelContextParallelFor = 274,
};
constexpr int kInvalidArgument = 2, kFail = 1;       // OrtErrorCode
constexpr int kTypeFloat = 1, kTypeFloat16 = 10;     // ONNXTensorElementDataType
constexpr int kRequired = 0, kOptional = 1;          // OrtCustomOpInputOutputCharacteristic
using Api = const void* const*;
struct ApiBase {
  Api (*get)(uint32_t version);
  const char* (*version)();
};

template <class... Args>
OrtStatus* call(Api api, Place place, Args... args) {
  return ((OrtStatus * (*)(Args...)) api[place])(args...);
}
#define VM_TRY(expression) \
  if (OrtStatus* status_ = (expression)) return status_

OrtStatus* error(Api api, int code, const char* form, ...) {
  char text[400];
  va_list args;
  va_start(args, form);
  vsnprintf(text, sizeof(text), form, args);
  va_end(args);
  return call(api, kCreateStatus, code, (const char*)text);
}

// The operator's inputs are those of the block, as in BlockArgs, in the dtype of the file. A, D and dt_bias are float32 always
// and attributes, as are the orders of the directions: bit 0 for reversed, bit 1 for along columns. x is (B, H, W, D) if one has
// bit 1, else (B, L, D), or (B, L, 2 D) with a gate.
enum Input : int { kX, kXProj, kDtProj, kConvW, kConvB, kInputs };
constexpr const char* kInputNames[kInputs] = {"x", "x_proj", "dt_proj", "conv_w", "conv_b"};
constexpr int64_t kColumns = 2;

// What ONNX Runtime knows as an OrtCustomOp, and behind it what is ours.
struct Operator {
  uint32_t version;
  const void* slots[25];
  char name[24];
  bool half;
};

struct Floats {
  float* data = nullptr;
  size_t count = 0;
  ~Floats() { delete[] data; }
};

struct Kernel {
  Api api;
  int64_t orders[kMaxDirections];
  size_t directions;
  int64_t softplus;
  Floats A, D, dt_bias;          // (K, D, N), (K, D), (K, D)
  std::atomic<int64_t> threads;  // of the session, 0 before the first call
};

struct Value {
  char* data;
  int64_t dtype;
  int64_t sizes[4];
  size_t axes;

  int64_t count() const {
    int64_t n = 1;
    for (size_t i = 0; i < axes; ++i) n *= sizes[i];
    return n;
  }
};

// Rows first, first + step, ... of a value, of one or more axes.
Tensor rows_of(const Value& v, int64_t first = 0, int64_t step = 1) {
  Tensor t = {};
  if (!v.data) return t;
  int64_t stride = 1;
  for (size_t i = v.axes; i-- > 0; stride *= v.sizes[i]) t.s[i] = stride;
  t.dtype = v.dtype;
  t.data = (int64_t)(intptr_t)v.data + first * t.s[0] * (v.dtype == kF32 ? 4 : 2);
  t.s[0] *= step;
  return t;
}

class SessionThreads final : public HostThreads {
 public:
  SessionThreads(Api api, const void* context) : api_(api), context_(context) {}

  void run(int64_t count, TaskFn fn, void* context) override {
    std::atomic<int64_t> called{0};
    Job job = {fn, context, &called};
    ask((size_t)count, (size_t)count, &job, [](void* j, size_t i) {
      static_cast<Job*>(j)->called->fetch_add(1, std::memory_order_relaxed);
      static_cast<Job*>(j)->fn(static_cast<Job*>(j)->context, (int64_t)i);
    });
    if (called.load() == 0) fn(context, 0);  // refused: one call does the work of all
  }

  // How many threads there are. No function tells; but the pool cuts many calls into a part for each thread. The call that
  // comes first waits until the other threads have nothing left to do, and what is then undone is the part of its own thread.
  int64_t count() {
    constexpr size_t calls = 4096;
    struct Probe {
      std::atomic<bool> first{true};
      std::atomic<size_t> done{0};
      size_t by_others = 0;
    } probe;
    ask(calls, 0, &probe, [](void* p, size_t) {
      Probe& probe = *static_cast<Probe*>(p);
      if (!probe.first.exchange(false)) {
        probe.done.fetch_add(1, std::memory_order_relaxed);
        return;
      }
      using Clock = std::chrono::steady_clock;
      Clock::time_point changed = Clock::now();
      while (Clock::now() - changed < std::chrono::milliseconds(1)) {
        std::this_thread::yield();
        const size_t done = probe.done.load(std::memory_order_relaxed);
        if (done != probe.by_others) changed = Clock::now();
        probe.by_others = done;
      }
    });
    const size_t own = calls - probe.by_others;
    const int64_t cores = max64(1, (int64_t)std::thread::hardware_concurrency());
    return max64(1, min64(cores, (int64_t)((calls + own / 2) / own)));
  }

 private:
  struct Job {
    TaskFn fn;
    void* context;
    std::atomic<int64_t>* called;
  };

  void ask(size_t total, size_t parts, void* data, void (*fn)(void*, size_t)) {
    call(api_, kKernelContextParallelFor, context_, fn, total, parts, data);
  }

  Api api_;
  const void* context_;
};

OrtStatus* get_input(Api api, const void* context, int index, Value* v) {
  *v = {};
  const void* value = nullptr;
  VM_TRY(call(api, kKernelContextGetInput, context, (size_t)index, &value));
  if (!value) return nullptr;
  void* info = nullptr;
  VM_TRY(call(api, kGetTensorTypeAndShape, value, &info));
  int type = 0;
  OrtStatus* status = call(api, kGetTensorElementType, (const void*)info, &type);
  if (!status) status = call(api, kGetDimensionsCount, (const void*)info, &v->axes);
  if (!status && v->axes > 4)
    status = error(api, kInvalidArgument, "%s has %zu axes, more than the scan's operator takes (4)", kInputNames[index], v->axes);
  if (!status) status = call(api, kGetDimensions, (const void*)info, (int64_t*)v->sizes, v->axes);
  ((void (*)(void*))api[kReleaseTensorTypeAndShapeInfo])(info);
  if (status) return status;
  v->dtype = type == kTypeFloat ? (int64_t)kF32 : type == kTypeFloat16 ? (int64_t)kF16 : (int64_t)-1;
  return call(api, kGetTensorMutableData, const_cast<void*>(value), (void**)&v->data);
}

OrtStatus* expect(Api api, int index, const Value& v, std::initializer_list<int64_t> sizes) {
  bool right = v.axes == sizes.size();
  size_t i = 0;
  for (int64_t size : sizes) right = right && v.sizes[i++] == size;
  if (right) return nullptr;
  char got[100] = "", want[100] = "";
  for (size_t j = 0, at = 0; j < v.axes; ++j) at += snprintf(got + at, sizeof(got) - at, j ? ", %lld" : "%lld", (long long)v.sizes[j]);
  size_t at = 0;
  for (int64_t size : sizes) at += snprintf(want + at, sizeof(want) - at, at ? ", %lld" : "%lld", (long long)size);
  return error(api, kInvalidArgument, "%s of the scan's operator has the shape (%s), expected (%s): export the model again",
               kInputNames[index], got, want);
}

// The directions of a call that read the tokens in one order of the map: indices first, first + step, ...
struct Group {
  int64_t orders[kMaxDirections];
  int64_t first, step, count;
};

bool pick(const Kernel& k, bool columns, Group* g) {
  *g = {{}, 0, 1, 0};
  for (int64_t i = 0; i < (int64_t)k.directions; ++i) {
    if (((k.orders[i] & kColumns) != 0) != columns) continue;
    if (g->count == 0) g->first = i;
    if (g->count == 1) g->step = i - g->first;
    if (i != g->first + g->count * g->step) return false;
    g->orders[g->count++] = k.orders[i] & 1;
  }
  return true;
}

int run_group(const Kernel& k, const BlockArgs& sizes, const Value* in, const Group& g, const Tensor& x, const Tensor& out) {
  BlockArgs p = sizes;
  p.K = g.count;
  p.Q = in[kXProj].sizes[0] == 1 ? 1 : g.count;
  p.orders = (int64_t)(intptr_t)g.orders;
  const int64_t first = p.Q == 1 ? 0 : g.first;
  p.xz = x;
  p.conv_w = rows_of(in[kConvW], first, g.step);
  p.conv_b = rows_of(in[kConvB], first, g.step);
  p.x_proj = rows_of(in[kXProj], first, g.step);
  p.dt_proj = rows_of(in[kDtProj], first, g.step);
  auto parameter = [&](const Floats& f, int64_t states) -> Tensor {
    const int64_t row = p.D * states;
    return {(int64_t)(intptr_t)(f.data + g.first * row), kF32, {g.step * row, states, 1, 0, 0}};
  };
  p.A = parameter(k.A, p.N);
  p.D_skip = parameter(k.D, 1);
  p.bias = parameter(k.dt_bias, 1);
  p.out = out;
  const float one = 1.0f;  // a tap of every channel that changes nothing
  if (!p.conv_w.data) p.conv_w = {(int64_t)(intptr_t)&one, kF32, {0, 0, 0, 0, 0}};
  return run_block_forward(p);
}

// Scans of a map (B, H, W, D) along its rows and its columns, added: columns are rows of the transposed map.
int run_map(const Kernel& k, const BlockArgs& p, const Value* in, const Value& out, const Group& rows, const Group& columns) {
  const Value& x = in[kX];
  const int64_t B = p.B, H = x.sizes[1], W = x.sizes[2], D = p.D, size = x.dtype == kF32 ? 4 : 2, count = B * H * W * D;
  const bool direct = out.dtype == kF32;  // the output itself can hold the sum along rows
  const int64_t turned = round_up((count * size + 3) / 4, 16), sums = round_up(count, 16);
  Buffer memory(turned + sums + (direct ? 0 : sums), kCallerSlot);
  if (!memory.get()) return kNoMemory;
  char* const xt = (char*)memory.get();
  float* const yc = memory.get() + turned;
  float* const yr = direct ? (float*)out.data : yc + sums;
  const Tensor line = {0, kF32, {H * W * D, D, 1, 0, 0}};
  auto at = [&](void* data, int64_t dtype) {
    Tensor t = line;
    t.data = (int64_t)(intptr_t)data;
    t.dtype = dtype;
    return t;
  };
  if (rows.count) {
    if (int status = run_group(k, p, in, rows, at(x.data, x.dtype), at(yr, kF32))) return status;
  } else {
    memset(yr, 0, sizeof(float) * (size_t)count);
  }
  for_each_task(B * W, p.threads, [&](int64_t i) {
    const int64_t b = i / W, w = i % W;
    for (int64_t h = 0; h < H; ++h)
      memcpy(xt + ((b * W + w) * H + h) * D * size, x.data + ((b * H + h) * W + w) * D * size, (size_t)(D * size));
  });
  if (int status = run_group(k, p, in, columns, at(xt, x.dtype), at(yc, kF32))) return status;
  const Kernels& kernels = *current_kernels();
  for_each_task(B * H, p.threads, [&](int64_t i) {
    const int64_t b = i / H, h = i % H;
    float* const sum = yr + i * W * D;
    for (int64_t w = 0; w < W; ++w) {
      const float* const c = yc + ((b * W + w) * H + h) * D;
      for (int64_t d = 0; d < D; ++d) sum[w * D + d] += c[d];
    }
    if (!direct) kernels.store_rows(at(out.data, out.dtype), i * W * D, D, 1, sum, D, (int)W, (int)D);
  });
  return kOk;
}

OrtStatus* compute(void* self, void* context) {
  Kernel& k = *static_cast<Kernel*>(self);
  Api api = k.api;
  Value in[kInputs];
  for (int i = 0; i < kInputs; ++i) VM_TRY(get_input(api, context, i, &in[i]));
  const Value& x = in[kX];
  Group rows, columns;
  if (!pick(k, false, &rows) || !pick(k, true, &columns))
    return error(api, kInvalidArgument, "the directions of the scan's operator are mixed in a way that it does not know");
  const size_t axes = columns.count ? 4 : 3;
  if (x.axes != axes || in[kXProj].axes != 3 || in[kDtProj].axes != 3)
    return error(api, kInvalidArgument, "the scan's operator got x with %zu axes, x_proj with %zu and dt_proj with %zu: expected "
                 "%zu, 3 and 3", x.axes, in[kXProj].axes, in[kDtProj].axes, axes);
  const int64_t K = (int64_t)k.directions, Q = in[kXProj].sizes[0] == 1 ? 1 : K, D = in[kXProj].sizes[2];
  const int64_t R = in[kDtProj].sizes[2], C = x.sizes[axes - 1], W = in[kConvW].axes == 3 ? in[kConvW].sizes[2] : 1;
  const int64_t N = K * D > 0 ? (int64_t)k.A.count / (K * D) : 0;
  if (K * D * N != (int64_t)k.A.count || K * D != (int64_t)k.D.count || K * D != (int64_t)k.dt_bias.count)
    return error(api, kInvalidArgument, "A, D and dt_bias of the scan's operator have %zu, %zu and %zu values, which do not belong "
                 "to %lld directions of %lld channels: export the model again", k.A.count, k.D.count, k.dt_bias.count, (long long)K,
                 (long long)D);
  VM_TRY(expect(api, kXProj, in[kXProj], {Q, R + 2 * N, D}));
  VM_TRY(expect(api, kDtProj, in[kDtProj], {Q, D, R}));
  if (in[kConvW].data) VM_TRY(expect(api, kConvW, in[kConvW], {Q, D, W}));
  if (in[kConvB].data) VM_TRY(expect(api, kConvB, in[kConvB], {Q, D}));
  if (C != D && (C != 2 * D || axes == 4))
    return error(api, kInvalidArgument, "x of the scan's operator has %lld channels, expected %lld: export the model again",
                 (long long)C, (long long)D);
  if (columns.count && in[kConvW].data) return error(api, kInvalidArgument, "scans along columns take no convolution");

  int64_t sizes[4] = {x.sizes[0], x.sizes[1], x.sizes[2], D};
  if (axes == 3) sizes[2] = D;
  Value out = {nullptr, x.dtype, {sizes[0], sizes[1], sizes[2], sizes[3]}, axes};
  void* value = nullptr;
  VM_TRY(call(api, kKernelContextGetOutput, context, (size_t)0, (const int64_t*)sizes, axes, &value));
  VM_TRY(call(api, kGetTensorMutableData, value, (void**)&out.data));
  if (out.count() == 0) return nullptr;

  SessionThreads threads(api, context);
  if (k.threads.load() == 0) k.threads.store(threads.count());
  BlockArgs p = {};
  p.abi = kAbiVersion;
  p.threads = k.threads.load();
  p.flags = (k.softplus ? kFlagSoftplus : 0) | (C == D ? kFlagNoGate : 0);
  p.B = x.sizes[0];
  p.D = D;
  p.L = axes == 4 ? x.sizes[1] * x.sizes[2] : x.sizes[1];
  p.N = N;
  p.R = R;
  p.W = W;
  const int status = columns.count ? run_map(k, p, in, out, rows, columns)
                                   : run_group(k, p, in, rows, rows_of(x), rows_of(out));
  if (status == kOk) return nullptr;
  return error(api, status == kNoMemory ? kFail : kInvalidArgument, "the scan's operator failed: %s", vmamba_status(status));
}

OrtStatus* get_floats(Api api, const void* info, const char* name, Floats* f) {
  VM_TRY(call(api, kKernelInfoGetAttributeArrayFloat, info, name, (float*)nullptr, &f->count));
  f->data = new (std::nothrow) float[f->count];
  if (!f->data) return error(api, kFail, "no memory for the scan's operator");
  return call(api, kKernelInfoGetAttributeArrayFloat, info, name, f->data, &f->count);
}

OrtStatus* create(const Operator* op, Api api, const void* info, void** out) {
  int64_t version = 0;
  VM_TRY(call(api, kKernelInfoGetAttributeInt64, info, (const char*)"version", &version));
  if (version != kOperatorVersion)
    return error(api, kInvalidArgument, "%s of the file is of version %lld and this library has version %lld: export the model "
                 "again, or leave the library out, the file runs without it", op->name, (long long)version, (long long)kOperatorVersion);
  Kernel* k = new (std::nothrow) Kernel();
  if (!k) return error(api, kFail, "no memory for the scan's operator");
  k->api = api;
  OrtStatus* status = call(api, kKernelInfoGetAttributeArrayInt64, info, (const char*)"orders", (int64_t*)nullptr, &k->directions);
  if (!status && (k->directions < 1 || k->directions > (size_t)kMaxDirections))
    status = error(api, kInvalidArgument, "%s has %zu directions, expected 1 to %d", op->name, k->directions, (int)kMaxDirections);
  if (!status)
    status = call(api, kKernelInfoGetAttributeArrayInt64, info, (const char*)"orders", (int64_t*)k->orders, &k->directions);
  if (!status) status = call(api, kKernelInfoGetAttributeInt64, info, (const char*)"delta_softplus", &k->softplus);
  if (!status) status = get_floats(api, info, "A", &k->A);
  if (!status) status = get_floats(api, info, "D", &k->D);
  if (!status) status = get_floats(api, info, "dt_bias", &k->dt_bias);
  for (size_t i = 0; !status && i < k->directions; ++i)
    if (k->orders[i] < 0 || k->orders[i] > 3)
      status = error(api, kInvalidArgument, "%s has the order %lld, expected 0 to 3: export the model again", op->name,
                     (long long)k->orders[i]);
  if (status) {
    delete k;
    return status;
  }
  *out = k;
  return nullptr;
}

void fill(Operator& op, int layer, bool half) {
  op.version = kApiVersion;
  op.half = half;
  snprintf(op.name, sizeof(op.name), "MambaInner_%d", layer);
  // The slots of OrtCustomOp that are used, by their number from 1 in the order of the header.
  auto set = [&](int slot, auto* function) { op.slots[slot - 1] = (const void*)function; };
  set(2, +[](const Operator* o) -> const char* { return o->name; });
  set(3, +[](const Operator*) -> const char* { return "CPUExecutionProvider"; });
  set(4, +[](const Operator* o, size_t) -> int { return o->half ? kTypeFloat16 : kTypeFloat; });
  set(5, +[](const Operator*) -> size_t { return kInputs; });
  set(6, +[](const Operator* o, size_t) -> int { return o->half ? kTypeFloat16 : kTypeFloat; });
  set(7, +[](const Operator*) -> size_t { return 1; });
  set(9, +[](void* kernel) { delete static_cast<Kernel*>(kernel); });
  set(10, +[](const Operator*, size_t i) -> int { return i >= kConvW ? kOptional : kRequired; });
  set(11, +[](const Operator*, size_t) -> int { return kRequired; });
  set(12, +[](const Operator*, size_t) -> int { return 0; });  // the memory of its execution provider
  set(17, &create);
  set(18, &compute);
  set(20, +[](const Operator*) -> int { return 1; });
  set(21, +[](const Operator*) -> int { return 0x7fffffff; });
}

// Operators and their domain live as long as the process: sessions keep pointers to them.
OrtStatus* domain(Api api, void** out) {
  static std::mutex mutex;
  static void* made = nullptr;
  static Operator operators[2 * kLayers];
  std::lock_guard<std::mutex> lock(mutex);
  if (!made) {
    void* fresh = nullptr;
    VM_TRY(call(api, kCreateCustomOpDomain, (const char*)"vmamba", &fresh));
    for (int i = 0; i < 2 * kLayers; ++i) {
      fill(operators[i], i / 2, i % 2 == 1);
      VM_TRY(call(api, kCustomOpDomainAdd, fresh, (const Operator*)&operators[i]));
    }
    made = fresh;
  }
  *out = made;
  return nullptr;
}

}  // namespace
}  // namespace vmamba

VM_EXPORT int64_t vmamba_operator_version() { return vmamba::kOperatorVersion; }
VM_EXPORT int64_t vmamba_operator_layers() { return vmamba::kLayers; }

// Called by ONNX Runtime's register_custom_ops_library with the options of a session.
VM_EXPORT OrtStatus* RegisterCustomOps(void* options, const void* ort) {
  using namespace vmamba;
  const ApiBase* base = static_cast<const ApiBase*>(ort);
  Api api = base->get(kApiVersion);
  if (!api) {
    api = base->get(1);
    return error(api, kFail, "vmamba's operator needs ONNX Runtime 1.17 or later, this is %s", base->version());
  }
  void* ours = nullptr;
  VM_TRY(domain(api, &ours));
  return call(api, kAddCustomOpDomain, options, ours);
}
