#include "cuda/general_rows.cuh"

#include "cuda/row_paths.h"

namespace kd {

void general_rows_cuda(const RowLoss& problem, const RowPlan& plan, void* stream) { launch_general_rows(problem, plan, stream); }

}  // namespace kd
