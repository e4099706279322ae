// Short vectors for the CPU kernels, and the storage types in them, written with the vector extension of GCC and Clang.
//
// This is compiled once per instruction set, each time with another PIIP_ISA. Everything lives in a
// namespace of that name, so that the linker cannot put a function compiled for AVX-512 into the portable path.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>
#include <utility>

#include "../common.h"

#if defined(__F16C__)
#include <immintrin.h>
#elif defined(__SSE2__)
#include <emmintrin.h>
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

// The lanes of a vector of T. Vectors of four doubles are lowered to what the machine has.
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

// Stores a vector past the caches, so that a cache line that is written whole is not fetched first. Vectors are as long
// as the machine's or half as long, addresses divisible by their size. Other threads see it after `finish_streams`.
template <class T, int N>
PIIP_INLINE void stream(T* p, Vector<T, N> v) {
#if defined(__AVX512F__)
  if constexpr (sizeof(v) == 64) return _mm512_stream_ps(reinterpret_cast<float*>(p), (__m512)v);
#endif
#if defined(__AVX2__)
  if constexpr (sizeof(v) == 32) return _mm256_stream_ps(reinterpret_cast<float*>(p), (__m256)v);
#endif
#if defined(__SSE2__)
  if constexpr (sizeof(v) == 16) return _mm_stream_ps(reinterpret_cast<float*>(p), (__m128)v);
#endif
  store<T, N>(p, v);
}

inline void finish_streams() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

constexpr bool kToWrite = true;

// Prefetches the cache lines of `count` items. The address may be anything.
template <bool kWrite = false, class S>
PIIP_INLINE void prefetch(const S* p, int count) {
  const uintptr_t address = reinterpret_cast<uintptr_t>(p);
  for (uintptr_t line = address & ~uintptr_t(63); line < address + count * sizeof(S); line += 64)
    __builtin_prefetch(reinterpret_cast<const void*>(line), kWrite);
}

// Joins two vectors to one of twice the length; and the halves of a vector.
template <class H, int... kLane>
PIIP_INLINE auto join(H low, H high, std::integer_sequence<int, kLane...>) {
  return __builtin_shufflevector(low, high, kLane...);
}
template <class T, int N>
PIIP_INLINE Vector<T, 2 * N> join(Vector<T, N> low, Vector<T, N> high) {
  return (Vector<T, 2 * N>)join(low, high, std::make_integer_sequence<int, 2 * N>());
}

template <int kFirst, class V, int... kLane>
PIIP_INLINE auto part(V v, std::integer_sequence<int, kLane...>) {
  return __builtin_shufflevector(v, v, (kFirst + kLane)...);
}
template <class T, int N>
PIIP_INLINE Vector<T, N / 2> lower_half(Vector<T, N> v) {
  return (Vector<T, N / 2>)part<0>(v, std::make_integer_sequence<int, N / 2>());
}
template <class T, int N>
PIIP_INLINE Vector<T, N / 2> upper_half(Vector<T, N> v) {
  return (Vector<T, N / 2>)part<N / 2>(v, std::make_integer_sequence<int, N / 2>());
}

// Calls body(0) to body(n - 1), whose arguments are constants.
template <int... k, class Body>
PIIP_INLINE void for_constants(std::integer_sequence<int, k...>, const Body& body) {
  (body(std::integral_constant<int, k>()), ...);
}
template <int n, class Body>
PIIP_INLINE void for_constants(const Body& body) {
  for_constants(std::make_integer_sequence<int, n>(), body);
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
  // Exponent and mantissa are moved into place; a multiplication then corrects the bias, and handles subnormals too.
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
// Rounds to nearest even. NaN stays NaN, which the addition could carry over into infinity.
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
    return join<T, 8>(widen_vector<T, 8>(p), widen_vector<T, 8>(p + 8));
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

// The same for any number of items: whole vectors first, then the rest in ever shorter ones.
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

// Reads the lower half of a vector, whose upper half is zero; and writes the lower half.
template <class T, int N>
PIIP_INLINE Vector<T, N> load_half(const T* p) {
  return join<T, N / 2>(load<T, N / 2>(p), Vector<T, N / 2>{});
}

template <class T, int N>
PIIP_INLINE void store_half(T* p, Vector<T, N> v) {
  store<T, N / 2>(p, lower_half<T, N>(v));
}

// Reads the first `count` items, the rest of the vector is zero. It reads in halves: a masked load of AVX-512 touches
// all cache lines of the vector, and the line behind the items may have to come from memory.
template <class T, int N, class S>
PIIP_INLINE Vector<T, N> widen_first(const S* p, int count) {
  if constexpr (N == 2) {
    return count == 2 ? widen_vector<T, N>(p) : Vector<T, N>{count ? widen(p[0]) : T(0)};
  } else {
    constexpr int kHalf = N / 2;
    using Half = Vector<T, kHalf>;
    const Half low = count < kHalf ? widen_first<T, kHalf>(p, count) : widen_vector<T, kHalf>(p);
    const Half high = count > kHalf ? widen_first<T, kHalf>(p + kHalf, count - kHalf) : Half{};
    return join<T, kHalf>(low, high);
  }
}

// Reads a vector from R rows in memory, N / R items of each, from `row` on. Rows behind the `last` one repeat it.
template <class T, int N, int R, class S>
PIIP_INLINE Vector<T, N> widen_rows(const S* p, int64_t step, int last, int row = 0) {
  if constexpr (R == 1) {
    return widen_vector<T, N>(p + std::min(row, last) * step);
  } else {
    return join<T, N / 2>(widen_rows<T, N / 2, R / 2>(p, step, last, row),
                          widen_rows<T, N / 2, R / 2>(p, step, last, row + R / 2));
  }
}

// Writes a vector to such rows, but none behind the `last` one.
template <class T, int N, int R, class S>
PIIP_INLINE void narrow_rows(Vector<T, N> v, S* p, int64_t step, int last, int row = 0) {
  if constexpr (R == 1) {
    if (row <= last) narrow_vector<T, N>(v, p + row * step);
  } else {
    narrow_rows<T, N / 2, R / 2>(lower_half<T, N>(v), p, step, last, row);
    narrow_rows<T, N / 2, R / 2>(upper_half<T, N>(v), p, step, last, row + R / 2);
  }
}

// Writes the first `count` items, also in halves: masked stores are slow on AMD processors before AVX-512.
template <class T, int N, class S>
PIIP_INLINE void narrow_first(Vector<T, N> v, S* target, int count) {
  if constexpr (N == 2) {
    if (count == 2) return narrow_vector<T, N>(v, target);
    if (count) *target = narrow<S>(v[0]);
  } else {
    constexpr int kHalf = N / 2;
    if (count < kHalf) return narrow_first<T, kHalf>(lower_half<T, N>(v), target, count);
    narrow_vector<T, kHalf>(lower_half<T, N>(v), target);
    if (count > kHalf) narrow_first<T, kHalf>(upper_half<T, N>(v), target + kHalf, count - kHalf);
  }
}

template <class T, int N>
PIIP_INLINE Vector<T, N> floor_vector(Vector<T, N> x) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4 && N == 16) {
    return (Vector<T, N>)_mm512_maskz_roundscale_ps(0xffff, (__m512)x, _MM_FROUND_TO_NEG_INF);
  }
#endif
#if defined(__AVX__)
  if constexpr (sizeof(T) == 4 && N == 8) return (Vector<T, N>)_mm256_floor_ps((__m256)x);
#endif
  for (int i = 0; i < N; ++i) x[i] = std::floor(x[i]);
  return x;
}

// e^x for x <= 0; of floats it is right to about two units in the last place. NaN gives NaN.
template <class T, int N>
PIIP_INLINE Vector<T, N> exp_negative(Vector<T, N> x) {
  if constexpr (sizeof(T) == 8) {
    for (int i = 0; i < N; ++i) x[i] = std::exp(x[i]);
    return x;
  } else {
    using V = Vector<T, N>;
    using Bits = Vector<int32_t, N>;
    const V clamped = V{} - 87.0f > x ? V{} - 87.0f : x;    // false for NaN, which passes on
    const V shifted = clamped * 1.44269504f + 12582912.0f;  // rounds to the nearest integer in the low mantissa bits
    const V n = shifted - 12582912.0f;
    const V r = (clamped - n * 0.693359375f) + n * 2.12194440e-4f;
    V p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + (r + 1.0f);
    const V scale = (V)(((Bits)shifted << 23) + 0x3f800000);
    return x < -87.0f ? V{} : p * scale;
  }
}

}  // namespace PIIP_ISA
}  // namespace piip
