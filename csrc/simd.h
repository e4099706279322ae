// Short vectors for the CPU kernels, written with the vector extension of GCC and Clang.
//
// Files that include this are compiled once per instruction set, each time with its own PIIP_ISA. Everything lives in a
// namespace of that name, so that the linker cannot put a function compiled for AVX-512 into the portable path.
#pragma once

#include <cmath>
#include <cstring>
#include <type_traits>
#include <utility>

#include "common.h"

#if defined(__F16C__)
#include <immintrin.h>
#endif

#define PIIP_INLINE inline __attribute__((always_inline))

namespace piip {
namespace PIIP_ISA {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

// Lanes of the vectors of T; those of double are lowered to what the machine has.
template <class T>
constexpr int kLanes = sizeof(T) == 8 ? 4 : kVectorBytes / 4;

template <class T, int N>
struct VectorOf {
  typedef T type __attribute__((vector_size(N * sizeof(T))));
};
template <class T, int N>
using Vector = typename VectorOf<T, N>::type;

template <class T, int N>
PIIP_INLINE Vector<T, N> load(const T* p) {
  Vector<T, N> v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}

template <class T, int N>
PIIP_INLINE void store(T* p, Vector<T, N> v) {
  std::memcpy(p, &v, sizeof(v));
}

constexpr bool kToWrite = true;

// Fetches the cache lines of `count` items; any address will do.
template <bool kWrite = false, class S>
PIIP_INLINE void prefetch(const S* p, int count) {
  const uintptr_t address = reinterpret_cast<uintptr_t>(p);
  for (uintptr_t line = address & ~uintptr_t(63); line < address + count * sizeof(S); line += 64)
    __builtin_prefetch(reinterpret_cast<const void*>(line), kWrite);
}

// Lane i gets lane i ^ kDistance.
template <int kDistance, class V, int... kLane>
PIIP_INLINE V swap_lanes(V v, std::integer_sequence<int, kLane...>) {
  return __builtin_shufflevector(v, v, (kLane ^ kDistance)...);
}
template <int kDistance, class T, int N>
PIIP_INLINE Vector<T, N> swap_lanes(Vector<T, N> v) {
  return swap_lanes<kDistance>(v, std::make_integer_sequence<int, N>());
}

// Vectors are seen as groups of four units of kUnit lanes. Of each group pair, the units kPick: 0 to 3 are those of a,
// 4 to 7 those of b.
template <int kUnit, int... kPick, class V, int... kLane>
PIIP_INLINE V pick(V a, V b, std::integer_sequence<int, kLane...>) {
  constexpr int N = sizeof...(kLane), picks[] = {kPick...};
  return __builtin_shufflevector(a, b,
                                 (picks[kLane / kUnit % 4] / 4 * N + kLane / (4 * kUnit) * (4 * kUnit) +
                                  picks[kLane / kUnit % 4] % 4 * kUnit + kLane % kUnit)...);
}

// Unit i of every group gets the sum over the group's units of vector i.
template <int kUnit, class T, int N>
PIIP_INLINE Vector<T, N> sum_units(const Vector<T, N>* v) {
  constexpr auto lanes = std::make_integer_sequence<int, N>();
  const auto ab = pick<kUnit, 0, 4, 1, 5>(v[0], v[1], lanes) + pick<kUnit, 2, 6, 3, 7>(v[0], v[1], lanes);
  const auto cd = pick<kUnit, 0, 4, 1, 5>(v[2], v[3], lanes) + pick<kUnit, 2, 6, 3, 7>(v[2], v[3], lanes);
  return pick<kUnit, 0, 1, 4, 5>(ab, cd, lanes) + pick<kUnit, 2, 3, 6, 7>(ab, cd, lanes);
}

// Lane i gets item kFrom(i) of a, or behind its end of b.
template <int (*kFrom)(int), class V, int... kLane>
PIIP_INLINE V shuffle(V a, V b, std::integer_sequence<int, kLane...>) {
  return __builtin_shufflevector(a, b, kFrom(kLane)...);
}
template <int (*kFrom)(int), class T, int N>
PIIP_INLINE Vector<T, N> shuffle(Vector<T, N> a, Vector<T, N> b) {
  return shuffle<kFrom>(a, b, std::make_integer_sequence<int, N>());
}

// The order of lanes: lane 4j + k holds item N / 4 * k + j. So `transpose_quads` leaves the items of four vectors side
// by side, in order of memory, and back.
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

// Splits N pairs, in order of memory, into two vectors in order of lanes.
template <class T, int N>
PIIP_INLINE Vector<T, N> first_of_pairs(Vector<T, N> low, Vector<T, N> high) {
  return shuffle<part_of_pair<N, 0>, T, N>(low, high);
}
template <class T, int N>
PIIP_INLINE Vector<T, N> second_of_pairs(Vector<T, N> low, Vector<T, N> high) {
  return shuffle<part_of_pair<N, 1>, T, N>(low, high);
}

// The lower and the upper half of such pairs.
template <class T, int N>
PIIP_INLINE Vector<T, N> first_pairs(Vector<T, N> first, Vector<T, N> second) {
  return shuffle<lane_of_pair<N, 0>, T, N>(first, second);
}
template <class T, int N>
PIIP_INLINE Vector<T, N> second_pairs(Vector<T, N> first, Vector<T, N> second) {
  return shuffle<lane_of_pair<N, 1>, T, N>(first, second);
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

// Four items, again and again.
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

// Of such, item k everywhere, or in the lower half and item k + 1 in the upper one.
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

template <class T, int N>
PIIP_INLINE Vector<T, N / 2> sum_of_halves(Vector<T, N> v) {
  Vector<T, N / 2> halves[2];
  std::memcpy(halves, &v, sizeof(v));
  return halves[0] + halves[1];
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

// Sums of four vectors.
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

// --- storage types ------------------------------------------------------------------------------------------------

PIIP_INLINE float bits_to_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

PIIP_INLINE uint32_t float_to_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}

PIIP_INLINE float widen(uint8_t x) { return float(x); }
PIIP_INLINE float widen(float x) { return x; }
PIIP_INLINE double widen(double x) { return x; }
PIIP_INLINE float widen(Bfloat x) { return bits_to_float(uint32_t(x.bits) << 16); }
PIIP_INLINE float widen(Half x) {
#if defined(__F16C__)
  return _cvtsh_ss(x.bits);
#else
  // Exponent and mantissa moved into place, then the bias corrected by a multiplication, which also handles subnormals.
  const uint32_t magnitude = uint32_t(x.bits & 0x7fff) << 13;
  const uint32_t sign = uint32_t(x.bits & 0x8000) << 16;
  const float scaled = bits_to_float(magnitude) * bits_to_float(0x77800000);
  const uint32_t infinite = (x.bits & 0x7c00) == 0x7c00 ? 0x7f800000 : 0;
  return bits_to_float(sign | float_to_bits(scaled) | infinite | (infinite ? magnitude & 0x7fffff : 0));
#endif
}

template <class S>
PIIP_INLINE S narrow(typename Compute<S>::type x);
template <>
PIIP_INLINE float narrow<float>(float x) {
  return x;
}
template <>
PIIP_INLINE double narrow<double>(double x) {
  return x;
}
// Round to nearest even. NaN stays NaN: the addition must not carry it over into infinity.
template <>
PIIP_INLINE Bfloat narrow<Bfloat>(float x) {
  const uint32_t bits = float_to_bits(x);
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  return {uint16_t(x == x ? rounded : 0x7fc0)};
}
template <>
PIIP_INLINE Half narrow<Half>(float x) {
#if defined(__F16C__)
  return {uint16_t(_cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT))};
#else
  const uint32_t bits = float_to_bits(x);
  const uint32_t sign = (bits >> 16) & 0x8000, magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return {uint16_t(sign | 0x7e00)};
  if (magnitude >= 0x477ff000) return {uint16_t(sign | 0x7c00)};
  if (magnitude < 0x38800000) {
    // Below the normal numbers: adding 0.5 lets the hardware round at the right bit.
    const uint32_t shifted = float_to_bits(bits_to_float(magnitude) + 0.5f) - 0x3f000000;
    return {uint16_t(sign | shifted)};
  }
  const uint32_t rounded = magnitude - 0x38000000 + 0xfff + ((magnitude >> 13) & 1);
  return {uint16_t(sign | (rounded >> 13))};
#endif
}

template <class T, int N, class S>
PIIP_INLINE Vector<T, N> widen_vector(const S* p) {
  if constexpr (sizeof(S) == sizeof(T)) {
    return load<T, N>(reinterpret_cast<const T*>(p));
#if defined(__F16C__)
  } else if constexpr (std::is_same_v<S, Half> && N == 8) {
    Vector<T, N> v;
    const __m256 wide = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    std::memcpy(&v, &wide, sizeof(v));
    return v;
  } else if constexpr (std::is_same_v<S, Half> && N == 16) {
    const Vector<T, 8> halves[] = {widen_vector<T, 8>(p), widen_vector<T, 8>(p + 8)};
    Vector<T, N> v;
    std::memcpy(&v, halves, sizeof(v));
    return v;
#endif
  } else if constexpr (std::is_same_v<S, Bfloat>) {
    const auto bits = __builtin_convertvector((load<uint16_t, N>(&p->bits)), Vector<uint32_t, N>) << 16;
    Vector<T, N> v;
    std::memcpy(&v, &bits, sizeof(v));
    return v;
  } else {
    Vector<T, N> v;
    for (int i = 0; i < N; ++i) v[i] = widen(p[i]);
    return v;
  }
}

template <class T, int N, class S>
PIIP_INLINE void narrow_vector(Vector<T, N> v, S* p) {
  if constexpr (sizeof(S) == sizeof(T)) {
    store<T, N>(reinterpret_cast<T*>(p), v);
  } else {
    for (int i = 0; i < N; ++i) p[i] = narrow<S>(v[i]);
  }
}

// Both with restrict-qualified rows of any length; simple enough for the compiler to vectorise.
template <class S, class T>
PIIP_INLINE void widen_row(const S* __restrict source, T* __restrict target, int count) {
  for (int i = 0; i < count; ++i) target[i] = widen(source[i]);
}

template <class S, class T>
PIIP_INLINE void narrow_row(const T* __restrict source, S* __restrict target, int count) {
  for (int i = 0; i < count; ++i) target[i] = narrow<S>(source[i]);
}

// The same for rows of a few vectors: whole ones, then the rest in halves.
template <class T, int N, class S>
PIIP_INLINE void widen_items(const S* source, T* target, int count) {
  int i = 0;
  for (; i + N <= count; i += N) store<T, N>(target + i, widen_vector<T, N>(source + i));
  if constexpr (N > 1) {
    if (i < count) widen_items<T, N / 2>(source + i, target + i, count - i);
  }
}

template <class T, int N, class S>
PIIP_INLINE void narrow_items(const T* source, S* target, int count) {
  int i = 0;
  for (; i + N <= count; i += N) narrow_vector<T, N>(load<T, N>(source + i), target + i);
  if constexpr (N > 1) {
    if (i < count) narrow_items<T, N / 2>(source + i, target + i, count - i);
  }
}

// The first `count` items, then zeros; nothing beyond them is touched.
template <class T, int N, class S>
PIIP_INLINE Vector<T, N> widen_first(const S* p, int count) {
  Vector<T, N> v;
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<S, float> && N == 16) {
    const __m512 first = _mm512_maskz_loadu_ps(__mmask16((1u << count) - 1), p);
    std::memcpy(&v, &first, sizeof(v));
    return v;
  }
#endif
#if defined(__AVX2__)
  if constexpr (std::is_same_v<S, float> && N == 8) {
    const __m256i mask = _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    const __m256 first = _mm256_maskload_ps(p, mask);
    std::memcpy(&v, &first, sizeof(v));
    return v;
  }
#endif
  alignas(64) T lanes[N] = {};
  widen_items<T, N>(p, lanes, count);
  std::memcpy(&v, lanes, sizeof(v));
  return v;
}

// Writes the first `count` items. Masked stores are slow on AMD before AVX-512.
template <class T, int N, class S>
PIIP_INLINE void narrow_first(Vector<T, N> v, S* target, int count) {
#if defined(__AVX512VL__)
  if constexpr (std::is_same_v<S, float> && N == 16) {
    return _mm512_mask_storeu_ps(target, __mmask16((1u << count) - 1), (__m512)v);
  } else if constexpr (std::is_same_v<S, float> && N == 8) {
    return _mm256_mask_storeu_ps(target, __mmask8((1u << count) - 1), (__m256)v);
  }
#endif
  alignas(64) T items[N];
  store<T, N>(items, v);
  narrow_items<T, N>(items, target, count);
}

// e^x for x <= 0, of floats to about two units in the last place. NaN gives NaN.
template <class T, int N>
PIIP_INLINE Vector<T, N> exp_negative(Vector<T, N> x) {
  if constexpr (sizeof(T) == 8) {
    for (int i = 0; i < N; ++i) x[i] = std::exp(x[i]);
    return x;
  } else {
    using V = Vector<T, N>;
    using Bits = Vector<int32_t, N>;
    const V clamped = x < -87.0f ? V{} - 87.0f : x;         // false for NaN, which passes on
    const V shifted = clamped * 1.44269504f + 12582912.0f;  // rounds to the nearest integer in the low mantissa bits
    const V n = shifted - 12582912.0f;
    const V r = (clamped - n * 0.693359375f) + n * 2.12194440e-4f;
    V p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    const V scale = (V)(((Bits)shifted << 23) + 0x3f800000);
    return x < -87.0f ? V{} : p * scale;
  }
}

}  // namespace PIIP_ISA
}  // namespace piip
