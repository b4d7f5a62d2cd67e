// The split solvers on the CPU. G is packed once into panels of 64 columns; tiles of rows then go over panel after
// panel ("left-looking"): a row brings a block of its residual up to date with everything that moved since its last
// visit, solves the block, and queues what moved. So work is proportional to what changes.
#include <ATen/Parallel.h>
#include <ATen/ATen.h>

#include <algorithm>
#include <limits>
#include <vector>

#include "core/levels.h"
#include "core/planes.h"
#include "ops/split/split.h"
#include "ops/split/split_rows.h"

namespace bitsplit::split {
namespace {

constexpr int kFwaRounds = 1000;      // fwa ends by itself; a bound in case two codings tie for ever
constexpr int64_t kLargestTile = 512;  // rows that share one pass over G

int64_t round_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

// Rows in tiles, all groups together; `solve(group, first row, rows)` runs once for each.
template <class Solve>
void for_each_tile(int64_t groups, int64_t rows, const Solve& solve) {
  const int64_t share = (groups * rows + at::get_num_threads() - 1) / at::get_num_threads();
  const int64_t tile = std::clamp(round_up(share, kFeedbackRows), kFeedbackRows, kLargestTile);
  const int64_t tiles = (rows + tile - 1) / tile;
  at::parallel_for(0, groups * tiles, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t first = task % tiles * tile;
      solve(task / tiles, first, std::min(tile, rows - first));
    }
  });
}

// A matrix [g, N, N] in panels of 64 columns, converted to T and padded with zeros: panel b holds column block b of
// all rows, row after row.
template <class T>
class Panels {
 public:
  enum class Part { kAll, kUpperOverDiagonal };  // the latter: U_in / U_nn for i < n, what feedback passes on

  Panels(const at::Tensor& matrix, Part part)
      : columns(matrix.size(1)),
        padded(round_up(columns, kBlock)),
        blocks(padded / kBlock),
        storage_(at::empty({matrix.size(0), blocks, padded, kBlock}, at::CppTypeToScalarType<T>::value)) {
    AT_DISPATCH_FLOATING_TYPES(matrix.scalar_type(), "split_panels", [&] {
      const scalar_t* const source = matrix.const_data_ptr<scalar_t>();
      at::parallel_for(0, matrix.size(0) * blocks, 1, [&](int64_t begin, int64_t end) {
        for (int64_t task = begin; task < end; ++task)
          pack(source + task / blocks * columns * columns, task / blocks, task % blocks, part);
      });
    });
  }

  T* panel(int64_t group, int64_t block) const {
    return storage_.template mutable_data_ptr<T>() + (group * blocks + block) * padded * kBlock;
  }
  // The 64 x 64 of the block with itself.
  const T* square(int64_t group, int64_t block) const { return panel(group, block) + block * kBlock * kBlock; }

  const int64_t columns, padded, blocks;

 private:
  template <class Source>
  void pack(const Source* matrix, int64_t group, int64_t block, Part part) {
    const int64_t first = block * kBlock, width = std::min(kBlock, columns - first);
    const bool upper = part == Part::kUpperOverDiagonal;
    T* const to = panel(group, block);
    for (int64_t n = 0; n < (upper ? first + kBlock : padded); ++n) {
      for (int64_t j = 0; j < kBlock; ++j) {
        const bool inside = n < columns && j < width && (!upper || n < first + j);
        const Source value = inside ? matrix[n * columns + first + j] : 0;
        to[n * kBlock + j] = static_cast<T>(inside && upper ? value / matrix[(first + j) * (columns + 1)] : value);
      }
    }
  }

  at::Tensor storage_;
};

// What one descent call shares among its tiles.
template <class T>
struct Problem {
  const Panels<T>& gram;
  const T* cross;  // [g, N, M]
  int64_t channels, planes;
  int limit, rounds;
};

// Rows [first, first + rows) of one group, solved to their fixed points.
template <class T>
class Tile {
 public:
  Tile(const Problem<T>& problem, int64_t group, int64_t first, int64_t rows, const double* scale)
      : problem_(problem),
        group_(group),
        rows_(rows),
        width_(problem.gram.padded),
        blocks_(problem.gram.blocks),
        cross_(round_up(rows, kRowsAtOnce) * width_),
        codes_(rows * width_),
        digits_(problem.planes * rows * width_),
        inverse_diagonal_(width_),
        unit_(scale, scale + rows),
        scale_(rows, 1.0),
        active_(rows, true),
        queue_(rows),
        applied_(rows * blocks_) {
    for (int64_t n = 0; n < problem.gram.columns; ++n) {
      const T diagonal = problem.gram.square(group, n / kBlock)[n % kBlock * (kBlock + 1)];
      inverse_diagonal_[n] = diagonal >= std::numeric_limits<T>::min() ? 1 / diagonal : 0;
      const T* const source = problem.cross + (group * problem.gram.columns + n) * problem.channels;
      for (int64_t r = 0; r < rows; ++r)
        cross_[r * width_ + n] = static_cast<T>(source[(first + r) % problem.channels] / scale[r]);
    }
  }

  void run(int8_t* codes, double* scale, double* explained, int64_t* rounds_used) {
    load(codes);
    std::fill_n(rounds_used, rows_, 0);
    for (int round = 0; round < problem_.rounds && fit_scales(explained); ++round) {
      for (int64_t r = 0; r < rows_; ++r) rounds_used[r] += active_[r];
      for (int64_t plane = problem_.planes - 1; plane >= 0; --plane)
        for (int64_t block = 0; block < blocks_; ++block) sweep(plane, block);
      settle();
    }
    std::fill(active_.begin(), active_.end(), true);
    fit_scales(explained);
    for (int64_t r = 0; r < rows_; ++r) {
      std::copy_n(&codes_[r * width_], problem_.gram.columns, codes + r * problem_.gram.columns);
      scale[r] = unit_[r] * scale_[r];
      explained[r] *= unit_[r] * unit_[r];
    }
  }

 private:
  // Splits the codes into digits and computes residual = cross - q G (the scale starts at 1).
  void load(const int8_t* codes) {
    residual_ = cross_;
    std::vector<T> weights(cross_.size());
    for (int64_t r = 0; r < rows_; ++r)
      for (int64_t n = 0; n < problem_.gram.columns; ++n) {
        const int8_t code = codes[r * problem_.gram.columns + n];
        codes_[r * width_ + n] = code;
        weights[r * width_ + n] = code;
        for (int64_t plane = 0; plane < problem_.planes; ++plane)
          digits(plane, r)[n] = static_cast<int8_t>(problem_.planes == 1 ? code : plane_digit(code, plane));
      }
    for (int64_t block = 0; block < blocks_; ++block)
      subtract_product(&residual_[block * kBlock], width_, weights.data(), width_, round_up(rows_, kRowsAtOnce),
                       problem_.gram.panel(group_, block), problem_.gram.columns);
  }

  int8_t* digits(int64_t plane, int64_t row) { return &digits_[(plane * rows_ + row) * width_]; }

  // Sets the scale of every active row to its optimum s = q.c / q G q, with s q G q = q.(cross - residual), and
  // `explained` to 2 s q.c - s^2 q G q. Returns whether any row is active.
  bool fit_scales(double* explained) {
    for (int64_t r = 0; r < rows_; ++r) {
      if (!active_[r]) continue;
      T* const residual = &residual_[r * width_];
      const Products products = dot_codes(&codes_[r * width_], &cross_[r * width_], residual, width_);
      explained[r] = scale_[r] * (products.cross + products.residual);
      const double ratio = products.cross / (products.cross - products.residual);
      if (!(products.cross > 0) || !(products.cross > products.residual) || !(ratio * scale_[r] > 0)) continue;
      scale_[r] *= ratio;
      explained[r] = scale_[r] * products.cross;
      rescale_residual(residual, &cross_[r * width_], static_cast<T>(ratio), width_);
    }
    return std::find(active_.begin(), active_.end(), true) != active_.end();
  }

  void bring_up_to_date(int64_t row, int64_t block) {
    size_t& applied = applied_[row * blocks_ + block];
    subtract_changes(&residual_[row * width_ + block * kBlock], queue_[row].data() + applied,
                     queue_[row].size() - applied, problem_.gram.panel(group_, block));
    applied = queue_[row].size();
  }

  void sweep(int64_t plane, int64_t block) {
    const int64_t first = block * kBlock;
    Change<T> moved[kBlock];
    for (int64_t r = 0; r < rows_; ++r) {
      if (!active_[r]) continue;
      bring_up_to_date(r, block);
      const int64_t count = sweep_block(&residual_[r * width_ + first], digits(plane, r) + first,
                                        &inverse_diagonal_[first], problem_.gram.square(group_, block),
                                        static_cast<T>(scale_[r] * (1 << plane)), problem_.limit, moved);
      for (int64_t i = 0; i < count; ++i) {
        moved[i].column += static_cast<int32_t>(first);
        codes_[r * width_ + moved[i].column] = stitch(r, moved[i].column);
      }
      queue_[r].insert(queue_[r].end(), moved, moved + count);
      applied_[r * blocks_ + block] = queue_[r].size();
    }
  }

  int8_t stitch(int64_t row, int64_t column) {
    int code = 0;
    for (int64_t plane = 0; plane < problem_.planes; ++plane) code += digits(plane, row)[column] * (1 << plane);
    return static_cast<int8_t>(code);
  }

  // Ends a round: residuals up to date, queues empty; a row in which nothing moved is at its fixed point.
  void settle() {
    for (int64_t block = 0; block < blocks_; ++block)
      for (int64_t r = 0; r < rows_; ++r)
        if (active_[r]) bring_up_to_date(r, block);
    std::fill(applied_.begin(), applied_.end(), 0);
    for (int64_t r = 0; r < rows_; ++r) {
      active_[r] = !queue_[r].empty();
      queue_[r].clear();
    }
  }

  const Problem<T>& problem_;
  const int64_t group_, rows_, width_, blocks_;
  std::vector<T> cross_, residual_;  // [rows, width], rows padded to kRowsAtOnce
  std::vector<int8_t> codes_, digits_;
  std::vector<T> inverse_diagonal_;
  // Rows are solved in units of their first scale, so that tiny ones (dead channels) do not underflow.
  const std::vector<double> unit_;
  std::vector<double> scale_;
  std::vector<bool> active_;
  std::vector<std::vector<Change<T>>> queue_;  // what moved in this round, by row, oldest first
  std::vector<size_t> applied_;                // [rows, blocks]: how much of the queue a block has seen
};

template <class T>
Descent descend_as(const at::Tensor& codes, const at::Tensor& scale, const at::Tensor& gram, const at::Tensor& cross,
                   int planes, int limit, int rounds) {
  const int64_t groups = codes.size(0), rows = codes.size(1), columns = codes.size(2);
  const at::Tensor out_codes = codes.clone(), out_scale = scale.clone(), explained = at::empty_like(scale);
  const at::Tensor rounds_used = at::empty(scale.sizes(), scale.options().dtype(at::kLong));
  const Panels<T> panels(gram, Panels<T>::Part::kAll);
  const Problem<T> problem{panels, cross.const_data_ptr<T>(), cross.size(2), planes, limit, rounds};
  for_each_tile(groups, rows, [&](int64_t group, int64_t first, int64_t count) {
    const int64_t row = group * rows + first;
    Tile<T>(problem, group, first, count, scale.const_data_ptr<double>() + row)
        .run(out_codes.mutable_data_ptr<int8_t>() + row * columns, out_scale.mutable_data_ptr<double>() + row,
             explained.mutable_data_ptr<double>() + row, rounds_used.mutable_data_ptr<int64_t>() + row);
  });
  return {out_codes, out_scale, explained, rounds_used};
}

Descent descend(const at::Tensor& codes, const at::Tensor& scale, const at::Tensor& gram, const at::Tensor& cross,
                int planes, int limit, int rounds) {
  const bool single = cross.scalar_type() == at::kFloat;
  return (single ? descend_as<float> : descend_as<double>)(codes, scale, gram, cross, planes, limit, rounds);
}

// Sequential rounding of `rows` rows of one group; kFeedbackRows of them side by side inside a block.
template <class T>
void feedback_tile(const Panels<T>& shares, int64_t group, int64_t first, int64_t rows, int64_t channels,
                   const T* target, const double* scale, int limit, int8_t* codes) {
  const int64_t width = shares.padded, columns = shares.columns, padded_rows = round_up(rows, kFeedbackRows);
  std::vector<T> excess(padded_rows * width), wanted(padded_rows * kBlock);
  std::vector<T> lanes(kBlock * kFeedbackRows), weight(kBlock * kFeedbackRows);
  std::vector<int8_t> coded(padded_rows * width);
  for (int64_t block = 0; block < shares.blocks; ++block) {
    const int64_t begin = block * kBlock, inside = std::min(kBlock, columns - begin);
    std::fill(wanted.begin(), wanted.end(), T(0));
    subtract_product(wanted.data(), kBlock, excess.data(), width, padded_rows, shares.panel(group, block), begin);
    for (int64_t r = 0; r < padded_rows; r += kFeedbackRows) {
      std::fill(weight.begin(), weight.end(), T(0));
      for (int64_t lane = 0; lane < std::min(kFeedbackRows, rows - r); ++lane)
        for (int64_t n = 0; n < inside; ++n)
          weight[n * kFeedbackRows + lane] =
              static_cast<T>(target[(first + r + lane) % channels * columns + begin + n] / scale[r + lane]);
      for (int64_t lane = 0; lane < kFeedbackRows; ++lane)
        for (int64_t n = 0; n < kBlock; ++n)
          lanes[n * kFeedbackRows + lane] =
              weight[n * kFeedbackRows + lane] + wanted[(r + lane) * kBlock + n];
      feedback_block(lanes.data(), weight.data(), shares.square(group, block), limit,
                     &coded[r * width + begin], &excess[r * width + begin], width);
    }
  }
  for (int64_t r = 0; r < rows; ++r) std::copy_n(&coded[r * width], columns, codes + r * columns);
}

template <class T>
at::Tensor feedback_as(const at::Tensor& target, const at::Tensor& scale, const at::Tensor& factor, int limit) {
  const int64_t groups = target.size(0), channels = target.size(1), columns = target.size(2), rows = scale.size(1);
  const at::Tensor codes = at::empty({groups, rows, columns}, target.options().dtype(at::kChar));
  const Panels<T> shares(factor, Panels<T>::Part::kUpperOverDiagonal);
  for_each_tile(groups, rows, [&](int64_t group, int64_t first, int64_t count) {
    const int64_t row = group * rows + first;
    feedback_tile<T>(shares, group, first, count, channels,
                     target.const_data_ptr<T>() + group * channels * columns, scale.const_data_ptr<double>() + row,
                     limit, codes.mutable_data_ptr<int8_t>() + row * columns);
  });
  return codes;
}

at::Tensor feedback(const at::Tensor& target, const at::Tensor& scale, const at::Tensor& factor, int bits) {
  const bool single = target.scalar_type() == at::kFloat;
  return (single ? feedback_as<float> : feedback_as<double>)(target, scale, factor, level_limit(bits));
}

// Calls solve(weights, codes, scale) for every row of a weight, rows in parallel.
template <class Solve>
void for_each_row(const at::Tensor& weight, const at::Tensor& codes, const at::Tensor& scale, const Solve& solve) {
  const int64_t columns = weight.size(2);
  AT_DISPATCH_FLOATING_TYPES(weight.scalar_type(), "split_rows", [&] {
    at::parallel_for(0, scale.numel(), 1 + (1 << 14) / columns, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row)
        solve(weight.const_data_ptr<scalar_t>() + row * columns, codes.mutable_data_ptr<int8_t>() + row * columns,
              scale.mutable_data_ptr<double>()[row]);
    });
  });
}

std::tuple<at::Tensor, at::Tensor> fwa(const at::Tensor& weight, int bits) {
  const int limit = level_limit(bits);
  const int64_t columns = weight.size(2);
  const at::Tensor codes = at::zeros(weight.sizes(), weight.options().dtype(at::kChar));
  const at::Tensor scale = at::ones({weight.size(0), weight.size(1)}, weight.options().dtype(at::kDouble));
  for_each_row(weight, codes, scale, [&](const auto* w, int8_t* q, double& s) {
    double largest = 0;
    for (int64_t n = 0; n < columns; ++n) largest = std::max(largest, std::abs(static_cast<double>(w[n])));
    if (largest < std::numeric_limits<double>::min()) return;
    s = largest / limit;
    for (int round = 0; round < kFwaRounds; ++round) {
      const Fit fit = round_row(w, s, limit, q, columns);
      if (!fit.moved) break;
      if (fit.dot > 0) s = fit.dot / fit.norm;
    }
  });
  return {codes, scale};
}

// The scale that fits the codes best, <w, q> / <q, q>; `scale` where that is not positive.
template <class T>
double weight_scale(const T* weight, const int8_t* codes, int64_t columns, double scale) {
  double dot = 0, norm = 0;
  for (int64_t n = 0; n < columns; ++n) {
    dot += static_cast<double>(weight[n]) * codes[n];
    norm += static_cast<double>(codes[n]) * codes[n];
  }
  return dot > 0 ? dot / norm : scale;
}

std::tuple<at::Tensor, at::Tensor> ofwa(const at::Tensor& weight, const at::Tensor& codes, const at::Tensor& scale,
                                        int bits, int rounds) {
  const int planes = plane_count(bits);
  const int64_t columns = weight.size(2);
  const at::Tensor out_codes = codes.clone(), out_scale = scale.clone();
  for_each_row(weight, out_codes, out_scale, [&](const auto* w, int8_t* q, double& s) {
    std::vector<int8_t> digits(planes * columns);
    for (int plane = 0; plane < planes; ++plane)
      for (int64_t n = 0; n < columns; ++n) digits[plane * columns + n] = plane_digit(q[n], plane);
    for (int round = 0; round < rounds; ++round) {
      s = weight_scale(w, q, columns, s);
      bool moved = false;
      for (int plane = planes - 1; plane >= 0; --plane)
        for (int64_t n = 0; n < columns; ++n) {
          int8_t& digit = digits[plane * columns + n];
          const int others = q[n] - digit * (1 << plane);
          const double left = w[n] - s * others;
          const int best = 2 * std::abs(left) >= s * (1 << plane) ? (left > 0 ? 1 : -1) : 0;
          moved |= best != digit;
          digit = static_cast<int8_t>(best);
          q[n] = static_cast<int8_t>(others + best * (1 << plane));
        }
      if (!moved) break;
    }
    s = weight_scale(w, q, columns, s);
  });
  return {out_codes, out_scale};
}

const bool registered = (register_backend(at::kCPU, {fwa, ofwa, descend, feedback}), true);

}  // namespace
}  // namespace bitsplit::split
