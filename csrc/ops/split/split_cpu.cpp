// The CPU kernels of the split family: tiles of rows in parallel, the loops in split_rows.h.
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/full_like.h>

#include <algorithm>

#include "core/integers.h"
#include "core/levels.h"
#include "ops/split/split_dispatch.h"
#include "ops/split/split_feedback.h"
#include "ops/split/split_panels.h"
#include "ops/split/split_search.h"
#include "ops/split/split_tile.h"
#include "ops/split/split_weights.h"

namespace bitsplit::split {
namespace {

constexpr int64_t kLargestTile = 512;  // rows; beyond it their residuals no longer stay in a cache
constexpr int64_t kSmallTask = 16384;  // weights; less is not worth a thread

// solve(group, first row, rows) for tiles of the rows of all groups, in parallel.
template <class Solve>
void for_each_tile(int64_t groups, int64_t rows, const Solve& solve) {
  const int64_t share = divide_up(groups * rows, at::get_num_threads());
  const int64_t tile = std::clamp(round_up(share, kFeedbackRows), kFeedbackRows, kLargestTile);
  const int64_t tiles = divide_up(rows, tile);
  at::parallel_for(0, groups * tiles, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t first = task % tiles * tile;
      solve(task / tiles, first, std::min(tile, rows - first));
    }
  });
}

// Panels of a batch of matrices [g, N, N] of either dtype, all packed by `pack(panels, matrix, group,
// block)`.
template <class T, class Pack>
Panels<T> packed(const at::Tensor& matrices, const Pack& pack) {
  const int64_t groups = matrices.size(0), columns = matrices.size(1);
  Panels<T> panels(groups, columns);
  AT_DISPATCH_FLOATING_TYPES(matrices.scalar_type(), "split_panels", [&] {
    const scalar_t* const first = matrices.const_data_ptr<scalar_t>();
    at::parallel_for(0, groups * panels.blocks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        const int64_t group = task / panels.blocks;
        pack(panels, first + group * columns * columns, group, task % panels.blocks);
      }
    });
  });
  return panels;
}

template <class T>
Panels<T> packed_gram(const at::Tensor& gram) {
  return packed<T>(gram, [](auto& panels, auto matrix, int64_t group, int64_t block) {
    panels.pack(matrix, group, block);
  });
}

// solve(weights, codes, scale) for every row, in parallel.
template <class T, class Solve>
void for_each_row(const at::Tensor& weight, const at::Tensor& codes, const at::Tensor& scale,
                  const Solve& solve) {
  const int64_t columns = weight.size(2);
  at::parallel_for(0, scale.numel(), 1 + kSmallTask / columns, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      solve(weight.const_data_ptr<T>() + row * columns, codes.mutable_data_ptr<int8_t>() + row * columns,
            scale.mutable_data_ptr<double>()[row]);
  });
}

struct Cpu {
  template <class T>
  static Descent descend(const at::Tensor& codes, const at::Tensor& scale, const at::Tensor& gram,
                         const at::Tensor& cross, const at::Tensor& levels, int planes, int rounds,
                         bool fit_scale) {
    const int64_t rows = codes.size(1), columns = codes.size(2);
    const at::Tensor out_codes = codes.clone(), out_scale = scale.clone(), explained = at::empty_like(scale);
    const at::Tensor rounds_used = at::empty(scale.sizes(), scale.options().dtype(at::kLong));
    const Panels<T> panels = packed_gram<T>(gram);
    const Problem<T> problem{panels, cross.const_data_ptr<T>(), cross.size(2), planes, rounds, fit_scale};
    for_each_tile(codes.size(0), rows, [&](int64_t group, int64_t first, int64_t count) {
      const int64_t row = group * rows + first;
      Tile<T>(
          problem, group, first, count,
          {levels.const_data_ptr<int8_t>() + 2 * row, out_codes.mutable_data_ptr<int8_t>() + row * columns,
           out_scale.mutable_data_ptr<double>() + row, explained.mutable_data_ptr<double>() + row,
           rounds_used.mutable_data_ptr<int64_t>() + row})
          .solve();
    });
    return {out_codes, out_scale, explained, rounds_used};
  }

  template <class T>
  static Descent search(const at::Tensor& codes, const at::Tensor& scale, const at::Tensor& gram,
                        const at::Tensor& cross, const at::Tensor& levels, int steps, int64_t seed,
                        bool fit_scale) {
    const int64_t rows = codes.size(1), columns = codes.size(2), channels = cross.size(2);
    const at::Tensor out_codes = codes.clone(), out_scale = scale.clone(), explained = at::empty_like(scale);
    const Panels<T> panels = packed_gram<T>(gram);
    for_each_tile(codes.size(0), rows, [&](int64_t group, int64_t first, int64_t count) {
      int8_t* const tile = out_codes.mutable_data_ptr<int8_t>() + (group * rows + first) * columns;
      const Aligned<T> products = negative_products(panels, group, tile, count);
      const int64_t stride = static_cast<int64_t>(products.size()) / panels.blocks;
      for (int64_t r = 0; r < count; ++r) {
        const int64_t row = group * rows + first + r, channel = (first + r) % channels;
        double& unit = out_scale.mutable_data_ptr<double>()[row];
        const T* const row_cross = cross.const_data_ptr<T>() + group * columns * channels + channel;
        RowSearch<T> search(panels, group, tile + r * columns, row_cross, channels, &products[r * kBlock],
                            stride, unit, levels_of_row<T>(levels.const_data_ptr<int8_t>(), row), fit_scale);
        const Explained found = search.run(steps, seed, group * channels + channel, tile + r * columns);
        explained.mutable_data_ptr<double>()[row] = found.value_in(unit);
        unit = found.possible() ? unit * found.scale() : unit;
      }
    });
    return {out_codes, out_scale, explained, at::full_like(scale, steps, at::kLong)};
  }

  template <class T>
  static Rounded feedback(const at::Tensor& target, const at::Tensor& scale, const at::Tensor& factor,
                          const at::Tensor& levels) {
    const int64_t channels = target.size(1), columns = target.size(2), rows = scale.size(1);
    const at::Tensor codes = at::empty({target.size(0), rows, columns}, target.options().dtype(at::kChar));
    const at::Tensor loss = at::empty_like(scale);
    const auto pack = [](auto& panels, auto matrix, int64_t group, int64_t block) {
      panels.pack_shares(matrix, group, block);
    };
    const Panels<T> shares = packed<T>(factor, pack);
    const at::Tensor diagonal =
        at::constant_pad_nd(factor.diagonal(0, 1, 2).to(target.scalar_type()), {0, shares.padded - columns})
            .contiguous();
    for_each_tile(target.size(0), rows, [&](int64_t group, int64_t first, int64_t count) {
      Feedback<T>{shares,
                  diagonal.const_data_ptr<T>() + group * shares.padded,
                  group,
                  channels,
                  target.const_data_ptr<T>() + group * channels * columns,
                  scale.const_data_ptr<double>() + group * rows,
                  levels.const_data_ptr<int8_t>() + 2 * group * rows,
                  codes.mutable_data_ptr<int8_t>() + group * rows * columns,
                  loss.mutable_data_ptr<double>() + group * rows}
          .round(first, count);
    });
    return {codes, loss};
  }

  template <class T>
  static Fit fwa(const at::Tensor& weight, int bits) {
    const at::Tensor codes = at::empty(weight.sizes(), weight.options().dtype(at::kChar));
    const at::Tensor scale = at::empty({weight.size(0), weight.size(1)}, weight.options().dtype(at::kDouble));
    for_each_row<T>(weight, codes, scale,
                    [&](const T* w, int8_t* q, double& s) { fwa_row(w, weight.size(2), bits, q, s); });
    return {codes, scale};
  }

  template <class T>
  static Fit ofwa(const at::Tensor& weight, const at::Tensor& codes, const at::Tensor& scale, int bits,
                  int rounds) {
    const Fit result{codes.clone(), scale.clone()};
    for_each_row<T>(weight, std::get<0>(result), std::get<1>(result), [&](const T* w, int8_t* q, double& s) {
      ofwa_row(w, weight.size(2), bits, rounds, q, s);
    });
    return result;
  }
};

}  // namespace

TORCH_LIBRARY_IMPL(bitsplit, CPU, m) { SplitOperators<Cpu>::implement(m); }

}  // namespace bitsplit::split
