// Deformable attention on CUDA: the forward, and the launches. How items are laid out and prepared stands in
// deform_attn.h.
//
// After the preparation a group of lanes gathers each item, V channels a lane. The backward stands in
// deform_attn_backward.h.
#include "deform_attn.h"
#include "deform_attn_backward.h"
#include "ops.h"

namespace piip {
namespace cuda {
namespace {

constexpr int kSharedBytes = 48 * 1024, kUsualBytes = 31 * 1024;  // at most; so that five blocks find room
constexpr int kMostImages = 65535;                                // of a launch

// Blocks of the forward that a multiprocessor can hold at once: what bounds the compiler's registers. Narrow vectors of
// 16-bit values do with fewer, which on an H200 was worth more than shorter code.
template <class S, int V>
constexpr int blocks_at_once() {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  constexpr int usual = 5;
#else
  constexpr int usual = 4;  // of 1,024 threads
#endif
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900 && __CUDA_ARCH__ < 1100
  if (sizeof(S) == 2 && V < 8) return V == 2 ? 8 : 6;
#endif
  return sizeof(S) < 8 ? usual : 1;
}

template <class S, int V, int N>
__global__ void __launch_bounds__(kThreads, (blocks_at_once<S, V>()))
    forward(const __grid_constant__ DeformAttn a, const __grid_constant__ Plan plan) {
  using T = typename Compute<S>::type;
  extern __shared__ __align__(32) unsigned char shared[];
  auto* weights = reinterpret_cast<Pack<T, 4>*>(shared);  // [sample][item], as all of shared memory
  auto* corners = reinterpret_cast<Pack<uint32_t, 4>*>(weights + (N ? N : plan.padded) * plan.stride);
  const Block block(plan);
  const int padded = N ? N : plan.padded;
  const uint32_t step = uint32_t(a.heads * a.width);  // from cell to cell
  prepare<S, N, N == 4 ? 4 : 1>(a, plan, block, [&](int slot, int s, const Found<T>& f, T weight) {
    // A corner off the map weighs nothing and reads what its neighbour reads.
    const bool left = f.at.x >= 0, top = f.at.y >= 0, right = f.at.x + 1 < f.width, bottom = f.at.y + 1 < f.height;
    const T wx[2] = {left ? T(1) - f.at.fx : T(0), right ? f.at.fx : T(0)};
    const T wy[2] = {top ? weight * (T(1) - f.at.fy) : T(0), bottom ? weight * f.at.fy : T(0)};
    const uint32_t x[2] = {uint32_t(left ? f.at.x : 0) * step, uint32_t(right ? f.at.x + 1 : f.at.x) * step};
    const uint32_t down = uint32_t(f.width) * step;
    const uint32_t y[2] = {uint32_t(top ? f.at.y : 0) * down, uint32_t(bottom ? f.at.y + 1 : f.at.y) * down};
    write_shared(weights + s * plan.stride + slot,
                 Pack<T, 4>{{wx[0] * wy[0], wx[1] * wy[0], wx[0] * wy[1], wx[1] * wy[1]}});
    const uint32_t first = f.first + y[0] + x[0];
    write_shared(corners + s * plan.stride + slot,
                 Pack<uint32_t, 4>{{f.at.inside ? first : kNowhere, f.first + y[0] + x[1], f.first + y[1] + x[0],
                                    f.first + y[1] + x[1]}});
  });
  __syncthreads();

  const int slot = int(plan.by_lanes.of(threadIdx.x)), lane = int(threadIdx.x) - slot * plan.lanes;
  if (slot >= block.count) return;
  const S* value = of_image(static_cast<const S*>(a.value), block.image, plan.values);
  S* out = of_image(static_cast<S*>(a.out), block.image, plan.results) + (block.first + slot) * uint32_t(a.width);
  for (int d = lane * V; d < a.width; d += plan.lanes * V) {
    T sum[V] = {};
    const S* rows = worked_out(value + d);
    for (int begin = 0; begin < padded; begin += 4) {
#pragma unroll
      for (int s = begin; s < begin + 4; ++s) {
        const Pack<uint32_t, 4> c = read_shared(corners + s * plan.stride + slot);
        if (c.items[0] == kNowhere) continue;
        const Pack<T, 4> w = read_shared(weights + s * plan.stride + slot);
        Pack<S, V> v[4];
#pragma unroll
        for (int k = 0; k < 4; ++k) v[k] = read_row<S, V>(rows, c.items[k]);
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          T x[V];
          unpack(v[k], x);
#pragma unroll
          for (int i = 0; i < V; ++i) sum[i] += w.items[k] * x[i];
        }
      }
    }
    Pack<S, V> packed;
#pragma unroll
    for (int i = 0; i < V; ++i) packed.items[i] = narrow<S>(sum[i]);
    write_global(reinterpret_cast<Pack<S, V>*>(out + d), packed);
  }
}

template <class S, int V>
void launch_blocks(const DeformAttn& a, bool is_backward, uintptr_t stream) {
  using T = typename Compute<S>::type;
  const int vectors = a.width / V, samples = a.levels * a.points_per_level;
  const int64_t total = a.queries * a.heads, values = a.cells * a.heads * a.width, results = total * a.width;
  const int64_t points = total * samples * 2 * (a.point_dtype == a.value_dtype ? sizeof(S) : sizeof(T));
  if (total >= 0x7fffffff || values >= kNowhere || results >= kNowhere || points >= kNowhere)
    throw std::runtime_error(
        "piip: deform_attn on CUDA takes images of fewer than 2^32 values, results and bytes of points");
  Plan plan{};
  plan.total = uint32_t(total), plan.values = uint32_t(values), plan.results = uint32_t(results);
  plan.points = uint32_t(points);
  plan.samples = samples;
  plan.padded = (samples + 3) / 4 * 4;
  plan.lowered = a.point_dtype == a.value_dtype;
  const int log_samples = log2_above(samples);
  plan.log_preparing = log_samples < 2 ? 2 : log_samples > 5 ? 5 : log_samples;
  plan.lanes = vectors < 32 ? vectors : 32;
  if (is_backward) {
    plan.log_lanes = plan.lanes < 4 ? 2 : log2_above(plan.lanes);
    plan.lanes = 1 << plan.log_lanes;
  }
  plan.vectors = !a.fixed_point_unit && a.width <= plan.lanes * V;  // one pass of the lanes is a row
  plan.by_heads = Divisor(a.heads);
  plan.by_lanes = Divisor(plan.lanes);
  plan.by_points = Divisor(a.points_per_level);
  plan.by_width = Divisor(a.width);
  // Lanes that prepare a sample of an item, or of the next, write to other banks.
  const int known = is_backward ? 0 : samples == 4 && a.levels == 1 ? 4 : samples == 16 && sizeof(S) < 8 ? 16 : 0;
  const int rest = known == 0 && plan.log_preparing == 2 ? 2 : 1;
  const auto spread = [&](int items) { return items + ((rest - items) % 8 + 8) % 8; };
  const auto bytes = [&](int items) {
    const size_t sample = sizeof(Pack<T, 4>) + (is_backward ? sizeof(Pack<T, 4>) : sizeof(Pack<uint32_t, 4>));
    return plan.padded * spread(items) * sample + (is_backward ? items * a.width * sizeof(T) : 0);
  };
  plan.items = kThreads / plan.lanes;
  while (plan.items > 8 && bytes(plan.items) > kUsualBytes) --plan.items;
  while (plan.items > 1 && bytes(plan.items) > kSharedBytes) --plan.items;
  plan.stride = spread(plan.items);
  const int threads = (plan.items * plan.lanes + 31) / 32 * 32;
  plan.together = threads > a.width ? threads / a.width : 1;
  if (bytes(plan.items) > kSharedBytes)
    throw std::runtime_error("piip: deform_attn on CUDA takes fewer levels times points, or narrower heads");
  dim3 grid((plan.total + plan.items - 1) / plan.items);
  for (int64_t image = 0; image < a.batch; image += kMostImages) {
    plan.first_image = int(image);
    grid.y = unsigned(a.batch - image < kMostImages ? a.batch - image : kMostImages);
    const int shared_bytes = int(bytes(plan.items));
    if (is_backward) {
      launch("deform_attn_backward", backward<S, V>, grid, threads, shared_bytes, stream, a, plan);
    } else if (known == 4) {
      launch("deform_attn_forward", forward<S, V, 4>, grid, threads, shared_bytes, stream, a, plan);
    } else if (known == 16) {
      launch("deform_attn_forward", forward < S, V, sizeof(S) < 8 ? 16 : 0 >, grid, threads, shared_bytes, stream, a,
             plan);
    } else {
      launch("deform_attn_forward", forward<S, V, 0>, grid, threads, shared_bytes, stream, a, plan);
    }
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
  const uintptr_t together = reinterpret_cast<uintptr_t>(a.points) | reinterpret_cast<uintptr_t>(a.weights) |
                             reinterpret_cast<uintptr_t>(a.reference);
  if (together % 16)
    throw std::runtime_error("piip: deform_attn on CUDA takes points, weights and references at multiples of 16 bytes");
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
