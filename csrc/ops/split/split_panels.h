// A batch of square matrices as the CPU loops read them: in panels of 64 columns.
#pragma once

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include <algorithm>

#include "ops/split/split_rows.h"

namespace bitsplit::split {

// Panel b of a group holds columns 64 b .. 64 b + 63 of all rows, row after row, padded with zeros and
// converted to T: whoever works on these 64 columns reads one stretch of memory, without tails.
template <class T>
class Panels {
 public:
  enum class Part {
    all,
    shares,  // U_in / U_nn above the diagonal of an upper triangular U, zero elsewhere
  };

  // matrix: [g, N, N], float32 or float64, contiguous.
  Panels(const at::Tensor& matrix, Part part)
      : columns(matrix.size(1)),
        padded(round_up(columns, kBlock)),
        blocks(padded / kBlock),
        storage_(at::empty({matrix.size(0), blocks, padded, kBlock}, c10::CppTypeToScalarType<T>::value)) {
    AT_DISPATCH_FLOATING_TYPES(matrix.scalar_type(), "split_panels", [&] {
      const scalar_t* const source = matrix.const_data_ptr<scalar_t>();
      at::parallel_for(0, matrix.size(0) * blocks, 1, [&](int64_t begin, int64_t end) {
        for (int64_t task = begin; task < end; ++task)
          pack(source + task / blocks * columns * columns, task / blocks, task % blocks, part);
      });
    });
  }

  const T* panel(int64_t group, int64_t block) const {
    return storage_.template const_data_ptr<T>() + (group * blocks + block) * padded * kBlock;
  }
  // The 64 x 64 of a block with itself.
  const T* square(int64_t group, int64_t block) const {
    return panel(group, block) + block * kBlock * kBlock;
  }

  T diagonal(int64_t group, int64_t column) const {
    return square(group, column / kBlock)[column % kBlock * (kBlock + 1)];
  }

  const int64_t columns, padded, blocks;

 private:
  template <class Source>
  void pack(const Source* matrix, int64_t group, int64_t block, Part part) {
    const int64_t first = block * kBlock, width = std::min(kBlock, columns - first);
    T* const to = storage_.template mutable_data_ptr<T>() + (group * blocks + block) * padded * kBlock;
    const int64_t rows = part == Part::all ? padded : first + kBlock;  // rows below are never read
    for (int64_t n = 0; n < rows; ++n) {
      T* const row = to + n * kBlock;
      const Source* const source = matrix + n * columns + first;
      const int64_t from = part == Part::all ? 0 : std::clamp<int64_t>(n + 1 - first, 0, width);
      const int64_t until = n < columns ? width : from;
      std::fill(row, row + from, T(0));
      if (part == Part::all)
        std::copy(source + from, source + until, row + from);
      else
        for (int64_t j = from; j < until; ++j)
          row[j] = static_cast<T>(source[j] / matrix[(first + j) * (columns + 1)]);
      std::fill(row + until, row + kBlock, T(0));
    }
  }

  at::Tensor storage_;
};

}  // namespace bitsplit::split
