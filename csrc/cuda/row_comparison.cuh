// The part of a row that the soft term compares: its first classes, or all, and their z-scores with `standardize`.
//
//     z' = (z - mean z) / (s + 1e-7)              s: the sample standard deviation
//     dD/dz = (g - z' (s + 1e-7) / (s (C - 1)) sum g z') / (s + 1e-7)      g = dD/dz', whose sum is 0
//
// Classes of probability 0 (-inf) do not count in the mean and in s, and their gradient is 0. A constant row becomes 0, with
// gradient 0.
#pragma once
#include <cmath>

#include "cuda/chunk.cuh"
#include "cuda/launch.h"
#include "cuda/math.cuh"
#include "cuda/row_work.cuh"
#include "cuda/running_softmax.cuh"
#include "cuda/simt.cuh"
#include "row_loss.h"

namespace kd {
namespace {

// The z-scores of one row.
template <class A>
struct Standard {
  A mean = 0;               // of z - max z: 0 to the bit in a constant row
  A count = 0;
  A inverse_unit = 1;       // 1 / (s + 1e-7). The softmax of z' / T is that of z at a temperature so many times lower.
  A along = 0;              // sum g z' / (s (C - 1))
  bool is_constant = false;

  KD_DEVICE static bool is_present(A z) { return z != -static_cast<A>(HUGE_VALF); }

  KD_DEVICE void set_mean(A sum, A classes) {
    count = classes;
    mean = sum / classes;
  }
  KD_DEVICE void set_deviation(A sum_of_squares) {
    const A deviation = count > A(0) ? std::sqrt(sum_of_squares / degrees()) : A(NAN);
    is_constant = deviation == A(0);
    if (!is_constant) inverse_unit = A(1) / (deviation + A(1e-7));
  }
  KD_DEVICE void set_along(A sum) { along = is_constant ? A(0) : sum / ((A(1) / inverse_unit - A(1e-7)) * degrees()); }

  // z' of a class that is present; `above`: z - max z.
  KD_DEVICE A score(A above) const { return (above - mean) * inverse_unit; }

  // What a class adds to sum g z'.
  KD_DEVICE A product(A g, A above) const { return is_present(above) ? g * score(above) : A(0); }

  // dD/dz of a class.
  KD_DEVICE A gradient(A g, A above) const {
    return is_constant || !is_present(above) ? A(0) : g * inverse_unit - score(above) * along;
  }

  // No entry of it is larger, where no g is larger than `most`: |z'| <= sqrt(C).
  KD_DEVICE A bound(A most) const {
    return is_constant ? A(0) : most * inverse_unit + std::abs(along) * std::sqrt(count);
  }

 private:
  KD_DEVICE A degrees() const { return larger(count - A(1), A(1)); }
};

template <class A>
struct RowComparison {
  int classes;        // compared: the first so many of both rows
  bool standardized;
  Standard<A> student, teacher;

  KD_DEVICE explicit RowComparison(const RowLoss& problem)
      : classes(static_cast<int>(problem.compared_classes())), standardized(problem.soft.standardize) {}
};

// Means and deviations of both rows, in three sweeps: the deviation is that of two passes. All threads take part.
template <class A, class Team, class Storage>
KD_DEVICE void standardize_rows(const RowLoss& problem, const RowWork<A>& work, Team& team, Storage& storage,
                                RowComparison<A>& its) {
  A highest[2] = {-static_cast<A>(HUGE_VALF), -static_cast<A>(HUGE_VALF)}, counts[2] = {0, 0}, sums[2], squares[2];
  // number(standard, z - max z), summed over the classes of either row that are compared and present.
  const auto sums_of = [&](const auto& number, A(&totals)[2]) {
    BlockedSums<A, 2> sums;
    storage.for_each(problem, work.position, work.computed, team,
                     [&](Chunk chunk, const A(&z)[chunk_classes], const A(&t)[chunk_classes]) {
      A part[2] = {0, 0};
      KD_UNROLL for (int e = 0; e < chunk_classes; ++e) {
        if (chunk.of(e) >= its.classes) continue;
        if (Standard<A>::is_present(z[e])) part[0] += number(its.student, z[e] - highest[0]);
        if (Standard<A>::is_present(t[e])) part[1] += number(its.teacher, t[e] - highest[1]);
      }
      sums.add(part);
    });
    sums.fold();
    totals[0] = sums.total[0];
    totals[1] = sums.total[1];
    team.sum(totals);
  };
  storage.for_each(problem, work.position, work.computed, team,
                   [&](Chunk chunk, const A(&z)[chunk_classes], const A(&t)[chunk_classes]) {
    KD_UNROLL for (int e = 0; e < chunk_classes; ++e) {
      if (chunk.of(e) >= its.classes) continue;
      highest[0] = larger(highest[0], z[e]);
      highest[1] = larger(highest[1], t[e]);
      counts[0] += Standard<A>::is_present(z[e]);
      counts[1] += Standard<A>::is_present(t[e]);
    }
  });
  team.max(highest);
  team.sum(counts);
  sums_of([](const Standard<A>&, A above) { return above; }, sums);
  its.student.set_mean(sums[0], counts[0]);
  its.teacher.set_mean(sums[1], counts[1]);
  sums_of([](const Standard<A>& its, A above) { return (above - its.mean) * (above - its.mean); }, squares);
  its.student.set_deviation(squares[0]);
  its.teacher.set_deviation(squares[1]);
}

}  // namespace
}  // namespace kd
