// Source permuted: soft cross entropy with the teacher's probabilities, shuffled among all classes but its largest. The last
// sweep is that of cuda/forward_sweep.cuh.
#pragma once
#include <cmath>

#include "cuda/chunk.cuh"
#include "cuda/forward_sweep.cuh"
#include "cuda/largest_class.cuh"
#include "cuda/launch.h"
#include "cuda/row_launch.cuh"
#include "cuda/row_softmaxes.cuh"
#include "cuda/row_storage.cuh"
#include "cuda/row_work.cuh"
#include "cuda/simt.cuh"
#include "cuda/team.cuh"
#include "permutation.h"
#include "row_loss.h"

namespace kd {
namespace {

// The teacher's classes in another order, gathered from global memory, where the row has just been read.
template <class A>
struct Permuted {
  static constexpr bool is_cross_entropy = true;

  const RowLoss& problem;
  const RowPosition& position;
  int64_t row;
  bool computed;
  int64_t kept = 0;  // the class that stays where it is

  template <class Team, class Storage>
  KD_DEVICE Permuted(const RowLoss& problem, const RowWork<A>& work, Team& team, Storage& storage)
      : problem(problem), position(work.position), row(work.row), computed(work.scales.has_soft) {
    A no_label;
    if (!problem.permutation.of_rows) kept = largest_class<A>(problem, computed, -1, position, team, storage, &no_label).index;
  }

  static KD_DEVICE constexpr bool is_label() { return false; }

  KD_DEVICE void read(Chunk chunk, const A (&)[chunk_classes], A (&t)[chunk_classes]) const {
    int64_t from[chunk_classes];
    if (problem.permutation.of_rows) given(chunk, from);
    else drawn(chunk, from);
    KD_UNROLL for (int e = 0; e < chunk_classes; ++e) {
      // A class out of range makes its row NaN: a device cannot raise.
      t[e] = chunk.of(e) < position.classes ? A(NAN) : -static_cast<A>(HUGE_VALF);
      if (computed && from[e] >= 0 && from[e] < problem.classes) t[e] = read_class<A>(problem.teacher, position, from[e]);
    }
  }

 private:
  KD_DEVICE void given(Chunk chunk, int64_t (&from)[chunk_classes]) const {
    KD_UNROLL for (int e = 0; e < chunk_classes; ++e) {
      const int c = chunk.of(e);
      from[e] = -1;
      if (computed && c < position.classes) from[e] = problem.permutation.of_rows[row * problem.classes + c];
    }
  }

  KD_DEVICE void drawn(Chunk chunk, int64_t (&from)[chunk_classes]) const {
    const Shuffle shuffle(problem.permutation.seed, static_cast<uint64_t>(row), problem.classes - 1);
    uint32_t ranks[chunk_classes];
    KD_UNROLL for (int e = 0; e < chunk_classes; ++e) {
      const int c = chunk.of(e);
      const bool moves = c < position.classes && c != kept;
      ranks[e] = moves ? static_cast<uint32_t>(rank_of(c, kept)) : 0u;
    }
    for (int number = 0; number < shuffle.rounds; ++number) {
      const Shuffle::Round round = shuffle.round(number);
      KD_UNROLL for (int e = 0; e < chunk_classes; ++e) ranks[e] = shuffle.moved(ranks[e], round);
    }
    KD_UNROLL for (int e = 0; e < chunk_classes; ++e) {
      const int c = chunk.of(e);
      from[e] = c == kept ? kept : c < position.classes ? class_of(ranks[e], kept) : -1;
    }
  }
};

template <class A, class Team, class Storage>
KD_DEVICE void solve_permuted_row(const RowLoss& problem, Team& team) {
  const RowWork<A> work(problem, team.row());
  Storage storage;
  storage.load(problem, work.position, work.computed, team, -HUGE_VALF);
  const RowSoftmaxes<A> its = row_softmaxes(problem, work, team, storage);
  forward_row(problem, work, its, Permuted<A>(problem, work, team, storage), false, team, storage);
}

template <class A, class Team, class Storage>
KD_KERNEL void KD_LAUNCH_BOUNDS(largest_block, 1) permuted_rows_kernel(RowLoss problem, int lanes) {
  Team team(lanes);
  solve_permuted_row<A, Team, Storage>(problem, team);
  team.end();
}

void launch_permuted_rows(const RowLoss& problem, const RowPlan& plan, void* stream) {
  launch_rows(problem, plan, stream, permuted_rows_kernel<float, RowTeam, Staged<float>>,
              permuted_rows_kernel<float, RowTeam, Streamed<float>>,
              permuted_rows_kernel<double, LaneTeam, Streamed<double>>);
}

}  // namespace
}  // namespace kd
