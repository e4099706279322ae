// The rows of an image: they are read and normalised, kept while they are needed, and written. This is compiled once
// per instruction set.
#pragma once

#include <algorithm>
#include <cstring>
#include <type_traits>
#include <vector>

#include "../pyramid_resize.h"
#include "parallel.h"
#include "simd.h"

namespace piip {
namespace PIIP_ISA {

constexpr int kWindow = 48;         // items in the three registers that two taps are fetched from
constexpr int kOverread = kWindow;  // items that may be read behind a row
constexpr int kRowsAhead = 4;       // a row is prefetched while the fourth one before it is read
constexpr int kBytesAhead = 4096;   // the same for interleaved pixels

// Reads `count` pixels and normalises them.
template <class S, class T>
void read_row(const void* source, int count, T mean, T scale, bool normalize, T* __restrict target) {
  const S* __restrict s = static_cast<const S*>(source);
  if (normalize) {
    for (int x = 0; x < count; ++x) target[x] = (T(widen(s[x])) - mean) * scale;
  } else {
    for (int x = 0; x < count; ++x) target[x] = T(widen(s[x]));
  }
}

// Reads `count` pixels of three bytes and normalises them; the rows of the channels lie `stride` items apart in target.
// past: where they are also written past the caches, `plane` items apart, or null.
template <class T>
void read_pixels(const uint8_t* pixels, int count, const double* mean, const double* scale, T* target, size_t stride,
                 T* past, size_t plane) {
  int x = 0;
#if defined(__AVX2__)
  if constexpr (std::is_same_v<T, float>) {
    // Each part of 16 bytes gets four pixels; a shuffle then moves the four bytes of a channel into 32 bits each.
    constexpr int L = kVectorBytes / 4;
    alignas(kVectorBytes) int8_t order[3][kVectorBytes];
    Vector<float, L> means[3], scales[3];
    for (int c = 0; c < 3; ++c) {
      for (int i = 0; i < kVectorBytes; ++i) order[c][i] = int8_t(i % 4 ? -1 : 3 * (i % 16 / 4) + c);
      means[c] = Vector<float, L>{} + float(mean[c]);
      scales[c] = Vector<float, L>{} + float(scale[c]);
    }
    for (; 3 * x + kVectorBytes <= 3 * count; x += L) {
      prefetch(pixels + 3 * x + kBytesAhead, 1);
      for (int c = 0; c < 3; ++c) {
#if defined(__AVX512F__)
        const __m512i parts = _mm512_setr_epi32(0, 1, 2, 3, 3, 4, 5, 6, 6, 7, 8, 9, 9, 10, 11, 12);
        const __m512i fours = _mm512_maskz_permutexvar_epi32(0xffff, parts, _mm512_loadu_si512(pixels + 3 * x));
        const auto bytes = Vector<int32_t, L>(_mm512_shuffle_epi8(fours, _mm512_load_si512(order[c])));
#else
        const auto vector = [](const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); };
        const __m256i parts = _mm256_setr_epi32(0, 1, 2, 3, 3, 4, 5, 6);
        const __m256i fours = _mm256_permutevar8x32_epi32(vector(pixels + 3 * x), parts);
        const auto bytes = Vector<int32_t, L>(_mm256_shuffle_epi8(fours, vector(order[c])));
#endif
        const auto values = (__builtin_convertvector(bytes, Vector<float, L>) - means[c]) * scales[c];
        store<float, L>(target + c * stride + x, values);
        if (past) stream<float, L>(past + c * plane + x, values);
      }
    }
  }
#endif
  for (int c = 0; c < 3; ++c) {
    T* row = target + c * stride;
    for (int i = x; i < count; ++i) row[i] = (T(pixels[3 * i + c]) - T(mean[c])) * T(scale[c]);
    if (past) std::copy(row + x, row + count, past + c * plane + x);
  }
}

template <class S, class T>
void write_row(const T* __restrict source, void* target, int count) {
  S* __restrict t = static_cast<S*>(target);
  for (int x = 0; x < count; ++x) t[x] = narrow<S>(typename Compute<S>::type(source[x]));
}

inline int item_size(Dtype dtype) {
  return dtype == Dtype::f64 ? 8 : dtype == Dtype::f32 ? 4 : dtype == Dtype::u8 ? 1 : 2;
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
using ReadRow = void (*)(const void*, int, T, T, bool, T*);
template <class T>
using WriteRow = void (*)(const T*, void*, int);

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

// The normalised rows of an image, of which the last `slots` are kept.
template <class T>
class Rows {
 public:
  Rows(const PyramidResize& a, int slots)
      : a_(a),
        read_(row_reader<T>(a.image_dtype)),
        slots_(slots),
        stride_((a.width + kOverread + 15) / 16 * 16),
        memory_(size_t(slots) * a.channels * stride_),
        held_(slots, -1) {}

  void begin(int64_t image) {
    image_ = image;
    std::fill(held_.begin(), held_.end(), -1);
    valid_height_ = a_.has_valid ? int(std::min<int64_t>(a_.valid[2 * image], a_.height)) : a_.height;
    valid_width_ = a_.has_valid ? int(std::min<int64_t>(a_.valid[2 * image + 1], a_.width)) : a_.width;
  }

  const T* row(int y, int c) {
    if (held_[y % slots_] != y) read(y, nullptr, 0);
    return memory(y) + c * stride_;
  }

  // Reads a row that is not there yet, and also writes it past the caches as it is, channels `plane` items apart.
  // Returns whether it did.
  bool read_through(int y, T* past, size_t plane) {
    if (!a_.channels_last || held_[y % slots_] == y) return false;
    read(y, past, plane);
    return true;
  }

  std::vector<const T*>& sources() { return sources_; }

 private:
  T* memory(int y) { return memory_.data() + size_t(y % slots_) * a_.channels * stride_; }

  void read(int y, T* past, size_t plane) {
    T* target = memory(y);
    const int count = y < valid_height_ ? valid_width_ : 0, rest = a_.width - count;
    const char* images = static_cast<const char*>(a_.images);
    const int64_t pitch = int64_t(a_.width) * item_size(a_.image_dtype);
    if (a_.channels_last) {
      const char* source = images + (image_ * a_.height + y) * a_.channels * pitch;
      read_pixels(reinterpret_cast<const uint8_t*>(source), count, a_.mean, a_.scale, target, stride_, past, plane);
    } else {
      for (int c = 0; c < a_.channels; ++c) {
        const char* source = images + ((image_ * a_.channels + c) * a_.height + y) * pitch;
        prefetch(source + kRowsAhead * pitch, int(pitch));
        read_(source, count, T(a_.mean[c]), T(a_.scale[c]), a_.normalize, target + c * stride_);
      }
    }
    for (int c = 0; c < a_.channels; ++c) {
      std::fill_n(target + c * stride_ + count, rest, T(0));
      if (past) std::fill_n(past + c * plane + count, rest, T(0));
    }
    held_[y % slots_] = y;
  }

  const PyramidResize& a_;
  ReadRow<T> read_;
  int slots_;
  size_t stride_;
  Scratch<T> memory_;
  std::vector<int> held_;
  int64_t image_ = 0;
  int valid_height_ = 0, valid_width_ = 0;
  std::vector<const T*> sources_;
};

// Copies a row to where it belongs, piece by piece: memory takes a piece while the next one is computed.
class RowStream {
 public:
  RowStream() = default;
  RowStream(void* target, const void* source, size_t bytes, bool past_caches)
      : to_(static_cast<char*>(target)),
        from_(static_cast<const char*>(source)),
        bytes_(bytes),
        past_caches_(past_caches) {}

  // Sends what is new of `finished` bytes. Past the caches only whole vectors are sent, until the row is finished.
  void send(size_t finished) {
    if (past_caches_) {
      copy(std::min<size_t>(finished - sent_, -reinterpret_cast<uintptr_t>(to_ + sent_) % kVectorBytes));
      for (; finished - sent_ >= kVectorBytes; sent_ += kVectorBytes)
        stream<char, kVectorBytes>(to_ + sent_, load<char, kVectorBytes>(from_ + sent_));
      if (finished < bytes_) return;
    }
    copy(finished - sent_);
  }
  void send_rest() { send(bytes_); }

 private:
  void copy(size_t count) {
    std::memcpy(to_ + sent_, from_ + sent_, count);
    sent_ += count;
  }

  char* to_ = nullptr;
  const char* from_ = nullptr;
  size_t bytes_ = 0, sent_ = 0;
  bool past_caches_ = false;
};

}  // namespace PIIP_ISA
}  // namespace piip
