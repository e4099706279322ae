// Loops over independent tasks, and scratch memory for them.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

#ifdef _OPENMP
#include <omp.h>
#endif
#ifdef __linux__
#include <sys/mman.h>
#endif

namespace piip {

// Calls task(index, slot) for every index in [0, count), slot in [0, threads). Calls with the same slot never overlap.
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
  Scratch() = default;
  explicit Scratch(size_t count) {
    const size_t bytes = (count * sizeof(T) + 63) / 64 * 64;
    memory_.reset(static_cast<T*>(std::aligned_alloc(64, bytes ? bytes : 64)));
    if (!memory_) throw std::bad_alloc();
  }
  T* data() { return memory_.get(); }

 private:
  std::unique_ptr<T, FreeDeleter> memory_;
};

// Asks for large pages inside memory that is about to be written for the first time: the system then maps and clears
// 2 MB at once, which takes a fraction of the time of 512 page faults.
inline void use_large_pages(void* memory, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t kPage = uintptr_t(2) << 20;
  const uintptr_t first = (reinterpret_cast<uintptr_t>(memory) + kPage - 1) / kPage * kPage;
  const uintptr_t last = (reinterpret_cast<uintptr_t>(memory) + uintptr_t(bytes)) / kPage * kPage;
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

}  // namespace piip
