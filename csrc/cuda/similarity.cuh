// Losses on similarity matrices on the GPU, of which no more than a band of rows exists at a time.
//
//     inverse norms   of the rows of all features
//     sweep           a block per 128 queries and share of the keys: tiles of similarities (cuda/tile_product.cuh), of the
//                     teacher's too, and online softmaxes of their rows, each thread its own until the end
//     columns         for `symmetric`, the same with queries and keys exchanged
//     rows            shares are merged, a row's loss found; then the batch's
//     band            with the sums known, tiles again: H = d loss / d <f, g> for a band of queries, in a workspace
//     products        of H with the keys, and of its transpose with the queries, added band by band
//     finish          the part of a gradient along its row is taken out, where rows are normalised
//
// Sums have a fixed order; there are no atomics. A label or positive that is none makes the loss NaN: a device cannot raise.
#pragma once
#include <cmath>

#include "cuda/launch.h"
#include "cuda/team.cuh"
#include "cuda/tile_product.cuh"
#include "similarity.h"

namespace kd {
namespace {

KD_DEVICE float exponential(float x) { return ::expf(x); }
KD_DEVICE double exponential(double x) { return ::exp(x); }
KD_DEVICE float logarithm(float x) { return ::logf(x); }
KD_DEVICE double logarithm(double x) { return ::log(x); }

// The softmaxes of a row over some of the keys.
template <class A>
struct RowSweep {
  A max = -HUGE_VALF, sum = 0;                  // of the student's logits s: sum of e^(s - max)
  A teacher_max = -HUGE_VALF, teacher_sum = 0;  // of the teacher's, t
  A against = 0;                                // sum of e^(t - teacher_max) (t - s)
  A chosen = 0, positives = 0;                  // sum of the logits of positives, and how many

  static KD_DEVICE A base(A max) { return max == -HUGE_VALF ? A(0) : max; }

  KD_DEVICE void raise(A highest) {
    if (highest > max) sum *= exponential(max - highest), max = highest;
  }
  KD_DEVICE void raise_teacher(A highest) {
    if (!(highest > teacher_max)) return;
    const A factor = exponential(teacher_max - highest);
    teacher_sum *= factor;
    against *= factor;
    teacher_max = highest;
  }
  KD_DEVICE void merge(const RowSweep& other) {
    RowSweep that = other;
    raise(that.max);
    that.raise(max);
    sum += that.sum;
    raise_teacher(that.teacher_max);
    that.raise_teacher(teacher_max);
    teacher_sum += that.teacher_sum;
    against += that.against;
    chosen += that.chosen;
    positives += that.positives;
  }
  KD_DEVICE A log_sum() const { return base(max) + logarithm(sum); }
  KD_DEVICE A teacher_log_sum() const { return base(teacher_max) + logarithm(teacher_sum); }
};

// What the kernels keep between them; Float unless said.
template <class A>
struct SimilarityWorkspace {
  A* inverse_norms[4];       // of query, key, teacher_query, teacher_key; null: rows are used as they are
  RowSweep<A>* shares;       // [shares, rows]
  A* log_sums;               // [queries]
  A* teacher_log_sums;       // [queries]
  A* column_log_sums;        // [keys]; symmetric
  A* column_weights;         // [keys]; symmetric: sum of the weights of the queries with that positive
  A* positives;              // [queries]; labels: how many
  A* weights;                // [queries]; of a row's loss before the batch divides, 0 if it is not counted
  A* row_losses;             // [queries]
  A* divisor;                // one number
  void* band;                // [band rows, keys], Kind::Element of the products
  A* query_products;         // [shares, band rows, width]
  A* key_products;           // [keys, width]
  A* temperature_terms;      // [queries]
};

template <class A>
struct SimilarityOnDevice : Similarity {
  SimilarityPlan plan;
  SimilarityWorkspace<A> work;

  KD_DEVICE A inverse_temperature() const {
    return A(1) / (temperature_at ? *static_cast<const A*>(temperature_at) : static_cast<A>(temperature));
  }
};

// --- Logits ------------------------------------------------------------------------------------------------------------

// Rows against columns of one pair of features: queries against keys or, for the columns, the other way round.
template <class A>
struct LogitTile {
  TileOperand rows, columns;
  const A* row_scales;
  const A* column_scales;

  // Logit but for bias: <row, column> / T.
  KD_DEVICE A operator()(A product, int64_t row, int64_t column, A inverse_temperature) const {
    if (row_scales) product = product * row_scales[row] * column_scales[column];
    return product * inverse_temperature;
  }
};

KD_DEVICE TileOperand as_operand(const Features& features) {
  return {features.data, features.dtype, features.rows, features.width, features.stride};
}

template <class A>
KD_DEVICE LogitTile<A> logits_of(const SimilarityOnDevice<A>& problem, bool teacher, bool by_column) {
  const Features& query = teacher ? problem.teacher_query : problem.query;
  const Features& key = teacher ? problem.teacher_key : problem.key;
  A* const* scales = problem.work.inverse_norms + (teacher ? 2 : 0);
  if (by_column) return {as_operand(key), as_operand(query), scales[1], scales[0]};
  return {as_operand(query), as_operand(key), scales[0], scales[1]};
}

KD_DEVICE bool is_positive(const Similarity& problem, int64_t j, int64_t k) {
  return problem.target == KeyTarget::labels ? problem.query_labels[j] == problem.key_labels[k] : k == problem.positive_of(j);
}

// --- Sweep -------------------------------------------------------------------------------------------------------------

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

// --- Rows --------------------------------------------------------------------------------------------------------------

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

// --- Gradients ---------------------------------------------------------------------------------------------------------

// d loss / d s_jk, the divisor of the batch left out.
template <class A, bool teacher>
KD_DEVICE A logit_gradient(const SimilarityOnDevice<A>& problem, int64_t j, int64_t k, A student, A other) {
  const SimilarityWorkspace<A>& work = problem.work;
  const A weight = work.weights[j];
  const A q = exponential(student - work.log_sums[j]);
  if constexpr (teacher) return weight * (q - exponential(other - work.teacher_log_sums[j]));
  if (weight == A(0) && !problem.symmetric) return A(0);
  A p = is_positive(problem, j, k) ? A(1) : A(0);
  if (problem.target == KeyTarget::labels) p /= work.positives[j];
  if (!problem.symmetric) return weight * (q - p);
  // A column that is nobody's positive may be empty, its softmax no number.
  const A column_weight = work.column_weights[k];
  const A by_column = column_weight == A(0) ? A(0) : column_weight * exponential(student - work.column_log_sums[k]);
  return (weight * (q - p) + (by_column - weight * p)) / 2;
}

// A tile of the band that begins with query `first_query`: H = d loss / d <f_j, g_k>.
template <class Kind, class H, bool teacher>
KD_KERNEL void KD_LAUNCH_BOUNDS(tile_threads, teacher ? 1 : Kind::blocks)
    band_kernel(SimilarityOnDevice<typename Kind::Number> problem, int64_t first_query) {
  using A = typename Kind::Number;
  KD_SHARED(simt::Bytes16, shared, 4 * tile_bytes / 16);
  const LogitTile<A> student_tile = logits_of(problem, false, false), teacher_tile = logits_of(problem, teacher, false);
  const int64_t tiles = (problem.keys() + tile_rows - 1) / tile_rows;
  const int64_t first_row = first_query + simt::block_index() / tiles * tile_rows;
  const int64_t first_key = simt::block_index() % tiles * tile_rows;
  typename Kind::Sums products, teacher_products;
  multiply_tiles<Kind, false, false>(student_tile.rows, first_row, student_tile.columns, first_key, 0,
                                     student_tile.rows.depth, shared, products);
  if constexpr (teacher)
    multiply_tiles<Kind, false, false>(teacher_tile.rows, first_row, teacher_tile.columns, first_key, 0,
                                       teacher_tile.rows.depth, shared, teacher_products);
  const A inverse_temperature = problem.inverse_temperature(), unit = inverse_temperature / *problem.work.divisor;
  KD_UNROLL for (int r = 0; r < own_rows; ++r)
    KD_UNROLL for (int c = 0; c < own_rows; ++c) {
      const int64_t j = first_row + Kind::row(r), k = first_key + Kind::column(c);
      if (j >= problem.queries() || k >= problem.keys()) continue;
      A gradient = 0;
      if (problem.has_query(j) && !problem.is_own(j, k)) {
        A student = student_tile(products.at(r, c), j, k, inverse_temperature), other = 0;
        if (problem.bias)
          student += static_cast<const A*>(problem.bias)[j * problem.bias_query_stride + k * problem.bias_key_stride];
        if constexpr (teacher) other = teacher_tile(teacher_products.at(r, c), j, k, inverse_temperature);
        gradient = logit_gradient<A, teacher>(problem, j, k, student, other) * unit;
        if (student_tile.row_scales) gradient *= student_tile.row_scales[j] * student_tile.column_scales[k];
      }
      from_arithmetic(gradient, static_cast<H*>(problem.work.band) + (j - first_query) * problem.keys() + k);
    }
}

// to[share][row][column] = sum over the share's depth of a(row, k) b(column, k), added to what is there if `more`.
template <class Kind, bool a_transposed>
KD_KERNEL void KD_LAUNCH_BOUNDS(tile_threads, Kind::blocks)
    products_kernel(TileOperand a, TileOperand b, typename Kind::Number* to, int shares, bool more) {
  KD_SHARED(simt::Bytes16, shared, 4 * tile_bytes / 16);
  const int64_t across = (b.rows + tile_rows - 1) / tile_rows, share = simt::block_index() % shares;
  const int64_t first_row = simt::block_index() / shares / across * tile_rows;
  const int64_t first_column = simt::block_index() / shares % across * tile_rows;
  constexpr int64_t step = TileCarrier<Kind, a_transposed>::step;
  const int64_t steps = (a.depth + step - 1) / step, end = steps * (share + 1) / shares * step;
  typename Kind::Sums sums;
  multiply_tiles<Kind, a_transposed, true>(a, first_row, b, first_column, steps * share / shares * step,
                                           end < a.depth ? end : a.depth, shared, sums);
  KD_UNROLL for (int r = 0; r < own_rows; ++r)
    KD_UNROLL for (int c = 0; c < own_rows; ++c) {
      const int64_t row = first_row + Kind::row(r), column = first_column + Kind::column(c);
      if (row >= a.rows || column >= b.rows) continue;
      auto* at = to + (share * a.rows + row) * b.rows + column;
      *at = more ? *at + sums.at(r, c) : sums.at(r, c);
    }
}

// A warp per row: the gradient of a row of features from its products, and what the temperature gets of it. No inverse norms:
// no projection; a masked row gets 0.
template <class A>
KD_KERNEL void KD_LAUNCH_BOUNDS(reduce_threads)
    finish_kernel(Features features, Features gradient, int64_t first_row, int64_t rows, const A* products, int shares,
                  const A* inverse_norms, const bool* mask, A* temperature_terms) {
  const LaneTeam team(simt::warp_threads);
  const int64_t row = team.row(), width = features.width;
  const auto product = [&](int64_t d) {
    A sum = 0;
    for (int share = 0; share < shares; ++share) sum += products[(share * rows + row) * width + d];
    return sum;
  };
  const bool computed = row < rows && (!mask || mask[first_row + row]);
  A along[1] = {0};
  with_dtype(features.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const T* numbers = static_cast<const T*>(features.data) + (first_row + row) * features.stride;
    if (computed)
      for (int64_t d = team.rank(); d < width; d += team.size())
        along[0] += static_cast<A>(to_arithmetic(numbers[d])) * product(d);
    team.sum(along);
    if (row >= rows) return;
    if (temperature_terms && team.rank() == 0) temperature_terms[first_row + row] = along[0];
    if (!gradient.data) return;
    const A inverse = inverse_norms ? inverse_norms[first_row + row] : A(0);
    const A factor = inverse < static_cast<A>(1 / least_norm) ? along[0] * inverse * inverse : A(0);
    T* to = static_cast<T*>(gradient.data) + (first_row + row) * gradient.stride;
    for (int64_t d = team.rank(); d < width; d += team.size()) {
      A value = computed ? product(d) : A(0);
      if (factor != A(0)) value -= static_cast<A>(to_arithmetic(numbers[d])) * factor;
      from_arithmetic(value, to + d);
    }
  });
}

// One block: -sum of the terms / T.
template <class A>
KD_KERNEL void KD_LAUNCH_BOUNDS(reduce_threads) temperature_kernel(SimilarityOnDevice<A> problem) {
  const BlockTeam<double> team;
  double sum[1] = {0};
  for (int64_t j = team.rank(); j < problem.queries(); j += team.size())
    sum[0] += static_cast<double>(problem.work.temperature_terms[j]);
  team.sum(sum);
  if (team.rank() == 0)
    *static_cast<A*>(problem.grad_temperature) = -static_cast<A>(sum[0]) * problem.inverse_temperature();
}

// --- Rank --------------------------------------------------------------------------------------------------------------

// A block per 128 queries goes over all keys twice: for the positives' similarities, then to count what is before them.
template <class Kind>
KD_KERNEL void KD_LAUNCH_BOUNDS(tile_threads)
    rank_kernel(SimilarityRank problem, const typename Kind::Number* query_scales, const typename Kind::Number* key_scales) {
  using A = typename Kind::Number;
  KD_SHARED(simt::Bytes16, shared, 4 * tile_bytes / 16);
  KD_SHARED(A, chosen, tile_rows);
  const LogitTile<A> tile{as_operand(problem.query), as_operand(problem.key), query_scales, key_scales};
  const int64_t first_row = simt::block_index() * tile_rows, rows = tile.rows.rows, columns = tile.columns.rows;
  for (int row = simt::thread_index(); row < tile_rows; row += tile_threads) chosen[row] = static_cast<A>(NAN);
  A before[own_rows] = {};
  const auto each = [&](auto&& body) {
    for (int64_t first = 0; first < columns; first += tile_rows) {
      typename Kind::Sums products;
      multiply_tiles<Kind, false, false>(tile.rows, first_row, tile.columns, first, 0, tile.rows.depth, shared, products);
      KD_UNROLL for (int r = 0; r < own_rows; ++r)
        KD_UNROLL for (int c = 0; c < own_rows; ++c) {
          const int64_t row = first_row + Kind::row(r), column = first + Kind::column(c);
          if (row < rows && column < columns) body(r, row, column, tile(products.at(r, c), row, column, A(1)));
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

// --- Launchers ---------------------------------------------------------------------------------------------------------

inline int64_t blocks_of(int64_t items, int64_t per_block) { return (items + per_block - 1) / per_block; }

// Hands out pieces of one allocation; with no allocation yet, only their total.
class Pieces {
 public:
  explicit Pieces(void* base) : base_(static_cast<unsigned char*>(base)) {}

  template <class T>
  T* take(int64_t count) {
    unsigned char* piece = base_ ? base_ + bytes_ : nullptr;
    bytes_ += (static_cast<size_t>(count) * sizeof(T) + 255) / 256 * 256;
    return reinterpret_cast<T*>(piece);
  }
  size_t bytes() const { return bytes_; }

 private:
  unsigned char* base_;
  size_t bytes_ = 0;
};

template <class A>
SimilarityWorkspace<A> lay_out(const Similarity& problem, const SimilarityPlan& plan, Pieces& pieces) {
  SimilarityWorkspace<A> work{};
  const int64_t queries = problem.queries(), keys = problem.keys(), width = problem.query.width;
  const Features* features[] = {&problem.query, &problem.key, &problem.teacher_query, &problem.teacher_key};
  if (problem.normalize)
    for (int i = 0; i < 4; ++i)
      if (features[i]->data) work.inverse_norms[i] = pieces.take<A>(features[i]->rows);
  const int64_t row_shares = queries * plan.row_shares, column_shares = problem.symmetric ? keys * plan.column_shares : 0;
  work.shares = pieces.take<RowSweep<A>>(row_shares > column_shares ? row_shares : column_shares);
  for (A** of_queries : {&work.log_sums, &work.weights, &work.row_losses}) *of_queries = pieces.take<A>(queries);
  work.divisor = pieces.take<A>(1);
  if (problem.target == KeyTarget::teacher) work.teacher_log_sums = pieces.take<A>(queries);
  if (problem.target == KeyTarget::labels) work.positives = pieces.take<A>(queries);
  if (problem.symmetric) work.column_log_sums = pieces.take<A>(keys), work.column_weights = pieces.take<A>(keys);
  if (problem.wants_gradient()) {
    work.band = pieces.take<unsigned char>(plan.band_rows * keys * plan.band_bytes);
    work.query_products = pieces.take<A>(plan.product_shares * plan.band_rows * width);
    work.key_products = pieces.take<A>(keys * width);
    work.temperature_terms = pieces.take<A>(queries);
  }
  return work;
}

template <class A>
A* launch_inverse_norms(const Features& features, A* inverse_norms, void* stream) {
  if (inverse_norms)
    simt::launch(inverse_norms_kernel<A>, blocks_of(features.rows, reduce_threads / simt::warp_threads), reduce_threads, 0,
                 stream, features, inverse_norms);
  return inverse_norms;
}

template <class Kind, bool teacher>
void launch_sweeps(const SimilarityOnDevice<typename Kind::Number>& problem, void* stream) {
  using A = typename Kind::Number;
  const int64_t row_tiles = blocks_of(problem.queries(), tile_rows), column_tiles = blocks_of(problem.keys(), tile_rows);
  if (problem.symmetric) {
    const int shares = problem.plan.column_shares;
    simt::launch(sweep_kernel<Kind, teacher>, column_tiles * shares, tile_threads, 0, stream, problem, true, shares);
    simt::launch(column_sums_kernel<A>, blocks_of(problem.keys(), reduce_threads), reduce_threads, 0, stream, problem, shares);
  }
  const int shares = problem.plan.row_shares;
  simt::launch(sweep_kernel<Kind, teacher>, row_tiles * shares, tile_threads, 0, stream, problem, false, shares);
  simt::launch(rows_kernel<A>, blocks_of(problem.queries(), reduce_threads), reduce_threads, 0, stream, problem);
  simt::launch(batch_kernel<A>, 1, reduce_threads, 0, stream, problem);
  if (problem.symmetric)
    simt::launch(column_weights_kernel<A>, blocks_of(problem.keys(), reduce_threads), reduce_threads, 0, stream, problem);
}

// `Products`: the kind that multiplies the band, in the dtype `band_dtype`.
template <class Kind, class Products, bool teacher>
void launch_gradients(const SimilarityOnDevice<typename Kind::Number>& problem, Dtype band_dtype, void* stream) {
  using A = typename Kind::Number;
  const SimilarityWorkspace<A>& work = problem.work;
  const int64_t queries = problem.queries(), keys = problem.keys(), width = problem.query.width;
  const int64_t key_tiles = blocks_of(keys, tile_rows), width_tiles = blocks_of(width, tile_rows);
  const int warps = reduce_threads / simt::warp_threads;
  for (int64_t first = 0; first < queries; first += problem.plan.band_rows) {
    const int64_t rows = queries - first < problem.plan.band_rows ? queries - first : problem.plan.band_rows;
    simt::launch(band_kernel<Kind, typename Products::Element, teacher>, blocks_of(rows, tile_rows) * key_tiles, tile_threads, 0,
                 stream, problem, first);
    const TileOperand band{work.band, band_dtype, rows, keys, keys}, transposed_band{work.band, band_dtype, keys, rows, keys};
    if (problem.grad_query.data || problem.grad_temperature) {
      const int shares = problem.plan.product_shares;
      const TileOperand key{problem.key.data, problem.key.dtype, width, keys, problem.key.stride};
      simt::launch(products_kernel<Products, false>, blocks_of(rows, tile_rows) * width_tiles * shares, tile_threads, 0, stream,
                   band, key, work.query_products, shares, false);
      simt::launch(finish_kernel<A>, blocks_of(rows, warps), reduce_threads, 0, stream, problem.query, problem.grad_query, first,
                   rows, work.query_products, shares, work.inverse_norms[0], problem.mask, work.temperature_terms);
    }
    if (problem.grad_key.data) {
      const auto size = element_size(problem.query.dtype);
      const void* start = static_cast<const unsigned char*>(problem.query.data) + first * problem.query.stride * size;
      const bool* mask = problem.mask ? problem.mask + first : nullptr;
      const TileOperand query{start, problem.query.dtype, width, rows, problem.query.stride, mask};
      simt::launch(products_kernel<Products, true>, key_tiles * width_tiles, tile_threads, 0, stream, transposed_band, query,
                   work.key_products, 1, first > 0);
    }
  }
  if (problem.grad_key.data)
    simt::launch(finish_kernel<A>, blocks_of(keys, warps), reduce_threads, 0, stream, problem.key, problem.grad_key, int64_t{0},
                 keys, work.key_products, queries > 0 ? 1 : 0, work.inverse_norms[1], static_cast<const bool*>(nullptr),
                 static_cast<A*>(nullptr));
  if (problem.grad_temperature) simt::launch(temperature_kernel<A>, 1, reduce_threads, 0, stream, problem);
}

template <class Kind, class Products>
void launch_similarity(const Similarity& problem, const SimilarityPlan& plan, void* workspace, void* stream) {
  using A = typename Kind::Number;
  Pieces pieces(workspace);
  SimilarityOnDevice<A> on_device{problem, plan, lay_out<A>(problem, plan, pieces)};
  const Features* features[] = {&problem.query, &problem.key, &problem.teacher_query, &problem.teacher_key};
  for (int i = 0; i < 4; ++i) launch_inverse_norms(*features[i], on_device.work.inverse_norms[i], stream);
  constexpr Dtype band = std::is_same_v<typename Products::Element, BFloat16> ? Dtype::bfloat16
                         : std::is_same_v<A, double>                          ? Dtype::float64
                                                                              : Dtype::float32;
  const auto launch = [&](auto teacher) {
    launch_sweeps<Kind, teacher>(on_device, stream);
    if (problem.wants_gradient()) launch_gradients<Kind, Products, teacher>(on_device, band, stream);
  };
  if (problem.target == KeyTarget::teacher) launch(std::true_type{});
  else launch(std::false_type{});
}

// Calls body(kind, products) with the kinds for features of these dtypes: those of the similarities and of the gradients.
template <class Body>
void with_kinds(Dtype one, Dtype other, bool allow_tf32, int sm, const Body& body) {
  if (one == Dtype::float64 || other == Dtype::float64) return body(DoubleTiles{}, DoubleTiles{});
  const bool same = one == other, fragments = sm >= 80;
  if (fragments && same && one == Dtype::bfloat16) return body(BFloat16Tiles{}, BFloat16Tiles{});
  // float16 has no room for gradients; TF32 has its digits and the range of float32.
  if (fragments && same && one == Dtype::float16) return body(HalfTiles{}, TF32Tiles{});
  if (fragments && allow_tf32) return body(TF32Tiles{}, TF32Tiles{});
  return body(FloatTiles{}, FloatTiles{});
}

inline Dtype teacher_dtype(const Similarity& problem) {
  return problem.teacher_query.data ? problem.teacher_query.dtype : problem.query.dtype;
}

inline SimilarityPlan plan_problem(const Similarity& problem, int sm) {
  int band_bytes = 4;
  with_kinds(problem.query.dtype, teacher_dtype(problem), problem.allow_tf32, sm,
             [&](auto, auto products) { band_bytes = sizeof(typename decltype(products)::Element); });
  return plan_similarity(problem.queries(), problem.keys(), problem.query.width, band_bytes);
}

inline size_t workspace_bytes(const Similarity& problem, const SimilarityPlan& plan) {
  Pieces pieces(nullptr);
  if (problem.is_double()) lay_out<double>(problem, plan, pieces);
  else lay_out<float>(problem, plan, pieces);
  return pieces.bytes();
}

inline void similarity_cuda(const Similarity& problem, const SimilarityPlan& plan, void* workspace, int sm, void* stream) {
  with_kinds(problem.query.dtype, teacher_dtype(problem), problem.allow_tf32, sm, [&](auto kind, auto products) {
    launch_similarity<decltype(kind), decltype(products)>(problem, plan, workspace, stream);
  });
}

inline size_t workspace_bytes(const SimilarityRank& problem) {
  return problem.normalize ? (problem.query.rows + problem.key.rows) * sizeof(double) : 0;
}

inline void similarity_rank_cuda(const SimilarityRank& problem, void* workspace, int sm, void* stream) {
  with_kinds(problem.query.dtype, problem.query.dtype, problem.allow_tf32, sm, [&](auto kind, auto) {
    using Kind = decltype(kind);
    using A = typename Kind::Number;
    A* const query_norms = problem.normalize ? static_cast<A*>(workspace) : nullptr;
    A* const key_norms = problem.normalize ? query_norms + problem.query.rows : nullptr;
    launch_inverse_norms(problem.query, query_norms, stream);
    launch_inverse_norms(problem.key, key_norms, stream);
    simt::launch(rank_kernel<Kind>, blocks_of(problem.query.rows, tile_rows), tile_threads, 0, stream, problem, query_norms,
                 key_norms);
  });
}

}  // namespace
}  // namespace kd
