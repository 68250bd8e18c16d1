// From losses to gradients: tiles of similarities again, what the loss makes of them, and products of that with the features.
#pragma once
#include "cuda/similarity_work.cuh"
#include "cuda/team.cuh"

namespace kd {
namespace {

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

}  // namespace
}  // namespace kd
