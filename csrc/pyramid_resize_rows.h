// Rows of an image on the CPU: read and normalised, kept while they are needed, and written. Included once per
// instruction set, as simd.h.
#pragma once

#include <algorithm>
#include <cstring>
#include <type_traits>
#include <vector>

#include "parallel.h"
#include "pyramid_resize.h"
#include "simd.h"

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace piip {
namespace PIIP_ISA {

constexpr int kOverread = 32;  // items that may be read behind a row

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

// Reads `count` pixels of three bytes and normalises them; the rows of the channels lie `stride` items from each other.
template <class T>
void read_pixels(const uint8_t* pixels, int count, const double* mean, const double* scale, T* target, size_t stride) {
  int x = 0;
#if defined(__AVX2__)
  if constexpr (std::is_same_v<T, float>) {
    // Four pixels go to each part of 16 bytes, where a shuffle takes a channel's bytes apart, into 32 bits each.
    constexpr int L = kVectorBytes / 4;
    alignas(kVectorBytes) int8_t order[3][kVectorBytes];
    Vector<float, L> means[3], scales[3];
    for (int c = 0; c < 3; ++c) {
      for (int i = 0; i < kVectorBytes; ++i) order[c][i] = int8_t(i % 4 ? -1 : 3 * (i % 16 / 4) + c);
      means[c] = Vector<float, L>{} + float(mean[c]);
      scales[c] = Vector<float, L>{} + float(scale[c]);
    }
    for (; 3 * x + kVectorBytes <= 3 * count; x += L) {
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
        const auto values = __builtin_convertvector(bytes, Vector<float, L>);
        store<float, L>(target + c * stride + x, (values - means[c]) * scales[c]);
      }
    }
  }
#endif
  for (; x < count; ++x)
    for (int c = 0; c < 3; ++c) target[c * stride + x] = (T(pixels[3 * x + c]) - T(mean[c])) * T(scale[c]);
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

constexpr int kRowsAhead = 4;  // that a row is fetched before it is read

// Normalised rows of an image, the last `slots` of them kept.
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
    const int slot = y % slots_;
    T* target = memory_.data() + size_t(slot) * a_.channels * stride_;
    if (held_[slot] != y) {
      read(y, target);
      held_[slot] = y;
    }
    return target + c * stride_;
  }

  std::vector<const T*>& sources() { return sources_; }

 private:
  void read(int y, T* target) {
    const int count = y < valid_height_ ? valid_width_ : 0;
    // Channels last: one row of pixels instead of a row a channel.
    const int rows = a_.channels_last ? 1 : a_.channels, item = item_size(a_.image_dtype);
    const int64_t pitch = int64_t(a_.width) * item * (a_.channels / rows);
    for (int c = 0; c < rows; ++c) {
      const char* source = static_cast<const char*>(a_.images) + ((image_ * rows + c) * a_.height + y) * pitch;
      prefetch(source + kRowsAhead * pitch, int(pitch));
      if (a_.channels_last) {
        read_pixels(reinterpret_cast<const uint8_t*>(source), count, a_.mean, a_.scale, target, stride_);
      } else {
        read_(source, count, T(a_.mean[c]), T(a_.scale[c]), a_.normalize, target + c * stride_);
      }
    }
    for (int c = 0; c < a_.channels; ++c) std::fill_n(target + c * stride_ + count, a_.width - count, T(0));
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

// Copies a finished row, past the caches where the levels are large: a line that is written whole is not fetched first.
inline void put_row(void* target, const void* source, size_t bytes, bool past_caches) {
  char* to = static_cast<char*>(target);
  const char* from = static_cast<const char*>(source);
#if defined(__SSE2__)
  if (past_caches) {
    const size_t head = std::min<size_t>(bytes, -reinterpret_cast<uintptr_t>(to) % kVectorBytes);
    std::memcpy(to, from, head);
    to += head, from += head, bytes -= head;
    for (; bytes >= kVectorBytes; to += kVectorBytes, from += kVectorBytes, bytes -= kVectorBytes) {
#if defined(__AVX512F__)
      _mm512_stream_si512(reinterpret_cast<__m512i*>(to), _mm512_loadu_si512(from));
#elif defined(__AVX2__)
      _mm256_stream_si256(reinterpret_cast<__m256i*>(to), _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
#else
      _mm_stream_si128(reinterpret_cast<__m128i*>(to), _mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
#endif
    }
  }
#endif
  std::memcpy(to, from, bytes);
}

// What was put past the caches becomes visible to other threads.
inline void finish_rows() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

}  // namespace PIIP_ISA
}  // namespace piip
