// NumPy arrays to the plain problems of similarity.h. Rows of features may lie anywhere; features of a row that are no
// neighbours are copied. uint16 holds bfloat16. Used by kdkernels._host and, for the emulated CUDA kernels, by the tests'
// kd_emulated.
#pragma once
#include <optional>
#include <string>
#include <vector>

#include "kept_gradient.h"
#include "python/numpy_row_loss.h"
#include "similarity.h"

namespace kd::python {

using Int64s = std::optional<py::array_t<int64_t, py::array::c_style | py::array::forcecast>>;
using Bools = std::optional<py::array_t<bool, py::array::c_style>>;

// An array [rows, width] whose rows are used where they lie. `kept` keeps what had to be copied.
inline Features features_of(const py::array& array, const std::string& name, std::vector<py::array>& kept) {
  if (array.ndim() != 2 || array.shape(1) < 1)
    throw std::invalid_argument(name + " must be [rows, width] with a width of at least 1");
  const Dtype dtype = dtype_of(array, name);
  const bool in_place =
      (array.shape(1) <= 1 || array.strides(1) == array.itemsize()) && array.strides(0) % array.itemsize() == 0;
  kept.push_back(in_place ? array : py::array(py::module_::import("numpy").attr("ascontiguousarray")(array)));
  const py::array& used = kept.back();
  return {const_cast<void*>(used.data()), dtype, used.shape(0), used.shape(1), used.strides(0) / used.itemsize()};
}

// The data of one number per row, or null.
template <class T, int flags>
const T* per_row(const std::optional<py::array_t<T, flags>>& values, int64_t rows, const std::string& name,
                 const std::string& unit) {
  if (!values) return nullptr;
  if (values->size() != rows) throw std::invalid_argument(name + " must have one value per " + unit);
  return values->data();
}

inline void check_equal(const Features& one, const Features& other, const std::string& names) {
  if (one.width != other.width) throw std::invalid_argument(names + " must have equal widths");
}

// A call's arguments, named as in csrc/similarity.h.
struct SimilarityOptions {
  py::array query, key;  // [queries, width], [keys, width]
  std::optional<py::array> teacher_query, teacher_key;
  int target, reduction;
  bool normalize, symmetric, scale_by_t2;
  double temperature;
  py::object temperature_at;  // a number
  Int64s positive, query_labels, key_labels;
  int64_t own_key;
  Bools mask;
  py::object row_weight, bias;  // [queries]; broadcastable to [queries, keys]
  bool grad_query, grad_key, grad_temperature;
};

// The problem, with what it points to. Memory for outputs comes from `allocate(name, bytes)`, which keeps it until the
// results are copied out.
class NumpySimilarity {
 public:
  using Allocate = NumpyProblem::Allocate;

  Similarity problem;

  NumpySimilarity(const SimilarityOptions& options, const Allocate& allocate) : options_(options) {
    problem.query = features_of(options.query, "query", kept_);
    problem.key = features_of(options.key, "key", kept_);
    check_equal(problem.query, problem.key, "query and key");
    problem.target = static_cast<KeyTarget>(options.target);
    problem.reduction = static_cast<Reduction>(options.reduction);
    problem.normalize = options.normalize;
    problem.symmetric = options.symmetric;
    problem.scale_by_t2 = options.scale_by_t2;
    problem.temperature = options.temperature;
    const int64_t queries = problem.queries(), keys = problem.keys();
    problem.positive = per_row(options.positive, queries, "positive", "query");
    problem.query_labels = per_row(options.query_labels, queries, "query_labels", "query");
    problem.key_labels = per_row(options.key_labels, keys, "key_labels", "key");
    problem.own_key = options.own_key;
    problem.mask = per_row(options.mask, queries, "mask", "query");
    if (problem.target == KeyTarget::teacher) read_teacher();
    if (problem.symmetric && problem.target != KeyTarget::positive)
      throw std::invalid_argument("only target positive can be symmetric");
    if (problem.target == KeyTarget::labels && !(problem.query_labels && problem.key_labels))
      throw std::invalid_argument("target labels needs query_labels and key_labels");

    if (!options.temperature_at.is_none()) problem.temperature_at = numbers(options.temperature_at, {}).data();
    if (!options.row_weight.is_none()) problem.row_weight = contiguous(numbers(options.row_weight, {queries})).data();
    if (!options.bias.is_none()) {
      const py::array bias = numbers(options.bias, {queries, keys});
      problem.bias = bias.data();
      problem.bias_query_stride = bias.strides(0) / bias.itemsize();
      problem.bias_key_stride = bias.strides(1) / bias.itemsize();
    }

    losses_ = problem.reduction == Reduction::none ? queries : 1;
    problem.loss = allocate("loss", losses_ * float_size());
    if (options.grad_temperature) problem.grad_temperature = allocate("grad_temperature", float_size());
    if (options.grad_query) problem.grad_query = gradient("grad_query", problem.query, allocate);
    if (options.grad_key) problem.grad_key = gradient("grad_key", problem.key, allocate);
  }

  // {loss, grad_query, grad_key, grad_temperature}, copied; None where not requested. A loss is [1] or [queries].
  py::dict results() const {
    py::dict results;
    results["loss"] = copied(problem.loss, {losses_});
    results["grad_query"] = copied(options_.query, problem.grad_query);
    results["grad_key"] = copied(options_.key, problem.grad_key);
    results["grad_temperature"] = copied(problem.grad_temperature, {1});
    return results;
  }

 private:
  size_t float_size() const { return problem.is_double() ? sizeof(double) : sizeof(float); }

  void read_teacher() {
    if (!options_.teacher_query || !options_.teacher_key)
      throw std::invalid_argument("target teacher needs teacher_query and teacher_key");
    problem.teacher_query = features_of(*options_.teacher_query, "teacher_query", kept_);
    problem.teacher_key = features_of(*options_.teacher_key, "teacher_key", kept_);
    check_equal(problem.teacher_query, problem.teacher_key, "teacher_query and teacher_key");
    if (problem.teacher_query.rows != problem.queries() || problem.teacher_key.rows != problem.keys())
      throw std::invalid_argument("the teacher must have as many queries and keys as the student");
  }

  // Numbers of the arithmetic type broadcast to `shape`, by strides of 0, and kept alive here.
  py::array numbers(const py::object& values, const std::vector<int64_t>& shape) {
    const py::module_ numpy = py::module_::import("numpy");
    const py::object array = numpy.attr("asarray")(values, problem.is_double() ? "float64" : "float32");
    kept_.push_back(numpy.attr("broadcast_to")(array, py::tuple(py::cast(shape))));
    return kept_.back();
  }

  py::array contiguous(const py::array& array) {
    kept_.push_back(py::module_::import("numpy").attr("ascontiguousarray")(array));
    return kept_.back();
  }

  static Features gradient(const std::string& name, const Features& of, const Allocate& allocate) {
    const Dtype dtype = kd::kept_dtype(of.dtype);
    return {allocate(name, of.rows * of.width * element_size(dtype)), dtype, of.rows, of.width, of.width};
  }

  py::object copied(const void* data, const std::vector<int64_t>& shape) const {
    if (!data) return py::none();
    if (problem.is_double()) return py::array_t<double>(shape, static_cast<const double*>(data));
    return py::array_t<float>(shape, static_cast<const float*>(data));
  }

  static py::object copied(const py::array& of, const Features& gradient) {
    if (!gradient.data) return py::none();
    return py::array(kept_dtype(of), std::vector<int64_t>{gradient.rows, gradient.width}, gradient.data);
  }

  SimilarityOptions options_;
  std::vector<py::array> kept_;
  int64_t losses_ = 0;
};

// The ranking problem; its result goes to `allocate("rank", bytes)`.
class NumpySimilarityRank {
 public:
  SimilarityRank problem;

  NumpySimilarityRank(const py::array& query, const py::array& key, const Int64s& positive, bool normalize,
                      const NumpySimilarity::Allocate& allocate)
      : positive_(positive) {
    problem.query = features_of(query, "query", kept_);
    problem.key = features_of(key, "key", kept_);
    check_equal(problem.query, problem.key, "query and key");
    problem.normalize = normalize;
    problem.positive = per_row(positive_, problem.query.rows, "positive", "query");
    problem.rank = static_cast<int64_t*>(allocate("rank", problem.query.rows * sizeof(int64_t)));
  }

  py::array results() const { return py::array_t<int64_t>(problem.query.rows, problem.rank); }

 private:
  Int64s positive_;
  std::vector<py::array> kept_;
};

// Defines m.similarity(query, key, *, options, extra) to call solve(SimilarityOptions, extra).
template <class... Extra, class... Names>
void def_similarity(py::module_& m, py::dict (*solve)(const SimilarityOptions&, Extra...), const char* doc,
                    Names... extra) {
  using namespace py::literals;
  using Array = std::optional<py::array>;
  const auto function = [solve](const py::array& query, const py::array& key, const Array& teacher_query,
                                const Array& teacher_key, int target, int reduction, bool normalize, bool symmetric,
                                bool scale_by_t2, double temperature, const py::object& temperature_at,
                                const Int64s& positive, const Int64s& query_labels, const Int64s& key_labels,
                                int64_t own_key, const Bools& mask, const py::object& row_weight,
                                const py::object& bias, bool grad_query, bool grad_key, bool grad_temperature,
                                Extra... more) {
    return solve({query, key, teacher_query, teacher_key, target, reduction, normalize, symmetric, scale_by_t2,
                  temperature, temperature_at, positive, query_labels, key_labels, own_key, mask, row_weight, bias,
                  grad_query, grad_key, grad_temperature},
                 more...);
  };
  const py::none none;
  m.def("similarity", function, "query"_a, "key"_a, py::kw_only(), "teacher_query"_a = none, "teacher_key"_a = none,
        "target"_a = 0, "reduction"_a = 2, "normalize"_a = true, "symmetric"_a = false, "scale_by_t2"_a = false,
        "temperature"_a = 1.0, "temperature_at"_a = none, "positive"_a = none, "query_labels"_a = none,
        "key_labels"_a = none, "own_key"_a = -1, "mask"_a = none, "row_weight"_a = none, "bias"_a = none,
        "grad_query"_a = true, "grad_key"_a = true, "grad_temperature"_a = false, extra..., doc);
}

// Defines m.similarity_rank(query, key, positive, normalize=True, extra): solve fills in the ranks of the problem.
template <class... Extra, class... Names>
void def_similarity_rank(py::module_& m,
                         py::array (*solve)(const py::array&, const py::array&, const Int64s&, bool, Extra...),
                         const char* doc, Names... extra) {
  using namespace py::literals;
  m.def("similarity_rank", solve, "query"_a, "key"_a, "positive"_a, "normalize"_a = true, extra..., doc);
}

}  // namespace kd::python
