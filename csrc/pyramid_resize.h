// Pyramid resizing: the description of a call, and which input pixels an output pixel takes (the coordinate rules of
// F.interpolate).
#pragma once

#include <cmath>

#include "common.h"

namespace piip {

enum class Filter : int { bilinear = 0, bicubic = 1 };

constexpr int kMaxPyramidLevels = 16;
constexpr int kMaxChannels = 16;

struct PyramidLevel {
  void* data;  // (batch, channels, height, width); in the backward the gradient
  int height, width;
  double factor_y, factor_x;  // > 0: step 1 / factor; else step in / out
};

struct PyramidResize {
  void* images;  // (batch, channels, height, width) or channels last; in the backward the gradient to write
  int64_t batch;
  int channels, height, width;
  bool channels_last, antialias, normalize, has_valid;
  Filter filter;
  Dtype image_dtype, level_dtype;
  int level_count;
  PyramidLevel levels[kMaxPyramidLevels];
  double mean[kMaxChannels], scale[kMaxChannels];  // value = (x - mean) * scale
  const int64_t* valid;  // (batch, 2): height and width of the image proper; zeros beyond; in host memory
};

// One axis of one level.
template <class T>
struct Axis {
  int in, out;
  T step;
  Filter filter;
  bool antialias;
};

template <class T>
PIIP_HD Axis<T> make_axis(int in, int out, double factor, Filter filter, bool antialias) {
  return {in, out, factor > 0 ? T(1.0 / factor) : T(in) / T(out), filter, antialias};
}

template <class T>
PIIP_HD bool is_copy(const Axis<T>& axis) {
  return axis.in == axis.out && (axis.step == T(1) || axis.filter == Filter::bilinear || axis.antialias);
}

// Keys' cubic kernel.
template <class T>
PIIP_HD T cubic(T x, T a) {
  x = x < 0 ? -x : x;
  if (x < T(1)) return ((a + 2) * x - (a + 3)) * x * x + 1;
  if (x < T(2)) return (((x - 5) * x + 8) * x - 4) * a;
  return T(0);
}

// The input pixels of an output pixel: `count` taps from `first` on; without antialiasing a tap that falls off the edge
// counts for the edge pixel.
template <class T>
struct Taps {
  int first, count;
  T position;  // without antialiasing the fraction between the two middle taps, with it the centre in pixel edges
  T total;     // antialiasing: sum of the unnormalised weights
};

template <class T>
PIIP_HD T antialias_weight(const Axis<T>& axis, T distance) {
  const T x = axis.step >= T(1) ? distance / axis.step : distance;
  if (axis.filter == Filter::bicubic) return cubic(x, T(-0.5));
  const T size = x < 0 ? -x : x;
  return size < T(1) ? T(1) - size : T(0);
}

template <class T>
PIIP_HD Taps<T> find_taps(const Axis<T>& axis, int i) {
  const bool is_cubic = axis.filter == Filter::bicubic;
  if (is_copy(axis)) return {i, 1, T(0), T(1)};
  if (axis.antialias) {
    const T radius = (is_cubic ? T(2) : T(1)) * (axis.step >= T(1) ? axis.step : T(1));
    const T center = axis.step * (T(i) + T(0.5));
    int first = int(center - radius + T(0.5));
    first = first < 0 ? 0 : first;
    int last = int(center + radius + T(0.5));
    last = last > axis.in ? axis.in : last;
    T total = 0;
    for (int j = first; j < last; ++j) total += antialias_weight(axis, T(j) - center + T(0.5));
    return {first, last - first, center, total};
  }
  // One rounding, as F.interpolate has it on machines with fused multiply-add.
  T at = std::fma(axis.step, T(i) + T(0.5), T(-0.5));
  if (!is_cubic && at < T(0)) at = T(0);
  int cell = int(at) - (at < T(int(at)));
  cell = cell > axis.in - 1 ? axis.in - 1 : cell;
  T fraction = at - T(cell);
  fraction = fraction < T(0) ? T(0) : fraction > T(1) ? T(1) : fraction;
  return is_cubic ? Taps<T>{cell - 1, 4, fraction, T(1)} : Taps<T>{cell, 2, fraction, T(1)};
}

template <class T>
PIIP_HD T tap_weight(const Axis<T>& axis, const Taps<T>& taps, int k) {
  if (is_copy(axis)) return T(1);
  if (axis.antialias) return antialias_weight(axis, T(taps.first + k) - taps.position + T(0.5)) / taps.total;
  if (axis.filter == Filter::bicubic) return cubic(taps.position - T(k - 1), T(-0.75));
  return k ? taps.position : T(1) - taps.position;
}

PIIP_HD int clamp_index(int i, int size) { return i < 0 ? 0 : i >= size ? size - 1 : i; }

}  // namespace piip
