// The candidates of lp_search, for host and device. Torch-free.
#pragma once

#include <cmath>
#include <cstdint>

#include "core/grid_of_range.h"
#include "core/host_device.h"
#include "core/power.h"

namespace bitsplit {

// |d|^p for the differences d.
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

// An error and the candidate it belongs to. Of equal errors the widest range is better, and so it is when
// errors are NaN.
struct CandidateError {
  double error;
  int candidate;

  BITSPLIT_HOST_DEVICE bool is_better_than(const CandidateError& other) const {
    return error < other.error || (!(other.error < error) && candidate > other.candidate);
  }
};

// Candidate i in 1..candidates of a channel is the grid of [low, high] * i / candidates.
//
// Errors are added up in units in which the larger end of the channel's range is about 1: values and scales
// are multiplied by a power of two, which changes no mantissa, so that |d|^p neither overflows nor vanishes.
struct SearchSpace {
  const double* low;   // [channels]
  const double* high;  // [channels]
  int qmin, qmax;
  int candidates;
  double p;

  template <typename T>
  BITSPLIT_HOST_DEVICE AffineGrid<T> grid(int64_t channel, int candidate) const {
    return grid_of_range<T>(low[channel] * candidate / candidates, high[channel] * candidate / candidates,
                            qmin, qmax);
  }

  // The power of two of the channel's units; 0 for an empty range and for one that is not finite.
  BITSPLIT_HOST_DEVICE int unit_exponent(int64_t channel) const {
    const double bound = -low[channel] > high[channel] ? -low[channel] : high[channel];
    if (!(bound > 0 && bound < 1e300)) return 0;
    int exponent;
    frexp(bound, &exponent);
    return exponent > 126 ? -126 : exponent < -126 ? 126 : -exponent;
  }
  template <typename T>
  BITSPLIT_HOST_DEVICE T unit(int64_t channel) const {
    return ldexp(T(1), unit_exponent(channel));
  }
  template <typename T>
  BITSPLIT_HOST_DEVICE LevelGrid<T> grid_in_units(int64_t channel, int candidate) const {
    LevelGrid<T> scaled = grid<T>(channel, candidate).grid;
    scaled.scale *= unit<T>(channel);
    return scaled;
  }
  // An error added up in units, as it is.
  BITSPLIT_HOST_DEVICE double error_of_units(int64_t channel, double error) const {
    return error == 0 ? 0 : error * exp2(-unit_exponent(channel) * p);
  }
};

}  // namespace bitsplit
