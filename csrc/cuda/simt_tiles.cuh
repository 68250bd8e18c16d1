// More words of cuda/simt.cuh, for tiles of matrices: fragments of tensor cores as they lie in shared memory, and a word to
// the compiler. The contract:
//
// - load_matrices belongs to a full warp, like a shuffle, and needs compute capability 7.5. Lane l gives the address of a
//   row of 16 bytes: row l % 8 of matrix l / 8 of four. It gets, of each matrix, word lane % 4 of row lane / 4, which is
//   where multiply_fragments has the words of its operands.
// - opaque gives its number back. What follows from it is computed in the round of a loop that needs it: the compiler, which
//   would keep it in registers from before the loop on, does not see that it is always the same.
#pragma once
#include "cuda/simt.cuh"

#ifndef __CUDACC__
#include "emulated/simt_tiles_host.h"
#else

namespace kd::simt {

KD_DEVICE Bytes16 load_matrices(const void* row_of_shared) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(row_of_shared));
  Bytes16 bytes;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(bytes.word[0]), "=r"(bytes.word[1]), "=r"(bytes.word[2]), "=r"(bytes.word[3])
               : "r"(address) : "memory");
  return bytes;
}

KD_DEVICE int opaque(int number) {
  asm volatile("" : "+r"(number));
  return number;
}

}  // namespace kd::simt
#endif
