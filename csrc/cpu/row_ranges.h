// The check of labels and the parallel loop over rows, which the kernels of row losses share.
#pragma once
#include <algorithm>
#include <memory>
#include <stdexcept>
#include <string>

#include "cpu/threads.h"
#include "row_loss.h"

namespace kd {

inline void check_labels(const RowLoss& problem) {
  if (!problem.hard.target) return;
  const int64_t first = problem.hard.first_class, count = problem.classes / problem.hard.transforms;
  for (int64_t row = 0; row < problem.rows(); ++row) {
    if (!problem.has_label(row)) continue;
    const int64_t label = problem.label_of(row);
    if (label < 0 || label >= problem.classes)
      throw std::invalid_argument("target contains " + std::to_string(problem.target_of(row)) + ", valid labels are " +
                                  std::to_string(first) + ".." + std::to_string(first + count - 1) +
                                  " (or ignore_index=" + std::to_string(problem.hard.ignore_index) + ")");
  }
}

// body(begin, end, scratch) on all threads, over all rows; `scratch` has that many numbers.
template <class Body>
void each_range(const RowLoss& problem, int64_t scratch_numbers, const ParallelFor& parallel_for, const Body& body) {
  const int64_t grain = std::max<int64_t>(1, grain_elements / problem.classes);
  parallel_for(problem.rows(), grain, [&](int64_t begin, int64_t end) {
    const size_t bytes = scratch_numbers * (problem.is_double() ? sizeof(double) : sizeof(float));
    const std::unique_ptr<CacheLine[]> scratch(new CacheLine[bytes / sizeof(CacheLine) + 1]);
    body(begin, end, scratch.get());
  });
}

}  // namespace kd
