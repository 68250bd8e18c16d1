// From losses to gradients: tiles of similarities again, what the loss makes of them, and products of that with the features.
#pragma once
#include "cuda/math.cuh"
#include "cuda/similarity_work.cuh"
#include "cuda/team.cuh"
#include "kept_gradient.h"

namespace kd {
namespace {

// d loss / d s_jk for the keys k of one query j, the divisor of the batch left out.
template <class A, bool teacher>
struct RowGradient {
  const SimilarityOnDevice<A>& problem;
  A weight, log_sum;
  A teacher_log_sum = 0;
  A positive = 1;  // a positive's share of the target

  KD_DEVICE RowGradient(const SimilarityOnDevice<A>& problem, int64_t j)
      : problem(problem), weight(problem.work.weights[j]), log_sum(problem.work.log_sums[j]) {
    if constexpr (teacher) teacher_log_sum = problem.work.teacher_log_sums[j];
    else if (problem.target == KeyTarget::labels) positive /= problem.work.positives[j];
  }

  KD_DEVICE A operator()(int64_t k, A student, A other, bool is_positive) const {
    const A q = exp(student - log_sum);
    if constexpr (teacher) return weight * (q - exp(other - teacher_log_sum));
    if (weight == A(0) && !problem.symmetric) return A(0);
    const A p = is_positive ? positive : A(0);
    if (!problem.symmetric) return weight * (q - p);
    // A column that is nobody's positive may be empty, its softmax no number.
    const A column_weight = problem.work.column_weights[k];
    const A by_column = column_weight == A(0) ? A(0) : column_weight * exp(student - problem.work.column_log_sums[k]);
    return (weight * (q - p) + (by_column - weight * p)) / 2;
  }
};

// A tile of the band that begins with query `first_query`: H = d loss / d <f_j, g_k>. Not written where no query counts.
template <class Kind, class H, bool teacher>
KD_KERNEL void KD_LAUNCH_BOUNDS(tile_threads, teacher ? 1 : Kind::blocks)
    band_kernel(SimilarityOnDevice<typename Kind::Number> problem, LogitTile<typename Kind::Number> student_tile,
                LogitTile<typename Kind::Number> teacher_tile, int64_t first_query) {
  using A = typename Kind::Number;
  KD_SHARED(simt::Bytes16, shared, 4 * tile_bytes / 16);
  const int64_t tiles = (problem.keys() + tile_rows - 1) / tile_rows;
  const int64_t first_row = first_query + simt::block_index() / tiles * tile_rows;
  const int64_t first_key = simt::block_index() % tiles * tile_rows;
  if (!any_query(problem.mask, problem.queries(), first_row)) return;
  typename Kind::Sums products, teacher_products;
  multiply_tiles<Kind, false, false>(student_tile.rows, first_row, student_tile.columns, first_key, 0,
                                     student_tile.rows.depth, shared, products);
  if constexpr (teacher)
    multiply_tiles<Kind, false, false>(teacher_tile.rows, first_row, teacher_tile.columns, first_key, 0,
                                       teacher_tile.rows.depth, shared, teacher_products);
  const A inverse_temperature = problem.inverse_temperature(), unit = inverse_temperature / *problem.work.divisor;
  A factors[own_rows], teacher_factors[own_rows];
  const OwnPlaces<Kind> own;
  student_tile.column_factors(own, first_key, factors);
  if constexpr (teacher) teacher_tile.column_factors(own, first_key, teacher_factors);
  const int rows = in_tile(problem.queries(), first_row), keys = in_tile(problem.keys(), first_key);
  const uint32_t inside = own.columns_where([&](int column) { return column < keys; });
  KD_UNROLL for (int r = 0; r < own_rows; ++r) {
    const bool exists = own.row(r) < rows;
    const int row = exists ? own.row(r) : 0;
    const int64_t j = first_row + row;
    const bool has_query = exists && problem.has_query(j);
    const uint32_t counted = has_query ? inside & ~own_column(problem, false, own, r, first_row, first_key) : 0u;
    const uint32_t positives = teacher || !exists ? 0u : positive_keys(problem, own, r, first_row, first_key);
    const RowGradient<A, teacher> by_logit(problem, j);
    const A factor = student_tile.row_factor(first_row, row, inverse_temperature);
    const A scale = student_tile.row_factor(first_row, row, unit);
    const A teacher_factor = teacher ? teacher_tile.row_factor(first_row, row, inverse_temperature) : A(0);
    H gradients[own_rows];
    KD_UNROLL for (int c = 0; c < own_rows; ++c) {
      const int64_t k = first_key + own.column(c);
      A gradient = 0;
      if (counted >> c & 1) {
        A student = products.at(r, c) * factor * factors[c], other = 0;
        if (problem.bias)
          student += static_cast<const A*>(problem.bias)[j * problem.bias_query_stride + k * problem.bias_key_stride];
        if constexpr (teacher) other = teacher_products.at(r, c) * teacher_factor * teacher_factors[c];
        gradient = by_logit(k, student, other, positives >> c & 1) * scale * factors[c];
      }
      from_arithmetic(gradient, gradients + c);
    }
    H* const to = static_cast<H*>(problem.work.band) + (j - first_query) * problem.keys() + first_key;
    store_row<Kind>(to, exists ? keys : 0, gradients);
  }
}

// to[share][row][column] = sum over the share's depth of a(row, k) b(column, k), added to what is there if `more`. The queries,
// with their mask, are the rows of a or, if that is transposed, the depth of both, in one share. Tiles of them that do not
// count are neither read nor, as rows, written.
template <class Kind, bool a_transposed>
KD_KERNEL void KD_LAUNCH_BOUNDS(tile_threads, Kind::blocks)
    products_kernel(TileOperand a, TileOperand b, typename Kind::Number* to, int shares, bool more, const bool* mask) {
  KD_SHARED(simt::Bytes16, shared, 4 * tile_bytes / 16);
  const int64_t across = (b.rows + tile_rows - 1) / tile_rows, share = simt::block_index() % shares;
  const int64_t first_row = simt::block_index() / shares / across * tile_rows;
  const int64_t first_column = simt::block_index() / shares % across * tile_rows;
  if (!a_transposed && !any_query(mask, a.rows, first_row)) return;
  constexpr int64_t step = a_transposed ? tile_rows : tile_step<Kind>;
  const int64_t steps = (a.depth + step - 1) / step, last = steps * (share + 1) / shares;
  typename Kind::Sums sums;
  for (int64_t first = steps * share / shares, end; first < last; first = end) {
    end = last;
    if (a_transposed) {  // as far as the tiles count, or do not
      const bool counts = any_query(mask, a.depth, first * step);
      for (end = first + 1; end < last && any_query(mask, a.depth, end * step) == counts;) ++end;
      if (!counts) continue;
    }
    multiply_tiles<Kind, a_transposed, true>(a, first_row, b, first_column, first * step,
                                             end * step < a.depth ? end * step : a.depth, shared, sums);
  }
  const int rows = in_tile(a.rows, first_row), columns = in_tile(b.rows, first_column);
  KD_UNROLL for (int r = 0; r < own_rows; ++r) {
    typename Kind::Number numbers[own_rows];
    KD_UNROLL for (int c = 0; c < own_rows; ++c) numbers[c] = sums.at(r, c);
    const int row = Kind::row(r);
    store_row<Kind>(to + (share * a.rows + first_row + row) * b.rows + first_column, row < rows ? columns : 0, numbers, more);
  }
}

// A warp per row: the gradient of a row of features from its products, and what the temperature gets of it. No inverse norms:
// no projection; a masked row gets 0. A product of 0 adds nothing, whatever the feature is: so do keys of masked queries alone.
template <class A>
KD_KERNEL void KD_LAUNCH_BOUNDS(reduce_threads)
    finish_kernel(Features features, Features gradient, int64_t first_row, int64_t rows, const A* products, int shares,
                  const A* inverse_norms, const bool* mask, A* temperature_terms) {
  const LaneTeam team(simt::warp_threads);
  const int64_t row = team.row(), width = features.width;
  const auto each_chunk = [&](const auto& body) {
    for (int64_t d = team.rank() * chunk_classes; d < width; d += team.size() * chunk_classes) body(d);
  };
  const auto add_products = [&](int64_t d, A(&sum)[chunk_classes]) {
    for (int share = 0; share < shares; ++share) {
      A part[chunk_classes];
      load_neighbours(products + (share * rows + row) * width + d, width - d, part);
      KD_UNROLL for (int e = 0; e < chunk_classes; ++e) sum[e] += part[e];
    }
  };
  const bool computed = row < rows && (!mask || mask[first_row + row]);
  A along[1] = {0};
  with_dtype(features.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const T* numbers = static_cast<const T*>(features.data) + (first_row + row) * features.stride;
    each_chunk([&](int64_t d) {
      if (!computed) return;
      T chunk[chunk_classes];
      A sum[chunk_classes] = {};
      load_neighbours(numbers + d, width - d, chunk);
      add_products(d, sum);
      KD_UNROLL for (int e = 0; e < chunk_classes; ++e) along[0] += weighted(sum[e], static_cast<A>(to_arithmetic(chunk[e])));
    });
    team.sum(along);
    if (row >= rows) return;
    if (temperature_terms && team.rank() == 0) temperature_terms[first_row + row] = along[0];
    if (!gradient.data) return;
    const A inverse = inverse_norms ? inverse_norms[first_row + row] : A(0);
    const bool is_short = inverse >= static_cast<A>(1 / least_norm);
    const bool has_gradient = computed && !(is_short && short_rows_are_constant(features.dtype));
    const A factor = inverse < static_cast<A>(1 / least_norm) ? along[0] * inverse * inverse : A(0);
    auto* to = static_cast<Kept<T>*>(gradient.data) + (first_row + row) * gradient.stride;
    each_chunk([&](int64_t d) {
      T chunk[chunk_classes];
      Kept<T> kept[chunk_classes];
      A sum[chunk_classes] = {};
      if (has_gradient) add_products(d, sum);
      if (factor != A(0)) {
        load_neighbours(numbers + d, width - d, chunk);
        KD_UNROLL for (int e = 0; e < chunk_classes; ++e) sum[e] -= static_cast<A>(to_arithmetic(chunk[e])) * factor;
      }
      KD_UNROLL for (int e = 0; e < chunk_classes; ++e) from_arithmetic(sum[e], kept + e);
      store_neighbours(to + d, width - d, kept);
    });
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

}  // namespace
}  // namespace kd
