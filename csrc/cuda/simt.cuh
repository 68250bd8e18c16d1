// The vocabulary of the CUDA kernels: indices, barriers, shuffles, votes, shared memory, 16-byte accesses and copies,
// clusters of blocks, products of fragments on tensor cores, launch.
//
// Kernels are written in these words alone. Under nvcc each is the CUDA instruction of its name; under a host
// compiler emulated/simt_host.h gives each a plain C++ form, so that the same kernel runs, is sanitized and is tested
// on a machine without a GPU (docs/emulation.md). The contract, which holds in both worlds:
//
// - Grids and blocks are one-dimensional. A block has a multiple of 32 threads, at most 1024.
// - Shuffles, votes and sync_warp belong to a full warp: all its threads that have not returned call them together,
//   at the same place. sync_threads likewise for the block. A value shuffled from a thread that has returned is
//   undefined.
// - Shared memory is uninitialised: KD_SHARED(float, name, 32) declares an array of a block, dynamic_shared<T>() is
//   what the launch asked for, 16-byte aligned. At most 48 KiB of the first kind.
// - load16, store16 and copy16 demand addresses that are multiples of 16. store16_global is for global memory: one
//   instruction, where a compiler may make four of the other.
// - What copy16 writes to shared memory is visible to the calling thread after its wait_copies.
// - The blocks of a cluster, neighbours in the grid, run at the same time. sync_cluster is the sync_threads of all their
//   threads; read_cluster reads what another block has in the same place of its shared memory, which must not have ended.
//   Without clusters, or below compute capability 9.0, a block is a cluster of its own.
// - Blocks share only global memory. A block writes, calls fence and counts up; a block that reads this count, and then calls
//   fence, sees what was written before. No block waits for another block of the grid.
// - multiply_fragments belongs to a full warp, like a shuffle, and needs compute capability 8.0.
#pragma once
#include <cstddef>
#include <cstdint>

#include "half.h"
#include "host_device.h"

namespace kd::simt {

constexpr int warp_threads = 32;

struct alignas(16) Bytes16 {
  uint32_t word[4];
};

// What a 32-bit word of a fragment holds: two halves, two bfloat16, or a float rounded to TF32.
enum class Fragment : int { half, bfloat16, tf32 };

}  // namespace kd::simt

#ifndef __CUDACC__
#include "emulated/simt_host.h"
#else

#include <cuda_runtime.h>

#define KD_KERNEL __global__
#define KD_LAUNCH_BOUNDS(...) __launch_bounds__(__VA_ARGS__)  // threads of a block, blocks of a multiprocessor
#define KD_SHARED(T, name, count) __shared__ T name[count]

namespace kd::simt {

KD_DEVICE int thread_index() { return static_cast<int>(threadIdx.x); }
KD_DEVICE int block_threads() { return static_cast<int>(blockDim.x); }
KD_DEVICE int64_t block_index() { return blockIdx.x; }
KD_DEVICE int64_t grid_blocks() { return gridDim.x; }
KD_DEVICE int lane_index() { return thread_index() % warp_threads; }
KD_DEVICE int warp_index() { return thread_index() / warp_threads; }

KD_DEVICE void sync_threads() { __syncthreads(); }
KD_DEVICE void sync_warp() { __syncwarp(); }

// The value of the lane whose number differs from this one's in the bits of lane_mask, 0 < lane_mask < 32.
template <class T>
KD_DEVICE T shuffle_xor(T value, int lane_mask) {
  return __shfl_xor_sync(0xffffffffu, value, lane_mask);
}

template <class T>
KD_DEVICE T shuffle(T value, int source_lane) {
  return __shfl_sync(0xffffffffu, value, source_lane);
}

KD_DEVICE bool vote_any(bool value) { return __any_sync(0xffffffffu, value); }

// The earlier writes of this thread become visible to every thread of the grid before its later writes.
KD_DEVICE void fence() { __threadfence(); }

// Adds 1 to a number in global memory, which other threads count up too; returns what it was before.
KD_DEVICE int count_up(int* counter) { return atomicAdd(counter, 1); }

template <class T>
KD_DEVICE T* dynamic_shared() {
  extern __shared__ __align__(16) unsigned char kd_dynamic_shared[];
  return reinterpret_cast<T*>(kd_dynamic_shared);
}

KD_DEVICE Bytes16 load16(const void* address) {
  const uint4 words = *static_cast<const uint4*>(address);
  return {{words.x, words.y, words.z, words.w}};
}

KD_DEVICE void store16(void* address, Bytes16 bytes) {
  *static_cast<uint4*>(address) = make_uint4(bytes.word[0], bytes.word[1], bytes.word[2], bytes.word[3]);
}

KD_DEVICE void store16_global(void* address, Bytes16 bytes) {
  __stwb(static_cast<uint4*>(address), make_uint4(bytes.word[0], bytes.word[1], bytes.word[2], bytes.word[3]));
}

// 16 bytes from global to shared memory, past the registers.
KD_DEVICE void copy16(void* shared, const void* global) {
#if __CUDA_ARCH__ >= 800
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address), "l"(__cvta_generic_to_global(global)) : "memory");
#else
  store16(shared, load16(global));
#endif
}

// All copies that this thread has asked for are done.
KD_DEVICE void wait_copies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

#if __CUDA_ARCH__ >= 900
KD_DEVICE int cluster_blocks() {
  uint32_t blocks;
  asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(blocks));
  return static_cast<int>(blocks);
}

// The number of this block in its cluster.
KD_DEVICE int cluster_rank() {
  uint32_t rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return static_cast<int>(rank);
}

KD_DEVICE void sync_cluster() {
  asm volatile("barrier.cluster.arrive.aligned;\n\tbarrier.cluster.wait.aligned;" ::: "memory");
}

KD_DEVICE float read_cluster(const float* shared, int rank) {
  uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  float value;
  asm("mapa.shared::cluster.u32 %0, %0, %1;" : "+r"(address) : "r"(rank));
  asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(value) : "r"(address) : "memory");
  return value;
}
#else
KD_DEVICE int cluster_blocks() { return 1; }
KD_DEVICE int cluster_rank() { return 0; }
KD_DEVICE void sync_cluster() { __syncthreads(); }
KD_DEVICE float read_cluster(const float* shared, int) { return *shared; }
#endif

// 2^x in one instruction, to two units of the last place; what is below 2^-126 is 0.
KD_DEVICE float fast_exp2(float x) {
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
  return power;
}

// A float with the 10 fraction bits that tensor cores look at.
KD_DEVICE uint32_t to_tf32(float value) {
#if __CUDA_ARCH__ >= 800
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(value));
  return bits;
#else
  return float_bits(value);
#endif
}

// sum[i][j] += a[i] b[j]: 16 x 8 numbers each, from 16 rows of a and 8 of b with 8 words per row. With g = lane / 4 and
// t = lane % 4 a lane holds words t and t + 4 of row g of b[j]; of a[i], word t of rows g and g + 8, then word t + 4 of
// both; of the sums, columns 2t and 2t + 1 of row g, then of row g + 8.
template <Fragment kind, int rows, int columns>
KD_DEVICE void multiply_fragments(float (&sum)[rows][columns][4], const uint32_t (&a)[rows][4],
                                  const uint32_t (&b)[columns][2]) {
#if __CUDA_ARCH__ >= 800
#define KD_MMA(instruction)                                                                                        \
  asm volatile("mma.sync.aligned." instruction " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
               : "+f"(sum[i][j][0]), "+f"(sum[i][j][1]), "+f"(sum[i][j][2]), "+f"(sum[i][j][3])                    \
               : "r"(a[i][0]), "r"(a[i][1]), "r"(a[i][2]), "r"(a[i][3]), "r"(b[j][0]), "r"(b[j][1]))
  KD_UNROLL for (int i = 0; i < rows; ++i)
    KD_UNROLL for (int j = 0; j < columns; ++j) {
      if constexpr (kind == Fragment::half) KD_MMA("m16n8k16.row.col.f32.f16.f16.f32");
      else if constexpr (kind == Fragment::bfloat16) KD_MMA("m16n8k16.row.col.f32.bf16.bf16.f32");
      else KD_MMA("m16n8k8.row.col.f32.tf32.tf32.f32");
    }
#undef KD_MMA
#else
  (void)sum, (void)a, (void)b;
  __trap();  // never launched there
#endif
}

}  // namespace kd::simt
#endif

#include "cuda/grid.h"
