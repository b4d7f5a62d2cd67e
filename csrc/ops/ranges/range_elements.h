// The element-wise steps of the family, for the loops of the CPU and the kernels of the GPU. Torch-free.
#pragma once

#include <cstdint>
#include <limits>

#include "core/host_device.h"
#include "core/power.h"
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
  return static_cast<int>(x == x ? position : T(bins));
}

// |d|^p for the differences d of lp_search.
struct SquaredLoss {
  template <typename T>
  BITSPLIT_HOST_DEVICE T operator()(T d) const {
    return d * d;
  }
};
template <typename T>
struct PowerLoss {
  T p;
  BITSPLIT_HOST_DEVICE T operator()(T d) const { return power(d, p); }
};

// lp_search multiplies the values and scales of a channel by this power of two, which changes no bit of their
// mantissas, so that |d|^p neither overflows nor vanishes. `bound`: the larger end of the channel's range.
BITSPLIT_HOST_DEVICE int normalizing_exponent(double bound) {
  if (!(bound > 0) || bound > 1e300) return 0;
  int exponent;
  frexp(bound, &exponent);
  return exponent > 126 ? -126 : exponent < -126 ? 126 : -exponent;
}

}  // namespace bitsplit
