// Several heads on the CPU: the rows of all of them in one parallel region, then the reduction.
//
// A head is a problem of the row engine (cpu/row_loss_kernel.h), its gradient that of weight_i * head_i. Threads get shares of the
// logits and not of the rows, since a row of one head may have many times the classes of another's.
#include "cpu/multi_head_kl_kernel.h"

#include <algorithm>
#include <memory>

#include "cpu/row_loss_kernel.h"

namespace kd {
namespace {

// Weights and denominator as numbers.
template <class A>
double weight_of(const MultiHeadKL& problem, size_t head) {
  if (!problem.weights) return problem.heads[head].soft.weight;
  return valid_weight(static_cast<const A*>(problem.weights)[head]);
}

double denominator_of(const MultiHeadKL& problem) {
  if (problem.denominators) return valid_denominator(*problem.denominators);
  return problem.denominator > 0 ? problem.denominator : static_cast<double>(std::max<int64_t>(problem.rows(), 1));
}

// In the order of the rows, in double: the same for any number of threads.
template <class A>
void solve(const MultiHeadKL& problem, const ParallelFor& parallel_for) {
  const double denominator = denominator_of(problem);
  const int64_t rows = problem.rows();
  std::vector<RowLoss> heads = problem.heads;
  std::vector<int64_t> first(1, 0);  // of each head, among the logits of all
  int64_t scratch_numbers = 0;
  for (size_t at = 0; at < heads.size(); ++at) {
    heads[at].soft.weight = weight_of<A>(problem, at) / denominator;
    first.push_back(first.back() + rows * heads[at].classes);
    scratch_numbers = std::max(scratch_numbers, row_scratch_numbers(heads[at]));
  }
  parallel_for(first.back(), grain_elements, [&](int64_t begin, int64_t end) {
    const std::unique_ptr<CacheLine[]> scratch(new CacheLine[scratch_numbers * sizeof(A) / sizeof(CacheLine) + 1]);
    for (size_t at = 0; at < heads.size(); ++at) {
      // A row belongs to the range that holds its first logit.
      const auto row_of = [&](int64_t logit) {
        const int64_t classes = heads[at].classes, inside = std::clamp<int64_t>(logit - first[at], 0, rows * classes);
        return (inside + classes - 1) / classes;
      };
      if (row_of(begin) < row_of(end))
        solve_rows_cpu(heads[at], problem.is_double, row_of(begin), row_of(end), scratch.get());
    }
  });

  double loss = 0;
  for (size_t at = 0; at < heads.size(); ++at) {
    const A* row_losses = static_cast<const A*>(heads[at].row_losses);
    double head = 0;
    for (int64_t row = 0; row < rows; ++row) head += row_losses[row];
    head /= denominator;
    static_cast<A*>(problem.parts)[at] = static_cast<A>(head);
    loss += weighted_head(weight_of<A>(problem, at), head);
  }
  *static_cast<A*>(problem.loss) = static_cast<A>(loss);
}

}  // namespace

void multi_head_kl_cpu(const MultiHeadKL& problem, const ParallelFor& parallel_for) {
  if (problem.is_double) solve<double>(problem, parallel_for);
  else solve<float>(problem, parallel_for);
}

}  // namespace kd
