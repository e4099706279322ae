// The CUDA implementations. They launch on the given stream of the given device and return at once; a failed launch
// throws std::runtime_error. Nothing here waits for the device, so that the calls can be captured in a graph.
#pragma once

#include <optional>
#include <string>

#include "deform_attn.h"
#include "pyramid_resize.h"

namespace piip {
namespace cuda {

void deform_attn_forward(const DeformAttn& a, int device, uintptr_t stream);
void deform_attn_backward(const DeformAttn& a, int device, uintptr_t stream);
void pyramid_resize_forward(const PyramidResize& a, int device, uintptr_t stream);
void pyramid_resize_backward(const PyramidResize& a, int device, uintptr_t stream);

// Why these kernels cannot run on a device (its architecture, the driver), in CUDA's words; nothing if they can.
std::optional<std::string> problem(int device);

}  // namespace cuda
}  // namespace piip
