// Memory bank NCE on the GPU: loss and gradient in one visit to each entry.
//
//     scores    a block per row and share of its columns; some lanes of a warp per entry, which they hold in registers from
//               the inner product to the weighted sum: memory is read once, by 16-byte loads where rows are aligned
//     rows      the shares of a row are added: its loss and gradient
//     loss      the rows are
//
// Without Z a like sweep adds exponentials first; where Z is known its blocks find that out and leave. Rows too wide for the
// registers of a warp are summed piece by piece, by blocks that compute all scores again. No atomics: every sum has a fixed
// order. A device cannot raise: an index out of range makes its row NaN, and a Z that is computed from that row.
#pragma once
#include <type_traits>

#include "cuda/chunk.cuh"
#include "cuda/launch.h"
#include "cuda/math.cuh"
#include "cuda/simt.cuh"
#include "cuda/team.cuh"
#include "elements.h"
#include "memory_bank.h"

namespace kd {
namespace {

// Four warps: eight entries of 128 features side by side, and blocks small enough to fill the last wave.
constexpr int bank_threads = 128;
// 64 entries in a row per team at 128 features: a thread adds few numbers one after another, 64 rows of 16,385 columns make
// 2,112 blocks, and the sums of the shares are 1/256 of the entries read.
constexpr int64_t bank_columns = 512;
// 4 * 8 features and as many sums and numbers of an entry are 96 of 255 registers.
constexpr int most_bank_chunks = 4;

struct BankPlan {
  int lanes;         // threads that share an entry, a power of two
  int chunks;        // of 8 features, that each of them holds
  int64_t splits;    // shares of a row's columns
  int64_t segments;  // pieces of a row's width

  KD_HOST_DEVICE constexpr int64_t segment_chunks() const { return static_cast<int64_t>(lanes) * chunks; }
  KD_HOST_DEVICE constexpr int64_t segment_width() const { return segment_chunks() * chunk_classes; }
};

constexpr BankPlan plan_bank(int64_t columns, int64_t width) {
  const int64_t chunks = parts_of(width, chunk_classes), all = simt::warp_threads;
  BankPlan plan{simt::warp_threads, chunks > all ? most_bank_chunks : 1, parts_of(columns, bank_columns), 1};
  if (chunks <= all) plan.lanes = next_power_of_two(chunks);
  plan.segments = parts_of(chunks, plan.segment_chunks());
  return plan;
}

// What the kernels leave for each other.
template <class A>
struct BankWorkspace {
  double* row_losses;  // [B]
  A* share_losses;     // [B, splits]
  A* share_sums;       // [B, splits, d]: weighted sums of entries

  KD_HOST_DEVICE BankWorkspace(const MemoryBank& problem, const BankPlan& plan)
      : row_losses(static_cast<double*>(problem.workspace)),
        share_losses(reinterpret_cast<A*>(row_losses + problem.rows())),
        share_sums(share_losses + problem.rows() * plan.splits) {}
};

inline size_t bank_workspace_bytes(const MemoryBank& problem) {
  const BankPlan plan = plan_bank(problem.columns, problem.width());
  const int64_t numbers = problem.rows() * plan.splits * ((problem.grad_embedding.data ? problem.width() : 0) + 1);
  return static_cast<size_t>(problem.rows()) * sizeof(double) +
         static_cast<size_t>(numbers) * (problem.is_double() ? sizeof(double) : sizeof(float));
}

inline size_t bank_normalizer_workspace_bytes(const MemoryBank& problem) {
  const BankPlan plan = plan_bank(problem.columns, problem.width());
  return static_cast<size_t>(problem.rows() * plan.splits) * sizeof(double);
}

// A chunk of a row of features; zeros beyond its end, and for all of it where `exists` is false.
template <class A, class T>
KD_DEVICE void read_features(const Features& features, T*, int64_t row, int64_t chunk, bool exists,
                             A (&to)[chunk_classes]) {
  T numbers[chunk_classes];
  const T* from = static_cast<const T*>(features.data) + (exists ? row * features.stride : 0);
  const Chunk neighbours{static_cast<int>(chunk) * chunk_classes, 1};
  read_chunk(from, 1, neighbours, exists ? static_cast<int>(features.width) : 0, T(0), numbers);
  from_bits(numbers, features.dtype, to);
}

template <class A>
KD_DEVICE A dot(const A (&x)[chunk_classes], const A (&y)[chunk_classes]) {
  A sum = 0;
  KD_UNROLL for (int e = 0; e < chunk_classes; ++e) sum += x[e] * y[e];
  return sum;
}

// A block's row, share of its columns, and piece of its width.
struct BankBlock {
  int64_t row, split, segment;
  int64_t begin, end;  // columns

  KD_DEVICE BankBlock(const MemoryBank& problem, const BankPlan& plan, int64_t segments) {
    segment = simt::block_index() % segments;
    split = simt::block_index() / segments % plan.splits;
    row = simt::block_index() / segments / plan.splits;
    begin = split * bank_columns;
    end = begin + bank_columns < problem.columns ? begin + bank_columns : problem.columns;
  }
};

// body(column, product, entry) for every column of this block's that is this team's: the inner product of entry and
// embedding, NaN where the index is none, and the chunks of the entry that this thread holds.
template <class A, int chunks, class Body>
KD_DEVICE void each_entry(const MemoryBank& problem, const BankPlan& plan, const BankBlock& block, const LaneTeam& team,
                          const Body& body) {
  constexpr int in_flight = most_bank_chunks / chunks;  // entries a thread loads before it looks at the first
  const int64_t first_chunk = block.segment * plan.segment_chunks(), last_chunk = first_chunk + plan.segment_chunks();
  const int64_t all_chunks = parts_of(problem.width(), chunk_classes);
  const int teams = simt::block_threads() / team.size(), number = simt::thread_index() / team.size();
  A embedding[chunks][chunk_classes];
  with_bits<A>(problem.embedding.dtype, [&](auto* type) {
    KD_UNROLL for (int k = 0; k < chunks; ++k)
      read_features(problem.embedding, type, block.row, first_chunk + team.rank() + k * team.size(), true, embedding[k]);
  });

  // As many rounds for all teams: they sum together. From the last on, so that the positive, whose weight is far the largest,
  // is added to the sum of many small ones and not they to it, each rounded alike.
  const int64_t columns = teams * in_flight;
  for (int64_t round = parts_of(block.end - block.begin, columns) - 1; round >= 0; --round) {
    const int64_t first = block.begin + round * columns;
    int64_t id[in_flight];
    KD_UNROLL for (int j = 0; j < in_flight; ++j) {
      const int64_t column = first + j * teams + number;
      id[j] = column < block.end ? problem.index[block.row * problem.columns + column] : -1;
    }
    A entry[in_flight][chunks][chunk_classes], product[in_flight];
    with_bits<A>(problem.bank.dtype, [&](auto* type) {
      KD_UNROLL for (int j = 0; j < in_flight; ++j)
        KD_UNROLL for (int k = 0; k < chunks; ++k)
          read_features(problem.bank, type, id[j], first_chunk + team.rank() + k * team.size(), problem.has_entry(id[j]),
                        entry[j][k]);
    });
    KD_UNROLL for (int j = 0; j < in_flight; ++j) {
      product[j] = 0;
      KD_UNROLL for (int k = 0; k < chunks; ++k) product[j] += dot(entry[j][k], embedding[k]);
    }
    if (plan.segments > 1) {
      for (int64_t chunk = team.rank(); chunk < all_chunks; chunk += team.size()) {
        if (chunk >= first_chunk && chunk < last_chunk) continue;
        A x[chunk_classes], y[chunk_classes];
        with_bits<A>(problem.embedding.dtype,
                     [&](auto* type) { read_features(problem.embedding, type, block.row, chunk, true, x); });
        KD_UNROLL for (int j = 0; j < in_flight; ++j) {
          with_bits<A>(problem.bank.dtype, [&](auto* type) {
            read_features(problem.bank, type, id[j], chunk, problem.has_entry(id[j]), y);
          });
          product[j] += dot(x, y);
        }
      }
    }
    team.sum(product);
    KD_UNROLL for (int j = in_flight - 1; j >= 0; --j) {
      const int64_t column = first + j * teams + number;
      if (column < block.end) body(column, problem.has_entry(id[j]) ? product[j] : A(NAN), entry[j]);
    }
  }
}

// The sum over the teams of a warp, whose lanes hold like parts; all threads get it.
template <class A, int count>
KD_DEVICE void sum_teams(const LaneTeam& team, A (&values)[count]) {
  for (int mask = team.size(); mask < simt::warp_threads; mask *= 2)
    KD_UNROLL for (int j = 0; j < count; ++j) values[j] += simt::shuffle_xor(values[j], mask);
}

template <class A, int chunks>
KD_KERNEL void KD_LAUNCH_BOUNDS(bank_threads) bank_scores_kernel(MemoryBank problem, BankPlan plan, A log_noise) {
  const BankBlock block(problem, plan, plan.segments);
  const LaneTeam team(plan.lanes);
  const bool wants_gradient = problem.grad_embedding.data;
  const A log_normalizer = log(*static_cast<const A*>(problem.normalizer));
  const A offset = log_normalizer + log_noise, inverse_temperature = A(1) / static_cast<A>(problem.temperature);
  A sum[chunks][chunk_classes] = {};
  A loss[1] = {0};
  each_entry<A, chunks>(problem, plan, block, team,
                        [&](int64_t column, A product, const A(&entry)[chunks][chunk_classes]) {
    const A score = product * inverse_temperature;
    const bool is_positive = column == 0;
    if (is_positive && block.segment == 0 && team.rank() == 0)
      static_cast<A*>(problem.positive)[block.row] = exp(score - log_normalizer);
    const A u = is_positive ? offset - score : score - offset;
    const A decay = exp(u > A(0) ? -u : u), share = A(1) / (A(1) + decay);
    loss[0] += log1p(decay) + (u > A(0) ? u : A(0));
    const A sigmoid = u > A(0) ? share : decay * share, weight = is_positive ? -sigmoid : sigmoid;
    KD_UNROLL for (int k = 0; k < chunks; ++k)
      KD_UNROLL for (int e = 0; e < chunk_classes; ++e) sum[k][e] += weight * entry[k][e];
  });

  sum_teams(team, loss);
  KD_UNROLL for (int k = 0; k < chunks; ++k) sum_teams(team, sum[k]);

  // Over the warps: [warps, segment width], then [warps] losses.
  A* shared = simt::dynamic_shared<A>();
  const int warps = simt::block_threads() / simt::warp_threads, lane = simt::lane_index();
  const int64_t width = plan.segment_width();
  if (lane < team.size())
    KD_UNROLL for (int k = 0; k < chunks; ++k)
      KD_UNROLL for (int e = 0; e < chunk_classes; ++e)
        shared[simt::warp_index() * width + (lane + k * team.size()) * chunk_classes + e] = sum[k][e];
  if (lane == 0) shared[warps * width + simt::warp_index()] = loss[0];
  simt::sync_threads();
  const BankWorkspace<A> workspace(problem, plan);
  const int64_t share_number = block.row * plan.splits + block.split;
  for (int64_t i = simt::thread_index(); wants_gradient && i < width; i += simt::block_threads()) {
    const int64_t feature = block.segment * width + i;
    if (feature >= problem.width()) break;
    A total = 0;
    for (int warp = 0; warp < warps; ++warp) total += shared[warp * width + i];
    workspace.share_sums[share_number * problem.width() + feature] = total;
  }
  if (simt::thread_index() != 0 || block.segment != 0) return;
  A total = 0;
  for (int warp = 0; warp < warps; ++warp) total += shared[warps * width + warp];
  workspace.share_losses[share_number] = total;
}

// The shares of a row, in their order. A block per row.
template <class A>
KD_KERNEL void KD_LAUNCH_BOUNDS(bank_threads)
    bank_rows_kernel(MemoryBank problem, BankPlan plan, double eps_loss, double row_share) {
  const BankWorkspace<A> workspace(problem, plan);
  const int64_t row = simt::block_index(), width = problem.width();
  if (problem.grad_embedding.data) {
    const A scale = static_cast<A>(row_share / problem.temperature);
    with_dtype(problem.grad_embedding.dtype, [&](auto* type) {
      auto* to = static_cast<decltype(type)>(problem.grad_embedding.data) + row * problem.grad_embedding.stride;
      for (int64_t i = simt::thread_index(); i < width; i += simt::block_threads()) {
        A sum = 0;
        for (int64_t split = 0; split < plan.splits; ++split)
          sum += workspace.share_sums[(row * plan.splits + split) * width + i];
        from_arithmetic(sum * scale, to + i);
      }
    });
  }
  if (simt::thread_index() != 0) return;
  double loss = eps_loss;
  for (int64_t split = 0; split < plan.splits; ++split)
    loss += static_cast<double>(workspace.share_losses[row * plan.splits + split]);
  if (problem.reduction == Reduction::none) static_cast<A*>(problem.loss)[row] = static_cast<A>(loss);
  else workspace.row_losses[row] = loss;
}

// The rows, in a fixed order. One block.
template <class A>
KD_KERNEL void KD_LAUNCH_BOUNDS(reduce_threads) bank_loss_kernel(MemoryBank problem, double row_share) {
  const BlockTeam<double> team;
  double sum[1] = {0};
  for (int64_t row = team.rank(); row < problem.rows(); row += team.size())
    sum[0] += static_cast<const double*>(problem.workspace)[row];
  team.sum(sum);
  if (team.rank() == 0) *static_cast<A*>(problem.loss) = static_cast<A>(sum[0] * row_share);
}

// --- Z -----------------------------------------------------------------------------------------------------------------

template <class A>
KD_DEVICE bool is_known(const MemoryBank& problem, A* known) {
  *known = problem.known_normalizer ? *static_cast<const A*>(problem.known_normalizer) : A(NAN);
  return *known == *known;
}

// The sum of exp(score / T) over a share of a row's columns, to workspace [B, splits].
template <class A, int chunks>
KD_KERNEL void KD_LAUNCH_BOUNDS(bank_threads) bank_exponentials_kernel(MemoryBank problem, BankPlan plan) {
  A known;
  if (is_known(problem, &known)) return;
  const BankBlock block(problem, plan, 1);
  const LaneTeam team(plan.lanes);
  const A inverse_temperature = A(1) / static_cast<A>(problem.temperature);
  A sum[1] = {0};
  each_entry<A, chunks>(problem, plan, block, team, [&](int64_t, A product, const A(&)[chunks][chunk_classes]) {
    sum[0] += exp(product * inverse_temperature);
  });
  sum_teams(team, sum);
  KD_SHARED(A, shared, bank_threads / simt::warp_threads);
  if (simt::lane_index() == 0) shared[simt::warp_index()] = sum[0];
  simt::sync_threads();
  if (simt::thread_index() != 0) return;
  double total = 0;
  for (int warp = 0; warp < simt::block_threads() / simt::warp_threads; ++warp) total += static_cast<double>(shared[warp]);
  static_cast<double*>(problem.workspace)[simt::block_index()] = total;
}

// `factor`: n / (number of scores). One block.
template <class A>
KD_KERNEL void KD_LAUNCH_BOUNDS(reduce_threads) bank_normalizer_kernel(MemoryBank problem, int64_t shares, double factor) {
  A known;
  if (is_known(problem, &known)) {
    if (simt::thread_index() == 0) *static_cast<A*>(problem.normalizer) = known;
    return;
  }
  const BlockTeam<double> team;
  double sum[1] = {0};
  for (int64_t i = team.rank(); i < shares; i += team.size()) sum[0] += static_cast<const double*>(problem.workspace)[i];
  team.sum(sum);
  if (team.rank() == 0) *static_cast<A*>(problem.normalizer) = static_cast<A>(sum[0] * factor);
}

// --- Launchers ---------------------------------------------------------------------------------------------------------

template <class A>
void launch_bank_nce(const MemoryBank& problem, void* stream) {
  const BankPlan plan = plan_bank(problem.columns, problem.width());
  const int warps = bank_threads / simt::warp_threads;
  const size_t shared_bytes = static_cast<size_t>(warps * (plan.segment_width() + 1)) * sizeof(A);
  const auto scores = plan.chunks == 1 ? bank_scores_kernel<A, 1> : bank_scores_kernel<A, most_bank_chunks>;
  simt::launch(scores, problem.rows() * plan.splits * plan.segments, bank_threads, shared_bytes, stream, problem, plan,
               static_cast<A>(problem.log_noise()));
  simt::launch(bank_rows_kernel<A>, problem.rows(), bank_threads, 0, stream, problem, plan, problem.eps_loss(),
               problem.row_share());
  if (problem.reduction != Reduction::none)
    simt::launch(bank_loss_kernel<A>, 1, reduce_threads, 0, stream, problem, problem.row_share());
}

template <class A>
void launch_bank_normalizer(const MemoryBank& problem, void* stream) {
  const BankPlan plan = plan_bank(problem.columns, problem.width());
  const int64_t shares = problem.rows() * plan.splits;
  const auto exponentials = plan.chunks == 1 ? bank_exponentials_kernel<A, 1> : bank_exponentials_kernel<A, most_bank_chunks>;
  simt::launch(exponentials, shares, bank_threads, 0, stream, problem, plan);
  simt::launch(bank_normalizer_kernel<A>, 1, reduce_threads, 0, stream, problem, shares, problem.normalizer_from(1));
}

inline void memory_bank_nce_cuda(const MemoryBank& problem, void* stream) {
  if (problem.is_double()) launch_bank_nce<double>(problem, stream);
  else launch_bank_nce<float>(problem, stream);
}

inline void memory_bank_normalizer_cuda(const MemoryBank& problem, void* stream) {
  if (problem.is_double()) launch_bank_normalizer<double>(problem, stream);
  else launch_bank_normalizer<float>(problem, stream);
}

}  // namespace
}  // namespace kd
