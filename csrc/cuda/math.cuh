// Mathematical functions for both arithmetic types. Kernels use no other exponentials and logarithms.
#pragma once
#include <cmath>

#include "cuda/simt.cuh"
#include "host_device.h"

namespace kd {
namespace {

KD_DEVICE float exp(float x) { return ::expf(x); }
KD_DEVICE double exp(double x) { return ::exp(x); }
KD_DEVICE float log(float x) { return ::logf(x); }
KD_DEVICE double log(double x) { return ::log(x); }
KD_DEVICE float log1p(float x) { return ::log1pf(x); }
KD_DEVICE double log1p(double x) { return ::log1p(x); }

// e^(x y). In float32 the product is rounded anyway, by as much as the one instruction that raises 2 to it.
KD_DEVICE float exp_product(float x, float y) { return simt::fast_exp2(x * (y * 1.44269504f)); }
KD_DEVICE double exp_product(double x, double y) { return ::exp(x * y); }

// The larger of two numbers; where one of them is NaN, the other.
KD_DEVICE float larger(float x, float y) { return ::fmaxf(x, y); }
KD_DEVICE double larger(double x, double y) { return ::fmax(x, y); }

KD_DEVICE float select(bool condition, float yes, float no) { return condition ? yes : no; }
KD_DEVICE double select(bool condition, double yes, double no) { return condition ? yes : no; }

// weight * number, and 0 where the weight is 0, even if the number is infinite or NaN.
template <class A>
KD_DEVICE A weighted(A weight, A number) {
  return weight == A(0) ? A(0) : weight * number;
}

}  // namespace
}  // namespace kd
