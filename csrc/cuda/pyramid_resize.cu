// Pyramid resizing on CUDA: one launch for all levels of up to kImages images.
//
// In the forward a block makes a tile of one level of one image, a thread a few pixels of one of its columns: a warp
// writes whole rows, and what depends on the column is computed once. The backward, which images rarely need, gives a
// thread one input pixel and collects from the outputs that used it: no atomics, hence deterministic.
#include <algorithm>
#include <type_traits>
#include <utility>

#include "../pyramid_resize.h"
#include "common.h"
#include "ops.h"

namespace piip {
namespace cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kImages = 64;
constexpr int kWarp = 32, kColumns = 2;  // of a thread, a warp apart
constexpr int kTileWidth = kColumns * kWarp, kTileHeight = 32, kTileStep = kThreads / kWarp;
constexpr int kTogether = 3;  // channels that share the taps of a pixel

// The problem for the images [first, first + count), with everything the device reads inside the kernel's arguments.
template <class T>
struct Slice {
  PyramidResize a;
  int64_t first, count;
  Axis<T> y[kMaxPyramidLevels], x[kMaxPyramidLevels];
  unsigned tiles[kMaxPyramidLevels + 1], tiles_across[kMaxPyramidLevels];  // the first tile of each level; in a row
  T mean[kMaxChannels + kTogether], scale[kMaxChannels + kTogether];
  int valid[kImages][2];
};

// An axis of a level; of its filter what a kernel knows when it is compiled.
template <int N, class T>
__device__ __forceinline__ Axis<T> known(Axis<T> axis) {
  if (N) axis.filter = Filter::bilinear, axis.antialias = false;
  return axis;
}

// One tap of an output pixel on an axis. What is beyond `valid` weighs nothing.
template <class T>
struct Tap {
  int at;
  bool counts;
  T weight;
};

template <class T>
__device__ __forceinline__ Tap<T> make_tap(const Axis<T>& axis, const Taps<T>& taps, int k, int valid) {
  const int at = clamp_index(taps.first + k, axis.in);
  const bool counts = k < taps.count && at < valid;
  return {at, counts, counts ? tap_weight(axis, taps, k) : T(0)};
}

// Runs body(0), ... body(count - 1); N: count, where it is known.
template <int N, class Body>
__device__ __forceinline__ void repeat(int count, const Body& body) {
  if constexpr (N) {
#pragma unroll
    for (int k = 0; k < N; ++k) body(k);
  } else {
    for (int k = 0; k < count; ++k) body(k);
  }
}

// Weighted sums of kTogether channels of a pixel, and of the weights. N: taps an axis, 0 if any. Row and column give a
// tap; offsets are counted in a plane of `width` columns.
template <int N, class S, class T, class Row, class Column>
__device__ __forceinline__ void gather(const S* const (&source)[kTogether], int width, int step, int rows, int columns,
                                       const Row& row, const Column& column, T (&sum)[kTogether], T& total) {
  repeat<N>(rows, [&](int j) {
    const Tap<T> tap_y = row(j);
    T across[kTogether] = {}, total_across = 0;
    repeat<N>(columns, [&](int k) {
      const Tap<T> tap_x = column(k);
      const unsigned at = unsigned((tap_y.at * width + tap_x.at) * step);
#pragma unroll
      for (int i = 0; i < kTogether; ++i) {
        T value = T(widen(read_global(source[i] + at)));
        // What does not count is nothing, also where it is no number.
        if (!std::is_same_v<S, uint8_t> && !(tap_y.counts && tap_x.counts)) value = 0;
        across[i] += tap_x.weight * value;
      }
      total_across += tap_x.weight;
    });
#pragma unroll
    for (int i = 0; i < kTogether; ++i) sum[i] += tap_y.weight * across[i];
    total += tap_y.weight * total_across;
  });
}

// S: stored image. Last: three channels, which come last. N: 2 for bilinear without antialiasing; 0 for any filter.
template <class S, bool Last, int N>
__global__ void __launch_bounds__(kThreads, sizeof(S) == 8 || !N ? 2 : 4)
    forward(const __grid_constant__ Slice<typename Compute<S>::type> p) {
  using T = typename Compute<S>::type;
  const PyramidResize& a = p.a;
  int l = 0;
  while (blockIdx.x >= p.tiles[l + 1]) ++l;
  const Axis<T> axis_y = known<N>(p.y[l]), axis_x = known<N>(p.x[l]);
  const bool copies = is_copy(axis_y) && is_copy(axis_x);
  const unsigned tile = blockIdx.x - p.tiles[l], down = tile / p.tiles_across[l];
  const int first_x = int((tile - down * p.tiles_across[l]) * kTileWidth + threadIdx.x % kWarp);

  // Channels c to c + last of one image.
  const int c = int(blockIdx.z) * kTogether, last = Last ? kTogether - 1 : a.channels - 1 - c;
  const int64_t plane = (p.first + blockIdx.y) * a.channels + c;
  const int64_t pixels = int64_t(axis_y.in) * axis_x.in, pixels_out = int64_t(axis_y.out) * axis_x.out;
  const int64_t plane_out = plane * pixels_out;
  const S* source[kTogether];
#pragma unroll
  for (int i = 0; i < kTogether; ++i)
    source[i] = static_cast<const S*>(a.images) + plane * pixels + (Last ? i : i > last ? 0 : i * pixels);

  const int rows = a.has_valid ? p.valid[blockIdx.y][0] : axis_y.in;
  const int columns = a.has_valid ? p.valid[blockIdx.y][1] : axis_x.in;
  Taps<T> taps_x[kColumns];
  Tap<T> kept[kColumns][N + 1];
#pragma unroll
  for (int i = 0; i < kColumns; ++i) {
    taps_x[i] = find_taps(axis_x, first_x + i * kWarp);
    repeat<N>(0, [&](int k) { kept[i][k] = make_tap(axis_x, taps_x[i], k, columns); });
  }

  int y = int(down * kTileHeight + threadIdx.x / kWarp);
  for (int step = 0; step < kTileHeight && y < axis_y.out; step += kTileStep, y += kTileStep) {
    const Taps<T> taps_y = find_taps(axis_y, y);
#pragma unroll
    for (int i = 0; i < kColumns; ++i) {
      const int x = first_x + i * kWarp;
      if (x >= axis_x.out) break;
      const auto row = [&](int j) { return make_tap(axis_y, taps_y, j, rows); };
      const auto column = [&](int k) { return N ? kept[i][N ? k : 0] : make_tap(axis_x, taps_x[i], k, columns); };
      T sum[kTogether] = {}, total = 0;
      if (copies) {
        gather<1>(source, axis_x.in, Last ? kTogether : 1, 1, 1, row, column, sum, total);
      } else {
        gather<N>(source, axis_x.in, Last ? kTogether : 1, taps_y.count, taps_x[i].count, row, column, sum, total);
      }
      const auto put = [&](auto* level) {
        using L = std::remove_pointer_t<decltype(level)>;
        level += plane_out + (y * axis_x.out + x);
#pragma unroll
        for (int k = 0; k < kTogether; ++k, level += pixels_out) {
          const auto value = typename Compute<L>::type((sum[k] - p.mean[c + k] * total) * p.scale[c + k]);
          if (k <= last) write_global(level, narrow<L>(value));
        }
      };
      switch (a.level_dtype) {
        case Dtype::f16: put(static_cast<Half*>(a.levels[l].data)); break;
        case Dtype::bf16: put(static_cast<Bfloat*>(a.levels[l].data)); break;
        case Dtype::f64: put(static_cast<double*>(a.levels[l].data)); break;
        default: put(static_cast<float*>(a.levels[l].data)); break;
      }
    }
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
__global__ void backward(const __grid_constant__ Slice<T> p) {
  const PyramidResize& a = p.a;
  const int64_t pixels = int64_t(a.height) * a.width;
  const int64_t pixel = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (pixel >= pixels) return;
  const int64_t image = p.first + blockIdx.y;
  const int y = int(pixel / a.width), x = int(pixel - int64_t(y) * a.width);
  const int* valid = p.valid[blockIdx.y];
  const bool inside = !a.has_valid || (y < valid[0] && x < valid[1]);
  const int64_t plane = image * a.channels + blockIdx.z;
  T sum = 0;
  for (int l = 0; inside && l < a.level_count; ++l) {
    const Axis<T>&axis_y = p.y[l], &axis_x = p.x[l];
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
          row += wx * read<T>(a.levels[l].data, (plane * axis_y.out + oy) * axis_x.out + ox, a.level_dtype);
      }
      sum += wy * row;
    }
  }
  write(a.images, plane * pixels + pixel, a.image_dtype, sum * p.scale[blockIdx.z]);
}

// Launches kernel(slice) for all images: grid(tiles) blocks along x and z, along y the images.
template <class T, class Grid>
void launch_slices(const char* name, void (*kernel)(Slice<T>), const PyramidResize& a, Grid grid, uintptr_t stream) {
  Slice<T> p{};
  p.a = a;
  for (int c = 0; c < a.channels; ++c) p.mean[c] = T(a.mean[c]), p.scale[c] = T(a.scale[c]);
  int64_t tiles = 0, most = int64_t(a.height) * a.width * (a.channels_last ? a.channels : 1);  // of a plane
  for (int l = 0; l < a.level_count; ++l) {
    const PyramidLevel& level = a.levels[l];
    most = std::max(most, int64_t(level.height) * level.width);
    p.y[l] = make_axis<T>(a.height, level.height, level.factor_y, a.filter, a.antialias);
    p.x[l] = make_axis<T>(a.width, level.width, level.factor_x, a.filter, a.antialias);
    p.tiles_across[l] = unsigned((int64_t(level.width) + kTileWidth - 1) / kTileWidth);
    tiles += (int64_t(level.height) + kTileHeight - 1) / kTileHeight * p.tiles_across[l];
    p.tiles[l + 1] = unsigned(std::min<int64_t>(tiles, 0xffffffff));
  }
  const auto [blocks, parts] = grid(tiles);
  if (most > 0x7fffffff || std::max<int64_t>(tiles, blocks) > 0x7fffffff)
    throw std::runtime_error("piip: pyramid_resize on CUDA takes images and levels of fewer pixels");
  const int64_t step = a.has_valid ? kImages : 0xffff;  // the most that blockIdx.y takes
  for (p.first = 0; p.first < a.batch; p.first += step) {
    p.count = std::min(step, a.batch - p.first);
    for (int64_t b = 0; a.has_valid && b < p.count; ++b)
      for (int side : {0, 1}) p.valid[b][side] = int(a.valid[2 * (p.first + b) + side]);
    launch(name, kernel, dim3(unsigned(blocks), unsigned(p.count), unsigned(parts)), kThreads, 0, stream, p);
  }
}

template <class S, bool Last = false>
void run_forward(const PyramidResize& a, uintptr_t stream) {
  const bool bilinear = a.filter == Filter::bilinear && !a.antialias;
  const int parts = (a.channels + kTogether - 1) / kTogether;
  launch_slices(
      "pyramid_resize_forward", bilinear ? forward<S, Last, 2> : forward<S, Last, 0>, a,
      [=](int64_t tiles) { return std::pair(tiles, parts); }, stream);
}

template <class T>
void run_backward(const PyramidResize& a, uintptr_t stream) {
  const int64_t blocks = (int64_t(a.height) * a.width + kThreads - 1) / kThreads;
  launch_slices(
      "pyramid_resize_backward", backward<T>, a, [=](int64_t) { return std::pair(blocks, a.channels); }, stream);
}

}  // namespace

void pyramid_resize_forward(const PyramidResize& a, int device, uintptr_t stream) {
  const DeviceGuard guard(device);
  switch (a.image_dtype) {
    case Dtype::u8: return a.channels_last ? run_forward<uint8_t, true>(a, stream) : run_forward<uint8_t>(a, stream);
    case Dtype::f16: return run_forward<Half>(a, stream);
    case Dtype::bf16: return run_forward<Bfloat>(a, stream);
    case Dtype::f64: return run_forward<double>(a, stream);
    default: return run_forward<float>(a, stream);
  }
}

void pyramid_resize_backward(const PyramidResize& a, int device, uintptr_t stream) {
  const DeviceGuard guard(device);
  a.image_dtype == Dtype::f64 ? run_backward<double>(a, stream) : run_backward<float>(a, stream);
}

std::optional<std::string> problem(int device) try {
  const DeviceGuard guard(device);
  cudaFuncAttributes attributes;
  check_cuda(cudaFuncGetAttributes(&attributes, backward<float>), "loading the kernels");
  return std::nullopt;
} catch (const std::runtime_error& error) {
  return error.what();
}

}  // namespace cuda
}  // namespace piip
