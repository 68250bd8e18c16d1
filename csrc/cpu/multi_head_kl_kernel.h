// The CPU kernel of several heads, on plain pointers: used by the op library and, on NumPy arrays, by kdkernels._host.
#pragma once
#include "cpu/threads.h"
#include "multi_head_kl.h"

namespace kd {

// Solves the problem. The result does not depend on how rows are split.
void multi_head_kl_cpu(const MultiHeadKL& problem, const ParallelFor& parallel_for);

}  // namespace kd
