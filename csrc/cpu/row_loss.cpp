// The ops of row losses on CPU tensors.
#include "cpu/row_loss_kernel.h"

#include "cpu/isa.h"
#include "cpu/pages.h"
#include "cpu/torch_threads.h"
#include "row_loss_op.h"

namespace kd {
namespace {

struct Cpu {
  static constexpr int64_t local_workspace = 1024;  // int64 on the stack: allocating takes as long as a small problem

  static void row_loss(const RowLoss& problem, const Tensor&) {
    const auto prefer = [&](const Rows& gradient, int64_t classes) {
      if (gradient.data) prefer_huge_pages(gradient.data, problem.rows() * classes * element_size(gradient.dtype));
    };
    prefer(problem.grad_student, problem.classes);
    prefer(problem.grad_teacher, problem.teacher_width());
    row_loss_cpu(problem, torch_threads);
  }

  static void row_statistics(const RowLoss& problem, const Tensor&) { row_statistics_cpu(problem, torch_threads); }

  static void scale_gradient(const Rows& gradient, int64_t outer, int64_t classes, int64_t inner, const void* upstream,
                             Dtype upstream_dtype, bool per_row, const Tensor&) {
    scale_gradient_cpu(gradient, outer, classes, inner, upstream, upstream_dtype, per_row, torch_threads);
  }
};

std::string cpu_isa() { return isa_name(isa_in_use()); }
void set_cpu_isa(std::string name) { set_isa(name); }

}  // namespace
}  // namespace kd

STABLE_TORCH_LIBRARY_IMPL(kdkernels, CPU, m) { kd::implement_row_ops<kd::Cpu>(m); }

STABLE_TORCH_LIBRARY_IMPL(kdkernels, CompositeExplicitAutograd, m) {
  m.impl("cpu_isa", TORCH_BOX(&kd::cpu_isa));
  m.impl("set_cpu_isa", TORCH_BOX(&kd::set_cpu_isa));
}
