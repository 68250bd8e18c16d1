// kdkernels._host.softened_kl: the CPU kernels of the family on NumPy arrays.
#include <memory>

#include "cpu/softened_kl_kernel.h"
#include "python/numpy_problem.h"

namespace py = pybind11;

namespace {


py::dict softened_kl(const kd::python::Options& options) {
  std::vector<std::unique_ptr<int64_t[]>> memory;
  const kd::python::NumpyProblem numpy(options, [&](const std::string&, size_t bytes) -> void* {
    return memory.emplace_back(new int64_t[bytes / sizeof(int64_t) + 1]).get();
  });
  kd::softened_kl_cpu(numpy.problem, kd::one_thread);
  return numpy.results();
}

}  // namespace

void bind_softened_kl(py::module_& m) {
  kd::python::def_softened_kl(m, &softened_kl,
                              "Loss, parts and gradients of NumPy logits, by name, on one thread. Integers stand for the "
                              "enums of csrc/softened_kl.h, uint16 arrays hold bfloat16.");
}
