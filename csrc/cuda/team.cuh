// Teams: the threads that share a row, and their reductions. Every thread of a team gets the result; the order of a sum is
// fixed by the size of the team. All threads of a warp (LaneTeam), block (BlockTeam) or cluster (ClusterTeam) call a
// reduction together. RowTeam is one of the first and the last.
#pragma once
#include <cmath>

#include "cuda/simt.cuh"

namespace kd {
namespace {

// `lanes` neighbouring threads of a warp, a power of two.
class LaneTeam {
 public:
  KD_DEVICE explicit LaneTeam(int lanes) : lanes_(lanes) {}

  KD_DEVICE int rank() const { return simt::lane_index() % lanes_; }
  KD_DEVICE int size() const { return lanes_; }

  // The row of this team, where blocks hold neighbouring rows.
  KD_DEVICE int64_t row() const {
    return simt::block_index() * (simt::block_threads() / lanes_) + simt::thread_index() / lanes_;
  }

  template <class A, int count>
  KD_DEVICE void sum(A (&values)[count]) const {
    for (int mask = lanes_ / 2; mask > 0; mask /= 2)
      KD_UNROLL for (int j = 0; j < count; ++j) values[j] += simt::shuffle_xor(values[j], mask);
  }

  template <class A, int count>
  KD_DEVICE void max(A (&values)[count]) const {
    for (int mask = lanes_ / 2; mask > 0; mask /= 2)
      KD_UNROLL for (int j = 0; j < count; ++j) {
        const A other = simt::shuffle_xor(values[j], mask);
        values[j] = other > values[j] ? other : values[j];
      }
  }

  // Called before a kernel returns. Threads of a warp do not read each other's memory.
  KD_DEVICE static void end() {}

 private:
  int lanes_;
};

// All threads of a block: warps first, then their results, which every warp reduces for itself.
template <class A>
class BlockTeam {
 public:
  KD_DEVICE int rank() const { return simt::thread_index(); }
  KD_DEVICE int size() const { return simt::block_threads(); }

  template <int count>
  KD_DEVICE void sum(A (&values)[count]) const {
    const LaneTeam warp(simt::warp_threads);
    warp.sum(values);
    share(values, A(0));
    warp.sum(values);
  }

  template <int count>
  KD_DEVICE void max(A (&values)[count]) const {
    const LaneTeam warp(simt::warp_threads);
    warp.max(values);
    share(values, -static_cast<A>(HUGE_VALF));
    warp.max(values);
  }

 private:
  static constexpr int most_values = 4;

  // One for all counts of values.
  KD_DEVICE static A* scratch() {
    KD_SHARED(A, shared, most_values * simt::warp_threads);
    return shared;
  }

  // Lane w of every warp gets the values of warp w; lanes beyond the last warp get `none`.
  template <int count>
  KD_DEVICE void share(A (&values)[count], A none) const {
    static_assert(count <= most_values, "room for four values");
    A* const shared = scratch();
    const int warps = simt::block_threads() / simt::warp_threads, lane = simt::lane_index();
    if (lane == 0)
      KD_UNROLL for (int j = 0; j < count; ++j) shared[j * simt::warp_threads + simt::warp_index()] = values[j];
    simt::sync_threads();
    KD_UNROLL for (int j = 0; j < count; ++j) values[j] = lane < warps ? shared[j * simt::warp_threads + lane] : none;
    simt::sync_threads();  // the next reduction writes the same memory
  }
};

// All threads of a cluster of blocks: blocks first, then their results, which every warp reduces for itself.
class ClusterTeam {
 public:
  KD_DEVICE ClusterTeam()
      : rank_(simt::cluster_rank() * simt::block_threads() + simt::thread_index()),
        size_(simt::cluster_blocks() * simt::block_threads()) {}

  KD_DEVICE int rank() const { return rank_; }
  KD_DEVICE int size() const { return size_; }

  // The row of this team, where clusters hold neighbouring rows.
  KD_DEVICE int64_t row() const { return simt::block_index() / simt::cluster_blocks(); }

  template <int count>
  KD_DEVICE void sum(float (&values)[count]) {
    block_.sum(values);
    if (simt::cluster_blocks() == 1) return;
    share(values, 0.0f);
    LaneTeam(simt::warp_threads).sum(values);
  }

  template <int count>
  KD_DEVICE void max(float (&values)[count]) {
    block_.max(values);
    if (simt::cluster_blocks() == 1) return;
    share(values, -HUGE_VALF);
    LaneTeam(simt::warp_threads).max(values);
  }

  // Called before a kernel returns: other blocks of the cluster may still read the shared memory of this one.
  KD_DEVICE void end() const {
    if (simt::cluster_blocks() > 1) simt::sync_cluster();
  }

 private:
  static constexpr int most_values = 4;
  int rank_, size_;
  int turn_ = 0;  // 0 or 1
  BlockTeam<float> block_;

  KD_DEVICE static float* scratch() {
    KD_SHARED(float, shared, 2 * most_values);
    return shared;
  }

  // Lane b of every warp gets the values of block b; lanes beyond the last block get `none`. Two sets in turn: when a block
  // writes one again, all have been at the barrier of the other, and so have read it.
  template <int count>
  KD_DEVICE void share(float (&values)[count], float none) {
    static_assert(count <= most_values, "room for four values");
    float* const mine = scratch() + turn_ * most_values;
    turn_ ^= 1;
    if (simt::thread_index() == 0)
      KD_UNROLL for (int j = 0; j < count; ++j) mine[j] = values[j];
    simt::sync_cluster();
    const int block = simt::lane_index();
    KD_UNROLL for (int j = 0; j < count; ++j)
      values[j] = block < simt::cluster_blocks() ? simt::read_cluster(mine + j, block) : none;
  }
};

// Lanes of a warp or all threads of a cluster of blocks, as the launch says: at most 32 threads are lanes.
class RowTeam {
 public:
  KD_DEVICE explicit RowTeam(int threads) : threads_(threads), in_warp_(threads <= simt::warp_threads) {}

  KD_DEVICE int rank() const { return in_warp_ ? LaneTeam(threads_).rank() : cluster_.rank(); }
  KD_DEVICE int size() const { return threads_; }
  KD_DEVICE int64_t row() const { return in_warp_ ? LaneTeam(threads_).row() : cluster_.row(); }

  template <int count>
  KD_DEVICE void sum(float (&values)[count]) {
    if (in_warp_) LaneTeam(threads_).sum(values);
    else cluster_.sum(values);
  }

  template <int count>
  KD_DEVICE void max(float (&values)[count]) {
    if (in_warp_) LaneTeam(threads_).max(values);
    else cluster_.max(values);
  }

  KD_DEVICE void end() const {
    if (!in_warp_) cluster_.end();
  }

 private:
  int threads_;
  bool in_warp_;
  ClusterTeam cluster_;
};

}  // namespace
}  // namespace kd
