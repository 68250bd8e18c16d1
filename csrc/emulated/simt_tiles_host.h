// The host form of csrc/cuda/simt_tiles.cuh.
#pragma once
#include "emulated/simt_host.h"

namespace kd::simt {

inline Bytes16 load_matrices(const void* row_of_shared, Place place = Place::here()) {
  check_aligned16(row_of_shared, "load_matrices", place);
  const uint64_t* rows = exchange_all(reinterpret_cast<uintptr_t>(row_of_shared), place);
  Bytes16 bytes;
  for (int matrix = 0; matrix < 4; ++matrix)
    bytes.word[matrix] = reinterpret_cast<const uint32_t*>(rows[matrix * 8 + lane_index() / 4])[lane_index() % 4];
  sync_warp(place);  // the rows stay as they are until every lane has read them
  return bytes;
}

inline int opaque(int number) { return number; }

}  // namespace kd::simt
