// The ops of the family on CPU tensors.
#include "cpu/memory_bank_kernel.h"

#include "cpu/torch_threads.h"
#include "memory_bank_op.h"

namespace kd {
namespace {

struct Cpu {
  static size_t workspace_bytes(const MemoryBank& problem) { return memory_bank_workspace_cpu(problem); }
  static size_t normalizer_workspace_bytes(const MemoryBank& problem) { return memory_bank_workspace_cpu(problem); }
  static void memory_bank_nce(const MemoryBank& problem, const Tensor&) { memory_bank_nce_cpu(problem, torch_threads); }
  static void memory_bank_normalizer(const MemoryBank& problem, const Tensor&) {
    memory_bank_normalizer_cpu(problem, torch_threads);
  }
};

}  // namespace
}  // namespace kd

STABLE_TORCH_LIBRARY_IMPL(kdkernels, CPU, m) {
  m.impl("memory_bank_nce", TORCH_BOX(&kd::memory_bank_nce_op<kd::Cpu>));
  m.impl("memory_bank_normalizer", TORCH_BOX(&kd::memory_bank_normalizer_op<kd::Cpu>));
}
