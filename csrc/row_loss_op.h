// The ops of row losses: a RowCall (row_call.h) with the arguments of the op, solved. The same for every device; what runs a
// problem is the template argument:
//
//     Device::row_loss(problem, like)                                  `like`: a tensor on the device
//     Device::row_statistics(problem, like)
//     Device::scale_gradient(gradient, outer, classes, inner, upstream, upstream_dtype, per_row, like)
#pragma once
#include <cmath>
#include <tuple>

#include "row_call.h"
#include "stable.h"

namespace kd {

// `relative`: the divergence from that target, not the cross entropy with it.
inline void set_label_target(RowLoss& problem, double on, double off, bool relative) {
  const auto information = [](double p) { return p > 0 ? -p * std::log(p) : 0.0; };
  problem.label.on = on;
  problem.label.off = off;
  problem.label.entropy =
      relative ? information(on) + static_cast<double>(problem.classes - 1) * information(off) : 0.0;
}

template <class Device>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> softened_kl_op(
    const Tensor& student,                         // logits, `dim` is the class dimension
    const Tensor& teacher,                         // same shape but for `shared_classes`, what `teacher_kind` says
    const std::optional<Tensor>& target,           // row shape, int64
    const std::optional<Tensor>& target_probs,     // shape of student, any float dtype; instead of `target`
    const std::optional<Tensor>& mask,             // row shape, bool
    const std::optional<Tensor>& row_weight,       // row shape, arithmetic type
    const std::optional<Tensor>& row_temperature,  // row shape, arithmetic type
    const std::optional<Tensor>& denominator,      // one number per group, float64
    double temperature, int64_t teacher_kind, int64_t divergence, double beta, double skew, double target_eps,
    bool standardize, bool mask_ignored, int64_t shared_classes, bool scale_by_t2, double kl_weight, double ce_weight,
    double label_smoothing, bool return_parts, int64_t ignore_index, int64_t reduction, int64_t groups, int64_t dim,
    bool grad_student, bool grad_teacher) {
  RowCall call(student, dim, groups, reduction, return_parts);
  call.teacher(teacher, shared_classes);
  call.target(target, ignore_index);
  call.target_probs(target_probs);
  call.mask(mask);
  call.denominator(denominator);
  call.row_weight(row_weight);
  call.row_temperature(row_temperature);
  RowLoss& problem = call.problem;
  problem.source = static_cast<TargetSource>(teacher_kind);
  problem.soft.divergence = static_cast<Divergence>(divergence);
  problem.soft.temperature = temperature;
  problem.soft.beta = beta;
  problem.soft.skew = skew;
  problem.soft.standardize = standardize;
  problem.soft.needs_label = mask_ignored;
  problem.soft.target_eps = target_eps;
  problem.soft.scale_by_t2 = scale_by_t2;
  problem.soft.weight = kl_weight;
  problem.hard.weight = ce_weight;
  problem.hard.smoothing = label_smoothing;
  const auto found = call.template solve<Device>(grad_student, grad_teacher);
  return {found.loss, found.parts, found.grad_student, found.grad_teacher, found.unit_student, found.unit_teacher};
}

template <class Device>
std::tuple<Tensor, Tensor, Tensor, Tensor> label_loss_op(
    const Tensor& student,                     // logits, `dim` is the class dimension
    const Tensor& target,                      // one value for every `transforms` rows, int64
    const std::optional<Tensor>& teacher,      // logits, same shape: their confidence weighs the rows
    const std::optional<Tensor>& confidence,   // row shape, arithmetic type
    const std::optional<Tensor>& denominator,  // one number per group, float64
    double on, double off, bool relative, double temperature, double kl_weight, double ce_weight, bool normalize,
    int64_t transforms, int64_t start, int64_t stop, bool return_parts, int64_t ignore_index, int64_t reduction,
    int64_t groups, int64_t dim, bool grad_student) {
  RowCall call(student, dim, groups, reduction, return_parts);
  RowLoss& problem = call.problem;
  if (teacher) call.teacher(*teacher);
  call.target(target, ignore_index, transforms);
  call.denominator(denominator);
  require(!teacher || (start == 0 && stop == 0), "a range of classes has no teacher");
  call.class_range(start, stop);
  problem.source = TargetSource::label;
  set_label_target(problem, on, off, relative);
  problem.soft.temperature = temperature;
  problem.soft.scale_by_t2 = false;
  problem.soft.weight = kl_weight;
  problem.hard.weight = ce_weight;
  std::optional<Tensor> statistic;
  if (teacher || confidence) {
    // A copy in the order of the rows: it is changed in place.
    if (!confidence) statistic = call.row_numbers();
    else if (confidence->is_contiguous()) statistic = torch::stable::clone(*confidence);
    else statistic = torch::stable::contiguous(*confidence);
    call.row_weight(statistic);
    problem.first.statistic = RowStatistic::confidence;
    problem.first.numbers = statistic->data_ptr();
    problem.first.normalize = normalize;
  }
  const auto found = call.template solve<Device>(grad_student, false);
  return {found.loss, found.parts, found.grad_student, found.unit_student};
}

template <class Device>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> decoupled_kl_op(
    const Tensor& student,                         // logits, `dim` is the class dimension
    const Tensor& teacher,                         // logits, same shape
    const Tensor& target,                          // row shape, int64
    const std::optional<Tensor>& mask,             // row shape, bool
    const std::optional<Tensor>& row_weight,       // row shape, arithmetic type
    const std::optional<Tensor>& row_temperature,  // row shape, arithmetic type
    const std::optional<Tensor>& denominator,      // one number per group, float64
    double temperature, double alpha, double beta, bool return_parts, int64_t ignore_index, int64_t reduction,
    int64_t groups, int64_t dim, bool grad_student, bool grad_teacher) {
  RowCall call(student, dim, groups, reduction, return_parts);
  call.teacher(teacher);
  call.target(target, ignore_index);
  call.mask(mask);
  call.denominator(denominator);
  call.row_weight(row_weight);
  call.row_temperature(row_temperature);
  RowLoss& problem = call.problem;
  problem.source = TargetSource::decoupled;
  problem.soft.temperature = temperature;
  problem.soft.weight = beta;
  problem.hard.weight = alpha;
  const auto found = call.template solve<Device>(grad_student, grad_teacher);
  return {found.loss, found.parts, found.grad_student, found.grad_teacher, found.unit_student, found.unit_teacher};
}

template <class Device>
std::tuple<Tensor, Tensor, Tensor, Tensor> dkpp_loss_op(
    const Tensor& student,                     // logits, `dim` is the class dimension
    const Tensor& teacher,                     // logits, same shape
    const std::optional<Tensor>& permutation,  // same shape, int64
    const std::optional<Tensor>& mask,         // row shape, bool
    const std::optional<Tensor>& row_weight,   // row shape, arithmetic type
    const std::optional<Tensor>& denominator,  // one number per group, float64
    double temperature,
    const std::optional<Tensor>& seed,  // int64 scalar on the CPU
    int64_t reduction, int64_t groups, int64_t dim, bool grad_student) {
  RowCall call(student, dim, groups, reduction);
  RowLoss& problem = call.problem;
  require(permutation || (seed && seed->is_cpu() && seed->scalar_type() == ScalarType::Long && seed->numel() == 1),
          "without a permutation a seed is needed, an int64 scalar on the CPU");
  call.teacher(teacher);
  call.mask(mask);
  call.row_weight(row_weight);
  call.permutation(permutation);
  call.denominator(denominator);
  problem.source = TargetSource::permuted;
  problem.soft.divergence = Divergence::cross_entropy;
  problem.soft.temperature = temperature;
  if (seed) problem.permutation.seed = *static_cast<const uint64_t*>(seed->data_ptr());
  const auto found = call.template solve<Device>(grad_student, false);
  return {found.loss, found.parts, found.grad_student, found.unit_student};
}

template <class Device>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> dynamic_temperature_kl_op(
    const Tensor& student,                         // logits, `dim` is the class dimension
    const Tensor& teacher,                         // logits, same shape
    const Tensor& target,                          // row shape, int64
    const std::optional<Tensor>& mask,             // row shape, bool
    const std::optional<Tensor>& row_weight,       // row shape, arithmetic type
    const std::optional<Tensor>& row_temperature,  // row shape, arithmetic type
    const std::optional<Tensor>& denominator,      // one number per group, float64
    double temperature, double beta, double gamma, int64_t mode, int64_t adjust, double smoothing, bool l1, double t_min,
    bool scale_by_t2, double ce_weight, bool return_parts, int64_t ignore_index, int64_t reduction, int64_t groups,
    int64_t dim, bool grad_student) {
  RowCall call(student, dim, groups, reduction, return_parts);
  RowLoss& problem = call.problem;
  call.teacher(teacher);
  call.target(target, ignore_index);
  call.mask(mask);
  call.row_weight(row_weight);
  call.denominator(denominator);
  problem.source = TargetSource::adjusted;
  problem.adjustment = static_cast<Adjustment>(adjust);
  const double off = smoothing / static_cast<double>(problem.classes);
  set_label_target(problem, 1 - smoothing + off, off, true);
  problem.soft.temperature = temperature;
  problem.soft.scale_by_t2 = scale_by_t2;
  problem.hard.weight = ce_weight;
  problem.hard.wanted = return_parts || ce_weight != 0;
  const Tensor temperatures = row_temperature ? torch::stable::clone(*row_temperature) : call.row_numbers();
  const auto statistic = static_cast<RowStatistic>(mode);
  if (!row_temperature && statistic == RowStatistic::none) {
    Tensor constant = temperatures;
    torch::stable::fill_(constant, temperature);
  } else if (!row_temperature) {
    problem.first.statistic = statistic;
    problem.first.numbers = temperatures.data_ptr();
    problem.first.normalize = l1;
    problem.first.power = gamma;
    problem.first.slope = beta;
    problem.first.least_temperature = t_min;
  }
  if (row_temperature || statistic != RowStatistic::none) call.row_temperature(temperatures);
  const auto found = call.template solve<Device>(grad_student, false);
  return {found.loss, found.parts, found.grad_student, found.unit_student, temperatures};
}

template <class Device>
Tensor row_statistics_op(const Tensor& rows,                    // logits (for confidences a teacher's), classes along `dim`
                         const std::optional<Tensor>& teacher,  // logits, same shape
                         const std::optional<Tensor>& target,   // row shape, int64
                         int64_t statistic, double gamma, int64_t adjust, int64_t ignore_index, int64_t dim) {
  RowCall call(rows, dim, 0, 0);
  RowLoss& problem = call.problem;
  call.target(target, ignore_index);
  problem.adjustment = static_cast<Adjustment>(adjust);
  problem.first.statistic = static_cast<RowStatistic>(statistic);
  if (teacher) call.teacher(*teacher);
  else if (problem.first.statistic == RowStatistic::confidence) call.teacher(rows);
  problem.first.power = gamma;
  const Tensor statistics = call.row_numbers();
  problem.first.numbers = statistics.data_ptr();
  Device::row_statistics(problem, rows);
  return statistics;
}

template <class Device>
std::tuple<Tensor, Tensor> pseudo_labels_op(const Tensor& logits,                     // `dim` is the class dimension
                                            const std::optional<Tensor>& thresholds,  // [classes], arithmetic type
                                            double threshold, double temperature, int64_t ignore_index, int64_t dim) {
  RowCall call(logits, dim, 0, 0);
  RowLoss& problem = call.problem;
  const Tensor labels = call.row_labels(), confidence = call.row_numbers();
  problem.soft.temperature = temperature;
  problem.hard.ignore_index = ignore_index;
  problem.first.statistic = RowStatistic::pseudo_label;
  problem.first.numbers = confidence.data_ptr();
  problem.pseudo.labels = static_cast<int64_t*>(labels.data_ptr());
  problem.pseudo.threshold = threshold;
  problem.pseudo.thresholds = call.per_class(thresholds, "thresholds");
  Device::row_statistics(problem, logits);
  return {labels, confidence};
}

template <class Device>
void scale_gradient_op(const Tensor& gradient,  // logits shape, changed in place
                       const Tensor& upstream,  // one number, or one per row; float32 or float64
                       int64_t dim) {
  const auto dtype = float_dtype(upstream);
  require(float_dtype(gradient) && (dtype == Dtype::float32 || dtype == Dtype::float64),
          "upstream must be float32 or float64");
  require(dim >= 0 && dim < gradient.dim() && gradient.size(dim) >= 1, "dim must name a dimension of gradient");
  const int64_t outer = merge_dimensions(gradient, 0, dim).size, classes = gradient.size(dim);
  const int64_t inner = merge_dimensions(gradient, dim + 1, gradient.dim()).size;
  const bool per_row = upstream.dim() > 0;
  require(upstream.numel() == (per_row ? outer * inner : 1), "upstream must be one number or one per row");
  const auto rows = as_rows(gradient, dim, dim);
  require(rows.has_value(), "gradient must be dense");
  const Tensor numbers = upstream.is_contiguous() ? upstream : torch::stable::contiguous(upstream);
  Device::scale_gradient(*rows, outer, classes, inner, numbers.data_ptr(), *dtype, per_row, gradient);
}

// Registers all of them for the device; `library` is that of STABLE_TORCH_LIBRARY_IMPL.
template <class Device, class Library>
void implement_row_ops(Library& library) {
  library.impl("softened_kl", TORCH_BOX(&softened_kl_op<Device>));
  library.impl("label_loss", TORCH_BOX(&label_loss_op<Device>));
  library.impl("decoupled_kl", TORCH_BOX(&decoupled_kl_op<Device>));
  library.impl("dkpp_loss", TORCH_BOX(&dkpp_loss_op<Device>));
  library.impl("dynamic_temperature_kl", TORCH_BOX(&dynamic_temperature_kl_op<Device>));
  library.impl("row_statistics", TORCH_BOX(&row_statistics_op<Device>));
  library.impl("pseudo_labels", TORCH_BOX(&pseudo_labels_op<Device>));
  library.impl("scale_gradient_", TORCH_BOX(&scale_gradient_op<Device>));
}

}  // namespace kd
