// A band of queries under way, and the targets its losses are taken from.
#if defined(KD_CPU_SIMILARITY_TARGETS_INL_H) == defined(KD_TARGET_TOGGLE)
#ifdef KD_CPU_SIMILARITY_TARGETS_INL_H
#undef KD_CPU_SIMILARITY_TARGETS_INL_H
#else
#define KD_CPU_SIMILARITY_TARGETS_INL_H
#endif

#include <cmath>
#include <cstring>

#include "cpu/similarity_rows-inl.h"
#include "cpu/simd.h"
#include "cpu/similarity_work.h"

KD_BEGIN_TARGET

template <class A>
using Lanes = typename Simd<A>::I;

inline int64_t queries_of(const Similarity& problem, int64_t band) {
  const int64_t left = problem.queries() - band * band_queries;
  return left < band_queries ? left : band_queries;
}

// Columns of the band that are computed.
inline int64_t padded_queries(const Similarity& problem, int64_t band) {
  return round_up(queries_of(problem, band), padded_lanes);
}

// Logits stay similarities, at a scale of 1 / T, unless there is a bias.
template <class A>
KD_INLINE A logit_scale(const SimilarityWork<A>& work) {
  return work.problem->bias ? A(1) : work.inverse_temperature;
}

// A band's place in memory, key by key and vector by vector of queries, and what sweeps over the keys find for its queries.
template <class A>
struct Band {
  const SimilarityWork<A>& work;
  const Similarity& problem;
  const BandSlot<A>& slot;
  const int64_t first, queries, padded;
  const A scale;                 // of logits
  A sums[3][band_queries] = {};  // as the target says; the first is that of the weights

  Band(const SimilarityWork<A>& work, int64_t number)
      : work(work), problem(*work.problem), slot(work.slots[number]), first(slot.band * band_queries),
        queries(queries_of(problem, slot.band)), padded(padded_queries(problem, slot.band)), scale(logit_scale(work)) {}

  KD_INLINE A* logits(int64_t k, int64_t v) const { return slot.logits + k * band_queries + v; }
  KD_INLINE A* others(int64_t k, int64_t v) const { return slot.others + k * band_queries + v; }
  KD_INLINE Lanes<A> counted(int64_t v) const { return load(work.counted + first + v) != A(0); }
  KD_INLINE Vec<A> gradient_scale(int64_t v) const { return load(work.gradient_scales + first + v); }

  // The logits of key k less the largest of each query.
  KD_INLINE Vec<A> below_max(int64_t k, int64_t v) const { return load(logits(k, v)) - load(slot.max + v); }
  // e^ of that, in place of the logits.
  KD_INLINE Vec<A> weigh(int64_t k, int64_t v) const {
    const Vec<A> weight = exp_product(below_max(k, v), scale);
    store(logits(k, v), weight);
    return weight;
  }

  // body(j, k): each query that counts and its positive.
  template <class Body>
  KD_INLINE void each_positive(const Body& body) const {
    for (int64_t j = 0; j < queries; ++j)
      if (work.counted[first + j] != A(0)) body(j, problem.positive_of(first + j));
  }
};

// The targets, one struct each:
//
//     add         of a key and a vector of queries: weights in place of logits, and what its sums get from them
//     value       the loss of each query of a vector, from the sums
//     gradient    H of a key and a vector of queries, from the weights
//     correct     H of keys that stand out, once it is there

// One key.
template <class A>
struct PositiveTarget {
  Band<A>& band;
  A chosen[band_queries] = {};   // logit of the positive, less the largest
  A factors[band_queries] = {};

  explicit PositiveTarget(Band<A>& band) : band(band) {
    band.each_positive([&](int64_t j, int64_t k) { chosen[j] = *band.logits(k, j) - band.slot.max[j]; });
  }
  KD_INLINE void add(int64_t k, int64_t v, Vec<A>* sums) const { sums[0] += band.weigh(k, v); }
  KD_INLINE Vec<A> value(int64_t v) {
    store(factors + v, band.gradient_scale(v) / load(band.sums[0] + v));
    return log(load(band.sums[0] + v)) - load(chosen + v) * band.scale;
  }
  KD_INLINE Vec<A> gradient(int64_t k, int64_t v) const { return load(band.logits(k, v)) * load(factors + v); }
  KD_INLINE void correct(int64_t begin, int64_t end) const {
    band.each_positive([&](int64_t j, int64_t k) {
      if (k >= begin && k < end && band.sums[0][j] != A(0)) *band.logits(k, j) -= band.work.gradient_scales[band.first + j];
    });
  }
};

// One key, among the keys and the query among the queries: the mean of both.
template <class A>
struct SymmetricTarget {
  Band<A>& band;
  PositiveTarget<A> row;
  A column_values[band_queries] = {};

  explicit SymmetricTarget(Band<A>& band) : band(band), row(band) {
    const SimilarityWork<A>& work = band.work;
    band.each_positive([&](int64_t j, int64_t k) {
      column_values[j] = std::log(work.column_sum[k]) - (*band.logits(k, j) - work.column_max[k]) * band.scale;
    });
  }
  KD_INLINE void add(int64_t k, int64_t v, Vec<A>* sums) const {
    const SimilarityWork<A>& work = band.work;
    Vec<A> weight = {};
    // A column without a logit has no softmax.
    if (work.column_weights[k] != A(0) && work.column_sum[k] != A(0)) {
      const Vec<A> logit = select(band.counted(v), load(band.logits(k, v)) - work.column_max[k], Vec<A>{});
      weight = exp_product(logit, band.scale) * (work.column_weights[k] / work.column_sum[k]);
    }
    store(band.others(k, v), weight);
    row.add(k, v, sums);
  }
  KD_INLINE Vec<A> value(int64_t v) { return (row.value(v) + load(column_values + v)) * A(0.5); }
  KD_INLINE Vec<A> gradient(int64_t k, int64_t v) const {
    return row.gradient(k, v) * A(0.5) + load(band.others(k, v));
  }
  KD_INLINE void correct(int64_t begin, int64_t end) const { row.correct(begin, end); }
};

// All keys of the query's label but its own, alike.
template <class A>
struct LabelsTarget {
  Band<A>& band;
  typename SimilarityWork<A>::Label own[band_queries];
  A factors[band_queries], shares[band_queries];

  explicit LabelsTarget(Band<A>& band) : band(band) {
    for (int64_t j = 0; j < band_queries; ++j)
      own[j] = band.problem.own_key < 0 ? -1 : band.problem.own_key + band.first + j;
  }
  KD_INLINE Lanes<A> is_positive(int64_t k, int64_t v) const {
    Lanes<A> labels, keys;
    std::memcpy(&labels, band.work.labels + band.first + v, sizeof labels);
    std::memcpy(&keys, own + v, sizeof keys);
    return (labels == band.work.key_labels[k]) & (keys != static_cast<typename SimilarityWork<A>::Label>(k));
  }
  KD_INLINE void add(int64_t k, int64_t v, Vec<A>* sums) const {
    sums[1] += select(is_positive(k, v), band.below_max(k, v), Vec<A>{});
    sums[0] += band.weigh(k, v);
  }
  KD_INLINE Vec<A> value(int64_t v) {
    const Vec<A> positives = load(band.work.positives + band.first + v);
    store(factors + v, band.gradient_scale(v) / load(band.sums[0] + v));
    store(shares + v, band.gradient_scale(v) / positives);
    return log(load(band.sums[0] + v)) - load(band.sums[1] + v) * band.scale / positives;
  }
  KD_INLINE Vec<A> gradient(int64_t k, int64_t v) const {
    return load(band.logits(k, v)) * load(factors + v) - select(is_positive(k, v), load(shares + v), Vec<A>{});
  }
  KD_INLINE void correct(int64_t, int64_t) const {}
};

// The softmax of the teacher's similarities. As in divergences-inl.h, equal rows have a divergence and a gradient of 0.
template <class A>
struct TeacherTarget {
  Band<A>& band;
  A ratios[band_queries], factors[band_queries];

  explicit TeacherTarget(Band<A>& band) : band(band) {}
  KD_INLINE void add(int64_t k, int64_t v, Vec<A>* sums) const {
    const Vec<A> excess = load(band.others(k, v)) - load(band.slot.other_max + v);
    const Vec<A> weight = exp_product(excess, band.scale);
    sums[1] += weight;
    sums[2] += select(weight == A(0), Vec<A>{}, weight * (excess - band.below_max(k, v)));
    store(band.others(k, v), weight);
    sums[0] += band.weigh(k, v);
  }
  KD_INLINE Vec<A> value(int64_t v) {
    const Vec<A> student = load(band.sums[0] + v), teacher = load(band.sums[1] + v);
    store(ratios + v, teacher / student);
    store(factors + v, band.gradient_scale(v) / teacher);
    return load(band.sums[2] + v) * band.scale / teacher - (log(teacher) - log(student));
  }
  KD_INLINE Vec<A> gradient(int64_t k, int64_t v) const {
    return (load(band.logits(k, v)) * load(ratios + v) - load(band.others(k, v))) * load(factors + v);
  }
  KD_INLINE void correct(int64_t, int64_t) const {}
};

KD_END_TARGET
#endif
