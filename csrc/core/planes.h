// Bit planes of a signed symmetric integer: level = sum of 2^plane * digit with digits -1, 0 and 1, the sign
// going into every plane. b bits have b - 1 planes. Torch-free, host and device.
#pragma once

#include "core/host_device.h"

namespace bitsplit {

BITSPLIT_HOST_DEVICE constexpr int plane_count(int bits) { return bits - 1; }

BITSPLIT_HOST_DEVICE constexpr int plane_weight(int plane) { return 1 << plane; }

// The digit of `level` in plane `plane` (0 is the lowest).
BITSPLIT_HOST_DEVICE constexpr int plane_digit(int level, int plane) {
  const int magnitude = level < 0 ? -level : level;
  const int bit = (magnitude >> plane) & 1;
  return level < 0 ? -bit : bit;
}

}  // namespace bitsplit
