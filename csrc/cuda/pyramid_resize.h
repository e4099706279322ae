// Pyramid resizing on CUDA: what a launch is given, and what a block of the forward works on.
#pragma once

#include <type_traits>

#include "../pyramid_resize.h"
#include "common.h"

namespace piip {
namespace cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kImages = 64;
constexpr int kWarp = 32, kColumns = 2;  // of a thread, a warp apart
constexpr int kTileWidth = kColumns * kWarp, kTileHeight = 32, kTileStep = kThreads / kWarp;
constexpr int kTogether = 3;  // channels that share the taps of a pixel
constexpr int kCopied = 4;    // pixels in a row that are copied at once

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

// What a block works on: kTogether channels, or those that are left, of a tile of a level of an image.
template <class S, bool Last, int N, class T = typename Compute<S>::type>
struct Tile {
  const Slice<T>& p;
  int level = 0, x, y;  // the tile's first pixel
  int channel, last;    // the first one; how many more there are
  int rows, columns;    // of the image proper
  Axis<T> axis_y, axis_x;
  const S* source[kTogether];
  int64_t plane_out;

  __device__ __forceinline__ explicit Tile(const Slice<T>& slice) : p(slice) {
    const PyramidResize& a = p.a;
    while (blockIdx.x >= p.tiles[level + 1]) ++level;
    axis_y = known<N>(p.y[level]), axis_x = known<N>(p.x[level]);
    const unsigned tile = blockIdx.x - p.tiles[level], down = tile / p.tiles_across[level];
    x = int((tile - down * p.tiles_across[level]) * kTileWidth), y = int(down * kTileHeight);
    channel = int(blockIdx.z) * kTogether, last = Last ? kTogether - 1 : a.channels - 1 - channel;
    rows = a.has_valid ? p.valid[blockIdx.y][0] : axis_y.in;
    columns = a.has_valid ? p.valid[blockIdx.y][1] : axis_x.in;
    const int64_t plane = (p.first + blockIdx.y) * a.channels + channel;
    const int64_t pixels = int64_t(axis_y.in) * axis_x.in;
    plane_out = plane * axis_y.out * axis_x.out;
#pragma unroll
    for (int i = 0; i < kTogether; ++i)
      source[i] = static_cast<const S*>(a.images) + plane * pixels + (Last ? i : i > last ? 0 : i * pixels);
  }

  // A channel of a pixel; nothing where the pixel does not count, also where it is no number.
  __device__ __forceinline__ T read(int i, int row, int column, bool counts) const {
    const unsigned at = unsigned(row * axis_x.in + column) * (Last ? kTogether : 1);
    const T value = T(widen(read_global(Last ? source[0] + at + i : source[i] + at)));
    return counts ? value : T(0);
  }

  // Writes K pixels in a row.
  template <int K>
  __device__ __forceinline__ void write(int row, int column, const T (&x)[kTogether][K]) const {
    const auto put = [&](auto* out) {
      using L = std::remove_pointer_t<decltype(out)>;
      out += plane_out + (row * axis_x.out + column);
#pragma unroll
      for (int i = 0; i < kTogether; ++i, out += int64_t(axis_y.out) * axis_x.out) {
        Pack<L, K> packed;
#pragma unroll
        for (int k = 0; k < K; ++k) packed.items[k] = narrow<L>(typename Compute<L>::type(x[i][k]));
        if (i <= last) write_global(reinterpret_cast<Pack<L, K>*>(out), packed);
      }
    };
    void* data = p.a.levels[level].data;
    const Dtype dtype = p.a.level_dtype;
    if (dtype == Dtype::f32) {
      put(static_cast<float*>(data));
    } else if (dtype == Dtype::bf16) {
      put(static_cast<Bfloat*>(data));
    } else if (dtype == Dtype::f16) {
      put(static_cast<Half*>(data));
    } else {
      put(static_cast<double*>(data));
    }
  }
};

}  // namespace
}  // namespace cuda
}  // namespace piip
