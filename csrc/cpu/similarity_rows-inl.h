// Rows of features on their way into the matrix products, as unit rows of the arithmetic type, and gradients on their way
// out.
#if defined(KD_CPU_SIMILARITY_ROWS_INL_H) == defined(KD_TARGET_TOGGLE)
#ifdef KD_CPU_SIMILARITY_ROWS_INL_H
#undef KD_CPU_SIMILARITY_ROWS_INL_H
#else
#define KD_CPU_SIMILARITY_ROWS_INL_H
#endif

#include <cmath>
#include <cstdint>
#include <utility>

#include "cpu/gemm-inl.h"
#include "cpu/simd.h"
#include "elements.h"
#include "similarity.h"

KD_BEGIN_TARGET

// A multiple of the lanes of every vector of every instruction set.
constexpr int64_t padded_lanes = 16;

template <class A>
constexpr A largest_inverse_norm() {
  return static_cast<A>(1 / least_norm);
}

// Features [begin, begin + padded) of a row, 0 beyond the last, and the sum of their squares.
template <class A>
KD_INLINE A read_block(const Features& features, int64_t row, int64_t begin, int64_t padded, A* to) {
  const int64_t left = features.width - begin, count = left < 0 ? 0 : left < padded ? left : padded;
  with_dtype(features.dtype, [&](auto* type) {
    const auto* from = static_cast<decltype(type)>(features.data) + row * features.stride + begin;
    for (int64_t i = 0; i < count; ++i) to[i] = static_cast<A>(to_arithmetic(from[i]));
  });
  for (int64_t i = count; i < padded; ++i) to[i] = 0;
  Vec<A> squares = {};
  for (int64_t i = 0; i < padded; i += Simd<A>::lanes) squares += load(to + i) * load(to + i);
  return sum_lanes<A>(squares);
}

// A row divided by its norm, or as it is, to blocks of 64 numbers that begin `block_stride` apart; `padded_width` numbers, a
// multiple of 16. Returns the inverse norm, 1 unless `normalize`.
template <class A>
A unit_row(const Features& features, int64_t row, bool normalize, A* to, int64_t block_stride, int64_t padded_width) {
  const auto padded = [&](int64_t d) { return padded_width - d < panel_columns ? padded_width - d : panel_columns; };
  // Of blocks, in double: the norm of a long row has as many right digits as that of a short one.
  double squares = 0;
  A* block = to;
  for (int64_t d = 0; d < padded_width; d += panel_columns, block += block_stride)
    squares += read_block(features, row, d, padded(d), block);
  if (!normalize) return 1;
  const double norm = std::sqrt(squares);
  const A inverse = norm <= least_norm ? largest_inverse_norm<A>() : static_cast<A>(1 / norm);
  block = to;
  for (int64_t d = 0; d < padded_width; d += panel_columns, block += block_stride)
    for (int64_t i = 0; i < padded(d); i += Simd<A>::lanes) store(block + i, load(block + i) * inverse);
  return inverse;
}

// Numbers of the arithmetic type to a row of a tensor, from `first_column` on.
template <class A>
KD_INLINE void store_row(const A* from, int64_t count, const Features& to, int64_t row, int64_t first_column) {
  with_dtype(to.dtype, [&](auto* type) {
    auto* elements = static_cast<decltype(type)>(to.data) + row * to.stride + first_column;
    for (int64_t i = 0; i < count; ++i) from_arithmetic(from[i], elements + i);
  });
}

// a0 b0 a1 b1 ... of the lanes from `offset` on.
template <class A, int offset, int... lanes>
KD_INLINE Vec<A> interleave(Vec<A> a, Vec<A> b, std::integer_sequence<int, lanes...>) {
  return Vec<A>{(lanes % 2 ? b[offset + lanes / 2] : a[offset + lanes / 2])...};
}

// A square of vectors to its transpose: interleaving each row with the one half the square further on, log2(lanes) times.
template <class A>
KD_INLINE void turn_square(const A* from, A* to) {
  constexpr int lanes = Simd<A>::lanes;
  constexpr std::make_integer_sequence<int, lanes> all;
  Vec<A> rows[lanes], next[lanes];
#pragma GCC unroll 16
  for (int i = 0; i < lanes; ++i) rows[i] = load(from + i * panel_columns);
#pragma GCC unroll 4
  for (int step = 1; step < lanes; step *= 2) {
#pragma GCC unroll 8
    for (int i = 0; i < lanes / 2; ++i) {
      next[2 * i] = interleave<A, 0>(rows[i], rows[i + lanes / 2], all);
      next[2 * i + 1] = interleave<A, lanes / 2>(rows[i], rows[i + lanes / 2], all);
    }
#pragma GCC unroll 16
    for (int i = 0; i < lanes; ++i) rows[i] = next[i];
  }
#pragma GCC unroll 16
  for (int i = 0; i < lanes; ++i) store(to + i * panel_columns, rows[i]);
}

// The first `rows` rows and `columns` columns, multiples of 16, of a block [64, 64] to its transpose.
template <class A>
void turn_block(const A* from, int64_t rows, int64_t columns, A* to) {
  for (int64_t r = 0; r < rows; r += Simd<A>::lanes)
    for (int64_t c = 0; c < columns; c += Simd<A>::lanes)
      turn_square(from + r * panel_columns + c, to + c * panel_columns + r);
}

KD_END_TARGET
#endif
