// kd_emulated.multi_head_kl: the kernels of cuda/multi_head_kl.cuh on NumPy arrays.
//
// Outputs and workspaces start as NaN between guard zones; what the kernels wrote is copied out afterwards.
#include "cuda/multi_head_kl.cuh"

#include "emulated/guarded.h"
#include "python/numpy_multi_head_kl.h"

namespace py = pybind11;

namespace {

using kd::emulated::Outputs;

// The plan for the widest row of all heads, at most one launch of them, in a form that might not be chosen for it.
kd::RowPlan forced_plan(const kd::MultiHeadKL& problem, const std::string& name, int threads, int cluster) {
  const auto found = std::find(std::begin(kd::form_names), std::end(kd::form_names), name);
  if (found == std::end(kd::form_names)) throw std::invalid_argument("no launch form is called " + name);
  const auto form = static_cast<kd::RowForm>(found - std::begin(kd::form_names));
  const int count = static_cast<int>(problem.heads.size());
  kd::RowPlan plan = kd::plan_widest(problem.heads.data(), count, problem.is_double, 90);
  const bool is_free = plan.form != kd::RowForm::strided || form == kd::RowForm::strided;
  bool fits = count <= kd::most_heads && is_free && (form != kd::RowForm::held || plan.form == kd::RowForm::held);
  if (form == kd::RowForm::staged) {
    int64_t classes = 0;
    for (const kd::RowLoss& head : problem.heads) classes = std::max(classes, head.classes);
    plan = kd::plan_staged(classes, 2 * sizeof(float), threads, cluster);
    fits = fits && plan.shared_bytes <= kd::shared_limit(90);
  } else {
    plan = {form, threads, threads, 0, 0, 1};
  }
  if (!fits) throw std::invalid_argument("the launch form " + name + " does not fit the problem");
  return plan;
}

py::dict multi_head_kl(const kd::python::HeadOptions& options, const std::string& form, int threads, int cluster, int sm) {
  Outputs outputs;
  const kd::python::NumpyHeads numpy(options,
                                     [&](const std::string& name, size_t bytes) { return outputs.allocate(name, bytes); });
  const kd::MultiHeadKL& problem = numpy.problem;
  const kd::emulated::OnDevice device(sm);
  if (form == "auto") {
    kd::multi_head_kl_cuda(problem, sm, nullptr);
  } else {
    const int count = static_cast<int>(problem.heads.size());
    kd::launch_heads(problem, 0, count, forced_plan(problem, form, threads, cluster), nullptr);
  }
  outputs.check();
  return numpy.results();
}

}  // namespace

void bind_multi_head_kl(py::module_& m) {
  using namespace py::literals;
  kd::python::def_multi_head_kl<const std::string&, int, int, int>(
      m, &multi_head_kl,
      "Loss, heads, gradients and their units, by name. `form` forces a launch form for the widest row, with `threads` per "
      "block and `cluster` blocks per staged row.",
      "form"_a = "auto", "threads"_a = 128, "cluster"_a = 1, "sm"_a = 90);
}
