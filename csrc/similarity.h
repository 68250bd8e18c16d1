// The problem every loss on a matrix of similarities solves, in plain numbers and pointers: no torch, no CUDA.
//
// Queries f_j and keys g_k are rows of features. Their similarities and the logits of row j are
//
//     A_jk = <f_j, g_k>                    of rows divided by max(norm, 1e-8), if `normalize`
//     s_jk = A_jk / T + bias_jk            q_j = softmax of s_j over the keys
//
// and the loss of row j compares q_j with a target distribution over the same keys:
//
//     positive   one key                                        -log q_j[positive_j]
//     labels     all keys of the query's own label alike        -mean over them of log q_jk     (an anchor with none: not counted)
//     teacher    the softmax of another pair of features        w_j T^2 KL(p_j || q_j)
//
// `symmetric` (positive only): the mean of that and of the same along the columns, -log of the softmax over the queries of
// column positive_j. No matrix [queries, keys] is ever stored: bands of rows at most.
//
// The gradient is that of the reduced loss for an upstream gradient of 1. With G = d loss / d s, M_j = sum_k G_jk g_k / T
// (of the unit rows), it is d f_j = (M_j - u_j <u_j, M_j>) / |f_j|, and d loss / d T = -sum_j <M_j, u_j> / T.
// A row of norm <= 1e-8 is divided by 1e-8, a constant: no projection. In float16 and bfloat16 its gradient is 0.
#pragma once
#include <cstdint>

#include "host_device.h"
#include "types.h"

namespace kd {

constexpr double least_norm = 1e-8;

// Whether the gradient of a row of norm <= least_norm is 0. Divided by 1e-8 it is beyond float16, and bfloat16 knows of the
// direction no more than that the row was rounded to 0.
KD_HOST_DEVICE constexpr bool short_rows_are_constant(Dtype dtype) {
  return dtype == Dtype::float16 || dtype == Dtype::bfloat16;
}

enum class KeyTarget : int { positive, labels, teacher };

struct Similarity {
  Features query, key;                  // one width
  Features teacher_query, teacher_key;  // KeyTarget::teacher: as many rows; one width, constant
  Features grad_query, grad_key;        // shapes of query and key, kept_dtype of theirs; absent where not requested

  KeyTarget target = KeyTarget::positive;
  Reduction reduction = Reduction::batchmean;
  bool normalize = true;
  bool symmetric = false;
  bool scale_by_t2 = false;
  bool allow_tf32 = false;  // CUDA: float32 products on tensor cores, as torch does where the user allows it
  double temperature = 1;   // > 0

  // `Float` is float, or double where any features are float64. Contiguous, null where absent.
  const void* temperature_at = nullptr;  // Float, one number: replaces `temperature`
  const int64_t* positive = nullptr;     // [queries], in [0, keys); null: key j is the positive of query j
  const int64_t* query_labels = nullptr;  // [queries]
  const int64_t* key_labels = nullptr;    // [keys]
  int64_t own_key = -1;                   // >= 0: key own_key + j is query j itself, and none of its keys
  const bool* mask = nullptr;             // [queries]; false: as if the query were not there
  const void* row_weight = nullptr;       // Float [queries], multiplies a row's loss
  const void* bias = nullptr;             // Float, at [j * bias_query_stride + k * bias_key_stride]
  int64_t bias_query_stride = 0;
  int64_t bias_key_stride = 0;

  void* loss = nullptr;              // Float: one number, or one per query for Reduction::none
  void* grad_temperature = nullptr;  // Float, one number; null where not requested

  KD_HOST_DEVICE bool is_double() const {
    return query.dtype == Dtype::float64 || key.dtype == Dtype::float64 || teacher_query.dtype == Dtype::float64 ||
           teacher_key.dtype == Dtype::float64;
  }
  KD_HOST_DEVICE int64_t queries() const { return query.rows; }
  KD_HOST_DEVICE int64_t keys() const { return key.rows; }
  KD_HOST_DEVICE bool has_query(int64_t j) const { return !mask || mask[j]; }
  KD_HOST_DEVICE int64_t positive_of(int64_t j) const { return positive ? positive[j] : j; }
  KD_HOST_DEVICE bool wants_gradient() const { return grad_query.data || grad_key.data || grad_temperature; }
};

// How many keys are more similar to a query than its positive, or as similar and before it: 0 where the positive leads.
struct SimilarityRank {
  Features query, key;  // one width
  bool normalize = true;
  bool allow_tf32 = false;
  const int64_t* positive = nullptr;  // [queries]
  int64_t* rank = nullptr;            // [queries]
};

}  // namespace kd
