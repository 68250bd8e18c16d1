// Pseudo labels on the GPU: the largest class of each row, the lowest of equals, and its probability, in one sweep.
#pragma once
#include <cmath>

#include "cuda/chunk.cuh"
#include "cuda/largest_class.cuh"
#include "cuda/launch.h"
#include "cuda/row_storage.cuh"
#include "cuda/running_softmax.cuh"
#include "cuda/simt.cuh"
#include "cuda/team.cuh"
#include "row_loss.h"
#include "row_statistics.h"

namespace kd {
namespace {

template <class A, class Team>
KD_DEVICE void pseudo_label_of_row(const RowLoss& problem, int64_t row, const Team& team) {
  const bool exists = row < problem.rows();
  const RowPosition position(problem, exists ? row : 0);
  const A inverse_temperature = A(1) / static_cast<A>(problem.soft.temperature);
  RunningLargest<A> largest;
  RunningSoftmax<A> softmax;
  for (int k = 0; exists && position.chunk(team, k).first < position.classes; ++k) {
    const Chunk chunk = position.chunk(team, k);
    A z[chunk_classes];
    read_row(problem.student, position, chunk, position.classes, -HUGE_VALF, z);
    KD_UNROLL for (int e = 0; e < chunk_classes; ++e)
      if (chunk.of(e) < position.classes) largest.add(chunk.of(e), z[e], A(0));
    softmax.add(z, inverse_temperature, false);
  }
  largest.merge(problem.classes, team);
  A highest[1] = {softmax.max};  // not that of `largest`, which a NaN may be
  team.max(highest);
  softmax.raise(highest[0], inverse_temperature, false);
  softmax.sums.fold();
  A sum[1] = {softmax.sums.total[0]};
  team.sum(sum);
  if (!exists || team.rank() != 0) return;
  const A confidence = largest_probability(highest[0], sum[0]);
  static_cast<A*>(problem.first.numbers)[row] = confidence;
  problem.pseudo.labels[row] = pseudo_label(problem, largest.index, confidence);
}

template <class A>
KD_KERNEL void KD_LAUNCH_BOUNDS(small_block) lane_pseudo_labels_kernel(RowLoss problem, int lanes) {
  const LaneTeam team(lanes);
  pseudo_label_of_row<A>(problem, team.row(), team);
}

template <class A>
KD_KERNEL void KD_LAUNCH_BOUNDS(largest_block) block_pseudo_labels_kernel(RowLoss problem) {
  const BlockTeam<A> team;
  pseudo_label_of_row<A>(problem, simt::block_index(), team);
}

template <class A>
void launch_pseudo_labels(const RowLoss& problem, const RowPlan& plan, void* stream) {
  if (plan.lanes <= simt::warp_threads)
    simt::launch(lane_pseudo_labels_kernel<A>, plan.blocks, plan.threads, 0, stream, problem, plan.lanes);
  else
    simt::launch(block_pseudo_labels_kernel<A>, plan.blocks, plan.threads, 0, stream, problem);
}

}  // namespace
}  // namespace kd
