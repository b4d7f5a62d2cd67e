// Division by powers of two, and by small numbers, with one rounding: half to even, as core/rounding.h does
// it with floating numbers. Torch-free, host and device.
#pragma once

#include <cstdint>

#include "core/host_device.h"

namespace bitsplit {

constexpr int kFarthestShift = 40;      // right: nothing of an int32 is left
constexpr int kFarthestLeftShift = 36;  // every int32 but 0 is beyond int16 then, after any division too

// value / divisor, divisor > 0.
BITSPLIT_HOST_DEVICE int64_t rounded_quotient(int64_t value, int64_t divisor) {
  int64_t below = value / divisor;
  if (below * divisor > value) --below;
  const int64_t twice_rest = 2 * (value - below * divisor);
  return below + (twice_rest > divisor || (twice_rest == divisor && (below & 1)));
}

// value * 2^-shift for an int32 value: a shift to the right that rounds, or one to the left. What does not
// fit is as large as an int64 gets.
BITSPLIT_HOST_DEVICE int64_t shifted(int64_t value, int shift) {
  if (shift <= 0) {
    const int left = shift < -kFarthestLeftShift ? kFarthestLeftShift : -shift;
    const int64_t most = INT64_MAX >> left;
    return (value > most ? most : value < -most ? -most : value) << left;
  }
  if (shift > kFarthestShift) shift = kFarthestShift;
  const int64_t below = value >> shift, rest = value - (below << shift), half = int64_t{1} << (shift - 1);
  return below + (rest > half || (rest == half && (below & 1)));
}

// value / divisor * 2^-shift for an int32 value and 0 < divisor < 2^20, rounded once; exact within int16.
BITSPLIT_HOST_DEVICE int64_t shifted_quotient(int64_t value, int divisor, int shift) {
  if (divisor == 1) return shifted(value, shift);
  if (shift <= 0) return rounded_quotient(shifted(value, shift), divisor);
  return rounded_quotient(value, int64_t{divisor} << (shift > kFarthestShift ? kFarthestShift : shift));
}

}  // namespace bitsplit
