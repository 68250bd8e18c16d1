// The divergences and the target sources, which are host and device code, for vectors of this instruction set. The functions
// that they need of their includer are in cpu/simd.h.
#if defined(KD_CPU_ROW_MATH_INL_H) == defined(KD_TARGET_TOGGLE)
#ifdef KD_CPU_ROW_MATH_INL_H
#undef KD_CPU_ROW_MATH_INL_H
#else
#define KD_CPU_ROW_MATH_INL_H
#endif

#include <cmath>

#include "cpu/simd.h"
#include "row_loss.h"

KD_BEGIN_TARGET

#include "divergences-inl.h"
#include "target_sources-inl.h"

KD_END_TARGET
#endif
