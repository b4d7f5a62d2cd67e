// The CPU path: tiles of the batch are packed into panels (tiles.h, operands.h), the terms of the layer
// (terms.h) are multiplied on them (products.h), and sums are added to the accumulators once per chunk of
// tiles.
#include <torch/library.h>

#include "core/integers.h"
#include "ops/gram/channel_products.h"
#include "ops/gram/lane_products.h"

namespace bitsplit::gram {
namespace {

// sum_x, sum_y, sum_yy: products with a panel of ones, or of a panel with itself, lane by lane.
template <typename T>
void add_sums(const Problem& p, const Layer<T>& layer, const std::vector<Tile<T>>& tiles) {
  const int64_t taps = layer.taps(), x_columns = layer.x.columns();
  const std::vector<T> ones(kLanes, T(1));
  const auto times_one = [](Walk walk) {
    walk.b_first = 0;
    for (Walk::Loop& loop : walk.loops) loop.b_step = 0;
    return walk;
  };
  in_parallel(layer.x.blocks(), [&](int64_t block) {
    std::vector<double> sums(taps * kLanes);
    for (const Tile<T>& tile : tiles)
      for (const Step& step : *tile.cross)
        multiply_lanes(tile.x + block * tile.x_stride, ones.data(), {0, 0}, 1, 1, false, times_one(step.walk),
                       sums.data() + step.term->destinations[0] * kLanes);
    for (int64_t lane = 0; lane < layer.x.used_lanes(block); ++lane)
      for (int64_t t = 0; t < taps; ++t)
        p.sum_x.mutable_data_ptr<double>()
            [(layer.x.group_of(block, lane) * x_columns + layer.x.column_of(block, lane)) * taps + t] +=
            sums[t * kLanes + lane];
  });
  if (p.rows == 0) return;
  in_parallel(layer.y.blocks(), [&](int64_t block) {
    double sums[kLanes] = {}, squares[kLanes] = {};
    for (const Tile<T>& tile : tiles) {
      const T* panel = tile.y + block * tile.y_stride;
      Walk walk;
      walk.loops[3] = {layer.y_positions() * tile.count, 1, 1};
      multiply_lanes(panel, ones.data(), {0, 0}, 1, 1, false, times_one(walk), sums);
      multiply_lanes(panel, panel, {0, 0}, 1, 1, false, walk, squares);
    }
    for (int64_t lane = 0; lane < layer.y.used_lanes(block); ++lane) {
      const int64_t row = layer.y.group_of(block, lane) * p.rows + layer.y.column_of(block, lane);
      p.sum_y.mutable_data_ptr<double>()[row] += sums[lane];
      p.sum_yy.mutable_data_ptr<double>()[row] += squares[lane];
    }
  });
}

// Makes [groups, N, N] symmetric: products are added on and above the diagonals only, and once a batch what
// lies below is copied. By way of a buffer, because rows of a large G share the lines of a cache.
void mirror(const at::Tensor& G) {
  const int64_t n = G.size(1), blocks = divide_up(n, kBlock);
  in_parallel(G.size(0) * blocks, [&](int64_t k) {
    double* matrix = G.mutable_data_ptr<double>() + k / blocks * n * n;
    double block[kBlock * kBlock];
    const int64_t place = k % blocks, row = place % 2 ? blocks - 1 - place / 2 : place / 2;  // work for all
    const int64_t first = row * kBlock, rows = std::min(kBlock, n - first);
    for (int64_t above = 0; above <= first; above += kBlock) {
      const int64_t columns = std::min(kBlock, n - above);
      for (int64_t j = 0; j < columns; ++j)
        std::copy_n(matrix + (above + j) * n + first, rows, block + j * kBlock);
      for (int64_t i = 0; i < rows; ++i)
        for (int64_t j = 0; j < std::min(columns, first + i - above); ++j)
          matrix[(first + i) * n + above + j] = block[j * kBlock + i];
    }
  });
}

template <template <typename> class Products, typename T>
void accumulate(const Problem& p, const Layer<T>& layer) {
  const Products<T> products(p, layer);
  Packer<T> packer(p, layer);
  for (int64_t first = 0; first < layer.plan.tiles; first += layer.plan.chunk) {
    const std::vector<Tile<T>> tiles =
        packer.pack(first, std::min(layer.plan.chunk, layer.plan.tiles - first));
    products.gram(tiles);
    if (p.rows > 0) products.cross(tiles);
    add_sums(p, layer, tiles);
  }
}

void gram_cpu(const at::Tensor& x, const std::optional<at::Tensor>& y, at::IntArrayRef kernel,
              at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups,
              const std::optional<at::Tensor>& positions, at::Tensor G, at::Tensor C, at::Tensor sum_x,
              at::Tensor sum_y, at::Tensor sum_yy) {
  const Problem p =
      check(x, y, kernel, stride, padding, dilation, groups, positions, G, C, sum_x, sum_y, sum_yy);
  if (p.images * p.patches_per_image() == 0) return;
  AT_DISPATCH_FLOATING_TYPES(p.x.scalar_type(), "gram", [&] {
    const Layer<scalar_t> layer(p);
    if (layer.plan.lanes_are_groups)
      accumulate<LaneProducts>(p, layer);
    else
      accumulate<ChannelProducts>(p, layer);
  });
  mirror(p.G);
}

}  // namespace
}  // namespace bitsplit::gram

TORCH_LIBRARY_IMPL(bitsplit, CPU, m) { m.impl("gram", bitsplit::gram::gram_cpu); }
