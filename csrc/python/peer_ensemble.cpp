// kdkernels._host: the CPU kernels of peer ensembles on NumPy arrays.
#include <memory>

#include "cpu/peer_ensemble_kernel.h"
#include "python/numpy_peer_ensemble.h"

namespace py = pybind11;

namespace {

// Keeps what it allocates.
class Memory {
 public:
  void* operator()(const std::string&, size_t bytes) {
    return blocks_.emplace_back(new double[bytes / sizeof(double) + 1]).get();
  }

 private:
  std::vector<std::unique_ptr<double[]>> blocks_;
};

py::dict peer_ensemble_loss(const kd::python::PeerOptions& options) {
  Memory memory;
  const kd::python::NumpyPeers numpy(options, std::ref(memory));
  kd::peer_ensemble_cpu(numpy.problem, kd::one_thread);
  return numpy.results();
}

py::dict peer_mixture(const kd::python::MixtureOptions& options) {
  Memory memory;
  const kd::python::NumpyMixture numpy(options, std::ref(memory));
  kd::peer_mixture_cpu(numpy.problem, kd::one_thread);
  if (options.grad_mixture) kd::peer_mixture_backward_cpu(numpy.problem, kd::one_thread);
  return numpy.results();
}

}  // namespace

void bind_peer_ensemble(py::module_& m) {
  kd::python::def_peer_ensemble(m, &peer_ensemble_loss, &peer_mixture,
                                "Results of NumPy logits and features by name, on one thread, with the gradients that were "
                                "asked for. Integers stand for the enums of csrc/peer_ensemble.h, uint16 arrays hold bfloat16.");
}
