// What one element of a uniform quantizer goes through, on host and device. Torch-free.
//
//   code  = clamp(round_half_even(x / scale) + zero_point, qmin, qmax)
//   value = (code - zero_point) * scale
//
// The project computes with the *level* code - zero_point, which lies in [low, high] = [qmin - zero_point,
// qmax - zero_point]: a small integer held in T (float or double), exact as long as |low|, |high| < 2^20.
// NaN stays NaN. Zero is +0, never -0. No line here can be contracted into a fused multiply-add that rounds
// differently, so CPU and GPU give the same bits.
#pragma once

#include "core/host_device.h"

namespace bitsplit {

// The levels of one channel and their distance.
template <typename T>
struct LevelGrid {
  T scale;
  T low;
  T high;
};

// `value` inside [low, high]; NaN stays NaN.
template <typename T>
BITSPLIT_HOST_DEVICE T clamp_level(T value, T low, T high) {
  value = value < low ? low : value;
  return value > high ? high : value;
}

// Round half to even of |value| < 2^22 (float) or 2^51 (double): adding 1.5 * 2^mantissa bits leaves no
// fraction bits, so the addition itself rounds. Unlike rint it vectorises everywhere and never gives -0.
BITSPLIT_HOST_DEVICE float round_half_even(float value) {
  constexpr float kNoFraction = 12582912.0f;  // 1.5 * 2^23
  return (value + kNoFraction) - kNoFraction;
}
BITSPLIT_HOST_DEVICE double round_half_even(double value) {
  constexpr double kNoFraction = 6755399441055744.0;  // 1.5 * 2^52
  return (value + kNoFraction) - kNoFraction;
}

// The level nearest to x. Clamping first keeps the rounding in its range and changes nothing: the bounds are
// integers and rounding is monotone.
template <typename T>
BITSPLIT_HOST_DEVICE T nearest_level(T x, const LevelGrid<T>& grid) {
  return round_half_even(clamp_level(x / grid.scale, grid.low, grid.high));
}

// x moved to the nearest representable value.
template <typename T>
BITSPLIT_HOST_DEVICE T fake_quantize(T x, const LevelGrid<T>& grid) {
  return nearest_level(x, grid) * grid.scale;
}

// Whether x rounds to a level of the grid without clamping. False for NaN.
template <typename T>
BITSPLIT_HOST_DEVICE bool is_inside(T x, const LevelGrid<T>& grid) {
  const T level = round_half_even(clamp_level(x / grid.scale, grid.low - 1, grid.high + 1));
  return (level >= grid.low) & (level <= grid.high);  // no branch: loops over this vectorise
}

}  // namespace bitsplit
