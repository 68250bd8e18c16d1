// The hard term of rows whose target is a distribution y over the classes instead of a label (mixup):
//
//     u = (1 - smoothing) y + smoothing / C
//     -sum u log softmax(z) = sum u log sum exp(z - max z) - sum u (z - max z)        dz = softmax(z) sum u - u
//
// y is read from global memory: once for the two sums, once for the gradient. Nothing says that it sums to 1.
#pragma once
#include "cuda/chunk.cuh"
#include "cuda/label_term.cuh"
#include "cuda/launch.h"
#include "cuda/row_formulas.cuh"
#include "cuda/row_storage.cuh"
#include "cuda/row_work.cuh"
#include "cuda/running_softmax.cuh"
#include "cuda/simt.cuh"
#include "row_loss.h"

namespace kd {
namespace {

template <class A>
struct HardDistribution {
  A kept;                 // 1 - smoothing
  A mass = 0, above = 0;  // sum u, sum u (z - max z)

  KD_DEVICE explicit HardDistribution(const RowLoss& problem) : kept(A(1) - static_cast<A>(problem.hard.smoothing)) {}

  // All threads take part. `term`: off = smoothing / C.
  template <class Team, class Storage>
  KD_DEVICE void measure(const RowLoss& problem, const RowWork<A>& work, const LabelTerm<A>& term, A max, Team& team,
                         Storage& storage) {
    const int classes = work.position.student_classes;
    BlockedSums<A, 2> sums;
    storage.for_each(problem, work.position, work.scales.has_hard, team,
                     [&](Chunk chunk, const A(&z)[chunk_classes], const A(&)[chunk_classes]) {
      A y[chunk_classes], part[2] = {0, 0};
      read(problem, work, chunk, y);
      KD_UNROLL for (int e = 0; e < chunk_classes; ++e) {
        part[0] += y[e];
        if (chunk.of(e) < classes) part[1] += weighted(y[e] * kept + term.off, z[e] - max);
      }
      sums.add(part);
    });
    sums.fold();
    team.sum(sums.total);
    mass = kept * sums.total[0] + static_cast<A>(problem.hard.smoothing);
    above = sums.total[1];
  }

  KD_DEVICE void add_gradient(const RowLoss& problem, const RowWork<A>& work, const LabelTerm<A>& term, const Softmax<A>& student,
                              Chunk chunk, const A (&z)[chunk_classes], A (&gradient)[chunk_classes]) const {
    if (!term.weighs) return;
    A y[chunk_classes];
    read(problem, work, chunk, y);
    KD_UNROLL for (int e = 0; e < chunk_classes; ++e)
      gradient[e] += (student.weight(z[e]) * student.inverse_sum * mass - (y[e] * kept + term.off)) * term.scale;
  }

 private:
  // y of a chunk, 0 beyond the last class.
  KD_DEVICE static void read(const RowLoss& problem, const RowWork<A>& work, Chunk chunk, A (&y)[chunk_classes]) {
    const Rows& probs = problem.hard.probs;
    const int classes = work.scales.has_hard ? work.position.student_classes : 0;
    if (sizeof(A) == sizeof(double) || probs.dtype != Dtype::float64) return read_row(probs, work.position, chunk, classes, 0, y);
    // float64 probabilities in float32 arithmetic: read_row() has no such conversion.
    const double* from = work.position.begin(probs, static_cast<double*>(nullptr));
    KD_UNROLL for (int e = 0; e < chunk_classes; ++e)
      y[e] = chunk.of(e) < classes ? static_cast<A>(from[chunk.of(e) * probs.class_stride]) : A(0);
  }
};

}  // namespace
}  // namespace kd
