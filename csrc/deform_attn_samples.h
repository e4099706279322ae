// Where the samples of a block of queries lie and what they weigh; and, backward, the gradients of both.
//
// Lanes are samples: those of a query's heads lie next to each other in memory, so that nothing is transposed.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "bilinear.h"
#include "deform_attn_planes.h"
#include "parallel.h"

namespace piip {
namespace PIIP_ISA {

constexpr int kRun = 32;     // samples computed together, a multiple of any vector
constexpr int kBlock = 512;  // samples of a block, more only where one query has more

// Replaces every row of `row` items by op over the row; row is a power of two from 4 to kRun or a multiple of kRun.
template <class T, class Op>
void across_rows(T* items, int count, int row, Op op) {
  constexpr int N = kLanes<T>;
  const int vectors = std::max(row / N, 1);
  for (int k = 0; k < count; k += vectors * N) {
    auto v = load<T, N>(items + k);
    for (int i = 1; i < vectors; ++i) v = op(v, load<T, N>(items + k + i * N));
    v = op(v, swap_lanes<1, T, N>(v));
    v = op(v, swap_lanes<2, T, N>(v));
    if constexpr (N > 4) {
      if (row > 4) v = op(v, swap_lanes<4, T, N>(v));
    }
    if constexpr (N > 8) {
      if (row > 8) v = op(v, swap_lanes<8, T, N>(v));
    }
    for (int i = 0; i < vectors; ++i) store<T, N>(items + k + i * N, v);
  }
}

template <class T>
PIIP_INLINE T exp_of_negative(T x) {
  if constexpr (sizeof(T) == 8) {
    return std::exp(x);
  } else {
    return exp_negative(x);
  }
}

template <class T>
struct Samples {
  const DeformAttn& a;
  const Layout& layout;
  int per_query;  // samples of one head of a query
  int row;        // from head to head: per_query rounded up, to a power of two or whole runs
  int heads;      // from query to query
  int queries;    // of a block

  // By sample, [query][head][row]. What lies between per_query and row has no weight and lies outside.
  int32_t* cell;  // of the upper left corner
  T* points;      // x, y; the backward leaves their gradients here
  T* attention;   // weights after the softmax; the backward leaves the gradients of the inputs here
  T *fx, *fy;     // fractions
  T* corners;     // [4]: attention times bilinear weight
  T* dots;        // [4]: products of the output gradient with the four cells

  Samples(const DeformAttn& problem, const Layout& maps, int group)
      : a(problem), layout(maps), per_query(problem.levels * problem.points_per_level), row(4), heads(group) {
    while (row < per_query && row < kRun) row *= 2;
    if (row < per_query) row = (per_query + kRun - 1) / kRun * kRun;
    queries = std::max(kBlock / (row * heads), 1);

    const size_t size = whole_runs(queries);
    const std::pair<T**, int> fields[] = {{&corners, 4}, {&dots, 4}, {&points, 2}, {&attention, 1}, {&fx, 1},
                                          {&fy, 1},      {&rx_, 1},  {&ry_, 1},    {&sums_, 1}};
    size_t items = 0;
    for (const auto& field : fields) items += field.second;
    memory_ = Scratch<T>(size * items);
    std::fill(memory_.data(), memory_.data() + size * items, T(0));
    T* next = memory_.data();
    for (const auto& [field, width] : fields) *field = next, next += size * width;
    cells_ = Scratch<int32_t>(size);
    cell = cells_.data();

    const int period = std::max(row, kRun);
    tables_ = Scratch<int32_t>(size_t(period) * 5);
    int32_t* table = tables_.data();
    for (int32_t** field : {&width_, &height_, &pitch_, &origin_, &outside_}) *field = table, table += period;
    for (int i = 0; i < period; ++i) {
      const int level = level_of(i % row);
      width_[i] = a.width_of[level];
      height_[i] = a.height_of[level];
      pitch_[i] = layout.row[level];
      origin_[i] = layout.cell(level, 0, 0);
      outside_[i] = layout.outside(a, level);
    }
  }

  // Samples of a head of a query, both counted inside the block.
  int64_t at(int query, int head) const { return int64_t(query * heads + head) * row; }

  // Reads points and weights of `count` queries from `first` on and fills in the samples.
  template <class P>
  void prepare(Heads group, int64_t first, int count) {
    const int64_t query = group.image * a.queries + first;
    read<P>(static_cast<const P*>(a.weights), 1, group, query, count, a.raw ? -infinity() : T(0), attention);
    read<P>(static_cast<const P*>(a.points), 2, group, query, count, infinity(), points);
    const int size = whole_runs(count);
    if (a.raw) {
      softmax(size);
      read_reference(a.reference_per_batch ? query : first, count);
    }
    for (int k = 0; k < size; k += kRun) a.raw ? locate_run<true>(k) : locate_run<false>(k);
  }

  // Turns the products into gradients of points and weights, in their place, and stores them.
  template <class P>
  void finish(Heads group, int64_t first, int count) {
    const int size = whole_runs(count);
    for (int k = 0; k < size; k += kRun) a.raw ? differentiate_run<true>(k) : differentiate_run<false>(k);
    if (a.raw) {
      across_rows(sums_, size, row, [](auto x, auto y) { return x + y; });
      for (int k = 0; k < size; ++k) attention[k] *= fx[k] - sums_[k];
    }
    const int64_t query = group.image * a.queries + first;
    write<P>(a.raw ? attention : fx, 1, group, query, count, static_cast<P*>(a.grad_weights));
    write<P>(points, 2, group, query, count, static_cast<P*>(a.grad_points));
  }

 private:
  static constexpr int N = kLanes<T>;
  Scratch<T> memory_;
  Scratch<int32_t> cells_, tables_;
  T *rx_, *ry_, *sums_;
  int32_t *width_, *height_, *pitch_, *origin_, *outside_;  // of the sample's map, periodic

  int whole_runs(int count) const { return (count * heads * row + kRun - 1) / kRun * kRun; }
  static T infinity() { return std::numeric_limits<T>::infinity(); }
  int level_of(int sample) const { return std::min(sample / a.points_per_level, a.levels - 1); }

  // Rows of `group`, `items` items a sample, with `pad` after each.
  template <class P>
  void read(const P* source, int items, Heads group, int64_t query, int count, T pad, T* target) const {
    const int used = per_query * items, pitch = row * items;
    const int64_t step = int64_t(a.heads) * used;
    source += query * step + group.first * used;
    for (int q = 0; q < count; ++q, source += step, target += heads * pitch) {
      prefetch(source + queries * step, group.count * used);  // beyond the tensor's end it does nothing
      if (used == pitch) {
        widen_items<T, N>(source, target, group.count * used);
      } else {
        for (int h = 0; h < group.count; ++h) {
          widen_items<T, N>(source + h * used, target + h * pitch, used);
          std::fill(target + h * pitch + used, target + (h + 1) * pitch, pad);
        }
      }
    }
  }

  template <class P>
  void write(const T* source, int items, Heads group, int64_t query, int count, P* target) const {
    const int used = per_query * items, pitch = row * items;
    const int64_t step = int64_t(a.heads) * used;
    target += query * step + group.first * used;
    for (int q = 0; q < count; ++q, source += heads * pitch, target += step) {
      prefetch(target + queries * step, group.count * used);
      if (used == pitch) {
        narrow_items<T, N>(source, target, group.count * used);
      } else {
        for (int h = 0; h < group.count; ++h) narrow_items<T, N>(source + h * pitch, target + h * used, used);
      }
    }
  }

  void softmax(int size) {
    T* __restrict weights = attention, * __restrict sums = sums_;
    std::copy(weights, weights + size, sums);
    across_rows(sums, size, row, [](auto x, auto y) { return x > y ? x : y; });
    for (int k = 0; k < size; ++k) sums[k] = weights[k] = exp_of_negative(weights[k] - sums[k]);
    across_rows(sums, size, row, [](auto x, auto y) { return x + y; });
    for (int k = 0; k < size; ++k) weights[k] /= sums[k];
  }

  // Spreads the reference points of `count` queries over their samples.
  void read_reference(int64_t query, int count) {
    const int levels = a.reference_per_level ? a.levels : 1;
    const T* point = static_cast<const T*>(a.reference) + 2 * levels * query;
    for (int q = 0; q < count; ++q, point += 2 * levels) {
      T *rx = rx_ + at(q, 0), *ry = ry_ + at(q, 0);
      if (levels == 1) {
        for (int i = 0; i < heads * row; i += 4) {
          store<T, 4>(rx + i, point[0] + Vector<T, 4>{});
          store<T, 4>(ry + i, point[1] + Vector<T, 4>{});
        }
      } else {
        for (int i = 0; i < row; ++i) {
          rx[i] = point[2 * level_of(i)];
          ry[i] = point[2 * level_of(i) + 1];
        }
        for (int h = 1; h < heads; ++h) {
          std::copy(rx, rx + row, rx + h * row);
          std::copy(ry, ry + row, ry + h * row);
        }
      }
    }
  }

  template <bool kRaw>
  void locate_run(int first) {
    const int period = first % std::max(row, kRun);
    locate<kRaw>(width_ + period, height_ + period, pitch_ + period, origin_ + period, outside_ + period, rx_ + first,
                 ry_ + first, points + 2 * first, attention + first, cell + first, fx + first, fy + first,
                 corners + 4 * first);
  }

  template <bool kRaw>
  static void locate(const int32_t* __restrict width, const int32_t* __restrict height, const int32_t* __restrict pitch,
                     const int32_t* __restrict origin, const int32_t* __restrict outside, const T* __restrict rx,
                     const T* __restrict ry, const T* __restrict points, const T* __restrict attention,
                     int32_t* __restrict cell, T* __restrict fx, T* __restrict fy, T* __restrict corners) {
    for (int k = 0; k < kRun; ++k) {
      const Sample<T> at =
          piip::locate(cell_coordinate(kRaw, rx[k], points[2 * k], width[k]),
                       cell_coordinate(kRaw, ry[k], points[2 * k + 1], height[k]), width[k], height[k]);
      const int32_t found = origin[k] + at.y * pitch[k] + at.x;
      cell[k] = at.inside ? found : outside[k];
      fx[k] = at.fx;
      fy[k] = at.fy;
      const T lower = at.fy * attention[k], upper = attention[k] - lower;
      corners[4 * k] = upper - upper * at.fx;
      corners[4 * k + 1] = upper * at.fx;
      corners[4 * k + 2] = lower - lower * at.fx;
      corners[4 * k + 3] = lower * at.fx;
    }
  }

  template <bool kRaw>
  void differentiate_run(int first) {
    const int period = first % std::max(row, kRun);
    differentiate<kRaw>(width_ + period, height_ + period, dots + 4 * first, attention + first, fx + first, fy + first,
                        points + 2 * first, sums_ + first);
  }

  // Gradients of the points; the sample's value, which is the gradient of its weight, takes the place of fx.
  template <bool kRaw>
  static void differentiate(const int32_t* __restrict width, const int32_t* __restrict height, const T* __restrict dots,
                            const T* __restrict attention, T* __restrict fx, const T* __restrict fy,
                            T* __restrict points, T* __restrict weighted) {
    for (int k = 0; k < kRun; ++k) {
      const T d00 = dots[4 * k], d01 = dots[4 * k + 1], d10 = dots[4 * k + 2], d11 = dots[4 * k + 3];
      // The products give gradients with respect to cells; offsets are in cells, locations in map widths.
      const T unit_x = kRaw ? T(1) : T(width[k]), unit_y = kRaw ? T(1) : T(height[k]);
      points[2 * k] = unit_x * attention[k] * slope_x(fy[k], d00, d01, d10, d11);
      points[2 * k + 1] = unit_y * attention[k] * slope_y(fx[k], d00, d01, d10, d11);
      const T value = blend(fx[k], fy[k], d00, d01, d10, d11);
      fx[k] = value;
      weighted[k] = attention[k] * value;
    }
  }
};

}  // namespace PIIP_ISA
}  // namespace piip
