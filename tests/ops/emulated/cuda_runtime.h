// CUDA on the CPU, for tests: what csrc/cuda/*.cu use of the language and its runtime, for a compiler of plain C++.
//
// EMULATED_ARCHITECTURE is the architecture that the kernels are compiled for, 800 or 900. emulator.h executes them.
#pragma once

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <map>
#include <tuple>
#include <type_traits>

#include "emulator.h"

#define PIIP_EMULATED
#define __CUDA_ARCH__ EMULATED_ARCHITECTURE
#define __global__
#define __host__
#define __device__
// Arrays inside a function become static, and dynamic shared memory an array that kernels.cpp defines by its name,
// `shared`. The former keep what the block before left in them.
#define __shared__ thread_local
#define __grid_constant__
#define __launch_bounds__(...)
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __align__(n) __attribute__((aligned(n)))

// --- vectors ---------------------------------------------------------------------------------------------------------

#define EMULATED_VECTORS(type, name)                                                          \
  struct alignas(2 * sizeof(type)) name##2 { type x, y; };                                    \
  struct alignas(4 * sizeof(type) > 16 ? 16 : 4 * sizeof(type)) name##4 { type x, y, z, w; }; \
  inline name##2 make_##name##2(type x, type y) { return {x, y}; }                            \
  inline name##4 make_##name##4(type x, type y, type z, type w) { return {x, y, z, w}; }
EMULATED_VECTORS(unsigned char, uchar)
EMULATED_VECTORS(short, short)
EMULATED_VECTORS(unsigned short, ushort)
EMULATED_VECTORS(int, int)
EMULATED_VECTORS(unsigned, uint)
EMULATED_VECTORS(float, float)
EMULATED_VECTORS(double, double)
#undef EMULATED_VECTORS

// --- warps and blocks ------------------------------------------------------------------------------------------------

inline void __syncthreads() { emulated::wait_for_block(); }
inline void __syncwarp(unsigned mask = 0xffffffffu) { emulated::meet(mask, emulated::Meeting::barrier, 0, 0); }
inline unsigned __ballot_sync(unsigned mask, int predicate) { return emulated::ballot(mask, predicate); }
inline int __any_sync(unsigned mask, int predicate) { return emulated::ballot(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return emulated::ballot(mask, !predicate) == 0; }

namespace emulated {

template <class T>
T shuffle(unsigned mask, T value, int source, int width) {
  static_assert(sizeof(T) <= sizeof(uint64_t), "a shuffle moves up to 8 bytes");
  if (width < 1 || width > kWarp || (width & (width - 1))) fail("the width of a shuffle is a power of two up to 32");
  uint64_t word = 0;
  memcpy(&word, &value, sizeof(T));
  word = meet(mask, Meeting::shuffle, word, source);
  memcpy(&value, &word, sizeof(T));
  return value;
}

// A source within the lanes of the own part of the warp, `width` of them; else the lane itself.
inline int within(int source, int width) {
  return source >= 0 && source / width == lane() / width && source < kWarp ? source : lane();
}

}  // namespace emulated

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
  return emulated::shuffle(mask, value, emulated::lane() / width * width + (source & (width - 1)), width);
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32) {
  // Lanes of earlier parts can be read, those of later ones not.
  const int source = emulated::lane() ^ bits, last = emulated::lane() / width * width + width - 1;
  return emulated::shuffle(mask, value, source <= last ? source : emulated::lane(), width);
}

template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned distance, int width = 32) {
  return emulated::shuffle(mask, value, emulated::within(emulated::lane() + int(distance), width), width);
}

template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned distance, int width = 32) {
  return emulated::shuffle(mask, value, emulated::within(emulated::lane() - int(distance), width), width);
}

// --- reductions ------------------------------------------------------------------------------------------------------

namespace emulated {

template <class T, class Add>
T add(T* p, Add&& sum) {
  if (reinterpret_cast<uintptr_t>(p) % alignof(T)) fail("a reduction at an address it cannot have");
  const T before = *p;
  *p = sum(before);
  return before;
}

}  // namespace emulated

#define EMULATED_ADD(type)                                  \
  inline type atomicAdd(type* p, type x) {                  \
    return emulated::add(p, [&](type v) { return v + x; }); \
  }
inline int atomicAdd(int* p, int x) {
  return emulated::add(p, [&](int v) { return int(unsigned(v) + unsigned(x)); });  // wraps
}
EMULATED_ADD(unsigned)
EMULATED_ADD(unsigned long long)
EMULATED_ADD(float)
EMULATED_ADD(double)
#undef EMULATED_ADD
#if __CUDA_ARCH__ >= 900
inline float2 atomicAdd(float2* p, float2 x) {
  return emulated::add(p, [&](float2 v) { return make_float2(v.x + x.x, v.y + x.y); });
}
inline float4 atomicAdd(float4* p, float4 x) {
  return emulated::add(p, [&](float4 v) { return make_float4(v.x + x.x, v.y + x.y, v.z + x.z, v.w + x.w); });
}
#endif

// --- arithmetic ------------------------------------------------------------------------------------------------------

namespace emulated {
template <class To, class From>
To bits(From x) {
  static_assert(sizeof(To) == sizeof(From), "the same bits");
  To y;
  memcpy(&y, &x, sizeof(x));
  return y;
}
// Out of range as on a GPU: the nearest that there is, and 0 for no number.
template <class To>
To saturate(double x) {
  constexpr double least = sizeof(To) == 8 ? -0x1p63 : -0x1p31, most = sizeof(To) == 8 ? 0x1p63 : 0x1p31 - 1;
  if (x != x) return 0;
  if (x >= most) return sizeof(To) == 8 ? To(INT64_MAX) : To(INT32_MAX);
  return x <= least ? To(least) : To(x);
}
}  // namespace emulated

template <class T>
T __ldg(const T* p) {
  return *p;
}
inline int __float_as_int(float x) { return emulated::bits<int>(x); }
inline unsigned __float_as_uint(float x) { return emulated::bits<unsigned>(x); }
inline float __int_as_float(int x) { return emulated::bits<float>(x); }
inline float __uint_as_float(unsigned x) { return emulated::bits<float>(x); }
inline long long __double_as_longlong(double x) { return emulated::bits<long long>(x); }
inline double __longlong_as_double(long long x) { return emulated::bits<double>(x); }
inline int __float2int_rn(float x) { return emulated::saturate<int>(rint(double(x))); }
inline int __float2int_rd(float x) { return emulated::saturate<int>(floor(double(x))); }
inline int __float2int_rz(float x) { return emulated::saturate<int>(trunc(double(x))); }
inline long long __float2ll_rn(float x) { return emulated::saturate<long long>(rint(double(x))); }
inline int __double2int_rn(double x) { return emulated::saturate<int>(rint(x)); }
inline int __double2int_rd(double x) { return emulated::saturate<int>(floor(x)); }
inline long long __double2ll_rn(double x) { return emulated::saturate<long long>(rint(x)); }
inline unsigned __umulhi(unsigned x, unsigned y) { return unsigned(uint64_t(x) * y >> 32); }
inline int __mulhi(int x, int y) { return int(int64_t(x) * y >> 32); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline float __expf(float x) { return expf(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __frcp_rn(float x) { return 1 / x; }
inline float __fmaf_rn(float x, float y, float z) { return fmaf(x, y, z); }
inline float __saturatef(float x) { return x > 0 ? x < 1 ? x : 1 : 0; }

#define EMULATED_MIN_MAX(type)                              \
  inline type min(type x, type y) { return y < x ? y : x; } \
  inline type max(type x, type y) { return x < y ? y : x; }
EMULATED_MIN_MAX(int)
EMULATED_MIN_MAX(unsigned)
EMULATED_MIN_MAX(long long)
EMULATED_MIN_MAX(unsigned long long)
#undef EMULATED_MIN_MAX
// A number wins against none.
inline float min(float x, float y) { return fminf(x, y); }
inline float max(float x, float y) { return fmaxf(x, y); }
inline double min(double x, double y) { return fmin(x, y); }
inline double max(double x, double y) { return fmax(x, y); }

// --- the runtime: one device, launches that run at once --------------------------------------------------------------

using cudaStream_t = void*;
enum cudaError_t {
  cudaSuccess,
  cudaErrorInvalidValue,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorInvalidDevice = 101
};
inline const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return "no error";
    case cudaErrorInvalidValue: return "invalid argument";
    case cudaErrorInvalidDevice: return "invalid device ordinal";
    default: return "invalid configuration argument";
  }
}
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
inline cudaError_t cudaSetDevice(int device) { return device ? cudaErrorInvalidDevice : cudaSuccess; }

enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrComputeCapabilityMajor = 75,
  cudaDevAttrComputeCapabilityMinor = 76,
  cudaDevAttrMaxSharedMemoryPerBlockOptin = 97,
};

namespace emulated {
// Code for 8.0 also runs on 8.6 and 8.9, which have the least.
constexpr int kMostShared = (__CUDA_ARCH__ >= 900 ? 227 : 99) * 1024, kGivenShared = 48 * 1024;
inline std::map<const void*, int> shared_limits;  // of the kernels that asked for more
}  // namespace emulated

inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount: *value = 4; return cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor: *value = __CUDA_ARCH__ / 100; return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor: *value = __CUDA_ARCH__ / 10 % 10; return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = emulated::kMostShared; return cudaSuccess;
  }
  return cudaErrorInvalidValue;
}

enum cudaFuncAttribute {
  cudaFuncAttributeMaxDynamicSharedMemorySize = 8,
  cudaFuncAttributePreferredSharedMemoryCarveout
};
template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel kernel, cudaFuncAttribute attribute, int value) {
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
  if (value < 0 || value > emulated::kMostShared) return cudaErrorInvalidValue;
  emulated::shared_limits[reinterpret_cast<const void*>(kernel)] = value;
  return cudaSuccess;
}

struct cudaFuncAttributes {
  size_t sharedSizeBytes, constSizeBytes, localSizeBytes;
  int maxThreadsPerBlock, numRegs, ptxVersion, binaryVersion, cacheModeCA, maxDynamicSharedSizeBytes;
};
template <class Kernel>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, Kernel) {
  *attributes = {};
  attributes->maxThreadsPerBlock = 1024;
  attributes->ptxVersion = attributes->binaryVersion = __CUDA_ARCH__ / 10;
  return cudaSuccess;
}

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
  void* attrs = nullptr;
  unsigned numAttrs = 0;
};

namespace emulated {
inline unsigned char* (*shared_memory)();  // set by the file with the kernels that use it
}

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  const dim3 grid = config->gridDim, block = config->blockDim;
  const uint64_t threads = uint64_t(block.x) * block.y * block.z;
  if (threads < 1 || threads > 1024 || block.z > 64) return cudaErrorInvalidConfiguration;
  if (grid.x < 1 || grid.y < 1 || grid.z < 1) return cudaErrorInvalidConfiguration;
  if (grid.x > 0x7fffffff || grid.y > 0xffff || grid.z > 0xffff) return cudaErrorInvalidConfiguration;
  const void* key = reinterpret_cast<const void*>(kernel);
  const auto limit = emulated::shared_limits.find(key);
  const size_t most = limit == emulated::shared_limits.end() ? emulated::kGivenShared : size_t(limit->second);
  if (config->dynamicSmemBytes > most && config->dynamicSmemBytes > size_t(emulated::kGivenShared))
    return cudaErrorInvalidValue;
  if (emulated::only_recording) {
    emulated::Parameters bytes;
    (bytes.add(Parameters(arguments)), ...);
    emulated::record_launch(reinterpret_cast<uintptr_t>(kernel), grid, block, config->dynamicSmemBytes, bytes);
    return cudaSuccess;
  }
  const auto body = [&] { kernel(arguments...); };
  using Body = decltype(body);
  emulated::run({reinterpret_cast<uintptr_t>(kernel), grid, block, config->dynamicSmemBytes, emulated::shared_memory(),
                 [](const void* b) { (*static_cast<Body*>(b))(); }, &body});
  return cudaSuccess;
}
