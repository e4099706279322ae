// Pyramid resizing on the CPU. A task is a horizontal strip of the image: while its rows are in the cache, every level
// takes its rows of the strip from them. A level row is blended vertically first, over whole input rows, and then
// horizontally. Compiled once per instruction set; dispatch.cpp chooses.
#include <algorithm>
#include <memory>
#include <type_traits>
#include <vector>

#include "dispatch.h"
#include "parallel.h"
#include "pyramid_resize.h"
#include "simd.h"

namespace piip {
namespace PIIP_ISA {
namespace {

// Taps of a whole axis: `count` consecutive ones for every output, all of them inside the input.
template <class T>
struct Table {
  int count = 1;
  int lanes = 0;  // 16 or 8 where that many neighbouring outputs always take from fewer than 32 inputs
  std::vector<int> first;
  std::vector<T> weights;  // [tap][output]

  explicit Table(const Axis<T>& axis) : first(axis.out) {
    std::vector<Taps<T>> taps(axis.out);
    for (int i = 0; i < axis.out; ++i) {
      taps[i] = find_taps(axis, i);
      count = std::max(count, std::min(taps[i].count, axis.in));
    }
    weights.assign(size_t(count) * axis.out, T(0));
    for (int i = 0; i < axis.out; ++i) {
      first[i] = std::clamp(taps[i].first, 0, axis.in - count);
      for (int k = 0; k < taps[i].count; ++k) {
        const int index = clamp_index(taps[i].first + k, axis.in) - first[i];
        weights[size_t(index) * axis.out + i] += tap_weight(axis, taps[i], k);
      }
    }
    for (const int n : {8, 16}) {
      bool close = true;
      for (int i = 0; i + n <= axis.out; ++i) close &= first[i + n - 1] + count - first[i] <= 32;
      if (close) lanes = n;
    }
  }
};

template <class T>
struct LevelTables {
  bool copy;
  Table<T> y, x;
  LevelTables(const PyramidResize& a, const PyramidLevel& level)
      : LevelTables(make_axis<T>(a.height, level.height, level.factor_y, a.filter, a.antialias),
                    make_axis<T>(a.width, level.width, level.factor_x, a.filter, a.antialias)) {}
  LevelTables(const Axis<T>& ay, const Axis<T>& ax) : copy(is_copy(ay) && is_copy(ax)), y(ay), x(ax) {}
};

// Reads `count` pixels, `step` apart, and normalises them.
template <class S, class T>
void read_row(const void* source, int64_t offset, int step, int count, T mean, T scale, bool normalize,
              T* __restrict target) {
  const S* __restrict s = static_cast<const S*>(source) + offset;
  if (!normalize) {
    for (int x = 0; x < count; ++x) target[x] = T(widen(s[int64_t(x) * step]));
  } else if (step == 1) {
    for (int x = 0; x < count; ++x) target[x] = (T(widen(s[x])) - mean) * scale;
  } else if (step == 3) {
    for (int x = 0; x < count; ++x) target[x] = (T(widen(s[3 * int64_t(x)])) - mean) * scale;
  } else {
    for (int x = 0; x < count; ++x) target[x] = (T(widen(s[int64_t(x) * step])) - mean) * scale;
  }
}

template <class S, class T>
void write_row(const T* source, void* target, int64_t offset, int count) {
  S* __restrict t = static_cast<S*>(target) + offset;
  for (int x = 0; x < count; ++x) t[x] = narrow<S>(typename Compute<S>::type(source[x]));
}

// Calls fn with a value of the storage type.
template <class F>
void with_storage(Dtype dtype, const F& fn) {
  switch (dtype) {
    case Dtype::f16: fn(Half()); break;
    case Dtype::bf16: fn(Bfloat()); break;
    case Dtype::u8: fn(uint8_t()); break;
    case Dtype::f64: fn(double()); break;
    default: fn(float()); break;
  }
}

template <class T>
using ReadRow = void (*)(const void*, int64_t, int, int, T, T, bool, T*);
template <class T>
using WriteRow = void (*)(const T*, void*, int64_t, int);

template <class T>
ReadRow<T> row_reader(Dtype dtype) {
  ReadRow<T> read = nullptr;
  with_storage(dtype, [&](auto storage) { read = read_row<decltype(storage), T>; });
  return read;
}

// The level dtype may be wider or narrower than the arithmetic: double levels of a float image and the reverse.
template <class T>
WriteRow<T> row_writer(Dtype dtype) {
  WriteRow<T> write = nullptr;
  with_storage(dtype, [&](auto storage) {
    using S = decltype(storage);
    if constexpr (!std::is_same_v<S, uint8_t>) write = write_row<S, T>;
  });
  return write;
}

// Normalised rows of one channel, the last `slots` of them kept.
template <class T>
class Rows {
 public:
  Rows(const PyramidResize& a, int slots)
      : a_(a), read_(row_reader<T>(a.image_dtype)), slots_(slots), memory_(size_t(slots) * a.width), held_(slots, -1) {}

  void begin(int64_t b, int c) {
    b_ = b, c_ = c;
    std::fill(held_.begin(), held_.end(), -1);
    ready_first_ = ready_last_ = 0;
    valid_height_ = a_.has_valid ? int(std::min<int64_t>(a_.valid[2 * b], a_.height)) : a_.height;
    valid_width_ = a_.has_valid ? int(std::min<int64_t>(a_.valid[2 * b + 1], a_.width)) : a_.width;
  }

  void read(int y, T* target) const {
    const int count = y < valid_height_ ? valid_width_ : 0;
    const int step = a_.channels_last ? a_.channels : 1;
    const int64_t offset = a_.channels_last ? (b_ * a_.height + y) * a_.width * a_.channels + c_
                                            : ((b_ * a_.channels + c_) * a_.height + y) * a_.width;
    if (count) read_(a_.images, offset, step, count, T(a_.mean[c_]), T(a_.scale[c_]), a_.normalize, target);
    std::fill(target + count, target + a_.width, T(0));
  }

  // Rows [first, last) of this channel already lie one after the other.
  void use(const T* rows, int first, int last) { ready_ = rows, ready_first_ = first, ready_last_ = last; }

  std::vector<const T*>& sources() { return sources_; }

  const T* row(int y) {
    if (y >= ready_first_ && y < ready_last_) return ready_ + int64_t(y - ready_first_) * a_.width;
    const int slot = y % slots_;
    T* target = memory_.data() + size_t(slot) * a_.width;
    if (held_[slot] != y) {
      read(y, target);
      held_[slot] = y;
    }
    return target;
  }

 private:
  const PyramidResize& a_;
  ReadRow<T> read_;
  int slots_;
  Scratch<T> memory_;
  std::vector<int> held_;
  int64_t b_ = 0;
  int c_ = 0, valid_height_ = 0, valid_width_ = 0;
  std::vector<const T*> sources_;
  const T* ready_ = nullptr;
  int ready_first_ = 0, ready_last_ = 0;
};

constexpr int kOverread = 32;  // items that may be read behind a row of columns

// Outputs from `x` on as far as whole vectors of them go; gives where it stopped.
template <class T, int K>
int blend_neighbours(const Table<T>& table, const T* source, T* target, int out) {
  int x = 0;
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<T, float>) {
    // Two registers hold all the inputs that 8 or 16 neighbouring outputs take from; a gather would fetch each alone.
    const int count = K ? K : table.count, lanes = table.lanes;
    const __mmask16 used = __mmask16((1u << lanes) - 1);
    for (; lanes && x + lanes <= out; x += lanes) {
      const int first = table.first[x];
      const __m512 low = _mm512_loadu_ps(source + first), high = _mm512_loadu_ps(source + first + 16);
      __m512i index = _mm512_maskz_loadu_epi32(used, table.first.data() + x);
      index = _mm512_sub_epi32(index, _mm512_set1_epi32(first));
      __m512 sum = _mm512_setzero_ps();
      for (int k = 0; k < count; ++k) {
        const __m512 weight = _mm512_maskz_loadu_ps(used, table.weights.data() + size_t(k) * out + x);
        sum = _mm512_fmadd_ps(weight, _mm512_permutex2var_ps(low, index, high), sum);
        index = _mm512_add_epi32(index, _mm512_set1_epi32(1));
      }
      _mm512_mask_storeu_ps(target + x, used, sum);
    }
  }
#endif
  return x;
}

template <class T, int K>
void blend_columns(const Table<T>& table, const T* __restrict source, T* __restrict target, int out) {
  const int count = K ? K : table.count;
  const int* __restrict first = table.first.data();
  const T* __restrict weights = table.weights.data();
  for (int x = blend_neighbours<T, K>(table, source, target, out); x < out; ++x) {
    T sum = 0;
    for (int k = 0; k < count; ++k) sum += weights[size_t(k) * out + x] * source[first[x] + k];
    target[x] = sum;
  }
}

template <class T>
void blend_rows(const Table<T>& table, int out, int y, Rows<T>& rows, T* __restrict target, int width) {
  const auto weight = [&](int k) { return table.weights[size_t(k) * out + y]; };
  const int first = table.first[y];
  if (table.count == 2) {
    const T* __restrict upper = rows.row(first), * __restrict lower = rows.row(first + 1);
    const T w0 = weight(0), w1 = weight(1);
    for (int x = 0; x < width; ++x) target[x] = w0 * upper[x] + w1 * lower[x];
    return;
  }
  constexpr int L = kVectorBytes / int(sizeof(T));
  std::vector<const T*>& sources = rows.sources();
  sources.clear();
  for (int k = 0; k < table.count; ++k) sources.push_back(rows.row(first + k));
  int x = 0;
  for (; x + 2 * L <= width; x += 2 * L) {
    Vector<T, L> sum0{}, sum1{};
    for (int k = 0; k < table.count; ++k) {
      sum0 += weight(k) * load<T, L>(sources[k] + x);
      sum1 += weight(k) * load<T, L>(sources[k] + x + L);
    }
    store<T, L>(target + x, sum0);
    store<T, L>(target + x + L, sum1);
  }
  for (; x < width; ++x) {
    T sum = 0;
    for (int k = 0; k < table.count; ++k) sum += weight(k) * sources[k][x];
    target[x] = sum;
  }
}

template <class T>
std::vector<LevelTables<T>> all_tables(const PyramidResize& a) {
  std::vector<LevelTables<T>> tables;
  for (int i = 0; i < a.level_count; ++i) tables.emplace_back(a, a.levels[i]);
  return tables;
}

template <class T>
struct ForwardSpace {
  Rows<T> rows;
  Scratch<T> blended, finished;
  ForwardSpace(const PyramidResize& a, int slots, int widest)
      : rows(a, slots), blended(a.width + kOverread), finished(widest) {}
};

template <class T>
void forward(const PyramidResize& a, int threads) {
  const auto tables = all_tables<T>(a);
  const WriteRow<T> write = row_writer<T>(a.level_dtype);
  const bool direct = a.level_dtype == (std::is_same_v<T, double> ? Dtype::f64 : Dtype::f32);
  int slots = 2, widest = 1;
  for (int i = 0; i < a.level_count; ++i) {
    slots = std::max(slots, tables[i].y.count);
    widest = std::max(widest, a.levels[i].width);
  }
  // Strips of about 64 rows: the rows two strips share stay few, and one channel of a strip stays in the cache.
  const int64_t strips = std::max(1, a.height / 64);
  threads = int(std::min<int64_t>(threads, a.batch * strips));
  std::vector<std::unique_ptr<ForwardSpace<T>>> spaces;
  for (int i = 0; i < threads; ++i) spaces.push_back(std::make_unique<ForwardSpace<T>>(a, slots, widest));

  parallel_for(a.batch * strips, threads, [&](int64_t task, int slot) {
    ForwardSpace<T>& space = *spaces[slot];
    const int64_t b = task / strips, strip = task % strips;
    for (int c = 0; c < a.channels; ++c) {
      space.rows.begin(b, c);
      for (int i = 0; i < a.level_count; ++i) {
        const PyramidLevel& level = a.levels[i];
        const int first = int(level.height * strip / strips), last = int(level.height * (strip + 1) / strips);
        for (int y = first; y < last; ++y) {
          const int64_t offset = ((b * a.channels + c) * level.height + y) * level.width;
          T* finished = direct ? static_cast<T*>(level.data) + offset : space.finished.data();
          if (tables[i].copy) {
            space.rows.read(y, finished);
          } else {
            blend_rows(tables[i].y, level.height, y, space.rows, space.blended.data(), a.width);
            const auto blend = tables[i].x.count == 2   ? blend_columns<T, 2>
                               : tables[i].x.count == 4 ? blend_columns<T, 4>
                                                        : blend_columns<T, 0>;
            blend(tables[i].x, space.blended.data(), finished, level.width);
          }
          if (!direct) write(finished, level.data, offset, level.width);
        }
        // The other levels take their rows from here, ready as they are.
        if (direct && tables[i].copy)
          space.rows.use(static_cast<T*>(level.data) + ((b * a.channels + c) * level.height + first) * level.width,
                         first, last);
      }
    }
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
        read(level.data, (task * level.height + y) * level.width, 1, level.width, T(0), T(1), false, grad_row);
        std::fill(spread, spread + a.width, T(0));
        for (int x = 0; x < level.width; ++x)
          for (int k = 0; k < tx.count; ++k)
            spread[tx.first[x] + k] += tx.weights[size_t(k) * level.width + x] * grad_row[x];
        for (int k = 0; k < ty.count; ++k) {
          const T w = ty.weights[size_t(k) * level.height + y];
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
      write(row, a.images, (task * a.height + y) * a.width, a.width);
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
