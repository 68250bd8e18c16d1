// One row of every tensor, as the paths see it, and the number of rows that are loaded together.
#if defined(KD_CPU_ROW_LINES_INL_H) == defined(KD_TARGET_TOGGLE)
#ifdef KD_CPU_ROW_LINES_INL_H
#undef KD_CPU_ROW_LINES_INL_H
#else
#define KD_CPU_ROW_LINES_INL_H
#endif

#include <algorithm>
#include <cstdint>
#include <limits>

#include "cpu/row_io-inl.h"
#include "row_loss.h"
#include "row_scales.h"

KD_BEGIN_TARGET

inline int64_t most_classes_of(const RowLoss& problem) { return std::max(problem.classes, problem.teacher_width()); }

// The number of rows that are loaded together. One, where the classes of a row are neighbours; else neighbouring rows, one
// cache line wide if that stays within the L1 cache, so that strided logits are read line by line.
inline int64_t tile_rows(const RowLoss& problem) {
  if (problem.student.class_stride == 1 && (!problem.teacher.data || problem.teacher.class_stride == 1)) return 1;
  return std::max<int64_t>(1, std::min<int64_t>(16, 4096 / most_classes_of(problem)));
}

// Numbers of a scratch row, whichever tensor it is of.
inline int64_t padded_row(const RowLoss& problem) { return padded_classes(most_classes_of(problem)); }

// Scratch memory of a thread: tiles of the logits, the gradients and the hard term's distributions, rows of weights, and either
// the order of a permutation or the compared rows and their gradients.
inline int64_t scratch_numbers(const RowLoss& problem) {
  constexpr int64_t tiles = 5, rows = 7;
  return (tiles * tile_rows(problem) + rows) * padded_row(problem);
}

// What pads a teacher's row: a class of probability 0.
template <class A>
KD_INLINE A absent_teacher(const RowLoss& problem) {
  return problem.source == TargetSource::probs ? A(0) : -std::numeric_limits<A>::infinity();
}

template <class A>
struct Lines {
  int64_t number;
  int64_t classes;  // that the soft term compares
  Line<A> student, teacher, grad_student, grad_teacher;
  Line<A> hard_probs;          // the hard term's distribution, where there is one
  A student_max, teacher_max;  // of the logits
  Elements grad_elements;      // the student's gradient in its tensor, if a sweep may write it there
  bool large_gradient;         // of all rows: see is_large_gradient
  Line<A> student_scratch;
  A* teacher_weight;  // scratch, padded
  A* spare;           // scratch, padded: weights of the hard term, weights before they are permuted
  A* more;            // scratch, four padded rows: compared rows and their gradients, or the order of a permutation
  Upcoming next_student, next_teacher;

  // The student's weights are stored in the memory of its gradient, which keeps fewer lines in the caches. `apart`: in
  // scratch memory, because the gradient is written past the caches or already holds the hard term's.
  KD_INLINE Line<A> student_weight(bool apart) const { return grad_student && !apart ? grad_student : student_scratch; }
};

// Solves both terms of a row whose soft term counts. Returns true if the student's gradient was written to row.grad_elements,
// false if to row.grad_student.
template <class A>
using SolveRow = bool (*)(const RowLoss&, const RowScales<A>&, const Lines<A>& row, A& soft, A& hard);

KD_END_TARGET
#endif
