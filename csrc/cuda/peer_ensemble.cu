// The ops of the family on CUDA tensors.
#include "cuda/peer_ensemble.cuh"
#include "cuda/peer_mixture.cuh"

#include "cuda/device.h"
#include "peer_ensemble_op.h"

namespace kd {
namespace {

struct Cuda {
  static void peer_ensemble(const PeerEnsemble& problem, const Tensor& like) {
    const torch::stable::accelerator::DeviceGuard guard(like.get_device_index());
    peer_ensemble_cuda(problem, plan_problem(problem, compute_capability(like)), current_stream(like));
  }

  static void peer_mixture(const PeerMixture& problem, const Tensor& like) {
    const torch::stable::accelerator::DeviceGuard guard(like.get_device_index());
    peer_mixture_cuda(problem, plan_problem(problem, compute_capability(like)), current_stream(like));
  }

  static void peer_mixture_backward(const PeerMixture& problem, const Tensor& like) {
    const torch::stable::accelerator::DeviceGuard guard(like.get_device_index());
    peer_mixture_backward_cuda(problem, plan_problem(problem, compute_capability(like)), current_stream(like));
  }

  static void scale_gradients(const GradientList& list, const void* upstream, Dtype upstream_dtype, const Tensor& like) {
    const torch::stable::accelerator::DeviceGuard guard(like.get_device_index());
    scale_gradients_cuda(list, upstream, upstream_dtype, current_stream(like));
  }
};

}  // namespace
}  // namespace kd

STABLE_TORCH_LIBRARY_IMPL(kdkernels, CUDA, m) {
  m.impl("okddip_loss", TORCH_BOX(&kd::okddip_loss_op<kd::Cuda>));
  m.impl("gated_ensemble_loss", TORCH_BOX(&kd::gated_ensemble_loss_op<kd::Cuda>));
  m.impl("leave_one_out_loss", TORCH_BOX(&kd::leave_one_out_loss_op<kd::Cuda>));
  m.impl("peer_mixture", TORCH_BOX(&kd::peer_mixture_op<kd::Cuda>));
  m.impl("peer_mixture_backward", TORCH_BOX(&kd::peer_mixture_backward_op<kd::Cuda>));
  m.impl("scale_gradients_", TORCH_BOX(&kd::scale_gradients_op<kd::Cuda>));
}
