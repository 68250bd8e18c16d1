// Source label: the target follows from the label, no teacher is read. A sweep for the sums of exponentials, and one for the loss
// and the gradient (cuda/label_term.cuh). Both sweeps compute the hard label's term as well, at temperature 1.
#pragma once
#include <cmath>

#include "cuda/chunk.cuh"
#include "cuda/label_term.cuh"
#include "cuda/launch.h"
#include "cuda/row_launch.cuh"
#include "cuda/row_softmaxes.cuh"
#include "cuda/row_storage.cuh"
#include "cuda/row_work.cuh"
#include "cuda/running_softmax.cuh"
#include "cuda/simt.cuh"
#include "cuda/team.cuh"
#include "row_loss.h"

namespace kd {
namespace {

template <class A, class Team, class Storage>
KD_DEVICE void solve_label_row(const RowLoss& problem, Team& team) {
  const RowWork<A> work(problem, team.row());
  const RowScales<A>& scales = work.scales;
  Storage storage;
  storage.load(problem, work.position, work.computed, team, -HUGE_VALF);
  const RowSoftmaxes<A> its = row_softmaxes<A, false>(problem, work, team, storage);

  LabelTerm<A> soft = soft_label_term(problem, work), hard = hard_term(problem, work, static_cast<A>(problem.classes));
  const A factor = work.student_factor(problem, team, std::abs(soft.scale), std::abs(hard.scale));  // |q - p| <= 1 in either
  soft.scale *= factor;
  hard.scale *= factor;
  const bool is_nan = scales.bad_label && (soft.weighs || hard.weighs);
  const bool wants_elsewhere = soft.off != A(0) || (scales.has_hard && hard.off != A(0));
  BlockedSums<A, 2> sums;
  storage.for_each(problem, work.position, work.computed, team,
                   [&](Chunk chunk, const A(&z)[chunk_classes], const A(&)[chunk_classes]) {
    A gradient[chunk_classes] = {};
    LabelSums<A> of_chunk;
    soft.add_gradient(work.label, its.student, chunk, z, gradient);
    hard.add_gradient(work.label, its.cold, chunk, z, gradient);
    of_chunk.add(work.label, wants_elsewhere, its.student.max, chunk, work.position.classes, z);
    const A part[2] = {of_chunk.at_label, of_chunk.elsewhere};
    sums.add(part);
    work.write_grad_student(problem, chunk, is_nan, gradient);
  });
  sums.fold();
  A totals[2] = {sums.total[0], sums.total[1]};
  team.sum(totals);

  A value = soft.cross_entropy(its.student_log_sum, work.inverse_temperature, totals[0], totals[1]) -
            static_cast<A>(problem.label.entropy);
  if (scales.bad_label) value = NAN;
  work.write_losses(problem, team, value, hard_value(hard, work, its.cold_log_sum, totals[0], totals[1]));
}

template <class A, class Team, class Storage>
KD_KERNEL void KD_LAUNCH_BOUNDS(largest_block, 1) label_rows_kernel(RowLoss problem, int lanes) {
  Team team(lanes);
  solve_label_row<A, Team, Storage>(problem, team);
  team.end();
}

void launch_label_rows(const RowLoss& problem, const RowPlan& plan, void* stream) {
  launch_rows(problem, plan, stream, label_rows_kernel<float, RowTeam, Staged<float, false>>,
              label_rows_kernel<float, RowTeam, Streamed<float, false>>,
              label_rows_kernel<double, LaneTeam, Streamed<double, false>>);
}

}  // namespace
}  // namespace kd
