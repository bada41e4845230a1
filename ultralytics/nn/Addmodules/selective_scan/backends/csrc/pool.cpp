// Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
#include "pool.h"

#include <stdlib.h>

#include <atomic>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <new>
#include <thread>

#if defined(_WIN32)
#include <malloc.h>
#else
#include <unistd.h>
#endif
#if defined(__x86_64__) || defined(_M_X64)
#include <xmmintrin.h>
#endif

#if defined(__linux__)
// PyTorch's OpenMP runtime, if it is in the process: its threads are already there, and those that wait for PyTorch's next
// operation spin, so that a second set of threads would fight them for the cores (measured: 1.2 times a whole model's time
// on two cores). Weak: without it the pool below does the work.
extern "C" {
__attribute__((weak)) void GOMP_parallel(void (*fn)(void*), void* data, unsigned threads, unsigned flags);
__attribute__((weak)) int omp_in_parallel(void);
}
#define VM_OPENMP 1
#endif

namespace vmamba {
namespace {

// Decaying states end in subnormal numbers, on which x86 takes over a hundred cycles an operation: flush them to zero
// while a task runs and leave the caller's mode as it was.
class FlushSubnormals {
 public:
  FlushSubnormals() {
#if defined(__x86_64__) || defined(_M_X64)
    saved_ = _mm_getcsr();
    _mm_setcsr(saved_ | 0x8040);
#elif defined(__aarch64__) && defined(__GNUC__)
    __asm__ volatile("mrs %0, fpcr" : "=r"(saved_));
    __asm__ volatile("msr fpcr, %0" ::"r"(saved_ | (1ull << 24)));
#endif
  }
  ~FlushSubnormals() {
#if defined(__x86_64__) || defined(_M_X64)
    _mm_setcsr(saved_);
#elif defined(__aarch64__) && defined(__GNUC__)
    __asm__ volatile("msr fpcr, %0" ::"r"(saved_));
#endif
  }
  FlushSubnormals(const FlushSubnormals&) = delete;
  FlushSubnormals& operator=(const FlushSubnormals&) = delete;

 private:
#if defined(__aarch64__)
  uint64_t saved_ = 0;
#else
  unsigned saved_ = 0;
#endif
};

// One parallel_for. It lives on its caller's stack: the caller leaves only after `running` is back at zero.
struct Job {
  TaskFn fn;
  void* context;
  int64_t tasks;
  std::atomic<int64_t> next{0};
  int64_t places = 0;   // workers that may still join; under the pool's mutex, like the two below
  int64_t running = 0;  // workers inside
  Job* link = nullptr;
};

void work(Job& job) {
  FlushSubnormals mode;
  for (int64_t i; (i = job.next.fetch_add(1, std::memory_order_relaxed)) < job.tasks;) job.fn(job.context, i);
}

class Pool {
 public:
  void run(Job& job, int64_t helpers) {
    {
      std::unique_lock<std::mutex> lock(mutex_);
      while (workers_ < helpers) {
        try {
          std::thread([this] { loop(); }).detach();
        } catch (const std::exception&) {
          break;  // no more threads or no memory for one: the caller does what they would have done
        }
        ++workers_;
      }
      job.places = helpers;
      job.link = jobs_;
      jobs_ = &job;
    }
    for (int64_t i = 0; i < helpers; ++i) wake_.notify_one();
    work(job);
    std::unique_lock<std::mutex> lock(mutex_);
    for (Job** p = &jobs_; *p; p = &(*p)->link)
      if (*p == &job) {
        *p = job.link;
        break;
      }
    done_.wait(lock, [&] { return job.running == 0; });
  }

 private:
  Job* open_job() {
    for (Job* j = jobs_; j; j = j->link)
      if (j->places > 0 && j->next.load(std::memory_order_relaxed) < j->tasks) return j;
    return nullptr;
  }

  void loop() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      Job* job = nullptr;
      wake_.wait(lock, [&] { return (job = open_job()) != nullptr; });
      --job->places;
      ++job->running;
      lock.unlock();
      work(*job);
      lock.lock();
      if (--job->running == 0) done_.notify_all();
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_, done_;
  Job* jobs_ = nullptr;
  int64_t workers_ = 0;
};

struct Owner {
  long process;
  Pool pool;
};

long process_id() {
#if defined(_WIN32)
  return 0;  // no fork
#else
  return (long)getpid();
#endif
}

std::atomic<Owner*> g_owner{nullptr};

// After fork the child has none of its parent's threads, and a mutex of theirs may be locked for ever: a child finds
// another process id in the owner and makes its own. Pools are never deleted: workers sleep in them until exit.
Pool* pool() {
  const long id = process_id();
  Owner* seen = g_owner.load(std::memory_order_acquire);
  while (!seen || seen->process != id) {
    Owner* made = new (std::nothrow) Owner;
    if (!made) return nullptr;
    made->process = id;
    if (g_owner.compare_exchange_strong(seen, made, std::memory_order_acq_rel)) return &made->pool;
    delete made;  // another thread was first; this one has no workers yet
  }
  return &seen->pool;
}

thread_local HostThreads* g_host = nullptr;

struct Scratch {
  float* data = nullptr;
  size_t size = 0;
  void release() {
#if defined(_WIN32)
    _aligned_free(data);
#else
    free(data);
#endif
    data = nullptr;
    size = 0;
  }
  ~Scratch() { release(); }
};

#if defined(VM_OPENMP)
std::atomic<bool> g_openmp_allowed{true};

// Not in a child of fork, where OpenMP's threads are gone and a parallel region never ends, and not inside a region.
bool openmp_usable() {
  static const long loaded_by = process_id();
  return g_openmp_allowed.load(std::memory_order_relaxed) && GOMP_parallel && omp_in_parallel && process_id() == loaded_by &&
         !omp_in_parallel();
}
// The process that loads the library is the one whose threads are known.
[[maybe_unused]] const bool g_seen_at_load = openmp_usable();
#endif

}  // namespace

HostThreads::HostThreads() : outer_(g_host) { g_host = this; }
HostThreads::~HostThreads() { g_host = outer_; }

void parallel_for(int64_t tasks, int64_t threads, TaskFn fn, void* context) {
  if (tasks <= 0) return;
  Job job;
  job.fn = fn;
  job.context = context;
  job.tasks = tasks;
  const int64_t helpers = (threads < tasks ? threads : tasks) - 1;
  if (helpers > 0 && g_host) {
    g_host->run(helpers + 1, [](void* j, int64_t) { work(*static_cast<Job*>(j)); }, &job);
    return;
  }
#if defined(VM_OPENMP)
  if (helpers > 0 && openmp_usable()) {
    // Always a full team: libgomp ends the threads that a smaller one leaves over and starts them again for PyTorch's next
    // operation. Those without a task are done at once.
    GOMP_parallel([](void* j) { work(*static_cast<Job*>(j)); }, &job, (unsigned)threads, 0);
    return;
  }
#endif
  Pool* p = helpers > 0 ? pool() : nullptr;
  if (p) p->run(job, helpers);
  else work(job);
}

bool use_openmp(bool on) {
#if defined(VM_OPENMP)
  g_openmp_allowed.store(on);
  return openmp_usable();
#else
  (void)on;
  return false;
#endif
}

float* thread_scratch(size_t floats, Slot slot) {
  static thread_local Scratch slots[3];
  Scratch& scratch = slots[slot];
  if (scratch.size < floats) {
    scratch.release();
    void* p = nullptr;
#if defined(_WIN32)
    p = _aligned_malloc(floats * sizeof(float), 64);
#else
    if (posix_memalign(&p, 64, floats * sizeof(float))) p = nullptr;
#endif
    if (!p) return nullptr;
    scratch.data = (float*)p;
    scratch.size = floats;
  }
  return scratch.data;
}

}  // namespace vmamba
