// Terms whose target depends on the label alone: the hard label of every loss, virtual teachers, smoothed labels.
//
// With `on` at the label and `off` at each of the others, sum p = 1, the cross entropy of softmax(z / T) needs three numbers of
// a row: log sum exp(z / T), z_label and the sum of the other z. No target is built.
#pragma once
#include "cuda/chunk.cuh"
#include "cuda/launch.h"
#include "cuda/row_formulas.cuh"
#include "cuda/row_work.cuh"
#include "cuda/simt.cuh"
#include "row_loss.h"

namespace kd {
namespace {

// z of the label and the sum of the others, both less the largest z.
template <class A>
struct LabelSums {
  A at_label = 0, elsewhere = 0;

  KD_DEVICE void add(int label, bool wants_elsewhere, A max, Chunk chunk, int classes, const A (&z)[chunk_classes]) {
    KD_UNROLL for (int e = 0; e < chunk_classes; ++e) {
      if (chunk.of(e) == label) at_label += z[e] - max;
      else if (wants_elsewhere && chunk.of(e) < classes) elsewhere += z[e] - max;
    }
  }
};

template <class A>
struct LabelTerm {
  A on, off;
  A scale;      // what (q - p) is multiplied by in the gradient
  bool weighs;  // false: the gradient is 0, even where it would be NaN

  KD_DEVICE void add_gradient(int label, const Softmax<A>& student, Chunk chunk, const A (&z)[chunk_classes],
                              A (&gradient)[chunk_classes]) const {
    if (!weighs) return;
    const A inverse_sum = student.inverse_sum * scale, wanted_there = on * scale, wanted_elsewhere = off * scale;
    KD_UNROLL for (int e = 0; e < chunk_classes; ++e) {
      const A wanted = chunk.of(e) == label ? wanted_there : wanted_elsewhere;
      gradient[e] += student.weight(z[e]) * inverse_sum - wanted;
    }
  }

  // A class of target 0 adds nothing, even where its logit is -inf.
  KD_DEVICE A cross_entropy(A log_sum, A inverse_temperature, A at_label, A elsewhere) const {
    A value = log_sum;
    if (on != A(0)) value -= on * at_label * inverse_temperature;
    if (off != A(0)) value -= off * elsewhere * inverse_temperature;
    return value;
  }
};

// The label of the data, at temperature 1, smoothed over `classes` as in torch.nn.functional.cross_entropy.
template <class A>
KD_DEVICE LabelTerm<A> hard_term(const RowLoss& problem, const RowWork<A>& work, A classes) {
  const A smoothing = static_cast<A>(problem.hard.smoothing), off = smoothing / classes;
  return {A(1) - smoothing + off, off, work.scales.hard_gradient, work.hard_weighs(problem)};
}

// Its value, from the sums of LabelSums.
template <class A>
KD_DEVICE A hard_value(const LabelTerm<A>& term, const RowWork<A>& work, A log_sum, A at_label, A elsewhere) {
  if (!work.scales.has_hard) return A(0);
  return work.scales.bad_label ? A(NAN) : term.cross_entropy(log_sum, A(1), at_label, elsewhere);
}

// Source label, and rows of source adjusted that are replaced by it.
template <class A>
KD_DEVICE LabelTerm<A> soft_label_term(const RowLoss& problem, const RowWork<A>& work) {
  return {static_cast<A>(problem.label.on), static_cast<A>(problem.label.off),
          work.scales.soft_gradient * work.inverse_temperature, work.soft_weighs(problem)};
}

}  // namespace
}  // namespace kd
