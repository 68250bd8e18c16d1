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

}  // namespace kd
