// The elements of a logits tensor and their way to the arithmetic type and back. Host and device.
#pragma once
#include "half.h"
#include "host_device.h"
#include "types.h"

namespace kd {

struct Half {
  uint16_t bits;
};

struct BFloat16 {
  uint16_t bits;
};

KD_HOST_DEVICE float to_arithmetic(float x) { return x; }
KD_HOST_DEVICE double to_arithmetic(double x) { return x; }
KD_HOST_DEVICE float to_arithmetic(Half x) { return half_to_float(x.bits); }
KD_HOST_DEVICE float to_arithmetic(BFloat16 x) { return bfloat16_to_float(x.bits); }

template <class A>
KD_HOST_DEVICE void from_arithmetic(A x, float* to) {
  *to = static_cast<float>(x);
}
template <class A>
KD_HOST_DEVICE void from_arithmetic(A x, double* to) {
  *to = x;
}
template <class A>
KD_HOST_DEVICE void from_arithmetic(A x, Half* to) {
  to->bits = float_to_half(static_cast<float>(x));
}
template <class A>
KD_HOST_DEVICE void from_arithmetic(A x, BFloat16* to) {
  to->bits = float_to_bfloat16(static_cast<float>(x));
}

// Calls body with a null pointer to the element type of `dtype`.
KD_CALLS_EITHER
template <class Body>
KD_HOST_DEVICE void with_dtype(Dtype dtype, const Body& body) {
  switch (dtype) {
    case Dtype::float32: return body(static_cast<float*>(nullptr));
    case Dtype::float64: return body(static_cast<double*>(nullptr));
    case Dtype::float16: return body(static_cast<Half*>(nullptr));
    case Dtype::bfloat16: return body(static_cast<BFloat16*>(nullptr));
  }
}

}  // namespace kd
