// Descent over the response on the CPU: a tile of rows of one group, solved together to their fixed points.
//
// "Left-looking" blocks: before a row solves a block of 64 columns it brings this block of its residual up to
// date with everything that moved since the block's last turn, which it finds in the row's queue. So the work
// is proportional to what moves, and one pass over G serves all rows of the tile.
#pragma once

#include <limits>
#include <vector>

#include "core/planes.h"
#include "ops/split/split_panels.h"
#include "ops/split/split_rows.h"

namespace bitsplit::split {

// What the tiles of one call share.
template <class T>
struct Problem {
  const Panels<T>& gram;
  const T* cross;  // [g, N, M]
  int64_t channels;
  int planes, limit, rounds;
};

// The rows of a tile in the tensors of the call: its input and its results.
struct TileRows {
  int8_t* codes;  // [rows, N]
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
        width_(problem.gram.padded),
        blocks_(problem.gram.blocks),
        scale_(rows, 1.0),
        cross_(round_up(rows, kRowsAtOnce) * width_),
        codes_(rows * width_),
        digits_(problem.planes * rows * width_),
        inverse_diagonal_(width_),
        queue_(rows),
        seen_(rows * blocks_) {
    for (int64_t n = 0; n < columns_; ++n) {
      const T diagonal = problem.gram.diagonal(group, n);
      inverse_diagonal_[n] = diagonal >= std::numeric_limits<T>::min() ? 1 / diagonal : 0;
      const T* const source = problem.cross + (group * columns_ + n) * problem.channels;
      for (int64_t r = 0; r < rows; ++r)
        cross_[r * width_ + n] = static_cast<T>(source[(first + r) % problem.channels] / io.scale[r]);
    }
    load_codes();
  }

  void solve() {
    std::fill_n(io_.rounds_used, rows_, 0);
    for (int64_t r = 0; r < rows_; ++r) active_.push_back(r);
    for (int round = 0; round < problem_.rounds && !active_.empty(); ++round) {
      for (const int64_t r : active_) {
        fit_scale(r);
        ++io_.rounds_used[r];
      }
      for (int plane = problem_.planes - 1; plane >= 0; --plane)
        for (int64_t block = 0; block < blocks_; ++block)
          for (const int64_t r : active_) sweep(r, plane, block);
      end_round();
    }
    for (int64_t r = 0; r < rows_; ++r) {
      fit_scale(r);
      io_.explained[r] *= io_.scale[r] * io_.scale[r];
      io_.scale[r] *= scale_[r];
      std::copy_n(&codes_[r * width_], columns_, io_.codes + r * columns_);
    }
  }

 private:
  // Splits the codes into digits and computes residual = cross - q G, as the scale starts at 1.
  void load_codes() {
    residual_ = cross_;
    std::vector<T> start(cross_.size());
    for (int64_t r = 0; r < rows_; ++r)
      for (int64_t n = 0; n < columns_; ++n) {
        const int8_t code = io_.codes[r * columns_ + n];
        codes_[r * width_ + n] = code;
        start[r * width_ + n] = code;
        for (int plane = 0; plane < problem_.planes; ++plane)
          digits(plane, r)[n] = problem_.planes == 1 ? code : static_cast<int8_t>(plane_digit(code, plane));
      }
    for (int64_t block = 0; block < blocks_; ++block)
      subtract_product(&residual_[block * kBlock], width_, start.data(), width_, round_up(rows_, kRowsAtOnce),
                       problem_.gram.panel(group_, block), columns_);
  }

  int8_t* digits(int plane, int64_t row) { return &digits_[(plane * rows_ + row) * width_]; }

  // Sets the scale of a row to its optimum and `explained` to 2 s q.c - s^2 q G q = s q.(c + residual).
  void fit_scale(int64_t row) {
    T* const residual = &residual_[row * width_];
    const T* const cross = &cross_[row * width_];
    const Products products = dot_codes(&codes_[row * width_], cross, residual, width_);
    const double growth = scale_growth(products.cross, products.residual);
    if (growth == 1) {
      io_.explained[row] = scale_[row] * (products.cross + products.residual);
      return;
    }
    scale_[row] *= growth;
    io_.explained[row] = scale_[row] * products.cross;
    rescale_residual(residual, cross, static_cast<T>(growth), width_);
  }

  T* up_to_date_residual(int64_t row, int64_t block) {
    T* const residual = &residual_[row * width_ + block * kBlock];
    const std::vector<Change<T>>& queue = queue_[row];
    size_t& seen = seen_[row * blocks_ + block];
    if (seen < queue.size())
      simd::run([&]() BITSPLIT_SIMD {
        subtract_changes(residual, queue.data() + seen, queue.size() - seen,
                         problem_.gram.panel(group_, block));
      });
    seen = queue.size();
    return residual;
  }

  void sweep(int64_t row, int plane, int64_t block) {
    T* const residual = up_to_date_residual(row, block);
    const int64_t first = block * kBlock;
    Change<T> moved[kBlock];
    int64_t count = 0;
    simd::run([&]() BITSPLIT_SIMD {
      count =
          sweep_block(residual, digits(plane, row) + first, &inverse_diagonal_[first],
                      problem_.gram.square(group_, block), static_cast<T>(scale_[row] * plane_weight(plane)),
                      static_cast<T>(problem_.limit), moved);
    });
    for (int64_t i = 0; i < count; ++i) {
      moved[i].column += static_cast<int32_t>(first);
      stitch(row, moved[i].column);
    }
    queue_[row].insert(queue_[row].end(), moved, moved + count);
    seen_[row * blocks_ + block] = queue_[row].size();
  }

  void stitch(int64_t row, int64_t column) {
    int code = 0;
    for (int plane = 0; plane < problem_.planes; ++plane)
      code += digits(plane, row)[column] * plane_weight(plane);
    codes_[row * width_ + column] = static_cast<int8_t>(code);
  }

  // Residuals up to date, queues empty; a row in which nothing moved is at its fixed point and retires.
  void end_round() {
    for (int64_t block = 0; block < blocks_; ++block)
      for (const int64_t r : active_) up_to_date_residual(r, block);
    std::fill(seen_.begin(), seen_.end(), 0);
    std::erase_if(active_, [&](int64_t r) { return queue_[r].empty(); });
    for (const int64_t r : active_) queue_[r].clear();
  }

  const Problem<T>& problem_;
  const TileRows io_;
  const int64_t group_, rows_, columns_, width_, blocks_;  // width: columns padded to whole blocks
  // In units of the scale a row started with, so that tiny rows (dead channels) do not underflow in float32.
  std::vector<double> scale_;
  std::vector<T> cross_, residual_;  // [rows padded to kRowsAtOnce, width]
  std::vector<int8_t> codes_;        // [rows, width]
  std::vector<int8_t> digits_;       // [planes, rows, width]
  std::vector<T> inverse_diagonal_;
  std::vector<int64_t> active_;
  std::vector<std::vector<Change<T>>> queue_;  // by row: what moved in this round, oldest first
  std::vector<size_t> seen_;                   // [rows, blocks]: how much of the queue a block has seen
};

}  // namespace bitsplit::split
