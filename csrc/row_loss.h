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
#include "types.h"

namespace kd {

// Where the target distribution comes from. One struct per source in target_sources-inl.h. The next three have a constant
// teacher, or none, and are made for one purpose each:
//
//     label      no teacher: `label_on` on the label and `label_off` elsewhere; rows without a label do not count
//     permuted   the teacher's probabilities, shuffled among all classes but its largest
//     adjusted   the teacher's probabilities, repaired by `adjustment` where the largest is not the label's
//
// The last one splits the divergence of two softmaxes: the soft term is that of the classes other than the label among
// themselves, the hard term that of the label against all of them, and both count the same rows.
enum class TargetSource : int { logits, log_probs, probs, label, permuted, adjusted, decoupled };

// Forward KL(p || q), reverse KL(q || p), generalised Jensen-Shannon, -sum p log q, and total variation sum |p - q| / 2. One
// struct per divergence in divergences-inl.h. Source label knows forward and cross_entropy, permuted cross_entropy, adjusted
// forward.
enum class Divergence : int { forward, reverse, jsd, cross_entropy, tvd };

// What is done with a teacher's row whose largest class is not the label: nothing; the two logits are exchanged ("probability
// shift"); or the row is replaced by the target of source label ("label smoothing"). Wen, Lai, Qian 2021.
enum class Adjustment : int { none, exchange, label };

// A number per row that a first pass over the rows computes. The loss of a row depends on those of the whole batch; rank and
// pseudo_label are results by themselves. Formulas: row_statistics.h.
enum class RowStatistic : int { none, confidence, cosine, doubt, rank, pseudo_label };

// Up to here class numbers are exact in float32, and an int holds every index into a row.
constexpr int64_t most_classes = int64_t(1) << 24;

// The soft term: w * T^2 * D(p, q). `Float` is float, or double where either logits tensor is float64.
struct SoftTerm {
  Divergence divergence = Divergence::forward;
  double temperature = 1;                 // > 0
  const void* row_temperature = nullptr;  // Float [rows] > 0, contiguous; replaces `temperature`; null: absent
  double beta = 0.5;                      // Jensen-Shannon: weight of p in the mixture, in [0, 1]
  double skew = 0;                        // forward, reverse: weight in [0, 1) of the first distribution in the mixture
  int64_t classes = 0;                    // the first classes of both rows, so many, are compared; 0: all
  bool standardize = false;               // the compared logits of each row are z-scored first
  bool needs_label = false;               // rows without a label do not count
  double target_eps = 0;                  // added to every p, not renormalised
  bool scale_by_t2 = true;
  double weight = 1;                      // in the loss: kl_weight
};

// The hard term: the cross entropy with a label.
struct HardTerm {
  const int64_t* target = nullptr;  // [rows], contiguous: a class or ignore_index; null: absent
  int64_t ignore_index = -100;
  int64_t transforms = 1;           // row r has the joint label target[r / transforms] * transforms + r % transforms
  int64_t first_class = 0;          // the class that column 0 of the student stands for
  Rows probs;                       // instead of labels: a distribution over the classes, constant, any dtype
  double smoothing = 0;             // in [0, 1], as in torch.nn.functional.cross_entropy
  double weight = 0;                // in the loss: ce_weight
  bool wanted = true;               // false: only the soft term uses the labels
};

// A target that follows from the label: sources label and adjusted. The entropy is subtracted from the cross entropy with
// this target, which gives the divergence; 0 leaves the cross entropy.
struct LabelDistribution {
  double on = 1;
  double off = 0;
  double entropy = 0;
};

// Source permuted: class c gets the probability of class of_rows[row][c]. Null: drawn from `seed` and the row's number
// (permutation.h).
struct Permutation {
  const int64_t* of_rows = nullptr;  // [rows, classes], contiguous
  uint64_t seed = 0;
};

// The first pass. Its results become weights (confidence) or temperatures (cosine, doubt) of the rows, in place.
struct FirstPass {
  RowStatistic statistic = RowStatistic::none;
  void* numbers = nullptr;     // [rows], Float; row_weight or row_temperature points to the same memory
  bool normalize = false;      // divided by their mean (confidence) or their sum
  double power = 1;            // of cosine
  double slope = 0;            // a row's temperature is soft.temperature + slope * (mean - number)
  double least_temperature = 0;  // clamps the result; -inf: not clamped
};

// Statistic pseudo_label. The number of a row is the probability of the student's largest class at soft.temperature. The
// label is that class where the probability is at least the threshold, else hard.ignore_index.
struct PseudoLabels {
  int64_t* labels = nullptr;         // [rows]
  double threshold = 0;              // in [0, 1]
  const void* thresholds = nullptr;  // [classes], Float, contiguous: replaces `threshold` by that of the largest class
};

// Rows are solved in one call, or, if they come in parts, in the steps of row_measure.h.
enum class RowStep : int { all, exponentials, gradients, finish };

struct RowLoss {
  int64_t outer = 0;
  int64_t middle = 1;
  int64_t inner = 1;
  int64_t classes = 0;          // of the student
  int64_t teacher_classes = 0;  // of the teacher; 0: as many
  int64_t groups = 1;  // rows / groups consecutive rows are reduced together, each group to one number

  Rows student;       // logits
  Rows teacher;       // as `source` says; source label: absent, or the logits that confidences are computed from
  Rows grad_student;  // dtype of student
  Rows grad_teacher;  // dtype of teacher

  const bool* mask = nullptr;        // [rows]; false: the soft term of this row is not computed and not counted
  const void* row_weight = nullptr;  // [rows], Float: multiplies the soft term

  TargetSource source = TargetSource::logits;
  SoftTerm soft;
  HardTerm hard;
  LabelDistribution label;
  Adjustment adjustment = Adjustment::none;
  Permutation permutation;
  FirstPass first;
  PseudoLabels pseudo;
  Reduction reduction = Reduction::batchmean;
  const double* denominators = nullptr;  // [groups]: what means divide by instead of counted rows; NaN where not > 0

  RowStep step = RowStep::all;
  void* measures = nullptr;  // [rows] RowMeasure<Float>: written by steps exponentials and gradients, read by all after it

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
  // Whether the divisor is a number of rows that depends on the mask or the labels.
  KD_HOST_DEVICE bool has_counts() const { return is_mean() && !denominators && (mask || hard.target); }
  KD_HOST_DEVICE int64_t group_rows() const { return groups == 1 ? rows() : rows() / groups; }
  // The problem once the statistics are known. Source label reads no teacher then.
  RowLoss after_statistics() const {
    RowLoss rest = *this;
    if (source == TargetSource::label) rest.teacher.data = nullptr;
    return rest;
  }

  // Whether the caller has given the confidences in first.numbers.
  KD_HOST_DEVICE bool has_statistics() const { return first.statistic == RowStatistic::confidence && !teacher.data; }
  KD_HOST_DEVICE int64_t target_of(int64_t row) const { return hard.target[hard.transforms == 1 ? row : row / hard.transforms]; }
  KD_HOST_DEVICE bool has_label(int64_t row) const { return hard.target && target_of(row) != hard.ignore_index; }
  // The student's column of a row's label; out of range if the label is. Meaningless without a label.
  KD_HOST_DEVICE int64_t label_of(int64_t row) const {
    const int64_t label = target_of(row) - hard.first_class;
    if (hard.transforms == 1) return label;
    // A label that is out of range for its image must not become a joint label in range.
    return label < 0 || label >= classes / hard.transforms ? -1 : label * hard.transforms + row % hard.transforms;
  }
  // Whether there is a hard term at all.
  KD_HOST_DEVICE bool has_hard() const { return hard.target || hard.probs.data; }
  KD_HOST_DEVICE int64_t teacher_width() const { return teacher_classes > 0 ? teacher_classes : classes; }
  // Classes that the soft term compares, and whether a row has others.
  KD_HOST_DEVICE int64_t compared_classes() const { return soft.classes > 0 ? soft.classes : classes; }
  KD_HOST_DEVICE bool shares_classes() const {
    return compared_classes() < classes || compared_classes() < teacher_width();
  }
  // Whether the soft term counts a row, and whether it counts none without a label.
  KD_HOST_DEVICE bool counts_row(int64_t row) const { return (!mask || mask[row]) && (!asks_label() || has_label(row)); }
  KD_HOST_DEVICE bool asks_label() const {
    return source == TargetSource::label || source == TargetSource::decoupled || soft.needs_label;
  }
  // Whether the hard term counts a row.
  KD_HOST_DEVICE bool counts_hard(int64_t row) const {
    return source == TargetSource::decoupled ? counts_row(row) : hard.probs.data || has_label(row);
  }
};

// The path of a problem through both engines: cpu/PATH_rows-inl.h and cuda/PATH_rows.cuh.
//
//     forward     forward KL of two softmaxes, constant teacher: the commonest; loss and gradient follow from the weights
//     general     any divergence from any teacher, with both gradients
//     label       source label
//     permuted    source permuted
//     adjusted    source adjusted
//     decoupled   source decoupled
enum class RowPath : int { forward, general, label, permuted, adjusted, decoupled };

constexpr const char* row_path_names[] = {"forward", "general", "label", "permuted", "adjusted", "decoupled"};

KD_HOST_DEVICE RowPath path_of(const RowLoss& problem) {
  switch (problem.source) {
    case TargetSource::label: return RowPath::label;
    case TargetSource::permuted: return RowPath::permuted;
    case TargetSource::adjusted: return RowPath::adjusted;
    case TargetSource::decoupled: return RowPath::decoupled;
    default: break;
  }
  const SoftTerm& soft = problem.soft;
  const bool is_plain = soft.skew == 0 && soft.target_eps == 0 && !soft.standardize && !problem.shares_classes() &&
                        !problem.hard.probs.data && problem.step == RowStep::all;
  // A term of weight 0 adds nothing, not even NaN; the forward rows do not check for that.
  const bool is_forward = problem.source == TargetSource::logits && soft.divergence == Divergence::forward && is_plain &&
                          soft.weight != 0 && !problem.grad_teacher.data;
  return is_forward ? RowPath::forward : RowPath::general;
}

}  // namespace kd
