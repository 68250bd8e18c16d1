// The only file that includes torch: aliases, allocation, layouts, threads and streams on the LibTorch stable ABI.
//
// Everything here calls C functions that torch promises to keep, so a library built once loads in every torch >= 2.10.
// Errors raised inside such a call lose their text in torch < 2.13; what a user can get wrong is checked in Python.
#pragma once
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "types.h"

namespace kd {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Guards memory safety only; Python has already reported user errors.
inline void require(bool condition, const char* message) {
  if (!condition) throw std::invalid_argument(std::string("kdkernels: ") + message);
}
inline void require(bool condition, const char* name, const char* rule) {  // makes a string only where it throws
  if (!condition) throw std::invalid_argument(std::string("kdkernels: ") + name + " " + rule);
}

inline std::optional<Dtype> float_dtype(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float: return Dtype::float32;
    case ScalarType::Half: return Dtype::float16;
    case ScalarType::BFloat16: return Dtype::bfloat16;
    case ScalarType::Double: return Dtype::float64;
    default: return std::nullopt;
  }
}

inline ScalarType scalar_type(Dtype dtype) {
  constexpr ScalarType types[] = {ScalarType::Float, ScalarType::Half, ScalarType::BFloat16, ScalarType::Double};
  return types[static_cast<int>(dtype)];
}

// An uninitialised tensor on the device of `like`. One C call, without the dispatcher's search by name.
inline Tensor allocate(const Tensor& like, ScalarType dtype, const std::vector<int64_t>& sizes,
                       const std::vector<int64_t>& strides) {
  int32_t device_type = 0, device_index = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(like.get(), &device_index));
  AtenTensorHandle handle = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(),
                                                  static_cast<int32_t>(dtype), device_type, device_index, &handle));
  return Tensor(handle);
}

inline Tensor allocate(const Tensor& like, ScalarType dtype, const std::vector<int64_t>& sizes) {
  std::vector<int64_t> strides(sizes.size());
  int64_t step = 1;
  for (size_t i = sizes.size(); i-- > 0; step *= sizes[i]) strides[i] = step;
  return allocate(like, dtype, sizes, strides);
}

// What an op returns where no tensor is asked for: None in Python. One for all calls, so that it costs no allocation.
inline const Tensor& undefined() {
  static const Tensor* const none = new Tensor();
  return *none;
}

// One stride for several neighbouring dimensions, where the memory layout allows it.
struct Span {
  int64_t size = 1;
  int64_t stride = 1;
  bool uniform = true;
};

inline Span merge_dimensions(const Tensor& tensor, int64_t begin, int64_t end) {
  Span span;
  bool first = true;
  for (int64_t d = end; d-- > begin;) {
    const int64_t size = tensor.size(d), stride = tensor.stride(d);
    if (size == 1) continue;
    if (first) span.stride = stride;
    else if (stride != span.stride * span.size && tensor.numel() > 0) span.uniform = false;  // none is needed without rows
    span.size *= size;
    first = false;
  }
  return span;
}

// The rows of a tensor around its class dimension `dim`, [outer, middle, inner]: the dimensions before `dim` or those after it
// are divided at `split`; at `dim` itself none are, and `middle` is 1.
struct RowSpans {
  Span outer, middle, inner;

  RowSpans(const Tensor& tensor, int64_t dim, int64_t split)
      : outer(merge_dimensions(tensor, 0, split < dim ? split : dim)),
        middle(split < dim ? merge_dimensions(tensor, split, dim) : merge_dimensions(tensor, dim + 1, split)),
        inner(merge_dimensions(tensor, split > dim ? split : dim + 1, tensor.dim())) {}

  bool are_uniform() const { return outer.uniform && middle.uniform && inner.uniform; }
};

inline Rows as_rows(const Tensor& tensor, int64_t dim, const RowSpans& spans) {
  return Rows{tensor.data_ptr(),     *float_dtype(tensor), spans.outer.stride,
              tensor.stride(dim), spans.inner.stride,   spans.middle.stride};
}

// Nothing if a stride for each of the three does not suffice.
inline std::optional<Rows> as_rows(const Tensor& tensor, int64_t dim, int64_t split) {
  const RowSpans spans(tensor, dim, split);
  if (!spans.are_uniform()) return std::nullopt;
  return as_rows(tensor, dim, spans);
}

// An uninitialised tensor like `logits`, in the same memory order where that is dense (rows last, or channels last).
inline Tensor allocate_gradient(const Tensor& logits, int64_t dim) {
  const std::vector<int64_t> sizes(logits.sizes().begin(), logits.sizes().end());
  const Span outer = merge_dimensions(logits, 0, dim), inner = merge_dimensions(logits, dim + 1, logits.dim());
  const int64_t classes = logits.size(dim), class_stride = logits.stride(dim);
  const bool outer_dense = outer.uniform && (outer.size == 1 || outer.stride == classes * inner.size);
  const bool rows_last = inner.size == 1 || inner.stride == 1;
  const bool channels_last = class_stride == 1 && (inner.size == 1 || inner.stride == classes);
  if (outer_dense && inner.uniform && (channels_last || (rows_last && class_stride == inner.size)))
    return allocate(logits, logits.scalar_type(), sizes,
                    std::vector<int64_t>(logits.strides().begin(), logits.strides().end()));
  return allocate(logits, logits.scalar_type(), sizes);
}

}  // namespace kd
