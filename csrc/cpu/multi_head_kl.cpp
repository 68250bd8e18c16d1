// The op of several heads on CPU tensors.
#include "cpu/multi_head_kl_kernel.h"

#include "cpu/pages.h"
#include "cpu/torch_threads.h"
#include "multi_head_kl_op.h"

namespace kd {
namespace {

struct Cpu {
  static void multi_head_kl(const MultiHeadKL& problem, const Tensor&) {
    for (const RowLoss& head : problem.heads) {
      const Rows& gradient = head.grad_student;
      if (gradient.data) prefer_huge_pages(gradient.data, head.rows() * head.classes * element_size(gradient.dtype));
    }
    multi_head_kl_cpu(problem, torch_threads);
  }
};

}  // namespace
}  // namespace kd

STABLE_TORCH_LIBRARY_IMPL(kdkernels, CPU, m) { m.impl("multi_head_kl", TORCH_BOX(&kd::multi_head_kl_op<kd::Cpu>)); }
