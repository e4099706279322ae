// The CUDA implementations. They launch on the given stream of the given device and return at once; a failed launch
// throws std::runtime_error. Nothing here waits for the device, so that the calls can be captured in a graph.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "../ops.def"

namespace piip {

#define PIIP_DECLARE(name, Problem) struct Problem;
PIIP_OPS(PIIP_DECLARE)
#undef PIIP_DECLARE

namespace cuda {

#define PIIP_DECLARE(name, Problem) void name(const Problem& problem, int device, uintptr_t stream);
PIIP_OPS(PIIP_DECLARE)
#undef PIIP_DECLARE

// Why these kernels cannot run on a device (its architecture, the driver), in CUDA's words; nothing if they can.
std::optional<std::string> problem(int device);

}  // namespace cuda
}  // namespace piip
