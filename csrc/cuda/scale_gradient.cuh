// Multiplies a stored gradient by the upstream gradient.
#pragma once
#include <type_traits>

#include "cuda/chunk.cuh"
#include "cuda/launch.h"
#include "cuda/simt.cuh"
#include "elements.h"
#include "types.h"

namespace kd {
namespace {

// gradient *= upstream, in place. Returns at once if upstream is the number 1.
template <class T, class U>
KD_KERNEL void KD_LAUNCH_BOUNDS(reduce_threads)
    scale_gradient_kernel(T* gradient,        // `count` numbers, dense, any order of dimensions
                          const U* upstream,  // one number, or one per row
                          int64_t count, int64_t classes, int64_t inner, bool per_row, bool classes_last) {
  if (!per_row && upstream[0] == U(1)) return;
  const int64_t step = simt::grid_blocks() * simt::block_threads() * chunk_classes;
  const int64_t begin = (simt::block_index() * simt::block_threads() + simt::thread_index()) * chunk_classes;
  for (int64_t first = begin; first < count; first += step) {
    T numbers[chunk_classes];
    load_neighbours(gradient + first, count - first, numbers);
    // Where the first number is; its neighbours follow without a division.
    int64_t row = 0, c = 0, r = 0;  // r: in the inner dimension
    if (per_row && classes_last) {
      row = first / classes;
      c = first % classes;
    } else if (per_row) {
      const int64_t line = first / inner;
      r = first % inner;
      c = line % classes;
      row = line / classes * inner + r;
    }
    KD_UNROLL for (int e = 0; e < chunk_classes; ++e) {
      from_arithmetic(to_arithmetic(numbers[e]) * upstream[per_row && first + e < count ? row : 0], numbers + e);
      if (classes_last) {
        if (++c < classes) continue;
        ++row;
      } else {
        ++row;
        if (++r < inner) continue;
        r = 0;
        if (++c < classes) {
          row -= inner;  // the same rows once more
          continue;
        }
      }
      c = 0;
    }
    store_neighbours(gradient + first, count - first, numbers);
  }
}

inline void scale_gradient_cuda(const Rows& gradient, int64_t outer, int64_t classes, int64_t inner,
                                const void* upstream, Dtype upstream_dtype, bool per_row, void* stream) {
  const int64_t count = outer * classes * inner;
  int64_t blocks = parts_of(count, reduce_threads * chunk_classes);
  blocks = blocks < scale_blocks_limit ? blocks : scale_blocks_limit;
  with_dtype(gradient.dtype, [&](auto* type) {
    with_dtype(upstream_dtype, [&](auto* upstream_type) {
      using T = std::remove_pointer_t<decltype(type)>;
      using U = std::remove_pointer_t<decltype(upstream_type)>;
      if constexpr (std::is_floating_point_v<U>)
        simt::launch(scale_gradient_kernel<T, U>, blocks, reduce_threads, 0, stream, static_cast<T*>(gradient.data),
                     static_cast<const U*>(upstream), count, classes, inner, per_row, gradient.class_stride == 1);
    });
  });
}

}  // namespace
}  // namespace kd
