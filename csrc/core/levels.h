// The integer levels that the codes of a row may take. Torch-free, host and device.
#pragma once

#include <cstdint>

#include "core/host_device.h"

namespace bitsplit {

// The largest level of a symmetric grid of `bits` bits: 1, 3, 7, 15, 31, 63, 127 for 2 to 8 bits.
BITSPLIT_HOST_DEVICE constexpr int level_limit(int bits) { return (1 << (bits - 1)) - 1; }

// The lowest and the highest level of a row, as numbers of the type computed in; low <= 0 <= high.
template <typename T>
struct Levels {
  T low, high;
};

template <typename T>
BITSPLIT_HOST_DEVICE constexpr Levels<T> symmetric_levels(int bits) {
  return {static_cast<T>(-level_limit(bits)), static_cast<T>(level_limit(bits))};
}

// The two of row `row` in levels [rows, 2].
template <typename T>
BITSPLIT_HOST_DEVICE Levels<T> levels_of_row(const int8_t* levels, int64_t row) {
  return {static_cast<T>(levels[2 * row]), static_cast<T>(levels[2 * row + 1])};
}

}  // namespace bitsplit
