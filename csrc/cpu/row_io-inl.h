// Rows between tensors of any dtype and layout and scratch rows of the arithmetic type A, `padded` numbers each.
// The loops vectorize by themselves.
#if defined(KD_CPU_ROW_IO_INL_H) == defined(KD_TARGET_TOGGLE)
#ifdef KD_CPU_ROW_IO_INL_H
#undef KD_CPU_ROW_IO_INL_H
#else
#define KD_CPU_ROW_IO_INL_H
#endif

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "cpu/simd.h"
#include "cpu/vector_part.h"
#include "elements.h"
#include "types.h"

KD_BEGIN_TARGET

// A multiple of the lanes of every vector of every instruction set.
constexpr int64_t vector_classes = 16;

constexpr int64_t padded_classes(int64_t classes) {
  return (classes + vector_classes - 1) & -vector_classes;
}

// A row: whole vectors of classes in `body`, the rest, padded to one more vector, in `tail`. Both are indexed by class; a
// loop over a row runs over the body and then the tail, so that it does not test for every vector where it is.
template <class A>
struct Line {
  A* body = nullptr;  // null: absent, such as a gradient that is not wanted
  A* tail = nullptr;

  explicit operator bool() const { return body; }
  KD_INLINE A* in(std::false_type) const { return body; }
  KD_INLINE A* in(std::true_type) const { return tail; }
};

using InBody = std::false_type;
using InTail = std::true_type;

constexpr int64_t body_classes(int64_t classes) { return classes & -vector_classes; }

template <class A>
KD_INLINE A* class_at(const Line<A>& row, int64_t c, int64_t classes) {
  return (c < body_classes(classes) ? row.body : row.tail) + c;
}

// The row of a tensor that is read next. A sweep that is limited by arithmetic prefetches it vector by vector, so that the
// sweep that reads it does not wait for memory.
struct Upcoming {
  const char* row;
  int64_t size;  // bytes per class

  KD_INLINE void prefetch(int64_t c) const { __builtin_prefetch(row + c * size); }
};

// Neighbouring elements of another type than the arithmetic one, from and to which a sweep converts as it goes.
struct Elements {
  void* data = nullptr;  // null: there are none, the sweep uses a Line
  Dtype dtype = Dtype::float32;
};

// A vector of the arithmetic type; the loop becomes a conversion of vectors.
template <class A, class E>
KD_INLINE Vec<A> load_converted(const E* from) {
  A numbers[Simd<A>::lanes];
  for (int lane = 0; lane < Simd<A>::lanes; ++lane) numbers[lane] = static_cast<A>(to_arithmetic(from[lane]));
  return load(numbers);
}

// The same of the last `count` elements of a row; where that is less than a vector, the other lanes are those of `rest`.
template <class A, class E>
KD_INLINE Vec<A> load_converted_part(const E* from, int64_t count, Vec<A> rest) {
  constexpr int lanes = Simd<A>::lanes;
  E part[lanes] = {};
  read_part<lanes>(part, from, count);
  return select(first_lanes<A>(count), load_converted<A>(part), rest);
}

// The rows of one tensor (`Rows`), for reading or for writing, a tile of them at a time: neighbours in the inner dimension.
// Rows of neighbouring numbers of the arithmetic type are used where they lie, all but the last, partial vector;
// others are copied.
template <class A>
class RowAccess {
 public:
  RowAccess(const Rows& rows, int64_t classes, int64_t inner, A absent, A* scratch, int64_t middle = 1)
      : rows_(rows),
        classes_(classes),
        inner_(inner),
        middle_(middle),
        absent_(absent),
        scratch_(scratch),
        padded_(padded_classes(classes)),
        size_(element_size(rows.dtype)),
        in_place_(rows.class_stride == 1 && size_ == sizeof(A)) {}

  // Row `first + r` of the tile at `first`. The tails of a tile lie behind each other in scratch memory.
  KD_INLINE Line<A> row(int64_t first, int64_t r) const {
    if (!rows_.data) return {};
    A* own = scratch_ + r * padded_;
    return {in_place_ ? static_cast<A*>(rows_.data) + start(first + r) : own, own};
  }

  KD_INLINE Elements elements(int64_t row) const {
    if (!rows_.data || in_place_ || rows_.class_stride != 1) return {};
    return {static_cast<char*>(rows_.data) + start(row) * size_, rows_.dtype};
  }

  // If classes are strided, memory that is in the cache already.
  KD_INLINE Upcoming upcoming(int64_t row) const {
    if (!rows_.data || rows_.class_stride != 1) return {reinterpret_cast<const char*>(scratch_), 0};
    return {static_cast<const char*>(rows_.data) + start(row) * size_, size_};
  }

  // The tail of row `r` of the tile, from its contiguous elements, padded with `absent`.
  template <class E>
  KD_INLINE void load_tail(const E* elements, int64_t r) const {
    for (int64_t c = body(); c < padded_; c += lanes) {
      const Vec<A> v = load_converted_part<A>(elements + c, classes_ - c, splat(absent_));
      std::memcpy(scratch_ + r * padded_ + c, &v, sizeof v);
    }
  }

  void load(int64_t first, int64_t count) const {
    if (!rows_.data) return;
    if (in_place_) {
      for (int64_t r = 0; r < count; ++r) load_tail(row(first, r).body, r);
      return;
    }
    const Vec<A> absent = splat(absent_);
    for (int64_t r = 0; r < count; ++r)
      for (int64_t c = body(); c < padded_; c += lanes) std::memcpy(scratch_ + r * padded_ + c, &absent, sizeof absent);
    each(first, count, [](auto* element, A* number) { *number = static_cast<A>(to_arithmetic(*element)); });
  }

  void store(int64_t first, int64_t count) const {
    if (!rows_.data) return;
    if (!in_place_) return each(first, count, [](auto* element, A* number) { from_arithmetic(*number, element); });
    for (int64_t r = 0; r < count; ++r)
      for (int64_t c = body(); c < classes_; c += lanes)
        write_part<lanes>(row(first, r).body + c, scratch_ + r * padded_ + c, classes_ - c);
  }

 private:
  static constexpr int lanes = Simd<A>::lanes;

  KD_INLINE int64_t start(int64_t row) const {
    int64_t at = 0;
    if (inner_ != 1) {  // 64-bit divisions are slow, and most layouts need none
      at = row % inner_ * rows_.inner_stride;
      row /= inner_;
    }
    if (middle_ == 1) return at + row * rows_.outer_stride;
    return at + row % middle_ * rows_.middle_stride + row / middle_ * rows_.outer_stride;
  }
  int64_t body() const { return body_classes(classes_); }

  // body(element, number) for every class of `count` rows, in the order of memory.
  template <class Body>
  KD_INLINE void each(int64_t first, int64_t count, const Body& body) const {
    with_dtype(rows_.dtype, [&](auto* type) {
      auto* elements = static_cast<decltype(type)>(rows_.data) + start(first);
      if (rows_.class_stride == 1) {
        for (int64_t r = 0; r < count; ++r)
          for (int64_t c = 0; c < classes_; ++c)
            body(elements + r * rows_.inner_stride + c, scratch_ + r * padded_ + c);
      } else {
        for (int64_t c = 0; c < classes_; ++c)
          for (int64_t r = 0; r < count; ++r)
            body(elements + c * rows_.class_stride + r * rows_.inner_stride, scratch_ + r * padded_ + c);
      }
    });
  }

  const Rows rows_;
  const int64_t classes_, inner_, middle_;
  const A absent_;
  A* const scratch_;
  const int64_t padded_, size_;
  const bool in_place_;
};

KD_END_TARGET
#endif
