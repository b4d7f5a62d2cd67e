// The grids of a tensor as its scales and zero points lie in memory. Torch-free.
#pragma once

#include <cstdint>
#include <limits>

#include "core/rounding.h"

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

}  // namespace bitsplit
