// kdkernels._host.row_loss: the CPU kernels of row losses on NumPy arrays.
#include <memory>

#include "cpu/row_loss_kernel.h"
#include "python/numpy_pseudo_labels.h"
#include "python/numpy_row_loss.h"

namespace py = pybind11;

namespace {

// Memory of outputs and workspaces until the results are copied.
class Memory {
 public:
  void* operator()(const std::string&, size_t bytes) {
    return kept_->emplace_back(new int64_t[bytes / sizeof(int64_t) + 1]).get();
  }

 private:
  std::shared_ptr<std::vector<std::unique_ptr<int64_t[]>>> kept_ = std::make_shared<std::vector<std::unique_ptr<int64_t[]>>>();
};

py::dict row_loss(const kd::python::Options& options) {
  Memory memory;
  const kd::python::NumpyProblem numpy(options, memory);
  kd::row_loss_cpu(numpy.problem, kd::one_thread);
  return numpy.results();
}

// Without `measures` step exponentials, else step gradients.
py::object row_measure(const py::array& student, const py::array& teacher, const py::kwargs& named) {
  Memory memory;
  kd::python::NumpyProblem numpy({student, teacher, named}, memory);
  kd::RowLoss& problem = numpy.problem;
  const bool first = !problem.measures;
  problem.step = first ? kd::RowStep::exponentials : kd::RowStep::gradients;
  if (first)
    problem.measures = memory("measures", problem.rows() * kd::python::row_measures * sizeof(double));
  kd::row_measure_cpu(problem, kd::one_thread);
  return numpy.measures();
}

// What step exponentials found of two parts of each row, merged; one temperature for all rows.
template <class A>
py::array add_measures(const py::array_t<A, py::array::c_style>& one, const py::array_t<A, py::array::c_style>& other,
                       double temperature) {
  py::array_t<A> sum(std::vector<py::ssize_t>(one.shape(), one.shape() + one.ndim()));
  std::memcpy(sum.mutable_data(), one.data(), one.nbytes());
  auto* sums = reinterpret_cast<kd::RowMeasure<A>*>(sum.mutable_data());
  const auto* others = reinterpret_cast<const kd::RowMeasure<A>*>(other.data());
  const A inverse = static_cast<A>(1 / temperature);
  for (int64_t row = 0; row < one.size() / kd::python::row_measures; ++row) sums[row].add(others[row], inverse, inverse);
  return sum;
}

py::tuple pseudo_labels(const py::array& logits, const py::object& threshold, double temperature, int64_t ignore_index,
                        int64_t dim) {
  Memory memory;
  const kd::python::NumpyPseudoLabels numpy(logits, threshold, temperature, ignore_index, dim, memory);
  kd::row_statistics_cpu(numpy.problem, kd::one_thread);
  return numpy.results();
}

}  // namespace

void bind_row_loss(py::module_& m) {
  using namespace py::literals;
  kd::python::def_row_loss(m, &row_loss,
                           "Loss, parts and gradients of NumPy logits, by name, on one thread. Integers stand for the "
                           "enums of csrc/row_loss.h, uint16 arrays hold bfloat16.");
  m.def("row_measure", &row_measure, "student"_a, "teacher"_a,
        "What rows that come in parts have to know of each other (csrc/row_measure.h), [rows, 8]: of exponentials, or, given "
        "these as `measures`, with the sums that gradients need. The options are those of row_loss.");
  m.def("add_row_measures", &add_measures<float>, "one"_a.noconvert(), "other"_a.noconvert(), "temperature"_a);
  m.def("add_row_measures", &add_measures<double>, "one"_a.noconvert(), "other"_a.noconvert(), "temperature"_a,
        "The exponentials of two parts of rows, merged.");
  m.def("pseudo_labels", &pseudo_labels, "logits"_a, "threshold"_a = 0.0, "temperature"_a = 1.0, "ignore_index"_a = -100,
        "dim"_a = -1, "Labels and confidences of the rows of NumPy logits; `threshold`: a number, or an array of one per class.");
}
