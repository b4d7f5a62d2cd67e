// The element-wise steps of channel_range and histogram, for the loops of the CPU and the kernels of the GPU.
// Torch-free.
#pragma once

#include <cstdint>
#include <limits>

#include "core/host_device.h"
#include "core/rounding.h"

namespace bitsplit {

// Minimum and maximum of what was added; both NaN once a NaN was. No branch, so that loops over it vectorise.
template <typename T>
struct Range {
  T min = std::numeric_limits<T>::infinity();
  T max = -std::numeric_limits<T>::infinity();

  BITSPLIT_HOST_DEVICE void add(T low, T high) {
    min = (low < min) | (low != low) ? low : min;
    max = (high > max) | (high != high) ? high : max;
  }
};

// The histogram cell of x; `bins`, one beyond the last, for NaN.
template <typename T>
BITSPLIT_HOST_DEVICE int histogram_cell(T x, T low, T cells_per_unit, int bins) {
  const T position = clamp_level((x - low) * cells_per_unit, T(0), T(bins - 1));
  return static_cast<int>(position == position ? position : T(bins));
}

}  // namespace bitsplit
