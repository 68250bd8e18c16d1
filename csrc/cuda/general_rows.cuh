// Any divergence from any teacher, with the gradients of both.
//
//     1  maximum and sum of exponentials of both rows (each thread its own, merged over the team)
//     2  sums the gradients need                             reverse KL, Jensen-Shannon, gradients of the teacher
//     3  loss and gradients, written straight to where they belong
//
// Sweeps 1 and 2 are `measure_row`, the third is `finish_row`. Source and divergence are told apart at run time, once per chunk:
// the branches are the same for all threads and cost little beside a chunk's exponentials. One kernel then serves them all, which
// keeps the library small and its compilation short.
#pragma once
#include <cmath>

#include "cuda/chunk.cuh"
#include "cuda/label_term.cuh"
#include "cuda/launch.h"
#include "cuda/row_formulas.cuh"
#include "cuda/row_launch.cuh"
#include "cuda/row_storage.cuh"
#include "cuda/row_work.cuh"
#include "cuda/running_softmax.cuh"
#include "cuda/simt.cuh"
#include "cuda/team.cuh"
#include "row_loss.h"

namespace kd {
namespace {

// The sources logits, log_probs and probs in one (target_sources-inl.h). Of the last two, `target` has max 0, temperature 1 and
// sum 1.
struct GivenTarget {
  TargetSource source = TargetSource::logits;
  bool normalised = true;

  GivenTarget() = default;
  KD_DEVICE explicit GivenTarget(TargetSource source) : source(source), normalised(source == TargetSource::logits) {}

  // What stands beyond the last class.
  KD_DEVICE float absent() const { return is_probs() ? 0 : -HUGE_VALF; }
  KD_DEVICE bool is_probs() const { return source == TargetSource::probs; }

  template <class A>
  KD_DEVICE A weight(A t, const Softmax<A>& target) const {
    return is_probs() ? t : target.weight(t);
  }

  template <class A>
  KD_DEVICE A log_ratio(A t, const Softmax<A>& target, A z, const Softmax<A>& student, A log_sums, A log_q) const {
    if (normalised) return LogitsTarget::log_ratio(t, target, z, student, log_sums, log_q);
    return (is_probs() ? log(t) : t) - log_q;
  }

  template <class A>
  KD_DEVICE A gradient(A by_log_made, A by_log_p, const Terms<A>& c, A sum) const {
    if (normalised) return LogitsTarget::gradient(by_log_made, by_log_p, c, sum);
    return is_probs() ? ProbsTarget::gradient(by_log_made, by_log_p, c, sum) : by_log_made;
  }
};

// Calls body with the divergence of a soft term.
template <class A, class Body>
KD_DEVICE void with_divergence(const SoftTerm& soft, const Body& body) {
  switch (soft.divergence) {
    case Divergence::forward: return body(ForwardKL<A>{});
    case Divergence::reverse: return body(ReverseKL<A>{});
    case Divergence::jsd: return body(JensenShannon<A>{static_cast<A>(soft.beta)});
    case Divergence::cross_entropy: return body(CrossEntropy<A>{});
  }
}

// What the loss and the gradients of a row need to know of all its classes.
template <class A>
struct RowMeasure {
  A student_max = 0, student_sum = 0;  // max z, sum exp((z - max z) / T)
  A teacher_max = 0, teacher_sum = 0;  // the same of teacher logits; of probabilities 0 and their sum
  A hard_sum = 0;                      // sum exp(z - max z)
  A by_log_q = 0, by_log_made = 0;     // sums of the derivatives by log q and by the logarithm of what the source made
  A largest_by_made = 0;               // largest derivative by a probability: it has no bound that is known before
};

template <class A>
KD_DEVICE RowPair<A, GivenTarget> pair_of(GivenTarget source, A inverse_temperature, const RowMeasure<A>& its) {
  RowPair<A, GivenTarget> pair{{its.student_max, inverse_temperature, A(1) / its.student_sum}, {A(0), A(1), A(1)},
                               log(its.student_sum), A(0), source};
  if (source.normalised) {
    pair.target = {its.teacher_max, inverse_temperature, A(1) / its.teacher_sum};
    pair.log_sums = log(its.teacher_sum / its.student_sum);
  }
  return pair;
}

// Sweep 1.
template <class A, class Team, class Storage>
KD_DEVICE void measure_exponentials(const RowLoss& problem, const RowWork<A>& work, GivenTarget source, Team& team,
                                    Storage& storage, RowMeasure<A>& its) {
  const A inverse_temperature = work.inverse_temperature;
  const bool cold = work.scales.has_hard;
  RunningSoftmax<A> student, teacher;
  BlockedSums<A, 1> mass;
  storage.for_each(problem, work.position, work.computed, team,
                   [&](Chunk, const A(&z)[chunk_classes], const A(&t)[chunk_classes]) {
                     student.add(z, inverse_temperature, cold);
                     if (source.normalised) return teacher.add(t, inverse_temperature, false);
                     A sum[1] = {0};
                     KD_UNROLL for (int e = 0; e < chunk_classes; ++e) sum[0] += source.weight(t[e], Softmax<A>{A(0), A(1), A(1)});
                     mass.add(sum);
                   });
  A highest[2] = {student.max, teacher.max};
  team.max(highest);
  student.raise(highest[0], inverse_temperature, cold);
  teacher.raise(highest[1], inverse_temperature, false);
  student.sums.fold();
  teacher.sums.fold();
  mass.fold();
  A totals[3] = {student.sums.total[0], source.normalised ? teacher.sums.total[0] : mass.total[0], student.sums.total[1]};
  team.sum(totals);
  its.student_max = student.max;
  its.student_sum = totals[0];
  its.teacher_max = source.normalised ? teacher.max : A(0);
  its.teacher_sum = totals[1];
  its.hard_sum = totals[2];
}

// Sweep 2, where there is something to find.
template <class A, class Team, class Storage>
KD_DEVICE void measure_gradients(const RowLoss& problem, const RowWork<A>& work, GivenTarget source, Team& team,
                                 Storage& storage, RowMeasure<A>& its) {
  const A eps = static_cast<A>(problem.soft.target_eps);
  const bool smoothed = problem.soft.target_eps > 0;
  const bool bounded = !(source.is_probs() && problem.unit_teacher);
  bool minus_p = false;
  with_divergence<A>(problem.soft, [&](const auto& divergence) { minus_p = divergence.minus_p; });
  its.by_log_q = -((source.normalised ? A(1) : its.teacher_sum) + eps * static_cast<A>(problem.classes));
  if (minus_p && !(problem.grad_teacher.data && (source.normalised || problem.unit_teacher))) return;

  const RowPair<A, GivenTarget> pair = pair_of(source, work.inverse_temperature, its);
  BlockedSums<A, 2> by_log;
  A largest[1] = {0};
  storage.for_each(problem, work.position, work.scales.has_soft, team,
                   [&](Chunk chunk, const A(&z)[chunk_classes], const A(&t)[chunk_classes]) {
    A part[2] = {0, 0};
    with_divergence<A>(problem.soft, [&](const auto& divergence) {
      KD_UNROLL for (int e = 0; e < chunk_classes; ++e) {
        if (chunk.of(e) >= work.position.classes) continue;
        const Terms<A> c = pair.terms(smoothed, z[e], t[e], eps);
        part[0] += divergence.by_log_q(c);
        part[1] += pair.by_log_made(smoothed, c, divergence.by_log_p(c));
        if (!bounded) largest[0] = larger(largest[0], std::abs(pair.gradient(smoothed, c, divergence, A(0))));
      }
    });
    by_log.add(part);
  });
  by_log.fold();
  A sums[2] = {by_log.total[0], by_log.total[1]};
  team.sum(sums);
  if (!minus_p) its.by_log_q = sums[0];
  its.by_log_made = sums[1];
  if (bounded) return;
  team.max(largest);
  its.largest_by_made = larger(largest[0], A(1e-20f));  // of zeros alone: their scale times the factor of 0 may be infinite
}

// No entry of a divergence's gradient by the logits is larger than this, times its scale. `sum`: that of by_log_q or by_log_made,
// `mass`: that of p. What is negative in such a sum comes to the larger mass at most, since q log(p / q) <= p - q; so all
// absolute values come to |sum| + 2 max(1, mass), and the chain through the softmax subtracts a share of the sum.
template <class A>
KD_DEVICE A gradient_bound(A sum, A mass) {
  return A(2) * std::abs(sum) + A(3) * larger(A(1), mass);
}

// Sweep 3.
template <class A, class Team, class Storage>
KD_DEVICE void finish_row(const RowLoss& problem, const RowWork<A>& work, GivenTarget source, const RowMeasure<A>& its, Team& team,
                          Storage& storage) {
  const RowScales<A>& scales = work.scales;
  const RowPair<A, GivenTarget> pair = pair_of(source, work.inverse_temperature, its);
  const Softmax<A> cold{its.student_max, A(1), A(1) / its.hard_sum};
  LabelTerm<A> hard = hard_term(problem, work);
  const A eps = static_cast<A>(problem.soft.target_eps);
  const bool smoothed = problem.soft.target_eps > 0;
  const bool is_spoiled = scales.bad_label && scales.has_hard;
  const bool wants_elsewhere = scales.has_hard && hard.off != A(0);

  // float16: the scales of the gradients, times the factors that they are stored with.
  A student_scale = scales.soft_gradient * work.inverse_temperature;
  A teacher_scale = source.normalised ? student_scale : scales.soft_gradient;
  const A mass = (source.normalised ? A(1) : its.teacher_sum) + eps * static_cast<A>(problem.classes);
  const A factor = work.student_factor(problem, team, std::abs(student_scale) * gradient_bound(its.by_log_q, mass),
                                       std::abs(scales.hard_gradient));
  student_scale *= factor;
  hard.scale *= factor;
  if (problem.unit_teacher) {
    const A most = source.is_probs() ? its.largest_by_made : gradient_bound(its.by_log_made, mass);
    const A teacher_factor = float16_factor(work.soft_weighs(problem) ? std::abs(teacher_scale) * most : A(0));
    teacher_scale *= teacher_factor;
    if (work.exists && team.rank() == 0) static_cast<A*>(problem.unit_teacher)[work.row] = A(1) / teacher_factor;
  }

  BlockedSums<A, 3> row_losses;  // divergence, label's logit, the other logits
  storage.for_each(problem, work.position, work.computed, team,
                   [&](Chunk chunk, const A(&z)[chunk_classes], const A(&t)[chunk_classes]) {
    A grad_student[chunk_classes] = {}, grad_teacher[chunk_classes] = {}, value = 0;
    LabelSums<A> sums;
    if (scales.has_soft)
      with_divergence<A>(problem.soft, [&](const auto& divergence) {
        KD_UNROLL for (int e = 0; e < chunk_classes; ++e) {
          if (chunk.of(e) >= work.position.classes) continue;
          const Terms<A> c = pair.terms(smoothed, z[e], t[e], eps);
          value += divergence.value(c);
          if (problem.soft.weight == 0) continue;  // a term of weight 0 adds nothing, not even NaN; its value is still wanted
          grad_student[e] = pair.student_gradient(c, divergence, its.by_log_q) * student_scale;
          if (problem.grad_teacher.data)
            grad_teacher[e] = pair.gradient(smoothed, c, divergence, its.by_log_made) * teacher_scale;
        }
      });
    if (scales.has_hard) {
      hard.add_gradient(work.label, cold, chunk, z, grad_student);
      sums.add(work.label, wants_elsewhere, its.student_max, chunk, work.position.classes, z);
    }
    const A part[3] = {value, sums.at_label, sums.elsewhere};
    row_losses.add(part);
    work.write_grad_student(problem, chunk, is_spoiled, grad_student);
    if (work.exists && problem.grad_teacher.data) write_row(problem.grad_teacher, work.position, chunk, grad_teacher);
  });
  row_losses.fold();
  A losses[3] = {row_losses.total[0], row_losses.total[1], row_losses.total[2]};
  team.sum(losses);
  work.write_losses(problem, team, losses[0], hard_value(hard, work, log(its.hard_sum), losses[1], losses[2]));
}

template <class A, class Team, class Storage>
KD_DEVICE void solve_general_row(const RowLoss& problem, Team& team) {
  const RowWork<A> work(problem, team.row());
  const GivenTarget source(problem.source);
  Storage storage;
  storage.load(problem, work.position, work.computed, team, source.absent());
  RowMeasure<A> its;
  measure_exponentials(problem, work, source, team, storage, its);
  measure_gradients(problem, work, source, team, storage, its);
  finish_row(problem, work, source, its, team, storage);
}

template <class A, class Team, class Storage>
KD_KERNEL void KD_LAUNCH_BOUNDS(largest_block, 1) general_rows_kernel(RowLoss problem, int lanes) {
  Team team(lanes);
  solve_general_row<A, Team, Storage>(problem, team);
  team.end();
}

void launch_general_rows(const RowLoss& problem, const RowPlan& plan, void* stream) {
  launch_rows(problem, plan, stream, general_rows_kernel<float, RowTeam, Staged<float>>,
              general_rows_kernel<float, RowTeam, Streamed<float>>,
              general_rows_kernel<double, LaneTeam, Streamed<double>>);
}

}  // namespace
}  // namespace kd
