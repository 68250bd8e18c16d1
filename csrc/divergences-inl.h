// The divergences, one struct each: what one class adds to the loss of a row, and the derivatives by log q and log p.
//
// No include guard: included once per instruction set, inside its namespace, by CPU kernels, and once by CUDA kernels.
// The includer defines KD_INLINE and, for V (a vector of lanes, or a number), select(condition, a, b) and log(x).
//
//     value       the class's term of D(p, q)
//     by_log_q    q dD/dq. The student's logits get  (by_log_q - q * sum) / T,  `sum` being its sum over the classes.
//     by_log_p    p dD/dp, which a target source turns into the gradient of what it was made from
//
// A term common to all classes of by_log_q, times q, cancels in the student's gradient and is left out.
// 0 * log 0 = 0, and log 0 = -inf never meets a product: select() keeps it out. It asks p == 0, not p > 0, so that NaN
// stays NaN.

// One class: student probability q, target probability p with its smoothing, and without (`made`, what the source made).
template <class V>
struct Terms {
  V p, log_p, q, log_q, made;
};

// sum p (log p - log q). Hinton, Vinyals, Dean 2015, section 2.
template <class A>
struct ForwardKL {
  static constexpr bool minus_p = true;  // by_log_q = -p, so that its sum is -(sum p), known before the classes are swept

  template <class V>
  KD_INLINE V value(const Terms<V>& c) const {
    return select(c.p == A(0), V{}, c.p * (c.log_p - c.log_q));
  }
  template <class V>
  KD_INLINE V by_log_q(const Terms<V>& c) const {
    return -c.p;
  }
  template <class V>
  KD_INLINE V by_log_p(const Terms<V>& c) const {
    return select(c.p == A(0), V{}, c.p * (c.log_p - c.log_q + A(1)));
  }
};

// -sum p log q.
template <class A>
struct CrossEntropy {
  static constexpr bool minus_p = true;

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
  static constexpr bool minus_p = false;

  template <class V>
  KD_INLINE V value(const Terms<V>& c) const {
    return select(c.q == A(0), V{}, c.q * (c.log_q - c.log_p));
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

// beta KL(p || m) + (1 - beta) KL(q || m),  m = beta p + (1 - beta) q. The logarithm is of a ratio: where p and q are
// nearly equal, a difference of two logarithms would lose the value. Lin 1991; Agarwal et al. 2024 (GKD), eq. 1.
template <class A>
struct JensenShannon {
  static constexpr bool minus_p = false;
  A beta;

  template <class V>
  KD_INLINE V value(const Terms<V>& c) const {
    return by_log_p(c) + by_log_q(c);
  }
  template <class V>
  KD_INLINE V by_log_q(const Terms<V>& c) const {
    const V share = (A(1) - beta) * c.q;
    return select(share == A(0), V{}, share * log(c.q / (beta * c.p + share)));
  }
  template <class V>
  KD_INLINE V by_log_p(const Terms<V>& c) const {
    const V share = beta * c.p;
    return select(share == A(0), V{}, share * log(c.p / (share + (A(1) - beta) * c.q)));
  }
};
