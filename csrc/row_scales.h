// What one row is multiplied by: temperature, weights, and the counts its reduction divides by. Host and device.
#pragma once
#include <cstdint>

#include "half.h"
#include "host_device.h"
#include "row_loss.h"

namespace kd {

// What a group's terms are divided by: the number of their rows, or what was given. An empty group is divided by 1 and stays 0.
struct Divisors {
  double soft = 1;
  double hard = 1;
};

// `soft`, `hard`: rows of the group that either term counts.
KD_HOST_DEVICE Divisors divisors_by(const RowLoss& problem, int64_t soft, int64_t hard) {
  Divisors divisor;
  divisor.soft = soft > 0 ? static_cast<double>(soft) : 1.0;
  divisor.hard = hard > 0 ? static_cast<double>(hard) : 1.0;
  if (problem.reduction == Reduction::elementmean) divisor.soft *= static_cast<double>(problem.compared_classes());
  return divisor;
}

// From the counts in memory, if the reduction needs counts.
KD_HOST_DEVICE Divisors divisors(const RowLoss& problem, int64_t group) {
  if (!problem.is_mean()) return {};
  if (problem.denominators) {
    const double given = problem.denominators[group];
    Divisors divisor = divisors_by(problem, 1, 1);
    // A device cannot raise: what is not positive makes its group NaN.
    divisor.hard = given > 0 ? given : static_cast<double>(__builtin_nan(""));
    divisor.soft *= divisor.hard;
    return divisor;
  }
  const int64_t all = problem.group_rows();
  const int64_t* counts = static_cast<const int64_t*>(problem.counts);
  return divisors_by(problem, problem.mask || problem.asks_label() ? counts[group] : all,
                     problem.hard.target ? counts[problem.groups + group] : all);
}

template <class A>
struct RowScales {
  bool has_soft;          // the row is not masked out
  bool has_label;         // the row has a label that is not ignored
  bool has_hard;          // its hard term counts, and is wanted
  bool bad_label;         // a label outside [0, classes): the row becomes NaN
  int64_t label;
  A inverse_temperature;
  A soft;                 // w T^2: what the divergence is multiplied by in the row's loss
  A soft_gradient;        // what d(divergence)/d(log q, log p) is multiplied by, before the chain through the logits
  A hard_gradient;        // what d(cross entropy)/d(logits) is multiplied by
};

template <class A>
KD_HOST_DEVICE RowScales<A> row_scales(const RowLoss& problem, int64_t row, const Divisors& divisor) {
  RowScales<A> scales{};
  scales.has_soft = problem.counts_row(row);
  if (problem.hard.target) {
    scales.label = problem.label_of(row);
    scales.has_label = problem.has_label(row);
    scales.bad_label = scales.has_label && (scales.label < 0 || scales.label >= problem.classes);
  }
  scales.has_hard = problem.counts_hard(row) && problem.hard.wanted;
  A temperature = static_cast<A>(problem.soft.temperature);
  if (problem.soft.row_temperature) {
    temperature = static_cast<const A*>(problem.soft.row_temperature)[row];
    // A device cannot raise: a temperature that is not positive makes its row NaN.
    if (!(temperature > A(0))) temperature = static_cast<A>(__builtin_nan(""));
  }
  scales.inverse_temperature = A(1) / temperature;
  scales.soft = problem.soft.scale_by_t2 ? temperature * temperature : A(1);
  if (problem.row_weight) scales.soft *= static_cast<const A*>(problem.row_weight)[row];
  scales.soft_gradient = scales.soft * static_cast<A>(problem.soft.weight / divisor.soft);
  scales.hard_gradient = static_cast<A>(problem.hard.weight / divisor.hard);
  return scales;
}

// What a float16 gradient of a row is multiplied by before it is stored, a power of two; its inverse is the row's unit.
//
// The gradient of a mean is small: of 256 rows of 32000 classes most entries are below 2^-24, which float16 rounds to 0, and
// a loss scale would be applied too late. No entry is larger than `most`, which becomes 2^12 to 2^13: entries down to 2^-26
// of it keep all their digits, and there is room for targets that sum to more than 1. The backward pass multiplies by the
// upstream gradient and the unit together. 1 where `most` is infinite or NaN.
template <class A>
KD_HOST_DEVICE A float16_factor(A most) {
  const uint32_t exponent = float_bits(static_cast<float>(most)) >> 23;  // of a number >= 0; 255: infinity or NaN
  if (exponent >= 255) return A(1);
  const uint32_t inverted = 12 + 2 * 127 - exponent;
  return static_cast<A>(float_from_bits((inverted < 227 ? inverted : 227) << 23));  // at most 2^100, for rows of zeros
}

// kl_weight * soft + ce_weight * hard, where a term of weight 0 adds 0 even if it is infinite.
KD_HOST_DEVICE double weighted_loss(const RowLoss& problem, double soft, double hard) {
  return (problem.soft.weight == 0 ? 0.0 : problem.soft.weight * soft) +
         (problem.hard.weight == 0 ? 0.0 : problem.hard.weight * hard);
}

}  // namespace kd
