// Pyramid resizing on CUDA: one launch for all levels of up to kImages images.
//
// In the forward a block makes a tile of one level of one image. Of two taps an axis a thread reads four pixels for
// each of its own; with more, the rows that the tile takes from are resampled across first and kept in shared memory,
// some at a time, then down. A level of the image's own size is copied. The backward, which images rarely need, gives a
// thread one input pixel and collects from the outputs that used it: no atomics, hence deterministic.
#include <algorithm>
#include <type_traits>
#include <utility>

#include "ops.h"
#include "pyramid_resize.h"

namespace piip {
namespace cuda {
namespace {

// A level of the image's own size, K pixels in a row a thread; of bytes whose channels come last they are whole words.
template <int K, class S, bool Last, int N, class T>
__device__ __forceinline__ void copy(const Tile<S, Last, N, T>& t) {
  constexpr int kAcross = kTileWidth / K;
  const int x = t.x + int(threadIdx.x) % kAcross * K, end = min(t.y + kTileHeight, t.axis_y.out);
  for (int y = t.y + int(threadIdx.x) / kAcross; x < t.axis_x.out && y < end; y += kThreads / kAcross) {
    T values[kTogether][K];
    Pack<S, K> words[kTogether];
    if constexpr (K > 1 && Last) {
      const S* row = t.source[0] + unsigned(y * t.axis_x.in + x) * kTogether;
#pragma unroll
      for (int i = 0; i < kTogether; ++i) words[i] = read_global(reinterpret_cast<const Pack<S, K>*>(row) + i);
    }
#pragma unroll
    for (int i = 0; i < kTogether; ++i)
#pragma unroll
      for (int k = 0; k < K; ++k) {
        const bool counts = y < t.rows && x + k < t.columns;
        const int at = k * kTogether + i;
        const T value = K > 1 && Last ? T(widen(words[at / K].items[at % K])) : t.read(i, y, x + k, counts);
        values[i][k] = counts ? (value - t.p.mean[t.channel + i]) * t.p.scale[t.channel + i] : T(0);
      }
    t.write(y, x, values);
  }
}

// Two taps an axis.
template <class S, bool Last, class T>
__device__ __forceinline__ void interpolate(const Tile<S, Last, 2, T>& t) {
  Tap<T> taps_x[kColumns][2];
  const int first_x = t.x + int(threadIdx.x) % kWarp;
#pragma unroll
  for (int i = 0; i < kColumns; ++i) {
    const Taps<T> taps = find_taps(t.axis_x, first_x + i * kWarp);
#pragma unroll
    for (int k = 0; k < 2; ++k) taps_x[i][k] = make_tap(t.axis_x, taps, k, t.columns);
  }
  int y = t.y + int(threadIdx.x) / kWarp;
  for (int step = 0; step < kTileHeight && y < t.axis_y.out; step += kTileStep, y += kTileStep) {
    const Taps<T> taps_y = find_taps(t.axis_y, y);
#pragma unroll
    for (int i = 0; i < kColumns; ++i) {
      const int x = first_x + i * kWarp;
      if (x >= t.axis_x.out) break;
      T sum[kTogether][1] = {}, total = 0;
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const Tap<T> tap_y = make_tap(t.axis_y, taps_y, j, t.rows);
        T across[kTogether] = {}, total_across = 0;
#pragma unroll
        for (int k = 0; k < 2; ++k) {
          const Tap<T>& tap_x = taps_x[i][k];
#pragma unroll
          for (int c = 0; c < kTogether; ++c)
            across[c] += tap_x.weight *
                         t.read(c, tap_y.at, tap_x.at, std::is_same_v<S, uint8_t> || (tap_y.counts && tap_x.counts));
          total_across += tap_x.weight;
        }
#pragma unroll
        for (int c = 0; c < kTogether; ++c) sum[c][0] += tap_y.weight * across[c];
        total += tap_y.weight * total_across;
      }
#pragma unroll
      for (int c = 0; c < kTogether; ++c)
        sum[c][0] = (sum[c][0] - t.p.mean[t.channel + c] * total) * t.p.scale[t.channel + c];
      t.write(y, x, sum);
    }
  }
}

// How much an output of the axis, which has these taps, takes from input `at`.
template <class T>
__device__ T influence(const Axis<T>& axis, const Taps<T>& taps, int at) {
  T sum = 0;
  for (int k = 0; k < taps.count; ++k)
    if (clamp_index(taps.first + k, axis.in) == at) sum += tap_weight(axis, taps, k);
  return sum;
}

// Any number of taps.
template <class S, bool Last, class T>
__device__ __forceinline__ void resample(const Tile<S, Last, 0, T>& t) {
  constexpr int kRows = sizeof(T) == 8 ? 16 : 32;     // of the image, at a time
  constexpr int kStep = kThreads / kTileWidth;        // rows that the block takes at once
  __shared__ T across[kRows][kTogether][kTileWidth];  // resampled in one direction
  __shared__ T down[kTileHeight][kRows];              // what each output row takes from them
  __shared__ Taps<T> taps_y[kTileHeight];
  const int x = int(threadIdx.x) % kTileWidth, first = int(threadIdx.x) / kTileWidth;
  const int heights = min(kTileHeight, t.axis_y.out - t.y);
  const Taps<T> taps_x = find_taps(t.axis_x, min(t.x + x, t.axis_x.out - 1));
  if (int(threadIdx.x) < heights) write_shared(taps_y + threadIdx.x, find_taps(t.axis_y, t.y + int(threadIdx.x)));
  __syncthreads();
  const auto begin_of = [&](const Taps<T>& taps) { return clamp_index(taps.first, t.axis_y.in); };
  const auto end_of = [&](const Taps<T>& taps) { return clamp_index(taps.first + taps.count - 1, t.axis_y.in) + 1; };
  const int end = end_of(read_shared(taps_y + heights - 1));
  T sum[kTileHeight / kStep][kTogether][1] = {};
  for (int begin = begin_of(read_shared(taps_y)); begin < end; begin += kRows) {
    T row[kRows / kStep][kTogether] = {};
    for (int k = 0; k < taps_x.count; ++k) {
      const Tap<T> tap = make_tap(t.axis_x, taps_x, k, t.columns);
#pragma unroll
      for (int i = 0; i < kRows / kStep; ++i) {
        const int y = begin + first + i * kStep;
        const bool counts = tap.counts && y < t.rows && y < end;
#pragma unroll
        for (int c = 0; c < kTogether; ++c) {
          const T value = t.read(c, min(y, end - 1), tap.at, counts);
          row[i][c] += counts ? tap.weight * (value - t.p.mean[t.channel + c]) : T(0);
        }
      }
    }
#pragma unroll
    for (int i = 0; i < kRows / kStep; ++i)
#pragma unroll
      for (int c = 0; c < kTogether; ++c) write_shared(&across[first + i * kStep][c][x], row[i][c]);
    for (int i = int(threadIdx.x); i < heights * kRows; i += kThreads)
      write_shared(&down[i / kRows][i % kRows],
                   influence(t.axis_y, read_shared(taps_y + i / kRows), begin + i % kRows));
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kTileHeight / kStep; ++i) {
      const int y = first + i * kStep;
      if (y >= heights) break;
      const Taps<T> taps = read_shared(taps_y + y);
      for (int r = max(begin_of(taps) - begin, 0); r < min(end_of(taps) - begin, kRows); ++r) {
        const T weight = read_shared(&down[y][r]);
#pragma unroll
        for (int c = 0; c < kTogether; ++c) sum[i][c][0] += weight * read_shared(&across[r][c][x]);
      }
    }
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < kTileHeight / kStep; ++i) {
    const int y = first + i * kStep;
    if (y >= heights || t.x + x >= t.axis_x.out) break;
#pragma unroll
    for (int c = 0; c < kTogether; ++c) sum[i][c][0] *= t.p.scale[t.channel + c];
    t.write(t.y + y, t.x + x, sum[i]);
  }
}

// Blocks of the forward that a multiprocessor can hold at once: what bounds the compiler's registers.
template <class S, int N>
constexpr int kAtOnce = sizeof(S) == 8 ? 2
                        : N            ? 4
                                       : 3;

// S: stored image. Last: three channels, which come last. N: 2 for bilinear without antialiasing; 0 for any filter.
template <class S, bool Last, int N>
__global__ void __launch_bounds__(kThreads, (kAtOnce<S, N>))
    forward(const __grid_constant__ Slice<typename Compute<S>::type> p) {
  using T = typename Compute<S>::type;
  const Tile<S, Last, N, T> tile(p);
  if (is_copy(tile.axis_y) && is_copy(tile.axis_x)) {
    const uintptr_t level = reinterpret_cast<uintptr_t>(p.a.levels[tile.level].data);
    const bool whole = (reinterpret_cast<uintptr_t>(p.a.images) | level) % 16 == 0 && tile.axis_x.out % kCopied == 0;
    if (Last && whole) {
      copy<Last ? kCopied : 1>(tile);
    } else {
      copy<1>(tile);
    }
  } else if constexpr (N == 2) {
    interpolate(tile);
  } else {
    resample(tile);
  }
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
      const T wy = influence(axis_y, find_taps(axis_y, oy), y);
      if (wy == T(0)) continue;
      T row = 0;
      for (int ox = first_x; ox <= last_x; ++ox) {
        const T wx = influence(axis_x, find_taps(axis_x, ox), x);
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
