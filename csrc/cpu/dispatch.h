// The CPU kernels exist once per instruction set; here the best one that the machine has is chosen at run time.
#pragma once

#include "deform_attn.h"
#include "pyramid_resize.h"

#define PIIP_DECLARE_KERNELS(isa)                                    \
  namespace isa {                                                    \
  void deform_attn_forward(const DeformAttn& a, int threads);        \
  void deform_attn_backward(const DeformAttn& a, int threads);       \
  void pyramid_resize_forward(const PyramidResize& a, int threads);  \
  void pyramid_resize_backward(const PyramidResize& a, int threads); \
  }

namespace piip {

PIIP_DECLARE_KERNELS(portable)
PIIP_DECLARE_KERNELS(avx2)
PIIP_DECLARE_KERNELS(avx512)

struct CpuKernels {
  const char* name;
  void (*deform_attn_forward)(const DeformAttn&, int);
  void (*deform_attn_backward)(const DeformAttn&, int);
  void (*pyramid_resize_forward)(const PyramidResize&, int);
  void (*pyramid_resize_backward)(const PyramidResize&, int);
};

// The instruction set in use: the best of the machine, or the one named by the environment variable PIIP_CPU.
// Throws std::invalid_argument for a name that is unknown or that the machine does not have.
const CpuKernels& cpu_kernels();

}  // namespace piip
