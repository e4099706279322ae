// Deformable attention: the description of a call, which the CPU and the CUDA implementation take.
#pragma once

#include "common.h"

namespace piip {

constexpr int kMaxLevels = 16;
constexpr int kMaxSamples = 512;  // levels times points, on CUDA

// Tensors are contiguous. In raw form `points` are offsets in cells and `weights` are logits; else they are
// locations in [0, 1] and weights, and `reference` is unused.
struct DeformAttn {
  const void* value;      // (batch, cells, heads, width)
  const void* reference;  // (batch or 1, queries, levels or 1, 2), float or double
  const void* points;     // (batch, queries, heads, levels, points, 2)
  const void* weights;    // (batch, queries, heads, levels, points)
  void* out;              // (batch, queries, heads, width)

  const void* grad_out;  // like out
  void* grad_value;      // like value; CUDA accumulates it in Compute<value> and the caller converts
  void* grad_points;
  void* grad_weights;
  // CUDA, deterministic: grad_value holds int64 multiples of 1 / *fixed_point_unit, a number in device memory. Else
  // null.
  const double* fixed_point_unit;

  int64_t batch, cells, queries;
  int heads, width, levels, points_per_level;
  int height_of[kMaxLevels], width_of[kMaxLevels];
  int64_t start_of[kMaxLevels];
  bool raw, reference_per_batch, reference_per_level;
  Dtype value_dtype, point_dtype;
};

// A location in cells, centres at integers: from a reference in [0, 1] and an offset in cells, or from a location in
// [0, 1]. T: a number, or a vector of them.
template <class T>
PIIP_HD T cell_coordinate(bool raw, T reference, T point, T size) {
  return raw ? reference * size + (point - 0.5f) : point * size - 0.5f;
}

}  // namespace piip
