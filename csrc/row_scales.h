// What one row is multiplied by: temperature, weights, and the counts its reduction divides by. Host and device.
#pragma once
#include <cstdint>

#include "host_device.h"
#include "softened_kl.h"

namespace kd {

// Number of rows a group's terms are divided by; an empty group is divided by 1 and stays 0.
struct Divisors {
  double soft = 1;
  double hard = 1;
};

// `soft`, `hard`: rows of the group that either term counts.
KD_HOST_DEVICE Divisors divisors_by(const SoftenedKL& problem, int64_t soft, int64_t hard) {
  Divisors divisor;
  divisor.soft = soft > 0 ? static_cast<double>(soft) : 1.0;
  divisor.hard = hard > 0 ? static_cast<double>(hard) : 1.0;
  if (problem.reduction == Reduction::elementmean) divisor.soft *= static_cast<double>(problem.classes);
  return divisor;
}

// From the counts in memory, where there have to be any.
KD_HOST_DEVICE Divisors divisors(const SoftenedKL& problem, int64_t group) {
  if (!problem.is_mean()) return {};
  const int64_t all = problem.group_rows();
  const int64_t* counts = static_cast<const int64_t*>(problem.counts);
  return divisors_by(problem, problem.mask || problem.source == TargetSource::label ? counts[group] : all,
                     problem.target ? counts[problem.groups + group] : all);
}

template <class A>
struct RowScales {
  bool has_soft;          // the row is not masked out
  bool has_label;         // the row has a label that is not ignored
  bool has_hard;          // and its hard term is wanted
  bool bad_label;         // a label outside [0, classes): the row becomes NaN
  int64_t label;
  A inverse_temperature;
  A soft;                 // w T^2: what the divergence is multiplied by in the row's loss
  A soft_gradient;        // what d(divergence)/d(log q, log p) is multiplied by, before the chain through the logits
  A hard_gradient;
};

template <class A>
KD_HOST_DEVICE RowScales<A> row_scales(const SoftenedKL& problem, int64_t row, const Divisors& divisor) {
  RowScales<A> scales{};
  scales.has_soft = problem.counts_row(row);
  if (problem.target) {
    scales.label = problem.target[row];
    scales.has_label = scales.label != problem.ignore_index;
    scales.has_hard = scales.has_label && problem.hard;
    scales.bad_label = scales.has_label && (scales.label < 0 || scales.label >= problem.classes);
  }
  A temperature = static_cast<A>(problem.temperature);
  if (problem.row_temperature) {
    temperature = static_cast<const A*>(problem.row_temperature)[row];
    // A device cannot raise: a temperature that is not positive makes its row NaN.
    if (!(temperature > A(0))) temperature = static_cast<A>(__builtin_nan(""));
  }
  scales.inverse_temperature = A(1) / temperature;
  scales.soft = problem.scale_by_t2 ? temperature * temperature : A(1);
  if (problem.row_weight) scales.soft *= static_cast<const A*>(problem.row_weight)[row];
  scales.soft_gradient = scales.soft * static_cast<A>(problem.kl_weight / divisor.soft);
  scales.hard_gradient = static_cast<A>(problem.ce_weight / divisor.hard);
  return scales;
}

// kl_weight * soft + ce_weight * hard, where a weight of 0 silences even an infinite term.
KD_HOST_DEVICE double weighted_loss(const SoftenedKL& problem, double soft, double hard) {
  return (problem.kl_weight == 0 ? 0.0 : problem.kl_weight * soft) +
         (problem.ce_weight == 0 ? 0.0 : problem.ce_weight * hard);
}

}  // namespace kd
