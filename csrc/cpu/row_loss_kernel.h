// The CPU kernels of row losses, on plain pointers: used by the op library and, on NumPy arrays, by kdkernels._host.
#pragma once
#include "cpu/threads.h"
#include "row_loss.h"

namespace kd {

// Solves the problem; throws std::invalid_argument for a label out of range and an invalid permutation. The result does not
// depend on how rows are split.
void row_loss_cpu(const RowLoss& problem, const ParallelFor& parallel_for);

// Rows [begin, end) of a problem without labels, mask and first pass, on this thread: their gradients and row losses, which are
// not reduced. `is_double`: the arithmetic type, which several problems may share, so that it may be wider than this one
// needs. `scratch`: row_scratch_numbers() of that type, in whole cache lines.
void solve_rows_cpu(const RowLoss& problem, bool is_double, int64_t begin, int64_t end, void* scratch);
int64_t row_scratch_numbers(const RowLoss& problem);

// Steps exponentials and gradients (row_measure.h): writes problem.measures, no loss and no gradient. row_losses is workspace.
void row_measure_cpu(const RowLoss& problem, const ParallelFor& parallel_for);

// The first pass alone: the statistic of every row, as it is before the batch is known.
void row_statistics_cpu(const RowLoss& problem, const ParallelFor& parallel_for);

// gradient *= upstream, one number for all rows or (`per_row`) one for each; A is the type of upstream.
void scale_gradient_cpu(const Rows& gradient, int64_t outer, int64_t classes, int64_t inner, const void* upstream,
                        Dtype upstream_dtype, bool per_row, const ParallelFor& parallel_for);

}  // namespace kd
