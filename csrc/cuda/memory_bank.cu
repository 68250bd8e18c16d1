// The ops of the family on CUDA tensors.
#include "cuda/memory_bank.cuh"

#include "cuda/device.h"
#include "memory_bank_op.h"

namespace kd {
namespace {

struct Cuda {
  static size_t workspace_bytes(const MemoryBank& problem) { return bank_workspace_bytes(problem); }
  static size_t normalizer_workspace_bytes(const MemoryBank& problem) { return bank_normalizer_workspace_bytes(problem); }

  static void memory_bank_nce(const MemoryBank& problem, const Tensor& like) {
    const torch::stable::accelerator::DeviceGuard guard(like.get_device_index());
    memory_bank_nce_cuda(problem, current_stream(like));
  }

  static void memory_bank_normalizer(const MemoryBank& problem, const Tensor& like) {
    const torch::stable::accelerator::DeviceGuard guard(like.get_device_index());
    memory_bank_normalizer_cuda(problem, current_stream(like));
  }
};

}  // namespace
}  // namespace kd

STABLE_TORCH_LIBRARY_IMPL(kdkernels, CUDA, m) {
  m.impl("memory_bank_nce", TORCH_BOX(&kd::memory_bank_nce_op<kd::Cuda>));
  m.impl("memory_bank_normalizer", TORCH_BOX(&kd::memory_bank_normalizer_op<kd::Cuda>));
}
