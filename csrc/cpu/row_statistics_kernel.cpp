// The first pass of the row losses on the CPU: cpu/row_statistics-inl.h, for each instruction set, on all threads.
#define KD_ISA_SOURCE "cpu/row_statistics-inl.h"
#include "cpu/each_isa.h"

#include "cpu/row_loss_kernel.h"
#include "cpu/row_ranges.h"

namespace kd {

void row_statistics_cpu(const RowLoss& problem, const ParallelFor& parallel_for) {
  check_labels(problem);
  each_range(problem, base::scratch_numbers(problem), parallel_for, [&](int64_t begin, int64_t end, void* scratch) {
    if (problem.is_double()) KD_CALL_ISA(row_statistics_double, problem, begin, end, scratch);
    else KD_CALL_ISA(row_statistics_float, problem, begin, end, scratch);
  });
}

}  // namespace kd
