// The divergence between two distributions over two events, the label's class and all others, from their log-odds: the hard
// term of source decoupled. Host and device.
//
//     d = log q_y - log(1 - q_y) of the student, e = log p_y - log(1 - p_y) of the teacher
//     log q_y = -softplus(-d)                  log(1 - q_y) = -softplus(d)
//     value = p_y (log p_y - log q_y) + (1 - p_y) (log(1 - p_y) - log(1 - q_y))
//     d value / d d = q_y - p_y                d value / d e = p_y (1 - p_y) (e - d)
#pragma once
#include <cmath>

#include "host_device.h"

namespace kd {

template <class A>
struct BinaryKL {
  A value, by_student, by_teacher;  // by_*: by the log-odds
};

// Probability and complement of log-odds, and minus their logarithms.
template <class A>
struct LogOdds {
  A yes, no, minus_log_yes, minus_log_no;

  KD_HOST_DEVICE explicit LogOdds(A odds) {
    const A small = std::exp(-std::abs(odds)), above = A(1) / (A(1) + small), below = small * above, log = std::log1p(small);
    yes = odds < A(0) ? below : above;
    no = odds < A(0) ? above : below;
    minus_log_yes = odds < A(0) ? log - odds : log;
    minus_log_no = odds < A(0) ? log : log + odds;
  }
};

// `gap`: e - d, from differences of logits where the rows are nearly equal.
template <class A>
KD_HOST_DEVICE BinaryKL<A> binary_kl(A d, A e, A gap) {
  if (!(gap == gap) && d == e) gap = 0;  // both infinite
  const LogOdds<A> q(d), p(e);
  const A shrunk = std::expm1(-std::abs(gap));
  A by_yes = q.minus_log_yes - p.minus_log_yes, by_no = q.minus_log_no - p.minus_log_no;
  if (std::abs(gap) < A(1)) {  // their differences would be all rounding
    const A grown = -shrunk / (A(1) + shrunk);
    by_yes = std::log1p(p.no * (gap < A(0) ? shrunk : grown));
    by_no = std::log1p(p.yes * (gap < A(0) ? grown : shrunk));
  }
  BinaryKL<A> found;
  found.value = (p.yes == A(0) ? A(0) : p.yes * by_yes) + (p.no == A(0) ? A(0) : p.no * by_no);
  // q_y - p_y, exactly 0 where the rows are equal.
  found.by_student = gap < A(0) ? -(q.yes * p.no * shrunk) : p.yes * q.no * shrunk;
  const A variance = p.yes * p.no;
  found.by_teacher = variance == A(0) ? A(0) : variance * gap;
  return found;
}

}  // namespace kd
