// kdkernels._host.row_loss: the CPU kernels of the family on NumPy arrays.
#include <memory>

#include "cpu/row_loss_kernel.h"
#include "python/numpy_pseudo_labels.h"
#include "python/numpy_row_loss.h"

namespace py = pybind11;

namespace {


py::dict row_loss(const kd::python::Options& options) {
  std::vector<std::unique_ptr<int64_t[]>> memory;
  const kd::python::NumpyProblem numpy(options, [&](const std::string&, size_t bytes) -> void* {
    return memory.emplace_back(new int64_t[bytes / sizeof(int64_t) + 1]).get();
  });
  kd::row_loss_cpu(numpy.problem, kd::one_thread);
  return numpy.results();
}

py::tuple pseudo_labels(const py::array& logits, const py::object& threshold, double temperature, int64_t ignore_index,
                        int64_t dim) {
  std::vector<std::unique_ptr<int64_t[]>> memory;
  const kd::python::NumpyPseudoLabels numpy(
      logits, threshold, temperature, ignore_index, dim, [&](const std::string&, size_t bytes) -> void* {
        return memory.emplace_back(new int64_t[bytes / sizeof(int64_t) + 1]).get();
      });
  kd::row_statistics_cpu(numpy.problem, kd::one_thread);
  return numpy.results();
}

}  // namespace

void bind_row_loss(py::module_& m) {
  using namespace py::literals;
  kd::python::def_row_loss(m, &row_loss,
                              "Loss, parts and gradients of NumPy logits, by name, on one thread. Integers stand for the "
                              "enums of csrc/row_loss.h, uint16 arrays hold bfloat16.");
  m.def("pseudo_labels", &pseudo_labels, "logits"_a, "threshold"_a = 0.0, "temperature"_a = 1.0, "ignore_index"_a = -100,
        "dim"_a = -1, "Labels and confidences of the rows of NumPy logits; `threshold`: a number, or an array of one per class.");
}
