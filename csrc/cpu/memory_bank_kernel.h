// The CPU kernels of the family, on plain pointers: used by the op library and, on NumPy arrays, by kdkernels._host.
#pragma once
#include "cpu/threads.h"
#include "memory_bank.h"

namespace kd {

// Of problem.workspace: a double per row.
inline size_t memory_bank_workspace_cpu(const MemoryBank& problem) {
  return static_cast<size_t>(problem.rows()) * sizeof(double);
}

// Loss, positives and gradient, given Z; std::invalid_argument for an index that is none. A row is summed by one thread in
// the order of its columns: the result does not depend on how rows are split.
void memory_bank_nce_cpu(const MemoryBank& problem, const ParallelFor& parallel_for);

// Z alone: the known one, unless that is NaN.
void memory_bank_normalizer_cpu(const MemoryBank& problem, const ParallelFor& parallel_for);

}  // namespace kd
