// Sequential rounding with error feedback on the CPU: a tile of rows of one group. Torch-free.
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/integers.h"
#include "ops/split/split_panels.h"
#include "ops/split/split_rows.h"

namespace bitsplit::split {

// One call on one group. Rows are rounded in units of their scale.
template <class T>
struct Feedback {
  const Panels<T>& shares;  // packed by pack_shares
  const T* diagonal;        // [padded N], of the factor; zeros beyond N
  int64_t group, channels;
  const T* target;       // [channels, N]
  const double* scale;   // [R]
  const int8_t* levels;  // [R, 2]
  int8_t* codes;         // [R, N]
  double* loss;          // [R]

  // Rows [first, first + rows): block after block what earlier blocks pass on, then the block itself.
  void round(int64_t first, int64_t rows) const {
    const int64_t padded_rows = round_up(rows, kFeedbackRows), size = padded_rows * kBlock;
    Aligned<T> excess(shares.blocks * size), passed_on(size);  // [blocks, rows, 64] and one block of it
    Aligned<int8_t> rounded(size);
    std::fill_n(loss + first, rows, 0.0);
    for (int64_t block = 0; block < shares.blocks; ++block) {
      const int64_t begin = block * kBlock, width = std::min(kBlock, shares.columns - begin);
      std::fill(passed_on.begin(), passed_on.end(), T(0));
      subtract_product(passed_on.data(), excess.data(), padded_rows, shares.panel(group, block), block);
      for (int64_t r = 0; r < padded_rows; r += kFeedbackRows) {
        T weight[kBlock * kFeedbackRows] = {}, wanted[kBlock * kFeedbackRows] = {}, lost[kFeedbackRows] = {};
        Levels<T> bounds[kFeedbackRows] = {};
        for (int64_t lane = 0; lane < std::min(kFeedbackRows, rows - r); ++lane) {
          const int64_t row = first + r + lane;
          bounds[lane] = levels_of_row<T>(levels, row);
          for (int64_t n = 0; n < width; ++n) {
            const int64_t at = n * kFeedbackRows + lane;
            weight[at] = static_cast<T>(target[row % channels * shares.columns + begin + n] / scale[row]);
            wanted[at] = weight[at] + passed_on[(r + lane) * kBlock + n];
          }
        }
        feedback_block(wanted, weight, shares.square(group, block), diagonal + begin, bounds,
                       &rounded[r * kBlock], &excess[block * size + r * kBlock], lost);
        for (int64_t lane = 0; lane < std::min(kFeedbackRows, rows - r); ++lane)
          loss[first + r + lane] += lost[lane] * scale[first + r + lane] * scale[first + r + lane];
      }
      for (int64_t r = 0; r < rows; ++r)
        std::copy_n(&rounded[r * kBlock], width, codes + (first + r) * shares.columns + begin);
    }
  }
};

}  // namespace bitsplit::split
