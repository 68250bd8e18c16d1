// Source adjusted: forward rows of a teacher that is repaired where its largest class is not the label's. Either the two classes
// change places, or the whole row is replaced by the target of source label.
#if defined(KD_CPU_ADJUSTED_ROWS_INL_H) == defined(KD_TARGET_TOGGLE)
#ifdef KD_CPU_ADJUSTED_ROWS_INL_H
#undef KD_CPU_ADJUSTED_ROWS_INL_H
#else
#define KD_CPU_ADJUSTED_ROWS_INL_H
#endif

#include "cpu/forward_rows-inl.h"
#include "cpu/label_rows-inl.h"
#include "cpu/row_lines-inl.h"
#include "cpu/row_sweeps-inl.h"
#include "row_loss.h"
#include "row_scales.h"

KD_BEGIN_TARGET

template <class A>
bool solve_adjusted_row(const RowLoss& problem, const RowScales<A>& scales, const Lines<A>& row, A& soft, A& hard) {
  const bool repairs = scales.has_label && problem.adjustment != Adjustment::none;
  const int64_t largest = repairs ? largest_class(row.teacher, problem.classes) : scales.label;
  if (largest == scales.label) return forward_row(problem, scales, row, {}, soft, hard);
  if (problem.adjustment == Adjustment::exchange)
    return forward_row(problem, scales, row, {largest, scales.label}, soft, hard);
  if (scales.has_hard) hard = hard_row(problem, scales, row);
  soft = scales.soft * label_divergence(problem, scales, row, scales.has_hard);
  return false;
}

KD_END_TARGET
#endif
