// kd_emulated: the CUDA kernels of csrc/cuda on NumPy arrays, run by the engine of simt_host.h. Test-only, never
// installed; tests/emulated.py builds it. A family binds itself in emulated/STEM.cpp and is listed here.
#include <pybind11/pybind11.h>

#include "cuda/simt.cuh"

namespace py = pybind11;

void bind_half(py::module_& m);
void bind_memory_bank(py::module_& m);
void bind_peer_ensemble(py::module_& m);
void bind_planted(py::module_& m);
void bind_similarity(py::module_& m);
void bind_softened_kl(py::module_& m);

PYBIND11_MODULE(kd_emulated, m) {
  m.def("set_seed", &kd::simt::set_seed, py::arg("seed"),
        "Orders of threads and blocks from now on follow from `seed`; 0: ascending.");
  m.def("launch_count", &kd::simt::launch_count, "Kernels launched so far in this process.");
  bind_half(m);
  bind_memory_bank(m);
  bind_peer_ensemble(m);
  bind_planted(m);
  bind_similarity(m);
  bind_softened_kl(m);
}
