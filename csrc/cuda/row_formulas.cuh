// The divergences and the target sources that both engines share, for single numbers on the device.
#pragma once
#include "cuda/math.cuh"
#include "row_loss.h"

#define KD_INLINE KD_DEVICE

namespace kd {
namespace {

#include "divergences-inl.h"
#include "target_sources-inl.h"

}  // namespace
}  // namespace kd
