// The problem every row loss solves, in plain numbers and pointers: no torch, no CUDA.
//
// A row is one softmax: C student logits z and a target distribution p over the same C classes. With the temperature T,
// q = softmax(z / T) and a hard label y, the loss of a row is
//
//     soft = w * T^2 * D(p, q)            D: one of `Divergence`; p comes from a target source
//     hard = -log softmax(z)[y]           optional, label smoothing as in torch.nn.functional.cross_entropy
//
// and the loss is kl_weight * soft + ce_weight * hard, each reduced over the rows it counts. The gradient is that of the
// reduced loss for an upstream gradient of 1; it is written in the same sweep that computes the loss.
#pragma once
#include <cstdint>

#include "host_device.h"

namespace kd {

enum class Dtype : int { float32, float16, bfloat16, float64 };

constexpr int element_size(Dtype dtype) { return dtype == Dtype::float64 ? 8 : dtype == Dtype::float32 ? 4 : 2; }

// Where the target distribution comes from. One struct per source in target_sources-inl.h. The last three have a constant
// teacher, or none, and are made for one purpose each:
//
//     label      no teacher: `label_on` on the label and `label_off` elsewhere; rows without a label do not count
//     permuted   the teacher's probabilities, shuffled among all classes but its largest
//     adjusted   the teacher's probabilities, repaired by `adjustment` where the largest is not the label's
enum class TargetSource : int { logits, log_probs, probs, label, permuted, adjusted };

// Forward KL(p || q), reverse KL(q || p), generalised Jensen-Shannon, and -sum p log q. One struct per divergence in
// divergences-inl.h. Source label knows forward and cross_entropy, permuted cross_entropy, adjusted forward.
enum class Divergence : int { forward, reverse, jsd, cross_entropy };

// What becomes of a teacher that mistakes the label: nothing, its two logits exchanged ("probability shift"), or its row
// replaced by that of source label ("label smoothing"). Wen, Lai, Qian 2021.
enum class Adjustment : int { none, exchange, label };

// What a first pass over the rows finds, for the whole batch to be known before any row's loss is, or (rank) for its own
// sake. Formulas: row_statistics.h.
enum class RowStatistic : int { none, confidence, cosine, doubt, rank };

// Class numbers are exact in float32, and an int counts what a GPU's threads have of a row.
constexpr int64_t most_classes = int64_t(1) << 24;

enum class Reduction : int { none, sum, batchmean, elementmean };

// A tensor [outer, middle, inner] of rows of classes in any memory layout: row r is (r / inner / middle, r / inner % middle,
// r % inner). Strides are in elements. Two of the three suffice for most layouts; `middle` is there for slices such as
// logits[:, :-1] of [batch, sequence, classes].
struct Rows {
  void* data = nullptr;  // null: absent (a gradient nobody asked for)
  Dtype dtype = Dtype::float32;
  int64_t outer_stride = 0;
  int64_t class_stride = 0;
  int64_t inner_stride = 0;
  int64_t middle_stride = 0;
};

struct SoftenedKL {
  int64_t outer = 0;
  int64_t middle = 1;
  int64_t inner = 1;
  int64_t classes = 0;
  int64_t groups = 1;  // rows / groups consecutive rows are reduced together, each group to one number

  Rows student;       // logits
  Rows teacher;       // what `source` says; source label: absent, or what confidences are to be taken of
  Rows grad_student;  // dtype of student
  Rows grad_teacher;  // dtype of teacher

  // Per row, contiguous, null where absent. `Float` is float, or double where either logits tensor is float64.
  const int64_t* target = nullptr;        // hard label in [0, classes) or ignore_index
  const bool* mask = nullptr;             // false: the soft term of this row is not computed and not counted
  const void* row_weight = nullptr;       // Float, multiplies the soft term
  const void* row_temperature = nullptr;  // Float > 0, replaces `temperature`

  TargetSource source = TargetSource::logits;
  Divergence divergence = Divergence::forward;
  Reduction reduction = Reduction::batchmean;
  double temperature = 1;      // > 0
  double beta = 0.5;           // weight of p in the Jensen-Shannon mixture, in [0, 1]
  double target_eps = 0;       // added to every p, not renormalised
  bool scale_by_t2 = true;
  double kl_weight = 1;
  double ce_weight = 0;
  bool hard = true;            // false: nobody asks for the hard term
  double label_smoothing = 0;  // in [0, 1]
  int64_t ignore_index = -100;

  // Sources label and adjusted. The entropy is what turns the cross entropy with that target into its divergence (0: a
  // cross entropy it stays).
  double label_on = 1;
  double label_off = 0;
  double label_entropy = 0;
  Adjustment adjustment = Adjustment::none;

  // Source permuted: class c gets the probability of class permutation[row][c]. Null: drawn from `seed` and the row's
  // number (permutation.h).
  const int64_t* permutation = nullptr;  // [rows, classes], contiguous
  uint64_t seed = 0;

  // The first pass. Its results become weights (confidence) or temperatures (cosine, doubt) of the rows, in place.
  RowStatistic statistic = RowStatistic::none;
  void* row_statistic = nullptr;       // [rows], Float; then also row_weight or row_temperature
  bool normalise_statistic = false;    // divided by its mean (confidence) or its sum
  double statistic_power = 1;          // of cosine
  double temperature_slope = 0;        // times how far a row's statistic is below the mean: added to `temperature`
  double least_temperature = 0;        // clamps the result; -inf: not clamped

  // Float. Reduction::none: one number per row, else one per group. `parts` is [2, same]: soft then hard, before their
  // weights; null where absent.
  void* loss = nullptr;
  void* parts = nullptr;
  // A float16 gradient comes in units of its row, powers of two (row_scales.h): [rows], Float. Null: in units of 1, as the
  // gradients of other dtypes.
  void* unit_student = nullptr;
  void* unit_teacher = nullptr;
  void* row_losses = nullptr;  // workspace [2, rows], Float
  void* counts = nullptr;      // workspace [2, groups], int64: rows counted by the soft and by the hard term

  // The arithmetic type: double as soon as one of the two is, float otherwise.
  KD_HOST_DEVICE bool is_double() const { return student.dtype == Dtype::float64 || teacher.dtype == Dtype::float64; }
  KD_HOST_DEVICE int64_t rows() const { return outer * middle * inner; }
  KD_HOST_DEVICE bool is_mean() const { return reduction != Reduction::none && reduction != Reduction::sum; }
  // Whether some rows may count and others not, so that they have to be counted.
  KD_HOST_DEVICE bool has_counts() const { return is_mean() && (mask || target); }
  KD_HOST_DEVICE int64_t group_rows() const { return groups == 1 ? rows() : rows() / groups; }
  // The problem once the statistics are known. Source label reads no teacher then.
  SoftenedKL after_statistics() const {
    SoftenedKL rest = *this;
    if (source == TargetSource::label) rest.teacher.data = nullptr;
    return rest;
  }

  // Confidences that stand in row_statistic from the beginning.
  KD_HOST_DEVICE bool has_statistics() const { return statistic == RowStatistic::confidence && !teacher.data; }
  KD_HOST_DEVICE bool has_label(int64_t row) const { return target && target[row] != ignore_index; }
  // Whether the soft term counts a row.
  KD_HOST_DEVICE bool counts_row(int64_t row) const {
    return (!mask || mask[row]) && (source != TargetSource::label || has_label(row));
  }
};

}  // namespace kd
