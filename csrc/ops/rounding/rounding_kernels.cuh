// The CUDA kernel of the family. Any grid and block; neighbouring threads take neighbouring elements.
#pragma once

#include "core/channel_layout.h"
#include "ops/rounding/rounding_elements.h"

namespace bitsplit {

template <typename T>
__global__ void rounding_step_kernel(RoundingStep<T> element, const T* scale, ChannelLayout layout,
                                     const float* schedule_values) {
  const RoundingSchedule<T> schedule{schedule_values[0], schedule_values[1], schedule_values[2],
                                     schedule_values[3]};
  const int64_t start = int64_t{blockIdx.x} * blockDim.x + threadIdx.x,
                step = int64_t{gridDim.x} * blockDim.x;
  ChannelWalk walk(layout, start, step);
  for (int64_t i = start; i < layout.numel(); i += step, walk.advance())
    element(i, scale[walk.channel()], schedule);
}

}  // namespace bitsplit
