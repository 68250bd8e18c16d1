// The ops of row losses on CUDA tensors.
#include "cuda/row_loss.cuh"

#include "cuda/device.h"
#include "cuda/scale_gradient.cuh"
#include "row_loss_op.h"

namespace kd {
namespace {

struct Cuda {
  static constexpr int64_t local_workspace = 1;  // none: the host's memory is not the device's

  static void row_loss(const RowLoss& problem, const Tensor& like) {
    const torch::stable::accelerator::DeviceGuard guard(like.get_device_index());
    const int sm = compute_capability(like);
    row_loss_cuda(problem, plan_problem(problem.after_statistics(), sm), sm, current_stream(like));
  }

  static void row_statistics(const RowLoss& problem, const Tensor& like) {
    const torch::stable::accelerator::DeviceGuard guard(like.get_device_index());
    row_statistics_cuda(problem, compute_capability(like), current_stream(like));
  }

  static void scale_gradient(const Rows& gradient, int64_t outer, int64_t classes, int64_t inner, const void* upstream,
                             Dtype upstream_dtype, bool per_row, const Tensor& like) {
    const torch::stable::accelerator::DeviceGuard guard(like.get_device_index());
    scale_gradient_cuda(gradient, outer, classes, inner, upstream, upstream_dtype, per_row, current_stream(like));
  }
};

}  // namespace
}  // namespace kd

STABLE_TORCH_LIBRARY_IMPL(kdkernels, CUDA, m) { kd::implement_row_ops<kd::Cuda>(m); }
