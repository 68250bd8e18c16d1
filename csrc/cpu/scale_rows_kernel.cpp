// Gradients of row losses times the upstream gradient, on all threads: cpu/scale_rows-inl.h, for each instruction set.
#define KD_ISA_SOURCE "cpu/scale_rows-inl.h"
#include "cpu/each_isa.h"

#include <algorithm>

#include "cpu/row_loss_kernel.h"

namespace kd {

void scale_gradient_cpu(const Rows& gradient, int64_t outer, int64_t classes, int64_t inner, const void* upstream,
                        Dtype upstream_dtype, bool per_row, const ParallelFor& parallel_for) {
  const bool is_double = upstream_dtype == Dtype::float64;
  if (!per_row && (is_double ? *static_cast<const double*>(upstream) == 1.0 : *static_cast<const float*>(upstream) == 1.0f))
    return;
  const int64_t grain = std::max<int64_t>(1, grain_elements / classes);
  parallel_for(outer * inner, grain, [&](int64_t begin, int64_t end) {
    KD_CALL_ISA(scale_rows, gradient, classes, inner, upstream, upstream_dtype, per_row, begin, end);
  });
}

}  // namespace kd
