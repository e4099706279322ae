// Pyramid resizing on the CPU. A task is a horizontal strip of the image, whose rows are read once and in order: as
// soon as the rows are there that a level row takes from, it is blended vertically, then horizontally, and written.
// Compiled once per instruction set; dispatch.cpp chooses.
#include <algorithm>
#include <cstring>
#include <memory>
#include <type_traits>
#include <vector>

#include "dispatch.h"
#include "parallel.h"
#include "pyramid_resize.h"
#include "pyramid_resize_rows.h"
#include "pyramid_resize_tables.h"
#include "shuffles.h"
#include "simd.h"

namespace piip {
namespace PIIP_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kGroupsAPiece = 8;  // of a row that is sent on

// Sends on what `streams`, one a channel or null, has of C rows of which `x` outputs are finished.
template <int C>
PIIP_INLINE void send(RowStream* streams, int x, int out) {
  if (streams)
    for (int c = 0; c < C; ++c) streams[c].send(sizeof(float) * std::min(x, out));
}

// A whole row of outputs from `source(i)`, the 16 inputs from `i` on. Writes whole vectors, one behind the row at most.
template <int K, class Source>
void blend_groups(const Table<float>& table, const Groups<float>& groups, const Source& source, float* target, int out,
                  RowStream* stream) {
  const int count = K ? K : table.count, all = int(groups.first.size());
  const uint8_t* indices = groups.indices.data();
  const float* weights = groups.weights.data();
  for (int group = 0, x = 0; group < all; ++group, x += groups.lanes, indices += 16, weights += 16 * count) {
    const __m512 low = source(groups.first[group]), high = source(groups.first[group] + 16);
    __m512i tap = _mm512_maskz_cvtepu8_epi32(0xffff, _mm_loadu_si128(reinterpret_cast<const __m128i*>(indices)));
    __m512 sum = _mm512_setzero_ps();
    for (int k = 0; k < count; ++k) {
      sum = _mm512_fmadd_ps(_mm512_loadu_ps(weights + 16 * k), _mm512_permutex2var_ps(low, tap, high), sum);
      tap = _mm512_add_epi32(tap, _mm512_set1_epi32(1));
    }
    _mm512_storeu_ps(target + x, sum);
    if ((group + 1) % kGroupsAPiece == 0) send<1>(stream, x + groups.lanes, out);
  }
}

// The same of two taps and C channels, `stride` items apart, from `source(c, i)` at multiples of 16; past the caches
// only where groups are whole vectors.
template <int C, bool kPastCaches = false, class Source>
PIIP_INLINE void blend_windows(const Groups<float>& groups, const Source& source, float* target, size_t stride, int out,
                               RowStream* streams) {
  const int all = int(groups.first.size()), lanes = groups.lanes;
  const uint8_t* indices = groups.indices.data();
  const float* weights = groups.weights.data();
  __m512 window[C][3] = {};
  int at = -48;
  for (int group = 0, x = 0; group < all;) {
    const int end = streams ? std::min(all, group + kGroupsAPiece) : all;
    for (; group < end; ++group, x += lanes, indices += 16, weights += 16) {
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
      const __m512i tap =
          _mm512_maskz_cvtepu8_epi32(0xffff, _mm_loadu_si128(reinterpret_cast<const __m128i*>(indices)));
      const __m512i next = _mm512_add_epi32(tap, _mm512_set1_epi32(1)), last = _mm512_set1_epi32(31);
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
// Eight outputs of two taps at a time, loaded as pairs; gives where it stopped.
int blend_pairs(const Table<float>& table, const float* source, float* target, int out) {
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
    // Summed within the halves of the registers, and then put in order.
    const Vector<double, 4> sum = Vector<double, 4>(__builtin_shufflevector(a, b, 0, 2, 8, 10, 4, 6, 12, 14) +
                                                    __builtin_shufflevector(a, b, 1, 3, 9, 11, 5, 7, 13, 15));
    store<float, 8>(target + x, Vector<float, 8>(__builtin_shufflevector(sum, sum, 0, 2, 1, 3)));
  }
  return x;
}
#endif

// Four outputs at a time from `x` on, each with its taps side by side in vectors of N; gives where it stopped.
template <class T, int N>
int blend_vectors(const Table<T>& table, const T* source, T* target, int x, int out) {
  using Bits = Vector<std::conditional_t<sizeof(T) == 4, int32_t, int64_t>, N>;
  // What lies behind the taps has no weight, but it may be no number.
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
      const auto same = [&](int, int i) { return inputs(i); };
      if (table.count == 2) return blend_windows<1>(tables.groups, same, target, 0, out, stream);
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
// Row `y` of C channels from `first` on where both axes have two taps: nothing is stored in between.
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

// Row `y` of all channels of a level: blended vertically into `blended`, then horizontally into `finished`, where the
// channels lie `stride` items apart. Where rows are floats already, `streams` may take pieces of them along.
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

// Row `y` of all channels of a level straight to where it belongs, past the caches, `plane` items from channel to
// channel; memory is busy while the next vectors are computed. Rows are whole vectors there. Gives whether it could.
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

template <class T>
std::vector<LevelTables<T>> all_tables(const PyramidResize& a) {
  std::vector<LevelTables<T>> tables;
  for (int i = 0; i < a.level_count; ++i) tables.emplace_back(a, a.levels[i]);
  return tables;
}

constexpr int64_t kLargeBytes = 8 << 20;  // levels of this size together do not stay in a cache anyway

template <class T>
struct ForwardSpace {
  Rows<T> rows;
  size_t stride;  // from channel to channel in `finished`
  Scratch<T> blended, finished;
  Scratch<double> stored;
  std::vector<int> next, end;  // rows of each level that the strip still has to write
  ForwardSpace(const PyramidResize& a, int slots, int widest)
      : rows(a, slots),
        stride((widest + kOverread + 15) / 16 * 16),
        blended(a.width + kOverread),
        finished(a.channels * stride),
        stored(widest),
        next(a.level_count),
        end(a.level_count) {}
};

template <class T>
void forward(const PyramidResize& a, int threads) {
  const auto tables = all_tables<T>(a);
  const WriteRow<T> write = row_writer<T>(a.level_dtype);
  const bool direct = a.level_dtype == (std::is_same_v<T, double> ? Dtype::f64 : Dtype::f32);
  const int item = item_size(a.level_dtype);
  int slots = 1, widest = 1;
  int64_t bytes = 0;
  for (int i = 0; i < a.level_count; ++i) {
    const PyramidLevel& level = a.levels[i];
    slots = std::max(slots, tables[i].y.count);
    widest = std::max(widest, level.width);
    bytes += a.batch * a.channels * level.height * level.width * item;
  }
  const bool past_caches = bytes >= kLargeBytes;
  // Strips of about 64 rows: enough tasks for the threads, and few rows that two strips both read.
  const int64_t strips = std::max(1, a.height / 64);
  threads = int(std::min<int64_t>(threads, a.batch * strips));
  std::vector<std::unique_ptr<ForwardSpace<T>>> spaces;
  for (int i = 0; i < threads; ++i) spaces.push_back(std::make_unique<ForwardSpace<T>>(a, slots, widest));

  parallel_for(a.batch * strips, threads, [&](int64_t task, int slot) {
    ForwardSpace<T>& space = *spaces[slot];
    const int64_t b = task / strips, strip = task % strips;
    const auto rows_taken = [&](int i) { return tables[i].y.first[space.next[i]] + tables[i].y.count; };
    space.rows.begin(b);
    for (int i = 0; i < a.level_count; ++i) {
      space.next[i] = int(a.levels[i].height * strip / strips);
      space.end[i] = int(a.levels[i].height * (strip + 1) / strips);
    }
    // Of the next rows of all levels always the one that is ready first.
    for (;;) {
      int i = -1;
      for (int j = 0; j < a.level_count; ++j)
        if (space.next[j] < space.end[j] && (i < 0 || rows_taken(j) < rows_taken(i))) i = j;
      if (i < 0) break;
      const PyramidLevel& level = a.levels[i];
      const int y = space.next[i]++;
      const size_t row = size_t(level.width) * item, plane = row * level.height;
      char* target = static_cast<char*>(level.data) + b * a.channels * plane + y * row;
      const bool whole_vectors = (reinterpret_cast<uintptr_t>(level.data) | row) % kVectorBytes == 0;
      if (direct && past_caches && whole_vectors &&
          write_through(tables[i], y, space.rows, reinterpret_cast<T*>(target), plane / item, level.width, a.channels))
        continue;
      const bool copies = tables[i].copies();
      const T* sources[kMaxChannels];
      RowStream streams[kMaxChannels];
      for (int c = 0; c < a.channels; ++c) {
        sources[c] = copies ? space.rows.row(y, c) : space.finished.data() + c * space.stride;
        streams[c] = RowStream(target + c * plane, direct ? static_cast<const void*>(sources[c]) : space.stored.data(),
                               row, past_caches);
      }
      if (!copies)
        resample_rows(tables[i], y, space.rows, space.blended.data(), space.finished.data(), space.stride, a.width,
                      level.width, a.channels, direct && past_caches ? streams : nullptr);
      for (int c = 0; c < a.channels; ++c) {
        if (!direct) write(sources[c], space.stored.data(), level.width);
        streams[c].send_rest();
      }
    }
    finish_streams();
  });
}

template <class T>
struct BackwardSpace {
  Scratch<T> plane, grad_row, spread;
  BackwardSpace(const PyramidResize& a, int widest)
      : plane(size_t(a.height) * a.width), grad_row(widest), spread(a.width) {}
};

// The transpose, one channel of one image a task: rows of the level gradients are spread horizontally, then vertically.
template <class T>
void backward(const PyramidResize& a, int threads) {
  const auto tables = all_tables<T>(a);
  const ReadRow<T> read = row_reader<T>(a.level_dtype);
  const WriteRow<T> write = row_writer<T>(a.image_dtype);
  int widest = 1;
  for (int i = 0; i < a.level_count; ++i) widest = std::max(widest, a.levels[i].width);
  const int64_t planes = a.batch * a.channels;
  threads = int(std::min<int64_t>(threads, planes));
  std::vector<std::unique_ptr<BackwardSpace<T>>> spaces;
  for (int i = 0; i < threads; ++i) spaces.push_back(std::make_unique<BackwardSpace<T>>(a, widest));

  parallel_for(planes, threads, [&](int64_t task, int slot) {
    T *plane = spaces[slot]->plane.data(), *grad_row = spaces[slot]->grad_row.data(),
      *spread = spaces[slot]->spread.data();
    std::fill(plane, plane + size_t(a.height) * a.width, T(0));
    for (int i = 0; i < a.level_count; ++i) {
      const PyramidLevel& level = a.levels[i];
      const Table<T>&ty = tables[i].y, &tx = tables[i].x;
      for (int y = 0; y < level.height; ++y) {
        const int64_t offset = (task * level.height + y) * level.width * item_size(a.level_dtype);
        read(static_cast<const char*>(level.data) + offset, level.width, T(0), T(1), false, grad_row);
        std::fill(spread, spread + a.width, T(0));
        for (int x = 0; x < level.width; ++x)
          for (int k = 0; k < tx.count; ++k)
            spread[tx.first[x] + k] += tx.weights[size_t(x) * tx.stride + k] * grad_row[x];
        for (int k = 0; k < ty.count; ++k) {
          const T w = ty.weights[size_t(y) * ty.stride + k];
          T* target = plane + size_t(ty.first[y] + k) * a.width;
          if (w != T(0))
            for (int x = 0; x < a.width; ++x) target[x] += w * spread[x];
        }
      }
    }
    const int64_t b = task / a.channels;
    const int c = int(task % a.channels);
    const int64_t valid_height = a.has_valid ? a.valid[2 * b] : a.height,
                  valid_width = a.has_valid ? a.valid[2 * b + 1] : a.width;
    for (int y = 0; y < a.height; ++y) {
      T* row = plane + size_t(y) * a.width;
      for (int x = 0; x < a.width; ++x) row[x] = y < valid_height && x < valid_width ? row[x] * T(a.scale[c]) : T(0);
      write(row, static_cast<char*>(a.images) + (task * a.height + y) * a.width * item_size(a.image_dtype), a.width);
    }
  });
}

}  // namespace

void pyramid_resize_forward(const PyramidResize& a, int threads) {
  a.image_dtype == Dtype::f64 ? forward<double>(a, threads) : forward<float>(a, threads);
}

void pyramid_resize_backward(const PyramidResize& a, int threads) {
  a.image_dtype == Dtype::f64 ? backward<double>(a, threads) : backward<float>(a, threads);
}

}  // namespace PIIP_ISA
}  // namespace piip
