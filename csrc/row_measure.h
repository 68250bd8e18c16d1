// What the loss and the gradients of a row need to know of all its classes. Host and device.
//
// A row may come in parts: chunks of a large head, shards of a vocabulary. Each part is a problem of its own, whose first
// class is hard.first_class, and all parts of a row are solved in these steps (RowLoss::step):
//
//     exponentials   maximum and sum of exponentials of the part's classes; add() merges those of two parts
//     gradients      given these, the sums that the gradients need; the sums of two parts are added
//     finish         given both, the gradients of the part's classes, and a loss that is the part's share of the row's
//
// Supported are sources logits, log_probs and probs, without standardize and shared classes, and a hard term with labels.
// Reduction::elementmean is not: it would divide by the classes of a part instead of those of the row.
#pragma once
#include <cmath>

#include "host_device.h"

namespace kd {

template <class A>
struct RowMeasure {
  A student_max = 0, student_sum = 0;  // max z, sum exp((z - max z) / T)
  A hard_sum = 0;                      // sum exp(z - max z); with a hard term
  A teacher_max = 0, teacher_sum = 0;  // the same of teacher logits; of probabilities 0 and their sum
  A classes = 0;                       // their number
  A by_log_q = 0, by_log_made = 0;     // sums of the derivatives of divergences-inl.h

  // `student`, `teacher`: inverse temperatures; for a teacher's probabilities it does not matter.
  KD_HOST_DEVICE void add(const RowMeasure& other, A student, A teacher) {
    A one[2] = {student_sum, hard_sum};
    const A two[2] = {other.student_sum, other.hard_sum}, scales[2] = {student, A(1)};
    merge(student_max, one, other.student_max, two, scales);
    student_sum = one[0];
    hard_sum = one[1];
    A sum[1] = {teacher_sum};
    const A other_sum[1] = {other.teacher_sum}, scale[1] = {teacher};
    merge(teacher_max, sum, other.teacher_max, other_sum, scale);
    teacher_sum = sum[0];
    classes += other.classes;
  }

  KD_HOST_DEVICE void add_gradients(const RowMeasure& other) {
    by_log_q += other.by_log_q;
    by_log_made += other.by_log_made;
  }

 private:
  template <int count>
  static KD_HOST_DEVICE void merge(A& max, A (&sums)[count], A other_max, const A (&others)[count], const A (&scales)[count]) {
    const bool raised = other_max > max;
    const A less = raised ? max - other_max : other_max - max;
    for (int i = 0; i < count; ++i) {
      // A part whose logits are all -inf has the maximum -inf and a sum that is NaN.
      const A smaller = less == -HUGE_VAL ? A(0) : (raised ? sums[i] : others[i]) * std::exp(less * scales[i]);
      sums[i] = (raised ? others[i] : sums[i]) + smaller;
    }
    if (raised) max = other_max;
  }
};

}  // namespace kd
