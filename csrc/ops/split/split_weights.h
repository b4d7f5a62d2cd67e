// Weight space on the CPU: one row of weights, its codes and its scale. Torch-free.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "core/integers.h"
#include "core/levels.h"
#include "core/planes.h"
#include "core/simd.h"
#include "core/split_steps.h"
#include "ops/split/split_products.h"

namespace bitsplit::split {

// A row in double, padded with zeros to whole vectors: a weight of zero always has code zero and counts
// nowhere.
class WeightRow {
 public:
  template <class T>
  WeightRow(const T* weight, const int8_t* codes, int64_t columns, double scale)
      : scale(scale), weight_(round_up(columns, kLanes)), code_(weight_.size()) {
    std::copy_n(weight, columns, weight_.begin());
    if (codes != nullptr) std::copy_n(codes, columns, code_.begin());
  }

  double largest() const {
    double largest = 0;
    for (const double weight : weight_) largest = std::max(largest, std::abs(weight));
    return largest;
  }

  // Sets codes = nearest(weight / scale); returns whether any moved.
  bool round(Levels<double> levels) {
    const int64_t size = weight_.size();
    const double* const weight = weight_.data();
    double* const code = code_.data();
    int moved = 0;
    simd::run([&, scale = scale, levels]() BITSPLIT_SIMD {
      for (int64_t n = 0; n < size; ++n) {
        const double best = nearest_code(weight[n] / scale, levels);
        moved |= best != code[n];
        code[n] = best;
      }
    });
    return moved != 0;
  }

  // scale = <w, q> / <q, q> where that is positive.
  void fit_scale() {
    const int64_t size = weight_.size();
    const double *const weight = weight_.data(), *const code = code_.data();
    double dot = 0, norm = 0;
    simd::run([&](auto bytes) BITSPLIT_SIMD {
      LaneSums<bytes> dots, norms;
      for (int64_t begin = 0; begin < size; begin += kLanes)
        for (int64_t v = 0; v < dots.vectors; ++v) {
          const int64_t n = begin + v * dots.lanes;
          dots.sums[v] += vector_at<bytes>(weight + n) * vector_at<bytes>(code + n);
          norms.sums[v] += vector_at<bytes>(code + n) * vector_at<bytes>(code + n);
        }
      dot = dots.total();
      norm = norms.total();
    });
    if (dot > 0) scale = dot / norm;
  }

  // Gives every digit of one plane its best value; returns whether any moved.
  bool set_plane(int plane, std::vector<int8_t>& digits) {
    bool moved = false;
    for (size_t n = 0; n < digits.size(); ++n) {
      const double others = code_[n] - digits[n] * plane_weight(plane);
      const int best = weight_digit(weight_[n] - scale * others, scale * plane_weight(plane));
      moved |= best != digits[n];
      digits[n] = static_cast<int8_t>(best);
      code_[n] = others + best * plane_weight(plane);
    }
    return moved;
  }

  void store(int8_t* codes, int64_t columns) const {
    for (int64_t n = 0; n < columns; ++n) codes[n] = static_cast<int8_t>(code_[n]);
  }

  double scale;

 private:
  std::vector<double> weight_, code_;
};

template <class T>
void fwa_row(const T* weight, int64_t columns, int bits, int8_t* codes, double& scale) {
  WeightRow row(weight, nullptr, columns, 1.0);
  const double largest = row.largest();
  if (largest >= kSmallestWeight) {
    row.scale = largest / level_limit(bits);
    for (int round = 0; round < kMostFwaRounds && row.round(symmetric_levels<double>(bits)); ++round)
      row.fit_scale();
  }
  row.store(codes, columns);
  scale = row.scale;
}

template <class T>
void ofwa_row(const T* weight, int64_t columns, int bits, int rounds, int8_t* codes, double& scale) {
  WeightRow row(weight, codes, columns, scale);
  std::vector<std::vector<int8_t>> digits(plane_count(bits), std::vector<int8_t>(columns));
  for (int plane = 0; plane < plane_count(bits); ++plane)
    for (int64_t n = 0; n < columns; ++n)
      digits[plane][n] = static_cast<int8_t>(plane_digit(codes[n], plane));
  bool moved = true;
  for (int round = 0; round < rounds && moved; ++round) {
    moved = false;
    row.fit_scale();
    for (int plane = plane_count(bits) - 1; plane >= 0; --plane) moved |= row.set_plane(plane, digits[plane]);
  }
  row.fit_scale();
  row.store(codes, columns);
  scale = row.scale;
}

}  // namespace bitsplit::split
