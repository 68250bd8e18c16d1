// The divergences, one struct each: what one class adds to the loss of a row, and the derivatives by log q and log p.
//
// No include guard: included once per instruction set, inside its namespace, by CPU kernels, and once by CUDA kernels.
// The includer defines KD_INLINE and, for V (a vector of lanes, or a number), select(condition, a, b) and log(x).
//
//     of          the divergence with the parameters of a soft term (row_loss.h)
//     value       the class's term of D(p, q)
//     by_log_q    q dD/dq. The student's logits get  (by_log_q - q * sum) / T,  `sum` being its sum over the classes.
//     by_log_p    p dD/dp, less left_out * p: a target source turns it into the gradient of what it was made from
//
// A multiple of p in by_log_p cancels in the gradient of a softmax, and so does one of q in by_log_q: they are left out
// where they may be, so that equal distributions get a gradient of exactly 0. Sums that are known before any class is
// seen are not taken, for the same reason:
//
//     minus_p     by_log_q is -p, and its sum -(sum of p)
//     minus_q     by_log_p is -q, and its sum -1
//
// 0 * log 0 = 0, and log 0 = -inf never meets a product: select() keeps it out. It asks p == 0, not p > 0, so that NaN
// stays NaN.

// One class: student probability q, target probability p with its smoothing, and without (`made`, what the source made).
template <class V>
struct Terms {
  V p, q;
  V excess;     // q - p
  V log_q;
  V log_ratio;  // log p - log q
  V made;
};

// log(x / mean), excess = x - mean. Where x and mean are nearly equal it is log(1 + excess / mean): the rounding of x / mean
// would be as large as its distance from 1. log(1 + e) = e log(u) / (u - 1) for u = 1 + e as rounded (Kahan).
template <class A, class V>
KD_INLINE V log_over(V x, V mean, V excess) {
  const V relative = excess / mean;
  const auto near = relative * relative < A(0.25);
  const V u = select(near, relative + A(1), x / mean), distance = u - A(1), log_u = log(u);
  return select(near, select(distance == A(0), relative, log_u * (relative / distance)), log_u);
}

// sum p (log p - log q). Hinton, Vinyals, Dean 2015, section 2.
template <class A>
struct ForwardKL {
  static constexpr bool minus_p = true, minus_q = false;
  static constexpr A left_out = 1;

  static KD_INLINE ForwardKL of(const SoftTerm&) { return {}; }

  template <class V>
  KD_INLINE V value(const Terms<V>& c) const {
    return select(c.p == A(0), V{}, c.p * c.log_ratio);
  }
  template <class V>
  KD_INLINE V by_log_q(const Terms<V>& c) const {
    return -c.p;
  }
  template <class V>
  KD_INLINE V by_log_p(const Terms<V>& c) const {
    return value(c);
  }
};

// -sum p log q.
template <class A>
struct CrossEntropy {
  static constexpr bool minus_p = true, minus_q = false;
  static constexpr A left_out = 0;

  static KD_INLINE CrossEntropy of(const SoftTerm&) { return {}; }

  template <class V>
  KD_INLINE V value(const Terms<V>& c) const {
    return select(c.p == A(0), V{}, -c.p * c.log_q);
  }
  template <class V>
  KD_INLINE V by_log_q(const Terms<V>& c) const {
    return -c.p;
  }
  template <class V>
  KD_INLINE V by_log_p(const Terms<V>& c) const {
    return value(c);
  }
};

// sum q (log q - log p).
template <class A>
struct ReverseKL {
  static constexpr bool minus_p = false, minus_q = true;
  static constexpr A left_out = 0;

  static KD_INLINE ReverseKL of(const SoftTerm&) { return {}; }

  template <class V>
  KD_INLINE V value(const Terms<V>& c) const {
    return select(c.q == A(0), V{}, -c.q * c.log_ratio);
  }
  template <class V>
  KD_INLINE V by_log_q(const Terms<V>& c) const {
    return value(c);
  }
  template <class V>
  KD_INLINE V by_log_p(const Terms<V>& c) const {
    return -c.q;
  }
};

// beta KL(p || m) + (1 - beta) KL(q || m),  m = beta p + (1 - beta) q. Lin 1991; Agarwal et al. 2024 (GKD), eq. 1.
template <class A>
struct JensenShannon {
  static constexpr bool minus_p = false, minus_q = false;
  static constexpr A left_out = 0;
  A beta;

  static KD_INLINE JensenShannon of(const SoftTerm& soft) { return {static_cast<A>(soft.beta)}; }

  template <class V>
  KD_INLINE V value(const Terms<V>& c) const {
    return by_log_p(c) + by_log_q(c);
  }
  template <class V>
  KD_INLINE V by_log_q(const Terms<V>& c) const {
    const V share = (A(1) - beta) * c.q, mean = beta * c.p + share;
    return select(share == A(0), V{}, share * log_over<A>(c.q, mean, beta * c.excess));
  }
  template <class V>
  KD_INLINE V by_log_p(const Terms<V>& c) const {
    const V share = beta * c.p, mean = share + (A(1) - beta) * c.q;
    return select(share == A(0), V{}, share * log_over<A>(c.p, mean, (beta - A(1)) * c.excess));
  }
};

// KL(x || m), m = skew x + (1 - skew) y: forward with x = p and y = q, reverse with x = q and y = p. Lee 2001; Ko et al. 2024
// (DistiLLM), section 3.1. With the logarithm of either taken as its own,
//
//     x dD/dx = x log(x / m) + (1 - skew) x y / m,    y dD/dy = -(1 - skew) x y / m
//
// and less (1 - skew) x in the one and plus (1 - skew) y in the other, x y / m becomes a multiple of y - x.
template <class A, bool reverse>
struct SkewedKL {
  static constexpr bool minus_p = false, minus_q = false;
  A skew;
  A left_out;

  static KD_INLINE SkewedKL of(const SoftTerm& soft) {
    const A skew = static_cast<A>(soft.skew);
    return {skew, reverse ? skew - A(1) : A(1) - skew};
  }

  template <class V>
  KD_INLINE V value(const Terms<V>& c) const {
    const V x = reverse ? c.q : c.p;
    return select(x == A(0), V{}, x * log_over<A>(x, mean(c), (A(1) - skew) * -further(c)));
  }
  template <class V>
  KD_INLINE V by_log_q(const Terms<V>& c) const {
    return reverse ? by_log_x(c) : by_log_y(c);
  }
  template <class V>
  KD_INLINE V by_log_p(const Terms<V>& c) const {
    return reverse ? by_log_y(c) : by_log_x(c);
  }

 private:
  template <class V>
  KD_INLINE V mean(const Terms<V>& c) const {
    return reverse ? skew * c.q + (A(1) - skew) * c.p : skew * c.p + (A(1) - skew) * c.q;
  }
  // y - x.
  template <class V>
  static KD_INLINE V further(const Terms<V>& c) {
    return reverse ? -c.excess : c.excess;
  }
  template <class V>
  KD_INLINE V relative(const Terms<V>& c) const {
    const V m = mean(c);
    return select(m == A(0), V{}, further(c) / m);
  }
  template <class V>
  KD_INLINE V by_log_x(const Terms<V>& c) const {
    return value(c) + (reverse ? c.q : c.p) * (relative(c) * (skew * (A(1) - skew)));
  }
  template <class V>
  KD_INLINE V by_log_y(const Terms<V>& c) const {
    return (reverse ? c.p : c.q) * (relative(c) * ((A(1) - skew) * (A(1) - skew)));
  }
};

// Total variation, 1/2 sum |p - q|. Where p = q its derivative is taken as 0.
template <class A>
struct TotalVariation {
  static constexpr bool minus_p = false, minus_q = false;
  static constexpr A left_out = 0;

  static KD_INLINE TotalVariation of(const SoftTerm&) { return {}; }

  template <class V>
  KD_INLINE V value(const Terms<V>& c) const {
    return select(c.excess < A(0), -c.excess, c.excess) * A(0.5);
  }
  template <class V>
  KD_INLINE V by_log_q(const Terms<V>& c) const {
    return c.q * slope(c);
  }
  template <class V>
  KD_INLINE V by_log_p(const Terms<V>& c) const {
    return -(c.p * slope(c));
  }

 private:
  template <class V>
  static KD_INLINE V slope(const Terms<V>& c) {
    const V half = V{} + A(0.5);
    return select(c.excess < A(0), -half, select(c.excess > A(0), half, V{}));
  }
};
