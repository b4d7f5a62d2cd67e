// Values in ascending order with their prefix sums, so that quantizing all of them with one scale costs a few
// binary searches per level instead of a pass over the data. Torch-free, host.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <numeric>
#include <utility>
#include <vector>

#include "core/power.h"
#include "core/rounding.h"

namespace bitsplit {

// Sorts by three stable counting passes over 11 bits each of a key that orders like the float. No NaN.
inline void sort_values(std::vector<float>& values) {
  constexpr int kBits = 11;
  constexpr uint32_t kDigits = 1u << kBits, kSign = 0x80000000u;
  std::vector<uint32_t> keys(values.size()), sorted(values.size());
  for (size_t i = 0; i < values.size(); ++i) {
    const uint32_t bits = bits_as<uint32_t>(values[i]);
    keys[i] = bits & kSign ? ~bits : bits | kSign;
  }
  for (int shift = 0; shift < 32; shift += kBits) {
    std::array<size_t, kDigits + 1> starts{};
    for (const uint32_t key : keys) ++starts[(key >> shift) % kDigits + 1];
    std::partial_sum(starts.begin(), starts.end(), starts.begin());
    for (const uint32_t key : keys) sorted[starts[(key >> shift) % kDigits]++] = key;
    std::swap(keys, sorted);
  }
  for (size_t i = 0; i < values.size(); ++i)
    values[i] = bits_as<float>(keys[i] & kSign ? keys[i] ^ kSign : ~keys[i]);
}
inline void sort_values(std::vector<double>& values) { std::sort(values.begin(), values.end()); }

// <x, q> and <q, q> of values x and their levels q.
struct ScaleSums {
  double xq;
  double qq;
};

template <typename T>
class SortedValues {
 public:
  explicit SortedValues(std::vector<T> values) : values_(std::move(values)), prefix_(values_.size() + 1) {
    sort_values(values_);
    for (size_t i = 0; i < values_.size(); ++i) prefix_[i + 1] = prefix_[i] + static_cast<double>(values_[i]);
  }

  T lowest() const { return values_.front(); }
  T highest() const { return values_.back(); }

  // Levels grow with the values, so those of one level are a stretch of the order; its ends are found with
  // the very rounding of fake_quantize.
  ScaleSums sums(const LevelGrid<T>& grid) const {
    ScaleSums sums{0, 0};
    auto begin = values_.begin();
    for (T level = grid.low; level <= grid.high; ++level) {
      const auto has_level = [&](T x) { return nearest_level(x, grid) <= level; };
      const auto end = std::partition_point(begin, values_.end(), has_level);
      const double sum = prefix_[end - values_.begin()] - prefix_[begin - values_.begin()];
      sums.xq += static_cast<double>(level) * sum;
      sums.qq += static_cast<double>(level * level) * static_cast<double>(end - begin);
      begin = end;
    }
    return sums;
  }

 private:
  std::vector<T> values_;
  std::vector<double> prefix_;  // of the first i values
};

}  // namespace bitsplit
