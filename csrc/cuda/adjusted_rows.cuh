// Source adjusted: forward KL to a constant teacher that is repaired where its largest class is not the label's. The last
// sweep is that of cuda/forward_sweep.cuh.
#pragma once
#include <cmath>

#include "cuda/chunk.cuh"
#include "cuda/forward_sweep.cuh"
#include "cuda/largest_class.cuh"
#include "cuda/launch.h"
#include "cuda/row_launch.cuh"
#include "cuda/row_softmaxes.cuh"
#include "cuda/row_storage.cuh"
#include "cuda/row_work.cuh"
#include "cuda/simt.cuh"
#include "cuda/team.cuh"
#include "row_loss.h"

namespace kd {
namespace {

// A teacher whose largest class is not the label: the two change places, or the row is replaced by one that follows from the
// label.
template <class A>
struct Adjusted {
  static constexpr bool is_cross_entropy = false;

  int one = -1, other = -1;  // classes that change places
  A logit_of_one = 0, logit_of_other = 0;
  bool replaced = false;

  template <class Team, class Storage>
  KD_DEVICE Adjusted(const RowLoss& problem, const RowWork<A>& work, Team& team, Storage& storage) {
    if (problem.adjustment == Adjustment::none) return;
    const bool repairs = work.scales.has_soft && work.label >= 0;
    const auto largest = largest_class<A>(problem, repairs, work.label, work.position, team, storage, &logit_of_other);
    if (!repairs || largest.index == work.label) return;
    replaced = problem.adjustment == Adjustment::label;
    one = static_cast<int>(largest.index);
    logit_of_one = largest.value;
    other = work.label;
  }

  KD_DEVICE bool is_label() const { return replaced; }

  KD_DEVICE void read(Chunk chunk, const A (&raw)[chunk_classes], A (&t)[chunk_classes]) const {
    KD_UNROLL for (int e = 0; e < chunk_classes; ++e) {
      const int c = chunk.of(e);
      t[e] = c == one ? logit_of_other : c == other ? logit_of_one : raw[e];
    }
  }
};

template <class A, class Team, class Storage>
KD_DEVICE void solve_adjusted_row(const RowLoss& problem, Team& team) {
  const RowWork<A> work(problem, team.row());
  Storage storage;
  storage.load(problem, work.position, work.computed, team, -HUGE_VALF);
  const RowSoftmaxes<A> its = row_softmaxes(problem, work, team, storage);
  const Adjusted<A> order(problem, work, team, storage);
  forward_row(problem, work, its, order, problem.adjustment != Adjustment::none, team, storage);
}

template <class A, class Team, class Storage>
KD_KERNEL void KD_LAUNCH_BOUNDS(largest_block, 1) adjusted_rows_kernel(RowLoss problem, int lanes) {
  Team team(lanes);
  solve_adjusted_row<A, Team, Storage>(problem, team);
  team.end();
}

void launch_adjusted_rows(const RowLoss& problem, const RowPlan& plan, void* stream) {
  launch_rows(problem, plan, stream, adjusted_rows_kernel<float, RowTeam, Staged<float>>,
              adjusted_rows_kernel<float, RowTeam, Streamed<float>>,
              adjusted_rows_kernel<double, LaneTeam, Streamed<double>>);
}

}  // namespace
}  // namespace kd
