// The integer levels of a signed symmetric b-bit weight: -limit..limit. Torch-free, host and device.
#pragma once

#include "core/host_device.h"

namespace bitsplit {

// The largest level of `bits` bits: 1, 3, 7, 15, 31, 63, 127 for 2 to 8 bits.
BITSPLIT_HOST_DEVICE constexpr int level_limit(int bits) { return (1 << (bits - 1)) - 1; }

}  // namespace bitsplit
