// Teams: the threads that share a row, and their reductions. Every thread of a team gets the result; the order of a sum is
// fixed by the size of the team. All threads of a warp (LaneTeam) or block (BlockTeam) call a reduction together.
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

  // Lane w of every warp gets the values of warp w; lanes beyond the last warp get `none`.
  template <int count>
  KD_DEVICE void share(A (&values)[count], A none) const {
    static_assert(count <= most_values, "room for four values");
    KD_SHARED(A, shared, most_values * simt::warp_threads);
    const int warps = simt::block_threads() / simt::warp_threads, lane = simt::lane_index();
    if (lane == 0)
      KD_UNROLL for (int j = 0; j < count; ++j) shared[j * simt::warp_threads + simt::warp_index()] = values[j];
    simt::sync_threads();
    KD_UNROLL for (int j = 0; j < count; ++j) values[j] = lane < warps ? shared[j * simt::warp_threads + lane] : none;
    simt::sync_threads();  // the next reduction writes the same memory
  }
};

}  // namespace
}  // namespace kd
