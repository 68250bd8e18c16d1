// The first `count` elements of a vector of them, from memory that may end there to an array of all, and back; none or all
// where `count` is less or more.
//
// Uses one masked instruction where the set has it: a vector that is loaded right after its elements were stored one by one
// has to wait until all of them have reached the cache.
#if defined(KD_CPU_VECTOR_PART_H) == defined(KD_TARGET_TOGGLE)
#ifdef KD_CPU_VECTOR_PART_H
#undef KD_CPU_VECTOR_PART_H
#else
#define KD_CPU_VECTOR_PART_H
#endif

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "cpu/simd.h"

KD_BEGIN_TARGET

template <class A>
KD_INLINE typename Simd<A>::I first_lanes(int64_t count) {
  typename Simd<A>::I number;
  for (int lane = 0; lane < Simd<A>::lanes; ++lane) number[lane] = lane;
  return number < static_cast<std::decay_t<decltype(number[0])>>(count);
}

#if KD_VECTOR_BYTES == 64
KD_INLINE uint16_t first_sixteen(int64_t count) {
  return static_cast<uint16_t>(count <= 0 ? 0 : count < 16 ? (1u << count) - 1 : 0xffffu);
}
#endif

template <int lanes, class E>
KD_INLINE void read_part(E* to, const E* from, int64_t count) {
#if KD_VECTOR_BYTES == 64
  const uint16_t mask = first_sixteen(count);
  if constexpr (lanes == 16 && sizeof(E) == 4) {
    const VecF v = __builtin_ia32_loadups512_mask(reinterpret_cast<const float*>(from), VecF{}, mask);
    return void(std::memcpy(to, &v, sizeof v));
  } else if constexpr (lanes == 16 && sizeof(E) == 2) {
    typedef short V __attribute__((vector_size(32)));
    const V v = __builtin_ia32_loaddquhi256_mask(reinterpret_cast<const short*>(from), V{}, mask);
    return void(std::memcpy(to, &v, sizeof v));
  }
#elif KD_VECTOR_BYTES == 32
  if constexpr (lanes == 8 && sizeof(E) == 4) {
    const VecF v = __builtin_ia32_maskloadps256(reinterpret_cast<const VecF*>(from), first_lanes<float>(count));
    return void(std::memcpy(to, &v, sizeof v));
  }
#endif
  for (int lane = 0; lane < lanes && lane < count; ++lane) to[lane] = from[lane];
}

template <int lanes, class E>
KD_INLINE void write_part(E* to, const E* from, int64_t count) {
#if KD_VECTOR_BYTES == 64
  const uint16_t mask = first_sixteen(count);
  if constexpr (lanes == 16 && sizeof(E) == 4) {
    VecF v;
    std::memcpy(&v, from, sizeof v);
    return __builtin_ia32_storeups512_mask(reinterpret_cast<float*>(to), v, mask);
  } else if constexpr (lanes == 16 && sizeof(E) == 2) {
    typedef short V __attribute__((vector_size(32)));
    V v;
    std::memcpy(&v, from, sizeof v);
    return __builtin_ia32_storedquhi256_mask(reinterpret_cast<short*>(to), v, mask);
  }
#elif KD_VECTOR_BYTES == 32
  if constexpr (lanes == 8 && sizeof(E) == 4) {
    VecF v;
    std::memcpy(&v, from, sizeof v);
    return __builtin_ia32_maskstoreps256(reinterpret_cast<VecF*>(to), first_lanes<float>(count), v);
  }
#endif
  for (int lane = 0; lane < lanes && lane < count; ++lane) to[lane] = from[lane];
}

KD_END_TARGET
#endif
