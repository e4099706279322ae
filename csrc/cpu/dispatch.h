// The CPU kernels exist once per instruction set; here the best one that the machine has is chosen at run time.
#pragma once

#include "../ops.def"

namespace piip {

#define PIIP_DECLARE(name, Problem) struct Problem;
PIIP_OPS(PIIP_DECLARE)
#undef PIIP_DECLARE

#define PIIP_DECLARE(name, Problem) void name(const Problem& problem, int threads);
namespace portable {
PIIP_OPS(PIIP_DECLARE)
}
namespace avx2 {
PIIP_OPS(PIIP_DECLARE)
}
namespace avx512 {
PIIP_OPS(PIIP_DECLARE)
}
#undef PIIP_DECLARE

struct CpuKernels {
  const char* instruction_set;
#define PIIP_DECLARE(name, Problem) void (*name)(const Problem& problem, int threads);
  PIIP_OPS(PIIP_DECLARE)
#undef PIIP_DECLARE
};

// The kernels in use: the best of the machine, or those named by the environment variable PIIP_CPU.
// Throws std::invalid_argument for a name that is unknown or that the machine does not have.
const CpuKernels& cpu_kernels();

}  // namespace piip
