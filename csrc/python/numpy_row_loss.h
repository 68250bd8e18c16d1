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
#include "row_measure.h"

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

// Named arguments, taken one by one; `done` refuses those that are left.
class Named {
 public:
  explicit Named(const py::dict& given) : rest_(py::reinterpret_borrow<py::dict>(given.attr("copy")())) {}

  template <class T>
  T take(const char* name, T otherwise) {
    return rest_.contains(name) ? rest_.attr("pop")(name).template cast<T>() : otherwise;
  }
  py::object take(const char* name) { return take<py::object>(name, py::none()); }
  template <class E>
  E take_enum(const char* name, E otherwise) {
    return static_cast<E>(take(name, static_cast<int>(otherwise)));
  }
  void done(const std::string& what) const {
    if (py::len(rest_)) throw std::invalid_argument("unknown " + what + ": " + py::str(rest_).cast<std::string>());
  }

 private:
  py::dict rest_;
};

// A call's arguments. Beside the logits, by name and all optional, those of csrc/row_loss.h:
//
//     source, divergence, reduction                 integers, as the enums
//     temperature, beta, skew, target_eps, scale_by_t2, standardize, shared_classes (0: all), needs_label, kl_weight
//     ce_weight, label_smoothing, ignore_index, target [rows / transforms], transforms, first_class
//     target_probs                                  of the student's shape, in place of a target
//     mask, row_weight, row_temperature             [rows]
//     denominators                                  [groups]
//     groups, dim, grad_student, grad_teacher
//     source_options    of sources label, permuted and adjusted, and of statistics; `confidence` replaces a teacher
//     measures          [rows, row_measures]: this is part of a row (csrc/row_measure.h)
struct Options {
  py::array student;  // logits in a Layout
  py::array teacher;  // the same shape, but for the classes where `shared_classes` says which are compared
  py::dict named;
};

constexpr int64_t row_measures = sizeof(RowMeasure<float>) / sizeof(float);

// The problem, with what it points to. Memory for outputs and workspaces comes from `allocate(name, bytes)`, which keeps
// it until the results are copied out.
class NumpyProblem {
 public:
  using Allocate = std::function<void*(const std::string& name, size_t bytes)>;

  RowLoss problem;

  NumpyProblem(const Options& options, const Allocate& allocate) : options_(options) {
    Named named(options.named);
    const py::array &student = options.student, &teacher = options.teacher;
    dim_ = named.take<int64_t>("dim", -1);
    const int64_t shared_classes = named.take<int64_t>("shared_classes", 0);
    if (student.ndim() != teacher.ndim()) throw std::invalid_argument("student and teacher must have equal shapes");
    const Layout layout(student, dim_, strides_of(student)), teacher_layout(teacher, dim_, strides_of(teacher));
    if (!layout.same_positions(teacher_layout) || (!shared_classes && layout.classes != teacher_layout.classes))
      throw std::invalid_argument("student and teacher must have equal shapes");
    if (shared_classes < 0 || shared_classes > std::min(layout.classes, teacher_layout.classes))
      throw std::invalid_argument("shared_classes must be in 1..the smaller number of classes");
    problem.outer = layout.outer;
    problem.middle = layout.middle;
    problem.classes = layout.classes;
    problem.inner = layout.inner;
    problem.groups = named.take("groups", problem.groups);
    problem.student = layout.rows(const_cast<void*>(student.data()), dtype_of(student));
    problem.teacher_classes = teacher_layout.classes;
    problem.teacher = teacher_layout.rows(const_cast<void*>(teacher.data()), dtype_of(teacher));
    if (problem.groups < 1 || problem.outer % problem.groups != 0)
      throw std::invalid_argument("groups must divide the first dimension");
    read_hard_term(named);
    problem.mask = array_of<bool>(named.take("mask"), problem.rows(), "mask must have one value per row");
    problem.denominators = array_of<double>(named.take("denominators"), problem.groups, "denominators must be one per group");
    problem.row_weight = per_row(named.take("row_weight"), "row_weight");
    problem.soft.row_temperature = per_row(named.take("row_temperature"), "row_temperature");
    problem.source = named.take_enum("source", problem.source);
    problem.soft.divergence = named.take_enum("divergence", problem.soft.divergence);
    problem.reduction = named.take_enum("reduction", problem.reduction);
    problem.soft.temperature = named.take("temperature", problem.soft.temperature);
    problem.soft.beta = named.take("beta", problem.soft.beta);
    problem.soft.skew = named.take("skew", problem.soft.skew);
    problem.soft.classes = shared_classes ? shared_classes : layout.classes;
    problem.soft.standardize = named.take("standardize", problem.soft.standardize);
    problem.soft.needs_label = named.take("needs_label", problem.soft.needs_label);
    problem.soft.target_eps = named.take("target_eps", problem.soft.target_eps);
    problem.soft.scale_by_t2 = named.take("scale_by_t2", problem.soft.scale_by_t2);
    problem.soft.weight = named.take("kl_weight", problem.soft.weight);
    read_source_options(named.take("source_options", py::dict()), allocate);
    read_measures(named.take("measures"));
    const bool grad_student = named.take("grad_student", true), grad_teacher = named.take("grad_teacher", false);
    named.done("options");

    const int64_t rows = problem.rows();
    losses_ = problem.reduction == Reduction::none ? rows : problem.groups;
    problem.loss = allocate("loss", losses_ * float_size());
    problem.parts = problem.has_hard() ? allocate("parts", 2 * losses_ * float_size()) : nullptr;
    const auto units = [&](const char* name, const py::array& logits, bool wanted) {
      return wanted && dtype_of(logits) == Dtype::float16 ? allocate(name, rows * float_size()) : nullptr;
    };
    problem.unit_student = units("unit_student", student, grad_student);
    problem.unit_teacher = units("unit_teacher", teacher, grad_teacher);
    problem.row_losses = allocate("row_losses", 2 * rows * float_size());
    problem.counts = allocate("counts", 2 * problem.groups * sizeof(int64_t));
    if (grad_student) problem.grad_student = gradient(student, allocate("grad_student", student.nbytes()));
    if (grad_teacher) problem.grad_teacher = gradient(teacher, allocate("grad_teacher", teacher.nbytes()));
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

  // What a step of row_measure.h has written, copied.
  py::object measures() const { return numbers(problem.measures, {problem.rows(), row_measures}); }

 private:
  size_t float_size() const { return problem.is_double() ? sizeof(double) : sizeof(float); }

  void read_hard_term(Named& named) {
    HardTerm& hard = problem.hard;
    hard.transforms = named.take("transforms", hard.transforms);
    hard.first_class = named.take("first_class", hard.first_class);
    if (hard.transforms < 1 || problem.rows() % hard.transforms || problem.classes % hard.transforms)
      throw std::invalid_argument("transforms must divide rows and classes");
    const std::string rule = hard.transforms == 1 ? "target must have one value per row"
                                                  : "target must have rows / transforms values";
    hard.target = array_of<int64_t>(named.take("target"), problem.rows() / hard.transforms, rule);
    hard.ignore_index = named.take("ignore_index", hard.ignore_index);
    hard.smoothing = named.take("label_smoothing", hard.smoothing);
    hard.weight = named.take("ce_weight", hard.weight);
    const py::object probs = named.take("target_probs");
    if (probs.is_none()) return;
    const py::array array(probs);
    const Layout layout(array, dim_, strides_of(array));
    if (array.ndim() != options_.student.ndim() || layout.classes != problem.classes || layout.positions() != problem.rows())
      throw std::invalid_argument("target_probs must have the shape of student");
    if (hard.target) throw std::invalid_argument("target and target_probs exclude each other");
    kept_.push_back(array);
    hard.probs = layout.rows(const_cast<void*>(array.data()), dtype_of(array, "target_probs"));
  }

  // Written in place: the array is a copy.
  void read_measures(const py::object& given) {
    if (given.is_none()) return;
    const size_t bytes = problem.rows() * row_measures * float_size();
    const auto flags = py::array::c_style | py::array::forcecast;
    const py::array array = problem.is_double() ? py::array(py::array_t<double, flags>(given))
                                                : py::array(py::array_t<float, flags>(given));
    if (array.size() != problem.rows() * row_measures) throw std::invalid_argument("measures must be [rows, numbers of a measure]");
    py::array copy = problem.is_double() ? py::array(py::array_t<double>(array.size()))
                                         : py::array(py::array_t<float>(array.size()));
    std::memcpy(copy.mutable_data(), array.data(), bytes);
    kept_.push_back(copy);
    problem.measures = copy.mutable_data();
    problem.step = RowStep::finish;
  }

  void read_source_options(const py::dict& given, const Allocate& allocate) {
    Named named(given);
    problem.label.on = named.take("label_on", problem.label.on);
    problem.label.off = named.take("label_off", problem.label.off);
    problem.label.entropy = named.take("label_entropy", problem.label.entropy);
    problem.adjustment = named.take_enum("adjustment", problem.adjustment);
    problem.permutation.seed = named.take("seed", problem.permutation.seed);
    problem.first.statistic = named.take_enum("statistic", problem.first.statistic);
    problem.first.normalize = named.take("normalize_statistic", problem.first.normalize);
    problem.first.power = named.take("statistic_power", problem.first.power);
    problem.first.slope = named.take("temperature_slope", problem.first.slope);
    problem.first.least_temperature = named.take("least_temperature", problem.first.least_temperature);
    const py::object permutation = named.take("permutation"), confidence = named.take("confidence");
    named.done("source options");

    if (!permutation.is_none()) {
      const py::array_t<int64_t, py::array::c_style> array(permutation);
      if (array.size() != problem.rows() * problem.classes)
        throw std::invalid_argument("permutation must be [rows, classes]");
      kept_.push_back(array);
      problem.permutation.of_rows = array.data();
    }
    if (problem.first.statistic == RowStatistic::none) return;
    const size_t bytes = problem.rows() * float_size();
    problem.first.numbers = allocate("row_statistic", bytes);
    if (!confidence.is_none()) {
      std::memcpy(problem.first.numbers, per_row(confidence, "confidence"), bytes);
      problem.teacher.data = nullptr;
    }
    if (problem.first.statistic == RowStatistic::confidence) problem.row_weight = problem.first.numbers;
    else problem.soft.row_temperature = problem.first.numbers;
  }

  // An array of that many numbers, kept alive here; null for None.
  template <class T>
  const T* array_of(const py::object& values, int64_t count, const std::string& rule) {
    if (values.is_none()) return nullptr;
    const py::array_t<T, py::array::c_style | py::array::forcecast> array(values);
    if (array.size() != count) throw std::invalid_argument(rule);
    kept_.push_back(array);
    return array.data();
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
    return Layout(logits, dim_, dense_strides(logits)).rows(data, dtype_of(logits));
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
  int64_t dim_ = -1, losses_ = 0;
};

// Defines m.row_loss(student, teacher, *, extra, **named) to call solve(Options, extra).
template <class... Extra, class... Names>
void def_row_loss(py::module_& m, py::dict (*solve)(const Options&, Extra...), const char* doc, Names... extra) {
  using namespace py::literals;
  const auto function = [solve](const py::array& student, const py::array& teacher, Extra... more, const py::kwargs& named) {
    return solve({student, teacher, named}, more...);
  };
  m.def("row_loss", function, "student"_a, "teacher"_a, py::kw_only(), extra..., doc);
}

}  // namespace kd::python
