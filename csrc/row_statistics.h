// The first pass of losses whose rows depend on the whole batch: a number per row, and the weight or temperature that follows
// from it and the batch's mean. Host and device.
//
//     confidence   max softmax(teacher)                         becomes a weight of the row's loss
//     cosine       (1 - cos(student, teacher)) ^ power          become a temperature, low where they are large
//     doubt        1 / (max softmax(student) + 1e-3)
//     rank         number of classes ahead of the label's       is a result; 0: the label's logit is the largest
//     pseudo_label max softmax(student / T)                     is a result, together with the class
//
// Confidence: Furlanello et al. 2018, equation 10. The others: Wen, Lai, Qian 2021 (focal-loss style and confidence
// weighted by the student's maximum), with the small constants that public implementations share.
#pragma once
#include <cmath>

#include "host_device.h"
#include "row_loss.h"

namespace kd {

// Whether a class with the logit z stands ahead of the label, whose logit is `own`: equals in the order of their numbers. A
// NaN is ahead of the label, and all classes are ahead of a label of NaN: a row with NaN never counts as correct.
template <class A>
KD_HOST_DEVICE bool is_ahead(A z, A own, bool before_label) {
  return before_label ? !(z < own) : !(z <= own);
}

// The rank of a label that is out of range, since a device cannot raise, or ignored.
constexpr int no_rank = -1;

// The inner product and the squares are those of the whole rows.
template <class A>
KD_HOST_DEVICE A cosine_statistic(const RowLoss& problem, A product, A student_square, A teacher_square) {
  const A small = A(1e-4);  // keeps a row of zeros from being divided by 0
  const A cosine = product / ((std::sqrt(student_square) + small) * (std::sqrt(teacher_square) + small));
  const A base = cosine < A(1) ? A(1) - cosine : A(0) * cosine;  // rounding may pass 1; NaN stays NaN
  return problem.first.power == 1 ? base : std::pow(base, static_cast<A>(problem.first.power));
}

// `sum_of_exp`: of exp(z - max z).
template <class A>
KD_HOST_DEVICE A doubt_statistic(A sum_of_exp) {
  return A(1) / (A(1) / sum_of_exp + A(1e-3));
}

// The probability of a row's largest class, from that logit and the sum of exponentials relative to it. NaN where no class has
// a probability: all logits are -inf.
template <class A>
KD_HOST_DEVICE A largest_probability(A largest, A sum_of_exp) {
  return largest == -static_cast<A>(HUGE_VALF) ? static_cast<A>(__builtin_nan("")) : A(1) / sum_of_exp;
}

// The largest class of a row, of this probability, or ignore_index where that is below its threshold or NaN.
template <class A>
KD_HOST_DEVICE int64_t pseudo_label(const RowLoss& problem, int64_t largest, A confidence) {
  const void* thresholds = problem.pseudo.thresholds;
  const A least = thresholds ? static_cast<const A*>(thresholds)[largest] : static_cast<A>(problem.pseudo.threshold);
  return confidence >= least ? largest : problem.hard.ignore_index;
}

// A row's weight or temperature from its statistic and those of its group. A row that does not count has the weight 0 and
// the temperature of the batch.
KD_HOST_DEVICE double applied_statistic(const RowLoss& problem, bool counted, double statistic, double sum,
                                        double count) {
  if (problem.first.statistic == RowStatistic::confidence) {
    if (!counted) return 0;
    return problem.first.normalize && sum > 0 ? statistic * (count / sum) : statistic;
  }
  if (!counted) return problem.soft.temperature;
  const double unit = problem.first.normalize && sum > 0 ? sum : 1.0;
  const double temperature = problem.soft.temperature + (sum / count - statistic) / unit * problem.first.slope;
  return temperature < problem.first.least_temperature ? problem.first.least_temperature : temperature;
}

}  // namespace kd
