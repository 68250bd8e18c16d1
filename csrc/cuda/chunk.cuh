// Chunks: 8 numbers that a thread moves together, and the conversions of their dtypes.
#pragma once
#include <cstring>
#include <type_traits>

#include "cuda/launch.h"
#include "cuda/simt.cuh"
#include "elements.h"

namespace kd {
namespace {

// The numbers of a row that are in a chunk: neighbours, or `step` apart.
struct Chunk {
  int first, step;

  KD_DEVICE int of(int e) const { return first + e * step; }
  KD_DEVICE bool is_within(int classes) const { return of(chunk_classes - 1) < classes; }
};

// A full chunk of neighbours at a 16-byte boundary moves in 16-byte accesses, any other number by number. `count`: of numbers
// in the row; beyond them reads give `absent`, and nothing is written.
template <class T>
KD_DEVICE bool is_vector(const T* row, int64_t stride, Chunk chunk, int count) {
  return stride == 1 && chunk.step == 1 && chunk.is_within(count) && reinterpret_cast<uintptr_t>(row + chunk.first) % 16 == 0;
}

template <class T>
KD_DEVICE void read_chunk(const T* row, int64_t stride, Chunk chunk, int count, T absent, T (&to)[chunk_classes]) {
  if (is_vector(row, stride, chunk, count)) {
    simt::Bytes16 bytes[sizeof(to) / 16];
    KD_UNROLL for (int i = 0; i < static_cast<int>(sizeof(to) / 16); ++i)
      bytes[i] = simt::load16(reinterpret_cast<const char*>(row + chunk.first) + 16 * i);
    memcpy(to, bytes, sizeof to);
    return;
  }
  KD_UNROLL for (int e = 0; e < chunk_classes; ++e) {
    to[e] = absent;
    if (chunk.of(e) < count) to[e] = row[chunk.of(e) * stride];
  }
}

template <class T>
KD_DEVICE void write_chunk(T* row, int64_t stride, Chunk chunk, int count, const T (&from)[chunk_classes]) {
  if (is_vector(row, stride, chunk, count)) {
    simt::Bytes16 bytes[sizeof(from) / 16];
    memcpy(bytes, from, sizeof from);
    KD_UNROLL for (int i = 0; i < static_cast<int>(sizeof(from) / 16); ++i)
      simt::store16_global(reinterpret_cast<char*>(row + chunk.first) + 16 * i, bytes[i]);
    return;
  }
  KD_UNROLL for (int e = 0; e < chunk_classes; ++e)
    if (chunk.of(e) < count) row[chunk.of(e) * stride] = from[e];
}

// 8 neighbours of an array of any length, `count` of which exist; zeros beyond.
KD_DEVICE int at_most_a_chunk(int64_t count) {
  return static_cast<int>(count < 0 ? 0 : count < chunk_classes ? count : chunk_classes);
}

template <class T>
KD_DEVICE void load_neighbours(const T* from, int64_t count, T (&to)[chunk_classes]) {
  read_chunk(from, 1, Chunk{0, 1}, at_most_a_chunk(count), T{}, to);
}

template <class T>
KD_DEVICE void store_neighbours(T* to, int64_t count, const T (&from)[chunk_classes]) {
  write_chunk(to, 1, Chunk{0, 1}, at_most_a_chunk(count), from);
}

// Numbers as they are moved: by their size. bfloat16 and float16 differ only in the conversion, so that the code of every
// access exists once for both.
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

// Whole chunks: the dtype is tested once.
template <class T, class A>
KD_DEVICE void from_bits(const T (&numbers)[chunk_classes], Dtype dtype, A (&to)[chunk_classes]) {
  if (dtype == Dtype::bfloat16) {
    KD_UNROLL for (int e = 0; e < chunk_classes; ++e) to[e] = static_cast<A>(from_bits(numbers[e], Dtype::bfloat16));
  } else {
    KD_UNROLL for (int e = 0; e < chunk_classes; ++e) to[e] = static_cast<A>(from_bits(numbers[e], Dtype::float16));
  }
}

template <class T, class A>
KD_DEVICE void to_bits(const A (&numbers)[chunk_classes], Dtype dtype, T (&to)[chunk_classes]) {
  if (dtype == Dtype::bfloat16) {
    KD_UNROLL for (int e = 0; e < chunk_classes; ++e) to_bits(static_cast<A>(numbers[e]), Dtype::bfloat16, to + e);
  } else {
    KD_UNROLL for (int e = 0; e < chunk_classes; ++e) to_bits(static_cast<A>(numbers[e]), Dtype::float16, to + e);
  }
}

template <class T>
KD_DEVICE T from_float(float value, Dtype dtype) {
  T number;
  to_bits(value, dtype, &number);
  return number;
}

// Calls body with a null pointer to what moves a number of `dtype` in a problem of arithmetic A.
template <class A, class Body>
KD_DEVICE void with_bits(Dtype dtype, const Body& body) {
  if (dtype == Dtype::float32) return body(static_cast<float*>(nullptr));
  if constexpr (sizeof(A) == sizeof(double))
    if (dtype == Dtype::float64) return body(static_cast<double*>(nullptr));
  return body(static_cast<uint16_t*>(nullptr));
}

}  // namespace
}  // namespace kd
