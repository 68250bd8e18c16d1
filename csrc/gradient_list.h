// The gradients of one loss, to be multiplied by its upstream gradient together. Dense numbers, in any order.
#pragma once
#include <cstdint>

#include "types.h"

namespace kd {

constexpr int most_gradients = 4;

struct GradientList {
  void* data[most_gradients] = {};
  Dtype dtype[most_gradients] = {};
  int64_t count[most_gradients] = {};  // 0: none
};

}  // namespace kd
