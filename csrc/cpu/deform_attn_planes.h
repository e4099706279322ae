// The values of a head as a plane of its own, in the compute type: cells are padded to whole or half vectors, and every
// map has a border of zeros. So the four cells of a sample always exist and are zero outside the map, neighbours along
// x are adjacent, and the plane of a narrow head stays in the cache.
#pragma once

#include <algorithm>
#include <stdexcept>
#include <type_traits>

#include "../deform_attn.h"
#include "simd.h"

namespace piip {
namespace PIIP_ISA {

// Cells are padded to a multiple of so many items. For the longest vectors it is half a vector, which can be read
// alone.
template <int N>
constexpr int kUnit = N == 16 ? 8 : N;
template <int N>
constexpr int padded(int width) {
  return (width + kUnit<N> - 1) / kUnit<N> * kUnit<N>;
}

// Where the maps of one head lie inside a plane, counted in cells. The border of a map is two rows above, two rows
// below and one column on each side. The column at the end of a row and the one at the start of the next are neighbours
// in memory, so two cells before a row and two cells behind it are border.
struct Layout {
  int32_t start[kMaxLevels];  // first cell of the level's border
  int row[kMaxLevels];        // cells per row, border included
  int64_t cells;

  // steps: from cell to cell, in units of the 8 bytes that `Samples::place` counts.
  Layout(const DeformAttn& a, int steps) {
    constexpr int kLongest = 1 << 24;  // a float counts no further
    cells = 1;
    for (int level = 0; level < a.levels; ++level) {
      start[level] = int32_t(cells);
      row[level] = a.width_of[level] + 2;
      cells += int64_t(row[level]) * (a.height_of[level] + 4);
      if (std::max(a.width_of[level], a.height_of[level]) > kLongest)
        throw std::invalid_argument("spatial_shapes must hold maps of at most 2^24 cells a side");
      if (cells >= INT32_MAX / steps)
        throw std::invalid_argument(
            "spatial_shapes must hold maps that take less than 16 GiB per head as float32, padded");
    }
    cells += 1;
  }
  int32_t cell(int level, int y, int x) const { return start[level] + (y + 2) * row[level] + x + 1; }
};

// Neighbouring heads of one image.
struct Heads {
  int64_t image;
  int first, count;
};

// The planes of several heads, one after the other. The items of a cell beyond the head's width are zero.
template <class T, int N>
struct Planes {
  const DeformAttn& a;
  const Layout& layout;
  int pitch;  // elements from cell to cell

  int64_t size() const { return layout.cells * pitch; }

  template <class S>
  void fill(Heads heads, T* planes) const {
    by_width([&](auto known) { this->fill<S, known>(heads, planes); });
  }

  // Writes finished gradient planes to the value gradient.
  template <class S>
  void store(Heads heads, const T* planes) const {
    by_width([&](auto known) { this->store<S, known>(heads, planes); });
  }

  // Copies one cell of one head, widened and padded. kWidth: the head's width where it is known, or 0.
  template <int kWidth = 0, class S>
  PIIP_INLINE void widen_cell(const S* source, T* target) const {
    const int whole = whole_vectors<kWidth>(), rest = width<kWidth>() - whole;
#pragma GCC unroll 4
    for (int d = 0; d < whole; d += N) PIIP_ISA::store<T, N>(target + d, widen_vector<T, N>(source + d));
    if (pitch_of<kWidth>() - whole == N) {
      PIIP_ISA::store<T, N>(target + whole, widen_first<T, N>(source + whole, rest));
    } else {
      constexpr int H = kUnit<N>;
      PIIP_ISA::store<T, H>(target + whole, widen_first<T, H>(source + whole, rest));
    }
  }

 private:
  template <int kWidth>
  int width() const {
    return kWidth ? kWidth : a.width;
  }
  template <int kWidth>
  int pitch_of() const {
    return kWidth ? padded<N>(kWidth) : pitch;
  }
  // Elements of a cell before its last vector.
  template <int kWidth>
  int whole_vectors() const {
    return (pitch_of<kWidth>() - 1) / N * N;
  }

  // Calls body(width). For the widths of the released networks it is a constant, so that their copies have no loops.
  template <class Body>
  void by_width(const Body& body) const {
    switch (a.width) {
      case 6: body(std::integral_constant<int, 6>()); break;
      case 12: body(std::integral_constant<int, 12>()); break;
      case 24: body(std::integral_constant<int, 24>()); break;
      case 32: body(std::integral_constant<int, 32>()); break;
      case 40: body(std::integral_constant<int, 40>()); break;
      default: body(std::integral_constant<int, 0>()); break;
    }
  }

  // Reads the cells in the order of memory, all heads of a cell together.
  template <class S, int kWidth>
  void fill(Heads heads, T* planes) const {
    const int64_t step = int64_t(a.heads) * a.width, plane = size();
    const int ahead = cells_ahead<S>(heads), head = width<kWidth>(), pitch = pitch_of<kWidth>(), count = heads.count;
    const S* source = static_cast<const S*>(a.value) + heads.image * a.cells * step + heads.first * head;
    for (int level = 0; level < a.levels; ++level) {
      const int width = a.width_of[level], height = a.height_of[level];
      const int64_t row = int64_t(layout.row[level]) * pitch;
      T* target = planes + int64_t(layout.cell(level, 0, 0)) * pitch;
      for (int h = 0; h < count; ++h) {
        T *first = target + h * plane, *below = first + height * row;
        std::fill(first - 2 * row - 2 * pitch, first, T(0));
        std::fill(below, below + 2 * row, T(0));
      }
      for (int y = 0; y < height; ++y, source += width * step, target += row) {
        for (int x = 0; x < width; ++x) {
          prefetch(source + (x + ahead) * step, count * head);
          for (int h = 0; h < count; ++h)
            widen_cell<kWidth>(source + x * step + h * head, target + h * plane + int64_t(x) * pitch);
        }
        for (int h = 0; h < count; ++h) {
          T* border = target + h * plane + int64_t(width) * pitch;
          std::fill(border, border + 2 * pitch, T(0));
        }
      }
    }
  }

  template <class S, int kWidth>
  void store(Heads heads, const T* planes) const {
    const int64_t step = int64_t(a.heads) * a.width, plane = size();
    const int ahead = cells_ahead<S>(heads), head = width<kWidth>(), pitch = pitch_of<kWidth>(), count = heads.count;
    S* target = static_cast<S*>(a.grad_value) + heads.image * a.cells * step + heads.first * head;
    const bool past_caches = streams<S, kWidth>(heads);
    for (int level = 0; level < a.levels; ++level)
      for (int y = 0; y < a.height_of[level]; ++y) {
        const T* source = planes + int64_t(layout.cell(level, y, 0)) * pitch;
        for (int x = 0, width = a.width_of[level]; x < width; ++x, target += step, source += pitch) {
          if (past_caches) {
            for (int h = 0; h < count; ++h) stream_cell<kWidth>(source + h * plane, target + h * head);
          } else {
            prefetch<kToWrite>(target + ahead * step, count * head);
            for (int h = 0; h < count; ++h) narrow_cell<kWidth>(source + h * plane, target + h * head);
          }
        }
      }
    if (past_caches) finish_streams();
  }

  // Whether gradients are written past the caches: where the cells of `heads` fill whole cache lines, and the gradient
  // is larger than the caches of a core. Then no line is fetched only to be overwritten.
  template <class S, int kWidth>
  static constexpr bool kStreams = std::is_same_v<S, T> && kWidth > 0 && kWidth % kUnit<N> == 0;
  template <class S, int kWidth>
  bool streams(Heads heads) const {
    constexpr int kLine = 64, kCore = 4 << 20;
    const int64_t cell = int64_t(a.heads) * a.width * sizeof(T), piece = heads.count * a.width * sizeof(T);
    return kStreams<S, kWidth> && piece % kLine == 0 && cell % kLine == 0 &&
           reinterpret_cast<uintptr_t>(a.grad_value) % kLine == 0 && a.batch * a.cells * cell > kCore;
  }

  template <int kWidth, class S>
  PIIP_INLINE void stream_cell(const T* source, S* target) const {
    if constexpr (kStreams<S, kWidth>) {
      constexpr int U = kUnit<N>;
      for (int d = 0; d < kWidth; d += U) stream<T, U>(target + d, load<T, U>(source + d));
    }
  }

  // How many cells ahead of their use cells are prefetched: some kilobytes.
  template <class S>
  int cells_ahead(Heads heads) const {
    return std::clamp(int(8192 / (heads.count * a.width * sizeof(S))), 16, 64);
  }

  template <int kWidth, class S>
  PIIP_INLINE void narrow_cell(const T* source, S* target) const {
    const int whole = whole_vectors<kWidth>(), rest = width<kWidth>() - whole;
#pragma GCC unroll 4
    for (int d = 0; d < whole; d += N) narrow_vector<T, N>(load<T, N>(source + d), target + d);
    const bool half = pitch_of<kWidth>() - whole < N;
    narrow_first<T, N>(half ? load_half<T, N>(source + whole) : load<T, N>(source + whole), target + whole, rest);
  }
};

}  // namespace PIIP_ISA
}  // namespace piip
