// kd_emulated.memory_bank_nce: the kernels of cuda/memory_bank.cuh on NumPy arrays.
//
// Outputs and workspaces start as NaN between guard zones; what the kernels wrote is copied out afterwards.
#include "cuda/memory_bank.cuh"

#include "emulated/guarded.h"
#include "python/numpy_memory_bank.h"

namespace py = pybind11;

namespace {

using kd::emulated::Outputs;

py::dict memory_bank_nce(const kd::python::BankOptions& options) {
  Outputs outputs;
  kd::python::NumpyBank numpy(options,
                              [&](const std::string& name, size_t bytes) { return outputs.allocate(name, bytes); });
  kd::MemoryBank& problem = numpy.problem;
  problem.workspace = outputs.allocate("workspace of Z", kd::bank_normalizer_workspace_bytes(problem));
  kd::memory_bank_normalizer_cuda(problem, nullptr);
  problem.workspace = outputs.allocate("workspace", kd::bank_workspace_bytes(problem));
  kd::memory_bank_nce_cuda(problem, nullptr);
  outputs.check();
  return numpy.results();
}

}  // namespace

void bind_memory_bank(py::module_& m) {
  kd::python::def_memory_bank(m, &memory_bank_nce,
                              "Loss, normalizer, positives and gradient, by name. `reduction` stands for the enum of "
                              "csrc/row_loss.h.");
}
