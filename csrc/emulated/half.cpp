// The conversions of csrc/half.h, element by element.
#include "half.h"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

namespace py = pybind11;

void bind_half(py::module_& m) {
  m.def("half_to_float", py::vectorize([](uint16_t bits) { return kd::half_to_float(bits); }));
  m.def("float_to_half", py::vectorize([](float value) { return kd::float_to_half(value); }));
  m.def("bfloat16_to_float", py::vectorize([](uint16_t bits) { return kd::bfloat16_to_float(bits); }));
  m.def("float_to_bfloat16", py::vectorize([](float value) { return kd::float_to_bfloat16(value); }));
}
