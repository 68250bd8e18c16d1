#include "cuda/permuted_rows.cuh"

#include "cuda/row_paths.h"

namespace kd {

void permuted_rows_cuda(const RowLoss& problem, const RowPlan& plan, void* stream) { launch_permuted_rows(problem, plan, stream); }

}  // namespace kd
