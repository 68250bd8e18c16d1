// NumPy arrays to the plain problem of row_loss.h, read where they lie: any strides, any address. uint16 holds bfloat16.
// Used by kdkernels._host and, for the emulated CUDA kernels, by the tests' kd_emulated.
#pragma once
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <numeric>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "row_loss.h"

namespace kd::python {

namespace py = pybind11;

inline Dtype dtype_of(const py::array& array, const std::string& name = "logits") {
  const py::dtype dtype = array.dtype();
  if (dtype.kind() == 'f' && dtype.itemsize() == 4) return Dtype::float32;
  if (dtype.kind() == 'f' && dtype.itemsize() == 2) return Dtype::float16;
  if (dtype.kind() == 'f' && dtype.itemsize() == 8) return Dtype::float64;
  if (dtype.kind() == 'u' && dtype.itemsize() == 2) return Dtype::bfloat16;
  throw py::type_error(name + " must be float32, float64, float16 or uint16 (bfloat16), got " +
                       py::str(dtype).cast<std::string>());
}

// What a loss returns the gradient of an array in.
inline py::dtype kept_dtype(const py::array& array) {
  return dtype_of(array) == Dtype::float16 ? py::dtype::of<float>() : array.dtype();
}

inline std::vector<int64_t> strides_of(const py::array& array) {
  return {array.strides(), array.strides() + array.ndim()};
}

// Byte strides of a dense array with the dimensions of `array` in the same order in memory.
inline std::vector<int64_t> dense_strides(const py::array& array) {
  std::vector<int64_t> order(array.ndim()), strides(array.ndim());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t a, int64_t b) { return std::abs(array.strides(a)) > std::abs(array.strides(b)); });
  int64_t step = array.itemsize();
  for (auto d = order.rbegin(); d != order.rend(); step *= array.shape(*d++)) strides[*d] = step;
  return strides;
}

// [outer,] classes [, inner] around dimension `dim`, and one dimension more on one of its sides: middle. Strides in elements.
struct Layout {
  int64_t outer = 1, middle = 1, classes = 1, inner = 1;

  Layout(const py::array& array, int64_t dim, const std::vector<int64_t>& byte_strides) {
    if (dim < 0) dim += array.ndim();
    const int64_t before = dim, after = array.ndim() - 1 - dim;
    if (before < 0 || after < 0 || before > 2 || after > 2 || before + after > 3)
      throw std::invalid_argument("dim must name a dimension of logits, with one other on each side and at most one more");
    const auto take = [&](int64_t d, int64_t& size, int64_t& stride) {
      size = array.shape(d);
      stride = byte_strides[d] / array.itemsize();
    };
    take(dim, classes, strides_.class_stride);
    if (before > 0) take(0, outer, strides_.outer_stride);
    if (before == 2) take(1, middle, strides_.middle_stride);
    if (after == 2) take(dim + 1, middle, strides_.middle_stride);
    if (after > 0) take(array.ndim() - 1, inner, strides_.inner_stride);
    if (classes < 1) throw std::invalid_argument("at least 1 class is needed");
  }

  int64_t positions() const { return outer * middle * inner; }
  bool same_positions(const Layout& other) const {
    return outer == other.outer && middle == other.middle && inner == other.inner;
  }
  Rows rows(void* data, Dtype dtype) const {
    Rows rows = strides_;
    rows.data = data;
    rows.dtype = dtype;
    return rows;
  }

 private:
  Rows strides_;
};

// A call's arguments, named as in csrc/row_loss.h.
struct Options {
  py::array student;  // logits in a Layout
  py::array teacher;  // the same shape, but for the classes where `shared_classes` says which are compared
  int source, divergence, reduction;
  double temperature, beta, skew, target_eps;
  bool scale_by_t2, standardize;
  int64_t shared_classes;  // 0: all
  double kl_weight, ce_weight, label_smoothing;
  int64_t ignore_index;
  std::optional<py::array_t<int64_t, py::array::c_style>> target;
  std::optional<py::array_t<bool, py::array::c_style>> mask;
  py::object row_weight, row_temperature;
  int64_t groups, dim;
  bool grad_student, grad_teacher;
  py::dict source_options;  // of sources label, permuted and adjusted, and of statistics; `confidence` replaces a teacher
};

// The problem, with what it points to. Memory for outputs and workspaces comes from `allocate(name, bytes)`, which keeps
// it until the results are copied out.
class NumpyProblem {
 public:
  using Allocate = std::function<void*(const std::string& name, size_t bytes)>;

  RowLoss problem;

  NumpyProblem(const Options& options, const Allocate& allocate) : options_(options) {
    const py::array &student = options.student, &teacher = options.teacher;
    if (student.ndim() != teacher.ndim()) throw std::invalid_argument("student and teacher must have equal shapes");
    const Layout layout(student, options.dim, strides_of(student));
    const Layout teacher_layout(teacher, options.dim, strides_of(teacher));
    const int64_t shared = options.shared_classes ? options.shared_classes : layout.classes;
    if (!layout.same_positions(teacher_layout) || (!options.shared_classes && layout.classes != teacher_layout.classes))
      throw std::invalid_argument("student and teacher must have equal shapes");
    if (shared < 1 || shared > std::min(layout.classes, teacher_layout.classes))
      throw std::invalid_argument("shared_classes must be in 1..the smaller number of classes");
    problem.outer = layout.outer;
    problem.middle = layout.middle;
    problem.classes = layout.classes;
    problem.inner = layout.inner;
    problem.groups = options.groups;
    problem.student = layout.rows(const_cast<void*>(student.data()), dtype_of(student));
    problem.teacher_classes = teacher_layout.classes;
    problem.teacher = teacher_layout.rows(const_cast<void*>(teacher.data()), dtype_of(teacher));
    const int64_t rows = problem.rows();
    if (options.groups < 1 || problem.outer % options.groups != 0)
      throw std::invalid_argument("groups must divide the first dimension");
    if (options.mask && options.mask->size() != rows) throw std::invalid_argument("mask must have one value per row");
    problem.hard.target = options.target ? options.target->data() : nullptr;
    problem.mask = options.mask ? options.mask->data() : nullptr;
    problem.row_weight = per_row(options.row_weight, "row_weight");
    problem.soft.row_temperature = per_row(options.row_temperature, "row_temperature");
    problem.source = static_cast<TargetSource>(options.source);
    problem.soft.divergence = static_cast<Divergence>(options.divergence);
    problem.reduction = static_cast<Reduction>(options.reduction);
    problem.soft.temperature = options.temperature;
    problem.soft.beta = options.beta;
    problem.soft.skew = options.skew;
    problem.soft.classes = shared;
    problem.soft.standardize = options.standardize;
    problem.soft.target_eps = options.target_eps;
    problem.soft.scale_by_t2 = options.scale_by_t2;
    problem.soft.weight = options.kl_weight;
    problem.hard.weight = options.ce_weight;
    problem.hard.smoothing = options.label_smoothing;
    problem.hard.ignore_index = options.ignore_index;

    read_source_options(options.source_options, allocate);
    if (options.target && options.target->size() * problem.hard.transforms != rows)
      throw std::invalid_argument("target must have one value for every row, or for as many as there are transforms");

    const size_t float_size = problem.is_double() ? sizeof(double) : sizeof(float);
    losses_ = problem.reduction == Reduction::none ? rows : options.groups;
    problem.loss = allocate("loss", losses_ * float_size);
    problem.parts = options.target ? allocate("parts", 2 * losses_ * float_size) : nullptr;
    const auto units = [&](const char* name, const py::array& logits, bool wanted) {
      return wanted && dtype_of(logits) == Dtype::float16 ? allocate(name, rows * float_size) : nullptr;
    };
    problem.unit_student = units("unit_student", student, options.grad_student);
    problem.unit_teacher = units("unit_teacher", teacher, options.grad_teacher);
    problem.row_losses = allocate("row_losses", 2 * rows * float_size);
    problem.counts = allocate("counts", 2 * options.groups * sizeof(int64_t));
    if (options.grad_student) problem.grad_student = gradient(student, allocate("grad_student", student.nbytes()));
    if (options.grad_teacher) problem.grad_teacher = gradient(teacher, allocate("grad_teacher", teacher.nbytes()));
  }

  // {loss, parts, gradients, their units, row_statistic}, copied; None where there is none.
  py::dict results() const {
    py::dict results;
    results["loss"] = numbers(problem.loss, {losses_});
    results["parts"] = numbers(problem.parts, {2, losses_});
    results["grad_student"] = copied(options_.student, problem.grad_student);
    results["grad_teacher"] = copied(options_.teacher, problem.grad_teacher);
    results["unit_student"] = numbers(problem.unit_student, {problem.rows()});
    results["unit_teacher"] = numbers(problem.unit_teacher, {problem.rows()});
    results["row_statistic"] = numbers(problem.first.numbers, {problem.rows()});
    return results;
  }

 private:
  void read_source_options(const py::dict& given, const Allocate& allocate) {
    py::dict rest = py::reinterpret_borrow<py::dict>(given.attr("copy")());
    const auto take = [&](const char* name, auto value) {
      return rest.contains(name) ? rest.attr("pop")(name).template cast<decltype(value)>() : value;
    };
    problem.label.on = take("label_on", problem.label.on);
    problem.label.off = take("label_off", problem.label.off);
    problem.label.entropy = take("label_entropy", problem.label.entropy);
    problem.hard.transforms = take("transforms", problem.hard.transforms);
    problem.hard.first_class = take("first_class", problem.hard.first_class);
    problem.adjustment = static_cast<Adjustment>(take("adjustment", 0));
    problem.permutation.seed = take("seed", problem.permutation.seed);
    problem.first.statistic = static_cast<RowStatistic>(take("statistic", 0));
    problem.first.normalize = take("normalise_statistic", problem.first.normalize);
    problem.first.power = take("statistic_power", problem.first.power);
    problem.first.slope = take("temperature_slope", problem.first.slope);
    problem.first.least_temperature = take("least_temperature", problem.first.least_temperature);
    const py::object none = py::none(), permutation = take("permutation", none), confidence = take("confidence", none);
    if (py::len(rest)) throw std::invalid_argument("unknown source options: " + py::str(rest).cast<std::string>());

    if (!permutation.is_none()) {
      const py::array_t<int64_t, py::array::c_style> array(permutation);
      if (array.size() != problem.rows() * problem.classes)
        throw std::invalid_argument("permutation must be [rows, classes]");
      kept_.push_back(array);
      problem.permutation.of_rows = array.data();
    }
    if (problem.first.statistic == RowStatistic::none) return;
    const size_t bytes = problem.rows() * (problem.is_double() ? sizeof(double) : sizeof(float));
    problem.first.numbers = allocate("row_statistic", bytes);
    if (!confidence.is_none()) {
      std::memcpy(problem.first.numbers, per_row(confidence, "confidence"), bytes);
      problem.teacher.data = nullptr;
    }
    if (problem.first.statistic == RowStatistic::confidence) problem.row_weight = problem.first.numbers;
    else problem.soft.row_temperature = problem.first.numbers;
  }

  // Per-row numbers in the arithmetic type, kept alive here.
  const void* per_row(const py::object& values, const char* name) {
    if (values.is_none()) return nullptr;
    const auto flags = py::array::c_style | py::array::forcecast;
    const py::array array = problem.is_double() ? py::array(py::array_t<double, flags>(values))
                                                : py::array(py::array_t<float, flags>(values));
    if (array.size() != problem.rows()) throw std::invalid_argument(std::string(name) + " must have one value per row");
    kept_.push_back(array);
    return array.data();
  }

  Rows gradient(const py::array& logits, void* data) const {
    return Layout(logits, options_.dim, dense_strides(logits)).rows(data, dtype_of(logits));
  }

  py::object numbers(const void* data, const std::vector<int64_t>& shape) const {
    if (!data) return py::none();
    if (problem.is_double()) return py::array_t<double>(shape, static_cast<const double*>(data));
    return py::array_t<float>(shape, static_cast<const float*>(data));
  }

  static py::object copied(const py::array& logits, const Rows& rows) {
    if (!rows.data) return py::none();
    const std::vector<int64_t> shape(logits.shape(), logits.shape() + logits.ndim());
    return py::array(logits.dtype(), shape, dense_strides(logits), rows.data);
  }

  Options options_;
  std::vector<py::array> kept_;
  int64_t losses_ = 0;
};

// Defines m.row_loss(student, teacher, *, options, extra) to call solve(Options, extra).
template <class... Extra, class... Names>
void def_row_loss(py::module_& m, py::dict (*solve)(const Options&, Extra...), const char* doc, Names... extra) {
  using namespace py::literals;
  using Target = std::optional<py::array_t<int64_t, py::array::c_style>>;
  using Mask = std::optional<py::array_t<bool, py::array::c_style>>;
  const auto function = [solve](const py::array& student, const py::array& teacher, int source, int divergence,
                                int reduction, double temperature, double beta, double skew, double target_eps,
                                bool scale_by_t2, bool standardize, int64_t shared_classes, double kl_weight,
                                double ce_weight, double label_smoothing, int64_t ignore_index, const Target& target,
                                const Mask& mask, const py::object& row_weight, const py::object& row_temperature,
                                int64_t groups, int64_t dim, bool grad_student, bool grad_teacher,
                                const py::dict& source_options, Extra... more) {
    return solve({student, teacher, source, divergence, reduction, temperature, beta, skew, target_eps, scale_by_t2,
                  standardize, shared_classes, kl_weight, ce_weight, label_smoothing, ignore_index, target, mask,
                  row_weight, row_temperature, groups, dim, grad_student, grad_teacher, source_options},
                 more...);
  };
  const py::none none;
  m.def("row_loss", function, "student"_a, "teacher"_a, py::kw_only(), "source"_a = 0, "divergence"_a = 0,
        "reduction"_a = 2, "temperature"_a = 1.0, "beta"_a = 0.5, "skew"_a = 0.0, "target_eps"_a = 0.0,
        "scale_by_t2"_a = true, "standardize"_a = false, "shared_classes"_a = 0, "kl_weight"_a = 1.0,
        "ce_weight"_a = 0.0, "label_smoothing"_a = 0.0, "ignore_index"_a = -100, "target"_a = none, "mask"_a = none,
        "row_weight"_a = none, "row_temperature"_a = none, "groups"_a = 1, "dim"_a = -1,
        "grad_student"_a = true, "grad_teacher"_a = false, "source_options"_a = py::dict(), extra..., doc);
}

}  // namespace kd::python
