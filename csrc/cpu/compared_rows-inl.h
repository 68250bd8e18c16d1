// The part of a row that the soft term compares, where that is not the whole row: its first classes, or their z-scores
//
//     z' = (z - mean) / s,  s = sigma + 1e-7,  sigma^2 = sum (z - mean)^2 / (C - 1)
//
// where mean, sum and C are over the classes whose logit is not -inf. With g the gradient by z', whose
// sum is 0 because it is a gradient through a softmax, the gradient by z is
//
//     g / s - z' sum(g z') / (sigma (C - 1))
//
// and 0 where sigma = 0. Both are computed from z - max z, which is exact for logits of 1e4. The rows that are compared, and
// the gradients by them, are scratch rows: a path sees rows like any others.
//
// Sun et al. 2024, "Logit Standardization in Knowledge Distillation", equation 9; the 1e-7 is that of its authors' code.
#if defined(KD_CPU_COMPARED_ROWS_INL_H) == defined(KD_TARGET_TOGGLE)
#ifdef KD_CPU_COMPARED_ROWS_INL_H
#undef KD_CPU_COMPARED_ROWS_INL_H
#else
#define KD_CPU_COMPARED_ROWS_INL_H
#endif

#include <cmath>
#include <cstdint>
#include <limits>

#include "cpu/row_lines-inl.h"
#include "cpu/row_sweeps-inl.h"
#include "row_loss.h"
#include "row_scales.h"

KD_BEGIN_TARGET

// D(p, q) of the compared rows; its gradients are written to row.grad_*, added to the student's where `add`.
template <class A>
using SoftRow = A (*)(const RowLoss&, const RowScales<A>&, const Lines<A>& row, bool add);

// What the gradient through the z-scores of a row depends on.
template <class A>
struct Scores {
  A sigma = 0, unit = 1;  // unit: s
  A others = 1;           // C - 1, at least 1
};

// Copies the first classes of a row to a padded one, with `absent` behind them. Returns the largest.
template <class A>
KD_INLINE A copy_classes(const Line<A>& from, int64_t from_classes, int64_t classes, A absent, A* to) {
  constexpr int lanes = Simd<A>::lanes;
  const int64_t split = body_classes(from_classes);
  return largest_of<A>(classes, [&](int64_t i, auto) {
    Vec<A> v = load((i < split ? from.body : from.tail) + i);
    if (i + lanes > classes) v = select(first_lanes<A>(classes - i), v, splat(absent));
    store(to + i, v);
    return v;
  });
}

// Replaces a padded row by its z-scores, and `largest` by the largest of these.
template <class A>
KD_INLINE Scores<A> standardize(A* row, int64_t classes, A& largest) {
  const Vec<A> absent = splat(-std::numeric_limits<A>::infinity());
  const A most = largest;
  A sums[2];
  sum_classes(classes, sums, [&](int64_t i, auto, Vec<A>* part) {
    const Vec<A> z = load(row + i);
    const auto is_class = z != absent;
    part[0] += select(is_class, z - most, Vec<A>{});
    part[1] += select(is_class, splat(A(1)), Vec<A>{});
  });
  const A mean = sums[0] / sums[1];
  A squares[1];
  sum_classes(classes, squares, [&](int64_t i, auto, Vec<A>* part) {
    const Vec<A> z = load(row + i);
    const Vec<A> distance = select(z != absent, (z - most) - mean, Vec<A>{});
    part[0] += distance * distance;
  });
  Scores<A> scores;
  scores.others = sums[1] > A(2) ? sums[1] - A(1) : A(1);
  scores.sigma = std::sqrt(squares[0] / scores.others);
  scores.unit = scores.sigma + A(1e-7);
  const A inverse = A(1) / scores.unit;
  each_vector<A>(classes, [&](int64_t i, auto) { store(row + i, ((load(row + i) - most) - mean) * inverse); });
  largest = -mean * inverse;
  return scores;
}

// Turns a gradient by z-scores into one by the logits, in place.
template <class A>
KD_INLINE void through_scores(const A* z, const Scores<A>& scores, int64_t classes, A* gradient) {
  if (scores.sigma == A(0)) return each_vector<A>(classes, [&](int64_t i, auto) { store(gradient + i, Vec<A>{}); });
  const Vec<A> absent = splat(-std::numeric_limits<A>::infinity());
  A along[1];
  sum_classes(classes, along, [&](int64_t i, auto, Vec<A>* part) {
    const Vec<A> v = load(z + i);
    part[0] += select(v != absent, v * load(gradient + i), Vec<A>{});
  });
  const A share = along[0] / (scores.sigma * scores.others), inverse = A(1) / scores.unit;
  each_vector<A>(classes, [&](int64_t i, auto) {
    const Vec<A> v = load(z + i);
    store(gradient + i, select(v != absent, load(gradient + i) * inverse - v * share, Vec<A>{}));
  });
}

// Writes the gradient of the first classes to that of the row, with 0 for the others; adds it where `add`.
template <class A>
KD_INLINE void widen_gradient(const A* gradient, int64_t classes, const Line<A>& to, int64_t to_classes, bool add) {
  each_vector<A>(to_classes, [&](int64_t i, auto place) {
    A* const there = to.in(place) + i;
    Vec<A> v{};
    if (i < classes) v = select(first_lanes<A>(classes - i), load(gradient + i), Vec<A>{});
    store(there, add ? v + load(there) : v);
  });
}

// Calls soft_row on the compared rows, and turns their gradients into those of the whole rows.
template <class A>
A compared_row(const RowLoss& problem, const RowScales<A>& scales, const Lines<A>& row, bool add, SoftRow<A> soft_row) {
  const int64_t classes = row.classes, padded = padded_row(problem);
  A *const z = row.more, *const t = z + padded, *const by_z = t + padded, *const by_t = by_z + padded;
  Lines<A> part = row;
  part.student_max = copy_classes(row.student, problem.classes, classes, -std::numeric_limits<A>::infinity(), z);
  part.teacher_max = copy_classes(row.teacher, problem.teacher_width(), classes, absent_teacher<A>(problem), t);
  Scores<A> of_z, of_t;
  if (problem.soft.standardize) {
    of_z = standardize(z, classes, part.student_max);
    of_t = standardize(t, classes, part.teacher_max);
  }
  part.student = {z, z};
  part.teacher = {t, t};
  if (row.grad_student) part.grad_student = {by_z, by_z};
  if (row.grad_teacher) part.grad_teacher = {by_t, by_t};
  const A value = soft_row(problem, scales, part, false);
  // The gradient of a term of weight 0 is 0, even where the z-scores are NaN.
  const bool through = problem.soft.standardize && problem.soft.weight != 0;
  if (row.grad_student) {
    if (through) through_scores(z, of_z, classes, by_z);
    widen_gradient(by_z, classes, row.grad_student, problem.classes, add);
  }
  if (row.grad_teacher) {
    if (through) through_scores(t, of_t, classes, by_t);
    widen_gradient(by_t, classes, row.grad_teacher, problem.teacher_width(), false);
  }
  return value;
}

KD_END_TARGET
#endif
