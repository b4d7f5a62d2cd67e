// From a range of real numbers to the grid that covers it. Torch-free, host and device.
#pragma once

#include "core/host_device.h"
#include "core/rounding.h"

namespace bitsplit {

// A grid and the code of zero on it.
template <typename T>
struct AffineGrid {
  LevelGrid<T> grid;
  int zero_point;
};

// The codes qmin..qmax stretched over [low, high], widened to hold zero, which stays exactly representable.
//   qmin == -qmax  symmetric: scale = max(-low, high) / qmax, zero_point = 0
//   else           affine: scale = (high - low) / (qmax - qmin), zero_point = round(qmin - low / scale);
//                  a range without negative numbers gets zero_point = qmin
// Computed in double, the scale rounded to T. An empty range (low = high = 0) gives scale 1; no scale is
// below the smallest normal float or above the largest. A NaN in the range makes the scale NaN.
template <typename T>
BITSPLIT_HOST_DEVICE AffineGrid<T> grid_of_range(double low, double high, int qmin, int qmax) {
  constexpr double kSmallestScale = 1.1754943508222875e-38;  // 2^-126
  low = low > 0 ? 0 : low;
  high = high < 0 ? 0 : high;
  const bool symmetric = qmin == -qmax;
  constexpr double kLargestScale = 3.4028234663852886e+38;                                     // of float
  const double half = symmetric ? (-low > high ? -low : high) + 0 * low : high / 2 - low / 2;  // keeps NaN
  const double step = half / (symmetric ? qmax : qmax - qmin) * (symmetric ? 1 : 2);
  const double scaled = step < kSmallestScale ? kSmallestScale : step > kLargestScale ? kLargestScale : step;
  const T scale = T(half == 0 ? 1 : scaled);
  const double offset =
      symmetric ? 0 : round_half_even(clamp_level(qmin - low / scale, double(qmin), double(qmax)));
  const int zero_point = offset == offset ? static_cast<int>(offset) : qmin;
  return {{scale, T(qmin - zero_point), T(qmax - zero_point)}, zero_point};
}

}  // namespace bitsplit
