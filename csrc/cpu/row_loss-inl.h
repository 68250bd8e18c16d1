// Softened KL on the CPU, for one instruction set: a range of rows, loss and gradients.
//
// What is not a whole vector of the arithmetic type is brought into scratch memory and padded with "no class" (logit -inf,
// probability 0), so that every sweep below is a plain loop over vectors and no dtype or layout is known to it:
//
//     1  largest logit of either row                       elements of another type are converted here
//     2  exp of both rows, kept, and their sums            the only sweep with an exponential
//     3  sums the gradients need                           reverse KL, Jensen-Shannon, gradients of teacher logits
//     4  loss and gradients
//
// Forward KL of two softmaxes, the commonest, needs no third sweep, and takes the hard label along in the two it has
// (cpu/forward_rows-inl.h). A target that follows from the label alone takes two sweeps (cpu/label_rows-inl.h); so does the
// hard label, at temperature 1. Sums are taken in blocks, so that their rounding error grows with the number of blocks and
// not of classes. Scratch is a handful of rows: it stays in the L1 or L2 cache. Sweep 2 computes and hardly reads: it asks
// for the next row, which sweep 1 would have to wait for.
// After highway's pattern: no intrinsics, no #if; included by cpu/row_loss_kernel.cpp through cpu/each_isa.h.

#include "divergences-inl.h"
#include "target_sources-inl.h"

#include "cpu/row_io-inl.h"
#include "cpu/row_sweeps-inl.h"

// `tile` rows are loaded together. One, where the classes of a row are neighbours; else neighbouring rows, one cache
// line wide if that stays within the L1 cache, so that strided logits are read line by line.
inline int64_t tile_rows(const RowLoss& problem) {
  if (problem.student.class_stride == 1 && (!problem.teacher.data || problem.teacher.class_stride == 1)) return 1;
  return std::max<int64_t>(1, std::min<int64_t>(16, 4096 / problem.classes));
}

// Whether the student's gradient is too large for a cache to keep until it is read: it is written past the caches then, which
// costs no read of what it overwrites and drives nothing out.
inline bool is_large_gradient(const RowLoss& problem) {
  constexpr int64_t most_cached = int64_t(32) << 20;  // bytes
  return problem.grad_student.data && !problem.is_double() &&
         problem.rows() * problem.classes * static_cast<int64_t>(sizeof(float)) > most_cached;
}

// One row of everything.
template <class A>
struct Lines {
  int64_t number;
  Line<A> student, teacher, grad_student, grad_teacher;
  A student_max, teacher_max;  // of the logits
  Elements grad_elements;      // where the student's gradient belongs, if a sweep may write it there
  bool large_gradient;         // of all rows: see is_large_gradient
  Line<A> student_scratch;
  A* teacher_weight;  // scratch, padded
  A* spare;           // scratch, padded: weights of the hard term, weights before they are permuted
  uint32_t* order;    // scratch, source permuted: for each class that whose weight it gets
  Upcoming next_student, next_teacher;

  // The student's weights lie where its gradient will, for the sake of the caches, unless that is to be kept from them or
  // has something in it already.
  KD_INLINE Line<A> student_weight(bool apart) const { return grad_student && !apart ? grad_student : student_scratch; }
};

#include "cpu/label_rows-inl.h"

#include "cpu/forward_rows-inl.h"

// Class c gets the weight of class order[c].
template <class A>
KD_INLINE void permute_weights(const Lines<A>& row, int64_t classes) {
  std::memcpy(row.spare, row.teacher_weight, classes * sizeof(A));
  for (int64_t c = 0; c < classes; ++c) row.teacher_weight[c] = row.spare[row.order[c]];
}

// D(p, q) of one row; its gradients are written to row.grad_*, added to the student's where `add`.
template <class A, class Source, bool smoothed, class D, bool permuted = false>
KD_INLINE A soft_row(const RowLoss& problem, const RowScales<A>& scales, const Lines<A>& lines, bool add,
                     const D& divergence) {
  constexpr int lanes = Simd<A>::lanes;
  const Lines<A> row = lines;  // a local copy, so that the compiler can assume that no store changes it
  const int64_t classes = problem.classes;
  RowPair<A, Source> pair{{row.student_max, scales.inverse_temperature, A(0)}, {A(0), A(1), A(1)}, A(0), A(0)};
  if (Source::normalised) pair.target = {row.teacher_max, scales.inverse_temperature, A(0)};

  // The value is that of forward_row, whichever gradients are wanted.
  constexpr bool is_forward = std::is_same<D, ForwardKL<A>>::value && Source::normalised && !smoothed;
  const Line<A> student_weight = row.student_weight(add);
  A weights[3];
  sum_classes(classes, weights, [&](int64_t i, auto place, Vec<A>* part) {
    row.next_student.prefetch(i);
    row.next_teacher.prefetch(i);
    const Vec<A> z = load(row.student.in(place) + i), t = load(row.teacher.in(place) + i);
    const Vec<A> student = pair.student.weight(z), teacher = Source::weight(t, pair.target);
    store(student_weight.in(place) + i, student);
    store(row.teacher_weight + i, teacher);
    part[0] += student;
    part[1] += teacher;
    if (is_forward) part[2] = plus_forward_part(part[2], teacher, t - pair.target.max, z - pair.student.max);
  });
  if (permuted) permute_weights(row, classes);
  pair.student.inverse_sum = A(1) / weights[0];
  pair.student_log_sum = std::log(weights[0]);
  if (Source::normalised) {
    pair.target.inverse_sum = A(1) / weights[1];
    pair.log_sums = std::log(weights[1] / weights[0]);
  }
  // A term of weight 0 adds nothing, not even NaN; its value is still wanted.
  const bool weighs = problem.soft.weight != 0;
  const bool for_student = static_cast<bool>(row.grad_student), for_teacher = static_cast<bool>(row.grad_teacher);
  const A student_scale = scales.soft_gradient * scales.inverse_temperature;
  const A teacher_scale = Source::normalised ? student_scale : scales.soft_gradient;

  // The padding is no class: it gets no smoothing either.
  const A eps = static_cast<A>(problem.soft.target_eps);
  Vec<A> last_eps{};
  if (smoothed)
    for (int lane = 0; lane < (classes - 1) % lanes + 1; ++lane) last_eps[lane] = eps;
  const auto terms_at = [&](int64_t i, auto place) {
    return pair.terms(smoothed, load(row.student.in(place) + i), load(student_weight.in(place) + i),
                      load(row.teacher.in(place) + i), load(row.teacher_weight + i),
                      i + lanes < classes ? splat(eps) : last_eps);
  };

  A by_log_q_sum = -((Source::normalised ? A(1) : weights[1]) + (smoothed ? eps * A(classes) : A(0)));
  A by_log_made_sum = 0;
  if (!D::minus_p || (row.grad_teacher && Source::normalised)) {
    A sums[2];
    sum_classes(classes, sums, [&](int64_t i, auto place, Vec<A>* part) {
      const Terms<Vec<A>> c = terms_at(i, place);
      part[0] += divergence.by_log_q(c);
      part[1] += pair.by_log_made(smoothed, c, divergence.by_log_p(c));
    });
    if (!D::minus_p) by_log_q_sum = sums[0];
    by_log_made_sum = sums[1];
  }

  A value[1];
  sum_classes(classes, value, [&](int64_t i, auto place, Vec<A>* part) {
    const Terms<Vec<A>> c = terms_at(i, place);
    part[0] += divergence.value(c);
    if (for_student) {
      const Vec<A> gradient = weighs ? pair.student_gradient(c, divergence, by_log_q_sum) * student_scale : Vec<A>{};
      store(row.grad_student.in(place) + i, add ? gradient + load(row.grad_student.in(place) + i) : gradient);
    }
    if (for_teacher)
      store(row.grad_teacher.in(place) + i,
            weighs ? pair.gradient(smoothed, c, divergence, by_log_made_sum) * teacher_scale : Vec<A>{});
  });
  return is_forward ? forward_value(weights, scales.inverse_temperature) : value[0];
}

// The divergence from a target that follows from the label: source label, and rows of source adjusted that are replaced.
template <class A>
KD_INLINE A label_soft_row(const RowLoss& problem, const RowScales<A>& scales, const Lines<A>& row, bool add) {
  A value[1];
  label_row(problem, scales, row, scales.inverse_temperature, {soft_term(problem, scales)}, add, value);
  return value[0] - static_cast<A>(problem.label.entropy);
}

// The lowest class of the largest logit; 0 where there is none, in a row of NaN.
template <class A>
KD_INLINE int64_t largest_class(const Line<A>& row, int64_t classes) {
  using Lanes = typename Simd<A>::I;
  Vec<A> most = splat(-std::numeric_limits<A>::infinity());
  Lanes first = {}, here = {};  // in each lane: the vector of its largest, and the one at hand
  each_vector<A>(classes, [&](int64_t i, auto place) {
    const Vec<A> v = load(row.in(place) + i);
    const Lanes higher = v > most;
    most = select(higher, v, most);
    first = higher ? here : first;
    here += 1;
  });
  int64_t index = classes;
  A largest = -std::numeric_limits<A>::infinity();
  for (int lane = 0; lane < Simd<A>::lanes; ++lane) {
    const int64_t c = static_cast<int64_t>(first[lane]) * Simd<A>::lanes + lane;
    if (!(most[lane] > largest) && !(most[lane] == largest && c < index)) continue;
    largest = most[lane];
    index = c;
  }
  return index < classes ? index : 0;
}

// The permutation of a row: as given, or drawn.
template <class A>
KD_INLINE void fill_order(const RowLoss& problem, const Lines<A>& row) {
  const int64_t classes = problem.classes;
  if (problem.permutation.of_rows) {
    for (int64_t c = 0; c < classes; ++c)
      row.order[c] = static_cast<uint32_t>(problem.permutation.of_rows[row.number * classes + c]);
    return;
  }
  const Shuffle shuffle(problem.permutation.seed, row.number, classes - 1);
  for (int64_t rank = 0; rank < classes - 1; ++rank) row.order[rank] = static_cast<uint32_t>(rank);
  for (int number = 0; number < shuffle.rounds; ++number) {
    const Shuffle::Round round = shuffle.round(number);
    for (int64_t rank = 0; rank < classes - 1; ++rank) row.order[rank] = shuffle.moved(row.order[rank], round);
  }
  // Ranks to classes; backwards, so that none is overwritten before it is read.
  const int64_t kept = largest_class(row.teacher, classes);
  for (int64_t c = classes - 1; c >= 0; --c)
    row.order[c] = static_cast<uint32_t>(c == kept ? kept : class_of(row.order[rank_of(c, kept)], kept));
}

// Source permuted.
template <class A>
KD_INLINE A permuted_row(const RowLoss& problem, const RowScales<A>& scales, const Lines<A>& row, bool add) {
  fill_order(problem, row);
  return soft_row<A, LogitsTarget, false, CrossEntropy<A>, true>(problem, scales, row, add, {});
}

template <class A>
using SoftRow = A (*)(const RowLoss&, const RowScales<A>&, const Lines<A>&, bool add);

template <class A, class Source, bool smoothed>
SoftRow<A> pick_divergence(Divergence divergence) {
  switch (divergence) {
    case Divergence::forward:
      return [](auto& problem, auto& scales, auto& row, bool add) {
        return soft_row<A, Source, smoothed>(problem, scales, row, add, ForwardKL<A>{});
      };
    case Divergence::reverse:
      return [](auto& problem, auto& scales, auto& row, bool add) {
        return soft_row<A, Source, smoothed>(problem, scales, row, add, ReverseKL<A>{});
      };
    case Divergence::jsd:
      return [](auto& problem, auto& scales, auto& row, bool add) {
        return soft_row<A, Source, smoothed>(problem, scales, row, add,
                                             JensenShannon<A>{static_cast<A>(problem.soft.beta)});
      };
    default:
      return [](auto& problem, auto& scales, auto& row, bool add) {
        return soft_row<A, Source, smoothed>(problem, scales, row, add, CrossEntropy<A>{});
      };
  }
}

template <class A, class Source>
SoftRow<A> pick_smoothing(const RowLoss& problem) {
  return problem.soft.target_eps > 0 ? pick_divergence<A, Source, true>(problem.soft.divergence)
                                : pick_divergence<A, Source, false>(problem.soft.divergence);
}

template <class A>
SoftRow<A> pick_soft_row(const RowLoss& problem) {
  switch (problem.source) {
    case TargetSource::logits: return pick_smoothing<A, LogitsTarget>(problem);
    case TargetSource::log_probs: return pick_smoothing<A, LogProbsTarget>(problem);
    case TargetSource::probs: return pick_smoothing<A, ProbsTarget>(problem);
    case TargetSource::permuted:
      return [](auto& problem, auto& scales, auto& row, bool add) { return permuted_row(problem, scales, row, add); };
    default:
      return [](auto& problem, auto& scales, auto& row, bool add) { return label_soft_row(problem, scales, row, add); };
  }
}

// Numbers of scratch memory a thread needs: four tiles, three rows of weights, one of a permutation.
inline int64_t scratch_numbers(const RowLoss& problem) {
  const int64_t rows = problem.source == TargetSource::permuted ? 4 : 3;
  return (4 * tile_rows(problem) + rows) * padded_classes(problem.classes);
}

// The float16 gradients of `count` rows from `first` on, before they are stored: in the units that they need.
template <class A>
void fit_float16(const RowAccess<A>& gradient, int64_t first, int64_t count, int64_t classes, A* units) {
  for (int64_t r = 0; r < count; ++r) {
    const Line<A> row = gradient.row(first, r);
    const A most = largest_of<A>(classes, [&](int64_t i, auto place) {
      const Vec<A> v = load(row.in(place) + i);
      return select(v < A(0), -v, v);
    });
    const A factor = float16_factor(most > A(0) ? most : A(0));
    units[first + r] = A(1) / factor;
    each_vector<A>(classes, [&](int64_t i, auto place) { store(row.in(place) + i, load(row.in(place) + i) * factor); });
  }
}

// Both terms of one row. Returns whether the student's gradient stands where it belongs, and not in row.grad_student.
template <class A>
KD_INLINE bool solve_row(const RowLoss& problem, const RowScales<A>& scales, const Lines<A>& row, bool forward,
                         SoftRow<A> soft_row, A& soft, A& hard) {
  if (scales.has_soft && problem.source == TargetSource::adjusted) {
    const bool repairs = scales.has_label && problem.adjustment != Adjustment::none;
    const int64_t largest = repairs ? largest_class(row.teacher, problem.classes) : scales.label;
    if (largest == scales.label) return forward_row(problem, scales, row, AsTheyAre{}, soft, hard);
    if (problem.adjustment == Adjustment::exchange)
      return forward_row(problem, scales, row, Exchanged{largest, scales.label}, soft, hard);
  } else if (scales.has_soft && forward) {
    return forward_row(problem, scales, row, AsTheyAre{}, soft, hard);
  }
  if (problem.source == TargetSource::label && scales.has_soft && scales.inverse_temperature == A(1)) {
    // Both look at the same softmax.
    A both[2];
    label_row(problem, scales, row, A(1), {soft_term(problem, scales), hard_term(problem, scales)}, false, both);
    soft = scales.soft * (both[0] - static_cast<A>(problem.label.entropy));
    hard = both[1];
    return false;
  }
  if (scales.has_hard) {
    A value[1];
    label_row(problem, scales, row, A(1), {hard_term(problem, scales)}, false, value);
    hard = value[0];
  } else if (!scales.has_soft && row.grad_student) {
    fill_zero(row.grad_student, problem.classes);
  }
  if (scales.has_soft) soft = scales.soft * soft_row(problem, scales, row, scales.has_hard);
  else if (row.grad_teacher) fill_zero(row.grad_teacher, problem.classes);
  return false;
}

// Rows [begin, end): their losses go to problem.row_losses, their gradients to where they belong. `scratch` has
// scratch_numbers(problem) numbers.
template <class A>
void solve_rows(const RowLoss& problem, int64_t begin, int64_t end, A* scratch) {
  const int64_t classes = problem.classes, inner = problem.inner, middle = problem.middle;
  const int64_t padded = padded_classes(classes), tile = tile_rows(problem);
  const SoftRow<A> soft_row = pick_soft_row<A>(problem);
  const bool probabilities = problem.source == TargetSource::probs || problem.source == TargetSource::log_probs;
  const bool teacher_softmax = problem.teacher.data && !probabilities;
  const A absent = problem.source == TargetSource::probs ? A(0) : -std::numeric_limits<A>::infinity();
  const bool forward = is_forward_kl(problem), large_gradient = is_large_gradient(problem);
  const Divisors divisor = divisors(problem, 0);
  A* row_losses = static_cast<A*>(problem.row_losses);
  A *unit_student = static_cast<A*>(problem.unit_student), *unit_teacher = static_cast<A*>(problem.unit_teacher);

  const RowAccess<A> student(problem.student, classes, inner, -std::numeric_limits<A>::infinity(), scratch, middle);
  const RowAccess<A> teacher(problem.teacher, classes, inner, absent, scratch + tile * padded, middle);
  const RowAccess<A> grad_student(problem.grad_student, classes, inner, A(0), scratch + 2 * tile * padded, middle);
  const RowAccess<A> grad_teacher(problem.grad_teacher, classes, inner, A(0), scratch + 3 * tile * padded, middle);
  A* weights = scratch + 4 * tile * padded;

  for (int64_t first = begin, count; first < end; first += count) {
    // The rows of a tile lie side by side in memory: only their inner position differs.
    count = tile == 1 ? 1 : std::min({tile, end - first, inner - first % inner});
    const int64_t next = std::min(first + count, end - 1);
    A student_max = 0, teacher_max = 0;
    if (tile == 1) {
      student_max = load_largest(student, first, classes);
      if (teacher_softmax) teacher_max = load_largest(teacher, first, classes);
      else teacher.load(first, 1);
    } else {
      student.load(first, count);
      teacher.load(first, count);
    }
    bool written = false;
    for (int64_t r = 0; r < count; ++r) {
      if (tile > 1) {
        student_max = max_classes(student.row(first, r), classes);
        if (teacher_softmax) teacher_max = max_classes(teacher.row(first, r), classes);
      }
      const Lines<A> row{first + r,
                         student.row(first, r),
                         teacher.row(first, r),
                         grad_student.row(first, r),
                         grad_teacher.row(first, r),
                         student_max,
                         teacher_max,
                         tile == 1 ? grad_student.elements(first) : Elements{},
                         large_gradient,
                         {weights, weights},
                         weights + padded,
                         weights + 2 * padded,
                         reinterpret_cast<uint32_t*>(weights + 3 * padded),
                         student.upcoming(next),
                         teacher.upcoming(next)};
      A hard = 0, soft = 0;
      // Avoids a 64-bit division in the common case of one group.
      const RowScales<A> scales = row_scales<A>(
          problem, row.number, problem.groups == 1 ? divisor : divisors(problem, row.number / problem.group_rows()));
      written = solve_row(problem, scales, row, forward, soft_row, soft, hard);
      row_losses[row.number] = soft;
      row_losses[problem.rows() + row.number] = hard;
    }
    if (!written) {
      if (unit_student) fit_float16(grad_student, first, count, classes, unit_student);
      grad_student.store(first, count);
    }
    if (unit_teacher) fit_float16(grad_teacher, first, count, classes, unit_teacher);
    grad_teacher.store(first, count);
  }
  end_streams();
}

void solve_rows_float(const RowLoss& problem, int64_t begin, int64_t end, void* scratch) {
  solve_rows(problem, begin, end, static_cast<float*>(scratch));
}

void solve_rows_double(const RowLoss& problem, int64_t begin, int64_t end, void* scratch) {
  solve_rows(problem, begin, end, static_cast<double*>(scratch));
}

#include "cpu/row_statistics-inl.h"

#include "cpu/scale_rows-inl.h"
