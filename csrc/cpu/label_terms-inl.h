// Terms whose target depends on the label alone: the hard label of every loss, virtual teachers, smoothed labels.
//
// With `on` on the label and `off` on each of the others, sum p = 1, the cross entropy of softmax(z / T) needs three numbers
// of a row: log sum exp(z / T), z_label and the sum of the other z. No target is built.
#if defined(KD_CPU_LABEL_TERMS_INL_H) == defined(KD_TARGET_TOGGLE)
#ifdef KD_CPU_LABEL_TERMS_INL_H
#undef KD_CPU_LABEL_TERMS_INL_H
#else
#define KD_CPU_LABEL_TERMS_INL_H
#endif

#include <cmath>
#include <limits>

#include "cpu/hard_distribution-inl.h"
#include "cpu/row_lines-inl.h"
#include "cpu/row_sweeps-inl.h"
#include "row_loss.h"
#include "row_measure.h"
#include "row_scales.h"

KD_BEGIN_TARGET

// Such a target, and what its gradient is multiplied by. !weighs: its gradient is 0, even where it would be NaN.
template <class A>
struct LabelTerm {
  A on, off;
  A gradient;
  bool weighs;
};

// T d loss / d z of a class, from its weight exp(z / T): weight * share - off, less `excess` on the label.
template <class A>
struct LabelGradient {
  A share = 0, off = 0, excess = 0;
  bool weighs = false;
};

// Loss and gradient from the sum of a row's weights, and from that of z - max z over the whole vectors of its body.
template <class A, int count>
KD_INLINE LabelGradient<A> solve_label(const LabelTerm<A> (&terms)[count], const RowScales<A>& scales, const Lines<A>& row,
                                       int64_t classes, A inverse_temperature, A sum_weights, A sum_above,
                                       A (&cross_entropy)[count]) {
  for (int64_t c = body_classes(classes); c < classes; ++c) sum_above += row.student.tail[c] - row.student_max;
  const int64_t label = scales.label;
  const A log_sum = std::log(sum_weights);
  const A label_logit = *class_at(row.student, label, classes) - row.student_max;
  A others = sum_above - label_logit;
  if (label_logit == -std::numeric_limits<A>::infinity()) {  // subtracting it would give NaN
    others = 0;
    for (int64_t c = 0; c < classes; ++c)
      if (c != label) others += *class_at(row.student, c, classes) - row.student_max;
  }
  LabelGradient<A> gradient;
  for (int j = 0; j < count; ++j) {
    const LabelTerm<A>& term = terms[j];
    cross_entropy[j] = log_sum;
    // A class of target 0 adds nothing, even where its logit is -inf.
    if (term.on != A(0)) cross_entropy[j] -= term.on * inverse_temperature * label_logit;
    if (term.off != A(0)) cross_entropy[j] -= term.off * inverse_temperature * others;
    if (!term.weighs) continue;
    gradient.weighs = true;
    gradient.share += term.gradient;
    gradient.off += term.gradient * term.off;
    gradient.excess += term.gradient * (term.on - term.off);
  }
  gradient.share *= inverse_temperature / sum_weights;
  gradient.off *= inverse_temperature;
  gradient.excess *= inverse_temperature;
  return gradient;
}

// The cross entropy of each term at one temperature; the gradients go to row.grad_student, added to it where `add`.
// `sum_weights`: of the whole row, where this is a part of one.
template <class A, int count>
KD_INLINE void label_row(const RowLoss& problem, const RowScales<A>& scales, const Lines<A>& row,
                         A inverse_temperature, const LabelTerm<A> (&terms)[count], bool add, A (&cross_entropy)[count],
                         const A* sum_weights = nullptr) {
  const int64_t classes = problem.classes;
  const Line<A> student_weight = row.student_weight(add);
  A sums[2];
  sum_classes(classes, sums, [&](int64_t i, auto place, Vec<A>* part) {
    row.next_student.prefetch(i);
    const Vec<A> above = load(row.student.in(place) + i) - row.student_max;
    const Vec<A> weight = exp_product(above, inverse_temperature);
    store(student_weight.in(place) + i, weight);
    part[0] += weight;
    if (!place) part[1] += above;
  });
  if (sum_weights) sums[0] = *sum_weights;
  const LabelGradient<A> label =
      solve_label(terms, scales, row, classes, inverse_temperature, sums[0], sums[1], cross_entropy);
  if (!row.grad_student) return;
  if (!label.weighs) {
    if (!add) fill_zero(row.grad_student, classes);
    return;
  }
  each_vector<A>(classes, [&](int64_t i, auto place) {
    const Vec<A> gradient = load(student_weight.in(place) + i) * label.share - label.off;
    A* to = row.grad_student.in(place) + i;
    store(to, add ? gradient + load(to) : gradient);
  });
  *class_at(row.grad_student, scales.label, classes) -= label.excess;
}

// The label of the data, at temperature 1, smoothed as in torch.nn.functional.cross_entropy.
template <class A>
KD_INLINE LabelTerm<A> hard_term(const RowLoss& problem, const RowScales<A>& scales) {
  const A off = static_cast<A>(problem.hard.smoothing / static_cast<double>(problem.classes));
  return {A(1) - static_cast<A>(problem.hard.smoothing) + off, off, scales.hard_gradient, problem.hard.weight != 0};
}

// The hard term of a row that comes in parts (row_measure.h).
template <class A>
A hard_part(const RowLoss& problem, const RowScales<A>& scales, const Lines<A>& row) {
  RowMeasure<A>& measure = static_cast<RowMeasure<A>*>(problem.measures)[row.number];
  if (problem.step == RowStep::gradients) return 0;
  if (problem.step == RowStep::exponentials) {
    A sums[1];
    sum_classes(problem.classes, sums, [&](int64_t i, auto place, Vec<A>* part) {
      part[0] += exp_product(load(row.student.in(place) + i) - row.student_max, A(1));
    });
    measure.hard_sum = sums[0];
    return 0;
  }
  LabelTerm<A> term = hard_term(problem, scales);
  term.off = static_cast<A>(problem.hard.smoothing) / measure.classes;
  term.on = A(1) - static_cast<A>(problem.hard.smoothing) + term.off;
  RowScales<A> of_part = scales;
  if (scales.bad_label) {  // the label is in another part, or out of range: every class here has `off`
    of_part.label = 0;
    term.on = term.off;
  }
  A value[1];
  label_row(problem, of_part, row, A(1), {term}, false, value, &measure.hard_sum);
  const A share = (term.on - term.off) + term.off * static_cast<A>(problem.classes);  // of the target's sum, which is 1
  return value[0] + (share - A(1)) * std::log(measure.hard_sum);
}

// The hard term of a row, its gradient written to row.grad_student.
template <class A>
A hard_row(const RowLoss& problem, const RowScales<A>& scales, const Lines<A>& row) {
  if (problem.hard.probs.data) return hard_distribution(problem, scales, row);
  if (problem.step != RowStep::all) return hard_part(problem, scales, row);
  A value[1];
  label_row(problem, scales, row, A(1), {hard_term(problem, scales)}, false, value);
  return value[0];
}

KD_END_TARGET
#endif
