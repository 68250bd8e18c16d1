// Every operator of the package, on one screen. Kernels register themselves: csrc/cpu/STEM.cpp and csrc/cuda/STEM.cu.
//
// Integers that stand for names (source, divergence, reduction) are the enums of csrc/softened_kl.h.
#include "stable.h"

STABLE_TORCH_LIBRARY(kdkernels, m) {
  // Row losses. Gradients belong to an upstream gradient of 1; a gradient not asked for is empty, and so is `parts`
  // ([2, *loss.shape]: soft and hard term, unweighted) without a target. groups = 0: the loss is a scalar (or has the row
  // shape, for reduction "none"); groups > 0: dimension 0 is split off and the loss is [groups].
  m.def(
      "softened_kl(Tensor student, Tensor teacher, Tensor? target, Tensor? mask, Tensor? row_weight, "
      "Tensor? row_temperature, float temperature, int source, int divergence, float beta, float target_eps, "
      "bool scale_by_t2, float kl_weight, float ce_weight, float label_smoothing, int ignore_index, int reduction, "
      "int groups, int dim, bool grad_student, bool grad_teacher) "
      "-> (Tensor loss, Tensor parts, Tensor grad_student, Tensor grad_teacher)");

  // Multiplies a gradient by the upstream gradient of its loss: a scalar, or one number per row. Does nothing where that
  // is 1, and finds out on the device.
  m.def("scale_gradient_(Tensor(a!) gradient, Tensor upstream, int dim) -> ()");

  // The instruction set of the CPU kernels: "base", "avx2" or "avx512".
  m.def("cpu_isa() -> str");
  m.def("set_cpu_isa(str name) -> ()");
}
