// Deformable attention on CUDA: the backward.
//
// It adds the value gradient to memory, which bounds it: L2 takes so many sectors a clock, so the lanes of a group add
// one row together, two or four floats each, where the architecture has such additions (from 9.0 on), and before it one
// channel a lane in rows that follow each other. Where determinism is asked for, it adds fixed-point integers, whose
// sum does not depend on the order.
#pragma once

#include "deform_attn.h"

namespace piip {
namespace cuda {
namespace {

// Adds what all samples of a block's items give to the value gradient, a channel a lane: all lanes of the block take
// part in rows that follow each other. grads: (items, width), the output gradients.
template <class T, class Area>
__device__ __forceinline__ void scatter(const DeformAttn& a, const Plan& plan, const Block& block,
                                        const Pack<T, 4>* spots, const Area* area, const T* grads) {
  const double unit = a.fixed_point_unit ? read_global(a.fixed_point_unit) : 0.0;
  const int begin = int(plan.by_width.of(threadIdx.x));
  if (begin >= plan.together) return;
  for (int d = int(threadIdx.x) - begin * a.width; d < a.width; d += int(blockDim.x)) {
    T* sums = of_image(static_cast<T*>(a.grad_value), block.image, plan.values) + d;
    auto* fixed = of_image(static_cast<unsigned long long*>(a.grad_value), block.image, plan.values) + d;
    for (int s = 0; s < plan.samples; ++s) {
      for (int row = begin; row < 4 * block.count; row += plan.together) {
        const int slot = row / 4, k = row % 4, at = s * plan.stride + slot;
        const uint32_t corner = read_shared(&area[at].corners.items[k]);
        if (corner == kNowhere) continue;
        const Pack<T, 4> spot = read_shared(spots + at);
        const T fx = spot.items[0], fy = spot.items[1];
        const T x = spot.items[2] * (k & 1 ? fx : T(1) - fx) * (k & 2 ? fy : T(1) - fy) *
                    read_shared(grads + slot * a.width + d);
        if (a.fixed_point_unit) {
          add_global(fixed + corner, static_cast<unsigned long long>(__double2ll_rn(double(x) * unit)));
        } else {
          add_global(sums + corner, x);
        }
      }
    }
  }
}

// N channels of an item, two or four, that a lane adds to the value gradient at once.
template <int N>
struct Part {
  int begin;  // channel
  bool any;
  float g[N];

  __device__ __forceinline__ Part(const float* grads, int width, int index) : begin(N * index), any(begin < width) {
    const auto read = any ? read_shared(reinterpret_cast<const Pack<float, N>*>(grads + begin)) : Pack<float, N>{};
#pragma unroll
    for (int i = 0; i < N; ++i) g[i] = read.items[i];
  }
  // at: this channel of a row.
  __device__ __forceinline__ void add(float* at, float factor) const {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    if (!any) return;
    if constexpr (N == 4) {
      add_global(reinterpret_cast<float4*>(at),
                 make_float4(factor * g[0], factor * g[1], factor * g[2], factor * g[3]));
    } else {
      add_global(reinterpret_cast<float2*>(at), make_float2(factor * g[0], factor * g[1]));
    }
#endif
  }
};

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
  auto* area = reinterpret_cast<Area*>(spots + plan.padded * plan.stride);
  T* grads = reinterpret_cast<T*>(area + plan.padded * plan.stride);
  const Block block(plan);
  const uint32_t step = uint32_t(a.heads * a.width);  // from cell to cell
  prepare<S, 0, 1>(a, plan, block, [&](int slot, int s, const Found<T>& f, T weight) {
    const bool left = f.at.inside && f.at.x >= 0, right = f.at.inside && f.at.x + 1 < f.width;
    const bool top = f.at.y >= 0, bottom = f.at.y + 1 < f.height;
    // Wraps where x or y is -1, and back where a corner lies on the map.
    const uint32_t down = uint32_t(f.width) * step;
    const uint32_t corner = f.first + uint32_t(f.at.y) * down + uint32_t(f.at.x) * step;
    write_shared(spots + s * plan.stride + slot, Pack<T, 4>{{f.at.fx, f.at.fy, weight, T(0)}});
    write_shared(&area[s * plan.stride + slot].corners,
                 Pack<uint32_t, 4>{{left && top ? corner : kNowhere, right && top ? corner + step : kNowhere,
                                    left && bottom ? corner + down : kNowhere,
                                    right && bottom ? corner + down + step : kNowhere}});
  });
  const int slot = int(threadIdx.x) >> plan.log_lanes, lane = int(threadIdx.x) & (plan.lanes - 1);
  constexpr int kQuad = V < 4 ? V : 4;  // channels of an access to shared memory
  const bool active = slot < block.count;
  const T* own = grads + slot * a.width;
  if (active) {
    const S* grad_out = of_image(static_cast<const S*>(a.grad_out), block.image, plan.results) +
                        (block.first + slot) * uint32_t(a.width);
    for (int d = lane * V; d < a.width; d += plan.lanes * V) {
      T x[V];
      unpack(read_row<S, V>(grad_out, uint32_t(d)), x);
#pragma unroll
      for (int k = 0; k < V; k += kQuad) {
        Pack<T, kQuad> some;
#pragma unroll
        for (int i = 0; i < kQuad; ++i) some.items[i] = x[k + i];
        write_shared(reinterpret_cast<Pack<T, kQuad>*>(grads + slot * a.width + d + k), some);
      }
    }
  }
  __syncthreads();

  // The output gradient's products with the values at each corner, for four samples at a time; and where the GPU adds
  // vectors, the value gradient beside them.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  constexpr bool kVectors = V > 1 && sizeof(T) == 4;
#else
  constexpr bool kVectors = false;
#endif
  const bool by_vectors = kVectors && plan.vectors;
  if (!by_vectors) {
    scatter(a, plan, block, spots, area, grads);
    __syncthreads();
  }
  const S* value = of_image(static_cast<const S*>(a.value), block.image, plan.values);
  T* grad_value = of_image(static_cast<T*>(a.grad_value), block.image, plan.values);
  for (int begin = 0; begin < plan.padded; begin += 4) {
    T dots[4][4] = {};  // [sample][corner]
    for (int d = lane * V; active && d < a.width; d += plan.lanes * V) {
      T g[V];
      const S* rows = worked_out(value + d);
#pragma unroll
      for (int k = 0; k < V; k += kQuad) {
        const auto some = read_shared(reinterpret_cast<const Pack<T, kQuad>*>(own + d + k));
#pragma unroll
        for (int i = 0; i < kQuad; ++i) g[k + i] = some.items[i];
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const Pack<uint32_t, 4> c = read_shared(&area[(begin + i) * plan.stride + slot].corners);
        Pack<S, V> v[4];
#pragma unroll
        for (int k = 0; k < 4; ++k) v[k] = read_row<S, V>(rows, c.items[k] == kNowhere ? 0 : c.items[k]);
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
    if constexpr (kVectors) {
      if (by_vectors && active) {
        constexpr int N = V < 4 ? 2 : 4;
#pragma unroll 1
        for (int index = 0; index < V / N; ++index) {
          const Part<N> part(own, a.width, lane + index * plan.lanes);
          T* rows = worked_out(grad_value + part.begin);
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const Pack<uint32_t, 4> c = read_shared(&area[(begin + i) * plan.stride + slot].corners);
            const Pack<T, 4> spot = read_shared(spots + (begin + i) * plan.stride + slot);
            const Pack<T, 4> factors = shares(spot.items[0], spot.items[1], spot.items[2]);
#pragma unroll
            for (int k = 0; k < 4; ++k)
              if (c.items[k] != kNowhere) part.add(rows + c.items[k], factors.items[k]);
          }
        }
      }
    }
    const int s = begin + sum_over_group(dots, lane, plan.lanes);
    __syncwarp();  // all have read the corners that the sums take the place of
    if (active && lane % (plan.lanes / 4) == 0)
      write_shared(&area[s * plan.stride + slot].dots, Pack<T, 4>{{dots[0][0], dots[0][1], dots[0][2], dots[0][3]}});
  }
  __syncthreads();

  // Gradients of points and weights, by the lanes that prepared the samples.
  void* grad_points = of_image(static_cast<char*>(a.grad_points), block.image, plan.points);
  void* grad_weights = of_image(static_cast<char*>(a.grad_weights), block.image, plan.points / 2);
  const int preparing = 1 << plan.log_preparing, sample = int(threadIdx.x) & (preparing - 1);
  const int together = 32 >> plan.log_preparing;
  for (int slot = int(threadIdx.x) >> plan.log_preparing; (slot & -together) < block.count;
       slot += int(blockDim.x) >> plan.log_preparing) {
    const uint32_t at = (block.first + slot) * uint32_t(plan.samples);
    const int samples = slot < block.count ? plan.samples : 0;
    const auto sampled = [&](const Pack<T, 4>& spot, const Pack<T, 4>& d) {
      return blend(spot.items[0], spot.items[1], d.items[0], d.items[1], d.items[2], d.items[3]);
    };
    T mean = 0;
    if (a.raw) {
      for (int s = sample; s < samples; s += preparing) {
        const Pack<T, 4> spot = read_shared(spots + s * plan.stride + slot);
        mean += spot.items[2] * sampled(spot, read_shared(&area[s * plan.stride + slot].dots));
      }
      mean = over_lanes<2>(mean, plan.log_preparing, [](T x, T y) { return x + y; });
    }
    for (int s = sample; s < samples; s += preparing) {
      const Pack<T, 4> spot = read_shared(spots + s * plan.stride + slot);
      const Pack<T, 4> d = read_shared(&area[s * plan.stride + slot].dots);
      const T weight = spot.items[2], here = sampled(spot, d);
      T point[2] = {weight * slope_x(spot.items[1], d.items[0], d.items[1], d.items[2], d.items[3]),
                    weight * slope_y(spot.items[0], d.items[0], d.items[1], d.items[2], d.items[3])};
      if (!a.raw) {
        const int level = int(plan.by_points.of(uint32_t(s)));
        point[0] *= T(a.width_of[level]), point[1] *= T(a.height_of[level]);
      }
      const T mine[1] = {a.raw ? weight * (here - mean) : here};
      write_points<S, 2>(grad_points, at + s, plan.lowered, point);
      write_points<S, 1>(grad_weights, at + s, plan.lowered, mine);
    }
  }
}

}  // namespace
}  // namespace cuda
}  // namespace piip
