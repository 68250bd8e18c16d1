// The CPU kernels of the family, on plain pointers: used by the op library and, on NumPy arrays, by kdkernels._host.
#pragma once
#include "cpu/threads.h"
#include "similarity.h"

namespace kd {

// Solves the problem; std::invalid_argument for a positive that is no key. The result does not depend on the number of
// threads. Memory beyond the problem's own: the keys in the arithmetic type, the teacher's too, and bands of similarities.
// A band of 64 queries without one that counts is skipped; returns how many were not.
int64_t similarity_cpu(const Similarity& problem, const ParallelFor& parallel_for);

// From the same similarities, to the bit.
void similarity_rank_cpu(const SimilarityRank& problem, const ParallelFor& parallel_for);

}  // namespace kd
