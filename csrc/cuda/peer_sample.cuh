// A sample of peers in shared memory: who of the block works on what, tiles of logits, the attention. Included by
// cuda/peer_ensemble.cuh and cuda/peer_mixture.cuh.
#pragma once
#include <type_traits>

#include "cuda/chunk.cuh"
#include "cuda/launch.h"
#include "cuda/math.cuh"
#include "cuda/simt.cuh"
#include "cuda/team.cuh"
#include "elements.h"
#include "peer_ensemble.h"

namespace kd {
namespace {

// One warp's share of a sample: a part of the classes of every teams-th row.
struct PeerWarp {
  int team, teams, part, parts;

  KD_DEVICE explicit PeerWarp(const PeerPlan& plan)
      : team(simt::warp_index() % plan.teams), teams(plan.teams), part(simt::warp_index() / plan.teams), parts(plan.parts) {}

  template <class Body>
  KD_DEVICE void each_row(int64_t rows, const Body& body) const {
    for (int64_t row = team; row < rows; row += teams) body(row);
  }
  // The same classes for every row and sweep.
  template <class Body>
  KD_DEVICE void each_class(int64_t classes, const Body& body) const {
    const int step = simt::warp_threads * parts;
    for (int64_t c = part * simt::warp_threads + simt::lane_index(); c < classes; c += step) body(c);
  }
  template <class A, int count>
  KD_DEVICE static void sum(A (&values)[count]) {
    LaneTeam(simt::warp_threads).sum(values);
  }
  template <class A, int count>
  KD_DEVICE static void max(A (&values)[count]) {
    LaneTeam(simt::warp_threads).max(values);
  }
};

template <class A>
KD_DEVICE A read_number(const PeerRows& rows, int64_t sample, int64_t peer, int64_t i) {
  A number = 0;
  with_bits<A>(rows.dtype, [&](auto* type) {
    const auto* at = static_cast<decltype(type)>(rows.data) + sample * rows.sample_stride + peer * rows.peer_stride;
    number = static_cast<A>(from_bits(at[i * rows.stride], rows.dtype));
  });
  return number;
}

template <class A>
KD_DEVICE void write_number(const PeerRows& rows, int64_t sample, int64_t peer, int64_t i, A number) {
  with_bits<A>(rows.dtype, [&](auto* type) {
    auto* at = static_cast<decltype(type)>(rows.data) + sample * rows.sample_stride + peer * rows.peer_stride;
    to_bits(number, rows.dtype, at + i * rows.stride);
  });
}

// `count` classes from `first` on of `peers` rows, to [peers, pitch]. All threads of the block.
template <class A>
KD_DEVICE void read_tile(const PeerRows& rows, int64_t sample, int64_t peers, int64_t first, int64_t count, int64_t pitch,
                         A* to) {
  const int64_t chunks = parts_of(count, chunk_classes);
  with_bits<A>(rows.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    for (int64_t i = simt::thread_index(); i < peers * chunks; i += simt::block_threads()) {
      const int64_t peer = i / chunks, begin = i % chunks * chunk_classes;
      const T* row = static_cast<const T*>(rows.data) + sample * rows.sample_stride + peer * rows.peer_stride +
                     first * rows.stride;
      T numbers[chunk_classes];
      read_chunk(row, rows.stride, Chunk{static_cast<int>(begin), 1}, static_cast<int>(count), T(0), numbers);
      A logits[chunk_classes];
      from_bits(numbers, rows.dtype, logits);
      KD_UNROLL for (int e = 0; e < chunk_classes; ++e) to[peer * pitch + begin + e] = logits[e];
    }
  });
}

// Whether a logit is that of a class the peer rules out: its mixtures do so too, whatever its weight, unless that is 0.
template <class A>
KD_DEVICE bool is_lacking(A logit) {
  return logit == -static_cast<A>(HUGE_VALF);
}

template <class A>
KD_DEVICE A highest(A a, A b) {
  return b > a ? b : a;
}

// Numbers that a part of a team keeps of a row between tiles, and that all know of a row. soft: at the temperature, hard: at
// 1; mix: of the mixture of logits that the row is taught by. A shift is a maximum, or 0 where that is -inf.
enum PeerPartNumber : int { tile_max, soft_sum, hard_sum, mix_max, mix_sum, mix_hard_sum };
enum PeerRowNumber : int {
  row_max, row_shift, row_raised, soft_log, hard_log, mix_shift, mix_log, mix_hard_log, row_value, row_mean
};
static_assert(mix_hard_sum < peer_part_numbers && row_mean < peer_row_numbers, "room for them");

template <class A>
KD_DEVICE A shift_of(A largest) {
  return is_lacking(largest) ? A(0) : largest;
}

// Tiles of a sample's logits in shared memory, and the softmax of each row.
template <class A>
class PeerTiles {
 public:
  KD_DEVICE PeerTiles(const PeerRows& peer_logits, const PeerRows& leader, int64_t peers, int64_t rows, int64_t classes,
                      double temperature, const PeerPlan& plan)
      : plan_(plan), warp_(plan), sample_(simt::block_index()), peers_(peers), rows_(rows),
        students_(peers + (leader.data ? 1 : 0)), classes_(classes),
        inverse_temperature_(A(1) / static_cast<A>(temperature)), peer_logits_(peer_logits), leader_(leader),
        logits_(simt::dynamic_shared<A>()) {}

 protected:
  KD_DEVICE A& part_number(int part, int64_t row, int which) const {
    return part_numbers_[(part * rows_ + row) * peer_part_numbers + which];
  }
  KD_DEVICE A& own_number(int64_t row, int which) const { return part_number(warp_.part, row, which); }
  KD_DEVICE A& row_number(int64_t row, int which) const { return row_numbers_[row * peer_row_numbers + which]; }

  // body(first, count) for each tile, whose logits are then in shared memory; ends with all of the block at one place. A
  // sample of one tile keeps it.
  template <class Body>
  KD_DEVICE void each_tile(bool first_sweep, const Body& body) const {
    for (int64_t first = 0; first < classes_; first += plan_.tile) {
      const int64_t left = classes_ - first, count = left < plan_.tile ? left : plan_.tile;
      if (first_sweep || plan_.tile < classes_) {
        read_tile(peer_logits_, sample_, peers_, first, count, plan_.tile, logits_);
        if (leader_.data) read_tile(leader_, sample_, 1, first, count, plan_.tile, logits_ + peers_ * plan_.tile);
        simt::sync_threads();
      }
      body(first, count);
      simt::sync_threads();
    }
  }

  KD_DEVICE A logit(int64_t row, int64_t c) const { return logits_[row * plan_.tile + c]; }
  KD_DEVICE A above(int64_t row, int64_t c) const { return logit(row, c) - row_number(row, row_shift); }
  KD_DEVICE A log_soft(int64_t row, int64_t c) const { return above(row, c) * inverse_temperature_ - row_number(row, soft_log); }

  // Before the first tile, whose barrier lets all see it.
  KD_DEVICE void reset_numbers() const {
    const A lowest = -static_cast<A>(HUGE_VALF);
    warp_.each_row(rows_, [&](int64_t row) {
      if (simt::lane_index() != 0) return;
      for (int which = 0; which < peer_part_numbers; ++which) own_number(row, which) = which == mix_max ? lowest : A(0);
      if (warp_.part == 0) row_number(row, row_max) = lowest;
    });
  }

  // The largest logit of every row so far, and by how much this tile has raised it.
  KD_DEVICE void raise_maxima(int64_t count) const {
    warp_.each_row(students_, [&](int64_t row) {
      A most[1] = {-static_cast<A>(HUGE_VALF)};
      warp_.each_class(count, [&](int64_t c) { most[0] = highest(most[0], logit(row, c)); });
      PeerWarp::max(most);
      if (simt::lane_index() == 0) own_number(row, tile_max) = most[0];
    });
    simt::sync_threads();
    if (const int64_t row = simt::thread_index(); row < students_) {
      const A old = row_number(row, row_max);
      A most = old;
      for (int part = 0; part < plan_.parts; ++part) most = highest(most, part_number(part, row, tile_max));
      row_number(row, row_max) = most;
      row_number(row, row_raised) = is_lacking(old) ? A(0) : most - old;
      row_number(row, row_shift) = shift_of(most);
    }
    simt::sync_threads();
  }

  // `hard`: at temperature 1 too.
  template <bool hard>
  KD_DEVICE void add_exponentials(int64_t row, int64_t count) const {
    A sums[hard ? 2 : 1] = {};
    warp_.each_class(count, [&](int64_t c) {
      const A z = above(row, c);
      sums[0] += exp(z * inverse_temperature_);
      if constexpr (hard) sums[1] += exp(z);
    });
    PeerWarp::sum(sums);
    if (simt::lane_index() != 0) return;
    const A raised = row_number(row, row_raised);
    own_number(row, soft_sum) = own_number(row, soft_sum) * exp(-raised * inverse_temperature_) + sums[0];
    if constexpr (hard) own_number(row, hard_sum) = own_number(row, hard_sum) * exp(-raised) + sums[1];
  }

  // One thread adds the parts.
  template <bool hard>
  KD_DEVICE void finish_row(int64_t row) const {
    A sums[hard ? 2 : 1] = {};
    for (int part = 0; part < plan_.parts; ++part) {
      sums[0] += part_number(part, row, soft_sum);
      if constexpr (hard) sums[1] += part_number(part, row, hard_sum);
    }
    row_number(row, soft_log) = log(sums[0]);
    if constexpr (hard) row_number(row, hard_log) = log(sums[1]);
  }

  const PeerPlan plan_;
  const PeerWarp warp_;
  const int64_t sample_, peers_, rows_, students_, classes_;
  const A inverse_temperature_;
  const PeerRows peer_logits_, leader_;
  A* const logits_;    // [students, tile]
  A* part_numbers_;    // [parts, rows, peer_part_numbers]
  A* row_numbers_;     // [rows, peer_row_numbers]
};

// softmax_b(Q_a . K_b), to [peers, peers]. Ends before the numbers can be seen by all.
template <class A>
KD_DEVICE void attend(const PeerRows& query, const PeerRows& key, int64_t sample, int64_t peers, int64_t width, A* weights) {
  const int warps = simt::block_threads() / simt::warp_threads, lane = simt::lane_index();
  for (int64_t pair = simt::warp_index(); pair < peers * peers; pair += warps) {
    A dot[1] = {0};
    for (int64_t i = lane; i < width; i += simt::warp_threads)
      dot[0] += read_number<A>(query, sample, pair / peers, i) * read_number<A>(key, sample, pair % peers, i);
    PeerWarp::sum(dot);
    if (lane == 0) weights[pair] = dot[0];
  }
  simt::sync_threads();
  for (int64_t a = simt::warp_index(); a < peers; a += warps) {
    const bool exists = lane < peers;  // most_peers lanes there are
    const A score = exists ? weights[a * peers + lane] : -static_cast<A>(HUGE_VALF);
    A most[1] = {score};
    PeerWarp::max(most);
    const A share = exists ? exp(score - most[0]) : A(0);
    A sum[1] = {share};
    PeerWarp::sum(sum);
    if (exists) weights[a * peers + lane] = share / sum[0];
  }
}

// From the gradients of the weights [peers, peers], in place, to those of scores, queries and keys.
template <class A>
KD_DEVICE void attend_backward(const PeerRows& query, const PeerRows& key, const PeerRows& grad_query,
                               const PeerRows& grad_key, int64_t sample, int64_t peers, int64_t width, const A* weights,
                               A* gradients) {
  const int warps = simt::block_threads() / simt::warp_threads, lane = simt::lane_index();
  for (int64_t a = simt::warp_index(); a < peers; a += warps) {
    const bool exists = lane < peers;
    const A weight = exists ? weights[a * peers + lane] : A(0), gradient = exists ? gradients[a * peers + lane] : A(0);
    A mean[1] = {weight * gradient};
    PeerWarp::sum(mean);
    if (exists) gradients[a * peers + lane] = weight * (gradient - mean[0]);
  }
  simt::sync_threads();
  for (int64_t i = simt::thread_index(); i < peers * width; i += simt::block_threads()) {
    const int64_t peer = i / width, feature = i % width;
    A for_query = 0, for_key = 0;
    for (int64_t other = 0; other < peers; ++other) {
      for_query += gradients[peer * peers + other] * read_number<A>(key, sample, other, feature);
      for_key += gradients[other * peers + peer] * read_number<A>(query, sample, other, feature);
    }
    if (grad_query.data) write_number(grad_query, sample, peer, feature, for_query);
    if (grad_key.data) write_number(grad_key, sample, peer, feature, for_key);
  }
}

}  // namespace
}  // namespace kd
