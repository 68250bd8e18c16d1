// Marks small functions that both the CPU kernels and the CUDA kernels call. Host form: always inlined, so that a
// file compiled for AVX-512 leaves no out-of-line copy behind that the linker could hand to a machine without it.
//
// KD_UNROLL goes before a loop whose counter indexes registers, KD_UNROLL_FLOAT(A) before one whose body is so large that it is
// unrolled in float32 alone: float64 is for checking, and would be most of the compilation. KD_CALLS_EITHER before a host-and-device function
// whose callable may be of either kind.
#pragma once

#ifdef __CUDACC__
#define KD_HOST_DEVICE __host__ __device__ __forceinline__
#define KD_DEVICE __device__ __forceinline__
#define KD_UNROLL _Pragma("unroll")
#define KD_PRAGMA(text) _Pragma(#text)
#define KD_UNROLL_FLOAT(A) KD_PRAGMA(unroll(sizeof(A) == sizeof(float) ? 8 : 1))
#define KD_CALLS_EITHER _Pragma("nv_exec_check_disable")
#else
#define KD_HOST_DEVICE inline __attribute__((always_inline))
#define KD_DEVICE inline
#define KD_UNROLL
#define KD_UNROLL_FLOAT(A)
#define KD_CALLS_EITHER
#endif
