// Every op needs these: dtype tags, 16-bit storage types, and the host-and-device marker.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define PIIP_HD __host__ __device__ __forceinline__
#else
#define PIIP_HD inline
#endif

namespace piip {

// Storage type of a tensor; piip/ops/_extension.py holds the same numbers.
enum class Dtype : int { f32 = 0, f16 = 1, bf16 = 2, f64 = 3, u8 = 4 };

struct Half {
  uint16_t bits;
};

struct Bfloat {
  uint16_t bits;
};

// The type arithmetic runs in for values stored as T.
template <class T>
struct Compute {
  using type = float;
};
template <>
struct Compute<double> {
  using type = double;
};

}  // namespace piip
