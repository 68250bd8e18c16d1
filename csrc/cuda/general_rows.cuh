// Any divergence from any teacher, with the gradients of both, and every option of the two terms.
//
//     means and deviations of both rows                  standardized rows (cuda/row_comparison.cuh)
//  1  maxima and sums of exponentials of both rows       each thread its own, merged over the team
//  2  sums the gradients need                            all but forward KL and cross entropy with a constant teacher
//     sums of the hard term's target                     a distribution (cuda/hard_distribution.cuh)
//  3  loss and gradients, written straight to where they belong; twice for standardized rows
//
// What 1 and 2 find are the measures of row_measure.h: of a row that comes in parts they are written, and read by the part's next
// step.
#pragma once
#include <cmath>

#include "cuda/chunk.cuh"
#include "cuda/given_target.cuh"
#include "cuda/hard_distribution.cuh"
#include "cuda/label_term.cuh"
#include "cuda/launch.h"
#include "cuda/row_comparison.cuh"
#include "cuda/row_formulas.cuh"
#include "cuda/row_launch.cuh"
#include "cuda/row_storage.cuh"
#include "cuda/row_work.cuh"
#include "cuda/running_softmax.cuh"
#include "cuda/simt.cuh"
#include "cuda/team.cuh"
#include "row_loss.h"
#include "row_measure.h"
#include "row_scales.h"

namespace kd {
namespace {

// What sweeps 1 and 2 find: the measures of row_measure.h, and two numbers that rows in parts do not need.
template <class A>
struct GeneralMeasure : RowMeasure<A> {
  A hard_max = 0;         // max z of all classes: hard_sum is that of exp(z - hard_max)
  A largest_by_made = 0;  // largest derivative by a probability, which has no bound known in advance

  KD_DEVICE void take(const RowMeasure<A>& given) {
    static_cast<RowMeasure<A>&>(*this) = given;
    hard_max = given.student_max;
  }
};

template <class A>
KD_DEVICE RowPair<A, GivenTarget> pair_of(GivenTarget source, const RowWork<A>& work, const RowComparison<A>& compared,
                                          const RowMeasure<A>& its) {
  const A student = work.inverse_temperature * compared.student.inverse_unit;
  RowPair<A, GivenTarget> pair{{its.student_max, student, A(1) / its.student_sum}, {A(0), A(1), A(1)}, log(its.student_sum),
                               A(0), source};
  if (source.normalized) {
    pair.target = {its.teacher_max, work.inverse_temperature * compared.teacher.inverse_unit, A(1) / its.teacher_sum};
    pair.log_sums = log(its.teacher_sum / its.student_sum);
  }
  return pair;
}

// Sweep 1.
template <class A, class Team, class Storage>
KD_DEVICE void measure_exponentials(const RowLoss& problem, const RowWork<A>& work, GivenTarget source,
                                    const RowComparison<A>& compared, Team& team, Storage& storage, GeneralMeasure<A>& its) {
  const A for_student = work.inverse_temperature * compared.student.inverse_unit;
  const A for_teacher = work.inverse_temperature * compared.teacher.inverse_unit;
  RunningSoftmax<A> student, teacher, hard;
  BlockedSums<A, 1> mass;
  storage.for_each(problem, work.position, work.computed, team,
                   [&](Chunk chunk, const A(&z)[chunk_classes], const A(&t)[chunk_classes]) {
    A own[chunk_classes];
    KD_UNROLL for (int e = 0; e < chunk_classes; ++e)
      own[e] = chunk.of(e) < compared.classes ? z[e] : -static_cast<A>(HUGE_VALF);
    student.add(own, for_student, false);
    if (work.scales.has_hard) hard.add(z, A(1), false);
    if (source.normalized) return teacher.add(t, for_teacher, false);
    A sum[1] = {0};
    KD_UNROLL for (int e = 0; e < chunk_classes; ++e) sum[0] += source.weight(t[e], Softmax<A>{A(0), A(1), A(1)});
    mass.add(sum);
  });
  A highest[3] = {student.max, teacher.max, hard.max};
  team.max(highest);
  student.raise(highest[0], for_student, false);
  teacher.raise(highest[1], for_teacher, false);
  hard.raise(highest[2], A(1), false);
  student.sums.fold();
  teacher.sums.fold();
  hard.sums.fold();
  mass.fold();
  A totals[3] = {student.sums.total[0], source.normalized ? teacher.sums.total[0] : mass.total[0], hard.sums.total[0]};
  team.sum(totals);
  its.student_max = student.max;
  its.student_sum = totals[0];
  its.teacher_max = source.normalized ? teacher.max : A(0);
  its.teacher_sum = totals[1];
  its.hard_max = hard.max;
  its.hard_sum = totals[2];
  its.classes = static_cast<A>(compared.classes);
}

// Sweep 2, unless nothing needs it.
template <class A, class Team, class Storage>
KD_DEVICE void measure_gradients(const RowLoss& problem, const RowWork<A>& work, GivenTarget source,
                                 const RowComparison<A>& compared, Team& team, Storage& storage, GeneralMeasure<A>& its) {
  const A eps = static_cast<A>(problem.soft.target_eps);
  const bool smoothed = problem.soft.target_eps > 0;
  const bool bounded = !(source.is_probs() && problem.unit_teacher);
  bool minus_p = false;
  with_divergence<A>(problem.soft, [&](const auto& divergence) { minus_p = divergence.minus_p; });
  const bool needs_made = problem.grad_teacher.data && (source.normalized || problem.unit_teacher);
  const bool is_given = problem.step == RowStep::finish, is_needless = problem.step == RowStep::all && minus_p && !needs_made;
  if (minus_p) its.by_log_q = -((source.normalized ? A(1) : its.teacher_sum) + eps * its.classes);
  if (is_needless || (is_given && bounded)) return;

  const RowPair<A, GivenTarget> pair = pair_of(source, work, compared, its);
  BlockedSums<A, 2> by_log;
  A largest[1] = {0};
  storage.for_each(problem, work.position, work.scales.has_soft, team,
                   [&](Chunk chunk, const A(&z)[chunk_classes], const A(&t)[chunk_classes]) {
    A part[2] = {0, 0};
    with_divergence<A>(problem.soft, [&](const auto& divergence) {
      KD_UNROLL_FLOAT(A) for (int e = 0; e < chunk_classes; ++e) {
        if (chunk.of(e) >= compared.classes) continue;
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
  if (!is_given) {
    if (!minus_p) its.by_log_q = sums[0];
    its.by_log_made = sums[1];
  }
  if (bounded) return;
  team.max(largest);
  its.largest_by_made = larger(largest[0], A(1e-20f));  // if all are 0: their scale times the factor for 0 may be infinite
}

// No entry of a divergence's gradient by the logits is larger than this, times its scale. `sum`: that of by_log_q or by_log_made,
// `mass`: that of p. What is negative in such a sum comes to the larger mass at most, since q log(p / q) <= p - q; so all
// absolute values come to |sum| + 2 max(1, mass), and the chain through the softmax subtracts a share of the sum. The sums of a
// skewed divergence have a second part of at most 1 + mass in absolute values.
template <class A>
KD_DEVICE A gradient_bound(const SoftTerm& soft, A sum, A mass) {
  return A(2) * std::abs(sum) + (soft.skew > 0 ? A(8) : A(3)) * larger(A(1), mass);
}

// What the gradients of a row are multiplied by.
template <class A>
struct GradientScales {
  A student, teacher;

  KD_DEVICE GradientScales(const RowWork<A>& work, GivenTarget source)
      : student(work.scales.soft_gradient * work.inverse_temperature),
        teacher(source.normalized ? student : work.scales.soft_gradient) {}

  // float16: times the factors that the gradients are stored with. `hard_mass`: of the hard term's target.
  template <class Team>
  KD_DEVICE void fit(const RowLoss& problem, const RowWork<A>& work, GivenTarget source, const RowComparison<A>& compared,
                     const GeneralMeasure<A>& its, const Team& team, A hard_mass, LabelTerm<A>& hard) {
    const A mass = (source.normalized ? A(1) : its.teacher_sum) + static_cast<A>(problem.soft.target_eps) * its.classes;
    if (problem.unit_student) {
      A most = gradient_bound(problem.soft, its.by_log_q, mass);
      if (compared.standardized) most = compared.student.bound(most);
      const A factor = work.student_factor(problem, team, std::abs(student) * most, std::abs(hard.scale) * hard_mass);
      student *= factor;
      hard.scale *= factor;
    }
    if (problem.unit_teacher) {
      A most = source.is_probs() ? its.largest_by_made : gradient_bound(problem.soft, its.by_log_made, mass);
      if (compared.standardized) most = compared.teacher.bound(most);
      const A factor = float16_factor(work.soft_weighs(problem) ? std::abs(teacher) * most : A(0));
      teacher *= factor;
      if (work.exists && team.rank() == 0) static_cast<A*>(problem.unit_teacher)[work.row] = A(1) / factor;
    }
  }
};

// The hard term of a whole row, or the share of a part.
template <class A>
KD_DEVICE A general_hard_value(const RowLoss& problem, const RowWork<A>& work, const LabelTerm<A>& term,
                               const HardDistribution<A>& distribution, const GeneralMeasure<A>& its, A at_label, A elsewhere) {
  const A log_sum = log(its.hard_sum);
  if (problem.hard.probs.data) return work.scales.has_hard ? log_sum * distribution.mass - distribution.above : A(0);
  if (problem.step == RowStep::all || !work.scales.has_hard) return hard_value(term, work, log_sum, at_label, elsewhere);
  // The sum of the target over the part; over the row it is 1.
  const A share = (work.label >= 0 ? term.on - term.off : A(0)) + term.off * static_cast<A>(problem.classes);
  return term.cross_entropy(share * log_sum, A(1), at_label, elsewhere);
}

// Sweep 3; twice where rows are standardized, the first time for sum g z' alone.
template <class A, class Team, class Storage>
KD_DEVICE void finish_row(const RowLoss& problem, const RowWork<A>& work, GivenTarget source, RowComparison<A> compared,
                          const GeneralMeasure<A>& its, Team& team, Storage& storage) {
  const RowScales<A>& scales = work.scales;
  const RowPair<A, GivenTarget> pair = pair_of(source, work, compared, its);
  const Softmax<A> cold{its.hard_max, A(1), A(1) / its.hard_sum};
  const A eps = static_cast<A>(problem.soft.target_eps);
  const bool smoothed = problem.soft.target_eps > 0;
  const bool is_part = problem.step != RowStep::all;  // the label may be in another one
  const bool is_nan = scales.bad_label && work.hard_weighs(problem) && !is_part;
  LabelTerm<A> hard = hard_term(problem, work, is_part ? its.classes : static_cast<A>(problem.classes));
  const bool wants_elsewhere = scales.has_hard && hard.off != A(0);
  const bool has_distribution = problem.hard.probs.data;
  HardDistribution<A> distribution(problem);
  if (has_distribution) distribution.measure(problem, work, hard, its.hard_max, team, storage);
  GradientScales<A> scale(work, source);
  for (bool last = !compared.standardized;; last = true) {
    const A hard_mass = has_distribution ? std::abs(distribution.mass) : A(1);
    if (last) scale.fit(problem, work, source, compared, its, team, hard_mass, hard);
    BlockedSums<A, 3> sums;  // divergence, label's logit, the other logits; in the first of two sweeps: sum g z' of either row
    storage.for_each(problem, work.position, work.computed, team,
                     [&](Chunk chunk, const A(&z)[chunk_classes], const A(&t)[chunk_classes]) {
      A grad_student[chunk_classes] = {}, grad_teacher[chunk_classes] = {}, value = 0;
      if (scales.has_soft)
        with_divergence<A>(problem.soft, [&](const auto& divergence) {
          KD_UNROLL_FLOAT(A) for (int e = 0; e < chunk_classes; ++e) {
            if (chunk.of(e) >= compared.classes) continue;
            const Terms<A> c = pair.terms(smoothed, z[e], t[e], eps);
            value += divergence.value(c);
            if (problem.soft.weight == 0) continue;  // the gradient is 0, even where it would be NaN; the value is returned
            grad_student[e] = pair.student_gradient(c, divergence, its.by_log_q);
            if (problem.grad_teacher.data) grad_teacher[e] = pair.gradient(smoothed, c, divergence, its.by_log_made);
          }
        });
      if (!last) {
        A products[3] = {0, 0, 0};
        KD_UNROLL for (int e = 0; e < chunk_classes; ++e) {
          products[0] += compared.student.product(grad_student[e], z[e] - its.student_max);
          products[1] += compared.teacher.product(grad_teacher[e], t[e] - its.teacher_max);
        }
        return sums.add(products);
      }
      if (work.soft_weighs(problem)) {
        if (compared.standardized)
          KD_UNROLL for (int e = 0; e < chunk_classes; ++e) {
            if (chunk.of(e) >= compared.classes) continue;
            grad_student[e] = compared.student.gradient(grad_student[e], z[e] - its.student_max);
            grad_teacher[e] = compared.teacher.gradient(grad_teacher[e], t[e] - its.teacher_max);
          }
        KD_UNROLL for (int e = 0; e < chunk_classes; ++e) {
          grad_student[e] *= scale.student;
          grad_teacher[e] *= scale.teacher;
        }
      }
      LabelSums<A> labels;
      if (has_distribution) {
        distribution.add_gradient(problem, work, hard, cold, chunk, z, grad_student);
      } else if (scales.has_hard) {
        hard.add_gradient(work.label, cold, chunk, z, grad_student);
        labels.add(work.label, wants_elsewhere, its.hard_max, chunk, work.position.student_classes, z);
      }
      const A part[3] = {value, labels.at_label, labels.elsewhere};
      sums.add(part);
      work.write_grad_student(problem, chunk, is_nan, grad_student);
      if (work.exists && problem.grad_teacher.data)
        write_row(problem.grad_teacher, work.position, chunk, static_cast<int>(problem.teacher_width()), grad_teacher);
    });
    sums.fold();
    A totals[3] = {sums.total[0], sums.total[1], sums.total[2]};
    team.sum(totals);
    if (last) {
      const A value = general_hard_value(problem, work, hard, distribution, its, totals[1], totals[2]);
      return work.write_losses(problem, team, totals[0], value);
    }
    compared.student.set_along(totals[0]);
    compared.teacher.set_along(totals[1]);
  }
}

template <class A, class Team, class Storage>
KD_DEVICE void solve_general_row(const RowLoss& problem, Team& team) {
  RowWork<A> work(problem, team.row());
  RowComparison<A> compared(problem);
  work.position.classes = static_cast<int>(chunked_classes(problem));
  work.position.teacher_classes = compared.classes;
  const GivenTarget source(problem.source);
  Storage storage;
  storage.load(problem, work.position, work.computed, team, source.absent());
  if (compared.standardized) standardize_rows(problem, work, team, storage, compared);
  GeneralMeasure<A> its;
  const bool is_part = problem.step != RowStep::all;
  RowMeasure<A>* const measure = work.exists && is_part ? static_cast<RowMeasure<A>*>(problem.measures) + work.row : nullptr;
  if (!is_part || problem.step == RowStep::exponentials)
    measure_exponentials(problem, work, source, compared, team, storage, its);
  else if (measure)
    its.take(*measure);
  if (problem.step != RowStep::exponentials) measure_gradients(problem, work, source, compared, team, storage, its);
  if (problem.step == RowStep::exponentials || problem.step == RowStep::gradients) {
    if (measure && team.rank() == 0) *measure = its;
    return;
  }
  finish_row(problem, work, source, compared, its, team, storage);
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
