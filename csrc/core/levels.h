// The integer levels of a signed symmetric b-bit weight: -limit..limit. Torch-free, host and device.
#pragma once

#include <cmath>

#include "core/host_device.h"

namespace bitsplit {

// The largest level of `bits` bits: 1, 3, 7, 15, 31, 63, 127 for 2 to 8 bits.
BITSPLIT_HOST_DEVICE constexpr int level_limit(int bits) { return (1 << (bits - 1)) - 1; }

// The level nearest to `value`, a tie going to the even one. Clamped first, which changes nothing because the
// limit is an integer, so that every conversion to int is defined.
BITSPLIT_HOST_DEVICE int nearest_level(double value, int limit) {
  const double bound = limit;
  return static_cast<int>(std::nearbyint(value > bound ? bound : value < -bound ? -bound : value));
}

}  // namespace bitsplit
