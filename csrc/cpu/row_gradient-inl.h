// Writes the student's gradient of a row: past the caches if it is large, in the dtype of its tensor, and in the units of its
// row if that is float16.
#if defined(KD_CPU_ROW_GRADIENT_INL_H) == defined(KD_TARGET_TOGGLE)
#ifdef KD_CPU_ROW_GRADIENT_INL_H
#undef KD_CPU_ROW_GRADIENT_INL_H
#else
#define KD_CPU_ROW_GRADIENT_INL_H
#endif

#include <cstdint>
#include <type_traits>

#include "cpu/row_lines-inl.h"
#include "cpu/row_sweeps-inl.h"
#include "cpu/vector_part.h"
#include "elements.h"
#include "row_loss.h"
#include "row_scales.h"

KD_BEGIN_TARGET

// Whether the gradient is too large for a cache to keep until it is read. It is then written past the caches: the memory that
// it overwrites is not read first, and it evicts nothing.
inline bool is_large_gradient(const RowLoss& problem) {
  constexpr int64_t most_cached = int64_t(32) << 20;  // bytes
  return problem.grad_student.data && !problem.is_double() &&
         problem.rows() * problem.classes * static_cast<int64_t>(sizeof(float)) > most_cached;
}

// Whether the row's gradient is written past the caches. Only rows that are aligned to vectors are, and of these only whole
// vectors.
template <class A>
KD_INLINE bool streams(const Lines<A>& row) {
  return row.large_gradient && reinterpret_cast<uintptr_t>(row.grad_student.body) % sizeof(Vec<A>) == 0;
}

// Writes gradient(i, place), the vector of classes at i, for each i. Returns true if it was written to row.grad_elements,
// false if to row.grad_student.
template <class A, class Gradient>
KD_INLINE bool write_gradient(const RowLoss& problem, const Lines<A>& row, const Gradient gradient) {
  constexpr int lanes = Simd<A>::lanes;
  const int64_t classes = problem.classes, split = body_classes(classes);
  if (!row.grad_elements.data) {
    const Line<A> to = row.grad_student;
    if (streams(row)) {
      for (int64_t i = 0; i < split; i += lanes) stream(to.body + i, gradient(i, InBody{}));
      for (int64_t i = split; i < classes; i += lanes) store(to.tail + i, gradient(i, InTail{}));
    } else {
      each_vector<A>(classes, [=](int64_t i, auto place) { store(to.in(place) + i, gradient(i, place)); });
    }
    return false;
  }
  with_dtype(row.grad_elements.dtype, [&](auto* type) {
    auto* to = static_cast<decltype(type)>(row.grad_elements.data);
    constexpr int64_t together = 32;  // so many that the compiler keeps the loop and vectorizes it
    A numbers[together];
    int64_t i = 0;
    for (; i + together <= split; i += together) {
      for (int64_t c = 0; c < together; c += lanes) store(numbers + c, gradient(i + c, InBody{}));
      for (int64_t c = 0; c < together; ++c) from_arithmetic(numbers[c], to + i + c);
    }
    const auto write = [&](Vec<A> v, int64_t c) {
      std::remove_pointer_t<decltype(to)> part[lanes];
      store(numbers, v);
      for (int lane = 0; lane < lanes; ++lane) from_arithmetic(numbers[lane], part + lane);
      write_part<lanes>(to + c, part, classes - c);
    };
    for (; i < split; i += lanes) write(gradient(i, InBody{}), i);
    for (; i < classes; i += lanes) write(gradient(i, InTail{}), i);
  });
  return true;
}

// The float16 gradients of `count` rows from `first` on, before they are stored: in the units that they need.
template <class A>
void fit_float16(const RowAccess<A>& gradient, int64_t first, int64_t count, int64_t classes, A* units) {
  for (int64_t r = 0; r < count; ++r) {
    const Line<A> row = gradient.row(first, r);
    const A most = largest_of<A>(classes, [&](int64_t i, auto place) {
      const Vec<A> v = load(row.in(place) + i);
      return select(v < A(0), -v, v);
    });
    const A factor = float16_factor(most > A(0) ? most : A(0));
    units[first + r] = A(1) / factor;
    each_vector<A>(classes, [&](int64_t i, auto place) { store(row.in(place) + i, load(row.in(place) + i) * factor); });
  }
}

KD_END_TARGET
#endif
