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

// The rows of one tensor, for reading or for writing.
template <class A>
class RowAccess {
 public:
  RowAccess(const SoftenedKL& problem, const Rows& rows, A absent, A* scratch)
      : problem_(problem), rows_(rows), absent_(absent), scratch_(scratch), padded_(padded_classes(problem)) {
    in_place_ = rows.class_stride == 1 && element_size(rows.dtype) == sizeof(A) && padded_ == problem.classes;
  }

  // Row `first + r` of the tile at `first`; null if the tensor is absent.
  A* row(int64_t first, int64_t r) const {
    if (!rows_.data) return nullptr;
    return in_place_ ? static_cast<A*>(rows_.data) + row_start(problem_, rows_, first + r) : scratch_ + r * padded_;
  }

  void load(int64_t first, int64_t count) const {
    if (in_place_) return;
    each(first, count, [](auto* element, A* number) { *number = static_cast<A>(to_arithmetic(*element)); });
    for (int64_t r = 0; r < count; ++r)
      for (int64_t c = problem_.classes; c < padded_; ++c) scratch_[r * padded_ + c] = absent_;
  }

  void store(int64_t first, int64_t count) const {
    if (in_place_ || !rows_.data) return;
    each(first, count, [](auto* element, A* number) { from_arithmetic(*number, element); });
  }

 private:
  // body(element, number) for every class of `count` rows, in the order of memory.
  template <class Body>
  KD_INLINE void each(int64_t first, int64_t count, const Body& body) const {
    const int64_t classes = problem_.classes, start = row_start(problem_, rows_, first);
    with_dtype(rows_.dtype, [&](auto* type) {
      auto* elements = static_cast<decltype(type)>(rows_.data) + start;
      if (rows_.class_stride == 1) {
        for (int64_t r = 0; r < count; ++r)
          for (int64_t c = 0; c < classes; ++c)
            body(elements + r * rows_.inner_stride + c, scratch_ + r * padded_ + c);
      } else {
        for (int64_t c = 0; c < classes; ++c)
          for (int64_t r = 0; r < count; ++r)
            body(elements + c * rows_.class_stride + r * rows_.inner_stride, scratch_ + r * padded_ + c);
      }
    });
  }

  const SoftenedKL& problem_;
  const Rows rows_;
  const A absent_;
  A* const scratch_;
  const int64_t padded_;
  bool in_place_;  // whole vectors of the arithmetic type: no copy
};
