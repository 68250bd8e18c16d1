// Row losses on the CPU: counts, the first pass, rows on all threads (cpu/row_loss-inl.h, for each instruction set), reduction.
#define KD_ISA_SOURCE "cpu/row_loss-inl.h"
#include "cpu/each_isa.h"

#include "cpu/row_loss_kernel.h"

#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "cpu/row_ranges.h"
#include "row_statistics.h"

namespace kd {
namespace {

// Rows counted by the soft and the hard term of each group.
void count_rows(const RowLoss& problem) {
  int64_t* soft = static_cast<int64_t*>(problem.counts);
  int64_t* hard = soft + problem.groups;
  for (int64_t g = 0; g < problem.groups; ++g) {
    soft[g] = hard[g] = 0;
    for (int64_t row = g * problem.group_rows(); row < (g + 1) * problem.group_rows(); ++row) {
      soft[g] += problem.counts_row(row);
      hard[g] += problem.counts_hard(row);
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
      loss[row] = static_cast<A>(weighted_loss(problem, soft[row], problem.has_hard() ? hard[row] : A(0)));
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

void solve(const RowLoss& problem, const ParallelFor& parallel_for) {
  each_range(problem, base::scratch_numbers(problem), parallel_for, [&](int64_t begin, int64_t end, void* scratch) {
    solve_rows_cpu(problem, problem.is_double(), begin, end, scratch);
  });
}

}  // namespace

int64_t row_scratch_numbers(const RowLoss& problem) { return base::scratch_numbers(problem); }

void solve_rows_cpu(const RowLoss& problem, bool is_double, int64_t begin, int64_t end, void* scratch) {
  if (is_double) KD_CALL_ISA(solve_rows_double, problem, begin, end, scratch);
  else KD_CALL_ISA(solve_rows_float, problem, begin, end, scratch);
}

void row_measure_cpu(const RowLoss& problem, const ParallelFor& parallel_for) {
  RowLoss measured = problem;
  measured.grad_student.data = measured.grad_teacher.data = nullptr;
  measured.unit_student = measured.unit_teacher = nullptr;
  solve(measured, parallel_for);
}

void row_loss_cpu(const RowLoss& problem, const ParallelFor& parallel_for) {
  if (problem.step == RowStep::all) check_labels(problem);  // of a part, a label may name another part's class
  count_rows(problem);
  if (problem.permutation.of_rows) check_permutation(problem);
  if (problem.first.statistic != RowStatistic::none) {
    if (!problem.has_statistics()) row_statistics_cpu(problem, parallel_for);
    if (problem.is_double()) apply_statistics<double>(problem);
    else apply_statistics<float>(problem);
  }
  solve(problem.after_statistics(), parallel_for);
  if (problem.is_double()) reduce_rows<double>(problem);
  else reduce_rows<float>(problem);
}

}  // namespace kd
