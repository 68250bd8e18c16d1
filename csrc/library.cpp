// Every operator of the package, on one screen. Kernels register themselves: csrc/cpu/STEM.cpp and csrc/cuda/STEM.cu.
//
// Integers that stand for names are the enums of the engines' headers; kdkernels/_names.py gives them their names.
#include "stable.h"

STABLE_TORCH_LIBRARY(kdkernels, m) {
  // Row losses. Gradients belong to an upstream gradient of 1. What is not asked for is undefined, None in Python: a gradient,
  // and `parts` ([2, *loss.shape]: soft and hard term, unweighted), of which there are none without a target. groups = 0: the
  // loss is a scalar (or has the row shape, for reduction "none"); groups > 0: dimension 0 is split off and the loss is
  // [groups]. A float16 gradient comes in units of its row (unit_student, unit_teacher: row shape, powers of two), which the
  // backward pass multiplies by together with the upstream gradient; other gradients have none. `denominator`: what means
  // divide by instead of the counted rows, one number or one per group, float64. shared_classes = 0: all, and equal widths.
  m.def(
      "softened_kl(Tensor student, Tensor teacher, Tensor? target, Tensor? target_probs, Tensor? mask, "
      "Tensor? row_weight, Tensor? row_temperature, Tensor? denominator, float temperature, int teacher_kind, "
      "int divergence, float beta, float skew, float target_eps, bool standardize, bool mask_ignored, "
      "int shared_classes, bool scale_by_t2, float kl_weight, float ce_weight, float label_smoothing, bool return_parts, "
      "int ignore_index, int reduction, int groups, int dim, bool grad_student, bool grad_teacher) "
      "-> (Tensor loss, Tensor parts, Tensor grad_student, Tensor grad_teacher, Tensor unit_student, Tensor unit_teacher)");

  // The same rows against a target that follows from the label: `on` on it, `off` elsewhere; `relative`: the divergence
  // from it, else the cross entropy. `teacher` (logits) or `confidence` (row shape) weigh the rows, by themselves or
  // relative to their mean. Row r has the label target[r / transforms] * transforms + r % transforms. Only the columns
  // start..stop-1 are read (stop = 0: all), and the others have the gradient 0.
  m.def(
      "label_loss(Tensor student, Tensor target, Tensor? teacher, Tensor? confidence, Tensor? denominator, float on, "
      "float off, bool relative, float temperature, float kl_weight, float ce_weight, bool normalize, int transforms, "
      "SymInt start, SymInt stop, bool return_parts, int ignore_index, int reduction, int groups, int dim, "
      "bool grad_student) "
      "-> (Tensor loss, Tensor parts, Tensor grad_student, Tensor unit_student)");

  // beta times the divergence of the classes other than the label among themselves (the first part), plus alpha times that
  // of the label against all of them (the second), both times temperature^2.
  m.def(
      "decoupled_kl(Tensor student, Tensor teacher, Tensor target, Tensor? mask, Tensor? row_weight, "
      "Tensor? row_temperature, Tensor? denominator, float temperature, float alpha, float beta, bool return_parts, "
      "int ignore_index, int reduction, int groups, int dim, bool grad_student, bool grad_teacher) "
      "-> (Tensor loss, Tensor parts, Tensor grad_student, Tensor grad_teacher, Tensor unit_student, Tensor unit_teacher)");

  // Cross entropy with the teacher's probabilities, permuted as told ([*rows, C]) or at random (`seed`: an int64
  // scalar in host memory, where it can be drawn inside torch.compile), times temperature^2.
  m.def(
      "dkpp_loss(Tensor student, Tensor teacher, Tensor? permutation, Tensor? mask, Tensor? row_weight, "
      "Tensor? denominator, float temperature, Tensor? seed, int reduction, int groups, int dim, bool grad_student) "
      "-> (Tensor loss, Tensor parts, Tensor grad_student, Tensor unit_student)");

  // Divergence at a temperature of each row's own, from a teacher repaired where it mistakes the label. `mode`:
  // RowStatistic, none for a constant temperature; row_temperature, where given, goes before it.
  m.def(
      "dynamic_temperature_kl(Tensor student, Tensor teacher, Tensor target, Tensor? mask, Tensor? row_weight, "
      "Tensor? row_temperature, Tensor? denominator, float temperature, float beta, float gamma, int mode, int adjust, "
      "float smoothing, bool l1, float t_min, bool scale_by_t2, float ce_weight, bool return_parts, int ignore_index, "
      "int reduction, int groups, int dim, bool grad_student) "
      "-> (Tensor loss, Tensor parts, Tensor grad_student, Tensor unit_student, Tensor row_temperature)");

  // Forward KL of several heads [..., C_i] that have the same rows, and of the constant teacher of each (csrc/multi_head_kl.h).
  // `heads`, [number of heads]: each before its weight. weights_tensor, of the arithmetic type, replaces `weights`;
  // denominator_tensor, a float64, replaces `denominator`, and 0 stands for the rows of a head. `units`: [float16
  // gradients, rows], in the order of the heads. A gradient that is not asked for is empty: a list has no undefined tensors.
  m.def(
      "multi_head_kl(Tensor[] students, Tensor[] teachers, Tensor? weights_tensor, Tensor? denominator_tensor, "
      "float temperature, float denominator, float[] weights, bool[] grad_students) "
      "-> (Tensor loss, Tensor heads, Tensor[] grad_students, Tensor units)");

  // The number per row that the batch's mean is taken of: RowStatistic. `rows`: logits of the student, for confidence of
  // the teacher.
  m.def(
      "row_statistics(Tensor rows, Tensor? teacher, Tensor? target, int statistic, float gamma, int adjust, "
      "int ignore_index, int dim) -> Tensor");

  // The largest class of each row, int64, and its probability at the temperature. Below the threshold, or that of the class
  // (`thresholds`: [C], arithmetic type), the label is ignore_index.
  m.def(
      "pseudo_labels(Tensor logits, Tensor? thresholds, float threshold, float temperature, int ignore_index, int dim) "
      "-> (Tensor labels, Tensor confidence)");

  // Multiplies a gradient by the upstream gradient of its loss: a scalar, or one number per row. Does nothing where that
  // is 1, and finds out on the device.
  m.def("scale_gradient_(Tensor(a!) gradient, Tensor upstream, int dim) -> ()");

  // Losses on the similarities of queries [Q, D] and keys [K, D] (csrc/similarity.h). `key_target`:
  // KeyTarget. temperature_tensor, a number of the arithmetic type, replaces `temperature`; own_key < 0: a query is none of
  // the keys; logit_bias: [Q, K], of any strides, 0 included. Gradients as above.
  m.def(
      "similarity_loss(Tensor query, Tensor key, Tensor? temperature_tensor, Tensor? teacher_query, Tensor? teacher_key, "
      "Tensor? positive, Tensor? query_labels, Tensor? key_labels, Tensor? logit_bias, Tensor? mask, Tensor? row_weight, "
      "float temperature, int key_target, bool normalize, bool symmetric, bool scale_by_t2, int own_key, bool allow_tf32, "
      "int reduction, bool grad_query, bool grad_key, bool grad_temperature) "
      "-> (Tensor loss, Tensor grad_query, Tensor grad_key, Tensor grad_temperature)");
  m.def("similarity_rank(Tensor query, Tensor key, Tensor positive, bool normalize, bool allow_tf32) -> Tensor");

  // Noise-contrastive estimation of embeddings [B, d] against entries index [B, K+1] of a bank [n, d], column 0 the
  // positive (csrc/memory_bank.h). Z is one number of the arithmetic type. The second op finds it: `known`, unless that is
  // absent or NaN, which it finds out on the device. The gradient as above; `positive` [B]: the scores of column 0.
  m.def(
      "memory_bank_nce(Tensor embedding, Tensor bank, Tensor index, Tensor normalizer, float temperature, float eps, "
      "int reduction, bool grad_embedding) -> (Tensor loss, Tensor positive, Tensor grad_embedding)");
  m.def("memory_bank_normalizer(Tensor embedding, Tensor bank, Tensor index, Tensor? known, float temperature) -> Tensor");

  // Losses of peers [B, P, C] that learn from each other (csrc/peer_ensemble.h). `parts`, [4]: cross entropy of the peers, of
  // leader or ensemble, KL of the peers, of the leader. `mix`: PeerMix. Gradients as above, dense.
  m.def(
      "okddip_loss(Tensor peer_logits, Tensor? leader_logits, Tensor query, Tensor key, Tensor target, float temperature, "
      "float kl_weight, float target_eps, int mix, bool detach_targets, bool grad_peers, bool grad_leader, bool grad_query, "
      "bool grad_key) -> (Tensor loss, Tensor parts, Tensor grad_peers, Tensor grad_leader, Tensor grad_query, "
      "Tensor grad_key)");
  m.def(
      "gated_ensemble_loss(Tensor gate, Tensor branch_logits, Tensor target, float temperature, float kl_weight, "
      "float target_eps, bool grad_gate, bool grad_branches) "
      "-> (Tensor loss, Tensor parts, Tensor grad_gate, Tensor grad_branches)");
  m.def(
      "leave_one_out_loss(Tensor peer_logits, Tensor target, float temperature, float kl_weight, float target_eps, "
      "bool pairwise, bool grad_peers) -> (Tensor loss, Tensor parts, Tensor grad_peers)");

  // The mixture alone, and the attention [B, P, P] it was made with; without query and key the mean, [B, 1, C].
  m.def(
      "peer_mixture(Tensor peer_logits, Tensor? query, Tensor? key, float temperature, int mix) "
      "-> (Tensor mixture, Tensor attention)");
  m.def(
      "peer_mixture_backward(Tensor grad_mixture, Tensor? grad_attention, Tensor peer_logits, Tensor? query, Tensor? key, "
      "Tensor attention, float temperature, int mix, bool grad_peers, bool grad_query, bool grad_key) "
      "-> (Tensor grad_peers, Tensor grad_query, Tensor grad_key)");

  // scale_gradient_ of all gradients of a loss at once, by one number; dense ones.
  m.def("scale_gradients_(Tensor(a!)[] gradients, Tensor upstream) -> ()");

  // The instruction set of the CPU kernels: "base", "avx2" or "avx512".
  m.def("cpu_isa() -> str");
  m.def("set_cpu_isa(str name) -> ()");
}
