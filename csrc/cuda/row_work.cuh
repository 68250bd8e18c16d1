// What a team knows of its row before it reads the logits, and where the row's results go.
#pragma once
#include <cmath>

#include "cuda/chunk.cuh"
#include "cuda/launch.h"
#include "cuda/row_counts.cuh"
#include "cuda/row_storage.cuh"
#include "cuda/simt.cuh"
#include "row_loss.h"
#include "row_scales.h"

namespace kd {
namespace {

// All threads of a team have one of these and take part in every reduction, even if their row does not exist or is not
// computed: only loads, stores and additions are guarded.
template <class A>
struct RowWork {
  int64_t row;
  bool exists;            // false: a warp's last rows, beyond those of the problem
  RowScales<A> scales{};
  bool computed = false;  // false: none of the row's terms counts, its logits are not read
  A inverse_temperature = 1;
  int label = -1;         // -1: none, or out of range
  RowPosition position;

  KD_DEVICE RowWork(const RowLoss& problem, int64_t row)
      : row(row), exists(row < problem.rows()), position(problem, exists ? row : 0) {
    const Divisors divisor = row_divisors<A>(problem, row);
    if (!exists) return;
    scales = row_scales<A>(problem, row, divisor);
    computed = scales.has_soft || scales.has_hard;
    inverse_temperature = scales.inverse_temperature;
    if (scales.has_label && !scales.bad_label) label = static_cast<int>(scales.label);
  }

  // Whether the soft and the hard term have a gradient: a term of weight 0 adds nothing, not even NaN.
  KD_DEVICE bool soft_weighs(const RowLoss& problem) const { return scales.has_soft && problem.soft.weight != 0; }
  KD_DEVICE bool hard_weighs(const RowLoss& problem) const { return scales.has_hard && problem.hard.weight != 0; }

  // `is_nan`: an out-of-range label turns the gradient of every term that uses it into NaN, unless its weight is 0.
  KD_DEVICE void write_grad_student(const RowLoss& problem, Chunk chunk, bool is_nan, A (&gradient)[chunk_classes]) const {
    if (!exists || !problem.grad_student.data) return;
    if (is_nan)
      KD_UNROLL for (int e = 0; e < chunk_classes; ++e) gradient[e] = NAN;
    write_row(problem.grad_student, position, chunk, position.student_classes, gradient);
  }

  template <class Team>
  KD_DEVICE void write_losses(const RowLoss& problem, const Team& team, A soft, A hard) const {
    if (!exists || team.rank() != 0) return;
    A* to = static_cast<A*>(problem.row_losses);
    to[row] = scales.has_soft ? scales.soft * soft : A(0);
    to[problem.rows() + row] = hard;
  }

  // The factor that a float16 gradient of the student is stored with, whose inverse is the row's unit; `soft`, `hard`: the
  // largest entries that either term can have.
  template <class Team>
  KD_DEVICE A student_factor(const RowLoss& problem, const Team& team, A soft, A hard) const {
    if (!problem.unit_student) return A(1);
    const A factor = float16_factor((soft_weighs(problem) ? soft : A(0)) + (hard_weighs(problem) ? hard : A(0)));
    if (exists && team.rank() == 0) static_cast<A*>(problem.unit_student)[row] = A(1) / factor;
    return factor;
  }
};

}  // namespace
}  // namespace kd
