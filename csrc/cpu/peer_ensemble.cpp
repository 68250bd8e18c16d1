// The ops of the family on CPU tensors.
#include "cpu/peer_ensemble_kernel.h"

#include "cpu/pages.h"
#include "cpu/torch_threads.h"
#include "peer_ensemble_op.h"

namespace kd {
namespace {

struct Cpu {
  static void peer_ensemble(const PeerEnsemble& problem, const Tensor&) {
    const PeerRows& gradient = problem.grad_peer_logits;
    const int64_t numbers = problem.samples * problem.peers * problem.classes;
    if (gradient.data) prefer_huge_pages(gradient.data, numbers * element_size(gradient.dtype));
    peer_ensemble_cpu(problem, torch_threads);
  }

  static void peer_mixture(const PeerMixture& problem, const Tensor&) { peer_mixture_cpu(problem, torch_threads); }

  static void peer_mixture_backward(const PeerMixture& problem, const Tensor&) {
    peer_mixture_backward_cpu(problem, torch_threads);
  }

  static void scale_gradients(const GradientList& gradients, const void* upstream, Dtype upstream_dtype, const Tensor&) {
    scale_gradients_cpu(gradients, upstream, upstream_dtype, torch_threads);
  }
};

}  // namespace
}  // namespace kd

STABLE_TORCH_LIBRARY_IMPL(kdkernels, CPU, m) {
  m.impl("okddip_loss", TORCH_BOX(&kd::okddip_loss_op<kd::Cpu>));
  m.impl("gated_ensemble_loss", TORCH_BOX(&kd::gated_ensemble_loss_op<kd::Cpu>));
  m.impl("leave_one_out_loss", TORCH_BOX(&kd::leave_one_out_loss_op<kd::Cpu>));
  m.impl("peer_mixture", TORCH_BOX(&kd::peer_mixture_op<kd::Cpu>));
  m.impl("peer_mixture_backward", TORCH_BOX(&kd::peer_mixture_backward_op<kd::Cpu>));
  m.impl("scale_gradients_", TORCH_BOX(&kd::scale_gradients_op<kd::Cpu>));
}
