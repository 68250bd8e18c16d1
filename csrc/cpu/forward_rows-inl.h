// Forward KL of two softmaxes to a constant teacher, the most frequent loss, with the hard label's term where there is one: a
// sweep for the exponentials of all terms and one for the gradient.
//
// The divergence follows from sums of the weights alone: sum p ((t - z) / T) less the difference of the log-sums.
#if defined(KD_CPU_FORWARD_ROWS_INL_H) == defined(KD_TARGET_TOGGLE)
#ifdef KD_CPU_FORWARD_ROWS_INL_H
#undef KD_CPU_FORWARD_ROWS_INL_H
#else
#define KD_CPU_FORWARD_ROWS_INL_H
#endif

#include <cmath>
#include <limits>
#include <utility>

#include "cpu/label_terms-inl.h"
#include "cpu/row_gradient-inl.h"
#include "cpu/row_lines-inl.h"
#include "cpu/row_sweeps-inl.h"
#include "row_loss.h"
#include "row_scales.h"

KD_BEGIN_TARGET

// The sum with a class added to it; and the divergence, where `sums` are those of the weights of student and teacher, and
// this one.
template <class V>
KD_INLINE V plus_forward_part(V sum, V teacher_weight, V t, V z) {
  return select(teacher_weight == V{}, sum, sum + teacher_weight * (t - z));
}

template <class A>
KD_INLINE A forward_value(const A* sums, A inverse_temperature) {
  return sums[2] * inverse_temperature / sums[1] - std::log(sums[1] / sums[0]);
}

// Two classes whose teacher's weights are exchanged; `one` is the teacher's largest. Its logits stay as they are. -1: no
// exchange.
struct Exchange {
  int64_t one = -1, other = -1;

  // `sum`: of weight * ((t - max t) - (z - max z)), before and after. The part of it that depends on t does not change.
  // Not inlined: the sweeps around it would keep fewer numbers in registers.
  template <class A>
  __attribute__((noinline)) A weights(const Lines<A>& row, int64_t classes, A sum) const {
    const A excess = row.teacher_weight[one] - row.teacher_weight[other];
    const A z_one = *class_at(row.student, one, classes), z_other = *class_at(row.student, other, classes);
    std::swap(row.teacher_weight[one], row.teacher_weight[other]);
    if (z_one != -std::numeric_limits<A>::infinity()) return excess == A(0) ? sum : sum + excess * (z_one - z_other);
    // The sum is infinite, so that subtracting from it would give NaN.
    sum = 0;
    for (int64_t c = 0; c < classes; ++c) {
      const A t = *class_at(row.teacher, c == one ? other : c == other ? one : c, classes);
      if (row.teacher_weight[c] != A(0))
        sum += row.teacher_weight[c] * ((t - row.teacher_max) - (*class_at(row.student, c, classes) - row.student_max));
    }
    return sum;
  }
};

// How often e^(x / T) is squared to give e^x. At the usual temperatures 1, 2 and 4 this replaces the exponentials of the hard
// label's softmax, at the cost of a few roundings. -1 at other temperatures.
template <class A>
KD_INLINE int squarings(A inverse_temperature) {
  return inverse_temperature == A(1) ? 0 : inverse_temperature == A(0.5) ? 1 : inverse_temperature == A(0.25) ? 2 : -1;
}

template <class A, bool labelled>
KD_INLINE bool forward_row_of(const RowLoss& problem, const RowScales<A>& scales, const Lines<A>& lines,
                              const Exchange& exchange, A& soft, A& hard) {
  const Lines<A> row = lines;  // a local copy, so that the compiler can assume that no store changes it
  const int64_t classes = problem.classes;
  const A inverse_temperature = scales.inverse_temperature;
  const Line<A> student_weight = row.student_weight(streams(row));
  const int squared = squarings(inverse_temperature);
  A sums[labelled ? 5 : 3];
  sum_classes(classes, sums, [&](int64_t i, auto place, Vec<A>* part) {
    row.next_student.prefetch(i);
    row.next_teacher.prefetch(i);
    const Vec<A> z = load(row.student.in(place) + i) - row.student_max;
    const Vec<A> t = load(row.teacher.in(place) + i) - row.teacher_max;
    const Vec<A> student = exp_product(z, inverse_temperature), teacher = exp_product(t, inverse_temperature);
    store(student_weight.in(place) + i, student);
    store(row.teacher_weight + i, teacher);
    part[0] += student;
    part[1] += teacher;
    part[2] = plus_forward_part(part[2], teacher, t, z);
    if constexpr (labelled) {
      Vec<A> weight = student;
      for (int times = 0; times < squared; ++times) weight *= weight;
      if (squared < 0) weight = exp_product(z, A(1));
      store(row.spare + i, weight);
      part[3] += weight;
      if (!place) part[4] += z;
    }
  });
  if (exchange.one >= 0) sums[2] = exchange.weights(lines, classes, sums[2]);
  soft = scales.soft * forward_value(sums, inverse_temperature);
  LabelGradient<A> label;
  if constexpr (labelled) {
    A value[1];
    const LabelTerm<A> term = hard_term(problem, scales);
    label = solve_label({term}, scales, row, classes, A(1), sums[3], sums[4], value);
    hard = value[0];
    // Subtracts the label's own part here, as a weight, so that the sweep over the gradient does not test for the label.
    row.spare[scales.label] -= (term.on - term.off) * sums[3];
  }
  if (!row.grad_student) return false;

  A soft_scale = scales.soft_gradient * inverse_temperature;
  if (row.grad_elements.data && problem.unit_student) {
    // |q - p| <= 1 in either term.
    const A factor = float16_factor(std::abs(soft_scale) + (label.weighs ? std::abs(scales.hard_gradient) : A(0)));
    static_cast<A*>(problem.unit_student)[row.number] = A(1) / factor;
    soft_scale *= factor;
    label.share *= factor;
    label.off *= factor;
  }
  // q - p = (student * ratio - teacher) / sum of the teacher's: 0 where the rows are equal.
  const A ratio = sums[1] / sums[0], scale = soft_scale / sums[1];
  const A* teacher_weight = row.teacher_weight;
  const auto soft_gradient = [=](int64_t i, auto place) {
    return (load(student_weight.in(place) + i) * ratio - load(teacher_weight + i)) * scale;
  };
  if (!label.weighs) return write_gradient(problem, row, soft_gradient);
  const A* label_weight = row.spare;
  return write_gradient(problem, row, [=](int64_t i, auto place) {
    return soft_gradient(i, place) + (load(label_weight + i) * label.share - label.off);
  });
}

// Both terms of a row, the hard one where it is wanted. Returns what write_gradient does.
template <class A>
bool forward_row(const RowLoss& problem, const RowScales<A>& scales, const Lines<A>& row, const Exchange& exchange, A& soft,
                 A& hard) {
  return scales.has_hard ? forward_row_of<A, true>(problem, scales, row, exchange, soft, hard)
                         : forward_row_of<A, false>(problem, scales, row, exchange, soft, hard);
}

template <class A>
bool solve_forward_row(const RowLoss& problem, const RowScales<A>& scales, const Lines<A>& row, A& soft, A& hard) {
  return forward_row(problem, scales, row, {}, soft, hard);
}

KD_END_TARGET
#endif
