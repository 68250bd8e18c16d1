// Source decoupled: the label's class against all others (the hard term), and the others among themselves (the soft term).
//
// The softmaxes of the others are shifted by the largest of their own logits, so that they lose no digits to a label that is
// far ahead. In the sweeps the label's logit is -inf: its weight is 0. Three sums give both values and the student's gradient:
//
//     a = exp((z - max z) / T), b = exp((t - max t) / T)      of the other classes
//     NCKD = sum b ((t - max t) - (z - max z)) / (T sum b) - log(sum b / sum a)
//     T d/dz_c = beta (a_c sum b / sum a - b_c) / sum b - alpha (q_y - p_y) a_c / sum a,   T d/dz_y = alpha (q_y - p_y)
#if defined(KD_CPU_DECOUPLED_ROWS_INL_H) == defined(KD_TARGET_TOGGLE)
#ifdef KD_CPU_DECOUPLED_ROWS_INL_H
#undef KD_CPU_DECOUPLED_ROWS_INL_H
#else
#define KD_CPU_DECOUPLED_ROWS_INL_H
#endif

#include <cmath>
#include <limits>

#include "binary_kl.h"
#include "cpu/forward_rows-inl.h"
#include "cpu/row_gradient-inl.h"
#include "cpu/row_lines-inl.h"
#include "cpu/row_sweeps-inl.h"
#include "row_loss.h"
#include "row_scales.h"

KD_BEGIN_TARGET

// The class of the label among vectors of classes.
template <class A>
struct LabelLane {
  int64_t vector;     // where its vector begins
  Vec<A> without{};   // added to that vector: the label's logit becomes -inf, or NaN where it was no finite number

  KD_INLINE explicit LabelLane(int64_t label) : vector(label - label % Simd<A>::lanes) {
    without[label % Simd<A>::lanes] = -std::numeric_limits<A>::infinity();
  }
  KD_INLINE Vec<A> others(Vec<A> logits, int64_t i) const { return i == vector ? logits + without : logits; }

  // `number` at the label, 0 at the others of its vector.
  KD_INLINE Vec<A> only(A number) const { return select(without < A(0), splat(number), Vec<A>{}); }

  // The largest logit but the label's; 0 where all are -inf.
  KD_INLINE A largest_other(const Line<A>& row, A largest, A of_label, int64_t classes) const {
    if (!(of_label < largest))
      largest = largest_of<A>(classes, [&](int64_t i, auto place) { return others(load(row.in(place) + i), i); });
    return largest == -std::numeric_limits<A>::infinity() ? A(0) : largest;
  }
};

template <class A>
bool solve_decoupled_row(const RowLoss& problem, const RowScales<A>& scales, const Lines<A>& lines, A& soft, A& hard) {
  const Lines<A> row = lines;  // a local copy, so that the compiler can assume that no store changes it
  const int64_t classes = problem.classes;
  const A inverse_temperature = scales.inverse_temperature;
  const LabelLane<A> lane(scales.label);
  const A z_label = *class_at(row.student, scales.label, classes), t_label = *class_at(row.teacher, scales.label, classes);
  const A student_max = lane.largest_other(row.student, row.student_max, z_label, classes);
  const A teacher_max = lane.largest_other(row.teacher, row.teacher_max, t_label, classes);
  const Line<A> student_weight = row.student_weight(streams(row));
  const A* const teacher_weight = row.teacher_weight;

  A sums[3];
  sum_classes(classes, sums, [&](int64_t i, auto place, Vec<A>* part) {
    row.next_student.prefetch(i);
    row.next_teacher.prefetch(i);
    const Vec<A> z = lane.others(load(row.student.in(place) + i), i) - student_max;
    const Vec<A> t = lane.others(load(row.teacher.in(place) + i), i) - teacher_max;
    const Vec<A> student = exp_product(z, inverse_temperature), teacher = exp_product(t, inverse_temperature);
    store(student_weight.in(place) + i, student);
    store(row.teacher_weight + i, teacher);
    part[0] += student;
    part[1] += teacher;
    part[2] = plus_forward_part(part[2], teacher, t, z);
  });
  // An infinite logit, the label's included, makes its row NaN; so does a row of -inf alone.
  const A student_sum = sums[0] + A(0) * row.student_max, teacher_sum = sums[1] + A(0) * row.teacher_max;
  const A log_sums = std::log(teacher_sum / student_sum);
  const A d = (z_label - student_max) * inverse_temperature - std::log(student_sum);
  const A e = (t_label - teacher_max) * inverse_temperature - std::log(teacher_sum);
  const A gap = ((t_label - teacher_max) - (z_label - student_max)) * inverse_temperature - log_sums;
  const BinaryKL<A> of_label = binary_kl(d, e, gap);
  // Where no other class has a weight: the teacher says nothing of them, or the student excludes what the teacher does not.
  const A of_others = teacher_sum == A(0)   ? A(0)
                      : student_sum == A(0) ? std::numeric_limits<A>::infinity()
                                            : sums[2] * inverse_temperature / teacher_sum - log_sums;
  soft = scales.soft * of_others;
  hard = scales.soft * of_label.value;

  // A term of weight 0 adds nothing, not even NaN.
  const A alpha = scales.soft * scales.hard_gradient * inverse_temperature;
  const A beta = scales.soft_gradient * inverse_temperature;
  const A by_student = problem.hard.weight == 0 ? A(0) : alpha * of_label.by_student;
  const A by_teacher = problem.hard.weight == 0 ? A(0) : alpha * of_label.by_teacher;
  const A scale = problem.soft.weight == 0 || teacher_sum == A(0) ? A(0) : beta / teacher_sum;
  if (row.grad_teacher) {
    // log p - log q of a class less its mean, from differences of logits: 0 in a row with one class, however large its logits.
    const A mean = sums[2] / teacher_sum;
    const Vec<A> at_label = lane.only(by_teacher);
    each_vector<A>(classes, [&](int64_t i, auto place) {
      const Vec<A> weight = load(teacher_weight + i);
      const Vec<A> apart = (load(row.teacher.in(place) + i) - teacher_max) - (load(row.student.in(place) + i) - student_max);
      Vec<A> gradient = weight * (by_teacher / teacher_sum) * A(-1);
      if (scale != A(0)) gradient += weight * (((apart - mean) * inverse_temperature) * scale);
      gradient = select(weight == A(0), Vec<A>{}, gradient);
      store(row.grad_teacher.in(place) + i, i == lane.vector ? gradient + at_label : gradient);
    });
  }
  if (!row.grad_student) return false;
  A factor = 1;
  if (row.grad_elements.data && problem.unit_student) {
    factor = float16_factor(std::abs(alpha) + std::abs(beta));  // neither term's gradient is larger
    static_cast<A*>(problem.unit_student)[row.number] = A(1) / factor;
  }
  const Vec<A> at_label = lane.only(by_student * factor);
  const A of_weight = student_sum == A(0) ? A(0) : by_student * factor / student_sum;
  const A ratio = student_sum == A(0) ? A(0) : teacher_sum / student_sum, of_difference = scale * factor;
  return write_gradient(problem, row, [=](int64_t i, auto place) {
    const Vec<A> student = load(student_weight.in(place) + i);
    const Vec<A> gradient = (student * ratio - load(teacher_weight + i)) * of_difference - student * of_weight;
    return i == lane.vector ? gradient + at_label : gradient;
  });
}

KD_END_TARGET
#endif
