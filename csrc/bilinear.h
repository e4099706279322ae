// Bilinear sampling with zeros outside the map, cell centres at integer coordinates.
#pragma once

#include "common.h"

namespace piip {

// Where a sample lies: its upper left cell (x, y), and the fractions towards the lower right one. `blend` weighs the
// four cells (y, x), (y, x + 1), (y + 1, x) and (y + 1, x + 1) by the fractions.
template <class T>
struct Sample {
  int32_t x, y;
  T fx, fy;
  bool inside;  // false where no cell of the four lies on the map, and for coordinates that are not finite
};

template <class T>
PIIP_HD Sample<T> locate(T x, T y, int width, int height) {
  Sample<T> s;
  s.inside = x > T(-1) && y > T(-1) && x < T(width) && y < T(height);
  x = s.inside ? x : T(0);
  y = s.inside ? y : T(0);
#ifdef __CUDA_ARCH__
  const T left = floor(x), top = floor(y);
  s.x = static_cast<int32_t>(left), s.y = static_cast<int32_t>(top);
  s.fx = x - left, s.fy = y - top;
#else
  // Coordinates above -1: truncation after a shift by one is a floor, without a call that stops vectorisation.
  s.x = static_cast<int32_t>(x + T(1)) - 1;
  s.y = static_cast<int32_t>(y + T(1)) - 1;
  // The shift rounds: a coordinate just below an integer can be taken for it, one cell too far.
  s.x -= T(s.x) > x;
  s.y -= T(s.y) > y;
  s.fx = x - T(s.x);
  s.fy = y - T(s.y);
#endif
  return s;
}

// Derivatives along x and y from the four values v00 (upper left), v01 (upper right), v10, v11.
template <class T>
PIIP_HD T slope_x(T fy, T v00, T v01, T v10, T v11) {
  return (1 - fy) * (v01 - v00) + fy * (v11 - v10);
}

template <class T>
PIIP_HD T slope_y(T fx, T v00, T v01, T v10, T v11) {
  return (1 - fx) * (v10 - v00) + fx * (v11 - v01);
}

template <class T>
PIIP_HD T blend(T fx, T fy, T v00, T v01, T v10, T v11) {
  return (1 - fy) * ((1 - fx) * v00 + fx * v01) + fy * ((1 - fx) * v10 + fx * v11);
}

}  // namespace piip
