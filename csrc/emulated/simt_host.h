// The host form of csrc/cuda/simt.cuh: every CUDA thread of a block is a fiber. The clusters run one after another, the
// blocks of a cluster at the same time.
//
// A fiber runs until it must wait for others of its warp, block or cluster; then another one, drawn at random (set_seed), goes
// on. A kernel without races gives the same result for every order, one that lacks a barrier does not. Beyond the
// order:
// - shared memory starts each block as 0xff bytes (NaN, -1) and lies between guard zones;
// - threads that wait for each other forever, or at different places, end the launch with an error that names them;
// - misaligned 16-byte accesses throw, as they would fault on a GPU;
// - what copy16 copies arrives when its thread waits for it, and not before;
// - reading the shared memory of a block that has ended throws;
// - a launch that a GPU would refuse is refused (runtime_host.h);
// - the fibers are announced to AddressSanitizer, so that its checks hold inside kernels.
//
// Test-only and single-threaded: one launch at a time in a process. The engine is simt_host.cpp.
#pragma once
#include <cmath>
#include <cstring>
#include <functional>
#include <type_traits>

#include "emulated/runtime_host.h"

#define KD_KERNEL
#define KD_LAUNCH_BOUNDS(...)
// Keyed by the address of a variable of the declaring function, as a __shared__ array belongs to its function.
#define KD_SHARED(T, name, count)                                                                      \
  static_assert(std::is_trivially_default_constructible_v<T>, "shared memory starts without a value"); \
  static char kd_shared_key_##name;                                                                    \
  T(&name)[count] = *static_cast<T(*)[count]>(kd::simt::static_shared(&kd_shared_key_##name, sizeof(T) * (count)))

namespace kd::simt {

// A line of a kernel, for messages: the default argument takes the line of the call.
struct Place {
  const char* file = nullptr;
  int line = 0;
  static constexpr Place here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    return {file, line};
  }
};

// What the running fiber knows of itself.
struct Self {
  int thread = 0;
  int block_threads = 0;
  int64_t block = 0;
  int64_t grid_blocks = 0;
  int cluster_rank = 0;
  int cluster_blocks = 1;
};
extern const Self* self;

inline int thread_index() { return self->thread; }
inline int block_threads() { return self->block_threads; }
inline int64_t block_index() { return self->block; }
inline int64_t grid_blocks() { return self->grid_blocks; }
inline int cluster_rank() { return self->cluster_rank; }
inline int cluster_blocks() { return self->cluster_blocks; }
inline int lane_index() { return thread_index() % warp_threads; }
inline int warp_index() { return thread_index() / warp_threads; }

void sync_cluster(Place place = Place::here());
void sync_threads(Place place = Place::here());
void sync_warp(Place place = Place::here());
bool vote_any(bool value, Place place = Place::here());

// Gives `bits` to the warp and returns those of `source_lane`.
uint64_t exchange(uint64_t bits, int source_lane, Place place);

template <class T>
T shuffle(T value, int source_lane, Place place = Place::here()) {
  static_assert(std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8), "a GPU shuffles 4 or 8 bytes");
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  bits = exchange(bits, source_lane % warp_threads, place);
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

template <class T>
T shuffle_xor(T value, int lane_mask, Place place = Place::here()) {
  return shuffle(value, lane_index() ^ lane_mask, place);
}

// Gives `bits` to the warp and returns those of all lanes, until this thread meets its warp again.
const uint64_t* exchange_all(uint64_t bits, Place place);

inline uint32_t to_tf32(float value) {
  const uint32_t bits = float_bits(value);
  const bool finite = (bits & 0x7f800000u) != 0x7f800000u;
  return finite ? (bits + 0x1000u) & ~0x1fffu : bits;
}

// The numbers in a word of a fragment.
template <Fragment kind>
int unpack(uint32_t word, float (&numbers)[2]) {
  if constexpr (kind == Fragment::tf32) {
    numbers[0] = float_from_bits(word & ~0x1fffu);
    return 1;
  } else {
    const auto widen = [](uint32_t bits) {
      const auto half = static_cast<uint16_t>(bits);
      return kind == Fragment::half ? half_to_float(half) : bfloat16_to_float(half);
    };
    numbers[0] = widen(word & 0xffffu);
    numbers[1] = widen(word >> 16);
    return 2;
  }
}

template <Fragment kind, int rows, int columns>
void multiply_fragments(float (&sum)[rows][columns][4], const uint32_t (&a)[rows][4], const uint32_t (&b)[columns][2],
                        Place place = Place::here()) {
  struct Given {
    const uint32_t (*a)[4];
    const uint32_t (*b)[2];
  } given{a, b};
  const uint64_t* lanes = exchange_all(reinterpret_cast<uintptr_t>(&given), place);
  const auto of_lane = [&](int lane) { return *reinterpret_cast<const Given*>(static_cast<uintptr_t>(lanes[lane])); };
  const int g = lane_index() / 4, t = lane_index() % 4;
  for (int i = 0; i < rows; ++i)
    for (int j = 0; j < columns; ++j)
      for (int e = 0; e < 4; ++e)
        for (int word = 0; word < 8; ++word) {
          float x[2], y[2];
          unpack<kind>(of_lane(4 * g + word % 4).a[i][word / 4 * 2 + e / 2], x);
          const int count = unpack<kind>(of_lane(4 * (2 * t + e % 2) + word % 4).b[j][word / 4], y);
          for (int half = 0; half < count; ++half) sum[i][j][e] += x[half] * y[half];
        }
  sync_warp(place);  // the fragments stay as they are until every lane has read them
}

inline void fence() {}  // of one thread at a time
inline int count_up(int* counter) { return (*counter)++; }

void* static_shared(const void* key, size_t bytes);
void* dynamic_shared_bytes();

template <class T>
T* dynamic_shared() {
  return static_cast<T*>(dynamic_shared_bytes());
}

void check_aligned16(const void* address, const char* access, Place place);

inline Bytes16 load16(const void* address, Place place = Place::here()) {
  check_aligned16(address, "load16", place);
  Bytes16 bytes;
  std::memcpy(&bytes, address, sizeof bytes);
  return bytes;
}

inline void store16(void* address, Bytes16 bytes, Place place = Place::here()) {
  check_aligned16(address, "store16", place);
  std::memcpy(address, &bytes, sizeof bytes);
}

inline void store16_global(void* address, Bytes16 bytes, Place place = Place::here()) { store16(address, bytes, place); }

void copy16(void* shared, const void* global, Place place = Place::here());
void wait_copies();

// Where block `rank` of the cluster has what this block has at `address` of its shared memory.
const void* in_cluster(const void* address, int rank, Place place);

template <class T>
T read_cluster(const T* shared, int rank, Place place = Place::here()) {
  return *static_cast<const T*>(in_cluster(shared, rank, place));
}

inline float fast_exp2(float x) {
  const float power = std::exp2(x);
  return power < 0x1p-126f ? 0.0f : power;
}

// Runs a grid whose blocks may have `allowed_shared` bytes of static plus dynamic shared memory.
void run_grid(const std::function<void()>& kernel, int64_t blocks, int cluster, int threads, size_t shared_bytes,
              size_t allowed_shared);

// Orders of threads and blocks that follow from `seed`; 0: ascending.
void set_seed(uint64_t seed);

// Launches of at least one block since the process began.
int64_t launch_count();

// Barriers that all threads of a block have come to since the process began.
int64_t barrier_count();

}  // namespace kd::simt

template <class... P, class... A>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* how, void (*kernel)(P...), A... arguments) {
  const auto address = reinterpret_cast<const void*>(kernel);
  if (const cudaError_t error = kd::emulated::check_launch(*how, address)) return error;
  const int cluster = how->numAttrs > 0 ? static_cast<int>(how->attrs[0].val.clusterDim.x) : 1;
  kd::simt::run_grid([&] { kernel(static_cast<P>(arguments)...); }, how->gridDim, cluster, static_cast<int>(how->blockDim),
                     how->dynamicSmemBytes, kd::emulated::allowed_shared(address));
  return cudaSuccess;
}
