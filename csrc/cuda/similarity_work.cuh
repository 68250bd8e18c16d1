// What the kernels of a loss on similarities share: the softmax of a part of a row, the workspace, and logits from tiles.
#pragma once
#include "cuda/chunk.cuh"
#include "cuda/launch.h"
#include "cuda/math.cuh"
#include "cuda/tile_product.cuh"
#include "similarity.h"

namespace kd {
namespace {

// The softmaxes of a row over some of the keys.
template <class A>
struct RowSweep {
  A max = -HUGE_VALF, sum = 0;                  // of the student's logits s: sum of e^(s - max)
  A teacher_max = -HUGE_VALF, teacher_sum = 0;  // of the teacher's, t
  A against = 0;                                // sum of e^(t - teacher_max) (t - s)
  A chosen = 0, positives = 0;                  // sum of the logits of positives, and how many

  static KD_DEVICE A base(A max) { return max == -HUGE_VALF ? A(0) : max; }

  KD_DEVICE void raise(A highest) {
    if (highest > max) sum *= exp(max - highest), max = highest;
  }
  KD_DEVICE void raise_teacher(A highest) {
    if (!(highest > teacher_max)) return;
    const A factor = exp(teacher_max - highest);
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
  KD_DEVICE A log_sum() const { return base(max) + log(sum); }
  KD_DEVICE A teacher_log_sum() const { return base(teacher_max) + log(teacher_sum); }
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

// The rows and columns of a thread in a tile, counted from the first of the tile on: 32 bits, of which the 64 of the first are
// not a thread's own. Made for each tile anew (simt::opaque), else there would be no registers left for the tile.
template <class Kind>
class OwnPlaces {
 public:
  KD_DEVICE OwnPlaces() : first_row_(simt::opaque(Kind::row(0))), first_column_(simt::opaque(Kind::column(0))) {}

  KD_DEVICE int row(int r) const { return first_row_ + (Kind::row(r) - Kind::row(0)); }
  KD_DEVICE int column(int c) const { return first_column_ + (Kind::column(c) - Kind::column(0)); }

  // The columns that a condition holds for, as bits.
  template <class Condition>
  KD_DEVICE uint32_t columns_where(const Condition& condition) const {
    uint32_t bits = 0;
    KD_UNROLL for (int c = 0; c < own_rows; ++c) bits |= condition(column(c)) ? 1u << c : 0u;
    return bits;
  }
  // The column `distance` behind the first of the tile.
  KD_DEVICE uint32_t column_at(int64_t distance) const {
    const int at = distance >= 0 && distance < tile_rows ? static_cast<int>(distance) : -1;
    return columns_where([&](int column) { return column == at; });
  }

 private:
  const int first_row_, first_column_;
};

// Whether a tile of queries that begins with number `first` has one that counts; all of them do without a mask. For a full
// warp, and the same for all warps of a block.
KD_DEVICE bool any_query(const bool* mask, int64_t queries, int64_t first) {
  if (!mask) return true;
  bool any = false;
  KD_UNROLL for (int i = 0; i < tile_rows / simt::warp_threads; ++i) {
    const int64_t j = first + simt::lane_index() + i * simt::warp_threads;
    any |= j < queries && mask[j];
  }
  return simt::vote_any(any);
}

// How many of `all` there are in a tile that begins with number `first`.
KD_DEVICE int in_tile(int64_t all, int64_t first) {
  const int64_t left = all - first;
  return static_cast<int>(left < tile_rows ? left : tile_rows);
}

// Rows against columns of one pair of features: queries against keys or, for the columns, the other way round. Made on the
// host: what a kernel is given, and not what it chooses, is known to lie in global memory.
template <class A>
struct LogitTile {
  TileOperand rows, columns;
  const A* row_scales;  // null: 1 each
  const A* column_scales;

  // The logit of a pair, but for its bias, is the product of their features, times one of these, times the other.
  KD_DEVICE A row_factor(int64_t first_row, int row, A inverse_temperature) const {
    return row_scales ? (row_scales + first_row)[row] * inverse_temperature : inverse_temperature;
  }
  template <class Kind>
  KD_DEVICE void column_factors(const OwnPlaces<Kind>& own, int64_t first_column, A (&factors)[own_rows]) const {
    const int count = in_tile(columns.rows, first_column);
    KD_UNROLL for (int c = 0; c < own_rows; ++c) {
      factors[c] = 1;
      if (column_scales && own.column(c) < count) factors[c] = (column_scales + first_column)[own.column(c)];
    }
  }
};

inline TileOperand as_operand(const Features& features) {
  return {features.data, features.dtype, features.rows, features.width, features.stride};
}

template <class A>
LogitTile<A> logits_of(const SimilarityOnDevice<A>& problem, bool teacher, bool by_column) {
  const Features& query = teacher ? problem.teacher_query : problem.query;
  const Features& key = teacher ? problem.teacher_key : problem.key;
  A* const* scales = problem.work.inverse_norms + (teacher ? 2 : 0);
  if (by_column) return {as_operand(key), as_operand(query), scales[1], scales[0]};
  return {as_operand(query), as_operand(key), scales[0], scales[1]};
}

// The column that is the row itself, as a bit.
template <class Kind>
KD_DEVICE uint32_t own_column(const Similarity& problem, bool by_column, const OwnPlaces<Kind>& own, int r, int64_t first_row,
                              int64_t first_column) {
  if (problem.own_key < 0) return 0;
  return own.column_at(first_row - first_column + (by_column ? -problem.own_key : problem.own_key) + own.row(r));
}

// The keys that are positives of a query, as bits.
template <class Kind>
KD_DEVICE uint32_t positive_keys(const Similarity& problem, const OwnPlaces<Kind>& own, int r, int64_t first_query,
                                 int64_t first_key) {
  if (problem.target == KeyTarget::labels) {
    const int64_t label = (problem.query_labels + first_query)[own.row(r)];
    const int count = in_tile(problem.keys(), first_key);
    const int64_t* labels = problem.key_labels + first_key;
    return own.columns_where([&](int column) { return column < count && labels[column] == label; });
  }
  if (!problem.positive) return own.column_at(first_query - first_key + own.row(r));
  return own.column_at((problem.positive + first_query)[own.row(r)] - first_key);
}

}  // namespace
}  // namespace kd
