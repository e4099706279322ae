// Kernels that do one thing each, for the tests of the emulation itself. kernels.cpp includes them.
#pragma once

#include <stdexcept>
#include <string>

#include "cuda/common.h"

namespace piip {
namespace cuda {
namespace {

struct Offsets {
  int of_lane[32];  // bytes, negative: the lane does nothing
};

template <class P>
__global__ void touch(unsigned char* global, Offsets offsets, emulated::Access kind) {
  extern __shared__ __align__(16) unsigned char shared[];
  const int offset = offsets.of_lane[threadIdx.x];
  if (offset < 0) return;
  P* in_global = reinterpret_cast<P*>(global + offset);
  P* in_shared = reinterpret_cast<P*>(shared + offset);
  P x{};
  switch (kind) {
    case emulated::Access::read_global: x = read_global(in_global); break;
    case emulated::Access::write_global: write_global(in_global, x); break;
    case emulated::Access::read_shared: x = read_shared(in_shared); break;
    case emulated::Access::write_shared: write_shared(in_shared, x); break;
    case emulated::Access::add_global:
      if constexpr (std::is_same_v<P, float> || std::is_same_v<P, unsigned long long>) add_global(in_global, x);
#if __CUDA_ARCH__ >= 900
      if constexpr (std::is_same_v<P, float4>) add_global(in_global, x);
#endif
      break;
  }
}

// out: [call][lane].
__global__ void call_warp(int* out, int width) {
  const int lane = int(threadIdx.x), value = 100 + lane;
  out[lane] = __shfl_sync(0xffffffffu, value, 3, width);
  out[32 + lane] = __shfl_xor_sync(0xffffffffu, value, width / 2, width);
  out[64 + lane] = __shfl_down_sync(0xffffffffu, value, 2, width);
  out[96 + lane] = __shfl_up_sync(0xffffffffu, value, 1, width);
  out[128 + lane] = int(__ballot_sync(0xffffffffu, lane % 3 == 0));
  out[160 + lane] = __any_sync(0xffffffffu, lane == 5) + 2 * __all_sync(0xffffffffu, lane < 31);
  // Halves of the warp that go different ways, and meet within themselves.
  const unsigned half = lane < 16 ? 0xffffu : 0xffff0000u;
  int sum = value;
  if (lane < 16) {
    for (int o = 8; o > 0; o /= 2) sum += __shfl_xor_sync(half, sum, o, 16);
  } else {
    sum = __shfl_sync(half, sum, 16);
  }
  __syncwarp();
  out[192 + lane] = sum;
}

// Every thread of every block writes its own number; static and dynamic shared memory turn the block around.
__global__ void number_threads(int* out) {
  extern __shared__ __align__(16) unsigned char shared[];
  __shared__ int turned[64];
  int* dynamic = reinterpret_cast<int*>(shared);
  const int block = int((blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x);
  const int size = int(blockDim.x * blockDim.y * blockDim.z);
  const int thread = int((threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x);
  write_shared(&turned[size - 1 - thread], thread);
  __syncthreads();
  write_shared(dynamic + thread, read_shared(&turned[thread]));
  __syncthreads();
  out[block * size + thread] = block * size + read_shared(dynamic + size - 1 - thread);
}

// Three blocks add 1, 1e8 and -1e8.
__global__ void sum_blocks(float* out) {
  if (threadIdx.x == 0) atomicAdd(out, blockIdx.x == 0 ? 1.0f : blockIdx.x == 1 ? 1e8f : -1e8f);
}

// Threads read what another one wrote: of the warp (distance 1) or of another warp (32), after they met as `how` says.
__global__ void pass_on(int* out, int distance, int how) {
  extern __shared__ __align__(16) unsigned char shared[];
  int* words = reinterpret_cast<int*>(shared);
  const int thread = int(threadIdx.x);
  write_shared(words + thread, thread);
  if (how == 1) __syncwarp();
  if (how == 2) __syncthreads();
  out[thread] = read_shared(words + (thread ^ distance));
}

// What a GPU would not survive.
__global__ void go_wrong(int how) {
  extern __shared__ __align__(16) unsigned char shared[];
  const unsigned all = 0xffffffffu;
  const int lane = int(threadIdx.x);
  if (how == 0 && lane < 7) __syncwarp();
  if (how == 0 && lane >= 7) __syncthreads();
  if (how == 1 && lane < 7) __shfl_sync(all, lane, 0);
  if (how == 1 && lane >= 7) __ballot_sync(all, lane);
  if (how == 2) __shfl_sync(1u << lane, lane, 0);
  if (how == 3) __syncwarp(2u << lane);
  if (how == 4) shared[1024] = 1;
  if (how == 5) atomicAdd(reinterpret_cast<float*>(shared + 2), 1.0f);
}

template <class... Parameters, class... Arguments>
const char* probe(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t bytes, const Arguments&... arguments) {
  static std::string text;
  cudaLaunchConfig_t config{};
  config.gridDim = grid, config.blockDim = block, config.dynamicSmemBytes = bytes;
  try {
    const cudaError_t error = cudaLaunchKernelEx(&config, kernel, arguments...);
    text = error == cudaSuccess ? "" : cudaGetErrorString(error);
  } catch (const std::runtime_error& error) {
    text = error.what();
  }
  return text.c_str();
}

}  // namespace
}  // namespace cuda
}  // namespace piip

// Each returns what went wrong, or nothing.
#define EXPORTED extern "C" __attribute__((visibility("default")))

EXPORTED const char* emulated_touch(unsigned char* global, const int* offsets, int kind, const char* type) {
  using namespace piip::cuda;
  Offsets o;
  memcpy(o.of_lane, offsets, sizeof(o));
  const std::string name = type;
  const auto with = [&](auto kernel) {
    return probe(kernel, 1, 32, 32 * 1024, global, o, static_cast<emulated::Access>(kind));
  };
  if (name == "ushort") return with(touch<unsigned short>);
  if (name == "int") return with(touch<int>);
  if (name == "float") return with(touch<float>);
  if (name == "float2") return with(touch<float2>);
  if (name == "float4") return with(touch<float4>);
  if (name == "ulonglong") return with(touch<unsigned long long>);
  return with(touch<piip::cuda::Pack<float, 8>>);
}

EXPORTED const char* emulated_call_warp(int* out, int width) {
  return piip::cuda::probe(piip::cuda::call_warp, 1, 32, 0, out, width);
}

EXPORTED const char* emulated_number_threads(int* out, const unsigned* grid, const unsigned* block, int bytes,
                                             bool ask) {
  using namespace piip::cuda;
  if (ask) {
    const cudaError_t error = cudaFuncSetAttribute(number_threads, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    if (error != cudaSuccess) return cudaGetErrorString(error);
  }
  return probe(number_threads, dim3(grid[0], grid[1], grid[2]), dim3(block[0], block[1], block[2]), size_t(bytes), out);
}

EXPORTED const char* emulated_sum_blocks(float* out) {
  return piip::cuda::probe(piip::cuda::sum_blocks, 3, 32, 0, out);
}

EXPORTED const char* emulated_pass_on(int* out, int distance, int how) {
  return piip::cuda::probe(piip::cuda::pass_on, 2, 64, 256, out, distance, how);
}

EXPORTED const char* emulated_go_wrong(int how) { return piip::cuda::probe(piip::cuda::go_wrong, 1, 32, 1024, how); }
#undef EXPORTED
