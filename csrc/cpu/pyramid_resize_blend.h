// The rows of a level, blended from the rows of an image: first vertically, then horizontally. This is compiled once
// per instruction set.
#pragma once

#include <algorithm>
#include <cstring>
#include <type_traits>
#include <vector>

#include "pyramid_resize_rows.h"
#include "pyramid_resize_tables.h"
#include "shuffles.h"
#include "simd.h"

namespace piip {
namespace PIIP_ISA {

#if defined(__AVX512F__)
constexpr int kGroupsPerPiece = 8;  // of a row; finished pieces are sent on

PIIP_INLINE __m512i load_indices(const uint8_t* indices) {
  return _mm512_maskz_cvtepu8_epi32(0xffff, _mm_loadu_si128(reinterpret_cast<const __m128i*>(indices)));
}

// Sends on what is new of C rows of which `x` outputs are finished. streams: one per channel, or null.
template <int C>
PIIP_INLINE void send(RowStream* streams, int x, int out) {
  if (streams)
    for (int c = 0; c < C; ++c) streams[c].send(sizeof(float) * std::min(x, out));
}

// Computes a whole row of outputs; source(i) gives the 16 inputs from `i` on. It writes whole vectors, at most one
// vector beyond the row.
template <int K, class Source>
void blend_groups(const Table<float>& table, const Groups<float>& groups, const Source& source, float* target, int out,
                  RowStream* stream) {
  const int count = K ? K : table.count, all = int(groups.first.size());
  const uint8_t* indices = groups.indices.data();
  const float* weights = groups.weights.data();
  for (int group = 0, x = 0; group < all; ++group, x += groups.lanes, indices += 16, weights += 16 * count) {
    const __m512 low = source(groups.first[group]), high = source(groups.first[group] + 16);
    __m512i tap = load_indices(indices);
    __m512 sum = _mm512_setzero_ps();
    for (int k = 0; k < count; ++k) {
      sum = _mm512_fmadd_ps(_mm512_loadu_ps(weights + 16 * k), _mm512_permutex2var_ps(low, tap, high), sum);
      tap = _mm512_add_epi32(tap, _mm512_set1_epi32(1));
    }
    _mm512_storeu_ps(target + x, sum);
    if ((group + 1) % kGroupsPerPiece == 0) send<1>(stream, x + groups.lanes, out);
  }
}

// The same for two taps and C channels, whose outputs lie `stride` items apart; source(c, i) is asked for multiples of
// 16 only. Writing past the caches needs groups of whole vectors.
template <int C, bool kPastCaches = false, class Source>
PIIP_INLINE void blend_windows(const Groups<float>& groups, const Source& source, float* target, size_t stride, int out,
                               RowStream* streams) {
  const int all = int(groups.first.size()), lanes = groups.lanes;
  const uint8_t* indices = groups.indices.data();
  const float* weights = groups.weights.data();
  __m512 window[C][3] = {};
  int at = groups.first[0] - kWindow;
  for (int group = 0, x = 0; group < all;) {
    const int end = streams ? std::min(all, group + kGroupsPerPiece) : all;
    for (; group < end; ++group, x += lanes, indices += 16, weights += 16) {
      // A branch for each distance is faster than a loop that shifts the window by 16.
      const int first = groups.first[group], moved = first - at;
      at = first;
      if (moved == 16) {
        for (int c = 0; c < C; ++c)
          window[c][0] = window[c][1], window[c][1] = window[c][2], window[c][2] = source(c, first + 32);
      } else if (moved == 32) {
        for (int c = 0; c < C; ++c)
          window[c][0] = window[c][2], window[c][1] = source(c, first + 16), window[c][2] = source(c, first + 32);
      } else if (moved) {
        for (int c = 0; c < C; ++c)
          for (int i = 0; i < 3; ++i) window[c][i] = source(c, first + 16 * i);
      }
      const __m512i tap = load_indices(indices), next = _mm512_add_epi32(tap, _mm512_set1_epi32(1));
      const __m512i last = _mm512_set1_epi32(31);
      const __mmask16 tap_high = _mm512_cmpgt_epi32_mask(tap, last), next_high = _mm512_cmpgt_epi32_mask(next, last);
      const __m512 w1 = _mm512_loadu_ps(weights), w0 = _mm512_sub_ps(_mm512_set1_ps(1), w1);
      for (int c = 0; c < C; ++c) {
        const auto fetch = [&](__m512i from, __mmask16 high) {
          const __m512 low = _mm512_permutex2var_ps(window[c][0], from, window[c][1]);
          return _mm512_mask_permutexvar_ps(low, high, from, window[c][2]);
        };
        const __m512 sum = _mm512_fmadd_ps(w1, fetch(next, next_high), _mm512_mul_ps(w0, fetch(tap, tap_high)));
        kPastCaches ? _mm512_stream_ps(target + c * stride + x, sum) : _mm512_storeu_ps(target + c * stride + x, sum);
      }
    }
    send<C>(streams, x, out);
  }
}
#endif

#if defined(__AVX2__)
// Computes outputs of two taps, eight at a time, whose taps are loaded as pairs. Returns where it stopped.
inline int blend_pairs(const Table<float>& table, const float* source, float* target, int out) {
  const int* first = table.first.data();
  const auto pair = [&](int x) {
    double both;
    std::memcpy(&both, source + first[x], sizeof(both));
    return both;
  };
  int x = 0;
  for (; x + 8 <= out; x += 8) {
    const Vector<double, 4> low{pair(x), pair(x + 1), pair(x + 2), pair(x + 3)},
        high{pair(x + 4), pair(x + 5), pair(x + 6), pair(x + 7)};
    const float* weights = table.weights.data() + 2 * x;
    const Vector<float, 8> a = load<float, 8>(weights) * Vector<float, 8>(low),
                           b = load<float, 8>(weights + 8) * Vector<float, 8>(high);
    // The sums are taken within the halves of the registers, and then put in order.
    const Vector<double, 4> sum = Vector<double, 4>(__builtin_shufflevector(a, b, 0, 2, 8, 10, 4, 6, 12, 14) +
                                                    __builtin_shufflevector(a, b, 1, 3, 9, 11, 5, 7, 13, 15));
    store<float, 8>(target + x, Vector<float, 8>(__builtin_shufflevector(sum, sum, 0, 2, 1, 3)));
  }
  return x;
}
#endif

// Computes outputs from `x` on, four at a time, the taps of each side by side in vectors of N. Returns where it
// stopped.
template <class T, int N>
int blend_vectors(const Table<T>& table, const T* source, T* target, int x, int out) {
  using Bits = Vector<std::conditional_t<sizeof(T) == 4, int32_t, int64_t>, N>;
  // What lies behind the taps weighs nothing, but it may be NaN, so it is masked.
  const int last = table.stride - N;
  Bits taps{};
  for (int i = 0; i < N; ++i) taps[i] = last + i < table.count ? -1 : 0;
  for (; x + 4 <= out; x += 4) {
    Vector<T, N> sums[4];
    for (int i = 0; i < 4; ++i) {
      const T *from = source + table.first[x + i], *weights = table.weights.data() + size_t(x + i) * table.stride;
      sums[i] = load<T, N>(weights + last) * Vector<T, N>(Bits(load<T, N>(from + last)) & taps);
      for (int k = 0; k < last; k += N) sums[i] += load<T, N>(weights + k) * load<T, N>(from + k);
    }
    store<T, 4>(target + x, sum_lanes<T, N>(sums[0], sums[1], sums[2], sums[3]));
  }
  return x;
}

template <class T>
void blend_columns(const LevelTables<T>& tables, const T* source, T* target, int out, RowStream* stream) {
  const Table<T>& table = tables.x;
  int x = 0;
  if constexpr (std::is_same_v<T, float>) {
#if defined(__AVX512F__)
    if (tables.groups.lanes) {
      const auto inputs = [&](int i) { return _mm512_loadu_ps(source + i); };
      const auto of_channel = [&](int, int i) { return inputs(i); };
      if (table.count == 2) return blend_windows<1>(tables.groups, of_channel, target, 0, out, stream);
      if (table.count == 4) return blend_groups<4>(table, tables.groups, inputs, target, out, stream);
      return blend_groups<0>(table, tables.groups, inputs, target, out, stream);
    }
#endif
#if defined(__AVX2__)
    if (table.count == 2) x = blend_pairs(table, source, target, out);
#endif
  }
  if (table.stride == 4) x = blend_vectors<T, 4>(table, source, target, x, out);
  if (table.stride >= 8) x = blend_vectors<T, 8>(table, source, target, x, out);
  const T* __restrict weights = table.weights.data() + size_t(x) * table.stride;
  if (table.count == 2) {
    for (; x < out; ++x, weights += 2) {
      const T* from = source + table.first[x];
      target[x] = weights[0] * from[0] + weights[1] * from[1];
    }
  }
  for (; x < out; ++x, weights += table.stride) {
    T sum = 0;
    for (int k = 0; k < table.count; ++k) sum += weights[k] * source[table.first[x] + k];
    target[x] = sum;
  }
}

template <class T>
void blend_rows(const Table<T>& table, int y, int c, Rows<T>& rows, T* __restrict target, int width) {
  const T* weights = table.weights.data() + size_t(y) * table.stride;
  const int first = table.first[y];
  if (table.count == 2) {
    const T* __restrict upper = rows.row(first, c), * __restrict lower = rows.row(first + 1, c);
    const T w0 = weights[0], w1 = weights[1];
    for (int x = 0; x < width; ++x) target[x] = w0 * upper[x] + w1 * lower[x];
    return;
  }
  constexpr int L = kVectorBytes / int(sizeof(T));
  std::vector<const T*>& sources = rows.sources();
  sources.clear();
  for (int k = 0; k < table.count; ++k) sources.push_back(rows.row(first + k, c));
  int x = 0;
  for (; x + 4 * L <= width; x += 4 * L) {
    Vector<T, L> sums[4] = {};
    for (int k = 0; k < table.count; ++k)
      for (int i = 0; i < 4; ++i) sums[i] += weights[k] * load<T, L>(sources[k] + x + i * L);
    for (int i = 0; i < 4; ++i) store<T, L>(target + x + i * L, sums[i]);
  }
  for (; x < width; ++x) {
    T sum = 0;
    for (int k = 0; k < table.count; ++k) sum += weights[k] * sources[k][x];
    target[x] = sum;
  }
}

#if defined(__AVX512F__)
// Row `y` of C channels from `first` on, where both axes have two taps: no intermediate row is stored.
template <int C, bool kPastCaches = false>
void blend_both(const LevelTables<float>& tables, int y, int first, Rows<float>& rows, float* finished, size_t stride,
                int out, RowStream* streams) {
  const float* weights = tables.y.weights.data() + size_t(y) * tables.y.stride;
  const __m512 w0 = _mm512_set1_ps(weights[0]), w1 = _mm512_set1_ps(weights[1]);
  const float *upper[C], *lower[C];
  for (int c = 0; c < C; ++c) {
    upper[c] = rows.row(tables.y.first[y], first + c);
    lower[c] = rows.row(tables.y.first[y] + 1, first + c);
  }
  const auto inputs = [&](int c, int i) {
    return _mm512_fmadd_ps(w1, _mm512_loadu_ps(lower[c] + i), _mm512_mul_ps(w0, _mm512_loadu_ps(upper[c] + i)));
  };
  blend_windows<C, kPastCaches>(tables.groups, inputs, finished, stride, out, streams);
}
#endif

// Row `y` of all channels of a level: it is blended vertically into `blended`, then horizontally into `finished`, where
// the channels lie `stride` items apart. `streams` sends finished pieces on where levels are floats; else it is null.
template <class T>
void resample_rows(const LevelTables<T>& tables, int y, Rows<T>& rows, T* blended, T* finished, size_t stride, int in,
                   int out, int channels, RowStream* streams) {
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<T, float>) {
    if (tables.blends_both()) {
      if (channels == 3) return blend_both<3>(tables, y, 0, rows, finished, stride, out, streams);
      for (int c = 0; c < channels; ++c)
        blend_both<1>(tables, y, c, rows, finished + c * stride, stride, out, streams ? streams + c : nullptr);
      return;
    }
  }
#endif
  for (int c = 0; c < channels; ++c) {
    T* const end = finished + c * stride;
    const T* row = tables.copy_y ? rows.row(y, c) : blended;
    if (!tables.copy_y) blend_rows(tables.y, y, c, rows, tables.copy_x ? end : blended, in);
    if (!tables.copy_x) blend_columns(tables, row, end, out, streams ? streams + c : nullptr);
  }
}

// Writes row `y` of all channels of a level past the caches to where it belongs, where rows are whole vectors and
// channels lie `plane` items apart; memory takes them while the next vectors are computed. Returns whether it could.
template <class T>
bool write_through(const LevelTables<T>& tables, int y, Rows<T>& rows, T* past, size_t plane, int out, int channels) {
  if (tables.copies()) return rows.read_through(y, past, plane);
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<T, float>) {
    if (tables.blends_both() && tables.groups.lanes == 16 && channels == 3) {
      blend_both<3, true>(tables, y, 0, rows, past, plane, out, nullptr);
      return true;
    }
  }
#endif
  return false;
}

}  // namespace PIIP_ISA
}  // namespace piip
