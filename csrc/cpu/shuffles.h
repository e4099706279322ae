// How the lanes of the vectors of simd.h change places, and sums over lanes. This is compiled once per instruction set.
#pragma once

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "simd.h"

namespace piip {
namespace PIIP_ISA {

// Lane i gets what lane i ^ kDistance holds.
template <int kDistance, class V, int... kLane>
PIIP_INLINE V swap_lanes(V v, std::integer_sequence<int, kLane...>) {
  return __builtin_shufflevector(v, v, (kLane ^ kDistance)...);
}
template <int kDistance, class T, int N>
PIIP_INLINE Vector<T, N> swap_lanes(Vector<T, N> v) {
  return swap_lanes<kDistance>(v, std::make_integer_sequence<int, N>());
}

// A vector is seen as groups of four units, a unit as kUnit lanes. Each group of the result consists of the four units
// kPick of the same group of a (0 to 3) and of b (4 to 7). With vectors of N = 8 lanes:
//
//   a                      a0 a1 a2 a3 | a4 a5 a6 a7
//   b                      b0 b1 b2 b3 | b4 b5 b6 b7
//   pick<1, 0, 4, 1, 5>    a0 b0 a1 b1 | a4 b4 a5 b5      units of one lane: two groups
//   pick<1, 2, 3, 6, 7>    a2 a3 b2 b3 | a6 a7 b6 b7
//   pick<2, 0, 4, 1, 5>    a0 a1 b0 b1   a2 a3 b2 b3      units of two lanes: one group
template <int kUnit, int... kPick, class V, int... kLane>
PIIP_INLINE V pick(V a, V b, std::integer_sequence<int, kLane...>) {
  constexpr int N = sizeof...(kLane), picks[] = {kPick...};
  return __builtin_shufflevector(a, b,
                                 (picks[kLane / kUnit % 4] / 4 * N + kLane / (4 * kUnit) * (4 * kUnit) +
                                  picks[kLane / kUnit % 4] % 4 * kUnit + kLane % kUnit)...);
}

// Unit i of every group gets the sum of the four units that this group has in vector i.
template <int kUnit, class T, int N>
PIIP_INLINE Vector<T, N> sum_units(const Vector<T, N>* v) {
  constexpr auto lanes = std::make_integer_sequence<int, N>();
  const auto ab = pick<kUnit, 0, 4, 1, 5>(v[0], v[1], lanes) + pick<kUnit, 2, 6, 3, 7>(v[0], v[1], lanes);
  const auto cd = pick<kUnit, 0, 4, 1, 5>(v[2], v[3], lanes) + pick<kUnit, 2, 6, 3, 7>(v[2], v[3], lanes);
  return pick<kUnit, 0, 1, 4, 5>(ab, cd, lanes) + pick<kUnit, 2, 3, 6, 7>(ab, cd, lanes);
}

// Lane i gets item kFrom(i) of a and b behind each other.
template <int (*kFrom)(int), class V, int... kLane>
PIIP_INLINE V shuffle(V a, V b, std::integer_sequence<int, kLane...>) {
  return __builtin_shufflevector(a, b, kFrom(kLane)...);
}
template <int (*kFrom)(int), class T, int N>
PIIP_INLINE Vector<T, N> shuffle(Vector<T, N> a, Vector<T, N> b) {
  return shuffle<kFrom>(a, b, std::make_integer_sequence<int, N>());
}

// The order of lanes, pictured in deform_attn_samples.h: lane 4j + k holds item N / 4 * k + j. From four vectors in
// this order `transpose_quads` makes four numbers per item, side by side in order of memory; and the reverse.
template <int N>
constexpr int item_of(int lane) {
  return N / 4 * (lane % 4) + lane / 4;
}
template <int N>
constexpr int lane_of(int item) {
  return item % (N / 4) * 4 + item / (N / 4);
}
template <int N, int kPart>
constexpr int part_of_pair(int lane) {
  return 2 * item_of<N>(lane) + kPart;
}
template <int N, int kHalf>
constexpr int lane_of_pair(int k) {
  return lane_of<N>(kHalf * N / 2 + k / 2) + k % 2 * N;
}

template <class T, int N>
PIIP_INLINE Vector<T, N> to_lanes(Vector<T, N> v) {
  return shuffle<item_of<N>, T, N>(v, v);
}
template <class T, int N>
PIIP_INLINE Vector<T, N> from_lanes(Vector<T, N> v) {
  return shuffle<lane_of<N>, T, N>(v, v);
}

// Splits N pairs (x, y), of which `low` and `high` hold the halves in order of memory, into x and y in order of lanes.
template <class T, int N>
PIIP_INLINE std::array<Vector<T, N>, 2> split_pairs(Vector<T, N> low, Vector<T, N> high) {
  return {shuffle<part_of_pair<N, 0>, T, N>(low, high), shuffle<part_of_pair<N, 1>, T, N>(low, high)};
}

// Joins them again.
template <class T, int N>
PIIP_INLINE std::array<Vector<T, N>, 2> join_pairs(Vector<T, N> first, Vector<T, N> second) {
  return {shuffle<lane_of_pair<N, 0>, T, N>(first, second), shuffle<lane_of_pair<N, 1>, T, N>(first, second)};
}

// Lane 4j + k of vector i gets lane 4j + i of vector k.
template <class T, int N>
PIIP_INLINE void transpose_quads(Vector<T, N> (&v)[4]) {
  constexpr auto lanes = std::make_integer_sequence<int, N>();
  const auto ab_low = pick<1, 0, 4, 1, 5>(v[0], v[1], lanes), ab_high = pick<1, 2, 6, 3, 7>(v[0], v[1], lanes);
  const auto cd_low = pick<1, 0, 4, 1, 5>(v[2], v[3], lanes), cd_high = pick<1, 2, 6, 3, 7>(v[2], v[3], lanes);
  v[0] = pick<1, 0, 1, 4, 5>(ab_low, cd_low, lanes);
  v[1] = pick<1, 2, 3, 6, 7>(ab_low, cd_low, lanes);
  v[2] = pick<1, 0, 1, 4, 5>(ab_high, cd_high, lanes);
  v[3] = pick<1, 2, 3, 6, 7>(ab_high, cd_high, lanes);
}

// Four items, repeated until the vector is full.
template <class T, int N>
PIIP_INLINE Vector<T, N> repeat_quad(const T* quad) {
#if defined(__AVX512F__)
  if constexpr (N == 16) return (Vector<T, N>)_mm512_maskz_broadcast_f32x4(0xffff, _mm_loadu_ps(quad));
#endif
#if defined(__AVX2__)
  if constexpr (N == 8) return (Vector<T, N>)_mm256_broadcast_ps(reinterpret_cast<const __m128*>(quad));
#endif
  if constexpr (N == 4) return load<T, N>(quad);
}

template <class T, int N>
PIIP_INLINE Vector<T, N> repeat_quad(Vector<T, 4> quad) {
  if constexpr (N == 4) {
    return quad;
  } else {
    const auto half = repeat_quad<T, N / 2>(quad);
    return join<T, N / 2>(half, half);
  }
}

// Four quads (four items each) in memory, of which `repeat` fills a vector with one. AVX-512 loads them all at once.
template <int k>
constexpr int item_of_quads(int lane) {
  return 4 * k + lane % 4;
}
template <class T, int N>
class Quads {
 public:
  explicit PIIP_INLINE Quads(const T* p) : p_(p) {
    if constexpr (N == 16) four_ = load<T, N>(p);
  }
  template <int k>
  PIIP_INLINE Vector<T, N> repeat() const {
    if constexpr (N == 16) return shuffle<item_of_quads<k>, T, N>(four_, four_);
    return repeat_quad<T, N>(p_ + 4 * k);
  }

 private:
  const T* p_;
  Vector<T, N> four_;
};

// One number of each of R rows, repeated for all items that a vector has of its row, in order of lanes. Rows behind the
// `last` one get its number.
template <class T, int N, int R>
PIIP_INLINE Vector<T, N> repeat_rows(const T* p, int64_t step, int last) {
  static_assert(R <= 4);
  const auto number = [&](int k) { return p[std::min(k * R / 4, last) * step]; };
  return repeat_quad<T, N>(Vector<T, 4>{number(0), number(1), number(2), number(3)});
}

// Of a vector that repeats four items: item k in all lanes, or item k in the lower half and item k + 1 in the upper
// one.
template <int k>
constexpr int item_of_quad(int lane) {
  return lane / 4 * 4 + k;
}
template <int N, int k>
constexpr int halves_of_quad(int lane) {
  return lane / 4 * 4 + k + lane / (N / 2);
}
template <int k, class T, int N>
PIIP_INLINE Vector<T, N> spread_item(Vector<T, N> quads) {
  return shuffle<item_of_quad<k>, T, N>(quads, quads);
}
template <int k, class T, int N>
PIIP_INLINE Vector<T, N> spread_pair(Vector<T, N> quads) {
  return shuffle<halves_of_quad<N, k>, T, N>(quads, quads);
}

// Lane i gets the sum of the lanes of vector i.
template <class T, int N>
PIIP_INLINE Vector<T, N> sum_each(const Vector<T, N> (&v)[N]) {
  Vector<T, N> quads[N / 4];
  for (int i = 0; i < N / 4; ++i) quads[i] = sum_units<1, T, N>(v + 4 * i);
  if constexpr (N == 4) {
    return quads[0];
  } else if constexpr (N == 8) {
    return __builtin_shufflevector(quads[0], quads[1], 0, 1, 2, 3, 8, 9, 10, 11) +
           __builtin_shufflevector(quads[0], quads[1], 4, 5, 6, 7, 12, 13, 14, 15);
  } else {
    return sum_units<4, T, N>(quads);
  }
}

// The sums of the lanes of four vectors.
template <class T, int N>
PIIP_INLINE Vector<T, 4> sum_lanes(Vector<T, N> a, Vector<T, N> b, Vector<T, N> c, Vector<T, N> d) {
  const Vector<T, N> v[] = {a, b, c, d};
  const auto quads = sum_units<1, T, N>(v);
  if constexpr (N == 4) {
    return quads;
  } else if constexpr (N == 8) {
    return __builtin_shufflevector(quads, quads, 0, 1, 2, 3) + __builtin_shufflevector(quads, quads, 4, 5, 6, 7);
  } else {
    const auto halves = __builtin_shufflevector(quads, quads, 0, 1, 2, 3, 4, 5, 6, 7) +
                        __builtin_shufflevector(quads, quads, 8, 9, 10, 11, 12, 13, 14, 15);
    return __builtin_shufflevector(halves, halves, 0, 1, 2, 3) + __builtin_shufflevector(halves, halves, 4, 5, 6, 7);
  }
}

}  // namespace PIIP_ISA
}  // namespace piip
