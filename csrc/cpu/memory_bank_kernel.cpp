// Memory bank NCE on the CPU: rows on all threads (cpu/memory_bank-inl.h, for each instruction set), reduction.
#include "memory_bank.h"
#define KD_ISA_SOURCE "cpu/memory_bank-inl.h"
#include "cpu/each_isa.h"

#include "cpu/memory_bank_kernel.h"

#include <memory>
#include <stdexcept>
#include <string>

namespace kd {
namespace {

void check_index(const MemoryBank& problem) {
  const int64_t count = problem.rows() * problem.columns;
  const uint64_t entries = static_cast<uint64_t>(problem.bank.rows);
  bool bad = false;  // without a branch, so that a million of them take half a millisecond
  for (int64_t i = 0; i < count; ++i) bad |= static_cast<uint64_t>(problem.index[i]) >= entries;
  for (int64_t i = 0; bad && i < count; ++i)
    if (!problem.has_entry(problem.index[i]))
      throw std::invalid_argument("index contains " + std::to_string(problem.index[i]) + ", valid entries are 0.." +
                                  std::to_string(problem.bank.rows - 1));
}

template <class A>
double number(const void* at) {
  return at ? static_cast<double>(*static_cast<const A*>(at)) : std::nan("");
}

double number(const MemoryBank& problem, const void* at) {
  return problem.is_double() ? number<double>(at) : number<float>(at);
}

void set_number(const MemoryBank& problem, void* at, int64_t i, double value) {
  if (problem.is_double()) static_cast<double*>(at)[i] = value;
  else static_cast<float*>(at)[i] = static_cast<float>(value);
}

// body(begin, end, scratch) on all threads, over all rows.
template <class Body>
void each_range(const MemoryBank& problem, const ParallelFor& parallel_for, const Body& body) {
  const int64_t grain = std::max<int64_t>(1, grain_elements / (problem.columns * problem.width()));
  parallel_for(problem.rows(), grain, [&](int64_t begin, int64_t end) {
    const size_t bytes = base::bank_scratch_numbers(problem) * (problem.is_double() ? sizeof(double) : sizeof(float));
    const std::unique_ptr<CacheLine[]> scratch(new CacheLine[bytes / sizeof(CacheLine) + 1]);
    body(begin, end, scratch.get());
  });
}

// Always in the order of the rows: the same for any number of threads.
double sum_of_rows(const MemoryBank& problem) {
  double sum = 0;
  for (int64_t row = 0; row < problem.rows(); ++row) sum += static_cast<const double*>(problem.workspace)[row];
  return sum;
}

}  // namespace

void memory_bank_nce_cpu(const MemoryBank& problem, const ParallelFor& parallel_for) {
  check_index(problem);
  const double log_normalizer = std::log(number(problem, problem.normalizer));
  each_range(problem, parallel_for, [&](int64_t begin, int64_t end, void* scratch) {
    if (problem.is_double()) KD_CALL_ISA(solve_bank_rows_double, problem, log_normalizer, begin, end, scratch);
    else KD_CALL_ISA(solve_bank_rows_float, problem, log_normalizer, begin, end, scratch);
  });
  if (problem.reduction != Reduction::none)
    return set_number(problem, problem.loss, 0, sum_of_rows(problem) * problem.row_share());
  for (int64_t row = 0; row < problem.rows(); ++row)
    set_number(problem, problem.loss, row, static_cast<const double*>(problem.workspace)[row]);
}

void memory_bank_normalizer_cpu(const MemoryBank& problem, const ParallelFor& parallel_for) {
  const double known = number(problem, problem.known_normalizer);
  if (!std::isnan(known)) return set_number(problem, problem.normalizer, 0, known);
  check_index(problem);
  each_range(problem, parallel_for, [&](int64_t begin, int64_t end, void* scratch) {
    if (problem.is_double()) KD_CALL_ISA(sum_bank_rows_double, problem, begin, end, scratch);
    else KD_CALL_ISA(sum_bank_rows_float, problem, begin, end, scratch);
  });
  set_number(problem, problem.normalizer, 0, problem.normalizer_from(sum_of_rows(problem)));
}

}  // namespace kd
