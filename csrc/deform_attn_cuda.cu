// Deformable attention on CUDA.
//
// A work item is one head of one query; blockIdx.y is the image, and a block takes some tens of items that follow each
// other. It first prepares all their samples, one lane a sample: softmax by shuffles, then the corners that the sample
// reads and their weights go to shared memory. After that a group of lanes gathers for each item, V channels a lane.
//
// The backward adds the value gradient to memory, which is what bounds it: a GPU adds so many lanes a clock whatever
// their width, so whole rows are laid over the lanes anew, four floats each. Where determinism is asked for, it adds
// fixed-point integers, whose sum does not depend on the order.
#include "bilinear.h"
#include "cuda_common.h"
#include "cuda_ops.h"

namespace piip {
namespace cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kSharedBytes = 48 * 1024;
constexpr int kMostImages = 65535;  // of a launch
constexpr uint32_t kNowhere = 0xffffffffu;

// Division of integers below 2^31 by one that the host knows: Granlund and Montgomery, 1994, figure 4.1.
struct Divisor {
  uint32_t factor, shift;

  explicit Divisor(int divisor) : shift(0) {
    while ((uint64_t(1) << shift) < uint64_t(divisor)) ++shift;
    factor = uint32_t((((uint64_t(1) << shift) - uint64_t(divisor)) << 32) / uint64_t(divisor) + 1);
  }
  __device__ __forceinline__ uint32_t of(uint32_t n) const { return (__umulhi(n, factor) + n) >> shift; }
};

// How items are laid over a block.
struct Plan {
  uint32_t total;     // items of an image
  int first_image;    // of this launch
  int items;          // of a block
  int samples;        // of an item
  int stride;         // from sample to sample in shared memory, in items
  int log_preparing;  // of the lanes that prepare an item: as many as it has samples, 4 to 32
  int lanes;          // that gather an item; in the backward a power of two
  int log_lanes;      // in the backward
  Divisor by_lanes, by_heads, by_points;
  Divisor by_row, by_width;  // lanes that add a row to the value gradient: by vectors, and one a channel
};

// A sample and the rows of its four corners: offsets in elements of the image, kNowhere off the map.
template <class T>
struct Found {
  Sample<T> at;
  int level;
  uint32_t corner[4];
};

template <class T>
__device__ __forceinline__ T share(T fx, T fy, int corner) {
  return (corner & 1 ? fx : T(1) - fx) * (corner & 2 ? fy : T(1) - fy);
}

// Elements of points or weights, which have the dtype of the values or are float.
template <class S>
__device__ __forceinline__ typename Compute<S>::type read_point(const void* p, int64_t i, Dtype dtype) {
  if constexpr (sizeof(S) == 2) {
    if (dtype == Dtype::f32) return read_global(static_cast<const float*>(p) + i);
  }
  return widen(read_global(static_cast<const S*>(p) + i));
}

template <class S>
__device__ __forceinline__ void write_point(void* p, int64_t i, Dtype dtype, typename Compute<S>::type x) {
  if constexpr (sizeof(S) == 2) {
    if (dtype == Dtype::f32) return write_global(static_cast<float*>(p) + i, x);
  }
  write_global(static_cast<S*>(p) + i, narrow<S>(x));
}

template <class S, class T = typename Compute<S>::type>
__device__ __forceinline__ Found<T> find(const DeformAttn& a, const Plan& plan, int64_t image, uint32_t item, int s) {
  const uint32_t query = plan.by_heads.of(item), head = item - query * uint32_t(a.heads);
  const int level = int(plan.by_points.of(uint32_t(s)));
  const int width = a.width_of[level], height = a.height_of[level];
  T rx = 0, ry = 0;
  if (a.raw) {
    int64_t row = (a.reference_per_batch ? image * a.queries : 0) + query;
    if (a.reference_per_level) row = row * a.levels + level;
    rx = read_global(static_cast<const T*>(a.reference) + 2 * row);
    ry = read_global(static_cast<const T*>(a.reference) + 2 * row + 1);
  }
  const int64_t at = 2 * ((image * plan.total + item) * plan.samples + s);
  const T px = read_point<S>(a.points, at, a.point_dtype), py = read_point<S>(a.points, at + 1, a.point_dtype);
  Found<T> f;
  f.level = level;
  f.at = locate(cell_coordinate(a.raw, rx, px, T(width)), cell_coordinate(a.raw, ry, py, T(height)), width, height);
  const bool left = f.at.x >= 0, top = f.at.y >= 0, right = f.at.x + 1 < width, bottom = f.at.y + 1 < height;
  const uint32_t step = uint32_t(a.heads * a.width), down = uint32_t(width) * step;
  // Wraps where x or y is -1, and back where a corner lies on the map.
  const uint32_t corner =
      uint32_t(int(a.start_of[level]) + f.at.y * width + f.at.x) * step + head * uint32_t(a.width);
  f.corner[0] = f.at.inside && left && top ? corner : kNowhere;
  f.corner[1] = f.at.inside && right && top ? corner + step : kNowhere;
  f.corner[2] = f.at.inside && left && bottom ? corner + down : kNowhere;
  f.corner[3] = f.at.inside && right && bottom ? corner + down + step : kNowhere;
  return f;
}

// Calls put(slot, s, found, weight) for all samples of a block's items, spread over the threads. Neighbouring lanes
// hold the samples of an item; the lanes of a warp stay together.
template <class S, class Put>
__device__ __forceinline__ void prepare(const DeformAttn& a, const Plan& plan, int64_t image, uint32_t first, int count,
                                        Put put) {
  using T = typename Compute<S>::type;
  const int preparing = 1 << plan.log_preparing, lane = threadIdx.x & (preparing - 1);
  const int together = 32 >> plan.log_preparing;  // items of a warp
  for (int slot = threadIdx.x >> plan.log_preparing; (slot & -together) < count;
       slot += blockDim.x >> plan.log_preparing) {
    const bool any = slot < count;
    const uint32_t item = first + (any ? slot : 0);
    const int64_t at = (image * plan.total + item) * plan.samples;
    const auto given = [&](int s) { return read_point<S>(a.weights, at + s, a.point_dtype); };
    T mine = lane < plan.samples ? given(lane) : T(-INFINITY), largest = mine, sum = 1;
    if (a.raw) {
      for (int s = lane + preparing; s < plan.samples; s += preparing) {
        const T logit = given(s);
        largest = logit > largest ? logit : largest;
      }
      for (int o = preparing / 2; o > 0; o /= 2) {
        const T other = __shfl_xor_sync(0xffffffffu, largest, o);
        largest = other > largest ? other : largest;
      }
      sum = mine = lane < plan.samples ? exp(mine - largest) : T(0);
      for (int s = lane + preparing; s < plan.samples; s += preparing) sum += exp(given(s) - largest);
      for (int o = preparing / 2; o > 0; o /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, o);
      mine /= sum;
    }
    for (int s = lane; any && s < plan.samples; s += preparing) {
      const T weight = s == lane ? mine : a.raw ? exp(given(s) - largest) / sum : given(s);
      put(slot, s, find<S>(a, plan, image, item, s), weight);
    }
  }
}

template <class T, int V>
__device__ __forceinline__ void unpack(const Pack<T, V>& packed, typename Compute<T>::type (&x)[V]) {
#pragma unroll
  for (int i = 0; i < V; ++i) x[i] = widen(packed.items[i]);
}

// Two bfloat16 of a word are a shift and a mask.
template <int V>
__device__ __forceinline__ void unpack(const Pack<Bfloat, V>& packed, float (&x)[V]) {
  if constexpr (V % 2 == 0) {
    uint32_t words[V / 2];
    memcpy(words, &packed, sizeof(words));
#pragma unroll
    for (int i = 0; i < V / 2; ++i) {
      x[2 * i] = __uint_as_float(words[i] << 16);
      x[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
    }
  } else {
    x[0] = widen(packed.items[0]);
  }
}

template <class S, int V>
__device__ __forceinline__ Pack<S, V> read_row(const S* row, uint32_t corner) {
  return read_global(reinterpret_cast<const Pack<S, V>*>(row + corner));
}

template <class S, int V>
__global__ void __launch_bounds__(kThreads) forward(const __grid_constant__ DeformAttn a, const __grid_constant__ Plan plan) {
  using T = typename Compute<S>::type;
  extern __shared__ __align__(32) unsigned char shared[];
  auto* weights = reinterpret_cast<Pack<T, 4>*>(shared);  // [sample][item], as all of shared memory
  auto* corners = reinterpret_cast<Pack<uint32_t, 4>*>(weights + plan.samples * plan.stride);
  const int64_t image = plan.first_image + blockIdx.y;
  const uint32_t first = blockIdx.x * uint32_t(plan.items), rest = plan.total - first;
  const int count = rest < uint32_t(plan.items) ? int(rest) : plan.items;
  prepare<S>(a, plan, image, first, count, [&](int slot, int s, const Found<T>& f, T weight) {
    Pack<T, 4> w;
    Pack<uint32_t, 4> c;
    // A corner off the map weighs nothing and reads what another corner reads.
    uint32_t on = kNowhere;
#pragma unroll
    for (int k = 0; k < 4; ++k) on = f.corner[k] != kNowhere ? f.corner[k] : on;
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      w.items[k] = f.corner[k] != kNowhere ? weight * share(f.at.fx, f.at.fy, k) : T(0);
      c.items[k] = f.corner[k] != kNowhere ? f.corner[k] : on;
    }
    write_shared(weights + s * plan.stride + slot, w);
    write_shared(corners + s * plan.stride + slot, c);
  });
  __syncthreads();

  const int slot = int(plan.by_lanes.of(threadIdx.x)), lane = int(threadIdx.x) - slot * plan.lanes;
  if (slot >= count) return;
  const S* value = static_cast<const S*>(a.value) + image * a.cells * a.heads * a.width;
  S* out = static_cast<S*>(a.out) + (image * plan.total + first + slot) * a.width;
  for (int d = lane * V; d < a.width; d += plan.lanes * V) {
    T sum[V] = {};
#pragma unroll 4
    for (int s = 0; s < plan.samples; ++s) {
      const Pack<uint32_t, 4> c = read_shared(corners + s * plan.stride + slot);
      if (c.items[0] == kNowhere) continue;
      const Pack<T, 4> w = read_shared(weights + s * plan.stride + slot);
      Pack<S, V> v[4];
#pragma unroll
      for (int k = 0; k < 4; ++k) v[k] = read_row<S, V>(value + d, c.items[k]);
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        T x[V];
        unpack(v[k], x);
#pragma unroll
        for (int i = 0; i < V; ++i) sum[i] += w.items[k] * x[i];
      }
    }
    Pack<S, V> packed;
#pragma unroll
    for (int i = 0; i < V; ++i) packed.items[i] = narrow<S>(sum[i]);
    write_global(reinterpret_cast<Pack<S, V>*>(out + d), packed);
  }
}

// Adds a row's share of lane `lane` to the value gradient: factor times the output gradient `g` of the item. Rows of an
// even width begin at a multiple of two floats: the lane takes four of them at a multiple of four, cut at the row's
// ends.
__device__ __forceinline__ void add_vector(float* row, const float* g, float factor, int lane, int width) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  const int begin = 4 * lane - int(reinterpret_cast<uintptr_t>(row) / sizeof(float) % 4);
  const bool first = begin >= 0, second = begin + 4 <= width;
  const float2 none = make_float2(0, 0);
  const float2 x = first ? read_shared(reinterpret_cast<const float2*>(g + begin)) : none;
  const float2 y = second ? read_shared(reinterpret_cast<const float2*>(g + begin + 2)) : none;
  if (first && second) {
    add_global(reinterpret_cast<float4*>(row + begin), make_float4(factor * x.x, factor * x.y, factor * y.x, factor * y.y));
  } else if (first || second) {
    const float2 only = first ? x : y;
    add_global(reinterpret_cast<float2*>(row + begin + (first ? 0 : 2)), make_float2(factor * only.x, factor * only.y));
  }
#endif
}

// Adds what all samples of a block's items give to the value gradient. grads: (items, width), the output gradients.
template <class T, class Spot, class Area>
__device__ __forceinline__ void scatter(const DeformAttn& a, const Plan& plan, int64_t image, int count,
                                        const Spot* spots, const Area* area, const T* grads) {
  const int64_t base = image * a.cells * a.heads * a.width;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  const bool vectors = sizeof(T) == 4 && a.width % 2 == 0 && !a.fixed_point_unit;
#else
  const bool vectors = false;
#endif
  const int lanes = vectors ? (a.width + 2) / 4 : a.width;  // of a row
  const Divisor by_lanes = vectors ? plan.by_row : plan.by_width;
  const double unit = a.fixed_point_unit ? read_global(a.fixed_point_unit) : 0.0;
  for (int s = 0; s < plan.samples; ++s) {
    for (uint32_t t = threadIdx.x; t < uint32_t(4 * count * lanes); t += blockDim.x) {
      const uint32_t row = by_lanes.of(t), slot = row / 4, k = row % 4;
      const int lane = int(t - row * lanes), at = s * plan.stride + int(slot);
      const uint32_t corner = read_shared(&area[at].corners.items[k]);
      if (corner == kNowhere) continue;
      const Spot spot = read_shared(spots + at);
      const T factor = spot.items[2] * share(spot.items[0], spot.items[1], int(k));
      const T* g = grads + slot * uint32_t(a.width);
      if constexpr (sizeof(T) == 4) {
        if (vectors) {
          add_vector(static_cast<T*>(a.grad_value) + base + corner, g, factor, lane, a.width);
          continue;
        }
      }
      const T x = factor * read_shared(g + lane);
      if (a.fixed_point_unit) {
        add_global(static_cast<unsigned long long*>(a.grad_value) + base + corner + lane,
                   static_cast<unsigned long long>(__double2ll_rn(double(x) * unit)));
      } else {
        add_global(static_cast<T*>(a.grad_value) + base + corner + lane, x);
      }
    }
  }
}

// Sums dots[4][4] over the lanes of a group, at least four. Afterwards a lane holds, in dots[0], all four sums of the
// sample that is returned: halves of the group trade halves of the samples, twice.
template <class T>
__device__ __forceinline__ int sum_over_group(T (&dots)[4][4], int lane, int lanes) {
  const bool high = lane & lanes / 2, odd = lane & lanes / 4;
#pragma unroll
  for (int i = 0; i < 2; ++i)
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const T given = high ? dots[i][k] : dots[i + 2][k], kept = high ? dots[i + 2][k] : dots[i][k];
      dots[i][k] = kept + __shfl_xor_sync(0xffffffffu, given, lanes / 2);
    }
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    const T given = odd ? dots[0][k] : dots[1][k], kept = odd ? dots[1][k] : dots[0][k];
    dots[0][k] = kept + __shfl_xor_sync(0xffffffffu, given, lanes / 4);
  }
  for (int o = lanes / 8; o > 0; o /= 2)
#pragma unroll
    for (int k = 0; k < 4; ++k) dots[0][k] += __shfl_xor_sync(0xffffffffu, dots[0][k], o);
  return (high ? 2 : 0) + (odd ? 1 : 0);
}

template <class S, int V>
__global__ void __launch_bounds__(kThreads, sizeof(S) < 8 ? 4 : 1)
    backward(const __grid_constant__ DeformAttn a, const __grid_constant__ Plan plan) {
  using T = typename Compute<S>::type;
  union Area {
    Pack<uint32_t, 4> corners;
    Pack<T, 4> dots;  // of the output gradient with the values at the corners, once the corners are not needed
  };
  extern __shared__ __align__(32) unsigned char shared[];
  auto* spots = reinterpret_cast<Pack<T, 4>*>(shared);  // x and y within the cell, weight
  auto* area = reinterpret_cast<Area*>(spots + plan.samples * plan.stride);
  T* grads = reinterpret_cast<T*>(area + plan.samples * plan.stride);
  const int64_t image = plan.first_image + blockIdx.y;
  const uint32_t first = blockIdx.x * uint32_t(plan.items), rest = plan.total - first;
  const int count = rest < uint32_t(plan.items) ? int(rest) : plan.items;
  prepare<S>(a, plan, image, first, count, [&](int slot, int s, const Found<T>& f, T weight) {
    write_shared(spots + s * plan.stride + slot, Pack<T, 4>{{f.at.fx, f.at.fy, weight, T(0)}});
    write_shared(&area[s * plan.stride + slot].corners,
                 Pack<uint32_t, 4>{{f.corner[0], f.corner[1], f.corner[2], f.corner[3]}});
  });
  const S* grad_out = static_cast<const S*>(a.grad_out) + (image * plan.total + first) * a.width;
  for (int i = threadIdx.x * V; i < count * a.width; i += blockDim.x * V) {
    T x[V];
    unpack(read_row<S, V>(grad_out, uint32_t(i)), x);
#pragma unroll
    for (int k = 0; k < V; ++k) write_shared(grads + i + k, x[k]);
  }
  __syncthreads();
  scatter(a, plan, image, count, spots, area, grads);

  // The same samples' products: of the output gradient with the values at each corner.
  __syncthreads();
  const int slot = threadIdx.x >> plan.log_lanes, lane = threadIdx.x & (plan.lanes - 1);
  const S* value = static_cast<const S*>(a.value) + image * a.cells * a.heads * a.width;
  for (int begin = 0; begin < plan.samples; begin += 4) {
    T dots[4][4] = {};  // [sample][corner]
    for (int d = lane * V; slot < count && d < a.width; d += plan.lanes * V) {
      T g[V];
#pragma unroll
      for (int i = 0; i < V; ++i) g[i] = read_shared(grads + slot * a.width + d + i);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (begin + i >= plan.samples) break;
        const Pack<uint32_t, 4> c = read_shared(&area[(begin + i) * plan.stride + slot].corners);
        Pack<S, V> v[4];
#pragma unroll
        for (int k = 0; k < 4; ++k) v[k] = read_row<S, V>(value + d, c.items[k] == kNowhere ? 0 : c.items[k]);
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          T x[V], dot = 0;
          unpack(v[k], x);
#pragma unroll
          for (int j = 0; j < V; ++j) dot += g[j] * x[j];
          dots[i][k] += c.items[k] == kNowhere ? T(0) : dot;
        }
      }
    }
    const int s = begin + sum_over_group(dots, lane, plan.lanes);
    if (slot < count && s < plan.samples && lane % (plan.lanes / 4) == 0)
      write_shared(&area[s * plan.stride + slot].dots, Pack<T, 4>{{dots[0][0], dots[0][1], dots[0][2], dots[0][3]}});
  }
  __syncthreads();

  // Gradients of points and weights, from lanes as those that prepared the samples.
  const int preparing = 1 << plan.log_preparing, sample = threadIdx.x & (preparing - 1);
  const int together = 32 >> plan.log_preparing;
  for (int slot = threadIdx.x >> plan.log_preparing; (slot & -together) < count;
       slot += blockDim.x >> plan.log_preparing) {
    const bool any = slot < count;
    const auto sampled = [&](const Pack<T, 4>& spot, const Pack<T, 4>& d) {
      return blend(spot.items[0], spot.items[1], d.items[0], d.items[1], d.items[2], d.items[3]);
    };
    T mean = 0;
    if (a.raw) {
      for (int s = sample; any && s < plan.samples; s += preparing) {
        const Pack<T, 4> spot = read_shared(spots + s * plan.stride + slot);
        mean += spot.items[2] * sampled(spot, read_shared(&area[s * plan.stride + slot].dots));
      }
      for (int o = preparing / 2; o > 0; o /= 2) mean += __shfl_xor_sync(0xffffffffu, mean, o);
    }
    for (int s = sample; any && s < plan.samples; s += preparing) {
      const Pack<T, 4> spot = read_shared(spots + s * plan.stride + slot);
      const Pack<T, 4> d = read_shared(&area[s * plan.stride + slot].dots);
      const T fx = spot.items[0], fy = spot.items[1], weight = spot.items[2];
      const int level = int(plan.by_points.of(uint32_t(s)));
      const T unit_x = a.raw ? T(1) : T(a.width_of[level]), unit_y = a.raw ? T(1) : T(a.height_of[level]);
      const int64_t at = (image * plan.total + first + slot) * plan.samples + s;
      const T slope_along_x = slope_x(fy, d.items[0], d.items[1], d.items[2], d.items[3]);
      const T slope_along_y = slope_y(fx, d.items[0], d.items[1], d.items[2], d.items[3]);
      write_point<S>(a.grad_points, 2 * at, a.point_dtype, unit_x * weight * slope_along_x);
      write_point<S>(a.grad_points, 2 * at + 1, a.point_dtype, unit_y * weight * slope_along_y);
      const T here = sampled(spot, d);
      write_point<S>(a.grad_weights, at, a.point_dtype, a.raw ? weight * (here - mean) : here);
    }
  }
}

int log2_above(int n) {
  int log = 0;
  while (1 << log < n) ++log;
  return log;
}

template <class S, int V>
void launch_blocks(const DeformAttn& a, bool is_backward, uintptr_t stream) {
  using T = typename Compute<S>::type;
  const int vectors = a.width / V, samples = a.levels * a.points_per_level;
  const int64_t total = a.queries * a.heads, elements = a.cells * a.heads * a.width;
  if (elements >= kNowhere || total * samples > 0x3fffffff)
    throw std::runtime_error("piip: deform_attn on CUDA takes images of fewer than 2^32 values and 2^30 samples");
  Plan plan{uint32_t(total), 0, 0, samples, 0, 0, 0, 0, Divisor(1), Divisor(a.heads), Divisor(a.points_per_level),
            Divisor((a.width + 2) / 4 > 0 ? (a.width + 2) / 4 : 1), Divisor(a.width)};
  const int log_samples = log2_above(samples);
  plan.log_preparing = log_samples < 2 ? 2 : log_samples > 5 ? 5 : log_samples;
  plan.lanes = vectors < 32 ? vectors : 32;
  if (is_backward) {
    plan.log_lanes = log2_above(plan.lanes) < 2 ? 2 : log2_above(plan.lanes);
    plan.lanes = 1 << plan.log_lanes;
  }
  plan.by_lanes = Divisor(plan.lanes);
  // Lanes that prepare a sample of an item, or of the next, write to other banks.
  const auto padded = [&](int items) { return items + (((plan.log_preparing == 2 ? 2 : 1) - items) % 8 + 8) % 8; };
  const auto bytes = [&](int items) {
    const size_t sample = sizeof(Pack<T, 4>) + (is_backward ? sizeof(Pack<T, 4>) : sizeof(Pack<uint32_t, 4>));
    return samples * padded(items) * sample + (is_backward ? items * a.width * sizeof(T) : 0);
  };
  plan.items = kThreads / plan.lanes;
  while (plan.items > 1 && bytes(plan.items) > kSharedBytes) --plan.items;
  plan.stride = padded(plan.items);
  if (bytes(plan.items) > kSharedBytes)
    throw std::runtime_error("piip: deform_attn on CUDA takes fewer levels times points, or narrower heads");
  const int threads = (plan.items * plan.lanes + 31) / 32 * 32;
  const unsigned blocks = unsigned((total + plan.items - 1) / plan.items);
  for (int64_t image = 0; image < a.batch; image += kMostImages) {
    plan.first_image = int(image);
    const int64_t images = a.batch - image < kMostImages ? a.batch - image : kMostImages;
    dim3 grid(blocks);
    grid.y = unsigned(images);
    launch(is_backward ? "deform_attn_backward" : "deform_attn_forward", is_backward ? backward<S, V> : forward<S, V>,
           grid, threads, int(bytes(plan.items)), stream, a, plan);
  }
}

// The widest vector that divides the head and that every row starts at a multiple of.
template <class S>
void launch_vectors(const DeformAttn& a, bool is_backward, uintptr_t stream) {
  const auto fits = [&](int v) {
    const uintptr_t together = reinterpret_cast<uintptr_t>(a.value) | reinterpret_cast<uintptr_t>(a.out) |
                               reinterpret_cast<uintptr_t>(a.grad_out);
    return a.width % v == 0 && together % (v * sizeof(S)) == 0;
  };
  if constexpr (sizeof(S) == 2) {
    if (fits(8)) return launch_blocks<S, 8>(a, is_backward, stream);
  }
  if constexpr (sizeof(S) <= 4) {
    if (fits(4)) return launch_blocks<S, 4>(a, is_backward, stream);
  }
  if (fits(2)) return launch_blocks<S, 2>(a, is_backward, stream);
  launch_blocks<S, 1>(a, is_backward, stream);
}

void run(const DeformAttn& a, bool is_backward, int device, uintptr_t stream) {
  if (a.cells > 0x7fffffff) throw std::runtime_error("piip: deform_attn takes maps of fewer than 2^31 cells");
  const DeviceGuard guard(device);
  switch (a.value_dtype) {
    case Dtype::f16: return launch_vectors<Half>(a, is_backward, stream);
    case Dtype::bf16: return launch_vectors<Bfloat>(a, is_backward, stream);
    case Dtype::f64: return launch_vectors<double>(a, is_backward, stream);
    default: return launch_vectors<float>(a, is_backward, stream);
  }
}

}  // namespace

void deform_attn_forward(const DeformAttn& a, int device, uintptr_t stream) { run(a, false, device, stream); }
void deform_attn_backward(const DeformAttn& a, int device, uintptr_t stream) { run(a, true, device, stream); }

}  // namespace cuda
}  // namespace piip
