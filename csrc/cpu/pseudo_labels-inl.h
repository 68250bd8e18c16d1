// Pseudo labels on the CPU: the largest class of each row, the lowest of equals, and its probability.
//
// Classes that are neighbours take two sweeps over a row: the largest with its class, then the sum of exponentials. Where rows
// are neighbours instead ([B, C, H, W]), the lanes of a vector are rows, and nothing is added up across them.
#if defined(KD_CPU_PSEUDO_LABELS_INL_H) == defined(KD_TARGET_TOGGLE)
#ifdef KD_CPU_PSEUDO_LABELS_INL_H
#undef KD_CPU_PSEUDO_LABELS_INL_H
#else
#define KD_CPU_PSEUDO_LABELS_INL_H
#endif

#include <algorithm>
#include <cstdint>
#include <limits>

#include "cpu/row_io-inl.h"
#include "cpu/row_lines-inl.h"
#include "cpu/row_sweeps-inl.h"
#include "cpu/vector_part.h"
#include "elements.h"
#include "row_loss.h"
#include "row_statistics.h"

KD_BEGIN_TARGET

// Running maxima in the lanes of vectors, and their classes, which are exact in A. NaN is never larger.
template <class A>
struct LargestClass {
  Vec<A> most, at;

  KD_INLINE LargestClass() : most(splat(-std::numeric_limits<A>::infinity())), at{} {}

  KD_INLINE void add(Vec<A> v, Vec<A> c) {
    const auto higher = v > most;
    most = select(higher, v, most);
    at = select(higher, c, at);
  }

  // The classes of `other` may be higher or lower.
  KD_INLINE void merge(const LargestClass& other) {
    const auto ahead = (other.most > most) | ((other.most == most) & (other.at < at));
    most = select(ahead, other.most, most);
    at = select(ahead, other.at, at);
  }
};

// What is subtracted from logits before the exponential: the largest logit, or 0 where all are -inf, so that they stay -inf.
template <class A>
KD_INLINE Vec<A> exponent_shift(Vec<A> most) {
  return select(most == -std::numeric_limits<A>::infinity(), Vec<A>{}, most);
}

// `sum`: of exponentials relative to exponent_shift(most).
template <class A>
KD_INLINE void store_pseudo_label(const RowLoss& problem, int64_t row, A most, A sum, A at) {
  const A confidence = largest_probability(most, sum);
  static_cast<A*>(problem.first.numbers)[row] = confidence;
  problem.pseudo.labels[row] = pseudo_label(problem, static_cast<int64_t>(at), confidence);
}

// --- Classes are neighbours --------------------------------------------------------------------------------------------

// The largest of all vectors of a row, vector(i, place) being the one at i.
template <class A, class Vector>
KD_INLINE void largest_class_of(int64_t classes, A& most, A& at, const Vector& vector) {
  constexpr int64_t lanes = Simd<A>::lanes;
  const int64_t split = body_classes(classes), blocks = split / (4 * lanes) * (4 * lanes);
  LargestClass<A> largest[4];
  Vec<A> c;
  for (int lane = 0; lane < lanes; ++lane) c[lane] = static_cast<A>(lane);
  for (int64_t i = 0; i < blocks; i += 4 * lanes, c += A(4 * lanes))
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) largest[j].add(vector(i + j * lanes, InBody{}), c + A(j * lanes));
  for (int64_t i = blocks; i < split; i += lanes, c += A(lanes)) largest[0].add(vector(i, InBody{}), c);
  for (int64_t i = split; i < classes; i += lanes, c += A(lanes)) largest[0].add(vector(i, InTail{}), c);
  largest[0].merge(largest[1]);
  largest[2].merge(largest[3]);
  largest[0].merge(largest[2]);
  most = max_lanes<A>(largest[0].most);
  at = -max_lanes<A>(select(largest[0].most == most, -largest[0].at, splat(-std::numeric_limits<A>::infinity())));
}

// Loads row `number` and finds its largest class: in one sweep, where it has to be converted.
template <class A>
KD_INLINE void load_largest_class(const RowAccess<A>& rows, int64_t number, int64_t classes, A& most, A& at) {
  const Elements from = rows.elements(number);
  const Line<A> row = rows.row(number, 0);
  if (!from.data) {
    rows.load(number, 1);
    largest_class_of(classes, most, at, [&](int64_t i, auto place) { return load(row.in(place) + i); });
    return;
  }
  with_dtype(from.dtype, [&](auto* type) {
    const auto* elements = static_cast<decltype(type)>(from.data);
    rows.load_tail(elements, 0);
    largest_class_of(classes, most, at, [elements, row](int64_t i, auto place) {
      if (place) return load(row.tail + i);
      const Vec<A> v = load_converted<A>(elements + i);
      store(row.body + i, v);
      return v;
    });
  });
}

template <class A>
KD_INLINE void pseudo_labels_by_row(const RowLoss& problem, int64_t begin, int64_t end, A* scratch) {
  const int64_t classes = problem.classes, tile = tile_rows(problem);
  const A absent = -std::numeric_limits<A>::infinity(), inverse_temperature = A(1) / static_cast<A>(problem.soft.temperature);
  const RowAccess<A> rows(problem.student, classes, problem.inner, absent, scratch, problem.middle);
  for (int64_t first = begin, count; first < end; first += count) {
    count = tile == 1 ? 1 : std::min({tile, end - first, problem.inner - first % problem.inner});
    A most = 0, at = 0;
    if (tile == 1) load_largest_class(rows, first, classes, most, at);
    else rows.load(first, count);
    const Upcoming next = rows.upcoming(std::min(first + count, end - 1));
    for (int64_t r = 0; r < count; ++r) {
      const Line<A> row = rows.row(first, r);
      if (tile > 1) largest_class_of(classes, most, at, [&](int64_t i, auto place) { return load(row.in(place) + i); });
      const A shift = most == absent ? A(0) : most;
      A sum[1];
      sum_classes(classes, sum, [&](int64_t i, auto place, Vec<A>* part) {
        next.prefetch(i);
        part[0] += exp_product(load(row.in(place) + i) - shift, inverse_temperature);
      });
      store_pseudo_label(problem, first + r, most, sum[0], at);
    }
  }
}

// --- Rows are neighbours -----------------------------------------------------------------------------------------------

// Classes that are converted and kept between the two sweeps over them.
constexpr int64_t kept_classes = 64;

// `count` neighbouring rows, `vectors` full vectors of them or part of one. `from`: class 0 of the first.
template <class A, int vectors, bool full, class E>
KD_INLINE void pseudo_labels_of_vectors(const RowLoss& problem, int64_t first, int64_t count, const E* from, int64_t stride,
                                        A* kept) {
  constexpr int64_t lanes = Simd<A>::lanes;
  const int64_t classes = problem.classes;
  const A inverse_temperature = A(1) / static_cast<A>(problem.soft.temperature);
  const Vec<A> absent = splat(-std::numeric_limits<A>::infinity());
  LargestClass<A> largest[vectors];
  Vec<A> sum[vectors] = {};
  for (int64_t begin = 0; begin < classes; begin += kept_classes) {
    const int64_t end = std::min(begin + kept_classes, classes);
    Vec<A> before[vectors];
    for (int j = 0; j < vectors; ++j) before[j] = largest[j].most;
    A* to = kept;
    for (int64_t c = begin; c < end; ++c, to += vectors * lanes) {
      const E* elements = from + c * stride;
      const Vec<A> number = splat(static_cast<A>(c));
#pragma GCC unroll 4
      for (int j = 0; j < vectors; ++j) {
        const Vec<A> v = full ? load_converted<A>(elements + j * lanes) : load_converted_part<A>(elements, count, absent);
        store(to + j * lanes, v);
        largest[j].add(v, number);
      }
    }
    Vec<A> shift[vectors], part[vectors] = {};
    for (int j = 0; j < vectors; ++j) shift[j] = exponent_shift<A>(largest[j].most);
    to = kept;
    for (int64_t c = begin; c < end; ++c, to += vectors * lanes) {
#pragma GCC unroll 4
      for (int j = 0; j < vectors; ++j) __builtin_prefetch(from + c * stride + (vectors + j) * lanes);  // the next rows
#pragma GCC unroll 4
      for (int j = 0; j < vectors; ++j) part[j] += exp_product(load(to + j * lanes) - shift[j], inverse_temperature);
    }
    // One expression: a compiler that fuses it does so for full vectors and for parts alike.
    for (int j = 0; j < vectors; ++j)
      sum[j] = begin == 0 ? part[j] : sum[j] * exp_product(before[j] - shift[j], inverse_temperature) + part[j];
  }
  A most[vectors * lanes], sums[vectors * lanes], at[vectors * lanes];
  for (int j = 0; j < vectors; ++j) {
    store(most + j * lanes, largest[j].most);
    store(sums + j * lanes, sum[j]);
    store(at + j * lanes, largest[j].at);
  }
  for (int64_t r = 0; r < count; ++r) store_pseudo_label(problem, first + r, most[r], sums[r], at[r]);
}

template <class A>
KD_INLINE void pseudo_labels_of_neighbours(const RowLoss& problem, int64_t begin, int64_t end) {
  constexpr int64_t lanes = Simd<A>::lanes, vectors = 4;
  alignas(64) A kept[kept_classes * vectors * lanes];
  with_dtype(problem.student.dtype, [&](auto* type) {
    const auto* elements = static_cast<decltype(type)>(problem.student.data);
    const Rows& rows = problem.student;
    for (int64_t first = begin, count; first < end; first += count) {
      const int64_t at = first % problem.inner, line = first / problem.inner;
      count = std::min(end - first, problem.inner - at);
      const auto* from = elements + line / problem.middle * rows.outer_stride + line % problem.middle * rows.middle_stride + at;
      int64_t r = 0;
      for (; r + vectors * lanes <= count; r += vectors * lanes)
        pseudo_labels_of_vectors<A, vectors, true>(problem, first + r, vectors * lanes, from + r, rows.class_stride, kept);
      for (; r < count; r += lanes)
        pseudo_labels_of_vectors<A, 1, false>(problem, first + r, std::min(lanes, count - r), from + r, rows.class_stride, kept);
    }
  });
}

// The same rows, neighbours along `inner` wherever some are.
inline RowLoss with_neighbours_inside(RowLoss problem) {
  Rows& rows = problem.student;
  if (problem.inner == 1) {
    problem.inner = problem.middle;
    rows.inner_stride = rows.middle_stride;
    problem.middle = 1;
  }
  if (problem.inner == 1) {
    problem.inner = problem.outer;
    rows.inner_stride = rows.outer_stride;
    problem.outer = 1;
  }
  return problem;
}

// Labels and probabilities of rows [begin, end). `scratch` as for solve_rows.
template <class A>
void pseudo_labels(const RowLoss& problem, int64_t begin, int64_t end, A* scratch) {
  const RowLoss arranged = with_neighbours_inside(problem);
  if (arranged.student.class_stride != 1 && arranged.student.inner_stride == 1)
    pseudo_labels_of_neighbours<A>(arranged, begin, end);
  else
    pseudo_labels_by_row(problem, begin, end, scratch);
}

KD_END_TARGET
#endif
