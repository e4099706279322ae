// CUDA on the CPU, for tests: what csrc/*_cuda.cu use of the language and its runtime, for a compiler of plain C++.
//
// Blocks run one after the other. The threads of a block are fibers: each runs until it waits for its warp or its
// block, or ends. So a kernel's indices, shuffles, barriers, masks and sums are executed as they are written; what only
// a GPU can show (races, speed, the memory model) is not.
#pragma once

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#include <functional>
#include <memory>
#include <type_traits>
#include <vector>

#define PIIP_EMULATED
#define __CUDA_ARCH__ 900
#define __global__
#define __device__
#define __shared__
#define __grid_constant__
#define __forceinline__ inline
#define __align__(n) __attribute__((aligned(n)))

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3() = default;
  dim3(unsigned count) : x(count) {}
};

inline dim3 threadIdx, blockIdx, blockDim;

namespace emulated {

constexpr int kWarp = 32, kStackBytes = 64 * 1024, kSharedBytes = 48 * 1024;

inline unsigned char* shared_memory;  // kSharedBytes, named by the file with the kernels

[[noreturn]] inline void fail(const char* what) {
  fprintf(stderr, "emulated CUDA: %s\n", what);
  abort();
}

enum class Access { read_global, write_global, read_shared, write_shared, add_global, add_shared };

inline void access(Access, int, const void*, size_t) {}

enum class State { ready, at_warp, at_block, ended };

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[kStackBytes]};
  State state;
};

// The block that runs.
struct Block {
  std::vector<Fiber> fibers;
  std::vector<uint64_t> exchanged;  // two words a thread, in turn, so that one barrier a shuffle is enough
  std::vector<int> turn;            // of each thread
  ucontext_t scheduler;
  int current = 0;
  std::function<void()> body;

  static void start() {
    Block& block = running();
    block.body();
    block.wait(State::ended);
  }
  static Block& running() {
    static Block block;
    return block;
  }

  void wait(State state) {
    Fiber& fiber = fibers[current];
    fiber.state = state;
    swapcontext(&fiber.context, &scheduler);
  }

  // backwards: later threads run first; what a missing barrier leaves unwritten then differs.
  void run(int threads, bool backwards) {
    if (int(fibers.size()) < threads) fibers.resize(threads);
    exchanged.assign(2 * threads, 0);
    turn.assign(threads, 0);
    for (int i = 0; i < threads; ++i) {
      getcontext(&fibers[i].context);
      fibers[i].context.uc_stack.ss_sp = fibers[i].stack.get();
      fibers[i].context.uc_stack.ss_size = kStackBytes;
      fibers[i].context.uc_link = nullptr;
      makecontext(&fibers[i].context, start, 0);
      fibers[i].state = State::ready;
    }
    for (bool any = true; any;) {
      any = false;
      const int warps = (threads + kWarp - 1) / kWarp;
      for (int k = 0; k < warps; ++k) run_warp(kWarp * (backwards ? warps - 1 - k : k), threads, backwards);
      for (int i = 0; i < threads; ++i)
        if (fibers[i].state == State::at_block) fibers[i].state = State::ready, any = true;
    }
  }

  // Until all threads of the warp wait for the block or have ended.
  void run_warp(int first, int threads, bool backwards) {
    const int last = first + kWarp < threads ? first + kWarp : threads;
    for (;;) {
      int shuffling = 0;
      for (int k = first; k < last; ++k) {
        const int i = backwards ? first + last - 1 - k : k;
        if (fibers[i].state == State::ready) {
          current = i;
          threadIdx.x = unsigned(i);
          swapcontext(&scheduler, &fibers[i].context);
        }
        shuffling += fibers[i].state == State::at_warp;
      }
      if (!shuffling) return;
      if (shuffling != kWarp) fail("some lanes of a warp shuffle and others do not");
      for (int i = first; i < last; ++i) fibers[i].state = State::ready;
    }
  }
};

}  // namespace emulated

inline void __syncthreads() { emulated::Block::running().wait(emulated::State::at_block); }

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int distance, int width) {
  emulated::Block& block = emulated::Block::running();
  if (mask != 0xffffffffu || distance >= width) emulated::fail("a shuffle of another kind");
  const int self = block.current, turn = block.turn[self] ^= 1;
  memcpy(&block.exchanged[2 * self + turn], &value, sizeof(T));
  block.wait(emulated::State::at_warp);
  T other;
  memcpy(&other, &block.exchanged[2 * (self ^ distance) + turn], sizeof(T));
  return other;
}

struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

template <class T>
void atomicAdd(T* p, T x) {
  if (reinterpret_cast<uintptr_t>(p) % alignof(T)) emulated::fail("a reduction at an address it cannot have");
  if constexpr (sizeof(T) == 16) {
    p->x += x.x, p->y += x.y, p->z += x.z, p->w += x.w;
  } else if constexpr (std::is_same_v<T, float2>) {
    p->x += x.x, p->y += x.y;
  } else {
    *p += x;
  }
}

inline long long __double2ll_rn(double x) { return llrint(x); }

// The runtime: one device, launches that run at once.
using cudaStream_t = void*;
enum cudaError_t { cudaSuccess, cudaErrorInvalidConfiguration };
inline const char* cudaGetErrorString(cudaError_t) { return "invalid configuration argument"; }
inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
inline cudaError_t cudaSetDevice(int device) { return device ? cudaErrorInvalidConfiguration : cudaSuccess; }

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
};

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  using namespace emulated;
  const int threads = int(config->blockDim.x);
  if (threads < 1 || threads > 1024 || config->gridDim.x < 1 || config->dynamicSmemBytes > kSharedBytes)
    return cudaErrorInvalidConfiguration;
  blockDim = config->blockDim;
  Block& block = Block::running();
  block.body = [&] { kernel(arguments...); };
  for (unsigned i = 0; i < config->gridDim.x; ++i) {
    blockIdx.x = i;
    memset(shared_memory, 0xff, kSharedBytes);  // numbers that are none
    block.run(threads, i % 2);
    for (int k = int(config->dynamicSmemBytes); k < kSharedBytes; ++k)
      if (shared_memory[k] != 0xff) fail("a block wrote behind its shared memory");
  }
  return cudaSuccess;
}
