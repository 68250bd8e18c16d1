// Row losses on the GPU: loss and gradients of a row in one visit, for logits of any dtype.
//
// A team of threads works on a row: some lanes of a warp, a block, or a cluster of blocks (cuda/team.cuh). Each thread takes
// chunks of 8 classes, and the row is kept in registers, in shared memory, or read again from L2 for every sweep
// (cuda/row_storage.cuh). The sweeps of each RowPath (row_loss.h) are in cuda/PATH_rows.cuh, which
// cuda/PATH_rows.cu compiles by itself. Before the rows come a first pass (cuda/row_statistics.cuh), if the loss needs one,
// and a count of rows, if they are many; after them the reduction of their losses (cuda/row_reduction.cuh).
//
// Arithmetic is float32 from the first load (float64 for float64). No atomics: every sum has a fixed order.
#pragma once
#include "cuda/launch.h"
#include "cuda/pseudo_labels.cuh"
#include "cuda/row_paths.h"
#include "cuda/row_reduction.cuh"
#include "cuda/row_statistics.cuh"
#include "cuda/simt.cuh"
#include "row_loss.h"

namespace kd {
namespace {

// Steps exponentials and gradients (row_measure.h): writes problem.measures, no loss and no gradient.
inline void row_measure_cuda(const RowLoss& problem, const RowPlan& plan, void* stream) {
  launch_path(problem, plan, stream);
}

template <class A>
void launch_problem(RowLoss problem, const RowPlan& plan, void* stream) {
  if (problem.groups == 1 && problem.rows() <= few_rows) problem.counts = nullptr;  // every block counts the rows
  else if (problem.has_counts()) simt::launch(count_rows_kernel, problem.groups, reduce_threads, 0, stream, problem);
  launch_path(problem, plan, stream);
  launch_reduction<A>(problem, stream);
}

inline RowPlan plan_problem(const RowLoss& problem, int sm) {
  const bool reads_teacher = problem.teacher.data;
  const bool unit_stride = problem.student.class_stride == 1 && (!reads_teacher || problem.teacher.class_stride == 1);
  return plan_rows(path_of(problem), problem.rows(), chunked_classes(problem), element_size(problem.student.dtype),
                   reads_teacher ? element_size(problem.teacher.dtype) : 0, problem.is_double(), unit_stride, sm);
}

// The first pass alone: the statistic of every row, as it is before the batch is known.
inline void row_statistics_cuda(const RowLoss& problem, int sm, void* stream) {
  const RowPlan plan = plan_problem(problem, sm);
  const bool is_label = problem.first.statistic == RowStatistic::pseudo_label;
  if (problem.is_double()) (is_label ? launch_pseudo_labels<double> : launch_statistics<double>)(problem, plan, stream);
  else (is_label ? launch_pseudo_labels<float> : launch_statistics<float>)(problem, plan, stream);
}

// `plan`: that of problem.after_statistics().
inline void row_loss_cuda(const RowLoss& problem, const RowPlan& plan, int sm, void* stream) {
  const RowLoss rest = problem.after_statistics();
  if (problem.first.statistic != RowStatistic::none) {
    if (!problem.has_statistics()) row_statistics_cuda(problem, sm, stream);
    const auto apply = problem.is_double() ? apply_statistics_kernel<double> : apply_statistics_kernel<float>;
    simt::launch(apply, problem.groups, reduce_threads, 0, stream, problem);
  }
  if (problem.is_double()) launch_problem<double>(rest, plan, stream);
  else launch_problem<float>(rest, plan, stream);
}

}  // namespace
}  // namespace kd
