// Deformable attention on CUDA: how the work is laid out, and how samples are prepared.
//
// A work item is one head of one query. A block takes some tens of items that follow each other and prepares all their
// samples first, one lane a sample: softmax by shuffles, location, corners. A whole group of lanes needs each of them.
#pragma once

#include "../bilinear.h"
#include "../deform_attn.h"
#include "common.h"

namespace piip {
namespace cuda {

constexpr int kThreads = 256;  // of a block
constexpr uint32_t kNowhere = 0xffffffffu;

__host__ __device__ constexpr int log2_above(int n) { return n > 1 ? 1 + log2_above((n + 1) / 2) : 0; }

// Division of integers below 2^31 by one that the host knows: Granlund and Montgomery, 1994, figure 4.1.
struct Divisor {
  uint32_t divisor, factor, shift;

  Divisor() = default;
  explicit Divisor(int64_t by) : divisor(uint32_t(by)), shift(0) {
    while ((uint64_t(1) << shift) < uint64_t(by)) ++shift;
    factor = uint32_t((((uint64_t(1) << shift) - uint64_t(by)) << 32) / uint64_t(by) + 1);
  }
  __device__ __forceinline__ uint32_t of(uint32_t n) const { return (__umulhi(n, factor) + n) >> shift; }
};

// How items are laid over a block, and the samples of an item over the lanes of a warp.
struct Plan {
  uint32_t total;                    // items of an image
  uint32_t values, results, points;  // of an image: elements of values and of results, bytes of points
  int first_image;                   // of this launch
  int items;                         // of a block
  int samples;                       // of an item
  int padded;                        // the same, up to a multiple of four; what is beyond lies nowhere
  int stride;                        // from sample to sample in shared memory, in items
  int log_preparing;                 // of the lanes that prepare an item where N is 0: as many as samples, 4 to 32
  int lanes;                         // that gather an item; in the backward a power of two
  int log_lanes;                     // in the backward
  int together;                      // rows of the value gradient that a block adds a channel a lane
  bool lowered;                      // points and weights have the dtype of the values; else that of the arithmetic
  bool vectors;                      // the value gradient is added by vectors where the GPU can
  Divisor by_heads, by_lanes, by_points, by_width;
};

// The items of a block: `count` of an image that follow each other.
struct Block {
  uint32_t image, first;
  int count;

  __device__ __forceinline__ explicit Block(const Plan& plan)
      : image(uint32_t(plan.first_image) + blockIdx.y), first(blockIdx.x * uint32_t(plan.items)) {
    const uint32_t rest = plan.total - first;
    count = rest < uint32_t(plan.items) ? int(rest) : plan.items;
  }
};

// Where an image begins in a tensor; `size`: what an image takes of it, elements of the pointer's type.
template <class P>
__device__ __forceinline__ P* of_image(P* base, uint32_t image, uint32_t size) {
  return base + uint64_t(image) * size;
}

// Consecutive elements of points or weights.
template <class S, int V>
__device__ __forceinline__ void read_points(const void* base, uint32_t i, bool lowered,
                                            typename Compute<S>::type (&x)[V]) {
  using T = typename Compute<S>::type;
  if (sizeof(S) == sizeof(T) || lowered) {
    const auto packed = read_global(static_cast<const Pack<S, V>*>(base) + i);
#pragma unroll
    for (int k = 0; k < V; ++k) x[k] = widen(packed.items[k]);
  } else {
    const auto packed = read_global(static_cast<const Pack<T, V>*>(base) + i);
#pragma unroll
    for (int k = 0; k < V; ++k) x[k] = packed.items[k];
  }
}

template <class S, int V>
__device__ __forceinline__ void write_points(void* base, uint32_t i, bool lowered,
                                             const typename Compute<S>::type (&x)[V]) {
  using T = typename Compute<S>::type;
  if (sizeof(S) == sizeof(T) || lowered) {
    Pack<S, V> packed;
#pragma unroll
    for (int k = 0; k < V; ++k) packed.items[k] = narrow<S>(x[k]);
    write_global(static_cast<Pack<S, V>*>(base) + i, packed);
  } else {
    Pack<T, V> packed;
#pragma unroll
    for (int k = 0; k < V; ++k) packed.items[k] = x[k];
    write_global(static_cast<Pack<T, V>*>(base) + i, packed);
  }
}

// What the corners of a cell weigh, times a weight.
template <class T>
__device__ __forceinline__ Pack<T, 4> shares(T fx, T fy, T weight) {
  const T left = weight * (T(1) - fx), right = weight * fx, top = T(1) - fy;
  return {{left * top, right * top, left * fy, right * fy}};
}

// A sample: where it lies, on a map of which size, and where the head's first row of that map is among the elements of
// the image.
template <class T>
struct Found {
  Sample<T> at;
  int width, height;
  uint32_t first;
};

// Keeps the compiler from working out an address in global memory anew wherever it is used.
template <class T>
__device__ __forceinline__ T* worked_out(T* p) {
#ifndef PIIP_EMULATED
  asm volatile("" : "+l"(p));
  __builtin_assume(__isGlobal(p));
#endif
  return p;
}

// Combines a value over groups of 2^log lanes, at least 2^kLeast.
template <int kLeast, class T, class Op>
__device__ __forceinline__ T over_lanes(T x, int log, Op op) {
#pragma unroll
  for (int k = 4; k >= 0; --k)
    if (k < kLeast || k < log) x = op(x, __shfl_xor_sync(0xffffffffu, x, 1 << k));
  return x;
}

__device__ __forceinline__ float exponential(float x) { return __expf(x); }
__device__ __forceinline__ double exponential(double x) { return exp(x); }
__device__ __forceinline__ float quotient(float x, float y) { return __fdividef(x, y); }
__device__ __forceinline__ double quotient(double x, double y) { return x / y; }

// Calls put(slot, s, found, weight) for all samples of a block's items, spread over the threads, and for those that pad
// them. A lane takes Q samples of an item and its neighbours the next ones; the lanes of a warp stay together.
// N: the samples of an item, 4 of one map, as in a pyramid, or 16; 0 where the plan says how many, and then Q is 1.
template <class S, int N, int Q, class Put>
__device__ __forceinline__ void prepare(const DeformAttn& a, const Plan& plan, const Block& block, Put put) {
  using T = typename Compute<S>::type;
  static_assert(N ? N % Q == 0 : Q == 1, "an item is a whole number of parts");
  constexpr int kLeast = N ? log2_above(N / Q) : 2;
  const int samples = N ? N : plan.samples, padded = N ? N : plan.padded;
  const int log_preparing = N ? kLeast : plan.log_preparing;
  const void* points = of_image(static_cast<const char*>(a.points), block.image, plan.points);
  const void* weights = of_image(static_cast<const char*>(a.weights), block.image, plan.points / 2);
  const auto* reference = static_cast<const Pack<T, 2>*>(a.reference);
  const uint32_t rows = N != 4 && a.reference_per_level ? uint32_t(a.levels) : 1;  // of a query
  if (a.reference_per_batch) reference = of_image(reference, block.image, uint32_t(a.queries) * rows);
  const int preparing = 1 << log_preparing, first = Q * (int(threadIdx.x) & (preparing - 1));
  const int together = 32 >> log_preparing;  // items of a warp
  const auto larger = [](T x, T y) { return y > x ? y : x; };
  for (int slot = int(threadIdx.x) >> log_preparing; (slot & -together) < block.count;
       slot += int(blockDim.x) >> log_preparing) {
    const bool any = slot < block.count;
    const uint32_t item = block.first + uint32_t(any ? slot : 0), parts = item * uint32_t(samples / Q);
    const auto given = [&](int s, T(&x)[Q]) { read_points<S, Q>(weights, parts + s / Q, plan.lowered, x); };
    T mine[Q], largest = T(-INFINITY), sum = 0;
    for (int i = 0; i < Q; ++i) mine[i] = T(-INFINITY);
    if (N || first < samples) given(first, mine);
    if (a.raw) {
      const auto others = [&](auto visit) {
        for (int s = first + Q * preparing; !N && s < samples; s += Q * preparing) {
          T x[Q];
          given(s, x);
          visit(x[0]);
        }
      };
#pragma unroll
      for (int i = 0; i < Q; ++i) largest = larger(largest, mine[i]);
      others([&](T x) { largest = larger(largest, x); });
      largest = over_lanes<kLeast>(largest, log_preparing, larger);
#pragma unroll
      for (int i = 0; i < Q; ++i) sum += mine[i] = N || first < samples ? exponential(mine[i] - largest) : T(0);
      others([&](T x) { sum += exponential(x - largest); });
      sum = over_lanes<kLeast>(sum, log_preparing, [](T x, T y) { return x + y; });
#pragma unroll
      for (int i = 0; i < Q; ++i) mine[i] = quotient(mine[i], sum);
    }
    if (!any) continue;
    const uint32_t query = plan.by_heads.of(item), head = item - query * plan.by_heads.divisor;
    Pack<T, 2> from{};
    if (N == 4 && a.raw) from = read_global(reference + query);
    for (int begin = first; begin < padded; begin += Q * preparing) {
      T point[2 * Q] = {};
      if (N || begin < samples) read_points<S, 2 * Q>(points, parts + begin / Q, plan.lowered, point);
      if (!N && begin != first && begin < samples) {
        given(begin, mine);
        if (a.raw) mine[0] = quotient(exponential(mine[0] - largest), sum);
      }
#pragma unroll
      for (int i = 0; i < Q; ++i) {
        const int s = begin + i;
        Found<T> f{};
        if (N || s < samples) {
          const int level = N == 4 ? 0 : int(plan.by_points.of(uint32_t(s)));
          f.width = a.width_of[level], f.height = a.height_of[level];
          f.first = (uint32_t(a.start_of[level]) * uint32_t(a.heads) + head) * uint32_t(a.width);
          if (N != 4 && a.raw) from = read_global(reference + query * rows + (rows > 1 ? level : 0));
          f.at = locate(cell_coordinate(a.raw, from.items[0], point[2 * i], T(f.width)),
                        cell_coordinate(a.raw, from.items[1], point[2 * i + 1], T(f.height)), f.width, f.height);
        }
        put(slot, s, f, N || s < samples ? mine[i] : T(0));
      }
      if (N) break;
    }
    if (N == Q) break;  // an item has a lane, and a block no more items than lanes
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
__device__ __forceinline__ Pack<S, V> read_row(const S* values, uint32_t at) {
  return read_global(reinterpret_cast<const Pack<S, V>*>(values + at));
}

}  // namespace cuda
}  // namespace piip
