// Kernel launches, included by cuda/simt.cuh. nvcc and the host compiler compile the same code: the first with the CUDA
// runtime, the second with emulated/runtime_host.h, which refuses the launches that a GPU refuses.
#pragma once
#include <climits>
#include <cstdint>
#include <mutex>
#include <set>
#include <stdexcept>
#include <string>
#include <utility>

namespace kd::simt {

// Throws if a call of the CUDA runtime failed, and clears the error, which the runtime keeps: otherwise PyTorch, which calls
// cudaGetLastError after its own launches, would report it there.
inline void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  cudaGetLastError();
  throw std::runtime_error(std::string("kdkernels: ") + what + ": " + cudaGetErrorString(status));
}

// Sets bytes to 0, after what the stream has been told before.
inline void zero(void* memory, size_t bytes, void* stream) {
  check(cudaMemsetAsync(memory, 0, bytes, static_cast<cudaStream_t>(stream)), "setting memory to 0");
}

// Static plus dynamic shared memory of a block may exceed 48 KiB only after an opt-in. Each kernel opts in once per device, to
// the maximum of the device: with the size of each launch instead, two threads that launch one kernel with different sizes
// would race.
inline void allow_shared_memory(const void* kernel) {
  static std::mutex mutex;
  static std::set<std::pair<const void*, int>> allowed;
  int device = 0, most = 0;
  check(cudaGetDevice(&device), "current device");
  const std::lock_guard<std::mutex> lock(mutex);
  if (allowed.count({kernel, device})) return;
  cudaFuncAttributes attributes{};
  check(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), "shared memory of the device");
  check(cudaFuncGetAttributes(&attributes, kernel), "static shared memory of a kernel");
  const int dynamic = most - static_cast<int>(attributes.sharedSizeBytes);
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, dynamic), "dynamic shared memory");
  allowed.insert({kernel, device});
}

// Launches `blocks` blocks of `threads` threads with `shared_bytes` of dynamic shared memory, in clusters of `cluster`
// blocks; no block: nothing happens.
template <class... P, class... A>
void launch_clusters(void (*kernel)(P...), int64_t blocks, int cluster, int threads, size_t shared_bytes, void* stream,
                     A... arguments) {
  static_assert(sizeof...(P) == sizeof...(A), "one argument per kernel parameter");
  if (blocks == 0) return;
  if (blocks < 0 || blocks > INT_MAX) {
    throw std::runtime_error("kdkernels: a CUDA grid has at most 2147483647 blocks, got " + std::to_string(blocks));
  }
  if (shared_bytes > 0) allow_shared_memory(reinterpret_cast<const void*>(kernel));
  cudaLaunchAttribute shape{};
  shape.id = cudaLaunchAttributeClusterDimension;
  shape.val.clusterDim.x = static_cast<unsigned>(cluster);
  shape.val.clusterDim.y = shape.val.clusterDim.z = 1;
  cudaLaunchConfig_t how{};
  how.gridDim = static_cast<unsigned>(blocks);
  how.blockDim = static_cast<unsigned>(threads);
  how.dynamicSmemBytes = shared_bytes;
  how.stream = static_cast<cudaStream_t>(stream);
  how.attrs = &shape;
  how.numAttrs = cluster > 1 ? 1 : 0;  // older GPUs know no clusters
  const cudaError_t status = cudaLaunchKernelEx(&how, kernel, static_cast<P>(arguments)...);
  if (status != cudaSuccess) {
    const std::string what = "launch of " + std::to_string(blocks) + " blocks of " + std::to_string(threads) +
                             " threads with " + std::to_string(shared_bytes) +
                             " bytes of dynamic shared memory, in clusters of " + std::to_string(cluster);
    check(status, what.c_str());
  }
}

template <class... P, class... A>
void launch(void (*kernel)(P...), int64_t blocks, int threads, size_t shared_bytes, void* stream, A... arguments) {
  launch_clusters(kernel, blocks, 1, threads, shared_bytes, stream, arguments...);
}

}  // namespace kd::simt
