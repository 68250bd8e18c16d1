// The first pass on the GPU: the statistic of each row (row_statistics.h), and what the batch makes of it.
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
KD_DEVICE void row_statistic(const RowLoss& problem, int64_t row, const Team& team) {
  const bool exists = row < problem.rows(), counted = exists && problem.counts_row(row);
  const bool of_student = problem.first.statistic != RowStatistic::confidence;
  const bool cosine = problem.first.statistic == RowStatistic::cosine, rank = problem.first.statistic == RowStatistic::rank;
  const RowPosition position(problem, exists ? row : 0);

  RunningSoftmax<A> softmax;      // of the only tensor that is read
  BlockedSums<A, 3> products;     // cosine: z t, z z, t t
  RunningLargest<A> largest;      // of the teacher
  A of_label[2] = {0, 0};         // cosine: z and t of the label
  A ahead[1] = {0};               // rank
  const int64_t label = (cosine || rank) && counted && problem.has_label(row) ? problem.label_of(row) : -1;
  const bool ranked = rank && label >= 0 && label < problem.classes;
  const A own = ranked ? read_class<A>(problem.student, position, label) : A(0);
  for (int k = 0; counted && position.chunk(team, k).first < position.classes; ++k) {
    const Chunk chunk = position.chunk(team, k);
    A z[chunk_classes], t[chunk_classes];
    read_row(of_student ? problem.student : problem.teacher, position, chunk, position.classes, -HUGE_VALF, z);
    if (rank) {
      KD_UNROLL for (int e = 0; e < chunk_classes; ++e) {
        const int c = chunk.of(e);
        if (c < position.classes && c != label) ahead[0] += is_ahead(z[e], own, c < label);
      }
      continue;
    }
    if (!cosine) {
      softmax.add(z, A(1), false);
      continue;
    }
    read_row(problem.teacher, position, chunk, position.classes, -HUGE_VALF, t);
    A sums[3] = {0, 0, 0};
    KD_UNROLL for (int e = 0; e < chunk_classes; ++e) {
      const int c = chunk.of(e);
      if (c >= position.classes) continue;
      sums[0] += z[e] * t[e];
      sums[1] += z[e] * z[e];
      sums[2] += t[e] * t[e];
      largest.add(c, t[e], z[e]);
      if (c != label) continue;
      of_label[0] = z[e];
      of_label[1] = t[e];
    }
    products.add(sums);
  }

  A statistic = 0;
  if (cosine) {
    products.fold();
    A sums[3] = {products.total[0], products.total[1], products.total[2]};
    team.sum(sums);
    largest.merge(problem.classes, team);
    team.sum(of_label);
    if (problem.adjustment == Adjustment::exchange && label >= 0 && label < problem.classes && largest.index != label)
      sums[0] -= (largest.beside - of_label[0]) * (largest.value - of_label[1]);
    statistic = cosine_statistic(problem, sums[0], sums[1], sums[2]);
  } else if (rank) {
    team.sum(ahead);  // exact: there are at most most_classes
    statistic = ranked ? ahead[0] : A(no_rank);
  } else {
    A highest[1] = {softmax.max};
    team.max(highest);
    softmax.raise(highest[0], A(1), false);
    softmax.sums.fold();
    A total[1] = {softmax.sums.total[0]};
    team.sum(total);
    statistic = of_student ? doubt_statistic(total[0]) : A(1) / total[0];
  }
  if (exists && team.rank() == 0) static_cast<A*>(problem.first.numbers)[row] = counted ? statistic : A(0);
}

template <class A>
KD_KERNEL void KD_LAUNCH_BOUNDS(small_block) lane_statistics_kernel(RowLoss problem, int lanes) {
  const LaneTeam team(lanes);
  row_statistic<A>(problem, team.row(), team);
}

template <class A>
KD_KERNEL void KD_LAUNCH_BOUNDS(largest_block) block_statistics_kernel(RowLoss problem) {
  const BlockTeam<A> team;
  row_statistic<A>(problem, simt::block_index(), team);
}

// Statistics to weights or temperatures of rows, summed in float64 in a fixed order. A block per group.
template <class A>
KD_KERNEL void KD_LAUNCH_BOUNDS(reduce_threads) apply_statistics_kernel(RowLoss problem) {
  const BlockTeam<double> team;
  const int64_t begin = simt::block_index() * problem.group_rows();
  A* statistic = static_cast<A*>(problem.first.numbers);
  double sums[2] = {0, 0};
  for (int64_t i = team.rank(); i < problem.group_rows(); i += team.size()) {
    if (!problem.counts_row(begin + i)) continue;
    sums[0] += static_cast<double>(statistic[begin + i]);
    sums[1] += 1;
  }
  team.sum(sums);
  for (int64_t i = team.rank(); i < problem.group_rows(); i += team.size()) {
    const int64_t row = begin + i;
    statistic[row] = static_cast<A>(
        applied_statistic(problem, problem.counts_row(row), static_cast<double>(statistic[row]), sums[0], sums[1]));
  }
}

template <class A>
void launch_statistics(const RowLoss& problem, const RowPlan& plan, void* stream) {
  if (plan.lanes <= simt::warp_threads)
    simt::launch(lane_statistics_kernel<A>, plan.blocks, plan.threads, 0, stream, problem, plan.lanes);
  else
    simt::launch(block_statistics_kernel<A>, plan.blocks, plan.threads, 0, stream, problem);
}

}  // namespace
}  // namespace kd
