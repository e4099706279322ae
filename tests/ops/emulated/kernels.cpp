// The CUDA kernels as plain C++, and what the bindings want besides.
#include <cuda_runtime.h>

namespace piip {
namespace cuda {
namespace {
alignas(128) thread_local unsigned char shared[emulated::kSharedBytes];
const bool named = (emulated::shared_memory = [] { return shared; }, true);
}  // namespace
}  // namespace cuda
}  // namespace piip

#include "cpu/dispatch.h"
#include "cuda/deform_attn.cu"
#include "probes.h"

namespace piip {
const CpuKernels& cpu_kernels() {
  static const CpuKernels none{};
  return none;
}
}  // namespace piip
