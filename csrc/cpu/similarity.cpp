// The ops of the family on CPU tensors.
#include "cpu/similarity_kernel.h"

#include "cpu/pages.h"
#include "cpu/torch_threads.h"
#include "similarity_op.h"

namespace kd {
namespace {

struct Cpu {
  static void similarity(const Similarity& problem, const Tensor&) {
    for (const Features& gradient : {problem.grad_query, problem.grad_key})
      if (gradient.data) prefer_huge_pages(gradient.data, gradient.rows * gradient.width * element_size(gradient.dtype));
    similarity_cpu(problem, torch_threads);
  }

  static void similarity_rank(const SimilarityRank& problem, const Tensor&) { similarity_rank_cpu(problem, torch_threads); }
};

}  // namespace
}  // namespace kd

STABLE_TORCH_LIBRARY_IMPL(kdkernels, CPU, m) {
  m.impl("similarity_loss", TORCH_BOX(&kd::similarity_loss_op<kd::Cpu>));
  m.impl("similarity_rank", TORCH_BOX(&kd::similarity_rank_op<kd::Cpu>));
}
