// The clipping threshold of least information loss (entropy calibration as TensorRT does it). Torch-free,
// host.
//
// Given counts[0..bins) of |x|, every i in levels..bins is a candidate: keep the cells 0..i-1.
//
//   P: the kept counts, the counts of all cells beyond added to cell i-1 (where clipping puts them),
//   normalised.
//
//   Q: the kept counts *without* those, merged into `levels` groups (cell b: group b * levels / i), each
//   group spread evenly over those of its cells that are not empty in P, normalised.
//
// The result is the i of least KL(P || Q) = sum over P > 0 of P log(P / Q); of equals the largest. A
// candidate whose clipped mass falls into a group without mass of its own has Q = 0 where P > 0, so an
// infinite divergence: it is never chosen. i = bins is always finite.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

namespace bitsplit {

// Prefix sums make one candidate cost O(levels) instead of O(bins).
class KlSearch {
 public:
  KlSearch(const int64_t* counts, int64_t bins, int64_t levels)
      : counts_(counts),
        bins_(bins),
        levels_(levels),
        mass_(bins + 1),
        filled_(bins + 1),
        entropy_(bins + 1) {
    for (int64_t b = 0; b < bins; ++b) {
      mass_[b + 1] = mass_[b] + static_cast<double>(counts[b]);
      filled_[b + 1] = filled_[b] + (counts[b] > 0);
      entropy_[b + 1] = entropy_[b] + x_log_x(static_cast<double>(counts[b]));
    }
  }

  // KL(P || Q) when the first `kept` cells are kept.
  double divergence(int64_t kept) const {
    const double total = mass_[bins_], inside = mass_[kept], clipped = total - inside;
    const double last = static_cast<double>(counts_[kept - 1]);
    const bool fills_last = last == 0 && clipped > 0;
    if (inside == 0) return std::numeric_limits<double>::infinity();
    double cross = 0;  // sum over P > 0 of P_unnormalised * log(Q_unnormalised)
    for (int64_t group = 0; group < levels_; ++group) {
      const int64_t begin = (group * kept + levels_ - 1) / levels_;
      const int64_t end = ((group + 1) * kept + levels_ - 1) / levels_;
      const bool is_last = group == levels_ - 1;
      const double own = mass_[end] - mass_[begin], mass = own + (is_last ? clipped : 0);
      if (mass == 0) continue;
      const double cells = static_cast<double>(filled_[end] - filled_[begin] + (is_last && fills_last));
      cross += mass * std::log(own / cells);  // own = 0: -inf
    }
    const double self = entropy_[kept] - x_log_x(last) + x_log_x(last + clipped);
    return (self - cross) / total - std::log(total / inside);
  }

  int64_t best() const {
    int64_t best = bins_;
    double least = divergence(bins_);
    for (int64_t kept = bins_ - 1; kept >= levels_; --kept) {
      const double value = divergence(kept);
      if (value < least) {
        least = value;
        best = kept;
      }
    }
    return best;
  }

 private:
  static double x_log_x(double x) { return x > 0 ? x * std::log(x) : 0; }

  const int64_t* counts_;
  int64_t bins_, levels_;
  std::vector<double> mass_, filled_, entropy_;  // of the first b cells
};

}  // namespace bitsplit
