// Bit-Split's activation scale (see ranges.h). Torch-free, host.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "ops/ranges/sorted_values.h"

namespace bitsplit {

// The scales visited so far, and how much of <x, x> each of them explains: <x, x> - ||x - scale q||^2.
template <typename T>
class VisitedScales {
 public:
  void add(T scale, const ScaleSums& sums) {
    const double s = scale;
    scales_.push_back(scale);
    explained_.push_back(2 * s * sums.xq - s * s * sums.qq);
  }

  bool contains(T scale) const { return first(scale) < scales_.size(); }

  // The scale that explains most among those from the first visit of `scale` on.
  T best_since(T scale) const {
    const auto start = explained_.begin() + first(scale);
    return scales_[std::max_element(start, explained_.end()) - explained_.begin()];
  }
  T best() const { return best_since(scales_.front()); }

 private:
  size_t first(T scale) const { return std::find(scales_.begin(), scales_.end(), scale) - scales_.begin(); }

  std::vector<T> scales_;
  std::vector<double> explained_;
};

// qmin <= 0 < qmax; the values are finite.
template <typename T>
T alternating_scale(const SortedValues<T>& values, int qmin, int qmax) {
  constexpr int kMaxRounds = 10000;
  const T above = values.highest() / T(qmax), below = qmin < 0 ? values.lowest() / T(qmin) : T(0);
  T scale = std::max(above, below);
  if (!(scale > 0)) return 1;
  VisitedScales<T> visited;
  for (int round = 0; round < kMaxRounds; ++round) {
    const ScaleSums sums = values.sums({scale, T(qmin), T(qmax)});
    visited.add(scale, sums);
    const T next = static_cast<T>(sums.xq / sums.qq);
    if (!(next > 0 && std::isfinite(next))) break;  // only near the smallest and largest floats
    if (visited.contains(next)) return visited.best_since(next);
    scale = next;
  }
  return visited.best();
}

}  // namespace bitsplit
