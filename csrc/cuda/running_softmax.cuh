// Sums and maxima of one thread over its chunks of a row.
#pragma once
#include <cmath>

#include "cuda/launch.h"
#include "cuda/math.cuh"
#include "host_device.h"

namespace kd {
namespace {

// Sums of one thread, added chunk by chunk in blocks of 32 chunks: a thread alone with a long row would otherwise add
// thousands of numbers one after another, and as many rounding errors.
template <class A, int count>
struct BlockedSums {
  A total[count] = {};
  A part[count] = {};
  int chunks = 0;  // in `part`

  KD_DEVICE void add(const A (&chunk)[count]) {
    KD_UNROLL for (int j = 0; j < count; ++j) part[j] += chunk[j];
    if (++chunks == 32) fold();
  }

  KD_DEVICE void fold() {
    KD_UNROLL for (int j = 0; j < count; ++j) {
      total[j] += part[j];
      part[j] = 0;
    }
    chunks = 0;
  }
};

// Running maximum of x, and sums of exp((x - max) / T) and, for the hard label, of exp(x - max).
template <class A>
struct RunningSoftmax {
  A max = -HUGE_VALF;
  BlockedSums<A, 2> sums;

  KD_DEVICE void add(const A (&x)[chunk_classes], A inverse_temperature, bool wants_cold) {
    A highest = max;
    KD_UNROLL for (int e = 0; e < chunk_classes; ++e) highest = larger(x[e], highest);
    raise(highest, inverse_temperature, wants_cold);
    if (max == -HUGE_VALF) {  // no class of positive probability yet: x - max is NaN, and x may be NaN, too
      KD_UNROLL for (int e = 0; e < chunk_classes; ++e)
        if (x[e] != x[e]) sums.part[0] = sums.part[1] = x[e];
      return;
    }
    A chunk[2] = {0, 0};
    KD_UNROLL for (int e = 0; e < chunk_classes; ++e) chunk[0] += exp_product(x[e] - max, inverse_temperature);
    if (wants_cold)
      KD_UNROLL for (int e = 0; e < chunk_classes; ++e) chunk[1] += exp_product(x[e] - max, A(1));
    sums.add(chunk);
  }

  // The same sums relative to a maximum at least as high.
  KD_DEVICE void raise(A highest, A inverse_temperature, bool wants_cold) {
    if (highest > max && max != -HUGE_VALF) {
      const A factors[2] = {exp_product(max - highest, inverse_temperature),
                            wants_cold ? exp_product(max - highest, A(1)) : A(0)};
      KD_UNROLL for (int j = 0; j < 2; ++j) {
        sums.total[j] *= factors[j];
        sums.part[j] *= factors[j];
      }
    }
    max = highest;
  }
};

}  // namespace
}  // namespace kd
