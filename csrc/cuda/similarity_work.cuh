// What the kernels of a loss on similarities share: the softmax of a part of a row, the workspace, and logits from tiles.
#pragma once
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

}  // namespace
}  // namespace kd
