// The ops of the family on CUDA tensors.
#include "cuda/similarity.cuh"

#include "cuda/device.h"
#include "similarity_op.h"

namespace kd {
namespace {

Tensor workspace(size_t bytes, const Tensor& like) {
  return allocate(like, ScalarType::Byte, {static_cast<int64_t>(bytes)});
}

struct Cuda {
  static void similarity(const Similarity& problem, const Tensor& like) {
    const torch::stable::accelerator::DeviceGuard guard(like.get_device_index());
    const int sm = compute_capability(like);
    const SimilarityPlan plan = plan_problem(problem, sm);
    const Tensor memory = workspace(workspace_bytes(problem, plan), like);
    similarity_cuda(problem, plan, memory.data_ptr(), sm, current_stream(like));
  }

  static void similarity_rank(const SimilarityRank& problem, const Tensor& like) {
    const torch::stable::accelerator::DeviceGuard guard(like.get_device_index());
    const Tensor memory = workspace(workspace_bytes(problem), like);
    similarity_rank_cuda(problem, memory.data_ptr(), compute_capability(like), current_stream(like));
  }
};

}  // namespace
}  // namespace kd

STABLE_TORCH_LIBRARY_IMPL(kdkernels, CUDA, m) {
  m.impl("similarity_loss", TORCH_BOX(&kd::similarity_loss_op<kd::Cuda>));
  m.impl("similarity_rank", TORCH_BOX(&kd::similarity_rank_op<kd::Cuda>));
}
