// The emulated GPU of runtime_host.h: its limits, the opt-ins of the kernels, and the last error.
#include "emulated/runtime_host.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <utility>

#include "cuda/launch.h"

namespace kd::emulated {
namespace {

constexpr size_t default_shared = 48 * 1024;  // without the opt-in
constexpr unsigned most_threads = 1024, most_cluster = 8;
constexpr int most_registers = 255;

struct Runtime {
  int device = 90;
  std::map<const void*, KernelResources> kernels;
  std::map<std::pair<const void*, int>, size_t> dynamic_shared;  // opt-ins, by kernel and device
  cudaError_t last_error = cudaSuccess;
  std::string why;  // of the last call that failed
};

Runtime runtime;

cudaError_t fail(cudaError_t error, std::string why) {
  runtime.why = std::move(why);
  return runtime.last_error = error;
}

KernelResources resources_of(const void* kernel) {
  const auto found = runtime.kernels.find(kernel);
  return found == runtime.kernels.end() ? KernelResources{"the kernel"} : found->second;
}

// Each of the four partitions of a multiprocessor has 16,384 registers. Warps are assigned to the partitions in turn, and a warp
// is given registers in units of 8 per thread.
int threads_with(int registers) {
  const int per_warp = std::max(1, (registers + 7) / 8) * 8 * 32;
  return 4 * (16384 / per_warp) * 32;
}

}  // namespace

void set_kernel_resources(const void* kernel, KernelResources resources) {
  runtime.kernels[kernel] = std::move(resources);
}

OnDevice::OnDevice(int sm) { runtime.device = sm; }
OnDevice::~OnDevice() { runtime.device = Runtime{}.device; }

size_t allowed_shared(const void* kernel) {
  const auto opt_in = runtime.dynamic_shared.find({kernel, runtime.device});
  if (opt_in == runtime.dynamic_shared.end()) return default_shared;
  return std::max(default_shared, resources_of(kernel).static_shared + opt_in->second);
}

cudaError_t check_launch(const cudaLaunchConfig_t& how, const void* kernel) {
  const auto number = [](auto n) { return std::to_string(n); };
  const KernelResources its = resources_of(kernel);
  if (how.gridDim == 0 || how.gridDim > INT32_MAX) {
    return fail(cudaErrorInvalidConfiguration, "a grid has 1 to 2147483647 blocks, got " + number(how.gridDim));
  }
  if (how.blockDim == 0 || how.blockDim > most_threads) {
    return fail(cudaErrorInvalidConfiguration, "a block has 1 to 1024 threads, got " + number(how.blockDim));
  }
  const int threads = static_cast<int>(how.blockDim);
  if (threads > its.threads) {
    return fail(cudaErrorInvalidValue, its.name + " is compiled for blocks of " + number(its.threads) +
                                           " threads at most, got " + number(threads));
  }
  if (its.registers > most_registers || threads > threads_with(its.registers)) {
    return fail(cudaErrorLaunchOutOfResources, its.name + " takes " + number(its.registers) + " registers per thread: " +
                                                   number(threads) + " threads need more than a block may have");
  }
  if (how.numAttrs > 0) {
    const unsigned cluster = how.attrs[0].val.clusterDim.x;
    if (runtime.device < 90) {
      return fail(cudaErrorInvalidConfiguration, "a GPU of compute capability " + number(runtime.device / 10) + "." +
                                                     number(runtime.device % 10) + " has no clusters");
    }
    if (cluster == 0 || cluster > most_cluster) {
      return fail(cudaErrorInvalidClusterSize, "a cluster has 1 to 8 blocks, got " + number(cluster));
    }
    if (how.gridDim % cluster != 0) {
      return fail(cudaErrorInvalidValue, "a grid has whole clusters, got " + number(how.gridDim) +
                                             " blocks in clusters of " + number(cluster));
    }
  }
  if (const size_t all = its.static_shared + how.dynamicSmemBytes; all > allowed_shared(kernel)) {
    const bool too_much = all > block_shared(runtime.device);
    return fail(cudaErrorInvalidValue,
                its.name + " needs " + number(its.static_shared) + " bytes of static and " + number(how.dynamicSmemBytes) +
                    " of dynamic shared memory, " +
                    (too_much ? "a block has " + number(block_shared(runtime.device))
                              : "a block has " + number(allowed_shared(kernel)) + " without a larger opt-in"));
  }
  return cudaSuccess;
}

}  // namespace kd::emulated

using kd::emulated::fail;
using kd::emulated::runtime;

cudaError_t cudaGetDevice(int* device) {
  *device = runtime.device;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int device) {
  *value = static_cast<int>(kd::block_shared(device));
  return cudaSuccess;
}

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void* kernel) {
  attributes->sharedSizeBytes = kd::emulated::resources_of(kernel).static_shared;
  return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute, int value) {
  const size_t fixed = kd::emulated::resources_of(kernel).static_shared, most = kd::block_shared(runtime.device);
  if (value < 0 || fixed + static_cast<size_t>(value) > most) {
    return fail(cudaErrorInvalidValue, "a block has " + std::to_string(most) + " bytes of shared memory, asked for " +
                                           std::to_string(fixed) + " static and " + std::to_string(value) + " dynamic");
  }
  runtime.dynamic_shared[{kernel, runtime.device}] = static_cast<size_t>(value);
  return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void* memory, int byte, size_t bytes, cudaStream_t) {
  std::memset(memory, byte, bytes);
  return cudaSuccess;
}

cudaError_t cudaPeekAtLastError() { return runtime.last_error; }

cudaError_t cudaGetLastError() { return std::exchange(runtime.last_error, cudaSuccess); }

const char* cudaGetErrorString(cudaError_t error) { return error == cudaSuccess ? "no error" : runtime.why.c_str(); }
