#include "cuda/forward_rows.cuh"

#include "cuda/row_paths.h"

namespace kd {

void forward_rows_cuda(const RowLoss& problem, const RowPlan& plan, void* stream) { launch_forward_rows(problem, plan, stream); }

}  // namespace kd
