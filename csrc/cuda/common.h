// What the CUDA files share: storage types, vector loads, launches that throw.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <math.h>
#include <string.h>

#include <stdexcept>
#include <string>

#include "../common.h"

namespace piip {
namespace cuda {

__device__ __forceinline__ float widen(uint8_t x) { return float(x); }
__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ double widen(double x) { return x; }
__device__ __forceinline__ float widen(Half x) { return __half2float(__ushort_as_half(x.bits)); }
__device__ __forceinline__ float widen(Bfloat x) { return __bfloat162float(__ushort_as_bfloat16(x.bits)); }

template <class S>
__device__ __forceinline__ S narrow(typename Compute<S>::type x) {
  return x;
}
template <>
__device__ __forceinline__ Half narrow<Half>(float x) {
  return {__half_as_ushort(__float2half_rn(x))};
}
template <>
__device__ __forceinline__ Bfloat narrow<Bfloat>(float x) {
  return {__bfloat16_as_ushort(__float2bfloat16_rn(x))};
}

// A kernel's accesses to tensors and to shared memory. On a GPU they are the plain ones; the emulation of tests/ops is
// told of each first and counts them by the `line` that they are written in.
#ifdef PIIP_EMULATED
#define PIIP_ACCESS(kind) emulated::access(emulated::Access::kind, line, p, sizeof(*p))
#else
#define PIIP_ACCESS(kind) static_cast<void>(line)
#endif

template <class P>
__device__ __forceinline__ P read_global(const P* p, int line = __builtin_LINE()) {
  PIIP_ACCESS(read_global);
  return *p;
}

template <class P>
__device__ __forceinline__ void write_global(P* p, const P& x, int line = __builtin_LINE()) {
  PIIP_ACCESS(write_global);
  *p = x;
}

template <class P>
__device__ __forceinline__ P read_shared(const P* p, int line = __builtin_LINE()) {
  PIIP_ACCESS(read_shared);
  return *p;
}

template <class P>
__device__ __forceinline__ void write_shared(P* p, const P& x, int line = __builtin_LINE()) {
  PIIP_ACCESS(write_shared);
  *p = x;
}

// Reductions: *p += x, atomically. P: float, double, unsigned long long, from architecture 9.0 on float2 and float4.
template <class P>
__device__ __forceinline__ void add_global(P* p, P x, int line = __builtin_LINE()) {
  PIIP_ACCESS(add_global);
  atomicAdd(p, x);
}

#undef PIIP_ACCESS

// One element of a tensor whose dtype is known at run time only; for what is read once per sample, not per channel.
template <class T>
__device__ __forceinline__ T read(const void* p, int64_t i, Dtype dtype, int line = __builtin_LINE()) {
  switch (dtype) {
    case Dtype::f16: return T(widen(read_global(static_cast<const Half*>(p) + i, line)));
    case Dtype::bf16: return T(widen(read_global(static_cast<const Bfloat*>(p) + i, line)));
    case Dtype::f64: return T(read_global(static_cast<const double*>(p) + i, line));
    case Dtype::u8: return T(read_global(static_cast<const uint8_t*>(p) + i, line));
    default: return T(read_global(static_cast<const float*>(p) + i, line));
  }
}

template <class T>
__device__ __forceinline__ void write(void* p, int64_t i, Dtype dtype, T x, int line = __builtin_LINE()) {
  switch (dtype) {
    case Dtype::f16: write_global(static_cast<Half*>(p) + i, narrow<Half>(float(x)), line); break;
    case Dtype::bf16: write_global(static_cast<Bfloat*>(p) + i, narrow<Bfloat>(float(x)), line); break;
    case Dtype::f64: write_global(static_cast<double*>(p) + i, double(x), line); break;
    default: write_global(static_cast<float*>(p) + i, float(x), line); break;
  }
}

// V consecutive elements, read and written as one access of at most 16 bytes, or several.
template <class S, int V>
struct alignas(sizeof(S) * V < 16 ? sizeof(S) * V : 16) Pack {
  S items[V];
};

// Throws what CUDA says of a call that failed.
inline void check_cuda(cudaError_t error, const std::string& what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // so that the next call does not report it again
  throw std::runtime_error("piip: " + what + " failed: " + cudaGetErrorString(error));
}

// Makes a device current and, where another one was, that one again. (From CUDA 12 on, cudaSetDevice makes a context.)
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    check_cuda(cudaGetDevice(&before_), "asking for the current CUDA device");
    if (before_ == device) return;
    check_cuda(cudaSetDevice(device), "using CUDA device " + std::to_string(device));
    changed_ = true;
  }
  ~DeviceGuard() {
    if (changed_) cudaSetDevice(before_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int before_ = 0;
  bool changed_ = false;
};

// Launches a grid of blocks; `name` is what a failure is reported with.
template <class... Parameters, class... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), dim3 blocks, int threads, int shared_bytes,
            uintptr_t stream, const Arguments&... arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim = blocks;
  config.blockDim = dim3(unsigned(threads));
  config.dynamicSmemBytes = size_t(shared_bytes);
  config.stream = reinterpret_cast<cudaStream_t>(stream);
  check_cuda(cudaLaunchKernelEx(&config, kernel, arguments...), std::string("launching ") + name);
}

}  // namespace cuda
}  // namespace piip
