// What a fragment (cpu/*-inl.h, cpu/simd.h) begins with: the instruction set that this inclusion of it is compiled for.
//
//     KD_VECTOR_BYTES    bytes of a vector: 16 (base: what every machine of the kind has), 32 (AVX2), 64 (AVX-512)
//     KD_BEGIN_TARGET    opens the namespace of that set, kd::base, kd::avx2 or kd::avx512, under its target pragma
//     KD_END_TARGET      closes both
//
// A fragment includes what it uses above KD_BEGIN_TARGET. So no function of a standard header, which other files share, is
// compiled for a machine the user lacks. Its include guard toggles, after highway's skeleton-inl.h: cpu/each_isa.h defines
// KD_TARGET_TOGGLE for every other instruction set, and a fragment is read once for each of them, wherever it is included
// first. This file has no guard: it follows KD_VECTOR_BYTES, which cpu/each_isa.h sets.
#undef KD_BEGIN_TARGET
#undef KD_END_TARGET
#undef KD_INLINE

#ifndef KD_VECTOR_BYTES
#define KD_VECTOR_BYTES 16
#endif

#if KD_VECTOR_BYTES == 64
#define KD_BEGIN_TARGET                                                                               \
  _Pragma("GCC push_options")                                                                         \
  _Pragma("GCC target(\"avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512\")")      \
  namespace kd { namespace avx512 { namespace {
#define KD_END_TARGET }}} _Pragma("GCC pop_options")
#elif KD_VECTOR_BYTES == 32
#define KD_BEGIN_TARGET                                                                               \
  _Pragma("GCC push_options")                                                                         \
  _Pragma("GCC target(\"avx2,fma\")")                                                                 \
  namespace kd { namespace avx2 { namespace {
#define KD_END_TARGET }}} _Pragma("GCC pop_options")
#else
#define KD_BEGIN_TARGET namespace kd { namespace base { namespace {
#define KD_END_TARGET }}}
#endif

#define KD_INLINE inline __attribute__((always_inline))

// Vector types wider than the base set change how they are passed to functions; all of ours are inlined.
#pragma GCC diagnostic ignored "-Wpsabi"
