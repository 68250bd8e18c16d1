// kdkernels._host: the CPU kernels of the family on NumPy arrays, and the launch plans of its CUDA kernels.
#include <memory>

#include "cpu/softened_kl_kernel.h"
#include "cuda/launch.h"
#include "python/numpy_problem.h"

namespace py = pybind11;

namespace {

void one_thread(int64_t count, int64_t, const std::function<void(int64_t, int64_t)>& body) { body(0, count); }

py::dict softened_kl(const kd::python::Options& options) {
  std::vector<std::unique_ptr<int64_t[]>> memory;
  const kd::python::NumpyProblem numpy(options, [&](const std::string&, size_t bytes) -> void* {
    return memory.emplace_back(new int64_t[bytes / sizeof(int64_t) + 1]).get();
  });
  kd::softened_kl_cpu(numpy.problem, one_thread);
  return numpy.results();
}

py::dict launch_plan(const std::string& family, int64_t rows, int64_t classes, const std::string& dtype, int sm) {
  if (family != "softened_kl") throw std::invalid_argument("family must be softened_kl, got " + family);
  if (rows < 0 || classes < 1) throw std::invalid_argument("rows must be >= 0 and classes >= 1");
  const int size = dtype == "float64" ? 8 : dtype == "float32" ? 4 : dtype == "float16" || dtype == "bfloat16" ? 2 : 0;
  if (!size) throw std::invalid_argument("dtype must be float32, float16, bfloat16 or float64, got " + dtype);
  const kd::RowPlan plan = kd::plan_rows(rows, classes, size, size, size == 8, true, sm);
  py::dict result;
  result["form"] = kd::form_names[static_cast<int>(plan.form)];
  result["lanes"] = plan.lanes;
  result["threads"] = plan.threads;
  result["blocks"] = plan.blocks;
  result["shared_bytes"] = plan.shared_bytes;
  return result;
}

}  // namespace

void bind_softened_kl(py::module_& m) {
  kd::python::def_softened_kl(m, &softened_kl,
                              "Loss, parts and gradients of NumPy logits, by name, on one thread. Integers stand for the "
                              "enums of csrc/softened_kl.h, uint16 arrays hold bfloat16.");
  m.def("launch_plan", &launch_plan, py::arg("family"), py::arg("rows"), py::arg("classes"), py::arg("dtype") = "float32",
        py::arg("sm") = 90, "How the CUDA kernel of a family would be launched: form, lanes, threads, blocks, shared_bytes.");
}
