// The rows of each path: cuda/PATH_rows.cu. `plan`: that of the path (launch.h).
#pragma once
#include "cuda/launch.h"
#include "row_loss.h"

namespace kd {

void forward_rows_cuda(const RowLoss& problem, const RowPlan& plan, void* stream);
void general_rows_cuda(const RowLoss& problem, const RowPlan& plan, void* stream);
void label_rows_cuda(const RowLoss& problem, const RowPlan& plan, void* stream);
void permuted_rows_cuda(const RowLoss& problem, const RowPlan& plan, void* stream);
void adjusted_rows_cuda(const RowLoss& problem, const RowPlan& plan, void* stream);
void decoupled_rows_cuda(const RowLoss& problem, const RowPlan& plan, void* stream);

// The one place that tells the paths apart.
inline void launch_path(const RowLoss& problem, const RowPlan& plan, void* stream) {
  switch (path_of(problem)) {
    case RowPath::forward: return forward_rows_cuda(problem, plan, stream);
    case RowPath::general: return general_rows_cuda(problem, plan, stream);
    case RowPath::label: return label_rows_cuda(problem, plan, stream);
    case RowPath::permuted: return permuted_rows_cuda(problem, plan, stream);
    case RowPath::adjusted: return adjusted_rows_cuda(problem, plan, stream);
    case RowPath::decoupled: return decoupled_rows_cuda(problem, plan, stream);
  }
}

}  // namespace kd
