// Losses on similarities on the CPU: checks, counts and memory, the phases of each instruction set in their order
// (cpu/similarity-inl.h), reduction.
#include <utility>

#include "cpu/similarity_work.h"

#define KD_ISA_SOURCE "cpu/similarity-inl.h"
#include "cpu/each_isa.h"

#include "cpu/similarity_kernel.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <vector>

#include "cpu/pages.h"

namespace kd {
namespace {

// Below this many multiplications and additions a thread is not worth waking.
constexpr double grain_products = 1e6;

// What bands under way may take together, unless one alone takes more.
constexpr int64_t band_bytes = 26 << 20;

void check_positives(const Similarity& problem) {
  for (int64_t j = 0; j < problem.queries(); ++j)
    if (problem.has_query(j) && (problem.positive_of(j) < 0 || problem.positive_of(j) >= problem.keys()))
      throw std::invalid_argument("positive contains " + std::to_string(problem.positive_of(j)) + ", valid keys are 0.." +
                                  std::to_string(problem.keys() - 1));
}

// Hands out memory piece by piece, each aligned to cache lines; from null, it only counts.
class Cursor {
 public:
  explicit Cursor(unsigned char* begin) : begin_(begin) {}

  template <class T>
  T* take(int64_t count) {
    unsigned char* piece = begin_ ? begin_ + bytes_ : nullptr;
    bytes_ += round_up(count * sizeof(T), sizeof(CacheLine));
    return reinterpret_cast<T*>(piece);
  }

  int64_t bytes() const { return bytes_; }

 private:
  unsigned char* const begin_;
  int64_t bytes_ = 0;
};

template <class A>
class Solver {
 public:
  using Label = typename SimilarityWork<A>::Label;

  Solver(const Similarity& problem, const ParallelFor& parallel_for)
      : problem_(problem), parallel_for_(parallel_for), phases_(KD_CALL_ISA(similarity_phases<A>)) {
    work_.problem = &problem_;
    A temperature = static_cast<A>(problem.temperature);
    if (problem.temperature_at) temperature = *static_cast<const A*>(problem.temperature_at);
    temperature_ = temperature > A(0) ? temperature : std::numeric_limits<A>::quiet_NaN();
    work_.inverse_temperature = A(1) / temperature_;
    allocate();
    for (int64_t j = 0; j < padded_queries(); ++j)
      work_.counted[j] = j < problem.queries() && problem.has_query(j) && problem.keys() > 0;
  }

  // Returns how many bands were computed.
  int64_t solve() {
    prepare();
    find_bands();
    if (counted_bands_.empty()) {  // nothing is compared; keys may hold anything
      zero_rows(problem_.grad_key, 0, problem_.keys());
    } else {
      read_keys();
      if (problem_.symmetric) solve_columns();
      each_superblock([&](int64_t slots, bool more) {
        // The only superblock's similarities are still there from the columns.
        const bool compared = problem_.symmetric && slots == static_cast<int64_t>(counted_bands_.size());
        each_band(slots, [&](int64_t slot) {
          if (!compared) phases_.compare(work_, slot);
          phases_.solve(work_, slot);
        });
        if (problem_.grad_key.data)
          each_key(slots * band_queries * problem_.query.width, [&](int64_t begin, int64_t end) {
            phases_.add_key_products(work_, slots, more, begin, end);
          });
      });
      finish_keys();
    }
    reduce();
    return static_cast<int64_t>(counted_bands_.size());
  }

  void rank(int64_t* ranks) {
    find_bands();
    read_keys();
    each_superblock([&](int64_t slots, bool) {
      each_band(slots, [&](int64_t slot) {
        phases_.compare(work_, slot);
        phases_.rank(work_, slot, ranks);
      });
    });
  }

 private:
  int64_t bands() const { return (problem_.queries() + band_queries - 1) / band_queries; }
  int64_t padded_queries() const { return bands() * band_queries; }
  // A tile of the matrix product reads that many keys, whatever it computes.
  int64_t padded_keys() const { return round_up(problem_.keys(), base::gemm_rows); }

  // --- Memory

  // One piece, of which the C library has the next call reuse the pages.
  void allocate() {
    count_slots();
    Cursor counter(nullptr);
    lay_out(counter);
    memory_.reset(new CacheLine[counter.bytes() / sizeof(CacheLine)]);
    prefer_huge_pages(memory_.get(), counter.bytes());
    Cursor cursor(memory_.get()->bytes);
    lay_out(cursor);
    for (const auto& [keys, features] : {std::pair{work_.key, problem_.key}, {work_.teacher_key, problem_.teacher_key}})
      if (keys.rows)
        std::fill_n(keys.rows + problem_.keys() * keys.stride, (padded_keys() - problem_.keys()) * keys.stride, A(0));
  }

  int64_t panel_numbers() const {
    const int64_t width = problem_.query.width, teacher = problem_.teacher_query.data ? problem_.teacher_query.width : 0;
    return round_up(std::max(width, teacher), band_queries) * band_queries;
  }
  bool has_others() const { return problem_.teacher_query.data || problem_.symmetric; }

  void count_slots() {
    const int64_t numbers = (1 + has_others()) * padded_keys() * band_queries + 3 * panel_numbers();
    slots_.resize(std::min<int64_t>(bands(), std::max<int64_t>(1, band_bytes / (numbers * sizeof(A)))));
    work_.slots = slots_.data();
  }

  void lay_out(Cursor& memory) {
    const int64_t queries = padded_queries(), keys = problem_.keys(), matrix = padded_keys() * band_queries;
    for (BandSlot<A>& slot : slots_) {
      slot.logits = memory.take<A>(matrix);
      slot.others = has_others() ? memory.take<A>(matrix) : nullptr;
      for (A** panel : {&slot.rows, &slot.columns, &slot.products}) *panel = memory.take<A>(panel_numbers());
      for (A** row : {&slot.inverse_norms, &slot.max, &slot.other_max}) *row = memory.take<A>(band_queries);
    }
    work_.key = unit_keys(problem_.key, memory);
    if (problem_.teacher_key.data) work_.teacher_key = unit_keys(problem_.teacher_key, memory);
    for (A** row : {&work_.counted, &work_.loss_scales, &work_.gradient_scales, &work_.row_losses,
                    &work_.temperature_terms, &work_.positives})
      *row = memory.take<A>(queries);
    work_.labels = memory.take<Label>(queries);
    work_.key_labels = memory.take<Label>(keys);
    if (problem_.symmetric) {
      for (A** column : {&work_.column_max, &work_.column_sum, &work_.column_weights}) *column = memory.take<A>(keys);
      work_.column_wanted = memory.take<bool>(keys);
    }
    if (!problem_.grad_key.data) return;
    const bool in_place = element_size(problem_.grad_key.dtype) == sizeof(A);
    work_.key_product_stride = in_place ? problem_.grad_key.stride : problem_.key.width;
    work_.key_products = in_place ? static_cast<A*>(problem_.grad_key.data) : memory.take<A>(keys * problem_.key.width);
  }

  UnitKeys<A> unit_keys(const Features& features, Cursor& memory) const {
    // An odd number of vectors: columns of the matrix do not all fall into the same few sets of a cache.
    const int64_t lanes = base::padded_lanes, width = round_up(features.width, base::gemm_rows);
    const int64_t stride = (round_up(width, lanes) / lanes | 1) * lanes;
    return {memory.take<A>(padded_keys() * stride), stride, memory.take<A>(problem_.keys())};
  }

  // --- What is known before any similarity is

  void prepare() {
    if (problem_.target == KeyTarget::labels) number_labels();
    int64_t counted = 0;
    for (int64_t j = 0; j < problem_.queries(); ++j) counted += work_.counted[j] != A(0);
    if (problem_.reduction == Reduction::batchmean || problem_.reduction == Reduction::elementmean)
      divisor_ = static_cast<double>(std::max<int64_t>(1, counted));
    if (problem_.reduction == Reduction::elementmean) divisor_ *= static_cast<double>(std::max<int64_t>(1, problem_.keys()));

    const A* weights = static_cast<const A*>(problem_.row_weight);
    for (int64_t j = 0; j < padded_queries(); ++j) {
      work_.loss_scales[j] = work_.gradient_scales[j] = work_.row_losses[j] = work_.temperature_terms[j] = 0;
      if (work_.counted[j] == A(0)) continue;
      work_.loss_scales[j] = (weights ? weights[j] : A(1)) * (problem_.scale_by_t2 ? temperature_ * temperature_ : A(1));
      work_.gradient_scales[j] = work_.loss_scales[j] * static_cast<A>(1 / divisor_) * work_.inverse_temperature;
    }
  }

  // The bands with a query that counts. The queries of the others have a gradient of 0.
  void find_bands() {
    for (int64_t band = 0; band < bands(); ++band) {
      const A* counted = work_.counted + band * band_queries;
      if (std::any_of(counted, counted + band_queries, [](A one) { return one != A(0); })) counted_bands_.push_back(band);
      else zero_rows(problem_.grad_query, band * band_queries, std::min((band + 1) * band_queries, problem_.queries()));
    }
  }

  static void zero_rows(const Features& gradient, int64_t begin, int64_t end) {
    const int64_t size = element_size(gradient.dtype);
    for (int64_t row = begin; gradient.data && row < end; ++row)
      std::memset(static_cast<char*>(gradient.data) + row * gradient.stride * size, 0, gradient.width * size);
  }

  // Labels as small numbers, in the order in which the keys have them, and positives of each query. A query without does
  // not count.
  void number_labels() {
    const int64_t queries = problem_.queries(), keys = problem_.keys();
    std::unordered_map<int64_t, Label> numbers;
    std::vector<int64_t> keys_of;
    for (int64_t k = 0; k < keys; ++k) {
      const auto place = numbers.emplace(problem_.key_labels[k], static_cast<Label>(keys_of.size())).first;
      if (place->second == static_cast<Label>(keys_of.size())) keys_of.push_back(0);
      work_.key_labels[k] = place->second;
      ++keys_of[place->second];
    }
    for (int64_t j = queries; j < padded_queries(); ++j) work_.labels[j] = -1, work_.positives[j] = 0;
    for (int64_t j = 0; j < queries; ++j) {
      const auto place = numbers.find(problem_.query_labels[j]);
      work_.labels[j] = place == numbers.end() ? Label(-1) : place->second;
      int64_t positives = place == numbers.end() ? 0 : keys_of[place->second];
      const int64_t own = problem_.own_key < 0 ? keys : problem_.own_key + j;
      positives -= own < keys && work_.key_labels[own] == work_.labels[j];
      work_.positives[j] = static_cast<A>(positives);
      if (positives == 0) work_.counted[j] = 0;
    }
  }

  // --- Phases

  void read_keys() {
    const int64_t width = problem_.key.width + (problem_.teacher_key.data ? problem_.teacher_key.width : 0);
    parallel_for_(problem_.keys(), std::max<int64_t>(1, grain_elements / std::max<int64_t>(1, width)),
                  [&](int64_t begin, int64_t end) { phases_.read_keys(work_, begin, end); });
  }

  // body(number of slots, whether others came before) for as many bands at a time as there are slots.
  template <class Body>
  void each_superblock(const Body& body) {
    const int64_t all = static_cast<int64_t>(counted_bands_.size()), most = static_cast<int64_t>(slots_.size());
    for (int64_t begin = 0; begin < all; begin += most) {
      const int64_t slots = std::min(most, all - begin);
      for (int64_t slot = 0; slot < slots; ++slot) slots_[slot].band = counted_bands_[begin + slot];
      body(slots, begin > 0);
    }
  }

  // body(slot) on all threads.
  template <class Body>
  void each_band(int64_t slots, const Body& body) const {
    const double products = 3.0 * band_queries * problem_.keys() * std::max<int64_t>(1, problem_.query.width);
    parallel_for_(slots, 1 + static_cast<int64_t>(grain_products / products), [&](int64_t begin, int64_t end) {
      for (int64_t slot = begin; slot < end; ++slot) body(slot);
    });
  }

  // body(begin, end) on all threads, over all keys; whole tiles of the matrix product.
  template <class Body>
  void each_key(int64_t products_per_key, const Body& body) const {
    constexpr int64_t tile = base::gemm_rows;
    const double products = static_cast<double>(tile * std::max<int64_t>(1, products_per_key));
    parallel_for_(padded_keys() / tile, 1 + static_cast<int64_t>(grain_products / products),
                  [&](int64_t begin, int64_t end) {
                    body(begin * tile, std::min(end * tile, problem_.keys()));
                  });
  }

  // The softmaxes of the columns that are somebody's positive, and how much their gradients weigh.
  void solve_columns() {
    const int64_t keys = problem_.keys();
    std::fill_n(work_.column_max, keys, -std::numeric_limits<A>::infinity());
    std::fill_n(work_.column_sum, keys, A(0));
    std::fill_n(work_.column_weights, keys, A(0));
    std::fill_n(work_.column_wanted, keys, false);
    for (int64_t j = 0; j < problem_.queries(); ++j) {
      if (work_.counted[j] == A(0)) continue;
      work_.column_weights[problem_.positive_of(j)] += work_.gradient_scales[j] / 2;
      work_.column_wanted[problem_.positive_of(j)] = true;
    }
    each_superblock([&](int64_t slots, bool) {
      each_band(slots, [&](int64_t slot) { phases_.compare(work_, slot); });
      each_key(slots * band_queries, [&](int64_t begin, int64_t end) {
        phases_.add_columns(work_, slots, begin, end);
      });
    });
  }

  void finish_keys() const {
    if (!problem_.grad_key.data) return;
    parallel_for_(problem_.keys(), std::max<int64_t>(1, grain_elements / problem_.key.width),
                  [&](int64_t begin, int64_t end) { phases_.finish_keys(work_, begin, end); });
  }

  // Always summed in the order of the queries, in double: the same for any number of threads.
  void reduce() const {
    double loss = 0, along = 0;
    for (int64_t j = 0; j < problem_.queries(); ++j) {
      loss += work_.row_losses[j];
      along += work_.temperature_terms[j];
    }
    if (problem_.reduction == Reduction::none)
      std::copy_n(work_.row_losses, problem_.queries(), static_cast<A*>(problem_.loss));
    else *static_cast<A*>(problem_.loss) = static_cast<A>(loss / divisor_);
    if (problem_.grad_temperature)
      *static_cast<A*>(problem_.grad_temperature) = static_cast<A>(-along / static_cast<double>(temperature_));
  }

  const Similarity problem_;
  const ParallelFor& parallel_for_;
  const SimilarityPhases<A> phases_;
  std::unique_ptr<CacheLine[]> memory_;
  SimilarityWork<A> work_;
  std::vector<BandSlot<A>> slots_;
  std::vector<int64_t> counted_bands_;  // have a query that counts
  A temperature_;
  double divisor_ = 1;
};

// A ranking as the problem that has the same similarities.
Similarity similarity_of(const SimilarityRank& problem) {
  Similarity similarity;
  similarity.query = problem.query;
  similarity.key = problem.key;
  similarity.positive = problem.positive;
  similarity.normalize = problem.normalize;
  return similarity;
}

}  // namespace

int64_t similarity_cpu(const Similarity& problem, const ParallelFor& parallel_for) {
  if (problem.target == KeyTarget::positive) check_positives(problem);
  return problem.is_double() ? Solver<double>(problem, parallel_for).solve() : Solver<float>(problem, parallel_for).solve();
}

void similarity_rank_cpu(const SimilarityRank& problem, const ParallelFor& parallel_for) {
  const Similarity similarity = similarity_of(problem);
  check_positives(similarity);
  if (similarity.is_double()) Solver<double>(similarity, parallel_for).rank(problem.rank);
  else Solver<float>(similarity, parallel_for).rank(problem.rank);
}

}  // namespace kd
