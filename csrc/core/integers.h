// Division of counts into whole pieces; value >= 0, unit > 0. Torch-free, host and device.
#pragma once

#include <cstdint>

#include "core/host_device.h"

namespace bitsplit {

constexpr int64_t kMostSteps = int64_t{1} << 30;  // of a kernel, stride or padding: products of two fit int64

// How many pieces of `unit` it takes to hold `value`.
BITSPLIT_HOST_DEVICE constexpr int64_t divide_up(int64_t value, int64_t unit) {
  return (value + unit - 1) / unit;
}

// The smallest multiple of `unit` that is not below `value`.
BITSPLIT_HOST_DEVICE constexpr int64_t round_up(int64_t value, int64_t unit) {
  return divide_up(value, unit) * unit;
}

}  // namespace bitsplit
