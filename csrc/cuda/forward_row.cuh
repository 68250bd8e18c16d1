// One row of the forward path, by the team that shares it: of row losses (cuda/forward_rows.cuh) and of the heads of several
// (cuda/multi_head_kl.cuh).
#pragma once
#include <cmath>

#include "cuda/forward_sweep.cuh"
#include "cuda/row_softmaxes.cuh"
#include "cuda/row_work.cuh"
#include "cuda/simt.cuh"
#include "row_loss.h"

namespace kd {
namespace {

template <class A, class Team, class Storage>
KD_DEVICE void solve_forward_row(const RowLoss& problem, int64_t row, Team& team) {
  const RowWork<A> work(problem, row);
  Storage storage;
  storage.load(problem, work.position, work.computed, team, -HUGE_VALF);
  const RowSoftmaxes<A> its = row_softmaxes(problem, work, team, storage);
  forward_row(problem, work, its, AsTheyAre<A>{}, false, team, storage);
}

}  // namespace
}  // namespace kd
