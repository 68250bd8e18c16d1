// kd_emulated.softened_kl and scale_gradient: the kernels of cuda/softened_kl.cuh on NumPy arrays.
//
// Inputs are read where they lie, with any strides and at any address. Outputs and workspaces start as NaN between guard
// zones; what the kernels wrote is copied out afterwards. uint16 arrays hold bfloat16.
#include "cuda/softened_kl.cuh"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <deque>
#include <numeric>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "emulated/guarded.h"

namespace py = pybind11;

namespace {

using kd::emulated::Guarded;

kd::Dtype dtype_of(const py::array& array) {
  const py::dtype dtype = array.dtype();
  if (dtype.kind() == 'f' && dtype.itemsize() == 4) return kd::Dtype::float32;
  if (dtype.kind() == 'f' && dtype.itemsize() == 2) return kd::Dtype::float16;
  if (dtype.kind() == 'f' && dtype.itemsize() == 8) return kd::Dtype::float64;
  if (dtype.kind() == 'u' && dtype.itemsize() == 2) return kd::Dtype::bfloat16;
  throw std::invalid_argument("logits must be float32, float64, float16 or uint16 (bfloat16)");
}

// [outer,] classes [, inner] around dimension `dim`; strides in elements.
struct Layout {
  int64_t sizes[3] = {1, 1, 1};
  int64_t strides[3] = {0, 0, 0};

  Layout(const py::array& array, int64_t dim, const std::vector<int64_t>& byte_strides) {
    if (dim < 0) dim += array.ndim();
    if (dim < 0 || dim > 1 || array.ndim() - dim > 2) throw std::invalid_argument("at most one dimension on each side of dim");
    for (int64_t d = 0; d < array.ndim(); ++d) {
      sizes[1 + d - dim] = array.shape(d);
      strides[1 + d - dim] = byte_strides[d] / array.itemsize();
    }
  }

  kd::Rows rows(void* data, kd::Dtype dtype) const { return {data, dtype, strides[0], strides[1], strides[2]}; }
};

std::vector<int64_t> strides_of(const py::array& array) { return {array.strides(), array.strides() + array.ndim()}; }

// Byte strides of a dense array with the dimensions of `array` in the same order in memory.
std::vector<int64_t> dense_strides(const py::array& array) {
  std::vector<int64_t> order(array.ndim()), strides(array.ndim());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t a, int64_t b) { return std::abs(array.strides(a)) > std::abs(array.strides(b)); });
  int64_t step = array.itemsize();
  for (auto d = order.rbegin(); d != order.rend(); step *= array.shape(*d++)) strides[*d] = step;
  return strides;
}

// What kernels write to, by name.
class Outputs {
 public:
  void* allocate(const std::string& name, size_t bytes) {
    return outputs_.emplace_back(Output{name, Guarded(bytes)}).memory.data();
  }

  void check() const {
    for (const Output& output : outputs_) output.memory.check(output.name);
  }

 private:
  struct Output {
    std::string name;
    Guarded memory;
  };
  std::deque<Output> outputs_;
};

// Per-row numbers in the arithmetic type, or none.
py::object per_row(const py::object& numbers, bool is_double, int64_t rows, const char* name, const void*& data) {
  if (numbers.is_none()) return numbers;
  const py::array array = is_double ? py::array(py::array_t<double, py::array::c_style | py::array::forcecast>(numbers))
                                    : py::array(py::array_t<float, py::array::c_style | py::array::forcecast>(numbers));
  if (array.size() != rows) throw std::invalid_argument(std::string(name) + " must have one value per row");
  data = array.data();
  return array;
}

constexpr const char* form_names[] = {"held", "staged", "streamed", "strided"};  // in the order of kd::RowForm

// The plan of a launch form that plan_rows() might not choose for the problem: `lanes` per row at least in the held form,
// exactly in the strided one, `threads` per block.
kd::RowPlan forced_plan(const kd::SoftenedKL& problem, const std::string& name, int lanes, int threads) {
  const auto found = std::find(std::begin(form_names), std::end(form_names), name);
  if (found == std::end(form_names)) throw std::invalid_argument("no launch form is called " + name);
  kd::RowPlan plan{static_cast<kd::RowForm>(found - std::begin(form_names)), threads, threads, 0, 0};
  const bool unit_stride = problem.student.class_stride == 1 && problem.teacher.class_stride == 1;
  bool fits = unit_stride && !problem.is_double();
  const int64_t chunks = (problem.classes + kd::chunk_classes - 1) / kd::chunk_classes + 1;
  if (plan.form == kd::RowForm::held) {
    plan.lanes = std::max(lanes, kd::next_power_of_two((chunks + kd::held_chunks - 1) / kd::held_chunks));
    fits = fits && plan.lanes <= kd::simt::warp_threads;
  } else if (plan.form == kd::RowForm::staged) {
    plan.shared_bytes = chunks * kd::chunk_classes *
                        (kd::element_size(problem.student.dtype) + kd::element_size(problem.teacher.dtype));
    fits = fits && plan.shared_bytes <= kd::shared_limit(90);
  } else if (plan.form == kd::RowForm::strided) {
    plan.lanes = lanes;
    fits = true;
  }
  if (!fits) throw std::invalid_argument("the launch form " + name + " does not fit the problem");
  const int64_t rows_per_block = threads / plan.lanes;
  plan.blocks = (problem.rows() + rows_per_block - 1) / rows_per_block;
  return plan;
}

py::dict softened_kl(const py::array& student,  // [outer,] classes [, inner] logits
                     const py::array& teacher,  // the same shape
                     int source, int divergence, int reduction, double temperature, double beta, double target_eps,
                     bool scale_by_t2, double kl_weight, double ce_weight, double label_smoothing, int64_t ignore_index,
                     const std::optional<py::array_t<int64_t, py::array::c_style>>& target,
                     const std::optional<py::array_t<bool, py::array::c_style>>& mask, const py::object& row_weight,
                     const py::object& row_temperature, int64_t groups, int64_t dim, bool grad_student, bool grad_teacher,
                     const std::string& form, int lanes, int threads, int sm) {
  if (student.ndim() != teacher.ndim() || !std::equal(student.shape(), student.shape() + student.ndim(), teacher.shape())) {
    throw std::invalid_argument("student and teacher must have equal shapes");
  }
  const Layout layout(student, dim, strides_of(student));

  kd::SoftenedKL problem;
  problem.outer = layout.sizes[0];
  problem.classes = layout.sizes[1];
  problem.inner = layout.sizes[2];
  problem.groups = groups;
  problem.student = layout.rows(const_cast<void*>(student.data()), dtype_of(student));
  problem.teacher = Layout(teacher, dim, strides_of(teacher)).rows(const_cast<void*>(teacher.data()), dtype_of(teacher));
  const int64_t rows = problem.rows();
  const bool is_double = problem.is_double();
  if (target && target->size() != rows) throw std::invalid_argument("target must have one value per row");
  if (mask && mask->size() != rows) throw std::invalid_argument("mask must have one value per row");
  problem.target = target ? target->data() : nullptr;
  problem.mask = mask ? mask->data() : nullptr;
  const py::object kept_weight = per_row(row_weight, is_double, rows, "row_weight", problem.row_weight);
  const py::object kept_temperature = per_row(row_temperature, is_double, rows, "row_temperature", problem.row_temperature);
  problem.source = static_cast<kd::TargetSource>(source);
  problem.divergence = static_cast<kd::Divergence>(divergence);
  problem.reduction = static_cast<kd::Reduction>(reduction);
  problem.temperature = temperature;
  problem.beta = beta;
  problem.target_eps = target_eps;
  problem.scale_by_t2 = scale_by_t2;
  problem.kl_weight = kl_weight;
  problem.ce_weight = ce_weight;
  problem.label_smoothing = label_smoothing;
  problem.ignore_index = ignore_index;

  Outputs outputs;
  const int64_t float_size = is_double ? sizeof(double) : sizeof(float);
  const int64_t losses = problem.reduction == kd::Reduction::none ? rows : groups;
  problem.loss = outputs.allocate("loss", losses * float_size);
  problem.parts = target ? outputs.allocate("parts", 2 * losses * float_size) : nullptr;
  problem.row_losses = outputs.allocate("row_losses", 2 * rows * float_size);
  problem.counts = outputs.allocate("counts", 2 * groups * sizeof(int64_t));
  const auto gradient = [&](const py::array& logits, const std::string& name) {
    return Layout(logits, dim, dense_strides(logits)).rows(outputs.allocate(name, logits.nbytes()), dtype_of(logits));
  };
  if (grad_student) problem.grad_student = gradient(student, "grad_student");
  if (grad_teacher) problem.grad_teacher = gradient(teacher, "grad_teacher");

  const kd::RowPlan plan = form == "auto" ? kd::plan_problem(problem, sm) : forced_plan(problem, form, lanes, threads);
  kd::softened_kl_cuda(problem, plan, nullptr);
  outputs.check();

  const auto numbers = [&](const void* data, const std::vector<int64_t>& shape) -> py::object {
    if (!data) return py::none();
    return is_double ? py::object(py::array_t<double>(shape, static_cast<const double*>(data)))
                     : py::object(py::array_t<float>(shape, static_cast<const float*>(data)));
  };
  const auto copied_gradient = [&](const py::array& logits, const kd::Rows& rows) -> py::object {
    if (!rows.data) return py::none();
    const std::vector<int64_t> shape(logits.shape(), logits.shape() + logits.ndim());
    return py::array(logits.dtype(), shape, dense_strides(logits), rows.data);
  };
  py::dict results;
  results["loss"] = numbers(problem.loss, {losses});
  results["parts"] = numbers(problem.parts, {2, losses});
  results["grad_student"] = copied_gradient(student, problem.grad_student);
  results["grad_teacher"] = copied_gradient(teacher, problem.grad_teacher);
  results["form"] = form_names[static_cast<int>(plan.form)];
  return results;
}

// gradient *= upstream, in place. `gradient` is dense.
void scale_gradient(py::array gradient,         // [outer,] classes [, inner]
                    const py::array& upstream,  // one number, or [rows]; float32 or float64
                    int64_t dim) {
  const Layout layout(gradient, dim, strides_of(gradient));
  const py::array numbers = py::array::ensure(upstream, py::array::c_style);
  const bool per_row = numbers.ndim() > 0;
  if (per_row && numbers.size() != layout.sizes[0] * layout.sizes[2]) {
    throw std::invalid_argument("upstream must be one number or one per row");
  }
  kd::scale_gradient_cuda(layout.rows(gradient.mutable_data(), dtype_of(gradient)), layout.sizes[0], layout.sizes[1],
                          layout.sizes[2], numbers.data(), dtype_of(numbers), per_row, nullptr);
}

}  // namespace

void bind_softened_kl(py::module_& m) {
  using namespace py::literals;
  const py::none none;
  m.def("softened_kl", &softened_kl, "student"_a, "teacher"_a, py::kw_only(), "source"_a = 0, "divergence"_a = 0,
        "reduction"_a = 2, "temperature"_a = 1.0, "beta"_a = 0.5, "target_eps"_a = 0.0, "scale_by_t2"_a = true,
        "kl_weight"_a = 1.0, "ce_weight"_a = 0.0, "label_smoothing"_a = 0.0, "ignore_index"_a = -100, "target"_a = none,
        "mask"_a = none, "row_weight"_a = none, "row_temperature"_a = none, "groups"_a = 1, "dim"_a = -1,
        "grad_student"_a = true, "grad_teacher"_a = false, "form"_a = "auto", "lanes"_a = 1,
        "threads"_a = 128, "sm"_a = 90,
        "Loss, parts, gradients and the launch form used, by name. Integers stand for the enums of csrc/softened_kl.h; "
        "`form` forces a launch form, with `lanes` threads per row and `threads` per block.");
  m.def("scale_gradient", &scale_gradient, "gradient"_a, "upstream"_a, "dim"_a = -1);
}
