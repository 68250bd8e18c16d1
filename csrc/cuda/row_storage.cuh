// Where a row lives between sweeps: in registers (Held), in shared memory (Staged), or nowhere (Streamed). Each offers
//
//     load(problem, position, computed, team)              brings the row in, if it stays
//     for_each(problem, position, computed, team, body)    body(first, student, teacher) for every chunk of this thread
//
// A chunk is 8 neighbouring classes from `first` on, which may begin before class 0 and end after the last: what is no
// class reads as a logit of -inf or a probability of 0, and so does all of a teacher that is absent. With `computed` false
// no memory is read. Included by cuda/softened_kl.cuh.

// Where a row begins in each tensor, and how many classes of its first chunk lie before class 0, so that chunks start at
// 16-byte boundaries of the student.
struct RowPosition {
  int64_t outer, inner;
  int64_t phase;
  int64_t chunks;

  KD_DEVICE RowPosition(const SoftenedKL& problem, int64_t row)
      : outer(row / problem.inner), inner(row % problem.inner), phase(0), chunks(0) {
    if (problem.student.class_stride == 1)
      with_dtype(problem.student.dtype, [&](auto* type) {
        const auto* start = begin(problem.student, type);
        phase = static_cast<int64_t>(reinterpret_cast<uintptr_t>(start) % 16 / sizeof(*type));
      });
    chunks = (problem.classes + phase + chunk_classes - 1) / chunk_classes;
  }

  template <class T>
  KD_DEVICE T* begin(const Rows& rows, T*) const {
    return static_cast<T*>(rows.data) + outer * rows.outer_stride + inner * rows.inner_stride;
  }

  KD_DEVICE int64_t first_class(int64_t chunk) const { return chunk * chunk_classes - phase; }
};

// A full chunk at a 16-byte boundary moves in 16-byte accesses, any other class by class.
template <class T>
KD_DEVICE bool is_vector(const T* row, int64_t class_stride, int64_t first, int64_t classes) {
  return class_stride == 1 && first >= 0 && first + chunk_classes <= classes &&
         reinterpret_cast<uintptr_t>(row + first) % 16 == 0;
}

template <class T>
KD_DEVICE void read_chunk(const T* row, int64_t class_stride, int64_t first, int64_t classes, T absent,
                          T (&to)[chunk_classes]) {
  if (is_vector(row, class_stride, first, classes)) {
    simt::Bytes16 bytes[sizeof(to) / 16];
    KD_UNROLL for (int i = 0; i < static_cast<int>(sizeof(to) / 16); ++i)
      bytes[i] = simt::load16(reinterpret_cast<const char*>(row + first) + 16 * i);
    memcpy(to, bytes, sizeof to);
    return;
  }
  KD_UNROLL for (int e = 0; e < chunk_classes; ++e) {
    const int64_t c = first + e;
    to[e] = absent;
    if (c >= 0 && c < classes) to[e] = row[c * class_stride];
  }
}

// The elements as they are moved: by their size. bfloat16 and float16 differ only in the conversion, so that the code of
// every access exists once for both.
KD_DEVICE float from_bits(uint16_t bits, Dtype dtype) {
  return dtype == Dtype::bfloat16 ? bfloat16_to_float(bits) : half_to_float(bits);
}
KD_DEVICE float from_bits(float number, Dtype) { return number; }
KD_DEVICE double from_bits(double number, Dtype) { return number; }

KD_DEVICE void to_bits(float number, Dtype dtype, uint16_t* to) {
  *to = dtype == Dtype::bfloat16 ? float_to_bfloat16(number) : float_to_half(number);
}
KD_DEVICE void to_bits(float number, Dtype, float* to) { *to = number; }
KD_DEVICE void to_bits(double number, Dtype, double* to) { *to = number; }

// Calls body with a null pointer to what moves an element of `dtype` in a problem of arithmetic A.
template <class A, class Body>
KD_DEVICE void with_bits(Dtype dtype, const Body& body) {
  if (dtype == Dtype::float32) return body(static_cast<float*>(nullptr));
  if constexpr (sizeof(A) == sizeof(double))
    if (dtype == Dtype::float64) return body(static_cast<double*>(nullptr));
  return body(static_cast<uint16_t*>(nullptr));
}

template <class A>
KD_DEVICE void write_chunk(const Rows& rows, const RowPosition& position, int64_t first, int64_t classes,
                           const A (&from)[chunk_classes]) {
  with_bits<A>(rows.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    T* row = position.begin(rows, type);
    T numbers[chunk_classes];
    KD_UNROLL for (int e = 0; e < chunk_classes; ++e) to_bits(from[e], rows.dtype, numbers + e);
    if (is_vector(row, rows.class_stride, first, classes)) {
      simt::Bytes16 bytes[sizeof(numbers) / 16];
      memcpy(bytes, numbers, sizeof numbers);
      KD_UNROLL for (int i = 0; i < static_cast<int>(sizeof(numbers) / 16); ++i)
        simt::store16(reinterpret_cast<char*>(row + first) + 16 * i, bytes[i]);
      return;
    }
    KD_UNROLL for (int e = 0; e < chunk_classes; ++e)
      if (first + e >= 0 && first + e < classes) row[(first + e) * rows.class_stride] = numbers[e];
  });
}

template <class T>
KD_DEVICE T absent_class(float value, Dtype dtype) {
  T absent;
  to_bits(value, dtype, &absent);
  return absent;
}

template <class A, class T>
KD_DEVICE void read_arithmetic(const T* row, const Rows& rows, int64_t first, int64_t classes, float absent,
                               A (&to)[chunk_classes]) {
  T numbers[chunk_classes];
  read_chunk(row, rows.class_stride, first, classes, absent_class<T>(absent, rows.dtype), numbers);
  KD_UNROLL for (int e = 0; e < chunk_classes; ++e) to[e] = static_cast<A>(from_bits(numbers[e], rows.dtype));
}

// A chunk of a row, whatever its dtype.
template <class A>
KD_DEVICE void read_row(const Rows& rows, const RowPosition& position, int64_t first, int64_t classes, float absent,
                        A (&to)[chunk_classes]) {
  with_bits<A>(rows.dtype, [&](auto* type) {
    read_arithmetic(position.begin(rows, type), rows, first, classes, absent, to);
  });
}

// One class, wherever the row's chunks are.
template <class A>
KD_DEVICE A read_class(const Rows& rows, const RowPosition& position, int64_t c) {
  A value = 0;
  with_bits<A>(rows.dtype, [&](auto* type) {
    value = static_cast<A>(from_bits(position.begin(rows, type)[c * rows.class_stride], rows.dtype));
  });
  return value;
}

// Up to `count` chunks per thread, in registers. The dtype is asked once per tensor, so that all loads are in flight
// together.
template <class A, int count>
struct Held {
  A student[count][chunk_classes];
  A teacher[count][chunk_classes];

  template <class Source, class Team>
  KD_DEVICE void load(const SoftenedKL& problem, const RowPosition& position, bool computed, const Team& team) {
    load_tensor(problem.student, problem.classes, position, computed, team, -HUGE_VALF, student);
    load_tensor(problem.teacher, problem.classes, position, computed && problem.teacher.data, team, Source::absent, teacher);
  }

  template <class Team, class Body>
  KD_DEVICE void for_each(const SoftenedKL&, const RowPosition& position, bool, const Team& team, const Body& body) {
    KD_UNROLL for (int k = 0; k < count; ++k) {
      const int64_t chunk = team.rank() + k * team.size();
      if (chunk < position.chunks) body(position.first_class(chunk), student[k], teacher[k]);
    }
  }

 private:
  template <class Team>
  KD_DEVICE static void load_tensor(const Rows& rows, int64_t classes, const RowPosition& position, bool computed,
                                    const Team& team, float absent, A (&to)[count][chunk_classes]) {
    with_bits<A>(rows.dtype, [&](auto* type) {
      KD_UNROLL for (int k = 0; k < count; ++k) {
        const int64_t chunk = team.rank() + k * team.size();
        const bool inside = computed && chunk < position.chunks;
        read_arithmetic(position.begin(rows, type), rows, position.first_class(chunk), inside ? classes : 0, absent,
                        to[k]);
      }
    });
  }
};

// Read again for every sweep, from global memory or what caches hold of it.
template <class A>
struct Streamed {
  float absent;

  template <class Source, class Team>
  KD_DEVICE void load(const SoftenedKL&, const RowPosition&, bool, const Team&) {
    absent = Source::absent;
  }

  template <class Team, class Body>
  KD_DEVICE void for_each(const SoftenedKL& problem, const RowPosition& position, bool computed, const Team& team,
                          const Body& body) {
    const int64_t classes = computed ? problem.classes : 0;
    for (int64_t chunk = team.rank(); chunk < position.chunks; chunk += team.size()) {
      const int64_t first = position.first_class(chunk);
      A student[chunk_classes], teacher[chunk_classes];
      read_row(problem.student, position, first, classes, -HUGE_VALF, student);
      read_row(problem.teacher, position, first, problem.teacher.data ? classes : 0, absent, teacher);
      body(first, student, teacher);
    }
  }
};

// Both rows in dynamic shared memory, chunk after chunk in their own dtype. A thread reads only what it wrote: no barrier.
template <class A>
struct Staged {
  template <class Source, class Team>
  KD_DEVICE void load(const SoftenedKL& problem, const RowPosition& position, bool computed, const Team& team) {
    const int64_t classes = computed ? problem.classes : 0;
    stage(problem.student, position, classes, team, -HUGE_VALF, simt::dynamic_shared<unsigned char>());
    stage(problem.teacher, position, problem.teacher.data ? classes : 0, team, Source::absent,
          teacher_stage(problem, position));
  }

  template <class Team, class Body>
  KD_DEVICE void for_each(const SoftenedKL& problem, const RowPosition& position, bool, const Team& team,
                          const Body& body) {
    for (int64_t chunk = team.rank(); chunk < position.chunks; chunk += team.size()) {
      A student[chunk_classes], teacher[chunk_classes];
      unstage(problem.student, chunk, simt::dynamic_shared<unsigned char>(), student);
      unstage(problem.teacher, chunk, teacher_stage(problem, position), teacher);
      body(position.first_class(chunk), student, teacher);
    }
  }

 private:
  static KD_DEVICE unsigned char* teacher_stage(const SoftenedKL& problem, const RowPosition& position) {
    int64_t student_bytes = 0;
    with_bits<A>(problem.student.dtype,
               [&](auto* type) { student_bytes = position.chunks * chunk_classes * static_cast<int64_t>(sizeof(*type)); });
    return simt::dynamic_shared<unsigned char>() + student_bytes;
  }

  template <class Team>
  static KD_DEVICE void stage(const Rows& rows, const RowPosition& position, int64_t classes, const Team& team,
                              float absent, unsigned char* to) {
    with_bits<A>(rows.dtype, [&](auto* type) {
      using T = std::remove_pointer_t<decltype(type)>;
      for (int64_t chunk = team.rank(); chunk < position.chunks; chunk += team.size()) {
        T numbers[chunk_classes];
        read_chunk(static_cast<const T*>(position.begin(rows, type)), rows.class_stride, position.first_class(chunk),
                   classes, absent_class<T>(absent, rows.dtype), numbers);
        simt::Bytes16 bytes[sizeof(numbers) / 16];
        memcpy(bytes, numbers, sizeof numbers);
        KD_UNROLL for (int i = 0; i < static_cast<int>(sizeof(numbers) / 16); ++i)
          simt::store16(to + chunk * sizeof(numbers) + 16 * i, bytes[i]);
      }
    });
  }

  static KD_DEVICE void unstage(const Rows& rows, int64_t chunk, const unsigned char* from, A (&to)[chunk_classes]) {
    with_bits<A>(rows.dtype, [&](auto* type) {
      using T = std::remove_pointer_t<decltype(type)>;
      T numbers[chunk_classes];
      simt::Bytes16 bytes[sizeof(numbers) / 16];
      KD_UNROLL for (int i = 0; i < static_cast<int>(sizeof(numbers) / 16); ++i)
        bytes[i] = simt::load16(from + chunk * sizeof(numbers) + 16 * i);
      memcpy(numbers, bytes, sizeof numbers);
      KD_UNROLL for (int e = 0; e < chunk_classes; ++e) to[e] = from_bits(numbers[e], rows.dtype);
    });
  }
};
