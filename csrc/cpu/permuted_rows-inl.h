// Source permuted: the cross entropy with the teacher's probabilities, shuffled among the classes.
#if defined(KD_CPU_PERMUTED_ROWS_INL_H) == defined(KD_TARGET_TOGGLE)
#ifdef KD_CPU_PERMUTED_ROWS_INL_H
#undef KD_CPU_PERMUTED_ROWS_INL_H
#else
#define KD_CPU_PERMUTED_ROWS_INL_H
#endif

#include <cstdint>
#include <cstring>

#include "cpu/general_rows-inl.h"
#include "cpu/row_lines-inl.h"
#include "cpu/row_sweeps-inl.h"
#include "permutation.h"
#include "row_loss.h"
#include "row_scales.h"

KD_BEGIN_TARGET

// For each class, the class whose weight it gets.
template <class A>
KD_INLINE uint32_t* order_of(const Lines<A>& row) {
  return reinterpret_cast<uint32_t*>(row.more);
}

// The permutation of a row: as given, or drawn.
template <class A>
KD_INLINE void fill_order(const RowLoss& problem, const Lines<A>& row) {
  uint32_t* const order = order_of(row);
  const int64_t classes = problem.classes;
  if (problem.permutation.of_rows) {
    for (int64_t c = 0; c < classes; ++c)
      order[c] = static_cast<uint32_t>(problem.permutation.of_rows[row.number * classes + c]);
    return;
  }
  const Shuffle shuffle(problem.permutation.seed, row.number, classes - 1);
  for (int64_t rank = 0; rank < classes - 1; ++rank) order[rank] = static_cast<uint32_t>(rank);
  for (int number = 0; number < shuffle.rounds; ++number) {
    const Shuffle::Round round = shuffle.round(number);
    for (int64_t rank = 0; rank < classes - 1; ++rank) order[rank] = shuffle.moved(order[rank], round);
  }
  // Ranks to classes; backwards, so that none is overwritten before it is read.
  const int64_t kept = largest_class(row.teacher, classes);
  for (int64_t c = classes - 1; c >= 0; --c)
    order[c] = static_cast<uint32_t>(c == kept ? kept : class_of(order[rank_of(c, kept)], kept));
}

// Class c gets the weight of class order[c].
struct Permuted {
  template <class A>
  static KD_INLINE void deal(const Lines<A>& row, int64_t classes) {
    const uint32_t* const order = order_of(row);
    std::memcpy(row.spare, row.teacher_weight, classes * sizeof(A));
    for (int64_t c = 0; c < classes; ++c) row.teacher_weight[c] = row.spare[order[c]];
  }
};

template <class A>
bool solve_permuted_row(const RowLoss& problem, const RowScales<A>& scales, const Lines<A>& row, A& soft, A& hard) {
  if (scales.has_hard) hard = hard_row(problem, scales, row);
  fill_order(problem, row);
  soft = scales.soft * general_row<A, LogitsTarget, false, CrossEntropy<A>, Permuted>(problem, scales, row, scales.has_hard);
  return false;
}

KD_END_TARGET
#endif
