// Every number the CUDA launches are tuned with, in constexpr functions and each with its reason. Plain C++: Python reads
// the plans through kdkernels._host.launch_plan, on machines without CUDA too.
#pragma once
#include <cstddef>
#include <cstdint>

#include "host_device.h"
#include "row_loss.h"

namespace kd {

KD_HOST_DEVICE constexpr int64_t parts_of(int64_t items, int64_t part) { return (items + part - 1) / part; }

// A thread moves rows in chunks of 8 neighbouring classes: 16 bytes in half precision, two 16-byte accesses in float32.
constexpr int chunk_classes = 8;

enum class RowForm : int {
  held,      // several rows per warp, or one: a row stays with its lanes, in registers (path forward) or in shared memory
  staged,    // a cluster of blocks per row, or one: the row in their shared memory
  streamed,  // a block per row: read again, from L2 where it is still there, for every sweep
  strided,   // a thread per row where classes are strided, else a warp: read again for every sweep
};

constexpr const char* form_names[] = {"held", "staged", "streamed", "strided"};

struct RowPlan {
  RowForm form;
  int lanes;             // threads that share a row
  int threads;           // of a block
  int64_t blocks;
  size_t shared_bytes;   // dynamic
  int cluster;           // blocks that share a row
};

// Chunks a thread holds in registers: 4 * 8 student and as many teacher logits are 64 of 255. Four loads per tensor in
// flight, and few enough lanes per row that a row of 100 classes needs only 4 of them.
constexpr int held_chunks = 4;

// Block of the forms with several rows per block: a last block wastes little, and 16 fill a multiprocessor.
constexpr int small_block = 128;
// 512 threads leave each 128 registers, which every kernel of blocks fits without spilling; 1,024 would leave 64.
constexpr int largest_block = 512;

// A row is dealt out to clusters of so many blocks that four of these fit on a multiprocessor: while one waits for its row,
// others compute. A GPU takes clusters of 8 without being asked.
constexpr size_t wanted_stage = 48 * 1024;
constexpr int most_cluster_blocks = 8;

// Rows that are so few that every block counts those of the batch by itself, rather than wait for a launch that does.
constexpr int64_t few_rows = 4096;

// Static plus dynamic shared memory of a block, after the opt-in.
constexpr size_t block_shared(int sm) {
  if (sm >= 120) return 99 * 1024;
  if (sm >= 90) return 227 * 1024;
  if (sm == 86 || sm == 89) return 99 * 1024;
  if (sm >= 80) return 163 * 1024;
  return 64 * 1024;
}

// Dynamic shared memory that plans use at most: 2 KiB are left for the static shared memory of the kernels.
constexpr size_t shared_limit(int sm) { return block_shared(sm) - 2 * 1024; }

constexpr int next_power_of_two(int64_t n) {
  int power = 1;
  while (power < n) power *= 2;
  return power;
}

// Chunks of a staged row that each of `team` threads has.
KD_HOST_DEVICE constexpr int staged_chunks(int64_t classes, int team) {
  return static_cast<int>(parts_of(classes, int64_t{team} * chunk_classes));
}

// The staged form; `bytes`: of a class in both tensors. Its shared memory may be more than there is.
constexpr RowPlan plan_staged(int64_t classes, int bytes, int threads, int cluster) {
  const size_t share = static_cast<size_t>(staged_chunks(classes, threads * cluster)) * threads * chunk_classes * bytes;
  return {RowForm::staged, threads * cluster, threads, 0, share, cluster};
}

// The classes that chunks are dealt out for: a wider teacher has a gradient of 0 beyond the classes that are compared.
KD_HOST_DEVICE int64_t chunked_classes(const RowLoss& problem) {
  const bool wider = problem.grad_teacher.data && problem.teacher_width() > problem.classes;
  return wider ? problem.teacher_width() : problem.classes;
}

// Shared memory of the held form: path forward needs none.
constexpr size_t held_shared(RowPath path, int64_t classes, int bytes, int lanes) {
  return path == RowPath::forward ? 0 : static_cast<size_t>(staged_chunks(classes, lanes)) * small_block * chunk_classes * bytes;
}

// `student_size`, `teacher_size`: bytes per element; 0: that tensor is not read. `unit_stride`: the classes of a row are
// neighbours in both tensors.
constexpr RowPlan plan_rows(RowPath path, int64_t rows, int64_t classes, int student_size, int teacher_size, bool is_double,
                            bool unit_stride, int sm) {
  const int64_t chunks = parts_of(classes, chunk_classes);
  const int bytes = student_size + teacher_size;
  RowPlan plan{RowForm::streamed, largest_block, largest_block, 0, 0, 1};
  if (!unit_stride) {
    plan = {RowForm::strided, 1, small_block, 0, 0, 1};  // neighbouring threads read neighbouring rows
  } else if (is_double) {
    plan = {RowForm::strided, 32, small_block, 0, 0, 1};  // float64 is for checking, not for speed: one form will do
  } else if (chunks <= 32 * held_chunks) {
    const int lanes = next_power_of_two(parts_of(chunks, held_chunks));
    plan = {RowForm::held, lanes, small_block, 0, held_shared(path, classes, bytes, lanes), 1};
  } else {
    int cluster = 1;
    while (sm >= 90 && cluster < most_cluster_blocks && chunks * chunk_classes * bytes > cluster * int64_t{wanted_stage})
      cluster *= 2;
    // At least four chunks per thread, so that their loads hide each other's latency.
    const int64_t share = parts_of(chunks, cluster);
    const int threads = share >= 2048 ? largest_block : share >= 1024 ? 256 : small_block;
    const RowPlan staged = plan_staged(classes, bytes, threads, cluster);
    if (staged.shared_bytes <= shared_limit(sm)) plan = staged;
  }
  plan.blocks = plan.cluster > 1 ? rows * plan.cluster : parts_of(rows, plan.threads / plan.lanes);
  return plan;
}

// --- Similarity --------------------------------------------------------------------------------------------------------

constexpr int similarity_tile = 128;  // queries, keys or features of a block

struct SimilarityPlan {
  int row_shares;        // blocks that share the keys of a tile of queries
  int column_shares;     // `symmetric`: blocks that share the queries of a tile of keys
  int64_t band_rows;     // queries whose gradients by similarity are in memory at a time
  int band_bytes;        // of one of them
  int product_shares;    // blocks that share the keys of a tile of the query gradient
};

// Four blocks for each multiprocessor of a large GPU: with few tiles of rows, several blocks share one.
constexpr int64_t wanted_blocks = 4 * 132;
constexpr int shares_of(int64_t blocks, int64_t tiles) {
  const int64_t shares = wanted_blocks / (blocks > 0 ? blocks : 1), most = tiles > 0 ? tiles : 1;
  return static_cast<int>(shares < 1 ? 1 : shares < most ? shares : most);
}

constexpr SimilarityPlan plan_similarity(int64_t queries, int64_t keys, int64_t width, int band_bytes) {
  const auto tiles = [](int64_t count) { return parts_of(count, similarity_tile); };
  // A band as large as the features in half precision, or 16 MiB; shares of the query gradient half of that. No memory grows
  // with the product of the sizes.
  const int64_t features = (queries + keys) * width * 2, least = int64_t(16) << 20;
  const int64_t budget = features > least ? features : least, row_bytes = (keys > 0 ? keys : 1) * band_bytes;
  const int64_t fitting = budget / (row_bytes * similarity_tile), all = tiles(queries);
  const int64_t smaller = fitting < all ? fitting : all, band_tiles = smaller < 1 ? 1 : smaller, band_rows = band_tiles * similarity_tile;
  const int64_t most_shares = budget / 2 / (band_rows * width * 4);
  int product_shares = shares_of(band_tiles * tiles(width), tiles(keys));
  if (product_shares > most_shares) product_shares = most_shares < 1 ? 1 : static_cast<int>(most_shares);
  return {shares_of(all, tiles(keys)), shares_of(tiles(keys), all), band_rows, band_bytes, product_shares};
}

// --- Peer ensembles ----------------------------------------------------------------------------------------------------

// A block per sample. A team of `parts` warps has every teams-th row; a tile of classes of all rows is in shared memory.
struct PeerPlan {
  int64_t tile;         // classes
  int teams;
  int parts;
  size_t shared_bytes;  // dynamic

  KD_HOST_DEVICE constexpr int threads() const { return 32 * teams * parts; }
};

// 512 threads, as of the row losses.
constexpr int most_peer_warps = largest_block / 32;
// Numbers that a part keeps of a row between two tiles, and a row between two sweeps.
constexpr int peer_part_numbers = 6, peer_row_numbers = 10;

// `tiles`: numbers per class.
constexpr PeerPlan plan_peers(int64_t rows, int64_t peers, int64_t classes, int64_t tiles, int number_size, int sm) {
  PeerPlan plan{0, 0, 1, 0};
  plan.teams = static_cast<int>(rows < most_peer_warps ? rows : most_peer_warps);
  // Eight classes or more per lane, so that what a warp does once for a row and tile is little beside them.
  const int64_t most_parts = most_peer_warps / plan.teams, parts = classes / (8 * 32);
  plan.parts = static_cast<int>(parts < 1 ? 1 : parts < most_parts ? parts : most_parts);

  // Weights and, in every part, what the gradient by them is made of.
  const int64_t matrices = rows * peers * (1 + plan.parts);
  const int64_t numbers = matrices + rows * (plan.parts * peer_part_numbers + peer_row_numbers);
  const int64_t fixed = numbers * number_size, per_class = tiles * number_size;
  // A sample that leaves room for three blocks on a multiprocessor stays in shared memory from the first sweep to the last;
  // of a larger one, tiles that leave room for four are read again in each, from L2 where they are still there.
  const int64_t limit = static_cast<int64_t>(shared_limit(sm)), whole = 72 * 1024 < limit ? 72 * 1024 : limit, part = 48 * 1024;
  const int64_t all_classes = parts_of(classes, chunk_classes) * chunk_classes;
  const int64_t fitting = (part - fixed) / per_class / 32 * 32;
  plan.tile = fixed + all_classes * per_class <= whole ? all_classes : fitting < 32 ? 32 : fitting;
  if (plan.tile > all_classes) plan.tile = all_classes;
  plan.shared_bytes = static_cast<size_t>(fixed + plan.tile * per_class);
  return plan;
}

// Kernels that sum over rows or touch every number once.
constexpr int reduce_threads = 256;
// Enough blocks for every multiprocessor of any GPU; few enough that blocks with nothing to do cost little.
constexpr int64_t scale_blocks_limit = 2048;

}  // namespace kd
