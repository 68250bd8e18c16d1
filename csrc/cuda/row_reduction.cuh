// Kernels over all rows of the batch: the count of rows before the losses are computed, and the reduction of the losses.
#pragma once
#include "cuda/launch.h"
#include "cuda/row_counts.cuh"
#include "cuda/simt.cuh"
#include "cuda/team.cuh"
#include "row_loss.h"
#include "row_scales.h"

namespace kd {
namespace {

// counts[0, g], counts[1, g]: rows of group g that the soft and the hard term count. A block per group.
KD_KERNEL void KD_LAUNCH_BOUNDS(reduce_threads) count_rows_kernel(RowLoss problem) {
  const int64_t group = simt::block_index();
  double counts[2];  // exact up to 2^53 rows
  count_group(problem, group, counts);
  if (simt::thread_index() != 0) return;
  int64_t* to = static_cast<int64_t*>(problem.counts);
  to[group] = static_cast<int64_t>(counts[0]);
  to[problem.groups + group] = static_cast<int64_t>(counts[1]);
}

// Row losses to one number per group, summed in float64 in a fixed order. A block per group.
template <class A>
KD_KERNEL void KD_LAUNCH_BOUNDS(reduce_threads) reduce_rows_kernel(RowLoss problem) {
  const BlockTeam<double> team;
  const int64_t group = simt::block_index(), rows = problem.rows(), group_rows = problem.group_rows();
  const A* row_losses = static_cast<const A*>(problem.row_losses);
  double sums[2] = {0, 0};
  for (int64_t i = team.rank(); i < group_rows; i += team.size()) {
    const int64_t row = group * group_rows + i;
    sums[0] += static_cast<double>(row_losses[row]);
    if (problem.has_hard()) sums[1] += static_cast<double>(row_losses[rows + row]);
  }
  team.sum(sums);
  const Divisors divisor = group_divisors<double>(problem, group);
  if (team.rank() != 0) return;
  const double soft = sums[0] / divisor.soft, hard = sums[1] / divisor.hard;
  static_cast<A*>(problem.loss)[group] = static_cast<A>(weighted_loss(problem, soft, hard));
  if (!problem.parts) return;
  static_cast<A*>(problem.parts)[group] = static_cast<A>(soft);
  static_cast<A*>(problem.parts)[problem.groups + group] = static_cast<A>(hard);
}

// Reduction::none: a thread per row.
template <class A>
KD_KERNEL void KD_LAUNCH_BOUNDS(reduce_threads) weigh_rows_kernel(RowLoss problem) {
  const int64_t row = simt::block_index() * simt::block_threads() + simt::thread_index(), rows = problem.rows();
  if (row >= rows) return;
  const A* row_losses = static_cast<const A*>(problem.row_losses);
  const A soft = row_losses[row], hard = problem.has_hard() ? row_losses[rows + row] : A(0);
  static_cast<A*>(problem.loss)[row] = static_cast<A>(weighted_loss(problem, soft, hard));
  if (!problem.parts) return;
  static_cast<A*>(problem.parts)[row] = soft;
  static_cast<A*>(problem.parts)[rows + row] = hard;
}

template <class A>
void launch_reduction(const RowLoss& problem, void* stream) {
  if (problem.reduction == Reduction::none)
    simt::launch(weigh_rows_kernel<A>, parts_of(problem.rows(), reduce_threads), reduce_threads, 0, stream, problem);
  else
    simt::launch(reduce_rows_kernel<A>, problem.groups, reduce_threads, 0, stream, problem);
}

}  // namespace
}  // namespace kd
