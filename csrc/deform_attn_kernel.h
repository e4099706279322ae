// The inner loops of deformable attention: gathering a head's samples from its plane, and scattering the gradient of
// the output into the gradient's plane.
#pragma once

#include <algorithm>

#include "deform_attn_samples.h"

namespace piip {
namespace PIIP_ISA {

// One head of a block of queries.
template <class T>
struct HeadBlock {
  const Samples<T>& samples;
  const int64_t* below;  // per sample of a query, elements from a cell to the one below
  int head, count, pitch;
};

template <class T, int N>
struct Kernel {
  using V = Vector<T, N>;

  // out[query * step + lane] = sum over samples of weight * cell, whole vectors.
  static void forward(const HeadBlock<T>& block, const T* plane, T* out, int64_t step) {
    // Eight vectors at a time, so that the sums stay in registers.
    for (int first = 0; first < block.pitch; first += 8 * N) {
      switch (std::min(8, (block.pitch - first) / N)) {
        case 1: gather<1>(block, plane + first, out + first, step); break;
        case 2: gather<2>(block, plane + first, out + first, step); break;
        case 3: gather<3>(block, plane + first, out + first, step); break;
        case 4: gather<4>(block, plane + first, out + first, step); break;
        case 5: gather<5>(block, plane + first, out + first, step); break;
        case 6: gather<6>(block, plane + first, out + first, step); break;
        case 7: gather<7>(block, plane + first, out + first, step); break;
        default: gather<8>(block, plane + first, out + first, step); break;
      }
    }
  }

  // Adds to the gradient plane and leaves the products with the four cells. grads[query * step + lane]: gradients of
  // the output, whole vectors.
  static void backward(const HeadBlock<T>& block, T* plane, int64_t to_grad, const T* grads, int64_t step) {
    switch (block.pitch / N) {
      case 1: scatter<1>(block, plane, to_grad, grads, step); break;
      case 2: scatter<2>(block, plane, to_grad, grads, step); break;
      case 3: scatter<3>(block, plane, to_grad, grads, step); break;
      case 4: scatter<4>(block, plane, to_grad, grads, step); break;
      case 5: scatter<5>(block, plane, to_grad, grads, step); break;
      default: scatter<0>(block, plane, to_grad, grads, step); break;
    }
  }

 private:
  template <int C>
  static void gather(const HeadBlock<T>& block, const T* plane, T* out, int64_t step) {
    if (block.pitch == C * N && block.samples.row == 4 && block.samples.per_query == 4) {
      gather<C, 4, C * N>(block, plane, out, step);
    } else if (block.pitch == C * N) {
      gather<C, 0, C * N>(block, plane, out, step);
    } else {
      gather<C, 0, 0>(block, plane, out, step);
    }
  }

  // kSamples, kPitch: known numbers of samples and elements from cell to cell, or 0.
  template <int C, int kSamples, int kPitch>
  static void gather(const HeadBlock<T>& block, const T* plane, T* out, int64_t step) {
    const auto& s = block.samples;
    const int pitch = kPitch ? kPitch : block.pitch, samples = kSamples ? kSamples : s.per_query;
    const int64_t next = s.at(1, 0);
    const int32_t* cell = s.cell + s.at(0, block.head);
    const T* w = s.corners + 4 * s.at(0, block.head);
    for (int q = 0; q < block.count; ++q, out += step, cell += next, w += 4 * next) {
      V sum[C] = {};
#pragma GCC unroll 4
      for (int i = 0; i < samples; ++i) {
        const T *upper = plane + int64_t(cell[i]) * pitch, *lower = upper + block.below[i];
        for (int c = 0; c < C; ++c) {
          sum[c] += w[4 * i] * load<T, N>(upper + c * N);
          sum[c] += w[4 * i + 1] * load<T, N>(upper + pitch + c * N);
          sum[c] += w[4 * i + 2] * load<T, N>(lower + c * N);
          sum[c] += w[4 * i + 3] * load<T, N>(lower + pitch + c * N);
        }
      }
      for (int c = 0; c < C; ++c) store<T, N>(out + c * N, sum[c]);
    }
  }

  // C: known number of vectors of a cell, or 0. A bundle of samples has as many products as a vector has lanes, which
  // are summed together.
  template <int C>
  static void scatter(const HeadBlock<T>& block, T* plane, int64_t to_grad, const T* grads, int64_t step) {
    constexpr int B = N / 4;
    const auto& s = block.samples;
    const int pitch = C ? C * N : block.pitch, vectors = pitch / N, samples = s.per_query;
    const int64_t next = s.at(1, 0), *below = block.below;
    const int32_t* cell = s.cell + s.at(0, block.head);
    const T* w = s.corners + 4 * s.at(0, block.head);
    T* dots = s.dots + 4 * s.at(0, block.head);
    for (int q = 0; q < block.count; ++q, grads += step, cell += next, w += 4 * next, dots += 4 * next) {
      for (int i = 0; i < samples; i += B) {
        V products[N] = {};
#pragma GCC unroll 4
        for (int b = 0; b < B; ++b) {
          T *upper = plane + int64_t(cell[i + b]) * pitch, *lower = upper + below[i + b];
          T* const cells[4] = {upper, upper + pitch, lower, lower + pitch};
          const auto column = [&](int c) __attribute__((always_inline)) {
            const V g = load<T, N>(grads + c * N);
#pragma GCC unroll 4
            for (int j = 0; j < 4; ++j) {
              T *from = cells[j] + c * N, *to = from + to_grad;
              products[4 * b + j] += g * load<T, N>(from);
              store<T, N>(to, load<T, N>(to) + w[4 * (i + b) + j] * g);
            }
          };
          if constexpr (C > 0) {
#pragma GCC unroll 8
            for (int c = 0; c < C; ++c) column(c);
          } else {
            for (int c = 0; c < vectors; ++c) column(c);
          }
        }
        store<T, N>(dots + 4 * i, sum_each<T, N>(products));
      }
    }
  }
};

}  // namespace PIIP_ISA
}  // namespace piip
