// The one kernel of the family: an element-wise functor of quantize_elements.h over a dense tensor.
#pragma once

#include <limits>

#include "core/channel_layout.h"
#include "ops/quantize/quantize_elements.h"

namespace bitsplit {

// The scales and zero points of all channels as the tensors hold them.
template <typename T>
struct ChannelGrids {
  const T* scale;
  const int32_t* zero_point;
  T qmin;
  T qmax;

  // A scale that is not positive and finite becomes NaN, so that the mistake shows in every element.
  BITSPLIT_HOST_DEVICE LevelGrid<T> of(int64_t channel) const {
    const T value = scale[channel], zero = static_cast<T>(zero_point[channel]);
    const bool valid = value > 0 && value <= std::numeric_limits<T>::max();
    return {valid ? value : std::numeric_limits<T>::quiet_NaN(), qmin - zero, qmax - zero};
  }
};

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
