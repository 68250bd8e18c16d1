// Softened KL on the CPU: counts, rows on all threads (cpu/softened_kl-inl.h, for each instruction set), reduction.
#define KD_ISA_SOURCE "cpu/softened_kl-inl.h"
#include "cpu/each_isa.h"

#include "cpu/softened_kl_kernel.h"

#include <memory>
#include <new>
#include <stdexcept>
#include <string>

namespace kd {
namespace {

// Below this many numbers a thread is not worth waking.
constexpr int64_t grain_elements = 16384;

struct CacheLine {
  alignas(64) unsigned char bytes[64];
};

// Rows counted by the soft and the hard term of each group. Bad labels are found here, before any row is computed.
void count_rows(const SoftenedKL& problem) {
  int64_t* soft = static_cast<int64_t*>(problem.counts);
  int64_t* hard = soft + problem.groups;
  const int64_t group_rows = problem.rows() / problem.groups;
  for (int64_t g = 0; g < problem.groups; ++g) {
    soft[g] = hard[g] = 0;
    for (int64_t row = g * group_rows; row < (g + 1) * group_rows; ++row) {
      soft[g] += !problem.mask || problem.mask[row];
      if (!problem.target || problem.target[row] == problem.ignore_index) continue;
      ++hard[g];
      if (problem.target[row] < 0 || problem.target[row] >= problem.classes)
        throw std::invalid_argument("target contains " + std::to_string(problem.target[row]) + ", valid labels are 0.." +
                                    std::to_string(problem.classes - 1) + " (or ignore_index=" +
                                    std::to_string(problem.ignore_index) + ")");
    }
  }
}

// Always summed in the order of the rows, in double: the same for any number of threads.
template <class A>
void reduce_rows(const SoftenedKL& problem) {
  const int64_t rows = problem.rows(), groups = problem.groups;
  const A* soft = static_cast<const A*>(problem.row_losses);
  const A* hard = soft + rows;
  A* loss = static_cast<A*>(problem.loss);
  A* parts = static_cast<A*>(problem.parts);
  if (problem.reduction == Reduction::none) {
    for (int64_t row = 0; row < rows; ++row)
      loss[row] = static_cast<A>(weighted_loss(problem, soft[row], problem.target ? hard[row] : A(0)));
    if (parts) std::memcpy(parts, soft, 2 * rows * sizeof(A));
    return;
  }
  for (int64_t g = 0; g < groups; ++g) {
    double soft_sum = 0, hard_sum = 0;
    for (int64_t row = g * (rows / groups); row < (g + 1) * (rows / groups); ++row) {
      soft_sum += soft[row];
      hard_sum += hard[row];
    }
    const Divisors divisor = divisors(problem, g);
    soft_sum /= divisor.soft;
    hard_sum /= divisor.hard;
    loss[g] = static_cast<A>(weighted_loss(problem, soft_sum, hard_sum));
    if (parts) {
      parts[g] = static_cast<A>(soft_sum);
      parts[groups + g] = static_cast<A>(hard_sum);
    }
  }
}

}  // namespace

void softened_kl_cpu(const SoftenedKL& problem, const ParallelFor& parallel_for) {
  count_rows(problem);
  const bool is_double = problem.is_double();
  const int64_t grain = std::max<int64_t>(1, grain_elements / problem.classes);
  parallel_for(problem.rows(), grain, [&](int64_t begin, int64_t end) {
    const int64_t numbers = base::scratch_numbers(problem);
    const size_t bytes = numbers * (is_double ? sizeof(double) : sizeof(float));
    const std::unique_ptr<CacheLine[]> scratch(new CacheLine[bytes / sizeof(CacheLine) + 1]);
    if (is_double) KD_CALL_ISA(solve_rows_double, problem, begin, end, scratch.get());
    else KD_CALL_ISA(solve_rows_float, problem, begin, end, scratch.get());
  });
  if (is_double) reduce_rows<double>(problem);
  else reduce_rows<float>(problem);
}

void scale_gradient_cpu(const Rows& gradient, int64_t outer, int64_t classes, int64_t inner, const void* upstream,
                        Dtype upstream_dtype, bool per_row, const ParallelFor& parallel_for) {
  const auto factor_at = [&](int64_t row) {
    return upstream_dtype == Dtype::float64 ? static_cast<const double*>(upstream)[row]
                                            : static_cast<double>(static_cast<const float*>(upstream)[row]);
  };
  if (!per_row && factor_at(0) == 1.0) return;
  const int64_t grain = std::max<int64_t>(1, grain_elements / classes);
  parallel_for(outer * inner, grain, [&](int64_t begin, int64_t end) {
    with_dtype(gradient.dtype, [&](auto* type) {
      for (int64_t row = begin; row < end; ++row) {
        const auto factor = factor_at(per_row ? row : 0);
        auto* numbers = static_cast<decltype(type)>(gradient.data) + row / inner * gradient.outer_stride +
                        row % inner * gradient.inner_stride;
        for (int64_t c = 0; c < classes; ++c) {
          auto* number = numbers + c * gradient.class_stride;
          from_arithmetic(to_arithmetic(*number) * factor, number);
        }
      }
    });
  });
}

}  // namespace kd
