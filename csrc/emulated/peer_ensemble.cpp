// kd_emulated.peer_ensemble_loss, peer_mixture and scale_gradients: the kernels of cuda/peer_ensemble.cuh and
// cuda/peer_mixture.cuh on NumPy arrays.
//
// Outputs and workspaces start as NaN between guard zones; what the kernels wrote is copied out afterwards. `plan` (tile,
// teams, parts) takes the place of the launch plan: small problems then go through several tiles and parts.
#include "cuda/peer_ensemble.cuh"
#include "cuda/peer_mixture.cuh"

#include "emulated/guarded.h"
#include "python/numpy_peer_ensemble.h"

namespace py = pybind11;

namespace {

using kd::emulated::Outputs;

using Plan = std::optional<std::tuple<int64_t, int, int>>;

constexpr int sm = 90;

// Rows that numbers are kept of.
int64_t most_rows(const kd::PeerEnsemble& problem) { return problem.rows(); }
int64_t most_rows(const kd::PeerMixture& problem) { return problem.peers; }

// The plan with other numbers, and shared memory for them.
template <class Problem>
kd::PeerPlan planned(const Problem& problem, const Plan& changed) {
  const kd::PeerPlan usual = kd::plan_problem(problem, sm);
  if (!changed) return usual;
  kd::PeerPlan plan = usual;
  std::tie(plan.tile, plan.teams, plan.parts) = *changed;
  const int64_t size = problem.is_double() ? sizeof(double) : sizeof(float), rows = most_rows(problem);
  const int64_t tiles = 3 * rows * plan.tile, parts = plan.parts;
  plan.shared_bytes = size * (tiles + rows * ((1 + parts) * problem.peers + parts * kd::peer_part_numbers + kd::peer_row_numbers));
  return plan;
}

py::dict peer_ensemble_loss(const kd::python::PeerOptions& options, const Plan& plan) {
  Outputs outputs;
  kd::python::NumpyPeers numpy(options,
                               [&](const std::string& name, size_t bytes) { return outputs.allocate(name, bytes); });
  kd::peer_ensemble_cuda(numpy.problem, planned(numpy.problem, plan), nullptr);
  outputs.check();
  return numpy.results();
}

py::dict peer_mixture(const kd::python::MixtureOptions& options, const Plan& plan) {
  Outputs outputs;
  kd::python::NumpyMixture numpy(options,
                                 [&](const std::string& name, size_t bytes) { return outputs.allocate(name, bytes); });
  kd::peer_mixture_cuda(numpy.problem, planned(numpy.problem, plan), nullptr);
  if (options.grad_mixture) kd::peer_mixture_backward_cuda(numpy.problem, planned(numpy.problem, plan), nullptr);
  outputs.check();
  return numpy.results();
}

// Changes the arrays in place.
void scale_gradients(const std::vector<py::array>& gradients, double upstream) {
  kd::GradientList list;
  for (size_t i = 0; i < gradients.size(); ++i) {
    list.data[i] = const_cast<void*>(gradients[i].data());
    list.dtype[i] = kd::python::dtype_of(gradients[i]);
    list.count[i] = gradients[i].size();
  }
  kd::scale_gradients_cuda(list, &upstream, kd::Dtype::float64, nullptr);
}

}  // namespace

void bind_peer_ensemble(py::module_& m) {
  using namespace py::literals;
  kd::python::def_peer_ensemble(m, &peer_ensemble_loss, &peer_mixture,
                                "Results by name. `weights` and `mix` stand for the enums of csrc/peer_ensemble.h; `plan`: "
                                "classes of a tile, teams and parts of the launch.",
                                "plan"_a = py::none());
  m.def("scale_gradients", &scale_gradients, "gradients"_a, "upstream"_a);
}
