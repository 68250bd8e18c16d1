// What the rows of a group are divided by: the rows that either term counts.
#pragma once
#include "cuda/launch.h"
#include "cuda/simt.cuh"
#include "cuda/team.cuh"
#include "row_loss.h"
#include "row_scales.h"

namespace kd {
namespace {

// Rows of a group that the soft and the hard term count, by a block.
template <class A>
KD_DEVICE void count_group(const RowLoss& problem, int64_t group, A (&counts)[2]) {
  const BlockTeam<A> block;
  const int64_t group_rows = problem.group_rows();
  counts[0] = counts[1] = 0;
  for (int64_t i = block.rank(); i < group_rows; i += block.size()) {
    const int64_t row = group * group_rows + i;
    counts[0] += problem.counts_row(row);
    counts[1] += problem.counts_hard(row);
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

}  // namespace
}  // namespace kd
