#include "cuda/label_rows.cuh"

#include "cuda/row_paths.h"

namespace kd {

void label_rows_cuda(const RowLoss& problem, const RowPlan& plan, void* stream) { launch_label_rows(problem, plan, stream); }

}  // namespace kd
