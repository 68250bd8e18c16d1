// The ops of the family, from tensors to the plain problem of softened_kl.h: checks of what would corrupt memory,
// allocation, layouts. The same for every device; what runs a problem is the template argument:
//
//     Device::softened_kl(problem, like)                                  `like`: a tensor on the device
//     Device::scale_gradient(gradient, outer, classes, inner, upstream, upstream_dtype, per_row, like)
#pragma once
#include <array>
#include <string>
#include <tuple>

#include "stable.h"

namespace kd {

inline void require(bool condition, const std::string& message) {
  if (!condition) throw std::invalid_argument("softened_kl: " + message);
}

// A tensor with one value per row, contiguous; `keep` holds the copy alive where one was needed.
template <class T>
const T* per_row(const std::optional<Tensor>& tensor, int64_t rows, size_t element_size, std::optional<Tensor>& keep,
                 const char* name) {
  if (!tensor) return nullptr;
  require(tensor->numel() == rows && tensor->element_size() == element_size,
          std::string(name) + " must have one value per row, in the arithmetic type");
  keep = tensor->is_contiguous() ? *tensor : torch::stable::contiguous(*tensor);
  return static_cast<const T*>(keep->data_ptr());
}

// Strided logits are read where they lie; a layout that needs more than three strides is copied, and so is one whose
// rows are strided both by class and by position (`keep` holds the copy).
inline Rows readable_rows(const Tensor& logits, int64_t dim, Tensor& keep) {
  keep = logits;
  if (auto rows = as_rows(logits, dim)) return *rows;
  keep = torch::stable::contiguous(logits);
  return *as_rows(keep, dim);
}

template <class Device>
std::tuple<Tensor, Tensor, Tensor, Tensor> softened_kl_op(
    const Tensor& student,                         // logits, `dim` is the class dimension
    const Tensor& teacher,                         // same shape, what `source` says
    const std::optional<Tensor>& target,           // row shape, int64
    const std::optional<Tensor>& mask,             // row shape, bool
    const std::optional<Tensor>& row_weight,       // row shape, arithmetic type
    const std::optional<Tensor>& row_temperature,  // row shape, arithmetic type
    double temperature, int64_t source, int64_t divergence, double beta, double target_eps, bool scale_by_t2,
    double kl_weight, double ce_weight, double label_smoothing, int64_t ignore_index, int64_t reduction, int64_t groups,
    int64_t dim, bool grad_student, bool grad_teacher) {
  require(float_dtype(student) && float_dtype(teacher), "student and teacher must be float tensors");
  require(student.dim() >= 1 && dim >= 0 && dim < student.dim(), "dim must name a dimension of student");
  require(student.dim() == teacher.dim(), "student and teacher must have equal shapes");
  for (int64_t d = 0; d < student.dim(); ++d)
    require(student.size(d) == teacher.size(d), "student and teacher must have equal shapes");
  require(student.size(dim) >= 1, "at least one class is needed");
  require(groups >= 0 && (groups == 0 || (dim > 0 && student.size(0) % groups == 0)), "groups must divide dimension 0");

  SoftenedKL problem;
  std::vector<int64_t> row_shape;
  for (int64_t d = 0; d < student.dim(); ++d)
    if (d != dim) row_shape.push_back(student.size(d));
  problem.outer = merge_dimensions(student, 0, dim).size;
  problem.inner = merge_dimensions(student, dim + 1, student.dim()).size;
  problem.classes = student.size(dim);
  const int64_t rows = problem.rows();

  Tensor student_kept, teacher_kept;
  problem.student = readable_rows(student, dim, student_kept);
  problem.teacher = readable_rows(teacher, dim, teacher_kept);
  const bool is_double = problem.is_double();
  const ScalarType accumulated = is_double ? ScalarType::Double : ScalarType::Float;
  const size_t float_size = is_double ? sizeof(double) : sizeof(float);

  std::optional<Tensor> kept[4];
  problem.target = per_row<int64_t>(target, rows, sizeof(int64_t), kept[0], "target");
  problem.mask = per_row<bool>(mask, rows, sizeof(bool), kept[1], "mask");
  problem.row_weight = per_row<void>(row_weight, rows, float_size, kept[2], "row_weight");
  problem.row_temperature = per_row<void>(row_temperature, rows, float_size, kept[3], "row_temperature");

  problem.source = static_cast<TargetSource>(source);
  problem.divergence = static_cast<Divergence>(divergence);
  problem.reduction = static_cast<Reduction>(reduction);
  problem.temperature = temperature;
  problem.beta = beta;
  problem.target_eps = target_eps;
  problem.scale_by_t2 = scale_by_t2;
  problem.kl_weight = kl_weight;
  problem.ce_weight = ce_weight;
  problem.label_smoothing = label_smoothing;
  problem.ignore_index = ignore_index;
  problem.groups = groups > 0 ? groups : 1;

  std::vector<int64_t> loss_shape;
  if (problem.reduction == Reduction::none) loss_shape = row_shape;
  else if (groups > 0) loss_shape = {groups};
  std::vector<int64_t> parts_shape = loss_shape;
  if (target) parts_shape.insert(parts_shape.begin(), 2);
  else parts_shape = {0};

  const Tensor loss = allocate(student, accumulated, loss_shape);
  const Tensor parts = allocate(student, accumulated, parts_shape);
  const Tensor student_gradient =
      grad_student ? allocate_gradient(student_kept, dim) : allocate(student, student.scalar_type(), {0});
  const Tensor teacher_gradient =
      grad_teacher ? allocate_gradient(teacher_kept, dim) : allocate(student, teacher.scalar_type(), {0});
  // One allocation for both: [2, groups] counts, then [2, rows] losses of 1 or 2 floats' size each.
  const Tensor workspace = allocate(student, ScalarType::Long, {2 * problem.groups + 2 * rows});

  problem.loss = loss.data_ptr();
  problem.parts = target ? parts.data_ptr() : nullptr;
  problem.counts = workspace.data_ptr();
  problem.row_losses = static_cast<int64_t*>(problem.counts) + 2 * problem.groups;
  if (grad_student) problem.grad_student = *as_rows(student_gradient, dim);
  if (grad_teacher) problem.grad_teacher = *as_rows(teacher_gradient, dim);

  Device::softened_kl(problem, student);
  return {loss, parts, student_gradient, teacher_gradient};
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
  const auto rows = as_rows(gradient, dim);
  require(rows.has_value(), "gradient must be dense");
  const Tensor numbers = upstream.is_contiguous() ? upstream : torch::stable::contiguous(upstream);
  Device::scale_gradient(*rows, outer, classes, inner, numbers.data_ptr(), *dtype, per_row, gradient);
}

}  // namespace kd
