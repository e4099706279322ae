#pragma once

#include <stdint.h>
#include <string.h>

struct __half {
  uint16_t bits;
};
inline __half __ushort_as_half(uint16_t bits) { return {bits}; }
inline uint16_t __half_as_ushort(__half x) { return x.bits; }
inline float __half2float(__half x) {
  _Float16 value;
  memcpy(&value, &x, 2);
  return float(value);
}
inline __half __float2half_rn(float x) {
  const _Float16 value = _Float16(x);
  __half half;
  memcpy(&half, &value, 2);
  return half;
}
