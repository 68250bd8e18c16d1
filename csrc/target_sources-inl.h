// The target sources, one struct each. Those that read probabilities or logits as they are have the same three functions:
//
//     weight       e(t), the unnormalized probability of a class; p = e * inverse_sum
//     log_ratio    log p - log q of a class
//     gradient     d loss / d t, for a normalized source times T, from by_log_p (see divergences-inl.h)
//
// `normalized`: p is a softmax over the row, so that its sum is 1 and its gradient goes through the sum.
// The other sources rearrange the weights of teacher logits (permuted, adjusted) or need no teacher (label). Each is a path of
// its own, since the way to do it depends on where a kernel keeps a row.
// No include guard, for the reason given in divergences-inl.h; V further needs exp(x) and exp_product(x, y) = e^(x y).

// A softmax over a row of logits: p = exp((x - max) / T) * inverse_sum.
template <class A>
struct Softmax {
  A max;
  A inverse_temperature;
  A inverse_sum;

  template <class V>
  KD_INLINE V weight(V x) const {
    return exp_product(x - max, inverse_temperature);
  }
};

// Teacher logits: p = softmax(t / T).
struct LogitsTarget {
  static constexpr bool normalized = true;

  template <class V, class A>
  static KD_INLINE V weight(V t, const Softmax<A>& target) {
    return target.weight(t);
  }

  // From the difference of the logits: where p and q are nearly equal, that of their logarithms would be all rounding.
  template <class V, class A>
  static KD_INLINE V log_ratio(V t, const Softmax<A>& target, V z, const Softmax<A>& student, A log_sums, V) {
    return ((t - target.max) - (z - student.max)) * student.inverse_temperature - log_sums;
  }

  template <class V, class A>
  static KD_INLINE V gradient(V by_log_made, V, const Terms<V>& c, A sum) {
    return by_log_made - c.made * sum;
  }
};

// Log-probabilities, already softened: p = exp(t).
struct LogProbsTarget {
  static constexpr bool normalized = false;

  template <class V, class A>
  static KD_INLINE V weight(V t, const Softmax<A>&) {
    return exp(t);
  }
  template <class V, class A>
  static KD_INLINE V log_ratio(V t, const Softmax<A>&, V, const Softmax<A>&, A, V log_q) {
    return t - log_q;
  }
  template <class V, class A>
  static KD_INLINE V gradient(V by_log_made, V, const Terms<V>&, A) {
    return by_log_made;
  }
};

// Probabilities, already softened: p = t. A class with p = 0 gets gradient 0.
struct ProbsTarget {
  static constexpr bool normalized = false;

  template <class V, class A>
  static KD_INLINE V weight(V t, const Softmax<A>&) {
    return t;
  }
  template <class V, class A>
  static KD_INLINE V log_ratio(V t, const Softmax<A>&, V, const Softmax<A>&, A, V log_q) {
    return log(t) - log_q;
  }
  template <class V, class A>
  static KD_INLINE V gradient(V, V by_log_p, const Terms<V>& c, A) {
    return select(c.p == A(0), V{}, by_log_p / c.p);
  }
};

// One row's two distributions, from which the terms of its classes follow. `smoothed`: eps is added to p, and only then
// is a logarithm taken. A constant on the CPU, where a branch would keep a loop from being one of vectors; a uniform
// branch on the GPU.
template <class A, class Source>
struct RowPair {
  Softmax<A> student;
  Softmax<A> target;  // max 0, temperature 1 and sum 1 where the source is not normalized
  A student_log_sum;
  // Logarithm of the ratio of the target's sum to the student's. The difference of two logarithms would have the rounding
  // errors of both, which are those of log C and which the factor T^2 of the loss makes large.
  A log_sums;
  Source source = {};

  template <class V>
  KD_INLINE Terms<V> terms(bool smoothed, V z, V student_weight, V t, V target_weight, V eps) const {
    const V q = student_weight * student.inverse_sum, made = target_weight * target.inverse_sum;
    const V log_q = (z - student.max) * student.inverse_temperature - student_log_sum;
    const V difference = excess(student_weight, target_weight);
    if (smoothed) return {made + eps, q, difference - eps, log_q, log(made + eps) - log_q, made};
    return {made, q, difference, log_q, source.log_ratio(t, target, z, student, log_sums, log_q), made};
  }

  // The same, of a class whose weights were not kept.
  template <class V>
  KD_INLINE Terms<V> terms(bool smoothed, V z, V t, V eps) const {
    return terms(smoothed, z, student.weight(z), t, source.weight(t, target), eps);
  }

  // q - p = (student_weight * ratio - target_weight) * target.inverse_sum, or the same with the roles exchanged. It is 0
  // where the rows are equal, which a difference of two products is not once the compiler has fused one of them into it.
  // The row of the larger sum is the one that is scaled, so that p - q has the same bits with the other sign.
  template <class V>
  KD_INLINE V excess(V student_weight, V target_weight) const {
    const bool exchanged = student.inverse_sum > target.inverse_sum;
    const A larger = exchanged ? target.inverse_sum : student.inverse_sum;  // the inverse of the larger sum
    const A smaller = exchanged ? student.inverse_sum : target.inverse_sum;
    const V scaled = exchanged ? target_weight : student_weight, kept = exchanged ? student_weight : target_weight;
    return (scaled * (larger / smaller) - kept) * (exchanged ? -smaller : smaller);
  }

  // T d loss / d z; `sum`: of by_log_q over the classes.
  template <class V, class D>
  KD_INLINE V student_gradient(const Terms<V>& c, const D& divergence, A sum) const {
    if (D::minus_p) return c.excess - c.q * (sum + A(1));
    return divergence.by_log_q(c) - c.q * sum;
  }

  // made * dD/dmade: the loss knows p = made + eps.
  template <class V>
  KD_INLINE V by_log_made(bool smoothed, const Terms<V>& c, V by_log_p) const {
    if (!smoothed) return by_log_p;
    return select(c.made == A(0), V{}, by_log_p * (c.made / c.p));
  }

  // d loss / d t, for normalized sources times T; `sum`: of by_log_made over the classes, for these.
  template <class V, class D>
  KD_INLINE V gradient(bool smoothed, const Terms<V>& c, const D& divergence, A sum) const {
    if (D::minus_q && source.normalized && !smoothed) return -c.excess;
    V by_log_p = divergence.by_log_p(c);
    if (!source.normalized) by_log_p += divergence.left_out * c.p;
    return source.gradient(by_log_made(smoothed, c, by_log_p), by_log_p, c, sum);
  }
};
