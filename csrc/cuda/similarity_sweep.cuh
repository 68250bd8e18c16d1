// From features to losses: the softmax of every row of similarities, tile by tile, the loss of a row, and that of the batch.
#pragma once
#include "cuda/similarity_work.cuh"
#include "cuda/team.cuh"

namespace kd {
namespace {

// Lanes of a warp that have the same rows keep what they know of them together, each of other rows.
template <class Kind>
constexpr int kept_rows = Kind::warp_sharers < own_rows ? own_rows / Kind::warp_sharers : 1;

template <class Kind, class A>
KD_DEVICE A sum_of_sharers(A number) {
  KD_UNROLL for (int mask = 1; mask < Kind::warp_sharers; mask *= 2) number += simt::shuffle_xor(number, mask);
  return number;
}

template <class Kind, class A>
KD_DEVICE A max_of_sharers(A number) {
  KD_UNROLL for (int mask = 1; mask < Kind::warp_sharers; mask *= 2) {
    const A other = simt::shuffle_xor(number, mask);
    number = other > number ? other : number;
  }
  return number;
}

// Of 8 pairs of a row, the logits of those that count, and -inf.
template <class A, class Products>
KD_DEVICE void row_logits(Products& products, int r, uint32_t counted, A row_factor, const A (&column_factors)[own_rows],
                          A (&logits)[own_rows]) {
  KD_UNROLL for (int c = 0; c < own_rows; ++c)
    logits[c] = counted >> c & 1 ? products.at(r, c) * row_factor * column_factors[c] : -static_cast<A>(HUGE_VALF);
}

template <class Kind, class A>
KD_DEVICE A highest_of_row(const A (&logits)[own_rows]) {
  A highest = logits[0];
  KD_UNROLL for (int c = 1; c < own_rows; ++c) highest = logits[c] > highest ? logits[c] : highest;
  return max_of_sharers<Kind>(highest);
}

// One tile, of which a thread has 8 rows and 8 columns.
template <class A, bool teacher, class Kind>
KD_DEVICE void sweep_tile(const SimilarityOnDevice<A>& problem, bool by_column, int64_t first_row, int64_t first_column,
                          const LogitTile<A>& student_tile, const LogitTile<A>& teacher_tile, A inverse_temperature,
                          typename Kind::Sums& products, typename Kind::Sums& teacher_products,
                          RowSweep<A> (&sweeps)[kept_rows<Kind>]) {
  const int rows = in_tile(student_tile.rows.rows, first_row), columns = in_tile(student_tile.columns.rows, first_column);
  A factors[own_rows], teacher_factors[own_rows];
  const OwnPlaces<Kind> own;
  student_tile.column_factors(own, first_column, factors);
  if constexpr (teacher) teacher_tile.column_factors(own, first_column, teacher_factors);
  const uint32_t inside = own.columns_where([&](int column) {
    return column < columns && (!by_column || !problem.mask || (problem.mask + first_column)[column]);
  });
  RowSweep<A> parts[kept_rows<Kind>];
  KD_UNROLL for (int r = 0; r < own_rows; ++r) {
    const int row = own.row(r);
    const bool exists = row < rows;
    const uint32_t counted = exists ? inside & ~own_column(problem, by_column, own, r, first_row, first_column) : 0u;
    const A factor = exists ? student_tile.row_factor(first_row, row, inverse_temperature) : A(0);
    A student[own_rows];
    row_logits(products, r, counted, factor, factors, student);
    if (problem.bias) {
      const int64_t row_stride = by_column ? problem.bias_key_stride : problem.bias_query_stride;
      const int64_t column_stride = by_column ? problem.bias_query_stride : problem.bias_key_stride;
      const A* bias = static_cast<const A*>(problem.bias) + first_row * row_stride + first_column * column_stride;
      KD_UNROLL for (int c = 0; c < own_rows; ++c)
        if (counted >> c & 1) student[c] += bias[row * row_stride + own.column(c) * column_stride];
    }
    RowSweep<A> part;
    part.max = highest_of_row<Kind>(student);
    KD_UNROLL for (int c = 0; c < own_rows; ++c) part.sum += exp(student[c] - RowSweep<A>::base(part.max));
    part.sum = sum_of_sharers<Kind>(part.sum);
    if constexpr (teacher) {
      A other[own_rows];
      const A teacher_factor = exists ? teacher_tile.row_factor(first_row, row, inverse_temperature) : A(0);
      row_logits(teacher_products, r, counted, teacher_factor, teacher_factors, other);
      part.teacher_max = highest_of_row<Kind>(other);
      KD_UNROLL for (int c = 0; c < own_rows; ++c) {
        const A weight = exp(other[c] - RowSweep<A>::base(part.teacher_max));
        part.teacher_sum += weight;
        part.against += weight == A(0) ? A(0) : weight * (other[c] - student[c]);
      }
      part.teacher_sum = sum_of_sharers<Kind>(part.teacher_sum);
      part.against = sum_of_sharers<Kind>(part.against);
    } else {
      const bool looks = exists && !by_column;
      const uint32_t chosen = looks ? counted & positive_keys(problem, own, r, first_row, first_column) : 0u;
      if (simt::vote_any(chosen)) {  // where a row has one positive, few tiles have any
        KD_UNROLL for (int c = 0; c < own_rows; ++c)
          if (chosen >> c & 1) part.chosen += student[c], part.positives += A(1);
        part.chosen = sum_of_sharers<Kind>(part.chosen);
        part.positives = sum_of_sharers<Kind>(part.positives);
      }
    }
    if (r / kept_rows<Kind> == simt::lane_index() % Kind::warp_sharers) parts[r % kept_rows<Kind>] = part;
  }
  KD_UNROLL for (int i = 0; i < kept_rows<Kind>; ++i) sweeps[i].merge(parts[i]);
}

// Warps that have the same rows put their sweeps together.
template <class A, class Kind, class Body>
KD_DEVICE void merge_sweeps(const RowSweep<A> (&sweeps)[kept_rows<Kind>], TileNumbers16& shared, const Body& body) {
  static_assert(sizeof(RowSweep<A>) * Kind::warps_across * tile_rows <= sizeof(TileNumbers16), "room for all");
  auto* table = reinterpret_cast<RowSweep<A>*>(shared);
  KD_UNROLL for (int i = 0; i < kept_rows<Kind>; ++i) {
    const int r = simt::lane_index() % Kind::warp_sharers * kept_rows<Kind> + i;
    if (r < own_rows) table[Kind::warp_across() * tile_rows + Kind::row(r)] = sweeps[i];
  }
  simt::sync_threads();
  for (int row = simt::thread_index(); row < tile_rows; row += tile_threads) {
    RowSweep<A> all = table[row];
    for (int across = 1; across < Kind::warps_across; ++across) all.merge(table[across * tile_rows + row]);
    body(row, all);
  }
}

template <class Kind, bool teacher>
KD_KERNEL void KD_LAUNCH_BOUNDS(tile_threads, teacher ? 1 : Kind::blocks)
    sweep_kernel(SimilarityOnDevice<typename Kind::Number> problem, LogitTile<typename Kind::Number> student_tile,
                 LogitTile<typename Kind::Number> teacher_tile, bool by_column, int shares) {
  using A = typename Kind::Number;
  KD_SHARED(simt::Bytes16, shared, 4 * tile_bytes / 16);
  const int64_t first_row = simt::block_index() / shares * tile_rows, share = simt::block_index() % shares;
  const int64_t tiles = (student_tile.columns.rows + tile_rows - 1) / tile_rows;
  const bool counts = by_column || any_query(problem.mask, problem.queries(), first_row);
  const int64_t end = counts ? tiles * (share + 1) / shares : 0;
  const A inverse_temperature = problem.inverse_temperature();
  RowSweep<A> sweeps[kept_rows<Kind>];
  for (int64_t tile = tiles * share / shares; tile < end; ++tile) {
    const int64_t first_column = tile * tile_rows;
    if (by_column && !any_query(problem.mask, problem.queries(), first_column)) continue;
    typename Kind::Sums products, teacher_products;
    multiply_tiles<Kind, false, false>(student_tile.rows, first_row, student_tile.columns, first_column, 0,
                                       student_tile.rows.depth, shared, products);
    if constexpr (teacher)
      multiply_tiles<Kind, false, false>(teacher_tile.rows, first_row, teacher_tile.columns, first_column, 0,
                                         teacher_tile.rows.depth, shared, teacher_products);
    sweep_tile<A, teacher, Kind>(problem, by_column, first_row, first_column, student_tile, teacher_tile,
                                 inverse_temperature, products, teacher_products, sweeps);
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
    using T = std::remove_pointer_t<decltype(type)>;
    const T* numbers = static_cast<const T*>(features.data) + row * features.stride;
    for (int64_t d = team.rank() * chunk_classes; d < features.width; d += team.size() * chunk_classes) {
      T chunk[chunk_classes];
      load_neighbours(numbers + d, features.width - d, chunk);
      KD_UNROLL for (int e = 0; e < chunk_classes; ++e) {
        const A x = static_cast<A>(to_arithmetic(chunk[e]));
        sum[0] += x * x;
      }
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
    loss = row.against / row.teacher_sum + by_max + (log(row.sum) - log(row.teacher_sum));
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
