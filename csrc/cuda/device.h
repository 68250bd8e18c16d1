// The GPU a tensor lives on: its current stream and its kind.
#pragma once
#include "cuda/simt.cuh"
#include "stable.h"

namespace kd {

inline void* current_stream(const Tensor& like) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(like.get_device_index(), &stream));
  return stream;
}

// Compute capability of a device as nvcc names it: 90 for 9.0.
inline int compute_capability(const Tensor& like) {
  const int device = like.get_device_index();
  int major = 0, minor = 0;
  simt::check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "compute capability");
  simt::check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device), "compute capability");
  return 10 * major + minor;
}

}  // namespace kd
