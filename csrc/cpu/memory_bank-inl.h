// Memory bank NCE on the CPU, for one instruction set: a range of rows, in one visit to each bank entry.
//
// Entries are gathered 16 at a time: first their inner products, then the 16 losses and weights as vectors, then the weighted
// sum of the same entries, which are in the L1 cache by then. Meanwhile the cache lines of the next 16 are prefetched, because
// a gather from a bank larger than the L2 cache is bound by latency, not by bandwidth. Entries that are whole vectors of the
// arithmetic type are read in place; others are copied and padded with zeros.
//
// Sums over the columns of a row are added to a float64 after 16 entries; the weighted sum is added to a total after 256, so
// that its rounding error grows with the number of parts, not of columns.
#if defined(KD_CPU_MEMORY_BANK_INL_H) == defined(KD_TARGET_TOGGLE)
#ifdef KD_CPU_MEMORY_BANK_INL_H
#undef KD_CPU_MEMORY_BANK_INL_H
#else
#define KD_CPU_MEMORY_BANK_INL_H
#endif

#include <algorithm>
#include <cmath>
#include <limits>

#include "cpu/simd.h"
#include "elements.h"
#include "memory_bank.h"

KD_BEGIN_TARGET

constexpr int64_t gathered = 16;      // a multiple of the lanes of every vector of every instruction set
constexpr int64_t part_blocks = 16;   // of 16 entries, weighted and summed before the total is touched
constexpr int64_t cache_line = 64;

inline int64_t padded_width(const MemoryBank& problem) { return (problem.width() + gathered - 1) / gathered * gathered; }

// Numbers of scratch memory for solve_bank_rows: embedding, part and total of the weighted sum, copied entries.
inline int64_t bank_scratch_numbers(const MemoryBank& problem) { return (3 + gathered) * padded_width(problem); }

// log(1 + x), x >= 0 or NaN: the logarithm of the rounded sum, corrected by what rounding took from it.
KD_INLINE VecF log1p(VecF x) {
  const VecF sum = x + 1.0f;
  const VecF lost = x - (sum - 1.0f);
  return log(sum) + lost / sum;
}

KD_INLINE VecD log1p(VecD x) {
  for (int i = 0; i < Simd<double>::lanes; ++i) x[i] = std::log1p(x[i]);
  return x;
}

// softplus(u) and sigmoid(u) from e^-|u|, which neither overflows nor loses the small one's digits.
template <class A>
KD_INLINE void logistic(Vec<A> u, Vec<A>& softplus, Vec<A>& sigmoid) {
  const Vec<A> zero{};
  const Vec<A> decay = exp_product(select(u > zero, -u, u), A(1));
  const Vec<A> share = A(1) / (decay + A(1));
  softplus = log1p(decay) + select(u > zero, u, zero);
  sigmoid = select(u > zero, share, decay * share);
  softplus = select(u == u, softplus, u);  // NaN stays NaN
  sigmoid = select(u == u, sigmoid, u);
}

// e^x with its overflow to infinity: the vector exponential ends at 88, float at 88.7.
KD_INLINE VecF exp_or_infinity(VecF x) {
  const VecF root = exp(x * 0.5f);
  return select(x == x, select(x > 88.0f, root * root, exp(x)), x);
}

KD_INLINE VecD exp_or_infinity(VecD x) { return exp(x); }

// A row of features in the arithmetic type, with zeros from its end to `padded`.
template <class A>
KD_INLINE void copy_features(const Features& features, int64_t row, A* to, int64_t padded) {
  with_dtype(features.dtype, [&](auto* type) {
    const auto* from = static_cast<decltype(type)>(features.data) + row * features.stride;
    for (int64_t i = 0; i < features.width; ++i) to[i] = static_cast<A>(to_arithmetic(from[i]));
  });
  for (int64_t i = features.width; i < padded; ++i) to[i] = A(0);
}

// The entries of one row's columns, 16 at a time.
template <class A>
class Entries {
 public:
  Entries(const MemoryBank& problem, int64_t row, A* scratch)
      : problem_(problem), index_(problem.index + row * problem.columns), scratch_(scratch), width_(padded_width(problem)) {
    in_place_ = element_size(problem.bank.dtype) == sizeof(A) && problem.width() % gathered == 0;
  }

  // Entries `first`... of the row to `entry`; returns how many.
  KD_INLINE int64_t gather(int64_t first, const A* (&entry)[gathered]) const {
    const int64_t count = std::min(gathered, problem_.columns - first);
    fetch(first + gathered);
    for (int64_t r = 0; r < count; ++r) {
      const int64_t id = index_[first + r];
      entry[r] = in_place_ ? static_cast<const A*>(problem_.bank.data) + id * problem_.bank.stride : scratch_ + r * width_;
      if (!in_place_) copy_features(problem_.bank, id, scratch_ + r * width_, width_);
    }
    return count;
  }

 private:
  KD_INLINE void fetch(int64_t first) const {
    const int64_t end = std::min(first + gathered, problem_.columns), size = element_size(problem_.bank.dtype);
    for (int64_t k = first; k < end; ++k) {
      const char* line = static_cast<const char*>(problem_.bank.data) + index_[k] * problem_.bank.stride * size;
      for (int64_t offset = 0; offset < problem_.width() * size; offset += cache_line) __builtin_prefetch(line + offset);
    }
  }

  const MemoryBank& problem_;
  const int64_t* index_;
  A* const scratch_;
  const int64_t width_;
  bool in_place_;
};

// products[r] = <entry[r], embedding>, r < count; the others are -inf. Four at a time: each vector of the embedding is loaded
// once for all of them, and no addition waits for the last.
template <class A>
KD_INLINE void inner_products(const A* const (&entry)[gathered], int64_t count, const A* embedding, int64_t width,
                              A (&products)[gathered]) {
  constexpr int64_t lanes = Simd<A>::lanes;
  int64_t r = 0;
  for (; r + 4 <= count; r += 4) {
    Vec<A> sum[4] = {};
    for (int64_t i = 0; i < width; i += lanes) {
      const Vec<A> e = load(embedding + i);
      for (int j = 0; j < 4; ++j) sum[j] += load(entry[r + j] + i) * e;
    }
    for (int j = 0; j < 4; ++j) products[r + j] = sum_lanes<A>(sum[j]);
  }
  for (; r < count; ++r) {
    Vec<A> sum{};
    for (int64_t i = 0; i < width; i += lanes) sum += load(entry[r] + i) * load(embedding + i);
    products[r] = sum_lanes<A>(sum);
  }
  for (; r < gathered; ++r) products[r] = -std::numeric_limits<A>::infinity();
}

// sum[i] += sum_r weights[r] entry[r][i].
template <class A>
KD_INLINE void add_weighted(const A* const (&entry)[gathered], int64_t count, const A (&weights)[gathered], int64_t width,
                            A* sum) {
  constexpr int64_t lanes = Simd<A>::lanes;
  for (int64_t i = 0; i < width; i += lanes) {
    Vec<A> even{}, odd{};
    int64_t r = 0;
    for (; r + 2 <= count; r += 2) {
      even += load(entry[r] + i) * weights[r];
      odd += load(entry[r + 1] + i) * weights[r + 1];
    }
    if (r < count) even += load(entry[r] + i) * weights[r];
    store(sum + i, load(sum + i) + (even + odd));
  }
}

// total += part; part = 0.
template <class A>
KD_INLINE void fold(A* part, A* total, int64_t width) {
  constexpr int64_t lanes = Simd<A>::lanes;
  for (int64_t i = 0; i < width; i += lanes) {
    store(total + i, load(total + i) + load(part + i));
    store(part + i, Vec<A>{});
  }
}

// Rows [begin, end): their losses go to problem.workspace, the rest to where it belongs. `log_normalizer`: log Z.
template <class A>
void solve_bank_rows(const MemoryBank& problem, double log_normalizer, int64_t begin, int64_t end, A* scratch) {
  constexpr int64_t lanes = Simd<A>::lanes;
  const int64_t width = padded_width(problem);
  A *embedding = scratch, *part = scratch + width, *total = scratch + 2 * width;
  const A inverse_temperature = static_cast<A>(1 / problem.temperature);
  const A offset = static_cast<A>(log_normalizer + problem.log_noise());
  const A absent = -std::numeric_limits<A>::infinity();
  const A gradient_scale = static_cast<A>(problem.row_share() / problem.temperature);
  const bool has_gradient = problem.grad_embedding.data;

  for (int64_t row = begin; row < end; ++row) {
    copy_features(problem.embedding, row, embedding, width);
    for (int64_t i = 0; i < 2 * width; ++i) part[i] = A(0);
    const Entries<A> entries(problem, row, scratch + 3 * width);
    const A* entry[gathered];
    A logits[gathered], weights[gathered];
    double loss = problem.eps_loss();
    for (int64_t first = 0; first < problem.columns;) {
      for (int64_t block = 0; block < part_blocks && first < problem.columns; ++block, first += gathered) {
        const int64_t count = entries.gather(first, entry);
        inner_products(entry, count, embedding, width, logits);
        if (first == 0)
          static_cast<A*>(problem.positive)[row] =
              static_cast<A>(std::exp(static_cast<double>(logits[0]) / problem.temperature - log_normalizer));
        for (int64_t r = 0; r < gathered; ++r) logits[r] = r < count ? logits[r] * inverse_temperature - offset : absent;
        if (first == 0) logits[0] = -logits[0];  // of the positive not being one
        Vec<A> losses{};
        for (int64_t r = 0; r < gathered; r += lanes) {
          Vec<A> softplus, sigmoid;
          logistic<A>(load(logits + r), softplus, sigmoid);
          losses += softplus;
          store(weights + r, sigmoid);
        }
        loss += static_cast<double>(sum_lanes<A>(losses));
        if (first == 0) weights[0] = -weights[0];
        if (has_gradient) add_weighted(entry, count, weights, width, part);
      }
      if (has_gradient) fold(part, total, width);
    }
    static_cast<double*>(problem.workspace)[row] = loss;
    if (!has_gradient) continue;
    with_dtype(problem.grad_embedding.dtype, [&](auto* type) {
      auto* to = static_cast<decltype(type)>(problem.grad_embedding.data) + row * problem.grad_embedding.stride;
      for (int64_t i = 0; i < problem.width(); ++i) from_arithmetic(total[i] * gradient_scale, to + i);
    });
  }
}

// The sum of exp(score / T) of each row to problem.workspace.
template <class A>
void sum_bank_rows(const MemoryBank& problem, int64_t begin, int64_t end, A* scratch) {
  constexpr int64_t lanes = Simd<A>::lanes;
  const int64_t width = padded_width(problem);
  const A inverse_temperature = static_cast<A>(1 / problem.temperature);
  for (int64_t row = begin; row < end; ++row) {
    copy_features(problem.embedding, row, scratch, width);
    const Entries<A> entries(problem, row, scratch + 3 * width);
    const A* entry[gathered];
    A products[gathered];
    double sum = 0;
    for (int64_t first = 0; first < problem.columns; first += gathered) {
      inner_products(entry, entries.gather(first, entry), scratch, width, products);
      Vec<A> exponentials{};
      for (int64_t r = 0; r < gathered; r += lanes)
        exponentials += exp_or_infinity(load(products + r) * inverse_temperature);
      sum += static_cast<double>(sum_lanes<A>(exponentials));
    }
    static_cast<double*>(problem.workspace)[row] = sum;
  }
}

void solve_bank_rows_float(const MemoryBank& problem, double log_normalizer, int64_t begin, int64_t end, void* scratch) {
  solve_bank_rows(problem, log_normalizer, begin, end, static_cast<float*>(scratch));
}

void solve_bank_rows_double(const MemoryBank& problem, double log_normalizer, int64_t begin, int64_t end, void* scratch) {
  solve_bank_rows(problem, log_normalizer, begin, end, static_cast<double*>(scratch));
}

void sum_bank_rows_float(const MemoryBank& problem, int64_t begin, int64_t end, void* scratch) {
  sum_bank_rows(problem, begin, end, static_cast<float*>(scratch));
}

void sum_bank_rows_double(const MemoryBank& problem, int64_t begin, int64_t end, void* scratch) {
  sum_bank_rows(problem, begin, end, static_cast<double*>(scratch));
}

KD_END_TARGET
#endif
