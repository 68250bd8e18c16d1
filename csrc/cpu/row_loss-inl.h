// Row losses on the CPU, for one instruction set: a range of rows, loss and gradients. path_of(problem) chooses the path of
// all rows once: cpu/PATH_rows-inl.h.
//
// Classes of another dtype, strided classes and the last, partial vector are copied to scratch memory and padded with logits
// of -inf or probabilities of 0. So every sweep of a path is a plain loop over vectors, for any dtype and layout. The largest
// logit of either row is found here, in the sweep that converts elements of another type; a path then has
//
//     exp of both rows, kept, and their sums            the only sweep with an exponential
//     sums the gradients need                           reverse KL, Jensen-Shannon, gradients of teacher logits
//     loss and gradients
//
// Forward KL of two softmaxes, the most frequent divergence, needs no second sweep, and computes the hard label's term in the
// other two. A target that follows from the label alone takes two sweeps, and so does the hard label's term by itself. Sums
// are taken in blocks, so that their rounding error grows with the number of blocks and not of classes. Scratch memory is a
// few rows, which stay in the L1 or L2 cache. The sweep with the exponentials is limited by arithmetic: it prefetches the
// next row, so that the search for the largest logit of that row does not wait for memory. No intrinsics, no #if.
#if defined(KD_CPU_ROW_LOSS_INL_H) == defined(KD_TARGET_TOGGLE)
#ifdef KD_CPU_ROW_LOSS_INL_H
#undef KD_CPU_ROW_LOSS_INL_H
#else
#define KD_CPU_ROW_LOSS_INL_H
#endif

#include <algorithm>
#include <cstdint>
#include <limits>

#include "cpu/adjusted_rows-inl.h"
#include "cpu/decoupled_rows-inl.h"
#include "cpu/forward_rows-inl.h"
#include "cpu/general_rows-inl.h"
#include "cpu/label_rows-inl.h"
#include "cpu/label_terms-inl.h"
#include "cpu/permuted_rows-inl.h"
#include "cpu/row_gradient-inl.h"
#include "cpu/row_io-inl.h"
#include "cpu/row_lines-inl.h"
#include "cpu/row_sweeps-inl.h"
#include "row_loss.h"
#include "row_measure.h"
#include "row_scales.h"

KD_BEGIN_TARGET

template <class A>
SolveRow<A> pick_row(const RowLoss& problem) {
  switch (path_of(problem)) {
    case RowPath::forward: return solve_forward_row<A>;
    case RowPath::label: return solve_label_row<A>;
    case RowPath::permuted: return solve_permuted_row<A>;
    case RowPath::adjusted: return solve_adjusted_row<A>;
    case RowPath::decoupled: return solve_decoupled_row<A>;
    default: return pick_general_row<A>(problem);
  }
}

// A row that the soft term does not count: solves its hard term alone.
template <class A>
A solve_uncounted_row(const RowLoss& problem, const RowScales<A>& scales, const Lines<A>& row) {
  if (row.grad_teacher) fill_zero(row.grad_teacher, problem.teacher_width());
  if (scales.has_hard) return hard_row(problem, scales, row);
  if (row.grad_student) fill_zero(row.grad_student, problem.classes);
  return 0;
}

// Rows [begin, end): writes their losses to problem.row_losses and their gradients to the tensors. `scratch` has
// scratch_numbers(problem) numbers.
template <class A>
void solve_rows(const RowLoss& problem, int64_t begin, int64_t end, A* scratch) {
  const int64_t classes = problem.classes, teacher_classes = problem.teacher_width();
  const int64_t inner = problem.inner, middle = problem.middle, padded = padded_row(problem), tile = tile_rows(problem);
  const SolveRow<A> solve_row = pick_row<A>(problem);
  const bool probabilities = problem.source == TargetSource::probs || problem.source == TargetSource::log_probs;
  const bool teacher_softmax = problem.teacher.data && !probabilities;
  const bool large_gradient = is_large_gradient(problem);
  const Divisors divisor = divisors(problem, 0);
  A* row_losses = static_cast<A*>(problem.row_losses);
  RowMeasure<A>* measures = static_cast<RowMeasure<A>*>(problem.measures);  // of rows that come in parts
  A *unit_student = static_cast<A*>(problem.unit_student), *unit_teacher = static_cast<A*>(problem.unit_teacher);

  const RowAccess<A> student(problem.student, classes, inner, -std::numeric_limits<A>::infinity(), scratch, middle);
  const RowAccess<A> teacher(problem.teacher, teacher_classes, inner, absent_teacher<A>(problem), scratch + tile * padded, middle);
  const RowAccess<A> grad_student(problem.grad_student, classes, inner, A(0), scratch + 2 * tile * padded, middle);
  const RowAccess<A> grad_teacher(problem.grad_teacher, teacher_classes, inner, A(0), scratch + 3 * tile * padded, middle);
  const RowAccess<A> hard_probs(problem.hard.probs, classes, inner, A(0), scratch + 4 * tile * padded, middle);
  A* weights = scratch + 5 * tile * padded;

  for (int64_t first = begin, count; first < end; first += count) {
    // The rows of a tile lie side by side in memory: only their inner position differs.
    count = tile == 1 ? 1 : std::min({tile, end - first, inner - first % inner});
    const int64_t next = std::min(first + count, end - 1);
    A student_max = 0, teacher_max = 0;
    if (tile == 1) {
      student_max = load_largest(student, first, classes);
      if (teacher_softmax) teacher_max = load_largest(teacher, first, teacher_classes);
      else teacher.load(first, 1);
    } else {
      student.load(first, count);
      teacher.load(first, count);
    }
    hard_probs.load(first, count);
    bool written = false;
    for (int64_t r = 0; r < count; ++r) {
      if (tile > 1) {
        student_max = max_classes(student.row(first, r), classes);
        if (teacher_softmax) teacher_max = max_classes(teacher.row(first, r), teacher_classes);
      }
      if (problem.step == RowStep::exponentials) {
        measures[first + r] = {};
        measures[first + r].student_max = student_max;
        measures[first + r].classes = static_cast<A>(classes);
      } else if (problem.step != RowStep::all) {
        student_max = measures[first + r].student_max;
        teacher_max = measures[first + r].teacher_max;
      }
      const Lines<A> row{first + r,
                         problem.compared_classes(),
                         student.row(first, r),
                         teacher.row(first, r),
                         grad_student.row(first, r),
                         grad_teacher.row(first, r),
                         hard_probs.row(first, r),
                         student_max,
                         teacher_max,
                         tile == 1 ? grad_student.elements(first) : Elements{},
                         large_gradient,
                         {weights, weights},
                         weights + padded,
                         weights + 2 * padded,
                         weights + 3 * padded,
                         student.upcoming(next),
                         teacher.upcoming(next)};
      A hard = 0, soft = 0;
      // Avoids a 64-bit division in the common case of one group.
      const RowScales<A> scales = row_scales<A>(
          problem, row.number, problem.groups == 1 ? divisor : divisors(problem, row.number / problem.group_rows()));
      if (scales.has_soft) {
        written = solve_row(problem, scales, row, soft, hard);
      } else {
        hard = solve_uncounted_row(problem, scales, row);
        written = false;
      }
      row_losses[row.number] = soft;
      row_losses[problem.rows() + row.number] = hard;
    }
    if (!written) {
      if (unit_student) fit_float16(grad_student, first, count, classes, unit_student);
      grad_student.store(first, count);
    }
    if (unit_teacher) fit_float16(grad_teacher, first, count, teacher_classes, unit_teacher);
    grad_teacher.store(first, count);
  }
  end_streams();
}

void solve_rows_float(const RowLoss& problem, int64_t begin, int64_t end, void* scratch) {
  solve_rows(problem, begin, end, static_cast<float*>(scratch));
}

void solve_rows_double(const RowLoss& problem, int64_t begin, int64_t end, void* scratch) {
  solve_rows(problem, begin, end, static_cast<double*>(scratch));
}

KD_END_TARGET
#endif
