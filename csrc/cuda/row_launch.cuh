// Launches of the paths that keep a row in shared memory where it fits and read it again for every sweep otherwise.
#pragma once
#include "cuda/launch.h"
#include "cuda/row_storage.cuh"
#include "cuda/simt.cuh"
#include "cuda/team.cuh"
#include "row_loss.h"

namespace kd {
namespace {

using RowKernel = void (*)(RowLoss problem, int lanes);

// One of three kernels of a path. float64 is for checking, not for speed: it has one form.
inline void launch_rows(const RowLoss& problem, const RowPlan& plan, void* stream, RowKernel staged, RowKernel streamed,
                        RowKernel in_double) {
  const bool stays = plan.form == RowForm::held || plan.form == RowForm::staged;
  const RowKernel kernel = problem.is_double() ? in_double : stays ? staged : streamed;
  simt::launch_clusters(kernel, plan.blocks, plan.cluster, plan.threads, plan.shared_bytes, stream, problem, plan.lanes);
}

}  // namespace
}  // namespace kd
