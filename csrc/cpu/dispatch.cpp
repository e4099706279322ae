#include "dispatch.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace piip {
namespace {

#define PIIP_KERNEL(name, Problem) , name
#define PIIP_KERNELS(isa)                          \
  [] {                                             \
    using namespace isa;                           \
    return CpuKernels{#isa PIIP_OPS(PIIP_KERNEL)}; \
  }()

struct Candidate {
  CpuKernels kernels;
  bool available;
};

CpuKernels choose() {
  const Candidate candidates[] = {
#if defined(PIIP_BUILD_AVX512)
      {PIIP_KERNELS(avx512), __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                                 __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                                 __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")},
#endif
#if defined(PIIP_BUILD_AVX2)
      {PIIP_KERNELS(avx2),
       __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")},
#endif
#if defined(PIIP_BUILD_PORTABLE)
      {PIIP_KERNELS(portable), true},
#endif
  };
  const char* wanted = std::getenv("PIIP_CPU");
  for (const Candidate& candidate : candidates)
    if (candidate.available && (!wanted || std::string(wanted) == candidate.kernels.instruction_set))
      return candidate.kernels;
  throw std::invalid_argument(
      "PIIP_CPU=" + std::string(wanted ? wanted : "") +
      " is not an instruction set of this machine and build; valid are portable, avx2, avx512 where present");
}

}  // namespace

const CpuKernels& cpu_kernels() {
  static const CpuKernels kernels = choose();
  return kernels;
}

}  // namespace piip
