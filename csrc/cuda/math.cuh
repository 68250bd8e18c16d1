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

}  // namespace
}  // namespace kd
