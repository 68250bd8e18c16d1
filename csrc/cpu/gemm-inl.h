// Matrix products for one instruction set, made of tiles that stay in registers.
//
//     C[i, j] (+)= sum over t of a[i, t] * panel[t, j]
//
// `panel` has `panel_columns` neighbouring columns per step t, in memory of ours; `a` is read number by number, each
// broadcast to a vector, and may therefore lie in any way. With queries as columns of S^T = V U^T and of M^T = V^T H^T, and
// features as columns of dV = H^T U, no operand of a similarity loss has to be rearranged but the queries.
//
// An element is summed over t in the same order wherever it lies in a tile, whatever is computed beside it and on however
// many threads: equal rows give equal bits. Sums are taken in blocks of steps, which bounds their rounding error.
// No intrinsics.
#if defined(KD_CPU_GEMM_INL_H) == defined(KD_TARGET_TOGGLE)
#ifdef KD_CPU_GEMM_INL_H
#undef KD_CPU_GEMM_INL_H
#else
#define KD_CPU_GEMM_INL_H
#endif

#include <cstdint>

#include "cpu/simd.h"

KD_BEGIN_TARGET

// 24 sums of an AVX-512 tile, with the panel's vectors and a broadcast, fill its 32 registers; the other sets have 16.
constexpr int gemm_rows = 6;
constexpr int gemm_vectors = KD_VECTOR_BYTES == 64 ? 4 : 2;

constexpr int64_t panel_columns = 64;
// Steps whose panel, 32 KiB of floats, the L1 cache nearly holds.
constexpr int64_t gemm_steps = 128;

template <class A>
struct GemmLeft {
  const A* data;  // null: none
  int64_t row, step;  // strides, in elements
};

// One tile: gemm_rows x `vectors` whole vectors, of which `rows` and `columns` are wanted. `a` has gemm_rows rows.
template <class A, int vectors>
KD_INLINE void gemm_tile(const GemmLeft<A>& a, const A* panel, int64_t steps, A* c, int64_t c_stride, int64_t rows,
                         int64_t columns, bool add) {
  constexpr int lanes = Simd<A>::lanes;
  Vec<A> sums[gemm_rows][vectors] = {};
  const A* left = a.data;
  for (int64_t t = 0; t < steps; ++t) {
    Vec<A> right[vectors];
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) right[v] = load(panel + v * lanes);
#pragma GCC unroll 6
    for (int i = 0; i < gemm_rows; ++i) {
      const A x = left[i * a.row];
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) sums[i][v] += right[v] * x;
    }
    left += a.step;
    panel += panel_columns;
  }
#pragma GCC unroll 6
  for (int i = 0; i < gemm_rows; ++i) {
    if (i >= rows) return;
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) {
      A* to = c + i * c_stride + v * lanes;
      const int64_t wanted = columns - v * lanes;
      if (wanted >= lanes) {
        store(to, add ? load(to) + sums[i][v] : sums[i][v]);
      } else {
        A last[lanes];
        store(last, sums[i][v]);
        for (int64_t lane = 0; lane < wanted; ++lane) to[lane] = add ? to[lane] + last[lane] : last[lane];
      }
    }
  }
}

// gemm_rows rows of C, all `columns` <= panel_columns of them.
template <class A>
KD_INLINE void gemm_row_tile(const GemmLeft<A>& a, const A* panel, int64_t steps, A* c, int64_t c_stride, int64_t rows,
                             int64_t columns, bool add) {
  constexpr int64_t whole = gemm_vectors * Simd<A>::lanes;
  int64_t j = 0;
  for (; j + whole <= columns; j += whole)
    gemm_tile<A, gemm_vectors>(a, panel + j, steps, c + j, c_stride, rows, whole, add);
  for (; j < columns; j += Simd<A>::lanes)
    gemm_tile<A, 1>(a, panel + j, steps, c + j, c_stride, rows, columns - j, add);
}

// C (+)= a times the panel. `a` has a multiple of gemm_rows rows that can be read, C the `rows` that are wanted.
template <class A>
void gemm(const GemmLeft<A>& a, const A* panel, int64_t rows, int64_t columns, int64_t steps, A* c, int64_t c_stride,
          bool add) {
  for (int64_t t = 0; t < steps; t += gemm_steps) {
    const int64_t count = steps - t < gemm_steps ? steps - t : gemm_steps;
    for (int64_t i = 0; i < rows; i += gemm_rows)
      gemm_row_tile({a.data + i * a.row + t * a.step, a.row, a.step}, panel + t * panel_columns, count, c + i * c_stride,
                    c_stride, rows - i, columns, add || t > 0);
  }
}

KD_END_TARGET
#endif
