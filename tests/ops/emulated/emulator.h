// How kernels are executed on the CPU, for cuda_runtime.h: blocks, warps, barriers, and the counting of accesses.
//
// Blocks run one after the other. The threads of a block are fibers: each runs until it waits for its warp or its
// block, or ends. So a kernel's indices, shuffles, barriers, masks and sums are executed as they are written; what only
// a GPU can show (speed, the memory model) is not.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include <string>

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3() = default;
  dim3(unsigned x_, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulated {

constexpr int kWarp = 32;
constexpr size_t kSharedBytes = 227 * 1024;  // the most that an architecture has

struct Launch {
  uintptr_t kernel;
  dim3 grid, block;
  size_t shared_bytes;
  unsigned char* shared;  // kSharedBytes of them
  void (*body)(const void*);
  const void* arguments;
};

// Throws std::runtime_error where the kernel does what a GPU would not.
void run(const Launch& launch);

// Ends the launch from within a kernel.
[[noreturn]] void fail(const char* what);

void wait_for_block();

// The lanes of a mask meet in the same kind of call; each leaves a word and gets that of the lane `source`.
enum class Meeting { shuffle, vote, barrier };
uint64_t meet(unsigned mask, Meeting kind, uint64_t word, int source);
unsigned ballot(unsigned mask, bool predicate);
int lane();

// A launch's parameters as a GPU finds them in constant memory.
struct Parameters {
  std::string bytes;
  template <class T>
  void add(const T& x) {
    bytes.resize((bytes.size() + alignof(T) - 1) / alignof(T) * alignof(T));
    bytes.append(reinterpret_cast<const char*>(&x), sizeof(T));
  }
};

// Launches are written down and do nothing, for benchmarks/machine_code.py.
inline bool only_recording = false;
void record_launch(uintptr_t kernel, dim3 grid, dim3 block, size_t shared_bytes, const Parameters& parameters);

// The accesses that the hooks of csrc/cuda/common.h report. The lanes of a warp that access in the same line of a
// kernel, each for the n-th time since the warp last met, are taken for one instruction; more than 16 bytes per lane
// are several. This is exact where lanes skip no access of a line, and else merges what they do at different times.
//
// Shared memory has 32 banks of 4 bytes. A warp's access is done in one part up to 4 bytes per lane, in halves of the
// warp at 8 bytes, in quarters at 16. Each part takes as many wavefronts as the busiest bank has different words, at
// best (`ideal`) one.
//
// Global memory moves in sectors of 32 bytes: an access takes as many as it touches, at best the bytes by 32. A
// reduction takes one operation a sector, more where several lanes add to the same word. Other accesses are taken to
// cost a wavefront for each four of the lines of 128 bytes that they touch.
enum class Access { read_global, write_global, read_shared, write_shared, add_global };

// Accesses to the same bytes of shared memory, one of them a write, race where the threads did not meet between.
inline bool counting = false;
void record(Access kind, int line, const void* address, size_t bytes);
inline void access(Access kind, int line, const void* address, size_t bytes) {
  if (counting) record(kind, line, address, bytes);
}

// For the scheduler: accesses of this kernel follow; the lanes of `mask` in the warp of thread `first` met or ended.
void count_kernel(uintptr_t kernel);
void count_until_here(int first, unsigned mask);
void block_met();
int current_thread();

}  // namespace emulated
