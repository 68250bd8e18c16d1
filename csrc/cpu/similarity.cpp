// The ops of the family on CPU tensors.
#include "cpu/similarity_kernel.h"

#include "cpu/pages.h"
#include "similarity_op.h"

namespace kd {
namespace {

// libtorch's thread pool; not even entered for fewer than two grains.
void torch_threads(int64_t count, int64_t grain, const std::function<void(int64_t, int64_t)>& body) {
  if (count > grain) torch::stable::parallel_for(0, count, grain, body);
  else if (count > 0) body(0, count);
}

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
