// Loops over independent tasks, and scratch memory for them.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

#ifdef _OPENMP
#include <omp.h>
#endif

namespace piip {

// Calls task(index, slot) for every index in [0, count); calls with one slot in [0, threads) never overlap.
template <class Task>
void parallel_for(int64_t count, int threads, const Task& task) {
#ifdef _OPENMP
  if (threads > 1 && count > 1) {
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
    for (int64_t i = 0; i < count; ++i) task(i, omp_get_thread_num());
    return;
  }
#endif
  for (int64_t i = 0; i < count; ++i) task(i, 0);
}

struct FreeDeleter {
  void operator()(void* p) const { std::free(p); }
};

// `count` uninitialised items at an address divisible by 64. Throws std::bad_alloc.
template <class T>
class Scratch {
 public:
  explicit Scratch(size_t count) {
    const size_t bytes = (count * sizeof(T) + 63) / 64 * 64;
    memory_.reset(static_cast<T*>(std::aligned_alloc(64, bytes ? bytes : 64)));
    if (!memory_) throw std::bad_alloc();
  }
  T* data() { return memory_.get(); }

 private:
  std::unique_ptr<T, FreeDeleter> memory_;
};

}  // namespace piip
