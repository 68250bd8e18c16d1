// Softened KL on the CPU, for one instruction set: a range of rows, loss and gradients.
//
// Rows that are not whole vectors of the arithmetic type are brought into scratch memory and padded with "no class" (logit
// -inf, probability 0), so that every sweep below is a plain loop over vectors and no dtype or layout is known to it:
//
//     1  largest logit of either row
//     2  exp of both rows, kept, and their sums            the only sweep with an exponential
//     3  sums the gradients need                           reverse KL, Jensen-Shannon, gradients of teacher logits
//     4  loss and gradients
//
// A hard label adds two sweeps at temperature 1. Sums are taken in blocks, so that their rounding error grows with the
// number of blocks and not of classes. Scratch is a handful of rows: it stays in the L1 or L2 cache.
// After highway's pattern: no intrinsics, no #if; included by cpu/softened_kl_kernel.cpp through cpu/each_isa.h.

#include "divergences-inl.h"
#include "target_sources-inl.h"

// One row: `padded` numbers each, in scratch memory or where they lie. A gradient nobody asked for is null.
template <class A>
struct Buffers {
  A *student, *teacher, *student_weight, *teacher_weight, *grad_student, *grad_teacher;
};

template <class A>
KD_INLINE A max_classes(const A* row, int64_t classes) {
  Vec<A> largest = load(row);
  for (int64_t i = Simd<A>::lanes; i < classes; i += Simd<A>::lanes) {
    const Vec<A> v = load(row + i);
    largest = select(v > largest, v, largest);
  }
  return max_lanes<A>(largest);
}

// body(i, part) adds what the vector of classes at i contributes to each of `count` sums.
template <class A, int count, class Body>
KD_INLINE void sum_classes(int64_t classes, A (&sums)[count], const Body& body) {
  constexpr int64_t lanes = Simd<A>::lanes, block = 64 * lanes;
  Vec<A> total[count] = {};
  for (int64_t begin = 0; begin < classes; begin += block) {
    const int64_t end = begin + block < classes ? begin + block : classes;
    Vec<A> part[count] = {};
    for (int64_t i = begin; i < end; i += lanes) body(i, part);
    for (int j = 0; j < count; ++j) total[j] += part[j];
  }
  for (int j = 0; j < count; ++j) sums[j] = sum_lanes<A>(total[j]);
}

// D(p, q) of one row; its gradients are written to row.grad_*, added to the student's where `add`.
template <class A, class Source, bool smoothed, class D>
KD_INLINE A soft_row(const SoftenedKL& problem, const RowScales<A>& scales, const Buffers<A>& row, A max, bool add,
                     const D& divergence) {
  constexpr int lanes = Simd<A>::lanes;
  const int64_t classes = problem.classes;
  RowPair<A, Source> pair{{max, scales.inverse_temperature, A(0), A(0)}, {A(0), A(1), A(0), A(1)}};
  if (Source::normalised) pair.target = {max_classes(row.teacher, classes), scales.inverse_temperature, A(0), A(0)};

  A weights[2];
  sum_classes(classes, weights, [&](int64_t i, Vec<A>* part) {
    const Vec<A> student = pair.student.weight(load(row.student + i));
    const Vec<A> teacher = Source::weight(load(row.teacher + i), pair.target);
    store(row.student_weight + i, student);
    store(row.teacher_weight + i, teacher);
    part[0] += student;
    part[1] += teacher;
  });
  pair.student.inverse_sum = A(1) / weights[0];
  pair.student.log_sum = std::log(weights[0]);
  if (Source::normalised) {
    pair.target.inverse_sum = A(1) / weights[1];
    pair.target.log_sum = std::log(weights[1]);
  }

  // The padding is no class: it gets no smoothing either.
  const A eps = static_cast<A>(problem.target_eps);
  Vec<A> last_eps{};
  if (smoothed)
    for (int lane = 0; lane < (classes - 1) % lanes + 1; ++lane) last_eps[lane] = eps;
  const auto terms_at = [&](int64_t i) {
    return pair.terms(smoothed, load(row.student + i), load(row.student_weight + i), load(row.teacher + i),
                      load(row.teacher_weight + i), i + lanes < classes ? splat(eps) : last_eps);
  };

  A by_log_q_sum = -((Source::normalised ? A(1) : weights[1]) + (smoothed ? eps * A(classes) : A(0)));
  A by_log_made_sum = -1;
  if (!D::minus_p || (row.grad_teacher && Source::normalised)) {
    A sums[2];
    sum_classes(classes, sums, [&](int64_t i, Vec<A>* part) {
      const Terms<Vec<A>> c = terms_at(i);
      part[0] += divergence.by_log_q(c);
      part[1] += pair.by_log_made(smoothed, c, divergence.by_log_p(c));
    });
    if (!D::minus_p) by_log_q_sum = sums[0];
    if (!D::minus_q || smoothed) by_log_made_sum = sums[1];
  }

  // A term of weight 0 adds nothing, not even NaN; its value is still wanted.
  const bool weighs = problem.kl_weight != 0;
  const A student_scale = scales.soft_gradient * scales.inverse_temperature;
  A value[1];
  sum_classes(classes, value, [&](int64_t i, Vec<A>* part) {
    const Terms<Vec<A>> c = terms_at(i);
    part[0] += divergence.value(c);
    if (row.grad_student) {
      const Vec<A> gradient = weighs ? (divergence.by_log_q(c) - c.q * by_log_q_sum) * student_scale : Vec<A>{};
      store(row.grad_student + i, add ? gradient + load(row.grad_student + i) : gradient);
    }
    if (row.grad_teacher)
      store(row.grad_teacher + i,
            weighs ? pair.gradient(smoothed, c, divergence, by_log_made_sum) * scales.soft_gradient : Vec<A>{});
  });
  return value[0];
}

// -(1 - s) log q_y - s mean(log q) at temperature 1; its gradient is written to row.grad_student.
template <class A>
KD_INLINE A hard_row(const SoftenedKL& problem, const RowScales<A>& scales, const Buffers<A>& row, A max) {
  const int64_t classes = problem.classes;
  const A smoothing = static_cast<A>(problem.label_smoothing);
  A weights[1];
  sum_classes(classes, weights, [&](int64_t i, Vec<A>* part) {
    const Vec<A> student = exp_product(load(row.student + i) - max, A(1));
    store(row.student_weight + i, student);
    part[0] += student;
  });
  A log_target = smoothing < A(1) ? (A(1) - smoothing) * (row.student[scales.label] - max) : A(0);
  if (smoothing > A(0)) {
    double sum = 0;
    for (int64_t i = 0; i < classes; ++i) sum += row.student[i] - max;
    log_target += smoothing * static_cast<A>(sum / static_cast<double>(classes));
  }
  if (row.grad_student && problem.ce_weight == 0) {
    std::memset(row.grad_student, 0, classes * sizeof(A));
  } else if (row.grad_student) {
    const A scale = scales.hard_gradient, inverse_sum = A(1) / weights[0], rest = smoothing / static_cast<A>(classes);
    for (int64_t i = 0; i < classes; i += Simd<A>::lanes)
      store(row.grad_student + i, (load(row.student_weight + i) * inverse_sum - rest) * scale);
    row.grad_student[scales.label] -= (A(1) - smoothing) * scale;
  }
  return std::log(weights[0]) - log_target;
}

template <class A>
using SoftRow = A (*)(const SoftenedKL&, const RowScales<A>&, const Buffers<A>&, A max, bool add);

template <class A, class Source, bool smoothed>
SoftRow<A> pick_divergence(Divergence divergence) {
  switch (divergence) {
    case Divergence::forward:
      return [](auto& problem, auto& scales, auto& row, A max, bool add) {
        return soft_row<A, Source, smoothed>(problem, scales, row, max, add, ForwardKL<A>{});
      };
    case Divergence::reverse:
      return [](auto& problem, auto& scales, auto& row, A max, bool add) {
        return soft_row<A, Source, smoothed>(problem, scales, row, max, add, ReverseKL<A>{});
      };
    case Divergence::jsd:
      return [](auto& problem, auto& scales, auto& row, A max, bool add) {
        return soft_row<A, Source, smoothed>(problem, scales, row, max, add,
                                             JensenShannon<A>{static_cast<A>(problem.beta)});
      };
    default:
      return [](auto& problem, auto& scales, auto& row, A max, bool add) {
        return soft_row<A, Source, smoothed>(problem, scales, row, max, add, CrossEntropy<A>{});
      };
  }
}

template <class A, class Source>
SoftRow<A> pick_smoothing(const SoftenedKL& problem) {
  return problem.target_eps > 0 ? pick_divergence<A, Source, true>(problem.divergence)
                                : pick_divergence<A, Source, false>(problem.divergence);
}

template <class A>
SoftRow<A> pick_soft_row(const SoftenedKL& problem) {
  switch (problem.source) {
    case TargetSource::logits: return pick_smoothing<A, LogitsTarget>(problem);
    case TargetSource::log_probs: return pick_smoothing<A, LogProbsTarget>(problem);
    default: return pick_smoothing<A, ProbsTarget>(problem);
  }
}

#include "cpu/row_io-inl.h"

// Numbers of scratch memory a thread needs: four tiles and two rows of weights.
inline int64_t scratch_numbers(const SoftenedKL& problem) {
  return (4 * tile_rows(problem) + 2) * padded_classes(problem);
}

// Rows [begin, end): their losses go to problem.row_losses, their gradients to where they belong. `scratch` has
// scratch_numbers(problem) numbers.
template <class A>
void solve_rows(const SoftenedKL& problem, int64_t begin, int64_t end, A* scratch) {
  const int64_t classes = problem.classes, padded = padded_classes(problem), tile = tile_rows(problem);
  const SoftRow<A> soft_row = pick_soft_row<A>(problem);
  const A absent = problem.source == TargetSource::probs ? A(0) : -std::numeric_limits<A>::infinity();
  A* row_losses = static_cast<A*>(problem.row_losses);

  RowAccess<A> student(problem, problem.student, -std::numeric_limits<A>::infinity(), scratch);
  RowAccess<A> teacher(problem, problem.teacher, absent, scratch + tile * padded);
  RowAccess<A> grad_student(problem, problem.grad_student, A(0), scratch + 2 * tile * padded);
  RowAccess<A> grad_teacher(problem, problem.grad_teacher, A(0), scratch + 3 * tile * padded);
  A* weights = scratch + 4 * tile * padded;

  for (int64_t first = begin, count; first < end; first += count) {
    // Rows of one tile lie side by side in memory: they share the outer position.
    count = tile == 1 ? 1 : std::min({tile, end - first, problem.inner - first % problem.inner});
    student.load(first, count);
    teacher.load(first, count);
    for (int64_t r = 0; r < count; ++r) {
      const Buffers<A> row{student.row(first, r), teacher.row(first, r),      weights, weights + padded,
                           grad_student.row(first, r), grad_teacher.row(first, r)};
      const RowScales<A> scales = row_scales<A>(problem, first + r);
      const A max = max_classes(row.student, classes);
      A hard = 0, soft = 0;
      if (scales.has_hard) hard = hard_row(problem, scales, row, max);
      else if (!scales.has_soft && row.grad_student) std::memset(row.grad_student, 0, classes * sizeof(A));
      if (scales.has_soft) soft = scales.soft * soft_row(problem, scales, row, max, scales.has_hard);
      else if (row.grad_teacher) std::memset(row.grad_teacher, 0, classes * sizeof(A));
      row_losses[first + r] = soft;
      row_losses[problem.rows() + first + r] = hard;
    }
    grad_student.store(first, count);
    grad_teacher.store(first, count);
  }
}

void solve_rows_float(const SoftenedKL& problem, int64_t begin, int64_t end, void* scratch) {
  solve_rows(problem, begin, end, static_cast<float*>(scratch));
}

void solve_rows_double(const SoftenedKL& problem, int64_t begin, int64_t end, void* scratch) {
  solve_rows(problem, begin, end, static_cast<double*>(scratch));
}
