// Losses on similarities on the CPU, for one instruction set: the phases of cpu/similarity_work.h.
//
// A band of 64 queries is a panel of the matrix product, the queries being its columns. So are they the lanes of vectors in
// every sweep over the keys, and a softmax over the keys needs no sum across lanes:
//
//     compare   S^T = V U^T, the teacher's too; the largest logit of each query
//     solve     weights of the softmaxes and their sums     the only sweep with exponentials
//               loss; H^T in place; M^T = V^T H^T, and from that the gradient of the queries
//     keys      H^T U, added to what earlier bands gave
//
// Keys are taken in blocks that stay in the cache from one of these steps to the next, and sums are taken by blocks, so that
// rounding errors grow with their number. Columns of a band beyond the last query hold rows of 0, as do those of queries
// that do not count, whose H is set to 0 too. A band without a query that counts is skipped.
// No intrinsics, no #if.
#if defined(KD_CPU_SIMILARITY_INL_H) == defined(KD_TARGET_TOGGLE)
#ifdef KD_CPU_SIMILARITY_INL_H
#undef KD_CPU_SIMILARITY_INL_H
#else
#define KD_CPU_SIMILARITY_INL_H
#endif

#include <cmath>
#include <cstring>
#include <limits>

#include "cpu/gemm-inl.h"
#include "cpu/similarity_rows-inl.h"
#include "cpu/similarity_targets-inl.h"
#include "cpu/similarity_work.h"

KD_BEGIN_TARGET

static_assert(band_queries == panel_columns, "a band is a panel");

// Whole tiles of the matrix product, and not more steps than it takes at once.
constexpr int64_t block_keys = gemm_steps / gemm_rows * gemm_rows;

// body(begin, end) for each block of keys.
template <class Body>
KD_INLINE void each_block(int64_t keys, const Body& body) {
  for (int64_t begin = 0; begin < keys; begin += block_keys)
    body(begin, keys - begin < block_keys ? keys : begin + block_keys);
}

// --- Reading -----------------------------------------------------------------------------------------------------------

template <class A>
void read_keys_of(const Features& features, bool normalize, const UnitKeys<A>& keys, int64_t begin, int64_t end) {
  if (!keys.rows) return;
  for (int64_t k = begin; k < end; ++k)
    keys.inverse_norms[k] = unit_row(features, k, normalize, keys.rows + k * keys.stride, panel_columns, keys.stride);
}

template <class A>
void read_keys(const SimilarityWork<A>& work, int64_t begin, int64_t end) {
  const Similarity& problem = *work.problem;
  read_keys_of(problem.key, problem.normalize, work.key, begin, end);
  read_keys_of(problem.teacher_key, problem.normalize, work.teacher_key, begin, end);
}

// A band's queries, by rows to slot.rows and by columns to `columns`.
template <class A>
void read_queries(const SimilarityWork<A>& work, const Features& features, const BandSlot<A>& slot, A* columns) {
  constexpr int64_t block = panel_columns * panel_columns;
  const int64_t first = slot.band * band_queries, padded = padded_queries(*work.problem, slot.band);
  const int64_t width = round_up(features.width, panel_columns), blocks = width / panel_columns;
  for (int64_t j = 0; j < padded; ++j) {
    A* row = slot.rows + j * panel_columns;
    slot.inverse_norms[j] = 1;
    if (work.counted[first + j] != A(0)) {
      slot.inverse_norms[j] = unit_row(features, first + j, work.problem->normalize, row, block, width);
    } else {
      for (int64_t b = 0; b < blocks; ++b)
        for (int64_t i = 0; i < panel_columns; ++i) row[b * block + i] = 0;
    }
  }
  for (int64_t b = 0; b < blocks; ++b) turn_block(slot.rows + b * block, padded, panel_columns, columns + b * block);
}

// --- Similarities ------------------------------------------------------------------------------------------------------

// One of the two softmaxes: unit queries by columns, unit keys, and where their logits go.
template <class A>
struct Comparison {
  const UnitKeys<A>& keys;
  const A* columns;
  int64_t width;
  A *logits, *max;
  bool biased;
};

// Similarities of the keys [begin, end) to s = A / T + bias. The teacher's have no bias, but the same scale.
template <class A>
void add_bias(const SimilarityWork<A>& work, int64_t band, const Comparison<A>& pair, int64_t begin, int64_t end) {
  const Similarity& problem = *work.problem;
  const int64_t first = band * band_queries, padded = padded_queries(problem, band);
  const A* bias = static_cast<const A*>(problem.bias);
  for (int64_t k = begin; k < end; ++k)
    for (int64_t j = 0; j < padded; ++j) {
      A& logit = pair.logits[k * band_queries + j];
      logit *= work.inverse_temperature;
      if (pair.biased && work.counted[first + j] != A(0))
        logit += bias[(first + j) * problem.bias_query_stride + k * problem.bias_key_stride];
    }
}

// Logits of a band and the keys [begin, end), and the largest so far.
template <class A>
void compare_block(const SimilarityWork<A>& work, int64_t band, const Comparison<A>& pair, int64_t begin, int64_t end) {
  const Similarity& problem = *work.problem;
  const int64_t padded = padded_queries(problem, band), first = band * band_queries, stride = pair.keys.stride;
  gemm<A>({pair.keys.rows + begin * stride, stride, 1}, pair.columns, round_up(end - begin, gemm_rows), padded,
          pair.width, pair.logits + begin * band_queries, band_queries, false);
  if (problem.bias) add_bias(work, band, pair, begin, end);
  if (problem.own_key >= 0)
    for (int64_t j = 0; j < queries_of(problem, band); ++j) {
      const int64_t own = problem.own_key + first + j;
      if (own >= begin && own < end) pair.logits[own * band_queries + j] = -std::numeric_limits<A>::infinity();
    }
  for (int64_t v = 0; v < padded; v += Simd<A>::lanes) {
    Vec<A> largest = load(pair.max + v);
    for (int64_t k = begin; k < end; ++k) {
      const Vec<A> logit = load(pair.logits + k * band_queries + v);
      largest = select(logit > largest, logit, largest);
    }
    store(pair.max + v, largest);
  }
}

template <class A>
void compare(const SimilarityWork<A>& work, int64_t number) {
  const Similarity& problem = *work.problem;
  const BandSlot<A>& slot = work.slots[number];
  const int64_t band = slot.band;
  const A none = -std::numeric_limits<A>::infinity();
  for (int64_t j = 0; j < band_queries; ++j) slot.max[j] = slot.other_max[j] = none;
  const Comparison<A> student{work.key, slot.columns, problem.query.width, slot.logits, slot.max, true};
  const Comparison<A> teacher{work.teacher_key, slot.products, problem.teacher_query.width, slot.others, slot.other_max,
                              false};
  const bool has_teacher = work.teacher_key.rows;
  if (has_teacher) read_queries(work, problem.teacher_query, slot, slot.products);
  read_queries(work, problem.query, slot, slot.columns);
  each_block(problem.keys(), [&](int64_t begin, int64_t end) {
    compare_block(work, band, student, begin, end);
    if (has_teacher) compare_block(work, band, teacher, begin, end);
  });
  // Without a key there is no largest logit; from 0, the weights of all keys are 0.
  for (int64_t j = 0; j < band_queries; ++j) {
    if (slot.max[j] == none) slot.max[j] = 0;
    if (slot.other_max[j] == none) slot.other_max[j] = 0;
  }
}

// --- Columns -----------------------------------------------------------------------------------------------------------

// The softmax of column k over the queries of the bands in the slots, added to that over earlier ones.
template <class A>
void add_columns(const SimilarityWork<A>& work, int64_t slots, int64_t begin, int64_t end) {
  const A none = -std::numeric_limits<A>::infinity(), scale = logit_scale(work);
  // body(logits, those that count) for each vector of queries.
  const auto each_vector = [&](int64_t k, const auto& body) {
    for (int64_t s = 0; s < slots; ++s) {
      const BandSlot<A>& slot = work.slots[s];
      for (int64_t v = 0; v < padded_queries(*work.problem, slot.band); v += Simd<A>::lanes)
        body(load(slot.logits + k * band_queries + v), load(work.counted + slot.band * band_queries + v) != A(0));
    }
  };
  for (int64_t k = begin; k < end; ++k) {
    if (!work.column_wanted[k]) continue;
    Vec<A> largest = splat(none), sum = {};
    each_vector(k, [&](Vec<A> logit, Lanes<A> counted) {
      largest = select(counted & (logit > largest), logit, largest);
    });
    const A before = work.column_max[k], here = max_lanes<A>(largest), max = here > before ? here : before;
    each_vector(k, [&](Vec<A> logit, Lanes<A> counted) {
      sum += select(counted, exp_product(select(counted, logit - max, Vec<A>{}), scale), Vec<A>{});
    });
    const A kept = before == none ? A(0) : work.column_sum[k] * std::exp((before - max) * scale);
    work.column_max[k] = max;
    work.column_sum[k] = max == none ? A(0) : kept + sum_lanes<A>(sum);
  }
}

// --- Losses and gradients ----------------------------------------------------------------------------------------------

// From M: what temperature gets from each query, and the gradient of the queries.
template <class A>
void finish_queries(const Band<A>& band) {
  const Similarity& problem = band.problem;
  const int64_t width = problem.query.width;
  for (int64_t v = 0; v < band.padded; v += Simd<A>::lanes) {
    Vec<A> along = {};
    for (int64_t begin = 0; begin < width; begin += panel_columns) {
      Vec<A> part = {};
      for (int64_t d = begin; d < width && d < begin + panel_columns; ++d)
        part += load(band.slot.products + d * band_queries + v) * load(band.slot.columns + d * band_queries + v);
      along += part;
    }
    store(band.work.temperature_terms + band.first + v, select(band.counted(v), along, Vec<A>{}));
    const Vec<A> inverse_norms = load(band.slot.inverse_norms + v);
    Lanes<A> has_gradient = band.counted(v);
    if (problem.normalize) {
      const Lanes<A> is_short = inverse_norms == largest_inverse_norm<A>();
      along = select(is_short, Vec<A>{}, along);
      if (short_rows_are_constant(problem.query.dtype)) has_gradient = has_gradient & ~is_short;
    } else {
      along = Vec<A>{};
    }
    for (int64_t d = 0; d < width; ++d) {
      A* product = band.slot.products + d * band_queries + v;
      const Vec<A> unit = load(band.slot.columns + d * band_queries + v);
      store(product, select(has_gradient, (load(product) - unit * along) * inverse_norms, Vec<A>{}));
    }
  }
  if (!problem.grad_query.data) return;
  A turned[panel_columns * panel_columns];
  for (int64_t d = 0; d < width; d += panel_columns) {
    turn_block(band.slot.products + d * band_queries, panel_columns, band.padded, turned);
    for (int64_t j = 0; j < band.queries; ++j)
      store_row(turned + j * panel_columns, width - d < panel_columns ? width - d : panel_columns, problem.grad_query,
                band.first + j, d);
  }
}

template <class A, template <class> class Target>
void solve_target(const SimilarityWork<A>& work, int64_t slot) {
  Band<A> band(work, slot);
  const Similarity& problem = band.problem;
  Target<A> target(band);
  each_block(problem.keys(), [&](int64_t begin, int64_t end) {
    for (int64_t v = 0; v < band.padded; v += Simd<A>::lanes) {
      Vec<A> part[3] = {};
      for (int64_t k = begin; k < end; ++k) target.add(k, v, part);
      for (int i = 0; i < 3; ++i) store(band.sums[i] + v, load(band.sums[i] + v) + part[i]);
    }
  });
  for (int64_t v = 0; v < band.padded; v += Simd<A>::lanes) {
    const Vec<A> loss = target.value(v) * load(work.loss_scales + band.first + v);
    store(work.row_losses + band.first + v, select(band.counted(v), loss, Vec<A>{}));
  }
  if (!problem.wants_gradient()) return;

  const bool for_queries = problem.grad_query.data || problem.grad_temperature;
  each_block(problem.keys(), [&](int64_t begin, int64_t end) {
    for (int64_t v = 0; v < band.padded; v += Simd<A>::lanes) {
      // A query without a key has a loss of NaN and no gradient.
      const Lanes<A> counted = band.counted(v) & (load(band.sums[0] + v) != A(0));
      for (int64_t k = begin; k < end; ++k)
        store(band.logits(k, v), select(counted, target.gradient(k, v), Vec<A>{}));
    }
    target.correct(begin, end);
    if (for_queries)
      gemm<A>({work.key.rows + begin * work.key.stride, 1, work.key.stride}, band.logits(begin, 0), problem.query.width,
              band.padded, end - begin, band.slot.products, band_queries, begin > 0);
  });
  if (for_queries) finish_queries(band);
}

template <class A>
void solve(const SimilarityWork<A>& work, int64_t slot) {
  switch (work.problem->target) {
    case KeyTarget::labels: return solve_target<A, LabelsTarget>(work, slot);
    case KeyTarget::teacher: return solve_target<A, TeacherTarget>(work, slot);
    default:
      return work.problem->symmetric ? solve_target<A, SymmetricTarget>(work, slot)
                                     : solve_target<A, PositiveTarget>(work, slot);
  }
}

template <class A>
void add_key_products(const SimilarityWork<A>& work, int64_t slots, bool more, int64_t begin, int64_t end) {
  const int64_t width = work.problem->query.width;
  for (int64_t k = begin; k < end; k += block_keys)
    for (int64_t d = 0; d < width; d += panel_columns)
      for (int64_t s = 0; s < slots; ++s)
        gemm<A>({work.slots[s].logits + k * band_queries, band_queries, 1}, work.slots[s].rows + d * band_queries,
                end - k < block_keys ? end - k : block_keys, width - d < panel_columns ? width - d : panel_columns,
                queries_of(*work.problem, work.slots[s].band), work.key_products + k * work.key_product_stride + d,
                work.key_product_stride, more || s > 0);
}

template <class A>
void finish_keys(const SimilarityWork<A>& work, int64_t begin, int64_t end) {
  constexpr int64_t lanes = Simd<A>::lanes;
  const Similarity& problem = *work.problem;
  const int64_t width = problem.key.width, whole = width / lanes * lanes;
  for (int64_t k = begin; k < end; ++k) {
    A* product = work.key_products + k * work.key_product_stride;
    const A* unit = work.key.rows + k * work.key.stride;
    const A inverse_norm = work.key.inverse_norms[k];
    const bool is_short = problem.normalize && inverse_norm == largest_inverse_norm<A>();
    if (is_short && short_rows_are_constant(problem.key.dtype))
      for (int64_t d = 0; d < width; ++d) product[d] = 0;
    if (problem.normalize && !is_short) {
      Vec<A> sum = {};
      for (int64_t d = 0; d < whole; d += lanes) sum += load(product + d) * load(unit + d);
      A along = sum_lanes<A>(sum);
      for (int64_t d = whole; d < width; ++d) along += product[d] * unit[d];
      for (int64_t d = 0; d < width; ++d) product[d] -= unit[d] * along;
    }
    for (int64_t d = 0; d < width; ++d) product[d] *= inverse_norm;
    if (product != static_cast<const A*>(problem.grad_key.data) + k * problem.grad_key.stride)
      store_row(product, width, problem.grad_key, k, 0);
  }
}

// --- Ranks -------------------------------------------------------------------------------------------------------------

template <class A>
void rank(const SimilarityWork<A>& work, int64_t slot, int64_t* ranks) {
  const Band<A> band(work, slot);
  using Label = typename SimilarityWork<A>::Label;
  A chosen[band_queries] = {};
  Label positives[band_queries] = {}, counts[band_queries];
  band.each_positive([&](int64_t j, int64_t k) {
    chosen[j] = *band.logits(k, j);
    positives[j] = static_cast<Label>(k);
  });
  for (int64_t v = 0; v < band.padded; v += Simd<A>::lanes) {
    const Vec<A> positive = load(chosen + v);
    Lanes<A> position, count = {};
    std::memcpy(&position, positives + v, sizeof position);
    for (int64_t k = 0; k < band.problem.keys(); ++k) {
      const Vec<A> similarity = load(band.logits(k, v));
      // True is -1.
      count -= (similarity > positive) | ((similarity == positive) & (position > static_cast<Label>(k)));
    }
    std::memcpy(counts + v, &count, sizeof count);
  }
  for (int64_t j = 0; j < band.queries; ++j) ranks[band.first + j] = counts[j];
}

template <class A>
SimilarityPhases<A> similarity_phases() {
  return {read_keys<A>, compare<A>, add_columns<A>, solve<A>, add_key_products<A>, finish_keys<A>, rank<A>};
}

KD_END_TARGET
#endif
