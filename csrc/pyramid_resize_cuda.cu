// Pyramid resizing on CUDA: one launch for all levels of up to kImages images.
//
// The forward gives a thread one output pixel of all channels; taps are computed on the spot. The backward gives a
// thread one input pixel and collects from the output pixels that used it: no atomics, hence deterministic.
#include "cuda_common.h"
#include "cuda_ops.h"

namespace piip {
namespace cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kImages = 64;

// The problem for the images [first, first + count), with everything the device reads inside the kernel's arguments.
struct Slice {
  PyramidResize a;
  int64_t first, count;
  int64_t begin[kMaxPyramidLevels + 1];  // of each level among the output pixels
  int valid[kImages][2];
};

template <class T>
__device__ __forceinline__ T source_pixel(const Slice& p, int64_t image, int c, int y, int x) {
  const PyramidResize& a = p.a;
  const int* valid = p.valid[image - p.first];
  if (a.has_valid && (y >= valid[0] || x >= valid[1])) return T(0);
  const int64_t at = a.channels_last ? ((image * a.height + y) * a.width + x) * a.channels + c
                                     : ((image * a.channels + c) * a.height + y) * a.width + x;
  const T raw = read<T>(a.images, at, a.image_dtype);
  return a.normalize ? (raw - T(a.mean[c])) * T(a.scale[c]) : raw;
}

template <class T>
__global__ void forward(const __grid_constant__ Slice p) {
  const PyramidResize& a = p.a;
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= p.begin[a.level_count]) return;
  int l = 0;
  while (i >= p.begin[l + 1]) ++l;
  const PyramidLevel& level = a.levels[l];
  const int64_t pixels = int64_t(level.height) * level.width, within = i - p.begin[l];
  const int64_t image = p.first + within / pixels, pixel = within % pixels;
  const int y = int(pixel / level.width), x = int(pixel % level.width);
  const Axis<T> axis_y = make_axis<T>(a.height, level.height, level.factor_y, a.filter, a.antialias);
  const Axis<T> axis_x = make_axis<T>(a.width, level.width, level.factor_x, a.filter, a.antialias);
  const Taps<T> taps_y = find_taps(axis_y, y), taps_x = find_taps(axis_x, x);
  for (int c = 0; c < a.channels; ++c) {
    T sum = 0;
    for (int j = 0; j < taps_y.count; ++j) {
      const int source_y = clamp_index(taps_y.first + j, a.height);
      T row = 0;
      for (int k = 0; k < taps_x.count; ++k)
        row += tap_weight(axis_x, taps_x, k) *
               source_pixel<T>(p, image, c, source_y, clamp_index(taps_x.first + k, a.width));
      sum += tap_weight(axis_y, taps_y, j) * row;
    }
    write(level.data, (image * a.channels + c) * pixels + pixel, a.level_dtype, sum);
  }
}

// How much output `i` of the axis takes from input `at`.
template <class T>
__device__ T influence(const Axis<T>& axis, int i, int at) {
  const Taps<T> taps = find_taps(axis, i);
  T sum = 0;
  for (int k = 0; k < taps.count; ++k)
    if (clamp_index(taps.first + k, axis.in) == at) sum += tap_weight(axis, taps, k);
  return sum;
}

// Outputs that can take from input `at` lie in [first, last]; a few more are included.
template <class T>
__device__ void reach(const Axis<T>& axis, int at, int& first, int& last) {
  if (is_copy(axis)) {
    first = last = at;
    return;
  }
  const T radius = T(axis.filter == Filter::bicubic ? 3 : 2) * (axis.antialias && axis.step > T(1) ? axis.step : T(1));
  first = clamp_index(int(floor((T(at) + T(0.5) - radius) / axis.step)) - 1, axis.out);
  last = clamp_index(int(ceil((T(at) + T(0.5) + radius) / axis.step)) + 1, axis.out);
}

template <class T>
__global__ void backward(const __grid_constant__ Slice p) {
  const PyramidResize& a = p.a;
  const int64_t pixels = int64_t(a.height) * a.width;
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= p.count * a.channels * pixels) return;
  const int64_t plane = p.first * a.channels + i / pixels, pixel = i % pixels, image = plane / a.channels;
  const int y = int(pixel / a.width), x = int(pixel % a.width);
  const int* valid = p.valid[image - p.first];
  T sum = 0;
  if (!a.has_valid || (y < valid[0] && x < valid[1])) {
    for (int l = 0; l < a.level_count; ++l) {
      const PyramidLevel& level = a.levels[l];
      const Axis<T> axis_y = make_axis<T>(a.height, level.height, level.factor_y, a.filter, a.antialias);
      const Axis<T> axis_x = make_axis<T>(a.width, level.width, level.factor_x, a.filter, a.antialias);
      int first_y, last_y, first_x, last_x;
      reach(axis_y, y, first_y, last_y);
      reach(axis_x, x, first_x, last_x);
      for (int oy = first_y; oy <= last_y; ++oy) {
        const T wy = influence(axis_y, oy, y);
        if (wy == T(0)) continue;
        T row = 0;
        for (int ox = first_x; ox <= last_x; ++ox) {
          const T wx = influence(axis_x, ox, x);
          if (wx != T(0))
            row += wx * read<T>(level.data, (plane * level.height + oy) * level.width + ox, a.level_dtype);
        }
        sum += wy * row;
      }
    }
  }
  write(a.images, plane * pixels + pixel, a.image_dtype, sum * T(a.scale[plane % a.channels]));
}

void run(const PyramidResize& a, bool is_backward, int device, uintptr_t stream) {
  const DeviceGuard guard(device);
  const int64_t step = a.has_valid ? kImages : a.batch;
  for (int64_t first = 0; first < a.batch; first += step) {
    Slice p{};
    p.a = a;
    p.first = first;
    p.count = a.batch - first < step ? a.batch - first : step;
    for (int l = 0; l < a.level_count; ++l)
      p.begin[l + 1] = p.begin[l] + p.count * a.levels[l].height * a.levels[l].width;
    for (int64_t b = 0; a.has_valid && b < p.count; ++b) {
      p.valid[b][0] = int(a.valid[2 * (first + b)]);
      p.valid[b][1] = int(a.valid[2 * (first + b) + 1]);
    }
    const int64_t work = is_backward ? p.count * a.channels * a.height * a.width : p.begin[a.level_count];
    const int64_t blocks = (work + kThreads - 1) / kThreads;
    if (blocks > 0x7fffffff) throw std::runtime_error("piip: pyramid_resize on CUDA takes fewer pixels in one call");
    const bool wide = a.image_dtype == Dtype::f64;
    if (is_backward) {
      launch("pyramid_resize_backward", wide ? backward<double> : backward<float>, blocks, kThreads, 0, stream, p);
    } else {
      launch("pyramid_resize_forward", wide ? forward<double> : forward<float>, blocks, kThreads, 0, stream, p);
    }
  }
}

}  // namespace

void pyramid_resize_forward(const PyramidResize& a, int device, uintptr_t stream) { run(a, false, device, stream); }
void pyramid_resize_backward(const PyramidResize& a, int device, uintptr_t stream) { run(a, true, device, stream); }

}  // namespace cuda
}  // namespace piip
