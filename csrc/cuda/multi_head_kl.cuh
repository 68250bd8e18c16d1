// Forward KL of several heads on the GPU, in one launch: the rows of all of them, and the sum of their losses.
//
// Blocks are dealt out to the heads by a table among the kernel's parameters. A row is solved as on the forward path
// (cuda/forward_row.cuh), kept where the widest row of the launch can be kept: in the registers of a few lanes, as many as
// its head needs, where all heads are narrow, and else in the shared memory of a block or a cluster. The block that finishes last
// adds up the row losses. Which block that is differs from run to run, the order of its sums does not: nothing but a counter
// of blocks is atomic. A launch takes most_heads heads; more of them take several, each of which adds to the loss.
#pragma once
#include <algorithm>
#include <cmath>

#include "cuda/forward_row.cuh"
#include "cuda/launch.h"
#include "cuda/row_storage.cuh"
#include "cuda/simt.cuh"
#include "cuda/team.cuh"
#include "multi_head_kl.h"
#include "row_loss.h"

namespace kd {
namespace {

// Kernels have 4 KiB of parameters.
constexpr int most_heads = 16;

// What differs between the heads of a launch.
struct HeadEntry {
  Rows student, teacher, grad_student;
  int64_t outer, middle, classes;
  double weight;           // weight_i, where there is no tensor of them
  void* unit_student;
  void* row_losses;
  int64_t first_block;     // of the head's own
  int64_t teams_before;    // in the blocks before that: numbers of rows begin with it
  int lanes;               // threads that share a row, where these are lanes of a warp
};

struct HeadTable {
  HeadEntry heads[most_heads];
  int count;
  int64_t rows;
  double temperature;
  double denominator;          // a number, > 0
  const double* denominators;  // one number on the device, replaces it
  const void* weights;         // [count], A
  void* loss;                  // one number, A
  void* parts;                 // [count], A
  int* finished_blocks;        // 0 before the launch
  bool adds;                   // to what stands in `loss`
};
static_assert(sizeof(HeadTable) <= 4096, "the parameters of a kernel");

// The head that this block belongs to.
KD_DEVICE int head_of_block(const HeadTable& table) {
  int head = 0;
  while (head + 1 < table.count && simt::block_index() >= table.heads[head + 1].first_block) ++head;
  return head;
}

template <class A>
KD_DEVICE double head_weight(const HeadTable& table, int head) {
  return table.weights ? valid_weight(static_cast<double>(static_cast<const A*>(table.weights)[head])) : table.heads[head].weight;
}

KD_DEVICE double head_denominator(const HeadTable& table) {
  return table.denominators ? valid_denominator(*table.denominators) : table.denominator;
}

template <class A>
KD_DEVICE RowLoss head_problem(const HeadTable& table, int head) {
  const HeadEntry& entry = table.heads[head];
  RowLoss problem;
  problem.outer = entry.outer;
  problem.middle = entry.middle;
  problem.classes = problem.teacher_classes = entry.classes;
  problem.student = entry.student;
  problem.teacher = entry.teacher;
  problem.grad_student = entry.grad_student;
  problem.unit_student = entry.unit_student;
  problem.row_losses = entry.row_losses;
  problem.soft.temperature = table.temperature;
  problem.soft.weight = head_weight<A>(table, head) / head_denominator(table);
  problem.reduction = Reduction::sum;
  return problem;
}

// Whether this block is the last of the grid to call this. If so, all its threads see what the other blocks wrote before.
KD_DEVICE bool is_last_block(int* finished_blocks) {
  KD_SHARED(int, finished, 1);
  simt::fence();
  simt::sync_threads();
  if (simt::thread_index() == 0) finished[0] = simt::count_up(finished_blocks);
  simt::sync_threads();
  simt::fence();
  return finished[0] == simt::grid_blocks() - 1;
}

// Heads and loss from the row losses, by one block: in float64, in an order that its size alone decides on.
template <class A>
KD_DEVICE void reduce_heads(const HeadTable& table) {
  constexpr int together = 4;  // heads, whose loads are in flight at the same time
  const BlockTeam<double> team;
  const double denominator = head_denominator(table);
  double loss = table.adds ? static_cast<double>(*static_cast<const A*>(table.loss)) : 0.0;
  for (int first = 0; first < table.count; first += together) {
    double sums[together] = {};
    for (int64_t row = team.rank(); row < table.rows; row += team.size())
      KD_UNROLL for (int j = 0; j < together; ++j)
        if (first + j < table.count) sums[j] += static_cast<double>(static_cast<const A*>(table.heads[first + j].row_losses)[row]);
    team.sum(sums);
    if (team.rank() != 0) continue;
    KD_UNROLL for (int j = 0; j < together; ++j) {
      if (first + j >= table.count) continue;
      const double head = sums[j] / denominator;
      static_cast<A*>(table.parts)[first + j] = static_cast<A>(head);
      loss += weighted_head(head_weight<A>(table, first + j), head);
    }
  }
  if (team.rank() == 0) *static_cast<A*>(table.loss) = static_cast<A>(loss);
}

// --- Kernels -----------------------------------------------------------------------------------------------------------

// Four blocks are on a multiprocessor, as on the forward path; in float64 as many as registers allow.
template <class A, class Storage>
KD_KERNEL void KD_LAUNCH_BOUNDS(small_block, sizeof(A) == sizeof(float) ? 4 : 1) head_lanes_kernel(HeadTable table) {
  const int head = head_of_block(table);
  LaneTeam team(table.heads[head].lanes);
  const RowLoss problem = head_problem<A>(table, head);
  solve_forward_row<A, LaneTeam, Storage>(problem, team.row() - table.heads[head].teams_before, team);
  if (is_last_block(table.finished_blocks)) reduce_heads<A>(table);
}

template <class A, class Storage>
KD_KERNEL void KD_LAUNCH_BOUNDS(largest_block, 1) head_clusters_kernel(HeadTable table) {
  const int head = head_of_block(table);
  ClusterTeam team;
  const RowLoss problem = head_problem<A>(table, head);
  solve_forward_row<A, ClusterTeam, Storage>(problem, team.row() - table.heads[head].teams_before, team);
  team.end();
  if (is_last_block(table.finished_blocks)) reduce_heads<A>(table);
}

// --- Launchers ---------------------------------------------------------------------------------------------------------

inline bool has_unit_stride(const RowLoss& head) { return head.student.class_stride == 1 && head.teacher.class_stride == 1; }

// Of the widest row of these heads, where each tensor has the largest elements that any head has, without its blocks.
inline RowPlan plan_widest(const RowLoss* heads, int count, bool is_double, int sm) {
  int64_t classes = 0;
  int student_size = 0, teacher_size = 0;
  bool unit_stride = true;
  for (const RowLoss* head = heads; head < heads + count; ++head) {
    classes = std::max(classes, head->classes);
    student_size = std::max(student_size, element_size(head->student.dtype));
    teacher_size = std::max(teacher_size, element_size(head->teacher.dtype));
    unit_stride = unit_stride && has_unit_stride(*head);
  }
  return plan_rows(RowPath::forward, heads->rows(), classes, student_size, teacher_size, is_double, unit_stride, sm);
}

// Threads that share a row of a head where `widest` has one or more rows per warp.
inline int head_lanes(const RowLoss& head, const RowPlan& widest, bool is_double) {
  if (widest.form == RowForm::held) return plan_rows(RowPath::forward, 1, head.classes, 4, 4, false, true, 90).lanes;
  return is_double || has_unit_stride(head) ? simt::warp_threads : 1;
}

// One launch: `count` heads from number `first` on.
inline void launch_heads(const MultiHeadKL& problem, int first, int count, const RowPlan& widest, void* stream) {
  const bool in_lanes = widest.form == RowForm::held || widest.form == RowForm::strided;
  const int64_t rows = problem.rows(), size = problem.is_double ? sizeof(double) : sizeof(float);
  HeadTable table{};
  table.count = count;
  table.rows = rows;
  table.temperature = problem.heads[0].soft.temperature;
  table.denominator = problem.denominator > 0 ? problem.denominator : static_cast<double>(std::max<int64_t>(rows, 1));
  table.denominators = problem.denominators;
  table.weights = problem.weights ? static_cast<const char*>(problem.weights) + first * size : nullptr;
  table.loss = problem.loss;
  table.parts = static_cast<char*>(problem.parts) + first * size;
  table.finished_blocks = problem.finished_blocks;
  table.adds = first > 0;
  int64_t blocks = 0;
  for (int i = 0; i < count; ++i) {
    const RowLoss& head = problem.heads[first + i];
    const int lanes = in_lanes ? head_lanes(head, widest, problem.is_double) : widest.lanes;
    const int64_t rows_per_block = in_lanes ? widest.threads / lanes : 1;
    table.heads[i] = {head.student, head.teacher, head.grad_student, head.outer, head.middle, head.classes, head.soft.weight,
                      head.unit_student, head.row_losses, blocks,
                      in_lanes ? blocks * rows_per_block : blocks / widest.cluster, lanes};
    blocks += in_lanes ? parts_of(rows, rows_per_block) : rows * widest.cluster;
  }
  blocks = std::max<int64_t>(blocks, widest.cluster);  // without rows one is left, to write the loss
  simt::zero(table.finished_blocks, sizeof(int), stream);
  const auto launch = [&](auto kernel) {
    simt::launch_clusters(kernel, blocks, widest.cluster, widest.threads, widest.shared_bytes, stream, table);
  };
  if (problem.is_double) return launch(head_lanes_kernel<double, Streamed<double>>);
  switch (widest.form) {
    case RowForm::held: return launch(head_lanes_kernel<float, Held<float, held_chunks>>);
    case RowForm::staged: return launch(head_clusters_kernel<float, Staged<float>>);
    case RowForm::streamed: return launch(head_clusters_kernel<float, Streamed<float>>);
    case RowForm::strided: return launch(head_lanes_kernel<float, Streamed<float>>);
  }
}

inline void multi_head_kl_cuda(const MultiHeadKL& problem, int sm, void* stream) {
  const int heads = static_cast<int>(problem.heads.size());
  for (int first = 0; first < heads; first += most_heads) {
    const int count = std::min(heads - first, most_heads);
    launch_heads(problem, first, count, plan_widest(&problem.heads[first], count, problem.is_double, sm), stream);
  }
}

}  // namespace
}  // namespace kd
