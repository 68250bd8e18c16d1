#include "cuda/decoupled_rows.cuh"

#include "cuda/row_paths.h"

namespace kd {

void decoupled_rows_cuda(const RowLoss& problem, const RowPlan& plan, void* stream) {
  launch_decoupled_rows(problem, plan, stream);
}

}  // namespace kd
