// Softened KL on the CPU: counts, statistics and rows on all threads (cpu/row_loss-inl.h, for each instruction set),
// reduction.
#define KD_ISA_SOURCE "cpu/row_loss-inl.h"
#include "cpu/each_isa.h"

#include "cpu/row_loss_kernel.h"

#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

namespace kd {
namespace {

void check_labels(const RowLoss& problem) {
  for (int64_t row = 0; row < problem.rows(); ++row)
    if (problem.has_label(row) && (problem.hard.target[row] < 0 || problem.hard.target[row] >= problem.classes))
      throw std::invalid_argument("target contains " + std::to_string(problem.hard.target[row]) + ", valid labels are 0.." +
                                  std::to_string(problem.classes - 1) + " (or ignore_index=" +
                                  std::to_string(problem.hard.ignore_index) + ")");
}

// Rows counted by the soft and the hard term of each group.
void count_rows(const RowLoss& problem) {
  int64_t* soft = static_cast<int64_t*>(problem.counts);
  int64_t* hard = soft + problem.groups;
  for (int64_t g = 0; g < problem.groups; ++g) {
    soft[g] = hard[g] = 0;
    for (int64_t row = g * problem.group_rows(); row < (g + 1) * problem.group_rows(); ++row) {
      soft[g] += problem.counts_row(row);
      hard[g] += problem.has_label(row);
    }
  }
}

void check_permutation(const RowLoss& problem) {
  std::vector<int64_t> seen_in(problem.classes, -1);
  for (int64_t row = 0; row < problem.rows(); ++row)
    for (int64_t c = 0; c < problem.classes; ++c) {
      const int64_t from = problem.permutation.of_rows[row * problem.classes + c];
      if (from < 0 || from >= problem.classes || seen_in[from] == row)
        throw std::invalid_argument("permutation must hold each class 0.." + std::to_string(problem.classes - 1) +
                                    " once in every row, but row " + std::to_string(row) + " holds " +
                                    std::to_string(from) + (from < 0 || from >= problem.classes ? "" : " twice"));
      seen_in[from] = row;
    }
}

// Statistics to weights or temperatures of rows. Summed in the order of the rows, as reduce_rows does.
template <class A>
void apply_statistics(const RowLoss& problem) {
  A* statistic = static_cast<A*>(problem.first.numbers);
  for (int64_t g = 0; g < problem.groups; ++g) {
    const int64_t begin = g * problem.group_rows(), end = begin + problem.group_rows();
    double sum = 0, count = 0;
    for (int64_t row = begin; row < end; ++row)
      if (problem.counts_row(row)) {
        sum += statistic[row];
        ++count;
      }
    for (int64_t row = begin; row < end; ++row)
      statistic[row] = static_cast<A>(applied_statistic(problem, problem.counts_row(row), statistic[row], sum, count));
  }
}

// Always summed in the order of the rows, in double: the same for any number of threads.
template <class A>
void reduce_rows(const RowLoss& problem) {
  const int64_t rows = problem.rows(), groups = problem.groups;
  const A* soft = static_cast<const A*>(problem.row_losses);
  const A* hard = soft + rows;
  A* loss = static_cast<A*>(problem.loss);
  A* parts = static_cast<A*>(problem.parts);
  if (problem.reduction == Reduction::none) {
    for (int64_t row = 0; row < rows; ++row)
      loss[row] = static_cast<A>(weighted_loss(problem, soft[row], problem.hard.target ? hard[row] : A(0)));
    if (parts) std::memcpy(parts, soft, 2 * rows * sizeof(A));
    return;
  }
  for (int64_t g = 0; g < groups; ++g) {
    double soft_sum = 0, hard_sum = 0;
    for (int64_t row = g * problem.group_rows(); row < (g + 1) * problem.group_rows(); ++row) {
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

// body(begin, end, scratch) on all threads, over all rows.
template <class Body>
void each_range(const RowLoss& problem, const ParallelFor& parallel_for, const Body& body) {
  const int64_t grain = std::max<int64_t>(1, grain_elements / problem.classes);
  parallel_for(problem.rows(), grain, [&](int64_t begin, int64_t end) {
    const size_t bytes = base::scratch_numbers(problem) * (problem.is_double() ? sizeof(double) : sizeof(float));
    const std::unique_ptr<CacheLine[]> scratch(new CacheLine[bytes / sizeof(CacheLine) + 1]);
    body(begin, end, scratch.get());
  });
}

}  // namespace

void row_statistics_cpu(const RowLoss& problem, const ParallelFor& parallel_for) {
  check_labels(problem);
  each_range(problem, parallel_for, [&](int64_t begin, int64_t end, void* scratch) {
    if (problem.is_double()) KD_CALL_ISA(row_statistics_double, problem, begin, end, scratch);
    else KD_CALL_ISA(row_statistics_float, problem, begin, end, scratch);
  });
}

void row_loss_cpu(const RowLoss& problem, const ParallelFor& parallel_for) {
  check_labels(problem);
  count_rows(problem);
  if (problem.permutation.of_rows) check_permutation(problem);
  if (problem.first.statistic != RowStatistic::none) {
    if (!problem.has_statistics()) row_statistics_cpu(problem, parallel_for);
    if (problem.is_double()) apply_statistics<double>(problem);
    else apply_statistics<float>(problem);
  }
  const RowLoss rest = problem.after_statistics();
  each_range(rest, parallel_for, [&](int64_t begin, int64_t end, void* scratch) {
    if (rest.is_double()) KD_CALL_ISA(solve_rows_double, rest, begin, end, scratch);
    else KD_CALL_ISA(solve_rows_float, rest, begin, end, scratch);
  });
  if (problem.is_double()) reduce_rows<double>(problem);
  else reduce_rows<float>(problem);
}

void scale_gradient_cpu(const Rows& gradient, int64_t outer, int64_t classes, int64_t inner, const void* upstream,
                        Dtype upstream_dtype, bool per_row, const ParallelFor& parallel_for) {
  const bool is_double = upstream_dtype == Dtype::float64;
  if (!per_row && (is_double ? *static_cast<const double*>(upstream) == 1.0 : *static_cast<const float*>(upstream) == 1.0f))
    return;
  const int64_t grain = std::max<int64_t>(1, grain_elements / classes);
  parallel_for(outer * inner, grain, [&](int64_t begin, int64_t end) {
    KD_CALL_ISA(scale_rows, gradient, classes, inner, upstream, upstream_dtype, per_row, begin, end);
  });
}

}  // namespace kd
