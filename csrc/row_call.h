// A call of an op of row losses: tensors to the plain problem of row_loss.h. Checks what would corrupt memory, chooses layouts,
// allocates the results, and hands the problem to a device (row_loss_op.h).
#pragma once
#include <optional>
#include <vector>

#include "row_loss.h"
#include "stable.h"

namespace kd {

// A split (RowSpans) that the layouts of both tensors allow, if there is one. That at `dim`, which needs no division, is
// preferred.
inline std::optional<int64_t> common_split(const Tensor& student, const Tensor& teacher, int64_t dim) {
  const auto suits = [&](int64_t split) {
    return RowSpans(student, dim, split).are_uniform() && RowSpans(teacher, dim, split).are_uniform();
  };
  if (suits(dim)) return dim;
  for (int64_t split = 1; split < student.dim(); ++split)
    if (suits(split)) return split;
  return std::nullopt;
}

// One call: the problem, filled in step by step, and the tensors that it points to.
class RowCall {
 public:
  // Undefined where not wanted. Only float16 gradients have units.
  struct Results {
    Tensor loss = undefined(), parts = undefined();
    Tensor grad_student = undefined(), grad_teacher = undefined(), unit_student = undefined(), unit_teacher = undefined();
  };

  RowLoss problem;

  RowCall(const Tensor& student, int64_t dim, int64_t groups, int64_t reduction, bool return_parts = false)
      : student_(student), teacher_(student), dim_(dim), groups_(groups), return_parts_(return_parts) {
    require(float_dtype(student).has_value(), "student must be a float tensor");
    require(student.dim() >= 1 && dim >= 0 && dim < student.dim(), "dim must name a dimension of student");
    require(student.size(dim) >= 1, "at least one class is needed");
    require(groups >= 0 && (groups == 0 || (dim > 0 && student.size(0) % groups == 0)), "groups must divide dimension 0");
    problem.classes = problem.teacher_classes = student.size(dim);
    require(problem.classes <= most_classes, "at most 2^24 classes are supported");
    problem.groups = groups > 0 ? groups : 1;
    problem.reduction = static_cast<Reduction>(reduction);
    // Logits are read in place if three strides describe their rows. Others are copied.
    if (!student.is_contiguous() && !common_split(student, student, dim))
      student_ = teacher_ = torch::stable::contiguous(student);
    lay_out();
  }

  // Logits, or what the source says, of the student's shape. With `shared_classes`, which are compared, the two widths may
  // differ.
  void teacher(const Tensor& teacher, int64_t shared_classes = 0) {
    require(float_dtype(teacher).has_value(), "teacher must be a float tensor");
    require(student_.dim() == teacher.dim(), "student and teacher must have equal shapes");
    for (int64_t d = 0; d < teacher.dim(); ++d)
      require(student_.size(d) == teacher.size(d) || (d == dim_ && shared_classes > 0),
              "student and teacher must have equal shapes");
    problem.teacher_classes = teacher.size(dim_);
    require(problem.teacher_classes <= most_classes, "at most 2^24 classes are supported");
    require(shared_classes >= 0 && shared_classes <= problem.classes && shared_classes <= problem.teacher_classes,
            "shared_classes must be classes of both");
    problem.soft.classes = shared_classes;
    teacher_ = teacher;
    lay_out();
    problem.teacher = *as_rows(teacher_, dim_, split_);
  }

  // One label for every `transforms` rows.
  void target(const std::optional<Tensor>& target, int64_t ignore_index, int64_t transforms = 1) {
    require(transforms >= 1 && problem.rows() % transforms == 0 && problem.classes % transforms == 0,
            "transforms must divide rows and classes");
    require(!target || target->numel() * transforms == problem.rows(), "target must have one value per row");
    has_hard_term_ |= target.has_value();
    if (target) problem.hard.target = contiguous<int64_t>(*target, sizeof(int64_t), "target");
    problem.hard.ignore_index = ignore_index;
    problem.hard.transforms = transforms;
  }

  // Instead of a label: a distribution over the student's classes.
  void target_probs(const std::optional<Tensor>& probs) {
    if (!probs) return;
    require(float_dtype(*probs).has_value(), "target_probs must be a float tensor");
    require(probs->dim() == student_.dim(), "target_probs must have the shape of student");
    for (int64_t d = 0; d < probs->dim(); ++d)
      require(probs->size(d) == student_.size(d), "target_probs must have the shape of student");
    auto rows = as_rows(*probs, dim_, split_);
    if (!rows) {
      kept_.push_back(torch::stable::contiguous(*probs));
      rows = as_rows(kept_.back(), dim_, split_);
    }
    problem.hard.probs = *rows;
    has_hard_term_ = true;
  }

  // Restricts the loss to columns start..stop-1; start = stop = 0: all columns. Call it after teacher() and target().
  void class_range(int64_t start, int64_t stop) {
    if (stop == 0) stop = problem.classes;
    require(0 <= start && start < stop && stop <= problem.classes, "start and stop must enclose classes of student");
    is_narrow_ = stop - start < problem.classes;
    problem.classes = stop - start;
    problem.hard.first_class = start;
    narrow(problem.student);
  }

  // What means divide by: one number for each group.
  void denominator(const std::optional<Tensor>& denominator) {
    if (!denominator) return;
    require(denominator->scalar_type() == ScalarType::Double && denominator->numel() == problem.groups,
            "denominator must hold one float64 per group");
    problem.denominators = contiguous<double>(*denominator, sizeof(double), "denominator");
  }

  void mask(const std::optional<Tensor>& mask) { problem.mask = per_row<bool>(mask, sizeof(bool), "mask"); }

  // Call them after teacher(): its dtype may change the arithmetic type.
  void row_weight(const std::optional<Tensor>& weight) {
    problem.row_weight = per_row<void>(weight, float_size(), "row_weight");
  }
  void row_temperature(const std::optional<Tensor>& temperature) {
    problem.soft.row_temperature = per_row<void>(temperature, float_size(), "row_temperature");
  }

  void permutation(const std::optional<Tensor>& permutation) {
    if (!permutation) return;
    require(permutation->numel() == student_.numel(), "permutation must have the shape of student");
    problem.permutation.of_rows = contiguous<int64_t>(*permutation, sizeof(int64_t), "permutation");
  }

  // `numbers`: arithmetic type.
  const void* per_class(const std::optional<Tensor>& numbers, const char* name) {
    if (!numbers) return nullptr;
    require(numbers->numel() == problem.classes, name, "must have one value per class");
    return contiguous<void>(*numbers, float_size(), name);
  }

  // A number or a class per row that the problem computes for itself.
  Tensor row_numbers() const { return allocate(student_, accumulated(), row_shape()); }
  Tensor row_labels() const { return allocate(student_, ScalarType::Long, row_shape()); }

  // Solves the problem. Allocates loss, and the parts and gradients that are wanted.
  template <class Device>
  Results solve(bool grad_student, bool grad_teacher) {
    std::vector<int64_t> shape;
    if (problem.reduction == Reduction::none) shape = row_shape();
    else if (groups_ > 0) shape = {groups_};
    Results found;
    found.loss = allocate(student_, accumulated(), shape);
    problem.loss = found.loss.data_ptr();
    if (return_parts_ && has_hard_term_) {
      shape.insert(shape.begin(), 2);
      found.parts = allocate(student_, accumulated(), shape);
      problem.parts = found.parts.data_ptr();
    }
    if (grad_student) {
      found.grad_student = allocate_gradient(student_, dim_);
      if (is_narrow_) torch::stable::zero_(found.grad_student);
      problem.grad_student = *as_rows(found.grad_student, dim_, split_);
      narrow(problem.grad_student);
      problem.unit_student = units(found.unit_student, student_);
    }
    if (grad_teacher) {
      found.grad_teacher = allocate_gradient(teacher_, dim_);
      problem.grad_teacher = *as_rows(found.grad_teacher, dim_, split_);
      problem.unit_teacher = units(found.unit_teacher, teacher_);
    }
    // One workspace for both: [2, groups] counts, then [2, rows] losses of 1 or 2 floats' size each.
    const int64_t numbers = 2 * (problem.groups + problem.rows());
    Tensor allocated = undefined();
    int64_t local[Device::local_workspace];
    if (numbers > Device::local_workspace) allocated = allocate(student_, ScalarType::Long, {numbers});
    problem.counts = numbers > Device::local_workspace ? allocated.data_ptr() : local;
    problem.row_losses = static_cast<int64_t*>(problem.counts) + 2 * problem.groups;
    Device::row_loss(problem, student_);
    return found;
  }

  ScalarType accumulated() const { return problem.is_double() ? ScalarType::Double : ScalarType::Float; }

 private:
  // The split that suits student and teacher; a teacher that suits none of the student's is copied. Copies and dense
  // gradients suit every split.
  void lay_out() {
    if (student_.is_contiguous() && teacher_.is_contiguous()) {
      split_ = dim_;
    } else {
      auto split = common_split(student_, teacher_, dim_);
      if (!split) {
        teacher_ = torch::stable::contiguous(teacher_);
        split = common_split(student_, teacher_, dim_);
      }
      split_ = *split;
    }
    const RowSpans spans(student_, dim_, split_);
    problem.outer = spans.outer.size;
    problem.middle = spans.middle.size;
    problem.inner = spans.inner.size;
    problem.student = as_rows(student_, dim_, spans);
  }

  // Moves column 0 to the first class of the range.
  void narrow(Rows& rows) const {
    const int64_t elements = problem.hard.first_class * rows.class_stride;
    rows.data = static_cast<char*>(rows.data) + elements * element_size(rows.dtype);
  }

  size_t float_size() const { return problem.is_double() ? sizeof(double) : sizeof(float); }

  std::vector<int64_t> row_shape() const {
    std::vector<int64_t> shape;
    for (int64_t d = 0; d < student_.dim(); ++d)
      if (d != dim_) shape.push_back(student_.size(d));
    return shape;
  }

  // Memory for the units of a float16 gradient; null for other dtypes.
  void* units(Tensor& unit, const Tensor& logits) const {
    if (logits.scalar_type() != ScalarType::Half) return nullptr;
    unit = row_numbers();
    return unit.data_ptr();
  }

  template <class T>
  const T* per_row(const std::optional<Tensor>& tensor, size_t element_size, const char* name) {
    if (!tensor) return nullptr;
    require(tensor->numel() == problem.rows(), name, "must have one value per row");
    return contiguous<T>(*tensor, element_size, name);
  }

  template <class T>
  const T* contiguous(const Tensor& tensor, size_t element_size, const char* name) {
    require(tensor.element_size() == element_size, name, "must have the dtype of the op's schema");
    if (tensor.is_contiguous()) return static_cast<const T*>(tensor.data_ptr());
    kept_.push_back(torch::stable::contiguous(tensor));
    return static_cast<const T*>(kept_.back().data_ptr());
  }

  Tensor student_, teacher_;  // or copies of them that can be read row by row
  int64_t dim_, groups_, split_ = 0;
  bool return_parts_, has_hard_term_ = false, is_narrow_ = false;
  std::vector<Tensor> kept_;
};

}  // namespace kd
