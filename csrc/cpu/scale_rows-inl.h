// Multiplies gradients by the upstream gradient of their loss, in place.
#if defined(KD_CPU_SCALE_ROWS_INL_H) == defined(KD_TARGET_TOGGLE)
#ifdef KD_CPU_SCALE_ROWS_INL_H
#undef KD_CPU_SCALE_ROWS_INL_H
#else
#define KD_CPU_SCALE_ROWS_INL_H
#endif

#include <algorithm>
#include <cstdint>

#include "cpu/target.h"
#include "elements.h"
#include "types.h"

KD_BEGIN_TARGET

// numbers[i * stride] *= factor(i). Two loops, so that the one over neighbours is one of vectors.
template <class E, class Factor>
KD_INLINE void scale_line(E* numbers, int64_t count, int64_t stride, const Factor& factor) {
  if (stride == 1)
    for (int64_t i = 0; i < count; ++i) from_arithmetic(to_arithmetic(numbers[i]) * factor(i), numbers + i);
  else
    for (int64_t i = 0; i < count; ++i)
      from_arithmetic(to_arithmetic(numbers[i * stride]) * factor(i), numbers + i * stride);
}

// Along the classes where they are neighbours, else along rows that differ in their inner position alone: class by class, as
// a row whose classes lie far apart would take a line of cache for each of them.
// F: what the product is computed in.
template <class F>
KD_INLINE void scale_rows_by(const Rows& gradient, int64_t classes, int64_t inner, const F* upstream, bool per_row,
                             int64_t begin, int64_t end) {
  with_dtype(gradient.dtype, [&](auto* type) {
    for (int64_t row = begin, count; row < end; row += count) {
      auto* numbers = static_cast<decltype(type)>(gradient.data) + row / inner * gradient.outer_stride +
                      row % inner * gradient.inner_stride;
      const F* factors = upstream + (per_row ? row : 0);
      const F first = *factors;
      const auto same = [first](int64_t) { return first; };
      if (gradient.class_stride == 1) {
        count = 1;
        scale_line(numbers, classes, 1, same);
        continue;
      }
      count = std::min(end - row, inner - row % inner);
      for (int64_t c = 0; c < classes; ++c) {
        auto* line = numbers + c * gradient.class_stride;
        if (per_row) scale_line(line, count, gradient.inner_stride, [factors](int64_t r) { return factors[r]; });
        else scale_line(line, count, gradient.inner_stride, same);
      }
    }
  });
}

// Rows [begin, end); `upstream`: one number for all, or (`per_row`) one for each.
void scale_rows(const Rows& gradient, int64_t classes, int64_t inner, const void* upstream, Dtype upstream_dtype, bool per_row,
                int64_t begin, int64_t end) {
  if (upstream_dtype == Dtype::float64)
    scale_rows_by(gradient, classes, inner, static_cast<const double*>(upstream), per_row, begin, end);
  else
    scale_rows_by(gradient, classes, inner, static_cast<const float*>(upstream), per_row, begin, end);
}

KD_END_TARGET
#endif
