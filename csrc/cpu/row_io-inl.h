// Rows between tensors of any dtype and layout and scratch rows of the arithmetic type A, `padded` numbers each.
// Included by cpu/softened_kl-inl.h, once per instruction set; the loops vectorise by themselves.

// `tile` rows are loaded together. One, where the classes of a row are neighbours; else neighbouring rows, one cache
// line wide if that stays within the L1 cache, so that strided logits are read line by line.
inline int64_t tile_rows(const SoftenedKL& problem) {
  if (problem.student.class_stride == 1 && (!problem.teacher.data || problem.teacher.class_stride == 1)) return 1;
  return std::max<int64_t>(1, std::min<int64_t>(16, 4096 / problem.classes));
}

// A multiple of the lanes of every vector of every instruction set.
constexpr int64_t vector_classes = 16;

inline int64_t padded_classes(const SoftenedKL& problem) {
  return (problem.classes + vector_classes - 1) / vector_classes * vector_classes;
}

inline int64_t row_start(const SoftenedKL& problem, const Rows& rows, int64_t row) {
  if (problem.inner == 1) return row * rows.outer_stride;
  return row / problem.inner * rows.outer_stride + row % problem.inner * rows.inner_stride;
}

// A row: whole vectors of classes in `body`, the rest, padded to one more vector, in `tail`. Both are indexed by class; a
// loop over a row runs over the body and then the tail, so that it need not ask where it is for every vector.
template <class A>
struct Line {
  A* body = nullptr;  // null: a gradient nobody asked for
  A* tail = nullptr;

  explicit operator bool() const { return body; }
  KD_INLINE A* in(std::false_type) const { return body; }
  KD_INLINE A* in(std::true_type) const { return tail; }
};

using InBody = std::false_type;
using InTail = std::true_type;

inline int64_t body_classes(int64_t classes) { return classes / vector_classes * vector_classes; }

template <class A>
KD_INLINE A* class_at(const Line<A>& row, int64_t c, int64_t classes) {
  return (c < body_classes(classes) ? row.body : row.tail) + c;
}

// The rows of one tensor, for reading or for writing. Rows of neighbouring numbers of the arithmetic type are used where
// they lie, all but the last, partial vector; others are copied.
template <class A>
class RowAccess {
 public:
  RowAccess(const SoftenedKL& problem, const Rows& rows, A absent, A* scratch)
      : problem_(problem), rows_(rows), absent_(absent), scratch_(scratch), padded_(padded_classes(problem)) {
    in_place_ = rows.class_stride == 1 && element_size(rows.dtype) == sizeof(A);
  }

  // Row `first + r` of the tile at `first`. The tails of a tile lie behind each other in scratch memory.
  Line<A> row(int64_t first, int64_t r) const {
    if (!rows_.data) return {};
    A* own = scratch_ + r * padded_;
    return {in_place_ ? static_cast<A*>(rows_.data) + row_start(problem_, rows_, first + r) : own, own};
  }

  void load(int64_t first, int64_t count) const {
    if (!rows_.data) return;
    fill_tails(count);
    if (in_place_ && count == 1) std::memcpy(scratch_ + body(), row(first, 0).body + body(), tail_bytes());
    else each(first, count, [](auto* element, A* number) { *number = static_cast<A>(to_arithmetic(*element)); });
  }

  void store(int64_t first, int64_t count) const {
    if (!rows_.data) return;
    if (in_place_ && count == 1) std::memcpy(row(first, 0).body + body(), scratch_ + body(), tail_bytes());
    else each(first, count, [](auto* element, A* number) { from_arithmetic(*number, element); });
  }

 private:
  int64_t body() const { return body_classes(problem_.classes); }
  size_t tail_bytes() const { return (problem_.classes - body()) * sizeof(A); }

  // No class where there will be none; the classes of the tail come after.
  KD_INLINE void fill_tails(int64_t count) const {
    const Vec<A> absent = splat(absent_);
    for (int64_t r = 0; r < count; ++r)
      for (int64_t c = body(); c < padded_; c += Simd<A>::lanes)
        std::memcpy(scratch_ + r * padded_ + c, &absent, sizeof absent);
  }

  // body(element, number) for every class of `count` rows that is not used in place, in the order of memory.
  template <class Body>
  KD_INLINE void each(int64_t first, int64_t count, const Body& body) const {
    const int64_t classes = problem_.classes, begin = in_place_ ? body_classes(classes) : 0;
    const int64_t start = row_start(problem_, rows_, first);
    with_dtype(rows_.dtype, [&](auto* type) {
      auto* elements = static_cast<decltype(type)>(rows_.data) + start;
      if (rows_.class_stride == 1) {
        for (int64_t r = 0; r < count; ++r)
          for (int64_t c = begin; c < classes; ++c)
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
  bool in_place_;
};
