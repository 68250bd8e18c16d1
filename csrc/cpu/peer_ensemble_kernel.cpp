// Peer ensembles on the CPU: samples on all threads (cpu/peer_ensemble-inl.h and cpu/peer_mixture-inl.h, for each
// instruction set), reduction.
#include "peer_ensemble.h"
#define KD_ISA_SOURCE "cpu/peer_ensemble-inl.h"
#include "cpu/each_isa.h"

#include "cpu/peer_ensemble_kernel.h"

#include <memory>
#include <stdexcept>
#include <string>

namespace kd {
namespace {

void check_labels(const PeerEnsemble& problem) {
  for (int64_t sample = 0; sample < problem.samples; ++sample)
    if (problem.target[sample] < 0 || problem.target[sample] >= problem.classes)
      throw std::invalid_argument("target contains " + std::to_string(problem.target[sample]) + ", valid labels are 0.." +
                                  std::to_string(problem.classes - 1));
}

// body(begin, end, scratch) on all threads, over all samples.
template <class Problem, class Body>
void each_range(const Problem& problem, int64_t scratch_numbers, const ParallelFor& parallel_for, const Body& body) {
  const int64_t grain = std::max<int64_t>(1, grain_elements / (problem.rows() * problem.classes));
  parallel_for(problem.samples, grain, [&](int64_t begin, int64_t end) {
    const size_t bytes = scratch_numbers * (problem.is_double() ? sizeof(double) : sizeof(float));
    const std::unique_ptr<CacheLine[]> scratch(new CacheLine[bytes / sizeof(CacheLine) + 1]);
    body(begin, end, scratch.get());
  });
}

// Always in the order of the samples: the same for any number of threads.
template <class A>
void reduce_samples(const PeerEnsemble& problem) {
  double sums[peer_parts] = {};
  for (int64_t sample = 0; sample < problem.samples; ++sample)
    for (int i = 0; i < peer_parts; ++i) sums[i] += problem.sample_parts[sample * peer_parts + i];
  for (int i = 0; i < peer_parts; ++i) {
    sums[i] *= problem.sample_share();
    static_cast<A*>(problem.parts)[i] = static_cast<A>(sums[i]);
  }
  // A term of weight 0 adds nothing, not even NaN.
  const double divergences = problem.kl_weight != 0 ? problem.kl_weight * (sums[kl_peers] + sums[kl_leader]) : 0;
  *static_cast<A*>(problem.loss) = static_cast<A>(sums[ce_peers] + sums[ce_leader] + divergences);
}

void each_mixture(const PeerMixture& problem, bool backward, const ParallelFor& parallel_for) {
  each_range(problem, base::mixture_scratch_numbers(problem), parallel_for, [&](int64_t begin, int64_t end, void* scratch) {
    if (problem.is_double()) KD_CALL_ISA(mix_samples_double, problem, backward, begin, end, scratch);
    else KD_CALL_ISA(mix_samples_float, problem, backward, begin, end, scratch);
  });
}

}  // namespace

void peer_ensemble_cpu(const PeerEnsemble& problem, const ParallelFor& parallel_for) {
  check_labels(problem);
  each_range(problem, base::peer_scratch_numbers(problem), parallel_for, [&](int64_t begin, int64_t end, void* scratch) {
    if (problem.is_double()) KD_CALL_ISA(solve_samples_double, problem, begin, end, scratch);
    else KD_CALL_ISA(solve_samples_float, problem, begin, end, scratch);
  });
  if (problem.is_double()) reduce_samples<double>(problem);
  else reduce_samples<float>(problem);
}

void peer_mixture_cpu(const PeerMixture& problem, const ParallelFor& parallel_for) {
  each_mixture(problem, false, parallel_for);
}

void peer_mixture_backward_cpu(const PeerMixture& problem, const ParallelFor& parallel_for) {
  each_mixture(problem, true, parallel_for);
}

void scale_gradients_cpu(const GradientList& gradients, const void* upstream, Dtype upstream_dtype,
                         const ParallelFor& parallel_for) {
  const double factor = upstream_dtype == Dtype::float64 ? *static_cast<const double*>(upstream)
                                                         : static_cast<double>(*static_cast<const float*>(upstream));
  if (factor == 1.0) return;
  for (int i = 0; i < most_gradients; ++i)
    parallel_for(gradients.count[i], grain_elements, [&](int64_t begin, int64_t end) {
      with_dtype(gradients.dtype[i], [&](auto* type) {
        auto* numbers = static_cast<decltype(type)>(gradients.data[i]);
        for (int64_t k = begin; k < end; ++k) from_arithmetic(to_arithmetic(numbers[k]) * factor, numbers + k);
      });
    });
}

}  // namespace kd
