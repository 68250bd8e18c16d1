// The op of several heads on CUDA tensors.
#include "cuda/multi_head_kl.cuh"

#include "cuda/device.h"
#include "multi_head_kl_op.h"

namespace kd {
namespace {

struct Cuda {
  static void multi_head_kl(const MultiHeadKL& problem, const Tensor& like) {
    const torch::stable::accelerator::DeviceGuard guard(like.get_device_index());
    multi_head_kl_cuda(problem, compute_capability(like), current_stream(like));
  }
};

}  // namespace
}  // namespace kd

STABLE_TORCH_LIBRARY_IMPL(kdkernels, CUDA, m) { m.impl("multi_head_kl", TORCH_BOX(&kd::multi_head_kl_op<kd::Cuda>)); }
