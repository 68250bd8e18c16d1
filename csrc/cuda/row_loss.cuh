// Softened KL on the GPU: loss and gradients of a row in one visit, for logits of any dtype.
//
// A team of threads works on a row: some lanes of a warp, a warp, a block, or a cluster of blocks. Each thread takes chunks of
// 8 classes (cuda/row_storage.cuh). The row is then kept in registers, staged in the shared memory of the team's blocks, or
// streamed from L2 again for every sweep:
//
//     1  running maximum and sum of exponentials of both rows (each thread its own, merged over the team)
//     2  sums the gradients need                             reverse KL, Jensen-Shannon, gradients of teacher logits
//     3  loss and gradients, written straight to where they belong
//
// Sources that rearrange the teacher's weights find its largest class between the sweeps (cuda/row_target.cuh).
//
// With a row kept on chip the memory traffic is that of reading both tensors and writing the gradients once. What is
// then in the way of that traffic is the number of instructions per class, so the commonest problem, forward KL of logits
// with a constant teacher, has kernels of its own (ConstantTeacherKL).
// Arithmetic is float32 from the first load (float64 for float64). No atomics: every sum has a fixed order. Rows of one
// warp may differ in mask and label, and a warp's last rows may not exist: all threads take part in every reduction and
// only loads, stores and additions are guarded.
#pragma once
#include <cmath>
#include <type_traits>

#include "cuda/chunk.cuh"
#include "cuda/launch.h"
#include "cuda/simt.cuh"
#include "cuda/team.cuh"
#include "elements.h"
#include "permutation.h"
#include "row_scales.h"
#include "row_statistics.h"
#include "row_loss.h"

namespace kd {
namespace {

#define KD_INLINE KD_DEVICE
KD_DEVICE float select(bool condition, float yes, float no) { return condition ? yes : no; }
KD_DEVICE double select(bool condition, double yes, double no) { return condition ? yes : no; }
KD_DEVICE float exp(float x) { return ::expf(x); }
KD_DEVICE double exp(double x) { return ::exp(x); }
// e^(x y). In float32 the product is rounded anyway, by as much as the one instruction that raises 2 to it.
KD_DEVICE float exp_product(float x, float y) { return simt::fast_exp2(x * (y * 1.44269504f)); }
KD_DEVICE double exp_product(double x, double y) { return ::exp(x * y); }
// A number, where one of the two is NaN.
KD_DEVICE float larger(float x, float y) { return ::fmaxf(x, y); }
KD_DEVICE double larger(double x, double y) { return ::fmax(x, y); }
KD_DEVICE float log(float x) { return ::logf(x); }
KD_DEVICE double log(double x) { return ::log(x); }
#include "divergences-inl.h"
#include "target_sources-inl.h"

#include "cuda/row_storage.cuh"
#include "cuda/row_target.cuh"
#include "cuda/running_softmax.cuh"
#include "cuda/row_statistics.cuh"

// Forward KL of two softmaxes where the teacher is constant, unsmoothed, and the divergence has a weight. Loss and gradient
// follow from the unnormalised weights, a few instructions per class.
template <class A>
struct ConstantTeacherKL : ForwardKL<A> {};

template <class D>
constexpr bool is_constant_teacher = false;
template <class A>
constexpr bool is_constant_teacher<ConstantTeacherKL<A>> = true;

// The soft term of a chunk: its part of the divergence, and the gradients.
template <class A, class Source, class D>
KD_DEVICE void soft_chunk(const RowLoss& problem, const RowPair<A, Source>& pair, const RowScales<A>& scales,
                          A teacher_gradient, const D& divergence, A by_log_q_sum, A by_log_made_sum, Chunk chunk,
                          const A (&z)[chunk_classes], const A (&t)[chunk_classes], A& sum,
                          A (&grad_student)[chunk_classes], A (&grad_teacher)[chunk_classes]) {
  const int classes = static_cast<int>(problem.classes);
  const A student_scale = scales.soft_gradient * scales.inverse_temperature;
  if constexpr (is_constant_teacher<D>) {
    // Beyond the last class both weights are 0.
    const A ratio = pair.student.inverse_sum / pair.target.inverse_sum, scale = student_scale * pair.target.inverse_sum;
    KD_UNROLL for (int e = 0; e < chunk_classes; ++e) {
      const A student = z[e] - pair.student.max, teacher = t[e] - pair.target.max;
      const A student_weight = exp_product(student, scales.inverse_temperature);
      const A teacher_weight = exp_product(teacher, scales.inverse_temperature);
      if (teacher_weight != A(0)) sum += teacher_weight * (teacher - student);
      grad_student[e] = (student_weight * ratio - teacher_weight) * scale;
    }
  } else {
    const A eps = static_cast<A>(problem.soft.target_eps);
    const bool smoothed = problem.soft.target_eps > 0;
    KD_UNROLL for (int e = 0; e < chunk_classes; ++e) {
      if (chunk.of(e) >= classes) continue;
      const Terms<A> c = pair.terms(smoothed, z[e], t[e], eps);
      sum += divergence.value(c);
      if (problem.soft.weight == 0) continue;  // a term of weight 0 adds nothing, not even NaN; its value is still wanted
      grad_student[e] = pair.student_gradient(c, divergence, by_log_q_sum) * student_scale;
      if (problem.grad_teacher.data)
        grad_teacher[e] = pair.gradient(smoothed, c, divergence, by_log_made_sum) *
                          (Source::normalised ? teacher_gradient * scales.inverse_temperature : teacher_gradient);
    }
  }
}

// No entry of a divergence's gradient by the logits is larger than this, times its scale. `sum`: that of by_log_q or by_log_made,
// `mass`: that of p. What is negative in such a sum comes to the larger mass at most, since q log(p / q) <= p - q; so all
// absolute values come to |sum| + 2 max(1, mass), and the chain through the softmax subtracts a share of the sum.
template <class A>
KD_DEVICE A gradient_bound(A sum, A mass) {
  return A(2) * std::abs(sum) + A(3) * larger(A(1), mass);
}

// Adds (weight * inverse_sum - p) * scale to the gradient of a chunk, p being `on` at the label and `off` elsewhere.
template <class A>
KD_DEVICE void label_chunk(int label, const Softmax<A>& student, A on, A off, A scale, Chunk chunk,
                           const A (&z)[chunk_classes], A (&gradient)[chunk_classes]) {
  const A inverse_sum = student.inverse_sum * scale, wanted_there = on * scale, wanted_elsewhere = off * scale;
  KD_UNROLL for (int e = 0; e < chunk_classes; ++e) {
    const A wanted = chunk.of(e) == label ? wanted_there : wanted_elsewhere;
    gradient[e] += exp_product(z[e] - student.max, student.inverse_temperature) * inverse_sum - wanted;
  }
}

template <class A, class Source, class D, class Team, class Storage>
KD_DEVICE void solve_row(const RowLoss& problem, int64_t row, const Divisors& divisor, Team& team, Storage& storage,
                         const D& divergence) {
  const int64_t classes = problem.classes;
  const bool exists = row < problem.rows();
  RowScales<A> scales{};
  if (exists) scales = row_scales<A>(problem, row, divisor);
  const bool computed = scales.has_soft || scales.has_hard;
  const A inverse_temperature = exists ? scales.inverse_temperature : A(1);
  const RowPosition position(problem, exists ? row : 0);
  storage.template load<Source>(problem, position, computed, team);

  // Sweep 1.
  RunningSoftmax<A> student, teacher;
  BlockedSums<A, 1> mass;
  storage.for_each(problem, position, computed, team, [&](Chunk, const A(&z)[chunk_classes], const A(&t)[chunk_classes]) {
    student.add(z, inverse_temperature, scales.has_hard);
    if (Source::normalised) {
      teacher.add(t, inverse_temperature, false);
    } else {
      A sum[1] = {0};
      KD_UNROLL for (int e = 0; e < chunk_classes; ++e) sum[0] += Source::weight(t[e], Softmax<A>{A(0), A(1), A(1)});
      mass.add(sum);
    }
  });
  A highest[2] = {student.max, teacher.max};
  team.max(highest);
  student.raise(highest[0], inverse_temperature, scales.has_hard);
  teacher.raise(highest[1], inverse_temperature, false);
  student.sums.fold();
  teacher.sums.fold();
  mass.fold();
  A totals[3] = {student.sums.total[0], Source::normalised ? teacher.sums.total[0] : mass.total[0],
                 student.sums.total[1]};
  team.sum(totals);
  RowPair<A, Source> pair{{student.max, inverse_temperature, A(1) / totals[0]}, {A(0), A(1), A(1)}, log(totals[0]), A(0)};
  if (Source::normalised) {
    pair.target = {teacher.max, inverse_temperature, A(1) / totals[1]};
    pair.log_sums = log(totals[1] / totals[0]);
  }
  const Softmax<A> cold{student.max, A(1), A(1) / totals[2]};

  const RowTarget<A, Source> target(problem, scales, row, position, team, storage);

  // Sweep 2.
  const A eps = static_cast<A>(problem.soft.target_eps);
  const bool smoothed = problem.soft.target_eps > 0;
  A by_log_q_sum = -((Source::normalised ? A(1) : totals[1]) + eps * static_cast<A>(classes));
  A by_log_made_sum = 0;
  constexpr bool by_probability = std::is_same_v<Source, ProbsTarget>;
  A largest_by_made = 0;  // a derivative by a probability has no bound that is known before
  const bool needs_made_sum = problem.grad_teacher.data && (Source::normalised || problem.unit_teacher);
  if (!is_constant_teacher<D> && (!D::minus_p || needs_made_sum)) {
    BlockedSums<A, 2> by_log;
    A largest[1] = {0};
    storage.for_each(problem, position, scales.has_soft, team,
                     [&](Chunk chunk, const A(&z)[chunk_classes], const A(&t)[chunk_classes]) {
                       A part[2] = {0, 0};
                       KD_UNROLL for (int e = 0; e < chunk_classes; ++e) {
                         if (chunk.of(e) >= position.classes) continue;
                         const Terms<A> c = pair.terms(smoothed, z[e], t[e], eps);
                         part[0] += divergence.by_log_q(c);
                         part[1] += pair.by_log_made(smoothed, c, divergence.by_log_p(c));
                         if (by_probability && problem.unit_teacher)
                           largest[0] = larger(largest[0], std::abs(pair.gradient(smoothed, c, divergence, A(0))));
                       }
                       by_log.add(part);
                     });
    by_log.fold();
    A sums[2] = {by_log.total[0], by_log.total[1]};
    team.sum(sums);
    if (!D::minus_p) by_log_q_sum = sums[0];
    by_log_made_sum = sums[1];
    if (by_probability && problem.unit_teacher) {
      team.max(largest);
      largest_by_made = larger(largest[0], A(1e-20f));  // of zeros alone: their scale times the factor of 0 may be infinite
    }
  }

  // An out-of-range label turns every term that uses it into NaN.
  const bool uses_label = problem.source == TargetSource::label || problem.adjustment != Adjustment::none;
  const bool soft_is_spoiled = scales.bad_label && scales.has_soft && Source::asks_label && uses_label;
  const bool is_spoiled = soft_is_spoiled || (scales.bad_label && scales.has_hard);

  // Sweep 3.
  const int label = scales.has_label && !scales.bad_label ? static_cast<int>(scales.label) : -1;
  const A rest = static_cast<A>(problem.hard.smoothing) / static_cast<A>(classes);
  const A hard_on = A(1) - static_cast<A>(problem.hard.smoothing) + rest;
  const A label_on = static_cast<A>(problem.label.on), label_off = static_cast<A>(problem.label.off);
  const bool soft_is_label = scales.has_soft && target.is_label();
  const bool wants_others = (soft_is_label && label_off != A(0)) || (scales.has_hard && rest != A(0));

  // float16: the scales of the gradients, times the factors that they are stored with.
  A student_factor = 1, teacher_factor = 1;
  if (problem.unit_student || problem.unit_teacher) {
    const A mass = (Source::normalised ? A(1) : totals[1]) + eps * static_cast<A>(classes);
    const bool weighs = scales.has_soft && problem.soft.weight != 0;
    const A soft_scale = weighs ? std::abs(scales.soft_gradient) * inverse_temperature : A(0);
    const A hard_scale = scales.has_hard && problem.hard.weight != 0 ? std::abs(scales.hard_gradient) : A(0);
    const bool is_difference = is_constant_teacher<D> || soft_is_label;  // |q - p| <= 1
    if (problem.unit_student)
      student_factor = float16_factor(soft_scale * (is_difference ? A(1) : gradient_bound(by_log_q_sum, mass)) + hard_scale);
    const A teacher_scale = Source::normalised ? soft_scale : std::abs(scales.soft_gradient);
    if (problem.unit_teacher)
      teacher_factor = float16_factor(teacher_scale * (by_probability ? largest_by_made : gradient_bound(by_log_made_sum, mass)));
  }
  const A teacher_gradient = scales.soft_gradient * teacher_factor;
  scales.soft_gradient *= student_factor;
  scales.hard_gradient *= student_factor;

  BlockedSums<A, 3> row_losses;  // divergence, label's logit, sum of the other logits: these two relative to the maximum
  storage.for_each(problem, position, computed, team,
                   [&](Chunk chunk, const A(&z)[chunk_classes], const A(&raw)[chunk_classes]) {
    A grad_student[chunk_classes] = {}, grad_teacher[chunk_classes] = {}, part[3] = {0, 0, 0}, t[chunk_classes];
    target.read(chunk, raw, t);
    // A term of weight 0 adds nothing, not even NaN; its value is still wanted.
    if (soft_is_label && problem.soft.weight != 0)
      label_chunk(label, pair.student, label_on, label_off, scales.soft_gradient * inverse_temperature, chunk, z, grad_student);
    if (scales.has_soft && !soft_is_label)
      soft_chunk(problem, pair, scales, teacher_gradient, divergence, by_log_q_sum, by_log_made_sum, chunk, z, t, part[0], grad_student,
                 grad_teacher);
    if (scales.has_hard && problem.hard.weight != 0)
      label_chunk(label, cold, hard_on, rest, scales.hard_gradient, chunk, z, grad_student);
    if (soft_is_label || scales.has_hard)
      KD_UNROLL for (int e = 0; e < chunk_classes; ++e) {
        if (chunk.of(e) == label) part[1] += z[e] - pair.student.max;
        else if (wants_others && chunk.of(e) < position.classes) part[2] += z[e] - pair.student.max;
      }
    row_losses.add(part);
    if (!exists) return;
    if (is_spoiled)
      KD_UNROLL for (int e = 0; e < chunk_classes; ++e) grad_student[e] = NAN;
    if (problem.grad_student.data) write_row(problem.grad_student, position, chunk, grad_student);
    if (problem.grad_teacher.data) write_row(problem.grad_teacher, position, chunk, grad_teacher);
  });
  row_losses.fold();
  A losses[3] = {row_losses.total[0], row_losses.total[1], row_losses.total[2]};
  team.sum(losses);

  if (!exists || team.rank() != 0) return;
  if (problem.unit_student) static_cast<A*>(problem.unit_student)[row] = A(1) / student_factor;
  if (problem.unit_teacher) static_cast<A*>(problem.unit_teacher)[row] = A(1) / teacher_factor;
  A hard = 0;
  if (scales.has_hard) {
    hard = log(totals[2]) - hard_on * losses[1];
    if (rest != A(0)) hard -= rest * losses[2];
    if (scales.bad_label) hard = NAN;
  }
  A soft = losses[0];
  if (target.is_label()) {
    soft = pair.student_log_sum - static_cast<A>(problem.label.entropy);
    // A class of target 0 adds nothing, even where its logit is -inf.
    if (label_on != A(0)) soft -= label_on * losses[1] * inverse_temperature;
    if (label_off != A(0)) soft -= label_off * losses[2] * inverse_temperature;
  } else if (is_constant_teacher<D>) {
    soft = losses[0] * (inverse_temperature * pair.target.inverse_sum) - pair.log_sums;
  }
  if (soft_is_spoiled) soft = NAN;
  A* to = static_cast<A*>(problem.row_losses);
  to[row] = scales.has_soft ? scales.soft * soft : A(0);
  to[problem.rows() + row] = hard;
}

// --- Kernels: a team and a storage each --------------------------------------------------------------------------------

// Rows of a group that the soft and the hard term count, by a block.
template <class A>
KD_DEVICE void count_group(const RowLoss& problem, int64_t group, A (&counts)[2]) {
  const BlockTeam<A> block;
  const int64_t group_rows = problem.group_rows();
  counts[0] = counts[1] = 0;
  for (int64_t i = block.rank(); i < group_rows; i += block.size()) {
    const int64_t row = group * group_rows + i;
    counts[0] += problem.counts_row(row);
    counts[1] += problem.has_label(row);
  }
  block.sum(counts);
}

// What the rows of a group are divided by. Where there is no memory for counts, the block counts few rows itself.
template <class A>
KD_DEVICE Divisors group_divisors(const RowLoss& problem, int64_t group) {
  if (!problem.has_counts() || problem.counts) return divisors(problem, group);
  A counts[2];
  count_group(problem, group, counts);
  return divisors_by(problem, static_cast<int64_t>(counts[0]), static_cast<int64_t>(counts[1]));
}

// That of a row, which may not exist.
template <class A>
KD_DEVICE Divisors row_divisors(const RowLoss& problem, int64_t row) {
  const bool grouped = problem.groups > 1 && row < problem.rows();
  return group_divisors<A>(problem, grouped ? row / problem.group_rows() : 0);
}

// Of the commonest problem four blocks are on a multiprocessor. The others take the registers they need.
template <class A, class Source, class D, class Storage>
KD_KERNEL void KD_LAUNCH_BOUNDS(small_block, is_constant_teacher<D> ? 4 : 1)
    lane_rows_kernel(RowLoss problem, D divergence, int lanes) {
  LaneTeam team(lanes);
  Storage storage;
  solve_row<A, Source>(problem, team.row(), row_divisors<A>(problem, team.row()), team, storage, divergence);
}

template <class A, class Source, class D, class Storage>
KD_KERNEL void KD_LAUNCH_BOUNDS(largest_block, 1) cluster_rows_kernel(RowLoss problem, D divergence) {
  ClusterTeam team;
  Storage storage;
  solve_row<A, Source>(problem, team.row(), row_divisors<A>(problem, team.row()), team, storage, divergence);
  team.end();
}

// counts[0, g], counts[1, g]: rows of group g that the soft and the hard term count. A block per group.
KD_KERNEL void KD_LAUNCH_BOUNDS(reduce_threads) count_rows_kernel(RowLoss problem) {
  const int64_t group = simt::block_index();
  double counts[2];  // exact up to 2^53 rows
  count_group(problem, group, counts);
  if (simt::thread_index() != 0) return;
  int64_t* to = static_cast<int64_t*>(problem.counts);
  to[group] = static_cast<int64_t>(counts[0]);
  to[problem.groups + group] = static_cast<int64_t>(counts[1]);
}

// Row losses to one number per group, summed in float64 in a fixed order. A block per group.
template <class A>
KD_KERNEL void KD_LAUNCH_BOUNDS(reduce_threads) reduce_rows_kernel(RowLoss problem) {
  const BlockTeam<double> team;
  const int64_t group = simt::block_index(), rows = problem.rows(), group_rows = problem.group_rows();
  const A* row_losses = static_cast<const A*>(problem.row_losses);
  double sums[2] = {0, 0};
  for (int64_t i = team.rank(); i < group_rows; i += team.size()) {
    const int64_t row = group * group_rows + i;
    sums[0] += static_cast<double>(row_losses[row]);
    if (problem.hard.target) sums[1] += static_cast<double>(row_losses[rows + row]);
  }
  team.sum(sums);
  const Divisors divisor = group_divisors<double>(problem, group);
  if (team.rank() != 0) return;
  const double soft = sums[0] / divisor.soft, hard = sums[1] / divisor.hard;
  static_cast<A*>(problem.loss)[group] = static_cast<A>(weighted_loss(problem, soft, hard));
  if (!problem.parts) return;
  static_cast<A*>(problem.parts)[group] = static_cast<A>(soft);
  static_cast<A*>(problem.parts)[problem.groups + group] = static_cast<A>(hard);
}

// Reduction::none: a thread per row.
template <class A>
KD_KERNEL void KD_LAUNCH_BOUNDS(reduce_threads) weigh_rows_kernel(RowLoss problem) {
  const int64_t row = simt::block_index() * simt::block_threads() + simt::thread_index(), rows = problem.rows();
  if (row >= rows) return;
  const A* row_losses = static_cast<const A*>(problem.row_losses);
  const A soft = row_losses[row], hard = problem.hard.target ? row_losses[rows + row] : A(0);
  static_cast<A*>(problem.loss)[row] = static_cast<A>(weighted_loss(problem, soft, hard));
  if (!problem.parts) return;
  static_cast<A*>(problem.parts)[row] = soft;
  static_cast<A*>(problem.parts)[rows + row] = hard;
}

// gradient *= upstream, in place; leaves at once where upstream is the number 1.
template <class T, class U>
KD_KERNEL void KD_LAUNCH_BOUNDS(reduce_threads)
    scale_gradient_kernel(T* gradient,        // `count` numbers, dense, any order of dimensions
                          const U* upstream,  // one number, or one per row
                          int64_t count, int64_t classes, int64_t inner, bool per_row, bool classes_last) {
  if (!per_row && upstream[0] == U(1)) return;
  const int64_t step = simt::grid_blocks() * simt::block_threads() * chunk_classes;
  const int64_t begin = (simt::block_index() * simt::block_threads() + simt::thread_index()) * chunk_classes;
  for (int64_t first = begin; first < count; first += step) {
    T numbers[chunk_classes];
    load_neighbours(gradient + first, count - first, numbers);
    // Where the first number is; its neighbours follow without a division.
    int64_t row = 0, c = 0, r = 0;  // r: in the inner dimension
    if (per_row && classes_last) {
      row = first / classes;
      c = first % classes;
    } else if (per_row) {
      const int64_t line = first / inner;
      r = first % inner;
      c = line % classes;
      row = line / classes * inner + r;
    }
    KD_UNROLL for (int e = 0; e < chunk_classes; ++e) {
      from_arithmetic(to_arithmetic(numbers[e]) * upstream[per_row && first + e < count ? row : 0], numbers + e);
      if (classes_last) {
        if (++c < classes) continue;
        ++row;
      } else {
        ++row;
        if (++r < inner) continue;
        r = 0;
        if (++c < classes) {
          row -= inner;  // the same rows once more
          continue;
        }
      }
      c = 0;
    }
    store_neighbours(gradient + first, count - first, numbers);
  }
}

// --- Launchers ---------------------------------------------------------------------------------------------------------

template <class A, class Source, class D>
void launch_rows(const RowLoss& problem, const RowPlan& plan, void* stream, const D& divergence) {
  const auto lanes = [&](auto kernel) {
    simt::launch(kernel, plan.blocks, plan.threads, 0, stream, problem, divergence, plan.lanes);
  };
  const auto cluster = [&](auto kernel) {
    simt::launch_clusters(kernel, plan.blocks, plan.cluster, plan.threads, plan.shared_bytes, stream, problem, divergence);
  };
  if constexpr (sizeof(A) == sizeof(float)) {
    switch (plan.form) {
      case RowForm::held: return lanes(lane_rows_kernel<A, Source, D, Held<A, held_chunks>>);
      case RowForm::staged: return cluster(cluster_rows_kernel<A, Source, D, Staged<A>>);
      case RowForm::streamed: return cluster(cluster_rows_kernel<A, Source, D, Streamed<A>>);
      case RowForm::strided: break;
    }
  }
  lanes(lane_rows_kernel<A, Source, D, Streamed<A>>);
}

template <class A, class Source>
void launch_divergence(const RowLoss& problem, const RowPlan& plan, void* stream) {
  if constexpr (std::is_same_v<Source, LogitsTarget>)
    if (problem.soft.divergence == Divergence::forward && !problem.grad_teacher.data && problem.soft.target_eps == 0 && problem.soft.weight != 0)
      return launch_rows<A, Source>(problem, plan, stream, ConstantTeacherKL<A>{});
  switch (problem.soft.divergence) {
    case Divergence::forward: return launch_rows<A, Source>(problem, plan, stream, ForwardKL<A>{});
    case Divergence::reverse: return launch_rows<A, Source>(problem, plan, stream, ReverseKL<A>{});
    case Divergence::jsd:
      return launch_rows<A, Source>(problem, plan, stream, JensenShannon<A>{static_cast<A>(problem.soft.beta)});
    case Divergence::cross_entropy: return launch_rows<A, Source>(problem, plan, stream, CrossEntropy<A>{});
  }
}

// Sources with one divergence, or with those that differ by a constant.
template <class A>
void launch_source(const RowLoss& problem, const RowPlan& plan, void* stream) {
  switch (problem.source) {
    case TargetSource::logits: return launch_divergence<A, LogitsTarget>(problem, plan, stream);
    case TargetSource::log_probs: return launch_divergence<A, LogProbsTarget>(problem, plan, stream);
    case TargetSource::probs: return launch_divergence<A, ProbsTarget>(problem, plan, stream);
    case TargetSource::label: return launch_rows<A, LabelTarget>(problem, plan, stream, ForwardKL<A>{});
    case TargetSource::permuted: return launch_rows<A, PermutedTarget>(problem, plan, stream, CrossEntropy<A>{});
    case TargetSource::adjusted: return launch_rows<A, AdjustedTarget>(problem, plan, stream, ForwardKL<A>{});
  }
}

template <class A>
void launch_problem(RowLoss problem, const RowPlan& plan, void* stream) {
  if (problem.groups == 1 && problem.rows() <= few_rows) problem.counts = nullptr;
  else if (problem.has_counts()) simt::launch(count_rows_kernel, problem.groups, reduce_threads, 0, stream, problem);
  launch_source<A>(problem, plan, stream);
  if (problem.reduction == Reduction::none)
    simt::launch(weigh_rows_kernel<A>, parts_of(problem.rows(), reduce_threads), reduce_threads, 0, stream, problem);
  else
    simt::launch(reduce_rows_kernel<A>, problem.groups, reduce_threads, 0, stream, problem);
}

inline RowPlan plan_problem(const RowLoss& problem, int sm) {
  const bool teacher_is_unit = !problem.teacher.data || problem.teacher.class_stride == 1;
  const bool unit_stride = problem.student.class_stride == 1 && teacher_is_unit;
  return plan_rows(problem.rows(), problem.classes, element_size(problem.student.dtype),
                   element_size(problem.teacher.dtype), problem.is_double(), unit_stride, sm);
}

// The first pass alone: the statistic of every row, as it is before the batch is known.
inline void row_statistics_cuda(const RowLoss& problem, int sm, void* stream) {
  const RowPlan plan = plan_problem(problem, sm);
  if (problem.is_double()) launch_statistics<double>(problem, plan, stream);
  else launch_statistics<float>(problem, plan, stream);
}

// `plan`: of the rows once the statistics are known.
inline void row_loss_cuda(const RowLoss& problem, const RowPlan& plan, int sm, void* stream) {
  const RowLoss rest = problem.after_statistics();
  if (problem.first.statistic != RowStatistic::none) {
    if (!problem.has_statistics()) row_statistics_cuda(problem, sm, stream);
    const auto apply = problem.is_double() ? apply_statistics_kernel<double> : apply_statistics_kernel<float>;
    simt::launch(apply, problem.groups, reduce_threads, 0, stream, problem);
  }
  if (problem.is_double()) launch_problem<double>(rest, plan, stream);
  else launch_problem<float>(rest, plan, stream);
}

inline void scale_gradient_cuda(const Rows& gradient, int64_t outer, int64_t classes, int64_t inner,
                                const void* upstream, Dtype upstream_dtype, bool per_row, void* stream) {
  const int64_t count = outer * classes * inner;
  int64_t blocks = parts_of(count, reduce_threads * chunk_classes);
  blocks = blocks < scale_blocks_limit ? blocks : scale_blocks_limit;
  with_dtype(gradient.dtype, [&](auto* type) {
    with_dtype(upstream_dtype, [&](auto* upstream_type) {
      using T = std::remove_pointer_t<decltype(type)>;
      using U = std::remove_pointer_t<decltype(upstream_type)>;
      if constexpr (std::is_floating_point_v<U>)
        simt::launch(scale_gradient_kernel<T, U>, blocks, reduce_threads, 0, stream, static_cast<T*>(gradient.data),
                     static_cast<const U*>(upstream), count, classes, inner, per_row, gradient.class_stride == 1);
    });
  });
}

}  // namespace
}  // namespace kd
