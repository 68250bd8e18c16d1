// float16 and bfloat16 as their bits, to and from float: round to nearest even, overflow to infinity, NaN stays NaN.
//
// Device code uses the hardware conversions. The host forms are plain integer arithmetic and selects, no branch, no
// table, no call, so that g++ -O3 vectorises a loop over them for every instruction set. A float16 has 5 exponent
// bits of bias 15 and 10 fraction bits, a float 8 of bias 127 and 23; a bfloat16 is the upper half of a float.
//
// Subnormal float16 values (multiples of 2^-24) go through an addition to 0.5, whose last fraction bit is worth just
// that much: the addition aligns and rounds, also where the processor flushes subnormal floats to zero.
#pragma once
#include <cstdint>
#include <cstring>

#include "host_device.h"

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace kd {

KD_HOST_DEVICE uint32_t float_bits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

KD_HOST_DEVICE float float_from_bits(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

// As a mask and not as `condition ? yes : no`: the compiler would compute `yes` behind a branch, where it stands for
// a floating-point operation, and then not vectorise the loop around.
KD_HOST_DEVICE uint32_t choose(bool condition, uint32_t yes, uint32_t no) {
  return no ^ ((yes ^ no) & (0u - static_cast<uint32_t>(condition)));
}

KD_HOST_DEVICE float half_to_float(uint16_t half) {
#ifdef __CUDA_ARCH__
  return __half2float(__ushort_as_half(half));
#else
  const uint32_t rebias = (127 - 15) << 23;
  const uint32_t magnitude = half & 0x7fffu;
  uint32_t bits = (magnitude << 13) + rebias;
  const uint32_t subnormal = float_bits(float_from_bits(0x3f000000u + magnitude) - 0.5f);
  bits = choose(magnitude < 0x0400u, subnormal, bits);
  bits = choose(magnitude >= 0x7c00u, bits + rebias, bits);  // infinity and NaN
  return float_from_bits(bits | (half & 0x8000u) << 16);
#endif
}

KD_HOST_DEVICE uint16_t float_to_half(float value) {
#ifdef __CUDA_ARCH__
  return __half_as_ushort(__float2half_rn(value));
#else
  const uint32_t rebias = (127 - 15) << 23;
  const uint32_t magnitude = float_bits(value) & 0x7fffffffu;
  // Half of the last kept bit, less one where the kept part is even: ties go to even. A carry moves into the
  // exponent.
  uint32_t half = (magnitude - rebias + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
  const uint32_t subnormal = float_bits(float_from_bits(magnitude) + 0.5f) - 0x3f000000u;
  half = choose(magnitude < 0x38800000u, subnormal, half);  // below 2^-14
  half = choose(magnitude >= 0x47800000u, 0x7c00u, half);   // from 2^16 on
  half = choose(magnitude > 0x7f800000u, 0x7e00u, half);    // NaN
  return static_cast<uint16_t>(half | (float_bits(value) >> 16 & 0x8000u));
#endif
}

KD_HOST_DEVICE float bfloat16_to_float(uint16_t bfloat16) {
  return float_from_bits(static_cast<uint32_t>(bfloat16) << 16);
}

KD_HOST_DEVICE uint16_t float_to_bfloat16(float value) {
#ifdef __CUDA_ARCH__
  return __bfloat16_as_ushort(__float2bfloat16_rn(value));
#else
  const uint32_t bits = float_bits(value);
  const uint32_t rounded = bits + 0x7fffu + (bits >> 16 & 1u);
  const uint32_t nan = choose(value != value, 0x7fc00000u, 0u);  // which rounding could carry into infinity or beyond
  return static_cast<uint16_t>((rounded | nan) >> 16);
#endif
}

}  // namespace kd
