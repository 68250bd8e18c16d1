// Where a row is kept between sweeps: in registers (Held), in shared memory (Staged), or nowhere (Streamed). Each offers
//
//     load(problem, position, computed, team, absent)      reads the row, if it stays
//     for_each(problem, position, computed, team, body)    body(chunk, student, teacher) for every chunk of this thread
//
// The classes of a chunk (cuda/chunk.cuh) are neighbours where rows are multiples of 16 bytes, so that they move in 16-byte
// accesses; else they are as far apart as a team has threads, so that neighbouring threads move neighbouring classes. Which
// thread has which class follows from the number of classes and the dtypes alone, so a row is summed in the same order
// wherever it stands. Beyond the last class the student reads as -inf, the teacher as `absent`: -inf, or a probability
// of 0. With `computed` false no memory is read. `with_teacher` false: there is no teacher's row, and the body gets
// uninitialized numbers for it.
#pragma once
#include <cmath>
#include <cstring>
#include <type_traits>

#include "cuda/chunk.cuh"
#include "cuda/launch.h"
#include "cuda/simt.cuh"
#include "row_loss.h"

namespace kd {
namespace {

// Where a row begins in each tensor, and how its classes are dealt out in chunks.
struct RowPosition {
  int64_t outer, middle = 0, inner = 0;
  // At most most_classes, so that an int counts chunks and their ends. Chunks are dealt out for `classes`; of the two rows the
  // first student_classes and teacher_classes are read.
  int classes, student_classes, teacher_classes;
  bool neighbours;

  KD_DEVICE RowPosition(const RowLoss& problem, int64_t row)
      : outer(row),
        classes(static_cast<int>(problem.classes)),
        student_classes(classes),
        teacher_classes(classes),
        neighbours(is_whole(problem.student, classes) && (!problem.teacher.data || is_whole(problem.teacher, classes))) {
    if (problem.inner != 1) {  // 64-bit divisions are slow, and most layouts need none
      inner = outer % problem.inner;
      outer /= problem.inner;
    }
    if (problem.middle != 1) {
      middle = outer % problem.middle;
      outer /= problem.middle;
    }
  }

  template <class T>
  KD_DEVICE T* begin(const Rows& rows, T*) const {
    return static_cast<T*>(rows.data) + outer * rows.outer_stride + middle * rows.middle_stride + inner * rows.inner_stride;
  }

  // The chunk of this thread after `count` others; none from where it begins after the last class on.
  template <class Team>
  KD_DEVICE Chunk chunk(const Team& team, int count) const {
    if (neighbours) return {(team.rank() + count * team.size()) * chunk_classes, 1};
    return {team.rank() + count * team.size() * chunk_classes, team.size()};
  }

 private:
  static KD_DEVICE bool is_whole(const Rows& rows, int classes) {
    return classes * (rows.dtype == Dtype::float64 ? 8 : rows.dtype == Dtype::float32 ? 4 : 2) % 16 == 0;
  }
};

template <class A>
KD_DEVICE void write_row(const Rows& rows, const RowPosition& position, Chunk chunk, int classes,
                         const A (&from)[chunk_classes]) {
  with_bits<A>(rows.dtype, [&](auto* type) {
    std::remove_pointer_t<decltype(type)> numbers[chunk_classes];
    to_bits(from, rows.dtype, numbers);
    write_chunk(position.begin(rows, type), rows.class_stride, chunk, classes, numbers);
  });
}

template <class A, class T>
KD_DEVICE void read_arithmetic(const T* row, const Rows& rows, Chunk chunk, int classes, float absent,
                               A (&to)[chunk_classes]) {
  T numbers[chunk_classes];
  read_chunk(row, rows.class_stride, chunk, classes, from_float<T>(absent, rows.dtype), numbers);
  from_bits(numbers, rows.dtype, to);
}

// A chunk of a row of so many classes, whatever its dtype.
template <class A>
KD_DEVICE void read_row(const Rows& rows, const RowPosition& position, Chunk chunk, int classes, float absent,
                        A (&to)[chunk_classes]) {
  with_bits<A>(rows.dtype, [&](auto* type) {
    read_arithmetic(position.begin(rows, type), rows, chunk, classes, absent, to);
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

// Up to `count` chunks per thread, in registers. The dtype is tested once per tensor, so that all loads are in
// flight together.
template <class A, int count>
struct Held {
  A student[count][chunk_classes];
  A teacher[count][chunk_classes];

  template <class Team>
  KD_DEVICE void load(const RowLoss& problem, const RowPosition& position, bool computed, const Team& team, float absent) {
    load_tensor(problem.student, position, computed ? position.student_classes : 0, team, -HUGE_VALF, student);
    load_tensor(problem.teacher, position, computed ? position.teacher_classes : 0, team, absent, teacher);
  }

  template <class Team, class Body>
  KD_DEVICE void for_each(const RowLoss&, const RowPosition& position, bool, const Team& team, const Body& body) {
    KD_UNROLL for (int k = 0; k < count; ++k) {
      const Chunk chunk = position.chunk(team, k);
      if (chunk.first < position.classes) body(chunk, student[k], teacher[k]);
    }
  }

 private:
  template <class Team>
  KD_DEVICE static void load_tensor(const Rows& rows, const RowPosition& position, int classes, const Team& team,
                                    float absent, A (&to)[count][chunk_classes]) {
    with_bits<A>(rows.dtype, [&](auto* type) {
      KD_UNROLL for (int k = 0; k < count; ++k)
        read_arithmetic(position.begin(rows, type), rows, position.chunk(team, k), classes, absent, to[k]);
    });
  }
};

// Read again for every sweep, from global memory or what caches hold of it.
template <class A, bool with_teacher = true>
struct Streamed {
  float absent;

  template <class Team>
  KD_DEVICE void load(const RowLoss&, const RowPosition&, bool, const Team&, float its_absent) {
    absent = its_absent;
  }

  template <class Team, class Body>
  KD_DEVICE void for_each(const RowLoss& problem, const RowPosition& position, bool computed, const Team& team,
                          const Body& body) {
    for (int k = 0;; ++k) {
      const Chunk chunk = position.chunk(team, k);
      if (chunk.first >= position.classes) return;
      A student[chunk_classes], teacher[chunk_classes];
      read_row(problem.student, position, chunk, computed ? position.student_classes : 0, -HUGE_VALF, student);
      if constexpr (with_teacher)
        read_row(problem.teacher, position, chunk, computed ? position.teacher_classes : 0, absent, teacher);
      body(chunk, student, teacher);
    }
  }
};

// Both rows in the dynamic shared memory of the team's blocks, in their own dtype. A thread reads only what it wrote: no
// barrier. Words of 16 bytes that neighbouring threads read together are neighbours.
template <class A, bool with_teacher = true>
struct Staged {
  template <class Team>
  KD_DEVICE void load(const RowLoss& problem, const RowPosition& position, bool computed, const Team& team, float absent) {
    slots_ = staged_chunks(position.classes, team.size()) * simt::block_threads();
    const int half = slots_ * chunk_classes * 2;
    student_ = simt::dynamic_shared<unsigned char>();
    teacher_ = student_ + (problem.student.dtype == Dtype::float32 ? 2 * half : half);
    stage(problem.student, position, computed ? position.student_classes : 0, team, -HUGE_VALF, student_);
    if constexpr (with_teacher)
      stage(problem.teacher, position, computed ? position.teacher_classes : 0, team, absent, teacher_);
    simt::wait_copies();
  }

  template <class Team, class Body>
  KD_DEVICE void for_each(const RowLoss& problem, const RowPosition& position, bool, const Team& team,
                          const Body& body) {
    for (int k = 0;; ++k) {
      const Chunk chunk = position.chunk(team, k);
      if (chunk.first >= position.classes) return;
      A student[chunk_classes], teacher[chunk_classes];
      unstage(problem.student, k, student_, student);
      if constexpr (with_teacher) unstage(problem.teacher, k, teacher_, teacher);
      body(chunk, student, teacher);
    }
  }

 private:
  int slots_;  // chunks of all threads of the block
  unsigned char *student_, *teacher_;

  // Where word i of this thread's chunk k is.
  KD_DEVICE unsigned char* word(unsigned char* stage, int k, int i) const {
    return stage + 16 * (i * slots_ + k * simt::block_threads() + simt::thread_index());
  }

  template <class Team>
  KD_DEVICE void stage(const Rows& rows, const RowPosition& position, int classes, const Team& team, float absent,
                       unsigned char* to) const {
    with_bits<A>(rows.dtype, [&](auto* type) {
      using T = std::remove_pointer_t<decltype(type)>;
      constexpr int words = static_cast<int>(sizeof(T)) * chunk_classes / 16;
      const T* row = position.begin(rows, type);
      for (int k = 0;; ++k) {
        const Chunk chunk = position.chunk(team, k);
        if (chunk.first >= position.classes) return;
        if (is_vector(row, rows.class_stride, chunk, classes)) {
          KD_UNROLL for (int i = 0; i < words; ++i)
            simt::copy16(word(to, k, i), reinterpret_cast<const char*>(row + chunk.first) + 16 * i);
          continue;
        }
        T numbers[chunk_classes];
        read_chunk(row, rows.class_stride, chunk, classes, from_float<T>(absent, rows.dtype), numbers);
        simt::Bytes16 bytes[words];
        memcpy(bytes, numbers, sizeof numbers);
        KD_UNROLL for (int i = 0; i < words; ++i) simt::store16(word(to, k, i), bytes[i]);
      }
    });
  }

  KD_DEVICE void unstage(const Rows& rows, int k, unsigned char* from, A (&to)[chunk_classes]) const {
    with_bits<A>(rows.dtype, [&](auto* type) {
      using T = std::remove_pointer_t<decltype(type)>;
      constexpr int words = static_cast<int>(sizeof(T)) * chunk_classes / 16;
      simt::Bytes16 bytes[words];
      KD_UNROLL for (int i = 0; i < words; ++i) bytes[i] = simt::load16(word(from, k, i));
      T numbers[chunk_classes];
      memcpy(numbers, bytes, sizeof numbers);
      from_bits(numbers, rows.dtype, to);
    });
  }
};

}  // namespace
}  // namespace kd
