// Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
// Threads: those of PyTorch's OpenMP runtime where it is there, else a small pool of sleeping workers, usable from several
// caller threads at once and after fork.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace vmamba {

using TaskFn = void (*)(void* context, int64_t task);

// Calls fn(context, i) for every i in [0, tasks), on the caller and at most threads - 1 workers, each i once and in no
// fixed order. Returns when all are done. fn must not throw. With fewer workers than asked for the work is done anyway.
void parallel_for(int64_t tasks, int64_t threads, TaskFn fn, void* context);

// Threads of a host program that has a pool of its own. While an object lives, parallel_for on the thread that made it asks
// that pool: `run` must call fn(context, i) for every i in [0, count), on any threads, and return when all are done.
class HostThreads {
 public:
  HostThreads();
  virtual ~HostThreads();
  HostThreads(const HostThreads&) = delete;
  HostThreads& operator=(const HostThreads&) = delete;
  virtual void run(int64_t count, TaskFn fn, void* context) = 0;

 private:
  HostThreads* outer_;
};

// Allows or forbids OpenMP's threads for every later call; returns whether they are in use.
bool use_openmp(bool on);

// Scratch memory of the calling thread, at least `floats` long and aligned to 64 bytes, not initialised; null when memory
// is out. A thread has one for the call that it made, another for the task that it runs, and a third for who made the call.
enum Slot : int { kTaskSlot = 0, kCallSlot = 1, kCallerSlot = 2 };
float* thread_scratch(size_t floats, Slot slot);

}  // namespace vmamba
