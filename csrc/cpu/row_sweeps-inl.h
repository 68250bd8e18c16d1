// Sweeps over the classes of a row (cpu/row_io-inl.h), vector by vector.
#if defined(KD_CPU_ROW_SWEEPS_INL_H) == defined(KD_TARGET_TOGGLE)
#ifdef KD_CPU_ROW_SWEEPS_INL_H
#undef KD_CPU_ROW_SWEEPS_INL_H
#else
#define KD_CPU_ROW_SWEEPS_INL_H
#endif

#include <limits>

#include "cpu/row_io-inl.h"
#include "cpu/simd.h"
#include "elements.h"

KD_BEGIN_TARGET

// body(i, place) for the vector of classes at each i.
template <class A, class Body>
KD_INLINE void each_vector(int64_t classes, const Body& body) {
  const int64_t split = body_classes(classes);
  for (int64_t i = 0; i < split; i += Simd<A>::lanes) body(i, InBody{});
  for (int64_t i = split; i < classes; i += Simd<A>::lanes) body(i, InTail{});
}

// Four running maxima, so that one comparison need not wait for the last. NaN is never larger.
template <class A>
struct Largest {
  Vec<A> of[4];

  KD_INLINE Largest() {
    for (Vec<A>& one : of) one = splat(-std::numeric_limits<A>::infinity());
  }
  static KD_INLINE void raise(Vec<A>& most, Vec<A> v) { most = select(v > most, v, most); }
  KD_INLINE A found() const {
    Vec<A> most = of[0], other = of[2];
    raise(most, of[1]);
    raise(other, of[3]);
    raise(most, other);
    return max_lanes<A>(most);
  }
};

// The largest of all vectors of a row, vector(i, place) being the one at i.
template <class A, class Vector>
KD_INLINE A largest_of(int64_t classes, const Vector& vector) {
  constexpr int64_t lanes = Simd<A>::lanes;
  const int64_t split = body_classes(classes), blocks = split / (4 * lanes) * (4 * lanes);
  Largest<A> largest;
  for (int64_t i = 0; i < blocks; i += 4 * lanes)
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) largest.raise(largest.of[j], vector(i + j * lanes, InBody{}));
  for (int64_t i = blocks; i < split; i += lanes) largest.raise(largest.of[0], vector(i, InBody{}));
  for (int64_t i = split; i < classes; i += lanes) largest.raise(largest.of[1], vector(i, InTail{}));
  return largest.found();
}

template <class A>
KD_INLINE A max_classes(const Line<A>& row, int64_t classes) {
  return largest_of<A>(classes, [&](int64_t i, auto place) { return load(row.in(place) + i); });
}

// The lowest class of the largest logit; 0 where there is none, in a row of NaN.
template <class A>
KD_INLINE int64_t largest_class(const Line<A>& row, int64_t classes) {
  using Lanes = typename Simd<A>::I;
  Vec<A> most = splat(-std::numeric_limits<A>::infinity());
  Lanes first = {}, here = {};  // in each lane: the vector of its largest, and the one at hand
  each_vector<A>(classes, [&](int64_t i, auto place) {
    const Vec<A> v = load(row.in(place) + i);
    const Lanes higher = v > most;
    most = select(higher, v, most);
    first = higher ? here : first;
    here += 1;
  });
  int64_t index = classes;
  A largest = -std::numeric_limits<A>::infinity();
  for (int lane = 0; lane < Simd<A>::lanes; ++lane) {
    const int64_t c = static_cast<int64_t>(first[lane]) * Simd<A>::lanes + lane;
    if (!(most[lane] > largest) && !(most[lane] == largest && c < index)) continue;
    largest = most[lane];
    index = c;
  }
  return index < classes ? index : 0;
}

// Loads row `number` and finds its largest class: in one sweep, where it has to be converted.
template <class A>
KD_INLINE A load_largest(const RowAccess<A>& rows, int64_t number, int64_t classes) {
  const Elements from = rows.elements(number);
  const Line<A> row = rows.row(number, 0);
  if (!from.data) {
    rows.load(number, 1);
    return max_classes(row, classes);
  }
  A largest = 0;  // the compiler cannot know that every dtype has a case
  with_dtype(from.dtype, [&](auto* type) {
    const auto* elements = static_cast<decltype(type)>(from.data);
    rows.load_tail(elements, 0);
    largest = largest_of<A>(classes, [elements, row](int64_t i, auto place) {
      if (place) return load(row.tail + i);
      const Vec<A> v = load_converted<A>(elements + i);
      store(row.body + i, v);
      return v;
    });
  });
  return largest;
}

template <class A>
KD_INLINE void fill_zero(const Line<A>& row, int64_t classes) {
  each_vector<A>(classes, [&](int64_t i, auto place) { store(row.in(place) + i, Vec<A>{}); });
}

// body(i, place, part) adds what the vector of classes at i contributes to each of `count` sums: in blocks, since one class may
// outweigh all others, and after it every addition rounds by as much as that class.
template <class A, int count, class Body>
KD_INLINE void sum_classes(int64_t classes, A (&sums)[count], const Body& body) {
  constexpr int64_t lanes = Simd<A>::lanes;
  const int64_t split = body_classes(classes), block = (split <= 1024 * lanes ? 32 : 64) * lanes;
  Vec<A> total[count] = {};
  for (int64_t begin = 0; begin < split; begin += block) {
    const int64_t end = begin + block < split ? begin + block : split;
    Vec<A> part[count] = {};
    for (int64_t i = begin; i < end; i += lanes) body(i, InBody{}, part);
    for (int j = 0; j < count; ++j) total[j] += part[j];
  }
  for (int64_t i = split; i < classes; i += lanes) body(i, InTail{}, total);
  for (int j = 0; j < count; ++j) sums[j] = sum_lanes<A>(total[j]);
}

KD_END_TARGET
#endif
