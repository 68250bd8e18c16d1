// Gradients times the upstream gradient of their loss, where they lie. Included by cpu/softened_kl-inl.h.

// F: what the product is computed in. Two loops, so that the one over neighbours is one of vectors.
template <class E, class F>
KD_INLINE void scale_row(E* numbers, int64_t classes, int64_t stride, F factor) {
  if (stride == 1)
    for (int64_t c = 0; c < classes; ++c) from_arithmetic(to_arithmetic(numbers[c]) * factor, numbers + c);
  else
    for (int64_t c = 0; c < classes; ++c)
      from_arithmetic(to_arithmetic(numbers[c * stride]) * factor, numbers + c * stride);
}

template <class F>
KD_INLINE void scale_rows_by(const Rows& gradient, int64_t classes, int64_t inner, const F* upstream, bool per_row,
                             int64_t begin, int64_t end) {
  with_dtype(gradient.dtype, [&](auto* type) {
    for (int64_t row = begin; row < end; ++row) {
      auto* numbers = static_cast<decltype(type)>(gradient.data) + row / inner * gradient.outer_stride +
                      row % inner * gradient.inner_stride;
      scale_row(numbers, classes, gradient.class_stride, upstream[per_row ? row : 0]);
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
