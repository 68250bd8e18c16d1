// From features to losses: the softmax of every row of similarities, tile by tile, the loss of a row, and that of the batch.
#pragma once
#include "cuda/similarity_work.cuh"
#include "cuda/team.cuh"

namespace kd {
namespace {

// A thread's part of one tile: 8 rows, 8 columns each.
template <class A, bool teacher, class Kind>
KD_DEVICE void sweep_tile(const SimilarityOnDevice<A>& problem, bool by_column, int64_t first_row, int64_t first_column,
                          const LogitTile<A>& student_tile, const LogitTile<A>& teacher_tile, typename Kind::Sums& products,
                          typename Kind::Sums& teacher_products, RowSweep<A> (&sweeps)[own_rows]) {
  const A inverse_temperature = problem.inverse_temperature();
  const int64_t rows = student_tile.rows.rows, columns = student_tile.columns.rows;
  KD_UNROLL for (int r = 0; r < own_rows; ++r) {
    const int64_t row = first_row + Kind::row(r);
    if (row >= rows) continue;
    RowSweep<A>& sweep = sweeps[r];
    A student[own_rows], other[own_rows], highest = -HUGE_VALF, teacher_highest = -HUGE_VALF;
    KD_UNROLL for (int c = 0; c < own_rows; ++c) {
      const int64_t column = first_column + Kind::column(c), j = by_column ? column : row, k = by_column ? row : column;
      student[c] = other[c] = -HUGE_VALF;
      if (column >= columns || problem.is_own(j, k) || (by_column && !problem.has_query(j))) continue;
      student[c] = student_tile(products.at(r, c), row, column, inverse_temperature);
      if (problem.bias)
        student[c] += static_cast<const A*>(problem.bias)[j * problem.bias_query_stride + k * problem.bias_key_stride];
      if (student[c] > highest) highest = student[c];
      if (by_column) continue;
      if constexpr (teacher) {
        other[c] = teacher_tile(teacher_products.at(r, c), row, column, inverse_temperature);
        if (other[c] > teacher_highest) teacher_highest = other[c];
      } else if (is_positive(problem, j, k)) {
        sweep.chosen += student[c];
        sweep.positives += A(1);
      }
    }
    sweep.raise(highest);
    const A base = RowSweep<A>::base(sweep.max);
    KD_UNROLL for (int c = 0; c < own_rows; ++c) sweep.sum += exponential(student[c] - base);
    if constexpr (teacher) {
      sweep.raise_teacher(teacher_highest);
      const A teacher_base = RowSweep<A>::base(sweep.teacher_max);
      KD_UNROLL for (int c = 0; c < own_rows; ++c) {
        const A weight = exponential(other[c] - teacher_base);
        sweep.teacher_sum += weight;
        sweep.against += weight == A(0) ? A(0) : weight * (other[c] - student[c]);
      }
    }
  }
}

// Threads that share rows put their sweeps together. Of the lanes, the first has them in the order of their columns.
template <class A, class Kind, class Body>
KD_DEVICE void merge_sweeps(RowSweep<A> (&sweeps)[own_rows], TileNumbers16& shared, const Body& body) {
  constexpr int words = sizeof(RowSweep<A>) / 4;
  KD_UNROLL for (int r = 0; r < own_rows; ++r)
    KD_UNROLL for (int mask = 1; mask < Kind::warp_sharers; mask *= 2) {
      uint32_t mine[words], theirs[words];
      memcpy(mine, &sweeps[r], sizeof mine);
      KD_UNROLL for (int w = 0; w < words; ++w) theirs[w] = simt::shuffle_xor(mine[w], mask);
      RowSweep<A> other;
      memcpy(&other, theirs, sizeof other);
      sweeps[r].merge(other);
    }
  static_assert(sizeof(RowSweep<A>) * Kind::warps_across * tile_rows <= sizeof(TileNumbers16), "room for all");
  auto* table = reinterpret_cast<RowSweep<A>*>(shared);
  if (simt::lane_index() % Kind::warp_sharers == 0)
    KD_UNROLL for (int r = 0; r < own_rows; ++r) table[Kind::warp_across() * tile_rows + Kind::row(r)] = sweeps[r];
  simt::sync_threads();
  for (int row = simt::thread_index(); row < tile_rows; row += tile_threads) {
    RowSweep<A> all = table[row];
    for (int across = 1; across < Kind::warps_across; ++across) all.merge(table[across * tile_rows + row]);
    body(row, all);
  }
}

template <class Kind, bool teacher>
KD_KERNEL void KD_LAUNCH_BOUNDS(tile_threads)
    sweep_kernel(SimilarityOnDevice<typename Kind::Number> problem, bool by_column, int shares) {
  using A = typename Kind::Number;
  KD_SHARED(simt::Bytes16, shared, 4 * tile_bytes / 16);
  const LogitTile<A> student_tile = logits_of(problem, false, by_column), teacher_tile = logits_of(problem, teacher, by_column);
  const int64_t first_row = simt::block_index() / shares * tile_rows, share = simt::block_index() % shares;
  const int64_t tiles = (student_tile.columns.rows + tile_rows - 1) / tile_rows;
  const int64_t end = tiles * (share + 1) / shares;
  RowSweep<A> sweeps[own_rows];
  for (int64_t tile = tiles * share / shares; tile < end; ++tile) {
    const int64_t first_column = tile * tile_rows;
    typename Kind::Sums products, teacher_products;
    multiply_tiles<Kind, false, false>(student_tile.rows, first_row, student_tile.columns, first_column, 0,
                                       student_tile.rows.depth, shared, products);
    if constexpr (teacher)
      multiply_tiles<Kind, false, false>(teacher_tile.rows, first_row, teacher_tile.columns, first_column, 0,
                                         teacher_tile.rows.depth, shared, teacher_products);
    sweep_tile<A, teacher, Kind>(problem, by_column, first_row, first_column, student_tile, teacher_tile, products,
                                 teacher_products, sweeps);
  }
  merge_sweeps<A, Kind>(sweeps, shared, [&](int row, const RowSweep<A>& all) {
    if (first_row + row < student_tile.rows.rows)
      problem.work.shares[share * student_tile.rows.rows + first_row + row] = all;
  });
}

// A warp per row: 1 / max(norm, 1e-8).
template <class A>
KD_KERNEL void KD_LAUNCH_BOUNDS(reduce_threads) inverse_norms_kernel(Features features, A* inverse_norms) {
  const LaneTeam team(simt::warp_threads);
  const int64_t row = team.row();
  A sum[1] = {0};
  with_dtype(features.dtype, [&](auto* type) {
    if (row >= features.rows) return;
    const auto* numbers = static_cast<const std::remove_pointer_t<decltype(type)>*>(features.data) + row * features.stride;
    for (int64_t d = team.rank(); d < features.width; d += team.size()) {
      const A x = static_cast<A>(to_arithmetic(numbers[d]));
      sum[0] += x * x;
    }
  });
  team.sum(sum);
  const A norm = sqrt(sum[0]);
  if (row < features.rows && team.rank() == 0)
    inverse_norms[row] = A(1) / (norm < static_cast<A>(least_norm) ? static_cast<A>(least_norm) : norm);
}

template <class A>
KD_DEVICE RowSweep<A> merged_shares(const SimilarityOnDevice<A>& problem, int64_t row, int64_t rows, int shares) {
  RowSweep<A> all = problem.work.shares[row];
  for (int share = 1; share < shares; ++share) all.merge(problem.work.shares[share * rows + row]);
  return all;
}

template <class A>
KD_KERNEL void KD_LAUNCH_BOUNDS(reduce_threads) column_sums_kernel(SimilarityOnDevice<A> problem, int shares) {
  const int64_t k = simt::block_index() * simt::block_threads() + simt::thread_index();
  if (k < problem.keys()) problem.work.column_log_sums[k] = merged_shares(problem, k, problem.keys(), shares).log_sum();
}

// A thread per query: its loss, its weight in the batch.
template <class A>
KD_KERNEL void KD_LAUNCH_BOUNDS(reduce_threads) rows_kernel(SimilarityOnDevice<A> problem) {
  const int64_t j = simt::block_index() * simt::block_threads() + simt::thread_index();
  if (j >= problem.queries()) return;
  const SimilarityWorkspace<A>& work = problem.work;
  const RowSweep<A> row = merged_shares(problem, j, problem.queries(), problem.plan.row_shares);
  const A log_sum = row.log_sum(), temperature = A(1) / problem.inverse_temperature();
  bool counted = problem.has_query(j);
  A loss = 0;
  if (problem.target == KeyTarget::teacher) {
    // Differences of maxima and of logarithms: 0 for equal rows.
    const A by_max = RowSweep<A>::base(row.max) - RowSweep<A>::base(row.teacher_max);
    loss = row.against / row.teacher_sum + by_max + (logarithm(row.sum) - logarithm(row.teacher_sum));
    work.teacher_log_sums[j] = row.teacher_log_sum();
  } else if (problem.target == KeyTarget::labels) {
    counted = counted && row.positives > A(0);
    loss = log_sum - row.chosen / row.positives;
    work.positives[j] = counted ? row.positives : A(0);
  } else {
    const int64_t positive = problem.positive_of(j);
    const bool exists = positive >= 0 && positive < problem.keys();
    loss = exists ? log_sum - row.chosen : static_cast<A>(NAN);
    if (problem.symmetric && exists) loss = (loss + work.column_log_sums[positive] - row.chosen) / 2;
  }
  A weight = problem.row_weight ? static_cast<const A*>(problem.row_weight)[j] : A(1);
  if (problem.scale_by_t2) weight *= temperature * temperature;
  work.log_sums[j] = log_sum;
  work.row_losses[j] = counted ? weight * loss : A(0);
  work.weights[j] = !counted ? A(0) : loss != loss ? loss : weight;
  if (problem.reduction == Reduction::none) static_cast<A*>(problem.loss)[j] = work.row_losses[j];
}

// One block: the batch's loss, and what its rows are divided by.
template <class A>
KD_KERNEL void KD_LAUNCH_BOUNDS(reduce_threads) batch_kernel(SimilarityOnDevice<A> problem) {
  const BlockTeam<double> team;
  double sums[2] = {0, 0};
  for (int64_t j = team.rank(); j < problem.queries(); j += team.size()) {
    sums[0] += static_cast<double>(problem.work.row_losses[j]);
    const bool counted = problem.has_query(j) && (problem.target != KeyTarget::labels || problem.work.positives[j] > A(0));
    sums[1] += counted ? 1.0 : 0.0;
  }
  team.sum(sums);
  if (team.rank() != 0) return;
  double divisor = 1;
  if (problem.reduction == Reduction::batchmean || problem.reduction == Reduction::elementmean)
    divisor = sums[1] > 0 ? sums[1] : 1.0;
  if (problem.reduction == Reduction::elementmean) divisor *= static_cast<double>(problem.keys());
  *problem.work.divisor = static_cast<A>(divisor);
  if (problem.reduction != Reduction::none) *static_cast<A*>(problem.loss) = static_cast<A>(sums[0] / divisor);
}

// A thread per key: the weights of the queries whose positive it is.
template <class A>
KD_KERNEL void KD_LAUNCH_BOUNDS(reduce_threads) column_weights_kernel(SimilarityOnDevice<A> problem) {
  const int64_t k = simt::block_index() * simt::block_threads() + simt::thread_index();
  if (k >= problem.keys()) return;
  A sum = 0;
  if (!problem.positive) sum = k < problem.queries() ? problem.work.weights[k] : A(0);
  for (int64_t j = 0; problem.positive && j < problem.queries(); ++j)
    if (problem.positive[j] == k) sum += problem.work.weights[j];
  problem.work.column_weights[k] = sum;
}

}  // namespace
}  // namespace kd
