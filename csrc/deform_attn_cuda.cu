// Deformable attention on CUDA.
//
// A work item is one head of one query. Its channels are spread over a group of lanes, a power of two of them inside
// one warp; every lane reads vectors of V channels. A block first writes what all its samples need (cells, fractions,
// softmaxed weights) to shared memory, then gathers. The backward adds the value gradient to memory with atomic vector
// reductions, or, where determinism is asked for, as fixed-point integers whose sum does not depend on the order.
#include "bilinear.h"
#include "cuda_common.h"
#include "cuda_ops.h"

namespace piip {
namespace cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kSharedBytes = 32 * 1024;

// A sample as the gathering lanes need it. Cells outside the map are replaced by their neighbour inside, and masked.
template <class T>
struct Entry {
  int cell;         // upper left, counted within the image; -1 where the sample is outside
  int right, down;  // distance to the cells at the right and below
  int mask;         // bit k: corner k (00, 01, 10, 11) lies on the map
  T fx, fy;
  T weight;
  T unused;  // 16-byte multiples
};

template <class T>
__device__ __forceinline__ T corner(const Entry<T>& e, int k) {
  const T wx = k & 1 ? e.fx : T(1) - e.fx, wy = k & 2 ? e.fy : T(1) - e.fy;
  return e.mask >> k & 1 ? wx * wy : T(0);
}

template <class T>
__device__ Entry<T> make_entry(const DeformAttn& a, int64_t item, int s) {
  Entry<T> e{};
  const int level = s / a.points_per_level, samples = a.levels * a.points_per_level;
  const int width = a.width_of[level], height = a.height_of[level];
  const int64_t query = item / a.heads, at = item * samples + s;  // query counts over the batch
  T rx = 0, ry = 0;
  if (a.raw) {
    const int64_t row = (a.reference_per_batch ? query : query % a.queries) * (a.reference_per_level ? a.levels : 1) +
                        (a.reference_per_level ? level : 0);
    rx = read_global(static_cast<const T*>(a.reference) + 2 * row);
    ry = read_global(static_cast<const T*>(a.reference) + 2 * row + 1);
  }
  const T px = read<T>(a.points, 2 * at, a.point_dtype), py = read<T>(a.points, 2 * at + 1, a.point_dtype);
  const Sample<T> p =
      locate(cell_coordinate(a.raw, rx, px, T(width)), cell_coordinate(a.raw, ry, py, T(height)), width, height);
  const bool left = p.x >= 0, top = p.y >= 0, right = p.x + 1 < width, bottom = p.y + 1 < height;
  e.cell = p.inside ? int(a.start_of[level]) + (top ? p.y : 0) * width + (left ? p.x : 0) : -1;
  e.right = left && right ? 1 : 0;
  e.down = top && bottom ? width : 0;
  e.mask = (left && top) | (right && top) << 1 | (left && bottom) << 2 | (right && bottom) << 3;
  e.fx = p.fx;
  e.fy = p.fy;
  e.weight = read<T>(a.weights, at, a.point_dtype);
  return e;
}

template <class T>
__device__ void softmax(Entry<T>* entries, int samples) {
  T largest = read_shared(&entries[0].weight), sum = 0;
  for (int s = 1; s < samples; ++s) {
    const T logit = read_shared(&entries[s].weight);
    largest = logit > largest ? logit : largest;
  }
  for (int s = 0; s < samples; ++s) {
    const T weight = exp(read_shared(&entries[s].weight) - largest);
    sum += weight;
    write_shared(&entries[s].weight, weight);
  }
  for (int s = 0; s < samples; ++s) write_shared(&entries[s].weight, read_shared(&entries[s].weight) / sum);
}

// Fills the entries of the block's items: `count` items from `first` on.
template <class T>
__device__ void prepare(const DeformAttn& a, int64_t first, int count, Entry<T>* entries) {
  const int samples = a.levels * a.points_per_level;
  for (int i = threadIdx.x; i < count * samples; i += blockDim.x)
    write_shared(entries + i, make_entry<T>(a, first + i / samples, i % samples));
  __syncthreads();
  if (a.raw) {
    for (int i = threadIdx.x; i < count; i += blockDim.x) softmax(entries + i * samples, samples);
    __syncthreads();
  }
}

template <class S, int V>
__device__ __forceinline__ Pack<S, V> load(const S* p, int line = __builtin_LINE()) {
  return read_global(reinterpret_cast<const Pack<S, V>*>(p), line);
}

template <class S, int V>
__global__ void forward(const DeformAttn a, int items, int group) {
  using T = typename Compute<S>::type;
  extern __shared__ __align__(16) unsigned char shared[];
  Entry<T>* entries = reinterpret_cast<Entry<T>*>(shared);
  const int64_t total = a.batch * a.queries * a.heads, first = int64_t(blockIdx.x) * items;
  const int count = int(total - first < items ? total - first : items);
  prepare(a, first, count, entries);

  const int slot = threadIdx.x / group, lane = threadIdx.x % group, samples = a.levels * a.points_per_level;
  if (slot >= count) return;
  const int64_t item = first + slot;
  const int64_t b = item / a.heads / a.queries;
  const int m = int(item % a.heads);
  const int64_t step = int64_t(a.heads) * a.width;  // from cell to cell
  const S* value = static_cast<const S*>(a.value) + b * a.cells * step + int64_t(m) * a.width;
  S* out = static_cast<S*>(a.out) + item * a.width;
  for (int d = lane * V; d < a.width; d += group * V) {
    T sum[V] = {};
    for (int s = 0; s < samples; ++s) {
      const Entry<T> e = read_shared(entries + slot * samples + s);
      if (e.cell < 0) continue;
      const S* p = value + e.cell * step + d;
      const Pack<S, V> v[4] = {load<S, V>(p), load<S, V>(p + e.right * step), load<S, V>(p + e.down * step),
                               load<S, V>(p + (e.down + e.right) * step)};
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const T w = e.weight * corner(e, k);
#pragma unroll
        for (int i = 0; i < V; ++i) sum[i] += w * widen(v[k].items[i]);
      }
    }
    Pack<S, V> packed;
#pragma unroll
    for (int i = 0; i < V; ++i) packed.items[i] = narrow<S>(sum[i]);
    write_global(reinterpret_cast<Pack<S, V>*>(out + d), packed);
  }
}

// grad[0..V) += factor * g, as one reduction of up to 16 bytes where the architecture has it.
template <class T, int V>
__device__ __forceinline__ void add(T* grad, T factor, const T (&g)[V]) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  constexpr int together = sizeof(T) != 4 ? 1 : V % 4 == 0 ? 4 : V % 2 == 0 ? 2 : 1;
#else
  constexpr int together = 1;
#endif
#pragma unroll
  for (int i = 0; i < V; i += together) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    if constexpr (together == 4) {
      add_global(reinterpret_cast<float4*>(grad + i),
                 make_float4(factor * g[i], factor * g[i + 1], factor * g[i + 2], factor * g[i + 3]));
    } else if constexpr (together == 2) {
      add_global(reinterpret_cast<float2*>(grad + i), make_float2(factor * g[i], factor * g[i + 1]));
    } else
#endif
    {
      add_global(grad + i, factor * g[i]);
    }
  }
}

template <class T, int V>
__device__ __forceinline__ void add_fixed(long long* grad, T factor, const T (&g)[V], double unit) {
#pragma unroll
  for (int i = 0; i < V; ++i)
    add_global(reinterpret_cast<unsigned long long*>(grad + i),
               static_cast<unsigned long long>(__double2ll_rn(double(factor * g[i]) * unit)));
}

// What is known of a sample once its products with the output gradient are: the gradients of its point and weight.
template <class T>
__device__ __forceinline__ T sampled(const Entry<T>& e, const T (&d)[4]) {
  return blend(e.fx, e.fy, d[0], d[1], d[2], d[3]);
}

template <class S, int V>
__global__ void backward(const DeformAttn a, int items, int group) {
  using T = typename Compute<S>::type;
  extern __shared__ __align__(16) unsigned char shared[];
  const int samples = a.levels * a.points_per_level;
  Entry<T>* entries = reinterpret_cast<Entry<T>*>(shared);
  T* dots = reinterpret_cast<T*>(entries + items * samples);  // [item][sample][corner]
  T* means = dots + 4 * items * samples;                      // [item]
  const int64_t total = a.batch * a.queries * a.heads, first = int64_t(blockIdx.x) * items;
  const int count = int(total - first < items ? total - first : items);
  prepare(a, first, count, entries);

  const int slot = threadIdx.x / group, lane = threadIdx.x % group;
  const bool active = slot < count;  // all lanes of a warp take part in its shuffles
  const int64_t item = first + (active ? slot : 0);
  const int64_t b = item / a.heads / a.queries;
  const int m = int(item % a.heads);
  const int64_t step = int64_t(a.heads) * a.width, base = b * a.cells * step + int64_t(m) * a.width;
  const S* value = static_cast<const S*>(a.value) + base;
  const S* grad_out = static_cast<const S*>(a.grad_out) + item * a.width;
  T* grad_value = static_cast<T*>(a.grad_value) + base;
  long long* grad_fixed = static_cast<long long*>(a.grad_value) + base;
  const double unit = a.fixed_point_unit ? read_global(a.fixed_point_unit) : 0.0;
  for (int s = 0; s < samples; ++s) {
    const Entry<T> e = read_shared(entries + (active ? slot : 0) * samples + s);
    T d4[4] = {};
    if (active && e.cell >= 0) {
      const int64_t offset[4] = {e.cell * step, (e.cell + e.right) * step, (int64_t(e.cell) + e.down) * step,
                                 (int64_t(e.cell) + e.down + e.right) * step};
      for (int d = lane * V; d < a.width; d += group * V) {
        const Pack<S, V> packed = load<S, V>(grad_out + d);
        T g[V];
#pragma unroll
        for (int i = 0; i < V; ++i) g[i] = widen(packed.items[i]);
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          if (!(e.mask >> k & 1)) continue;
          const Pack<S, V> v = load<S, V>(value + offset[k] + d);
#pragma unroll
          for (int i = 0; i < V; ++i) d4[k] += g[i] * widen(v.items[i]);
          const T factor = e.weight * corner(e, k);
          if (a.fixed_point_unit) {
            add_fixed<T, V>(grad_fixed + offset[k] + d, factor, g, unit);
          } else {
            add<T, V>(grad_value + offset[k] + d, factor, g);
          }
        }
      }
    }
#pragma unroll
    for (int k = 0; k < 4; ++k)
      for (int o = group / 2; o > 0; o /= 2) d4[k] += __shfl_xor_sync(0xffffffffu, d4[k], o, group);
    if (active && lane == 0) {
#pragma unroll
      for (int k = 0; k < 4; ++k) write_shared(dots + 4 * (slot * samples + s) + k, d4[k]);
    }
  }
  __syncthreads();

  if (a.raw) {
    for (int i = threadIdx.x; i < count; i += blockDim.x) {
      T mean = 0;
      for (int s = 0; s < samples; ++s) {
        const Entry<T> e = read_shared(entries + i * samples + s);
        const T* p = dots + 4 * (i * samples + s);
        const T d[4] = {read_shared(p), read_shared(p + 1), read_shared(p + 2), read_shared(p + 3)};
        mean += e.weight * sampled(e, d);
      }
      write_shared(means + i, mean);
    }
    __syncthreads();
  }
  for (int i = threadIdx.x; i < count * samples; i += blockDim.x) {
    const Entry<T> e = read_shared(entries + i);
    const T* p = dots + 4 * i;
    const T d[4] = {read_shared(p), read_shared(p + 1), read_shared(p + 2), read_shared(p + 3)};
    const int level = i % samples / a.points_per_level;
    const T unit_x = a.raw ? T(1) : T(a.width_of[level]), unit_y = a.raw ? T(1) : T(a.height_of[level]);
    const int64_t at = first * samples + i;
    write(a.grad_points, 2 * at, a.point_dtype, unit_x * e.weight * slope_x(e.fy, d[0], d[1], d[2], d[3]));
    write(a.grad_points, 2 * at + 1, a.point_dtype, unit_y * e.weight * slope_y(e.fx, d[0], d[1], d[2], d[3]));
    const T here = sampled(e, d);
    write(a.grad_weights, at, a.point_dtype, a.raw ? e.weight * (here - read_shared(means + i / samples)) : here);
  }
}

// How items are laid out over a block, and the launch.
template <class S, int V>
void launch_blocks(const DeformAttn& a, bool is_backward, uintptr_t stream) {
  using T = typename Compute<S>::type;
  const int vectors = a.width / V, samples = a.levels * a.points_per_level;
  int group = 1;
  while (group < vectors && group < 32) group *= 2;
  const int bytes =
      samples * int(sizeof(Entry<T>) + (is_backward ? 4 * sizeof(T) : 0)) + (is_backward ? int(sizeof(T)) : 0);
  int items = kThreads / group;
  if (items * bytes > kSharedBytes) items = kSharedBytes / bytes;
  if (items < 1) throw std::runtime_error("piip: deform_attn on CUDA takes fewer levels times points");
  const int threads = (items * group + 31) / 32 * 32;
  const int64_t blocks = (a.batch * a.queries * a.heads + items - 1) / items;
  if (blocks > 0x7fffffff)
    throw std::runtime_error("piip: deform_attn on CUDA takes fewer than 2^31 blocks of queries");
  if (is_backward) {
    launch("deform_attn_backward", backward<S, V>, blocks, threads, items * bytes, stream, a, items, group);
  } else {
    launch("deform_attn_forward", forward<S, V>, blocks, threads, items * bytes, stream, a, items, group);
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
