// A batch of square matrices as the CPU loops read them: in panels of 64 columns. Torch-free.
#pragma once

#include <algorithm>
#include <cstdint>
#include <new>
#include <vector>

#include "core/integers.h"
#include "ops/split/split_rows.h"

namespace bitsplit::split {

// Memory that starts at a cache line, so that no vector straddles two; elements are not initialised unless
// asked for.
template <class T>
struct CacheLines {
  using value_type = T;
  static constexpr std::align_val_t kLine{64};
  CacheLines() = default;
  template <class Other>
  explicit CacheLines(const CacheLines<Other>&) {}
  T* allocate(size_t count) { return static_cast<T*>(::operator new(count * sizeof(T), kLine)); }
  void deallocate(T* memory, size_t) { ::operator delete(memory, kLine); }
  template <class Element>
  void construct(Element* element) {
    ::new (static_cast<void*>(element)) Element;
  }
  template <class Element, class... Values>
  void construct(Element* element, Values&&... values) {
    ::new (static_cast<void*>(element)) Element(std::forward<Values>(values)...);
  }
  friend bool operator==(const CacheLines&, const CacheLines&) { return true; }
};
template <class T>
using Aligned = std::vector<T, CacheLines<T>>;

// Panel b of a group holds columns 64 b .. 64 b + 63 of all rows, row after row, padded with zeros and
// converted to T: whoever works on these 64 columns reads one stretch of memory, without tails.
template <class T>
class Panels {
 public:
  // `groups` matrices [columns, columns]; every panel is still to be packed.
  Panels(int64_t groups, int64_t columns)
      : columns(columns),
        padded(round_up(columns, kBlock)),
        blocks(padded / kBlock),
        storage_(groups * blocks * padded * kBlock) {}

  // Packs one panel of one group's `matrix`.
  template <class Source>
  void pack(const Source* matrix, int64_t group, int64_t block) {
    T* row = &storage_[(group * blocks + block) * padded * kBlock];
    for (int64_t n = 0; n < padded; ++n, row += kBlock) {
      const int64_t width = n < columns ? std::min(kBlock, columns - block * kBlock) : 0;
      std::copy_n(matrix + n * columns + block * kBlock, width, row);
      std::fill(row + width, row + kBlock, T(0));
    }
  }

  // Packs U_in / U_nn for i < n of an upper triangular U and zeros for i >= n, down to the block's own rows;
  // rows below stay undefined.
  template <class Source>
  void pack_shares(const Source* factor, int64_t group, int64_t block) {
    T* row = &storage_[(group * blocks + block) * padded * kBlock];
    for (int64_t i = 0; i < (block + 1) * kBlock; ++i, row += kBlock)
      for (int64_t j = 0; j < kBlock; ++j) {
        const int64_t n = block * kBlock + j;
        row[j] =
            i < n && n < columns ? static_cast<T>(factor[i * columns + n] / factor[n * columns + n]) : T(0);
      }
  }

  const T* panel(int64_t group, int64_t block) const {
    return &storage_[(group * blocks + block) * padded * kBlock];
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
  Aligned<T> storage_;
};

// products -= q G for `rows` rows of codes [rows, N]; products are [blocks, rows padded to kRowsAtOnce, 64].
template <class T>
void subtract_code_products(Aligned<T>& products, const Panels<T>& gram, int64_t group, const int8_t* codes,
                            int64_t rows) {
  const int64_t padded_rows = round_up(rows, kRowsAtOnce), stride = padded_rows * kBlock;
  Aligned<T> left(gram.blocks * stride, T(0));
  for (int64_t block = 0; block < gram.blocks; ++block) {
    const int64_t begin = block * kBlock, width = std::min(kBlock, gram.columns - begin);
    for (int64_t r = 0; r < rows; ++r)
      std::copy_n(codes + r * gram.columns + begin, width, &left[block * stride + r * kBlock]);
  }
  for (int64_t block = 0; block < gram.blocks; ++block)
    subtract_product(&products[block * stride], left.data(), padded_rows, gram.panel(group, block),
                     gram.blocks);
}

}  // namespace bitsplit::split
