// Source decoupled: the label's class against all others (the hard term), and the others among themselves (the soft term).
// The formulas are in binary_kl.h and cpu/decoupled_rows-inl.h.
//
//     1  both labels' logits; maximum and sum of exponentials of the other classes of both rows
//     2  the divergence of the others, where the teacher's gradient needs it
//     3  loss and gradients, written straight to where they belong
#pragma once
#include <cmath>

#include "binary_kl.h"
#include "cuda/chunk.cuh"
#include "cuda/launch.h"
#include "cuda/row_launch.cuh"
#include "cuda/row_storage.cuh"
#include "cuda/row_work.cuh"
#include "cuda/running_softmax.cuh"
#include "cuda/simt.cuh"
#include "cuda/team.cuh"
#include "row_loss.h"

namespace kd {
namespace {

// One row of logits. `label`: the label's logit less `max`, the largest of the others; `sum`: of exp((z - max) / T) over the
// others, NaN if a logit is NaN or +inf.
template <class A>
struct SplitRow {
  A max, label, sum;

  KD_DEVICE SplitRow(A largest_other, A label_logit, A sum_of_others)
      : max(largest_other == -HUGE_VALF ? A(0) : largest_other),  // no other class has a weight
        label(label_logit - max),
        sum(sum_of_others + A(0) * larger(largest_other, label_logit)) {}
};

// The logits of a chunk; the label's becomes -inf, or NaN where it was no finite number.
template <class A>
KD_DEVICE void read_others(int label, Chunk chunk, const A (&from)[chunk_classes], A (&to)[chunk_classes]) {
  KD_UNROLL for (int e = 0; e < chunk_classes; ++e) to[e] = chunk.of(e) == label ? from[e] - HUGE_VALF : from[e];
}

template <class A, class Team, class Storage>
KD_DEVICE void solve_decoupled_row(const RowLoss& problem, Team& team) {
  const RowWork<A> work(problem, team.row());
  const RowScales<A>& scales = work.scales;
  const A inverse_temperature = work.inverse_temperature;
  const int label = work.label;
  Storage storage;
  storage.load(problem, work.position, work.computed, team, -HUGE_VALF);

  RunningSoftmax<A> student_others, teacher_others;
  A label_logits[2] = {0, 0};
  storage.for_each(problem, work.position, work.computed, team,
                   [&](Chunk chunk, const A(&logits)[chunk_classes], const A(&taught)[chunk_classes]) {
    A z[chunk_classes], t[chunk_classes];
    read_others(label, chunk, logits, z);
    read_others(label, chunk, taught, t);
    student_others.add(z, inverse_temperature, false);
    teacher_others.add(t, inverse_temperature, false);
    KD_UNROLL for (int e = 0; e < chunk_classes; ++e)
      if (chunk.of(e) == label) {
        label_logits[0] = logits[e];
        label_logits[1] = taught[e];
      }
  });
  A highest[2] = {student_others.max, teacher_others.max};
  team.max(highest);
  student_others.raise(highest[0], inverse_temperature, false);
  teacher_others.raise(highest[1], inverse_temperature, false);
  student_others.sums.fold();
  teacher_others.sums.fold();
  A totals[4] = {student_others.sums.total[0], teacher_others.sums.total[0], label_logits[0], label_logits[1]};
  team.sum(totals);
  const SplitRow<A> student(highest[0], totals[2], totals[0]), teacher(highest[1], totals[3], totals[1]);

  const A log_sums = log(teacher.sum / student.sum);
  const BinaryKL<A> binary = binary_kl(student.label * inverse_temperature - log(student.sum),
                                       teacher.label * inverse_temperature - log(teacher.sum),
                                       (teacher.label - student.label) * inverse_temperature - log_sums);
  // NCKD from the sum of weight * (t - z). 0 if the teacher gives the others no probability, infinite if the student alone
  // gives them none.
  const auto divergence_of_others = [&](A sum) {
    if (teacher.sum == A(0)) return A(0);
    return student.sum == A(0) ? static_cast<A>(HUGE_VALF) : sum * inverse_temperature / teacher.sum - log_sums;
  };
  const auto add_divergence = [&](BlockedSums<A, 1>& sum, const A(&z)[chunk_classes], const A(&t)[chunk_classes]) {
    A part[1] = {0};
    KD_UNROLL for (int e = 0; e < chunk_classes; ++e)
      part[0] += weighted(exp_product(t[e] - teacher.max, inverse_temperature), (t[e] - teacher.max) - (z[e] - student.max));
    sum.add(part);
  };

  // The mean under p of (t - max t) - (z - max z): log p - log q of a class less its mean follows from the difference of the two,
  // which is 0 in a row with one class, however large its logits.
  A of_others = 0, mean_difference = 0;
  if (problem.grad_teacher.data) {
    BlockedSums<A, 1> divergence;
    storage.for_each(problem, work.position, scales.has_soft, team,
                     [&](Chunk chunk, const A(&logits)[chunk_classes], const A(&taught)[chunk_classes]) {
      A z[chunk_classes], t[chunk_classes];
      read_others(label, chunk, logits, z);
      read_others(label, chunk, taught, t);
      add_divergence(divergence, z, t);
    });
    divergence.fold();
    A total[1] = {divergence.total[0]};
    team.sum(total);
    of_others = divergence_of_others(total[0]);
    mean_difference = total[0] / teacher.sum;
  }

  // A term of weight 0 adds nothing, not even NaN.
  const bool weighs_label = scales.has_soft && problem.hard.weight != 0;
  const bool weighs_others = scales.has_soft && problem.soft.weight != 0 && teacher.sum != A(0);
  const A alpha = scales.soft * scales.hard_gradient * inverse_temperature;
  const A beta = scales.soft_gradient * inverse_temperature;
  // Neither term's gradient is larger: |q - p| <= 1.
  const A factor = work.student_factor(problem, team, std::abs(beta), std::abs(alpha));
  const A by_student = weighs_label ? alpha * factor * binary.by_student : A(0);
  const A by_weight = student.sum == A(0) ? A(0) : by_student / student.sum;
  const A ratio = student.sum == A(0) ? A(0) : teacher.sum / student.sum;
  const A by_difference = weighs_others ? beta * factor / teacher.sum : A(0);
  A by_teacher = weighs_label ? alpha * binary.by_teacher : A(0), by_ratio = weighs_others ? beta / teacher.sum : A(0);
  if (problem.unit_teacher) {
    // What is negative in sum p log(p / q) comes to 1 at most.
    const A unit = float16_factor(std::abs(by_teacher) + std::abs(beta) * (A(2) * std::abs(of_others) + A(3)));
    by_teacher *= unit;
    by_ratio *= unit;
    if (work.exists && team.rank() == 0) static_cast<A*>(problem.unit_teacher)[work.row] = A(1) / unit;
  }

  const bool is_nan = scales.bad_label && scales.has_soft;
  BlockedSums<A, 1> divergence;
  storage.for_each(problem, work.position, scales.has_soft, team,
                   [&](Chunk chunk, const A(&logits)[chunk_classes], const A(&taught)[chunk_classes]) {
    A z[chunk_classes], t[chunk_classes], grad_student[chunk_classes] = {}, grad_teacher[chunk_classes] = {};
    read_others(label, chunk, logits, z);
    read_others(label, chunk, taught, t);
    if (scales.has_soft) {
      add_divergence(divergence, z, t);
      KD_UNROLL for (int e = 0; e < chunk_classes; ++e) {
        if (chunk.of(e) == label) {
          grad_student[e] = by_student;
          grad_teacher[e] = by_teacher;
          continue;
        }
        const A student_weight = exp_product(z[e] - student.max, inverse_temperature);
        const A teacher_weight = exp_product(t[e] - teacher.max, inverse_temperature);
        grad_student[e] = (student_weight * ratio - teacher_weight) * by_difference - student_weight * by_weight;
        if (!problem.grad_teacher.data || teacher_weight == A(0)) continue;
        const A difference = (t[e] - teacher.max) - (z[e] - student.max);
        grad_teacher[e] = teacher_weight * (weighted(by_ratio, (difference - mean_difference) * inverse_temperature) -
                                            by_teacher / teacher.sum);
      }
    }
    work.write_grad_student(problem, chunk, is_nan, grad_student);
    if (work.exists && problem.grad_teacher.data) {
      if (is_nan)
        KD_UNROLL for (int e = 0; e < chunk_classes; ++e) grad_teacher[e] = NAN;
      write_row(problem.grad_teacher, work.position, chunk, work.position.classes, grad_teacher);
    }
  });
  divergence.fold();
  A total[1] = {divergence.total[0]};
  team.sum(total);
  const A of_label = scales.has_soft ? scales.soft * binary.value : A(0);
  work.write_losses(problem, team, is_nan ? A(NAN) : divergence_of_others(total[0]), is_nan ? A(NAN) : of_label);
}

template <class A, class Team, class Storage>
KD_KERNEL void KD_LAUNCH_BOUNDS(largest_block, 1) decoupled_rows_kernel(RowLoss problem, int lanes) {
  Team team(lanes);
  solve_decoupled_row<A, Team, Storage>(problem, team);
  team.end();
}

void launch_decoupled_rows(const RowLoss& problem, const RowPlan& plan, void* stream) {
  launch_rows(problem, plan, stream, decoupled_rows_kernel<float, RowTeam, Staged<float>>,
              decoupled_rows_kernel<float, RowTeam, Streamed<float>>,
              decoupled_rows_kernel<double, LaneTeam, Streamed<double>>);
}

}  // namespace
}  // namespace kd
