// Rows between tensors of any dtype and layout and scratch rows of the arithmetic type A, `padded` numbers each.
// Included by cpu/softened_kl-inl.h, once per instruction set; the loops vectorise by themselves.

// `tile` rows are loaded together. One, where the classes of a row are neighbours; else neighbouring rows, one cache
// line wide if that stays within the L1 cache, so that strided logits are read line by line.
inline int64_t tile_rows(const SoftenedKL& problem) {
  if (problem.student.class_stride == 1 && problem.teacher.class_stride == 1) return 1;
  return std::max<int64_t>(1, std::min<int64_t>(16, 4096 / problem.classes));
}

inline int64_t padded_classes(const SoftenedKL& problem) { return (problem.classes + 15) / 16 * 16; }

inline int64_t row_start(const SoftenedKL& problem, const Rows& rows, int64_t row) {
  if (problem.inner == 1) return row * rows.outer_stride;
  return row / problem.inner * rows.outer_stride + row % problem.inner * rows.inner_stride;
}

template <class A>
void load_rows(const SoftenedKL& problem, const Rows& rows, int64_t first, int64_t count, A* to, A absent) {
  const int64_t classes = problem.classes, padded = padded_classes(problem);
  const int64_t start = row_start(problem, rows, first);
  with_dtype(rows.dtype, [&](auto* type) {
    const auto* from = static_cast<decltype(type)>(rows.data) + start;
    if (rows.class_stride == 1)
      for (int64_t r = 0; r < count; ++r)
        for (int64_t c = 0; c < classes; ++c) to[r * padded + c] = to_arithmetic(from[r * rows.inner_stride + c]);
    else
      for (int64_t c = 0; c < classes; ++c)
        for (int64_t r = 0; r < count; ++r)
          to[r * padded + c] = to_arithmetic(from[c * rows.class_stride + r * rows.inner_stride]);
  });
  for (int64_t r = 0; r < count; ++r)
    for (int64_t c = classes; c < padded; ++c) to[r * padded + c] = absent;
}

template <class A>
void store_rows(const SoftenedKL& problem, const Rows& rows, int64_t first, int64_t count, const A* from) {
  const int64_t classes = problem.classes, padded = padded_classes(problem);
  const int64_t start = row_start(problem, rows, first);
  with_dtype(rows.dtype, [&](auto* type) {
    auto* to = static_cast<decltype(type)>(rows.data) + start;
    if (rows.class_stride == 1)
      for (int64_t r = 0; r < count; ++r)
        for (int64_t c = 0; c < classes; ++c) from_arithmetic(from[r * padded + c], to + r * rows.inner_stride + c);
    else
      for (int64_t c = 0; c < classes; ++c)
        for (int64_t r = 0; r < count; ++r)
          from_arithmetic(from[r * padded + c], to + c * rows.class_stride + r * rows.inner_stride);
  });
}
