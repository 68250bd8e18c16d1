// kdkernels._host.multi_head_kl: the CPU kernel of several heads on NumPy arrays.
#include <memory>

#include "cpu/multi_head_kl_kernel.h"
#include "python/numpy_multi_head_kl.h"

namespace py = pybind11;

namespace {

py::dict multi_head_kl(const kd::python::HeadOptions& options) {
  std::vector<std::unique_ptr<double[]>> memory;
  const kd::python::NumpyHeads numpy(options, [&](const std::string&, size_t bytes) -> void* {
    return memory.emplace_back(new double[bytes / sizeof(double) + 1]).get();
  });
  kd::multi_head_kl_cpu(numpy.problem, kd::one_thread);
  return numpy.results();
}

}  // namespace

void bind_multi_head_kl(py::module_& m) {
  kd::python::def_multi_head_kl(m, &multi_head_kl,
                                "Loss, heads, gradients and their units of lists of NumPy logits, by name, on one thread. "
                                "uint16 arrays hold bfloat16.");
}
