// The last sweep over rows of forward KL to a constant teacher, or of cross entropy with one: the loss and the gradient.
//
// They follow from the unnormalized weights a = exp((z - max z) / T) and b = exp((t - max t) / T), a few instructions per class:
//
//     D(p, q) = sum b ((t - max t) - (z - max z)) / (T sum b) - log(sum b / sum a)
//     T dD/dz = q - p = (a (sum b / sum a) - b) / sum b          0 where the rows are equal
#pragma once
#include <cmath>

#include "cuda/chunk.cuh"
#include "cuda/label_term.cuh"
#include "cuda/launch.h"
#include "cuda/row_formulas.cuh"
#include "cuda/row_softmaxes.cuh"
#include "cuda/row_work.cuh"
#include "cuda/running_softmax.cuh"
#include "cuda/simt.cuh"
#include "row_loss.h"

namespace kd {
namespace {

// The order in which classes get the teacher's logits. An exchange or a permutation of classes does not change the sums of a
// softmax: those of the teacher's own order are used.
//
//     is_label()            the row's target follows from its label alone
//     read(chunk, raw, t)   the logits t of a chunk in this order; `raw`: in the teacher's own
//     is_cross_entropy      the loss is -sum p log q
template <class A>
struct AsTheyAre {
  static constexpr bool is_cross_entropy = false;

  static KD_DEVICE constexpr bool is_label() { return false; }
  static KD_DEVICE void read(Chunk, const A (&raw)[chunk_classes], A (&t)[chunk_classes]) {
    KD_UNROLL for (int e = 0; e < chunk_classes; ++e) t[e] = raw[e];
  }
};

// `uses_label`: an out-of-range label turns the soft term into NaN, too.
template <class A, class Order, class Team, class Storage>
KD_DEVICE void forward_row(const RowLoss& problem, const RowWork<A>& work, const RowSoftmaxes<A>& its, const Order& order,
                           bool uses_label, Team& team, Storage& storage) {
  const RowScales<A>& scales = work.scales;
  const A inverse_temperature = work.inverse_temperature;
  LabelTerm<A> hard = hard_term(problem, work, static_cast<A>(problem.classes)), replaced{};
  const bool is_label = scales.has_soft && order.is_label(), has_soft = scales.has_soft && !is_label;
  if (is_label) replaced = soft_label_term(problem, work);
  const bool weighs = problem.soft.weight != 0;
  const bool soft_is_nan = scales.bad_label && scales.has_soft && uses_label;
  const bool is_nan = (soft_is_nan && weighs) || (scales.bad_label && hard.weighs);
  const bool wants_elsewhere = (is_label && replaced.off != A(0)) || (scales.has_hard && hard.off != A(0));

  // |q - p| <= 1 in either term.
  A soft_scale = scales.soft_gradient * inverse_temperature;
  const A factor = work.student_factor(problem, team, std::abs(soft_scale), std::abs(scales.hard_gradient));
  soft_scale *= factor;
  hard.scale *= factor;
  replaced.scale *= factor;
  const A ratio = its.student.inverse_sum / its.teacher.inverse_sum, scale = soft_scale * its.teacher.inverse_sum;

  BlockedSums<A, 3> row_losses;  // divergence, label's logit, the other logits
  storage.for_each(problem, work.position, work.computed, team,
                   [&](Chunk chunk, const A(&z)[chunk_classes], const A(&raw)[chunk_classes]) {
    A gradient[chunk_classes] = {}, t[chunk_classes], divergence = 0;
    LabelSums<A> sums;
    order.read(chunk, raw, t);
    if (is_label) replaced.add_gradient(work.label, its.student, chunk, z, gradient);
    if (has_soft)  // beyond the last class both weights are 0
      KD_UNROLL for (int e = 0; e < chunk_classes; ++e) {
        const A student = z[e] - its.student.max, teacher = t[e] - its.teacher.max;
        const A student_weight = exp_product(student, inverse_temperature);
        const A teacher_weight = exp_product(teacher, inverse_temperature);
        if (teacher_weight != A(0)) divergence += teacher_weight * (Order::is_cross_entropy ? -student : teacher - student);
        if (weighs) gradient[e] = (student_weight * ratio - teacher_weight) * scale;
      }
    if (scales.has_hard) hard.add_gradient(work.label, its.cold, chunk, z, gradient);
    if (is_label || scales.has_hard)
      sums.add(work.label, wants_elsewhere, its.student.max, chunk, work.position.classes, z);
    const A part[3] = {divergence, sums.at_label, sums.elsewhere};
    row_losses.add(part);
    work.write_grad_student(problem, chunk, is_nan, gradient);
  });
  row_losses.fold();
  A losses[3] = {row_losses.total[0], row_losses.total[1], row_losses.total[2]};
  team.sum(losses);

  const A log_sums = Order::is_cross_entropy ? -its.student_log_sum : its.log_sums;
  A soft = losses[0] * (inverse_temperature * its.teacher.inverse_sum) - log_sums;
  if (is_label)
    soft = replaced.cross_entropy(its.student_log_sum, inverse_temperature, losses[1], losses[2]) -
           static_cast<A>(problem.label.entropy);
  if (soft_is_nan) soft = NAN;
  work.write_losses(problem, team, soft, hard_value(hard, work, its.cold_log_sum, losses[1], losses[2]));
}

}  // namespace
}  // namespace kd
