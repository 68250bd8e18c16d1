// Includes KD_ISA_SOURCE once per instruction set, each time in a namespace of its own and compiled for that set
// (cpu/target.h); the caller picks one at run time (KD_CALL_ISA). After highway's foreach_target.h. Once per file.
#include "cpu/isa.h"

#undef KD_TARGET_TOGGLE
#define KD_VECTOR_BYTES 16
#include KD_ISA_SOURCE
#undef KD_VECTOR_BYTES

#if defined(__x86_64__)

#define KD_TARGET_TOGGLE
#define KD_VECTOR_BYTES 32
#include KD_ISA_SOURCE
#undef KD_VECTOR_BYTES

#undef KD_TARGET_TOGGLE
#define KD_VECTOR_BYTES 64
#include KD_ISA_SOURCE
#undef KD_VECTOR_BYTES

#define KD_CALL_ISA(function, ...)                                  \
  (isa_in_use() == Isa::avx512 ? avx512::function(__VA_ARGS__)      \
   : isa_in_use() == Isa::avx2 ? avx2::function(__VA_ARGS__)        \
                               : base::function(__VA_ARGS__))
#else
#define KD_CALL_ISA(function, ...) base::function(__VA_ARGS__)
#endif
