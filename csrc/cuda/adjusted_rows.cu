#include "cuda/adjusted_rows.cuh"

#include "cuda/row_paths.h"

namespace kd {

void adjusted_rows_cuda(const RowLoss& problem, const RowPlan& plan, void* stream) { launch_adjusted_rows(problem, plan, stream); }

}  // namespace kd
