// kd_emulated: the CUDA kernels of csrc/cuda on NumPy arrays, run by the engine of simt_host.h. Test-only, never
// installed; tests/emulated.py builds it. A family binds itself in emulated/STEM.cpp and is listed here.
#include <dlfcn.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <tuple>
#include <vector>

#include "cuda/simt.cuh"

namespace py = pybind11;

void bind_half(py::module_& m);
void bind_memory_bank(py::module_& m);
void bind_multi_head_kl(py::module_& m);
void bind_peer_ensemble(py::module_& m);
void bind_planted(py::module_& m);
void bind_planted_launches(py::module_& m);
void bind_similarity(py::module_& m);
void bind_row_loss(py::module_& m);

namespace {

// (address in the module's file, name, threads, registers, static shared memory)
using Resources = std::tuple<size_t, std::string, int, int, size_t>;

void set_kernel_resources(const std::vector<Resources>& kernels) {
  Dl_info module;
  dladdr(reinterpret_cast<const void*>(&set_kernel_resources), &module);
  for (const auto& [address, name, threads, registers, static_shared] : kernels) {
    kd::emulated::set_kernel_resources(static_cast<const char*>(module.dli_fbase) + address,
                                       {name, threads, registers, static_shared});
  }
}

}  // namespace

PYBIND11_MODULE(kd_emulated, m) {
  m.def("set_seed", &kd::simt::set_seed, py::arg("seed"),
        "Orders of threads and blocks from now on follow from `seed`; 0: ascending.");
  m.def("launch_count", &kd::simt::launch_count, "Kernels launched so far in this process.");
  m.def("set_kernel_resources", &set_kernel_resources, py::arg("kernels"),
        "What kernels take of a GPU, by their addresses in the file of this module.");
  m.def("last_error", [] { return static_cast<int>(cudaPeekAtLastError()); }, "As the CUDA runtime numbers it; 0: none.");
  m.def("barrier_count", &kd::simt::barrier_count, "Barriers of blocks so far in this process.");
  bind_half(m);
  bind_memory_bank(m);
  bind_multi_head_kl(m);
  bind_peer_ensemble(m);
  bind_planted(m);
  bind_planted_launches(m);
  bind_similarity(m);
  bind_row_loss(m);
}
