// The largest class of a row.
#pragma once
#include <cmath>

#include "cuda/chunk.cuh"
#include "cuda/row_storage.cuh"
#include "cuda/simt.cuh"
#include "row_loss.h"

namespace kd {
namespace {

// The largest number of a row, that of the lowest class among equals: its class, and the number of that class in another row.
template <class A>
struct RunningLargest {
  A value = -HUGE_VALF;
  int64_t index = -1;  // -1: no class yet
  A beside = 0;

  KD_DEVICE void add(int64_t c, A x, A other) {
    if (index >= 0 && !(x > value)) return;
    value = x;
    index = c;
    beside = other;
  }

  // Merges those of all threads. Class numbers are exact in A: there are at most most_classes.
  template <class Team>
  KD_DEVICE void merge(int64_t classes, Team& team) {
    A highest[1] = {value};
    team.max(highest);
    A lowest[1] = {-static_cast<A>(index >= 0 && value == highest[0] ? index : classes)};
    team.max(lowest);
    const int64_t winner = static_cast<int64_t>(-lowest[0]);
    A from_winner[1] = {winner == index ? beside : A(0)};
    team.sum(from_winner);
    value = highest[0];
    index = winner < classes ? winner : 0;  // a row of NaN has no largest class
    beside = from_winner[0];
  }
};

// The teacher's largest class, and the logit of the label (0 for none). All threads take part.
template <class A, class Team, class Storage>
KD_DEVICE RunningLargest<A> largest_class(const RowLoss& problem, bool computed, int64_t label,
                                          const RowPosition& position, Team& team, Storage& storage,
                                          A* label_logit) {
  RunningLargest<A> largest;
  A of_label[1] = {0};
  storage.for_each(problem, position, computed, team,
                   [&](Chunk chunk, const A(&)[chunk_classes], const A(&t)[chunk_classes]) {
                     KD_UNROLL for (int e = 0; e < chunk_classes; ++e) {
                       const int c = chunk.of(e);
                       if (c >= position.classes) continue;
                       largest.add(c, t[e], A(0));
                       if (c == label) of_label[0] = t[e];
                     }
                   });
  largest.merge(problem.classes, team);
  team.sum(of_label);
  *label_logit = of_label[0];
  return largest;
}

}  // namespace
}  // namespace kd
