// The target sources, one struct each, with the same three functions:
//
//     weight      e(t), the unnormalised probability of a class; p = e * inverse_sum
//     log_prob    log p of a class
//     gradient    d loss / d t from by_log_p (see divergences-inl.h) and the sum of by_log_made over the classes
//
// `normalised` says that p comes from a softmax over the row: its sum is 1 and its gradient goes through the sum.
// No include guard, for the reason given in divergences-inl.h; V further needs exp(x).

// What a source knows of its row.
template <class A>
struct TargetRow {
  A max;                  // largest logit of the row (normalised sources)
  A inverse_temperature;  // of the target: 1 unless it is given as logits
  A log_sum;              // log of the sum of weights (normalised sources)
  A inverse_sum;          // 1 / sum of weights; 1 where the source is not normalised
};

// The terms of one class from its weight. `smoothed`: eps is added to p, and only then is a logarithm taken. A constant
// on the CPU, where a branch would keep the loop from being one of vectors; a uniform branch on the GPU.
template <class Source, class V, class A>
KD_INLINE Terms<V> class_terms(bool smoothed, V t, V weight, V eps, const TargetRow<A>& row, V q, V log_q) {
  const V made = weight * row.inverse_sum;
  if (!smoothed) return {made, Source::log_prob(t, row), q, log_q, made};
  return {made + eps, log(made + eps), q, log_q, made};
}

// made * dD/dmade: the loss knows p = made + eps.
template <class V>
KD_INLINE V by_log_made(bool smoothed, const Terms<V>& c, V by_log_p) {
  if (!smoothed) return by_log_p;
  return select(c.made == 0, V{}, by_log_p * (c.made / c.p));
}

// Teacher logits: p = softmax(t / T).
struct LogitsTarget {
  static constexpr bool normalised = true;
  static constexpr float absent = -HUGE_VALF;  // t of no class at all

  template <class V, class A>
  static KD_INLINE V weight(V t, const TargetRow<A>& row) {
    return exp((t - row.max) * row.inverse_temperature);
  }
  template <class V, class A>
  static KD_INLINE V log_prob(V t, const TargetRow<A>& row) {
    return (t - row.max) * row.inverse_temperature - row.log_sum;
  }
  template <class V, class A>
  static KD_INLINE V gradient(bool smoothed, const Terms<V>& c, V by_log_p, A sum, const TargetRow<A>& row) {
    return (by_log_made(smoothed, c, by_log_p) - c.made * sum) * row.inverse_temperature;
  }
};

// Log-probabilities, already softened: p = exp(t).
struct LogProbsTarget {
  static constexpr bool normalised = false;
  static constexpr float absent = -HUGE_VALF;

  template <class V, class A>
  static KD_INLINE V weight(V t, const TargetRow<A>&) {
    return exp(t);
  }
  template <class V, class A>
  static KD_INLINE V log_prob(V t, const TargetRow<A>&) {
    return t;
  }
  template <class V, class A>
  static KD_INLINE V gradient(bool smoothed, const Terms<V>& c, V by_log_p, A, const TargetRow<A>&) {
    return by_log_made(smoothed, c, by_log_p);
  }
};

// Probabilities, already softened: p = t. A class with p = 0 gets gradient 0.
struct ProbsTarget {
  static constexpr bool normalised = false;
  static constexpr float absent = 0;

  template <class V, class A>
  static KD_INLINE V weight(V t, const TargetRow<A>&) {
    return t;
  }
  template <class V, class A>
  static KD_INLINE V log_prob(V t, const TargetRow<A>&) {
    return log(t);
  }
  template <class V, class A>
  static KD_INLINE V gradient(bool, const Terms<V>& c, V by_log_p, A, const TargetRow<A>&) {
    return select(c.p == 0, V{}, by_log_p / c.p);
  }
};
