// The dtype of the gradients that an op of a loss returns. They belong to an upstream gradient of 1; backward multiplies them.
#pragma once
#include <type_traits>

#include "elements.h"

namespace kd {

// float16 ends at 6e-8. A loss scale arrives as the upstream gradient, after the forward pass, when the small numbers of an
// unscaled mean would already be 0. The op returns float32 for float16; backward multiplies and rounds once.
constexpr Dtype kept_dtype(Dtype dtype) { return dtype == Dtype::float16 ? Dtype::float32 : dtype; }

template <class T>
using Kept = std::conditional_t<std::is_same_v<T, Half>, float, T>;

}  // namespace kd
