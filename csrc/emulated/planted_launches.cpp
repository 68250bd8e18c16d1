// Launches that a GPU refuses, each with a correct twin: tests/test_emulation.py checks that the emulated GPU refuses the first
// and runs the second.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <map>
#include <stdexcept>
#include <string>

#include "cuda/simt.cuh"
#include "emulated/guarded.h"

namespace py = pybind11;

namespace {

using namespace kd::simt;

constexpr size_t declared = 256, KiB = 1024;

// result[i] = values[i] by way of shared memory, `values` and `result` [count], by the first 64 threads of every block.
template <int which>
KD_KERNEL void through_shared(const float* values, int64_t count, float* result) {
  KD_SHARED(float, copy, declared / sizeof(float));
  const int index = thread_index();
  if (index < count) {
    copy[index] = values[index];
    result[index] = copy[index];
  }
}

using Kernel = void (*)(const float*, int64_t, float*);

Kernel with_resources(Kernel kernel, const char* name, int threads, int registers) {
  kd::emulated::set_kernel_resources(reinterpret_cast<const void*>(kernel), {name, threads, registers, declared});
  return kernel;
}

struct Launch {
  Kernel kernel;
  int64_t blocks;
  int cluster, threads;
  size_t shared_bytes;
  int sm = 90;
  bool bare = false;  // only cudaLaunchKernelEx, without cuda/grid.h
};

struct Pair {
  Launch correct, bug;
};

std::map<std::string, Pair> launches() {
  const Kernel small = with_resources(through_shared<0>, "small", 128, 32);
  const Kernel large = with_resources(through_shared<1>, "large", 1024, 96);
  const Kernel other = with_resources(through_shared<2>, "small", 128, 32);
  return {
      {"no_opt_in", {{small, 1, 1, 64, 48 * KiB}, {other, 1, 1, 64, 48 * KiB, 90, true}}},
      {"shared_of_the_device", {{small, 1, 1, 64, 227 * KiB - declared}, {small, 1, 1, 64, 227 * KiB - declared + 1}}},
      {"shared_of_a_smaller_device", {{small, 1, 1, 64, 99 * KiB - declared, 89}, {small, 1, 1, 64, 99 * KiB, 89}}},
      {"threads_of_a_block", {{large, 1, 1, 640, 0}, {large, 1, 1, 1056, 0}}},
      {"threads_of_the_bound", {{small, 1, 1, 128, 0}, {small, 1, 1, 160, 0}}},
      {"registers", {{large, 1, 1, 640, 0}, {large, 1, 1, 672, 0}}},
      {"blocks", {{small, 2, 1, 64, 0}, {small, int64_t{1} << 31, 1, 64, 0, 90, true}}},
      {"large_cluster", {{small, 16, 8, 64, 0}, {small, 16, 16, 64, 0}}},
      {"part_of_a_cluster", {{small, 16, 8, 64, 0}, {small, 12, 8, 64, 0}}},
      {"clusters_of_an_older_device", {{small, 2, 2, 64, 0}, {small, 2, 2, 64, 0, 89}}},
  };
}

void start(const Launch& its, const float* values, int64_t count, float* result) {
  const kd::emulated::OnDevice device(its.sm);
  if (!its.bare) return launch_clusters(its.kernel, its.blocks, its.cluster, its.threads, its.shared_bytes, nullptr, values, count, result);
  cudaLaunchConfig_t how{};
  how.gridDim = static_cast<unsigned>(its.blocks);
  how.blockDim = static_cast<unsigned>(its.threads);
  how.dynamicSmemBytes = its.shared_bytes;
  check(cudaLaunchKernelEx(&how, its.kernel, values, count, result), "bare launch");
}

py::array_t<float> planted_launch(const std::string& name, bool bug, const py::array_t<float, py::array::c_style>& values) {
  const Pair pair = launches().at(name);
  kd::emulated::Guarded input(values.nbytes()), result(values.nbytes());
  std::copy_n(values.data(), values.size(), static_cast<float*>(input.data()));
  start(bug ? pair.bug : pair.correct, static_cast<const float*>(input.data()), values.size(), static_cast<float*>(result.data()));
  result.check("the result");
  return py::array_t<float>(values.size(), static_cast<float*>(result.data()));
}

// Two threads launch one kernel with different sizes, the second between the opt-in and the launch of the first. The bug: each
// opts in to the size of its launch.
template <bool bug>
void planted_race() {
  const Kernel kernel = with_resources(through_shared<bug ? 3 : 4>, "raced", 128, 32);
  const auto opt_in = [&](size_t bytes) {
    const auto address = reinterpret_cast<const void*>(kernel);
    if (bug) check(cudaFuncSetAttribute(address, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)), "opt-in");
    else allow_shared_memory(address);
  };
  opt_in(200 * KiB);
  opt_in(100 * KiB);
  start({kernel, 1, 1, 64, 200 * KiB, 90, true}, nullptr, 0, nullptr);
}

// A refused launch is reported; then another library calls cudaGetLastError, as PyTorch does after its launches. The bug: the
// error was not cleared.
void planted_error(bool bug) {
  const cudaLaunchConfig_t nothing{};
  const cudaError_t status = cudaLaunchKernelEx(&nothing, through_shared<0>, nullptr, 0, nullptr);
  try {
    if (bug) throw std::runtime_error(cudaGetErrorString(status));
    check(status, "bare launch");
  } catch (const std::runtime_error&) {
  }
  if (const cudaError_t found = cudaGetLastError()) throw std::runtime_error(std::string("another library found: ") + cudaGetErrorString(found));
}

}  // namespace

void bind_planted_launches(py::module_& m) {
  m.def("planted_launch", &planted_launch, py::arg("name"), py::arg("bug"), py::arg("values"),
        "Launches a kernel as a line of csrc/emulated/planted_launches.cpp says: the one with the bug or its correct twin.");
  m.def("planted_race", [](bool bug) { bug ? planted_race<true>() : planted_race<false>(); }, py::arg("bug"),
        "A launch after the opt-in of another one.");
  m.def("planted_error", &planted_error, py::arg("bug"), "A refused launch, then a check of the last error.");
}
