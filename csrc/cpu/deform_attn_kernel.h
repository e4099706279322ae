// The inner loops of deformable attention: gathering a head's samples from its plane, and scattering the gradient of
// the output into the gradient's plane.
#pragma once

#include <algorithm>
#include <type_traits>

#include "deform_attn_samples.h"

namespace piip {
namespace PIIP_ISA {

// One head of a block of queries, whose samples are located.
template <class T>
struct HeadBlock {
  const Samples<T>& samples;
  const int64_t* below;  // [sample of a query], elements from a cell to the one below it
  int head, count, pitch;
};

// The head's outputs or their gradients, one row per query.
template <class T>
struct HeadRows {
  T* first;
  int64_t step;   // from row to row
  int last;       // items of a row's last vector that may be read or written
  int64_t ahead;  // from a row to the one that is prefetched meanwhile
};

template <class T, int N>
struct Kernel {
  using V = Vector<T, N>;

  // rows.first[query * step + lane] = sum over samples of weight * cell.
  static void forward(const HeadBlock<T>& block, const T* plane, const HeadRows<T>& rows) {
    // Eight vectors are summed at a time, so that the sums stay in registers.
    for (int first = 0; first < block.pitch; first += 8 * N) {
      const int left = std::min(block.pitch - first, 8 * N);
      const HeadRows<T> part = {rows.first + first, rows.step, first + left < block.pitch ? N : rows.last, rows.ahead};
      by_columns<8>(left, [&](auto columns, auto half) { gather<columns, half>(block, plane + first, part); });
    }
  }

  // Adds to the gradient plane, and stores the products of the gradient with the four cells of every sample in `dots`.
  static void backward(const HeadBlock<T>& block, T* plane, int64_t to_grad, const HeadRows<const T>& grads) {
    by_columns<6>(block.pitch, [&](auto columns, auto half) {
      constexpr int known = columns < 6 ? int(columns) : 0;
      scatter<known, half>(block, plane, to_grad, grads);
    });
  }

 private:
  // Calls body(the number of vectors in `pitch`, at most kMost; whether the last of them is half a vector).
  template <int kMost, int kColumns = 1, class Body>
  static void by_columns(int pitch, const Body& body) {
    if constexpr (kColumns < kMost) {
      if (pitch > kColumns * N) return by_columns<kMost, kColumns + 1>(pitch, body);
    }
    constexpr std::integral_constant<int, kColumns> columns;
    if constexpr (kUnit<N> < N) {
      if (pitch % N) return body(columns, std::true_type());
    }
    body(columns, std::false_type());
  }

  template <bool kHalf>
  static PIIP_INLINE V load_column(const T* p) {
    if constexpr (kHalf) return load_half<T, N>(p);
    return load<T, N>(p);
  }

  template <int C, bool kHalf>
  static void gather(const HeadBlock<T>& block, const T* plane, const HeadRows<T>& rows) {
    constexpr int kPitch = C * N - (kHalf ? N / 2 : 0);
    const bool four = block.samples.row == 4 && block.samples.a.levels == 1;
    if (block.pitch != kPitch) {
      gather<C, kHalf, false, 0>(block, plane, rows);
    } else if constexpr (C == 1 && 2 * N == kLanes<T>) {
      four ? gather_pairs<true>(block, plane, rows) : gather_pairs<false>(block, plane, rows);
    } else {
      four ? gather<C, kHalf, true, kPitch>(block, plane, rows) : gather<C, kHalf, false, kPitch>(block, plane, rows);
    }
  }

  // Calls body(output row, visit) for every query; visit(sample) calls sample(its upper left cell, the cell below that,
  // its weights in a vector of L lanes) for every sample of the query. The loops wait for loads, so samples are taken
  // four at a time, with one load for all their weights. kFour: whether a query has four samples, all on one map.
  template <int L, bool kFour, class Body>
  static PIIP_INLINE void for_each_query(const HeadBlock<T>& block, const T* plane, const HeadRows<T>& rows,
                                         const Body& body) {
    const auto& s = block.samples;
    const int64_t next = s.at(1, 0);
    const int32_t* place = s.place + s.at(0, block.head);
    const T *w = s.corners + 4 * s.at(0, block.head), *plane_below = plane + block.below[0];
    T* out = rows.first;
    for (int q = 0; q < block.count; ++q, out += rows.step, place += next, w += 4 * next) {
      body(out, [&](const auto& sample) __attribute__((always_inline)) {
        for (int i = 0; i < (kFour ? 4 : s.row); i += 4) {
          const Quads<T, L> weights(w + 4 * i);
          for_constants<4>([&](auto k) __attribute__((always_inline)) {
            const int64_t upper = int64_t(place[i + k]) * s.kStep;
            const T* lower = kFour ? plane_below + upper : plane + upper + block.below[i + k];
            sample(plane + upper, lower, weights.template repeat<k>());
          });
        }
      });
    }
  }

  // kPitch: the number of elements from cell to cell where it is known, or 0.
  template <int C, bool kHalf, bool kFour, int kPitch>
  static void gather(const HeadBlock<T>& block, const T* plane, const HeadRows<T>& rows) {
    constexpr int kSums = C <= 2 ? 2 : 1;  // additions to too few sums would wait for each other
    const int pitch = kPitch ? kPitch : block.pitch;
    for_each_query<N, kFour>(block, plane, rows, [&](T* out, const auto& visit) __attribute__((always_inline)) {
      V sum[kSums][C] = {};
      visit([&](const T* upper, const T* lower, V weights) __attribute__((always_inline)) {
        const auto column = [&](auto half, int c) __attribute__((always_inline)) {
          const int d = c * N;
          sum[0][c] += spread_item<0, T, N>(weights) * load_column<half>(upper + d);
          sum[0][c] += spread_item<1, T, N>(weights) * load_column<half>(upper + pitch + d);
          sum[kSums - 1][c] += spread_item<2, T, N>(weights) * load_column<half>(lower + d);
          sum[kSums - 1][c] += spread_item<3, T, N>(weights) * load_column<half>(lower + pitch + d);
        };
        for (int c = 0; c < C - 1; ++c) column(std::false_type(), c);
        column(std::bool_constant<kHalf>(), C - 1);
      });
      for (int c = 0; c < C && kSums > 1; ++c) sum[0][c] += sum[1][c];
      if (C == 1) __builtin_prefetch(out + rows.ahead, kToWrite);  // longer rows fill whole cache lines
      for (int c = 0; c < C - 1; ++c) store<T, N>(out + c * N, sum[0][c]);
      write_last(sum[0][C - 1], out + (C - 1) * N, rows.last);
    });
  }

  // The same for cells half a vector wide: one load takes two neighbours along x.
  template <bool kFour>
  static void gather_pairs(const HeadBlock<T>& block, const T* plane, const HeadRows<T>& rows) {
    constexpr int L = 2 * N;
    using Pair = Vector<T, L>;
    for_each_query<L, kFour>(block, plane, rows, [&](T* out, const auto& visit) __attribute__((always_inline)) {
      Pair sums[2] = {};
      visit([&](const T* upper, const T* lower, Pair weights) __attribute__((always_inline)) {
        sums[0] += spread_pair<0, T, L>(weights) * load<T, L>(upper);
        sums[1] += spread_pair<2, T, L>(weights) * load<T, L>(lower);
      });
      __builtin_prefetch(out + rows.ahead, kToWrite);
      const Pair sum = sums[0] + sums[1];
      write_last(lower_half<T, L>(sum) + upper_half<T, L>(sum), out, rows.last);
    });
  }

  static PIIP_INLINE void write_last(V v, T* out, int count) {
    if (count == N) {
      store<T, N>(out, v);
    } else {
      narrow_first<T, N>(v, out, count);
    }
  }

  // C: the number of vectors of a cell where it is known, or 0. N / 4 samples are taken together: they have as many
  // products as a vector has lanes, and these are summed over the channels all at once.
  template <int C, bool kHalf>
  static void scatter(const HeadBlock<T>& block, T* plane, int64_t to_grad, const HeadRows<const T>& rows) {
    constexpr int B = N / 4;
    const auto& s = block.samples;
    const int pitch = C ? C * N - (kHalf ? N / 2 : 0) : block.pitch, vectors = C ? C : (pitch + N - 1) / N;
    const int64_t next = s.at(1, 0), *below = block.below;
    const int32_t* place = s.place + s.at(0, block.head);
    const T *w = s.corners + 4 * s.at(0, block.head), *grads = rows.first;
    T* dots = s.dots + 4 * s.at(0, block.head);
    const auto gradient = [&](int c) __attribute__((always_inline)) {
      return c < vectors - 1 ? load<T, N>(grads + c * N) : widen_first<T, N>(grads + c * N, rows.last);
    };
    for (int q = 0; q < block.count; ++q, grads += rows.step, place += next, w += 4 * next, dots += 4 * next) {
      prefetch(grads + rows.ahead, (vectors - 1) * N + rows.last);
      V known[C ? C : 1];
      for (int c = 0; c < C; ++c) known[c] = gradient(c);
      for (int i = 0; i < s.per_query; i += B) {
        V products[N] = {};
#pragma GCC unroll 4
        for (int b = 0; b < B; ++b) {
          T *upper = plane + int64_t(place[i + b]) * s.kStep, *lower = upper + below[i + b];
          T* const cells[4] = {upper, upper + pitch, lower, lower + pitch};
          const auto column = [&](auto half, int c, V g) __attribute__((always_inline)) {
#pragma GCC unroll 4
            for (int j = 0; j < 4; ++j) {
              T *from = cells[j] + c * N, *to = from + to_grad;
              products[4 * b + j] += g * load_column<half>(from);
              const V sum = load_column<half>(to) + w[4 * (i + b) + j] * g;
              half ? store_half<T, N>(to, sum) : store<T, N>(to, sum);
            }
          };
          if constexpr (C > 0) {
#pragma GCC unroll 4
            for (int c = 0; c < C - 1; ++c) column(std::false_type(), c, known[c]);
            column(std::bool_constant<kHalf>(), C - 1, known[C - 1]);
          } else {
            for (int c = 0; c < vectors - 1; ++c) column(std::false_type(), c, gradient(c));
            column(std::bool_constant<kHalf>(), vectors - 1, gradient(vectors - 1));
          }
        }
        store<T, N>(dots + 4 * i, sum_each<T, N>(products));
      }
    }
  }
};

}  // namespace PIIP_ISA
}  // namespace piip
