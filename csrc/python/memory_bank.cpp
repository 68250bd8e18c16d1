// kdkernels._host: the CPU kernels of the memory bank on NumPy arrays.
#include <memory>

#include "cpu/memory_bank_kernel.h"
#include "python/numpy_memory_bank.h"

namespace py = pybind11;

namespace {

py::dict memory_bank_nce(const kd::python::BankOptions& options) {
  std::vector<std::unique_ptr<double[]>> memory;
  const auto allocate = [&](const std::string&, size_t bytes) -> void* {
    return memory.emplace_back(new double[bytes / sizeof(double) + 1]).get();
  };
  kd::python::NumpyBank numpy(options, allocate);
  numpy.problem.workspace = allocate("workspace", kd::memory_bank_workspace_cpu(numpy.problem));
  kd::memory_bank_normalizer_cpu(numpy.problem, kd::one_thread);
  kd::memory_bank_nce_cpu(numpy.problem, kd::one_thread);
  return numpy.results();
}

}  // namespace

void bind_memory_bank(py::module_& m) {
  kd::python::def_memory_bank(m, &memory_bank_nce,
                              "Loss, normalizer, positives and gradient of NumPy features, by name, on one thread. "
                              "`reduction` stands for the enum of csrc/row_loss.h, uint16 arrays hold bfloat16.");
}
