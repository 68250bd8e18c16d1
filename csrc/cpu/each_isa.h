// Includes KD_ISA_SOURCE once per instruction set, each time in a namespace of its own (kd::base, kd::avx2, kd::avx512)
// and compiled for that set; the caller picks one at run time (KD_CALL_ISA). After highway's foreach_target.
//
// Standard headers come first, outside of the target pragmas: no function they share with other files may be compiled
// for a machine the user lacks.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "cpu/isa.h"
#include "elements.h"
#include "permutation.h"
#include "row_scales.h"
#include "row_statistics.h"
#include "row_loss.h"

#define KD_INLINE inline __attribute__((always_inline))

// Vector types wider than the base set change how they are passed to functions; all of ours are inlined.
#pragma GCC diagnostic ignored "-Wpsabi"

#define KD_VECTOR_BYTES 16
namespace kd {
namespace base {
namespace {
#include "cpu/simd.h"
#include "cpu/vector_part.h"
#include KD_ISA_SOURCE
}  // namespace
}  // namespace base
}  // namespace kd
#undef KD_VECTOR_BYTES

#if defined(__x86_64__)

#pragma GCC push_options
#pragma GCC target("avx2,fma")
#define KD_VECTOR_BYTES 32
namespace kd {
namespace avx2 {
namespace {
#include "cpu/simd.h"
#include "cpu/vector_part.h"
#include KD_ISA_SOURCE
}  // namespace
}  // namespace avx2
}  // namespace kd
#undef KD_VECTOR_BYTES
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")
#define KD_VECTOR_BYTES 64
namespace kd {
namespace avx512 {
namespace {
#include "cpu/simd.h"
#include "cpu/vector_part.h"
#include KD_ISA_SOURCE
}  // namespace
}  // namespace avx512
}  // namespace kd
#undef KD_VECTOR_BYTES
#pragma GCC pop_options

#define KD_CALL_ISA(function, ...)                                  \
  (isa_in_use() == Isa::avx512 ? avx512::function(__VA_ARGS__)      \
   : isa_in_use() == Isa::avx2 ? avx2::function(__VA_ARGS__)        \
                               : base::function(__VA_ARGS__))
#else
#define KD_CALL_ISA(function, ...) base::function(__VA_ARGS__)
#endif
