// The first sweep over a row: maxima and sums of exponentials of student and teacher.
#pragma once
#include "cuda/chunk.cuh"
#include "cuda/launch.h"
#include "cuda/row_formulas.cuh"
#include "cuda/row_work.cuh"
#include "cuda/running_softmax.cuh"
#include "cuda/simt.cuh"
#include "row_loss.h"

namespace kd {
namespace {

template <class A>
struct RowSoftmaxes {
  Softmax<A> student, teacher;  // of z / T and t / T
  Softmax<A> cold;              // of z, for the hard label
  A student_log_sum, cold_log_sum;
  A log_sums;                   // of the ratio of the teacher's sum to the student's
};

// All threads take part. Without a teacher, `teacher` and `log_sums` are meaningless.
template <class A, bool with_teacher = true, class Team, class Storage>
KD_DEVICE RowSoftmaxes<A> row_softmaxes(const RowLoss& problem, const RowWork<A>& work, Team& team, Storage& storage) {
  const A inverse_temperature = work.inverse_temperature;
  const bool cold = work.scales.has_hard;
  RunningSoftmax<A> student, teacher;
  storage.for_each(problem, work.position, work.computed, team,
                   [&](Chunk, const A(&z)[chunk_classes], const A(&t)[chunk_classes]) {
                     student.add(z, inverse_temperature, cold);
                     if constexpr (with_teacher) teacher.add(t, inverse_temperature, false);
                   });
  A highest[2] = {student.max, teacher.max};
  team.max(highest);
  student.raise(highest[0], inverse_temperature, cold);
  teacher.raise(highest[1], inverse_temperature, false);
  student.sums.fold();
  teacher.sums.fold();
  A totals[3] = {student.sums.total[0], teacher.sums.total[0], student.sums.total[1]};
  team.sum(totals);
  return {{student.max, inverse_temperature, A(1) / totals[0]},
          {teacher.max, inverse_temperature, A(1) / totals[1]},
          {student.max, A(1), A(1) / totals[2]},
          log(totals[0]),
          log(totals[2]),
          log(totals[1] / totals[0])};
}

}  // namespace
}  // namespace kd
