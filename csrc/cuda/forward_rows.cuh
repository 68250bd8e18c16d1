// Forward KL of two softmaxes to a constant teacher, the commonest of all, with the hard label's term where there is one: a
// sweep for the sums of exponentials (cuda/row_softmaxes.cuh) and one for the loss and the gradient (cuda/forward_sweep.cuh).
//
// With a row kept on chip the memory traffic is that of reading both tensors and writing the gradient once. What limits the
// speed then is the number of instructions per class, and how many rows are under way on a multiprocessor: this path has
// kernels that keep a row in registers.
#pragma once
#include "cuda/forward_row.cuh"
#include "cuda/launch.h"
#include "cuda/row_storage.cuh"
#include "cuda/simt.cuh"
#include "cuda/team.cuh"
#include "row_loss.h"

namespace kd {
namespace {

// Four blocks are on a multiprocessor.
template <class A, class Storage>
KD_KERNEL void KD_LAUNCH_BOUNDS(small_block, 4) forward_lanes_kernel(RowLoss problem, int lanes) {
  LaneTeam team(lanes);
  solve_forward_row<A, LaneTeam, Storage>(problem, team.row(), team);
}

template <class A, class Storage>
KD_KERNEL void KD_LAUNCH_BOUNDS(largest_block, 1) forward_clusters_kernel(RowLoss problem) {
  ClusterTeam team;
  solve_forward_row<A, ClusterTeam, Storage>(problem, team.row(), team);
  team.end();
}

void launch_forward_rows(const RowLoss& problem, const RowPlan& plan, void* stream) {
  const auto lanes = [&](auto kernel) {
    simt::launch(kernel, plan.blocks, plan.threads, 0, stream, problem, plan.lanes);
  };
  const auto clusters = [&](auto kernel) {
    simt::launch_clusters(kernel, plan.blocks, plan.cluster, plan.threads, plan.shared_bytes, stream, problem);
  };
  if (problem.is_double()) return lanes(forward_lanes_kernel<double, Streamed<double>>);
  switch (plan.form) {
    case RowForm::held: return lanes(forward_lanes_kernel<float, Held<float, held_chunks>>);
    case RowForm::staged: return clusters(forward_clusters_kernel<float, Staged<float>>);
    case RowForm::streamed: return clusters(forward_clusters_kernel<float, Streamed<float>>);
    case RowForm::strided: return lanes(forward_lanes_kernel<float, Streamed<float>>);
  }
}

}  // namespace
}  // namespace kd
