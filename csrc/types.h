// Types that all engines share: element types, tensors as pointers and strides, reductions. No torch, no CUDA.
#pragma once
#include <cstdint>

namespace kd {

enum class Dtype : int { float32, float16, bfloat16, float64 };

constexpr int element_size(Dtype dtype) { return dtype == Dtype::float64 ? 8 : dtype == Dtype::float32 ? 4 : 2; }

enum class Reduction : int { none, sum, batchmean, elementmean };

// A tensor [outer, middle, inner] of rows of classes in any memory layout: row r is (r / inner / middle, r / inner % middle,
// r % inner). Strides are in elements. Two of the three suffice for most layouts; `middle` is there for slices such as
// logits[:, :-1] of [batch, sequence, classes].
struct Rows {
  void* data = nullptr;  // null: absent, such as a gradient that is not wanted
  Dtype dtype = Dtype::float32;
  int64_t outer_stride = 0;
  int64_t class_stride = 0;
  int64_t inner_stride = 0;
  int64_t middle_stride = 0;
};

// A matrix of features [rows, width]; the features of a row are neighbours.
struct Features {
  void* data = nullptr;  // null: absent
  Dtype dtype = Dtype::float32;
  int64_t rows = 0;
  int64_t width = 0;
  int64_t stride = 0;  // between rows, in elements
};

}  // namespace kd
