// Sources and divergences of path general, chosen at run time, once per chunk: all threads take the same branches, which cost
// little beside a chunk's exponentials. So one kernel serves them all, which keeps the library small and its compilation
// short.
#pragma once
#include <cmath>

#include "cuda/row_formulas.cuh"
#include "row_loss.h"

namespace kd {
namespace {

// The sources logits, log_probs and probs in one (target_sources-inl.h). Of the last two, `target` has max 0, temperature 1 and
// sum 1.
struct GivenTarget {
  TargetSource source = TargetSource::logits;
  bool normalized = true;

  GivenTarget() = default;
  KD_DEVICE explicit GivenTarget(TargetSource source) : source(source), normalized(source == TargetSource::logits) {}

  // What reads as the teacher beyond the last class.
  KD_DEVICE float absent() const { return is_probs() ? 0 : -HUGE_VALF; }
  KD_DEVICE bool is_probs() const { return source == TargetSource::probs; }

  template <class A>
  KD_DEVICE A weight(A t, const Softmax<A>& target) const {
    return is_probs() ? t : target.weight(t);
  }

  template <class A>
  KD_DEVICE A log_ratio(A t, const Softmax<A>& target, A z, const Softmax<A>& student, A log_sums, A log_q) const {
    // As LogitsTarget, of rows whose temperatures may differ; 0 where they are equal.
    if (normalized) {
      const A ratio = target.inverse_temperature / student.inverse_temperature;
      return ((t - target.max) * ratio - (z - student.max)) * student.inverse_temperature - log_sums;
    }
    return (is_probs() ? log(t) : t) - log_q;
  }

  template <class A>
  KD_DEVICE A gradient(A by_log_made, A by_log_p, const Terms<A>& c, A sum) const {
    if (normalized) return LogitsTarget::gradient(by_log_made, by_log_p, c, sum);
    return is_probs() ? ProbsTarget::gradient(by_log_made, by_log_p, c, sum) : by_log_made;
  }
};

// Calls body with the divergence of a soft term.
template <class A, class Body>
KD_DEVICE void with_divergence(const SoftTerm& soft, const Body& body) {
  switch (soft.divergence) {
    case Divergence::forward:
      if (soft.skew > 0) return body(SkewedKL<A, false>::of(soft));
      return body(ForwardKL<A>::of(soft));
    case Divergence::reverse:
      if (soft.skew > 0) return body(SkewedKL<A, true>::of(soft));
      return body(ReverseKL<A>::of(soft));
    case Divergence::jsd: return body(JensenShannon<A>::of(soft));
    case Divergence::cross_entropy: return body(CrossEntropy<A>::of(soft));
    case Divergence::tvd: return body(TotalVariation<A>::of(soft));
  }
}

}  // namespace
}  // namespace kd
