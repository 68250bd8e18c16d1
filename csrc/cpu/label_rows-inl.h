// Source label: the divergence from a target that follows from the label alone, beside the hard label's term.
#if defined(KD_CPU_LABEL_ROWS_INL_H) == defined(KD_TARGET_TOGGLE)
#ifdef KD_CPU_LABEL_ROWS_INL_H
#undef KD_CPU_LABEL_ROWS_INL_H
#else
#define KD_CPU_LABEL_ROWS_INL_H
#endif

#include "cpu/label_terms-inl.h"
#include "cpu/row_lines-inl.h"
#include "row_loss.h"
#include "row_scales.h"

KD_BEGIN_TARGET

template <class A>
KD_INLINE LabelTerm<A> soft_term(const RowLoss& problem, const RowScales<A>& scales) {
  return {static_cast<A>(problem.label.on), static_cast<A>(problem.label.off), scales.soft_gradient, problem.soft.weight != 0};
}

// D(p, q); its gradient is written to row.grad_student, added to it where `add`.
template <class A>
KD_INLINE A label_divergence(const RowLoss& problem, const RowScales<A>& scales, const Lines<A>& row, bool add) {
  A value[1];
  label_row(problem, scales, row, scales.inverse_temperature, {soft_term(problem, scales)}, add, value);
  return value[0] - static_cast<A>(problem.label.entropy);
}

// Both terms, from one softmax where both are at temperature 1.
template <class A>
bool solve_label_row(const RowLoss& problem, const RowScales<A>& scales, const Lines<A>& row, A& soft, A& hard) {
  if (scales.inverse_temperature == A(1)) {
    A both[2];
    label_row(problem, scales, row, A(1), {soft_term(problem, scales), hard_term(problem, scales)}, false, both);
    soft = scales.soft * (both[0] - static_cast<A>(problem.label.entropy));
    hard = both[1];
    return false;
  }
  if (scales.has_hard) hard = hard_row(problem, scales, row);
  soft = scales.soft * label_divergence(problem, scales, row, scales.has_hard);
  return false;
}

KD_END_TARGET
#endif
