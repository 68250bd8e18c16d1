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
  A mass = 0, above = 0;  // sum u, sum u (z - max z)

  // u of a chunk, 0 beyond the last class. `term`: on - off = 1 - smoothing, off = smoothing / C.
  KD_DEVICE static void read(const RowLoss& problem, const RowWork<A>& work, const LabelTerm<A>& term, Chunk chunk,
                             A (&u)[chunk_classes]) {
    const int classes = work.position.student_classes, count = work.scales.has_hard ? classes : 0;
    const Rows& probs = problem.hard.probs;
    if (sizeof(A) == sizeof(float) && probs.dtype == Dtype::float64) {  // which rows of float32 arithmetic do not have otherwise
      const double* y = work.position.begin(probs, static_cast<double*>(nullptr));
      KD_UNROLL for (int e = 0; e < chunk_classes; ++e)
        u[e] = chunk.of(e) < count ? static_cast<A>(y[chunk.of(e) * probs.class_stride]) : A(0);
    } else {
      read_row(probs, work.position, chunk, count, 0, u);
    }
    KD_UNROLL for (int e = 0; e < chunk_classes; ++e) u[e] = chunk.of(e) < classes ? u[e] * (term.on - term.off) + term.off : A(0);
  }

  // All threads take part.
  template <class Team, class Storage>
  KD_DEVICE void measure(const RowLoss& problem, const RowWork<A>& work, const LabelTerm<A>& term, A max, Team& team,
                         Storage& storage) {
    BlockedSums<A, 2> sums;
    storage.for_each(problem, work.position, work.scales.has_hard, team,
                     [&](Chunk chunk, const A(&z)[chunk_classes], const A(&)[chunk_classes]) {
      A u[chunk_classes], part[2] = {0, 0};
      read(problem, work, term, chunk, u);
      KD_UNROLL for (int e = 0; e < chunk_classes; ++e) {
        part[0] += u[e];
        part[1] += weighted(u[e], z[e] - max);
      }
      sums.add(part);
    });
    sums.fold();
    team.sum(sums.total);
    mass = sums.total[0];
    above = sums.total[1];
  }

  KD_DEVICE void add_gradient(const RowLoss& problem, const RowWork<A>& work, const LabelTerm<A>& term, const Softmax<A>& student,
                              Chunk chunk, const A (&z)[chunk_classes], A (&gradient)[chunk_classes]) const {
    if (!term.weighs) return;
    A u[chunk_classes];
    read(problem, work, term, chunk, u);
    KD_UNROLL for (int e = 0; e < chunk_classes; ++e)
      gradient[e] += (student.weight(z[e]) * student.inverse_sum * mass - u[e]) * term.scale;
  }
};

}  // namespace
}  // namespace kd
