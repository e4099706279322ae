// Where the samples of a block of queries lie and what they weigh; and in the backward the gradients of both.
//
// A vector holds one number of N samples, such as their weights. The samples of a block are numbered by query, head and
// sample, and the N samples of a vector follow each other in this order of memory. Arithmetic uses another order of the
// lanes, the "order of lanes": lane 4j + k holds item N / 4 * k + j. With N = 16 (AVX-512), two heads per task and four
// samples per head and query, the first vector of a block is
//
//   order of memory                                            order of lanes
//
//   lane    0  1  2  3  4  5  6  7  8  9 10 11 12 13 14 15     lane    0  1  2  3  4  5  6  7  8  9 10 11 12 13 14 15
//   item    0  1  2  3  4  5  6  7  8  9 10 11 12 13 14 15     item    0  4  8 12  1  5  9 13  2  6 10 14  3  7 11 15
//   query   0  0  0  0  0  0  0  0  1  1  1  1  1  1  1  1     query   0  0  1  1  0  0  1  1  0  0  1  1  0  0  1  1
//   head    0  0  0  0  1  1  1  1  0  0  0  0  1  1  1  1     head    0  1  0  1  0  1  0  1  0  1  0  1  0  1  0  1
//   sample  0  1  2  3  0  1  2  3  0  1  2  3  0  1  2  3     sample  0  0  0  0  1  1  1  1  2  2  2  2  3  3  3  3
//
// The reason for the order of lanes: the weights of the four corners are computed as four vectors, and are needed
// corner by corner behind each other for every sample. `transpose_quads` turns the one into the other within groups of
// four lanes; what it leaves is [item][corner] in order of memory.
//
// Sums over the samples of a head and query, such as that of a softmax, are taken in the order of memory, where those
// are neighbouring lanes (`over_rows`). A row, the samples of one head of one query, is therefore padded: to 4, 8 or 16
// samples up to the length of a vector, to whole vectors beyond. Padding has no weight and lies outside its map.
#pragma once

#include <algorithm>
#include <array>
#include <limits>
#include <utility>
#include <vector>

#include "../bilinear.h"
#include "deform_attn_planes.h"
#include "parallel.h"
#include "shuffles.h"

namespace piip {
namespace PIIP_ISA {

constexpr int kBlock = 256;  // samples per block; more only where a single query has more

template <class T>
struct Samples {
  const DeformAttn& a;
  const Layout& layout;
  int per_query;  // samples of one head of a query
  int row;        // per_query with its padding: samples from head to head
  int heads;      // rows of a query
  int queries;    // per block

  // For every sample, in order of memory: [query][head][row].
  int32_t* place;  // where the upper left corner lies in its plane, in steps of kStep elements
  T* corners;      // [4], attention weight times bilinear weight
  T* dots;         // [4], products of the output gradient with the four cells

  // Places are counted in units of 8 bytes: processors multiply an index by 8 on its way to memory.
  static constexpr int kStep = 8 / sizeof(T);

  Samples(const DeformAttn& problem, const Layout& maps, int pitch, int group, bool backward)
      : a(problem),
        layout(maps),
        per_query(problem.levels * problem.points_per_level),
        row(4),
        heads(group),
        steps_(pitch / kStep),
        backward_(backward) {
    while (row < per_query && row < N) row *= 2;
    if (row < per_query) row = (per_query + N - 1) / N * N;
    queries = std::max(kBlock / (row * heads), 1);

    const size_t size = whole_vectors(queries);
    const std::pair<T**, int> fields[] = {{&corners, 4}, {&dots, 4}, {&points_, 2}, {&attention_, 1},
                                          {&fx_, 1},     {&fy_, 1},  {&rx_, 1},     {&ry_, 1}};
    size_t items = 0;
    for (const auto& field : fields) items += field.second;
    memory_ = Scratch<T>(size * items);
    std::fill(memory_.data(), memory_.data() + size * items, T(0));
    T* next = memory_.data();
    for (const auto& [field, width] : fields) *field = next, next += size * width;
    places_ = Scratch<int32_t>(size);
    place = places_.data();

    maps_.resize(std::max(row / N, 1));
    for (int i = 0; i < int(maps_.size()) * N; ++i) {
      Maps& maps = maps_[i / N];
      const int lane = lane_of<N>(i % N), level = level_of(i % row);
      maps.width[lane] = T(a.width_of[level]);
      maps.height[lane] = T(a.height_of[level]);
      maps.pitch[lane] = layout.row[level];
      maps.origin[lane] = layout.cell(level, 0, 0);
    }
  }

  // The first sample of a head of a query, both counted inside the block.
  int64_t at(int query, int head) const { return int64_t(query * heads + head) * row; }

  // Reads the points and weights of `count` queries from `first` on, and computes `place` and `corners`.
  template <class P>
  void prepare(Heads group, int64_t first, int count) {
    a.raw ? prepare<P, true>(group, first, count) : prepare<P, false>(group, first, count);
  }

  // Turns `dots` into the gradients of points and weights, and writes them.
  template <class P>
  void finish(Heads group, int64_t first, int count) {
    const int64_t query = group.image * a.queries + first;
    P *weights = static_cast<P*>(a.grad_weights), *points = static_cast<P*>(a.grad_points);
    const bool done = as_they_lie(group, [&](auto kTogether) {
      constexpr int R = kTogether;
      const int items = heads * row;
      const int64_t step = int64_t(a.heads) * row, start = query * step + group.first * row, ahead = queries * step;
      P *to_weights = weights + start, *to_points = points + 2 * start;
      for (int q = 0, k = 0; q < count; q += R, to_weights += R * step, to_points += 2 * R * step) {
        const int last = std::min(R, count - q) - 1;
        for (int i = 0; i < items; i += N, k += N) {
          fetch<kToWrite, R>(to_weights + i + ahead, step);
          fetch_points<kToWrite, R>(to_points + 2 * (i + ahead), 2 * step);
          const auto [x, y, value] = differentiate(k);
          const V weight = load<T, N>(attention_ + k), logit = weight * (value - over_rows(weight * value, sum));
          narrow_rows<T, N, R>(a.raw ? logit : value, to_weights + i, step, last);
          narrow_pairs<R>(join_pairs<T, N>(x, y), to_points + 2 * i, 2 * step, last);
        }
      }
    });
    if (done) return;
    const int size = whole_vectors(count), length = std::max(row, N);
    for (int first_of_row = 0; first_of_row < size; first_of_row += length) {
      const int end = first_of_row + length;
      V total = {};
      for (int k = first_of_row; k < end; k += N) {
        const auto [x, y, value] = differentiate(k);
        const auto [low, high] = join_pairs<T, N>(x, y);
        store<T, N>(points_ + 2 * k, low);
        store<T, N>(points_ + 2 * k + N, high);
        store<T, N>(fx_ + k, value);
        total += load<T, N>(attention_ + k) * value;
      }
      total = over_rows(total, sum);
      for (int k = first_of_row; k < end; k += N) {
        const V value = load<T, N>(fx_ + k), logit = load<T, N>(attention_ + k) * (value - total);
        store<T, N>(attention_ + k, a.raw ? logit : value);
      }
    }
    write<P>(attention_, 1, group, query, count, weights);
    write<P>(points_, 2, group, query, count, points);
  }

 private:
  static constexpr int N = kLanes<T>;
  using V = Vector<T, N>;
  using Cells = Vector<int32_t, N>;

  int steps_;      // from cell to cell, in the unit of `place`
  bool backward_;  // whether gradients follow

  // For every sample, in order of memory but for the fractions.
  T* points_;     // [2], x and y as given; later their gradients
  T* attention_;  // weights; later their gradients
  T *fx_, *fy_;   // fractions, in order of lanes; `finish` keeps the samples' values in fx
  T *rx_, *ry_;   // reference points
  Scratch<T> memory_;
  Scratch<int32_t> places_;

  // The maps that the samples of a vector lie on, in order of lanes.
  struct Maps {
    V width, height;
    Cells pitch, origin;
  };
  std::vector<Maps> maps_;  // the vectors of one row, or the one vector that several rows share; the same for every row

  int whole_vectors(int count) const { return (count * heads * row + N - 1) / N * N; }
  static T infinity() { return std::numeric_limits<T>::infinity(); }
  const Maps& maps_at(int first) const { return maps_[first / N % maps_.size()]; }
  int level_of(int sample) const { return std::min(sample / a.points_per_level, a.levels - 1); }

  // Calls body(R) and returns true where vectors can be read from the tensors as they lie, each from R queries: rows
  // have no padding, are no longer than a vector, and all samples of a query have one reference point.
  template <class Body>
  bool as_they_lie(Heads group, const Body& body) const {
    if (row != per_query || row > N || group.count != heads || a.reference_per_level) return false;
    const int samples = heads * row;
    if (samples % N == 0) {
      body(std::integral_constant<int, 1>());
      return true;
    }
    if constexpr (N >= 8) {
      if (samples * 2 == N) {
        body(std::integral_constant<int, 2>());
        return true;
      }
    }
    if constexpr (N >= 16) {
      if (samples * 4 == N) {
        body(std::integral_constant<int, 4>());
        return true;
      }
    }
    return false;
  }

  // Prefetches where the R rows of a later vector begin; beyond the tensor's end this does nothing. It must be inlined:
  // the compiler takes a function that only prefetches for one without effect.
  template <bool kWrite, int R, class P>
  static PIIP_INLINE void fetch(const P* p, int64_t step) {
    for (int r = 0; r < R; ++r) __builtin_prefetch(p + r * step, kWrite);
  }
  // The same for points, which fill two vectors where the samples of one query fill one.
  template <bool kWrite, int R, class P>
  static PIIP_INLINE void fetch_points(const P* p, int64_t step) {
    fetch<kWrite, R>(p, step);
    if (R == 1) fetch<kWrite, R>(p + N, step);
  }

  // Read and write the points of a vector of samples, x and y in turn, of R queries.
  template <int R, class P>
  static PIIP_INLINE std::array<V, 2> widen_pairs(const P* p, int64_t step, int last) {
    if constexpr (R == 1) {
      return {widen_vector<T, N>(p), widen_vector<T, N>(p + N)};
    } else {
      return {widen_rows<T, N, R / 2>(p, step, last), widen_rows<T, N, R / 2>(p, step, last, R / 2)};
    }
  }
  template <int R, class P>
  static PIIP_INLINE void narrow_pairs(const std::array<V, 2>& pairs, P* p, int64_t step, int last) {
    if constexpr (R == 1) {
      narrow_vector<T, N>(pairs[0], p);
      narrow_vector<T, N>(pairs[1], p + N);
    } else {
      narrow_rows<T, N, R / 2>(pairs[0], p, step, last);
      narrow_rows<T, N, R / 2>(pairs[1], p, step, last, R / 2);
    }
  }

  template <class P, bool kRaw>
  void prepare(Heads group, int64_t first, int count) {
    const int64_t query = group.image * a.queries + first, reference = a.reference_per_batch ? query : first;
    const P *weights = static_cast<const P*>(a.weights), *points = static_cast<const P*>(a.points);
    const bool done = as_they_lie(group, [&](auto kTogether) {
      constexpr int R = kTogether;
      const int items = heads * row;
      const int64_t step = int64_t(a.heads) * row, start = query * step + group.first * row, ahead = queries * step;
      const P *from_weights = weights + start, *from_points = points + 2 * start;
      // Two short loops are faster than one: the chain of operations from logits to corners is so long that a processor
      // would have too few samples under way.
      for (int q = 0, k = 0; q < count; q += R, from_weights += R * step) {
        const int last = std::min(R, count - q) - 1;
        for (int i = 0; i < items; i += N, k += N) {
          fetch<!kToWrite, R>(from_weights + i + ahead, step);
          const V weight = widen_rows<T, N, R>(from_weights + i, step, last);
          store<T, N>(attention_ + k, kRaw ? softmax(weight) : weight);
        }
      }
      const Maps maps = maps_[0];
      const T* center = static_cast<const T*>(a.reference) + 2 * reference;
      for (int q = 0, k = 0; q < count; q += R, from_points += 2 * R * step, center += 2 * R) {
        const int last = std::min(R, count - q) - 1;
        V x = {}, y = {};
        if (kRaw) x = repeat_rows<T, N, R>(center, 2, last), y = repeat_rows<T, N, R>(center + 1, 2, last);
        for (int i = 0; i < items; i += N, k += N) {
          fetch_points<!kToWrite, R>(from_points + 2 * (i + ahead), 2 * step);
          const auto [low, high] = widen_pairs<R>(from_points + 2 * i, 2 * step, last);
          locate<kRaw>(k, maps, low, high, x, y);
        }
      }
    });
    if (done) return;
    read<P>(weights, 1, group, query, count, kRaw ? -infinity() : T(0), attention_);
    read<P>(points, 2, group, query, count, infinity(), points_);
    if (kRaw) read_reference(reference, count);
    const int size = whole_vectors(count);
    if (kRaw && row > N) {
      for (int k = 0; k < size; k += row) softmax_long(attention_ + k);
    } else if (kRaw) {
      for (int k = 0; k < size; k += N) store<T, N>(attention_ + k, softmax(load<T, N>(attention_ + k)));
    }
    for (int k = 0; k < size; k += N)
      locate<kRaw>(k, maps_at(k), load<T, N>(points_ + 2 * k), load<T, N>(points_ + 2 * k + N),
                   to_lanes<T, N>(load<T, N>(rx_ + k)), to_lanes<T, N>(load<T, N>(ry_ + k)));
  }

  // Copies the rows of `group`, `items` numbers per sample, and fills up each with `pad`.
  template <class P>
  void read(const P* source, int items, Heads group, int64_t query, int count, T pad, T* target) const {
    const int used = per_query * items, pitch = row * items;
    const int64_t step = int64_t(a.heads) * used;
    source += query * step + group.first * used;
    for (int q = 0; q < count; ++q, source += step, target += heads * pitch) {
      prefetch(source + queries * step, group.count * used);
      for (int h = 0; h < group.count; ++h) {
        widen_items<T, N>(source + h * used, target + h * pitch, used);
        std::fill(target + h * pitch + used, target + (h + 1) * pitch, pad);
      }
    }
  }

  template <class P>
  void write(const T* source, int items, Heads group, int64_t query, int count, P* target) const {
    const int used = per_query * items, pitch = row * items;
    const int64_t step = int64_t(a.heads) * used;
    target += query * step + group.first * used;
    for (int q = 0; q < count; ++q, source += heads * pitch, target += step) {
      prefetch<kToWrite>(target + queries * step, group.count * used);
      for (int h = 0; h < group.count; ++h) narrow_items<T, N>(source + h * pitch, target + h * used, used);
    }
  }

  // Repeats the reference points of `count` queries for all of their samples, in order of memory.
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

  static PIIP_INLINE V larger(V x, V y) { return x > y ? x : y; }
  static PIIP_INLINE V sum(V x, V y) { return x + y; }

  // Combines every lane with all others of its row. Of a row longer than a vector, the vectors are combined before.
  template <class Op>
  PIIP_INLINE V over_rows(V v, Op op) const {
    v = op(v, swap_lanes<1, T, N>(v));
    v = op(v, swap_lanes<2, T, N>(v));
    if constexpr (N > 4) {
      if (row > 4) v = op(v, swap_lanes<4, T, N>(v));
    }
    if constexpr (N > 8) {
      if (row > 8) v = op(v, swap_lanes<8, T, N>(v));
    }
    return v;
  }

  // Softmax over rows no longer than a vector.
  PIIP_INLINE V softmax(V logits) const {
    const V v = exp_negative<T, N>(logits - over_rows(logits, larger));
    return v / over_rows(v, sum);
  }

  // Softmax over a row of several vectors.
  void softmax_long(T* weights) const {
    V top = V{} - infinity(), total = {};
    for (int i = 0; i < row; i += N) top = larger(load<T, N>(weights + i), top);
    top = over_rows(top, larger);
    for (int i = 0; i < row; i += N) {
      const V v = exp_negative<T, N>(load<T, N>(weights + i) - top);
      store<T, N>(weights + i, v);
      total += v;
    }
    total = over_rows(total, sum);
    for (int i = 0; i < row; i += N) store<T, N>(weights + i, load<T, N>(weights + i) / total);
  }

  // Computes place and corners of one vector of samples, whose weights are known. The points (low, high) are given in
  // order of memory, the reference points in order of lanes.
  template <bool kRaw>
  PIIP_INLINE void locate(int first, const Maps& maps, V low, V high, V reference_x, V reference_y) {
    const V weight = to_lanes<T, N>(load<T, N>(attention_ + first));
    const auto [point_x, point_y] = split_pairs<T, N>(low, high);
    const auto [x, fx] = split(cell_coordinate<V>(kRaw, reference_x, point_x, maps.width), maps.width);
    const auto [y, fy] = split(cell_coordinate<V>(kRaw, reference_y, point_y, maps.height), maps.height);
    const Cells found = (y * maps.pitch + (x + maps.origin)) * steps_;
    const V lower = fy * weight, upper = weight - lower;
    V corner[4] = {upper - upper * fx, upper * fx, lower - lower * fx, lower * fx};
    transpose_quads<T, N>(corner);
    for (int j = 0; j < 4; ++j) store<T, N>(corners + 4 * first + j * N, corner[j]);
    store<int32_t, N>(place + first, from_lanes<int32_t, N>(found));
    if (!backward_) return;
    store<T, N>(fx_ + first, fx);
    store<T, N>(fy_ + first, fy);
  }

  // The cell at or before a coordinate, and the fraction, as in `piip::locate`. A sample that touches no cell, and NaN,
  // get a place in the border of the plane, two cells before the map or right behind it.
  static PIIP_INLINE std::pair<Cells, V> split(V x, V size) {
    x = x > -2 ? x : V{} - 2;
    x = x < size ? x : size;
    const V whole = floor_vector<T, N>(x);
    return {__builtin_convertvector(whole, Cells), x - whole};
  }

  // The gradients of the points of one vector of samples, x and y in order of lanes; and the samples' values, which are
  // the gradients of their weights, in order of memory.
  PIIP_INLINE std::array<V, 3> differentiate(int first) const {
    V d[4];
    for (int j = 0; j < 4; ++j) d[j] = load<T, N>(dots + 4 * first + j * N);
    transpose_quads<T, N>(d);
    const V weight = to_lanes<T, N>(load<T, N>(attention_ + first));
    const V fx = load<T, N>(fx_ + first), fy = load<T, N>(fy_ + first);
    V x = weight * slope_x(fy, d[0], d[1], d[2], d[3]), y = weight * slope_y(fx, d[0], d[1], d[2], d[3]);
    if (!a.raw) {
      // These are gradients with respect to cells. Offsets are in cells, locations in widths and heights of the map.
      const Maps& maps = maps_at(first);
      x *= maps.width, y *= maps.height;
    }
    return {x, y, from_lanes<T, N>(blend(fx, fy, d[0], d[1], d[2], d[3]))};
  }
};

}  // namespace PIIP_ISA
}  // namespace piip
