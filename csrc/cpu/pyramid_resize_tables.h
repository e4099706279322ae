// Which pixels the outputs of a level take, and how much of each: tables for whole axes, made once per call. This is
// compiled once per instruction set.
#pragma once

#include <algorithm>
#include <numeric>
#include <type_traits>
#include <vector>

#include "../pyramid_resize.h"
#include "pyramid_resize_rows.h"

namespace piip {
namespace PIIP_ISA {

// The taps of a whole axis: every output has `count` consecutive ones, all of them inside the input.
template <class T>
struct Table {
  int count = 1;
  int stride = 2;  // `count`, rounded up to whole vectors
  std::vector<int> first;
  std::vector<T> weights;  // [output][stride], zero behind the taps

  explicit Table(const Axis<T>& axis) : first(axis.out) {
    if (is_copy(axis)) {
      std::iota(first.begin(), first.end(), 0);
      stride = 1;
      weights.assign(axis.out, T(1));
      return;
    }
    std::vector<Taps<T>> taps(axis.out);
    for (int i = 0; i < axis.out; ++i) {
      taps[i] = find_taps(axis, i);
      count = std::max(count, std::min(taps[i].count, axis.in));
    }
    if (count > 2) stride = count > 4 ? (count + 7) / 8 * 8 : 4;
    weights.assign(size_t(stride) * axis.out, T(0));
    for (int i = 0; i < axis.out; ++i) {
      first[i] = std::clamp(taps[i].first, 0, axis.in - count);
      for (int k = 0; k < taps[i].count; ++k)
        weights[size_t(i) * stride + clamp_index(taps[i].first + k, axis.in) - first[i]] +=
            tap_weight(axis, taps[i], k);
    }
  }
};

// The columns of a table in groups of neighbours whose taps all lie in the same registers of 16 inputs. A permutation
// of these registers does what a gather would do item by item. Outputs of two taps have three registers at multiples of
// 16, each of which is read once per row; others have two registers that begin with the first tap. Only AVX-512 can do
// this, and only with floats.
template <class T>
struct Groups {
  explicit Groups(const Table<T>&) {}
};
#if defined(__AVX512F__)
template <>
struct Groups<float> {
  int lanes = 16;          // outputs per group; 0 where the taps lie too far apart
  int given;               // taps whose weights are stored: of two only w, that of the second; the first has 1 - w
  std::vector<int> first;  // [group], the input where the first register begins
  std::vector<uint8_t> indices;  // [group][16], where in the registers the first tap lies
  std::vector<float> weights;    // [group][given][16]

  explicit Groups(const Table<float>& table) : given(table.count == 2 ? 1 : table.count) {
    const int out = int(table.first.size()), count = table.count;
    if (count == 1) lanes = 0;
    const int reach = count == 2 ? kWindow : 32;
    const auto start = [&](int i) { return count == 2 ? table.first[i] / 16 * 16 : table.first[i]; };
    for (int i = 0; i < out; ++i)
      while (lanes && table.first[std::min(i + lanes, out) - 1] + count - start(i) > reach) --lanes;
    if (lanes < 8) lanes = 0;
    if (!lanes) return;
    const int groups = (out + lanes - 1) / lanes;
    indices.assign(size_t(groups) * 16, 0);
    weights.assign(size_t(groups) * given * 16, 0.0f);
    for (int group = 0; group < groups; ++group) {
      const int begin = group * lanes, end = std::min(begin + lanes, out);
      first.push_back(start(begin));
      for (int i = begin, lane = 0; i < end; ++i, ++lane) {
        indices[group * 16 + lane] = uint8_t(table.first[i] - first[group]);
        const float* taps = table.weights.data() + size_t(i) * table.stride;
        float* own = weights.data() + size_t(group) * given * 16 + lane;
        for (int k = 0; k < given; ++k) own[k * 16] = taps[count - given + k];
        // At an edge both taps may fall on the second pixel. Its weight must be exactly 1, so that the first has none.
        if (count == 2 && taps[0] == 0) *own = 1;
      }
    }
  }
};
#endif

template <class T>
struct LevelTables {
  bool copy_y, copy_x;
  Table<T> y, x;
  Groups<T> groups;
  LevelTables(const PyramidResize& a, const PyramidLevel& level)
      : LevelTables(make_axis<T>(a.height, level.height, level.factor_y, a.filter, a.antialias),
                    make_axis<T>(a.width, level.width, level.factor_x, a.filter, a.antialias)) {}
  LevelTables(const Axis<T>& ay, const Axis<T>& ax)
      : copy_y(is_copy(ay)), copy_x(is_copy(ax)), y(ay), x(ax), groups(x) {}

  // Whether pixels are copied, not resampled.
  bool copies() const { return copy_y && copy_x; }

  // Whether both axes have two taps, and there are groups of columns.
  bool blends_both() const {
#if defined(__AVX512F__)
    if constexpr (std::is_same_v<T, float>)
      return !copy_y && !copy_x && y.count == 2 && x.count == 2 && groups.lanes > 0;
#endif
    return false;
  }
};

}  // namespace PIIP_ISA
}  // namespace piip
