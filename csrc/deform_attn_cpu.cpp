// Deformable attention on the CPU.
//
// A task is one to four heads of one image. It first spreads a head's values out as a plane of its own: rows padded to
// whole vectors, in the compute type, with a border of zeros around every map. Then a sample's four cells always exist,
// outside ones read zeros, neighbours along x are adjacent, and the plane of a narrow head stays in the cache. The
// backward accumulates the value gradient in such a plane too: no atomics, and the order of additions never depends on
// threads.
//
// Compiled once per instruction set; dispatch.cpp chooses.
#include <algorithm>
#include <cmath>
#include <memory>
#include <stdexcept>
#include <type_traits>
#include <vector>

#include "bilinear.h"
#include "deform_attn.h"
#include "dispatch.h"
#include "parallel.h"
#include "simd.h"

namespace piip {
namespace PIIP_ISA {
namespace {

constexpr int kBlock = 32;  // queries whose locations and weights are computed together

// The maps of one head inside a plane, in cells.
struct Layout {
  int32_t start[kMaxLevels];  // of the level's border row
  int row[kMaxLevels];        // cells per row, border included
  int64_t cells;

  explicit Layout(const DeformAttn& a) {
    cells = 0;
    for (int level = 0; level < a.levels; ++level) {
      start[level] = int32_t(cells);
      row[level] = a.width_of[level] + 2;
      // A border row above, one below, and one more: samples outside are sent to the last two, which are both zero.
      cells += int64_t(row[level]) * (a.height_of[level] + 3);
    }
    if (cells > INT32_MAX) throw std::invalid_argument("piip: deform_attn takes maps of fewer than 2^31 cells");
  }
  int32_t cell(int level, int y, int x) const { return start[level] + (y + 1) * row[level] + x + 1; }
  int32_t outside(const DeformAttn& a, int level) const { return cell(level, a.height_of[level], -1); }
};

// Everything known of a block's samples, [sample][query].
template <class T>
struct Samples {
  Scratch<T> memory;
  Scratch<int32_t> cells;
  int32_t* cell;             // of the upper left corner
  T* points;                 // [sample][x, y][query]; the backward leaves their gradients here
  T *fx, *fy;                // fractions
  T* attention;              // weights after the softmax; the backward leaves the gradients of the inputs here
  T *w00, *w01, *w10, *w11;  // attention times bilinear weight
  T* dots;                   // [sample][query][4]: products of the output gradient with the four cells

  Samples(int samples, bool backward)
      : memory(size_t(samples) * kBlock * (backward ? 13 : 9)), cells(size_t(samples) * kBlock), cell(cells.data()) {
    T* p = memory.data();
    points = p;
    p += 2 * size_t(samples) * kBlock;
    for (T** field : {&fx, &fy, &attention, &w00, &w01, &w10, &w11}) {
      *field = p;
      p += size_t(samples) * kBlock;
    }
    dots = p;
  }
};

template <class T>
PIIP_INLINE T exp_of_negative(T x) {
  if constexpr (sizeof(T) == 8) {
    return std::exp(x);
  } else {
    return exp_negative(x);
  }
}

template <class T>
void softmax(T* weights, int samples) {
  T largest[kBlock], sum[kBlock] = {};
  for (int q = 0; q < kBlock; ++q) largest[q] = weights[q];
  for (int s = 1; s < samples; ++s)
    for (int q = 0; q < kBlock; ++q)
      largest[q] = weights[s * kBlock + q] > largest[q] ? weights[s * kBlock + q] : largest[q];
  for (int s = 0; s < samples; ++s)
    for (int q = 0; q < kBlock; ++q) {
      const T e = exp_of_negative(weights[s * kBlock + q] - largest[q]);
      weights[s * kBlock + q] = e;
      sum[q] += e;
    }
  for (int q = 0; q < kBlock; ++q) sum[q] = T(1) / sum[q];
  for (int s = 0; s < samples; ++s)
    for (int q = 0; q < kBlock; ++q) weights[s * kBlock + q] *= sum[q];
}

// target[column][query] = rows[query][column] for kBlock rows; rows from `count` on repeat the last, so that all
// arithmetic stays on proper numbers.
template <class T, class P>
void transpose_in(const P* rows, int64_t step, int columns, int count, T* __restrict target) {
  for (int q = 0; q < kBlock; q += 4) {
    const P* row[4];
    for (int i = 0; i < 4; ++i) row[i] = rows + step * std::min(q + i, count - 1);
    // The same rows of the next block; beyond the tensor's end a prefetch does nothing.
    for (int i = 0; i < 4; ++i) prefetch(rows + step * (q + i + kBlock), columns);
    int c = 0;
    for (; c + 4 <= columns; c += 4) {
      Vector<T, 4> tile[4];
      for (int i = 0; i < 4; ++i) tile[i] = widen_vector<T, 4>(row[i] + c);
      transpose(tile);
      for (int i = 0; i < 4; ++i) store<T, 4>(target + (c + i) * kBlock + q, tile[i]);
    }
    for (; c < columns; ++c)
      for (int i = 0; i < 4; ++i) target[c * kBlock + q + i] = widen(row[i][c]);
  }
}

// rows[query][column] = source[column][query] for the first `count` queries.
template <class T, class P>
void transpose_out(const T* source, int64_t step, int columns, int count, P* rows) {
  int q = 0;
  for (; q + 4 <= count; q += 4) {
    P* row = rows + step * q;
    int c = 0;
    for (; c + 4 <= columns; c += 4) {
      Vector<T, 4> tile[4];
      for (int i = 0; i < 4; ++i) tile[i] = load<T, 4>(source + (c + i) * kBlock + q);
      transpose(tile);
      for (int i = 0; i < 4; ++i) narrow_vector<T, 4>(tile[i], row + step * i + c);
    }
    for (; c < columns; ++c)
      for (int i = 0; i < 4; ++i) row[step * i + c] = narrow<P>(source[c * kBlock + q + i]);
  }
  for (; q < count; ++q)
    for (int c = 0; c < columns; ++c) rows[step * q + c] = narrow<P>(source[c * kBlock + q]);
}

// Where one sample of every query lies: cell, fractions and the weights of the four corners.
template <class T>
void locate_samples(bool raw, int width, int height, int32_t origin, int32_t pitch, int32_t outside,
                    const T* __restrict rx, const T* __restrict ry, const T* __restrict points,
                    const T* __restrict attention, T* __restrict fx, T* __restrict fy, T* __restrict w00,
                    T* __restrict w01, T* __restrict w10, T* __restrict w11, int32_t* __restrict cell) {
  T x[kBlock], y[kBlock];
  if (raw) {
    for (int q = 0; q < kBlock; ++q) x[q] = cell_coordinate(true, rx[q], points[q], width);
    for (int q = 0; q < kBlock; ++q) y[q] = cell_coordinate(true, ry[q], points[kBlock + q], height);
  } else {
    for (int q = 0; q < kBlock; ++q) x[q] = cell_coordinate(false, T(0), points[q], width);
    for (int q = 0; q < kBlock; ++q) y[q] = cell_coordinate(false, T(0), points[kBlock + q], height);
  }
  for (int q = 0; q < kBlock; ++q) {
    const Sample<T> at = locate(x[q], y[q], width, height);
    const int32_t found = origin + at.y * pitch + at.x;
    cell[q] = at.inside ? found : outside;
    fx[q] = at.fx;
    fy[q] = at.fy;
    const T lower = at.fy * attention[q], upper = attention[q] - lower;
    w01[q] = upper * at.fx;
    w00[q] = upper - upper * at.fx;
    w11[q] = lower * at.fx;
    w10[q] = lower - lower * at.fx;
  }
}

// Reads the points and weights of `count` queries from `first` on and fills in the samples.
template <class T, class P>
void prepare(const DeformAttn& a, const Layout& layout, int64_t b, int m, int64_t first, int count, Samples<T>& s) {
  const int per_query = a.levels * a.points_per_level;
  const int64_t row = ((b * a.queries + first) * a.heads + m) * per_query, step = int64_t(a.heads) * per_query;
  transpose_in(static_cast<const P*>(a.points) + 2 * row, 2 * step, 2 * per_query, count, s.points);
  transpose_in(static_cast<const P*>(a.weights) + row, step, per_query, count, s.attention);
  if (a.raw) softmax(s.attention, per_query);

  const int refs = a.reference_per_level ? a.levels : 1;
  const T* reference =
      static_cast<const T*>(a.reference) + 2 * refs * ((a.reference_per_batch ? b * a.queries : 0) + first);
  T rx[kBlock] = {}, ry[kBlock] = {};
  for (int level = 0; level < a.levels; ++level) {
    if (a.raw && level < refs) {
      for (int q = 0; q < kBlock; ++q) {
        const T* point = reference + 2 * (int64_t(refs) * std::min(q, count - 1) + level);
        rx[q] = point[0];
        ry[q] = point[1];
      }
    }
    for (int p = 0; p < a.points_per_level; ++p) {
      const int i = (level * a.points_per_level + p) * kBlock;
      locate_samples(a.raw, a.width_of[level], a.height_of[level], layout.cell(level, 0, 0), layout.row[level],
                     layout.outside(a, level), rx, ry, s.points + 2 * i, s.attention + i, s.fx + i, s.fy + i, s.w00 + i,
                     s.w01 + i, s.w10 + i, s.w11 + i, s.cell + i);
    }
  }
}

// Copies `count` cells, `step` apart, to rows of the plane. Whole vectors are read where the tensor goes on long
// enough: what belongs to the next head is then zeroed.
template <class T, int N, class S>
void fill_cells(const S* source, int64_t step, int count, int width, const S* end, T* target, int pitch) {
  Vector<T, N> keep;
  for (int i = 0; i < N; ++i) keep[i] = pitch - N + i < width ? T(1) : T(0);
  const auto zero = Vector<T, N>{};
  int x = 0;
  for (; x < count && end - source >= pitch; ++x, source += step, target += pitch) {
    prefetch(source + 16 * step, width);
    for (int d = 0; d < pitch - N; d += N) store<T, N>(target + d, widen_vector<T, N>(source + d));
    const auto last = widen_vector<T, N>(source + pitch - N);
    store<T, N>(target + pitch - N, keep != zero ? last : zero);
  }
  for (; x < count; ++x, source += step, target += pitch) {
    widen_row(source, target, width);
    std::fill(target + width, target + pitch, T(0));
  }
}

// Spreads the values of `count` heads from m on out as planes, row by row: heads share cache lines.
template <class T, int N, class S>
void fill_planes(const DeformAttn& a, const Layout& layout, int64_t b, int m, int count, T* planes, int pitch) {
  const int64_t step = int64_t(a.heads) * a.width, size = layout.cells * pitch;
  const S* source = static_cast<const S*>(a.value) + (b * a.cells * a.heads + m) * a.width;
  const S* end = static_cast<const S*>(a.value) + a.batch * a.cells * step;
  for (int level = 0; level < a.levels; ++level) {
    const int width = a.width_of[level], height = a.height_of[level];
    const int64_t origin = int64_t(layout.cell(level, 0, 0)) * pitch, row = int64_t(layout.row[level]) * pitch;
    for (int y = 0; y < height; ++y, source += width * step)
      for (int h = 0; h < count; ++h) {
        T* target = planes + h * size + origin + y * row;
        fill_cells<T, N>(source + int64_t(h) * a.width, step, width, a.width, end, target, pitch);
        std::fill(target + int64_t(width) * pitch, target + row, T(0));
      }
    for (int h = 0; h < count; ++h) {
      T *first = planes + h * size + origin, *below = first + height * row;
      std::fill(first - row - pitch, first, T(0));
      std::fill(below, below + 2 * row - pitch, T(0));
    }
  }
}

// Reads finished gradient planes back.
template <class T, class S>
void store_planes(const DeformAttn& a, const Layout& layout, int64_t b, int m, int count, const T* planes, int pitch) {
  const int64_t step = int64_t(a.heads) * a.width;
  S* target = static_cast<S*>(a.grad_value) + (b * a.cells * a.heads + m) * a.width;
  for (int level = 0; level < a.levels; ++level) {
    const int width = a.width_of[level];
    for (int y = 0; y < a.height_of[level]; ++y, target += width * step)
      for (int h = 0; h < count; ++h) {
        const T* source = planes + (h * layout.cells + layout.cell(level, y, 0)) * pitch;
        S* row = target + int64_t(h) * a.width;
        for (int x = 0; x < width; ++x, row += step, source += pitch) narrow_row(source, row, a.width);
      }
  }
}

template <class T, int N>
struct Kernel {
  using V = Vector<T, N>;

  // out[lane] = sum over samples of weight * cell, for C vectors of the head from `plane` on. kSamples, kPitch: known
  // numbers of samples and elements from cell to cell, or 0.
  template <int C, int kSamples, int kPitch>
  static PIIP_INLINE void gather(const T* plane, int any_pitch, const int64_t* below, const Samples<T>& s,
                                 int any_samples, int q, V* acc) {
    const int pitch = kPitch ? kPitch : any_pitch, samples = kSamples ? kSamples : any_samples;
    for (int c = 0; c < C; ++c) acc[c] = V{};
#pragma GCC unroll 4
    for (int i = 0; i < samples; ++i) {
      const int k = i * kBlock + q;
      const T* upper = plane + int64_t(s.cell[k]) * pitch;
      const T* lower = upper + below[i];
      const T w00 = s.w00[k], w01 = s.w01[k], w10 = s.w10[k], w11 = s.w11[k];
      for (int c = 0; c < C; ++c) {
        acc[c] += w00 * load<T, N>(upper + c * N);
        acc[c] += w01 * load<T, N>(upper + pitch + c * N);
        acc[c] += w10 * load<T, N>(lower + c * N);
        acc[c] += w11 * load<T, N>(lower + pitch + c * N);
      }
    }
  }

  template <class S, int C, int kSamples, int kPitch>
  static PIIP_INLINE void forward_queries(const DeformAttn& a, const T* plane, int pitch, const int64_t* below,
                                          const Samples<T>& s, int count, int first, S* out) {
    const int samples = a.levels * a.points_per_level;
    const int64_t step = int64_t(a.heads) * a.width;
    const int columns = std::min(C * N, a.width - first);
    for (int q = 0; q < count; ++q) {
      V acc[C];
      gather<C, kSamples, kPitch>(plane + first, pitch, below, s, samples, q, acc);
      S* row = out + q * step + first;
      if constexpr (sizeof(S) == sizeof(T)) {
        for (int c = 0; c < C - 1; ++c) store<T, N>(reinterpret_cast<T*>(row) + c * N, acc[c]);
        const int rest = columns - (C - 1) * N;
        T* last = reinterpret_cast<T*>(row) + (C - 1) * N;
        rest == N ? store<T, N>(last, acc[C - 1]) : store_first<T, N>(last, acc[C - 1], rest);
      } else {
        alignas(64) T lanes[C * N];
        for (int c = 0; c < C; ++c) store<T, N>(lanes + c * N, acc[c]);
        narrow_row(lanes, row, columns);
      }
    }
  }

  template <class S, int C>
  static PIIP_INLINE void forward_columns(const DeformAttn& a, const T* plane, int pitch, const int64_t* below,
                                          const Samples<T>& s, int count, int first, S* out) {
    if (pitch == C * N && a.levels * a.points_per_level == 4) {
      forward_queries<S, C, 4, C * N>(a, plane, pitch, below, s, count, first, out);
    } else if (pitch == C * N) {
      forward_queries<S, C, 0, C * N>(a, plane, pitch, below, s, count, first, out);
    } else {
      forward_queries<S, C, 0, 0>(a, plane, pitch, below, s, count, first, out);
    }
  }

  // All columns of the block, eight vectors at a time so that the sums stay in registers.
  template <class S>
  static void forward_block(const DeformAttn& a, const T* plane, int pitch, const int64_t* below, const Samples<T>& s,
                            int count, S* out) {
    for (int first = 0; first < pitch; first += 8 * N) {
      switch (std::min(8, (pitch - first) / N)) {
        case 1: forward_columns<S, 1>(a, plane, pitch, below, s, count, first, out); break;
        case 2: forward_columns<S, 2>(a, plane, pitch, below, s, count, first, out); break;
        case 3: forward_columns<S, 3>(a, plane, pitch, below, s, count, first, out); break;
        case 4: forward_columns<S, 4>(a, plane, pitch, below, s, count, first, out); break;
        case 5: forward_columns<S, 5>(a, plane, pitch, below, s, count, first, out); break;
        case 6: forward_columns<S, 6>(a, plane, pitch, below, s, count, first, out); break;
        case 7: forward_columns<S, 7>(a, plane, pitch, below, s, count, first, out); break;
        default: forward_columns<S, 8>(a, plane, pitch, below, s, count, first, out); break;
      }
    }
  }

  // Adds to the gradient plane and leaves the products with the four cells. C = 0: any number of vectors.
  template <int C>
  static void backward_block(const T* plane, T* grad_plane, int pitch, const int64_t* below, const Samples<T>& s,
                             int samples, int count, const T* grads) {
    const int vectors = C ? C : pitch / N;
    for (int q = 0; q < count; ++q) {
      const T* grad = grads + int64_t(q) * pitch;
      for (int i = 0; i < samples; ++i) {
        const int k = i * kBlock + q;
        const int64_t offset = int64_t(s.cell[k]) * pitch, lower = offset + below[i];
        const T w00 = s.w00[k], w01 = s.w01[k], w10 = s.w10[k], w11 = s.w11[k];
        V d00{}, d01{}, d10{}, d11{};
        for (int c = 0; c < vectors; ++c) {
          const V g = load<T, N>(grad + c * N);
          const T *v0 = plane + offset + c * N, *v1 = plane + lower + c * N;
          T *g0 = grad_plane + offset + c * N, *g1 = grad_plane + lower + c * N;
          d00 += g * load<T, N>(v0);
          d01 += g * load<T, N>(v0 + pitch);
          d10 += g * load<T, N>(v1);
          d11 += g * load<T, N>(v1 + pitch);
          store<T, N>(g0, load<T, N>(g0) + w00 * g);
          store<T, N>(g0 + pitch, load<T, N>(g0 + pitch) + w01 * g);
          store<T, N>(g1, load<T, N>(g1) + w10 * g);
          store<T, N>(g1 + pitch, load<T, N>(g1 + pitch) + w11 * g);
        }
        store<T, 4>(s.dots + 4 * k, sum_lanes<T, N>(d00, d01, d10, d11));
      }
    }
  }
};

// The gradient of one sample's point, for every query, and its value: what the output gradient says of its weight.
template <class T>
void finish_samples(T unit_x, T unit_y, const T* __restrict dots, const T* __restrict fx, const T* __restrict fy,
                    const T* __restrict attention, T* __restrict points, T* __restrict value, T* __restrict mean) {
  for (int q = 0; q < kBlock; ++q) {
    const T d00 = dots[4 * q], d01 = dots[4 * q + 1], d10 = dots[4 * q + 2], d11 = dots[4 * q + 3];
    points[q] = unit_x * attention[q] * slope_x(fy[q], d00, d01, d10, d11);
    points[kBlock + q] = unit_y * attention[q] * slope_y(fx[q], d00, d01, d10, d11);
    value[q] = blend(fx[q], fy[q], d00, d01, d10, d11);
    mean[q] += attention[q] * value[q];
  }
}

// Gradients of points and weights from the products; they take the place of points and attention, and are then stored.
template <class T, class P>
void finish_block(const DeformAttn& a, int64_t b, int m, int64_t first, int count, Samples<T>& s) {
  const int per_query = a.levels * a.points_per_level;
  T mean[kBlock] = {};
  for (int i = 0; i < per_query; ++i) {
    // The products give gradients with respect to cells; offsets are in cells, locations in map widths.
    const int level = i / a.points_per_level, k = i * kBlock;
    const T unit_x = a.raw ? T(1) : T(a.width_of[level]), unit_y = a.raw ? T(1) : T(a.height_of[level]);
    finish_samples(unit_x, unit_y, s.dots + 4 * k, s.fx + k, s.fy + k, s.attention + k, s.points + 2 * k, s.w00 + k,
                   mean);
  }
  for (int i = 0; i < per_query; ++i)
    for (int q = 0; q < kBlock; ++q) {
      const int k = i * kBlock + q;
      s.attention[k] = a.raw ? s.attention[k] * (s.w00[k] - mean[q]) : s.w00[k];
    }
  const int64_t row = ((b * a.queries + first) * a.heads + m) * per_query, step = int64_t(a.heads) * per_query;
  transpose_out(s.points, 2 * step, 2 * per_query, count, static_cast<P*>(a.grad_points) + 2 * row);
  transpose_out(s.attention, step, per_query, count, static_cast<P*>(a.grad_weights) + row);
}

// Memory of one thread.
template <class T>
struct Workspace {
  Scratch<T> planes, grad_planes, grads;
  Samples<T> samples;
  Workspace(int64_t plane, int pitch, int per_query, bool backward)
      : planes(plane),
        grad_planes(backward ? plane : 0),
        grads(backward ? int64_t(kBlock) * pitch : 0),
        samples(per_query, backward) {}
};

// What all tasks of a call share.
template <class T, class S, int N>
struct Plan {
  const DeformAttn& a;
  Layout layout;
  int pitch, samples, group;   // elements from cell to cell; samples per query; heads per task
  int64_t groups, blocks;      // head groups per image; blocks of queries
  std::vector<int64_t> below;  // per sample, elements from a cell to the one below
  std::vector<std::unique_ptr<Workspace<T>>> spaces;

  Plan(const DeformAttn& problem, int threads)
      : a(problem),
        layout(problem),
        pitch((problem.width + N - 1) / N * N),
        samples(problem.levels * problem.points_per_level) {
    // Heads that share cache lines of the weights go together, as long as their planes stay in the cache and no thread
    // is left without work.
    group = std::clamp(int(64 / sizeof(T)) / samples, 1, 4);
    const int64_t enough = threads > 1 ? 2 * threads : 1;
    while (group > 1 && (group * plane() * int64_t(sizeof(T)) > (int64_t(1) << 20) ||
                         a.batch * ((a.heads + group - 1) / group) < enough))
      group /= 2;
    groups = (a.heads + group - 1) / group;
    blocks = (a.queries + kBlock - 1) / kBlock;
    for (int i = 0; i < samples; ++i) below.push_back(int64_t(layout.row[i / a.points_per_level]) * pitch);
  }

  int64_t plane() const { return layout.cells * pitch; }

  void allocate(int threads, bool backward) {
    for (int i = 0; i < threads; ++i)
      spaces.push_back(std::make_unique<Workspace<T>>(group * plane(), pitch, samples, backward));
  }

  // The heads of a task: image, first head, number of heads.
  struct Heads {
    int64_t b;
    int first, count;
  };
  Heads heads(int64_t task) const {
    const int first = int(task % groups) * group;
    return {task / groups, first, std::min(group, a.heads - first)};
  }
};

template <class T, class S, class P, int N>
void forward(const DeformAttn& a, int threads) {
  Plan<T, S, N> plan(a, threads);
  // With fewer tasks than threads the queries are split; each part spreads the planes out for itself.
  const int64_t tasks = a.batch * plan.groups;
  const int64_t parts = std::max<int64_t>(1, std::min<int64_t>(plan.blocks, threads / tasks));
  threads = int(std::min<int64_t>(threads, tasks * parts));
  plan.allocate(threads, false);

  parallel_for(tasks * parts, threads, [&](int64_t task, int slot) {
    Workspace<T>& space = *plan.spaces[slot];
    const auto heads = plan.heads(task / parts);
    const int64_t part = task % parts;
    fill_planes<T, N, S>(a, plan.layout, heads.b, heads.first, heads.count, space.planes.data(), plan.pitch);
    const int64_t last = std::min(a.queries, plan.blocks * (part + 1) / parts * kBlock);
    for (int64_t first = plan.blocks * part / parts * kBlock; first < last; first += kBlock) {
      const int count = int(std::min<int64_t>(kBlock, last - first));
      for (int h = 0; h < heads.count; ++h) {
        const int m = heads.first + h;
        prepare<T, P>(a, plan.layout, heads.b, m, first, count, space.samples);
        S* out = static_cast<S*>(a.out) + ((heads.b * a.queries + first) * a.heads + m) * a.width;
        Kernel<T, N>::template forward_block<S>(a, space.planes.data() + h * plan.plane(), plan.pitch,
                                                plan.below.data(), space.samples, count, out);
      }
    }
  });
}

template <class T, class S, class P, int N>
void backward(const DeformAttn& a, int threads) {
  Plan<T, S, N> plan(a, threads);
  const int pitch = plan.pitch;
  const int64_t tasks = a.batch * plan.groups;
  threads = int(std::min<int64_t>(threads, tasks));
  plan.allocate(threads, true);

  parallel_for(tasks, threads, [&](int64_t task, int slot) {
    Workspace<T>& space = *plan.spaces[slot];
    const auto heads = plan.heads(task);
    T *planes = space.planes.data(), *grad_planes = space.grad_planes.data(), *grads = space.grads.data();
    fill_planes<T, N, S>(a, plan.layout, heads.b, heads.first, heads.count, planes, pitch);
    std::fill(grad_planes, grad_planes + heads.count * plan.plane(), T(0));
    std::fill(grads, grads + int64_t(kBlock) * pitch, T(0));
    for (int64_t first = 0; first < a.queries; first += kBlock) {
      const int count = int(std::min<int64_t>(kBlock, a.queries - first));
      for (int h = 0; h < heads.count; ++h) {
        const int m = heads.first + h;
        prepare<T, P>(a, plan.layout, heads.b, m, first, count, space.samples);
        const int64_t step = int64_t(a.heads) * a.width;
        const S* grad_out =
            static_cast<const S*>(a.grad_out) + (heads.b * a.queries + first) * step + int64_t(m) * a.width;
        for (int q = 0; q < count; ++q) {
          prefetch(grad_out + (q + kBlock) * step, a.width);
          widen_row(grad_out + q * step, grads + int64_t(q) * pitch, a.width);
        }
        const auto run = [&](auto vectors) {
          Kernel<T, N>::template backward_block<decltype(vectors)::value>(
              planes + h * plan.plane(), grad_planes + h * plan.plane(), pitch, plan.below.data(), space.samples,
              plan.samples, count, grads);
        };
        switch (pitch / N) {
          case 1: run(std::integral_constant<int, 1>()); break;
          case 2: run(std::integral_constant<int, 2>()); break;
          case 3: run(std::integral_constant<int, 3>()); break;
          case 4: run(std::integral_constant<int, 4>()); break;
          default: run(std::integral_constant<int, 0>()); break;
        }
        finish_block<T, P>(a, heads.b, m, first, count, space.samples);
      }
    }
    store_planes<T, S>(a, plan.layout, heads.b, heads.first, heads.count, grad_planes, pitch);
  });
}

constexpr int kLanes = kVectorBytes / 4;  // float
constexpr int kDoubleLanes = 4;           // double, lowered to what the machine has
constexpr int kNarrowLanes = kLanes > 8 ? 8 : kLanes;

template <template <class, class, class, int> class Run>
void dispatch(const DeformAttn& a, int threads) {
  const bool narrow_head = a.width <= kNarrowLanes;
  const auto run = [&](auto storage, auto point) {
    using S = decltype(storage);
    using P = decltype(point);
    if constexpr (sizeof(S) == 8) {
      Run<double, S, P, kDoubleLanes>::call(a, threads);
    } else if (narrow_head) {
      Run<float, S, P, kNarrowLanes>::call(a, threads);
    } else {
      Run<float, S, P, kLanes>::call(a, threads);
    }
  };
  const bool wide_points = a.point_dtype == Dtype::f32;
  switch (a.value_dtype) {
    case Dtype::f64: run(double(), double()); break;
    case Dtype::f16: wide_points ? run(Half(), float()) : run(Half(), Half()); break;
    case Dtype::bf16: wide_points ? run(Bfloat(), float()) : run(Bfloat(), Bfloat()); break;
    default: run(float(), float()); break;
  }
}

template <class T, class S, class P, int N>
struct Forward {
  static void call(const DeformAttn& a, int threads) { forward<T, S, P, N>(a, threads); }
};
template <class T, class S, class P, int N>
struct Backward {
  static void call(const DeformAttn& a, int threads) { backward<T, S, P, N>(a, threads); }
};

}  // namespace

void deform_attn_forward(const DeformAttn& a, int threads) { dispatch<Forward>(a, threads); }
void deform_attn_backward(const DeformAttn& a, int threads) { dispatch<Backward>(a, threads); }

}  // namespace PIIP_ISA
}  // namespace piip
