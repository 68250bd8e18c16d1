// libtorch's thread pool as a ParallelFor.
#pragma once
#include "cpu/threads.h"
#include "stable.h"

namespace kd {

// Not even entered for fewer than two grains.
inline void torch_threads(int64_t count, int64_t grain, const std::function<void(int64_t, int64_t)>& body) {
  if (count > grain) torch::stable::parallel_for(0, count, grain, body);
  else if (count > 0) body(0, count);
}

}  // namespace kd
