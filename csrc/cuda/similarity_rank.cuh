// The rank of a query's positive among its keys.
#pragma once
#include "cuda/similarity_work.cuh"

namespace kd {
namespace {

// A block per 128 queries goes over all keys twice: for the positives' similarities, then to count what is before them.
template <class Kind>
KD_KERNEL void KD_LAUNCH_BOUNDS(tile_threads)
    rank_kernel(SimilarityRank problem, LogitTile<typename Kind::Number> tile) {
  using A = typename Kind::Number;
  KD_SHARED(simt::Bytes16, shared, 4 * tile_bytes / 16);
  KD_SHARED(A, chosen, tile_rows);
  const int64_t first_row = simt::block_index() * tile_rows, rows = tile.rows.rows, columns = tile.columns.rows;
  for (int row = simt::thread_index(); row < tile_rows; row += tile_threads) chosen[row] = static_cast<A>(NAN);
  A before[own_rows] = {};
  const auto each = [&](auto&& body) {
    for (int64_t first = 0; first < columns; first += tile_rows) {
      typename Kind::Sums products;
      multiply_tiles<Kind, false, false>(tile.rows, first_row, tile.columns, first, 0, tile.rows.depth, shared, products);
      A factors[own_rows];
      const OwnPlaces<Kind> own;
      tile.column_factors(own, first, factors);
      KD_UNROLL for (int r = 0; r < own_rows; ++r) {
        const int64_t row = first_row + own.row(r);
        if (row >= rows) continue;
        const A factor = tile.row_factor(first_row, own.row(r), A(1));
        KD_UNROLL for (int c = 0; c < own_rows; ++c) {
          const int64_t column = first + own.column(c);
          if (column < columns) body(r, row, column, products.at(r, c) * factor * factors[c]);
        }
      }
    }
  };
  each([&](int r, int64_t row, int64_t column, A similarity) {
    if (column == problem.positive[row]) chosen[Kind::row(r)] = similarity;
  });
  simt::sync_threads();
  each([&](int r, int64_t row, int64_t column, A similarity) {
    const A positive = chosen[Kind::row(r)];
    if (similarity > positive || (similarity == positive && column < problem.positive[row])) before[r] += A(1);
  });
  auto* counts = reinterpret_cast<A*>(shared);
  KD_UNROLL for (int r = 0; r < own_rows; ++r) {
    KD_UNROLL for (int mask = 1; mask < Kind::warp_sharers; mask *= 2) before[r] += simt::shuffle_xor(before[r], mask);
    if (simt::lane_index() % Kind::warp_sharers == 0)
      counts[Kind::warp_across() * tile_rows + Kind::row(r)] = before[r];
  }
  simt::sync_threads();
  for (int row = simt::thread_index(); row < tile_rows && first_row + row < rows; row += tile_threads) {
    A sum = 0;
    for (int across = 0; across < Kind::warps_across; ++across) sum += counts[across * tile_rows + row];
    problem.rank[first_row + row] = static_cast<int64_t>(sum);
  }
}

}  // namespace
}  // namespace kd
