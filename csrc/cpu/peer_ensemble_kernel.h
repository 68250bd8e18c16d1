// The CPU kernels of the family, on plain pointers: used by the op library and, on NumPy arrays, by kdkernels._host.
#pragma once
#include "cpu/threads.h"
#include "gradient_list.h"
#include "peer_ensemble.h"

namespace kd {

// Loss, parts and gradients; std::invalid_argument for a label out of range. A sample is one thread's, and what samples add
// to the loss is summed in their order: the result does not depend on how they are split.
void peer_ensemble_cpu(const PeerEnsemble& problem, const ParallelFor& parallel_for);

// The mixture with its attention, and the gradients given that attention.
void peer_mixture_cpu(const PeerMixture& problem, const ParallelFor& parallel_for);
void peer_mixture_backward_cpu(const PeerMixture& problem, const ParallelFor& parallel_for);

// gradients *= upstream, one number; nothing where it is 1.
void scale_gradients_cpu(const GradientList& gradients, const void* upstream, Dtype upstream_dtype,
                         const ParallelFor& parallel_for);

}  // namespace kd
