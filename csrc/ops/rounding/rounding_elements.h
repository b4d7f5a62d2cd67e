// What one weight goes through in an iteration, for the loops of the CPU and the kernel of the GPU.
// Torch-free.
#pragma once

#include <cstdint>

#include "core/simd.h"
#include "core/soft_rounding.h"

namespace bitsplit {

template <typename T>
struct RoundingStep {
  T* __restrict__ weight;
  const T* __restrict__ grad;
  T* __restrict__ v;
  T* __restrict__ mean;
  T* __restrict__ square;
  const int16_t* __restrict__ base;

  BITSPLIT_SIMD BITSPLIT_HOST_DEVICE void operator()(int64_t i, T scale,
                                                     const RoundingSchedule<T>& schedule) const {
    const SoftBit<T> bit = soft_bit(v[i]);
    const T slope = scale * grad[i] + schedule.weight * indecision_slope(bit.h, schedule.exponent);
    AdamState<T> state{mean[i], square[i]};
    const T next = v[i] + adam_change(slope * bit.slope, schedule.first, schedule.second, state);
    v[i] = next;
    mean[i] = state.mean;
    square[i] = state.square;
    weight[i] = scale * (static_cast<T>(base[i]) + soft_bit(next).h);
  }
};

}  // namespace bitsplit
