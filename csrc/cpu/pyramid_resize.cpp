// Pyramid resizing on the CPU. A task is a horizontal strip of an image, whose rows are read once and in order. As soon
// as all rows are there that a row of a level takes from, this is blended vertically, then horizontally, and written.
//
// This file is compiled once per instruction set; dispatch.cpp chooses.
#include "../pyramid_resize.h"

#include <algorithm>
#include <memory>
#include <type_traits>
#include <vector>

#include "dispatch.h"
#include "parallel.h"
#include "pyramid_resize_blend.h"
#include "pyramid_resize_rows.h"
#include "pyramid_resize_tables.h"

namespace piip {
namespace PIIP_ISA {
namespace {

template <class T>
std::vector<LevelTables<T>> all_tables(const PyramidResize& a) {
  std::vector<LevelTables<T>> tables;
  for (int i = 0; i < a.level_count; ++i) tables.emplace_back(a, a.levels[i]);
  return tables;
}

constexpr int64_t kLargeBytes = 8 << 20;  // levels that take so much together do not stay in a cache anyway

template <class T>
struct ForwardSpace {
  Rows<T> rows;
  size_t stride;  // from channel to channel in `finished`
  Scratch<T> blended, finished;
  Scratch<double> stored;
  std::vector<int> next, end;  // [level], the rows that the strip still has to write
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
    // Of the next rows of all levels, the one that is ready first is written next.
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

// The transpose of the forward. A task is one channel of one image: the rows of the level gradients are spread
// horizontally, then vertically.
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
