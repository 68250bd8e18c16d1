// The functions of the CUDA runtime that cuda/grid.h calls, for an emulated GPU. They refuse the launches that a GPU refuses,
// return the same error codes and keep the last error; the messages say more.
//
// The emulated GPU is given by its compute capability, which is also its device number. The resources of a kernel (launch
// bound, registers, static shared memory) are those of the compiled library: tests/kernel_resources.py reads them, and
// set_kernel_resources passes them on. A kernel without an entry counts as if it needed none.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>

enum cudaError_t : int {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorLaunchOutOfResources = 701,
  cudaErrorInvalidClusterSize = 912,
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
enum cudaDeviceAttr { cudaDevAttrMaxSharedMemoryPerBlockOptin };
enum cudaLaunchAttributeID { cudaLaunchAttributeClusterDimension };
using cudaStream_t = void*;

struct cudaFuncAttributes {
  size_t sharedSizeBytes;
};

struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  struct {
    struct {
      unsigned x, y, z;
    } clusterDim;
  } val;
};

struct cudaLaunchConfig_t {
  unsigned gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};

cudaError_t cudaGetDevice(int* device);
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void* kernel);
cudaError_t cudaMemsetAsync(void* memory, int byte, size_t bytes, cudaStream_t stream);
cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value);
cudaError_t cudaPeekAtLastError();
cudaError_t cudaGetLastError();
const char* cudaGetErrorString(cudaError_t error);

namespace kd::emulated {

struct KernelResources {
  std::string name;
  int threads = 1024;        // launch bound: the most threads of a block
  int registers = 0;         // per thread
  size_t static_shared = 0;  // bytes
};

// To be called before the first launch of the kernel.
void set_kernel_resources(const void* kernel, KernelResources resources);

// The GPU of the launches in its scope, by compute capability. Outside of any it is 90, for 9.0.
struct OnDevice {
  explicit OnDevice(int sm);
  ~OnDevice();
};

// cudaSuccess, or why the GPU refuses the launch.
cudaError_t check_launch(const cudaLaunchConfig_t& how, const void* kernel);

// Static plus dynamic shared memory that a block of the kernel may have on the current GPU.
size_t allowed_shared(const void* kernel);

}  // namespace kd::emulated
