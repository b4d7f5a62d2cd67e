// Random layers in matrix form for the tests of the split kernels.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include "core/levels.h"
#include "ops/split/split_panels.h"
#include "ops/split/split_weights.h"

namespace bitsplit::split {

// Random layers in matrix form, with correlated inputs and a dead one. Values are multiples of 1/8 and few
// patches are used, so G and C are exact in float: CPU and kernels differ in nothing but the order of later
// sums.
template <class T>
struct Layers {
  int groups, rows, columns;
  std::vector<T> weight, gram, cross;  // [g, M, N], [g, N, N], [g, N, M]

  Layers(int groups, int rows, int columns, unsigned seed)
      : groups(groups),
        rows(rows),
        columns(columns),
        weight(groups * rows * columns),
        gram(groups * columns * columns),
        cross(groups * columns * rows) {
    std::mt19937 random(seed);
    std::uniform_int_distribution<int> eighths(-16, 16);
    const int patches = columns + 20;
    for (T& w : weight) w = eighths(random) / T(64) + T(1) / 1024;
    for (int g = 0; g < groups; ++g) {
      std::vector<double> x(columns * patches);
      for (int n = 0; n < columns; ++n)
        for (int k = 0; k < patches; ++k) {
          const double shared = n % 3 == 0 || n == 1 ? 0 : x[(n - 1) * patches + k] / 2;
          x[n * patches + k] = n == columns / 2 ? 0 : eighths(random) / 8.0 + std::round(shared * 8) / 8;
        }
      for (int i = 0; i < columns; ++i)
        for (int j = 0; j < columns; ++j) {
          double sum = 0;
          for (int k = 0; k < patches; ++k) sum += x[i * patches + k] * x[j * patches + k];
          gram[(g * columns + i) * columns + j] = static_cast<T>(sum);
        }
      for (int m = 0; m < rows; ++m)
        for (int n = 0; n < columns; ++n) {
          double sum = 0;
          for (int i = 0; i < columns; ++i)
            sum += double(gram[(g * columns + n) * columns + i]) * weight[(g * rows + m) * columns + i];
          cross[(g * columns + n) * rows + m] = static_cast<T>(sum);
        }
    }
  }
};

struct Codes {
  std::vector<int8_t> codes;
  std::vector<double> scale, explained;
  std::vector<int64_t> rounds;
};

// The levels [rows, 2] of every row: symmetric ones of `bits` bits; or, mixed, in turn with all 2^bits and
// zero on either side of the middle.
inline std::vector<int8_t> row_levels(int rows, int bits, bool mixed) {
  const int limit = level_limit(bits);
  std::vector<int8_t> levels;
  for (int r = 0; r < rows; ++r) {
    levels.push_back(static_cast<int8_t>(-limit - (mixed && r % 3 == 0)));
    levels.push_back(static_cast<int8_t>(limit + (mixed && r % 3 == 1)));
  }
  return levels;
}

// Whether a code of every end that lies beyond the symmetric ones is used: else levels made no difference.
inline bool uses_both_ends(const std::vector<int8_t>& codes, int bits) {
  const auto [lowest, highest] = std::minmax_element(codes.begin(), codes.end());
  return *lowest == -level_limit(bits) - 1 && *highest == level_limit(bits) + 1;
}

template <class T>
Codes fwa_on_cpu(const Layers<T>& layers, int bits) {
  const int rows = layers.groups * layers.rows;
  Codes fit{std::vector<int8_t>(rows * layers.columns), std::vector<double>(rows), {}, {}};
  for (int r = 0; r < rows; ++r)
    fwa_row(&layers.weight[r * layers.columns], layers.columns, bits, &fit.codes[r * layers.columns],
            fit.scale[r]);
  return fit;
}

template <class T>
Panels<T> packed_gram(const Layers<T>& layers) {
  Panels<T> panels(layers.groups, layers.columns);
  for (int g = 0; g < layers.groups; ++g)
    for (int block = 0; block < panels.blocks; ++block)
      panels.pack(&layers.gram[g * layers.columns * layers.columns], g, block);
  return panels;
}

}  // namespace bitsplit::split
