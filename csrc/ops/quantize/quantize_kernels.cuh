// The one kernel of the family: an element-wise functor of quantize_elements.h over a dense tensor.
#pragma once

#include "core/channel_grids.h"
#include "core/channel_layout.h"
#include "ops/quantize/quantize_elements.h"

namespace bitsplit {

// Any grid and block; neighbouring threads take neighbouring elements.
template <typename T, typename Element>
__global__ void for_each_element_kernel(Element element, ChannelGrids<T> grids, ChannelLayout layout) {
  const int64_t start = int64_t{blockIdx.x} * blockDim.x + threadIdx.x,
                step = int64_t{gridDim.x} * blockDim.x;
  const int64_t numel = layout.numel();
  ChannelWalk walk(layout, start, step);
  for (int64_t i = start; i < numel; i += step, walk.advance()) element(i, grids.of(walk.channel()));
}

}  // namespace bitsplit
