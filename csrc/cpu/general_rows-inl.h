// Any divergence from any teacher, with the gradients of both rows:
//
//     exponentials of both rows, kept, and their sums
//     the sums that the gradients need                  reverse KL, Jensen-Shannon, gradients of teacher logits
//     loss and gradients
#if defined(KD_CPU_GENERAL_ROWS_INL_H) == defined(KD_TARGET_TOGGLE)
#ifdef KD_CPU_GENERAL_ROWS_INL_H
#undef KD_CPU_GENERAL_ROWS_INL_H
#else
#define KD_CPU_GENERAL_ROWS_INL_H
#endif

#include <cmath>
#include <type_traits>

#include "cpu/compared_rows-inl.h"
#include "cpu/forward_rows-inl.h"
#include "cpu/label_terms-inl.h"
#include "cpu/row_lines-inl.h"
#include "cpu/row_math-inl.h"
#include "cpu/row_sweeps-inl.h"
#include "row_loss.h"
#include "row_measure.h"
#include "row_scales.h"

KD_BEGIN_TARGET

// The order in which classes get the teacher's weights: unchanged.
struct InOrder {
  template <class A>
  static KD_INLINE void deal(const Lines<A>&, int64_t) {}
};

// D(p, q) of one row; its gradients are written to row.grad_*, added to the student's where `add`. Of a row that comes in
// parts it solves the step problem.step.
template <class A, class Source, bool smoothed, class D, class Order>
A general_row(const RowLoss& problem, const RowScales<A>& scales, const Lines<A>& lines, bool add) {
  const D divergence = D::of(problem.soft);
  constexpr int lanes = Simd<A>::lanes;
  const Lines<A> row = lines;  // a local copy, so that the compiler can assume that no store changes it
  const int64_t classes = row.classes;
  RowPair<A, Source> pair{{row.student_max, scales.inverse_temperature, A(0)}, {A(0), A(1), A(1)}, A(0), A(0)};
  if (Source::normalized) pair.target = {row.teacher_max, scales.inverse_temperature, A(0)};

  // The value is that of forward_row, whichever gradients are wanted.
  constexpr bool is_forward = std::is_same<D, ForwardKL<A>>::value && Source::normalized && !smoothed;
  const Line<A> student_weight = row.student_weight(add);
  A weights[3];
  sum_classes(classes, weights, [&](int64_t i, auto place, Vec<A>* part) {
    row.next_student.prefetch(i);
    row.next_teacher.prefetch(i);
    const Vec<A> z = load(row.student.in(place) + i), t = load(row.teacher.in(place) + i);
    const Vec<A> student = pair.student.weight(z), teacher = Source::weight(t, pair.target);
    store(student_weight.in(place) + i, student);
    store(row.teacher_weight + i, teacher);
    part[0] += student;
    part[1] += teacher;
    if (is_forward) part[2] = plus_forward_part(part[2], teacher, t - pair.target.max, z - pair.student.max);
  });
  Order::deal(lines, classes);
  RowMeasure<A>* const measure =
      problem.step == RowStep::all ? nullptr : static_cast<RowMeasure<A>*>(problem.measures) + row.number;
  if (measure && problem.step == RowStep::exponentials) {
    measure->student_sum = weights[0];
    measure->teacher_max = row.teacher_max;
    measure->teacher_sum = weights[1];
    return 0;
  }
  A all_classes = static_cast<A>(classes);
  if (measure) {
    weights[0] = measure->student_sum;
    weights[1] = measure->teacher_sum;
    all_classes = measure->classes;
  }
  pair.student.inverse_sum = A(1) / weights[0];
  pair.student_log_sum = std::log(weights[0]);
  if (Source::normalized) {
    pair.target.inverse_sum = A(1) / weights[1];
    pair.log_sums = std::log(weights[1] / weights[0]);
  }
  // A term of weight 0 has the gradient 0, even where it would be NaN; its value is still returned.
  const bool weighs = problem.soft.weight != 0;
  const bool for_student = static_cast<bool>(row.grad_student), for_teacher = static_cast<bool>(row.grad_teacher);
  const A student_scale = scales.soft_gradient * scales.inverse_temperature;
  const A teacher_scale = Source::normalized ? student_scale : scales.soft_gradient;

  // The padding gets no smoothing.
  const A eps = static_cast<A>(problem.soft.target_eps);
  Vec<A> last_eps{};
  if (smoothed)
    for (int lane = 0; lane < (classes - 1) % lanes + 1; ++lane) last_eps[lane] = eps;
  const auto terms_at = [&](int64_t i, auto place) {
    return pair.terms(smoothed, load(row.student.in(place) + i), load(student_weight.in(place) + i),
                      load(row.teacher.in(place) + i), load(row.teacher_weight + i),
                      i + lanes < classes ? splat(eps) : last_eps);
  };

  A by_log_q_sum = -((Source::normalized ? A(1) : weights[1]) + (smoothed ? eps * all_classes : A(0)));
  A by_log_made_sum = 0;
  if (measure && problem.step == RowStep::finish) {
    if (!D::minus_p) by_log_q_sum = measure->by_log_q;
    by_log_made_sum = measure->by_log_made;
  } else if (measure || !D::minus_p || (for_teacher && Source::normalized)) {
    const bool for_made = D::minus_p || measure || for_teacher;  // else its logarithms are not computed
    A sums[2];
    sum_classes(classes, sums, [&](int64_t i, auto place, Vec<A>* part) {
      const Terms<Vec<A>> c = terms_at(i, place);
      part[0] += divergence.by_log_q(c);
      if (for_made) part[1] += pair.by_log_made(smoothed, c, divergence.by_log_p(c));
    });
    if (!D::minus_p) by_log_q_sum = sums[0];
    by_log_made_sum = sums[1];
  }
  if (measure && problem.step == RowStep::gradients) {
    measure->by_log_q = by_log_q_sum;
    measure->by_log_made = by_log_made_sum;
    return 0;
  }

  A value[1];
  sum_classes(classes, value, [&](int64_t i, auto place, Vec<A>* part) {
    const Terms<Vec<A>> c = terms_at(i, place);
    part[0] += divergence.value(c);
    if (for_student) {
      const Vec<A> gradient = weighs ? pair.student_gradient(c, divergence, by_log_q_sum) * student_scale : Vec<A>{};
      store(row.grad_student.in(place) + i, add ? gradient + load(row.grad_student.in(place) + i) : gradient);
    }
    if (for_teacher)
      store(row.grad_teacher.in(place) + i,
            weighs ? pair.gradient(smoothed, c, divergence, by_log_made_sum) * teacher_scale : Vec<A>{});
  });
  return is_forward && !measure ? forward_value(weights, scales.inverse_temperature) : value[0];
}

// Both terms. The gradient of the hard term is written first, that of the soft term is added to it.
template <class A, class Source, bool smoothed, class D>
bool solve_general_row(const RowLoss& problem, const RowScales<A>& scales, const Lines<A>& row, A& soft, A& hard) {
  if (scales.has_hard) hard = hard_row(problem, scales, row);
  soft = scales.soft * general_row<A, Source, smoothed, D, InOrder>(problem, scales, row, scales.has_hard);
  return false;
}

// The same for standardized rows and shared classes.
template <class A, class Source, bool smoothed, class D>
bool solve_compared_row(const RowLoss& problem, const RowScales<A>& scales, const Lines<A>& row, A& soft, A& hard) {
  if (scales.has_hard) hard = hard_row(problem, scales, row);
  const SoftRow<A> soft_row = general_row<A, Source, smoothed, D, InOrder>;
  soft = scales.soft * compared_row(problem, scales, row, scales.has_hard, soft_row);
  return false;
}

template <class A, class Source, bool smoothed, class D>
SolveRow<A> pick_comparison(const RowLoss& problem) {
  return problem.soft.standardize || problem.shares_classes() ? solve_compared_row<A, Source, smoothed, D>
                                                              : solve_general_row<A, Source, smoothed, D>;
}

template <class A, class Source, bool smoothed>
SolveRow<A> pick_divergence(const RowLoss& problem) {
  const bool skewed = problem.soft.skew != 0;
  switch (problem.soft.divergence) {
    case Divergence::forward:
      return skewed ? pick_comparison<A, Source, smoothed, SkewedKL<A, false>>(problem)
                    : pick_comparison<A, Source, smoothed, ForwardKL<A>>(problem);
    case Divergence::reverse:
      return skewed ? pick_comparison<A, Source, smoothed, SkewedKL<A, true>>(problem)
                    : pick_comparison<A, Source, smoothed, ReverseKL<A>>(problem);
    case Divergence::jsd: return pick_comparison<A, Source, smoothed, JensenShannon<A>>(problem);
    case Divergence::tvd: return pick_comparison<A, Source, smoothed, TotalVariation<A>>(problem);
    default: return pick_comparison<A, Source, smoothed, CrossEntropy<A>>(problem);
  }
}

template <class A, class Source>
SolveRow<A> pick_smoothing(const RowLoss& problem) {
  return problem.soft.target_eps > 0 ? pick_divergence<A, Source, true>(problem) : pick_divergence<A, Source, false>(problem);
}

template <class A>
SolveRow<A> pick_general_row(const RowLoss& problem) {
  switch (problem.source) {
    case TargetSource::log_probs: return pick_smoothing<A, LogProbsTarget>(problem);
    case TargetSource::probs: return pick_smoothing<A, ProbsTarget>(problem);
    default: return pick_smoothing<A, LogitsTarget>(problem);
  }
}

KD_END_TARGET
#endif
