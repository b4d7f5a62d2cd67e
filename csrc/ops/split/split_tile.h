// Descent over the response on the CPU: a tile of rows of one group, solved together to their fixed points.
// Torch-free.
//
// "Left-looking" blocks: before a row solves a block of 64 columns it brings this block of its residual up to
// date with everything that moved since the block's last turn, which it finds in the row's queue. So the work
// is proportional to what moves, and one pass over G serves all rows of the tile.
#pragma once

#include <limits>
#include <vector>

#include "core/integers.h"
#include "core/planes.h"
#include "ops/split/split_panels.h"
#include "ops/split/split_products.h"
#include "ops/split/split_rows.h"

namespace bitsplit::split {

// What the tiles of one call share.
template <class T>
struct Problem {
  const Panels<T>& gram;
  const T* cross;  // [g, N, M]
  int64_t channels;
  int planes, rounds;
  bool fit_scale;  // else the rows keep theirs
};

// The rows of a tile in the tensors of the call: its input and its results.
struct TileRows {
  const int8_t* levels;  // [rows, 2], of the digits of every plane
  int8_t* codes;         // [rows, N]
  double *scale, *explained;
  int64_t* rounds_used;
};

template <class T>
class Tile {
 public:
  // `first` is the row of the tile's first row in its group, by which its channels are found.
  Tile(const Problem<T>& problem, int64_t group, int64_t first, int64_t rows, TileRows io)
      : problem_(problem),
        io_(io),
        group_(group),
        rows_(rows),
        columns_(problem.gram.columns),
        blocks_(problem.gram.blocks),
        stride_(round_up(rows, kRowsAtOnce) * kBlock),
        scale_(rows, 1.0),
        products_(rows),
        cross_(blocks_ * stride_, T(0)),
        codes_(blocks_ * stride_, int8_t(0)),
        digits_(problem.planes * blocks_ * stride_, int8_t(0)),
        inverse_diagonal_(blocks_ * kBlock, T(0)),
        queue_(rows),
        seen_(blocks_ * rows) {
    for (int64_t n = 0; n < columns_; ++n) {
      const T diagonal = problem.gram.diagonal(group, n);
      inverse_diagonal_[n] = diagonal >= std::numeric_limits<T>::min() ? 1 / diagonal : 0;
    }
    load_cross(first);
    load_codes();
  }

  void solve() {
    std::fill_n(io_.rounds_used, rows_, 0);
    for (int64_t r = 0; r < rows_; ++r) active_.push_back(r);
    take_stock();
    for (int round = 0; round < problem_.rounds && !active_.empty(); ++round) {
      fit_scales();
      for (int plane = problem_.planes - 1; plane >= 0; --plane)
        for (int64_t block = 0; block < blocks_; ++block)
          for (const int64_t r : active_) sweep(r, plane, block);
      take_stock();
      std::fill(seen_.begin(), seen_.end(), 0);
      for (const int64_t r : active_) ++io_.rounds_used[r];
      std::erase_if(active_, [&](int64_t r) { return queue_[r].empty(); });  // nothing moved: a fixed point
      for (const int64_t r : active_) queue_[r].clear();
    }
    for (int64_t r = 0; r < rows_; ++r) store(r);
  }

 private:
  // Rows lie block by block, so that going through the rows of a block reads one stretch of memory.
  int64_t at(int64_t row, int64_t column) const {
    return column / kBlock * stride_ + row * kBlock + column % kBlock;
  }
  int8_t* digits(int plane, int64_t place) { return &digits_[plane * blocks_ * stride_ + place]; }

  void load_cross(int64_t first) {
    std::vector<double> unit(rows_);
    std::vector<const T*> source(rows_);
    for (int64_t r = 0; r < rows_; ++r) {
      unit[r] = 1 / io_.scale[r];
      source[r] = problem_.cross + group_ * columns_ * problem_.channels + (first + r) % problem_.channels;
    }
    for (int64_t n = 0; n < columns_; ++n)
      for (int64_t r = 0; r < rows_; ++r)
        cross_[at(r, n)] = static_cast<T>(source[r][n * problem_.channels] * unit[r]);
  }

  // Splits the codes into digits and computes residual = cross - q G, as the scale starts at 1.
  void load_codes() {
    for (int64_t r = 0; r < rows_; ++r)
      for (int64_t begin = 0; begin < columns_; begin += kBlock) {
        const int64_t place = at(r, begin), width = std::min(kBlock, columns_ - begin);
        const int8_t* const codes = io_.codes + r * columns_ + begin;
        std::copy_n(codes, width, &codes_[place]);
        for (int plane = 0; plane < problem_.planes; ++plane) {
          int8_t* const digit = digits(plane, place);
          for (int64_t n = 0; n < width; ++n)
            digit[n] = problem_.planes == 1 ? codes[n] : static_cast<int8_t>(plane_digit(codes[n], plane));
        }
      }
    residual_ = cross_;
    subtract_code_products(residual_, problem_.gram, group_, io_.codes, rows_);
  }

  // Brings a block of the residual of a row up to date; to be inlined into code for one instruction set.
  template <int bytes>
  BITSPLIT_SIMD T* up_to_date_residual(int64_t row, int64_t block) {
    T* const residual = &residual_[at(row, block * kBlock)];
    const std::vector<Change<T>>& queue = queue_[row];
    size_t& seen = seen_[block * rows_ + row];
    if (seen < queue.size())
      subtract_changes<bytes>(residual, queue.data() + seen, queue.size() - seen,
                              problem_.gram.panel(group_, block));
    seen = queue.size();
    return residual;
  }

  // All residuals of the active rows up to date, and the products of their codes.
  void take_stock() {
    for (const int64_t r : active_) products_[r] = {};
    for (int64_t block = 0; block < blocks_; ++block)
      simd::run([&](auto bytes) BITSPLIT_SIMD {
        for (const int64_t r : active_) {
          const int64_t place = at(r, block * kBlock);
          add_products<bytes>(&codes_[place], &cross_[place], up_to_date_residual<bytes>(r, block),
                              products_[r]);
        }
      });
  }

  // The scales of the active rows to their optimum s = q.c / q G q.
  void fit_scales() {
    std::vector<T> growth(rows_, T(1));
    for (const int64_t r : active_) {
      const double exact = scale_growth(products_[r].cross, products_[r].residual, problem_.fit_scale);
      scale_[r] *= exact;
      growth[r] = static_cast<T>(exact);
    }
    for (int64_t block = 0; block < blocks_; ++block)
      simd::run([&]() BITSPLIT_SIMD {
        for (const int64_t r : active_) {
          const int64_t place = at(r, block * kBlock);
          if (growth[r] != 1) rescale_residual(&residual_[place], &cross_[place], growth[r]);
        }
      });
  }

  void sweep(int64_t row, int plane, int64_t block) {
    const int64_t first = block * kBlock;
    Change<T> moved[kBlock];
    int64_t count = 0;
    simd::run([&](auto bytes) BITSPLIT_SIMD {
      count = sweep_block<bytes>(up_to_date_residual<bytes>(row, block), digits(plane, at(row, first)),
                                 &inverse_diagonal_[first], problem_.gram.square(group_, block),
                                 static_cast<T>(scale_[row] * plane_weight(plane)),
                                 levels_of_row<T>(io_.levels, row), moved);
    });
    if (count == 0) return;
    for (int64_t i = 0; i < count; ++i) {
      moved[i].column += static_cast<int32_t>(first);
      stitch(at(row, moved[i].column));
    }
    queue_[row].insert(queue_[row].end(), moved, moved + count);
    seen_[block * rows_ + row] = queue_[row].size();
  }

  void stitch(int64_t place) {
    int code = 0;
    for (int plane = 0; plane < problem_.planes; ++plane) code += *digits(plane, place) * plane_weight(plane);
    codes_[place] = static_cast<int8_t>(code);
  }

  // The results of a row, its scale fitted once more; explained = 2 s q.c - s^2 q G q = s q.(cross +
  // residual).
  void store(int64_t row) {
    const Products& products = products_[row];
    const double growth = scale_growth(products.cross, products.residual, problem_.fit_scale);
    const double explained = growth == 1 ? products.cross + products.residual : growth * products.cross;
    io_.explained[row] = scale_[row] * explained * io_.scale[row] * io_.scale[row];
    io_.scale[row] *= scale_[row] * growth;
    for (int64_t n = 0; n < columns_; ++n) io_.codes[row * columns_ + n] = codes_[at(row, n)];
  }

  const Problem<T>& problem_;
  const TileRows io_;
  const int64_t group_, rows_, columns_, blocks_;
  const int64_t stride_;  // from block to block: rows (padded to kRowsAtOnce) times 64
  // In units of the scale a row started with, so that tiny rows (dead channels) do not underflow in float32.
  std::vector<double> scale_;
  std::vector<Products> products_;
  Aligned<T> cross_, residual_;  // [blocks, rows, 64]
  Aligned<int8_t> codes_;        // [blocks, rows, 64]
  Aligned<int8_t> digits_;       // [planes, blocks, rows, 64]
  Aligned<T> inverse_diagonal_;
  std::vector<int64_t> active_;                // rows that still move
  std::vector<std::vector<Change<T>>> queue_;  // by row: what moved in this round, oldest first
  std::vector<size_t> seen_;                   // [blocks, rows]: how much of the queue a block has seen
};

}  // namespace bitsplit::split
