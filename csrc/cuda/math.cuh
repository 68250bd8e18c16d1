// Functions of either arithmetic type.
#pragma once
#include <cmath>

#include "host_device.h"

namespace kd {
namespace {

KD_DEVICE float exponential(float x) { return ::expf(x); }
KD_DEVICE double exponential(double x) { return ::exp(x); }
KD_DEVICE float logarithm(float x) { return ::logf(x); }
KD_DEVICE double logarithm(double x) { return ::log(x); }
KD_DEVICE float logarithm_of_1_and(float x) { return ::log1pf(x); }
KD_DEVICE double logarithm_of_1_and(double x) { return ::log1p(x); }

// What a weighted number adds to a sum: nothing where the weight is 0, not even NaN.
template <class A>
KD_DEVICE A weighted(A weight, A number) {
  return weight == A(0) ? A(0) : weight * number;
}

}  // namespace
}  // namespace kd
