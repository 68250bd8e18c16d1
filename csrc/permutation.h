// A random permutation that is stored nowhere: a function of a seed, a row's number and an index. Host and device.
//
// The swap-or-not shuffle (Hoang, Morris, Rogaway, "An Enciphering Scheme Based on a Card Shuffle", CRYPTO 2012): in every
// round each index has a partner, K - index modulo the count, and one bit, the same for both, tells whether they change
// places. It permutes exactly `count` indices, whatever their number, and each index finds its place without the others.
// kdkernels/_shared/permutation.py is the same function in PyTorch, bit for bit.
#pragma once
#include <cstdint>

#include "host_device.h"

namespace kd {

// A bijection of 32 bits in which every bit of x turns every bit of the result with probability 1/2 (C. Wellons, 2018).
KD_HOST_DEVICE uint32_t mix(uint32_t x) {
  x ^= x >> 16;
  x *= 0x7feb352du;
  x ^= x >> 15;
  x *= 0x846ca68bu;
  return x ^ x >> 16;
}

struct Shuffle {
  uint32_t key;
  uint32_t count;  // indices 0..count - 1
  int rounds;      // 0: the identity

  KD_HOST_DEVICE Shuffle(uint64_t seed, uint64_t row, int64_t indices) : count(static_cast<uint32_t>(indices)) {
    key = mix(mix(static_cast<uint32_t>(seed)) ^ static_cast<uint32_t>(seed >> 32));
    key = mix(mix(key ^ static_cast<uint32_t>(row)) ^ static_cast<uint32_t>(row >> 32));
    // Mixing takes a number of rounds that grows as the logarithm of the count; four times it passes the tests of
    // uniformity in tests/test_reference_dkpp_loss.py with room.
    rounds = indices < 2 ? 0 : 8;
    for (int64_t n = indices; n > 0 && rounds > 0; n /= 2) rounds += 4;
  }

  struct Round {
    uint32_t offset;  // K
    uint32_t salt;
  };

  KD_HOST_DEVICE Round round(int number) const {
    const uint32_t random = mix(key + static_cast<uint32_t>(number + 1) * 0x9e3779b9u);
    return {static_cast<uint32_t>((static_cast<uint64_t>(random) * count) >> 32), mix(random)};
  }

  // Where a round takes an index.
  KD_HOST_DEVICE uint32_t moved(uint32_t index, Round round) const {
    const uint32_t below = round.offset - index;
    const uint32_t partner = index <= round.offset ? below : below + count;
    const uint32_t higher = index > partner ? index : partner;
    return mix(higher ^ round.salt) >> 31 ? partner : index;
  }
};

// Ranks number the classes other than `kept`, which stays where it is.
KD_HOST_DEVICE int64_t rank_of(int64_t c, int64_t kept) { return c - (c > kept); }
KD_HOST_DEVICE int64_t class_of(int64_t rank, int64_t kept) { return rank + (rank >= kept); }

}  // namespace kd
