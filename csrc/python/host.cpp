// kdkernels._host: what needs no tensor and no torch. Facts compiled in by setup.py, and the instruction set of this
// library's own copy of the CPU kernels (the op library has another, see csrc/library.cpp).
#include <pybind11/pybind11.h>

#include "build_facts.h"  // written by setup.py
#include "cpu/isa.h"

namespace py = pybind11;

// python/NAME.cpp
void bind_launch_plan(py::module_& m);
void bind_memory_bank(py::module_& m);
void bind_multi_head_kl(py::module_& m);
void bind_peer_ensemble(py::module_& m);
void bind_similarity(py::module_& m);
void bind_row_loss(py::module_& m);

namespace {

std::string compiler() {
#if defined(__clang__)
  return "clang " __clang_version__;
#elif defined(__GNUC__)
  return "g++ " __VERSION__;
#else
  return "unknown";
#endif
}

// {name: text or None}
py::dict build_facts() {
  auto text_or_none = [](const char* text) -> py::object { return *text ? py::object(py::str(text)) : py::none(); };
  py::dict facts;
  facts["torch"] = KD_BUILT_TORCH;
  facts["compiler"] = compiler();
  facts["cuda"] = text_or_none(KD_BUILT_CUDA);
  facts["architectures"] = text_or_none(KD_BUILT_ARCHITECTURES);
  return facts;
}

py::list available_isas() {
  py::list names;
  for (kd::Isa isa : kd::available_isas()) names.append(kd::isa_name(isa));
  return names;
}

}  // namespace

PYBIND11_MODULE(_host, m) {
  m.doc() = "Parts of kdkernels that need no torch: build facts, instruction sets, launch plans, CPU kernels on NumPy arrays.";
  m.def("build_facts", &build_facts, "What this package was built with: torch, compiler, cuda, architectures.");
  m.def("cpu_isa", [] { return kd::isa_name(kd::isa_in_use()); }, "The instruction set in use.");
  m.def("available_isas", &available_isas, "The instruction sets this machine can run, slowest first.");
  bind_launch_plan(m);
  bind_memory_bank(m);
  bind_multi_head_kl(m);
  bind_peer_ensemble(m);
  bind_similarity(m);
  bind_row_loss(m);
  m.def("set_isa", &kd::set_isa, py::arg("name"), "Chooses the instruction set of the functions of this module.");
}
